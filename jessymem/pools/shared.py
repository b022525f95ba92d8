"""`SharedBlock`: one block for several small contents, side by side; `OpenBlocks`: with space left.

It is held by what is stored in it and by nothing else: with the last of them it is freed, and waits
then for views, as any block. Whoever fills one has taken it out of `OpenBlocks` before, so no two
threads ever fill the same; an interrupt loses the rest of its space at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import ref

from jessymem.kernels.schema import GRANULE_BYTES
from jessymem.pieces import in_parts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SharedBlock:
    """A block that is being filled.

    Parameters
    ----------
    handle : int
    owner : ndarray of uint8
        All of it, read-only: what every view leads to.
    memory : memoryview
        The same bytes, to be written.

    Attributes
    ----------
    handle : int
    address : int
        Of its first byte.
    n_filled : int
        Where the next content begins.
    """

    __slots__ = ("__weakref__", "_memory", "_view", "address", "handle", "n_filled")

    def __init__(self, handle: int, owner: NDArray[np.uint8], memory: memoryview) -> None:
        self.handle = handle
        self.address: int = owner.ctypes.data
        self.n_filled = 0
        self._view = memoryview(owner)
        self._memory = memory

    def put(self, pieces: Iterable[Any], n_bytes: int) -> memoryview:
        """Copy a content behind those that it has, where space is left for it; return its view."""
        start = end = self.n_filled
        self.n_filled = next_start(start + n_bytes)  # first: what is written once is never again
        memory = self._memory
        for part in in_parts(pieces):
            at, end = end, end + len(part)
            memory[at:end] = part
        return self._view[start:end]


class OpenBlocks:
    """The shared blocks of one allocator that have space left.

    Parameters
    ----------
    block_bytes : int
        How long shared blocks are.

    Attributes
    ----------
    block_bytes : int
    max_bytes : int
        Of a content that shares a block; so each block but the open ones is more than half filled.
    """

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.max_bytes = block_bytes // 2 if block_bytes > GRANULE_BYTES else 0
        self._blocks: deque[ref[SharedBlock]] = deque()  # weak: an empty one is to go

    def take(self, n_bytes: int) -> SharedBlock | None:
        """Take one out that has space for a content; those that have not are open no longer."""
        blocks = self._blocks
        try:
            while True:
                block = blocks.pop()()
                if block is not None and block.n_filled + n_bytes <= self.block_bytes:
                    return block
        except IndexError:
            return None

    def put_back(self, block: SharedBlock | None) -> None:
        """Let others fill what is left of a block."""
        if block is not None and block.n_filled < self.block_bytes:
            self._blocks.append(ref(block))


def next_start(n_filled: int) -> int:
    """Return where a content begins behind so many bytes."""
    return (n_filled + GRANULE_BYTES - 1) & -GRANULE_BYTES
