"""Views on blocks: who owns them, and what happens when the last of them is gone."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.errors import OutOfBounds
from jessymem.kernels import atomics, release
from jessymem.kernels import schema as s
from jessymem.pools import failures
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.table import PoolTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Views:
    """Makes the arrays that views are slices of, and notes their end.

    Parameters
    ----------
    table : PoolTable
    follow_up : callable
        Called with IS_* flags after blocks went back; must not wait, since it runs in finalizers.
    """

    def __init__(self, table: PoolTable, follow_up: Callable[[int], object]) -> None:
        self._table = table
        self._follow_up = follow_up
        # What finalizers let go of, until somebody takes it in.
        self._dropped: deque[int] = deque()

    def owner_of(
        self, handle: int, n_bytes: int, content: Iterable[Any] | None = None
    ) -> NDArray[np.uint8]:
        """Note a view; return the array to which every slice of it leads, and whose end ends it.

        With `content`, pieces of bytes that fill it, the block is filled first, the array is
        read-only for good, and its end gives the block back too, if nobody has before.

        Raises
        ------
        OutOfBounds, InvalidAccess
            As `PoolAllocator.view`.
        """
        code, offset = int(s.STALE), MmapOffset.from_packed(handle)
        finalizer = None
        try:
            code = int(release.add_view(self._table.argument, handle, n_bytes))
            if code == s.OUT_OF_BOUNDS:
                raise OutOfBounds(
                    f"{offset!r}: a view of {n_bytes:,} bytes is larger than the allocation",
                    offset=offset.offset,
                    size=n_bytes,
                    region_size=self._table.n_requested(offset.pool_id, offset.offset),
                )
            if code != s.OK:
                raise failures.wrong_block(code, offset, n_bytes, self._table)
            memory = self._table.memory_at(offset.pool_id, offset.offset, n_bytes)
            if content is not None:
                _fill(np.frombuffer(memory, np.uint8), content)
                memory = memory.toreadonly()
            owner = np.frombuffer(memory, np.uint8)
            end = handle if content is None else ~handle
            finalizer = weakref.finalize(owner, self._drop, end)
            finalizer.atexit = False
        except BaseException:
            if code == s.OK and finalizer is None:
                self._drop(handle)
            raise
        return owner

    def take_in(self) -> None:
        """Take in what finalizers let go of; any number of threads at once.

        Nobody may be left to do it for the others: while that thread is off the processor they
        would run out of blocks. Where compilation is disabled, a finalizer that
        interrupts an atomic leaves its handle to whoever comes next.
        """
        flags, is_any = 0, False
        while self._dropped and not atomics.is_interrupted():
            try:
                handle = self._dropped.popleft()
            except IndexError:  # another thread was quicker
                break
            is_kept = handle < 0
            handle = ~handle if is_kept else handle
            flags |= int(release.drop_view(self._table.argument, handle))
            if is_kept:  # of one that was given back already nothing comes but a code
                code = int(release.deallocate(self._table.argument, handle, s.ANY_SIZE))
                flags |= max(code, 0)
            is_any = True
        if is_any:
            self._follow_up(flags)

    def _drop(self, handle: int) -> None:
        """Take a noted view back; a finalizer, so it may run anywhere and waits for nothing.

        An inverted handle: the block too.
        """
        self._dropped.append(handle)
        self.take_in()


def _fill(target: NDArray[np.uint8], pieces: Iterable[Any]) -> None:
    """Copy pieces one behind the other; NumPy lets go of the GIL where they are long."""
    at = 0
    for piece in pieces:
        target[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
