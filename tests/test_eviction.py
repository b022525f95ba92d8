"""What goes when memory runs short: which dimensions, how many, and which of them never."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
from support.eviction import (
    MIB,
    N_LAYERS,
    charged,
    check_numbers,
    content_of,
    evicted,
    load_into,
    path_of,
    write_dimension,
)
from support.internals import admitted, budget_of, evict, snapshot_of
from support.regions import write_sparse
from support.system import HAS_PROC, mappings_of

from jessymem import (
    AllocationFailed,
    InvalidAccess,
    LayerId,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
)

POOLS = [(1, 4096), (8, 65_536)]

# -- descriptors, of which each mapping holds one -----------------------------------------------


FEW_DESCRIPTORS = """
import os, resource, sys
from jessymem import MmapManager
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
manager = MmapManager(64, base_path=sys.argv[1])
report = manager.load_all()
assert not [each for each in report.skipped if each[0] > 14], report.skipped
stats = manager.get_stats()
assert stats.dimensions_loaded >= 100 and stats.evictions >= 40, stats
for dimension in range(20, 120):
    assert bytes(manager.access_layer(f"L{dimension}-00")) == b"%d" % dimension
"""

#: What opens files for a moment, and can evict nothing itself.
SPARE_DESCRIPTORS = """
import os, resource, sys
import numpy as np
from jessymem import MemoryConfig, MmapManager, RegionBuilder
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
manager = MmapManager(MemoryConfig(64, sys.argv[1], guard=sys.argv[2], simulation="never"))
assert len(manager.load_all().loaded) == 100
manager.crystallize_proto_dimension(manager.create_proto_dimension(119, b"x", layer=5))
manager.crystallize_proto_dimension(manager.create_proto_dimension(200, b"x"))
manager.fold(119)
refs = [manager.ref(f"L{number}-00") for number in (20, 119)]
assert [bytes(ref.get()) for ref in refs] == [b"20", b"119"]
builder = RegionBuilder(300, "x")
builder.add_layer(0, b"x")
builder.build_to_file(sys.argv[1] + "/D300/region.mmap")
assert manager.get_stats().evictions >= 30
"""


@pytest.mark.skipif(not HAS_PROC, reason="needs a limit for descriptors")
@pytest.mark.parametrize(
    ("code", "guard"),
    [(FEW_DESCRIPTORS, ""), (SPARE_DESCRIPTORS, "none"), (SPARE_DESCRIPTORS, "lease")],
)
def test_out_of_descriptors_the_coldest_goes(tmp_path, code, guard):
    for number in range(20, 120):
        builder = RegionBuilder(number, "x")
        builder.add_layer(0, b"%d" % number)
        builder.build_to_file(tmp_path / f"D{number}" / "region.mmap")
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), guard],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr


# -- which -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["lru", "lfu", "sieve"])
def test_of_dimensions_that_nobody_reads_the_first_goes(tmp_path, policy):
    with load_into(tmp_path, [20, 21, 22], 3, policy) as manager:
        assert evicted(manager) == []
        write_dimension(tmp_path, 23)
        manager.load_dimension(23)
        assert evicted(manager) == [20]
        assert manager.get_stats().evictions == 1
        check_numbers(manager)


def read_single(manager, number):
    manager.access_layer(LayerId(number, 1))


def read_context(manager, number):
    manager.load_layer_context(LayerId(number, 1))


def read_batch(manager, number):
    manager.load_contexts([LayerId(number, 1), LayerId(number, 2)])


def read_by_name(manager, number):
    manager.access_layer(str(LayerId(number, 1)))


@pytest.mark.parametrize("read", [read_single, read_context, read_batch, read_by_name])
@pytest.mark.parametrize(
    ("policy", "reads", "goes"),
    [
        ("lru", [20], 21),
        ("lru", [20, 22, 21, 20, 22], 21),
        ("lru", [22, 21, 21, 21, 20], 22),
        ("lfu", [20, 20, 21, 21, 22], 22),
        ("lfu", [21, 22, 22, 20, 20, 22], 21),
        ("sieve", [20], 21),
        ("sieve", [20, 21, 20, 21], 22),
        ("sieve", [20, 21, 22], 20),
    ],
)
def test_every_way_to_read_tells_the_policy(tmp_path, policy, reads, goes, read):
    with load_into(tmp_path, [20, 21, 22], 3, policy) as manager:
        for number in reads:
            read(manager, number)
        write_dimension(tmp_path, 23)
        manager.load_dimension(23)
        assert evicted(manager) == [goes]


def test_reads_of_other_threads_count_like_ones_own(tmp_path):
    with load_into(tmp_path, [20, 21, 22], 3) as manager:
        for number in (20, 21):
            thread = threading.Thread(target=read_single, args=(manager, number))
            thread.start()
            thread.join()
        write_dimension(tmp_path, 23)
        manager.load_dimension(23)
        assert evicted(manager) == [22]


def test_a_loop_over_more_than_fits_goes_round(tmp_path):
    with load_into(tmp_path, [20, 21, 22, 23], 3) as manager:
        assert evicted(manager) == [20]
        for number, goes in [(20, 21), (21, 22), (22, 23), (23, 20)]:
            assert manager.access_layer(LayerId(number, 0)) == content_of(number, 0)
            assert evicted(manager) == [goes]
        stats = manager.get_stats()
        assert (stats.evictions, stats.reloads) == (5, 4)


def test_a_large_load_makes_several_go_and_no_more_than_it_takes(tmp_path):
    with load_into(tmp_path, [20, 21, 22, 23], 4) as manager:
        write_sparse(tmp_path, 30, 2 * MIB)
        manager.load_dimension(30)
        assert evicted(manager) == [20, 21]
        assert manager.get_stats().evictions == 2
        check_numbers(manager)


# -- which never -----------------------------------------------------------------------------------


def try_to_evict(base, manager, n_mib=1):
    """Load so much that everything that may go has to; tell whether it went in."""
    number = 90 + n_mib
    if not path_of(base, number).exists():
        write_sparse(base, number, n_mib * MIB)
    try:
        manager.load_dimension(number)
    except LimitExceeded:
        return False
    manager.unload_dimension(number)
    return True


@pytest.mark.parametrize("number", [9, 14])
def test_an_ethical_dimension_stays(tmp_path, number):
    with load_into(tmp_path, [number, 20], 2) as manager:
        assert try_to_evict(tmp_path, manager)
        assert evicted(manager) == [20]
        assert not try_to_evict(tmp_path, manager, 2)
        assert manager.access_layer(LayerId(number, 0)) == content_of(number, 0)
        assert manager.get_stats().reloads == 0


def test_a_pinned_dimension_stays_until_it_is_unpinned(tmp_path):
    with load_into(tmp_path, [20, 21], 2) as manager:
        manager.pin(20)
        manager.pin("D20")
        assert [each["pinned"] for each in manager.dump_state()["regions"]] == [True, False]
        assert try_to_evict(tmp_path, manager)
        assert evicted(manager) == [21]
        assert not try_to_evict(tmp_path, manager, 2)
        manager.unpin(20)
        manager.unpin(20)
        assert try_to_evict(tmp_path, manager, 2)
        assert evicted(manager) == [20, 21]


def test_a_pin_ends_with_the_unloading(tmp_path):
    with load_into(tmp_path, [20, 21], 2) as manager:
        manager.pin(20)
        manager.unload_dimension(20)
        manager.load_dimension(20)
        assert try_to_evict(tmp_path, manager, 2)
    with MmapManager(base_path=tmp_path) as manager:
        layer = manager.create_proto_dimension(30, b"gone soon")
        manager.pin(30)
        manager.discard_proto_dimension(layer)
        manager.create_proto_dimension(30, b"new")
        assert not manager.dump_state()["regions"][0]["pinned"]


def overlay(manager):
    manager.overlay_layer("L20-01", b"more")


def create(manager):
    manager.create_proto_dimension(20, b"new")


@pytest.mark.parametrize("learn", [overlay, create])
def test_a_dimension_with_learned_layers_stays_until_they_are_on_disk(tmp_path, learn):
    with load_into(tmp_path, [20, 21], 3, pool_configs=POOLS) as manager:
        learn(manager)
        assert not try_to_evict(tmp_path, manager, 3)
        assert try_to_evict(tmp_path, manager, 2)
        assert evicted(manager) == [21]
        manager.crystallize_dimension(20)
        assert try_to_evict(tmp_path, manager, 3)
        assert evicted(manager) == [20, 21]


def test_a_simulated_dimension_stays(tmp_path):
    with MmapManager(MemoryConfig(2, tmp_path, simulation="always")) as manager:
        manager.load_core_dimensions()
        before = manager.list_layers()
        write_dimension(tmp_path, 20)
        write_dimension(tmp_path, 21)
        manager.load_dimension(20)
        manager.load_dimension(21)
        assert try_to_evict(tmp_path, manager)
        assert evicted(manager) == [20]
        assert not try_to_evict(tmp_path, manager, 2)
        assert manager.list_layers()[: len(before)] == before


def hold_view(manager):
    return manager.access_layer("L20-01")


def hold_slice(manager):
    return manager.access_layer("L20-01")[:0]


def hold_array(manager):
    return np.frombuffer(manager.access_layer("L20-01"), np.uint8)


def hold_context(manager):
    return manager.load_layer_context("L20-01")


def hold_batch(manager):
    return manager.load_contexts(["L20-01"])


@pytest.mark.parametrize("hold", [hold_view, hold_slice, hold_array, hold_context, hold_batch])
@pytest.mark.parametrize("load_mode", ["map", "copy"])
def test_a_dimension_that_someone_views_stays_and_frees_nothing(tmp_path, hold, load_mode):
    with load_into(tmp_path, [20, 21], 2, load_mode=load_mode) as manager:
        held = hold(manager)
        assert try_to_evict(tmp_path, manager)
        assert evicted(manager) == [21]
        assert not try_to_evict(tmp_path, manager, 2)
        assert manager.get_stats().waiting_bytes == 0
        del held
        assert try_to_evict(tmp_path, manager, 2)
        assert evicted(manager) == [20, 21]


def test_a_batch_does_not_throw_out_what_it_reads(tmp_path):
    with load_into(tmp_path, [20, 21, 22, 23], 3) as manager:
        assert evicted(manager) == [20]
        # 21 is the coldest by now, but is asked for as well.
        found = manager.load_contexts(["L20-01", "L21-01"])
        assert [each.content for each in found] == [content_of(20, 1), content_of(21, 1)]
        assert evicted(manager) == [22]


def test_a_load_beside_a_batch_does_not_take_what_it_reads(tmp_path, intercept):
    with load_into(tmp_path, [20, 21, 22, 23], 2) as manager:
        assert evicted(manager) == [20, 21]
        write_dimension(tmp_path, 24)
        outcomes = []

        def load():
            try:
                manager.load_dimension(24)
                outcomes.append("loaded")
            except LimitExceeded:
                outcomes.append("refused")

        loader = threading.Thread(target=load)

        def start_loader(operation, path, *details):
            if operation == "map" and "D21" in path:
                loader.start()

        intercept(start_loader)
        found = manager.load_contexts(["L20-01", "L21-01"])
        assert [each.content for each in found] == [content_of(20, 1), content_of(21, 1)]
        loader.join(30)
        assert outcomes == ["refused"]
        assert evicted(manager) == [22, 23]
        del found
        manager.load_dimension(24)


# -- how much --------------------------------------------------------------------------------------


def test_a_load_that_cannot_be_made_room_for_evicts_nothing(tmp_path):
    with load_into(tmp_path, [20, 21, 22], 3) as manager:
        write_sparse(tmp_path, 30, 3 * MIB + 1)
        before = charged(manager)
        with pytest.raises(LimitExceeded) as caught:
            manager.load_dimension(30)
        error = caught.value
        assert (error.current, error.limit) == (before, 3 * MIB)
        assert evicted(manager) == []
        manager.pin(21)
        write_sparse(tmp_path, 31, 3 * MIB)
        with pytest.raises(LimitExceeded):
            manager.load_dimension(31)
        assert evicted(manager) == [] and manager.get_stats().evictions == 0
        check_numbers(manager)


def test_headroom_that_is_short_evicts_nothing(tmp_path):
    manager = load_into(tmp_path, [20], 40)
    write_sparse(tmp_path, 4, (8 + 12) * MIB)
    write_sparse(tmp_path, 5, (8 + 9) * MIB)
    with manager:
        manager.load_dimension(4)
        with pytest.raises(LimitExceeded, match="headroom"):
            manager.load_dimension(5)
        assert evicted(manager) == []


def test_a_load_fills_the_limit_without_evicting(tmp_path):
    for number in (20, 21):
        write_sparse(tmp_path, number, 2 * MIB)
    with MmapManager(4, base_path=tmp_path) as manager:
        manager.load_dimension(20)
        manager.load_dimension(21)
        assert manager.get_stats().utilization == 1
        assert manager.get_stats().evictions == 0


def test_an_allocation_above_85_percent_evicts_down_to_75(tmp_path):
    # 15 dimensions of a MiB less some pages: between 70 and 75 percent of 20 MiB.
    with load_into(tmp_path, range(20, 35), 20, pool_configs=POOLS) as manager:
        used = manager.get_stats().total_allocated_bytes
        quiet, threshold = int(0.75 * 20 * MIB), int(0.85 * 20 * MIB)
        block = 65_536
        blocks = [manager.allocate(block) for _ in range((threshold - used) // block)]
        assert manager.get_stats().evictions == 0
        blocks.append(manager.allocate(block))
        stats = manager.get_stats()
        assert stats.total_allocated_bytes <= quiet < stats.total_allocated_bytes + MIB
        assert evicted(manager) == [20, 21, 22][: stats.evictions] and stats.evictions > 1
        for offset in blocks:
            manager.deallocate(offset)
        check_numbers(manager)


def test_an_allocation_that_cannot_be_calmed_succeeds_up_to_95_percent(tmp_path):
    with load_into(tmp_path, [20, 21, 22], 20, pool_configs=[(20, 65_536)]) as manager:
        for number in (20, 21):
            manager.pin(number)
        n_blocks = 0
        with pytest.raises(LimitExceeded):
            while True:
                manager.allocate(65_536)
                n_blocks += 1
        stats = manager.get_stats()
        assert evicted(manager) == [22]
        assert stats.total_allocated_bytes == charged(manager) + n_blocks * 65_536
        assert 0.95 * 20 * MIB - 65_536 < stats.total_allocated_bytes <= 0.95 * 20 * MIB


def test_a_hopeless_allocation_evicts_nothing(tmp_path):
    with load_into(tmp_path, [20, 21], 4, pool_configs=POOLS) as manager:
        with pytest.raises((LimitExceeded, AllocationFailed)):
            manager.allocate(4 * MIB)
        assert evicted(manager) == []


def test_what_is_learned_evicts_like_any_allocation(tmp_path):
    with load_into(tmp_path, [20, 21, 22, 23], 5, pool_configs=POOLS) as manager:
        layers = [manager.create_proto_dimension(40, bytes([i]) * MIB) for i in range(2)]
        assert evicted(manager) == [20, 21]
        manager.overlay_layer("L22-00", bytes(MIB // 2))
        assert evicted(manager) == [20, 21, 23], "not what it is laid over"
        assert [manager.access_layer(each)[0] for each in layers] == [0, 1]
        assert manager.access_layer("L22-00")[: -MIB // 2 - 1] == content_of(22, 0)


@pytest.mark.parametrize("policy", ["lru", "lfu", "sieve"])
def test_only_what_may_go_some_day_is_looked_at(tmp_path, policy):
    write_dimension(tmp_path, 9)
    with load_into(tmp_path, [20, 21], 8, policy, pool_configs=POOLS) as manager:
        assert admitted(manager) == [20, 21]
        manager.create_proto_dimension(40, b"learned")
        manager.load_dimension(9)  # immutable
        assert admitted(manager) == [20, 21]
        manager.overlay_layer("L20-01", b"over")
        assert admitted(manager) == [21]
        manager.access_layer("L20-00")
        manager.drop_overlay("L20-01")
        assert admitted(manager) == [21, 20]
        evict(manager, 21)
        assert admitted(manager) == [20]
        manager.access_layer("L21-00")
        manager.unload_dimension(20)
        assert admitted(manager) == [21]


# -- the memory ------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_PROC, reason="the system does not tell its mappings")
def test_the_memory_of_an_evicted_dimension_is_given_back(tmp_path):
    with load_into(tmp_path, [20, 21, 22], 2) as manager:
        gc.collect()
        mapped = "\n".join(map(str, mappings_of(tmp_path)))
        assert "D20" not in mapped and "D21" in mapped and "D22" in mapped
        check_numbers(manager)


def test_a_reader_in_the_middle_of_something_is_waited_for(tmp_path):
    """Who holds the state before for a moment neither makes a load fail nor others go in vain."""
    with load_into(tmp_path, [20, 21, 22], 3) as manager:
        write_dimension(tmp_path, 23)
        is_evicting = threading.Event()
        waits = []

        def hold():
            held.append(snapshot_of(manager))
            is_holding.set()
            assert is_evicting.wait(30)
            held.clear()

        original = budget_of(manager).is_charged

        def is_charged(region_id):
            found = original(region_id)
            waits.append(found)
            is_evicting.set()
            return found

        held, is_holding = [], threading.Event()
        thread = threading.Thread(target=hold)
        thread.start()
        assert is_holding.wait(30)
        budget_of(manager).is_charged = is_charged
        try:
            manager.load_dimension(23)
        finally:
            budget_of(manager).is_charged = original
        thread.join(30)
        assert waits[0] and not waits[-1]
        assert evicted(manager) == [20]


def test_names_are_all_there_when_everything_has_gone(tmp_path):
    with load_into(tmp_path, [20, 21, 22], 3) as manager:
        before = manager.list_layers(), manager.list_dimensions(), len(manager)
        children = manager.get_layer_info("L20-00").children
        for number in (20, 21, 22):
            evict(manager, number)
        stats = manager.get_stats()
        assert (stats.total_allocated_bytes, stats.active_regions) == (0, 0)
        assert (stats.dimensions_loaded, stats.layers_loaded) == (3, 3 * N_LAYERS)
        assert (manager.list_layers(), manager.list_dimensions(), len(manager)) == before
        assert manager.list_layers(21) == [LayerId(21, layer) for layer in range(N_LAYERS)]
        assert all(manager.is_loaded(number) and f"D{number}" in manager for number in (20, 21, 22))
        assert all(layer in manager for layer in before[0])
        assert LayerId(20, N_LAYERS) not in manager
        assert snapshot_of(manager).children_of(LayerId(20, 0)) == children
        assert manager.get_stats().reloads == 0, "nothing of this maps anything"
        state = manager.dump_state()
        assert [each["state"] for each in state["regions"]] == ["evicted"] * 3
        assert [each["n_charged"] for each in state["regions"]] == [0] * 3
        assert [each["layer"] for each in state["layers"]] == [str(each) for each in before[0]]


def test_a_closed_manager_evicts_nothing_and_brings_nothing_back(tmp_path):
    manager = load_into(tmp_path, [20, 21, 22], 2)
    manager.close()
    assert manager.get_stats().total_allocated_bytes == 0
    for call in (lambda: manager.access_layer("L20-00"), lambda: manager.pin(20)):
        with pytest.raises(InvalidAccess):
            call()
    gc.collect()
    assert mappings_of(tmp_path) == []
