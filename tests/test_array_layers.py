"""Arrays through the manager: made in memory, crystallized, evicted, forgotten, and still right."""

import gc
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.arrays import HOSTILE, KINDS, OTHER_STRIDES, check_same
from support.internals import mark_of, region_of

from jessymem import (
    InvalidAccess,
    LayerNotFound,
    LayerState,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    RegionFormatError,
)

GRID = np.asfortranarray(np.arange(12.0).reshape(3, 4))
LOG = np.array([("2020-01-01", 2, b"x")], [("day", "M8[D]"), ("n", ">i4"), ("tag", "S3")])


@pytest.fixture
def arrays(tmp_path):
    """A directory with D15: arrays 0, 3 and 9, a text 5."""
    builder = RegionBuilder("D15", "Arrays")
    builder.add_array(0, GRID, name="grid", keywords=["k"], depth=3)
    builder.add_array(3, LOG)
    builder.add_layer(5, "text")
    builder.add_array(9, np.zeros((0, 4), "i2"))
    builder.build_to_file(tmp_path / "D15" / "region.mmap")
    return tmp_path


@pytest.fixture
def manager(arrays):
    with MmapManager(base_path=arrays) as manager:
        manager.load_dimension("D15")
        yield manager


# -- reading ---------------------------------------------------------------------------------------


def test_arrays_of_a_file(manager):
    for layer, wanted in {"L15-00": GRID, "L15-03": LOG, "L15-09": np.zeros((0, 4), "i2")}.items():
        for _ in range(3):  # measured, read, remembered
            check_same(manager.array(layer), wanted)
        info = manager.get_layer_info(layer)
        assert (info.dtype, info.shape) == (wanted.dtype, wanted.shape)
        assert bytes(manager.access_layer(layer)) == wanted.tobytes("A")
    assert manager.get_layer_info("L15-05").dtype is None
    first, second = manager.array("L15-00"), manager.array("L15-00")
    assert first is not second and first.ctypes.data == second.ctypes.data


def test_every_way_to_name_a_layer(manager):
    for layer in ("L15-00", manager.list_layers()[0], 15 << 16):
        check_same(manager.array(layer), GRID)


def test_what_is_no_array(manager):
    proto = manager.create_proto_dimension("D15", b"bytes")
    for _ in range(3):
        with pytest.raises(TypeError, match="L15-05 is no array: its content is text"):
            manager.array("L15-05")
        with pytest.raises(TypeError, match=f"{proto} is no array: its content is bytes"):
            manager.array(proto)


def test_errors_are_those_of_access_layer(manager):
    for wrong in ("L15-01", "L15-04", "L15-10", "L16-00", 15 << 16 | 65_535):
        with pytest.raises(LayerNotFound):
            manager.array(wrong)
    for wrong in (1.5, None, b"L15-00", []):
        with pytest.raises(TypeError):
            manager.array(wrong)
    for wrong in ("nothing", 3, -1, 2**40):
        with pytest.raises(ValueError):
            manager.array(wrong)
    manager.close()
    with pytest.raises(InvalidAccess):
        manager.array("L15-00")


@pytest.mark.parametrize("kind", ["objects", "one element too many", "minus signs"])
def test_a_hostile_description_is_an_error_of_its_layer(kind, tmp_path):
    (tmp_path / "D01").mkdir()
    (tmp_path / "D01" / "region.mmap").write_bytes(HOSTILE[kind])
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D01")
        assert manager.access_layer("L01-03").nbytes == 8
        for ask in (manager.array, manager.get_layer_info):
            with pytest.raises(RegionFormatError, match="layer 3 array"):
                ask("L01-03")


def test_a_read_is_noted_for_eviction_and_sampled(manager):
    before = manager.get_stats().avg_access_latency_us
    manager.array("L15-00")
    assert manager.get_stats().avg_access_latency_us > before == 0
    mark = mark_of(manager, manager.list_dimensions()[0])
    mark[0] = None
    manager.array("L15-00")
    assert mark[0] is not None


# -- lifetime --------------------------------------------------------------------------------------


def test_an_array_outlives_its_manager_and_its_file(arrays):
    manager = MmapManager(base_path=arrays)
    manager.load_dimension("D15")
    held = manager.array("L15-00")[1:]
    proto = manager.create_proto_dimension("D15", np.arange(4000))
    learned = manager.array(proto)[-5:]
    manager.discard_proto_dimension(proto)
    for _ in range(4):  # whoever reuses the block does not reach what is viewed
        manager.create_proto_dimension("D15", np.zeros(4000, "i8"))
    manager.close()
    del manager
    gc.collect()
    builder = RegionBuilder("D15", "Arrays")
    builder.add_array(0, np.zeros((3, 4)))
    builder.build_to_file(arrays / "D15" / "region.mmap")
    assert held.tolist() == GRID[1:].tolist()
    assert learned.tolist() == list(range(3995, 4000))


def test_an_array_counts_as_a_view_until_it_is_gone(manager):
    held = manager.array("L15-00")
    manager.unload_dimension("D15")
    assert manager.get_stats().waiting_bytes > 0
    tail = held[2:]
    del held
    assert manager.get_stats().waiting_bytes > 0
    del tail
    assert manager.get_stats().waiting_bytes == 0


def test_a_proto_array_keeps_its_block_waiting(manager):
    proto = manager.create_proto_dimension("D20", np.arange(10))
    held = manager.array(proto)
    manager.discard_proto_dimension(proto)
    assert manager.get_stats().waiting_bytes > 0
    del held
    assert manager.get_stats().waiting_bytes == 0


def test_a_hostile_description_holds_nothing(tmp_path):
    (tmp_path / "D01").mkdir()
    (tmp_path / "D01" / "region.mmap").write_bytes(HOSTILE["objects"])
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D01")
        errors = []
        manager.access_layer("L01-03").release()  # measured, so that what follows is not
        for layer in ("L01-03", 1 << 16 | 3):
            with pytest.raises(RegionFormatError) as caught:
                manager.array(layer)
            errors.append(caught.value)
        del caught
        manager.unload_dimension("D01")
        assert manager.get_stats().waiting_bytes == 0


def test_a_refused_read_holds_nothing(manager):
    errors = []
    manager.access_layer("L15-00").release()  # measured, so that what follows is not
    for layer in ("L15-05", "L15-04"):
        with pytest.raises((TypeError, LayerNotFound)) as caught:
            manager.array(layer)
        errors.append(caught.value)
    del caught
    manager.unload_dimension("D15")
    assert manager.get_stats().waiting_bytes == 0
    assert len(errors) == 2


# -- learning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", (KINDS | OTHER_STRIDES).values(), ids=KINDS | OTHER_STRIDES)
def test_an_array_is_learned_crystallized_and_loaded_again(array, tmp_path):
    with MmapManager(base_path=tmp_path) as manager:
        proto = manager.create_proto_dimension("D15", array, name="it")
        found = manager.array(proto)
        check_same(found, array)
        assert found.flags.aligned and (not array.nbytes or found.ctypes.data % 64 == 0)
        info = manager.get_layer_info(proto)
        assert (info.dtype, info.shape, info.name) == (array.dtype, array.shape, "it")
        assert info.state is (LayerState.ACTIVE if array.nbytes else LayerState.CREATED)
        manager.crystallize_proto_dimension(proto)
        check_same(manager.array(proto), array)
        check_same(found, array)
        with pickle.loads(pickle.dumps(manager)) as other:
            check_same(other.array(proto), array)
    for mode in ("map", "copy"):
        with MmapManager(MemoryConfig(base_path=tmp_path, load_mode=mode)) as manager:
            manager.load_dimension("D15")
            check_same(manager.array(proto), array)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_arrays_travel_through_every_change(data, tmp_path_factory):
    dtype = data.draw(hnp.scalar_dtypes())
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    given = data.draw(st.lists(hnp.arrays(dtype, shapes), min_size=1, max_size=5))
    given = [array.copy(data.draw(st.sampled_from("CF"))) for array in given]
    path = tmp_path_factory.mktemp("arrays")
    with MmapManager(base_path=path) as manager:
        ids = manager.create_proto_layers([("D15", array) for array in given])
        wanted = dict(zip(ids, given, strict=True))

        def check():
            for layer, array in wanted.items():
                check_same(manager.array(layer), array)

        check()
        manager.crystallize_proto_dimension(ids[0])
        check()
        wanted[manager.create_proto_dimension("D15", given[-1])] = given[-1]
        check()
        manager.crystallize_dimension("D15")
        check()
        manager.unload_dimension("D15")
        manager.load_dimension("D15")
        check()


def test_an_update_changes_what_a_layer_is(manager):
    proto = manager.create_proto_dimension("D20", np.arange(3.0), name="it")
    held = manager.array(proto)
    manager.update_proto_dimension(proto, "text")
    with pytest.raises(TypeError, match="its content is text"):
        manager.array(proto)
    assert manager.get_layer_info(proto).dtype is None
    manager.update_proto_dimension(proto, GRID)
    check_same(manager.array(proto), GRID)
    manager.update_proto_dimension(proto, b"raw")
    with pytest.raises(TypeError, match="its content is bytes"):
        manager.array(proto)
    manager.update_proto_dimension(proto, LOG)
    manager.crystallize_proto_dimension(proto)
    check_same(manager.array(proto), LOG)
    assert manager.get_layer_info(proto).name == "it"
    assert held.tolist() == [0, 1, 2]


def test_the_arrays_of_a_file_stay_so_when_others_are_learned(manager, arrays):
    """Merged, laid under, rows copied: what was in the file is in the next."""
    manager.overlay_layer("L15-05", "more")
    for layer, wanted in {"L15-00": GRID, "L15-03": LOG}.items():
        check_same(manager.array(layer), wanted)
    first = manager.create_proto_dimension("D15", np.arange(5), layer=1)
    last = manager.create_proto_dimension("D15", np.arange(6.0))
    assert manager.crystallize_dimension("D15") == [first, 15 << 16 | 5, last]
    manager.close()
    with MmapManager(base_path=arrays) as other:
        other.load_dimension("D15")
        check_same(other.array("L15-00"), GRID)
        check_same(other.array("L15-03"), LOG)
        check_same(other.array(first), np.arange(5))
        check_same(other.array(last), np.arange(6.0))
        assert other.load_layer_context("L15-05").text == "text\nmore"
        region = region_of(other, other.list_dimensions()[0])
        assert region.verify_integrity("full") and region.generation == 2


def test_nothing_is_laid_over_an_array(manager):
    proto = manager.create_proto_dimension("D15", GRID)
    with pytest.raises(TypeError, match="L15-00 is an array: nothing can be laid over it"):
        manager.overlay_layer("L15-00", b"more")
    with pytest.raises(InvalidAccess):
        manager.overlay_layer(proto, b"more")
    with pytest.raises(TypeError, match="content is text or bytes, not ndarray"):
        manager.overlay_layer("L15-05", np.arange(3))
    check_same(manager.array("L15-00"), GRID)


def test_an_overlay_over_what_another_writer_made_an_array(arrays):
    """Both changes count, as bytes: a tail behind an array is none."""
    with MmapManager(base_path=arrays) as one, MmapManager(base_path=arrays) as other:
        for manager in (one, other):
            manager.load_dimension("D15")
        one.overlay_layer("L15-05", "tail")
        builder = RegionBuilder("D15", "Arrays")
        builder.add_array(5, GRID)
        builder.build_to_file(arrays / "D15" / "region.mmap")
        assert one.refresh("D15")
        assert bytes(one.access_layer("L15-05")) == GRID.tobytes("F") + b"\ntail"
        with pytest.raises(TypeError, match="its content is bytes"):
            one.array("L15-05")
        one.crystallize_proto_dimension("L15-05")
        assert other.refresh("D15")
        assert bytes(other.access_layer("L15-05")) == GRID.tobytes("F") + b"\ntail"
        assert other.get_layer_info("L15-05").dtype is None


def test_an_overlay_merged_into_what_became_an_array(arrays):
    with MmapManager(base_path=arrays) as manager:
        manager.load_dimension("D15")
        manager.overlay_layer("L15-05", "tail")
        builder = RegionBuilder("D15", "Arrays")
        builder.add_array(5, GRID)
        builder.build_to_file(arrays / "D15" / "region.mmap")
        manager.crystallize_proto_dimension("L15-05")
        assert bytes(manager.access_layer("L15-05")) == GRID.tobytes("F") + b"\ntail"
        with pytest.raises(TypeError, match="its content is bytes"):
            manager.array("L15-05")


def test_what_cannot_be_a_layer_leaves_nothing(manager):
    before = manager.get_stats().total_allocated_bytes
    for wrong in (np.array([None]), np.ma.array([1])):
        with pytest.raises(TypeError, match="D15: "):
            manager.create_proto_dimension("D15", wrong)
        with pytest.raises(TypeError, match="L15-07: "):
            manager.create_proto_dimension("D15", wrong, layer=7)
    assert manager.get_stats().total_allocated_bytes == before
    assert "L15-07" not in manager


def test_many_arrays_at_once_beside_text(manager):
    items = [("D15", np.full((2, n), n)) for n in range(50)]
    items += [{"dimension_id": "D16", "content": "text"}, ("D16", LOG)]
    ids = manager.create_proto_layers(items)
    for layer, (_, wanted) in zip(ids[:50], items[:50], strict=True):
        check_same(manager.array(layer), wanted)
    check_same(manager.array(ids[51]), LOG)


# -- eviction and generations ----------------------------------------------------------------------


def test_an_evicted_array_comes_back(tmp_path):
    for number in (15, 16):
        builder = RegionBuilder(number, "Arrays")
        builder.add_array(0, np.full((512, 1024), number, "f8"))
        builder.build_to_file(tmp_path / f"D{number}" / "region.mmap")
    with MmapManager(6, base_path=tmp_path) as manager:
        for number in (15, 16, 15):
            if not manager.is_loaded(number):
                manager.load_dimension(number)
            found = manager.array(number << 16)
            assert found.shape == (512, 1024) and (found == number).all()
            assert manager.get_layer_info(number << 16).dtype == "f8"
            del found
        assert manager.get_stats().reloads > 0


def test_a_newer_file_brings_another_array(manager, arrays):
    held = manager.array("L15-00")
    builder = RegionBuilder("D15", "Arrays")
    builder.add_array(0, np.arange(24, dtype="i4").reshape(4, 6))
    builder.build_to_file(arrays / "D15" / "region.mmap")
    assert manager.refresh("D15")
    check_same(manager.array("L15-00"), np.arange(24, dtype="i4").reshape(4, 6))
    check_same(held, GRID)


def test_a_reader_sees_one_array_or_the_other(tmp_path):
    """Dtype, shape and bytes are of one state, whatever is published meanwhile."""
    kinds = [np.full((3, 5), 7.0), np.full(40, 7, "i2"), np.full((2, 2, 2), 7, ">i8").T]
    with MmapManager(base_path=tmp_path) as manager:
        proto = manager.create_proto_dimension("D15", kinds[0])
        stop, wrong = threading.Event(), []

        def read():
            while not stop.is_set():
                found = manager.array(proto)
                if not (found == 7).all() or found.shape not in [each.shape for each in kinds]:
                    wrong.append(found)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in range(300):
            manager.update_proto_dimension(proto, kinds[n % 3])
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
