"""`PoolAllocator` and `MmapOffset`: how pools are made, and which block is handed out.

Blocks may be handed out in any order, so nothing here relies on which one is: where a test needs
neighbours it fills a pool and sorts.
"""

from __future__ import annotations

import copy
import errno
import os
import pickle
import threading

import numpy as np
import pytest
from support.allocators import assert_refused, fill, pool_of, unchanged, used

from jessymem import (
    AllocationFailed,
    ConfigError,
    InvalidAccess,
    LimitExceeded,
    MmapOffset,
    OutOfBounds,
    PoolAllocator,
    PoolConfig,
)
from jessymem.kernels import schema as s

KIB = 2**10
MIB = 2**20

#: No thread waits longer for another.
PATIENCE_SECONDS = 30


# -- construction ----------------------------------------------------------------------------------


def test_the_default_pools_are_280_mib_in_four_sizes():
    allocator = PoolAllocator()
    sizes = [(pool.block_size // KIB, pool.size_bytes // MIB) for pool in allocator.pools]
    assert sizes == [(4, 32), (16, 128), (64, 80), (256, 40)]
    assert allocator.usage == (0, 280 * MIB)
    assert allocator.validate() == []


def test_pools_are_ordered_by_block_size_however_they_are_given():
    allocator = PoolAllocator([(2, 64 * KIB), (1, 256), PoolConfig(3, 4 * KIB)], limit_mb=10)
    assert [pool.block_size for pool in allocator.pools] == [256, 4 * KIB, 64 * KIB]
    assert [pool.pool_id for pool in allocator.pools] == [0, 1, 2]
    for pool, megabytes in zip(allocator.pools, (1, 3, 2), strict=True):
        assert pool.size_bytes == megabytes * MIB
        assert pool.total_blocks * pool.block_size == pool.size_bytes
        assert (pool.used_blocks, pool.utilization) == (0, 0.0)
        assert str(pool.block_size) in repr(pool)


def test_an_allocator_without_pools_makes_them_when_asked():
    allocator = PoolAllocator([], limit_mb=16)
    assert allocator.pools == []
    assert allocator.validate() == []
    offset = allocator.allocate(10)
    assert [pool.block_size for pool in allocator.pools] == [4 * KIB]
    allocator.deallocate(offset)
    assert allocator.pools == []
    offset = allocator.allocate(3 * MIB)
    assert allocator.usage[0] == 3 * MIB
    allocator.deallocate(offset)
    assert allocator.validate() == []


@pytest.mark.parametrize(
    ("pools", "field"),
    [
        ([(0, 4096)], "size_mb"),
        ([(-1, 4096)], "size_mb"),
        ([(True, 4096)], "size_mb"),
        ([(1.0, 4096)], "size_mb"),
        ([("1", 4096)], "size_mb"),
        ([(1, 0)], "block_size"),
        ([(1, 63)], "block_size"),
        ([(1, 32)], "block_size"),
        ([(1, 4095)], "block_size"),
        ([(1, 2 * MIB)], "block_size"),
        ([(1, True)], "block_size"),
        ([(1, None)], "block_size"),
        ([(1,)], "pools"),
        ([(1, 64, 3)], "pools"),
        ([4096], "pools"),
        ("pools", "pools"),
        (None, "pools"),
        (7, "pools"),
    ],
)
def test_pools_that_make_no_sense_are_refused_by_name(pools, field):
    with pytest.raises(ConfigError, match=field) as caught:
        PoolAllocator(pools, limit_mb=10)
    assert caught.value.field == field


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "10", None])
def test_a_limit_that_makes_no_sense_is_refused_by_name(limit):
    with pytest.raises(ConfigError, match="limit_mb"):
        PoolAllocator([(1, 4096)], limit_mb=limit)


def test_zero_on_reuse_is_true_or_false():
    with pytest.raises(ConfigError, match="zero_on_reuse"):
        PoolAllocator([(1, 4096)], 10, zero_on_reuse=1)


def test_a_pool_is_no_larger_than_a_handle_can_say():
    n_mb = s.POOL_BYTES_LIMIT // MIB
    assert PoolConfig(n_mb, 4096).size_mb == n_mb
    for size in (n_mb + 1, 2**60):
        with pytest.raises(ConfigError, match="size_mb"):
            PoolConfig(size, 4096)
        with pytest.raises(ConfigError, match="size_mb"):
            PoolAllocator([(1, 4096)], 10).add_pool(size, 4096)


@pytest.mark.parametrize("limit", [2**44, 2**70])
def test_a_limit_beyond_any_memory_is_refused_by_name(limit):
    with pytest.raises(ConfigError, match="limit_mb"):
        PoolAllocator([(1, 4096)], limit_mb=limit)


def test_address_space_that_the_system_refuses_is_os_refused(intercept):
    def refuse(operation, path, *details):
        if operation == "map private":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    intercept(refuse)
    with pytest.raises(AllocationFailed) as caught:
        PoolAllocator([(1, 4096)], limit_mb=10)
    assert caught.value.reason == "os_refused"
    assert caught.value.requested > 0


def test_the_limit_may_be_below_the_address_space_of_the_pools():
    allocator = PoolAllocator([(8, 4 * KIB), (8, 64 * KIB)], limit_mb=2)
    assert sum(pool.size_bytes for pool in allocator.pools) == 16 * MIB
    taken = []
    with pytest.raises(LimitExceeded):
        while True:
            taken.append(allocator.allocate(64 * KIB))
    assert used(allocator) == len(taken) * 64 * KIB <= 0.95 * 2 * MIB < used(allocator) + 64 * KIB
    allocator.deallocate_many(taken)
    assert allocator.usage == (0, 2 * MIB)
    assert allocator.validate() == []


def test_repr_shows_what_is_in_use(allocator):
    allocator.allocate(1)
    assert repr(allocator) == f"<PoolAllocator 4,096 of {100 * MIB:,} bytes>"


# -- MmapOffset ------------------------------------------------------------------------------------

OFFSETS = [
    (0, 0, -1),
    (0, 0, 0),
    (0, 4096, 7),
    (3, 64, 2**28 - 1),
    (126, 2**34 - 64, 1),
    (126, 2**34, 1),
    (127, 64, 5),
    (9, 1, 3),
    (9, 63, -1),
    (2**64 - 1, 2**64 - 1, 2**28 - 1),
]


@pytest.mark.parametrize("numbers", OFFSETS)
def test_an_offset_keeps_its_three_numbers_through_copies_and_pickles(numbers):
    offset = MmapOffset(*numbers)
    for each in (offset, copy.copy(offset), copy.deepcopy(offset)):
        assert (each.pool_id, each.offset, each.generation) == numbers
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(offset, protocol))
        assert type(back) is MmapOffset
        assert back == offset
        assert hash(back) == hash(offset)
        assert (back.pool_id, back.offset, back.generation) == numbers
    shown = "MmapOffset(pool_id={}, offset={}, generation={})".format(*numbers)
    assert repr(offset) == str(offset) == f"{offset}" == shown
    assert eval(shown) == offset


def test_offsets_are_equal_where_their_numbers_are():
    offsets = [MmapOffset(*numbers) for numbers in OFFSETS]
    assert len(set(offsets)) == len(OFFSETS)
    assert offsets == [MmapOffset(*numbers) for numbers in OFFSETS]


def test_the_generation_is_optional():
    assert MmapOffset(2, 4096).generation == -1
    assert MmapOffset(2, 4096) == MmapOffset(pool_id=2, offset=4096, generation=-1)


def test_offsets_take_numpy_integers():
    assert MmapOffset(np.int32(1), np.uint64(4096), np.int8(3)) == MmapOffset(1, 4096, 3)


def test_an_offset_goes_through_an_array(allocator):
    offset = allocator.allocate(100)
    packed = np.array([offset])
    assert packed.dtype == np.int64
    assert MmapOffset.from_packed(packed[0]) == offset
    assert MmapOffset.from_packed(int(offset)) == offset
    allocator.deallocate(packed[0])


@pytest.mark.parametrize(
    "numbers",
    [(-1, 0, 0), (0, -1, 0), (0, 0, -2), (0, 0, 2**28), (2**64, 0, 0), (0, 2**64, 0)],
)
def test_an_offset_out_of_range_is_refused(numbers):
    with pytest.raises(ValueError, match="must be"):
        MmapOffset(*numbers)


@pytest.mark.parametrize("numbers", [(0.0, 0, 0), (0, "0", 0), (0, 0, None), (None, 0, 0)])
def test_an_offset_of_other_types_is_refused(numbers):
    with pytest.raises(TypeError):
        MmapOffset(*numbers)


@pytest.mark.parametrize("packed", [-1, 2**63, 2**200])
def test_what_is_no_packed_offset_is_refused(packed):
    with pytest.raises(ValueError, match=str(packed)):
        MmapOffset.from_packed(packed)


# -- allocate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_bytes", "block"),
    [
        (1, 4 * KIB),
        (4 * KIB, 4 * KIB),
        (4 * KIB + 1, 64 * KIB),
        (64 * KIB, 64 * KIB),
        (64 * KIB + 1, 256 * KIB),
        (256 * KIB, 256 * KIB),
        (256 * KIB + 1, 512 * KIB),
        (2 * MIB, 2 * MIB),
    ],
)
@pytest.mark.parametrize("kind", [int, np.int64, np.uint32])
def test_the_smallest_block_that_fits_is_taken_or_a_run_of_largest(allocator, n_bytes, block, kind):
    offset = allocator.allocate(kind(n_bytes))
    assert used(allocator) == block
    assert pool_of(allocator, offset).block_size == min(block, 256 * KIB)
    assert offset.offset % pool_of(allocator, offset).block_size == 0
    assert allocator.survey().n_requested == n_bytes
    allocator.deallocate(offset, n_bytes)
    assert used(allocator) == 0


@pytest.mark.parametrize("size", [0, -1, -(2**70), np.int64(0), np.int8(-3)])
def test_a_size_below_one_is_a_value_error(allocator, size):
    with unchanged(allocator), pytest.raises(ValueError, match="at least 1"):
        allocator.allocate(size)


@pytest.mark.parametrize("size", [True, False, np.True_, 1.0, "1", b"1", None, [1], 1j])
def test_a_size_of_another_type_is_a_type_error(allocator, size):
    with unchanged(allocator), pytest.raises(TypeError):
        allocator.allocate(size)


@pytest.mark.parametrize("size", [101 * MIB, 2**40, 2**62, 2**62 + 1, 2**63, 2**64, 2**200])
def test_a_huge_size_exceeds_the_limit(allocator, size):
    with unchanged(allocator), pytest.raises(LimitExceeded):
        allocator.allocate(size)
    assert allocator.n_failures == 1


def test_limit_exceeded_tells_the_numbers():
    allocator = PoolAllocator([(4, MIB), (1, 4 * KIB)], limit_mb=4)
    held = allocator.allocate(2 * MIB)
    viewed = allocator.allocate(1)
    view = allocator.view(viewed, 1)
    allocator.deallocate(viewed)
    with unchanged(allocator), pytest.raises(LimitExceeded) as caught:
        allocator.allocate(2 * MIB - 1)
    error = caught.value
    assert error.current == used(allocator) == 2 * MIB + 4 * KIB
    assert error.limit == int(0.95 * 4 * MIB)
    assert error.requested == 2 * MIB - 1
    assert error.waiting == 4 * KIB
    assert isinstance(error, MemoryError)
    for number in (error.current, error.limit, error.requested, error.waiting, 4 * MIB):
        assert f"{number:,}" in str(error)
    assert (allocator.n_failures, len(view)) == (1, 1)
    allocator.deallocate(held)
    del view
    assert allocator.validate() == []


def test_up_to_the_critical_threshold_everything_is_handed_out():
    allocator = PoolAllocator([(20, 64 * KIB)], limit_mb=10)
    n_blocks = 152  # 9.5 MiB
    taken = [allocator.allocate(64 * KIB) for _ in range(n_blocks)]
    assert used(allocator) == n_blocks * 64 * KIB == 0.95 * 10 * MIB
    with unchanged(allocator), pytest.raises(LimitExceeded):
        allocator.allocate(1)
    allocator.deallocate(taken.pop())
    taken.append(allocator.allocate(1))
    allocator.deallocate_many(taken)
    assert allocator.validate() == []


def test_blocks_do_not_overlap_and_keep_what_is_written(allocator):
    sizes = [1, 100, 4 * KIB, 5000, 64 * KIB, 100_000, 300_000] * 3
    held = []
    for tag, n_bytes in enumerate(sizes, 1):
        offset = allocator.allocate(n_bytes)
        view = allocator.view(offset, n_bytes)
        view[:] = bytes([tag]) * n_bytes
        held.append((offset, tag, n_bytes))
        del view
    for offset, tag, n_bytes in held:
        assert bytes(allocator.view(offset, n_bytes)) == bytes([tag]) * n_bytes
        allocator.deallocate(offset, n_bytes)
    assert used(allocator) == 0


def test_threads_get_blocks_of_their_own(allocator):
    n_threads, n_each = 8, 30
    barrier = threading.Barrier(n_threads)
    taken = [[] for _ in range(n_threads)]

    def take(mine):
        barrier.wait(PATIENCE_SECONDS)
        mine += [allocator.allocate(4 * KIB) for _ in range(n_each)]

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    offsets = [offset for mine in taken for offset in mine]
    assert len({(offset.pool_id, offset.offset) for offset in offsets}) == n_threads * n_each
    allocator.deallocate_many(offsets)
    assert used(allocator) == 0


# -- many at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array, lambda x: np.array(x, np.uint16)])
def test_many_blocks_come_in_the_order_of_their_sizes(allocator, kind):
    sizes = [1, 5000, 100, 50_000, 4 * KIB]
    packed = allocator.allocate_many(kind(sizes))
    assert (packed.dtype, packed.shape) == (np.int64, (5,))
    for number, n_bytes in zip(packed, sizes, strict=True):
        offset = MmapOffset.from_packed(number)
        assert pool_of(allocator, offset).block_size >= n_bytes
        assert len(allocator.view(number, n_bytes)) == n_bytes
        with pytest.raises(OutOfBounds):
            allocator.view(number, n_bytes + 1)
    allocator.deallocate_many(packed[::-1])
    assert used(allocator) == 0


def test_many_take_strided_sizes_and_offsets(allocator):
    sizes = np.arange(1, 201, dtype=np.int32)[::7]
    packed = np.zeros(3 * len(sizes), np.int64)[::3]
    packed[:] = allocator.allocate_many(sizes)
    allocator.deallocate_many(packed)
    assert used(allocator) == 0


def test_many_sizes_larger_than_any_block_are_runs(allocator):
    packed = allocator.allocate_many([300_000, 1, 512 * KIB, 2 * MIB])
    assert used(allocator) == (512 + 4 + 512 + 2048) * KIB  # the last one in a pool of its own
    allocator.deallocate_many(packed)
    assert used(allocator) == 0


def test_many_of_none_is_none(allocator):
    with unchanged(allocator):
        assert allocator.allocate_many([]).tolist() == []
        allocator.deallocate_many([])
    fresh = PoolAllocator([(1, 4096)], limit_mb=4)
    assert fresh.allocate_many([]).shape == (0,)
    assert PoolAllocator([(1, 4096)], limit_mb=4).deallocate_many([]) is None


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ([1, 0, 1], ValueError),
        ([1, -1], ValueError),
        ([2**62 + 1], ValueError),
        ([2**63], ValueError),
        ([[1, 2]], ValueError),
        (np.array(3), ValueError),
        (np.ones((2, 2), int), ValueError),
        ([1, [2, 3]], ValueError),
        ([1.0], TypeError),
        (["1"], TypeError),
        ([None], TypeError),
        ([True], TypeError),
        ([1, True], TypeError),
        (np.array([True]), TypeError),
        (5, TypeError),
        (None, TypeError),
    ],
)
def test_many_sizes_that_make_no_sense_are_refused(allocator, sizes, error):
    with unchanged(allocator), pytest.raises(error):
        allocator.allocate_many(sizes)


def test_many_are_allocated_or_none(allocator):
    for wrong in (101 * MIB, 2**62):
        for sizes in ([wrong], [1, wrong], [wrong, 1], [1, 5000, 300_000, wrong, 1]):
            with unchanged(allocator), pytest.raises(LimitExceeded) as caught:
                allocator.allocate_many(sizes)
            assert caught.value.requested == sum(sizes)
    assert allocator.n_failures == 8


def test_a_pool_that_was_made_for_many_that_failed_is_gone(allocator):
    with unchanged(allocator), pytest.raises(LimitExceeded):
        allocator.allocate_many([3 * MIB, 1, 101 * MIB])


def test_many_that_do_not_fit_together_leave_nothing():
    allocator = PoolAllocator([(2, 64 * KIB)], limit_mb=1)
    first = allocator.allocate_many([64 * KIB] * 10)
    with unchanged(allocator), pytest.raises(LimitExceeded):
        allocator.allocate_many([64 * KIB] * 6)
    second = allocator.allocate_many([64 * KIB] * 5)
    assert len({*first.tolist(), *second.tolist()}) == 15
    allocator.deallocate_many(np.concatenate([first, second]))
    assert allocator.validate() == []


def test_what_many_rolled_back_is_no_allocation():
    allocator = PoolAllocator([(2, 64 * KIB)], limit_mb=1)
    before = allocator.survey()
    with pytest.raises(LimitExceeded):
        allocator.allocate_many([64 * KIB] * 16)
    after = allocator.survey()
    assert (after.n_allocations, after.n_deallocations) == (0, 0)
    assert after.largest_free_run == before.largest_free_run
    assert_refused(allocator, MmapOffset(0, 0), "never handed out")


def test_many_back_with_one_twice_is_refused(allocator):
    packed = allocator.allocate_many([1, 5000, 300_000])
    for wrong in ([0, 1, 2, 0], [2, 2], [1, 0, 1, 2]):
        with unchanged(allocator), pytest.raises(InvalidAccess) as caught:
            allocator.deallocate_many(packed[wrong])
        assert repr(caught.value.offset) in str(caught.value)
        repeated = next(i for at, i in enumerate(wrong) if i in wrong[:at])
        assert caught.value.offset == packed[repeated]
    allocator.deallocate_many(packed)
    assert used(allocator) == 0


def test_many_back_wait_each_for_its_views(allocator):
    packed = allocator.allocate_many([1, 5000, 300_000])
    view = allocator.view(packed[1], 5000)
    allocator.deallocate_many(packed)
    assert used(allocator) == allocator.survey().n_waiting == 64 * KIB
    assert len(view) == 5000
    del view
    assert used(allocator) == 0


@pytest.mark.parametrize("wrong", [[1.0], ["1"], [None], np.array([True]), 7, None])
def test_many_back_of_other_types_are_refused(allocator, wrong):
    with unchanged(allocator), pytest.raises(TypeError):
        allocator.deallocate_many(wrong)


def test_many_back_in_two_dimensions_are_refused(allocator):
    packed = allocator.allocate_many([1, 2])
    with unchanged(allocator), pytest.raises(ValueError, match="dimension"):
        allocator.deallocate_many(packed.reshape(1, 2))
    allocator.deallocate_many(packed)


# -- best fit, spill, runs -------------------------------------------------------------------------


def test_a_full_pool_spills_into_the_next_larger(allocator):
    first = fill(allocator, 100)
    spilled = [allocator.allocate(100) for _ in range(16)]
    assert {pool_of(allocator, offset).block_size for offset in spilled} == {64 * KIB}
    further = [allocator.allocate(100) for _ in range(8)]
    assert {pool_of(allocator, offset).block_size for offset in further} == {256 * KIB}
    failures = [stats.failures for stats in allocator.survey().per_pool.values()]
    assert failures == [24, 8, 0]
    allocator.deallocate(first.pop())
    back = allocator.allocate(100)
    assert pool_of(allocator, back).block_size == 4 * KIB
    allocator.deallocate_many([*first, *spilled, *further, back])
    assert used(allocator) == 0


def test_a_full_pool_never_spills_into_a_smaller_one(allocator):
    large = fill(allocator, 256 * KIB)
    offset = allocator.allocate(256 * KIB)
    assert pool_of(allocator, offset).is_grown
    assert pool_of(allocator, offset).block_size == 256 * KIB
    allocator.deallocate_many([*large, offset])


def test_a_run_lies_in_a_row_of_largest_blocks(allocator):
    offset = allocator.allocate(700_000)
    pool = pool_of(allocator, offset)
    assert (pool.block_size, pool.used_blocks) == (256 * KIB, 3)
    view = allocator.view(offset, 700_000)
    view[:] = np.arange(700_000, dtype=np.uint32).astype(np.uint8).tobytes()
    others = fill(allocator, 256 * KIB)
    assert len(others) == 5
    for other in others:
        allocator.view(other, 256 * KIB)[:] = b"\xff" * (256 * KIB)
    assert bytes(view) == np.arange(700_000, dtype=np.uint32).astype(np.uint8).tobytes()
    del view
    allocator.deallocate_many([offset, *others])


def test_a_run_of_a_whole_pool(allocator):
    offset = allocator.allocate(2 * MIB)
    assert offset.offset == 0
    assert pool_of(allocator, offset).utilization == 1.0
    allocator.deallocate(offset)
    again = allocator.allocate(2 * MIB)
    assert again.generation != offset.generation
    allocator.deallocate(again)


def test_the_gap_that_one_block_leaves_takes_no_run(allocator):
    blocks = fill(allocator, 256 * KIB)
    freed = [blocks.pop(6), blocks.pop(4), blocks.pop(3)]
    for offset in freed:
        allocator.deallocate(offset)
    run = allocator.allocate(512 * KIB)
    assert run.offset == 3 * 256 * KIB
    other = allocator.allocate(512 * KIB)
    assert pool_of(allocator, other).is_grown
    allocator.deallocate_many([*blocks, run, other])


def test_the_largest_free_run_is_told(allocator):
    assert allocator.survey().largest_free_run == 2 * MIB
    blocks = fill(allocator, 256 * KIB)
    assert allocator.survey().largest_free_run == MIB  # a pool of smaller blocks
    for offset in blocks[2:7]:
        allocator.deallocate(offset)
    assert allocator.survey().largest_free_run == 5 * 256 * KIB
    allocator.deallocate_many([*blocks[:2], *blocks[7:]])
