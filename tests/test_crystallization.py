"""From memory into a file, within one process: what is kept, and who may do what meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from contextlib import contextmanager

import pytest
from support.internals import allocator_of, region_of
from support.processes import checked_in_child, needs_fork

from jessymem import (
    DimensionNotFound,
    DuplicateLayer,
    ImmutableDimension,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionIOError,
    osmem,
)

MIB = 2**20
PATIENCE_SECONDS = 60
BASE = b"layer 0 of emotion\n"


@pytest.fixture(autouse=True)
def _no_intercept():
    yield
    osmem.intercept = None


def failing(*operations):
    """Let every system call of some kinds fail."""

    def fail(operation, path, *details):
        if operation in operations:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail


@contextmanager
def held_at(operation, function):
    """Run `function` in a thread that is held at its first call of an operation meanwhile.

    Yields what it raises, once it is through.
    """
    reached, go, errors = threading.Event(), threading.Event(), []

    def hold(made, path, *details):
        if made == operation and threading.current_thread() is thread and not reached.is_set():
            reached.set()
            assert go.wait(PATIENCE_SECONDS)

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)
        finally:
            reached.set()

    thread = threading.Thread(target=run)
    osmem.intercept = hold
    thread.start()
    try:
        assert reached.wait(PATIENCE_SECONDS)
        assert thread.is_alive(), errors
        yield errors
    finally:
        osmem.intercept = None
        go.set()
        thread.join()


def states(manager, layer):
    """A layer's state as both that tell it say."""
    (dumped,) = [each for each in manager.dump_state()["layers"] if each["layer"] == str(layer)]
    told = manager.get_layer_info(layer).state.value
    assert dumped["state"] == told
    return told


def n_used(manager):
    return sum(pool.used_blocks for pool in manager.get_stats().per_pool.values())


def generation(path):
    return MmapRegion.from_file(int(path.parent.name[1:]), path).generation


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"content": "\U0001f40c Gr\u00fc\u00dfe", "name": "\u65e5\u672c\u8a9e"},
        {"content": b"\xff\xfe\x00", "keywords": [f"word {n}" for n in range(4_096)]},
        {"content": b"", "keywords": ["", "a", "a"], "depth": 255},
        {"content": b"x", "frequency": -0.0, "parent": "L40000-65535", "layer": 65_535},
        {"content": bytes(range(256)) * 20_000, "frequency": 1e-45, "depth": 1},
    ],
)
def test_a_restart_finds_everything_byte_for_byte(tmp_path, options):
    with MmapManager(base_path=tmp_path) as manager:
        layer = manager.create_proto_dimension("D20", **options)
        content, before = bytes(manager.access_layer(layer)), manager.get_layer_info(layer)
        manager.crystallize_proto_dimension(layer)
        now = manager.get_layer_info(layer)
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        assert bytes(manager.access_layer(layer)) == content
        after = manager.get_layer_info(layer)
        assert after == now
        for name in ("name", "depth", "keywords", "parent", "size"):
            assert getattr(after, name) == getattr(before, name)
        assert after.frequency.hex() == before.frequency.hex()
        assert region_of(manager, layer.dimension).verify_integrity("full")


def test_what_was_in_the_file_stays_in_it(manager, store):
    kept = {layer: bytes(manager.access_layer(layer)) for layer in manager.list_layers("D01")}
    infos = [manager.get_layer_info(layer) for layer in kept]
    before = generation(store / "D01" / "region.mmap")
    made = manager.create_proto_dimension("D01", b"new", parent="L20-00")
    manager.crystallize_proto_dimension(made)
    assert generation(store / "D01" / "region.mmap") == before + 1
    assert {layer: bytes(manager.access_layer(layer)) for layer in kept} == kept
    for old in infos:
        new = manager.get_layer_info(old.layer_id)
        assert (new.name, new.keywords, new.parent) == (old.name, old.keywords, old.parent)
    assert manager.dump_state()["regions"][0]["name"] == "Emotion"
    assert (states(manager, made), n_used(manager)) == ("permanent", 0)


def test_a_dimension_is_written_in_one_go(manager, store):
    made = manager.create_proto_layers([("D01", b"a"), ("D01", ""), ("D30", b"not this")])
    manager.overlay_layer("L01-00", b"more")
    before = generation(store / "D01" / "region.mmap")
    assert manager.crystallize_dimension("D01") == [LayerId(1, 0), made[0], made[1]]
    assert generation(store / "D01" / "region.mmap") == before + 1
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"
    assert states(manager, made[2]) == "active"
    assert manager.crystallize_dimension("D01") == []
    assert generation(store / "D01" / "region.mmap") == before + 1


def test_a_dimension_that_is_not_loaded_gains_a_layer(store):
    with MmapManager(base_path=store) as manager:
        made = manager.create_proto_dimension("D01", b"new")
        assert len(manager) == 1
        manager.crystallize_proto_dimension(made)
        assert len(manager) == 5
        assert bytes(manager.access_layer("L01-00")) == BASE


def test_the_file_that_was_loaded_is_the_one_that_is_written(tmp_path, store):
    elsewhere = tmp_path / "else where" / "some.file"
    elsewhere.parent.mkdir()
    (store / "D01" / "region.mmap").rename(elsewhere)
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D01", elsewhere)
        made = manager.create_proto_dimension("D01", b"new")
        assert made == LayerId(1, 4)
        manager.crystallize_proto_dimension(made)
        assert not (store / "D01" / "region.mmap").exists()
        assert MmapRegion.from_file("D01", elsewhere).list_layers()[-1] == made
        manager.unload_dimension("D01")
        with pytest.raises(DimensionNotFound):
            manager.load_dimension("D01")


def test_a_file_lies_over_the_simulation(tmp_path):
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_core_dimensions()
        made = manager.create_proto_dimension("D01", b"learned")
        old = manager.access_layer("L01-00")
        bundled = bytes(old)
        manager.crystallize_proto_dimension(made)
        layers = manager.list_layers("D01")
        assert made in layers and str(layers[0]) == "L01-00"
        assert bytes(old) == bundled == manager.access_layer("L01-00")
        assert MmapRegion.from_file(1, tmp_path / "D01/region.mmap").list_layers() == [made]
        assert manager.dump_state()["regions"][0]["state"] == "mapped"
        assert manager.dump_state()["regions"][1]["state"] == "simulated"


def test_views_stay_and_their_blocks_wait(manager):
    made = manager.create_proto_dimension("D01", b"x" * 5_000)
    views = manager.access_layer(made), manager.access_layer("L01-00")
    manager.crystallize_proto_dimension(made)
    stats = manager.get_stats()
    assert stats.per_pool[1].used_blocks == 1
    assert stats.waiting_bytes == 16_384 + osmem.page_size()  # and the old file
    assert [bytes(view) for view in views] == [b"x" * 5_000, BASE]
    del views
    stats = manager.get_stats()
    assert (stats.waiting_bytes, stats.per_pool[1].used_blocks) == (0, 0)


# -- wrong calls -----------------------------------------------------------------------------------


def test_what_cannot_be_crystallized(manager):
    for layer, error in (
        ("L01-00", InvalidAccess),
        ("L01-09", LayerNotFound),
        ("L30-00", LayerNotFound),
        ("L09-00", ImmutableDimension),
        ("L1x", ValueError),
    ):
        with pytest.raises(error):
            manager.crystallize_proto_dimension(layer)
    with pytest.raises(DimensionNotFound):
        manager.crystallize_dimension("D30")


def test_a_number_that_another_writer_took(manager, store):
    mine = manager.create_proto_dimension("D01", b"mine", layer=9)
    manager.create_proto_dimension("D01", b"mine too", layer=10)
    with MmapManager(base_path=store) as other:
        theirs = other.create_proto_dimension("D01", b"theirs", layer=9)
        other.crystallize_proto_dimension(theirs)
    before = (store / "D01" / "region.mmap").read_bytes()
    for call in (
        lambda: manager.crystallize_proto_dimension(mine),
        lambda: manager.crystallize_dimension("D01"),
    ):
        with pytest.raises(DuplicateLayer) as caught:
            call()
        assert caught.value.layer == mine
        assert states(manager, mine) == states(manager, "L01-10") == "active"
    assert (store / "D01" / "region.mmap").read_bytes() == before
    assert bytes(manager.access_layer(mine)) == b"mine"
    manager.update_proto_dimension(mine, b"still mine")
    manager.crystallize_proto_dimension("L01-10")
    assert bytes(manager.access_layer(mine)) == b"still mine"
    manager.discard_proto_dimension(mine)
    assert bytes(manager.access_layer(mine)) == b"theirs"
    assert bytes(manager.access_layer("L01-10")) == b"mine too"


# -- meanwhile -------------------------------------------------------------------------------------


def test_a_layer_passes_through_all_states(tmp_path):
    with MmapManager(base_path=tmp_path) as manager:
        layer = manager.create_proto_dimension("D20", b"")
        seen = [states(manager, layer)]
        manager.update_proto_dimension(layer, b"content")
        seen.append(states(manager, layer))
        with held_at("sync", lambda: manager.crystallize_proto_dimension(layer)):
            seen.append(states(manager, layer))
        seen.append(states(manager, layer))
        assert seen == ["created", "active", "crystallizing", "permanent"]
        other = manager.create_proto_dimension("D20", b"more")
        # Held before the new file is mapped: it is on disk, and read from memory.
        with held_at("map", lambda: manager.crystallize_proto_dimension(other)):
            told = region_of(manager, other.dimension).learned[other.layer].state
            assert told.value in ("crystallizing", "crystallized")
        assert states(manager, other) == "permanent"


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync directory"])
def test_of_two_at_once_one_does_it(manager, store, operation):
    layer = manager.create_proto_dimension("D01", b"new")
    before = generation(store / "D01" / "region.mmap")
    with held_at(operation, lambda: manager.crystallize_proto_dimension(layer)) as errors:
        for call in (
            lambda: manager.crystallize_proto_dimension(layer),
            lambda: manager.crystallize_dimension("D01"),
        ):
            with pytest.raises(InvalidAccess) as caught:
                call()
            assert "another thread" in str(caught.value)
    assert errors == []
    assert generation(store / "D01" / "region.mmap") == before + 1
    assert states(manager, layer) == "permanent"


def test_writers_are_refused_and_readers_read_on(manager, store):
    proto = manager.create_proto_dimension("D01", b"proto")
    manager.overlay_layer("L01-00", b"more")
    with held_at("sync", lambda: manager.crystallize_dimension("D01")) as errors:
        for call in (
            lambda: manager.update_proto_dimension(proto, b"other"),
            lambda: manager.discard_proto_dimension(proto),
            lambda: manager.overlay_layer("L01-00", b"other"),
            lambda: manager.drop_overlay("L01-00"),
            lambda: manager.refresh("D01"),
            lambda: manager.unload_dimension("D01"),
        ):
            with pytest.raises(InvalidAccess):
                call()
        assert bytes(manager.access_layer(proto)) == b"proto"
        assert bytes(manager.load_layer_context("L01-00").content) == BASE + b"\nmore"
        assert [len(each.content) for each in manager.load_contexts([proto, "L01-01"])] == [5, 38]
        assert manager.select(keywords=["word0"]) == [LayerId(1, 0)]
        manager.unload_dimension("D20")  # other dimensions go on
        manager.crystallize_proto_dimension(manager.create_proto_dimension("D30", b"x"))
    assert errors == []
    assert bytes(manager.access_layer(proto)) == b"proto"
    assert states(manager, "L01-00") == "permanent"
    assert n_used(manager) == 0 and allocator_of(manager).validate() == []


def test_what_is_made_while_the_file_is_written_stays(manager, store):
    first = manager.create_proto_dimension("D01", b"first")
    with held_at("sync", lambda: manager.crystallize_dimension("D01")) as errors:
        second = manager.create_proto_dimension("D01", b"second")
        manager.overlay_layer("L01-00", b"more")
    assert (errors, second) == ([], LayerId(1, 5))
    assert [states(manager, each) for each in (first, second)] == ["permanent", "active"]
    assert bytes(manager.access_layer(second)) == b"second"
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"
    assert MmapRegion.from_file("D01", store / "D01" / "region.mmap").has_layer(4)
    assert manager.crystallize_dimension("D01") == [LayerId(1, 0), second]
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"


def test_two_threads_write_two_layers_of_one_dimension(manager, store):
    """The second waits for the first, and finds its layer in the file."""
    layers = manager.create_proto_layers([("D01", b"a"), ("D01", b"b")])
    manager.overlay_layer("L01-00", b"more")
    errors = []

    def other():
        for layer in (layers[1], "L01-00"):
            try:
                manager.crystallize_proto_dimension(layer)
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=other)
    with held_at("sync", lambda: manager.crystallize_proto_dimension(layers[0])) as held_errors:
        thread.start()
        while states(manager, layers[1]) != "crystallizing":
            assert thread.is_alive()
    thread.join()
    assert errors == held_errors == []
    region = MmapRegion.from_file("D01", store / "D01" / "region.mmap")
    assert [bytes(manager.access_layer(each)) for each in layers] == [b"a", b"b"]
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"
    assert (region.n_layers, n_used(manager)) == (6, 0)


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["lock", "create", "write", "sync", "read", "rename"])
def test_up_to_the_renaming_all_is_as_it_was(manager, store, operation):
    proto = manager.create_proto_dimension("D01", b"proto")
    empty = manager.create_proto_dimension("D01", b"")
    manager.overlay_layer("L01-00", b"more")
    before = (store / "D01" / "region.mmap").read_bytes()
    used = n_used(manager)
    osmem.intercept = failing(operation)
    with pytest.raises(RegionIOError) as caught:
        manager.crystallize_dimension("D01")
    osmem.intercept = None
    assert caught.value.errno == errno.ENOSPC and "D01" in str(caught.value)
    assert [states(manager, each) for each in (proto, empty, "L01-00")] == [
        "active",
        "created",
        "active",
    ]
    assert (store / "D01" / "region.mmap").read_bytes() == before
    assert os.listdir(store / "D01") == ["region.mmap"]
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"
    assert n_used(manager) == used
    # What failed may be changed, and be written later.
    manager.update_proto_dimension(proto, b"changed")
    manager.overlay_layer("L01-00", b"and more")
    assert len(manager.crystallize_dimension("D01")) == 3
    assert bytes(manager.access_layer(proto)) == b"changed"
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore\nand more"
    assert n_used(manager) == 0


@pytest.mark.parametrize("adopts", ["retry", "refresh"])
def test_a_file_that_is_in_place_is_not_written_into_twice(manager, store, adopts):
    proto = manager.create_proto_dimension("D01", b"proto")
    manager.overlay_layer("L01-00", b"more")
    osmem.intercept = failing("sync directory")
    for _ in range(2):
        with pytest.raises(RegionIOError):
            manager.crystallize_dimension("D01")
    osmem.intercept = None
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"
    assert [states(manager, each) for each in (proto, "L01-00")] == ["crystallized"] * 2
    for call in (
        lambda: manager.update_proto_dimension(proto, b"x"),
        lambda: manager.discard_proto_dimension(proto),
        lambda: manager.overlay_layer("L01-00", b"x"),
        lambda: manager.drop_overlay("L01-00"),
    ):
        with pytest.raises(ImmutableDimension):
            call()
    if adopts == "retry":
        assert manager.crystallize_dimension("D01") == [LayerId(1, 0), proto]
    else:
        assert manager.refresh("D01") is True
    for _ in range(2):
        assert bytes(manager.access_layer(proto)) == b"proto"
        assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"
        assert states(manager, proto) == "permanent"
        manager.unload_dimension("D01")
        manager.load_dimension("D01")
    assert n_used(manager) == 0


@pytest.mark.parametrize("adopts", ["retry", "refresh"])
def test_nor_is_it_once_another_writer_has_added_to_it(manager, store, adopts):
    manager.create_proto_dimension("D01", b"proto")
    manager.overlay_layer("L01-00", b"more")
    osmem.intercept = failing("sync directory")
    with pytest.raises(RegionIOError):
        manager.crystallize_dimension("D01")
    osmem.intercept = None
    with MmapManager(base_path=store) as other:
        other.load_dimension("D01")
        other.overlay_layer("L01-00", b"theirs")
        other.overlay_layer("L01-04", b"theirs")
        other.crystallize_dimension("D01")
    if adopts == "retry":
        manager.crystallize_dimension("D01")
    else:
        manager.refresh("D01")
    assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore\ntheirs"
    assert bytes(manager.access_layer("L01-04")) == b"proto\ntheirs"
    assert states(manager, "L01-04") == "permanent"


def test_a_file_that_cannot_be_mapped_is_written_all_the_same(manager, store):
    proto = manager.create_proto_dimension("D01", b"proto")
    made = []

    def fail_after_renaming(operation, path, *details):
        made.append(operation)
        if operation == "map" and "rename" in made:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    osmem.intercept = fail_after_renaming
    with pytest.raises(RegionIOError):
        manager.crystallize_proto_dimension(proto)
    osmem.intercept = None
    assert states(manager, proto) == "crystallized"
    assert bytes(manager.access_layer(proto)) == b"proto"
    manager.crystallize_proto_dimension(proto)
    assert (states(manager, proto), n_used(manager)) == ("permanent", 0)


# -- room ------------------------------------------------------------------------------------------


def test_without_room_for_the_new_file_it_is_published_as_evicted(tmp_path):
    with MmapManager(8, base_path=tmp_path) as manager:
        layer = manager.create_proto_dimension("D20", b"x" * 5 * MIB)
        assert manager.crystallize_dimension("D20") == [layer]
        assert manager.dump_state()["regions"][0]["state"] == "evicted"
        assert (manager.list_layers(), n_used(manager)) == ([layer], 0)
        assert manager.get_stats().total_allocated_bytes == 0
        assert bytes(manager.access_layer(layer)) == b"x" * 5 * MIB
        assert manager.get_stats().reloads == 1


def test_without_room_others_that_are_learned_stay_readable(tmp_path):
    with MmapManager(8, base_path=tmp_path) as manager:
        layers = manager.create_proto_layers([(20, b"x" * 5 * MIB), (20, b"small")])
        manager.crystallize_proto_dimension(layers[0])
        assert [states(manager, each) for each in layers] == ["crystallized", "active"]
        assert bytes(manager.access_layer(layers[0])) == b"x" * 5 * MIB
        with pytest.raises(InvalidAccess) as caught:
            manager.unload_dimension(20)
        assert "L20-01" in str(caught.value) and "L20-00" not in str(caught.value)
        manager.crystallize_dimension(20)
        assert [bytes(manager.access_layer(each)[-5:]) for each in layers] == [b"xxxxx", b"small"]
        assert [states(manager, each) for each in layers] == ["permanent"] * 2
        assert n_used(manager) == 0


# -- forks -----------------------------------------------------------------------------------------

_threads = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@needs_fork
@_threads
def test_a_child_reads_what_was_learned_and_learns_on_its_own(manager):
    proto = manager.create_proto_dimension("D01", b"proto")
    manager.overlay_layer("L01-00", b"more")

    def child():
        assert bytes(manager.access_layer(proto)) == b"proto"
        assert bytes(manager.access_layer("L01-00")) == BASE + b"\nmore"
        manager.update_proto_dimension(proto, b"the child's")
        manager.crystallize_proto_dimension(proto)
        assert bytes(manager.access_layer(proto)) == b"the child's"

    checked_in_child(child)
    assert bytes(manager.access_layer(proto)) == b"proto"
    assert states(manager, proto) == "active"
    with pytest.raises(DuplicateLayer):
        manager.crystallize_proto_dimension(proto)


@needs_fork
@_threads
def test_a_child_crystallizes_what_a_thread_of_the_parent_was_about(manager):
    proto = manager.create_proto_dimension("D30", b"proto")
    other = manager.create_proto_dimension("D01", b"other")

    def child():
        osmem.intercept = None
        assert states(manager, other) == "active"
        manager.update_proto_dimension(other, b"changed")
        manager.crystallize_proto_dimension(proto)
        manager.unload_dimension("D30")

    with held_at("sync", lambda: manager.crystallize_proto_dimension(other)) as errors:
        checked_in_child(child)
        assert states(manager, other) == "crystallizing"
    assert errors == []
    assert bytes(manager.access_layer(other)) == b"other"


def test_a_file_that_others_have_removed_is_written_whole(tmp_path):
    builder = RegionBuilder("D20", "Name")
    for number in range(10):
        builder.add_layer(number, b"%d" % number)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        layer = manager.create_proto_dimension("D20", b"learned")
        shutil.rmtree(tmp_path / "D20")
        manager.crystallize_dimension("D20")
        assert len(manager.list_layers("D20")) == 11
        assert bytes(manager.access_layer(layer)) == b"learned"
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        assert [bytes(manager.access_layer(each)) for each in manager.list_layers("D20")] == [
            *(b"%d" % number for number in range(10)),
            b"learned",
        ]


def test_a_write_of_a_file_within_a_write_of_it_is_refused_at_once(tmp_path, intercept):
    with MmapManager(64, base_path=tmp_path) as manager:
        layers = [manager.create_proto_dimension("D20", b"%d" % number) for number in range(2)]
        caught = []

        def call_again(operation, path, *details):
            if operation == "sync" and not caught:
                caught.append(None)
                with pytest.raises(InvalidAccess) as error:
                    manager.crystallize_proto_dimension(layers[1])
                caught.append(error.value)

        intercept(call_again)
        manager.crystallize_proto_dimension(layers[0])
        intercept(None)
        assert len(caught) == 2
        manager.crystallize_proto_dimension(layers[1])
        assert manager.get_layer_info(layers[1]).state.name == "PERMANENT"
