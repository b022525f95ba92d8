"""`StatusWriter`: a thread that writes a manager's status file now and then.

What is watched does nothing for it. The file is written with write(2), never through a mapping: one
that others truncate would kill the process. Its calls do not pass the seam of `osmem`, which is for
what is done with region files.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import time
from collections import deque
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

import numpy as np
import xxhash

from jessymem import diagnostics
from jessymem._version import __version__
from jessymem.errors import JessyMemoryError
from jessymem.kernels import schema as s
from jessymem.logger import logger
from jessymem.status import layout, processes, reader

if TYPE_CHECKING:
    from jessymem.engine.engine import Engine
    from jessymem.stats import PlacementStats

#: How long between two writes.
INTERVAL_SECONDS: Final = 0.5

#: How long `stop` waits for a write that is under way: a disk may hang.
_PATIENCE_SECONDS: Final = 5.0

_numbers: Final = count(1)
_POOL_KINDS: Final = {name: number for number, name in s.POOL_KINDS.items()}


class StatusWriter:
    """Writes the status of one manager, until it is stopped, or the manager or process is gone.

    Parameters
    ----------
    engine : Engine
        Which it does not keep.
    place : str or path-like
        "auto", or where the file is to be.

    Attributes
    ----------
    path : pathlib.Path or None
        None: there is none, for a reason that an alert tells.
    """

    def __init__(self, engine: Engine, place: str | os.PathLike[str]) -> None:
        self.path: Path | None = None
        self._engine = ref(engine)
        self._process = os.getpid()
        self._stopped = Event()
        self._sequence = 0
        self._files: deque[int] = deque(maxlen=1)  # who takes it out closes it
        self._thread: Thread | None = None
        self._record: Any = np.zeros((), layout.STATUS)
        self._describe(engine)
        try:
            self._make_file(place)
            self._write()
            thread = Thread(target=self._run, name="jessymem-status", daemon=True)
            atexit.register(self.stop)
            thread.start()
            self._thread = thread
        except (OSError, RuntimeError) as error:  # the system has no more threads
            self._give_up(error, place)
        except BaseException:
            self._remove()
            raise

    def stop(self) -> None:
        """Write no more, and remove the file; nothing to do in a forked child, whose it is not."""
        if self._process != os.getpid():
            return
        self._stopped.set()
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join(_PATIENCE_SECONDS)
        self._remove()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_SECONDS):
            try:
                if not self._write():
                    break
            except OSError as error:
                self._give_up(error, self.path or "")
                break
        self._remove()

    def _write(self) -> bool:
        """Write the file once; tell whether there is still something to write of."""
        engine = self._engine()
        if engine is None or engine.is_closed:
            return False
        with suppress(JessyMemoryError):  # it is being closed
            fill(self._record, engine)
        del engine
        self._sequence += 1
        record = self._record
        record["begin_sequence"] = record["end_sequence"] = self._sequence
        record["written_at_ns"] = time.time_ns()
        content = bytearray(record.tobytes())
        checksum = xxhash.xxh3_64_intdigest(memoryview(content)[layout.SUMMED])
        at = layout.STATUS.fields["checksum"][1]  # type: ignore[index]
        content[at : at + 8] = checksum.to_bytes(8, "little")
        for file in list(self._files):  # none: it is being stopped
            if not self._is_there(file):
                raise FileNotFoundError(errno.ENOENT, "others removed it, or put another there")
            os.lseek(file, 0, os.SEEK_SET)
            if os.write(file, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return True

    def _is_there(self, file: int) -> bool:
        """Tell whether an open file is the one at the path."""
        if self.path is None:
            return False
        try:
            mine, there = os.fstat(file), os.lstat(self.path)
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def _make_file(self, place: str | os.PathLike[str]) -> None:
        """Make the file, for this user alone; raise OSError where that cannot be."""
        if place != "auto":
            self.path = Path(place).absolute()
            _clear(self.path)
            self._open(self.path)
            return
        folder = processes.directory()
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        fault = processes.fault_of_directory(folder)
        if fault is not None:
            raise PermissionError(fault)
        reader.sweep(folder)
        while True:
            self.path = folder / f"{os.getpid()}-{next(_numbers)}{processes.SUFFIX}"
            with suppress(FileExistsError):
                self._open(self.path)
                return

    def _open(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        # In one step of the interpreter: no interrupt finds a file that nobody would remove.
        self._files.extend(map(os.open, (path,), (flags,), (0o600,)))

    def _describe(self, engine: Engine) -> None:
        """Write down what does not change."""
        record, config = self._record, engine.config
        record["magic"] = np.void(layout.MAGIC)
        record["version"], record["n_bytes"] = layout.VERSION, layout.N_BYTES
        record["pid"], record["process_started"] = self._process, processes.start_of(self._process)
        record["namespace"] = processes.namespace()
        command = " ".join(map(str, sys.argv)) or sys.executable or "python"
        record["command"] = _cut(command, layout.COMMAND_BYTES)
        record["release"] = __version__.encode()
        record["store"] = _cut(str(engine.loader.place), layout.STORE_BYTES)
        record["thresholds"] = tuple(config.thresholds.values())
        record["made_at_ns"] = time.time_ns()
        record["interval_ns"] = int(INTERVAL_SECONDS * 1e9)

    def _give_up(self, error: Exception, place: str | os.PathLike[str]) -> None:
        self._remove()
        logger.alert("status_off", os.fspath(place), f"no status is shown any more: {error}")

    def _remove(self) -> None:
        """Remove the file, if it is still the one that was made; a second call does nothing."""
        try:
            file = self._files.pop()
        except IndexError:
            return
        atexit.unregister(self.stop)
        if self._is_there(file) and self.path is not None:
            with suppress(OSError):
                os.unlink(self.path)
        os.close(file)


def fill(record: Any, engine: Engine) -> None:
    """Write into a record of STATUS what changes: the numbers of one moment."""
    moment = diagnostics.Moment.of(engine)
    stats = diagnostics.collect_stats(engine, moment)
    for name in layout.COUNTERS.names or ():
        record["counters"][name] = getattr(stats, name)
    for at, (kind, usage) in enumerate(stats.per_class.items()):
        row = kind.encode(), usage.allocated_bytes, usage.limit_bytes
        record["classes"][at] = row
    pools = list(stats.per_pool.values())[: layout.MAX_POOLS]
    for at, pool in enumerate(pools):
        counted = pool.block_size, pool.total_blocks, pool.used_blocks, pool.failures
        placed = layout.PAGES.index(pool.pages), 0 if pool.node is None else pool.node + 1
        record["pools"][at] = (pool.pool_id, _POOL_KINDS[pool.kind], *counted, *placed)
    if stats.placement is not None:
        _fill_placement(record["placement"], stats.placement)
    for at, (kind, found) in enumerate(stats.latencies.items()):
        row_of = record["latencies"][at]
        row_of["kind"], row_of["counts"] = kind.encode(), found.counts
        row_of["total_ns"], row_of["max_ns"] = found.total_ns, found.max_ns
    rows = moment.snapshot.rows()
    largest = np.argsort(-rows["n_charged"], kind="stable")[: layout.MAX_DIMENSIONS]
    n_listed = 0
    for row in rows[largest]:
        loaded = moment.snapshot.find(int(row["dimension"]))  # type: ignore[arg-type]
        if loaded is None:
            continue
        record["dimensions"][n_listed] = (
            int(loaded.dimension_id),
            loaded.state,
            loaded.n_layers,
            loaded.n_learned,
            int(row["n_charged"]),
            loaded.edition.generation,
            loaded.dimension_id in engine.pinned,
            _cut(loaded.name, layout.NAME_BYTES),
        )
        n_listed += 1
    record["n_dimensions"], record["n_listed"] = stats.dimensions_loaded, n_listed
    record["n_pools"] = len(pools)


def _fill_placement(record: Any, stats: PlacementStats) -> None:
    for name in ("huge_pages", "numa", "policy"):
        record[name] = getattr(stats, name).encode()
    record["note"] = _cut(stats.note, layout.NAME_BYTES)
    record["n_nodes"] = stats.n_nodes
    record["huge_bytes"] = [stats.huge_bytes.get(kind, 0) for kind in layout.PAGES]
    listed = list(stats.node_bytes.items())[: layout.MAX_NODES]
    record["n_listed"] = len(listed)
    record["node_bytes"][: len(listed)] = listed


def _clear(path: Path) -> None:
    """Remove the status file of a process that is gone from where ours is to be.

    Raises OSError where another one is there, or what is no status file.
    """
    if not os.path.lexists(path):
        return
    try:
        status = reader.read(path)
    except JessyMemoryError as error:
        raise FileExistsError(str(error)) from error
    if status.is_alive:
        raise FileExistsError(f"{path} is the status file of process {status.pid}")
    path.unlink()


def _cut(text: str, n_bytes: int) -> bytes:
    """Return a text as UTF-8, cut where a character ends."""
    encoded = text.encode("utf-8", "replace")[:n_bytes]
    return encoded.decode("utf-8", "ignore").encode()
