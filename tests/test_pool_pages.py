"""Pages of blocks: zeros on reuse, what stays resident, what is returned; and `validate`."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from support.allocators import fill, used
from support.internals import table_of

from jessymem import (
    MemoryConfig,
    MmapManager,
    MmapOffset,
    PoolAllocator,
    osmem,
)
from jessymem.kernels import schema as s

KIB = 2**10
MIB = 2**20


# -- zeros -----------------------------------------------------------------------------------------


def reused(allocator, n_bytes, how):
    """Write all of a block, free it, take it again and return what is in it."""
    first = how(n_bytes)
    with allocator.view(first, n_bytes) as view:
        view[:] = b"\xa5" * n_bytes
    allocator.deallocate(first)
    taken = [how(n_bytes)]
    while (taken[-1].pool_id, taken[-1].offset) != (first.pool_id, first.offset):
        taken.append(how(n_bytes))
    content = bytes(allocator.view(taken[-1], n_bytes))
    allocator.deallocate_many(taken)
    return content


each_use = pytest.mark.parametrize("n_bytes", [1, 100, 4 * KIB, 5000, 256 * KIB, 700_000, 2 * MIB])
each_way = pytest.mark.parametrize("way", ["one", "many"])


def way_of(allocator, way):
    if way == "one":
        return allocator.allocate
    return lambda n_bytes: MmapOffset.from_packed(allocator.allocate_many([n_bytes])[0])


@each_use
@each_way
def test_blocks_that_were_used_are_handed_out_zeroed(allocator, n_bytes, way):
    assert reused(allocator, n_bytes, way_of(allocator, way)) == bytes(n_bytes)


@each_use
@each_way
def test_without_zero_on_reuse_the_old_bytes_are_there(n_bytes, way):
    pools = [(1, 4 * KIB), (1, 64 * KIB), (2, 256 * KIB)]
    allocator = PoolAllocator(pools, limit_mb=100, zero_on_reuse=False)
    assert reused(allocator, n_bytes, way_of(allocator, way)) == b"\xa5" * n_bytes
    fresh = allocator.allocate_many([n_bytes] * 2)
    assert len(fresh) == 2
    allocator.deallocate_many(fresh)
    assert allocator.validate() == []


@each_way
def test_a_run_over_used_and_fresh_blocks_is_zeroed(allocator, way):
    blocks = fill(allocator, 256 * KIB)
    for offset in blocks[::2]:
        allocator.view(offset, 256 * KIB)[:] = b"\xff" * (256 * KIB)
    allocator.deallocate_many(blocks)
    allocator.trim()
    offset = allocator.allocate(256 * KIB)
    allocator.view(offset, 256 * KIB)[:] = b"\xff" * (256 * KIB)
    allocator.deallocate(offset)
    run = way_of(allocator, way)(2 * MIB)
    assert not np.frombuffer(allocator.view(run, 2 * MIB), np.uint8).any()
    allocator.deallocate(run)


def test_large_runs_are_zeroed_where_pages_cannot_go_back(allocator, intercept):
    def refuse(operation, path, *details):
        if operation == "return pages":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    intercept(refuse)
    assert reused(allocator, 2 * MIB, allocator.allocate) == bytes(2 * MIB)


@pytest.mark.parametrize("block", [64, 256, KIB, 2 * KIB])
@pytest.mark.parametrize("n_bytes", [1, 100, 1000, 5000, 50_000])
def test_zeroing_small_blocks_and_their_runs_leaves_the_neighbours_alone(block, n_bytes):
    """Several allocations share a page, which must not be returned for the sake of one."""
    allocator = PoolAllocator([(1, block)], limit_mb=8)
    held = {}
    for tag in range(1, 21):
        offset = allocator.allocate(n_bytes)
        allocator.view(offset, n_bytes)[:] = bytes([tag]) * n_bytes
        held[offset] = tag
    for freed in list(held)[::2]:
        allocator.deallocate(freed)
        del held[freed]
    again = [allocator.allocate(n_bytes) for _ in range(10)]
    for offset in again:
        assert bytes(allocator.view(offset, n_bytes)) == bytes(n_bytes)
    for offset, tag in held.items():
        assert bytes(allocator.view(offset, n_bytes)) == bytes([tag]) * n_bytes
    allocator.deallocate_many([*again, *held])
    assert allocator.validate() == []


# -- retained pages and trim -----------------------------------------------------------------------

returns_pages = pytest.mark.skipif(
    not osmem.CAN_RETURN_PAGES, reason="pages cannot be returned here"
)
PAGE = osmem.page_size()


@returns_pages
@pytest.mark.parametrize("block", [PAGE, 4 * PAGE, 16 * PAGE])
def test_freed_blocks_are_retained_until_trim(block):
    allocator = PoolAllocator([(4, block)], limit_mb=100)
    offsets = [allocator.allocate(block) for _ in range(7)]
    assert allocator.survey().n_retained == 0
    for offset in offsets[:4]:
        allocator.deallocate(offset)
    assert allocator.survey().n_retained == 4 * block
    assert used(allocator) == 3 * block
    again = allocator.allocate(1)  # takes one of them
    assert allocator.survey().n_retained in (3 * block, 4 * block)
    allocator.deallocate(again)
    retained = allocator.survey().n_retained
    assert allocator.trim() == retained
    assert allocator.survey().n_retained == 0
    assert allocator.trim() == 0
    assert used(allocator) == 3 * block
    allocator.deallocate_many(offsets[4:])
    assert allocator.trim() == 3 * block
    assert allocator.validate() == []


@returns_pages
@pytest.mark.parametrize("block", [64, 256, KIB, 2 * KIB])
def test_trim_gives_back_the_pages_of_small_blocks(block):
    """Also where a page holds some blocks that were never used."""
    allocator = PoolAllocator([(1, block)], limit_mb=10)
    for n_blocks in (1, 3, PAGE // block, 5 * PAGE // block + 1):
        offsets = allocator.allocate_many([block] * n_blocks)
        for offset in offsets:
            allocator.view(offset, block)[:] = b"\x01" * block
        allocator.deallocate_many(offsets)
        assert allocator.survey().n_retained >= n_blocks * block
        assert allocator.trim() > 0
        assert allocator.survey().n_retained == 0
        assert allocator.validate() == []


@returns_pages
def test_trim_leaves_pages_alone_on_which_anything_is_in_use():
    allocator = PoolAllocator([(1, 256)], limit_mb=10)
    blocks = fill(allocator, 256)
    for offset in blocks:
        allocator.view(offset, 256)[:] = b"\x07" * 256
    per_page = PAGE // 256
    held = blocks[:: per_page * 2]  # one block on every other page
    allocator.deallocate_many([offset for offset in blocks if offset not in held])
    assert allocator.trim() == MIB // 2
    for offset in held:
        assert bytes(allocator.view(offset, 256)) == b"\x07" * 256
    assert allocator.validate() == []
    allocator.deallocate_many(held)
    assert allocator.trim() == MIB // 2


def test_trim_takes_nothing_from_blocks_in_use_or_viewed(allocator):
    offset, viewed, freed = (allocator.allocate(5000) for _ in range(3))
    allocator.view(offset, 5000)[:] = b"\x01" * 5000
    view = allocator.view(viewed, 5000)
    view[:] = b"\x02" * 5000
    allocator.view(freed, 5000)[:] = b"\x03" * 5000
    allocator.deallocate(viewed)
    allocator.deallocate(freed)
    allocator.trim()
    assert bytes(allocator.view(offset, 5000)) == b"\x01" * 5000
    assert bytes(view) == b"\x02" * 5000
    del view
    allocator.deallocate(offset)


def test_trim_of_an_allocator_that_was_never_used_is_nothing():
    assert PoolAllocator([(1, 4096)], limit_mb=4).trim() == 0


def test_trim_where_the_system_refuses_gives_nothing_back(allocator, intercept):
    def refuse(operation, path, *details):
        if operation == "return pages":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    allocator.deallocate(allocator.allocate(5000))
    intercept(refuse)
    assert allocator.trim() == 0
    assert allocator.survey().n_retained == 64 * KIB
    assert allocator.validate() == []
    osmem.intercept = None
    assert allocator.trim() == (64 * KIB if osmem.CAN_RETURN_PAGES else 0)


def test_retained_pages_go_back_before_a_request_is_refused():
    allocator = PoolAllocator([(8, 4 * KIB), (8, 256 * KIB)], limit_mb=8)
    n_small = int(0.95 * 8 * MIB) // (4 * KIB)
    allocator.deallocate_many(allocator.allocate_many([4 * KIB] * n_small))
    assert (used(allocator), allocator.survey().n_retained) == (0, n_small * 4 * KIB)
    large = [allocator.allocate(256 * KIB) for _ in range(30)]
    assert used(allocator) + allocator.survey().n_retained <= 8 * MIB
    allocator.deallocate_many(large)
    run = allocator.allocate(6 * MIB)
    assert used(allocator) + allocator.survey().n_retained <= 8 * MIB
    allocator.deallocate(run)
    many = allocator.allocate_many([4 * KIB] * n_small)
    assert used(allocator) + allocator.survey().n_retained <= 8 * MIB
    allocator.deallocate_many(many)
    assert allocator.validate() == []
    assert allocator.n_failures == 0


def test_retained_pages_go_back_before_a_load_is_refused(tmp_path):
    from support.regions import write_sparse

    write_sparse(tmp_path, 20, 6 * MIB)
    with MmapManager(MemoryConfig(8, base_path=tmp_path, pool_configs=[(8, 64 * KIB)])) as manager:
        manager.deallocate_many(manager.allocate_many([64 * KIB] * 100))
        assert manager.get_stats().retained_bytes == 100 * 64 * KIB
        manager.load_dimension(20)
        stats = manager.get_stats()
        assert stats.total_allocated_bytes == 6 * MIB
        assert stats.total_allocated_bytes + stats.retained_bytes <= 8 * MIB


# -- validate --------------------------------------------------------------------------------------


def test_validate_names_each_counter_and_bit_that_differs(allocator):
    offset = allocator.allocate(1)
    state, table = table_of(allocator).state, table_of(allocator)
    spoilt = {
        "used is": (state, s.USED, 64),
        "of regions is": (state, s.OF_REGIONS, -64),  # negative: nothing to release
        "resident is": (state, s.RESIDENT, 64),
        "pool 0: the free count is": (state, s.FREE_COUNTS, 1),
        "pool 1: the bitmap is wrong for 1 blocks": (table.words_of(1), 0, -1),
    }
    for text, (words, at, change) in spoilt.items():
        words[at] += change
        found = allocator.validate()
        words[at] -= change
        assert any(text in line for line in found), (text, found)
        assert allocator.validate() == []
    allocator.deallocate(offset)
