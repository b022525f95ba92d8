"""Evicted dimensions: what brings them back, what may fail then, and what does not need them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest
from support.eviction import (
    MIB,
    N_LAYERS,
    check_numbers,
    content_of,
    evicted,
    load_into,
    path_of,
    write_dimension,
)
from support.internals import before_keeping, evict, kept_errors_of, snapshot_of

from jessymem import (
    ContentLocation,
    DimensionNotFound,
    DuplicateDimension,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LayerState,
    LimitExceeded,
    RegionFormatError,
    RegionIOError,
    RegionNotFound,
)
from jessymem.kernels import lookup
from jessymem.kernels import schema as s

POOLS = [(1, 4096), (8, 65_536)]


@pytest.fixture
def manager(tmp_path):
    """Three dimensions in memory, with room for a fourth; D20 is evicted."""
    with load_into(tmp_path, [20, 21, 22], 5, pool_configs=POOLS) as manager:
        evict(manager, 20)
        yield manager


def n_reloads(manager):
    return manager.get_stats().reloads


# -- what brings back ------------------------------------------------------------------------------


def access(manager):
    assert manager.access_layer("L20-00") == content_of(20, 0)


def access_by_number(manager):
    assert manager.access_layer(int(LayerId(20, 1))) == content_of(20, 1)


def context(manager):
    found = manager.load_layer_context("L20-01")
    assert (found.content, found.name) == (content_of(20, 1), "layer 1")


def batch(manager):
    found = manager.load_contexts(["L21-01", "L20-02", "L20-02"])
    assert [each.content for each in found[1:]] == [content_of(20, 2)] * 2


def info(manager):
    found = manager.get_layer_info("L20-00")
    assert (found.name, found.size) == ("layer 0", len(content_of(20, 0)))
    assert found.children == tuple(map(LayerId.parse, ("L20-01", "L20-02", "L21-00", "L22-00")))


def select(manager):
    assert manager.select(keywords=["only20"]) == [LayerId(20, n) for n in range(N_LAYERS)]
    assert manager.select(depth=(1, 1)) == [LayerId(each, 1) for each in (20, 21, 22)]


def pin(manager):
    manager.pin(20)


def create(manager):
    assert manager.create_proto_dimension(20, b"new") == LayerId(20, N_LAYERS)
    assert manager.access_layer("L20-01") == content_of(20, 1)


def overlay(manager):
    manager.overlay_layer("L20-01", b"more", separator=b"|")
    assert manager.access_layer("L20-01") == content_of(20, 1) + b"|more"


@pytest.mark.parametrize(
    "use", [access, access_by_number, context, batch, info, select, pin, create, overlay]
)
@pytest.mark.parametrize("load_mode", ["map", "copy"])
def test_the_next_use_brings_it_back_once(tmp_path, use, load_mode):
    with load_into(tmp_path, [20, 21, 22], 5, pool_configs=POOLS, load_mode=load_mode) as manager:
        evict(manager, 20)
        use(manager)
        assert evicted(manager) == []
        assert n_reloads(manager) == 1
        assert manager.access_layer("L20-00") == content_of(20, 0)
        assert n_reloads(manager) == 1
        region = manager.dump_state()["regions"][0]
        assert region["state"] == ("copied" if load_mode == "copy" else "mapped")
        assert region["n_charged"] >= path_of(tmp_path, 20).stat().st_size


def test_a_batch_brings_back_all_that_it_needs_and_no_more(tmp_path):
    with load_into(tmp_path, range(20, 26), 6) as manager:
        for number in range(20, 26):
            evict(manager, number)
        found = manager.load_contexts(["L22-01", "L20-00", "L24-02", "L22-00"])
        assert [each.content for each in found] == [
            content_of(*each) for each in [(22, 1), (20, 0), (24, 2), (22, 0)]
        ]
        assert evicted(manager) == [21, 23, 25]
        assert n_reloads(manager) == 3


@pytest.mark.parametrize("missing", ["raise", "skip"])
def test_a_batch_over_more_than_fits_is_refused_whole(tmp_path, missing):
    with load_into(tmp_path, [20, 21, 22], 2) as manager:
        for order in ([20, 21, 22], [22, 21, 20]):
            with pytest.raises(LimitExceeded):
                manager.load_contexts([LayerId(each, 1) for each in order], missing=missing)
        assert kept_errors_of(manager) == {}
        assert len(manager.load_contexts(["L20-01", "L22-01"])) == 2


def test_a_question_over_more_than_fits_is_answered(tmp_path):
    with load_into(tmp_path, range(20, 26), 2) as manager:
        assert manager.select(keywords=["every"]) == manager.list_layers()
        assert manager.get_stats().peak_usage_bytes <= 2 * MIB
        before = n_reloads(manager)
        assert manager.select(keywords=["every"], dimensions=[25, 40]) == manager.list_layers(25)
        assert n_reloads(manager) - before <= 1


def test_layers_for_several_evicted_dimensions_come_at_once(tmp_path):
    with load_into(tmp_path, [20, 21, 22, 23], 4, pool_configs=POOLS) as manager:
        for number in (20, 21):
            evict(manager, number)
        layers = manager.create_proto_layers([(21, b"one"), (20, b"two"), (22, b"three")])
        assert [bytes(manager.access_layer(each)) for each in layers] == [b"one", b"two", b"three"]
        assert not {20, 21, 22} & set(evicted(manager))


@pytest.mark.parametrize("order", [[20, 21], [21, 20]])
def test_layers_for_dimensions_that_do_not_fit_together_are_refused(tmp_path, order):
    with load_into(tmp_path, [20, 21], 1, pool_configs=[(1, 4096)]) as manager:
        with pytest.raises(LimitExceeded):
            manager.create_proto_layers([(number, b"x") for number in order])
        assert len(manager) == 2 * N_LAYERS
        assert manager.get_stats().total_allocated_bytes <= MIB


# -- what does not ---------------------------------------------------------------------------------


def test_a_layer_that_is_not_there_maps_nothing(manager):
    for ask in (manager.access_layer, manager.load_layer_context, manager.get_layer_info):
        with pytest.raises(LayerNotFound, match="L20-03"):
            ask("L20-03")
    with pytest.raises(LayerNotFound, match="L20-03"):
        manager.load_contexts(["L21-00", "L20-03"])
    assert len(manager.load_contexts(["L20-03", "L21-01"], missing="skip")) == 1
    assert "L20-03" not in manager
    assert (evicted(manager), n_reloads(manager)) == ([20], 0)


def test_a_question_about_others_maps_nothing(manager):
    assert len(manager.select(dimensions=[21, 22])) == 2 * N_LAYERS
    assert manager.get_layer_info("L21-01").parent == LayerId(21, 0)
    assert n_reloads(manager) == 0


def test_nothing_to_write_maps_nothing(manager):
    assert manager.crystallize_dimension(20) == []
    with pytest.raises(InvalidAccess, match="L20-01"):
        manager.crystallize_proto_dimension("L20-01")
    with pytest.raises(LayerNotFound, match="L20-09"):
        manager.crystallize_proto_dimension("L20-09")
    assert n_reloads(manager) == 0


def test_loading_it_again_is_refused(manager):
    with pytest.raises(DuplicateDimension, match="D20"):
        manager.load_dimension(20)
    assert evicted(manager) == [20]


def test_it_can_be_unloaded_and_loaded(manager):
    manager.unload_dimension(20)
    assert not manager.is_loaded(20)
    with pytest.raises(LayerNotFound):
        manager.access_layer("L20-00")
    with pytest.raises(DimensionNotFound):
        manager.pin(20)
    manager.load_dimension(20)
    access(manager)
    assert n_reloads(manager) == 0


def test_compiled_code_is_told(manager):
    ids = np.array([LayerId(20, 0), LayerId(21, 0), LayerId(20, 9), LayerId(30, 0)], np.int64)
    locations = np.zeros(len(ids), s.LOCATION)
    snapshot = snapshot_of(manager)
    touched = np.zeros(snapshot.n_slots, np.uint8)
    assert lookup.locate_many(snapshot.directory, ids, locations, touched) == 3
    assert locations["status"].tolist() == [s.EVICTED, s.OK, s.EVICTED, s.NO_DIMENSION]
    access(manager)
    snapshot = snapshot_of(manager)
    touched = np.zeros(snapshot.n_slots, np.uint8)
    assert lookup.locate_many(snapshot.directory, ids, locations, touched) == 2
    assert locations["status"].tolist() == [s.OK, s.OK, s.NO_SUCH_LAYER, s.NO_DIMENSION]


# -- what may fail ---------------------------------------------------------------------------------


def test_where_nothing_may_go_it_does_not_come_back(tmp_path):
    with load_into(tmp_path, [20, 21], 1) as manager:
        manager.pin(21)
        for use in (access, context, batch, info, select, pin):
            with pytest.raises(LimitExceeded) as caught:
                use(manager)
            assert caught.value.limit == MIB
        assert (evicted(manager), n_reloads(manager)) == ([20], 0)
        manager.unpin(21)
        access(manager)
        assert (evicted(manager), n_reloads(manager)) == ([21], 1)


@pytest.mark.parametrize("use", [access, context, batch, info, select, pin, create, overlay])
def test_a_file_that_is_gone_is_said(manager, tmp_path, use):
    shutil.rmtree(path_of(tmp_path, 20).parent)
    with pytest.raises(DimensionNotFound) as caught:
        use(manager)
    assert caught.value.path == str(path_of(tmp_path, 20))
    assert manager.is_loaded(20) and len(manager.list_layers(20)) == N_LAYERS
    write_dimension(tmp_path, 20)
    access(manager)


def test_a_batch_says_that_a_file_is_gone_where_it_may_skip_layers(manager, tmp_path):
    path_of(tmp_path, 20).unlink()
    with pytest.raises(DimensionNotFound):
        manager.load_contexts(["L20-00", "L21-00"], missing="skip")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.write_bytes(b"no region file"), RegionFormatError),
        (lambda path: (path.unlink(), path.mkdir()), RegionIOError),
    ],
)
def test_a_file_that_cannot_be_read_is_said(manager, tmp_path, spoil, error):
    spoil(path_of(tmp_path, 20))
    before = manager.get_stats().total_allocated_bytes
    for _ in range(3):
        with pytest.raises(error):
            access(manager)
    assert manager.get_stats().total_allocated_bytes == before
    assert (evicted(manager), n_reloads(manager)) == ([20], 0)


def test_a_failed_call_of_the_system_is_said_and_forgotten(manager, intercept):
    def refuse(operation, path, *details):
        if operation == "map":
            raise OSError(12, "Cannot allocate memory")

    intercept(refuse)
    with pytest.raises(RegionIOError) as caught:
        access(manager)
    assert caught.value.errno == 12
    intercept(None)
    access(manager)


def test_a_newer_file_is_what_comes_back(manager, tmp_path):
    write_dimension(tmp_path, 20, edition=1)
    assert manager.access_layer("L20-00") == content_of(20, 0, edition=1)
    assert manager.refresh(20) is False


def test_a_newer_file_may_lack_what_was_there(manager, tmp_path):
    shutil.copy(path_of(tmp_path, 21), path_of(tmp_path, 20))
    with pytest.raises(RegionFormatError, match="dimension_id"):
        manager.access_layer("L20-00")
    manager.create_proto_dimension(23, b"only one")
    manager.crystallize_dimension(23)
    evict(manager, 23)
    path_of(tmp_path, 23).unlink()
    manager_of_others = load_into(tmp_path, [], 5, pool_configs=POOLS)
    manager_of_others.create_proto_dimension(23, b"another", layer=7)
    manager_of_others.crystallize_dimension(23)
    manager_of_others.close()
    with pytest.raises(LayerNotFound, match="L23-00"):
        manager.access_layer("L23-00")
    assert manager.list_layers(23) == [LayerId(23, 7)]


@pytest.mark.parametrize("is_newer", [False, True])
@pytest.mark.parametrize("is_viewed", [False, True])
def test_refresh_brings_back_and_tells_whether_it_is_newer(tmp_path, is_newer, is_viewed):
    with load_into(tmp_path, [20, 21], 5) as manager:
        view = manager.access_layer("L20-00") if is_viewed else None
        evict(manager, 20)
        if is_newer:
            write_dimension(tmp_path, 20, edition=1)
        assert manager.refresh(20) is is_newer
        assert manager.access_layer("L20-00") == content_of(20, 0, int(is_newer))
        assert view is None or view == content_of(20, 0)


def test_a_dimension_loaded_from_elsewhere_comes_back_from_there(tmp_path):
    elsewhere = write_dimension(tmp_path / "elsewhere", 20)
    with load_into(tmp_path, [21], 5) as manager:
        manager.load_dimension(20, elsewhere)
        evict(manager, 20)
        access(manager)
        assert manager.dump_state()["regions"][0]["path"] == str(elsewhere)


# -- views -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("load_mode", ["map", "copy"])
def test_a_view_outlives_the_eviction_and_its_memory_is_taken_back(tmp_path, load_mode):
    with load_into(tmp_path, [20, 21], 5, load_mode=load_mode) as manager:
        view = manager.access_layer("L20-00")
        address = np.frombuffer(view, np.uint8).ctypes.data
        before = manager.get_stats()
        evict(manager, 20)
        stats = manager.get_stats()
        assert stats.total_allocated_bytes == before.total_allocated_bytes
        waiting = manager.dump_state()["waiting"]
        assert [each["n_bytes"] for each in waiting] == [stats.waiting_bytes]
        assert stats.waiting_bytes >= path_of(tmp_path, 20).stat().st_size
        assert view == content_of(20, 0)
        again = manager.access_layer("L20-00")
        assert np.frombuffer(again, np.uint8).ctypes.data == address
        stats = manager.get_stats()
        assert (stats.waiting_bytes, stats.reloads) == (0, 1)
        assert stats.total_allocated_bytes == before.total_allocated_bytes
        assert manager.dump_state()["waiting"] == []
        del view, again
        check_numbers(manager)
        evict(manager, 20)
        assert manager.get_stats().waiting_bytes == 0
        check_numbers(manager)


def test_memory_that_nobody_views_any_more_is_not_taken_back(manager):
    access(manager)
    view = manager.access_layer("L20-00")
    evict(manager, 20)
    held = manager.get_stats().total_allocated_bytes
    del view
    gc.collect()
    assert manager.get_stats().total_allocated_bytes < held
    access(manager)
    assert manager.get_stats().total_allocated_bytes == held


def test_a_view_outlives_eviction_unloading_and_closing(tmp_path):
    manager = load_into(tmp_path, [20], 5)
    view = manager.access_layer("L20-00")
    evict(manager, 20)
    manager.unload_dimension(20)
    path_of(tmp_path, 20).unlink()
    manager.close()
    del manager
    gc.collect()
    assert view == content_of(20, 0)


# -- learning --------------------------------------------------------------------------------------


def test_what_was_learned_in_it_is_written_and_can_go(manager, tmp_path):
    overlay(manager)
    layer = manager.create_proto_dimension(20, b"new")
    assert manager.crystallize_dimension(20) == [LayerId(20, 1), layer]
    evict(manager, 20)
    assert manager.access_layer("L20-01") == content_of(20, 1) + b"|more"
    assert manager.access_layer(layer) == b"new"
    assert manager.get_layer_info(layer).location is ContentLocation.MMAP


def test_a_file_for_which_there_is_no_room_is_published_as_evicted(tmp_path):
    with load_into(tmp_path, [20], 2, pool_configs=[(1, 65_536)]) as manager:
        layer = manager.create_proto_dimension(20, bytes(MIB // 2), layer=9)
        manager.crystallize_dimension(20)
        assert evicted(manager) == [20]
        assert manager.get_stats().evictions == 1
        assert layer in manager and manager.list_layers(20)[-1] == layer
        assert manager.access_layer(layer) == bytes(MIB // 2)
        assert manager.access_layer("L20-00") == content_of(20, 0)
        assert evicted(manager) == []


def test_what_could_not_come_back_is_read_on_as_it_is(tmp_path):
    with load_into(tmp_path, [20], 2, pool_configs=[(1, 65_536)]) as manager:
        layer = manager.create_proto_dimension(20, bytes(MIB // 2), layer=9)
        view = manager.access_layer("L20-00")
        manager.crystallize_dimension(20)
        assert (evicted(manager), manager.get_stats().evictions) == ([], 0)
        assert manager.get_layer_info(layer).state is LayerState.CRYSTALLIZED
        assert manager.access_layer(layer) == bytes(MIB // 2)
        assert manager.access_layer("L20-00") == view == content_of(20, 0)
        del view


def test_a_batch_finds_what_goes_before_it_is_kept(tmp_path, monkeypatch):
    with load_into(tmp_path, [20, 21], 4) as manager:
        evict(manager, 20)
        before_keeping(monkeypatch, manager, lambda: evict(manager, 21))
        views = manager.access_many(["L20-00", "L21-00"])
        assert [bytes(view) for view in views] == [content_of(20, 0), content_of(21, 0)]


# -- other processes -------------------------------------------------------------------------------


def test_a_pickled_manager_has_what_was_evicted(manager):
    with pickle.loads(pickle.dumps(manager)) as other:
        assert other.list_layers() == manager.list_layers()
        assert evicted(other) == []
        access(other)
    assert evicted(manager) == [20]


def test_a_pickled_manager_with_more_than_fits_evicts_as_it_loads(tmp_path):
    with load_into(tmp_path, [20, 21, 22, 23], 2) as manager:
        with pickle.loads(pickle.dumps(manager)) as other:
            assert other.list_layers() == manager.list_layers()
            assert len(evicted(other)) == 2
            assert other.access_layer("L20-00") == content_of(20, 0)


def test_a_pickled_manager_insists_on_the_same_file(manager, tmp_path):
    data = pickle.dumps(manager)
    write_dimension(tmp_path, 20, edition=1)
    with pytest.raises(RegionNotFound, match="D20"):
        pickle.loads(data)


def in_child(manager, view, answers):
    """Use an evicted dimension, and one that was evicted while it is viewed, in a child."""
    before = manager.get_stats()
    contents = [bytes(manager.access_layer(LayerId(number, 0))) for number in (20, 21, 22)]
    is_right = contents == [content_of(number, 0) for number in (20, 21, 22)]
    manager.pin(20)
    answers.put((before.waiting_bytes, is_right and view == content_of(21, 0), n_reloads(manager)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_brings_back_its_own(manager, tmp_path):
    view = manager.access_layer("L21-00")
    evict(manager, 21)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=in_child, args=(manager, view, answers))
    child.start()
    waiting, is_right, n_child_reloads = answers.get()
    child.join(30)
    assert child.exitcode == 0
    assert is_right and n_child_reloads == 2
    assert waiting == manager.get_stats().waiting_bytes > 0
    assert (evicted(manager), n_reloads(manager)) == ([20, 21], 0)
