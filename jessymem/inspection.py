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
from jessymem.errors import (
    DimensionNotFound,
    JessyMemoryError,
    RegionFormatError,
    RegionIOError,
)
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.manager import MmapManager
from jessymem.regions import layout
from jessymem.regions.chain import RegionChain
from jessymem.regions.files import REGION_FILE, RegionFiles
from jessymem.regions.paths import region_files
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


class Target(NamedTuple):
    """What was asked for: a dimension's files, or one file.

    Attributes
    ----------
    dimension_id : DimensionId or None
        None: whatever dimension the file holds.
    path : pathlib.Path
        The region file.
    files : RegionFiles or None
        The dimension's; None: it is only that one file.
    """

    dimension_id: DimensionId | None
    path: Path
    files: RegionFiles | None

    @classmethod
    def of(cls, files: RegionFiles) -> Target:
        """Return what a dimension's files are as a target."""
        return cls(files.dimension, files.newest_path(tidy=False), files)


def find_regions(data: Path) -> list[Target]:
    """Return the dimensions on disk under `data`, ascending.

    Raises
    ------
    RegionIOError
        If `data` cannot be listed, or is not a directory.
    """
    if data.exists() and not data.is_dir():
        error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        raise RegionIOError.from_os_error(error, "list", data)
    with MmapManager(base_path=data) as manager:
        return [Target.of(region_files(data, found)) for found in manager.discover()]


def resolve_target(target: str, data: Path) -> Target:
    """Take ``D07`` for a dimension under `data`, and anything else for a path.

    A directory means the dimension whose region file is in it.

    Raises
    ------
    ConfigError
        If no file can have that name.
    """
    try:
        dimension = DimensionId.parse(target)
    except ValueError:
        path = as_path("target", target)
        return _in_folder(path) if path.is_dir() else Target(None, path, None)
    return Target.of(region_files(data, dimension))


def _in_folder(folder: Path) -> Target:
    """Return the dimension that a folder holds."""
    path = folder / REGION_FILE
    try:
        dimension = _read_dimension(path)
    except JessyMemoryError:
        try:
            dimension = DimensionId.parse(os.path.basename(os.path.abspath(folder)))
        except ValueError:
            return Target(None, path, None)
    return Target.of(RegionFiles(dimension, path))


def open_target(target: Target) -> MmapRegion | RegionChain:
    """Open what was asked for, whatever the budget says.

    Raises
    ------
    DimensionNotFound, RegionIOError, RegionFormatError
        As `MmapRegion.from_file`; without a dimension, a file that is missing is a RegionIOError,
        but in a folder that is there a DimensionNotFound.
    """
    if target.files is not None:
        return target.files.open_newest()
    dimension = target.dimension_id or _read_dimension(target.path)
    return MmapRegion.from_file(dimension, target.path)


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


def survey(target: Target) -> Finding:
    """Open what was asked for; what is wrong is part of the result."""
    paths = (target.path,) if target.files is None else target.files.find(tidy=False).chain.paths
    n_bytes = sum(map(_length, paths))
    try:
        facts, dimension = _facts_of(region := open_target(target)), region.dimension_id
    except JessyMemoryError as error:
        # A traceback would keep the mapping for as long as the finding is kept.
        error = error.with_traceback(None)
        return Finding(target.path, n_bytes, target.dimension_id, None, error)
    return Finding(target.path, n_bytes, dimension, facts, None)


def examine(target: Target, level: str) -> list[Finding]:
    """Verify each file of what was asked for; what is wrong is part of the result.

    Parameters
    ----------
    target : Target
    level : {"header", "metadata", "stored", "full"}

    Returns
    -------
    list of Finding
        The region file first, then the deltas that count, then those that do not.
    """
    if target.files is None:
        return [_verify(target.dimension_id, target.path, level)]
    found = target.files.find(tidy=False)
    ignored = [_ignored(target.files.dimension, path, fault) for path, fault in found.ignored]
    return [_verify(target.files.dimension, path, level) for path in found.chain.paths] + ignored


def _verify(dimension: DimensionId | None, path: Path, level: str) -> Finding:
    n_bytes, facts = _length(path), None
    try:
        region = open_target(Target(dimension, path, None))
        facts, dimension = _facts_of(region), region.dimension_id
        region.verify_integrity(level)
    except JessyMemoryError as error:
        return Finding(path, n_bytes, dimension, facts, error.with_traceback(None))
    return Finding(path, n_bytes, dimension, facts, None)


def _ignored(dimension: DimensionId, path: Path, fault: str) -> Finding:
    """Return what is to be said of a delta that does not count."""
    error = RegionFormatError(
        f"{dimension}: {path} is ignored: {fault}",
        field="delta",
        offset=0,
        expected="a delta that counts",
        got=fault,
        dimension=dimension,
        path=str(path),
    )
    return Finding(path, _length(path), dimension, None, error)


def _facts_of(region: MmapRegion | RegionChain) -> Facts:
    return Facts(region.name, region.n_layers, region.generation, creation_time(region))


def creation_time(region: MmapRegion | RegionChain) -> datetime | None:
    """Return when a region was written last, in UTC; None where it does not say."""
    if region.created_at == 0:
        return None
    elapsed = timedelta(microseconds=region.created_at // 1000)
    return datetime(1970, 1, 1, tzinfo=UTC) + elapsed


def extension_state(region: MmapRegion) -> str:
    """Return "yes", "no", or "ignored": announced, but its checksum does not hold."""
    if region.layout.is_extended:
        return "yes"
    announced = bytes(region.read_content(s.RESERVED_OFFSET, len(s.EXTENSION_MAGIC)))
    return "ignored" if announced == s.EXTENSION_MAGIC else "no"


def byte_use(region: MmapRegion) -> ByteUse:
    """Count a region's bytes by what they are for."""
    rows = region.stored_rows()
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
    contents = _bytes_before(region.stored_rows(), edges)
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
