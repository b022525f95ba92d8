"""The one budget: what is charged, to which class, and what still waits for its last view.

Counts whole pages. A region is charged before it is mapped, retired when it is unloaded, and
released when the last view on it is gone; until then it is *waiting* and counts.
"""

from __future__ import annotations

import threading
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
        # Re-entrant: a finalizer or signal handler of the user's may ask in a thread that holds it.
        self._lock = threading.RLock()
        # The one truth: sums are made from it when asked for, so no interrupt leaves them apart.
        self._charges: dict[int, Charge] = {}
        self._waiting: set[int] = set()
        self._peak = 0

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
            charges = self._charges.copy()
            used = _sums(charges)
            total = sum(used.values())
            waiting = sum(self._waiting_in(charges).values())
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
                    waiting=waiting,
                )
            if total + charge.n_bytes > self.limit_bytes:
                raise LimitExceeded(
                    f"{dimension}: {charge.n_bytes:,} bytes do not fit: {total:,} of "
                    f"{self.limit_bytes:,} are in use, {waiting:,} of them waiting for views to be "
                    "let go",
                    current=total,
                    limit=self.limit_bytes,
                    requested=charge.n_bytes,
                    waiting=waiting,
                )
            self._peak = max(self._peak, total + charge.n_bytes)
            self._charges[region_id] = charge

    def retire(self, region_id: int) -> None:
        """Note that a region is only waiting for its last view; nothing to do if that is gone."""
        with self._lock:
            self._waiting.add(region_id)

    def release(self, region_id: int) -> None:
        """Take a charge back. One step without a lock: finalizers call it in any thread."""
        self._charges.pop(region_id, None)

    def usage(self) -> Usage:
        """Return what is charged, all of one moment."""
        with self._lock:
            charges = self._charges.copy()
            used, limits = _sums(charges), self._class_limits
            per_class = {name: ClassUsage(used[name], limits[name]) for name in CLASSES}
            return Usage(sum(used.values()), self._peak, self._waiting_in(charges), per_class)

    def after_fork(self, live: set[int]) -> None:
        """Start over in a forked child: `live` regions are loaded, retired ones still wait.

        A thread of the parent may have held the lock, or been half-way through a load.
        """
        self._lock = threading.RLock()
        self._waiting -= live  # a thread of the parent was about to unload them
        for region_id in self._charges.keys() - live - self._waiting:
            self.release(region_id)

    def _price(self, dimension: DimensionId, n_bytes: int) -> Charge:
        n_pages_bytes = osmem.round_to_pages(n_bytes)
        if dimension <= N_CORE_DIMENSIONS:
            beyond = max(n_pages_bytes - self._capacities[dimension], 0)
            return Charge(n_pages_bytes, beyond, "core_slots")
        kind = "grown" if dimension < FIRST_USER_DIMENSION else "user"
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
