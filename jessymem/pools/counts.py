"""`PoolCounts`: what an allocator shows of itself; `PoolAllocator` is derived from it."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import jessymem
from jessymem.budget import Budget, Usage
from jessymem.errors import clears_frames
from jessymem.pools.pool import MmapPool
from jessymem.pools.supply import Supply
from jessymem.pools.survey import ListedBlock, Survey, differences, list_blocks, survey
from jessymem.pools.table import PoolTable
from jessymem.pools.views import Views

#: How often the arrays are looked at again, for numbers that agree while threads allocate.
_N_LOOKS: Final = 4


class PoolCounts:
    """Numbers and lists of the blocks of one allocator, read from its arrays."""

    _budget: Budget
    _supply: Supply
    _table: PoolTable
    _views: Views

    @property
    def pools(self) -> list[MmapPool]:
        """The pools there are, by block size; none after `close`.

        Examples
        --------
        >>> allocator.pools
        [<MmapPool 0: 0 of 256 blocks of 4096 bytes>, <MmapPool 1: 0 of 16 blocks of 65536 bytes>]
        """
        with self._budget.changing():
            if self._supply.is_closed:
                return []
            return [MmapPool(self._table, pool) for pool in self._table.pool_ids]

    @property
    def usage(self) -> tuple[int, int]:
        """Bytes in use and the limit, both of the whole budget.

        Examples
        --------
        >>> allocator.allocate(5_000).pool_id, allocator.usage
        (1, (65536, 16777216))
        """
        self._views.collect_ended()
        return self._budget.total, self._budget.limit_bytes

    @property
    def n_failures(self) -> int:
        """How many calls that wanted memory were refused.

        Examples
        --------
        >>> try:
        ...     allocator.allocate(2**30)
        ... except MemoryError:
        ...     print(allocator.n_failures)
        1
        """
        return self._supply.n_failures

    @clears_frames
    def survey(self) -> Survey:
        """Count what the block rows say."""
        self._views.collect_ended()
        with self._budget.changing():
            return survey(self._table)

    @clears_frames
    def look(self) -> tuple[Survey, Usage]:
        """Count the blocks, and what the budget says, of one moment if threads leave one."""
        import_module("jessymem.stats")  # which `usage` needs, under the lock
        self._views.collect_ended()
        with self._budget.changing():
            for _ in range(_N_LOOKS):
                found, usage = survey(self._table), self._budget.usage()
                if usage.total == usage.n_region_bytes + found.n_block_bytes:
                    break
            return found, usage

    @clears_frames
    def occupancies(self, max_pieces: int) -> list[jessymem.hints.Occupancy]:
        """Tell where in its pools blocks are used, each pool cut into so many pieces at most."""
        from jessymem.pools.occupancy import occupancy_of

        self._views.collect_ended()
        with self._budget.changing():
            pools = self._table.pool_ids
            return [occupancy_of(self._table, pool, max_pieces) for pool in pools]

    @clears_frames
    def extents(self) -> list[tuple[int, int]]:
        """Tell where the pools lie in memory: address and bytes of each; none after `close`.

        Examples
        --------
        >>> [n_bytes for address, n_bytes in allocator.extents()]
        [1048576, 1048576]
        """
        arena = self._table.arena
        with self._budget.changing():
            pools = [] if self._supply.is_closed else self._table.pool_ids
            starts = [(pool, arena.address_of(pool)) for pool in pools]
            return [(at, self._table.n_bytes_of(pool)) for pool, at in starts if at is not None]

    @clears_frames
    def blocks(self) -> list[ListedBlock]:
        """List the blocks that are handed out, and those that were freed and are still viewed."""
        self._views.collect_ended()
        with self._budget.changing():
            return list_blocks(self._table)

    @clears_frames
    def validate(self) -> list[str]:
        """Recount everything from the blocks' own words.

        Returns
        -------
        list of str
            What a counter or bit says differently; empty where all agree. Threads that allocate
            meanwhile show as differences.

        Examples
        --------
        >>> offsets = allocator.allocate_many([100, 5_000])
        >>> allocator.validate()  # counters and blocks agree
        []
        """
        self._views.collect_ended()
        with self._budget.changing():
            if self._table.argument is None:
                return []
            return differences(self._table, self._budget.usage().n_region_bytes)
