"""What happens when blocks run out: room is made within the budget, or an error says why not.

Freed pages go back to the system, pools are made where nothing fits and unmapped once they are
empty, others are asked to evict, thresholds are noted. All of it under the budget's lock, but for
evicting and writing records: those may wait for whatever they like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Final
from weakref import WeakMethod

import numpy as np

from jessymem import osmem
from jessymem.budget import Budget
from jessymem.config import MIB, MemoryConfig
from jessymem.errors import AllocationFailed, InvalidAccess, JessyMemoryError, LimitExceeded
from jessymem.kernels import _jit, blocks, memory, pages
from jessymem.kernels import budget as charges
from jessymem.kernels import schema as s
from jessymem.logger import DEBUG, WARNING, logger
from jessymem.pools import failures
from jessymem.pools.survey import retained_in, survey
from jessymem.pools.table import PoolTable
from jessymem.pressure import Level, PressureLog

#: A pool that is made where nothing fitted is no smaller, as far as the budget has room.
GROWTH_BYTES: Final = 8 * MIB

#: The blocks of a pool that is made where there is none at all.
_FIRST_BLOCK_BYTES: Final = (4096, 2**18)

_NOTHING_FITS: Final = (s.POOL_FULL, s.FRAGMENTED, s.NO_POOL)

#: How much address space pools that were made may take, as a multiple of the budget: one block in
#: each keeps it from going back.
_GROWN_SHARE: Final = 4


@dataclass(frozen=True)
class Request:
    """What is claimed.

    Attributes
    ----------
    sizes : sequence of int
        In bytes.
    n_failing : callable
        After a failure: what a new pool must hold at once.
    undo : callable
        Gives back what was claimed, should telling of it fail; takes what the claim returned.
    """

    sizes: Sequence[int]
    n_failing: Callable[[], int]
    undo: Callable[[int], object]

    @property
    def n_bytes(self) -> int:
        """In all."""
        return sum(self.sizes)


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
        self._evicting: set[int] = set()  # threads
        self._run = np.zeros(3, np.int64)  # what is claimed to be trimmed; see `pages`
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
        trim = WeakMethod(self._trim)  # no cycle: memory goes with the last reference
        self._budget.make_room = lambda n_bytes: (give_back := trim()) and give_back()
        self._budget.on_fall = self._pressure.rearm
        self._pressure.attach(self.table.state, self.evict is not None)

    def claim(self, attempt: Callable[[], int], request: Request) -> int:
        """Claim up to the critical threshold, making room for as long as that helps.

        Parameters
        ----------
        attempt : callable
            Claims; returns what kernels return.
        request : Request
            What for.

        Returns
        -------
        int
            What `attempt` returned, 0 or more.

        Raises
        ------
        LimitExceeded, AllocationFailed
            As `PoolAllocator.allocate`.
        InvalidAccess
            If the allocator was closed meanwhile.
        """
        counts = Counter(request.sizes)  # of many, most are alike
        cost = sum(n * self._cost_of(size) for size, n in counts.items())
        self._make_calm(cost)
        risen: list[Level] = []
        made: list[dict[str, int]] = []
        result = s.NO_POOL
        try:
            with self._budget.changing() as is_nested:
                if cost > self._pressure.critical.above_bytes:
                    raise self._over_limit(request.n_bytes)
                if not is_nested:
                    self.release_empty_pools()
                result = attempt()
                while result < 0:
                    self._mend(result, request, is_nested, made)
                    result = attempt()
                risen += self._pressure.observe(self._budget.total)
        except JessyMemoryError as error:
            if made:
                self.note_empty()
            if isinstance(error, LimitExceeded):
                with self._budget.lock.hold():
                    risen += self._pressure.refuse()
            if not isinstance(error, InvalidAccess):
                self._note_failure(error, request.n_bytes)
            raise
        except BaseException:
            if result >= 0:
                request.undo(result)
            raise
        finally:
            try:
                self._record(risen, made, request.n_bytes)
            except BaseException:
                if result >= 0:
                    request.undo(result)
                raise
        return int(result)

    def trim(self) -> int:
        """Give back freed pages and empty pools; return how many bytes."""
        with self._budget.changing() as is_nested:
            return 0 if is_nested else self._trim() + self.release_empty_pools()

    def note_fall(self) -> None:
        """Let thresholds speak again that use has fallen below; if others are busy, at its next."""
        with self._budget.changing_if_idle() as is_idle:
            if is_idle:
                self._pressure.rearm(int(self.table.state[s.USED]))

    def note_empty(self) -> None:
        """Unmap grown pools that are empty; if others are busy, the next slow call does it."""
        with self._budget.changing_if_idle() as is_idle:
            if is_idle:
                self.release_empty_pools()

    def release_empty_pools(self) -> int:
        """Unmap grown pools in which nothing is left; return how many bytes. Under the lock."""
        n_given = 0
        for pool in self.table.pool_ids:
            if self._is_grown(pool) and self._close(pool):
                n_given += self.table.n_bytes_of(pool)
                charges.dismiss(self.table.argument, retained_in(self.table, pool))
                self.table.remove(pool)
        return n_given

    def leave_when_empty(self, *, always_trim: bool = False) -> None:
        """After closing: give pages back, and the mappings once no block is in use any more.

        Looking through all blocks for each that comes back would be quadratic: while others are in
        use it waits until there is something to give. A kernel that is still at work has counted
        its block off, so its pool cannot be closed yet.
        """
        if self.table.is_gone:
            return
        state = self.table.state
        is_in_use = state[s.USED] > state[s.OF_REGIONS]
        if is_in_use and not always_trim and state[s.RESIDENT] - state[s.USED] < GROWTH_BYTES:
            return
        self._trim()
        are_closed = [self._close(pool) for pool in self.table.pool_ids]
        if all(are_closed):
            self.table.let_go()

    # -- inside ------------------------------------------------------------------------------------

    def _close(self, pool: int) -> bool:
        """Let nobody claim from a pool any more, if all of it is free; tell whether nobody can."""
        if self.table.n_free(pool) == s.CLOSED_POOL:
            return True  # by a call that was interrupted
        return bool(blocks.close_pool(self.table.argument, pool) == s.OK)

    def _make_calm(self, cost: int) -> None:
        """Have others evict to below the warning threshold before that for eviction is passed."""
        after = self._budget.total + cost
        thread = get_ident()
        is_hopeless = cost > self._pressure.critical.above_bytes
        if self.evict is None or is_hopeless or thread in self._evicting:
            return
        if after > self._pressure.eviction.above_bytes:
            self._evicting.add(thread)
            try:
                self.evict(after - self._pressure.warning.above_bytes)
            finally:
                self._evicting.discard(thread)

    def _mend(
        self, code: int, request: Request, is_nested: bool, made: list[dict[str, int]]
    ) -> None:
        """Remove the reason why nothing was claimed, or raise it."""
        n_failing = request.n_failing()
        if code == s.IS_CLOSED:
            raise failures.closed()
        if code in _NOTHING_FITS and self._has_room(n_failing):
            if is_nested:
                raise failures.no_memory(code, n_failing, "what this interrupted is making room")
            made.append(self._grow(code, n_failing))
        elif code != s.RETAINED or is_nested or not self._trim():
            raise self._over_limit(request.n_bytes)

    def _record(self, risen: list[Level], made: list[dict[str, int]], n_bytes: int) -> None:
        for facts in made:
            logger.info("made a pool", extra={"event": "pool_grown", **facts})
        if risen:
            self._pressure.record(risen, self._budget.total, **self._facts(n_bytes))

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
        found = survey(self.table)
        total, waiting = self._budget.total, self._budget.waiting_bytes + found.n_waiting
        limit = self._pressure.critical.above_bytes
        return LimitExceeded(
            f"{n_bytes:,} bytes do not fit: {total:,} of {self._budget.limit_bytes:,} are in use, "
            f"blocks may fill {limit:,}; {waiting:,} are waiting for views to be let go, and "
            f"{found.n_retained:,} of freed pages are retained",
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
        left = _GROWN_SHARE * self._budget.limit_bytes - sum(map(self.table.n_bytes_of, grown))
        if size > left:
            size = needed
        if size > min(left, s.POOL_BYTES_LIMIT):
            raise failures.no_memory(
                code,
                n_bytes,
                "the pools made so far take all the address space that the budget allows",
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
        pages.return_run(self.table.argument, self._run)  # if an interrupt left one
        for pool in self.table.pool_ids:
            # In plain Python, looking at every block takes far longer than at a column of them.
            if not _jit.is_promoted(_jit.MEMORY) and not retained_in(self.table, pool):
                continue
            block, n_blocks = 0, 1
            step = max(osmem.page_size() // int(self.table.rows[pool]["block_bytes"]), 1)
            while n_blocks:
                pages.claim_dirty_run(self.table.argument, pool, block, step, self._run)
                _, block, n_blocks = self._run.tolist()
                if n_blocks:
                    n_given += self._give_back(pool, block, n_blocks)
                pages.return_run(self.table.argument, self._run)
                block += n_blocks
        return n_given

    def _give_back(self, pool: int, block: int, n_blocks: int) -> int:
        """Give back the pages of claimed blocks; return how many bytes."""
        size = int(self.table.rows[pool]["block_bytes"])
        if not self.table.give_back(pool, block * size, n_blocks * size):
            return 0
        pages.mark_clean(self.table.argument, pool, block, n_blocks)
        return n_blocks * size

    def _facts(self, n_bytes: int) -> dict[str, Any]:
        """Gather what a record of pressure or failure tells."""
        with self._budget.changing():
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

    def _note_failure(self, error: JessyMemoryError, n_bytes: int) -> None:
        with self._budget.lock.hold():
            self.n_failures += 1
        # The limit is told by the record of pressure, once per crossing.
        severity = DEBUG if isinstance(error, LimitExceeded) else WARNING
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
