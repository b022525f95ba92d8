"""The one budget: what is charged, to which class, and what still waits for its last view.

Counts whole pages. A region is charged before it is mapped, retired when it is unloaded, and
released when the last view on it is gone; until then it is *waiting* and counts. Where blocks are
allocated too, both are counted in the same words (`jessymem.kernels.budget`), which compiled code
changes without a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jessymem import osmem
from jessymem.config import CORE_HEADROOM_MB, GROWN_MB, MIB, USER_MB
from jessymem.errors import LimitExceeded
from jessymem.ids import DimensionId
from jessymem.kernels import _jit, atomics, budget, memory
from jessymem.kernels import schema as s

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.stats import ClassUsage

CLASSES: Final = ("core_slots", "core_headroom", "grown", "user")


class Charge(NamedTuple):
    """What one region costs, in bytes of whole pages."""

    n_bytes: int
    n_headroom: int  # of these, beyond the core slot
    kind: str  # the class of the rest


class Usage(NamedTuple):
    """A budget's numbers of one moment, in bytes."""

    total: int
    peak: int
    waiting: dict[int, int]  # per region id: retired, still viewed
    per_class: dict[str, ClassUsage]


class Budget:
    """Counts bytes against a limit, exactly and under any number of threads.

    Parameters
    ----------
    limit_bytes : int
    capacities : dict of DimensionId to int
        The core slots, in bytes.

    Attributes
    ----------
    lock : threading.RLock
        Held while something other than a single count changes. Never wait for another lock, nor
        for a log handler, while holding it.
    make_room : callable
        Called, under the lock, with how many bytes of freed pages should go back to the system.
    on_fall : callable
        Called, under the lock, with the bytes in use after a region's charge went back.
    """

    def __init__(self, limit_bytes: int, capacities: dict[DimensionId, int]) -> None:
        self.limit_bytes = limit_bytes
        self.make_room: Callable[[int], object] = lambda n_bytes: None
        self.on_fall: Callable[[int], object] = lambda used: None
        self._capacities = capacities
        self._class_limits = {
            "core_slots": sum(capacities.values()),
            "core_headroom": CORE_HEADROOM_MB * MIB,
            "grown": GROWN_MB * MIB,
            "user": USER_MB * MIB,
        }
        # Re-entrant: a finalizer or signal handler of the user's may ask in a thread that holds it.
        self.lock = threading.RLock()
        # The one truth about regions: sums are made from it when asked for, and the shared words
        # are brought in line with it, so no interrupt leaves them apart for long.
        self._charges: dict[int, Charge] = {}
        self._waiting: set[int] = set()
        self._peak = 0
        self._words: NDArray[Any] | None = None
        self._argument: memory.Words = None
        self._is_changing = False
        self._is_apart = False  # a charge is gone that the words still count

    def attach(self, words: NDArray[Any]) -> None:
        """Go on counting in an allocator's `words`; kernels that change them are compiled first.

        Raises
        ------
        Exception
            What keeps numba from compiling; nothing is changed then.
        """
        _jit.promote(_jit.MEMORY)
        with self.changing():
            total = self._total()
            words[s.USED] = words[s.RESIDENT] = words[s.OF_REGIONS] = total
            words[s.PEAK] = max(self._peak, total)
            self._words, self._argument = words, memory.argument_of(words)

    def reserve(self, region_id: int, dimension: DimensionId, n_bytes: int) -> None:
        """Charge a region of `n_bytes`.

        Raises
        ------
        LimitExceeded
            If it does not fit the limit, or a core file neither its slot nor what is left of the
            headroom. Nothing is charged then.
        """
        charge = self._price(dimension, n_bytes)
        with self.changing():
            used = _sums(self._charges.copy())
            headroom = self._class_limits["core_headroom"]
            if used["core_headroom"] + charge.n_headroom > headroom:
                slot = self._capacities[dimension]
                raise LimitExceeded(
                    f"{dimension}: {n_bytes:,} bytes pass its slot of {slot:,} by "
                    f"{charge.n_headroom:,}; of {headroom:,} bytes of core headroom "
                    f"{used['core_headroom']:,} are taken",
                    current=used["core_headroom"],
                    limit=headroom,
                    requested=charge.n_headroom,
                    waiting=self.waiting_bytes,
                )
            self._is_apart = True  # until the charge is noted: an interrupt may come between
            if not self._fits(charge.n_bytes):
                total, waiting = self.total, self.waiting_bytes
                raise LimitExceeded(
                    f"{dimension}: {charge.n_bytes:,} bytes do not fit: {total:,} of "
                    f"{self.limit_bytes:,} are in use, {waiting:,} of them waiting for views to be "
                    "let go",
                    current=total,
                    limit=self.limit_bytes,
                    requested=charge.n_bytes,
                    waiting=waiting,
                )
            self._charges[region_id] = charge

    def check_possible(self, dimension: DimensionId, n_bytes: int) -> None:
        """Raise LimitExceeded for a region that could not be loaded if nothing else were."""
        charge = self._price(dimension, n_bytes)
        headroom = self._class_limits["core_headroom"]
        for what, needed, limit in (
            ("the core headroom", charge.n_headroom, headroom),
            ("the budget", charge.n_bytes, self.limit_bytes),
        ):
            if needed > limit:
                raise LimitExceeded(
                    f"{dimension}: {n_bytes:,} bytes could never be loaded: they need "
                    f"{needed:,} bytes of {what}, which is {limit:,}",
                    current=0,
                    limit=limit,
                    requested=needed,
                    waiting=0,
                )

    def retire(self, region_id: int) -> None:
        """Note that a region is only waiting for its last view; nothing to do if that is gone."""
        with self.lock:
            self._waiting.add(region_id)

    def reclaim(self, region_id: int) -> bool:
        """Note that a region that was waiting is loaded again; False if its charge is gone."""
        with self.lock:
            if region_id not in self._charges:
                return False
            self._waiting.discard(region_id)
            return True

    def release(self, region_id: int) -> None:
        """Take a charge back; never waits, finalizers call it in any thread."""
        self._charges.pop(region_id, None)
        self._is_apart = True
        self.reconcile()

    def is_charged(self, region_id: int) -> bool:
        """Tell whether a region counts: it is loaded, or still viewed."""
        return region_id in self._charges

    def reconcile(self) -> None:
        """Bring the shared words in line with the charges, now or by whoever is changing them."""
        while self._is_apart and self.lock.acquire(blocking=False):
            try:
                if self._is_changing or atomics.is_interrupted():
                    return  # this thread was interrupted half-way: it will do it when it goes on
                self._settle()
            finally:
                self.lock.release()

    @property
    def total(self) -> int:
        """All bytes that are charged, regions and blocks."""
        self.reconcile()
        return self._total() if self._words is None else int(self._words[s.USED])

    @property
    def waiting_bytes(self) -> int:
        """Bytes of regions that are retired and still viewed."""
        with self.lock:
            return sum(self._waiting_in(self._charges.copy()).values())

    def usage(self) -> Usage:
        """Return what is charged, all of one moment."""
        from jessymem.stats import ClassUsage

        with self.changing():
            charges = self._charges.copy()
            used, limits = _sums(charges), self._class_limits
            per_class = {name: ClassUsage(used[name], limits[name]) for name in CLASSES}
            waiting = self._waiting_in(charges)
            if self._words is None:
                return Usage(sum(used.values()), self._peak, waiting, per_class)
            total = int(self._words[s.USED])
            # A thread that has just charged raises the peak one step later.
            return Usage(total, max(int(self._words[s.PEAK]), total), waiting, per_class)

    @contextmanager
    def changing(self) -> Iterator[bool]:
        """Hold the lock, the words in line before; what is released meanwhile follows after.

        Yields whether this thread was at it already: a signal handler or finalizer interrupted it.
        """
        try:
            with self.lock:
                was_changing, self._is_changing = self._is_changing, True
                try:
                    if not was_changing and self._is_apart:
                        self._settle()
                    yield was_changing
                finally:
                    self._is_changing = was_changing
        finally:
            self.reconcile()

    @contextmanager
    def changing_if_idle(self) -> Iterator[bool]:
        """As `changing`, but never wait: yield False where anyone, this thread too, is at it."""
        if not self.lock.acquire(blocking=False):
            yield False
            return
        try:
            if self._is_changing:
                yield False
            else:
                with self.changing():
                    yield True
        finally:
            self.lock.release()

    def after_fork(self, live: set[int]) -> None:
        """Start over in a forked child: `live` regions are loaded, retired ones still wait.

        A thread of the parent may have held the lock, or been half-way through a load. The words,
        where there are any, are made good by the allocator, which recounts its blocks.
        """
        self.lock = threading.RLock()
        self._is_changing = False
        self._waiting -= live  # a thread of the parent was about to unload them
        for region_id in self._charges.keys() - live - self._waiting:
            self._charges.pop(region_id, None)

    def recount(self, n_block_bytes: int, n_retained_bytes: int) -> None:
        """Set the words right where nobody else runs: after a fork, in the child."""
        if self._words is not None:
            total = self._total()
            self._words[s.OF_REGIONS] = total
            self._words[s.USED] = total + n_block_bytes
            self._words[s.RESIDENT] = total + n_block_bytes + n_retained_bytes

    # -- inside ------------------------------------------------------------------------------------

    def _excess(self) -> int:
        """Bytes that the words count for regions, and the charges no longer."""
        return 0 if self._words is None else int(self._words[s.OF_REGIONS]) - self._total()

    def _settle(self) -> None:
        """Bring the words in line; under the lock."""
        self._is_apart = False
        excess = self._excess()
        if self._words is not None and excess > 0:
            budget.discharge(self._argument, excess)
            self.on_fall(int(self._words[s.USED]))

    def _fits(self, n_bytes: int) -> bool:
        """Count `n_bytes` more, if they fit."""
        if self._words is None:
            total = self._total() + n_bytes
            if total > self.limit_bytes:
                return False
            self._peak = max(self._peak, total)
            return True
        code = budget.charge(self._argument, n_bytes, s.LIMIT)
        if code == s.RETAINED:
            self.make_room(n_bytes)
            code = budget.charge(self._argument, n_bytes, s.LIMIT)
        return bool(code == s.OK)

    def _total(self) -> int:
        return sum(charge.n_bytes for charge in self._charges.copy().values())

    def _price(self, dimension: DimensionId, n_bytes: int) -> Charge:
        n_pages_bytes = osmem.round_to_pages(n_bytes)
        if dimension <= s.N_CORE_DIMENSIONS:
            beyond = max(n_pages_bytes - self._capacities[dimension], 0)
            return Charge(n_pages_bytes, beyond, "core_slots")
        kind = "grown" if dimension < s.FIRST_USER_DIMENSION else "user"
        return Charge(n_pages_bytes, 0, kind)

    def _waiting_in(self, charges: dict[int, Charge]) -> dict[int, int]:
        self._waiting &= charges.keys()
        return {region_id: charges[region_id].n_bytes for region_id in self._waiting}


def _sums(charges: dict[int, Charge]) -> dict[str, int]:
    """Add charges up by class."""
    used = dict.fromkeys(CLASSES, 0)
    for charge in charges.values():
        used["core_headroom"] += charge.n_headroom
        used[charge.kind] += charge.n_bytes - charge.n_headroom
    return used
