"""`Records`: what an allocator writes to its log, never while the budget's lock is held.

A log handler may do anything, also wait for a thread that waits for that lock. The records of a
call that interrupted the lock's holder (a signal handler, a finalizer) are written when the holder
releases the lock.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from jessymem.budget import Budget
from jessymem.errors import JessyMemoryError, LimitExceeded
from jessymem.failure_records import of_failure
from jessymem.logger import DEBUG, INFO, WARNING, logger
from jessymem.pools.growth import GrownPool
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.survey import survey
from jessymem.pools.table import PoolTable
from jessymem.pressure import Level, PressureLog

#: Bound once: every allocation asks it.
is_enabled_for: Final = logging.getLogger("jessymem").isEnabledFor


class Records:
    """Writes the records of one allocator."""

    def __init__(self, table: PoolTable, budget: Budget, pressure: PressureLog) -> None:
        self._table = table
        self._budget = budget
        self._pressure = pressure

    def write_block(self, event: str, offset: MmapOffset, n_bytes: int | None) -> None:
        """Tell that a block was "allocated" or "deallocated"."""
        facts = {
            "event": event,
            "pool": offset.pool_id,
            "offset": offset.offset,
            "generation": offset.generation,
            "n_bytes": n_bytes,
        }
        logger.log(DEBUG, "%s %s", event, offset, extra=facts)

    def write_pool(self, pool: GrownPool) -> None:
        """Tell that a pool was made, or has grown."""
        facts = {
            "event": "pool_grown",
            "n_bytes": pool.n_bytes,
            "block_size": pool.block_bytes,
            "requested_bytes": pool.n_requested,
        }
        logger.log(INFO, "made a pool" if pool.is_new else "a pool has grown", extra=facts)

    def write_levels(self, levels: Sequence[Level], n_bytes: int) -> None:
        """Tell which thresholds a request of `n_bytes` has passed, or would pass."""
        if not any(is_enabled_for(level.severity) for level in levels):
            return
        facts = self._facts(n_bytes)
        self._pressure.record(levels, self._budget.total, **facts)

    def write_failure(self, error: JessyMemoryError, n_bytes: int) -> None:
        """Tell that a request of `n_bytes` was refused."""
        # The limit is told by the record of pressure, once per crossing.
        severity = DEBUG if isinstance(error, LimitExceeded) else WARNING
        if not is_enabled_for(severity):
            return
        error.is_recorded = severity >= WARNING
        facts = {
            "event": "allocation_failed",
            "error": type(error).__name__,
            "reason": getattr(error, "reason", None),
            "used_bytes": self._budget.total,
            "limit_bytes": self._budget.limit_bytes,
            **self._facts(n_bytes),
        }
        # Its text: the error would hold the frames that it passed, and their views.
        logger.log(severity, "not allocated: %s", str(error), extra=facts)

    def write_misuse(self, error: JessyMemoryError) -> None:
        """Tell that a block was not freed: it was before, or is none, or has another size."""
        if is_enabled_for(WARNING):
            of_failure("deallocation_failed", "deallocated", error)()

    def _facts(self, n_bytes: int) -> dict[str, Any]:
        """Gather what a record of pressure or failure tells."""
        with self._budget.changing():
            found = survey(self._table)
            block_bytes = self._table.block_bytes_for(n_bytes)
        pools = (each for each in found.per_pool.values() if each.block_size == block_bytes)
        best = next(pools, None)
        return {
            "pool": best and best.pool_id,
            "requested_bytes": n_bytes,
            "largest_free_run_bytes": found.largest_free_run,
            "waiting_bytes": self._budget.waiting_bytes + found.n_waiting,
        }
