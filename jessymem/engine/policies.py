"""Which dimension goes first when memory runs short: three policies behind one small interface.

Readers tell of an access with one store and no lock, ``mark[0] = next(gate)``: the *mark* belongs
to the dimension, the *gate* to the thread, and the policy supplies both. So a reader pays for what
its policy wants to know and no more: 5 ns for the fact of an access, 15 for its order in time, 40
for a count, beside the 180 of a read. `docs/eviction.md` tells what that buys.

Everything but gates and marks is called under one lock. A mark that two threads write at once may
lose one of the accesses; one that a reader of an older state still writes is nobody's any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, islice, repeat
from typing import Any, ClassVar, Final, Protocol, SupportsIndex


class Mark(Protocol):
    """What a dimension's readers write to, always at index 0."""

    def __setitem__(self, at: SupportsIndex, value: Any, /) -> None:
        """Take note of an access."""

    def __getitem__(self, at: SupportsIndex, /) -> Any:
        """Return what is known of the accesses; the less, the colder."""


class Policy(ABC):
    """Knows the dimensions that may have to go, and which of them is the coldest.

    Attributes
    ----------
    name : str
        As in `MemoryConfig.eviction_policy`.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self._marks: dict[int, Mark] = {}  # in the order of admission

    @abstractmethod
    def gate(self, n: int) -> Iterator[Any]:
        """Return what a thread's next `n` reads write to marks."""

    @abstractmethod
    def touch(self, dimension: int, n_reads: int = 1) -> None:
        """Note accesses by other ways than a gate; of an unknown dimension, nothing."""

    def admit(self, dimension: int) -> Mark:
        """Take in a dimension that was loaded, and return its mark.

        The load counts as one access, and so does admitting what is admitted already: that keeps
        its position and its mark. The access that made a load necessary is this one; it is not to
        be noted again.
        """
        if dimension in self._marks:
            self.touch(dimension)
        else:
            self._marks[dimension] = self._first_mark(dimension)
        return self._marks[dimension]

    def mark_of(self, dimension: int) -> Mark:
        """Return the mark of an admitted dimension, or raise KeyError."""
        return self._marks[dimension]

    def forget(self, dimension: int) -> None:
        """Drop a dimension that was unloaded or evicted; an unknown one is ignored."""
        self._marks.pop(dimension, None)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the admitted dimensions, the first admitted first."""
        return iter(self._marks)

    @abstractmethod
    def choose(self, may_go: Callable[[int], bool]) -> int | None:
        """Return the coldest of the admitted dimensions that may go; it stays admitted.

        Of equally cold ones, the one that was admitted first. None: none may. Only those are asked
        for that are colder than what is chosen, or were when they were looked at last: how many are
        admitted makes no difference.
        """

    def is_cold(self, dimension: int) -> bool:
        """Tell whether a dimension would be among the first to go, as far as that is known."""
        return False

    @abstractmethod
    def _first_mark(self, dimension: int) -> Mark: ...


class _Ordered(Policy):
    """The one with the least mark, by a heap of what marks were when they were looked at last.

    A mark only grows, so what is first in the heap is the coldest if its mark is what it was;
    otherwise it goes back with what the mark is now. Who was read pays for that, once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[Any, int, int]] = []  # mark, order of admission, dimension
        self._orders: dict[int, int] = {}
        self._next_order = count()

    def admit(self, dimension: int) -> Mark:
        """Take in a dimension; see `Policy.admit`."""
        if dimension in self._marks:
            self.touch(dimension)
            return self._marks[dimension]
        mark, order = self._first_mark(dimension), next(self._next_order)
        # In this order an interrupt leaves a dimension that is not admitted.
        self._orders[dimension] = order
        heappush(self._heap, (mark[0], order, dimension))
        self._marks[dimension] = mark
        if len(self._heap) > 2 * len(self._marks) + _N_GONE:  # of those that are forgotten
            self._order_again()
        return mark

    def choose(self, may_go: Callable[[int], bool]) -> int | None:
        """Return the coldest that may go; see `Policy.choose`."""
        heap = self._heap
        passed: list[tuple[Any, int, int]] = []
        n_patient = 2 * len(heap)  # readers that go on reading are not waited for
        try:
            while heap:
                first = heap[0]
                seen, order, dimension = first
                if dimension not in self._marks or self._orders[dimension] != order:
                    heappop(heap)
                    continue
                mark = self._marks[dimension][0]
                n_patient -= 1
                if mark > seen and n_patient > 0:
                    heapreplace(heap, (mark, order, dimension))
                    continue
                if may_go(dimension):
                    return dimension
                passed.append(first)  # before it goes: an interrupt must not lose it
                heappop(heap)
            return None
        finally:
            for each in passed:
                heappush(heap, each)

    def is_cold(self, dimension: int) -> bool:
        """Tell whether at most half of the others have lesser marks, and some have greater ones."""
        mark = self._marks.get(dimension)
        if mark is None:
            return False
        own, marks = mark[0], [each[0] for each in list(self._marks.values())]
        n_colder = sum(bool(each < own) for each in marks)
        return 2 * n_colder <= len(marks) - 1 and any(each > own for each in marks)

    def _order_again(self) -> None:
        heap = [(mark[0], self._orders[each], each) for each, mark in self._marks.items()]
        heapify(heap)
        self._orders = {each: order for _, order, each in heap}
        self._heap = heap


class Lru(_Ordered):
    """The one whose latest access lies furthest back.

    Gates yield ticks of one clock that all threads share. Least recently used, as in Mattson and
    others, "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970.
    """

    name = "lru"

    def __init__(self) -> None:
        super().__init__()
        self._ticks = count()

    def gate(self, n: int) -> Iterator[int]:
        """Return the next `n` ticks, as they come between those of other threads."""
        return islice(self._ticks, n)

    def touch(self, dimension: int, n_reads: int = 1) -> None:
        """Note the time; many reads at once are one."""
        if dimension in self._marks:
            self._marks[dimension][0] = next(self._ticks)

    def _first_mark(self, dimension: int) -> Mark:
        return [next(self._ticks)]


class _Count:
    """A mark that adds up what is written to it."""

    __slots__ = ("_n",)

    def __init__(self, n: int) -> None:
        self._n = n

    def __setitem__(self, at: SupportsIndex, n: int, /) -> None:
        self._n += n

    def __getitem__(self, at: SupportsIndex, /) -> int:
        return self._n


class Lfu(_Ordered):
    """The one with the fewest accesses, of which older ones weigh less.

    Counts survive an eviction: "perfect" least frequently used, as against "in-cache", in the terms
    of Breslau, Cao, Fan, Phillips and Shenker, "Web caching and Zipf-like distributions", INFOCOM
    1999. Whenever as many dimensions were loaded as are there, all counts are halved, after the
    reset of Einziger, Friedman and Manes, "TinyLFU: a highly efficient cache admission policy", ACM
    Transactions on Storage 13(4), 2017; else what was in fashion once would never go.
    """

    name = "lfu"

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, int] = {}  # of those that are not admitted now, if not 0
        self._n_loads = 0  # since counts were halved

    def gate(self, n: int) -> Iterator[int]:
        """Return `n` ones."""
        return repeat(1, n)

    def touch(self, dimension: int, n_reads: int = 1) -> None:
        """Count the reads."""
        if dimension in self._marks:
            self._marks[dimension][0] = n_reads

    def forget(self, dimension: int) -> None:
        """Drop a dimension, but not its count."""
        mark = self._marks.pop(dimension, None)
        if mark is not None and mark[0]:
            self._counts[dimension] = mark[0]

    def _first_mark(self, dimension: int) -> Mark:
        self._n_loads += 1
        if self._n_loads > len(self._marks):
            self._halve_counts()
            self._n_loads = 0
        return _Count(self._counts.pop(dimension, 0) + 1)

    def _halve_counts(self) -> None:
        for mark in self._marks.values():
            mark[0] = mark[0] // 2 - mark[0]  # which is added
        self._counts = {each: n // 2 for each, n in self._counts.items() if n > 1}
        self._order_again()


class Sieve(Policy):
    """The first, from where the search last ended, that nobody has visited since it passed.

    SIEVE of Zhang, Yang, Yue, Vigfusson and Rashmi, "SIEVE is simpler than LRU: an efficient
    turn-key eviction algorithm for web caches", NSDI 2024. Dimensions are in a queue in the order
    of their admission. A hand moves from the oldest towards the newest and starts over at the end;
    it clears the visited marks that it passes, chooses the first dimension without one, and stays
    there. What is no candidate is passed over with its mark as it is.
    """

    name = "sieve"

    def __init__(self) -> None:
        super().__init__()
        # The queue, cut in two where the hand is, which points at the first of those ahead. Only an
        # empty queue has nothing ahead: what is admitted last always lies behind the rest.
        self._passed: OrderedDict[int, None] = OrderedDict()
        self._ahead: OrderedDict[int, None] = OrderedDict()
        self._was_passed: set[int] = set()

    def gate(self, n: int) -> Iterator[bool]:
        """Return True `n` times."""
        return repeat(True, n)

    def touch(self, dimension: int, n_reads: int = 1) -> None:
        """Note the visit."""
        if dimension in self._marks:
            self._marks[dimension][0] = True

    def forget(self, dimension: int) -> None:
        """Drop a dimension; if the hand points at it, it moves on."""
        super().forget(dimension)
        self._was_passed.discard(dimension)
        self._passed.pop(dimension, None)
        self._ahead.pop(dimension, None)
        self._start_over_at_the_end()

    def choose(self, may_go: Callable[[int], bool]) -> int | None:
        """Move the hand to the first without a visit that may go; see `Policy.choose`."""
        # One round clears every mark, the next finds a dimension; readers that set marks again
        # meanwhile are not waited for.
        n_patient = 2 * len(self._marks)
        n_passed = 0  # in a row that may not go
        while n_passed < len(self._marks):
            dimension = next(iter(self._ahead))
            if may_go(dimension):
                mark = self._marks[dimension]
                if n_patient <= 0 or not mark[0]:
                    return dimension
                mark[0] = False
                self._was_passed.add(dimension)
                n_passed = 0
            else:
                n_passed += 1
            n_patient -= 1
            self._passed[dimension] = None  # first: an interrupt must not lose it
            del self._ahead[dimension]
            self._start_over_at_the_end()
        return None

    def is_cold(self, dimension: int) -> bool:
        """Tell whether the hand has passed it, and nobody has visited it since."""
        mark = self._marks.get(dimension)
        return mark is not None and dimension in self._was_passed and not mark[0]

    def _first_mark(self, dimension: int) -> Mark:
        self._ahead[dimension] = None
        return [False]

    def _start_over_at_the_end(self) -> None:
        if not self._ahead:
            self._passed, self._ahead = self._ahead, self._passed


#: So many that are forgotten may be in a heap beside as many as are admitted.
_N_GONE: Final = 64

_POLICIES: Final = {policy.name: policy for policy in (Lru, Lfu, Sieve)}


def make_policy(name: str) -> Policy:
    """Return a policy that knows no dimension yet, by its name in `config.EVICTION_POLICIES`."""
    return _POLICIES[name]()
