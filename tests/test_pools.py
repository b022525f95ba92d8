"""`PoolAllocator` and `MmapOffset`: blocks, wrong calls, views, arrays, pools that come and go.

Blocks may be handed out in any order, so nothing here relies on which one is: where a test needs
neighbours it fills a pool and sorts.
"""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from jessymem import (
    AllocationFailed,
    ConfigError,
    InvalidAccess,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    MmapOffset,
    OutOfBounds,
    PoolAllocator,
    PoolConfig,
    osmem,
)
from jessymem.kernels import release
from jessymem.kernels import schema as s

KIB = 2**10
MIB = 2**20

#: No thread waits longer for another.
PATIENCE_SECONDS = 30


@pytest.fixture
def allocator():
    """Pools of 256 x 4 KiB, 16 x 64 KiB and 8 x 256 KiB, far from any threshold."""
    made = PoolAllocator([(1, 4 * KIB), (1, 64 * KIB), (2, 256 * KIB)], limit_mb=100)
    yield made
    assert made.validate() == []
    made.close()


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
        allocator.waiting_blocks(),
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
        ([(1,)], "pool_configs"),
        ([(1, 64, 3)], "pool_configs"),
        ([4096], "pool_configs"),
        ("pools", "pool_configs"),
        (None, "pool_configs"),
        (7, "pool_configs"),
    ],
)
def test_pools_that_make_no_sense_are_refused_by_name(pools, field):
    with pytest.raises(ConfigError, match=field) as caught:
        PoolAllocator(pools, limit_mb=10)
    assert caught.value.field == field


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "10", None])
def test_a_limit_that_makes_no_sense_is_refused_by_name(limit):
    with pytest.raises(ConfigError, match="total_memory_mb"):
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
    with pytest.raises(ConfigError, match="total_memory_mb"):
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


# -- wrong ways back -------------------------------------------------------------------------------


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


def assert_many_refused(allocator, offset, text):
    """As `assert_refused`, for an offset among good ones."""
    good = allocator.allocate_many([1, 5000, 300_000])
    for at in range(len(good) + 1):
        with unchanged(allocator), pytest.raises(InvalidAccess) as caught:
            allocator.deallocate_many(np.insert(good, at, int(offset)))
        assert repr(offset) in str(caught.value)
        assert text in str(caught.value)
        assert caught.value.offset == offset
    allocator.deallocate_many(good)


each_size = pytest.mark.parametrize("n_bytes", [1, 64 * KIB, 300_000, 2 * MIB])


@each_size
def test_a_block_given_back_twice_is_refused(allocator, n_bytes):
    offset = allocator.allocate(n_bytes)
    allocator.deallocate(offset)
    assert_refused(allocator, offset, "given back before")


def test_a_block_given_back_twice_is_refused_among_many(allocator):
    offset = allocator.allocate(200_000)
    allocator.deallocate(offset)
    good = allocator.allocate_many([1, 5000])
    for at in range(3):
        with (
            unchanged(allocator),
            pytest.raises(InvalidAccess, match="given back before") as caught,
        ):
            allocator.deallocate_many(np.insert(good, at, offset))
        assert caught.value.offset == offset
    allocator.deallocate_many(good)


def test_a_block_given_back_by_many_is_refused_alone(allocator):
    offset = allocator.allocate(100_000)
    allocator.deallocate_many([offset])
    assert_refused(allocator, offset, "given back before")


def test_a_block_that_waits_is_refused(allocator):
    offset = allocator.allocate(5000)
    view = allocator.view(offset, 5000)
    allocator.deallocate(offset)
    assert_refused(allocator, offset, "given back before")
    assert_many_refused(allocator, offset, "given back before")
    del view
    assert_refused(allocator, offset, "given back before")


@each_size
def test_a_stale_handle_is_refused_after_reuse(allocator, n_bytes):
    first = allocator.allocate(n_bytes)
    allocator.deallocate(first)
    taken = [allocator.allocate(n_bytes)]
    while (taken[-1].pool_id, taken[-1].offset) != (first.pool_id, first.offset):
        taken.append(allocator.allocate(n_bytes))
    assert taken[-1].generation != first.generation
    assert_refused(allocator, first, "stale")
    if n_bytes == 1:
        assert_many_refused(allocator, first, "stale")
    allocator.deallocate_many(taken)


def test_a_stale_handle_of_a_run_is_refused_where_single_blocks_are_by_now(allocator):
    run = allocator.allocate(2 * MIB)
    allocator.deallocate(run)
    blocks = fill(allocator, 256 * KIB)
    assert_refused(allocator, run, "stale")
    allocator.deallocate_many(blocks)


def test_a_handle_of_the_future_is_refused(allocator):
    offset = allocator.allocate(1)
    later = MmapOffset(offset.pool_id, offset.offset, offset.generation + 1)
    assert_refused(allocator, later, "stale")
    allocator.deallocate(offset)


def test_a_block_in_another_pool_is_refused(allocator):
    offset = allocator.allocate(64 * KIB)
    others = [pool.pool_id for pool in allocator.pools if pool.pool_id != offset.pool_id]
    for pool in others:
        with unchanged(allocator), pytest.raises(InvalidAccess) as caught:
            allocator.deallocate(MmapOffset(pool, offset.offset, offset.generation))
        assert f"pool_id={pool}" in str(caught.value)
    allocator.deallocate(offset)


@pytest.mark.parametrize("generation", [-1, 0, 1])
@pytest.mark.parametrize("pool", [3, 126, 127, 128, 2**40, 2**64 - 1])
def test_a_pool_that_is_none_is_refused(allocator, pool, generation):
    assert_refused(allocator, MmapOffset(pool, 0, generation), f"there is no pool {pool}")


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("inside", [1, 63, 64, 2048, 4 * KIB - 1])
def test_a_place_inside_a_block_is_refused(allocator, inside, checked):
    offset = allocator.allocate(4 * KIB)
    generation = offset.generation if checked else -1
    wrong = MmapOffset(offset.pool_id, offset.offset + inside, generation)
    assert_refused(allocator, wrong, "inside an allocation")
    allocator.deallocate(offset)


@pytest.mark.parametrize("generation", [-1, 0, 1])
def test_a_place_inside_a_run_is_refused(allocator, generation):
    run = allocator.allocate(MIB)
    for block in (1, 2, 3):
        place = run.offset + block * 256 * KIB
        wrong = MmapOffset(run.pool_id, place, generation)
        assert_refused(allocator, wrong, "inside an allocation")
    allocator.deallocate(run)


@pytest.mark.parametrize("generation", [-1, 1])
@pytest.mark.parametrize("beyond", [0, 4 * KIB, MIB, 2**40, 2**63])
def test_a_place_past_the_end_is_refused(allocator, beyond, generation):
    wrong = MmapOffset(0, MIB + beyond, generation)
    assert_refused(allocator, wrong, f"pool 0 ends at {MIB:,}")


def test_a_block_never_handed_out_is_refused(allocator):
    offset = allocator.allocate(1)
    for block in range(256):
        if block * 4 * KIB != offset.offset:
            with pytest.raises(InvalidAccess, match="never handed out"):
                allocator.deallocate(MmapOffset(0, block * 4 * KIB))
    assert_refused(allocator, MmapOffset(1, 0), "never handed out")
    assert_refused(allocator, MmapOffset(1, 0, 0), "never handed out")
    assert_refused(allocator, MmapOffset(2, 256 * KIB, 1), "never handed out")
    allocator.deallocate(offset)


@pytest.mark.parametrize("wrong", [1, 99, 101, 4 * KIB, 2**62, 2**63, 2**200, np.int32(99)])
def test_a_size_that_does_not_match_is_refused(allocator, wrong):
    offset = allocator.allocate(100)
    assert_refused(allocator, offset, "not what was allocated", size=wrong)
    allocator.deallocate(offset, np.int16(100))
    assert used(allocator) == 0


@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError)])
def test_what_is_no_size_is_refused_at_the_way_back(allocator, wrong, error):
    offset = allocator.allocate(1)
    with unchanged(allocator), pytest.raises(error):
        allocator.deallocate(offset, wrong)
    allocator.deallocate(offset)


def test_a_wrong_size_does_not_excuse_a_wrong_offset(allocator):
    offset = allocator.allocate(100)
    allocator.deallocate(offset)
    assert_refused(allocator, offset, "given back before", size=100)
    assert_refused(allocator, offset, "given back before", size=7)


def test_the_offset_of_another_allocator_is_refused(allocator):
    other = PoolAllocator([(1, 4 * KIB)], limit_mb=4)
    mine = [allocator.allocate(n_bytes) for n_bytes in (1, 5000, 300_000)]
    for offset in mine:
        with unchanged(other), pytest.raises(InvalidAccess, match=f"pool_id={offset.pool_id}"):
            other.deallocate(offset)
    allocator.deallocate_many(mine)


@pytest.mark.parametrize("wrong", [True, False, 1.0, "0", None, (0, 0), b"0", np.True_, object()])
def test_what_is_no_offset_is_a_type_error(allocator, wrong):
    held = allocator.allocate_many([1] * 256)  # among them what a bool would stand for
    with unchanged(allocator):
        with pytest.raises(TypeError):
            allocator.deallocate(wrong)
        with pytest.raises(TypeError):
            allocator.view(wrong, 1)
        with pytest.raises((TypeError, ValueError)):
            allocator.deallocate_many([wrong])
    allocator.deallocate_many(held)


@pytest.mark.parametrize("wrong", [-1, 2**63, 2**200])
def test_what_no_offset_could_be_is_a_value_error(allocator, wrong):
    with unchanged(allocator):
        with pytest.raises(ValueError, match=str(wrong)):
            allocator.deallocate(wrong)
        with pytest.raises(ValueError, match="offset"):
            allocator.deallocate_many([wrong])


def test_an_offset_without_generation_means_the_present_owner(allocator):
    offset = allocator.allocate(100)
    unchecked = MmapOffset(offset.pool_id, offset.offset)
    allocator.view(unchecked, 100)[:3] = b"abc"
    assert bytes(allocator.view(offset, 3)) == b"abc"
    with unchanged(allocator), pytest.raises(InvalidAccess, match="not what was allocated"):
        allocator.deallocate(unchecked, 99)
    allocator.deallocate(unchecked, 100)
    assert_refused(allocator, unchecked, "given back before")
    assert_refused(allocator, offset, "given back before")


@pytest.mark.parametrize("place", [0, 4 * KIB])
def test_an_offset_without_generation_is_no_part_of_many(allocator, place):
    offsets = [*allocator.allocate_many([1] * 256).tolist(), MmapOffset(0, place)]
    with unchanged(allocator), pytest.raises(ValueError, match="offset"):
        allocator.deallocate_many(offsets)
    allocator.deallocate_many(offsets[:-1])


def test_after_close_every_call_for_memory_is_refused(allocator):
    offset = allocator.allocate(100)
    allocator.close()
    allocator.close()
    calls = [
        lambda: allocator.allocate(1),
        lambda: allocator.allocate(300_000),
        lambda: allocator.deallocate(offset),
        lambda: allocator.deallocate(offset, 100),
        lambda: allocator.deallocate(MmapOffset(offset.pool_id, offset.offset)),
        lambda: allocator.view(offset, 1),
        lambda: allocator.allocate_many([1, 2]),
        lambda: allocator.allocate_many([]),
        lambda: allocator.deallocate_many([offset]),
        lambda: allocator.allocate_array(3),
        lambda: allocator.add_pool(1, 4 * KIB),
        lambda: allocator.trim(),
    ]
    for call in calls:
        with unchanged(allocator), pytest.raises(InvalidAccess, match="closed"):
            call()
    assert allocator.usage == (0, 100 * MIB)
    assert allocator.pools == []


def test_an_allocator_closed_before_its_first_block_refuses_too():
    allocator = PoolAllocator([(1, 4096)], limit_mb=4)
    allocator.close()
    for call in (
        lambda: allocator.allocate(1),
        lambda: allocator.allocate_many([1]),
        lambda: allocator.deallocate(MmapOffset(0, 0, 1)),
        lambda: allocator.view(MmapOffset(0, 0), 1),
        lambda: allocator.trim(),
    ):
        with pytest.raises(InvalidAccess, match="closed"):
            call()
    assert allocator.validate() == []


def test_a_wrong_call_as_the_first_one_is_refused():
    for offset in (MmapOffset(0, 0), MmapOffset(0, 0, 1)):
        for call in ("deallocate", "view"):
            allocator = PoolAllocator([(1, 4096)], limit_mb=4)
            arguments = (1,) if call == "view" else ()
            with pytest.raises(InvalidAccess, match="never handed out"):
                getattr(allocator, call)(offset, *arguments)


# -- views -----------------------------------------------------------------------------------------


def test_a_view_is_writable_bytes_of_the_size_asked_for(allocator):
    offset = allocator.allocate(100)
    view = allocator.view(offset, 60)
    assert type(view) is memoryview
    assert (view.format, view.shape, view.readonly, view.c_contiguous) == ("B", (60,), False, True)
    view[:] = bytes(range(60))
    assert bytes(allocator.view(offset, 100)) == bytes(range(60)) + bytes(40)
    assert len(allocator.view(offset, 0)) == 0
    assert len(allocator.view(offset, np.int64(7))) == 7
    assert allocator.view(offset, 60) is not view
    del view
    allocator.deallocate(offset)
    assert used(allocator) == 0


@each_size
def test_a_view_larger_than_what_was_allocated_is_out_of_bounds(allocator, n_bytes):
    offset = allocator.allocate(n_bytes)
    for wanted in (n_bytes + 1, 3 * MIB, 2**62, 2**70):
        with unchanged(allocator), pytest.raises(OutOfBounds) as caught:
            allocator.view(offset, wanted)
        assert repr(offset) in str(caught.value)
        assert (caught.value.offset, caught.value.region_size) == (offset.offset, n_bytes)
        assert caught.value.size == min(wanted, 2**62)
    allocator.deallocate(offset)


def test_a_view_of_no_size_is_refused(allocator):
    offset = allocator.allocate(10)
    with unchanged(allocator), pytest.raises(ValueError, match="at least 0"):
        allocator.view(offset, -1)
    for wrong in (True, 1.0, "1", None):
        with unchanged(allocator), pytest.raises(TypeError):
            allocator.view(offset, wrong)
    allocator.deallocate(offset)


@each_size
def test_a_view_survives_deallocate_and_its_block_waits(allocator, n_bytes):
    offset = allocator.allocate(n_bytes)
    charged = used(allocator)
    view = allocator.view(offset, n_bytes)
    view[:] = b"\x07" * n_bytes
    allocator.deallocate(offset)
    assert used(allocator) == charged
    found = allocator.survey()
    assert (found.n_waiting, found.n_requested) == (charged, 0)
    assert (found.n_allocations, found.n_deallocations) == (1, 1)
    place = {"pool": offset.pool_id, "offset": offset.offset}
    assert allocator.waiting_blocks() == [place | {"n_bytes": charged, "n_views": 1}]
    assert allocator.validate() == []
    assert bytes(view) == b"\x07" * n_bytes
    del view
    assert used(allocator) == allocator.survey().n_waiting == 0
    assert allocator.waiting_blocks() == []


def test_a_block_is_reused_only_when_its_last_view_is_gone(allocator):
    blocks = fill(allocator, 64 * KIB)
    offset = blocks.pop(5)
    views = [allocator.view(offset, n_bytes) for n_bytes in (1, 100, 64 * KIB)]
    slices = [memoryview(np.frombuffer(views[0], np.uint8)), views[2][5:10]]
    allocator.deallocate(offset)
    held = views + slices
    del views, slices
    while held:
        other = allocator.allocate(64 * KIB)
        assert other.pool_id != offset.pool_id  # it spilled
        allocator.deallocate(other)
        held.pop(0)
    again = allocator.allocate(64 * KIB)
    assert (again.pool_id, again.offset) == (offset.pool_id, offset.offset)
    assert again.generation != offset.generation
    allocator.deallocate_many([again, *blocks])


def test_views_that_are_gone_before_do_not_make_a_block_wait(allocator):
    offset = allocator.allocate(5000)
    for _ in range(10):
        allocator.view(offset, 5000)
    allocator.deallocate(offset)
    assert used(allocator) == 0


def test_releasing_a_view_lets_its_block_go(allocator):
    offset = allocator.allocate(10)
    with allocator.view(offset, 10) as view:
        view[0] = 1
        allocator.deallocate(offset)
        assert used(allocator) == 4 * KIB
    assert used(allocator) == 0


def test_many_views_of_many_blocks_are_counted_one_by_one(allocator):
    offsets = allocator.allocate_many([100] * 50)
    views = [allocator.view(offset, 1 + i) for i in range(20) for offset in offsets]
    allocator.deallocate_many(offsets)
    assert {entry["n_views"] for entry in allocator.waiting_blocks()} == {20}
    assert used(allocator) == allocator.survey().n_waiting == 50 * 4 * KIB
    for n_left in range(19, -1, -1):
        del views[-50:]
        assert {entry["n_views"] for entry in allocator.waiting_blocks()} <= {n_left}
        assert used(allocator) == (50 * 4 * KIB if n_left else 0)
    assert allocator.validate() == []


def test_more_views_than_can_be_counted_are_refused(allocator):
    offset = allocator.allocate(10)
    rows = allocator._table.blocks_of(offset.pool_id)
    row = rows[offset.offset // (4 * KIB)]
    row["status"] += s.VIEWS_MASK
    with unchanged(allocator), pytest.raises(InvalidAccess, match="1,048,575 views"):
        allocator.view(offset, 1)
    row["status"] -= s.VIEWS_MASK
    allocator.deallocate(offset)


@each_size
def test_views_survive_close_and_count_until_they_are_gone(n_bytes):
    allocator = PoolAllocator([(1, 4 * KIB), (1, 64 * KIB), (2, 256 * KIB)], limit_mb=100)
    offset = allocator.allocate(n_bytes)
    charged = used(allocator)
    unviewed = allocator.allocate(n_bytes)
    view = allocator.view(offset, n_bytes)
    view[:] = b"\x05" * n_bytes
    allocator.close()
    assert used(allocator) == allocator.survey().n_waiting == charged
    assert unviewed != offset
    assert bytes(view) == b"\x05" * n_bytes
    view[-1] = 6
    assert allocator.validate() == []
    del view
    assert used(allocator) == 0
    assert allocator.survey().n_retained == 0
    assert allocator.validate() == []


def test_a_view_keeps_the_memory_of_a_forgotten_allocator_alive():
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=4)
    view = allocator.view(allocator.allocate(100), 100)
    array = allocator.allocate_array(10, np.int32)
    known = weakref.ref(allocator)
    del allocator
    gc.collect()
    view[:] = bytes(range(100))
    array[:] = range(10)
    others = [bytearray(MIB) for _ in range(8)]  # would lie where the pool was, were it unmapped
    assert bytes(view) == bytes(range(100))
    assert array.tolist() == list(range(10))
    assert len(others) == 8
    del view
    assert array.sum() == 45
    del array
    gc.collect()
    assert known() is None


def test_a_forgotten_allocator_is_unmapped():
    from naive import HAS_PROC, mapped_bytes

    gc.collect()
    before = mapped_bytes()
    allocator = PoolAllocator([(64, 4 * KIB)], limit_mb=4)
    allocator.deallocate(allocator.allocate(1))
    assert not HAS_PROC or mapped_bytes() >= before + 64 * MIB
    del allocator
    gc.collect()
    assert mapped_bytes() < before + 64 * MIB


def test_a_view_dropped_in_another_thread_gives_the_block_back(allocator):
    offset = allocator.allocate(10)
    held = [allocator.view(offset, 10)]
    allocator.deallocate(offset)
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert used(allocator) == 0


def test_views_let_go_while_another_thread_takes_one_in_are_taken_in_too(allocator, monkeypatch):
    """That thread may be off the processor for long: the blocks are there all the same."""
    inside, go_on = threading.Event(), threading.Event()
    drop_view = release.drop_view

    def drop_slowly(state, handle):
        if threading.current_thread() is slow:
            inside.set()
            assert go_on.wait(PATIENCE_SECONDS)
        return drop_view(state, handle)

    monkeypatch.setattr(release, "drop_view", drop_slowly)
    first, *others = (allocator.allocate_array(10) for _ in range(5))
    held = [first]
    del first
    slow = threading.Thread(target=held.clear)
    slow.start()
    assert inside.wait(PATIENCE_SECONDS)
    others.clear()
    n_left = used(allocator)
    go_on.set()
    slow.join(PATIENCE_SECONDS)
    assert n_left == 4 * KIB
    assert used(allocator) == 0


def test_views_in_a_cycle_go_with_the_collector(allocator):
    offset = allocator.allocate(10)
    cycle = [allocator.view(offset, 10)]
    cycle.append(cycle)
    allocator.deallocate(offset)
    del cycle
    gc.collect()
    assert used(allocator) == 0


# -- arrays ----------------------------------------------------------------------------------------

STRUCTURED = np.dtype([("name", "S5"), ("at", "<f8", (3,)), ("flag", "?")])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (10, np.float64),
        (np.int64(10), "u1"),
        ((), "f4"),
        ((7,), "c16"),
        ([3, 4], "<i2"),
        ((2, 3, 5, 7), ">i4"),
        ((1, 100_000), "f8"),
        (11, STRUCTURED),
        ((4, 2), "M8[s]"),
        (5, "U3"),
        (6, "V10"),
        (9, bool),
    ],
)
def test_an_array_is_as_numpy_would_make_it(allocator, shape, dtype):
    array, wanted = allocator.allocate_array(shape, dtype), np.zeros(shape, dtype)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype) == (wanted.shape, wanted.dtype)
    assert array.tobytes() == wanted.tobytes()
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.ctypes.data % 64 == 0
    assert allocator.survey().n_waiting == used(allocator) > 0
    array.view(np.uint8 if array.ndim else array.dtype)[...] = 0
    del array
    assert used(allocator) == 0


def test_the_default_is_float64(allocator):
    assert allocator.allocate_array(3).dtype == np.float64


def test_an_array_aligns_also_in_the_smallest_blocks():
    allocator = PoolAllocator([(1, 64)], limit_mb=4)
    arrays = [allocator.allocate_array(n, np.uint8) for n in (1, 63, 64, 65, 200)]
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
    for tag, array in enumerate(arrays, 1):
        array[:] = tag
    assert [set(array.tolist()) for array in arrays] == [{1}, {2}, {3}, {4}, {5}]
    del arrays, array
    assert allocator.usage[0] == 0
    assert allocator.validate() == []


def test_views_of_views_of_an_array_keep_its_block(allocator):
    array = allocator.allocate_array((10, 10), np.int32)
    array[...] = np.arange(100).reshape(10, 10)
    part = array[2:8].T[1:].view(np.uint32)[::2]
    raw = memoryview(part)
    flat = part.reshape(-1)  # a copy
    del array
    assert used(allocator) == 4 * KIB
    assert part[0, 0] == 21
    del part
    assert used(allocator) == 4 * KIB
    assert raw[0, 0] == 21
    del raw
    assert used(allocator) == 0
    assert flat[0] == 21


def test_an_array_survives_close(allocator):
    array = allocator.allocate_array(1000, np.int64)
    allocator.close()
    array[:] = 3
    assert array.sum() == 3000
    assert used(allocator) == 64 * KIB  # best fit for 8,000 bytes
    del array
    assert used(allocator) == 0


@pytest.mark.parametrize("shape", [0, (0,), (3, 0), (0, 2**20, 2**20)])
def test_an_array_without_elements_takes_no_block(allocator, shape):
    with unchanged(allocator):
        array = allocator.allocate_array(shape, np.int16)
        assert array.shape == np.zeros(shape, np.int16).shape
        assert array.dtype == np.int16


def test_an_array_of_a_dtype_that_is_a_shape_is_refused(allocator):
    with unchanged(allocator), pytest.raises(TypeError, match="shape"):
        allocator.allocate_array(3, np.dtype(("<i4", (2, 2))))


@pytest.mark.parametrize("dtype", [object, "O", [("a", "i4"), ("b", "O")], np.dtype("(2,)O")])
def test_an_array_of_objects_is_refused(allocator, dtype):
    with unchanged(allocator), pytest.raises(TypeError, match="objects"):
        allocator.allocate_array(3, dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        (-1, "f8", ValueError),
        ((3, -1), "f8", ValueError),
        ((-1, 0), "f8", ValueError),
        (1.5, "f8", TypeError),
        ("3", "f8", TypeError),
        (None, "f8", TypeError),
        ((2, 1.5), "f8", TypeError),
        (3, "no such type", TypeError),
        (2**62, "f8", LimitExceeded),
        ((2**40, 2**40), "f8", LimitExceeded),
    ],
)
def test_an_array_that_makes_no_sense_is_refused(allocator, shape, dtype, error):
    with unchanged(allocator), pytest.raises(error):
        allocator.allocate_array(shape, dtype)


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


# -- zeros -----------------------------------------------------------------------------------------


def reused(allocator, n_bytes, how):
    """Write all of a block, give it back, take it again and return what is in it."""
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
        if operation == "give back":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    intercept(refuse)
    assert reused(allocator, 2 * MIB, allocator.allocate) == bytes(2 * MIB)


@pytest.mark.parametrize("block", [64, 256, KIB, 2 * KIB])
@pytest.mark.parametrize("n_bytes", [1, 100, 1000, 5000, 50_000])
def test_zeroing_small_blocks_and_their_runs_leaves_the_neighbours_alone(block, n_bytes):
    """Several allocations share a page, which must not be given back for the sake of one."""
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
def crowded(monkeypatch):
    """Blocks of 64 KiB that fill half the budget, where no further pool can be made.

    Pools made for single blocks of both sizes take up all the address space that the budget allows.
    """
    monkeypatch.setattr("jessymem.pools.supply._GROWN_SHARE", 1)
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


def test_pool_full_is_told_where_there_is_room_but_no_block(crowded):
    allocator, _, _ = crowded
    for n_bytes in (64 * KIB, 5000, 100_000):
        with unchanged(allocator), pytest.raises(AllocationFailed) as caught:
            allocator.allocate(n_bytes)
        assert (caught.value.reason, caught.value.requested) == ("pool_full", n_bytes)
        assert f"{n_bytes:,}" in str(caught.value)
        assert isinstance(caught.value, MemoryError)
    assert allocator.n_failures == 3


def test_fragmented_is_told_where_free_blocks_are_not_in_a_row(crowded):
    allocator, first, held = crowded
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


def test_the_reason_of_many_is_that_of_the_one_that_failed(crowded):
    allocator, _, _ = crowded
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

    monkeypatch.setattr(weakref, "finalize", fail)
    with unchanged(allocator), pytest.raises(MemoryError):
        allocator.view(offset, 10)
    monkeypatch.undo()
    allocator.deallocate(offset)
    assert used(allocator) == 0


# -- retained pages and trim -----------------------------------------------------------------------

gives_back = pytest.mark.skipif(not osmem.CAN_GIVE_BACK, reason="pages cannot be given back here")
PAGE = osmem.page_size()


@gives_back
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


@gives_back
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


@gives_back
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
        if operation == "give back":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    allocator.deallocate(allocator.allocate(5000))
    intercept(refuse)
    assert allocator.trim() == 0
    assert allocator.survey().n_retained == 64 * KIB
    assert allocator.validate() == []
    osmem.intercept = None
    assert allocator.trim() == (64 * KIB if osmem.CAN_GIVE_BACK else 0)


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
    from test_stats import write_sparse

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
    state, table = allocator._table.state, allocator._table
    spoilt = {
        "used is": (state, s.USED, 64),
        "of regions is": (state, s.OF_REGIONS, -64),  # negative: nothing to settle
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
