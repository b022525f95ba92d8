"""What a command works on: the region files under a folder or a URL, and a manager of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from jessymem import inspection, osmem
from jessymem.config import MIB, MemoryConfig
from jessymem.core_dimensions import CORE_DIMENSIONS
from jessymem.errors import DimensionNotFound, JessyMemoryError, LayerNotFound
from jessymem.ids import DimensionId, LayerId, is_dimension_id
from jessymem.manager import MmapManager
from jessymem.regions.files import RegionFiles
from jessymem.regions.paths import region_files
from jessymem.terminal.shell import fail_on
from jessymem.terminal.wording import one_line

if TYPE_CHECKING:
    from jessymem.regions.mirror import Mirror
    from jessymem.remote.cache import CachedFile


#: What was fetched of stores, for as long as the process runs.
_mirrors: Final[list[Mirror]] = []
_fetched: Final[dict[Path, CachedFile]] = {}


def folder_of(data: Path | str, dimensions: Iterable[DimensionId] | None = None) -> Path:
    """Return the folder itself; or one that has what a store has of `dimensions`, or of all.

    Raises
    ------
    RemoteError, RegionFormatError, RegionIOError, DimensionNotFound
        If they cannot be had.
    """
    if isinstance(data, Path):
        return data
    with _naming_extra():
        from jessymem.regions.mirror import Mirror

        mirror = Mirror(data)
    _mirrors.append(mirror)
    if dimensions is None:
        for error in mirror.fetch_many().values():
            raise error
    else:
        for dimension in dimensions:
            mirror.fetch(dimension)
    return mirror.folder


def target_of(text: str, data: Path | str) -> inspection.Target:
    """Take ``D07`` for a dimension under `data`, a URL for a file of a store, others for paths."""
    if not osmem.is_url(text):
        if isinstance(data, str):
            is_path = not is_dimension_id(text)
            data = Path() if is_path else folder_of(data, [DimensionId.parse(text)])
        return inspection.resolve_target(text, data)
    with _naming_extra():
        from jessymem.regions.remote import fetch, local_path
        from jessymem.remote.files import RemoteFile

        where = local_path(text)
        if where is not None:
            return inspection.resolve_target(str(where), Path())
        held = fetch(RemoteFile.of(text), None)
    _fetched[held.path] = held
    return inspection.Target(None, held.path, None)


def place_of(path: object) -> str:
    """Return what people call a file: its path, or the URL that it was fetched from."""
    if isinstance(path, Path):
        if path in _fetched:
            return _fetched[path].file.url
        for mirror in _mirrors:
            if path.is_relative_to(mirror.folder):
                return f"{mirror.url}/{path.relative_to(mirror.folder).as_posix()}"
    return str(path)


@contextmanager
def _naming_extra() -> Iterator[None]:
    """Let an extra that is missing be an error of the command, which says what to install."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise click.ClickException(one_line(str(error))) from error


def files_under(data: Path) -> list[RegionFiles]:
    """Return the files of each dimension under `data`."""
    return [target.files for target in inspection.find_regions(data) if target.files is not None]


def reader_of(
    dimensions: Iterable[DimensionId], data: Path, *, read_only: bool = True
) -> MmapManager:
    """Return a manager with a budget for all of `dimensions`, which as a rule only reads.

    No slot bounds a core file there.
    """
    found = [region_files(data, dimension).find(tidy=False) for dimension in set(dimensions)]
    paths = {path for each in found for path in each.chain.paths}
    n_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    total_mb = MemoryConfig.total_memory_mb + n_bytes // MIB
    return MmapManager(
        MemoryConfig(
            total_memory_mb=total_mb,
            base_path=data,
            simulation="never",
            read_only=read_only,
            core_slots=dict.fromkeys(CORE_DIMENSIONS, total_mb),
        )
    )


def dimensions_of(layers: Iterable[LayerId | str]) -> list[DimensionId] | None:
    """Return the dimensions that ids and names tell; None: a name may be of any."""
    found: set[DimensionId] = set()
    for each in layers:
        if isinstance(each, LayerId):
            found.add(each.dimension)
            continue
        head = each.partition("/")[0]
        if not is_dimension_id(head):
            return None
        if _is_number(head):
            found.add(DimensionId(head))
    return sorted(found)


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
    dimensions = dimensions_of(names)
    if dimensions is None:
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


def fail_unless_found(findings: list[inspection.Finding], data: Path | str) -> None:
    """End with exit code 1 where something is wrong, or there is nothing."""
    fail_on(findings)
    if not findings:
        raise nothing_under(data)


def nothing_under(data: Path | str) -> DimensionNotFound:
    """Return the error that there are no region files under `data`."""
    place = place_of(data)
    return DimensionNotFound(f"no region files under {place}", dimension=None, path=place)
