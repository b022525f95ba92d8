"""Layers that are made, changed and discarded in memory."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from support.internals import allocator_of

from jessymem import (
    DimensionNotFound,
    DuplicateLayer,
    ImmutableDimension,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    RegionFormatError,
)

MIB = 2**20


@pytest.fixture
def empty(tmp_path):
    """A manager of a directory without files."""
    with MmapManager(MemoryConfig(64, base_path=tmp_path, simulation="never")) as manager:
        yield manager


def write_numbers(base, dimension, numbers):
    """Put a region file with empty layers of these numbers in its place."""
    builder = RegionBuilder(dimension, "numbers")
    for number in numbers:
        builder.add_layer(number, b"")
    builder.build_to_file(base / str(LayerId(dimension, 0).dimension) / "region.mmap")


def n_used(manager):
    return sum(pool.used_blocks for pool in manager.get_stats().per_pool.values())


# -- creating --------------------------------------------------------------------------------------


def test_a_layer_is_there_as_soon_as_it_is_made(empty):
    made = empty.create_proto_dimension(
        "D20",
        "Gr\u00fc\u00dfe",
        name="\u65e5\u672c",
        frequency=-2.5,
        depth=7,
        keywords=["joy", ""],
        parent="L30-04",
    )
    assert made == LayerId(20, 0)
    view = empty.access_layer(made)
    assert (bytes(view), view.readonly, view.format) == (b"Gr\xc3\xbc\xc3\x9fe", True, "B")
    assert empty.load_layer_context(made).text == "Gr\u00fc\u00dfe"
    assert bytes(empty.load_contexts([made])[0].content) == bytes(view)
    info = empty.get_layer_info(made)
    assert (info.name, info.frequency, info.depth, info.size) == ("\u65e5\u672c", -2.5, 7, 7)
    assert (info.keywords, info.parent) == (("joy", ""), LayerId(30, 4))
    assert (info.state.value, info.location.value) == ("active", "heap")
    assert empty.select(keywords=["joy"]) == [made] == empty.list_layers() == empty.list_layers(20)
    assert (made in empty, "D20" in empty, empty.is_loaded(20), len(empty)) == (True,) * 3 + (1,)


def test_nothing_is_written_until_it_is_asked_for(empty, tmp_path):
    empty.create_proto_layers([(20, b"x"), (1, b"y")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["text", b"bytes", bytearray(b"array"), memoryview(b"a-b-c")[::2], memoryview(b"")]
)
def test_contents_are_copied(empty, content):
    expected = content.encode() if isinstance(content, str) else bytes(content)
    made = empty.create_proto_dimension(20, content)
    if isinstance(content, bytearray):
        content[:] = b"xxxxx"
    assert bytes(empty.access_layer(made)) == expected


def test_without_content_a_layer_is_created_and_with_it_active(empty):
    made = empty.create_proto_dimension(20, b"")
    assert empty.get_layer_info(made).state.value == "created"
    assert empty.dump_state()["layers"][0]["state"] == "created"
    assert (bytes(empty.access_layer(made)), n_used(empty)) == (b"", 0)
    empty.update_proto_dimension(made, b"now")
    assert empty.get_layer_info(made).state.value == "active"
    assert empty.dump_state()["layers"][0]["state"] == "active"
    assert n_used(empty) == 1
    empty.update_proto_dimension(made, b"")
    assert empty.get_layer_info(made).state.value == "created"
    assert (bytes(empty.access_layer(made)), n_used(empty)) == (b"", 0)


def test_a_layer_of_several_megabytes_has_a_row_of_blocks(empty):
    content = np.arange(5 * MIB // 8).tobytes()
    made = empty.create_proto_dimension(20, content)
    assert bytes(empty.access_layer(made)) == content
    assert empty.get_stats().per_pool[3].used_blocks == 20


def test_children_are_found_in_every_dimension(manager):
    made = manager.create_proto_dimension(40, b"child", parent="L01-00")
    assert made in manager.get_layer_info("L01-00").children
    manager.discard_proto_dimension(made)
    assert made not in manager.get_layer_info("L01-00").children


def test_a_view_cannot_be_made_writable(empty):
    view = empty.access_layer(empty.create_proto_dimension(20, b"content"))
    with pytest.raises(TypeError):
        view[0] = 0
    array = np.asarray(view)
    while array is not None:
        if isinstance(array, np.ndarray):
            with pytest.raises(ValueError):
                array.flags.writeable = True
        array = getattr(array, "base", None)
    owner = view.obj
    with pytest.raises(ValueError):
        owner.flags.writeable = True
    assert memoryview(owner).readonly and memoryview(owner.base).readonly


# -- numbers ---------------------------------------------------------------------------------------


def test_numbers_go_on_above_all_that_are_taken(empty, tmp_path):
    assert [empty.create_proto_dimension(20, b"x").layer for _ in range(3)] == [0, 1, 2]
    empty.create_proto_dimension(20, b"x", layer=9)
    assert empty.create_proto_dimension(20, b"x").layer == 10
    write_numbers(tmp_path, 20, [12])  # by another process
    assert empty.create_proto_dimension(20, b"x").layer == 13
    write_numbers(tmp_path, 21, [0, 5])
    assert empty.create_proto_dimension(21, b"x").layer == 6
    empty.load_dimension(21)
    assert empty.create_proto_dimension(21, b"x").layer == 7


def test_gaps_are_filled_where_nothing_is_above(empty):
    empty.create_proto_dimension(20, b"x", layer=65_535)
    assert [empty.create_proto_dimension(20, b"x").layer for _ in range(2)] == [0, 1]
    made = empty.create_proto_layers([(20, b"x"), {"dimension_id": 20, "content": "", "layer": 3}])
    assert [each.layer for each in made] == [2, 3]


def test_when_all_numbers_are_taken_there_is_none(empty, tmp_path):
    write_numbers(tmp_path, 20, range(65_535))
    assert empty.create_proto_dimension(20, b"x").layer == 65_535
    with pytest.raises(DuplicateLayer) as caught:
        empty.create_proto_dimension(20, b"y")
    assert "D20" in str(caught.value) and caught.value.layer is None
    assert n_used(empty) == 1


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_number_that_is_taken_on_disk_is_refused(empty, tmp_path, is_loaded):
    write_numbers(tmp_path, 20, [3])
    if is_loaded:
        empty.load_dimension(20)
    with pytest.raises(DuplicateLayer) as caught:
        empty.create_proto_dimension(20, b"x", layer=3)
    assert caught.value.layer == LayerId(20, 3)
    assert n_used(empty) == 0 and empty.is_loaded(20) is is_loaded


def test_a_number_that_is_taken_in_memory_is_refused(empty):
    empty.create_proto_dimension(20, b"first", layer=3)
    with pytest.raises(DuplicateLayer):
        empty.create_proto_dimension(20, b"second", layer=3)
    assert (bytes(empty.access_layer("L20-03")), n_used(empty)) == (b"first", 1)


def test_a_file_that_cannot_be_read_gives_no_numbers(empty, tmp_path):
    write_numbers(tmp_path, 20, [3])
    (tmp_path / "D20" / "region.mmap").write_bytes(b"no region")
    with pytest.raises(RegionFormatError):
        empty.create_proto_dimension(20, b"x")
    assert not empty.is_loaded(20) and n_used(empty) == 0


# -- many at once ----------------------------------------------------------------------------------


def test_many_layers_come_in_the_order_of_the_items(empty):
    made = empty.create_proto_layers(
        [
            (21, "a"),
            {"dimension_id": "D20", "content": b"b", "layer": 5, "keywords": ["k"]},
            [21, bytearray(b"c")],
            {"dimension_id": 20, "content": "d", "parent": "L20-05"},
        ]
    )
    assert made == [LayerId(21, 0), LayerId(20, 5), LayerId(21, 1), LayerId(20, 6)]
    assert [bytes(empty.access_layer(each)) for each in made] == [b"a", b"b", b"c", b"d"]
    assert empty.get_layer_info("L20-05").children == (made[3],)
    assert empty.create_proto_layers([]) == []


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ({"dimension_id": 20, "content": b"", "layer": 0}, DuplicateLayer),
        ((9, b"x"), ImmutableDimension),
        ((20, 3), TypeError),
        ((0, b"x"), ValueError),
        ((20, b"x", b"y"), TypeError),
        ({"dimension_id": 20}, TypeError),
        ({"dimension_id": 20, "content": b"", "colour": 1}, TypeError),
        ({"dimension_id": 20, "content": b"", "depth": 256}, ValueError),
        ({"dimension_id": 20, "content": b"", "layer": 1, "parent": "L20-01"}, ValueError),
        ({"dimension_id": 20, "content": b"", "frequency": float("nan")}, ValueError),
        ({"dimension_id": 20, "content": b"", "keywords": ["x"] * 4_097}, ValueError),
        ({"dimension_id": 20, "content": "\ud800"}, ValueError),
    ],
)
def test_one_wrong_item_and_none_is_made(empty, item, error):
    empty.create_proto_dimension(20, b"there")
    for items in ([(20, b"good"), (30, b"good"), item], [item, (30, b"good")]):
        with pytest.raises(error):
            empty.create_proto_layers(items)
        assert empty.list_layers() == [LayerId(20, 0)]
        assert n_used(empty) == 1 and allocator_of(empty).validate() == []


def test_the_same_number_twice_in_one_call(empty):
    item = {"dimension_id": 20, "content": b"x", "layer": 4}
    with pytest.raises(DuplicateLayer) as caught:
        empty.create_proto_layers([item, dict(item)])
    assert caught.value.layer == LayerId(20, 4)
    assert len(empty) == 0


@pytest.mark.parametrize("items", ["D20", b"D20", {"dimension_id": 20, "content": b""}, 3])
def test_items_are_a_sequence(empty, items):
    with pytest.raises(TypeError):
        empty.create_proto_layers(items)


# -- changing --------------------------------------------------------------------------------------


def test_an_update_changes_the_content_and_nothing_else(empty):
    made = empty.create_proto_dimension(20, "old", name="n", depth=3, keywords=["k"], frequency=2)
    old = empty.access_layer(made)
    before = empty.get_layer_info(made)
    empty.update_proto_dimension(made, "new and longer")
    after = empty.get_layer_info(made)
    assert (bytes(old), bytes(empty.access_layer(made))) == (b"old", b"new and longer")
    for name in ("name", "depth", "keywords", "frequency", "parent", "state"):
        assert getattr(after, name) == getattr(before, name)


def test_a_replaced_block_waits_for_its_last_view(empty):
    made = empty.create_proto_dimension(20, b"o" * 10_000)
    views = [empty.access_layer(made), empty.access_layer(made)[5:]]
    empty.update_proto_dimension(made, b"n")
    for _ in range(2):
        stats = empty.get_stats()
        assert (stats.waiting_bytes, stats.per_pool[1].used_blocks) == (16_384, 1)
        assert bytes(views[-1]) == b"o" * len(views[-1])
        views.pop()
    stats = empty.get_stats()
    assert (stats.waiting_bytes, stats.per_pool[1].used_blocks) == (0, 0)
    assert stats.per_pool[0].used_blocks == 1


def test_a_discarded_layer_is_gone_but_for_those_who_hold_it(empty):
    one, two = b"1" * 3_000, b"2" * 3_000  # a block each
    made = empty.create_proto_layers([(20, one), (20, two)])
    view = empty.access_layer(made[0])
    empty.discard_proto_dimension(made[0])
    assert made[0] not in empty and empty.list_layers() == [made[1]]
    with pytest.raises(LayerNotFound):
        empty.access_layer(made[0])
    assert (bytes(view), empty.get_stats().waiting_bytes) == (one, 4_096)
    empty.discard_proto_dimension(made[1])
    assert not empty.is_loaded(20) and len(empty) == 0
    with pytest.raises(DimensionNotFound):
        empty.list_layers(20)
    del view
    assert empty.get_stats().total_allocated_bytes == 0


def test_a_pin_ends_with_the_last_layer(empty, tmp_path):
    """As it does when a dimension is unloaded."""
    made = empty.create_proto_dimension(20, b"x")
    empty.pin(20)
    empty.discard_proto_dimension(made)
    write_numbers(tmp_path, 20, [0])
    empty.load_dimension(20)
    assert empty.dump_state()["regions"][0]["pinned"] is False


@pytest.mark.parametrize("verb", ["update", "discard"])
def test_only_proto_layers_are_changed(manager, verb):
    def change(layer):
        if verb == "update":
            manager.update_proto_dimension(layer, b"other")
        else:
            manager.discard_proto_dimension(layer)

    for layer in ("L01-09", "L30-00"):
        with pytest.raises(LayerNotFound):
            change(layer)
    with pytest.raises(ImmutableDimension):
        change("L01-00")
    manager.overlay_layer("L01-00", b"more")
    with pytest.raises(ImmutableDimension):
        change("L01-00")
    with pytest.raises(ImmutableDimension):
        change("L09-00")
    with pytest.raises(ValueError):
        change("L1x")
    assert bytes(manager.access_layer("L01-00")) == b"layer 0 of emotion\n\nmore"


@pytest.mark.parametrize("dimension", [9, 14])
def test_immutable_dimensions_take_nothing(empty, dimension):
    layer = LayerId(dimension, 0)
    for call in every_write(empty, layer):
        with pytest.raises(ImmutableDimension) as caught:
            call()
        assert caught.value.dimension == dimension


def test_read_only_takes_nothing(store):
    before = sorted(path for path in store.rglob("*"))
    with MmapManager(MemoryConfig(base_path=store, read_only=True)) as manager:
        manager.load_dimension(1)
        for call in every_write(manager, LayerId(1, 0)):
            with pytest.raises(ImmutableDimension) as caught:
                call()
            assert "read-only" in str(caught.value)
        assert len(manager) == 4
    assert sorted(path for path in store.rglob("*")) == before


def test_a_closed_manager_takes_nothing(store):
    manager = MmapManager(base_path=store)
    manager.close()
    for call in every_write(manager, LayerId(1, 0)):
        with pytest.raises(InvalidAccess):
            call()


def every_write(manager, layer):
    return [
        lambda: manager.create_proto_dimension(layer.dimension, b"x"),
        lambda: manager.create_proto_layers([(layer.dimension, b"x")]),
        lambda: manager.update_proto_dimension(layer, b"x"),
        lambda: manager.discard_proto_dimension(layer),
        lambda: manager.overlay_layer(layer, b"x"),
        lambda: manager.drop_overlay(layer),
        lambda: manager.crystallize_proto_dimension(layer),
        lambda: manager.crystallize_dimension(layer.dimension),
    ]


# -- memory that is short, leaving -----------------------------------------------------------------


def test_what_does_not_fit_changes_nothing(tmp_path):
    with MmapManager(4, base_path=tmp_path) as manager:
        made = manager.create_proto_dimension(20, b"x" * MIB)
        for call in (
            lambda: manager.create_proto_dimension(20, b"y" * 3 * MIB),
            lambda: manager.create_proto_layers([(20, b"y"), (21, b"y" * 3 * MIB)]),
            lambda: manager.update_proto_dimension(made, b"y" * 3 * MIB),
        ):
            with pytest.raises(LimitExceeded):
                call()
            assert manager.list_layers() == [made]
            assert bytes(manager.access_layer(made)) == b"x" * MIB
            assert manager.get_stats().total_allocated_bytes == MIB
        assert allocator_of(manager).validate() == []


def test_unloading_names_what_would_be_lost(manager):
    made = manager.create_proto_dimension(1, b"new")
    manager.overlay_layer("L01-02", b"more")
    with pytest.raises(InvalidAccess) as caught:
        manager.unload_dimension(1)
    assert "L01-02" in str(caught.value) and str(made) in str(caught.value)
    assert bytes(manager.access_layer(made)) == b"new"
    manager.discard_proto_dimension(made)
    manager.drop_overlay("L01-02")
    manager.unload_dimension(1)
    assert not manager.is_loaded(1)


def test_closing_names_what_is_lost(store, caplog):
    with MmapManager(base_path=store) as manager:
        made = manager.create_proto_layers([(1, b"x"), (30, b"y"), (1, b"z")])
        view = manager.access_layer(made[0])
        manager.crystallize_proto_dimension(made[2])
    (record,) = [each for each in caplog.records if getattr(each, "event", "") == "layers_lost"]
    assert (record.levelname, record.layers) == ("WARNING", ["L01-04", "L30-00"])
    assert bytes(view) == b"x"


def test_a_file_that_is_loaded_later_lies_under_what_was_learned(empty, tmp_path, store):
    made = empty.create_proto_dimension(1, b"learned", parent="L01-00")
    assert (made, empty.list_layers()) == (LayerId(1, 4), [LayerId(1, 4)])
    with pytest.raises(DimensionNotFound):
        empty.refresh(1)  # from nothing
    empty.load_dimension(1)
    assert len(empty) == 5
    assert bytes(empty.access_layer(made)) == b"learned"
    assert empty.get_layer_info("L01-00").children == (LayerId(1, 1), made)


def test_a_pickle_leaves_behind_what_is_learned(manager):
    manager.create_proto_layers([(1, b"x"), (30, b"y")])
    manager.overlay_layer("L20-00", b"more")
    with pickle.loads(pickle.dumps(manager)) as other:
        assert other.list_dimensions() == [1, 20]
        assert len(other) == 8
        assert bytes(other.access_layer("L20-00")) == b"\0"
        assert other.create_proto_dimension(1, b"of its own") == LayerId(1, 4)
    assert bytes(manager.access_layer("L01-04")) == b"x"


def test_a_directory_that_is_gone_gives_numbers_from_nought(empty, tmp_path):
    shutil.rmtree(tmp_path)
    assert empty.create_proto_dimension(20, b"x") == LayerId(20, 0)
