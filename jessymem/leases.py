"""Read leases: whoever is about to change a mapped file waits until its bytes are copied.

Linux lets the owner of a file lease it. Who then opens it for writing, or truncates it, is kept
waiting, and we are told by a signal. One thread for the whole process, in compiled code without the
GIL, waits for it, puts a copy of the bytes in place of the mapping, and gives the lease up
(`jessymem.kernels.leases`). So what was mapped stays as it was, at the same addresses.

A lease belongs to an open file, so each costs a descriptor. Renaming over a file, and removing it,
wait for nobody.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

import numpy as np

from jessymem.descriptors import OUT_OF_DESCRIPTORS, Descriptor, open_descriptor
from jessymem.forks import renew_in_forked_children
from jessymem.kernels import _jit
from jessymem.logger import WARNING, logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: More files are not guarded at a time; the rest are copied.
MAX_LEASES: Final = 65_536

#: A system that waits less long for a lease's end would not wait for a copy of much.
MIN_BREAK_SECONDS: Final = 10

_BREAK_TIME: Final = Path("/proc/sys/fs/lease-break-time")
_NAME: Final = b"jessy"  # of copies, in /proc/PID/maps
_LOOK_SECONDS: Final = 2  # so often leases are looked at even if no signal tells of one
_BELOW_LAST_SIGNAL: Final = 5  # of the real-time signals the one that is used
_SIGNAL_SET_BYTES: Final = 128

# Numbers of Linux that Python has no names for.
_F_SETSIG: Final = 10
_F_SETOWN_EX: Final = 15
_OWNER_IS_THREAD: Final = 0


class Lease:
    """A file's lease, given up when nobody holds this any more; held by what maps the file."""

    def __init__(self, guard: _Guard, descriptor: Descriptor) -> None:
        self._guard = guard
        self.descriptor = descriptor  # closed after the callbacks that tell of this object's end
        self.path = ""
        self.n_bytes = 0

    def cover(self, data: NDArray[np.uint8], path: Path) -> None:
        """Keep a mapping of the leased file as it is; until then whoever waits, waits.

        The mapping has to hold this, and nobody else may for longer.
        """
        self.path, self.n_bytes = os.fspath(path), len(data)
        self._guard.add(self, data.ctypes.data)


def take(file: Descriptor) -> Lease:
    """Lease an open file; raise OSError where the system, or this user, cannot.

    EAGAIN: somebody has the file open for writing. ENOLCK: no thread that would react can be
    started.
    """
    fault = _fault()
    if fault is not None:
        raise OSError(errno.ENOTSUP, fault)
    descriptor = next(map(Descriptor, map(os.dup, (file.fileno(),)))).secured()
    _guard().lease(descriptor)
    return Lease(_guard(), descriptor)


def prepare() -> None:
    """Compile and start what reacts, before a lock of ours is held that would wait for it.

    Where that is refused, the first lease will say so.
    """
    with suppress(OSError):
        if _fault() is None:
            _guard().start()


def _fault() -> str | None:
    """Say why there are no leases here; None: there are."""
    if sys.platform != "linux":
        return "this system has no leases"
    try:
        seconds = int(_BREAK_TIME.read_text())
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in OUT_OF_DESCRIPTORS:
            raise
        return "this system does not tell how long it waits for a lease's end"
    if seconds < MIN_BREAK_SECONDS:
        return f"this system waits {seconds} s for a lease's end, which is too short"
    return None


@cache
def _guard() -> _Guard:
    return _Guard()


class _Guard:
    """All leases of this process, and the threads that serve them."""

    def __init__(self) -> None:
        from jessymem.kernels import leases

        self._kernels: Any = leases
        self._words = np.zeros(leases.HEAD_WORDS + leases.ROW_WORDS * MAX_LEASES, np.int64)
        self._words[leases.ONE] = 1
        self._words[leases.NAME] = int.from_bytes(_NAME, "little")
        # Filled and emptied by callbacks in C, which nothing can interrupt: a row must not outlive
        # the mapping that it tells of.
        self._rows: dict[ref[Lease], tuple[int, ref[Lease]]] = {}
        self._ended: deque[ref[Lease]] = deque()
        self._free: list[int] = []
        self._lock = threading.Lock()
        self._leave: Callable[..., Any] = leases.leave
        self._thread: threading.Thread | None = None
        # What the one thread tells the other by, who waits for that; kept for the next attempt.
        self._told: Descriptor | None = None
        self._is_telling = False
        renew_in_forked_children(self)

    # -- leases ------------------------------------------------------------------------------------

    def lease(self, descriptor: int) -> None:
        """Lease a file through a descriptor; raise OSError where that is refused."""
        import fcntl

        owner = struct.pack("ii", _OWNER_IS_THREAD, self.start())
        # Before there is a lease, so that nobody else can be told of its end.
        fcntl.fcntl(descriptor, _F_SETSIG, _signal_number())
        fcntl.fcntl(descriptor, _F_SETOWN_EX, owner)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)

    def add(self, lease: Lease, address: int) -> None:
        """Serve a lease of what is mapped at an address from now on, for as long as it lives."""
        words, kernels = self._words, self._kernels
        with self._lock:
            row = self._take_row()
            at = self._place_of(row)
            freed = ref(lease, self._ended.append)
            # The later callback comes first. `next` takes the reference for a default.
            left = ref(lease, partial(next, iter(partial(self._leave, words, at), None)))
            self._rows[freed] = row, left
            words[at + 1 : at + kernels.ROW_WORDS] = lease.descriptor, address, lease.n_bytes
            kernels.atomics.store(words, at, kernels.HELD)

    def _take_row(self) -> int:
        """Return a row that nobody has; under the lock."""
        words, n_rows = self._words, self._kernels.N_ROWS
        while self._ended:
            row, _ = self._rows.pop(self._ended.popleft())
            self._free.append(row)
        if self._free:
            return self._free.pop()
        row = int(words[n_rows])
        if row >= MAX_LEASES:
            raise OSError(errno.ENOLCK, f"more than {MAX_LEASES:,} leases")
        words[n_rows] = row + 1
        return row

    def _place_of(self, row: int) -> int:
        return int(self._kernels.HEAD_WORDS + self._kernels.ROW_WORDS * row)

    # -- threads -----------------------------------------------------------------------------------

    def start(self) -> int:
        """Start both threads unless they run; return the id of the one that is to be told.

        Raises
        ------
        OSError
            ENOLCK where no thread can be started; or why the system lets them not speak.
        """
        if self._thread is None:
            _jit.promote(_jit.GUARDING)
            self._leave = _jit.entry_of(self._kernels.leave, self._words, 0)
            with self._lock:
                if self._thread is None:
                    self._thread = self._start_threads()
        return self._thread.native_id or 0

    def _start_threads(self) -> threading.Thread:
        if self._told is None:
            self._told = next(map(Descriptor, map(os.eventfd, (0,), (os.EFD_CLOEXEC,))))
            self._words[self._kernels.TOLD] = self._told
        if not self._is_telling:
            _start(self._tell, "jessymem leases' log", self._told)
            self._is_telling = True
        ready = threading.Event()
        server = _start(self._serve, "jessymem leases", ready)
        ready.wait()
        return server

    def _serve(self, ready: threading.Event) -> None:
        # What is meant for others is not taken from them, but for the signal that is waited for.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signals, period = _make_set(_signal_number()), struct.pack("qq", _LOOK_SECONDS, 0)
        set_address, time_address = (
            np.frombuffer(raw, "u1").ctypes.data for raw in (signals, period)
        )
        ready.set()
        self._kernels.serve(self._words, set_address, time_address)

    def _tell(self, told: int) -> None:
        """Record what was copied; here, since the thread that copies may wait for nothing."""
        known: set[ref[Lease]] = set()
        while os.eventfd_read(told):
            rows = self._rows.copy()
            known.intersection_update(rows)
            for each, (row, _) in rows.items():
                is_copied = self._words[self._place_of(row)] == self._kernels.COPIED
                lease = each() if is_copied and each not in known else None
                if lease is not None:
                    known.add(each)
                    _record_copy(lease.path, lease.n_bytes)
                del lease  # a row that is copied may outlive its mapping for a moment, no other

    def after_fork(self) -> None:
        """Lease anew what a child has mapped; its parent's leases are its parent's."""
        self._lock = threading.Lock()
        is_used, self._thread = self._thread is not None, None
        told, self._told, self._is_telling = self._told, None, False
        if told is not None:
            told.close()
        if not is_used:
            return
        for row in range(int(self._words[self._kernels.N_ROWS])):
            at = self._place_of(row)
            if self._words[at] in (self._kernels.HELD, self._kernels.COPYING):
                self._words[at] = self._kernels.HELD
                self._lease_again(at)

    def _lease_again(self, at: int) -> None:
        """Let a row's descriptor lead to an open file of this process alone, and lease that."""
        inherited = int(self._words[at + 1])
        try:
            mine = open_descriptor(f"/proc/self/fd/{inherited}", os.O_RDONLY)
            self.lease(mine)
            os.dup2(mine, inherited, inheritable=False)
        except OSError:  # somebody waits to change it, and only for the parent
            nothing = open_descriptor(os.devnull, os.O_RDONLY)
            os.dup2(nothing, inherited, inheritable=False)  # the parent's lease is not ours to end
            if self._kernels.protect(self._words, at):
                self._words[at] = self._kernels.COPIED


def _start(run: Callable[..., None], name: str, argument: object) -> threading.Thread:
    """Start a thread that ends with the process; raise OSError where none can be started."""
    thread = threading.Thread(target=run, args=(argument,), name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.ENOLCK, str(error)) from None
    return thread


def _signal_number() -> int:
    return signal.SIGRTMAX - _BELOW_LAST_SIGNAL


def _make_set(number: int) -> bytes:
    """Return a set of one signal, as the system's library knows it."""
    made, library = ctypes.create_string_buffer(_SIGNAL_SET_BYTES), ctypes.CDLL(None)
    library.sigemptyset(made)
    library.sigaddset(made, number)
    return made.raw


def _record_copy(path: str, n_bytes: int) -> None:
    if logger.isEnabledFor(WARNING):
        logger.warning(
            "%s is being changed by others: its %d mapped bytes were copied to memory first",
            path,
            n_bytes,
            extra={"event": "mapping_copied", "path": path, "size": n_bytes},
        )
