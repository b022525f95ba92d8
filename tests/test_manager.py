"""The manager's verbs, one after the other: what they return, refuse and leave behind."""

from __future__ import annotations

import errno
import logging
import os
import pickle

import pytest
from support.internals import evict, region_of, replace_check_open
from support.naive import Draft, write_plain
from support.regions import build_region, region_file, write_sparse
from support.system import mappings_of, open_files

from jessymem import (
    ContentLocation,
    DimensionId,
    DimensionNotFound,
    DuplicateDimension,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LayerState,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    NavigationPath,
    RegionBuilder,
    RegionFormatError,
    RegionIOError,
    RegionNotFound,
    osmem,
)
from jessymem.config import MIB
from jessymem.kernels import schema as s


def state(manager: MmapManager) -> dict:
    """Everything but the peak, which counts what a call that failed took for a moment."""
    dump = manager.dump_state()
    del dump["budget"]["peak_bytes"]
    return dump


# -- finding ---------------------------------------------------------------------------------------


def test_discover_lists_what_is_on_disk_and_nothing_else(store):
    for name in ("D1", "d07", "D00", "D99999", "notes", "D05-x"):
        region_file(store, name).parent.mkdir()
        region_file(store, name).write_bytes(b"")
    (store / "D44").mkdir()  # no file in it
    (store / "D45").write_text("not a directory")
    build_region(store, "D300")
    assert MmapManager(base_path=store).discover() == [1, 20, 300]


def test_a_base_path_that_does_not_exist_holds_nothing(tmp_path):
    config = MemoryConfig(base_path=tmp_path / "nowhere", simulation="never")
    with MmapManager(config) as manager:
        assert manager.discover() == []
        assert manager.load_all().loaded == ()
        assert list(tmp_path.iterdir()) == []


def test_a_base_path_that_is_a_file_is_an_error(tmp_path):
    base = tmp_path / "file"
    base.write_bytes(b"")
    with MmapManager(8, base_path=base) as manager:
        for verb in (manager.discover, manager.load_all):
            with pytest.raises(RegionIOError) as caught:
                verb()
            assert (caught.value.errno, caught.value.path) == (errno.ENOTDIR, str(base))
    with MmapManager(8, base_path=base / "below") as manager:
        assert manager.discover() == []


def test_a_base_path_that_cannot_be_listed_is_an_error(store, intercept):
    def refuse(operation, path, *details):
        if operation == "list":
            raise PermissionError(13, "Permission denied")

    intercept(refuse)
    with pytest.raises(RegionIOError, match="list") as caught:
        MmapManager(base_path=store).discover()
    assert (caught.value.errno, caught.value.path) == (13, str(store))


# -- loading ---------------------------------------------------------------------------------------


def test_region_ids_are_unique_also_over_unload_and_load(store):
    manager = MmapManager(base_path=store)
    first = manager.load_dimension("D01")
    second = manager.load_dimension(20)
    manager.unload_dimension("D01")
    third = manager.load_dimension(DimensionId(1))
    assert len({first, second, third}) == 3


def test_a_path_may_lie_anywhere(tmp_path, store):
    elsewhere = tmp_path / "elsewhere.bin"
    os.rename(region_file(store, "D20"), elsewhere)
    manager = MmapManager(base_path=store)
    manager.load_dimension("D20", elsewhere)
    assert len(manager.access_layer("L20-300")) == 301


def test_a_second_load_is_refused_and_changes_nothing(manager):
    before = state(manager)
    with pytest.raises(DuplicateDimension, match="D01"):
        manager.load_dimension("D01")
    assert state(manager) == before


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, DimensionNotFound),
        (lambda path: path.mkdir(), RegionIOError),
        (lambda path: path.write_bytes(b""), RegionFormatError),
        (lambda path: path.write_bytes(bytes(300)), RegionFormatError),
        (lambda path: path.write_bytes(write_plain(dimension=41)), RegionFormatError),
    ],
    ids=["missing", "directory", "empty", "zeros", "another dimension's"],
)
def test_a_load_that_fails_leaves_nothing_behind(store, make, error):
    path = region_file(store, "D40")
    path.parent.mkdir()
    make(path)
    manager = MmapManager(base_path=store)
    before = state(manager)
    with pytest.raises(error, match="D40") as caught:
        manager.load_dimension("D40")
    assert state(manager) == before
    assert mappings_of(path) == [], caught
    assert str(path) not in open_files()


def test_what_the_system_refuses_names_path_and_errno(store, intercept):
    def refuse(operation, path, *details):
        if operation == "map":
            raise OSError(24, "Too many open files")

    intercept(refuse)
    manager = MmapManager(base_path=store)
    with pytest.raises(RegionIOError) as caught:
        manager.load_dimension("D01")
    assert caught.value.errno == 24
    assert caught.value.path == str(region_file(store, "D01"))
    assert str(caught.value.dimension) == "D01"
    assert manager.get_stats().total_allocated_bytes == 0
    assert str(region_file(store, "D01")) not in open_files()


@pytest.mark.parametrize("load_mode", ["map", "copy"])
def test_what_is_charged_is_the_file_that_was_opened(store, intercept, load_mode):
    path, other = region_file(store, "D01"), store / "other.mmap"
    builder = RegionBuilder("D01", "Larger")
    builder.add_layer(0, bytes(2**20))
    builder.build_to_file(other)
    made = []

    def replace_once(operation, where):
        made.append(operation)
        if operation == "open" and other.exists():
            other.replace(path)

    manager = MmapManager(MemoryConfig(1, store, load_mode=load_mode))
    intercept(replace_once)
    with pytest.raises(LimitExceeded) as caught:
        manager.load_dimension("D01")
    assert caught.value.requested == osmem.round_to_pages(path.stat().st_size)
    assert not {"map", "map private", "read"} & set(made)
    assert manager.get_stats().total_allocated_bytes == 0
    assert str(path) not in open_files()


@pytest.mark.parametrize("operation", ["stat", "open", "map", "advise"])
def test_an_interrupted_load_leaves_nothing_behind(store, intercept, operation):
    def interrupt(made, path):
        if made == operation:
            raise KeyboardInterrupt

    manager = MmapManager(base_path=store)
    intercept(interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        manager.load_dimension("D01")
    assert manager.get_stats().total_allocated_bytes == 0
    assert mappings_of(region_file(store, "D01")) == [], caught
    assert not manager.is_loaded("D01")


def test_a_manager_that_is_closed_within_a_load_is_closed_after_it(store, intercept):
    manager = MmapManager(base_path=store)
    intercept(lambda made, path: manager.close() if made == "advise" else None)
    manager.load_dimension("D01")
    with pytest.raises(InvalidAccess, match="closed"):
        manager.access_layer("L01-00")
    assert not manager.is_loaded("D01")
    assert manager.get_stats().dimensions_loaded == 0


def test_core_dimensions_that_are_missing_are_skipped(store, caplog):
    manager = MmapManager(base_path=store)
    report = manager.load_core_dimensions()
    assert report.loaded == (1,)
    assert [dimension for dimension, _ in report.skipped] == list(range(2, 15))
    assert all("no region file" in reason for _, reason in report.skipped)
    assert not manager.get_stats().simulation_mode
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 13


def test_load_all_goes_on_after_a_broken_file(store):
    build_region(store, "D21")
    region_file(store, "D20").write_bytes(b"rubbish")
    report = MmapManager(base_path=store).load_all()
    assert report.loaded == (1, 21)
    assert dict(report.skipped)[DimensionId(20)].startswith("D20")
    assert report.seconds > 0


def test_two_loads_of_everything_change_nothing_more(store):
    manager = MmapManager(base_path=store)
    manager.load_all()
    before = state(manager)
    report = manager.load_all()
    assert report.loaded == ()
    assert "is loaded" in dict(report.skipped)[DimensionId(20)]
    assert state(manager) == before


def test_unload_takes_the_names_away(manager):
    manager.unload_dimension("D01")
    assert not manager.is_loaded("D01")
    assert manager.list_dimensions() == [20]
    with pytest.raises(LayerNotFound, match="L01-00"):
        manager.access_layer("L01-00")
    with pytest.raises(DimensionNotFound, match="D01"):
        manager.unload_dimension("D01")


def test_a_slot_of_a_grown_dimension_is_used_again(store):
    manager = MmapManager(base_path=store)
    for dimension in ("D20", "D21", "D22"):
        build_region(store, dimension)
        manager.load_dimension(dimension)
    n_slots = len(manager.store().regions)
    for _ in range(3):
        manager.unload_dimension("D21")
        manager.load_dimension("D21")
    assert len(manager.store().regions) == n_slots
    assert [bytes(manager.access_layer(f"L{n}-00")) for n in (20, 21, 22)] == [b"content"] * 3


def test_the_fourteen_core_slots_are_there_from_the_start(tmp_path):
    manager = MmapManager(base_path=tmp_path)
    rows = manager.store().regions[1:15]
    assert rows["dimension"].tolist() == list(range(1, 15))
    assert rows["capacity"].sum() == 148 * MIB


# -- the budget ------------------------------------------------------------------------------------


def test_a_load_may_fill_the_limit_but_not_pass_it(tmp_path):
    write_sparse(tmp_path, 20, 6 * MIB)
    write_sparse(tmp_path, 21, 4 * MIB)
    write_sparse(tmp_path, 22, 300)
    manager = MmapManager(10, base_path=tmp_path)
    for number in (20, 21):
        manager.load_dimension(number)
        manager.pin(number)  # or one would have to go
    assert manager.get_stats().utilization == 1.0
    with pytest.raises(LimitExceeded, match="D22") as caught:
        manager.load_dimension(22)
    error = caught.value
    page = manager.get_stats().total_allocated_bytes - 10 * MIB + error.requested
    assert (error.current, error.limit, error.requested) == (10 * MIB, 10 * MIB, page)
    manager.unload_dimension(21)
    manager.load_dimension(22)


def test_a_core_file_takes_headroom_beyond_its_slot(tmp_path):
    # D14 has 4 MB, D04 8 MB; the headroom is 20 MB.
    write_sparse(tmp_path, 14, 4 * MIB + 15 * MIB)
    write_sparse(tmp_path, 4, 8 * MIB + 6 * MIB)
    write_sparse(tmp_path, 5, 8 * MIB + 5 * MIB)
    manager = MmapManager(base_path=tmp_path)
    manager.load_dimension(14)
    with pytest.raises(LimitExceeded, match="headroom") as caught:
        manager.load_dimension(4)
    error = caught.value
    assert (error.bound, error.in_headroom, error.current) == ("core_headroom", 15 * MIB, 19 * MIB)
    assert (error.limit, error.requested) == (20 * MIB, 6 * MIB)
    manager.load_dimension(5)
    usage = manager.get_stats().per_class
    assert usage["core_slots"].allocated_bytes == 12 * MIB
    assert usage["core_headroom"].allocated_bytes == 20 * MIB
    manager.unload_dimension(14)
    manager.load_dimension(4)


def test_a_view_that_is_held_keeps_its_place_in_the_budget(store):
    path = build_region(store, "D21", bytes(3 * MIB))
    manager = MmapManager(5, base_path=store)
    manager.load_dimension("D21")
    view = manager.access_layer("L21-00")
    manager.unload_dimension("D21")
    with pytest.raises(LimitExceeded) as caught:
        manager.load_dimension("D21")
    assert caught.value.waiting == manager.get_stats().waiting_bytes >= path.stat().st_size
    del view
    manager.load_dimension("D21")


def test_pressure_is_said_once_per_crossing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "jessymem")
    for number, n_bytes in ((20, 7), (21, 1), (22, 1)):
        write_sparse(tmp_path, number, n_bytes * MIB)
    manager = MmapManager(10, base_path=tmp_path)

    def crossings():
        records = [r for r in caplog.records if getattr(r, "event", "") == "memory_pressure"]
        caplog.clear()
        return [(r.threshold_name, r.levelname, r.used_bytes // MIB) for r in records]

    manager.load_dimension(20)
    assert crossings() == []
    manager.load_dimension(21)
    assert crossings() == [("warning", "INFO", 8)]
    manager.load_dimension(22)
    assert crossings() == [("eviction", "WARNING", 9)]
    manager.unload_dimension(22)  # 80 %: not yet five points below either
    manager.load_dimension(22)
    assert crossings() == []
    manager.unload_dimension(20)
    manager.load_dimension(20)
    assert crossings() == [("warning", "INFO", 9), ("eviction", "WARNING", 9)]
    views = [manager.access_layer(layer) for layer in manager.list_layers()]
    for number in (20, 21, 22):
        manager.unload_dimension(number)
    del views  # use falls while nobody writes
    manager.load_dimension(20)
    manager.load_dimension(21)
    assert crossings() == [("warning", "INFO", 8)]


# -- reading ---------------------------------------------------------------------------------------


def test_a_layer_is_read_by_id_number_and_string(manager):
    expected = b"layer 1 of emotion\n" * 2
    for layer in (LayerId(1, 1), int(LayerId(1, 1)), "L01-01", "l1-1"):
        assert bytes(manager.access_layer(layer)) == expected
        assert layer in manager


def test_views_are_fresh_and_read_only(manager):
    first, second = manager.access_layer("L01-00"), manager.access_layer("L01-00")
    assert first.readonly and first.format == "B" and first.ndim == 1
    first.release()
    assert bytes(second) == b"layer 0 of emotion\n"
    with pytest.raises(TypeError):
        second[0] = 0


@pytest.mark.parametrize("layer", ["L01-04", "L20-01", "L20-65534", "L02-00", "L65535-65535"])
def test_a_layer_that_is_not_there(manager, layer):
    for read in (manager.access_layer, manager.load_layer_context, manager.get_layer_info):
        with pytest.raises(LayerNotFound, match=layer) as caught:
            read(layer)
        assert caught.value.layer == LayerId.parse(layer)
    assert layer not in manager


@pytest.mark.parametrize("wrong", [None, 1.5, b"L01-00", [], True, object()])
def test_what_is_no_id_is_a_type_error(manager, wrong):
    for read in (manager.access_layer, manager.load_layer_context, manager.get_layer_info):
        with pytest.raises(TypeError):
            read(wrong)
    assert wrong not in manager


@pytest.mark.parametrize("wrong", ["", "L01", "D01-00", "L00-00", "L01-65536", -1, 0, 2**40])
def test_what_is_no_id_is_a_value_error(manager, wrong):
    for read in (manager.access_layer, manager.load_layer_context, manager.get_layer_info):
        with pytest.raises(ValueError):
            read(wrong)
    assert wrong not in manager


def test_a_context_is_a_layer_with_its_description(manager):
    context = manager.load_layer_context("L01-02")
    assert context.layer_id == LayerId(1, 2)
    assert context.text == "layer 2 of emotion\n" * 3
    assert (context.name, context.dimension_name) == ("part 2", "Emotion")
    assert (context.frequency, context.depth) == (2.0, 2)
    assert context.keywords == ("joy", "word2")
    assert context.parent == LayerId(1, 1)


def test_contexts_come_in_path_order_with_duplicates(manager):
    paths = [NavigationPath(["L20-05", "L01-00"]), "L01-03", LayerId(20, 5), NavigationPath([])]
    found = manager.load_contexts(paths)
    assert [str(context.layer_id) for context in found] == ["L20-05", "L01-00", "L01-03", "L20-05"]
    assert list(manager.load_contexts(NavigationPath(["L01-01"]))) == [
        manager.load_layer_context("L01-01")
    ]
    assert len(manager.load_contexts([])) == 0


def test_missing_contexts_are_raised_or_skipped(manager):
    wanted = ["L01-00", "L01-77", "L02-00", "L20-05"]
    with pytest.raises(LayerNotFound, match="L01-77"):
        manager.load_contexts(wanted)
    found = manager.load_contexts(wanted, missing="skip")
    assert [str(context.layer_id) for context in found] == ["L01-00", "L20-05"]
    with pytest.raises(ValueError, match="ignore"):
        manager.load_contexts(wanted, missing="ignore")
    with pytest.raises(TypeError):
        manager.load_contexts("L01-00")
    with pytest.raises(TypeError):
        manager.load_contexts(5)


def test_layer_info(manager):
    info = manager.get_layer_info("L01-01")
    assert info.layer_id == LayerId(1, 1)
    assert (info.name, info.depth, info.frequency) == ("part 1", 1, 1.5)
    assert info.size == len(b"layer 1 of emotion\n") * 2
    assert info.keywords == ("joy", "word1")
    assert info.parent == LayerId(1, 0)
    assert info.children == (LayerId(1, 2),)
    assert info.location is ContentLocation.MMAP
    assert info.state is LayerState.PERMANENT


def test_children_are_found_in_every_loaded_dimension(manager):
    everywhere = ["L01-01", "L20-00", "L20-05", "L20-300", "L20-65535"]
    assert [str(c) for c in manager.get_layer_info("L01-00").children] == everywhere
    manager.unload_dimension("D20")
    assert [str(c) for c in manager.get_layer_info("L01-00").children] == ["L01-01"]


def test_lists_are_ascending(manager):
    assert [str(layer) for layer in manager.list_layers("D20")] == [
        "L20-00",
        "L20-05",
        "L20-300",
        "L20-65535",
    ]
    assert manager.list_layers() == sorted(manager.list_layers())
    assert len(manager) == len(manager.list_layers()) == 8
    with pytest.raises(DimensionNotFound, match="D02"):
        manager.list_layers("D02")


def test_membership_of_dimensions(manager):
    assert DimensionId(1) in manager and "D20" in manager and "d20" in manager
    assert DimensionId(2) not in manager and "D02" not in manager and "Dx" not in manager


def test_an_empty_manager_is_true(tmp_path):
    manager = MmapManager(base_path=tmp_path)
    assert manager and len(manager) == 0


# -- refresh ---------------------------------------------------------------------------------------


def test_refresh_adopts_a_newer_file_and_old_views_stay(store):
    manager = MmapManager(base_path=store)
    manager.load_dimension("D20")
    old = manager.access_layer("L20-05")
    assert not manager.refresh("D20")
    build_region(store, "D20", b"new content", layers=2)  # as another process would
    assert bytes(manager.access_layer("L20-05")) == bytes(old)
    assert manager.refresh("D20")
    assert bytes(manager.access_layer("L20-01")) == b"new content"
    assert bytes(old) == bytes([5]) * 6
    assert manager.get_stats().waiting_bytes > 0
    del old
    assert manager.get_stats().waiting_bytes == 0
    assert not manager.refresh("D20")


@pytest.mark.parametrize("is_evicted", [False, True])
def test_a_file_that_was_rolled_back_is_adopted_however_it_is_met(is_evicted, store):
    path = region_file(store, "D20")
    old_bytes, old = path.read_bytes(), MmapRegion.from_file("D20", path)
    build_region(store, "D20", b"newer")
    manager = MmapManager(base_path=store)
    manager.load_dimension("D20")
    path.unlink()
    path.write_bytes(old_bytes)
    if is_evicted:
        evict(manager, 20)
    else:
        assert manager.refresh("D20")
    expected = bytes(old.read_content(*extent_of(old, "L20-00")))
    assert bytes(manager.access_layer("L20-00")) == expected != b"newer"
    assert not manager.refresh("D20")


def extent_of(region: MmapRegion, layer: str) -> tuple[int, int]:
    info = region.get_layer_info(layer)
    return info.offset, info.size


def test_refresh_takes_any_other_plain_file(store):
    path = region_file(store, "D20")
    path.unlink()
    path.write_bytes(write_plain([Draft(content=b"one")], dimension=20))
    manager = MmapManager(base_path=store)
    manager.load_dimension("D20")
    beside = path.with_name("new")
    beside.write_bytes(write_plain([Draft(content=b"two")], dimension=20))
    os.replace(beside, path)
    assert manager.refresh("D20")
    assert bytes(manager.access_layer("L20-00")) == b"two"


def test_refresh_takes_a_first_generation_that_was_made_anew(store):
    manager = MmapManager(base_path=store)
    manager.load_dimension("D20")
    region_file(store, "D20").unlink()
    build_region(store, "D20", b"made anew")
    assert manager.refresh("D20")
    assert bytes(manager.access_layer("L20-00")) == b"made anew"
    assert not manager.refresh("D20")


@pytest.mark.parametrize("breakage", ["rubbish", "gone"])
def test_a_refresh_that_fails_keeps_the_old_file(store, breakage):
    manager = MmapManager(base_path=store)
    manager.load_dimension("D20")
    path = region_file(store, "D20")
    path.unlink()
    if breakage == "rubbish":
        path.write_bytes(b"rubbish")
    before = state(manager)
    with pytest.raises(RegionFormatError if breakage == "rubbish" else DimensionNotFound):
        manager.refresh("D20")
    assert state(manager) == before
    assert len(manager.access_layer("L20-300")) == 301


def test_refresh_of_what_is_not_loaded(store):
    with pytest.raises(DimensionNotFound, match="D20"):
        MmapManager(base_path=store).refresh("D20")


# -- the end ---------------------------------------------------------------------------------------


def test_after_close_every_call_is_refused(manager):
    manager.close()
    manager.close()
    for call in (
        lambda: manager.access_layer(LayerId(1, 0)),
        lambda: manager.access_layer("L01-00"),
        lambda: manager.load_layer_context("L01-00"),
        lambda: manager.load_contexts([]),
        lambda: manager.get_layer_info("L01-00"),
        lambda: manager.list_layers(),
        lambda: manager.list_dimensions(),
        lambda: manager.select(),
        lambda: manager.discover(),
        lambda: manager.load_dimension("D01"),
        lambda: manager.load_core_dimensions(),
        lambda: manager.load_all(),
        lambda: manager.refresh("D01"),
        lambda: manager.unload_dimension("D01"),
        lambda: manager.__enter__(),
        lambda: pickle.dumps(manager),
    ):
        with pytest.raises(InvalidAccess, match="closed"):
            call()
    assert not manager.is_loaded("D01") and "L01-00" not in manager and len(manager) == 0
    assert manager.get_stats().dimensions_loaded == 0


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda manager: bytes(manager.access_layer(LayerId(1, 0))), b"layer 0 of emotion\n"),
        (lambda manager: manager.load_layer_context("L01-00").text, "layer 0 of emotion\n"),
        (lambda manager: len(manager.load_contexts(["L01-00"])), 1),
        (lambda manager: manager.get_layer_info("L01-00").name, "part 0"),
        (lambda manager: len(manager.list_layers("D01")), 4),
        (lambda manager: len(manager.select(keywords=["joy"])), 4),
        (lambda manager: manager.list_dimensions(), [1, 20]),
        (lambda manager: len(manager.__reduce__()[1][2]), 2),
    ],
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_close_during_a_call_is_before_or_after_it(manager, monkeypatch, call, answer, moment):
    def make_check(check_open):
        def check(*about):
            if moment == "before":
                manager.close()
            check_open(*about)
            manager.close()

        return check

    replace_check_open(monkeypatch, manager, make_check)
    if moment == "after":
        assert call(manager) == answer
    else:
        with pytest.raises(InvalidAccess, match="closed") as caught:
            call(manager)
        assert manager.get_stats().waiting_bytes == 0, caught


def test_views_outlive_the_manager(store):
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D01")
        view = manager.access_layer("L01-01")
        context = manager.load_layer_context("L01-02")
    del manager
    assert bytes(view) == b"layer 1 of emotion\n" * 2
    assert context.text == "layer 2 of emotion\n" * 3


def test_copies_are_immune_to_what_happens_to_the_file(store):
    config = MemoryConfig(base_path=store, load_mode="copy")
    with MmapManager(config) as manager:
        manager.load_dimension("D01")
        os.truncate(region_file(store, "D01"), 0)
        assert bytes(manager.access_layer("L01-01")) == b"layer 1 of emotion\n" * 2
        assert manager.get_layer_info("L01-01").location is ContentLocation.HEAP
        with pytest.raises(TypeError):
            manager.access_layer("L01-01")[0] = 1


def test_read_only_managers_write_nothing(store):
    before = sorted(store.rglob("*"))
    with MmapManager(MemoryConfig(base_path=store, read_only=True)) as manager:
        manager.load_all()
        manager.access_layer("L01-00")
    assert sorted(store.rglob("*")) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda manager: manager.load_dimension("D20"),
        lambda manager: manager.access_layer("L20-07"),
        lambda manager: manager.access_layer(LayerId(20, 7)),
        lambda manager: manager.load_layer_context("L20-07"),
        lambda manager: manager.load_contexts(["L20-07"]),
        lambda manager: manager.get_layer_info("L20-07"),
        lambda manager: manager.list_layers("D30"),
        lambda manager: manager.unload_dimension("D30"),
    ],
)
def test_an_error_that_is_held_holds_no_region(manager, store, call):
    manager.access_layer(LayerId(20, 0))
    with pytest.raises(Exception, match=r"[DL][0-9]+") as caught:
        call(manager)
    manager.unload_dimension("D20")
    assert manager.get_stats().waiting_bytes == 0, caught
    assert mappings_of(region_file(store, "D20")) == []


def test_a_relative_base_path_is_that_of_the_start(store, monkeypatch):
    monkeypatch.chdir(store)
    manager = MmapManager(base_path=".")
    manager.load_dimension("D20")
    monkeypatch.chdir("/")
    assert manager.discover() == [1, 20]
    assert not manager.refresh("D20")
    with pickle.loads(pickle.dumps(manager)) as copy:
        assert copy.list_layers() == manager.list_layers()


def test_a_parent_that_someone_wrote_into_a_mapped_file_is_none(manager, store):
    region = region_of(manager, 20)
    offset = region.layout.table_offset + 24  # the first row's parent
    with region_file(store, "D20").open("r+b") as file:
        file.seek(offset)
        file.write(b"\5\0\0\0")
    assert manager.get_layer_info("L20-00").parent is None
    assert manager.load_layer_context("L20-00").parent is None
    assert manager.dump_state()["layers"][4]["parent"] is None


def test_a_layer_keeps_its_id_when_someone_writes_another_number_into_its_row(manager, store):
    region = region_of(manager, 1)
    offset = region.layout.table_offset + s.LAYER.fields["layer_num"][1]
    with region_file(store, "D01").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff\xff")
    assert region.layout.rows["layer_num"][0] == 0xFFFF
    assert manager.load_layer_context("L01-00").layer_id == LayerId(1, 0)
    assert [context.layer_id for context in manager.load_contexts(["L01-00"])] == [LayerId(1, 0)]
    assert manager.get_layer_info("L01-00").layer_id == LayerId(1, 0)
    assert region.get_layer_info("L01-00").layer_id == LayerId(1, 0)


# -- pickling --------------------------------------------------------------------------------------


def test_a_manager_pickles_as_configuration_and_generations(manager):
    copy = pickle.loads(pickle.dumps(manager))
    with copy:
        assert copy.config == manager.config
        assert copy.list_layers() == manager.list_layers()
        assert bytes(copy.access_layer("L01-03")) == bytes(manager.access_layer("L01-03"))


def test_a_generation_that_is_gone_is_said(manager, store):
    pickled = pickle.dumps(manager)
    build_region(store, "D20", b"newer")
    with pytest.raises(RegionNotFound, match="D20") as caught:
        pickle.loads(pickled)
    assert caught.value.generation == 1


def test_a_first_generation_that_was_made_anew_is_another(manager, store):
    pickled = pickle.dumps(manager)
    region_file(store, "D20").unlink()
    build_region(store, "D20", b"made anew")
    with pytest.raises(RegionNotFound, match=r"D20: generation 1 .* is gone, generation 1"):
        pickle.loads(pickled)


@pytest.mark.parametrize("changed", ["modified", "longer"])
def test_another_plain_file_is_another(store, changed):
    path = region_file(store, "D20")
    path.unlink()
    path.write_bytes(write_plain([Draft(content=b"one")], dimension=20))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D20")
        pickled = pickle.dumps(manager)
        pickle.loads(pickled).close()
    content = b"two" if changed == "modified" else b"three"
    path.unlink()
    path.write_bytes(write_plain([Draft(content=content)], dimension=20))
    if changed == "modified":
        times = times[0], times[1] + 1_000_000
    os.utime(path, ns=times)
    with pytest.raises(RegionNotFound, match="D20"):
        pickle.loads(pickled)


class Watched(MmapManager):
    """A subclass, as a user may write one."""


def test_a_subclass_pickles_as_itself(store):
    with Watched(base_path=store) as manager:
        manager.load_dimension("D20")
        with pickle.loads(pickle.dumps(manager)) as copy:
            assert type(copy) is Watched
            assert copy.list_layers() == manager.list_layers()


def test_simulated_dimensions_travel(tmp_path):
    manager = MmapManager(base_path=tmp_path)
    manager.load_core_dimensions()
    with pickle.loads(pickle.dumps(manager)) as copy:
        assert bytes(copy.access_layer("L03-02")) == bytes(manager.access_layer("L03-02"))
        assert copy.get_stats().simulation_mode
