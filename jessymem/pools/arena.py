"""`Arena`: the memory that one allocator's words and pools lie in.

It is unmapped when the last reference goes, and never by the end of the interpreter: a daemon
thread in compiled code that has released the GIL works on until the process is gone.
"""

from __future__ import annotations

import atexit
import ctypes
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

import numpy as np

import jessymem
from jessymem import address_space, osmem
from jessymem.errors import AllocationFailed


class Arena:
    """Mappings, and which part of them is which pool's.

    Parameters
    ----------
    placement : Placement or None
        Which pages and nodes pools are to have; None: any.
    """

    def __init__(self, placement: jessymem.hints.Placement | None = None) -> None:
        self.placement = placement
        self._mappings: dict[int, osmem.PrivateMemory] = {}  # by pool
        self._starts: dict[int, int] = {}  # of the pool, in its mapping
        self._words: osmem.PrivateMemory | None = None
        _arenas.add(self)

    def map_words(self, n_words: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Map the words that kernels share; the array owns them."""
        n_bytes = n_words * np.dtype(np.int64).itemsize
        self._words = _kept_at_exit(osmem.private_memory(n_bytes))
        return np.frombuffer(self._words.mapping, np.int64, n_words)

    def map_pool(
        self, n_bytes: int, block_bytes: int = 0, node: int | None = None
    ) -> osmem.PrivateMemory:
        """Map memory for pools; `assign` says whose it is.

        For one pool alone where its blocks are told, and the node that they are to be on.

        Raises
        ------
        AllocationFailed
            "os_refused".
        """
        if self.placement is None or not block_bytes:
            return _kept_at_exit(osmem.private_memory(n_bytes))
        return _kept_at_exit(self.placement.pool_memory(n_bytes, block_bytes, node))

    def map_extensible(self, n_bytes: int, n_most: int) -> osmem.PrivateMemory:
        """Map memory for one pool, and addresses behind it to grow into, where they cost nothing.

        Of `n_most` bytes altogether; what is behind is committed as it is touched, too. A mapping
        is never moved, nor made longer: the system puts each new one right below the last, so that
        there is no room behind one (mremap(2) in place: 0 of 100 tries).
        """
        if n_most > n_bytes and not address_space.is_scarce():
            with suppress(AllocationFailed):
                return _kept_at_exit(osmem.private_memory(n_most))
        return _kept_at_exit(osmem.private_memory(n_bytes))

    def extent_of(self, pool: int) -> int:
        """Return how many bytes there are from a pool's first one to its mapping's end."""
        memory = self._mappings[pool]
        return len(memory.mapping) - memory.start - self._starts[pool]

    def assign(self, pool: int, memory: osmem.PrivateMemory, start: int) -> int:
        """Let a pool lie at `start` of mapped memory; return its address."""
        self._mappings[pool], self._starts[pool] = memory, start
        return memory.address + start

    def release(self, pool: int) -> None:
        """Forget a pool's memory: it is unmapped with the last view on it."""
        self._mappings.pop(pool, None)
        self._starts.pop(pool, None)

    def release_pools(self) -> None:
        """Forget the memory of all pools."""
        self._mappings.clear()

    @property
    def is_empty(self) -> bool:
        """Whether no pool has memory."""
        return not self._mappings

    @property
    def mappings(self) -> list[osmem.PrivateMemory]:
        """What keeps the pools' memory mapped while it is held."""
        return list(self._mappings.values())

    def pages_of(self, pool: int) -> str:
        """Return in which pages a pool was mapped; "small" where it is gone."""
        memory = self._mappings.get(pool)
        return "small" if memory is None else memory.pages

    def page_bytes_of(self, pool: int) -> int:
        """Return what of a pool becomes resident, and is returned, at once."""
        memory = self._mappings.get(pool)
        return osmem.page_size() if memory is None else memory.page_bytes

    def address_of(self, pool: int) -> int | None:
        """Return where a pool's memory begins; None where it is gone."""
        memory = self._mappings.get(pool)
        return None if memory is None else memory.address + self._starts.get(pool, 0)

    def view(self, pool: int, offset: int, n_bytes: int) -> memoryview:
        """Return a part of a pool's memory; it keeps the mapping alive."""
        memory = self._mappings[pool]
        start = memory.start + self._starts[pool] + offset
        return memoryview(memory.mapping)[start : start + n_bytes]

    def return_pages(self, pool: int, offset: int, n_bytes: int) -> bool:
        """Return whole pages of a pool to the system; tell whether it took them."""
        return self._mappings[pool].return_pages(self._starts[pool] + offset, n_bytes)

    def outlive_threads(self) -> None:
        """Keep all mappings until the process is gone."""
        for memory in [self._words, *self._mappings.values()]:
            if memory is not None:
                _keep(memory)


#: Those that there are.
_arenas: Final[WeakSet[Arena]] = WeakSet()
_is_exiting = False


def _kept_at_exit(memory: osmem.PrivateMemory) -> osmem.PrivateMemory:
    if _is_exiting:
        _keep(memory)
    return memory


def _keep(memory: osmem.PrivateMemory) -> None:
    """Count a reference that nobody drops; no object would outlive the interpreter's end."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory.mapping))


@atexit.register
def _outlive_threads() -> None:
    global _is_exiting
    _is_exiting = True  # first: what is mapped from here on is kept at once
    for arena in list(_arenas):
        arena.outlive_threads()
