"""Views on blocks: who owns them, and what happens when the last of them is gone."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from jessymem.errors import OutOfBounds
from jessymem.kernels import release
from jessymem.kernels import schema as s
from jessymem.kernels.transactions import NOT_PLAIN, PlainState
from jessymem.pieces import in_parts
from jessymem.pools import failures
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.table import PoolTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _End(ref[Any]):
    """Tells of the end of what holds a block; one is not another."""

    __slots__ = ("collect",)

    __hash__ = object.__hash__
    __eq__ = object.__eq__
    collect: ref[Any]  # does at once what is to be done then


class Ends:
    """Handles of blocks, each until the end of what holds it, and then until it is collected.

    What is told of an end is told in C, so nothing interrupts that; the rest is made up for by
    whoever collects next.

    Attributes
    ----------
    noted : dict of _End to int
        The handles of what has not ended.
    ended : deque of _End
        Filled by ends: of those that are not noted, or no more, nobody hears.
    handles : deque of int
        Of what has ended; see `gather`.
    """

    __slots__ = ("ended", "handles", "noted")

    def __init__(self) -> None:
        self.noted: dict[_End, int] = {}
        self.ended: deque[_End] = deque()
        self.handles: deque[int] = deque()

    def __bool__(self) -> bool:
        """Tell whether any is to be collected."""
        return bool(self.ended or self.handles)

    def gather(self) -> deque[int]:
        """Find the handles of what has ended by now; who collects takes them out."""
        while self.ended:
            try:  # from one queue to the other in one step of C: an interrupt loses none
                self.handles.extend(map(self.noted.pop, iter(self.ended.popleft, None)))
            except LookupError:  # another thread was quicker, or it was never noted
                pass
        return self.handles


class Views:
    """Makes the arrays that views are slices of, and notes their end.

    Parameters
    ----------
    table : PoolTable
    follow_up : callable
        Returns what is called with IS_* flags after blocks went back, or None. That must not wait,
        since it runs in finalizers.
    """

    def __init__(
        self, table: PoolTable, follow_up: Callable[[], Callable[[int], object] | None]
    ) -> None:
        self._table = table
        self._follow_up = follow_up
        self._dropped = Ends()  # views
        self._freed = Ends()  # what keeps its block
        self._collect = _collecting(ref(self))

    @property
    def has_ended(self) -> bool:
        """Whether any view is gone whose block was not collected yet."""
        return bool(self._dropped)

    def owner_of(
        self,
        handle: int,
        n_bytes: int,
        content: Iterable[Any] | None = None,
        *,
        frees: bool = False,
    ) -> NDArray[np.uint8]:
        """Note a view; return the array to which every slice of it leads, and whose end ends it.

        With `content`, pieces of bytes, the block is filled first, and the array is read-only for
        good. Where it `frees`, its end frees the block too, if nobody has before.

        Raises
        ------
        OutOfBounds, InvalidAccess
            As `PoolAllocator.view`.
        """
        offset = MmapOffset.from_packed(handle)
        end: _End | None = None
        codes: list[int] = []
        try:
            if type(state := self._table.argument) is PlainState:
                state.call(release.add_view, handle, n_bytes, note=codes.append)
            if not codes:
                # One step for the interpreter: no interrupt finds a view that nobody knows of.
                add_view: Any = release.add_view
                codes.extend(map(add_view, (self._table.argument,), (handle,), (n_bytes,)))
            code = codes[0]
            if code == s.OUT_OF_BOUNDS:
                raise OutOfBounds(
                    f"{offset!r}: a view of {n_bytes:,} bytes is larger than the allocation",
                    offset=offset.offset,
                    size=n_bytes,
                    region_size=self._table.n_requested(offset.pool_id, offset.offset),
                )
            if code != s.OK:
                raise failures.wrong_block(int(code), offset, n_bytes, self._table)
            memory = self._table.arena.view(offset.pool_id, offset.offset, n_bytes)
            if content is not None:
                _fill(np.frombuffer(memory, np.uint8), content)
                memory = memory.toreadonly()
            owner = np.frombuffer(memory, np.uint8)
            # What is made last is called first: when it comes to collecting, the ends are told.
            collect = ref(owner, self._collect)
            if frees:
                self.free_after(owner, handle)
            end = _End(owner, self._dropped.ended.append)
            end.collect = collect
            self._dropped.noted[end] = handle
        except BaseException:
            if codes and codes[0] == s.OK and (end is None or end not in self._dropped.noted):
                self._dropped.handles.append(handle)
                self.collect_ended()
            raise
        return owner

    def free_after(self, holder: object, handle: int) -> None:
        """Have a block freed by the next collection after an object's end, if nobody has before."""
        self._freed.noted[_End(holder, self._freed.ended.append)] = handle

    def collect_ended(self) -> None:
        """Free what the views that are gone were on; any number of threads at once.

        A finalizer, so it may run anywhere, and waits for nothing. Nobody may be left to do it for
        the others: while that thread is off the processor they would run out of blocks.
        """
        if type(state := self._table.argument) is PlainState:
            self._collect_plainly(state)
            if not state.is_compiled:
                return  # what is taken outside of a step may be another's first item, done twice
        deallocate: Any = release.deallocate
        drop_view: Any = release.drop_view
        words = repeat(self._table.argument)
        flags, is_any = 0, False
        # Each handle is taken and passed on in one step of C: an interrupt loses none.
        try:
            while freed := self._freed.gather():
                is_any = True
                code = next(map(deallocate, words, iter(freed.popleft, None), repeat(s.ANY_SIZE)))
                flags |= max(int(code), 0)  # of what was freed before comes but a code
            while dropped := self._dropped.gather():
                is_any = True
                flags |= int(next(map(drop_view, words, iter(dropped.popleft, None))))
        except IndexError:  # another thread was quicker
            pass
        if is_any and (follow_up := self._follow_up()) is not None:
            follow_up(flags)

    def _collect_plainly(self, state: PlainState) -> None:
        """Do the same with plain kernels, as far as they are not compiled meanwhile.

        A handle leaves its queue in the step that ends its view.
        """
        flags, is_any = 0, False
        for ends, kernel, rest in (
            (self._freed, release.deallocate, (s.ANY_SIZE,)),
            (self._dropped, release.drop_view, ()),
        ):
            with suppress(IndexError):  # another thread was quicker
                while queue := ends.gather():
                    code = state.call(kernel, *rest, queue=queue)
                    if code is NOT_PLAIN:
                        break
                    flags, is_any = flags | max(int(code), 0), True
        if is_any and (follow_up := self._follow_up()) is not None:
            follow_up(flags)


def _collecting(views_of: ref[Views]) -> Callable[[object], None]:
    """Return what collects when it is called with anything; it keeps no views."""

    def collect(_: object, is_over: Callable[[], bool] = sys.is_finalizing) -> None:
        views = views_of()
        if views is not None and not is_over():  # then modules may be gone already
            views.collect_ended()

    return collect


def _fill(target: NDArray[np.uint8], pieces: Iterable[Any]) -> None:
    """Copy pieces one behind the other; NumPy releases the GIL where they are long."""
    at = 0
    for part in in_parts(pieces):
        target[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
