"""`resize`: another budget for a manager at work, which nothing passes once it is in force."""

from __future__ import annotations

import gc
import logging
import pickle
import random
import threading

import numpy as np
import pytest
from support import compressed
from support.compressed import text_of
from support.eviction import content_of, evicted, load_into
from support.internals import PlainTier, budget_of, differences_of
from support.kernels import SLOWNESS, TIERS
from support.processes import checked_in_child
from support.regions import write_sparse

from jessymem import (
    AllocationFailed,
    ConfigError,
    InvalidAccess,
    LayerId,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    osmem,
)
from jessymem.kernels import _jit

MIB = 2**20
KIB = 2**10


@pytest.fixture(params=TIERS, autouse=True)
def tier(request, monkeypatch):
    if request.param == "plain" and not _jit.is_disabled():
        PlainTier(monkeypatch)
    else:
        _jit.promote(_jit.MEMORY)
    return request.param


def make_manager(base, total_mb, **settings):
    pools = [(4, 4 * KIB), (16, 256 * KIB)]
    return MmapManager(MemoryConfig(total_mb, base, pools, **settings))


def seen(manager):
    """Return what a refusal leaves as it was."""
    stats = manager.get_stats()
    return manager.config, stats.total_limit_bytes, stats.total_allocated_bytes, stats.per_class


# -- up --------------------------------------------------------------------------------------------


def test_a_larger_budget_takes_what_the_smaller_one_refuses(tmp_path):
    write_sparse(tmp_path, 14, 25 * MIB)
    write_sparse(tmp_path, 15, 300 * MIB)
    with make_manager(tmp_path, 280) as manager:
        for number in (14, 15):
            with pytest.raises(LimitExceeded):
                manager.load_dimension(number)
        assert manager.resize(1024) == 280
        for number in (14, 15):
            manager.load_dimension(number)
        stats, state = manager.get_stats(), manager.dump_state()
        assert stats.total_limit_bytes == state["budget"]["limit_bytes"] == 1024 * MIB
        assert stats.per_class["core_headroom"].allocated_bytes == 11 * MIB
        assert stats.per_class["core_headroom"].limit_bytes == 73 * MIB
        assert stats.per_class["blocks"].limit_bytes == int(0.95 * 1024 * MIB)
        assert stats.utilization == 325 / 1024
        assert state["config"]["total_memory_mb"] == manager.config.total_memory_mb == 1024
        assert [each["capacity"] for each in state["regions"]] == [14 * MIB, None]
        assert "jessymem_limit_bytes 1073741824\n" in manager.metrics_text()


def test_what_is_loaded_leaves_the_headroom_to_others(tmp_path):
    write_sparse(tmp_path, 1, 40 * MIB)
    with make_manager(tmp_path, 350) as manager:
        manager.load_dimension(1)
        assert manager.get_stats().per_class["core_headroom"].allocated_bytes == 20 * MIB
        manager.resize(560)
        usages = manager.get_stats().per_class
        assert usages["core_headroom"].allocated_bytes == 8 * MIB
        assert usages["core_slots"].allocated_bytes == 32 * MIB
        manager.resize(350)
        assert manager.get_stats().per_class["core_headroom"].allocated_bytes == 20 * MIB
        manager.unload_dimension(1)
        assert not any(usage.allocated_bytes for usage in manager.get_stats().per_class.values())


@pytest.mark.parametrize("is_used_before", [False, True])
def test_blocks_fill_a_larger_budget(tmp_path, is_used_before):
    with make_manager(tmp_path, 8) as manager:
        if is_used_before:
            manager.deallocate(manager.allocate(1))
        with pytest.raises(LimitExceeded):
            manager.allocate(20 * MIB)
        manager.resize(64)
        offset = manager.allocate(60 * MIB)
        with pytest.raises(LimitExceeded) as caught:
            manager.allocate(1 * MIB)
        assert caught.value.limit == int(0.95 * 64 * MIB)
        manager.deallocate(offset)
        assert manager.get_stats().peak_usage_bytes == 60 * MIB
        assert budget_of(manager).total == 0


# -- down ------------------------------------------------------------------------------------------


def test_a_smaller_budget_evicts_the_coldest(tmp_path):
    with load_into(tmp_path, range(20, 26), 64) as manager:
        for number in (23, 20, 24, 21, 25, 22):
            assert manager.access_layer(f"L{number}-00")
        gc.collect()
        size = manager.get_stats().total_allocated_bytes // 6
        manager.resize(3 * size // MIB + 1)
        stats = manager.get_stats()
        assert stats.total_allocated_bytes <= stats.total_limit_bytes
        assert [str(each) for each in evicted(manager)] == ["D20", "D23", "D24"]
        assert bytes(manager.access_layer("L20-00")) == content_of(20, 0)
        assert manager.get_stats().total_allocated_bytes <= stats.total_limit_bytes


@pytest.mark.parametrize("hold", ["views", "pins", "blocks"])
def test_what_may_not_go_is_a_refusal_with_numbers(tmp_path, hold):
    for number in range(20, 24):
        write_sparse(tmp_path, number, 10 * MIB, n_layers=1)
    with make_manager(tmp_path, 64) as manager:
        held = []
        for number in range(20, 24):
            if hold == "blocks":
                held.append(manager.allocate(10 * MIB))
                continue
            manager.load_dimension(number)
            if hold == "pins":
                manager.pin(number)
            else:
                held.append(manager.access_layer(LayerId(number, 0)))
        before = seen(manager)
        with pytest.raises(LimitExceeded, match="the budget cannot be 31,457,280 bytes") as caught:
            manager.resize(30)
        error = caught.value
        numbers = error.bound, error.current, error.limit, error.requested, error.waiting
        assert numbers == ("budget", 40 * MIB, 30 * MIB, 0, 0)
        assert seen(manager) == before
        assert manager.get_stats().evictions == 0
        assert manager.resize(40) == 64
        assert manager.get_stats().utilization == 1.0


def test_nothing_is_evicted_where_all_of_it_would_not_be_enough(tmp_path):
    write_sparse(tmp_path, 20, 4 * MIB)
    with make_manager(tmp_path, 64) as manager:
        manager.load_dimension(20)
        offset = manager.allocate(40 * MIB)
        with pytest.raises(LimitExceeded):
            manager.resize(39)
        assert manager.get_stats().evictions == 0
        manager.resize(43)
        assert evicted(manager) == [20]
        manager.deallocate(offset)


def test_what_only_waits_is_told(tmp_path):
    write_sparse(tmp_path, 20, 10 * MIB, n_layers=1)
    with make_manager(tmp_path, 64) as manager:
        manager.load_dimension(20)
        view = manager.access_layer("L20-00")
        manager.unload_dimension(20)
        block = manager.view(offset := manager.allocate(MIB), MIB)
        manager.deallocate(offset)
        with pytest.raises(LimitExceeded) as caught:
            manager.resize(5)
        assert caught.value.waiting == 11 * MIB
        del view, block
        manager.resize(5)


@pytest.mark.parametrize("is_evicted", [False, True])
def test_what_could_never_come_back_is_a_refusal(tmp_path, is_evicted):
    """Else a read of something that is loaded would fail from then on."""
    write_sparse(tmp_path, 20, 30 * MIB)
    write_sparse(tmp_path, 21, 40 * MIB)
    with make_manager(tmp_path, 64) as manager:
        manager.load_dimension(20)
        if is_evicted:
            manager.load_dimension(21)
            assert evicted(manager) == [20]
            manager.unload_dimension(21)
        with pytest.raises(LimitExceeded, match=r"D20.*never") as caught:
            manager.resize(29)
        assert (caught.value.requested, caught.value.limit) == (30 * MIB, 29 * MIB)
        assert manager.resize(30) == 64


def test_a_core_dimension_keeps_its_slot_and_headroom(tmp_path):
    write_sparse(tmp_path, 14, 25 * MIB)
    with make_manager(tmp_path, 1024) as manager:
        manager.load_dimension(14)
        before = seen(manager)
        with pytest.raises(LimitExceeded, match=r"D14.*never") as caught:
            manager.resize(280)
        error = caught.value
        assert (error.bound, error.requested, error.limit) == ("core_headroom", 21 * MIB, 20 * MIB)
        assert seen(manager) == before
        assert manager.resize(560) == 1024


def test_headroom_that_several_share_is_a_refusal(tmp_path):
    for number in (1, 2):
        write_sparse(tmp_path, number, 30 * MIB)
    with make_manager(tmp_path, 560) as manager:
        for number in (1, 2):
            manager.load_dimension(number)
        before = seen(manager)
        with pytest.raises(LimitExceeded, match="core headroom") as caught:
            manager.resize(280)
        error = caught.value
        assert (error.bound, error.in_headroom, error.limit) == (
            "core_headroom",
            28 * MIB,
            20 * MIB,
        )
        assert seen(manager) == before
        manager.unload_dimension(1)
        manager.resize(280)


def test_slots_that_are_given_stay(tmp_path):
    write_sparse(tmp_path, 14, 25 * MIB)
    with make_manager(tmp_path, 1024, core_slots={14: 25}) as manager:
        manager.load_dimension(14)
        manager.resize(100)
        assert manager.get_stats().per_class["core_headroom"].allocated_bytes == 0
        assert manager.config.core_slots == ((14, 25),)


def test_what_is_inflated_goes_before_any_region(tmp_path):
    text = text_of(9, 2 * MIB)
    compressed.build(tmp_path, contents={0: text})
    with make_manager(tmp_path, 64) as manager:
        manager.load_dimension(20)
        size = manager.get_stats().total_allocated_bytes
        assert bytes(manager.access_layer("L20-00")) == text
        assert manager.get_stats().total_allocated_bytes >= size + 2 * MIB
        manager.resize(2)
        stats = manager.get_stats()
        assert (stats.total_allocated_bytes, stats.evictions) == (size, 0)


@pytest.mark.skipif(not osmem.CAN_RETURN_PAGES, reason="pages stay")
def test_pages_of_freed_blocks_are_returned_for_it(tmp_path):
    with make_manager(tmp_path, 64) as manager:
        offsets = manager.allocate_many([256 * KIB] * 64)
        manager.deallocate_many(offsets)
        assert manager.get_stats().retained_bytes == 16 * MIB
        kept = manager.allocate(256 * KIB)
        manager.resize(4)
        stats = manager.get_stats()
        assert stats.total_allocated_bytes + stats.retained_bytes <= 4 * MIB
        manager.deallocate(kept)


def test_thresholds_are_those_of_the_new_budget(tmp_path, caplog):
    caplog.set_level(logging.INFO, "jessymem")
    with make_manager(tmp_path, 64) as manager:
        offset = manager.allocate(8 * MIB)
        assert manager.resize(10) == 64  # 80 %
        (told,) = [each for each in caplog.records if each.event == "memory_pressure"]
        assert (told.threshold_name, told.limit_bytes) == ("warning", 10 * MIB)
        assert manager.get_stats().is_at_warning_threshold
        (told,) = [each for each in caplog.records if each.event == "resized"]
        assert (told.limit_bytes, told.former_limit_bytes) == (10 * MIB, 64 * MIB)
        manager.allocate(256 * KIB)
        with pytest.raises(LimitExceeded) as caught:
            manager.allocate(2 * MIB)
        assert (caught.value.bound, caught.value.limit) == ("critical_threshold", int(9.5 * MIB))
        manager.resize(64)
        assert not manager.get_stats().is_at_warning_threshold
        manager.deallocate(offset)
        levels = [each.threshold_name for each in caplog.records if hasattr(each, "threshold_name")]
        manager.resize(10)
        again = manager.allocate(7 * MIB + 512 * KIB)
        told = [each.threshold_name for each in caplog.records if hasattr(each, "threshold_name")]
        assert told[len(levels) :] == ["warning"]
        manager.deallocate(again)


# -- any number of times ---------------------------------------------------------------------------


def test_numbers_are_exact_whatever_the_order(tmp_path, tier):
    """Against a model: what is charged, which calls are refused, the peak, and all blocks."""
    dice = random.Random(14)
    for number in range(20, 24):
        write_sparse(tmp_path, number, 3 * MIB)
    with make_manager(tmp_path, 32) as manager:
        total_mb, peak, live, loaded = 32, 0, [], set()
        for _ in range(200 if tier == "compiled" else 60):
            used = 3 * len(loaded) + sum(size for _, size in live)
            match dice.randrange(5):
                case 0:
                    wanted = dice.randrange(1, 64)
                    try:
                        manager.resize(wanted)
                    except LimitExceeded:
                        # Loaded ones may go, unless they would never come back.
                        assert used - 3 * len(loaded) > wanted or (loaded and wanted < 3)
                    else:
                        total_mb = wanted
                case 1 | 2:
                    size = dice.choice((0.25, 1, 2.5))
                    try:
                        live.append((manager.allocate(int(size * MIB)), size))
                    except (LimitExceeded, AllocationFailed):
                        blocks = sum(size for _, size in live)
                        assert blocks + size > 0.95 * total_mb
                case 3 if live:
                    manager.deallocate(live.pop(dice.randrange(len(live)))[0])
                case 4:
                    number = dice.randrange(20, 24)
                    if number in loaded:
                        manager.unload_dimension(number)
                        loaded.discard(number)
                    elif total_mb - sum(size for _, size in live) >= 3:
                        manager.load_dimension(number)
                        loaded.add(number)
            stats = manager.get_stats()
            n_in_memory = len(loaded) - len(evicted(manager))
            used = 3 * n_in_memory + sum(size for _, size in live)
            assert stats.total_allocated_bytes == used * MIB == budget_of(manager).total
            assert stats.total_limit_bytes == total_mb * MIB
            assert used <= total_mb
            peak = max(peak, used)
            assert stats.peak_usage_bytes >= peak * MIB
            assert stats.peak_usage_bytes <= 64 * MIB
            assert differences_of(manager) == []


def test_the_peak_is_what_was_in_use_and_not_what_was_held_back(tmp_path):
    with make_manager(tmp_path, 64) as manager:
        manager.deallocate(manager.allocate(5 * MIB))
        for total_mb, n_mb, peak in ((16, 8, 8), (64, 6, 8), (12, 3, 8), (64, 30, 30), (40, 1, 30)):
            manager.resize(total_mb)
            manager.deallocate(manager.allocate(n_mb * MIB))
            assert manager.get_stats().peak_usage_bytes == peak * MIB


# -- who else knows the budget ---------------------------------------------------------------------


def test_a_pickled_manager_opens_with_the_new_budget(tmp_path):
    write_sparse(tmp_path, 14, 25 * MIB)
    with make_manager(tmp_path, 64) as manager:
        manager.resize(1024)
        manager.load_dimension(14)
        with pickle.loads(pickle.dumps(manager)) as again:
            assert again.config.total_memory_mb == 1024
            assert again.get_stats().total_allocated_bytes == 25 * MIB


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork")
def test_a_forked_child_has_the_budget_and_may_change_its_own(tmp_path):
    with make_manager(tmp_path, 64) as manager:
        offset = manager.allocate(2 * MIB)
        manager.resize(8)

        def child():
            assert manager.get_stats().total_allocated_bytes == 2 * MIB
            with pytest.raises(LimitExceeded):
                manager.allocate(7 * MIB)
            assert manager.resize(16) == 8
            manager.deallocate(manager.allocate(12 * MIB))
            assert differences_of(manager) == []

        checked_in_child(child)
        assert manager.config.total_memory_mb == 8
        manager.deallocate(offset)


def test_misuse(tmp_path):
    manager = make_manager(tmp_path, 64)
    for wrong in (0, -1, 1.5, "64", None, True, 2**60):
        with pytest.raises(ConfigError, match="total_memory_mb"):
            manager.resize(wrong)
    assert manager.resize(np.int64(64)) == 64
    assert type(manager.config.total_memory_mb) is int
    manager.close()
    with pytest.raises(InvalidAccess, match="closed"):
        manager.resize(64)
    assert manager.get_stats().total_limit_bytes == 64 * MIB


def test_a_call_that_interrupts_a_change_of_the_budget_is_refused(tmp_path):
    with make_manager(tmp_path, 64) as manager:
        with budget_of(manager).changing(), pytest.raises(InvalidAccess, match="interrupts"):
            manager.resize(32)
        assert manager.config.total_memory_mb == 64
        manager.resize(32)


# -- under load ------------------------------------------------------------------------------------


def resize_under_load(base, n_resizes, n_looks=20):
    """Resize up and down beside threads that allocate, load and read; look after each."""
    numbers = range(20, 28)
    for number in numbers:
        write_sparse(base, number, 2 * MIB, n_layers=1)
    stop, errors = threading.Event(), []
    with make_manager(base, 64) as manager:
        for number in numbers:
            manager.load_dimension(number)

        def work(action):
            dice = random.Random(action.__name__)
            try:
                while not stop.is_set():
                    try:
                        action(dice)
                    except LimitExceeded as error:
                        assert error.limit <= 64 * MIB
                    except AllocationFailed:
                        pass
            except BaseException as error:
                errors.append(error)

        def allocate(dice):
            offset = manager.allocate(dice.choice((100, 5000, 200_000, 600_000)))
            manager.deallocate(offset)

        def allocate_many(dice):
            manager.deallocate_many(manager.allocate_many([256 * KIB] * dice.randrange(1, 16)))

        def read(dice):
            assert manager.access_layer(LayerId(dice.choice(numbers), 0)).nbytes == 1

        def load(dice):
            number = dice.choice(numbers[-2:])
            manager.refresh(number)

        actions = (allocate, allocate_many, allocate_many, read, load)
        threads = [threading.Thread(target=work, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        dice, n_done = random.Random(5), {True: 0, False: 0}
        try:
            for _ in range(n_resizes):
                wanted = dice.randrange(3, 65)
                try:
                    manager.resize(wanted)
                except LimitExceeded:
                    wanted = manager.config.total_memory_mb
                    n_done[False] += 1
                else:
                    n_done[True] += 1
                for _ in range(n_looks):
                    assert budget_of(manager).total <= wanted * MIB
                    stats = manager.get_stats()
                    assert stats.total_allocated_bytes <= stats.total_limit_bytes == wanted * MIB
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert errors == []
        assert n_done[True] > n_resizes // 4, n_done
        gc.collect()
        manager.trim()
        assert differences_of(manager) == []
        assert manager.get_stats().peak_usage_bytes <= 64 * MIB
        manager.resize(64)
        manager.deallocate(manager.allocate(40 * MIB))


def test_nothing_passes_a_budget_that_is_in_force(tmp_path, tier):
    is_quick = SLOWNESS == 1 and tier == "compiled"
    resize_under_load(tmp_path, *((40, 20) if is_quick else (1, 2)))


@pytest.mark.slow
def test_nothing_passes_a_budget_in_a_long_run(tmp_path):
    resize_under_load(tmp_path, 400)
