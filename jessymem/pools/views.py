"""Views on blocks: who owns them, and what happens when the last of them is gone."""

from __future__ import annotations

import operator
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.errors import OutOfBounds
from jessymem.kernels import release
from jessymem.kernels import schema as s
from jessymem.kernels.transactions import NOT_PLAIN, PlainState
from jessymem.pools import failures
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.table import PoolTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Calls what `map` would, and keeps nothing. In C: no interrupt comes between the calls.
_call_each: Final[Any] = deque
_call: Final[Any] = operator.call


class Views:
    """Makes the arrays that views are slices of, and notes their end.

    Parameters
    ----------
    table : PoolTable
    follow_up : callable
        Returns what is called with IS_* flags after blocks went back, or None. That must not wait,
        since it runs in finalizers.

    Attributes
    ----------
    ended : deque of int
        The handles of views that are gone, until they are collected.
    """

    def __init__(
        self, table: PoolTable, follow_up: Callable[[], Callable[[int], object] | None]
    ) -> None:
        self._table = table
        self._follow_up = follow_up
        self.ended: deque[int] = deque()
        self._freed: deque[int] = deque()  # of what keeps its block, until collected

    def owner_of(
        self, handle: int, n_bytes: int, content: Iterable[Any] | None = None
    ) -> NDArray[np.uint8]:
        """Note a view; return the array to which every slice of it leads, and whose end ends it.

        With `content`, pieces of bytes that fill it, the block is filled first, the array is
        read-only for good, and its end frees the block too, if nobody has before.

        Raises
        ------
        OutOfBounds, InvalidAccess
            As `PoolAllocator.view`.
        """
        offset = MmapOffset.from_packed(handle)
        ending: weakref.finalize[Any, Any] | None = None
        result: Any = NOT_PLAIN
        noted: Any = ()
        try:
            if type(state := self._table.argument) is PlainState:
                noted = []
                result = state.call(release.add_view, handle, n_bytes, note=noted.append)
            if result is NOT_PLAIN:
                result = release.add_view(self._table.argument, handle, n_bytes)
            code = int(result)
            if code == s.OUT_OF_BOUNDS:
                raise OutOfBounds(
                    f"{offset!r}: a view of {n_bytes:,} bytes is larger than the allocation",
                    offset=offset.offset,
                    size=n_bytes,
                    region_size=self._table.n_requested(offset.pool_id, offset.offset),
                )
            if code != s.OK:
                raise failures.wrong_block(code, offset, n_bytes, self._table)
            memory = self._table.arena.view(offset.pool_id, offset.offset, n_bytes)
            if content is not None:
                _fill(np.frombuffer(memory, np.uint8), content)
                memory = memory.toreadonly()
            owner = np.frombuffer(memory, np.uint8)
            ends = [partial(self.ended.append, handle), self.collect_ended]
            if content is not None:
                ends.insert(0, partial(self._freed.append, handle))
            ending = weakref.finalize(owner, _call_each, map(_call, ends), 0)
            ending.atexit = False
        except BaseException:
            if s.OK in (result, *noted) and ending is None:
                self.ended.append(handle)
                self.collect_ended()
            raise
        return owner

    def free_after(self, holder: object, handle: int) -> None:
        """Have a block freed by the next collection after an object's end, if nobody has before."""
        weakref.finalize(holder, self._freed.append, handle).atexit = False

    def collect_ended(self) -> None:
        """Free what the views that are gone were on; any number of threads at once.

        A finalizer, so it may run anywhere, and waits for nothing. Nobody may be left to do it for
        the others: while that thread is off the processor they would run out of blocks.
        """
        if type(state := self._table.argument) is PlainState:
            self._collect_plainly(state)
        deallocate: Any = release.deallocate
        drop_view: Any = release.drop_view
        words = repeat(self._table.argument)
        flags, is_any = 0, False
        # Each handle is taken and passed on in one step of C: an interrupt loses none.
        try:
            while self._freed:
                is_any = True
                take = iter(self._freed.popleft, None)
                code = next(map(deallocate, words, take, repeat(s.ANY_SIZE)))
                flags |= max(int(code), 0)  # of what was freed before comes but a code
            while self.ended:
                is_any = True
                flags |= int(next(map(drop_view, words, iter(self.ended.popleft, None))))
        except IndexError:  # another thread was quicker
            pass
        if is_any and (follow_up := self._follow_up()) is not None:
            follow_up(flags)

    def _collect_plainly(self, state: PlainState) -> None:
        """Do the same with plain kernels, as far as they are not compiled meanwhile.

        A handle leaves its queue in the step that ends its view.
        """
        flags, is_any = 0, False
        for queue, kernel, rest in (
            (self._freed, release.deallocate, (s.ANY_SIZE,)),
            (self.ended, release.drop_view, ()),
        ):
            with suppress(IndexError):  # another thread was quicker
                while queue:
                    code = state.call(kernel, *rest, queue=queue)
                    if code is NOT_PLAIN:
                        break
                    flags, is_any = flags | max(int(code), 0), True
        if is_any and (follow_up := self._follow_up()) is not None:
            follow_up(flags)


def _fill(target: NDArray[np.uint8], pieces: Iterable[Any]) -> None:
    """Copy pieces one behind the other; NumPy releases the GIL where they are long."""
    at = 0
    for piece in pieces:
        target[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
