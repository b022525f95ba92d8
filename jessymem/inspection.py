"""Region files from outside: which there are, what each says of itself, where its bytes lie."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jessymem import osmem
from jessymem.config import as_path
from jessymem.engine.loading import REGION_FILE
from jessymem.errors import (
    DimensionNotFound,
    JessyMemoryError,
    RegionFormatError,
    RegionIOError,
)
from jessymem.ids import DimensionId
from jessymem.ingest.building import newest_path
from jessymem.kernels import schema as s
from jessymem.manager import MmapManager
from jessymem.regions import layout
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import MmapRegion

#: What a byte of a region file is for; the order is that of `byte_map`'s numbers.
BYTE_KINDS: Final = ("metadata", "contents", "padding")


class ByteUse(NamedTuple):
    """How many bytes of a region file are what."""

    metadata: int
    contents: int
    padding: int


class Facts(NamedTuple):
    """What a region file says of itself; it holds no mapping, so that there may be many."""

    name: str
    n_layers: int
    generation: int
    created: datetime | None


@dataclass(frozen=True)
class Finding:
    """What looking at one region file came to.

    Attributes
    ----------
    path : pathlib.Path
    n_bytes : int
        The file's length; 0 where it is not there.
    dimension_id : DimensionId or None
        None: not known, since the file could not be read.
    facts : Facts or None
        None: the file could not be mapped, or breaks the format.
    error : JessyMemoryError or None
        What is wrong.
    """

    path: Path
    n_bytes: int
    dimension_id: DimensionId | None
    facts: Facts | None
    error: JessyMemoryError | None


def find_regions(data: Path) -> list[tuple[DimensionId, Path]]:
    """Return the dimensions on disk under `data` and their files, ascending.

    Raises
    ------
    RegionIOError
        If `data` cannot be listed, or is not a directory.
    """
    if data.exists() and not data.is_dir():
        error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        raise RegionIOError.from_os_error(error, "list", data)
    with MmapManager(base_path=data) as manager:
        return [(found, newest_path(data, found)) for found in manager.discover()]


def resolve_target(target: str, data: Path) -> tuple[DimensionId | None, Path]:
    """Take ``D07`` for a dimension under `data`, and anything else for a path.

    Returns
    -------
    DimensionId or None, pathlib.Path
        None: whatever dimension the file holds. A directory means the newest region file in
        it.

    Raises
    ------
    ConfigError
        If no file can have that name.
    """
    try:
        dimension = DimensionId.parse(target)
    except ValueError:
        path = as_path("target", target)
        return None, _newest_in(path) if path.is_dir() else path
    return dimension, newest_path(data, dimension)


def _newest_in(folder: Path) -> Path:
    """Return the file that is read for the dimension that a folder holds."""
    path = folder / REGION_FILE
    try:
        dimension = _read_dimension(path)
    except JessyMemoryError:
        try:
            dimension = DimensionId.parse(os.path.basename(os.path.abspath(folder)))
        except ValueError:
            return path
    return RegionFiles(dimension, path).newest_path(tidy=False)


def open_newest(data: Path, dimension: DimensionId) -> MmapRegion:
    """Map the file that is read for a dimension under `data`, whatever the budget says.

    Raises
    ------
    DimensionNotFound, RegionIOError, RegionFormatError
        As `MmapRegion.from_file`.
    """
    return MmapRegion.from_file(dimension, newest_path(data, dimension))


def open_region(dimension: DimensionId | None, path: Path) -> MmapRegion:
    """Map a region file; with `dimension` None, whatever dimension it holds.

    Raises
    ------
    DimensionNotFound, RegionIOError, RegionFormatError
        As `MmapRegion.from_file`; without a dimension, a file that is missing is a RegionIOError,
        but in a folder that is there a DimensionNotFound.
    """
    if dimension is None:
        dimension = _read_dimension(path)
    return MmapRegion.from_file(dimension, path)


def _read_dimension(path: Path) -> DimensionId:
    """Return which dimension a region file says that it holds."""
    try:
        data, _ = osmem.map_file(path)
    except OSError as error:
        if error.errno == errno.ENOENT and path.name == REGION_FILE and path.parent.is_dir():
            raise DimensionNotFound(
                f"there is no region file ({REGION_FILE}) in the folder {path.parent}",
                dimension=None,
                path=os.fspath(path),
            ) from None
        raise RegionIOError.from_os_error(error, "open", path) from error
    try:
        header = layout.read_header(data.view(np.ndarray), layout.Source(None, os.fspath(path)))
    except RegionFormatError as error:
        if error.field not in ("header", "magic"):
            raise
        fault = error.message.removeprefix(f"{path}: ")
        raise RegionFormatError(f"{path} is not a region file: {fault}", **error.details) from None
    return header.dimension


def examine(dimension: DimensionId | None, path: Path, level: str | None = None) -> Finding:
    """Open a region file and, with a `level`, verify it; what is wrong is part of the result.

    Parameters
    ----------
    dimension : DimensionId or None
        The dimension that the file must hold; None: any.
    path : pathlib.Path
    level : {None, "header", "metadata", "full"}
    """
    n_bytes = _length(path)
    facts = None
    try:
        region = open_region(dimension, path)
        facts = Facts(
            name=region.layout.header.name,
            n_layers=len(region.layout.rows),
            generation=region.generation,
            created=creation_time(region),
        )
        dimension = region.dimension_id
        if level is not None:
            region.verify_integrity(level)
    except JessyMemoryError as error:
        # A traceback would keep the mapping for as long as the finding is kept.
        return Finding(path, n_bytes, dimension, facts, error.with_traceback(None))
    return Finding(path, n_bytes, dimension, facts, None)


def creation_time(region: MmapRegion) -> datetime | None:
    """Return when a region was written, in UTC; None where it does not say."""
    if region.layout.created_at == 0:
        return None
    elapsed = timedelta(microseconds=region.layout.created_at // 1000)
    return datetime(1970, 1, 1, tzinfo=UTC) + elapsed


def extension_state(region: MmapRegion) -> str:
    """Return "yes", "no", or "ignored": announced, but its checksum does not hold."""
    if region.layout.is_extended:
        return "yes"
    announced = bytes(region.read_content(s.RESERVED_OFFSET, len(s.EXTENSION_MAGIC)))
    return "ignored" if announced == s.EXTENSION_MAGIC else "no"


def byte_use(region: MmapRegion) -> ByteUse:
    """Count a region's bytes by what they are for."""
    rows = region.layout.rows
    metadata = region.layout.content_start
    contents = int((rows["content_end"] - rows["content_offset"]).sum())
    return ByteUse(metadata, contents, region.size - metadata - contents)


def byte_map(region: MmapRegion, n_cells: int) -> NDArray[np.intp]:
    """Cut a region into equal cells; return what most bytes of each are for.

    Returns
    -------
    ndarray of int
        Per cell an index into `BYTE_KINDS`; the first is always metadata.
    """
    edges = np.linspace(0, region.size, n_cells + 1)
    metadata = np.minimum(edges, region.layout.content_start)
    contents = _bytes_before(region.layout.rows, edges)
    shares = np.diff([metadata, contents, edges - metadata - contents], axis=1)
    kinds: NDArray[np.intp] = shares.argmax(axis=0)
    kinds[0] = 0
    return kinds


def _length(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _bytes_before(rows: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count the bytes of contents before each edge; contents do not overlap."""
    rows = np.sort(rows[["content_offset", "content_end"]], order="content_offset")
    starts = rows["content_offset"].astype(np.float64)
    sizes = rows["content_end"].astype(np.float64) - starts
    before = np.concatenate([[0.0], np.cumsum(sizes)])
    last = np.searchsorted(starts, edges, side="right") - 1
    inside = np.minimum(edges - starts[last], sizes[last]) if len(rows) else np.zeros_like(edges)
    return np.where(last < 0, 0.0, before[last] + inside)
