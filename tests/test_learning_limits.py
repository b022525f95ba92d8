"""Learning where memory is short or something fails late: what holds afterwards."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from support.internals import allocator_of

from jessymem import (
    DuplicateLayer,
    LayerId,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    osmem,
)

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_intercept():
    yield
    osmem.intercept = None


def write(base, dimension, *contents, name="", **described):
    builder = RegionBuilder(dimension, name)
    for layer, content in enumerate(contents):
        builder.add_layer(layer, content, **described)
    return builder.build_to_file(base / f"D{dimension:02d}" / "region.mmap")


def make_manager(base, total_mb, **settings):
    return MmapManager(
        MemoryConfig(total_memory_mb=total_mb, base_path=base, simulation="never", **settings)
    )


def in_use(manager):
    return sum(pool.used_blocks for pool in manager.get_stats().per_pool.values())


def test_a_pinned_dimension_stays_in_memory_although_its_file_does_not_fit(tmp_path):
    write(tmp_path, 20, b"a" * (3 * MIB))
    with make_manager(tmp_path, 8) as manager:
        manager.load_dimension("D20")
        manager.pin("D20")
        layer = manager.create_proto_dimension("D20", b"b" * (2 * MIB))
        manager.crystallize_dimension("D20")
        assert manager.get_stats().evictions == 0
        assert manager.get_layer_info(layer).state.value == "crystallized"
        assert bytes(manager.access_layer(layer)) == b"b" * (2 * MIB)
        manager.unpin("D20")
        manager.crystallize_dimension("D20")
        assert bytes(manager.access_layer(layer)) == b"b" * (2 * MIB)
        assert manager.get_layer_info(layer).state.value == "permanent"
        assert in_use(manager) == 0


def test_what_is_on_disk_is_not_written_again_when_others_wrote_since(tmp_path):
    write(tmp_path, 20, b"a" * (3 * MIB))
    with make_manager(tmp_path, 8) as manager, make_manager(tmp_path, 64) as other:
        manager.load_dimension("D20")
        manager.pin("D20")
        layer = manager.create_proto_dimension("D20", b"b" * (2 * MIB))
        manager.crystallize_dimension("D20")  # stays in memory: there is no room for its file
        other.load_dimension("D20")
        other.overlay_layer(layer, b"theirs")
        other.crystallize_dimension("D20")
        manager.unpin("D20")
        manager.crystallize_dimension("D20")
        assert bytes(manager.access_layer(layer)) == b"b" * (2 * MIB) + b"\ntheirs"


def test_an_overlay_that_cannot_follow_the_file_keeps_the_dimension_in_memory(tmp_path):
    write(tmp_path, 20, b"small", b"other")
    with make_manager(tmp_path, 8) as manager:
        manager.load_dimension("D20")
        manager.overlay_layer("L20-00", b"mine")
        layer = manager.create_proto_dimension("D20", b"learned")
        write(tmp_path, 20, b"large" * MIB, b"other")  # its overlay would not fit beside the file
        manager.crystallize_proto_dimension(layer)
        assert manager.get_layer_info(layer).state.value == "crystallized"
        assert bytes(manager.access_layer("L20-00")) == b"small\nmine"
        assert bytes(manager.access_layer(layer)) == b"learned"
        manager.drop_overlay("L20-00")
        manager.crystallize_proto_dimension(layer)
        assert len(manager.access_layer("L20-00")) == 5 * MIB
        assert allocator_of(manager).validate() == []


@pytest.mark.parametrize("held_by", ["a pin", "a view"])
def test_an_allocation_evicts_as_soon_as_something_may_go(tmp_path, held_by):
    for dimension in (20, 21):
        write(tmp_path, dimension, b"x" * (4 * MIB - 8192))
    with make_manager(tmp_path, 10) as manager:
        manager.load_dimension("D20")
        manager.load_dimension("D21")
        view = manager.access_layer("L20-00")
        manager.pin("D21")
        if held_by == "a pin":
            del view
            manager.pin("D20")
        offset = manager.allocate(MIB // 2)
        for _ in range(3):  # nothing can go for it
            with pytest.raises(LimitExceeded):
                manager.allocate(2 * MIB)
        if held_by == "a pin":
            manager.unpin("D20")
        else:
            del view
        for _ in range(300):  # it may be some time before anyone looks again, never for long
            try:
                manager.allocate(2 * MIB)
                break
            except LimitExceeded:
                continue
        assert manager.get_stats().evictions == 1
        manager.deallocate(offset)


def test_a_load_that_fails_changes_nothing_about_where_is_written(tmp_path):
    elsewhere = write(tmp_path / "other", 1, b"z" * (3 * MIB)).path
    with make_manager(tmp_path, 4) as manager:
        manager.allocate(2 * MIB)
        learned = manager.create_proto_dimension("D01", b"learned")
        with pytest.raises(LimitExceeded):
            manager.load_dimension("D01", elsewhere)
        before = elsewhere.read_bytes()
        manager.crystallize_proto_dimension(learned)
        assert elsewhere.read_bytes() == before
        assert (tmp_path / "D01" / "region.mmap").exists()


def test_another_writers_layer_is_not_taken_for_ones_own_for_its_content(tmp_path):
    with make_manager(tmp_path, 8) as manager, make_manager(tmp_path, 8) as other:
        layer = manager.create_proto_dimension("D20", b"alike", name="mine")

        def refuse(operation, path, *details):
            if operation == "write":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        osmem.intercept = refuse
        with pytest.raises(OSError):
            manager.crystallize_proto_dimension(layer)
        osmem.intercept = None
        other.create_proto_dimension("D20", b"alike", name="theirs")
        other.crystallize_dimension("D20")
        with pytest.raises(DuplicateLayer):
            manager.crystallize_proto_dimension(layer)
        assert manager.get_layer_info(layer).name == "mine"


def test_a_core_file_that_could_never_be_loaded_is_not_written(tmp_path):
    with make_manager(tmp_path, 280) as manager:
        learned = manager.create_proto_dimension("D04", b"x" * (29 * MIB))
        with pytest.raises(LimitExceeded, match=r"D04.*never"):
            manager.crystallize_proto_dimension(learned)
        assert not (tmp_path / "D04").exists()
        assert manager.get_layer_info(learned).state.value == "active"


def test_errors_of_memory_name_what_it_was_for(tmp_path):
    with make_manager(tmp_path, 4) as manager:
        learned = manager.create_proto_dimension("D20", b"small")
        with pytest.raises(LimitExceeded, match="D20") as caught:
            manager.create_proto_dimension("D20", b"x" * (5 * MIB))
        assert caught.value.dimension == 20 and caught.value.requested
        with pytest.raises(LimitExceeded, match="L20-00") as caught:
            manager.update_proto_dimension(learned, b"x" * (5 * MIB))
        assert caught.value.layer == learned


def test_descriptions_that_fit_no_file(tmp_path):
    with make_manager(tmp_path, 8) as manager:
        with pytest.raises(ValueError, match=r"D20.*name and keywords"):
            manager.create_proto_dimension("D20", b"x", name="n" * (65 * MIB))
        assert len(manager) == 0


def test_the_state_can_be_seen_while_layers_are_added(tmp_path):
    with make_manager(tmp_path, 64) as manager:
        stop, errors = threading.Event(), []
        manager.create_proto_layers([("D20", b"x")] * 500)

        def look():
            try:
                while not stop.is_set():
                    assert manager.dump_state()["regions"][0]["n_learned"] >= 500
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(60):
            manager.update_proto_dimension(manager.create_proto_dimension("D20", b"y"), b"z")
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(manager) == 560


@pytest.mark.parametrize("change", ["created", "updated", "overlaid"])
def test_an_interrupt_after_the_store_loses_no_block(tmp_path, monkeypatch, change):
    from jessymem.pools import stored

    write(tmp_path, 20, b"base")
    with make_manager(tmp_path, 8) as manager:
        manager.load_dimension("D20")
        learned = manager.create_proto_dimension("D20", b"learned")
        before = in_use(manager)
        store = stored.store

        def interrupted(blocks, contents):
            store(blocks, contents)
            raise KeyboardInterrupt

        monkeypatch.setattr(stored, "store", interrupted)
        with pytest.raises(KeyboardInterrupt):
            if change == "created":
                manager.create_proto_layers([("D20", b"a"), ("D20", b"b")])
            elif change == "updated":
                manager.update_proto_dimension(learned, b"again")
            else:
                manager.overlay_layer("L20-00", b"over")
        monkeypatch.undo()
        assert in_use(manager) == before
        assert manager.list_layers("D20") == [LayerId(20, 0), learned]
        assert allocator_of(manager).validate() == []
