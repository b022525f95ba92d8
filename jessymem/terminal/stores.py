"""What a command works on: the region files under a folder, and a manager of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jessymem import inspection
from jessymem.config import MIB, MemoryConfig
from jessymem.errors import DimensionNotFound, JessyMemoryError, LayerNotFound
from jessymem.ids import DimensionId, LayerId, is_dimension_id
from jessymem.ingest.building import region_files
from jessymem.manager import MmapManager
from jessymem.regions.files import RegionFiles
from jessymem.terminal.shell import fail_on


def files_under(data: Path) -> list[RegionFiles]:
    """Return the files of each dimension under `data`."""
    return [target.files for target in inspection.find_regions(data) if target.files is not None]


def reader_of(
    dimensions: Iterable[DimensionId], data: Path, *, read_only: bool = True
) -> MmapManager:
    """Return a manager with a budget for all of `dimensions`, which as a rule only reads."""
    found = [region_files(data, dimension).find(tidy=False) for dimension in set(dimensions)]
    paths = {path for each in found for path in each.chain.paths}
    n_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    return MmapManager(
        MemoryConfig(
            total_memory_mb=MemoryConfig.total_memory_mb + n_bytes // MIB,
            base_path=data,
            simulation="never",
            read_only=read_only,
        )
    )


def find_layers(layers: Iterable[LayerId | str], data: Path) -> list[LayerId]:
    """Return the layers that ids and names tell, in their order; see `MmapManager.id_of`.

    For names the dimensions that may be meant are mapped, one after the other. What cannot be read
    matters only where a name is not found.

    Raises
    ------
    LayerNotFound, AmbiguousName
        If a name is that of no layer under `data`, or of several.
    """
    wanted = list(layers)
    names = [each for each in wanted if not isinstance(each, LayerId)]
    if not names:
        return [each for each in wanted if isinstance(each, LayerId)]
    heads = [name.partition("/")[0] for name in names]
    if all(map(is_dimension_id, heads)):
        dimensions = [DimensionId(head) for head in heads if _is_number(head)]
    else:
        dimensions = [files.dimension for files in files_under(data)]
    errors: list[JessyMemoryError] = []
    with reader_of(dimensions, data) as manager:
        for dimension in sorted(set(dimensions)):
            try:
                manager.load_dimension(dimension)
            except DimensionNotFound:
                pass
            except JessyMemoryError as error:
                errors.append(error)
        try:
            return [each if isinstance(each, LayerId) else manager.id_of(each) for each in wanted]
        except LayerNotFound:
            if errors:  # it may be in there
                raise errors[0] from None
            raise


def _is_number(text: str) -> bool:
    """Tell whether there is a dimension of the number that a text is of the form of."""
    try:
        return bool(DimensionId(text))
    except ValueError:
        return False


def fail_unless_found(findings: list[inspection.Finding], data: Path) -> None:
    """End with exit code 1 where something is wrong, or there is nothing."""
    fail_on(findings)
    if not findings:
        raise nothing_under(data)


def nothing_under(data: Path) -> DimensionNotFound:
    """Return the error that there are no region files under `data`."""
    return DimensionNotFound(f"no region files under {data}", dimension=None, path=str(data))
