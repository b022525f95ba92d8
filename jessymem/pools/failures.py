"""What kernels return instead of memory, as errors that say what is wrong and where."""

from __future__ import annotations

from jessymem.errors import AllocationFailed, InvalidAccess, JessyMemoryError
from jessymem.kernels import schema as s
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.table import PoolTable

_REASONS = {s.POOL_FULL: "pool_full", s.FRAGMENTED: "fragmented", s.NO_POOL: "no_pool"}

_IN_WORDS = {
    s.POOL_FULL: "every pool with blocks so large is full",
    s.FRAGMENTED: "there are enough free blocks, but not in a row",
    s.NO_POOL: "no pool has blocks so large",
}


def no_memory(code: int, n_bytes: int, why_no_growth: str) -> AllocationFailed:
    """Say why `n_bytes` could not be had, and why no pool could be made for them."""
    return AllocationFailed(
        f"cannot allocate {n_bytes:,} bytes: {_IN_WORDS[code]}, and {why_no_growth}",
        reason=_REASONS[code],
        requested=n_bytes,
    )


def closed(offset: MmapOffset | None = None) -> InvalidAccess:
    """Say that an allocator is closed, and which block was asked for."""
    fault = "the allocator is closed: its blocks have been freed"
    if offset is None:
        return InvalidAccess(fault)
    return InvalidAccess(f"{offset!r}: {fault}", offset=offset)


def wrong_block(code: int, offset: MmapOffset, n_bytes: int, table: PoolTable) -> JessyMemoryError:
    """Say why `offset` is no block that may be freed or viewed."""
    if code == s.IS_CLOSED:
        return closed(offset)
    where = f"{offset!r}"
    if code == s.NOT_A_POOL or not table.has(offset.pool_id):
        text = f"there is no pool {offset.pool_id}"
    elif code == s.PAST_END:
        text = f"pool {offset.pool_id} ends at {table.n_bytes_of(offset.pool_id):,}"
    elif code == s.NOT_A_BLOCK:
        size = int(table.rows[offset.pool_id]["block_bytes"])
        text = f"it lies inside an allocation: blocks of {size:,} bytes"
    elif code == s.FREED_TWICE:
        text = "it was freed before"
    elif code == s.STALE:
        text = "the handle is stale: the block was freed, and had another owner since"
    elif code == s.NEVER_ALLOCATED:
        text = "it was never handed out"
    elif code == s.WRONG_SIZE:
        text = f"{n_bytes:,} bytes are not what was allocated"
    elif code == s.TOO_MANY_VIEWS:
        text = f"there are {s.VIEWS_MASK // s.ONE_VIEW:,} views on it already"
    else:
        text = f"code {code}"
    return InvalidAccess(f"{where}: {text}", offset=offset)
