"""`Trimmer`: the pages of freed blocks are returned to the system.

Under the budget's lock, and by nobody who interrupted its holder. Blocks are claimed meanwhile, a
few at a time, so that nobody writes to them: allocations may find them missing for a moment.
"""

from __future__ import annotations

import numpy as np

from jessymem.kernels import _jit, pages
from jessymem.pools.survey import retained_in
from jessymem.pools.table import PoolTable


class Trimmer:
    """Trims the pools of one allocator."""

    def __init__(self, table: PoolTable) -> None:
        self._table = table
        self._run = np.zeros(3, np.int64)  # what is claimed at present; see `pages`

    def trim(self) -> int:
        """Return the pages of freed blocks; return how many bytes."""
        pages.release_run(self._table.argument, self._run)  # if an interrupt left one
        try:
            # In plain Python, looking at every block takes far longer than at a column of them.
            return sum(
                self._trim_pool(pool)
                for pool in self._table.pool_ids
                if _jit.is_promoted(_jit.MEMORY) or retained_in(self._table, pool)
            )
        finally:
            pages.release_run(self._table.argument, self._run)

    def _trim_pool(self, pool: int) -> int:
        table, run = self._table, self._run
        block_bytes = int(self._table.rows[pool]["block_bytes"])
        step = max(table.arena.page_bytes_of(pool) // block_bytes, 1)
        n_given, block, n_blocks = 0, 0, 1
        while n_blocks:
            pages.claim_dirty_run(table.argument, pool, block, step, run)
            _, block, n_blocks = run.tolist()
            at, n_bytes = block * block_bytes, n_blocks * block_bytes
            if n_blocks and self._table.arena.return_pages(pool, at, n_bytes):
                pages.mark_clean(table.argument, pool, block, n_blocks)
                n_given += n_bytes
            pages.release_run(table.argument, run)
            block += n_blocks
        return n_given
