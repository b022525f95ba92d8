"""Statistics of blocks: what every field says, at rest and while threads allocate."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest
from support.internals import allocator_of, has_allocator, table_of
from support.regions import write_sparse

from jessymem import AllocationFailed, LimitExceeded, MemoryConfig, MmapManager, PoolStats
from jessymem.kernels import _jit
from jessymem.kernels import schema as s

KIB = 2**10
MIB = 2**20
POOLS = ((1, 4 * KIB), (4, 64 * KIB), (4, 256 * KIB))

#: No thread waits longer for another.
PATIENCE_SECONDS = 60


@pytest.fixture
def manager(tmp_path):
    """D20 of 1 MiB and D21 of 3 MiB on disk, a budget of 32 MiB."""
    write_sparse(tmp_path, 20, MIB, n_layers=1)
    write_sparse(tmp_path, 21, 3 * MIB, n_layers=1)
    with MmapManager(MemoryConfig(32, base_path=tmp_path, pool_configs=POOLS)) as manager:
        yield manager
        assert allocator_of(manager).validate() == []


def assert_plausible(manager):
    """Check what holds at any time, whoever allocates; return what was seen."""
    state = manager.dump_state()
    json.loads(json.dumps(state, allow_nan=False))
    budget, counters = state["budget"], state["counters"]
    assert 0 <= budget["used_bytes"] <= budget["allocated_bytes"] <= budget["limit_bytes"]
    assert budget["allocated_bytes"] <= budget["peak_bytes"] <= budget["limit_bytes"]
    assert budget["utilization"] == budget["allocated_bytes"] / budget["limit_bytes"]
    assert 0 <= counters["total_deallocations"] <= counters["total_allocations"]
    assert 0 <= counters["fragmentation_ratio"] < 1
    for pool in state["pools"]:
        assert 0 <= pool["used_blocks"] <= pool["total_blocks"]
        assert pool["utilization"] == pool["used_blocks"] / pool["total_blocks"]
        assert pool["failures"] >= 0
    stats = manager.get_stats()
    assert 0 <= stats.total_used_bytes <= stats.total_allocated_bytes <= stats.total_limit_bytes
    assert stats.total_allocated_bytes <= stats.peak_usage_bytes
    assert 0 <= stats.total_deallocations <= stats.total_allocations
    assert stats.waiting_bytes >= 0
    assert stats.retained_bytes >= 0
    assert stats.peak_usage_bytes >= budget["peak_bytes"]
    assert stats.allocation_failures >= counters["allocation_failures"]
    return stats


def assert_adds_up(manager):
    """Check what holds at rest: every sum is made of its parts."""
    stats, state = assert_plausible(manager), manager.dump_state()
    blocks = sum(pool["used_blocks"] * pool["block_size"] for pool in state["pools"])
    regions = sum(region["n_charged"] for region in state["regions"])
    waiting_regions = sum(x["n_bytes"] for x in state["waiting"] if "region_id" in x)
    waiting_blocks = sum(x["n_bytes"] for x in state["waiting"] if "pool" in x)
    assert blocks + regions + waiting_regions == stats.total_allocated_bytes
    classes = {name: usage.allocated_bytes for name, usage in stats.per_class.items()}
    assert classes.pop("blocks") == blocks
    assert sum(classes.values()) == regions + waiting_regions
    for pool in state["pools"]:
        waiting = [each for each in state["waiting"] if each.get("pool") == pool["pool_id"]]
        listed = sum(each["n_bytes"] for each in [*pool["blocks"], *waiting])
        assert listed == pool["used_blocks"] * pool["block_size"]
    held = [each for pool in state["pools"] for each in pool["blocks"]]
    requested = sum(each["n_requested"] for each in held)
    assert requested + sum(each["n_bytes"] for each in state["regions"]) == stats.total_used_bytes
    assert len(held) == stats.total_allocations - stats.total_deallocations
    assert waiting_regions + waiting_blocks == stats.waiting_bytes
    assert state["budget"]["allocated_bytes"] == stats.total_allocated_bytes
    assert state["budget"]["retained_bytes"] == stats.retained_bytes
    assert allocator_of(manager).validate() == []
    return stats


# -- at rest ---------------------------------------------------------------------------------------


def test_every_field_of_blocks_says_what_was_done(manager):
    manager.load_dimension(20)
    offsets = [manager.allocate(n_bytes) for n_bytes in (100, 4 * KIB, 5000, 200_000, 300_000)]
    view = manager.view(offsets[2], 5000)
    for offset in offsets[1:3]:
        manager.deallocate(offset)
    stats = assert_adds_up(manager)
    live = (4 + 256 + 512) * KIB
    assert stats.total_allocated_bytes == MIB + live + 64 * KIB
    assert stats.total_used_bytes == MIB + 100 + 200_000 + 300_000
    assert stats.peak_usage_bytes == MIB + live + 68 * KIB
    assert stats.waiting_bytes == 64 * KIB
    assert stats.retained_bytes == 4 * KIB
    assert stats.fragmentation_ratio == 1 - 500_100 / live
    assert (stats.total_allocations, stats.total_deallocations) == (5, 2)
    assert (stats.largest_free_run_bytes, stats.allocation_failures) == (63 * 64 * KIB, 0)
    assert stats.per_pool == {
        0: PoolStats(0, 4 * KIB, 256, 1, 1 / 256, 0, "fixed"),
        1: PoolStats(1, 64 * KIB, 64, 1, 1 / 64, 0, "fixed"),
        2: PoolStats(2, 256 * KIB, 16, 3, 3 / 16, 0, "fixed"),
    }
    waits = offsets[2]
    location = {"pool": 1, "offset": waits.offset, "generation": waits.generation}
    location["n_requested"] = 5000
    assert manager.dump_state()["waiting"] == [location | {"n_bytes": 64 * KIB, "n_views": 1}]
    assert len(view) == 5000


@pytest.mark.parametrize("n_bytes", [1, 5000, 600_000, 6 * MIB])
def test_sums_agree_at_each_step_of_a_blocks_life(manager, n_bytes):
    assert_adds_up(manager)
    offset = manager.allocate(n_bytes)
    assert_adds_up(manager)
    views = [manager.view(offset, n_bytes) for _ in range(2)]
    assert_adds_up(manager)
    manager.deallocate(offset)
    assert assert_adds_up(manager).waiting_bytes > 0
    views.pop()
    assert_adds_up(manager)
    views.pop()
    stats = assert_adds_up(manager)
    assert (stats.total_allocated_bytes, stats.waiting_bytes) == (0, 0)
    manager.trim()
    assert assert_adds_up(manager).retained_bytes == 0


def test_sums_agree_with_regions_that_come_and_go(manager):
    packed = manager.allocate_many([5000] * 10)
    manager.load_dimension(20)
    assert_adds_up(manager)
    held = manager.access_layer("L20-00")
    manager.unload_dimension(20)
    assert assert_adds_up(manager).waiting_bytes == MIB
    manager.load_dimension(20)
    manager.load_dimension(21)
    assert assert_adds_up(manager).total_allocated_bytes == 5 * MIB + 640 * KIB
    del held
    assert assert_adds_up(manager).total_allocated_bytes == 4 * MIB + 640 * KIB
    manager.deallocate_many(packed)
    assert assert_adds_up(manager).total_allocated_bytes == 4 * MIB


def test_blocks_taken_after_loads_and_loads_after_blocks_count_together(manager):
    manager.load_dimension(21)  # before there is an allocator
    assert assert_plausible(manager).peak_usage_bytes == 3 * MIB
    offset = manager.allocate(MIB)
    manager.unload_dimension(21)
    manager.load_dimension(20)
    stats = assert_adds_up(manager)
    assert (stats.total_allocated_bytes, stats.peak_usage_bytes) == (2 * MIB, 4 * MIB)
    manager.deallocate(offset)


def test_failures_are_counted_once_a_call(manager):
    for n in range(1, 4):
        with pytest.raises(LimitExceeded):
            manager.allocate(100 * MIB)
        with pytest.raises(LimitExceeded):
            manager.allocate_many([1, 100 * MIB])
        with pytest.raises(ValueError, match="at least 1"):
            manager.allocate(0)  # no call for memory
        assert assert_adds_up(manager).allocation_failures == 2 * n


def test_failures_of_a_pool_are_the_requests_it_passed_on(manager):
    packed = manager.allocate_many([4 * KIB] * 256)
    for n in range(1, 4):
        manager.deallocate(manager.allocate(1))
        assert manager.get_stats().per_pool[0].failures == n
    manager.deallocate_many(packed)


def test_a_closed_manager_tells_what_is_left(manager):
    offset, viewed = manager.allocate(100), manager.allocate(5000)
    view = manager.view(viewed, 5000)
    manager.load_dimension(20)
    manager.close()
    stats = assert_adds_up(manager)
    assert stats.total_allocated_bytes == stats.waiting_bytes == 64 * KIB
    assert (stats.total_allocations, stats.total_deallocations) == (2, 2)
    assert offset != viewed
    del view
    assert assert_adds_up(manager).total_allocated_bytes == 0


def test_the_peak_is_never_below_what_is_allocated(manager):
    """A thread raises the peak one step after it has charged: it is seen in between."""
    offset = manager.allocate(100)
    state = table_of(allocator_of(manager)).state
    state[s.USED] += 64 * KIB
    stats = manager.get_stats()
    assert stats.total_allocated_bytes == 68 * KIB
    assert stats.peak_usage_bytes == 68 * KIB
    state[s.USED] -= 64 * KIB
    manager.deallocate(offset)


def test_looking_does_not_compile_nor_allocate(tmp_path):
    with MmapManager(MemoryConfig(8, base_path=tmp_path, pool_configs=POOLS)) as manager:
        stats = manager.get_stats()
        assert not has_allocator(manager)
        assert [pool.total_blocks for pool in stats.per_pool.values()] == [256, 64, 16]
        planned = manager.dump_state()["pools"]
        manager.deallocate(manager.allocate(1))
        assert manager.dump_state()["pools"] == planned


# -- under load ------------------------------------------------------------------------------------


@pytest.fixture
def switching():
    """Threads take turns as often as they can, so that plain Python is interrupted anywhere too."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(*workers):
    """Run each until it returns; raise what any of them raised."""
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)


N_ROUNDS = 3 if _jit.is_disabled() else 40
N_LOOKS = 15 if _jit.is_disabled() else 150


def test_statistics_are_consistent_while_threads_allocate_and_load(manager, switching):
    """What is refused, for the limit or for fragments of pools that grew, is no matter here."""
    looked = threading.Event()

    def many():
        sizes = np.array([100, 5000, 70_000, 300_000] * 5)
        while not looked.is_set():
            with suppress(LimitExceeded, AllocationFailed):
                manager.deallocate_many(manager.allocate_many(sizes))

    def singles():
        while not looked.is_set():
            with suppress(LimitExceeded, AllocationFailed):
                offset = manager.allocate(10_000)
                view = manager.view(offset, 10_000)
                manager.deallocate(offset)
                del view

    def crowd():
        """More than fits, again and again."""
        while not looked.is_set():
            held = []
            with suppress(LimitExceeded, AllocationFailed):
                while True:
                    held.append(manager.allocate(2 * MIB))
            manager.deallocate_many(held)

    def loads():
        while not looked.is_set():
            for number in (20, 21):
                with suppress(LimitExceeded, AllocationFailed):
                    manager.load_dimension(number)
                    manager.unload_dimension(number)

    def look():
        try:
            for _ in range(N_LOOKS):
                assert_plausible(manager)
                assert allocator_of(manager).usage[0] <= 32 * MIB
        finally:
            looked.set()

    in_threads(many, singles, crowd, loads, look)
    stats = assert_adds_up(manager)
    assert stats.total_allocated_bytes == 0
    assert stats.total_allocations == stats.total_deallocations > 0


def test_at_rest_after_threads_every_counter_is_exact(manager, switching):
    n_threads = 4
    sizes = np.array([1, 4 * KIB, 5000, 64 * KIB] * 4)

    def work():
        for _ in range(N_ROUNDS):
            packed = manager.allocate_many(sizes)
            manager.deallocate_many(packed[::2])
            for offset in packed[1::2]:
                manager.deallocate(offset)

    in_threads(*[work] * n_threads)
    stats = assert_adds_up(manager)
    n_all = n_threads * N_ROUNDS * len(sizes)
    assert (stats.total_allocations, stats.total_deallocations) == (n_all, n_all)
    assert stats.total_allocated_bytes == 0
    assert stats.peak_usage_bytes <= n_threads * 8 * 68 * KIB


def test_the_budget_holds_to_the_byte_under_threads_that_fill_it(tmp_path, switching):
    config = MemoryConfig(4, base_path=tmp_path, pool_configs=[(8, 64 * KIB)])
    n_fit = int(0.95 * 4 * MIB) // (64 * KIB)
    with MmapManager(config) as manager:
        for _ in range(max(N_ROUNDS // 10, 1)):
            taken = [[] for _ in range(4)]

            def work(mine):
                with suppress(LimitExceeded):
                    while True:
                        mine.append(manager.allocate(64 * KIB))

            in_threads(*[lambda mine=mine: work(mine) for mine in taken])
            offsets = [offset for mine in taken for offset in mine]
            assert len(set(offsets)) == len(offsets) == n_fit
            stats = assert_adds_up(manager)
            assert stats.total_allocated_bytes == stats.peak_usage_bytes == n_fit * 64 * KIB
            manager.deallocate_many(offsets)
        stats = assert_adds_up(manager)
        assert n_fit * 64 * KIB <= stats.retained_bytes <= 4 * MIB
