"""What a manager measures of itself: `MemoryStats` and `dump_state`."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import gc
import json
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import pytest
from support.internals import before_each_find, readers_of, replace_readers, replace_samples
from support.regions import write_sparse

from jessymem import (
    ClassUsage,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MemoryConfig,
    MemoryStats,
    MmapManager,
    PoolStats,
    RegionBuilder,
    osmem,
)
from jessymem.budget import Budget
from jessymem.config import DEFAULT_POOLS
from jessymem.engine.sampling import ReadSampler
from jessymem.kernels import _jit

MIB = 2**20

#: No thread waits longer for another.
PATIENCE_SECONDS = 30

L01 = LayerId(1, 0)


def make_manager(base, limit_mb=512, **settings):
    return MmapManager(MemoryConfig(limit_mb, base_path=base, **settings))


# -- what is loaded --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [4_096, 16_384, 65_536])
def test_every_field_says_what_is_loaded(store, monkeypatch, page):
    monkeypatch.setattr(osmem, "page_size", lambda: page)
    sizes = [(store / name / "region.mmap").stat().st_size for name in ("D01", "D20")]
    core, grown = (-(-size // page) * page for size in sizes)
    with make_manager(store, 280) as manager:
        manager.load_dimension("D01")
        manager.load_dimension("D20")
        assert manager.get_stats() == MemoryStats(
            total_allocated_bytes=core + grown,
            total_used_bytes=sum(sizes),
            total_limit_bytes=280 * MIB,
            utilization=(core + grown) / (280 * MIB),
            peak_usage_bytes=core + grown,
            waiting_bytes=0,
            retained_bytes=0,
            inflated_layers=0,
            inflated_bytes=0,
            per_pool={
                pool: PoolStats(pool, plan.block_size, plan.n_blocks, 0, 0.0, 0, "fixed")
                for pool, plan in enumerate(DEFAULT_POOLS)
            },
            fragmentation_ratio=0.0,
            largest_free_run_bytes=128 * MIB,
            total_allocations=0,
            total_deallocations=0,
            allocation_failures=0,
            evictions=0,
            reloads=0,
            per_class={
                "core_slots": ClassUsage(core, 148 * MIB),
                "core_headroom": ClassUsage(0, 20 * MIB),
                "grown": ClassUsage(grown, 80 * MIB),
                "user": ClassUsage(0, 32 * MIB),
                "blocks": ClassUsage(0, int(0.95 * 280 * MIB)),
            },
            dimensions_loaded=2,
            layers_loaded=8,
            active_regions=2,
            latencies=manager.get_stats().latencies,
            avg_access_latency_us=0.0,
            peak_concurrent_readers=0,
            simulation_mode=False,
            is_at_warning_threshold=False,
            should_trigger_eviction=False,
            should_reject_allocations=False,
        )


def test_a_new_manager_has_nothing(tmp_path):
    with make_manager(tmp_path, 280) as manager:
        stats = dataclasses.asdict(manager.get_stats())
        per_class = stats.pop("per_class")
        assert stats.pop("total_limit_bytes") == 280 * MIB
        assert stats.pop("largest_free_run_bytes") == 128 * MIB
        assert not any(pool["used_blocks"] for pool in stats.pop("per_pool").values())
        assert not any(each.n_samples for each in stats.pop("latencies").values())
        assert not any(stats.values())
        assert not any(usage["allocated_bytes"] for usage in per_class.values())
        assert per_class.pop("blocks")["limit_bytes"] == int(0.95 * 280 * MIB)
        assert sum(usage["limit_bytes"] for usage in per_class.values()) == 280 * MIB


def test_stats_are_of_one_moment(manager):
    before = manager.get_stats()
    manager.unload_dimension("D01")
    assert before.dimensions_loaded == 2
    assert manager.get_stats().dimensions_loaded == 1
    with pytest.raises(AttributeError):
        before.dimensions_loaded = 5


@pytest.mark.parametrize("load_mode", ["map", "copy"])
def test_a_view_that_is_held_is_waiting_for(store, load_mode):
    with make_manager(store, load_mode=load_mode) as manager:
        manager.load_dimension("D01")
        manager.load_dimension("D20")
        whole = manager.get_stats()
        views = [manager.access_layer("L01-00"), manager.load_layer_context("L01-03").content]

        manager.unload_dimension("D01")
        stats = manager.get_stats()
        waiting = stats.waiting_bytes
        assert waiting == osmem.round_to_pages((store / "D01" / "region.mmap").stat().st_size)
        assert stats.total_allocated_bytes == whole.total_allocated_bytes
        assert stats.per_class == whole.per_class
        assert stats.total_used_bytes == (store / "D20" / "region.mmap").stat().st_size
        assert (stats.dimensions_loaded, stats.layers_loaded, stats.active_regions) == (1, 4, 1)

        views.pop()
        assert manager.get_stats().waiting_bytes == waiting
        views.pop()
        stats = manager.get_stats()
        assert stats.waiting_bytes == 0
        assert stats.total_allocated_bytes == whole.total_allocated_bytes - waiting
        assert stats.peak_usage_bytes == whole.total_allocated_bytes


def test_without_a_view_nothing_waits(manager):
    bytes(manager.access_layer("L01-00"))
    manager.unload_dimension("D01")
    manager.unload_dimension("D20")
    stats = manager.get_stats()
    assert (stats.waiting_bytes, stats.total_allocated_bytes) == (0, 0)


def test_a_replaced_file_waits_too(manager, store):
    held = manager.access_layer("L01-00")
    old = osmem.round_to_pages((store / "D01" / "region.mmap").stat().st_size)
    builder = RegionBuilder("D01", "Emotion")
    builder.add_layer(0, b"newer")
    builder.build_to_file(store / "D01" / "region.mmap")
    assert manager.refresh("D01")
    assert manager.get_stats().waiting_bytes == old
    assert manager.dump_state()["waiting"] == [{"region_id": 1, "n_bytes": old}]
    del held
    assert manager.get_stats().waiting_bytes == 0
    assert manager.dump_state()["waiting"] == []


def test_the_peak_stays(tmp_path):
    for number, megabytes in ((20, 3), (21, 5), (22, 4)):
        write_sparse(tmp_path, number, megabytes * MIB)
    with make_manager(tmp_path) as manager:
        peaks = []
        for act, number in (
            (manager.load_dimension, 20),
            (manager.load_dimension, 21),
            (manager.unload_dimension, 20),
            (manager.load_dimension, 22),
            (manager.unload_dimension, 21),
        ):
            act(number)
            peaks.append(manager.get_stats().peak_usage_bytes // MIB)
        assert peaks == [3, 8, 8, 9, 9]
        assert manager.get_stats().total_allocated_bytes == 4 * MIB


def test_what_was_given_back_may_be_taken_at_once(tmp_path):
    """Without a look at the stats in between."""
    write_sparse(tmp_path, 20, 60 * MIB)
    with make_manager(tmp_path, 100) as manager:
        for _ in range(3):
            manager.load_dimension(20)
            manager.unload_dimension(20)
        assert manager.get_stats().peak_usage_bytes == 60 * MIB


# -- classes and thresholds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({14: 4}, {"core_slots": 4}),
        ({1: 16, 14: 4}, {"core_slots": 20}),
        ({14: 5}, {"core_slots": 4, "core_headroom": 1}),
        ({14: 24}, {"core_slots": 4, "core_headroom": 20}),
        ({13: 18, 14: 14}, {"core_slots": 12, "core_headroom": 20}),
        ({15: 3, 32_767: 4}, {"grown": 7}),
        ({32_768: 3, 65_535: 4}, {"user": 7}),
        ({15: 81}, {"grown": 81}),  # only core classes bind
        ({32_768: 33}, {"user": 33}),
        (
            {1: 1, 14: 6, 15: 2, 40_000: 1},
            {"core_slots": 5, "core_headroom": 2, "grown": 2, "user": 1},
        ),
    ],
)
def test_each_class_counts_its_own(tmp_path, files, expected):
    with make_manager(tmp_path, 280) as manager:
        for number, megabytes in files.items():
            write_sparse(tmp_path, number, megabytes * MIB)
            manager.load_dimension(number)
        usages = manager.get_stats().per_class
        found = {name: usage.allocated_bytes // MIB for name, usage in usages.items()}
        assert list(found) == ["core_slots", "core_headroom", "grown", "user", "blocks"]
        assert {name: megabytes for name, megabytes in found.items() if megabytes} == expected
        for number in files:
            manager.unload_dimension(number)
        assert not any(x.allocated_bytes for x in manager.get_stats().per_class.values())


def test_a_larger_budget_has_larger_slots(tmp_path):
    write_sparse(tmp_path, 14, 25 * MIB)
    with make_manager(tmp_path, 1024) as manager:
        manager.load_dimension(14)
        usages = manager.get_stats().per_class
    assert usages["core_slots"].allocated_bytes == 14 * MIB
    assert usages["core_headroom"] == ClassUsage(11 * MIB, 73 * MIB)
    limits = {name: usage.limit_bytes // MIB for name, usage in usages.items()}
    assert limits["core_slots"] == 4 * 58 + 2 * 43 + 7 * 29 + 14
    assert (limits["grown"], limits["user"]) == (80 * 1024 // 280, 32 * 1024 // 280)


def test_a_slot_that_is_given_takes_what_the_default_one_refuses(tmp_path):
    write_sparse(tmp_path, 14, 25 * MIB)
    with (
        make_manager(tmp_path, 280) as manager,
        pytest.raises(LimitExceeded, match="core headroom"),
    ):
        manager.load_dimension(14)
    with make_manager(tmp_path, 280, core_slots={"D14": 25}) as manager:
        manager.load_dimension(14)
        usages = manager.get_stats().per_class
        assert usages["core_slots"] == ClassUsage(25 * MIB, (148 - 4 + 25) * MIB)
        assert usages["core_headroom"] == ClassUsage(0, 20 * MIB)
        (region,) = manager.dump_state()["regions"]
        assert region["capacity"] == 25 * MIB


def test_no_class_has_more_than_the_budget(tmp_path):
    with make_manager(tmp_path, 60) as manager:
        usages = manager.get_stats().per_class
    limits = {name: usage.limit_bytes / MIB for name, usage in usages.items()}
    expected = {"core_slots": 60, "core_headroom": 20, "grown": 60, "user": 32, "blocks": 57}
    assert limits == expected


def test_a_refused_load_is_not_counted(tmp_path):
    write_sparse(tmp_path, 13, 18 * MIB)
    write_sparse(tmp_path, 14, 14 * MIB + 1)
    with make_manager(tmp_path, 280) as manager:
        manager.load_dimension(13)
        before = manager.get_stats()
        with pytest.raises(LimitExceeded, match="D14") as caught:
            manager.load_dimension(14)
        error = caught.value
        assert (error.bound, error.current) == ("core_headroom", before.total_allocated_bytes)
        assert (error.in_headroom, error.limit) == (10 * MIB, 20 * MIB)
        assert caught.value.requested == 10 * MIB + osmem.page_size()
        assert manager.get_stats() == before


@pytest.mark.parametrize(
    ("megabytes", "flags"),
    [
        (0, (False, False, False)),
        (75, (False, False, False)),
        (76, (True, False, False)),
        (85, (True, False, False)),
        (86, (True, True, False)),
        (95, (True, True, False)),
        (96, (True, True, True)),
        (100, (True, True, True)),
    ],
)
def test_thresholds_are_passed_not_reached(tmp_path, megabytes, flags):
    with make_manager(tmp_path, 100) as manager:
        if megabytes:
            write_sparse(tmp_path, 40_000, megabytes * MIB)
            manager.load_dimension(40_000)
        stats = manager.get_stats()
        assert stats.utilization == megabytes / 100
        assert flags == (
            stats.is_at_warning_threshold,
            stats.should_trigger_eviction,
            stats.should_reject_allocations,
        )


def test_thresholds_are_the_configured_ones(tmp_path):
    write_sparse(tmp_path, 40_000, 30 * MIB)
    settings = {"warning_threshold": 0.1, "eviction_threshold": 0.2, "critical_threshold": 0.3}
    with make_manager(tmp_path, 100, **settings) as manager:
        manager.load_dimension(40_000)
        stats = manager.get_stats()
        assert stats.is_at_warning_threshold
        assert stats.should_trigger_eviction
        assert not stats.should_reject_allocations


def test_waiting_memory_counts_towards_the_thresholds(tmp_path):
    write_sparse(tmp_path, 40_000, 80 * MIB, n_layers=1)
    with make_manager(tmp_path, 100) as manager:
        manager.load_dimension(40_000)
        held = manager.access_layer("L40000-00")
        manager.unload_dimension(40_000)
        assert manager.get_stats().is_at_warning_threshold
        assert held == b"\0"
        del held
        assert not manager.get_stats().is_at_warning_threshold


# -- latency ---------------------------------------------------------------------------------------


def n_samples(manager):
    return manager.dump_state()["counters"]["access_samples"]


def in_new_thread(call):
    """Run `call` in a thread of its own; return what it returns."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(PATIENCE_SECONDS)


single_read = pytest.mark.parametrize("read", ["access_layer", "load_layer_context"])


@single_read
@pytest.mark.parametrize("layer", [L01, int(L01), "L01-00"], ids=["id", "number", "string"])
def test_an_injected_delay_shows(manager, monkeypatch, read, layer):
    assert manager.get_stats().avg_access_latency_us == 0.0
    before_each_find(monkeypatch, lambda: time.sleep(0.01))
    getattr(manager, read)(layer)
    assert manager.get_stats().avg_access_latency_us >= 9_000
    assert n_samples(manager) == 1


@single_read
def test_one_read_in_1024_is_measured(manager, read):
    for _ in range(1_024):
        getattr(manager, read)(L01)
    assert n_samples(manager) == 1
    getattr(manager, read)(L01)
    assert n_samples(manager) == 2
    for _ in range(2 * 1_024):
        getattr(manager, read)(L01)
    assert n_samples(manager) == 4


def test_reads_by_string_are_measured_as_often(manager):
    for _ in range(1_024):
        manager.access_layer("L01-00")
    assert n_samples(manager) == 1


def test_the_average_is_of_what_was_measured(manager, monkeypatch):
    """Of a clock that does not move in between, each read measured takes one tick more."""
    now = iter(range(1_000_000))
    ticks = [0, 1_000, 10_000, 13_000]
    monkeypatch.setattr("jessymem.engine.sampling.perf_counter_ns", lambda: ticks[next(now)])
    manager.access_layer(L01)
    assert manager.get_stats().avg_access_latency_us == 1.0
    in_new_thread(lambda: manager.access_layer(L01))
    assert manager.get_stats().avg_access_latency_us == 2.0


def test_the_average_is_of_the_latest_4096(monkeypatch):
    """The first reads, of 1 ms each, are forgotten in favour of those of 2 ms."""
    sampler = ReadSampler(lambda n: repeat(None, n))
    ticks = iter([0, 1_000_000] * 4_096 + [0, 2_000_000] * 4_096)
    monkeypatch.setattr("jessymem.engine.sampling.perf_counter_ns", lambda: next(ticks))
    for average in (1_000.0, 2_000.0):
        for _ in range(4_096):
            with sampler.measured_read([None]):
                pass
        assert sampler.average_latency_us == average
        assert sampler.n_samples == 4_096


@single_read
def test_the_first_read_of_every_thread_is_measured(manager, read):
    barrier = threading.Barrier(8)

    def read_twice():
        barrier.wait(PATIENCE_SECONDS)  # all alive at once, so that no thread id is used again
        getattr(manager, read)(L01)
        getattr(manager, read)(L01)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(read_twice) for _ in range(8)]:
            future.result(PATIENCE_SECONDS)
    assert n_samples(manager) == 8
    for n in range(9, 13):  # one after the other, so that it is
        in_new_thread(lambda: getattr(manager, read)(L01))
        assert n_samples(manager) == n


def test_the_first_read_of_a_thread_with_a_copied_context_is_measured(manager):
    async def read_elsewhere():
        manager.access_layer(L01)
        await asyncio.to_thread(manager.access_layer, L01)

    asyncio.run(read_elsewhere())
    assert n_samples(manager) == 2


class Busy:
    """A collection that another thread changes at every step of an iteration, but not of a copy."""

    def __iter__(self):
        raise RuntimeError("changed size during iteration")


class BusyDeque(Busy, deque):
    def copy(self):
        return deque(deque.__iter__(self))


class BusySet(Busy, set):
    def copy(self):
        return set(set.__iter__(self))


def test_what_is_measured_meanwhile_does_not_disturb_the_sums():
    sampler = ReadSampler(lambda n: repeat(None, n))
    replace_samples(sampler, BusyDeque([1000, 3000]), BusySet([1, 3, 2]))
    assert sampler.average_latency_us == 2.0
    assert sampler.peak_readers == 3


def test_an_interrupt_leaves_no_reader_behind():
    class Interrupted(set):
        def add(self, item):
            super().add(item)
            raise KeyboardInterrupt

    sampler = ReadSampler(lambda n: repeat(None, n))
    replace_readers(sampler, Interrupted())
    for read in (sampler.reader, lambda: sampler.measured_read([None])):
        with pytest.raises(KeyboardInterrupt), read():
            pytest.fail("it was interrupted before")
        assert not readers_of(sampler)


@pytest.mark.parametrize(("read", "arguments"), [("reader", ()), ("measured_read", ([None],))])
def test_a_read_that_fails_leaves_no_reader_behind(read, arguments):
    sampler = ReadSampler(lambda n: repeat(None, n))
    for error in (ValueError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), getattr(sampler, read)(*arguments):
            assert readers_of(sampler) == {threading.get_ident()}
            raise error
        assert not readers_of(sampler)
    with sampler.reader():
        pass
    assert sampler.peak_readers == 1


@single_read
def test_a_read_that_fails_is_no_sample(manager, read):
    getattr(manager, read)(L01)
    for _ in range(10):
        with pytest.raises(LayerNotFound):
            manager.access_layer("L01-99")
    assert n_samples(manager) == 1


def test_a_batch_is_no_single_read(manager):
    manager.load_contexts(["L01-00", "L01-01"])
    assert n_samples(manager) == 0
    assert manager.get_stats().avg_access_latency_us == 0.0


@pytest.mark.parametrize("end", ["close", "forget"])
def test_a_successor_starts_anew(store, end):
    """The variable that keeps a thread's gate is used again, by nobody who could tell."""
    for _ in range(3):
        manager = make_manager(store)
        manager.load_dimension("D01")
        assert manager.get_stats().avg_access_latency_us == 0.0
        assert n_samples(manager) == 0
        manager.access_layer(L01)
        manager.access_layer(L01)
        assert n_samples(manager) == 1
        assert manager.get_stats().avg_access_latency_us > 0.0
        if end == "close":
            manager.close()
            assert n_samples(manager) == 1
        del manager
        gc.collect()


def test_a_successor_measures_the_first_read_of_threads_that_read_before(store):
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with make_manager(store) as manager:
                manager.load_dimension("D01")
                pool.submit(manager.access_layer, L01).result(PATIENCE_SECONDS)
                assert n_samples(manager) == 1


def test_a_successor_measures_the_first_read_in_any_context(store):
    contexts = [contextvars.Context(), contextvars.Context()]
    for _ in range(2):
        with make_manager(store) as manager:
            manager.load_dimension("D01")
            for context in contexts:
                context.run(manager.access_layer, L01)
                assert n_samples(manager) >= 1


def test_managers_measure_apart(store):
    with make_manager(store) as first, make_manager(store) as second:
        first.load_dimension("D01")
        second.load_dimension("D01")
        first.access_layer(L01)
        assert (n_samples(first), n_samples(second)) == (1, 0)
        second.access_layer(L01)
        assert (n_samples(first), n_samples(second)) == (1, 1)


def test_a_closed_manager_measures_no_more(manager):
    manager.access_layer(L01)
    manager.close()
    for _ in range(3):
        with pytest.raises(InvalidAccess):
            manager.access_layer(L01)
    assert n_samples(manager) == 1


# -- readers ---------------------------------------------------------------------------------------


def peak_of_batches(manager, monkeypatch, n_threads):
    """Let `n_threads` meet inside `load_contexts`; return the peak that is counted."""
    barrier = threading.Barrier(n_threads)
    monkeypatch.setattr(_jit, "promote_for", lambda n_items: barrier.wait(PATIENCE_SECONDS))
    with ThreadPoolExecutor(n_threads) as pool:
        batches = [pool.submit(manager.load_contexts, ["L01-00"]) for _ in range(n_threads)]
        assert {len(batch.result(PATIENCE_SECONDS)) for batch in batches} == {1}
    monkeypatch.undo()
    return manager.get_stats().peak_concurrent_readers


def test_readers_are_counted_while_they_read(manager, monkeypatch):
    assert manager.get_stats().peak_concurrent_readers == 0
    for n_threads, peak in ((1, 1), (2, 2), (12, 12), (3, 12)):
        assert peak_of_batches(manager, monkeypatch, n_threads) == peak


def test_a_thread_of_single_reads_is_a_reader_while_it_lives(manager):
    for _ in range(3):
        in_new_thread(lambda: manager.load_layer_context(L01))
    assert manager.get_stats().peak_concurrent_readers == 1
    manager.access_layer(L01)
    in_new_thread(lambda: manager.access_layer(L01))
    assert manager.get_stats().peak_concurrent_readers == 2
    manager.load_contexts([L01])  # the same thread
    assert manager.get_stats().peak_concurrent_readers == 2


@pytest.mark.parametrize("read", [lambda m: m.access_layer(L01), lambda m: m.store()])
def test_a_hundred_threads_are_a_hundred_readers(manager, read):
    barrier = threading.Barrier(100)

    def read_together():
        barrier.wait(PATIENCE_SECONDS)
        read(manager)
        barrier.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(100) as pool:
        for done in [pool.submit(read_together) for _ in range(100)]:
            done.result(PATIENCE_SECONDS)
    assert manager.get_stats().peak_concurrent_readers == 100


def test_single_reads_meet_batches(manager, monkeypatch):
    barrier = threading.Barrier(2)
    before_each_find(monkeypatch, lambda: barrier.wait(PATIENCE_SECONDS))
    monkeypatch.setattr(_jit, "promote_for", lambda n_items: barrier.wait(PATIENCE_SECONDS))
    with ThreadPoolExecutor(2) as pool:
        single = pool.submit(manager.access_layer, L01)
        batch = pool.submit(manager.load_contexts, [])
        single.result(PATIENCE_SECONDS)
        batch.result(PATIENCE_SECONDS)
    assert manager.get_stats().peak_concurrent_readers == 2


def test_a_reader_within_a_reader_is_one(manager, monkeypatch):
    nested = []

    def read_within(n_items):
        nested.append(bytes(manager.access_layer(L01)))

    monkeypatch.setattr(_jit, "promote_for", read_within)
    manager.load_contexts(["L01-00"])
    assert len(nested) == 1
    assert manager.get_stats().peak_concurrent_readers == 1


def test_readers_that_failed_are_gone(manager, monkeypatch):
    for layers in (["L01-99"], ["L44-00"]):
        for _ in range(3):
            with pytest.raises(LayerNotFound):
                in_new_thread(lambda layers=layers: manager.load_contexts(layers))
            with pytest.raises(LayerNotFound):
                in_new_thread(lambda layers=layers: manager.access_layer(layers[0]))
    assert peak_of_batches(manager, monkeypatch, 2) == 2


def test_a_forked_child_forgets_the_readers_of_its_parent():
    sampler = ReadSampler(lambda n: repeat(None, n))

    def read():
        with sampler.reader():
            return sampler.peak_readers

    with sampler.reader():
        sampler.after_fork()
        assert in_new_thread(read) == 1


# -- the whole state -------------------------------------------------------------------------------

KEYS = ["config", "budget", "pools", "placement", "regions", "layers", "counters", "waiting"]


def assert_agrees(state, stats):
    assert list(state) == KEYS
    text = json.dumps(state, allow_nan=False)
    assert json.dumps(json.loads(text)) == text
    assert state["budget"] == {
        "limit_bytes": stats.total_limit_bytes,
        "allocated_bytes": stats.total_allocated_bytes,
        "used_bytes": stats.total_used_bytes,
        "peak_bytes": stats.peak_usage_bytes,
        "waiting_bytes": stats.waiting_bytes,
        "retained_bytes": stats.retained_bytes,
        "inflated_layers": stats.inflated_layers,
        "inflated_bytes": stats.inflated_bytes,
        "utilization": stats.utilization,
        "per_class": {name: dataclasses.asdict(usage) for name, usage in stats.per_class.items()},
    }
    counters = state["counters"]
    shared = counters.keys() & {field.name for field in dataclasses.fields(MemoryStats)}
    assert {name: counters[name] for name in shared} == {
        name: getattr(stats, name) for name in shared
    }
    assert counters.keys() - shared == {"access_samples", "latency_seconds"}
    listed = [pool.pop("blocks") for pool in state["pools"]]
    assert state["pools"] == [dataclasses.asdict(pool) for pool in stats.per_pool.values()]
    assert not any(listed)
    parts = [usage.allocated_bytes for usage in stats.per_class.values()]
    assert sum(parts) == stats.total_allocated_bytes
    assert len(state["regions"]) == stats.active_regions == stats.dimensions_loaded
    assert len(state["layers"]) == stats.layers_loaded
    assert sum(region["n_bytes"] for region in state["regions"]) == stats.total_used_bytes
    waiting = sum(entry["n_bytes"] for entry in state["waiting"])
    assert waiting == stats.waiting_bytes
    charged = sum(region["n_charged"] for region in state["regions"])
    assert charged + waiting == stats.total_allocated_bytes


def test_the_state_agrees_with_the_stats(manager):
    assert_agrees(manager.dump_state(), manager.get_stats())
    held = manager.access_layer("L20-05")
    manager.load_contexts(["L01-00"])
    manager.unload_dimension("D20")
    assert manager.get_stats().waiting_bytes > 0
    assert_agrees(manager.dump_state(), manager.get_stats())
    manager.close()
    assert_agrees(manager.dump_state(), manager.get_stats())
    del held
    assert_agrees(manager.dump_state(), manager.get_stats())
    assert manager.dump_state()["waiting"] == []


def test_the_state_is_of_one_moment(manager, monkeypatch):
    held = [manager.access_layer("L01-00")]
    manager.unload_dimension("D01")
    usage = Budget.usage

    def usage_before_release(self):
        taken = usage(self)
        held.clear()
        return taken

    monkeypatch.setattr(Budget, "usage", usage_before_release)
    state = manager.dump_state()
    assert state["budget"]["waiting_bytes"] == sum(x["n_bytes"] for x in state["waiting"]) > 0


def test_the_state_of_a_simulated_store_agrees_too(tmp_path):
    with make_manager(tmp_path) as manager:
        manager.load_core_dimensions()
        assert_agrees(manager.dump_state(), manager.get_stats())


def test_the_state_of_nothing_agrees_too(tmp_path):
    with make_manager(tmp_path) as manager:
        assert_agrees(manager.dump_state(), manager.get_stats())


def test_the_state_shows_the_configuration(tmp_path):
    with make_manager(tmp_path, 64, pool_configs=[(1, 4096)], advice="none") as manager:
        config = manager.dump_state()["config"]
        assert list(config) == [field.name for field in dataclasses.fields(MemoryConfig)]
        pools = [MemoryConfig(pool_configs=[tuple(x.values())]) for x in config["pool_configs"]]
        assert pools[0].pool_configs == manager.config.pool_configs
        assert MemoryConfig(**config | {"pool_configs": [(1, 4096)]}) == manager.config


def test_the_state_shows_regions_and_layers(manager, store):
    state = manager.dump_state()
    path = store / "D01" / "region.mmap"
    first, second = state["regions"]
    created_at = first.pop("created_at")
    assert 0 < created_at <= time.time_ns()
    assert first == {
        "region_id": 1,
        "dimension": "D01",
        "name": "Emotion",
        "path": str(path),
        "state": "mapped",
        "n_bytes": path.stat().st_size,
        "n_charged": osmem.round_to_pages(path.stat().st_size),
        "capacity": 16 * MIB,
        "generation": 1,
        "extended": True,
        "n_layers": 4,
        "n_learned": 0,
        "pinned": False,
    }
    assert (second["dimension"], second["capacity"]) == ("D20", None)
    named = [entry["layer"] for entry in state["layers"]]
    assert named == [str(layer) for layer in manager.list_layers()]
    for entry in state["layers"]:
        info = manager.get_layer_info(entry["layer"])
        assert entry == {
            "layer": str(info.layer_id),
            "pool": None,
            "generation": 1,
            "offset": info.offset,
            "size": info.size,
            "depth": info.depth,
            "frequency": info.frequency,
            "parent": None if info.parent is None else str(info.parent),
            "location": "mmap",
            "state": "permanent",
        }


@pytest.mark.parametrize(("load_mode", "state"), [("map", "mapped"), ("copy", "copied")])
def test_the_state_shows_how_a_region_is_held(store, load_mode, state):
    with make_manager(store, load_mode=load_mode) as manager:
        manager.load_dimension("D01")
        assert [region["state"] for region in manager.dump_state()["regions"]] == [state]


def test_the_state_of_a_plain_file(tmp_path):
    write_sparse(tmp_path, 20, MIB)
    with make_manager(tmp_path) as manager:
        manager.load_dimension(20)
        (region,) = manager.dump_state()["regions"]
        assert (region["generation"], region["created_at"], region["extended"]) == (0, 0, False)
        assert (region["n_layers"], region["n_bytes"]) == (0, MIB)
