"""The one budget: what is charged, to which class, and what still waits for its last view.

Counts whole pages. A region is charged before it is mapped, retired when it is unloaded, and
released when the last view on it is gone; until then it is *waiting* and counts.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from jessymem import osmem
from jessymem.config import CORE_HEADROOM_MB, GROWN_MB, MIB, USER_MB
from jessymem.errors import LimitExceeded
from jessymem.ids import DimensionId
from jessymem.kernels.schema import FIRST_USER_DIMENSION, N_CORE_DIMENSIONS

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


@dataclass(frozen=True)
class ClassUsage:
    """One class of the budget: what is counted in it and what it is meant to hold, in bytes."""

    allocated_bytes: int
    limit_bytes: int


class Budget:
    """Counts bytes against a limit, exactly and under any number of threads.

    Parameters
    ----------
    limit_bytes : int
    capacities : dict of DimensionId to int
        The core slots, in bytes.
    """

    def __init__(self, limit_bytes: int, capacities: dict[DimensionId, int]) -> None:
        self.limit_bytes = limit_bytes
        self._capacities = capacities
        self._class_limits = {
            "core_slots": sum(capacities.values()),
            "core_headroom": CORE_HEADROOM_MB * MIB,
            "grown": GROWN_MB * MIB,
            "user": USER_MB * MIB,
        }
        self._lock = threading.Lock()
        self._charges: dict[int, Charge] = {}
        self._waiting: set[int] = set()
        self._used = dict.fromkeys(CLASSES, 0)
        self._total = 0
        self._peak = 0
        # Finalizers run in any thread, also one that holds the lock: they only append.
        self._released: deque[int] = deque()

    def reserve(self, region_id: int, dimension: DimensionId, n_bytes: int) -> None:
        """Charge a region of `n_bytes`.

        Raises
        ------
        LimitExceeded
            If it does not fit the limit, or a core file neither its slot nor what is left of the
            headroom. Nothing is charged then.
        """
        charge = self._price(dimension, n_bytes)
        with self._lock:
            self._drain()
            headroom = self._class_limits["core_headroom"]
            if self._used["core_headroom"] + charge.n_headroom > headroom:
                slot = self._capacities[dimension]
                raise self._exceeded(
                    f"{dimension}: {n_bytes:,} bytes pass its slot of {slot:,} by "
                    f"{charge.n_headroom:,}; of {headroom:,} bytes of core headroom "
                    f"{self._used['core_headroom']:,} are taken",
                    current=self._used["core_headroom"],
                    limit=headroom,
                    requested=charge.n_headroom,
                )
            if self._total + charge.n_bytes > self.limit_bytes:
                raise self._exceeded(
                    f"{dimension}: {charge.n_bytes:,} bytes do not fit: {self._total:,} of "
                    f"{self.limit_bytes:,} are in use, {self._waiting_bytes():,} of them waiting "
                    f"for views to be let go",
                    current=self._total,
                    limit=self.limit_bytes,
                    requested=charge.n_bytes,
                )
            self._charges[region_id] = charge
            self._add(charge, 1)
            self._peak = max(self._peak, self._total)

    def retire(self, region_id: int) -> None:
        """Note that a region is only waiting for its last view."""
        with self._lock:
            self._waiting.add(region_id)

    def release_later(self, region_id: int) -> None:
        """Note, from anywhere, that a region's memory is gone; counted before the next look."""
        self._released.append(region_id)

    def usage(self) -> Usage:
        """Return what is charged, all of one moment."""
        with self._lock:
            self._drain()
            waiting = {region_id: self._charges[region_id].n_bytes for region_id in self._waiting}
            limits = self._class_limits
            per_class = {name: ClassUsage(self._used[name], limits[name]) for name in CLASSES}
            return Usage(self._total, self._peak, waiting, per_class)

    def after_fork(self, live: set[int]) -> None:
        """Start over in a forked child: `live` regions are loaded, retired ones still wait.

        A thread of the parent may have held the lock, or been half-way through a load.
        """
        self._lock = threading.Lock()
        kept = live | self._waiting
        self._charges = {key: charge for key, charge in self._charges.items() if key in kept}
        self._waiting &= self._charges.keys()
        self._total = 0
        self._used = dict.fromkeys(CLASSES, 0)
        for charge in self._charges.values():
            self._add(charge, 1)

    def _price(self, dimension: DimensionId, n_bytes: int) -> Charge:
        n_pages_bytes = osmem.round_to_pages(n_bytes)
        if dimension <= N_CORE_DIMENSIONS:
            beyond = max(n_pages_bytes - self._capacities[dimension], 0)
            return Charge(n_pages_bytes, beyond, "core_slots")
        kind = "grown" if dimension < FIRST_USER_DIMENSION else "user"
        return Charge(n_pages_bytes, 0, kind)

    def _add(self, charge: Charge, sign: int) -> None:
        self._total += sign * charge.n_bytes
        self._used["core_headroom"] += sign * charge.n_headroom
        self._used[charge.kind] += sign * (charge.n_bytes - charge.n_headroom)

    def _drain(self) -> None:
        while self._released:
            region_id = self._released.popleft()
            self._waiting.discard(region_id)
            charge = self._charges.pop(region_id, None)
            if charge is not None:  # a forked child has dropped what its parent was loading
                self._add(charge, -1)

    def _waiting_bytes(self) -> int:
        return sum(self._charges[region_id].n_bytes for region_id in self._waiting)

    def _exceeded(self, message: str, *, current: int, limit: int, requested: int) -> LimitExceeded:
        return LimitExceeded(
            message,
            current=current,
            limit=limit,
            requested=requested,
            waiting=self._waiting_bytes(),
        )
