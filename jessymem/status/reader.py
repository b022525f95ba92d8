"""`Status`: what another process shows of itself at one moment, checked before it is believed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, Final

import numpy as np
import xxhash

from jessymem.config import HUGE_PAGES, NUMA_POLICIES
from jessymem.errors import RegionFormatError, RegionIOError
from jessymem.histograms import LatencyHistogram
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.pools.survey import PoolStats
from jessymem.stats import ClassUsage, PlacementStats
from jessymem.status import layout, processes

#: So often a file is read again that is just being written, and how long between two times.
_N_TRIES: Final = 1_000
_PAUSE_SECONDS: Final = 0.0002

#: A process that wrote so long ago, and cannot be looked at, counts as gone; and a file that cannot
#: be read may be swept.
_SILENT_SECONDS: Final = 10
_OLD_SECONDS: Final = 60


@dataclass(frozen=True)
class ShownDimension:
    """What a status file tells of a dimension.

    Attributes
    ----------
    dimension_id : DimensionId
    name : str
    state : str
        As in `MmapManager.dump_state`.
    n_layers, n_learned : int
    n_charged : int
        Bytes that the budget counts for its region.
    generation : int
    is_pinned : bool
    """

    dimension_id: DimensionId
    name: str
    state: str
    n_layers: int
    n_learned: int
    n_charged: int
    generation: int
    is_pinned: bool


@dataclass(frozen=True)
class Status:
    """What a manager of a running process has told last.

    Attributes
    ----------
    path : pathlib.Path
        The file that it was read from.
    pid : int
    command, release, store : str
        What the process runs, which jessymem, and where the manager's files are.
    made_at, written_at, interval : float
        When the manager was made, when this was written, and how often it is; in seconds, since
        1970 the first two.
    thresholds : dict of str to float
        As `MemoryConfig.thresholds`.
    counters : dict of str to int or float
        The numbers of `MemoryStats` that are one number each.
    classes : dict of str to ClassUsage
    n_dimensions : int
        How many are loaded.
    dimensions : tuple of ShownDimension
        Those with the most bytes in the budget, at most 256.
    pools : tuple of PoolStats
    placement : PlacementStats or None
    latencies : dict of str to LatencyHistogram
    """

    path: Path
    pid: int
    process_started: int
    namespace: int
    command: str
    release: str
    store: str
    made_at: float
    written_at: float
    interval: float
    thresholds: dict[str, float]
    counters: dict[str, int | float]
    classes: dict[str, ClassUsage]
    n_dimensions: int
    dimensions: tuple[ShownDimension, ...]
    pools: tuple[PoolStats, ...]
    placement: PlacementStats | None
    latencies: dict[str, LatencyHistogram]

    @property
    def is_here(self) -> bool:
        """Whether its process id is one of those that this process sees: no other container's."""
        return self.namespace in (0, processes.namespace())

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs; of another container's, whether it wrote just now."""
        if self.is_here:
            return processes.is_alive(self.pid, self.process_started)
        return abs(time() - self.written_at) < _SILENT_SECONDS


def read(path: str | os.PathLike[str]) -> Status:
    """Read a status file, of one moment.

    Raises
    ------
    RegionIOError
        If it cannot be read, is no regular file, or is neither this user's nor root's.
    RegionFormatError
        If it is no status file, or of another version; or is written so often that no whole one
        could be read.
    """
    path = Path(path)
    record = _read_record(path)
    try:
        return _status_of(path, record)
    except (ValueError, LookupError) as error:  # numbers that no manager writes
        raise RegionFormatError(
            f"{path} is no status file: {error}",
            field="dimensions",
            offset=layout.STATUS.fields["dimensions"][1],  # type: ignore[index]
            expected="what a manager writes",
            got=str(error),
            path=str(path),
        ) from None


def running(folder: Path | None = None) -> Iterator[Status]:
    """Yield what the processes of this user show that live, in the order of their ids."""
    found = []
    for path in processes.files_in(processes.directory() if folder is None else folder):
        with suppress(RegionIOError, RegionFormatError):
            status = read(path)
            if status.is_alive:
                found.append(status)
    yield from sorted(found, key=lambda status: (status.pid, status.made_at))


def watch(path: str | os.PathLike[str], seconds: float, interval: float = 0.5) -> Iterator[Status]:
    """Yield what a process shows, again and again, for so long or until it has ended.

    Parameters
    ----------
    path : path-like
        Of a status file: `running` tells which there are.
    seconds : float
        How long.
    interval : float
        Between two looks, in seconds. What was not written anew is not yielded again.

    Raises
    ------
    RegionIOError, RegionFormatError
        As `read`, for the first look.
    """
    status, ends = read(Path(path)), monotonic() + seconds
    yield status
    while monotonic() < ends:
        sleep(min(interval, max(ends - monotonic(), 0)))
        try:
            now = read(status.path)
        except (RegionIOError, RegionFormatError):
            return
        if now.written_at > status.written_at:
            status = now
            yield status
        elif not now.is_alive:
            return


def sweep(folder: Path) -> list[Path]:
    """Remove the status files of processes that are gone; return which.

    Of other containers' processes nobody here can tell. What cannot be read, of another version or
    cut short, goes once it is old and no process has the id in its name.
    """
    removed = []
    for path in processes.files_in(folder):
        with suppress(RegionIOError, OSError):
            try:
                status = read(path)
                is_over = status.is_here and not status.is_alive
            except RegionFormatError:
                pid, age = processes.id_in(path), time() - path.lstat().st_mtime
                is_over = pid is not None and age > _OLD_SECONDS and not processes.start_of(pid)
            if is_over:
                path.unlink()
                removed.append(path)
    return removed


def _read_record(path: Path) -> Any:
    error: RegionFormatError | None = None
    for _ in range(_N_TRIES):
        content = _read_bytes(path)
        try:
            return _checked(content, path)
        except RegionFormatError as failed:
            if failed.field not in ("sequence", "checksum"):
                raise
            error = failed
        sleep(_PAUSE_SECONDS)
    assert error is not None
    raise error


def _read_bytes(path: Path) -> bytes:
    """Read it whole; one byte more than there should be tells that it is another file."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if os.name != "nt" and found.st_uid not in (0, os.geteuid()) and os.geteuid():
                raise PermissionError(errno.EPERM, "it is another user's")
            return file.read(layout.N_BYTES + 1)
    except OSError as error:
        raise RegionIOError.from_os_error(error, "read", path) from error


def _checked(content: bytes, path: Path) -> Any:
    """Return the record; raise RegionFormatError for what is none."""

    def fault(field: str, expected: object, got: object) -> RegionFormatError:
        at = {"length": "begin_sequence", "sequence": "end_sequence"}.get(field, field)
        return RegionFormatError(
            f"{path} is no status file: {field} is {got}, not {expected}",
            field=field,
            offset=layout.STATUS.fields[at][1],  # type: ignore[index]
            expected=expected,
            got=got,
            path=str(path),
        )

    if len(content) != layout.N_BYTES:
        raise fault("length", layout.N_BYTES, len(content))
    record = np.frombuffer(content, layout.STATUS)[0]
    magic = bytes(record["magic"])
    begin, end = int(record["begin_sequence"]), int(record["end_sequence"])
    if magic != layout.MAGIC:
        raise fault("magic", layout.MAGIC, magic)
    for field, expected in (("version", layout.VERSION), ("n_bytes", layout.N_BYTES)):
        if record[field] != expected:
            raise fault(field, expected, int(record[field]))
    if begin != end:
        raise fault("sequence", begin, end)
    found = xxhash.xxh3_64_intdigest(content[layout.SUMMED])
    if found != record["checksum"]:
        raise fault("checksum", int(record["checksum"]), found)
    for field, most in (
        ("n_listed", layout.MAX_DIMENSIONS),
        ("n_pools", layout.MAX_POOLS),
    ):
        if not 0 <= record[field] <= most:
            raise fault(field, f"at most {most}", int(record[field]))
    n_rows = {"dimensions": record["n_listed"], "pools": record["n_pools"]}
    for field in ("counters", "classes", "dimensions", "pools"):
        rows = np.atleast_1d(record[field])[: n_rows.get(field)]
        if not all(map(_is_counted, rows.tolist())):
            raise fault(field, "numbers of 0 and above", "others")
    latencies = record["latencies"]
    if min(latencies[name].min() for name in ("counts", "total_ns", "max_ns")) < 0:
        raise fault("latencies", "numbers of 0 and above", "others")
    if not all(0 < share <= 1 for share in record["thresholds"].item()):
        raise fault("thresholds", "shares", record["thresholds"])
    return record


def _is_counted(row: tuple[Any, ...]) -> bool:
    """Tell whether a row's numbers are such as are counted."""
    numbers = (each for each in row if isinstance(each, int | float))
    return all(isfinite(each) and each >= 0 for each in numbers)


def _status_of(path: Path, record: Any) -> Status:
    listed = record["dimensions"][: record["n_listed"]]
    return Status(
        path=path,
        pid=int(record["pid"]),
        process_started=int(record["process_started"]),
        namespace=int(record["namespace"]),
        command=_text(record["command"]),
        release=_text(record["release"]),
        store=_text(record["store"]),
        made_at=record["made_at_ns"] / 1e9,
        written_at=record["written_at_ns"] / 1e9,
        interval=record["interval_ns"] / 1e9,
        thresholds=_by_name(record["thresholds"]),
        counters=_by_name(record["counters"]),
        classes={
            _text(each["name"]): ClassUsage(int(each["allocated_bytes"]), int(each["limit_bytes"]))
            for each in record["classes"]
        },
        n_dimensions=int(record["n_dimensions"]),
        dimensions=tuple(map(_dimension_of, listed)),
        pools=tuple(map(_pool_of, record["pools"][: record["n_pools"]])),
        placement=_placement_of(record["placement"]),
        latencies={
            _text(each["kind"]): LatencyHistogram(
                each["counts"].copy(), int(each["total_ns"]), int(each["max_ns"])
            )
            for each in record["latencies"]
        },
    )


def _dimension_of(row: Any) -> ShownDimension:
    return ShownDimension(
        dimension_id=DimensionId(int(row["number"])),
        name=_text(row["name"]),
        state=s.REGION_STATES[int(row["state"])],
        n_layers=int(row["n_layers"]),
        n_learned=int(row["n_learned"]),
        n_charged=int(row["n_charged"]),
        generation=int(row["generation"]),
        is_pinned=bool(row["is_pinned"]),
    )


def _pool_of(row: Any) -> PoolStats:
    total, used = int(row["total_blocks"]), int(row["used_blocks"])
    return PoolStats(
        pool_id=int(row["pool_id"]),
        block_size=int(row["block_size"]),
        total_blocks=total,
        used_blocks=used,
        utilization=used / total if total else 0.0,
        failures=int(row["failures"]),
        kind=s.POOL_KINDS[int(row["kind"])],
        pages=layout.PAGES[int(row["pages"])],
        node=int(row["node"]) - 1 if row["node"] else None,
    )


def _placement_of(row: Any) -> PlacementStats | None:
    if not row["huge_pages"]:
        return None
    n_listed, sizes = int(row["n_listed"]), row["huge_bytes"].tolist()
    listed = row["node_bytes"][: max(n_listed, 0)].tolist()
    found = PlacementStats(
        huge_pages=_text(row["huge_pages"]),
        huge_bytes={kind: n for kind, n in zip(layout.PAGES, sizes, strict=True) if n},
        numa=_text(row["numa"]),
        policy=_text(row["policy"]),
        n_nodes=int(row["n_nodes"]),
        node_bytes=dict(listed),
        note=_text(row["note"]),
    )
    known = found.huge_pages in HUGE_PAGES and {found.numa, found.policy} <= {*NUMA_POLICIES}
    counted = all(map(_is_counted, [sizes, *listed, (found.n_nodes,)]))
    if not (known and counted and 0 <= n_listed <= layout.MAX_NODES):
        raise ValueError("pages and nodes as no manager has them")
    return found


def _by_name(row: Any) -> dict[str, Any]:
    return dict(zip(row.dtype.names, row.item(), strict=True))


def _text(value: bytes) -> str:
    return bytes(value).decode("utf-8", "replace")
