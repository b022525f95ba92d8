"""Wrong ways to free a block: each is refused by name, and nothing has changed."""

from __future__ import annotations

import numpy as np
import pytest
from support.allocators import assert_refused, each_size, fill, unchanged, used

from jessymem import (
    InvalidAccess,
    MmapOffset,
    PoolAllocator,
)

KIB = 2**10
MIB = 2**20


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


@each_size
def test_a_block_given_back_twice_is_refused(allocator, n_bytes):
    offset = allocator.allocate(n_bytes)
    allocator.deallocate(offset)
    assert_refused(allocator, offset, "freed before")


def test_a_block_given_back_twice_is_refused_among_many(allocator):
    offset = allocator.allocate(200_000)
    allocator.deallocate(offset)
    good = allocator.allocate_many([1, 5000])
    for at in range(3):
        with (
            unchanged(allocator),
            pytest.raises(InvalidAccess, match="freed before") as caught,
        ):
            allocator.deallocate_many(np.insert(good, at, offset))
        assert caught.value.offset == offset
    allocator.deallocate_many(good)


def test_a_block_given_back_by_many_is_refused_alone(allocator):
    offset = allocator.allocate(100_000)
    allocator.deallocate_many([offset])
    assert_refused(allocator, offset, "freed before")


def test_a_block_that_waits_is_refused(allocator):
    offset = allocator.allocate(5000)
    view = allocator.view(offset, 5000)
    allocator.deallocate(offset)
    assert_refused(allocator, offset, "freed before")
    assert_many_refused(allocator, offset, "freed before")
    del view
    assert_refused(allocator, offset, "freed before")


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
        start = run.offset + block * 256 * KIB
        wrong = MmapOffset(run.pool_id, start, generation)
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
    assert_refused(allocator, offset, "freed before", size=100)
    assert_refused(allocator, offset, "freed before", size=7)


def test_the_offset_of_another_allocator_is_refused(allocator):
    other = PoolAllocator([(1, 4 * KIB)], limit_mb=4)
    mine = [allocator.allocate(n_bytes) for n_bytes in (1, 5000, 300_000)]
    for offset in mine:
        with unchanged(other), pytest.raises(InvalidAccess, match=f"pool_id={offset.pool_id}"):
            other.deallocate(offset)
    allocator.deallocate_many(mine)


@pytest.mark.parametrize("wrong", [True, False, 1.0, "0", None, (0, 0), b"0", np.True_, object()])
def test_what_is_no_offset_is_a_type_error(allocator, wrong):
    held = allocator.allocate_many([1] * 256)  # among them what a bool would mean
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
    assert_refused(allocator, unchecked, "freed before")
    assert_refused(allocator, offset, "freed before")


@pytest.mark.parametrize("start", [0, 4 * KIB])
def test_an_offset_without_generation_is_no_part_of_many(allocator, start):
    offsets = [*allocator.allocate_many([1] * 256).tolist(), MmapOffset(0, start)]
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
