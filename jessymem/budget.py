"""The one budget: what is charged, to which class, and what still waits for its last view.

Counts whole pages. Each file of a region is charged before it is mapped, and so are tables that are
made for it. It is retired when it is unloaded, and its `Charge` ends with the last view on it;
until then it is *waiting* and counts. Where blocks are
allocated too, both are counted in the same words (`jessymem.kernels.budget`), which compiled code
changes without a lock.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from jessymem import osmem
from jessymem.config import CORE_HEADROOM_MB, GROWN_MB, MIB, USER_MB, part_of
from jessymem.errors import LimitExceeded
from jessymem.ids import DimensionId
from jessymem.kernels import schema as s
from jessymem.locks import Hold, Lock
from jessymem.logger import logger
from jessymem.named_tuples import NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.stats import ClassUsage

CLASSES: Final = ("core_slots", "core_headroom", "grown", "user")


def class_of(dimension: int) -> str:
    """Return the class that counts a dimension's regions, a core one's up to its slot."""
    if dimension <= s.N_CORE_DIMENSIONS:
        return "core_slots"
    return "grown" if dimension < s.FIRST_USER_DIMENSION else "user"


class Charge:
    """What one file, or one table, costs: it counts for as long as this lives; its memory holds it.

    Attributes
    ----------
    id : int
    dimension : DimensionId
    n_bytes : int
        In whole pages.
    beside : int
        Of the same region's slot, what others take.
    """

    __slots__ = ("__weakref__", "beside", "dimension", "id", "n_bytes")

    def __init__(self, charge_id: int, dimension: DimensionId, n_bytes: int, beside: int) -> None:
        self.id = charge_id
        self.dimension = dimension
        self.n_bytes = n_bytes
        self.beside = beside


class _Entry(ref[Charge]):
    """A charge in the books, and what is known of it when it has ended."""

    charge_id: int = 0  # that of none
    dimension: DimensionId
    n_bytes: int = 0
    beside: int = 0
    reconcile: ref[Charge]  # calls so at the charge's end


class Bounds:
    """What a budget bounds; immutable, so that it changes as a whole.

    Parameters
    ----------
    limit_bytes : int
    capacities : dict of DimensionId to int
        The core slots, in bytes.

    Attributes
    ----------
    classes : dict of str to int
        What each class may take by itself, in bytes.
    """

    def __init__(self, limit_bytes: int, capacities: dict[DimensionId, int]) -> None:
        self.limit_bytes = limit_bytes
        self.capacities = capacities
        total_mb = limit_bytes // MIB
        self.classes = {
            "core_slots": sum(capacities.values()),
            "core_headroom": part_of(total_mb, CORE_HEADROOM_MB) * MIB,
            "grown": part_of(total_mb, GROWN_MB) * MIB,
            "user": part_of(total_mb, USER_MB) * MIB,
        }

    def headroom_of(self, charge: Charge | _Entry) -> int:
        """Return the bytes that a charge takes beyond its core slot."""
        if charge.dimension > s.N_CORE_DIMENSIONS:
            return 0
        left = max(self.capacities[charge.dimension] - charge.beside, 0)
        return max(charge.n_bytes - left, 0)


def _priced(charge_id: int, dimension: DimensionId, n_bytes: int, beside: int = 0) -> Charge:
    return Charge(charge_id, dimension, osmem.round_to_pages(n_bytes), beside)


class Usage(NamedTuple):
    """A budget's numbers of one moment, in bytes."""

    limit: int
    total: int
    peak: int
    waiting: dict[int, int]  # per charge id: retired, still viewed
    per_class: dict[str, ClassUsage]

    @property
    def n_region_bytes(self) -> int:
        """What regions are charged."""
        return sum(each.allocated_bytes for each in self.per_class.values())


class Budget:
    """Counts bytes against a limit, exactly and under any number of threads.

    Parameters
    ----------
    limit_bytes : int
    capacities : dict of DimensionId to int
        The core slots, in bytes.

    Attributes
    ----------
    lock : Lock
        Held while something other than a single count changes. Never wait for another lock, nor
        for a log handler, while holding it.
    trim : callable
        Returns a function that returns pages of freed blocks to the system, or None; called under
        the lock.
    is_below_other_lock : callable
        Tells whether the calling thread holds another lock, below which it may take this one.
    on_fall : callable
        Called, under the lock, with the bytes in use after a region's charge was released.
    argument : PlainState, Words or None
        An allocator's words as its kernels are given them; see `PoolTable`.
    """

    def __init__(self, limit_bytes: int, capacities: dict[DimensionId, int]) -> None:
        self._bounds = Bounds(limit_bytes, capacities)
        self.trim: Callable[[], Callable[[], object] | None] = lambda: None
        self.count_waiting: Callable[[], Callable[[], int] | None] = lambda: None  # blocks
        self.on_fall: Callable[[int], object] = lambda used: None
        self.is_below_other_lock: Callable[[], bool] = lambda: False
        self.lock = Lock()
        # The one truth about regions are the charges that live. Sums of them, and the shared words,
        # are brought in line with it by whoever takes the lock: no interrupt leaves them apart.
        self._entries: dict[int, _Entry] = {}  # by charge id
        self._ended: deque[_Entry] = deque()  # filled by callbacks that nothing can interrupt
        self._used = dict.fromkeys(CLASSES, 0)
        self._is_added_up = True
        self._waiting: set[int] = set()  # charge ids
        self._peak = 0
        self._postponed: deque[Callable[[], object]] = deque()
        self._words: NDArray[Any] | None = None
        self._kernels: Any = None  # `jessymem.kernels.budget`, where there are words
        self.argument: Any = None

    @property
    def limit_bytes(self) -> int:
        """What all that is charged may fill."""
        return self._bounds.limit_bytes

    def attach(self, words: NDArray[Any], argument: Any) -> None:
        """Go on counting in an allocator's `words`, which kernels are given as `argument`."""
        from jessymem.kernels import budget  # a reader that allocates nothing needs no kernels

        self._kernels = budget
        with self.changing():
            total = sum(self._used.values())
            words[s.USED] = words[s.RESIDENT] = words[s.OF_REGIONS] = total
            words[s.PEAK] = max(self._peak, total)
            _set_limit(words, self.limit_bytes)
            self._words, self.argument = words, argument

    def reserve(
        self, charge_id: int, dimension: DimensionId, n_bytes: int, beside: int = 0
    ) -> Charge:
        """Charge `n_bytes` of a region, for as long as what is returned lives.

        Parameters
        ----------
        beside : int
            What the same region is charged already, in bytes: its slot is taken by so much.

        Raises
        ------
        LimitExceeded
            If it does not fit the limit, or a core file neither its slot nor what is left of the
            headroom. Nothing is charged then.
        """
        charge = _priced(charge_id, dimension, n_bytes, beside)
        with self.changing():
            in_headroom = self._used["core_headroom"]
            bounds, n_headroom = self._bounds, self._bounds.headroom_of(charge)
            headroom = bounds.classes["core_headroom"]
            if in_headroom + n_headroom > headroom:
                slot = bounds.capacities[dimension]
                raise LimitExceeded(
                    f"{dimension}: {beside + n_bytes:,} bytes pass its slot of {slot:,} by "
                    f"{n_headroom:,}; of {headroom:,} bytes of core headroom "
                    f"{in_headroom:,} are taken",
                    bound="core_headroom",
                    current=self.total,
                    limit=headroom,
                    requested=n_headroom,
                    waiting=self._all_waiting(),
                    in_headroom=in_headroom,
                )
            if not self._fits(charge.n_bytes):
                total, waiting = self.total, self._all_waiting()
                raise LimitExceeded(
                    f"{dimension}: {charge.n_bytes:,} bytes do not fit: {total:,} of "
                    f"{self.limit_bytes:,} are in use, {waiting:,} of them waiting for views to be "
                    "dropped",
                    bound="budget",
                    current=total,
                    limit=self.limit_bytes,
                    requested=charge.n_bytes,
                    waiting=waiting,
                )
            self._enter(charge)
        return charge

    def check_possible(
        self, dimension: DimensionId, n_bytes: int, bounds: Bounds | None = None
    ) -> None:
        """Raise LimitExceeded for a region that could not be loaded if nothing else were."""
        bounds = bounds or self._bounds
        n_headroom = bounds.headroom_of(charge := _priced(0, dimension, n_bytes))
        headroom = bounds.classes["core_headroom"]
        in_headroom = {"in_headroom": self._used["core_headroom"]}
        for bound, needed, limit, more in (
            ("core_headroom", n_headroom, headroom, in_headroom),
            ("budget", charge.n_bytes, bounds.limit_bytes, {}),
        ):
            if needed > limit:
                raise LimitExceeded(
                    f"{dimension}: {n_bytes:,} bytes could never be loaded: they need "
                    f"{needed:,} bytes of the {bound.replace('_', ' ')}, which is {limit:,}",
                    bound=bound,
                    current=self.total,
                    limit=limit,
                    requested=needed,
                    waiting=self.waiting_bytes,
                    **more,
                )

    def resize(self, bounds: Bounds) -> None:
        """Change the bounds, if what is charged fits them; under the lock.

        From then on nothing that is charged passes the limit, whatever other threads have begun.

        Raises
        ------
        LimitExceeded
            If it does not fit. Nothing has changed then.
        """
        limit_bytes = bounds.limit_bytes
        n_headroom = sum(map(bounds.headroom_of, self._live()))
        headroom = bounds.classes["core_headroom"]
        if n_headroom > headroom:
            raise LimitExceeded(
                f"the budget cannot be {limit_bytes:,} bytes: of its {headroom:,} bytes of core "
                f"headroom {n_headroom:,} would be taken",
                bound="core_headroom",
                current=self.total,
                limit=headroom,
                requested=0,
                waiting=self._all_waiting(),
                in_headroom=n_headroom,
            )
        try:
            # The larger of both limits is the one that holds, wherever an interrupt strikes.
            if limit_bytes > self.limit_bytes:
                self._set_bounds(bounds)
            is_done = self._hold_back(limit_bytes)
            if is_done:
                self._set_bounds(bounds)
        except BaseException:
            self._hold_back(self.limit_bytes)
            raise
        if not is_done:
            total, waiting = self.total, self._all_waiting()
            raise LimitExceeded(
                f"the budget cannot be {limit_bytes:,} bytes: {total:,} are in use, {waiting:,} "
                "of them waiting for views to be dropped",
                bound="budget",
                current=total,
                limit=limit_bytes,
                requested=0,
                waiting=waiting,
            )

    def retire(self, charge_ids: Iterable[int]) -> None:
        """Note what is only waiting for its last view; nothing to do where that is gone."""
        with self.changing():
            self._waiting.update(charge_ids)

    def reclaim(self, charge_ids: Iterable[int]) -> None:
        """Note that what was waiting is loaded again."""
        with self.changing():
            self._waiting.difference_update(charge_ids)

    def is_charged(self, charge_ids: Iterable[int]) -> bool:
        """Tell whether any of it counts: it is loaded, or still viewed."""
        entries = map(self._entries.get, charge_ids)
        return any(entry is not None and entry() is not None for entry in entries)

    def reconcile(self) -> None:
        """Bring sums and words in line with the charges, now or by whoever is changing them."""
        # A finalizer may have interrupted this thread half-way: it does it when it goes on.
        if self._ended and not self.lock.is_mine():
            with self.changing_if_idle():
                pass  # which does it

    @property
    def total(self) -> int:
        """All bytes that are charged, regions and blocks."""
        self.reconcile()
        if self._words is not None:
            return self._used_in(self._words)
        if self._is_added_up and not self._ended:
            return sum(self._used.values())
        return sum(entry.n_bytes for entry in self._live())  # somebody is in the middle of it

    @property
    def waiting_bytes(self) -> int:
        """Bytes of regions that are retired and still viewed."""
        return sum(self._waiting_now().values())

    def usage(self) -> Usage:
        """Return what is charged, all of one moment."""
        from jessymem.stats import ClassUsage

        with self.changing():
            used, bounds = self._used.copy(), self._bounds
            limit = bounds.limit_bytes
            per_class = {
                name: ClassUsage(used[name], min(bounds.classes[name], limit)) for name in CLASSES
            }
            waiting = self._waiting_now()
            if self._words is None:
                return Usage(limit, sum(used.values()), self._peak, waiting, per_class)
            total = self._used_in(self._words)
            # A thread that has just charged raises the peak one step later.
            return Usage(limit, total, max(self._peak_in(self._words), total), waiting, per_class)

    def changing(self) -> Changing:
        """Hold the lock, all in line before; what is released meanwhile follows after.

        Entered, it says whether this thread was at it already: a signal handler or finalizer
        interrupted it.
        """
        return Changing(self)

    def changing_if_idle(self) -> Changing:
        """As `changing`, but never wait: says whether nobody, nor this thread, was at it."""
        return Changing(self, waits=False)

    def postpone(self, action: Callable[[], object]) -> None:
        """Call `action` when this thread has released the lock, which it holds.

        For what must not happen under the lock, in a call that interrupted its holder.
        """
        self._postponed.append(action)

    def must_wait(self) -> bool:
        """Tell whether this thread holds a lock under which nothing foreign may be called."""
        return self.lock.is_mine() or self.is_below_other_lock()

    @property
    def has_postponed(self) -> bool:
        """Whether anything was."""
        return bool(self._postponed)

    def do_postponed(self) -> None:
        """Call what was postponed by now, if this thread does not hold the lock."""
        for _ in range(len(self._postponed)):  # what has to wait for longer comes back
            if self.must_wait():
                return
            try:
                action = self._postponed.popleft()
            except IndexError:  # another thread was quicker
                return
            action()

    def after_fork(self, live: set[int]) -> None:
        """Start over in a forked child: `live` charges are of what is loaded, retired ones wait.

        A thread of the parent may have held the lock, or been half-way through a load. The words,
        where there are any, are made good by the allocator, which recounts its blocks.
        """
        self.lock = Lock()
        self._postponed.clear()  # the parent does it
        self._waiting -= live  # a thread of the parent was about to unload them
        gone = self._entries.keys() - live - self._waiting
        self._entries = {each: self._entries[each] for each in self._entries.keys() - gone}
        self._is_added_up = False
        self._add_up()

    def recount(self, n_block_bytes: int, n_retained_bytes: int) -> None:
        """Set the words right where nobody else runs: after a fork, in the child."""
        words = self._words
        if words is not None:
            words[s.LIMIT] = max(int(words[s.LIMIT]), self.limit_bytes)  # it was just being resized
            words[s.HELD_BACK] = words[s.LIMIT] - self.limit_bytes
            words[s.OF_REGIONS] = sum(self._used.values()) + words[s.HELD_BACK]
            words[s.USED] = words[s.OF_REGIONS] + n_block_bytes
            words[s.RESIDENT] = words[s.USED] + n_retained_bytes

    # -- inside ------------------------------------------------------------------------------------

    def _enter(self, charge: Charge) -> None:
        """Write a charge into the books; under the lock."""
        budget_of = ref(self)

        def reconcile(_: object, is_over: Callable[[], bool] = sys.is_finalizing) -> None:
            budget = budget_of()
            if budget is not None and not is_over():  # then modules may be gone already
                budget.reconcile()

        then = ref(charge, reconcile)
        # Made last, so called first.
        entry = _Entry(charge, self._ended.append)
        entry.reconcile = then
        entry.charge_id, entry.dimension = charge.id, charge.dimension
        entry.n_bytes, entry.beside = charge.n_bytes, charge.beside
        self._is_added_up = False
        self._entries[charge.id] = entry
        self._add(entry, 1)
        self._is_added_up = True

    def _add(self, entry: _Entry, sign: int) -> None:
        n_headroom = self._bounds.headroom_of(entry)
        self._used["core_headroom"] += sign * n_headroom
        self._used[class_of(entry.dimension)] += sign * (entry.n_bytes - n_headroom)

    def _take_out_ended(self) -> None:
        """Take out of the books what has ended, and bring the words in line; under the lock."""
        if not self._is_added_up:  # by an interrupt
            self._add_up()
        while self._ended:
            self._is_added_up = False
            entry = self._ended.popleft()
            if self._entries.get(entry.charge_id) is entry:
                del self._entries[entry.charge_id]
                self._add(entry, -1)
            self._is_added_up = True
        if self._words is not None:
            of_regions = int(self._words[s.OF_REGIONS] - self._words[s.HELD_BACK])
            excess = of_regions - sum(self._used.values())
            if excess > 0:
                self._kernels.discharge(self.argument, excess)
                self.on_fall(self._used_in(self._words))

    def _add_up(self) -> None:
        """Make the sums anew."""
        self._ended.clear()  # who ends from here on is told of again
        self._entries = {entry.charge_id: entry for entry in self._live()}
        self._used = dict.fromkeys(CLASSES, 0)
        for entry in self._entries.values():
            self._add(entry, 1)
        self._is_added_up = True

    def _live(self) -> list[_Entry]:
        return [entry for entry in list(self._entries.values()) if entry() is not None]

    def _fits(self, n_bytes: int) -> bool:
        """Count `n_bytes` more, if they fit."""
        if self._words is None:
            total = sum(self._used.values()) + n_bytes
            if total > self.limit_bytes:
                return False
            self._peak = max(self._peak, total)
            return True
        return self._is_done(lambda: self._kernels.charge(self.argument, n_bytes, s.LIMIT))

    def _is_done(self, charge: Callable[[], int]) -> bool:
        """Charge the words, with what trimming frees if need be; tell whether that was done."""
        code = charge()
        if code == s.RETAINED and (trim := self.trim()) is not None:
            trim()
            code = charge()
        return bool(code == s.OK)

    def _set_bounds(self, bounds: Bounds) -> None:
        self._is_added_up = False
        self._bounds = bounds
        self._add_up()

    def _hold_back(self, limit_bytes: int) -> bool:
        """Let nobody charge beyond a limit, if what is charged fits it; tell whether it does."""
        words = self._words
        if words is None:
            return sum(self._used.values()) <= limit_bytes
        self._peak = self._peak_in(words)
        change = max(int(words[s.LIMIT]) - limit_bytes, 0) - int(words[s.HELD_BACK])
        if change > 0:
            return self._is_done(lambda: self._kernels.hold_back(self.argument, change))
        if change < 0:
            self._kernels.give_back(self.argument, -change)
        if limit_bytes > words[s.LIMIT]:
            _set_limit(words, limit_bytes)
        return True

    def _used_in(self, words: NDArray[Any]) -> int:
        """Return what is charged to all but who holds back, of one moment without a lock."""
        while True:
            held = int(words[s.HELD_BACK])
            used = int(words[s.USED])
            if held == words[s.HELD_BACK]:  # both change in one call
                return used - held

    def _peak_in(self, words: NDArray[Any]) -> int:
        """Return the highest use so far; under the lock."""
        return max(self._peak, int(words[s.PEAK] - words[s.HELD_BACK]))

    def _all_waiting(self) -> int:
        """Return the bytes that only wait for views, of regions and of blocks; under the lock."""
        count_blocks = self.count_waiting()
        return self.waiting_bytes + (count_blocks() if count_blocks is not None else 0)

    def _waiting_now(self) -> dict[int, int]:
        """Return the bytes of what is retired and still counts, by charge id."""
        found = {}
        for charge_id in self._waiting.copy():
            entry = self._entries.get(charge_id)
            if entry is None or entry() is None:
                self._waiting.discard(charge_id)
            else:
                found[charge_id] = entry.n_bytes
        return found


def _set_limit(words: NDArray[Any], limit_bytes: int) -> None:
    words[s.RESIDENT_LIMIT] = limit_bytes if osmem.CAN_RETURN_PAGES else s.REQUEST_BYTES_LIMIT
    words[s.LIMIT] = limit_bytes


class Changing:
    """Holds a budget's lock; see `Budget.changing`."""

    __slots__ = ("_budget", "_hold", "_waits")

    def __init__(self, budget: Budget, *, waits: bool = True) -> None:
        self._budget = budget
        self._waits = waits
        self._hold: Hold | None = None

    def __enter__(self) -> bool:
        """Take the lock, if it is to be had."""
        lock = self._budget.lock
        try:
            was_mine = lock.is_mine()
            if not self._waits:
                self._hold = None if was_mine else lock.hold_if_free()
                is_idle = self._hold is not None
                if is_idle:
                    self._budget._take_out_ended()
                return is_idle
            self._hold = lock.hold()
            if not was_mine:
                self._budget._take_out_ended()
            return was_mine
        except BaseException:
            self._hold = None  # the traceback keeps this frame
            raise

    def __exit__(self, *exception: object) -> None:
        """Release it."""
        was_held = self._hold is not None
        self._hold = None
        budget = self._budget
        if was_held and budget._ended:
            budget.reconcile()
        try:
            if was_held:
                logger.write_waiting(failing=exception[1])
        finally:
            if was_held and budget._postponed:
                budget.do_postponed()
