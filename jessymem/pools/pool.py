"""`MmapPool`: one row of the pool table seen as an object."""

from __future__ import annotations

from typing import NoReturn

from jessymem.kernels import schema as s
from jessymem.pools.table import PoolTable


class MmapPool:
    """One pool of equal blocks, as it is whenever it is asked.

    Attributes
    ----------
    pool_id : int
    block_size : int
        Bytes of one block.
    size_bytes : int
    total_blocks : int

    Examples
    --------
    >>> offset = allocator.allocate(5_000)
    >>> pool = allocator.pools[1]
    >>> pool
    <MmapPool 1: 1 of 16 blocks of 65536 bytes>
    >>> pool.size_bytes
    1048576
    """

    def __init__(self, table: PoolTable, pool_id: int) -> None:
        row = table.rows[pool_id]
        self.pool_id = pool_id
        self.block_size = int(row["block_bytes"])
        self.total_blocks = int(row["n_blocks"])
        self.size_bytes = self.block_size * self.total_blocks
        self.is_grown = int(row["kind"]) == s.POOL_GROWN
        self._birth = int(row["first_generation"])  # another pool may come under the id
        self._table = table

    @property
    def used_blocks(self) -> int:
        """Blocks that are handed out, or waiting for their views; 0 once the pool is gone.

        Examples
        --------
        >>> pool = allocator.pools[0]
        >>> offsets = allocator.allocate_many([100, 200, 300])
        >>> pool.used_blocks
        3
        """
        row, n_free = self._table.rows[self.pool_id], self._table.n_free(self.pool_id)
        is_here = row["first_generation"] == self._birth and n_free >= 0
        return self.total_blocks - n_free if is_here else 0

    @property
    def utilization(self) -> float:
        """Used / total blocks, 0 to 1.

        Examples
        --------
        >>> pool = allocator.pools[1]
        >>> offsets = allocator.allocate_many(np.full(4, 60_000))
        >>> pool.utilization
        0.25
        """
        return self.used_blocks / self.total_blocks

    def __reduce__(self) -> NoReturn:
        """Refuse: a pickle, or a copy, would come without the memory."""
        raise TypeError("an MmapPool cannot be pickled: its memory belongs to this process")

    def __repr__(self) -> str:
        """Show size and use."""
        return (
            f"<MmapPool {self.pool_id}: {self.used_blocks} of {self.total_blocks} blocks of "
            f"{self.block_size} bytes>"
        )
