"""`Lock`: held by an object, so that no exception, wherever it strikes, can leave it locked.

An asynchronous exception (Ctrl-C, a signal handler that raises, `PyThreadState_SetAsyncExc`) may
come between taking a lock and the block that releases it. Here both are one: who asks for the
lock makes a `Hold` first, and the lock is that hold's for as long as it lives. Its end is told by
weak references whose callbacks are written in C: no bytecode runs that could be interrupted.

Nothing is imported or compiled under a lock: what finds that it would have to, asks `outside`.
"""

from __future__ import annotations

import _thread
import sys
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Final
from weakref import ref

from jessymem.errors import InvalidAccess

#: How long a thread waits before it looks again whether its turn has come.
_LOOK_AGAIN_SECONDS: Final = 0.05


class _Claim:
    """What a hold is made of; its end is the end of the claim."""

    __slots__ = ("__weakref__",)


class Hold:
    """A lock is held while this lives; a context manager that ends it at once.

    Do not bind it to a name: a traceback would keep it.
    """

    __slots__ = ("_claim",)

    _claim: _Claim | None  # None: its thread held the lock before

    def __enter__(self) -> None:
        """Nothing to do: the lock is held."""

    def __exit__(self, *exception: object) -> None:
        """Release the lock."""
        self._claim = None


_new_hold: Final = Hold.__new__  # with no call of Python in between


class Lock:
    """A lock for one thread at a time, first come first served; its holder may take it again."""

    __slots__ = ("__weakref__", "_claims")

    def __init__(self) -> None:
        # In the order in which they came, with the thread, and what is released at the claim's end.
        self._claims: dict[ref[_Claim], tuple[int, Any, Any]] = {}
        # In one step of C: a reference that is not in there yet could not be taken out.
        deque(map(_locks.add, map(ref, (self,), (_locks.discard,))), 0)

    def hold(self) -> Hold:
        """Wait for the lock; return what holds it."""
        hold = _new_hold(Hold)
        if self._claims and self.is_mine():
            hold._claim = None
            return hold
        try:
            mine = self._enqueue(hold)
            while (first := self._first()) is not mine:
                if first is None:
                    continue
                thread, ended, _ = first
                if thread == get_ident():
                    hold._claim = None
                    return hold  # this interrupted a call that waited, and whose turn it is now
                if ended.acquire(timeout=_LOOK_AGAIN_SECONDS):
                    ended.release()  # for the others who wait
            return hold  # in here: an interrupt may come before it too
        except BaseException:
            hold._claim = None  # the traceback keeps this frame
            raise

    def hold_if_free(self) -> Hold | None:
        """Return what holds the lock; None where another thread does: never wait."""
        hold = _new_hold(Hold)
        if self._claims:
            hold._claim = None
            return hold if self.is_mine() else None
        try:
            mine = self._enqueue(hold)
            return hold if self._first() is mine else None
        except BaseException:
            hold._claim = None
            raise

    def is_mine(self) -> bool:
        """Tell whether this thread holds the lock."""
        if not self._claims:
            return False
        first = self._first()
        return first is not None and first[0] == get_ident()

    def is_wanted(self) -> bool:
        """Tell whether this thread holds the lock or waits for it."""
        claims = self._claims
        return bool(claims) and any(thread == get_ident() for thread, *_ in claims.copy().values())

    def _enqueue(self, hold: Hold) -> tuple[int, Any, Any]:
        """Make a hold's claim the last one in the queue; return what the queue has of it.

        The hold alone keeps it: no frame may, since a traceback would keep the frame.
        """
        hold._claim = _Claim()
        ended: Any = _thread.allocate_lock()
        ended.acquire()
        # Callbacks run in the reverse order: first the claim is gone, then those are woken who
        # wait for that. `__exit__` takes any arguments, and releases.
        mine = get_ident(), ended, ref(hold._claim, ended.__exit__)
        # One step for the interpreter: no interrupt finds a claim whose end would take something
        # out of the queue that is not there.
        claims = self._claims
        keys = map(ref, (hold._claim,), (claims.pop,))
        deque(map(claims.__setitem__, keys, (mine,)), 0)
        return mine

    def _first(self) -> tuple[int, Any, Any] | None:
        while True:
            try:
                return next(iter(self._claims.values()), None)
            except RuntimeError:  # another thread came or went between two steps
                continue


#: All that there are.
_locks: Final[set[ref[Lock]]] = set()


def is_any_mine() -> bool:
    """Tell whether this thread holds a lock."""
    return any(lock.is_mine() for each in _locks.copy() if (lock := each()) is not None)


class Unready(InvalidAccess):
    """Something has to be imported or compiled first, and this thread holds a lock.

    Whoever holds it releases it, calls `prepare`, and starts over (`Engine.write`). Where that is
    not the caller, since the call interrupts another one, it cannot be had now.

    Attributes
    ----------
    prepare : callable
    """

    prepare: Callable[[], object]


def outside(prepare: Callable[[], object]) -> None:
    """Call what imports or compiles, if this thread holds no lock.

    Raises
    ------
    Unready
        If it does.
    """
    if is_any_mine():
        raise Unready(
            "what this call needs is not imported yet, and what it interrupts holds a lock",
            prepare=prepare,
        )
    prepare()


def is_imported(name: str) -> bool:
    """Tell whether a module is imported, and no thread is still at it."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def before_import(name: str) -> None:
    """Import a module that few calls need, as `outside` does; nothing to do if it is there."""
    if not is_imported(name):
        outside(partial(import_module, name))
