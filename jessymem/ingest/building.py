"""A folder of files to region files: each sub-folder becomes a dimension, each file in it a layer.

`plan_folder` looks at everything and checks it against the format; only `Plan.write` writes, one
dimension at a time, each file durable and whole before the next is begun.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from jessymem import osmem
from jessymem.budget import Budget
from jessymem.config import MemoryConfig, as_path
from jessymem.core_dimensions import SLOTS
from jessymem.engine.loading import REGION_FILE
from jessymem.errors import (
    ConfigError,
    DuplicateDimension,
    JessyMemoryError,
    LimitExceeded,
    RegionIOError,
)
from jessymem.ids import DimensionId, LayerId
from jessymem.ingest.folders import Skipped, SourceFolder, read_folders
from jessymem.ingest.npy import is_npy, read_npy
from jessymem.ingest.numbering import (
    FIRST_GROWN_DIMENSION,
    NumberedFile,
    name_folder,
    number_files,
    number_folders,
)
from jessymem.kernels.schema import ENCODING_BYTES, ENCODING_TEXT, MAX_CONTENT_BYTES
from jessymem.manager import MmapManager
from jessymem.regions.builder import RegionBuilder
from jessymem.regions.drafts import EncodedContent, as_content
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import MmapRegion

_NOTHING: Final = EncodedContent(b"", ENCODING_BYTES)

#: What is decoded at a time, to find out whether a file is text.
_PIECE_BYTES: Final = 2**18

#: Called with the bytes that were dealt with since the last call.
Advance = Callable[[int], object]


@dataclass(frozen=True)
class PlannedDimension:
    """One sub-folder and the region file that it becomes.

    Attributes
    ----------
    dimension_id : DimensionId
    name : str
    folder : str
        The sub-folder's name.
    path : pathlib.Path
        Where the region file will be.
    is_replaced : bool
        Whether a file is there that will be replaced.
    layers : tuple of NumberedFile
        Ascending.
    """

    dimension_id: DimensionId
    name: str
    folder: str
    path: Path
    is_replaced: bool
    layers: tuple[NumberedFile, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all contents, as they were looked at."""
        return sum(layer.file.n_bytes for layer in self.layers)


class BuiltDimension(NamedTuple):
    """One region file that was written, and the sub-folder that it was made of.

    `fault` says why a manager with default settings could not load it; None: it can.
    """

    dimension_id: DimensionId
    name: str
    folder: str
    path: Path
    n_layers: int
    n_bytes: int
    generation: int
    is_replaced: bool
    fault: str | None


@dataclass(frozen=True)
class Plan:
    """What a build will do; nothing is written yet.

    Attributes
    ----------
    dimensions : tuple of PlannedDimension
        Ascending.
    skipped : tuple of Skipped
        What of the source is left out, and why.
    """

    dimensions: tuple[PlannedDimension, ...]
    skipped: tuple[Skipped, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all contents, as they were looked at."""
        return sum(dimension.n_bytes for dimension in self.dimensions)

    def write(self, advance: Advance = lambda n_bytes: None) -> list[BuiltDimension]:
        """Read the files and write the region files, dimension by dimension.

        A `.npy` file is kept as an array; other content that is valid UTF-8 as text, all else as
        bytes.

        Parameters
        ----------
        advance : callable, optional
            Called after each file with its length.

        Returns
        -------
        list of BuiltDimension
            In the order of the plan.

        Raises
        ------
        RegionIOError
            If a file cannot be read or written.
        DuplicateDimension
            If a region file has appeared that was not there before.
        ConfigError
            If what is called `.npy` is no longer such a file.

        Notes
        -----
        Durability: as `RegionBuilder.build_to_file`, for each file. What was written before an
        error stays; the dimension that failed is as it was.
        """
        return [self._write_one(dimension, advance) for dimension in self.dimensions]

    def _write_one(self, planned: PlannedDimension, advance: Advance) -> BuiltDimension:
        builder = RegionBuilder(planned.dimension_id, planned.name)
        for layer in planned.layers:
            _add_layer(builder, layer, _read_layer(layer, planned))
            advance(layer.file.n_bytes)
        if not planned.is_replaced and _is_taken(planned.dimension_id, planned.path):
            raise _taken([planned.dimension_id], planned.path.parent.parent)
        # What may be replaced was asked of the user when the plan was made.
        region = builder.build_to_file(planned.path, replace_immutable=planned.is_replaced)
        return BuiltDimension(
            dimension_id=planned.dimension_id,
            name=planned.name,
            folder=planned.folder,
            path=planned.path,
            n_layers=len(planned.layers),
            n_bytes=region.size,
            generation=region.generation,
            is_replaced=planned.is_replaced,
            fault=fault_by_default(planned.dimension_id, region.size),
        )


def plan_folder(
    source: str | os.PathLike[str], data: str | os.PathLike[str], *, force: bool = False
) -> Plan:
    """Plan a build: which file becomes which layer of which dimension.

    A sub-folder called ``D07-name`` or ``D07`` becomes that dimension. Any other becomes the grown
    dimension that has its name already, or takes the first number from D15 upwards that neither the
    source nor `data` uses. A file that lies directly in a sub-folder and is called ``NN-name``
    becomes layer NN; all others, those of deeper folders included, fill the free numbers in natural
    order. What a `dimension.toml` says comes first. A folder without files makes no dimension.

    Parameters
    ----------
    source, data : path-like
        Where the files are, and where the region files go.
    force : bool
        Whether region files that exist are replaced.

    Returns
    -------
    Plan
        Checked against the format: names, numbers, lengths, all metadata.

    Raises
    ------
    DuplicateDimension
        If two folders claim one number, or a region file exists and `force` is not set.
    DuplicateLayer
        If two files claim one number.
    ConfigError
        If a name, a number or a `dimension.toml` does not fit, what is called `.npy` is not such a
        file or holds objects, no file can have the name of `source` or `data`, or there is nothing
        to build.
    RegionIOError
        If something cannot be listed or read.
    """
    source, data = as_path("source", source), as_path("data", data)
    if os.path.realpath(data) == os.path.realpath(source):
        raise ConfigError(
            f"{source}: source and target are the same folder", field="data", value=data
        )
    found, skipped = read_folders(source, data)
    folders = [folder for folder in found if folder.files]
    skipped += [Skipped(each.name, "a folder without files") for each in found if not each.files]
    if not folders:
        raise ConfigError(
            f"{source}: nothing to build; each sub-folder with files becomes a dimension",
            field="source",
            value=source,
        )
    numbers = number_folders(folders, _grown_names(data))
    numbered = sorted(zip(numbers, folders, strict=True), key=lambda pair: pair[0])
    dimensions = [_plan_dimension(number, folder, data) for number, folder in numbered]
    replaced = [planned.dimension_id for planned in dimensions if planned.is_replaced]
    if replaced and not force:
        raise _taken(replaced, data)
    return Plan(tuple(dimensions), tuple(skipped))


def read_content(path: Path, layer_id: LayerId) -> EncodedContent:
    """Read a file once, into memory of its own: text where it is valid UTF-8, otherwise bytes.

    Raises
    ------
    RegionIOError
        If it cannot be read or is not a regular file.
    ValueError
        If it is longer than the format allows.
    """
    try:
        view = memoryview(osmem.read_file(path).data)
    except OSError as error:
        raise RegionIOError.from_os_error(error, "read", path) from error
    encoded = as_content(view, layer_id, is_copied=False)
    return encoded._replace(encoding=ENCODING_TEXT) if is_text(view) else encoded


def is_text(content: memoryview) -> bool:
    """Tell whether bytes are valid UTF-8, decoding no more than a piece of them at a time."""
    at = 0
    while at < len(content):
        piece = content[at : at + _PIECE_BYTES]
        is_last = at + len(piece) == len(content)
        try:
            _, n_decoded = codecs.utf_8_decode(piece, "strict", is_last)
        except UnicodeDecodeError:
            return False
        at += n_decoded
    return True


def region_path(data: Path, dimension: DimensionId) -> Path:
    """Return where a dimension's region file is written to under `data`."""
    return data / str(dimension) / REGION_FILE


def region_files(data: Path, dimension: DimensionId) -> RegionFiles:
    """Return the files of a dimension under `data`; they know which one is read."""
    return RegionFiles(dimension, region_path(data, dimension))


def newest_path(data: Path, dimension: DimensionId) -> Path:
    """Return the file that is read for a dimension under `data`; nothing is tidied up.

    Raises
    ------
    RegionIOError
        If the directory cannot be listed.
    """
    return region_files(data, dimension).newest_path(tidy=False)


def fault_by_default(dimension: DimensionId, n_bytes: int) -> str | None:
    """Say why a manager with default settings could never load a file; None: it can."""
    config = MemoryConfig()
    try:
        Budget(config.limit_bytes, SLOTS).check_possible(dimension, n_bytes)
    except LimitExceeded as error:
        return f"{error} by default"
    return None


def _grown_names(data: Path) -> dict[DimensionId, str | None]:
    """Return the names of the grown dimensions on disk; None where the file cannot be read."""
    names: dict[DimensionId, str | None] = {}
    with MmapManager(base_path=data) as manager:
        found = manager.discover()
    for dimension in found:
        if dimension < FIRST_GROWN_DIMENSION:
            continue
        try:
            region = MmapRegion.from_file(dimension, newest_path(data, dimension))
            names[dimension] = region.layout.header.name
        except JessyMemoryError:
            names[dimension] = None
    return names


def _is_taken(dimension: DimensionId, path: Path) -> bool:
    """Tell whether there is anything where a region file is to be."""
    return os.path.lexists(path) or RegionFiles(dimension, path).exists()


def _taken(dimensions: list[DimensionId], data: Path) -> DuplicateDimension:
    listed = ", ".join(map(str, dimensions[:5]))
    more = f" and {len(dimensions) - 5} more" if len(dimensions) > 5 else ""
    return DuplicateDimension(
        f"{listed}{more}: on disk under {data} already, and force is not set",
        dimension=dimensions[0],
    )


def _plan_dimension(dimension: DimensionId, folder: SourceFolder, data: Path) -> PlannedDimension:
    path = region_path(data, dimension)
    is_replaced = _is_taken(dimension, path)
    if os.path.lexists(path) and not path.is_file():
        raise ConfigError(f"{dimension}: {path} is no regular file", field="data", value=path)
    planned = PlannedDimension(
        dimension_id=dimension,
        name=name_folder(folder, dimension),
        folder=folder.name,
        path=path,
        is_replaced=is_replaced,
        layers=tuple(number_files(dimension, folder)),
    )
    _check_format(planned, folder.path)
    return planned


def _check_format(planned: PlannedDimension, folder: Path) -> None:
    """Lay the dimension out without its contents, which meets every other limit of the format."""
    where = str(folder)
    try:
        builder = RegionBuilder(planned.dimension_id, planned.name)
        for layer in planned.layers:
            where = f"{folder}: {layer.file.name}"
            encoded = _NOTHING
            if is_npy(layer.file.name):
                encoded = read_npy(layer.file.path, layer.layer_id, osmem.map_file)
            elif layer.file.n_bytes > MAX_CONTENT_BYTES:
                raise ValueError(f"{layer.file.n_bytes:,} bytes; at most {MAX_CONTENT_BYTES:,}")
            _add_layer(builder, layer, encoded._replace(data=b""))
        where = str(folder)
        builder.build_to_memory()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}", field=planned.folder, value=planned.name) from None


def _read_layer(layer: NumberedFile, planned: PlannedDimension) -> EncodedContent:
    """Read what a file's layer is to hold."""
    if not is_npy(layer.file.name):
        return read_content(layer.file.path, layer.layer_id)
    try:
        return read_npy(layer.file.path, layer.layer_id)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{layer.file.path}: {error}", field=planned.folder, value=planned.name
        ) from None


def _add_layer(builder: RegionBuilder, layer: NumberedFile, encoded: EncodedContent) -> None:
    entry, parent = layer.entry, layer.entry.parent
    if isinstance(parent, int) and not isinstance(parent, LayerId):
        parent = LayerId(builder.dimension_id, parent)
    builder._add(
        layer.layer_id,
        encoded,
        name=layer.name,
        frequency=entry.frequency,
        depth=entry.depth,
        keywords=entry.keywords,
        parent=parent,
    )
