"""Layers of a file with content laid over them."""

from __future__ import annotations

import pytest
from support.internals import allocator_of, make_room

from jessymem import (
    ImmutableDimension,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
)

MIB = 2**20
BASE = b"layer 0 of emotion\n"


def rebuild(base, dimension="D01", **layers):
    """Put another file in a dimension's place: contents by number, as ``l3=...``."""
    builder = RegionBuilder(dimension, "rebuilt")
    for number, content in layers.items():
        builder.add_layer(int(number[1:]), content, name=f"new {number}", keywords=["new"])
    builder.build_to_file(base / dimension / "region.mmap")


def test_base_separator_and_content_are_one_view(manager):
    manager.overlay_layer("L01-00", "Gr\u00fc\u00dfe")
    view = manager.access_layer("L01-00")
    assert (bytes(view), view.readonly) == (BASE + b"\nGr\xc3\xbc\xc3\x9fe", True)
    assert manager.load_layer_context("L01-00").text.endswith("\nGr\u00fc\u00dfe")
    info = manager.get_layer_info("L01-00")
    assert (info.location.value, info.state.value) == ("hybrid", "active")
    assert (info.size, info.name, info.keywords) == (len(view), "part 0", ("joy", "word0"))
    on_d20 = (LayerId(20, number) for number in (0, 5, 300, 65_535))
    assert info.children == (LayerId(1, 1), *on_d20)
    (dumped,) = [each for each in manager.dump_state()["layers"] if each["layer"] == "L01-00"]
    assert (dumped["location"], dumped["state"], dumped["size"]) == ("hybrid", "active", len(view))
    pool = manager.dump_state()["pools"][dumped["pool"]]
    assert dumped["offset"] in [block["offset"] for block in pool["blocks"]]
    assert dumped["generation"] is None
    assert bytes(manager.access_layer("L01-01")) == b"layer 1 of emotion\n" * 2
    assert (len(manager), manager.get_stats().layers_loaded) == (8, 8)


def test_a_second_overlay_appends(manager):
    old = manager.access_layer("L01-00")
    one = b"1" * 3_000  # which fills a block of its own
    manager.overlay_layer("L01-00", one)
    middle = manager.access_layer("L01-00")
    manager.overlay_layer("L01-00", bytearray(b"two"), separator=" and ")
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\n" + one + b" and two"
    assert (bytes(old), bytes(middle)) == (BASE, BASE + b"\n" + one)
    assert manager.get_stats().waiting_bytes == 4_096
    del middle
    assert manager.get_stats().waiting_bytes == 0
    manager.drop_overlay("L01-00")
    assert bytes(manager.access_layer("L01-00")) == BASE
    assert manager.get_layer_info("L01-00").state.value == "permanent"
    stats = manager.get_stats()
    assert not any(pool.used_blocks for pool in stats.per_pool.values())


@pytest.mark.parametrize(
    ("content", "separator", "expected"),
    [
        (b"", b"", b""),
        (b"", b"\n", b"\n"),
        (b"x", "", b"x"),
        ("x", b"\xff\xfe", b"\xff\xfex"),
        (memoryview(b"a-b")[::2], "--", b"--ab"),
    ],
)
def test_contents_and_separators(manager, content, separator, expected):
    manager.overlay_layer("L01-00", content, separator=separator)
    assert bytes(manager.access_layer("L01-00")) == BASE + expected
    manager.crystallize_proto_dimension("L01-00")
    assert bytes(manager.access_layer("L01-00")) == BASE + expected


def test_an_overlay_keeps_its_dimension_in_memory(manager):
    manager.overlay_layer("L01-00", b"more")
    make_room(manager, 64 * MIB)
    states = {each["dimension"]: each["state"] for each in manager.dump_state()["regions"]}
    assert states == {"D01": "mapped", "D20": "evicted"}
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"


@pytest.mark.parametrize("verb", ["overlay_layer", "create_proto_dimension"])
def test_an_evicted_dimension_comes_back_to_be_written(manager, verb):
    make_room(manager, 64 * MIB)
    if verb == "overlay_layer":
        manager.overlay_layer("L01-00", b"more")
    else:
        assert manager.create_proto_dimension("D01", b"more") == LayerId(1, 4)
    assert manager.get_stats().reloads == 1
    assert bytes(manager.access_layer("L01-01")) == b"layer 1 of emotion\n" * 2


def test_several_evicted_dimensions_come_back_beside_each_other(tmp_path):
    """Mapping one for a call may not evict another that the call has mapped."""
    for number in (20, 21, 22):
        rebuild(tmp_path, f"D{number}", l0=b"x" * 2 * MIB)
    with MmapManager(5, base_path=tmp_path) as manager:
        for number in (20, 21, 22):
            manager.load_dimension(number)
        make_room(manager, 64 * MIB)
        with pytest.raises(LimitExceeded):  # three at once are too much
            manager.create_proto_layers([(20, b"a"), (21, b"b"), (22, b"c")])
        assert len(manager) == 3
        made = manager.create_proto_layers([(20, b"a"), (21, b"b")])
        assert [bytes(manager.access_layer(each)) for each in made] == [b"a", b"b"]
        assert len(manager) == 5
        assert allocator_of(manager).validate() == []


# -- another file under it -------------------------------------------------------------------------


def test_a_new_file_lies_under_what_was_laid_over_the_old(manager, store):
    manager.overlay_layer("L01-00", b"mine")
    manager.overlay_layer("L01-03", b"mine")
    old = manager.access_layer("L01-00")
    rebuild(store, l0=b"theirs", l1=b"other")
    assert manager.refresh("D01") is True
    assert bytes(manager.access_layer("L01-00")) == b"theirs\nmine"
    assert manager.get_layer_info("L01-00").name == "new l0"
    assert bytes(old) == BASE + b"\nmine"
    # One that is gone from the file stays as it is.
    assert bytes(manager.access_layer("L01-03")) == b"layer 3 of emotion\n" * 4 + b"\nmine"
    assert manager.list_layers("D01") == [LayerId(1, 0), LayerId(1, 1), LayerId(1, 3)]
    manager.drop_overlay("L01-00")
    manager.drop_overlay("L01-03")
    assert bytes(manager.access_layer("L01-00")) == b"theirs"
    assert "L01-03" not in manager


def test_a_description_that_changed_shows_under_an_overlay_too(manager, store):
    manager.overlay_layer("L01-00", b"mine")
    rebuild(store, l0=BASE)
    assert manager.refresh("D01") is True
    info = manager.get_layer_info("L01-00")
    assert (info.name, info.keywords) == ("new l0", ("new",))
    assert manager.select(keywords=["new"]) == [LayerId(1, 0)]
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmine"


def test_both_changes_are_kept_when_it_is_written(manager, store):
    manager.overlay_layer("L01-00", b"mine")
    rebuild(store, l0=b"theirs", l9=b"new")
    manager.crystallize_proto_dimension("L01-00")
    assert bytes(manager.access_layer("L01-00")) == b"theirs\nmine"
    assert manager.list_layers("D01") == [LayerId(1, 0), LayerId(1, 9)]
    assert manager.get_layer_info("L01-00").keywords == ("new",)


def test_those_that_are_left_lie_over_what_the_new_file_has(manager, store):
    """Crystallizing one layer adopts the file; the others' bases may have changed with it."""
    manager.overlay_layer("L01-00", b"mine")
    manager.overlay_layer("L01-01", b"mine too")
    rebuild(store, l0=b"theirs", l1=b"theirs too")
    manager.crystallize_proto_dimension("L01-00")
    assert bytes(manager.access_layer("L01-01")) == b"theirs too\nmine too"
    manager.drop_overlay("L01-01")
    assert bytes(manager.access_layer("L01-01")) == b"theirs too"


# -- wrong calls -----------------------------------------------------------------------------------


def test_what_cannot_be_overlaid(manager):
    manager.create_proto_dimension(30, b"proto")
    for layer, error in (
        ("L01-07", LayerNotFound),
        ("L02-00", LayerNotFound),
        ("L30-00", InvalidAccess),
        ("L09-00", ImmutableDimension),
        ("L14-00", ImmutableDimension),
        ("L1x", ValueError),
    ):
        with pytest.raises(error):
            manager.overlay_layer(layer, b"x")
    for wrong in ({"content": 3}, {"content": b"", "separator": 3}, {"content": "\ud800"}):
        with pytest.raises((TypeError, ValueError)):
            manager.overlay_layer("L01-00", **wrong)
    assert bytes(manager.access_layer("L01-00")) == BASE
    assert manager.get_stats().total_allocations == 1


def test_what_cannot_be_dropped(manager):
    manager.create_proto_dimension(30, b"proto")
    for layer, error in (
        ("L01-00", InvalidAccess),
        ("L30-00", InvalidAccess),
        ("L01-07", LayerNotFound),
        ("L02-00", LayerNotFound),
        ("L09-00", ImmutableDimension),
    ):
        with pytest.raises(error):
            manager.drop_overlay(layer)
    assert bytes(manager.access_layer("L30-00")) == b"proto"


def test_an_overlay_that_does_not_fit_changes_nothing(tmp_path):
    rebuild(tmp_path, l0=b"x" * 2 * MIB)
    with MmapManager(4, base_path=tmp_path) as manager:
        manager.load_dimension("D01")
        before = manager.get_stats().total_allocated_bytes
        with pytest.raises(LimitExceeded):
            manager.overlay_layer("L01-00", b"more")
        assert manager.get_layer_info("L01-00").state.value == "permanent"
        assert manager.get_stats().total_allocated_bytes == before
        assert bytes(manager.access_layer("L01-00")[:3]) == b"xxx"


# -- over a simulation -----------------------------------------------------------------------------


def test_a_simulated_layer_can_be_overlaid_and_is_never_written(tmp_path):
    config = MemoryConfig(64, base_path=tmp_path, simulation="always")
    with MmapManager(config) as manager:
        manager.load_core_dimensions()
        layer = manager.list_layers(1)[0]
        bundled = bytes(manager.access_layer(layer))
        manager.overlay_layer(layer, b"mine")
        assert bytes(manager.access_layer(layer)) == bundled + b"\nmine"
        for call in (
            lambda: manager.crystallize_proto_dimension(layer),
            lambda: manager.crystallize_dimension(1),
        ):
            with pytest.raises(InvalidAccess) as caught:
                call()
            assert "simulated" in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        assert manager.get_layer_info(layer).state.value == "active"
        manager.drop_overlay(layer)
        assert bytes(manager.access_layer(layer)) == bundled


def test_a_file_replaces_a_simulation_under_an_overlay(tmp_path):
    config = MemoryConfig(64, base_path=tmp_path, simulation="always")
    with MmapManager(config) as manager:
        manager.load_core_dimensions()
        manager.overlay_layer("L01-00", b"mine")
        rebuild(tmp_path, l0=b"from a file")
        manager.load_dimension("D01")
        assert bytes(manager.access_layer("L01-00")) == b"from a file\nmine"
        assert manager.crystallize_dimension("D01") == [LayerId(1, 0)]
        assert bytes(manager.access_layer("L01-00")) == b"from a file\nmine"


def test_what_was_simulated_is_not_written_with_its_overlay(tmp_path):
    """Not even once a proto layer's file has taken the simulation's place."""
    config = MemoryConfig(64, base_path=tmp_path, simulation="always")
    with MmapManager(config) as manager:
        manager.load_core_dimensions()
        bundled = bytes(manager.access_layer("L01-00"))
        manager.overlay_layer("L01-00", b"mine")
        manager.crystallize_proto_dimension(manager.create_proto_dimension(1, b"proto"))
        assert bytes(manager.access_layer("L01-00")) == bundled + b"\nmine"
        with pytest.raises(InvalidAccess):
            manager.crystallize_proto_dimension("L01-00")
        assert bundled not in (tmp_path / "D01" / "region.mmap").read_bytes()
