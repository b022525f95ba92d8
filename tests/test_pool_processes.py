"""Forks: a child has blocks of its own, whatever the parent's threads were doing."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import sys
import threading

import numpy as np
import pytest
from support import samples
from support.internals import budget_lock_of, table_of
from support.processes import checked_in_child, needs_fork
from support.regions import write_sparse
from support.samples import sampled

from jessymem import InvalidAccess, MemoryConfig, MmapManager, MmapOffset, PoolAllocator
from jessymem.kernels import _jit

pytestmark = [
    needs_fork,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

KIB = 2**10
MIB = 2**20

#: No thread waits longer for another; a child that hangs is ended.
PATIENCE_SECONDS = 60


@pytest.fixture
def allocator():
    made = PoolAllocator([(1, 4 * KIB), (1, 64 * KIB), (2, 256 * KIB)], limit_mb=64)
    yield made
    assert made.validate() == []
    made.close()


def words_of(allocator):
    """All that kernels know: bitmaps, counters, blocks."""
    return table_of(allocator).state.tobytes()


def test_what_a_child_allocates_and_frees_the_parent_does_not_see(allocator):
    mine = [allocator.allocate(n_bytes) for n_bytes in (100, 5000, 300_000, 3 * MIB)]
    for tag, offset in enumerate(mine, 1):
        allocator.view(offset, 100)[:] = bytes([tag]) * 100
    before, usage = words_of(allocator), allocator.usage

    def child():
        assert allocator.usage == usage
        assert allocator.validate() == []
        for tag, offset in enumerate(mine, 1):
            assert bytes(allocator.view(offset, 100)) == bytes([tag]) * 100
            allocator.view(offset, 100)[:] = b"\xff" * 100
        others = [allocator.allocate(n_bytes) for n_bytes in (1, 70_000, 400_000, 5 * MIB)]
        assert not set(others) & set(mine)
        allocator.deallocate_many([*mine, *others])
        allocator.trim()
        assert allocator.usage[0] == 0
        assert allocator.validate() == []
        with pytest.raises(InvalidAccess):
            allocator.deallocate(mine[0])
        allocator.close()

    checked_in_child(child)
    assert words_of(allocator) == before
    assert allocator.usage == usage
    for tag, offset in enumerate(mine, 1):
        assert bytes(allocator.view(offset, 100)) == bytes([tag]) * 100
    allocator.deallocate_many(mine)


def test_what_the_parent_frees_later_a_child_still_has(allocator):
    offset = allocator.allocate(5000)
    allocator.view(offset, 5000)[:] = b"\x09" * 5000
    reader, writer = multiprocessing.Pipe(duplex=False)

    def child():
        assert reader.poll(PATIENCE_SECONDS)
        assert reader.recv() == "gone"
        assert bytes(allocator.view(offset, 5000)) == b"\x09" * 5000
        allocator.deallocate(offset, 5000)
        assert allocator.validate() == []

    worker = multiprocessing.get_context("fork").Process(target=child)
    worker.start()
    allocator.deallocate(offset)
    allocator.trim()
    other = allocator.allocate(5000)
    allocator.view(other, 5000)[:] = b"\xff" * 5000
    writer.send("gone")
    worker.join(PATIENCE_SECONDS)
    reader.close()
    writer.close()
    assert worker.exitcode == 0
    allocator.deallocate(other)


def test_views_held_at_the_fork_release_in_the_child(allocator):
    offsets = allocator.allocate_many([100, 5000, 300_000])
    views = [allocator.view(offset, 100) for offset in offsets]
    array = [allocator.allocate_array(1000, np.int32)]
    array[0][:] = 5
    waiting, live = offsets[0], offsets[1:]
    allocator.deallocate(waiting)
    usage = allocator.usage[0]

    def child():
        assert allocator.usage[0] == usage
        assert array[0].sum() == 5000
        array.clear()
        assert allocator.usage[0] == usage - 4 * KIB
        views.pop(0)
        assert allocator.usage[0] == usage - 8 * KIB
        allocator.deallocate_many(live)
        assert allocator.survey().n_waiting == allocator.usage[0] == (64 + 512) * KIB
        views.clear()
        gc.collect()
        assert allocator.usage[0] == 0
        assert allocator.validate() == []

    checked_in_child(child)
    assert allocator.usage[0] == usage
    assert len(views) == 3
    views.clear()
    array.clear()
    allocator.deallocate_many(live)
    assert allocator.usage[0] == 0


def test_a_forked_manager_counts_blocks_and_regions_of_its_own(tmp_path):
    write_sparse(tmp_path, 20, 3 * MIB, n_layers=1)
    write_sparse(tmp_path, 21, 2 * MIB, n_layers=1)
    config = MemoryConfig(32, base_path=tmp_path, pool_configs=[(4, 64 * KIB)])
    with MmapManager(config) as manager:
        manager.load_dimension(20)
        held = manager.access_layer("L20-00")
        offset = manager.allocate(100_000)
        manager.unload_dimension(20)
        before = manager.dump_state()

        def child():
            assert manager.dump_state() == before
            manager.load_dimension(21)
            manager.deallocate(offset)
            again = manager.allocate(200_000)
            stats = manager.get_stats()
            assert stats.total_allocated_bytes == 5 * MIB + 256 * KIB
            assert stats.waiting_bytes == 3 * MIB
            manager.deallocate(again)
            manager.close()

        checked_in_child(child)
        assert manager.dump_state() == before
        assert held == b"\0"
        manager.deallocate(offset)


def test_a_child_of_a_child_has_blocks_of_its_own(allocator):
    offset = allocator.allocate(100)
    before = words_of(allocator)

    def grandchild():
        allocator.deallocate(offset)
        assert allocator.usage[0] == 4 * KIB
        assert allocator.validate() == []

    def child():
        mine = allocator.allocate(100)
        checked_in_child(grandchild)
        allocator.deallocate(mine)
        allocator.deallocate(offset)
        assert allocator.usage[0] == 0

    checked_in_child(child)
    assert words_of(allocator) == before
    allocator.deallocate(offset)


# -- while threads are busy ------------------------------------------------------------------------


@pytest.fixture
def untraced():
    """Skip where coverage traces: it takes a lock in every thread, which a fork may catch held."""
    coverage = sys.modules.get("coverage")
    if coverage is not None and coverage.Coverage.current() is not None:
        pytest.skip("coverage does not survive a fork beside threads that it traces")


class Busy:
    """Threads that allocate and free in compiled loops, which hold no GIL."""

    def __init__(self, allocator, sizes, n_threads=3):
        self.allocator = allocator
        self.sizes = np.array(sizes)
        self.done = threading.Event()
        self.started = threading.Barrier(n_threads + 1)
        self.errors = []
        self.threads = [threading.Thread(target=self.work) for _ in range(n_threads)]

    def work(self):
        self.started.wait(PATIENCE_SECONDS)
        try:
            while not self.done.is_set():
                self.allocator.deallocate_many(self.allocator.allocate_many(self.sizes))
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.started.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *exception):
        self.done.set()
        for thread in self.threads:
            thread.join(PATIENCE_SECONDS)
        assert self.errors == []


N_FORKS = 3 if _jit.is_disabled() else samples.number(6, of=12)
SCALE = 20 if _jit.is_disabled() else 1
LOADS = {
    "blocks": [100] * (2000 // SCALE),
    "spill": [100, 5000, 50_000] * (200 // SCALE),
    "runs": [600_000, 1, 300_000] * (20 // min(SCALE, 5)),
}


@pytest.fixture
def switching():
    """Threads take turns as often as they can, so that plain Python is interrupted anywhere too."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@sampled
@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("load", LOADS)
def test_a_child_forked_while_threads_allocate_is_whole_and_can_allocate(load, switching):
    pools = [(32, 4 * KIB), (32, 64 * KIB), (64, 256 * KIB)]
    allocator = PoolAllocator(pools, limit_mb=280)
    mine = allocator.allocate_many([1, 5000, 700_000])
    for offset in mine:
        allocator.view(offset, 1)[0] = 7

    def child():
        assert allocator.validate() == []
        found = allocator.survey()
        assert allocator.usage[0] == found.n_block_bytes
        for offset in mine:
            assert allocator.view(offset, 1)[0] == 7
        again = allocator.allocate_many(LOADS[load])
        assert len(set(again.tolist()) | set(mine.tolist())) == len(again) + 3
        allocator.deallocate_many(again)
        single = allocator.allocate(100)
        allocator.view(single, 100)[:] = bytes(100)
        allocator.deallocate(single)
        allocator.deallocate_many(mine)
        allocator.trim()
        assert allocator.validate() == []
        allocator.close()
        assert allocator.validate() == []

    with Busy(allocator, LOADS[load]):
        for _ in range(N_FORKS):
            checked_in_child(child)
    assert allocator.validate() == []
    allocator.deallocate_many(mine)
    assert allocator.usage[0] == 0


@sampled
@pytest.mark.usefixtures("untraced")
def test_a_child_forked_while_threads_view_and_drop_is_whole(switching):
    allocator = PoolAllocator([(4, 4 * KIB), (4, 64 * KIB)], limit_mb=64)
    done = threading.Event()
    errors = []

    def work():
        try:
            while not done.is_set():
                array = allocator.allocate_array(100)
                offset = allocator.allocate(5000)
                view = allocator.view(offset, 5000)
                allocator.deallocate(offset)
                del view, array
        except BaseException as error:
            errors.append(error)

    def child():
        assert allocator.validate() == []
        array = allocator.allocate_array(1000)
        array[:] = 1
        del array
        offset = allocator.allocate(1)
        view = allocator.view(offset, 1)
        waiting = allocator.survey().n_waiting
        allocator.deallocate(offset)
        assert allocator.survey().n_waiting == waiting + 4 * KIB
        del view
        assert allocator.survey().n_waiting == waiting
        assert allocator.validate() == []

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(N_FORKS):
            checked_in_child(child)
    finally:
        done.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    assert errors == []
    assert allocator.usage[0] == 0
    assert allocator.validate() == []


@sampled
@pytest.mark.usefixtures("untraced")
def test_a_child_forked_while_pools_come_and_go_is_whole(switching):
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=64)
    done = threading.Event()
    errors = []

    def work():
        try:
            while not done.is_set():
                allocator.deallocate(allocator.allocate(3 * MIB))
        except BaseException as error:
            errors.append(error)

    def child():
        assert allocator.validate() == []
        offset = allocator.allocate(9 * MIB)
        allocator.view(offset, 9 * MIB)[-1] = 1
        allocator.deallocate(offset)
        assert allocator.validate() == []
        allocator.deallocate_many(allocator.allocate_many([4 * KIB] * 256))
        assert allocator.trim() >= 256 * 4 * KIB

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(N_FORKS):
            checked_in_child(child)
    finally:
        done.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    assert errors == []
    assert allocator.validate() == []


def test_a_child_forked_while_the_budget_is_locked_does_not_wait_for_it(allocator):
    offset = allocator.allocate(100)
    view = [allocator.view(offset, 100)]
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        with budget_lock_of(allocator).hold():
            inside.set()
            go_on.wait(PATIENCE_SECONDS)

    def child():
        allocator.deallocate(offset)
        view.clear()
        assert allocator.usage[0] == 0
        allocator.deallocate(allocator.allocate(5 * MIB))
        allocator.trim()
        assert allocator.validate() == []

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(PATIENCE_SECONDS)
    try:
        checked_in_child(child)
    finally:
        go_on.set()
        thread.join(PATIENCE_SECONDS)
    view.clear()
    allocator.deallocate(offset)
    assert allocator.usage[0] == 0


def test_an_allocator_whose_waking_was_interrupted_wakes_again(monkeypatch):
    """As a child finds it that is forked while a thread of the parent is half-way."""
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=8)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_jit, "entry_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            allocator.allocate(1)
    offset = allocator.allocate(100)
    allocator.deallocate(offset)
    assert allocator.usage[0] == 0
    assert allocator.validate() == []


# -- other processes -------------------------------------------------------------------------------


def numbers_of(offset):
    """What a worker of any kind sees of an offset."""
    return type(offset) is MmapOffset, offset.pool_id, offset.offset, offset.generation


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_offsets_travel_to_workers_of_every_kind(method):
    offsets = [MmapOffset(1, 4096, 7), MmapOffset(0, 5), MmapOffset(126, 64, 1)]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.map(numbers_of, offsets)
        pool.close()
        pool.join()
    assert found == [(True, 1, 4096, 7), (True, 0, 5, -1), (True, 126, 64, 1)]


def test_a_pickled_manager_has_no_blocks(tmp_path):
    with MmapManager(MemoryConfig(8, base_path=tmp_path, pool_configs=[(1, 4 * KIB)])) as manager:
        offset = manager.allocate(100)
        with pickle.loads(pickle.dumps(manager)) as other:
            assert other.get_stats().total_allocated_bytes == 0
            with pytest.raises(InvalidAccess, match="never handed out"):
                other.deallocate(offset)
        manager.deallocate(offset)
