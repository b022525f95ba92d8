"""Readers of a region file and the deltas that follow it, by every way of reading."""

from __future__ import annotations

import pickle
import random
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from support import naive
from support.calls import trace
from support.chains import (
    D20,
    N_FIRST,
    build,
    check,
    content_of,
    learn,
    load,
    names_in,
    three_deltas,
)
from support.internals import budget_of, evict, region_of, snapshot_of
from support.regions import region_file, write_packed

from jessymem import (
    DimensionId,
    LayerId,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    RegionNotFound,
    osmem,
)
from jessymem.kernels import schema as s

# -- readers ---------------------------------------------------------------------------------------


def test_the_files_mapping_is_the_same_before_and_after(tmp_path):
    with build(tmp_path) as manager:
        views = [manager.access_layer(LayerId(D20, number)) for number in range(N_FIRST)]
        mapping = region_of(manager, D20).members[0].data
        used = manager.get_stats().total_allocated_bytes
        learn(manager, 8)
        assert region_of(manager, D20).members[0].data is mapping
        stats = manager.get_stats()
        assert stats.total_allocated_bytes == used + osmem.page_size()
        assert stats.waiting_bytes == 0
        assert [bytes(view) for view in views] == [content_of(n) for n in range(N_FIRST)]


def test_a_view_of_what_was_replaced_waits(tmp_path):
    with patch.object(s, "MAX_DELTAS", 1), build(tmp_path) as manager:
        learn(manager, 8)
        view = manager.access_layer("L20-08")
        learn(manager, 9)
        assert manager.get_stats().waiting_bytes == osmem.page_size()
        assert view == content_of(8)
        del view
        assert manager.get_stats().waiting_bytes == 0


def test_another_process_adopts_a_delta(tmp_path):
    with build(tmp_path) as manager, load(tmp_path) as other:
        view = other.access_layer("L20-00")
        mapping = region_of(other, D20).members[0].data
        learn(manager, 8)
        assert other.refresh(D20)
        assert not other.refresh(D20)
        check(other, range(9))
        assert region_of(other, D20).members[0].data is mapping
        assert other.get_stats().waiting_bytes == 0
        made = other.create_proto_dimension(D20, content_of(9), name="layer 9")
        assert made.layer == 9
        other.crystallize_dimension(D20)
        learn(manager, 10)
        check(manager, range(11))
        assert view == content_of(0)


def test_a_touched_file_is_the_same_file(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
        mapping = region_of(manager, D20).members[0].data
        region_file(tmp_path, "D20").touch()
        learn(manager, 9)
        assert region_of(manager, D20).members[0].data is mapping


@pytest.mark.parametrize("load_mode", ["map", "copy"])
def test_eviction_takes_all_files_of_a_chain(tmp_path, load_mode):
    with build(tmp_path, load_mode=load_mode) as manager:
        learn(manager, 8)
        learn(manager, 9)
        used = manager.get_stats().total_allocated_bytes
        manager.access_layer("L20-09")
        assert not region_of(manager, D20).is_viewed
        evict(manager, 20)
        assert manager.get_stats().total_allocated_bytes == 0
        ref = manager.ref("L20-08")
        check(manager, range(10))
        assert manager.get_stats().total_allocated_bytes == used
        assert ref.get() == content_of(8)
        view = manager.access_layer("L20-09")
        assert region_of(manager, D20).is_viewed
        evict(manager, 20)
        assert manager.get_stats().waiting_bytes == osmem.page_size()
        check(manager, range(10))
        assert manager.get_stats().total_allocated_bytes == used
        assert manager.get_stats().waiting_bytes == 0
        assert view == content_of(9)


def test_learned_layers_over_a_chain(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
        learn(manager, 10)
        manager.create_proto_dimension(D20, content_of(9), layer=9, name="layer 9")
        manager.overlay_layer("L20-10", b"over", separator=b"|")
        assert manager.access_layer("L20-10") == content_of(10) + b"|over"
        manager.drop_overlay("L20-10")
        check(manager, range(11))
        manager.discard_proto_dimension("L20-09")
        check(manager, [*range(9), 10])


@pytest.mark.parametrize("is_learning", [False, True])
def test_a_read_through_a_chain_is_as_short_as_one_of_a_file(tmp_path, is_learning):
    with build(tmp_path) as manager:
        learn(manager, *range(8, 108))
        learn(manager, 200)
        if is_learning:
            manager.create_proto_dimension(D20, content_of(300), layer=300, name="layer 300")
        ids = manager.list_layers(D20)
        manager.access_layer(ids[0])  # a thread's first is measured
        found = trace(lambda: [manager.access_layer(each) for each in ids])
        assert set(found.calls) == {("jessymem/reading.py", "LayerReader.access_layer")}
        assert found.n_calls == len(ids)


def test_nothing_is_kept_of_a_read(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, *range(8, 208))
        ids = manager.list_layers(D20)
        manager.access_layer(ids[0])
        n_blocks = sys.getallocatedblocks()
        for each in ids:
            manager.access_layer(each)
        assert sys.getallocatedblocks() - n_blocks < len(ids) // 2


def test_a_batch_of_chains_and_of_others(tmp_path):
    """Members are equally long here, which is no reason to take them for a table."""
    expected = {}
    with build(tmp_path) as manager:
        for number in (8, 9, 10):
            learn(manager, number, content=bytes([number]) * 100)
            expected[LayerId(20, number)] = bytes([number]) * 100
        manager.overlay_layer("L20-09", b"over", separator=b"|")
        expected[LayerId(20, 9)] += b"|over"
        for number in (7, 30):
            builder = RegionBuilder(number, "another")
            builder.add_layer(0, b"of another file")
            builder.build_to_file(region_file(tmp_path, str(DimensionId(number))))
            manager.load_dimension(number)
            expected[LayerId(number, 0)] = b"of another file"
        manager.load_dimension(other_chain(tmp_path, manager))
        expected |= {LayerId(40, number): content_of(number) for number in (0, 8)}
        expected |= {LayerId(20, number): content_of(number) for number in range(N_FIRST)}
        missing = [LayerId(20, 11), LayerId(7, 1), LayerId(50, 0)]
        ids = [*expected, *missing, *expected]
        random.Random(1).shuffle(ids)
        found = manager.access_many(ids, missing="mark")
        assert [each and bytes(each) for each in found] == [expected.get(each) for each in ids]
        assert all(each is None or each.readonly for each in found)
        found = manager.access_many(list(expected))
        assert [bytes(each) for each in found] == list(expected.values())


def other_chain(base: Path, manager: MmapManager) -> DimensionId:
    """Write another dimension with one delta; return its number."""
    builder = RegionBuilder(40, "forty")
    builder.add_layer(0, content_of(0))
    builder.build_to_file(region_file(base, "D40"))
    manager.crystallize_proto_dimension(manager.create_proto_dimension(40, content_of(8), layer=8))
    assert len(list((base / "D40").glob("region.d*.mmap"))) == 1
    manager.unload_dimension(40)
    return DimensionId(40)


def test_scans_read_every_file(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8, content=b"a needle here")
        learn(manager, 9, content=b"and a needle")
        manager.create_proto_dimension(D20, b"needle", layer=12)
        found = [(str(hit.layer_id), hit.offset) for hit in manager.find(b"needle")]
        assert found == [("L20-08", 2), ("L20-09", 6), ("L20-12", 0)]


def test_arrays_keep_their_form(tmp_path):
    array = np.arange(12, dtype=">i4").reshape(3, 4)
    with build(tmp_path) as manager:
        made = manager.create_proto_dimension(D20, array)
        manager.crystallize_dimension(D20)
        assert manager.array(made).tolist() == array.tolist()
        assert manager.get_layer_info(made).dtype == array.dtype
        manager.fold(D20)
        assert manager.array(made).tolist() == array.tolist()


def test_compiled_code_sees_every_layer(tmp_path):
    from jessymem import kernels

    with build(tmp_path) as manager:
        learn(manager, 8)
        store = manager.store()
        for number in (0, 8):
            assert bytes(kernels.layer_bytes(store, int(LayerId(D20, number)))) == content_of(
                number
            )


def test_a_reference_names_the_one_file_that_has_the_layer(tmp_path):
    with build(tmp_path) as manager:
        first = manager.ref("L20-00")
        learn(manager, 8)
        second = manager.ref("L20-08")
        assert manager.ref("L20-00") == first
        learn(manager, 9)
        for ref, number in ((first, 0), (second, 8)):
            assert pickle.loads(pickle.dumps(ref)).get() == content_of(number)
        manager.fold(D20)
    with pytest.raises(RegionNotFound):
        pickle.loads(pickle.dumps(second)).get()


def test_a_pickled_manager_has_what_was_loaded_then(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
        pickled, store = pickle.dumps(manager), pickle.dumps(manager.store())
        learn(manager, 9)
        with pickle.loads(pickled) as then:
            check(then, range(9))
            assert then.refresh(D20)
            check(then, range(10))
        assert len(pickle.loads(store).layer_ids()) == 9
        manager.fold(D20)
    with pytest.raises(RegionNotFound):
        pickle.loads(pickled)


def test_a_copy_of_the_folder_is_the_dimension(tmp_path):
    three_deltas(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    with load(tmp_path / "copy") as manager:
        check(manager, range(11))


def test_a_chain_that_could_never_be_loaded_is_not_written(tmp_path):
    builder = RegionBuilder(D20, "twenty")
    builder.add_layer(0, bytes(2**20 - 4_096))
    builder.build_to_file(region_file(tmp_path, "D20"))
    with MmapManager(MemoryConfig(1, tmp_path, pool_configs=[(1, 4_096)])) as manager:
        made = manager.create_proto_dimension(D20, bytes(100), layer=9)
        with pytest.raises(LimitExceeded, match="could never be loaded"):
            manager.crystallize_proto_dimension(made)
        assert names_in(tmp_path) == ["region.mmap"]
        assert manager.access_layer(made) == bytes(100)


@pytest.mark.compiled_only
def test_tables_that_are_made_are_counted(tmp_path):
    path = region_file(tmp_path, "D20")
    path.parent.mkdir(parents=True)
    write_packed(path, 20, dict.fromkeys(range(65_536), b""))
    with load(tmp_path) as manager:
        n_file, n_table = osmem.round_to_pages(path.stat().st_size), 65_536 * s.LAYER_BYTES
        assert manager.get_stats().total_allocated_bytes == n_file + n_table
        manager.unload_dimension(D20)
        assert manager.get_stats().total_allocated_bytes == 0
    with load(tmp_path) as manager:
        for number in range(21, 41):
            other = region_file(tmp_path, f"D{number}")
            other.parent.mkdir()
            other.write_bytes(naive.set_field(path.read_bytes(), "dimension_id", number))
            manager.load_dimension(number)
        stats = manager.get_stats()
        assert stats.total_allocated_bytes == (20 + 1 - stats.evictions) * (n_file + n_table)
        assert stats.total_allocated_bytes <= stats.total_limit_bytes


def test_the_table_of_a_chain_is_counted_with_all_that_it_leads_by(tmp_path):
    n_layers = 3_000
    builder = RegionBuilder(D20, "twenty")
    for number in range(n_layers):
        builder.add_layer(number, bytes(100))
    builder.build_to_file(region_file(tmp_path, "D20"))
    with load(tmp_path) as manager:
        learn(manager, n_layers)
        charged = sum(osmem.round_to_pages(path.stat().st_size) for path in files(tmp_path))
        n_table = manager.get_stats().total_allocated_bytes - charged
        # Per row: the row, its member, the row there, start and end, and a reference to the owner
        # with what a list leaves for more; and space for an eighth more.
        n_row, n_rows = s.LAYER_BYTES + 1 + 2 + 2 * 8 + 9, (n_layers + 1) * 9 // 8
        assert n_table == n_rows * n_row // osmem.page_size() * osmem.page_size()


def test_the_books_are_even_after_everything(tmp_path):
    with build(tmp_path) as manager:
        for number in range(N_FIRST, N_FIRST + 20):
            learn(manager, number)
        manager.fold(D20)
        evict(manager, 20)
        check(manager, range(N_FIRST + 20))
        learn(manager, 60)
        charged = sum(osmem.round_to_pages(path.stat().st_size) for path in files(tmp_path))
        n_table = sum(charge.n_bytes for charge in region_of(manager, 20).table_charges)
        assert n_table <= osmem.page_size()
        charged += n_table
        assert manager.get_stats().total_allocated_bytes == charged
        assert snapshot_of(manager).region_at(20)["n_charged"] == charged
        assert budget_of(manager).waiting_bytes == 0
        manager.unload_dimension(D20)
        assert manager.get_stats().total_allocated_bytes == 0


def files(base: Path) -> list[Path]:
    return list((base / "D20").iterdir())
