"""What keeps leased mappings whole: a loop that copies a file before others may change it.

A row is four words: how far it is, a descriptor with a read lease, address and length of the
mapping. While somebody waits to open the file for writing, or to truncate it, the system keeps him
waiting until the lease is given up; before that, `serve` puts a copy of the bytes in place of the
mapping. It runs in a thread of its own and needs no GIL, so nothing in the process can make it
late. Called by `jessymem.leases`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import _jit, atomics
from jessymem.kernels._jit import Int, kernel
from jessymem.kernels.instructions import llvm, on_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What a row's first word says. Whoever changes HELD to COPYING or FREE has the row to itself.
FREE: Final = 0
HELD: Final = 1  # the file is mapped and leased
COPYING: Final = 2
COPIED: Final = 3  # the bytes are private memory, the lease is given up

ROW_WORDS: Final = 4
_DESCRIPTOR: Final = 1
_ADDRESS: Final = 2
_N_BYTES: Final = 3

#: In front of the rows: how many rows were ever used, whether to end, the descriptor that is told
#: of copies, the number that it is told, and what copies are called where the system shows memory.
N_ROWS: Final = 0
END: Final = 1
TOLD: Final = 2
ONE: Final = 3
NAME: Final = 4
HEAD_WORDS: Final = 5

# Numbers of Linux, the same on every machine.
_F_GETLEASE: Final = 1025
_F_SETLEASE: Final = 1024
_F_RDLCK: Final = 0
_F_UNLCK: Final = 2
_READABLE: Final = 1
_SHARED_FIXED: Final = 0x11
_CLOSE_ON_EXEC: Final = 1
_MOST_WRITTEN: Final = 2**30
_PAUSE_MICROSECONDS: Final = 200


def _call(name: str, *bits: int, result: int = 32) -> Callable[..., Any]:
    """Let a function be one of the system's library: integers of so many bits, one comes back."""

    def emit(builder: Any, *arguments: Any) -> Any:
        from numba.core import cgutils

        ir = llvm()
        word = ir.IntType(64)
        types = [ir.IntType(n) for n in bits]
        form = ir.FunctionType(ir.IntType(result), types)
        function = cgutils.get_or_insert_function(builder.module, form, name)  # type: ignore[no-untyped-call]
        pairs = zip(arguments, types, strict=True)
        given = [each if kind == word else builder.trunc(each, kind) for each, kind in pairs]
        returned = builder.call(function, given)
        return returned if result == 64 else builder.sext(returned, word)

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        return on_values("int64", emit)(function)

    return mark


def _plain(name: str, *arguments: Any) -> int:
    """Make such a call as plain Python."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = ctypes.c_int64 if name in ("mmap", "write") else ctypes.c_int
    return int(function(*[ctypes.c_int64(int(each)) for each in arguments]))


@_call("fcntl", 32, 32, 64)
def _control(descriptor: Int, command: Int, value: Int) -> int:
    """Ask or change something of an open file; return -1 where that is refused."""
    return _plain("fcntl", descriptor, command, value)


@_call("sigtimedwait", 64, 64, 64)
def _wait(signals: Int, information: Int, time: Int) -> int:
    """Wait for a signal of the set at an address, or until the time at another is over."""
    return _plain("sigtimedwait", signals, information, time)


@_call("memfd_create", 64, 32)
def _make_memory(name: Int, flags: Int) -> int:
    """Return a descriptor of memory that has no bytes yet."""
    return _plain("memfd_create", name, flags)


@_call("write", 32, 64, 64, result=64)
def _write(descriptor: Int, address: Int, n_bytes: Int) -> int:
    """Write bytes; return how many were, -1 where none can be, also since they cannot be read."""
    return _plain("write", descriptor, address, n_bytes)


@_call("mmap", 64, 64, 32, 32, 32, 64, result=64)
def _map(address: Int, n_bytes: Int, rights: Int, kind: Int, descriptor: Int, offset: Int) -> int:
    """Map over what is mapped at an address, in one step."""
    return _plain("mmap", address, n_bytes, rights, kind, descriptor, offset)


@_call("close", 32)
def _close(descriptor: Int) -> int:
    """Close a descriptor."""
    return _plain("close", descriptor)


@_call("usleep", 32)
def _pause(n_microseconds: Int) -> int:
    """Wait."""
    return _plain("usleep", n_microseconds)


@kernel
def serve(words: NDArray[np.int64], signals: Int, time: Int) -> int:
    """Protect what is about to be changed, until END is set; return how many rows that were.

    `signals` and `time` are addresses: of the set of signals that tell of it, and of the time after
    which it is looked all the same.
    """
    n_copied = 0
    while atomics.load(words, END) == 0:
        _wait(signals, 0, time)
        n_copied += protect_broken(words)
    return n_copied


@kernel
def protect_broken(words: NDArray[np.int64]) -> int:
    """Copy the mappings of all leases that are to be given up; return how many that were."""
    n_copied = 0
    for row in range(atomics.load(words, N_ROWS)):
        at = HEAD_WORDS + ROW_WORDS * row
        if atomics.load(words, at) != HELD or is_kept(words, at):
            continue
        if not atomics.compare_and_swap(words, at, HELD, COPYING):
            continue
        # Asked again: the row may have been given to another file in between.
        state = HELD
        if not is_kept(words, at) and protect(words, at):
            state = COPIED
            n_copied += 1
        atomics.store(words, at, state)
    if n_copied > 0:
        _write(words[TOLD], words.ctypes.data + 8 * ONE, 8)
    return n_copied


@kernel
def is_kept(words: NDArray[np.int64], at: Int) -> bool:
    """Tell whether a row's lease is as it was taken: nobody waits for its end."""
    return bool(_control(words[at + _DESCRIPTOR], _F_GETLEASE, 0) == _F_RDLCK)


@kernel
def protect(words: NDArray[np.int64], at: Int) -> bool:
    """Put a copy in place of a row's mapping, then give its lease up; tell whether that was done.

    The row is the caller's alone. If there is no memory the mapping and the lease stay.
    """
    address, n_bytes = words[at + _ADDRESS], words[at + _N_BYTES]
    memory = _make_memory(words.ctypes.data + 8 * NAME, _CLOSE_ON_EXEC)
    if memory < 0:
        return False
    n_done = np.int64(0)
    while n_done < n_bytes:
        n_written = _write(memory, address + n_done, min(n_bytes - n_done, _MOST_WRITTEN))
        if n_written <= 0:
            break
        n_done += n_written
    is_done = n_done == n_bytes
    if is_done:
        is_done = _map(address, n_bytes, _READABLE, _SHARED_FIXED, memory, 0) == address
    _close(memory)
    if is_done:
        _control(words[at + _DESCRIPTOR], _F_SETLEASE, _F_UNLCK)
    return is_done


@kernel
def leave(words: NDArray[np.int64], at: Int) -> Int:
    """Give up a row whose mapping is about to go; wait while it is copied. Return how far it was.

    Afterwards nothing touches the mapping.
    """
    state = atomics.load(words, at)
    while state != FREE and state != COPIED:
        if state == HELD and atomics.compare_and_swap(words, at, HELD, FREE):
            break
        _pause(_PAUSE_MICROSECONDS)
        state = atomics.load(words, at)
    if state != FREE:
        # Also after a copy: a forked child may hold the same open file.
        _control(words[at + _DESCRIPTOR], _F_SETLEASE, _F_UNLCK)
        atomics.store(words, at, FREE)
    return state


@_jit.on_promotion(_jit.GUARDING)
def _first_calls() -> None:
    words = np.zeros(HEAD_WORDS + ROW_WORDS, np.int64)
    words[END] = 1
    serve(words, 0, 0)
    protect_broken(words)
    leave(words, HEAD_WORDS)
