"""What an allocator shows of itself, compared before and after, and pools that are filled."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from jessymem import InvalidAccess, MmapOffset

KIB = 2**10
MIB = 2**20


def picture(allocator):
    """All that a wrong call must leave as it was."""
    pools = [(pool.pool_id, pool.size_bytes, pool.used_blocks) for pool in allocator.pools]
    found = allocator.survey()
    return (
        allocator.usage,
        pools,
        found.n_requested,
        found.n_waiting,
        found.n_allocations,
        found.n_deallocations,
        allocator.blocks(),
    )


@contextmanager
def unchanged(allocator):
    """Check that what is within changes nothing that anybody could tell."""
    before = picture(allocator)
    yield
    assert picture(allocator) == before
    assert allocator.validate() == []


def used(allocator):
    """Bytes in use."""
    return allocator.usage[0]


def fill(allocator, n_bytes):
    """Take every free block of the pool that fits best; return the offsets in their order."""
    pool = next(pool for pool in allocator.pools if pool.block_size >= n_bytes)
    n_free = pool.total_blocks - pool.used_blocks
    taken = sorted(allocator.allocate(n_bytes) for _ in range(n_free))
    assert {offset.pool_id for offset in taken} == {pool.pool_id}
    return taken


def pool_of(allocator, offset):
    """Look up the pool that a block lies in."""
    return next(pool for pool in allocator.pools if pool.pool_id == offset.pool_id)


def assert_refused(allocator, offset, text, size=None):
    """Deallocate and view are refused, name the offset and change nothing."""
    shown = repr(offset if isinstance(offset, MmapOffset) else MmapOffset.from_packed(offset))
    calls = [lambda: allocator.deallocate(offset, size)]
    if size is None:
        calls.append(lambda: allocator.view(offset, 1))
    for call in calls:
        with unchanged(allocator), pytest.raises(InvalidAccess) as caught:
            call()
        assert shown in str(caught.value)
        assert text in str(caught.value)
        assert caught.value.offset == offset


each_size = pytest.mark.parametrize("n_bytes", [1, 64 * KIB, 300_000, 2 * MIB])
