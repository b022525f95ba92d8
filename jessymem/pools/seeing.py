"""What a `PoolAllocator` shows of itself."""

from __future__ import annotations

from typing import Any, Final

from jessymem.budget import Budget, Usage
from jessymem.pools.pool import MmapPool
from jessymem.pools.supply import Supply
from jessymem.pools.survey import Survey, differences, survey, waiting_blocks
from jessymem.pools.table import PoolTable
from jessymem.pools.views import Views

#: How often the arrays are looked at again, for numbers that agree while threads allocate.
_N_LOOKS: Final = 4


class Seeing:
    """The part of an allocator that only looks; it works on a closed one too."""

    _argument: Any
    _budget: Budget
    _is_closed: bool
    _supply: Supply
    _table: PoolTable
    _views: Views

    @property
    def pools(self) -> list[MmapPool]:
        """The pools there are, by block size; none after `close`."""
        with self._budget.changing():
            if self._is_closed:
                return []
            return [MmapPool(self._table, pool) for pool in self._table.pool_ids]

    @property
    def usage(self) -> tuple[int, int]:
        """Bytes in use and the limit, both of the whole budget."""
        self._views.take_in()
        return self._budget.total, self._budget.limit_bytes

    def survey(self) -> Survey:
        """Count what the block rows say; works on a closed allocator too."""
        self._views.take_in()
        with self._budget.changing():
            return survey(self._table)

    def look(self) -> tuple[Survey, Usage]:
        """Count the blocks, and what the budget says, of one moment if threads leave one."""
        self._views.take_in()
        with self._budget.changing():
            for _ in range(_N_LOOKS):
                found, usage = survey(self._table), self._budget.usage()
                regions = sum(each.allocated_bytes for each in usage.per_class.values())
                if usage.total == regions + found.n_block_bytes:
                    break
            return found, usage

    def waiting_blocks(self) -> list[dict[str, int]]:
        """List the blocks that were given back and are still viewed."""
        with self._budget.changing():
            return waiting_blocks(self._table)

    @property
    def n_failures(self) -> int:
        """How many calls that wanted memory were refused."""
        return self._supply.n_failures

    def validate(self) -> list[str]:
        """Recount everything from the blocks' own words.

        Returns
        -------
        list of str
            What a counter or bit says differently; empty where all agree. Threads that allocate
            meanwhile show as differences.
        """
        self._views.take_in()
        with self._budget.changing():
            if self._argument is None:
                return []
            usage = self._budget.usage()
            regions = sum(each.allocated_bytes for each in usage.per_class.values())
            return differences(self._table, regions)

    def __repr__(self) -> str:
        """Show what is in use."""
        used, limit = self._budget.total, self._budget.limit_bytes
        return f"<PoolAllocator {used:,} of {limit:,} bytes>"
