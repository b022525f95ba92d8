"""Views and arrays of blocks: what they show, how long they live, what they keep."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from support.allocators import each_size, fill, unchanged, used
from support.internals import table_of

from jessymem import (
    InvalidAccess,
    LimitExceeded,
    OutOfBounds,
    PoolAllocator,
)
from jessymem.kernels import _jit, release
from jessymem.kernels import schema as s

KIB = 2**10
MIB = 2**20

#: No thread waits longer for another.
PATIENCE_SECONDS = 30


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
    where = offset.pool_id, offset.offset, offset.generation
    assert allocator.blocks() == [(*where, n_bytes, charged, 1, True)]
    assert allocator.validate() == []
    assert bytes(view) == b"\x07" * n_bytes
    del view
    assert used(allocator) == allocator.survey().n_waiting == 0
    assert allocator.blocks() == []


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
    assert {block.n_views for block in allocator.blocks()} == {20}
    assert used(allocator) == allocator.survey().n_waiting == 50 * 4 * KIB
    for n_left in range(19, -1, -1):
        del views[-50:]
        assert {block.n_views for block in allocator.blocks()} <= {n_left}
        assert used(allocator) == (50 * 4 * KIB if n_left else 0)
    assert allocator.validate() == []


def test_more_views_than_can_be_counted_are_refused(allocator):
    offset = allocator.allocate(10)
    rows = table_of(allocator).blocks_of(offset.pool_id)
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
    from support.system import HAS_PROC, mapped_bytes

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


def test_views_dropped_while_another_thread_takes_one_in_are_taken_in_too(allocator, monkeypatch):
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
    # As plain Python nothing is taken before it is done: the others do that for the thread.
    assert n_left == (0 if _jit.is_disabled() else 4 * KIB)
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
    assert allocator.survey().n_live_bytes == used(allocator) > 0
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


def test_an_array_in_use_is_counted_as_such(allocator):
    array = allocator.allocate_array(1000, np.int64)
    held = allocator.survey()
    assert (held.n_requested, held.n_waiting, held.n_deallocations) == (8000, 0, 0)
    assert held.n_live_bytes == used(allocator) == 64 * KIB
    (block,) = allocator.blocks()
    assert (block.n_requested, block.n_bytes, block.is_waiting) == (8000, 64 * KIB, False)
    del array
    gone = allocator.survey()
    assert (gone.n_requested, gone.n_allocations, gone.n_deallocations) == (0, 1, 1)
    assert allocator.validate() == []


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
