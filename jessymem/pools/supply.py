"""What happens when blocks run out: room is made within the budget, or an error says why not.

Freed pages go back to the system, pools are made where nothing fits and unmapped once they are
empty, others are asked to evict, thresholds are noted. All of it under the budget's lock, but for
evicting and writing records: those may wait for whatever they like.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from jessymem import osmem
from jessymem.budget import Budget
from jessymem.config import MIB, MemoryConfig
from jessymem.errors import AllocationFailed, JessyMemoryError, LimitExceeded
from jessymem.kernels import blocks, budget, memory, pages
from jessymem.kernels import schema as s
from jessymem.pools import failures
from jessymem.pools.survey import retained_in, survey
from jessymem.pools.table import PoolTable
from jessymem.pressure import Level, PressureLog

logger = logging.getLogger("jessymem")

#: A pool that is made where nothing fitted is no smaller, as far as the budget has room.
GROWTH_BYTES: Final = 8 * MIB

#: The blocks of a pool that is made where there is none at all.
_FIRST_BLOCK_BYTES: Final = (4096, 2**18)

_NOTHING_FITS: Final = (s.POOL_FULL, s.FRAGMENTED, s.NO_POOL)

# Others may use up what was given back before it is claimed again; not so often, though.
_MAX_TRIMS: Final = 16


class Supply:
    """Makes room for one allocator.

    Attributes
    ----------
    table : PoolTable
    evict : callable or None
    n_failures : int
        Calls for memory that were refused.
    """

    def __init__(
        self,
        config: MemoryConfig,
        budget: Budget,
        pressure: PressureLog,
        evict: Callable[[int], object] | None,
    ) -> None:
        self.table = PoolTable(config.pool_configs, config.limit_bytes)  # type: ignore[arg-type]
        self.evict = evict
        self.n_failures = 0
        self._budget = budget
        self._pressure = pressure
        state = self.table.state
        state[s.LIMIT] = state[s.RESIDENT_LIMIT] = config.limit_bytes
        state[s.CRITICAL_LIMIT] = pressure.critical.above_bytes
        state[s.ZERO_ON_REUSE] = config.zero_on_reuse
        if not osmem.CAN_GIVE_BACK:
            state[s.RESIDENT_LIMIT] = s.REQUEST_BYTES_LIMIT

    def attach(self) -> None:
        """Count in the shared words from now on."""
        self._budget.attach(self.table.state)
        self.table.argument = memory.argument_of(self.table.state)
        self._budget.make_room = lambda n_bytes: self._trim()
        self._budget.on_fall = self._pressure.rearm
        self._pressure.attach(self.table.state, self.evict is not None)

    def claim(self, attempt: Callable[[], int], n_bytes: int, n_at_once: Callable[[], int]) -> int:
        """Claim up to the critical threshold, making room for as long as that helps.

        Parameters
        ----------
        attempt : callable
            Claims; returns what kernels return.
        n_bytes : int
            What it wants in all.
        n_at_once : callable
            After a failure: what a new pool must hold.

        Raises
        ------
        LimitExceeded, AllocationFailed
            As `PoolAllocator.allocate`.
        InvalidAccess
            If the allocator was closed meanwhile.
        """
        self._make_calm(n_bytes)
        risen: list[Level] = []
        made: list[dict[str, int]] = []
        n_failing = n_bytes
        try:
            with self._budget.changing():
                self.release_empty_pools()
                result = attempt()
                n_trims = 0
                while result < 0:
                    n_failing = n_at_once()
                    if result == s.IS_CLOSED:
                        raise failures.closed()
                    if result == s.RETAINED and n_trims < _MAX_TRIMS:
                        n_trims += 1
                        self._trim()
                    elif result in _NOTHING_FITS and self._has_room(n_failing):
                        made.append(self._grow(result, n_failing))
                    else:
                        risen += self._pressure.refuse()
                        raise self._over_limit(n_failing)
                    result = attempt()
                risen += self._pressure.observe(self._budget.total)
                return int(result)
        except JessyMemoryError as error:
            with self._budget.lock:
                self.n_failures += 1
            self._log_failure(error, n_failing)
            raise
        finally:
            for facts in made:
                logger.info("made a pool", extra={"event": "pool_grown", **facts})
            if risen:
                self._pressure.record(risen, self._budget.total, **self._facts(n_failing))

    def trim(self) -> int:
        """Give back freed pages and empty pools; return how many bytes."""
        with self._budget.changing():
            return self._trim() + self.release_empty_pools()

    def note_fall(self) -> None:
        """Let thresholds speak again that use has fallen below; whoever is busy does it later."""
        with self._budget.changing_if_idle() as is_idle:
            if is_idle:
                self._pressure.rearm(int(self.table.state[s.USED]))

    def note_empty(self) -> None:
        """Unmap grown pools that are empty; whoever is busy does it later."""
        with self._budget.changing_if_idle() as is_idle:
            if is_idle:
                self.release_empty_pools()

    def release_empty_pools(self) -> int:
        """Unmap grown pools in which nothing is left; return how many bytes. Under the lock."""
        n_given = 0
        for pool in self.table.pool_ids:
            is_grown = self.table.rows[pool]["kind"] == s.POOL_GROWN
            if is_grown and blocks.close_pool(self.table.argument, pool) == s.OK:
                n_given += self.table.n_bytes_of(pool)
                budget.dismiss(self.table.argument, retained_in(self.table, pool))
                self.table.remove(pool)
        return n_given

    def leave_when_empty(self) -> None:
        """After closing: give back pages, and the mappings once no block waits any more."""
        with self._budget.changing_if_idle() as is_idle:
            if is_idle and not self.table.is_gone:
                self._trim()
                if not survey(self.table).n_block_bytes:
                    self.table.let_go()

    # -- inside ------------------------------------------------------------------------------------

    def _make_calm(self, n_bytes: int) -> None:
        """Have others evict to below the warning threshold before that for eviction is passed."""
        after = self._budget.total + self._cost_of(n_bytes)
        if self.evict is not None and after > self._pressure.eviction.above_bytes:
            self.evict(after - self._pressure.warning.above_bytes)

    def _block_bytes_for(self, n_bytes: int) -> int:
        """Return the size of the blocks that fit `n_bytes` best, or of the largest."""
        sizes = [int(self.table.rows[pool]["block_bytes"]) for pool in self.table.pool_ids]
        if not sizes:
            smallest, largest = _FIRST_BLOCK_BYTES
            return min(max(1 << (n_bytes - 1).bit_length(), smallest), largest)
        return min((size for size in sizes if size >= n_bytes), default=sizes[-1])

    def _cost_of(self, n_bytes: int) -> int:
        block_bytes = self._block_bytes_for(n_bytes)
        return -(-n_bytes // block_bytes) * block_bytes

    def _has_room(self, n_bytes: int) -> bool:
        return self._budget.total + self._cost_of(n_bytes) <= self._pressure.critical.above_bytes

    def _over_limit(self, n_bytes: int) -> LimitExceeded:
        total, waiting = self._budget.total, self._waiting_bytes()
        limit = self._pressure.critical.above_bytes
        return LimitExceeded(
            f"{n_bytes:,} bytes do not fit: {total:,} of {self._budget.limit_bytes:,} are in use, "
            f"blocks may fill {limit:,}; {waiting:,} are waiting for views to be let go",
            current=total,
            limit=limit,
            requested=n_bytes,
            waiting=waiting,
        )

    def _grow(self, code: int, n_bytes: int) -> dict[str, int]:
        """Make a pool in which `n_bytes` fit; return what was made, or raise AllocationFailed."""
        block_bytes, needed = self._block_bytes_for(n_bytes), self._cost_of(n_bytes)
        room = self._pressure.critical.above_bytes - self._budget.total
        grown = [pool for pool in self.table.pool_ids if self._is_grown(pool)]
        alike = [pool for pool in grown if self.table.rows[pool]["block_bytes"] == block_bytes]
        # As much again as was made before, so that pools stay few.
        wanted = max(GROWTH_BYTES, sum(map(self.table.n_bytes_of, alike)))
        size = max(needed, min(wanted, room) // block_bytes * block_bytes)
        left = self._budget.limit_bytes - sum(map(self.table.n_bytes_of, grown))
        if size > left:
            size = needed
        if size > min(left, s.POOL_BYTES_LIMIT):
            raise failures.no_memory(
                code, n_bytes, "pools made for such requests may not outgrow the budget"
            )
        try:
            fresh = osmem.private_memory(size)
            self.table.add(block_bytes, size, fresh, 0, s.POOL_GROWN)
        except AllocationFailed as error:
            if error.reason == "os_refused":
                raise
            raise failures.no_memory(code, n_bytes, str(error)) from None
        return {"n_bytes": size, "block_size": block_bytes, "requested_bytes": n_bytes}

    def _is_grown(self, pool: int) -> bool:
        return bool(self.table.rows[pool]["kind"] == s.POOL_GROWN)

    def _trim(self) -> int:
        """Give back the pages of freed blocks; return how many bytes. Under the lock."""
        n_given = 0
        run = np.zeros(1, np.int64)
        for pool in self.table.pool_ids:
            block, n_blocks = 0, 1
            while n_blocks:
                n_blocks = int(pages.claim_dirty_run(self.table.argument, pool, block, run))
                block = int(run[0])
                if n_blocks:
                    n_given += self._give_back(pool, block, n_blocks)
                block += n_blocks
        return n_given

    def _give_back(self, pool: int, block: int, n_blocks: int) -> int:
        """Give back the whole pages in claimed blocks, and the blocks; return how many bytes."""
        size = int(self.table.rows[pool]["block_bytes"])
        step = max(osmem.page_size() // size, 1)
        first, end = -(-block // step) * step, (block + n_blocks) // step * step
        n_bytes = 0
        if first < end and self.table.give_back(pool, first * size, (end - first) * size):
            pages.mark_clean(self.table.argument, pool, first, end - first)
            n_bytes = (end - first) * size
        blocks.put_back(self.table.argument, pool, block, n_blocks)
        return n_bytes

    def _waiting_bytes(self) -> int:
        return self._budget.waiting_bytes + survey(self.table).n_waiting

    def _facts(self, n_bytes: int) -> dict[str, Any]:
        """Gather what a record of pressure or failure tells."""
        with self._budget.lock:
            found = survey(self.table)
            block_bytes = self._block_bytes_for(n_bytes)
            fitting = [
                each.pool_id for each in found.per_pool.values() if each.block_size == block_bytes
            ]
        return {
            "pool": fitting[0] if fitting else None,
            "requested_bytes": n_bytes,
            "largest_free_run_bytes": found.largest_free_run,
            "waiting_bytes": self._budget.waiting_bytes + found.n_waiting,
        }

    def _log_failure(self, error: JessyMemoryError, n_bytes: int) -> None:
        # The limit is told by the record of pressure, once per crossing.
        severity = logging.DEBUG if isinstance(error, LimitExceeded) else logging.WARNING
        if not logger.isEnabledFor(severity):
            return
        logger.log(
            severity,
            "not allocated: %s",
            str(error),  # the error would hold the frames it passed, and their views
            extra={
                "event": "allocation_failed",
                "error": type(error).__name__,
                "reason": getattr(error, "reason", None),
                "used_bytes": self._budget.total,
                "limit_bytes": self._budget.limit_bytes,
                **self._facts(n_bytes),
            },
        )
