"""`scan`: a user's own kernel, called for every layer."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import CancelledError

import numba
import numpy as np
import pytest
from support.eviction import content_of, evicted, load_into
from support.internals import (
    mapping_of,
    set_applied_job,
    set_small_scan_bytes,
    watch_compiled_drivers,
    whole_scan,
)
from support.stores import mixed_store

from jessymem import DimensionNotFound, InvalidAccess, LayerId, LayerIds, MmapManager
from jessymem.kernels import _jit
from jessymem.scanning import applying, workers


def total(content, row):
    found = np.uint64(0)
    for byte in content:
        found += np.uint64(byte)
    return found


def size(content, row):
    return content.size


@pytest.fixture
def mixed(tmp_path):
    manager, contents = mixed_store(tmp_path)
    with manager:
        yield manager, contents


@pytest.fixture
def finely(monkeypatch):
    """Make many jobs of even small stores, and threads to do them."""
    set_small_scan_bytes(monkeypatch, 0)
    set_applied_job(monkeypatch, 100)


def sums_of(contents):
    return [sum(contents[each]) for each in sorted(contents)]


# -- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_a_value_for_every_layer_in_order(mixed, finely, n_workers):
    manager, contents = mixed
    values = manager.scan(total, np.uint64, workers=n_workers)
    assert (values.dtype, values.tolist()) == (np.uint64, sums_of(contents))


def test_in_the_callers_thread(mixed, monkeypatch):
    manager, contents = mixed
    monkeypatch.setattr(workers, "Thread", None)
    assert manager.scan(total, np.uint64).tolist() == sums_of(contents)


def test_ids_of_the_same_layers(mixed):
    manager, contents = mixed
    ids, values = manager.scan(size, "i8", return_ids=True)
    assert isinstance(ids, LayerIds) and list(ids) == sorted(contents)
    assert values.tolist() == [len(contents[each]) for each in ids]
    chosen = ids[values > 100]
    assert manager.access_many(chosen) == [contents[each] for each in chosen]
    assert len(chosen) == (values > 100).sum() > 0
    ids, values = manager.scan(size, "i8", ["D19", 16], return_ids=True)
    assert set(ids.dimensions.tolist()) == {16, 19}
    assert manager.scan(size, "i8", []).shape == (0,)


def test_rows_describe_their_layers(store):
    def describe(content, row):
        parent = np.int64(row.parent)
        return np.int64(row.layer_num) * 1000 + np.int64(row["depth"]) * 100 + (parent & 0xFFFF)

    def frequency(content, row):
        return row.frequency

    with MmapManager(base_path=store) as manager:
        manager.load_all()
        infos = [manager.get_layer_info(each) for each in manager.list_layers()]
        assert manager.scan(describe, np.int64).tolist() == [
            info.layer_id.layer * 1000
            + info.depth * 100
            + (info.parent.layer if info.parent is not None else 0)
            for info in infos
        ]
        assert manager.scan(frequency, np.float32).tolist() == [info.frequency for info in infos]


def test_a_row_is_the_kernels_own(mixed):
    manager, _ = mixed

    def spoil(content, row):
        before = np.int64(row.layer_num)
        row["layer_num"] = 9
        return before

    numbers = [each.layer for each in manager.list_layers()]
    assert manager.scan(spoil, np.int64).tolist() == numbers
    assert manager.scan(spoil, np.int64).tolist() == numbers
    assert [each.layer for each in manager.list_layers()] == numbers


@pytest.mark.parametrize(
    ("function", "dtype", "convert"),
    [
        (lambda content, row: content.size > 5, np.bool_, lambda n: n > 5),
        (lambda content, row: np.uint8(content.size % 256), np.uint8, lambda n: n % 256),
        (lambda content, row: content.size, np.float64, float),
        (lambda content, row: content.size / 2, np.float32, lambda n: n / 2),
        (lambda content, row: complex(content.size, 1.0), np.complex128, lambda n: n + 1j),
        (lambda content, row: 7, np.int8, lambda n: 7),
        (lambda content, row: True, bool, lambda n: True),
    ],
    ids=range(7),
)
def test_values_of_every_kind(mixed, function, dtype, convert):
    manager, contents = mixed
    values = manager.scan(function, dtype)
    assert values.dtype == np.dtype(dtype)
    assert values.tolist() == [convert(len(contents[each])) for each in sorted(contents)]


def test_an_empty_store(tmp_path):
    with MmapManager(base_path=tmp_path) as manager:
        ids, values = manager.scan(total, np.uint64, return_ids=True)
        assert (len(ids), ids.array.dtype, values.shape, values.dtype) == (0, "i8", (0,), "u8")


def test_a_dispatcher_is_used_as_it_is(mixed):
    manager, contents = mixed
    compiled = numba.njit(total)
    assert manager.scan(compiled, np.uint64).tolist() == sums_of(contents)
    if not _jit.is_disabled():
        assert len(compiled.signatures) == 1


def test_arrays_may_be_seen_as_others(mixed):
    manager, contents = mixed

    def words(content, row):
        found = np.uint64(0)
        for word in content[: content.size // 8 * 8].view(np.uint64):
            found ^= word
        return found

    expected = [
        int(np.bitwise_xor.reduce(np.frombuffer(each[: len(each) // 8 * 8], "<u8")))
        for each in (contents[each] for each in sorted(contents))
    ]
    assert manager.scan(words, np.uint64).tolist() == expected


# -- compilation -----------------------------------------------------------------------------------


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_a_kernel_is_compiled_once_for_each_dtype(mixed, monkeypatch):
    manager, _ = mixed
    compiled = watch_compiled_drivers(monkeypatch)
    applying.make_driver.cache_clear()
    for _ in range(3):
        manager.scan(size, np.int64)
        manager.scan(size, "i8")
        manager.scan(size, np.float64)
    assert compiled == [(size, np.dtype("i8")), (size, np.dtype("f8"))]


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_content_cannot_be_written_to(mixed):
    def spoil(content, row):
        content[0] = 1
        return 0

    with pytest.raises(TypeError, match=r"(?s)kernel .*spoil does not compile .*Cannot modify"):
        mixed[0].scan(spoil, np.int64)


def test_content_cannot_be_written_to_by_plain_python(mixed, monkeypatch):
    monkeypatch.setattr(_jit, "is_disabled", lambda: True)

    def spoil(content, row):
        content[0] = 1

    with pytest.raises(ValueError, match="read-only"):
        mixed[0].scan(spoil, np.int64)


def test_plain_python_says_the_same(mixed, monkeypatch):
    manager, contents = mixed
    monkeypatch.setattr(_jit, "is_disabled", lambda: True)
    assert manager.scan(lambda content, row: total(content, row), np.uint64).tolist() == sums_of(
        contents
    )
    numbers = [each.layer for each in manager.list_layers()]
    assert manager.scan(lambda content, row: row.layer_num, np.int64).tolist() == numbers
    assert manager.scan(lambda content, row: row["layer_num"], np.int64).tolist() == numbers
    with pytest.raises(TypeError, match="returns float, which is no int64"):
        manager.scan(lambda content, row: 1.5, np.int64)
    with pytest.raises(TypeError, match="returns list, which is no int64"):
        manager.scan(lambda content, row: [1], np.int64)


# -- what is wrong with a kernel -------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [None, 3, "total", [total]])
def test_what_is_no_function(mixed, kernel):
    with pytest.raises(TypeError, match="a kernel is a function"):
        mixed[0].scan(kernel, np.int64)


@pytest.mark.parametrize("dtype", ["O", "S3", "M8[s]", "V8", ">i8", [("a", "i8")], "(2,)i8"])
def test_what_is_no_number(mixed, dtype):
    with pytest.raises(TypeError, match="dtype is a native boolean or number"):
        mixed[0].scan(total, dtype)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda content: 1, "does not compile"),
        (lambda content, row: row.nothing, "does not compile"),
        (lambda content, row: content.nothing, "does not compile"),
        (lambda content, row: 1.5, "returns float64, which is no int64"),
        (lambda content, row: None, "returns none, which is no int64"),
        (lambda content, row: content, r"returns readonly array\(uint8.*which is no int64"),
        (lambda content, row: (1, 2), "which is no int64"),
        (lambda content, row: None if content.size else 1, "which is no int64"),
    ],
)
@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_what_does_not_compile_names_the_kernel(mixed, function, message):
    function.__qualname__ = "my_kernel"
    with pytest.raises(TypeError, match=f"the kernel my_kernel .*{message}"):
        mixed[0].scan(function, np.int64)


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_what_runs_in_parallel_by_itself(mixed):
    with pytest.raises(ValueError, match="parallel=True"):
        mixed[0].scan(numba.njit(parallel=True)(size), np.int64)


@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_signatures_for_other_arguments(mixed):
    with pytest.raises(TypeError, match="is compiled for others than a layer's bytes"):
        mixed[0].scan(numba.njit("int64(uint8[::1], int64)")(size), np.int64)


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("small", [False, True])
def test_what_a_kernel_raises_comes_out(mixed, finely, monkeypatch, n_workers, small):
    manager, _ = mixed
    set_small_scan_bytes(monkeypatch, 2**30 if small else 0)

    def refuse(content, row):
        if row.layer_num == 700:
            raise ValueError("not this one")
        return content.size

    mapped = mapping_of(manager, 16)
    for _ in range(3):
        with pytest.raises(ValueError, match="not this one") as caught:
            manager.scan(refuse, np.int64, workers=n_workers)
        (note,) = caught.value.__notes__
        assert note.startswith("raised by the kernel ")
        assert note.endswith("refuse for layer L16-700")
    assert not [each for each in threading.enumerate() if each.name.startswith("jessymem")]
    manager.close()
    gc.collect()
    assert mapped() is None  # though the error is held


# -- watching --------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [False, True])
def test_progress_and_cancelling(mixed, finely, monkeypatch, small):
    manager, contents = mixed
    set_small_scan_bytes(monkeypatch, 2**30 if small else 0)
    told, event = [], threading.Event()
    manager.scan(size, np.int64, workers=2, progress=lambda *numbers: told.append(numbers))
    total_bytes = sum(map(len, contents.values()))
    assert told[-1] == (total_bytes, total_bytes) and (not small or len(told) > 5)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    with pytest.raises(CancelledError):
        manager.scan(size, np.int64, workers=2, progress=lambda *_: event.set(), cancel=event)


def test_a_stop_is_seen_between_layers(mixed):
    manager, contents = mixed
    applied = applying.Applied(size, np.int64)
    values, threads = np.zeros(len(contents), np.int64), workers.Workers(1, None, None)
    apply = whole_scan(manager, applied, values, threads)
    threads.stop[0] = 1
    apply()
    assert not values.any()
    threads.stop[0] = 0
    apply()
    assert values.sum() == sum(map(len, contents.values()))


def test_a_dimension_that_is_not_loaded_and_a_closed_manager(mixed):
    manager, _ = mixed
    with pytest.raises(DimensionNotFound, match="D02"):
        manager.scan(size, np.int64, [2])
    manager.close()
    with pytest.raises(InvalidAccess, match="is closed"):
        manager.scan(size, np.int64)


def test_a_store_larger_than_the_budget(tmp_path):
    numbers = [20, 21, 22, 23, 24]
    with load_into(tmp_path, numbers, 3, pool_configs=[(1, 4096)]) as manager:
        assert evicted(manager)
        ids, values = manager.scan(size, np.int64, return_ids=True)
        contents = {LayerId(n, i): content_of(n, i) for n in numbers for i in range(3)}
        assert ids.tolist() == list(contents)
        assert values.tolist() == [len(each) for each in contents.values()]


def test_scans_beside_a_writer_are_of_one_state(tmp_path, finely):
    """Two layers are made and discarded together: ids and values never tell of one alone."""
    with MmapManager(8, base_path=tmp_path) as manager:
        for number in range(3):
            manager.create_proto_dimension(20, bytes([number]) * 500, layer=number)
        done, seen = threading.Event(), []

        def scan():
            while not done.is_set():
                seen.append(manager.scan(size, np.int64, workers=2, return_ids=True))

        manager.scan(size, np.int64)
        thread = threading.Thread(target=scan)
        thread.start()
        try:
            for i in range(100):
                manager.update_proto_dimension("L20-01", b"x" * (500 + i))
                ids = manager.create_proto_layers(
                    [
                        {"dimension_id": 20, "content": b"y" * n, "layer": n}
                        for n in (100 + i, 300 + i)
                    ]
                )
                for each in ids:
                    manager.discard_proto_dimension(each)
        finally:
            done.set()
            thread.join()
        assert seen
        for ids, values in seen:
            numbers = ids.layers.tolist()
            for number, value in zip(numbers[3:], values[3:].tolist(), strict=True):
                assert number == value
            assert values[0] == values[2] == 500 <= values[1] < 600
