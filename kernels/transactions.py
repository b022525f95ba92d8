"""Plain kernels on words that threads share: each call is a transaction.

A plain kernel could be interrupted between any two steps, by a thread, by a finalizer, by an
exception from outside, and a plain write is not atomic beside compiled threads. So in the plain
tier a kernel writes to the words themselves never. It is given a `Transaction`: what it writes is
kept there, and when it is through, all of it is put into the words in one step, with what is to be
known of it elsewhere, if nobody has put anything there since it began; else it begins again. So
there is no half-done state for anybody to see, and nobody waits for anybody.

The step is one call in C that releases the GIL nowhere, which is the one lock of the plain tier; in
a Python without one it takes a lock. A word of the state, PLAIN_VERSION, counts the steps. When
kernels are compiled, that word is set to COMPILED in such a step: before it no compiled kernel has
changed these words, after it no plain one does. Where compilation is disabled that never comes.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from itertools import chain, count, repeat
from operator import call, getitem, setitem
from time import sleep
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from weakref import ref

import numpy as np

from jessymem.kernels import _jit, beside
from jessymem.kernels.schema import PLAIN_VERSION

if TYPE_CHECKING:
    from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")

#: PLAIN_VERSION of words that plain kernels change no more. Others below zero are leases.
COMPILED: Final = -1

#: What a kernel may run into where the words that it reads are not of one moment. Anything else is
#: from outside.
_OF_NO_MOMENT: Final = (ArithmeticError, LookupError, TypeError, ValueError)

#: What `PlainState.call` returns where words are COMPILED: nothing was done.
NOT_PLAIN: Final[Any] = object()

_N_FREE_TRIES: Final = 3  # before a call leases the words: a long one would never be through
_LEASE_LOOKS: Final = 50  # before it is taken away from who does not come to an end
_LOOK_SECONDS: Final = 0.001

_versions: Final = count(1)  # none comes twice, so that none is taken for another
_no_gil: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()
_step: Any = threading.RLock() if _no_gil else None


class Outdated(Exception):
    """Others have changed the words since a transaction began."""


class Transaction(dict[int, Any]):
    """Words as a plain kernel sees them: as they are, but for what it has written itself.

    Attributes
    ----------
    shape : tuple of int
    n_words : int
    """

    __slots__ = ("_state", "_version", "_words", "cleared", "n_words", "shape")

    def __init__(self, words: memoryview, state: memoryview, version: int) -> None:
        self.n_words = len(words)
        self.shape = (self.n_words,)
        self.cleared: list[tuple[int, int]] = []
        self._words = words
        self._state = state
        self._version = version

    def __missing__(self, index: Any) -> int:
        """Return a word that was not written here."""
        if self._state[PLAIN_VERSION] != self._version:
            raise Outdated
        word: int = self._words[index]
        return word

    def clear_memory(self, address: Any, n_bytes: Any) -> None:
        """Have memory filled with zeros once what was written is put into the words."""
        self.cleared.append((int(address), int(n_bytes)))

    def steps(self) -> Iterator[Any]:
        """Return what puts all that was written into the words when it is exhausted, in C.

        Raises OverflowError, before anything is done, for what is no word.
        """
        places, values = array("q", self), array("q", self.values())
        put: Any = setitem
        return map(put, repeat(self._words), places, values)


class PlainState:
    """An allocator's state as what Python calls is given it, until its kernels are compiled.

    Parameters
    ----------
    words : ndarray of int64
    argument_of : callable
        Returns what compiled kernels are given for an array of words.
    keep : callable
        Returns what keeps the memory that the words lead to; it is held during each call.
    follow : callable
        Returns what is called with the argument of compiled kernels when those take over, or None.
    """

    __slots__ = (
        "__weakref__",
        "_argument_of",
        "_array",
        "_follow",
        "_keep",
        "_lessee",
        "_words",
        "argument",
    )

    def __init__(
        self,
        words: NDArray[np.int64],
        argument_of: Callable[[NDArray[np.int64]], Any],
        keep: Callable[[], object],
        follow: Callable[[], Callable[[Any], object] | None],
    ) -> None:
        self.argument: Any = None  # of compiled kernels
        self._array = words
        self._argument_of = argument_of
        self._words = memoryview(words)
        self._keep = keep
        self._follow = follow
        self._lessee = 0
        # In one step of C: a reference that is not in there yet could not be taken out.
        deque(map(_states.add, map(ref, (self,), (_states.discard,))), 0)
        if _jit.forms_of(_jit.MEMORY):  # else who makes them finds this among the states
            self.close()

    def __getitem__(self, index: int) -> int:
        """Return a word, for kernels that only look."""
        word: int = self._words[index]
        return word

    def call(
        self,
        kernel: Callable[..., Any],
        *arguments: Any,
        note: Callable[[Any], object] | None = None,
        queue: deque[Any] | None = None,
    ) -> Any:
        """Call a kernel; all that it changes is changed in one step, or nothing.

        Parameters
        ----------
        kernel : callable
            In either form.
        *arguments
            Those after the state. Arrays of 64-bit integers change in the same step.
        note : callable, optional
            Called with the result in that step. Written in C, so that an interrupt comes before all
            of it or after.
        queue : deque, optional
            Its first item is the kernel's first argument, and leaves it in that step.

        Returns
        -------
        int, bool, None or NOT_PLAIN
            What the kernel returns.

        Raises
        ------
        IndexError
            If the queue is empty.
        """
        run = _plain_forms().get((kernel.__module__, kernel.__name__), kernel)
        n_tries = 0
        while True:
            version = self._words[PLAIN_VERSION]
            if version == COMPILED:
                return NOT_PLAIN
            if version < 0:
                self._end_lease(version)
                continue
            is_leased = n_tries >= _N_FREE_TRIES
            if is_leased:
                version = self._lease(version)
                if not version:
                    continue
            n_tries += 1
            kept = self._keep()  # read before the words: they lead to nothing younger
            taken_steps: list[bool] = []  # filled in that step
            try:
                taken = () if queue is None else (queue[0],)
                state = Transaction(self._words, self._words, version)
                others = [self._open(each, version) for each in (*taken, *arguments)]
                result = run(state, *others)
                done = self._put(version, state, others, result, note, queue, taken_steps)
            except Outdated:
                done = False
            except _OF_NO_MOMENT:
                if taken_steps or self._words[PLAIN_VERSION] == version:
                    raise
                done = False  # what led to it was not of one moment
            finally:
                if is_leased:
                    self._move_on(version)
            if done:
                for address, n_bytes in state.cleared:
                    ctypes.memset(address, 0, n_bytes)
                del kept
                n_items = sum(each.n_words for each in others if type(each) is Transaction)
                beside.promote_beside(1 + n_items, _jit.MEMORY)
                return result

    @property
    def is_compiled(self) -> bool:
        """Whether compiled kernels have taken over."""
        return self._words[PLAIN_VERSION] == COMPILED

    def close(self) -> None:
        """Let compiled kernels take over, which are there; may be done twice, by any thread."""
        if self.argument is None:
            self.argument = self._argument_of(self._array)
        while (version := self._words[PLAIN_VERSION]) != COMPILED:
            self._move_on(version, COMPILED)
        follow = self._follow()
        if follow is not None:
            follow(self.argument)

    # -- inside ------------------------------------------------------------------------------------

    def _open(self, argument: Any, version: int) -> Any:
        if not isinstance(argument, np.ndarray):
            return argument
        return Transaction(memoryview(argument), self._words, version)

    def _put(
        self,
        version: int,
        state: Transaction,
        others: list[Any],
        result: Any,
        note: Callable[[Any], object] | None,
        queue: deque[Any] | None,
        taken_steps: list[bool],
    ) -> bool:
        """Put everything in its place if it is of this version; tell whether it was.

        `taken_steps` is filled in the same step.
        """
        state[PLAIN_VERSION] = next(_versions)
        changes = [each.steps() for each in (state, *others) if type(each) is Transaction]
        ends: list[Iterator[Any]] = [map(taken_steps.append, (True,))]
        if note is not None:
            ends.append(map(note, (result,)))
        if queue is not None:
            ends.append(map(call, (queue.popleft,)))
        self._take_step(version, chain(*changes, *ends))
        return bool(taken_steps)

    def _take_step(self, version: int, changes: Iterator[Any]) -> bool:
        """Exhaust `changes` in one step if the words have this version; tell whether they had."""
        # Raises ValueError before the first change. Nothing in here makes an object that the
        # collector counts, so it runs no finalizer half-way.
        check = map((version,).index, map(getitem, (self._words,), (PLAIN_VERSION,)))
        every: Any = chain(check, changes)
        with suppress(ValueError):
            if _step is None:
                deque(every, 0)
            else:
                with _step:
                    deque(every, 0)
            return True
        return False

    def _move_on(self, version: int, to: int | None = None) -> bool:
        """Give the words another version, if they have this one; tell whether they had."""
        new = next(_versions) if to is None else to
        put: Any = setitem
        return self._take_step(version, map(put, (self._words,), (PLAIN_VERSION,), (new,)))

    def _lease(self, version: int) -> int:
        """Keep others from changing the words for a while; return the version for that, or 0."""
        self._lessee = threading.get_ident()
        lease = COMPILED - next(_versions)
        return lease if self._move_on(version, lease) else 0

    def _end_lease(self, version: int) -> None:
        """Wait until a lease is over, or end it: it keeps nobody from anything for good."""
        for _ in range(_LEASE_LOOKS):
            if self._words[PLAIN_VERSION] != version:
                return
            if self._lessee == threading.get_ident():  # which this interrupts
                break
            sleep(_LOOK_SECONDS)
        self._move_on(version)


#: Those that there are.
_states: Final[set[ref[PlainState]]] = set()


@_jit.on_switch(_jit.MEMORY)
def _close_all() -> None:
    """Let compiled kernels take over everywhere, before any of them can be called."""
    for each in _states.copy():
        state = each()
        if state is not None:
            state.close()


def outdate(words: NDArray[np.int64]) -> None:
    """Let transactions on words begin again that were changed beside them: in a forked child."""
    if words[PLAIN_VERSION] != COMPILED:
        words[PLAIN_VERSION] = next(_versions)


def entry(kernel: Callable[P, R]) -> Callable[P, R]:
    """Mark a kernel that Python calls: with a `PlainState` it is a transaction.

    The words of a state are its first argument.
    """

    @wraps(kernel)
    def enter(state: Any, *arguments: Any) -> Any:
        if type(state) is PlainState:
            result = state.call(kernel, *arguments)
            if result is not NOT_PLAIN:
                return result
            state = state.argument
        # A name that was looked up before kernels were compiled, and is called after that.
        return _jit.forms_of(_jit.MEMORY).get(kernel, kernel)(state, *arguments)

    plain: Any = enter
    entries.append(plain)
    return plain


#: What Python calls, in its plain form.
entries: Final[list[Callable[..., Any]]] = []


def _plain_forms() -> dict[tuple[str, str], Callable[..., Any]]:
    """Return every kernel of the allocator as plain Python that calls nothing else, ever."""
    if not _plain:
        copies = _jit.copies_of(_jit.MEMORY)
        _plain.update({(each.__module__, each.__name__): copies[each] for each in copies})
    return _plain


_plain: Final[dict[tuple[str, str], Callable[..., Any]]] = {}
