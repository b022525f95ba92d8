"""Pools that come and go, and what an allocation that fails says was missing."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from support.allocators import assert_refused, fill, pool_of, unchanged, used
from support.internals import set_grown_share

from jessymem import (
    AllocationFailed,
    ConfigError,
    InvalidAccess,
    MmapOffset,
    PoolAllocator,
    address_space,
    osmem,
)
from jessymem.kernels import schema as s
from jessymem.pools import views

KIB = 2**10
MIB = 2**20


# -- pools that come and go ------------------------------------------------------------------------


def test_a_pool_that_is_added_serves_what_fits_it_best(allocator):
    pool_id = allocator.add_pool(1, 16 * KIB)
    assert pool_id not in (0, 1, 2)
    assert [pool.block_size // KIB for pool in allocator.pools] == [4, 16, 64, 256]
    offset = allocator.allocate(10_000)
    assert offset.pool_id == pool_id
    allocator.deallocate(offset)
    assert pool_id in [pool.pool_id for pool in allocator.pools]
    assert not pool_of(allocator, offset).is_grown


def test_a_pool_that_is_added_takes_runs_if_its_blocks_are_the_largest(allocator):
    pool_id = allocator.add_pool(4, MIB)
    run = allocator.allocate(3 * MIB)
    assert (run.pool_id, used(allocator)) == (pool_id, 3 * MIB)
    single = allocator.allocate(300_000)
    assert (single.pool_id, used(allocator)) == (pool_id, 4 * MIB)
    allocator.deallocate_many([run, single])


def test_a_pool_may_be_added_before_anything_is_allocated():
    allocator = PoolAllocator([], limit_mb=10)
    pool_id = allocator.add_pool(1, 4 * KIB)
    assert [pool.pool_id for pool in allocator.pools] == [pool_id]
    assert allocator.validate() == []
    offset = allocator.allocate(1)
    assert offset.pool_id == pool_id
    allocator.deallocate(offset)


@pytest.mark.parametrize("arguments", [(0, 4096), (1, 100), (1, 2 * MIB), (True, 4096), ("1", 64)])
def test_a_pool_that_makes_no_sense_is_not_added(allocator, arguments):
    with unchanged(allocator), pytest.raises(ConfigError):
        allocator.add_pool(*arguments)


def test_more_pools_than_there_are_ids_are_no_pool():
    allocator = PoolAllocator([(1, MIB)], limit_mb=200)
    for _ in range(s.N_POOL_IDS - 1):
        allocator.add_pool(1, MIB)
    with unchanged(allocator), pytest.raises(AllocationFailed) as caught:
        allocator.add_pool(1, MIB)
    assert (caught.value.reason, caught.value.requested) == ("no_pool", MIB)
    assert len({pool.pool_id for pool in allocator.pools}) == s.N_POOL_IDS
    taken = allocator.allocate_many([MIB] * s.N_POOL_IDS)
    assert len(set(taken.tolist())) == s.N_POOL_IDS
    with unchanged(allocator), pytest.raises(AllocationFailed) as caught:
        allocator.allocate(1)
    assert caught.value.reason == "pool_full"
    allocator.deallocate_many(taken)
    assert allocator.validate() == []


def test_an_added_pool_that_the_system_refuses_is_os_refused(allocator, intercept):
    def refuse(operation, path, *details):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    intercept(refuse)
    with unchanged(allocator), pytest.raises(AllocationFailed) as caught:
        allocator.add_pool(1, 4 * KIB)
    assert (caught.value.reason, caught.value.requested) == ("os_refused", MIB)


def test_where_nothing_fits_a_pool_of_8_mib_is_made_and_unmapped_once_empty(allocator):
    blocks = fill(allocator, 256 * KIB)
    offset = allocator.allocate(200_000)
    pool = pool_of(allocator, offset)
    assert (pool.is_grown, pool.size_bytes, pool.block_size) == (True, 8 * MIB, 256 * KIB)
    assert allocator.survey().per_pool[pool.pool_id].kind == "grown"
    others = [allocator.allocate(256 * KIB) for _ in range(5)]
    assert {other.pool_id for other in others} == {pool.pool_id}
    for other in (offset, *others):
        assert pool.pool_id in [each.pool_id for each in allocator.pools]
        allocator.deallocate(other)
    assert [each.pool_id for each in allocator.pools] == [0, 1, 2]
    assert (pool.used_blocks, pool.utilization) == (0, 0.0)
    allocator.deallocate_many(blocks)


def test_a_grown_pool_is_no_larger_than_the_budget_has_room():
    allocator = PoolAllocator([(1, 64 * KIB)], limit_mb=4)
    blocks = fill(allocator, 1)
    offset = allocator.allocate(1)
    assert pool_of(allocator, offset).size_bytes <= 0.95 * 4 * MIB - MIB
    allocator.deallocate_many([*blocks, offset])


def test_a_request_of_several_mib_makes_a_pool_that_holds_it(allocator):
    offset = allocator.allocate(20 * MIB + 1)
    pool = pool_of(allocator, offset)
    assert (pool.is_grown, pool.size_bytes) == (True, 20 * MIB + 256 * KIB)
    with allocator.view(offset, 20 * MIB + 1) as view:
        view[-1] = 1
    allocator.deallocate(offset)
    assert len(allocator.pools) == 3


@pytest.fixture(params=[False, True], ids=["many addresses", "few addresses"])
def is_scarce(request, monkeypatch):
    monkeypatch.setattr(address_space, "is_scarce", lambda: request.param)
    return request.param


def test_a_grown_pool_grows_in_place(is_scarce):
    """Under views and handles, which go on to mean what they meant."""
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=100)
    first = fill(allocator, 4 * KIB)
    seen, held = [], []
    for _ in range(10):
        offsets = allocator.allocate_many([4 * KIB] * 2048)
        held += [MmapOffset.from_packed(offset) for offset in offsets]
        view = allocator.view(held[-1], 8)
        view[:] = len(seen).to_bytes(8, "little")
        seen.append(view)
        assert allocator.validate() == []
    pools = [pool for pool in allocator.pools if pool.is_grown]
    sizes = [pool.size_bytes // MIB for pool in pools]
    assert sizes == ([8, 8, 16, 32, 30] if is_scarce else [94])
    for number, (view, offset) in enumerate(zip(seen, held[2047::2048], strict=True)):
        assert bytes(view) == bytes(allocator.view(offset, 8)) == number.to_bytes(8, "little")
    assert not any(bytes(allocator.view(offset, 4 * KIB)).strip(b"\0") for offset in held[::501])
    seen.clear()
    del view
    allocator.deallocate_many(held)
    assert len(allocator.pools) == 1
    assert allocator.validate() == []
    allocator.deallocate_many(first)


def test_a_run_may_lie_across_where_a_pool_has_grown(monkeypatch):
    monkeypatch.setattr(address_space, "is_scarce", lambda: False)
    allocator = PoolAllocator([(1, 64 * KIB)], limit_mb=64)
    blocks = allocator.allocate_many([64 * KIB] * (16 + 128))  # of as many
    blocks.sort()
    allocator.deallocate_many(blocks[-4:])
    large = allocator.allocate(2 * MIB)  # makes it larger
    pool = pool_of(allocator, large)
    assert pool.size_bytes == 16 * MIB
    allocator.deallocate(large)
    across = allocator.allocate(MIB)
    assert across.offset == 124 * 64 * KIB
    with allocator.view(across, MIB) as view:
        assert not any(view)
        view[-1] = 1
    allocator.deallocate_many([*blocks[:-4], across])
    assert len(allocator.pools) == 1


def test_what_a_pool_grows_by_has_the_generations_of_its_id(monkeypatch):
    """Else a handle of an earlier pool would pass for one of the new blocks."""
    monkeypatch.setattr(address_space, "is_scarce", lambda: False)
    allocator = PoolAllocator([(1, 64 * KIB)], limit_mb=64)
    first = fill(allocator, 64 * KIB)
    old = allocator.allocate_many([64 * KIB] * 200)
    allocator.deallocate_many(old)
    assert len(allocator.pools) == 1
    new = allocator.allocate_many([64 * KIB] * 200)
    assert {MmapOffset.from_packed(each).generation for each in new} == {2}
    for stale in old[::20]:
        with unchanged(allocator), pytest.raises(InvalidAccess, match="stale"):
            allocator.deallocate(MmapOffset.from_packed(stale))
    found = allocator.survey()
    assert (found.n_allocations, found.n_deallocations) == (16 + 400, 200)
    allocator.deallocate_many([*first, *new])


def test_addresses_that_are_refused_are_not_needed(monkeypatch, intercept):
    monkeypatch.setattr(address_space, "is_scarce", lambda: False)
    allocator = PoolAllocator([(1, 64 * KIB)], limit_mb=64)
    asked = []

    def refuse_the_first(operation, path, *details):
        if operation == "map private":
            asked.append(operation)
            if len(asked) == 1:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    intercept(refuse_the_first)
    offset = allocator.allocate(3 * MIB)
    assert len(asked) == 2
    assert pool_of(allocator, offset).size_bytes == 8 * MIB
    allocator.deallocate(offset)


def test_a_grown_pool_waits_for_the_views_on_its_blocks(allocator):
    offset = allocator.allocate(3 * MIB)
    view = allocator.view(offset, 3 * MIB)
    allocator.deallocate(offset)
    assert allocator.trim() == 0
    assert pool_of(allocator, offset).used_blocks == 12
    view[-1] = 7
    del view
    assert len(allocator.pools) == 3
    assert used(allocator) == 0


def test_the_id_of_a_grown_pool_is_reused_and_its_stale_handles_are_recognized(allocator):
    stale = []
    for _ in range(4):
        offset = allocator.allocate(3 * MIB)
        further = allocator.allocate(2 * MIB + 1)
        assert offset.pool_id == 3
        stale += [offset, further]
        allocator.deallocate_many([offset, further])
        for each in stale:
            assert_refused(allocator, each, "there is no pool 3")
    assert len(set(stale)) == len(stale)
    held = [allocator.allocate(3 * MIB), allocator.allocate(3 * MIB - 1)]
    for each in stale:
        with unchanged(allocator), pytest.raises(InvalidAccess, match="MmapOffset") as caught:
            allocator.deallocate(each)
        assert caught.value.offset == each
    allocator.deallocate_many(held)


def test_a_pool_object_of_a_pool_that_is_gone_says_so_also_when_its_id_is_reused(allocator):
    blocks = fill(allocator, 256 * KIB)
    offset = allocator.allocate(10 * MIB)
    old = pool_of(allocator, offset)
    assert (old.is_grown, old.used_blocks, old.total_blocks) == (True, 40, 40)
    allocator.deallocate(offset)
    assert (old.used_blocks, old.utilization) == (0, 0.0)
    other = allocator.allocate(256 * KIB)
    assert (other.pool_id, pool_of(allocator, other).total_blocks) == (old.pool_id, 32)
    assert (old.used_blocks, old.utilization) == (0, 0.0)
    assert pool_of(allocator, other).used_blocks == 1
    allocator.deallocate_many([*blocks, other])


def test_counters_outlive_the_pools_they_were_counted_in(allocator):
    for n in range(1, 4):
        allocator.deallocate(allocator.allocate(5 * MIB))
        found = allocator.survey()
        assert (found.n_allocations, found.n_deallocations) == (n, n)


def test_rows_of_grown_pools_are_used_again(allocator):
    """More pools come and go than there is room for at once."""
    for n_mb in [3, 40, 5, 60, 2, 90] * 20:
        offset = allocator.allocate(n_mb * MIB + 1)
        allocator.deallocate(offset)
    assert len(allocator.pools) == 3


# -- why not ---------------------------------------------------------------------------------------


@pytest.fixture
def nearly_full(monkeypatch):
    """Blocks of 64 KiB that fill half the budget, where no further pool can be made.

    Pools made for single blocks of both sizes take up all the address space that the budget allows.
    """
    set_grown_share(monkeypatch, 1)
    allocator = PoolAllocator([(1, 4 * KIB), (1, 64 * KIB)], limit_mb=16)
    first = fill(allocator, 4 * KIB) + fill(allocator, 64 * KIB)
    held = [allocator.allocate(4 * KIB)]  # 8 MiB of small blocks
    while sum(pool.size_bytes for pool in allocator.pools if pool.is_grown) < 16 * MIB:
        held.append(allocator.allocate(64 * KIB))
    large = pool_of(allocator, held[-1])
    held += [allocator.allocate(64 * KIB) for _ in range(large.total_blocks - large.used_blocks)]
    assert used(allocator) + 2 * MIB < 0.95 * 16 * MIB
    yield allocator, first, held
    allocator.deallocate_many([*first, *held])
    assert allocator.validate() == []
    assert allocator.usage[0] == 0


def test_pool_full_is_told_where_there_is_room_but_no_block(nearly_full):
    allocator, _, _ = nearly_full
    for n_bytes in (64 * KIB, 5000, 100_000):
        with unchanged(allocator), pytest.raises(AllocationFailed) as caught:
            allocator.allocate(n_bytes)
        assert (caught.value.reason, caught.value.requested) == ("pool_full", n_bytes)
        assert f"{n_bytes:,}" in str(caught.value)
        assert isinstance(caught.value, MemoryError)
    assert allocator.n_failures == 3


def test_fragmented_is_told_where_free_blocks_are_not_in_a_row(nearly_full):
    allocator, first, held = nearly_full
    mine = sorted(offset for offset in first if pool_of(allocator, offset).block_size == 64 * KIB)
    for offset in mine[::2]:
        first.remove(offset)
        allocator.deallocate(offset)
    with unchanged(allocator), pytest.raises(AllocationFailed) as caught:
        allocator.allocate(100_000)
    assert (caught.value.reason, caught.value.requested) == ("fragmented", 100_000)
    first.append(allocator.allocate(5000))  # single blocks are there
    first.remove(mine[1])
    allocator.deallocate(mine[1])
    first.append(allocator.allocate(100_000))
    assert held


def test_the_reason_of_many_is_that_of_the_one_that_failed(nearly_full):
    allocator, _, _ = nearly_full
    with unchanged(allocator), pytest.raises(AllocationFailed) as caught:
        allocator.allocate_many([1, 1, 64 * KIB, 1])
    assert (caught.value.reason, caught.value.requested) == ("pool_full", 64 * KIB)


def test_a_pool_that_cannot_be_made_for_the_system_is_os_refused(allocator, intercept):
    def refuse(operation, path, *details):
        if operation == "map private":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    intercept(refuse)
    for call in (
        lambda: allocator.allocate(3 * MIB),
        lambda: allocator.allocate_many([1, 3 * MIB]),
        lambda: allocator.allocate_array(3 * MIB, np.uint8),
    ):
        with unchanged(allocator), pytest.raises(AllocationFailed) as caught:
            call()
        assert caught.value.reason == "os_refused"
        assert isinstance(caught.value.__cause__, OSError)
    assert allocator.n_failures == 3
    osmem.intercept = None
    allocator.deallocate(allocator.allocate(3 * MIB))


def test_no_memory_for_a_view_leaves_the_block_unviewed(allocator, monkeypatch):
    offset = allocator.allocate(10)

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(views.np, "frombuffer", fail)
    with unchanged(allocator), pytest.raises(MemoryError):
        allocator.view(offset, 10)
    monkeypatch.undo()
    allocator.deallocate(offset)
    assert used(allocator) == 0
