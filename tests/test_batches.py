"""Batches: locations, views and one buffer of many layers, on both tiers."""

from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest
from support.eviction import MIB, content_of, evicted, load_into, path_of
from support.internals import (
    compiling_elsewhere,
    evict,
    forget_compiled,
    locate_by_columns,
    locate_plain,
    mapping_of,
    region_of,
    snapshot_of,
)
from support.regions import region_file
from support.stores import NOT_THERE, POOLS, mixed_store

from jessymem import (
    AllocationFailed,
    DimensionId,
    DimensionNotFound,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MmapManager,
    OutOfBounds,
    RegionBuilder,
)
from jessymem.engine import locations
from jessymem.kernels import _jit
from jessymem.kernels import schema as s


@pytest.fixture(params=["plain", "compiled"])
def tier(request, monkeypatch):
    """Batches go by the tables of single reads, or by kernels."""
    if request.param == "compiled":
        if not _jit.promote():
            pytest.skip("compilation is disabled")
    else:
        monkeypatch.setattr(_jit, "is_promoted", lambda *group: False)
    return request.param


@pytest.fixture
def mixed(tmp_path, tier):
    manager, contents = mixed_store(tmp_path)
    with manager:
        yield manager, contents


def shuffled(contents, n=100):
    """Return so many of the ids, some of them more than once."""
    return np.random.default_rng(1).choice(np.array(list(contents), np.int64), n)


# -- what comes back -------------------------------------------------------------------------------


def test_locations_in_files_are_those_that_infos_tell(mixed):
    manager, _ = mixed
    ids = [*manager.list_layers(15), *manager.list_layers(16), *manager.list_layers(17)]
    found = manager.locate_many(ids)
    assert found.dtype == s.LOCATION
    infos = [manager.get_layer_info(each) for each in ids]
    assert found["offset"].tolist() == [info.offset for info in infos]
    assert found["size"].tolist() == [info.size for info in infos]
    assert found["status"].tolist() == [s.OK] * len(ids)
    rows = manager.store().regions
    assert [DimensionId(number) for number in rows["dimension"][found["slot"]].tolist()] == [
        each.dimension for each in ids
    ]
    assert rows["region_id"][found["slot"]].tolist() == found["region"].tolist()
    for each, row in zip(ids, found["row"].tolist(), strict=True):
        assert manager.list_layers(each.dimension)[row] == each


def test_every_kind_of_layer_is_read_in_the_order_of_the_ids(mixed):
    manager, contents = mixed
    ids = shuffled(contents)
    expected = [contents[LayerId.from_packed(each)] for each in ids.tolist()]
    assert [bytes(view) for view in manager.access_many(ids)] == expected
    data, offsets = manager.gather(ids)
    assert (data.dtype, offsets.dtype) == (np.uint8, np.int64)
    assert data.tobytes() == b"".join(expected)
    assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert manager.locate_many(ids)["size"].tolist() == list(map(len, expected))


def test_both_tiers_write_the_same(tmp_path):
    if not _jit.promote():
        pytest.skip("compilation is disabled")
    manager, contents = mixed_store(tmp_path)
    with manager:
        snapshot = snapshot_of(manager)
        ids = np.array([*shuffled(contents), *NOT_THERE], np.int64)
        found = locations.locate(snapshot, ids)
        touched, plain = np.zeros(snapshot.n_slots, bool), np.zeros_like(found.locations)
        n_missing = locate_plain(snapshot, ids, plain, touched)
        assert n_missing == found.n_missing == len(NOT_THERE)
        assert plain.tolist() == found.locations.tolist()
        assert np.flatnonzero(touched).tolist() == found.slots


def check_columns(manager, dimension):
    """All layers of a dimension are where they are one by one; return where that is."""
    snapshot = snapshot_of(manager)
    ids = np.array(manager.list_layers(dimension), np.int64)
    expected, touched = np.zeros(len(ids), s.LOCATION), np.zeros(snapshot.n_slots, bool)
    locate_plain(snapshot, ids, expected, touched)
    found = locate_by_columns(snapshot, DimensionId(dimension))
    assert found.tolist() == expected.tolist()
    return found


def test_all_layers_of_a_dimension_are_where_each_is(mixed):
    manager, _ = mixed
    for dimension in (15, 16, 17, 18, 19):
        check_columns(manager, dimension)


def test_a_row_that_leads_outside_is_out_of_bounds_among_all(tmp_path):
    path = region_file(tmp_path, "D20")
    builder = RegionBuilder("D20", "damaged")
    for layer in range(3):
        builder.add_layer(layer, b"content")
    rows = builder.build_to_file(path).rows.copy()
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension(20)
        at = path.read_bytes().index(rows.tobytes())
        rows["content_end"][1] = 2**40
        with path.open("r+b") as file:
            file.seek(at)
            file.write(rows.tobytes())
        assert check_columns(manager, 20)["status"].tolist() == [s.OK, s.OUT_OF_BOUNDS, s.OK]


def test_compressed_layers_are_told_among_all(tmp_path):
    builder = RegionBuilder("D20", "compressed")
    builder.add_layer(0, b"text " * 10_000)
    builder.add_layer(1, bytes(range(256)))
    builder.build_to_file(region_file(tmp_path, "D20"), compress="zstd")
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension(20)
        assert check_columns(manager, 20)["status"].tolist() == [s.COMPRESSED, s.OK]


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        iter,
        lambda ids: [int(each) for each in ids],
        lambda ids: [str(each) for each in ids],
        lambda ids: [str(each) if each % 2 else each for each in ids],
        lambda ids: np.array(ids),
        lambda ids: np.array(ids, np.uint32),
        lambda ids: np.array(ids, np.uint64)[::1],
        lambda ids: np.repeat(np.array(ids, ">i8"), 2)[::2],
        lambda ids: dict.fromkeys(ids),
    ],
    ids="list tuple iterator integers strings mixed int64 uint32 uint64 strided dict".split(),
)
def test_ids_come_in_many_forms(mixed, form):
    manager, contents = mixed
    views = manager.access_many(form(list(contents)))
    assert [bytes(view) for view in views] == list(contents.values())


@pytest.mark.parametrize("empty", [[], (), np.zeros(0, np.int64)])
def test_no_ids(mixed, empty):
    manager, _ = mixed
    assert manager.access_many(empty) == []
    assert manager.locate_many(empty).shape == (0,)
    data, offsets = manager.gather(empty)
    assert (data.shape, offsets.tolist()) == ((0,), [0])


@pytest.mark.parametrize("verb", ["locate_many", "access_many", "gather"])
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ("L15-00", TypeError, "an array or a sequence"),
        (b"L15-00", TypeError, "an array or a sequence"),
        (7, TypeError, "an array or a sequence"),
        (None, TypeError, "an array or a sequence"),
        ([1.5], TypeError, "an integer, not float"),
        (["L15-00", None], TypeError, "an integer, not NoneType"),
        (["L15-00", True], TypeError, "an integer, not bool"),
        (["L15"], ValueError, "not a layer: 'L15'"),
        ([2**80], ValueError, "no layer has the number 1208925819614629174706176"),
        (np.zeros(2), TypeError, "integers, not float64"),
        (np.array(["L15-00"]), TypeError, "integers, not <U6"),
        (np.array([True]), TypeError, "integers, not bool"),
        (np.zeros((2, 2), int), ValueError, "one axis, not 2"),
        (np.array(5), ValueError, "one axis, not 0"),
    ],
)
def test_what_is_no_batch_of_ids(mixed, verb, ids, error, message):
    with pytest.raises(error, match=message):
        getattr(mixed[0], verb)(ids)


@pytest.mark.parametrize("missing", ["skip", None, 1, ["raise"]])
@pytest.mark.parametrize("verb", ["locate_many", "access_many", "gather"])
def test_missing_is_raise_or_mark(mixed, verb, missing):
    with pytest.raises(ValueError, match="'raise' or 'mark'"):
        getattr(mixed[0], verb)([], missing=missing)


# -- what is missing -------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["locate_many", "access_many", "gather"])
def test_all_that_is_missing_is_listed(mixed, verb):
    manager, contents = mixed
    before = manager.dump_state()
    with pytest.raises(LayerNotFound, match="7 layers are not loaded: L15-08, L16-01") as caught:
        getattr(manager, verb)([*contents, *NOT_THERE, *NOT_THERE])
    assert caught.value.layers == tuple(NOT_THERE)
    assert caught.value.layer == "L15-08" or str(caught.value.layer) == "L15-08"
    assert pickle.loads(pickle.dumps(caught.value)).layers == tuple(NOT_THERE)
    assert manager.dump_state()["budget"] == before["budget"]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (int(LayerId(15, 8)), r"L15-08 is not in .*D15.region\.mmap"),
        (int(LayerId(19, 0)), "L19-00 is not in memory"),
        (int(LayerId(2, 0)), "L02-00: dimension D02 is not loaded"),
        (5, "5 is the number of no layer"),
    ],
)
def test_one_that_is_missing_is_told_as_by_a_single_read(mixed, packed, message):
    with pytest.raises(LayerNotFound, match=message) as caught:
        mixed[0].access_many([packed])
    assert caught.value.layers == (caught.value.layer,) == (packed,)


def test_what_is_missing_can_be_marked(mixed):
    manager, contents = mixed
    ids = [NOT_THERE[0], *contents, *NOT_THERE[1:]]
    expected = [None, *contents.values(), *[None] * 6]
    found = manager.locate_many(ids, missing="mark")
    codes = [s.NO_SUCH_LAYER, *[s.OK] * len(contents), s.NO_SUCH_LAYER, *[s.NO_DIMENSION] * 5]
    assert found["status"].tolist() == codes
    nowhere = found[found["status"] != s.OK]
    assert {each.tolist()[:3] for each in nowhere} == {(0, 0, s.ABSENT)}
    views = manager.access_many(ids, missing="mark")
    assert [None if view is None else bytes(view) for view in views] == expected
    data, offsets = manager.gather(ids, missing="mark")
    assert data.tobytes() == b"".join(each or b"" for each in expected)
    assert np.diff(offsets).tolist() == [len(each or b"") for each in expected]


def test_a_row_that_was_changed_in_its_file(mixed, tmp_path):
    manager, contents = mixed
    region = region_of(manager, 15)
    row_offset = region.layout.rows[3:].ctypes.data - region.data.ctypes.data
    with (tmp_path / "D15" / "region.mmap").open("r+b") as file:
        file.seek(row_offset)
        file.write(np.array([0, 10**9], "<u8").tobytes())
    ids = [*contents, LayerId(2, 0)]
    for verb in (manager.locate_many, manager.access_many, manager.gather):
        with pytest.raises(OutOfBounds, match="layer 3 of D15"):
            verb(ids)
    statuses = manager.locate_many(ids, missing="mark")["status"].tolist()
    assert statuses == [s.OK] * 3 + [s.OUT_OF_BOUNDS] + [s.OK] * (len(ids) - 5) + [s.NO_DIMENSION]
    assert manager.access_many(ids, missing="mark")[3] is None
    with pytest.raises(OutOfBounds, match="layer 3 of D15"):
        manager.load_contexts(ids, missing="skip")


def test_a_closed_manager(mixed):
    manager, contents = mixed
    manager.close()
    for verb in (manager.locate_many, manager.access_many, manager.gather):
        with pytest.raises(InvalidAccess, match="is closed"):
            verb(list(contents))


# -- lifetimes -------------------------------------------------------------------------------------


def test_views_are_fresh_read_only_and_in_place(mixed):
    manager, contents = mixed
    ids = list(contents)
    views = manager.access_many(ids)
    for view, single in zip(views, map(manager.access_layer, ids), strict=True):
        assert view.readonly and view.format == "B"
        if len(view):
            here, there = np.frombuffer(view, np.uint8), np.frombuffer(single, np.uint8)
            assert here.ctypes.data == there.ctypes.data
    for view in views:
        view.release()
    assert [bytes(view) for view in manager.access_many(ids)] == list(contents.values())


def test_views_outlive_the_manager_and_then_free_it(mixed):
    manager, contents = mixed
    views = manager.access_many(list(contents))
    mapped = mapping_of(manager, 15)
    manager.close()
    del manager
    assert [bytes(view) for view in views] == list(contents.values())
    del views
    gc.collect()
    assert mapped() is None


def test_a_buffer_is_the_callers_own(mixed):
    manager, contents = mixed
    mapped = mapping_of(manager, 15)
    data, _ = manager.gather(list(contents))
    data[:] = 0
    assert bytes(manager.access_layer("L15-02")) == contents[LayerId(15, 2)]
    manager.close()
    gc.collect()
    assert mapped() is None


def test_a_buffer_that_the_system_refuses(mixed, monkeypatch):
    manager, contents = mixed
    n_bytes = sum(map(len, contents.values()))
    empty = np.empty

    def refuse(shape, dtype):
        if dtype is np.uint8:
            raise MemoryError
        return empty(shape, dtype)

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(AllocationFailed, match=f"refused {n_bytes:,} bytes") as caught:
        manager.gather(list(contents))
    assert (caught.value.reason, caught.value.requested) == ("os_refused", n_bytes)


# -- evicted dimensions ----------------------------------------------------------------------------


@pytest.fixture
def with_evicted(tmp_path, tier):
    """Three dimensions, with room for a fourth; D20 is evicted."""
    with load_into(tmp_path, [20, 21, 22], 5, pool_configs=POOLS) as manager:
        evict(manager, 20)
        yield manager


def test_what_was_evicted_is_mapped_again(with_evicted):
    ids = [LayerId(number, layer) for number in (22, 20, 21) for layer in (2, 0)]
    assert [bytes(view) for view in with_evicted.access_many(ids)] == [
        content_of(int(each.dimension), each.layer) for each in ids
    ]
    assert evicted(with_evicted) == [] and with_evicted.get_stats().reloads == 1


@pytest.mark.parametrize("number", [9, 65_535])
def test_a_layer_that_an_evicted_dimension_never_had(with_evicted, number):
    missing = LayerId(20, number)
    found = with_evicted.locate_many(["L21-00", missing, 5], missing="mark")
    assert found["status"].tolist() == [s.OK, s.NO_SUCH_LAYER, s.NO_DIMENSION]
    assert evicted(with_evicted) == [20]  # nothing of it was needed
    with pytest.raises(LayerNotFound, match=rf"{missing} is not in .*D20"):
        with_evicted.gather(["L21-00", missing])


def test_an_evicted_dimension_whose_file_is_gone(with_evicted, tmp_path):
    path_of(tmp_path, 20).unlink()
    with pytest.raises(DimensionNotFound, match="D20"):
        with_evicted.access_many(["L21-00", "L20-00"])
    assert bytes(with_evicted.access_many(["L21-00"])[0]) == content_of(21, 0)


def test_more_than_fits_at_once(tmp_path, tier):
    with load_into(tmp_path, [20, 21, 22, 23], 3, pool_configs=[(1, 4096)]) as manager:
        used = manager.get_stats().total_allocated_bytes
        with pytest.raises(LimitExceeded, match="D2"):
            manager.access_many([LayerId(number, 0) for number in (20, 21, 22, 23)])
        assert manager.get_stats().total_allocated_bytes <= max(used, 3 * MIB)
        assert bytes(manager.access_many(["L22-01"])[0]) == content_of(22, 1)


def test_a_batch_is_an_access_of_each_of_its_dimensions(tmp_path, tier):
    with load_into(tmp_path, [20, 21, 22], 5, policy="lru", pool_configs=POOLS) as manager:
        manager.access_many(["L20-00", "L20-01"])
        manager.locate_many(["L22-00"])
        evict(manager, 21)  # the one that was not read since


def test_a_batch_counts_as_a_reader(mixed):
    manager, contents = mixed
    manager.gather(list(contents))
    assert manager.get_stats().peak_concurrent_readers == 1


# -- tiers -----------------------------------------------------------------------------------------


def test_small_batches_add_up_to_something_worth_compiling(monkeypatch):
    promoted = []
    counts = forget_compiled(monkeypatch)
    monkeypatch.setattr(_jit, "promote", lambda group: promoted.append(counts[group]))
    for _ in range(5):
        _jit.promote_for(_jit.WORTH_COMPILING // 4)
    assert promoted[0] == _jit.WORTH_COMPILING


def test_nobody_waits_for_what_another_thread_compiles_unless_there_is_a_great_deal(monkeypatch):
    promoted = []
    counts = forget_compiled(monkeypatch)
    monkeypatch.setattr(_jit, "promote", lambda group: promoted.append(counts[group]))
    with compiling_elsewhere():
        _jit.promote_for(_jit.WORTH_WAITING - 1)
        assert not promoted
        _jit.promote_for(1)
    assert promoted == [_jit.WORTH_WAITING]


def test_a_million_ids_of_many_dimensions(tmp_path):
    for number in range(20, 24):
        builder = RegionBuilder(number, "many")
        for layer in range(0, 600, 2):
            builder.add_layer(layer, layer.to_bytes(2, "little") * number)
        builder.build_to_file(path_of(tmp_path, number))
    with MmapManager(base_path=tmp_path) as manager:
        for number in range(20, 24):
            manager.load_dimension(number)
        ids = np.random.default_rng(2).choice(manager.store().layer_ids(), 50_000)
        found = manager.locate_many(ids)
        assert (found["size"] == 2 * (ids >> 16)).all()
        data, offsets = manager.gather(ids)
        first = data[offsets[:-1]] + (data[offsets[:-1] + 1].astype(np.int64) << 8)
        assert (first == ids & 0xFFFF).all()
