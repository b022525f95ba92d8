"""`Growth`: pools that are made, or grow in place, where nothing fits; unmapped once empty.

A pool that is made has addresses behind it, where they cost nothing: room for all that the budget
may hold. So it grows by being told of more blocks, and its memory never moves.

All of it under the budget's lock, and by nobody who interrupted its holder.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from jessymem.budget import Budget
from jessymem.errors import AllocationFailed
from jessymem.kernels import blocks
from jessymem.kernels import budget as charges
from jessymem.kernels import schema as s
from jessymem.pools import failures
from jessymem.pools.survey import retained_in
from jessymem.pools.table import PoolTable, whole_blocks
from jessymem.pressure import PressureLog

#: A pool that is made where nothing fitted is no smaller, as far as the budget allows.
GROWTH_BYTES: Final = 8 * 2**20

#: How much address space pools that were made may take, as a multiple of the budget: one block in
#: each keeps it from going back.
_GROWN_SHARE: Final = 4


class GrownPool(NamedTuple):
    """What was made, and for what.

    Attributes
    ----------
    n_bytes : int
        By how much there is more.
    is_new : bool
        Whether it is a pool; else one has grown.
    """

    is_new: bool
    n_bytes: int
    block_bytes: int
    n_requested: int


class Growth:
    """Makes and unmakes the pools of one allocator.

    Parameters
    ----------
    table : PoolTable
    budget : Budget
    pressure : PressureLog
        Knows what blocks may fill: the critical threshold of the budget.
    """

    def __init__(self, table: PoolTable, budget: Budget, pressure: PressureLog) -> None:
        self._table = table
        self._budget = budget
        self._pressure = pressure

    def make_pool(self, code: int, n_bytes: int, *, may_change: bool) -> GrownPool | None:
        """Make room in which `n_bytes` fit; None where they do not fit the budget.

        `code` says why nothing could be had without. Raises AllocationFailed, also where pools may
        not be changed now.
        """
        table = self._table
        block_bytes = table.block_bytes_for(n_bytes)
        needed = whole_blocks(n_bytes, block_bytes)
        free_bytes = self._pressure.critical.above_bytes - self._budget.total
        if needed > free_bytes:
            return None
        if not may_change:
            raise failures.no_memory(code, n_bytes, "what this interrupts may be making a pool")
        grown = table.grown_ids
        alike = [pool for pool in grown if table.rows[pool]["block_bytes"] == block_bytes]
        # As much again as was made before, so that pools stay few.
        wanted = max(GROWTH_BYTES, sum(map(table.n_bytes_of, alike)))
        size = max(needed, min(wanted, free_bytes) // block_bytes * block_bytes)
        placement = table.arena.placement
        if placement is not None:
            size, needed = (placement.whole_pages(n, block_bytes) for n in (size, needed))
        left = _GROWN_SHARE * self._budget.limit_bytes - sum(map(table.n_bytes_of, grown))
        if size > left:
            size = needed
        if size > min(left, s.POOL_BYTES_LIMIT):
            raise failures.no_memory(
                code,
                n_bytes,
                "the pools made so far take all the address space that the budget allows",
            )
        for pool in alike if placement is None else ():
            if (room := table.room_of(pool)) >= needed:
                size = min(size, room)
                table.extend(pool, size)
                return GrownPool(False, size, block_bytes, n_bytes)
        try:
            self._add_pool(block_bytes, size)
        except AllocationFailed as error:
            if error.reason == "os_refused":
                raise
            raise failures.no_memory(code, n_bytes, str(error)) from None
        return GrownPool(True, size, block_bytes, n_bytes)

    def _add_pool(self, block_bytes: int, n_bytes: int) -> None:
        """Make a pool; one that is to have certain pages, or to be on a node, cannot grow."""
        table, placement = self._table, self._table.arena.placement
        if placement is not None:
            node = placement.node_here()
            memory = table.arena.map_pool(n_bytes, block_bytes, node)
            table.add(block_bytes, n_bytes, memory, 0, s.POOL_GROWN, node)
            return
        n_most = table.most_blocks(self._pressure.critical.above_bytes // block_bytes)
        n_most = min(n_most * block_bytes, s.POOL_BYTES_LIMIT)
        memory = table.arena.map_extensible(n_bytes, n_most)
        table.add(block_bytes, n_bytes, memory, 0, s.POOL_GROWN, n_most=n_most)

    def release_empty_pools(self) -> int:
        """Unmap grown pools in which nothing is left; return how many bytes."""
        n_released = 0
        for pool in self._table.grown_ids:
            if self.close_pool(pool):
                n_released += self._table.n_bytes_of(pool)
                charges.dismiss(self._table.argument, retained_in(self._table, pool))
                self._table.remove(pool)
        return n_released

    def close_pool(self, pool: int) -> bool:
        """Let nobody claim from a pool any more, if all of it is free; tell whether nobody can."""
        if self._table.n_free(pool) == s.CLOSED_POOL:
            return True  # by a call that was interrupted
        return bool(blocks.close_pool(self._table.argument, pool) == s.OK)
