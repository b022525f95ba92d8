"""Layers deleted: out of files, chains and memory, under readers, and what is left of them."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from unittest.mock import patch

import pytest
from support import naive
from support.crystallizations import DELETIONS
from support.internals import allocator_of, budget_of, evict, region_of
from support.regions import region_file, write_packed
from support.system_calls import intercepted
from support.writes import BASE, DIMENSION, files_in, layers_of, target_in

from jessymem import (
    DimensionId,
    ImmutableDimension,
    InvalidAccess,
    JessyMemoryError,
    LayerId,
    LayerNotFound,
    LayerState,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
    RegionIOError,
    RegionNotFound,
)
from jessymem.kernels import schema as s

D20 = DimensionId(20)
LONG = bytes(100_000)


def build(base: Path, *, is_long: bool = True, dimension: int = 20) -> None:
    builder = RegionBuilder(dimension, "twenty")
    for number in range(4):
        content = LONG if is_long and number == 0 else b"content %d" % number
        parent = LayerId(dimension, 1) if number == 2 else None
        builder.add_layer(number, content, name=f"layer {number}", parent=parent)
    path = region_file(base, str(DimensionId(dimension)))
    builder.build_to_file(path, replace_immutable=True)


def load(base: Path, **settings) -> MmapManager:
    manager = MmapManager(MemoryConfig(64, base, simulation="never", **settings))
    manager.load_dimension(D20)
    return manager


def numbers(manager: MmapManager) -> list[int]:
    return [each.layer for each in manager.list_layers(D20)]


def names_in(base: Path) -> list[str]:
    return sorted(path.name for path in (base / "D20").iterdir())


# -- from files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_long", [True, False], ids=["a delta", "the file written again"])
def test_a_layer_is_gone_for_whoever_reads_from_then_on(tmp_path, is_long):
    build(tmp_path, is_long=is_long)
    with load(tmp_path) as manager, load(tmp_path) as other:
        view = manager.access_layer("L20-01")
        manager.delete_layer("L20-01")
        assert numbers(manager) == [0, 2, 3]
        assert "L20-01" not in manager and len(manager) == 3
        for read in (manager.access_layer, manager.get_layer_info, manager.load_layer_context):
            with pytest.raises(LayerNotFound, match="L20-01"):
                read("L20-01")
        assert manager.select(name="layer *") == manager.list_layers()
        assert manager.get("layer 1") is None
        assert manager.count(b"content") == (2 if is_long else 3)
        assert manager.access_many(["L20-01"], missing="mark") == [None]
        assert view == b"content 1"
        assert numbers(other) == [0, 1, 2, 3]
        assert other.access_layer("L20-01") == b"content 1"
        assert other.refresh(D20)
        assert numbers(other) == [0, 2, 3]
    expected = ["region.d2.mmap", "region.mmap"] if is_long else ["region.mmap"]
    assert names_in(tmp_path) == expected
    with load(tmp_path) as manager:
        assert numbers(manager) == [0, 2, 3]
        assert manager.fold(D20) is is_long
        assert numbers(manager) == [0, 2, 3]
    raw = region_file(tmp_path, "D20").read_bytes()
    assert [each.layer for each in naive.read_plain(raw).layers] == [0, 2, 3]


def test_a_deleted_layer_is_no_empty_one_for_readers_of_the_plain_format(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        manager.delete_layer("L20-01")
    delta = tmp_path / "D20" / "region.d2.mmap"
    raw = delta.read_bytes()
    assert naive.read_plain(raw).layers == []
    assert naive.get_field(raw, "n_deleted") == 1
    at = naive.get_field(raw, "deleted_offset")
    assert raw[at : at + 2] == b"\1\0"
    alone = MmapRegion.from_file(D20, delta)
    assert alone.list_layers() == [] and alone.verify_integrity("full")


def test_a_number_may_be_used_again(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        manager.delete_layer("L20-03")
        assert manager.create_proto_dimension(D20, b"new", name="new") == LayerId("L20-03")
        manager.crystallize_dimension(D20)
        assert manager.access_layer("L20-03") == b"new"
        manager.delete_layer("L20-03")
        manager.delete_layer("L20-01")
        manager.create_proto_dimension(D20, b"one", layer=1)
        manager.crystallize_dimension(D20)
        assert numbers(manager) == [0, 1, 2]
    with load(tmp_path) as manager:
        assert numbers(manager) == [0, 1, 2]
        assert manager.access_layer("L20-01") == b"one"
        manager.fold(D20)
        assert numbers(manager) == [0, 1, 2]


def test_all_layers_may_be_deleted(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        for number in range(4):
            manager.delete_layer(LayerId(D20, number))
        assert manager.list_layers() == [] and manager.list_dimensions() == [D20]
        assert manager.fold(D20)
        assert manager.list_layers() == []
        assert region_file(tmp_path, "D20").stat().st_size < 1_000
        assert manager.create_proto_dimension(D20, b"first") == LayerId("L20-00")
    with load(tmp_path) as manager:
        assert manager.list_layers() == []


def test_a_full_chain_gathers_what_is_deleted(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager, patch.object(s, "MAX_DELTAS", 3):
        manager.delete_layer("L20-01")
        left = {0, 2, 3}
        for number in range(10, 30):
            manager.create_proto_dimension(D20, b"%d" % number, layer=number)
            manager.crystallize_dimension(D20)
            left.add(number)
            if number % 3:
                manager.delete_layer(LayerId(D20, number))
                left.remove(number)
            if number == 20:
                manager.delete_layer("L20-02")
                manager.create_proto_dimension(D20, b"again", layer=1)
                manager.crystallize_dimension(D20)
                left = left - {2} | {1}
            assert numbers(manager) == sorted(left)
            assert len(region_of(manager, D20).members) <= 4
            with load(tmp_path) as other:
                assert numbers(other) == sorted(left)
        assert region_of(manager, D20).members[0].generation == 1
        told = [each.layout.deleted.tolist() for each in region_of(manager, D20).members[1:]]
        assert {2} <= {number for each in told for number in each} <= {1, 2, *range(10, 30)}
        assert sum(map(len, told)) < 8  # of what came and went since, nothing is told
        assert manager.fold(D20)
        assert numbers(manager) == sorted(left)


def test_a_plain_file_is_written_again_without_the_layer(tmp_path):
    path = region_file(tmp_path, "D20")
    path.parent.mkdir(parents=True)
    write_packed(path, 20, {0: LONG, 5: b"five"})
    with load(tmp_path) as manager:
        manager.delete_layer("L20-05")
        assert numbers(manager) == [0]
        assert names_in(tmp_path) == ["region.mmap"]


def test_a_dimension_that_is_not_loaded(tmp_path):
    build(tmp_path)
    with MmapManager(MemoryConfig(64, tmp_path)) as manager:
        manager.delete_layer("L20-01")
        assert manager.list_dimensions() == []
        manager.load_dimension(D20)
        assert numbers(manager) == [0, 2, 3]


def test_a_dimension_that_was_evicted_stays_so(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        manager.id_of("layer 1")
        evict(manager, 20)
        before = manager.get_stats()
        manager.delete_layer("L20-01")
        stats = manager.get_stats()
        assert (stats.reloads, stats.evictions) == (before.reloads, before.evictions)
        assert stats.total_allocated_bytes == 0
        assert numbers(manager) == [0, 2, 3] and "L20-01" not in manager
        assert manager.get("layer 1") is None
        assert manager.access_layer("L20-02") == b"content 2"


def test_the_children_of_a_deleted_layer_go_on_naming_it(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        manager.delete_layer("L20-01")
        parent = manager.get_layer_info("L20-02").parent
        assert parent == LayerId("L20-01") and parent not in manager
        manager.delete_layer("L20-02")
        assert manager.get_layer_info("L20-00").children == ()


def test_references_lead_to_the_edition_that_had_the_layer(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        sent = pickle.dumps(manager.ref("L20-01"))
        manager.delete_layer("L20-01")
        assert pickle.loads(sent).get() == b"content 1"
        with pytest.raises(LayerNotFound):
            manager.ref("L20-01")
        again = pickle.loads(pickle.dumps(manager))
        assert numbers(again) == [0, 2, 3]
        again.close()
        manager.fold(D20)
    with pytest.raises(RegionNotFound):
        pickle.loads(sent).get()


def test_who_adopts_a_state_without_a_layer_keeps_what_lies_over_it(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager, load(tmp_path) as other:
        other.overlay_layer("L20-01", b"over", separator=b"|")
        manager.delete_layer("L20-01")
        assert other.refresh(D20)
        assert other.access_layer("L20-01") == b"content 1|over"
        other.crystallize_dimension(D20)  # so it comes back
        assert manager.refresh(D20)
        assert manager.access_layer("L20-01") == b"content 1|over"


def test_what_is_on_disk_and_read_from_memory_is_gone_from_both(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        made = manager.create_proto_dimension(D20, b"made", layer=9)

        def refuse(operation: str, path: str, *details: object) -> None:
            if operation == "map":
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        with intercepted(refuse), pytest.raises(RegionIOError):
            manager.crystallize_dimension(D20)
        assert manager.get_layer_info(made).state is LayerState.CRYSTALLIZED
        manager.delete_layer(made)
        assert made not in manager
        assert allocator_of(manager).validate() == []
        assert all(not pool.used_blocks for pool in manager.get_stats().per_pool.values())
        assert manager.crystallize_dimension(D20) == []
    with load(tmp_path) as manager:
        assert numbers(manager) == [0, 1, 2, 3]


def test_what_another_process_deleted_does_not_come_back_from_memory(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager, load(tmp_path) as other:
        made = manager.create_proto_dimension(D20, b"made", layer=9)
        more = manager.create_proto_dimension(D20, b"more", layer=11)

        def refuse(operation: str, path: str, *details: object) -> None:
            if operation == "map":
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        with intercepted(refuse), pytest.raises(RegionIOError):
            manager.crystallize_proto_dimension(made)
        other.refresh(D20)
        other.delete_layer(made)
        assert manager.crystallize_dimension(D20) == [more]
        assert numbers(manager) == [0, 1, 2, 3, 11]


# -- from memory, and what is refused --------------------------------------------------------------


def test_a_proto_layer_is_discarded(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        made = manager.create_proto_dimension(D20, b"proto")
        alone = manager.create_proto_dimension(77, b"alone")
        for each in (made, alone):
            manager.delete_layer(each)
            assert each not in manager
        assert not manager.is_loaded(77) and not (tmp_path / "D77").exists()
        assert names_in(tmp_path) == ["region.mmap"]


def test_what_lies_over_a_layer_is_not_lost(tmp_path):
    build(tmp_path)
    with load(tmp_path) as manager:
        manager.overlay_layer("L20-01", b"over")
        with pytest.raises(InvalidAccess, match="L20-01: what lies over it would be lost"):
            manager.delete_layer("L20-01")
        manager.crystallize_dimension(D20)
        manager.delete_layer("L20-01")
        assert numbers(manager) == [0, 2, 3]


@pytest.mark.parametrize(
    "wrong", ["L20-07", "L21-00", "L77-00", LayerId(20, 65_535), int(LayerId(33, 1))]
)
def test_what_is_not_there(tmp_path, wrong):
    build(tmp_path)
    with load(tmp_path) as manager:
        with pytest.raises(LayerNotFound):
            manager.delete_layer(wrong)
        assert sorted(os.listdir(tmp_path)) == ["D20"]
        assert names_in(tmp_path) == ["region.mmap"]
        manager.delete_layer("L20-01")
        with pytest.raises(LayerNotFound):
            manager.delete_layer("L20-01")


def test_immutable_dimensions_and_readers(tmp_path):
    build(tmp_path)
    build(tmp_path, dimension=9)
    with load(tmp_path) as manager:
        for which in ("L09-00", "L14-00"):
            with pytest.raises(ImmutableDimension):
                manager.delete_layer(which)
    with load(tmp_path, read_only=True) as manager, pytest.raises(ImmutableDimension):
        manager.delete_layer("L20-01")
    with load(tmp_path) as closed:
        pass
    with pytest.raises(InvalidAccess, match="closed"):
        closed.delete_layer("L20-01")
    for wrong in ("layer 1", "D20", ""):
        with pytest.raises(ValueError, match="not a layer"):
            manager.delete_layer(wrong)
    with pytest.raises(TypeError):
        manager.delete_layer(None)


def test_simulated_layers_are_in_no_file(tmp_path):
    with MmapManager(base_path=tmp_path / "data") as manager:
        manager.load_core_dimensions()
        before = manager.list_layers("D03")
        with pytest.raises(InvalidAccess, match="L03-00 is simulated"):
            manager.delete_layer("L03-00")
        assert not (tmp_path / "data" / "D03").exists()
        assert manager.list_layers("D03") == before
        # A file's layer over a simulated one, which stands in again.
        free = before[-1].layer + 1
        manager.create_proto_dimension("D03", b"of a file", layer=free)
        manager.crystallize_dimension("D03")
        manager.delete_layer(LayerId(3, free))
        assert manager.list_layers("D03") == before
        with pytest.raises(InvalidAccess, match="L03-00 is simulated"):
            manager.delete_layer("L03-00")
    with MmapManager(base_path=tmp_path / "data") as manager:
        manager.load_core_dimensions()
        assert manager.list_layers("D03") == before


def test_under_a_file_a_simulated_layer_stands_in_again(tmp_path):
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_core_dimensions()
        manager.create_proto_dimension("D03", LONG, layer=100)
        manager.crystallize_dimension("D03")
        simulated = bytes(manager.access_layer("L03-00"))
    with MmapManager(base_path=tmp_path, config=MemoryConfig(simulation="never")) as writer:
        writer.load_dimension("D03")
        writer.create_proto_dimension("D03", b"of a file", layer=0)
        writer.crystallize_dimension("D03")
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_core_dimensions()
        assert manager.access_layer("L03-00") == b"of a file"
        manager.delete_layer("L03-00")
        assert manager.access_layer("L03-00") == simulated
        manager.fold("D03")
        assert manager.access_layer("L03-00") == simulated


# -- failing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DELETIONS)
def test_a_call_that_fails_leaves_the_layer_or_takes_it_away(name, tmp_path):
    """Each call in turn; whoever tries again comes to the same end."""
    case = DELETIONS[name]
    n_calls = 0
    while True:
        folder = tmp_path / str(n_calls)
        folder.mkdir()
        case.prepare(folder)
        made = []

        def fail(operation: str, path: str, *details: object, made=made, at=n_calls) -> None:
            made.append(operation)
            if len(made) == at + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with MmapManager(base_path=folder / BASE) as manager:
            manager.load_dimension(DIMENSION)
            held = {each: manager.access_layer(each) for each in manager.list_layers()}
            before = {each: bytes(view) for each, view in held.items()}
            failed = False
            with intercepted(fail):
                try:
                    case.delete(manager)
                except JessyMemoryError:
                    failed = True
            if len(made) <= n_calls:
                assert not failed
                break
            assert layers_of(manager) in (case.before, case.after)
            with MmapManager(base_path=folder / BASE) as other:
                other.load_dimension(DIMENSION)
                assert layers_of(other) in (case.before, case.after)
            if LayerId(DIMENSION, case.number) in manager:
                case.delete(manager)
            assert layers_of(manager) == case.after
            assert {each: bytes(view) for each, view in held.items()} == before
            del held
            with MmapManager(base_path=folder / BASE) as other:
                other.load_dimension(DIMENSION)
                assert layers_of(other) == case.after
            left = files_in(folder) - {target_in(folder)}
            assert left <= set(target_in(folder).parent.glob("region.d*.mmap"))
            files = region_of(manager, DIMENSION).members
            assert budget_of(manager).total == sum(-(-each.size // 4096) * 4096 for each in files)
        n_calls += 1
    assert n_calls > 8


# -- hostile deltas --------------------------------------------------------------------------------


def delta_of(base: Path) -> tuple[Path, bytes]:
    """Delete two layers, and write one; return the delta."""
    build(base)
    with load(base) as manager:
        manager.create_proto_dimension(D20, b"new", layer=9)
        manager.crystallize_dimension(D20)
        with patch.object(s, "MAX_DELTAS", 1):
            manager.delete_layer("L20-01")
            manager.delete_layer("L20-03")
    (path,) = (base / "D20").glob("region.d*.mmap")
    raw = path.read_bytes()
    assert naive.get_field(raw, "n_deleted") == 2
    assert [each.layer for each in naive.read_plain(raw).layers] == [9]
    return path, raw


def check_ignored(base: Path, path: Path, raw: bytes, caplog) -> str:
    """Check that a delta does not count; return why."""
    path.write_bytes(naive.resign(raw))
    with load(base) as manager:
        assert numbers(manager) == [0, 1, 2, 3]
    (record,) = [each for each in caplog.records if getattr(each, "event", "") == "delta_ignored"]
    return record.error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_deleted", 65_537),
        ("n_deleted", 2**64 - 1),
        ("n_deleted", 40),  # past content_start
        ("deleted_offset", 0),
        ("deleted_offset", 256),
        ("deleted_offset", 2**64 - 2),
    ],
)
def test_a_list_of_deleted_layers_that_cannot_be(tmp_path, caplog, field, value):
    path, raw = delta_of(tmp_path)
    why = check_ignored(tmp_path, path, naive.set_field(raw, field, value), caplog)
    assert "deleted" in why


@pytest.mark.parametrize("numbers", [b"\3\0\1\0", b"\1\0\1\0", b"\1\0\x09\0"])
def test_numbers_of_deleted_layers_that_cannot_be(tmp_path, caplog, numbers):
    path, raw = delta_of(tmp_path)
    at = naive.get_field(raw, "deleted_offset")
    raw = naive.put(raw, at, numbers)
    path.write_bytes(naive.resign(raw))
    with pytest.raises(RegionFormatError, match=r"deleted [01] at byte") as caught:
        MmapRegion.from_file(D20, path)
    assert caught.value.offset in (at, at + 2)
    assert "deleted" in check_ignored(tmp_path, path, raw, caplog)


def test_a_layer_deleted_that_no_file_has_means_nothing(tmp_path):
    path, raw = delta_of(tmp_path)
    at = naive.get_field(raw, "deleted_offset")
    path.write_bytes(naive.resign(naive.put(raw, at, b"\1\0\xff\xff")))
    with load(tmp_path) as manager:
        assert numbers(manager) == [0, 2, 3, 9]
        manager.fold(D20)
        assert numbers(manager) == [0, 2, 3, 9]
