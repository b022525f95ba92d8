"""The published state: what two states share, what each keeps alive, and how few steps it takes."""

from __future__ import annotations

import gc

import pytest
from support.calls import trace
from support.internals import mapping_of, snapshot_of
from support.regions import build_region, region_file

from jessymem import DimensionId, LayerId, LimitExceeded, MemoryConfig, MmapManager
from jessymem.kernels import schema as s

NUMBERS = (20, 21, 100, 300, 301, 40_000)


@pytest.fixture
def base(tmp_path):
    """A folder with six dimensions, some in one chunk of 64 and some far apart."""
    for number in NUMBERS:
        build_region(tmp_path, f"D{number}", b"content of %d" % number, layers=2)
    return tmp_path


def chunks_of(manager):
    """Return where the rows of each 64 dimensions are."""
    return manager.store().directory.tolist()


def changed_chunks(before, after):
    """Return which chunks are others; those that came to be added are, if anything is in them."""
    return [at for at, chunk in enumerate(after) if at >= len(before) or chunk != before[at]]


def read(manager, number):
    return bytes(manager.access_layer(LayerId(number, 1)))


# -- what states share -----------------------------------------------------------------------------


def test_a_publication_changes_the_chunk_of_its_dimension_and_no_other(base):
    with MmapManager(base_path=base) as manager:
        for number in NUMBERS[1:]:
            manager.load_dimension(number)
        before, held = chunks_of(manager), manager.store()
        manager.load_dimension(20)
        assert changed_chunks(before, chunks_of(manager)) == [20 >> s.CHUNK_BITS]
        before = chunks_of(manager)
        manager.unload_dimension(300)
        assert changed_chunks(before, chunks_of(manager)) == [300 >> s.CHUNK_BITS]
        before = chunks_of(manager)
        manager.create_proto_dimension(101, b"learned")
        assert changed_chunks(before, chunks_of(manager)) == [100 >> s.CHUNK_BITS]
        del held


def test_there_are_slots_up_to_the_highest_dimension_only(base):
    with MmapManager(base_path=base) as manager:
        assert len(manager.store().directory) == 1
        manager.load_dimension(300)
        assert len(manager.store().directory) == 5
        manager.load_dimension(20)
        assert len(manager.store().directory) == 5
        assert LayerId(40_000, 0) not in manager and not manager.is_loaded(40_000)
        assert (
            manager.locate_many([LayerId(40_000, 0), LayerId(65_535, 9)], "mark")["status"].tolist()
            == [s.NO_DIMENSION] * 2
        )


# -- what each keeps alive -------------------------------------------------------------------------


def test_an_old_state_keeps_what_it_saw_and_nothing_later(base):
    with MmapManager(base_path=base) as manager:
        manager.load_dimension(20)
        old = manager.store()
        manager.load_dimension(21)  # into the chunk that the old state has too
        read(manager, 21)
        later = mapping_of(manager, 21)
        manager.unload_dimension(21)
        assert later() is None, "only later states had it"
        earlier = mapping_of(manager, 20)
        manager.unload_dimension(20)
        assert earlier() is not None, "the old state has it"
        del old
        assert earlier() is None


def test_no_state_keeps_what_single_reads_have_found_before(base):
    """What a state remembers for single reads goes with it, at once: no collector is needed."""
    with MmapManager(base_path=base) as manager:
        manager.load_dimension(20)
        read(manager, 20)
        gc.disable()
        try:
            mapping = mapping_of(manager, 20)
            manager.unload_dimension(20)
            assert mapping() is None
        finally:
            gc.enable()


def test_single_reads_see_each_state_once_it_is_published(base):
    with MmapManager(base_path=base) as manager:
        manager.load_dimension(20)
        for i in range(3):
            layer = manager.create_proto_dimension(20, b"first %d" % i)
            assert bytes(manager.access_layer(layer)) == b"first %d" % i
            manager.update_proto_dimension(layer, b"second")
            assert bytes(manager.access_layer(layer)) == b"second"
            assert read(manager, 20) == b"content of 20"
            manager.discard_proto_dimension(layer)
            with pytest.raises(KeyError):
                manager.access_layer(layer)


@pytest.mark.parametrize("number", [-1, -44 << 16, -(2**40), 0, 7, 2**48])
def test_a_number_that_is_no_layers_leads_nowhere(base, number):
    with MmapManager(base_path=base) as manager:
        manager.load_dimension(20)
        with pytest.raises((KeyError, ValueError)):
            manager.access_layer(number)
        with pytest.raises(LookupError):
            snapshot_of(manager).readers[number >> 16]


# -- totals ----------------------------------------------------------------------------------------


def test_totals_are_what_the_dimensions_add_up_to(base):
    def check():
        stats, loaded = manager.get_stats(), snapshot_of(manager).loaded
        assert stats.dimensions_loaded == len(loaded)
        assert stats.layers_loaded == len(manager) == sum(each.n_layers for each in loaded)
        assert stats.active_regions == len(snapshot_of(manager).resident)
        assert stats.simulation_mode == any(each.state == s.REGION_SIMULATED for each in loaded)

    with MmapManager(MemoryConfig(64, base, simulation="always")) as manager:
        check()
        manager.load_all()
        check()
        layer = manager.create_proto_dimension(300, b"learned")
        check()
        manager.overlay_layer("L01-00", b"over")
        check()
        manager.discard_proto_dimension(layer)
        manager.drop_overlay("L01-00")
        manager.unload_dimension(40_000)
        check()
    check()
    assert len(manager) == 0


# -- many at once ----------------------------------------------------------------------------------


def test_load_all_publishes_once(base, intercept):
    seen = []

    def look(operation, path, *details):
        if operation == "map":
            seen.append(len(manager.list_dimensions()))

    intercept(look)
    with MmapManager(MemoryConfig(64, base, simulation="never")) as manager:
        report = manager.load_all()
        assert report.loaded == tuple(map(DimensionId, NUMBERS))
        assert seen == [0] * len(NUMBERS)
        assert [read(manager, number) for number in NUMBERS] == [
            b"content of %d" % number for number in NUMBERS
        ]


def test_load_all_checks_small_tables_together(tmp_path):
    for number in range(20, 120):
        build_region(tmp_path, f"D{number}", b"small")
    with MmapManager(MemoryConfig(64, tmp_path, simulation="never")) as manager:
        calls = [name for _, name in trace(manager.load_all).calls]
        assert "check_rows" not in calls
        assert calls.count("are_sound") == 2
        assert len(manager.list_dimensions()) == 100
        manager.unload_dimension(20)
        calls = [name for _, name in trace(lambda: manager.load_dimension(20)).calls]
        assert calls.count("check_rows") == 1


def test_load_all_leaves_what_it_has_loaded_when_it_is_interrupted(base, intercept):
    mapped = []

    def strike(operation, path, *details):
        if operation == "map":
            mapped.append(path)
            if len(mapped) == 4:
                raise KeyboardInterrupt

    intercept(strike)
    with MmapManager(MemoryConfig(64, base, simulation="never")) as manager:
        with pytest.raises(KeyboardInterrupt):
            manager.load_all()
        assert manager.list_dimensions() == list(NUMBERS[:3])
        file_bytes = sum(region_file(base, f"D{n}").stat().st_size for n in NUMBERS[:3])
        assert manager.get_stats().total_used_bytes == file_bytes
        assert manager.get_stats().total_allocated_bytes == 3 * 4096


def test_load_all_evicts_what_it_has_just_loaded_where_not_all_fit(tmp_path):
    for number in range(20, 26):
        build_region(tmp_path, f"D{number}", bytes([number]) * 300_000)
    config = MemoryConfig(1, tmp_path, simulation="never", eviction_policy="lru", pool_configs=[])
    with MmapManager(config) as manager:
        report = manager.load_all()
        assert [int(number) for number in report.loaded] == list(range(20, 26))
        assert manager.get_stats().evictions == 3
        states = {each["dimension"]: each["state"] for each in manager.dump_state()["regions"]}
        assert [name for name, state in states.items() if state == "mapped"] == [
            "D23",
            "D24",
            "D25",
        ]
        assert bytes(manager.access_layer("L20-00")[:2]) == bytes([20, 20])
        build_region(tmp_path, "D26", bytes(1_200_000))
        report = manager.load_all()
        reasons = dict(report.skipped)
        assert "is loaded" in reasons[DimensionId(20)] and "do not fit" in reasons[DimensionId(26)]
        with pytest.raises(LimitExceeded):
            manager.load_dimension(26)
