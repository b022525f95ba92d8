"""References to layers: small, equal, shared where they can be, and right in every process."""

import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from support.arrays import KINDS, check_same
from support.internals import edition_of, open_regions, region_of
from support.naive import Draft, write_plain
from support.system import HAS_PROC, mappings_of
from support.system_calls import Calls, intercepted

import jessymem
from jessymem import (
    DimensionNotFound,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LayerRef,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    RegionFormatError,
    RegionNotFound,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

GRID = np.asfortranarray(np.arange(12.0).reshape(3, 4))
DATES = np.array(["2020-01-01", "2021-02-03"], "M8[D]")


def write(path, grid=GRID):
    builder = RegionBuilder("D15", "Arrays")
    builder.add_array(0, grid)
    builder.add_layer(1, "text of a layer")
    builder.add_array(2, DATES)
    builder.add_array(3, np.array([(1, 2.5)], [("a", "<i4"), ("b", ">f8")]))
    return builder.build_to_file(path / "D15" / "region.mmap")


@pytest.fixture
def arrays(tmp_path):
    write(tmp_path)
    return tmp_path


@pytest.fixture
def manager(arrays):
    with MmapManager(base_path=arrays) as manager:
        manager.load_dimension("D15")
        yield manager


def alone(ref):
    """Return the reference as another process would have it: with nothing open to share."""
    return pickle.loads(pickle.dumps(ref))


# -- what it is ------------------------------------------------------------------------------------


def test_what_a_reference_says(manager, arrays):
    ref = manager.ref("L15-00")
    assert isinstance(ref, jessymem.LayerRef)
    assert (ref.layer_id, ref.generation) == (LayerId("D15", 0), 1)
    assert ref.path == arrays / "D15" / "region.mmap"
    assert repr(ref) == f"<LayerRef L15-00 of generation 1 of {ref.path}>"
    for name in ("layer_id", "path", "generation", "other"):
        with pytest.raises(AttributeError):
            setattr(ref, name, None)


def test_equal_references(manager):
    one, same, other = manager.ref("L15-00"), manager.ref(15 << 16), manager.ref("L15-01")
    assert one == same == alone(one) == copy.copy(one) == copy.deepcopy(one) and one is not same
    assert hash(one) == hash(same) == hash(alone(one))
    assert one != other and one != "L15-00" and len({one, same, other}) == 2
    later = LayerRef(one.path, (2, 0, 1), "L15-00")
    assert later != one and LayerRef(one.path.parent, tuple(edition_of(one)), "L15-00") != one


def test_a_pickle_is_small_whatever_the_layer(tmp_path):
    builder = RegionBuilder("D15", "Large")
    builder.add_layer(0, bytes(2**22))
    builder.build_to_file(tmp_path / "D15" / "region.mmap")
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D15")
        ref = manager.ref("L15-00")
        for _ in range(2):
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                assert len(pickle.dumps(ref, protocol)) < 400 + 3 * len(str(tmp_path))
            assert len(ref.get()) == 2**22


@pytest.mark.parametrize("path", ["a\0b", b"bytes", 3])
def test_a_path_that_is_none(path):
    with pytest.raises((ValueError, TypeError)):
        LayerRef(path, (1, 0, 1), "L15-00")


def test_a_relative_path_is_made_absolute(arrays, monkeypatch):
    with MmapManager(base_path=arrays) as manager:
        manager.load_dimension("D15")
        edition = tuple(edition_of(manager.ref("L15-00")))
    monkeypatch.chdir(arrays)
    ref = LayerRef("D15/region.mmap", edition, "L15-00")
    monkeypatch.chdir("/")
    check_same(ref.array(), GRID)


# -- which layers have one -------------------------------------------------------------------------


def test_layers_that_are_in_no_file(manager):
    proto = manager.create_proto_dimension("D15", np.arange(3))
    alone = manager.create_proto_dimension("D16", "text")
    manager.overlay_layer("L15-01", "more")
    for layer in (proto, alone, "L15-01"):
        with pytest.raises(InvalidAccess, match=r"is in memory.*: crystallize it first"):
            manager.ref(layer)
    check_same(manager.ref("L15-00").array(), GRID)  # beside them
    manager.crystallize_dimension("D15")
    check_same(manager.ref(proto).array(), np.arange(3))
    assert bytes(manager.ref("L15-01").get()) == b"text of a layer\nmore"


def test_simulated_layers(tmp_path):
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_core_dimensions()
        with pytest.raises(InvalidAccess, match="L01-00 is simulated: it is in no file"):
            manager.ref("L01-00")


def test_layers_that_are_not_there(manager):
    for wrong in ("L15-09", "L16-00"):
        with pytest.raises(LayerNotFound):
            manager.ref(wrong)
    with pytest.raises(TypeError):
        manager.ref(1.5)
    with pytest.raises(ValueError):
        manager.ref("nothing")
    manager.close()
    with pytest.raises(InvalidAccess):
        manager.ref("L15-00")


def test_an_evicted_dimension_is_not_mapped_for_it(tmp_path):
    for number in (15, 16):
        builder = RegionBuilder(number, "Arrays")
        builder.add_array(0, np.full((512, 1024), number, "f8"))
        builder.build_to_file(tmp_path / f"D{number}" / "region.mmap")
    with MmapManager(6, base_path=tmp_path) as manager:
        manager.load_dimension(15)
        manager.load_dimension(16)
        assert manager.get_stats().evictions == 1
        ref = manager.ref("L15-00")
        with pytest.raises(LayerNotFound):
            manager.ref("L15-01")
        assert manager.get_stats().reloads == 0
        assert (ref.array() == 15).all()  # mapped for the reference alone
        assert manager.get_stats().reloads == 0


def test_a_plain_file(tmp_path):
    path = tmp_path / "D01" / "region.mmap"
    path.parent.mkdir()
    path.write_bytes(write_plain([Draft(3, b"content")]))
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D01")
        ref = manager.ref("L01-03")
    assert ref.generation == 0
    assert bytes(alone(ref).get()) == b"content"
    os.utime(path, ns=(1, 1))
    del manager
    gc.collect()
    with pytest.raises(RegionNotFound):
        alone(ref).get()


# -- reading ---------------------------------------------------------------------------------------


def test_bytes_and_arrays(manager):
    for ref in (manager.ref("L15-00"), alone(manager.ref("L15-00"))):
        check_same(ref.array(), GRID)
        view = ref.get()
        assert view.readonly and view.format == "B" and bytes(view) == GRID.tobytes("F")
    text = manager.ref("L15-01")
    assert bytes(text.get()) == b"text of a layer"
    with pytest.raises(TypeError, match="L15-01 is no array: its content is text"):
        text.array()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "no bytes an item"])
def test_numpy_takes_a_reference_for_its_array(name, tmp_path):
    array = KINDS[name]
    builder = RegionBuilder("D15", "One")
    builder.add_array(0, array)
    builder.build_to_file(tmp_path / "D15" / "region.mmap")
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D15")
        ref = manager.ref("L15-00")
    for found in (np.asarray(ref), ref.__array__()):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert not found.flags.writeable and found.tobytes("A") == array.tobytes("A")
        if array.nbytes:
            assert found.ctypes.data == ref.array().ctypes.data


def test_what_is_no_array_is_one_of_bytes(manager):
    found = np.asarray(manager.ref("L15-01"))
    assert found.dtype == np.uint8 and found.tobytes() == b"text of a layer"
    assert not found.flags.writeable


def test_dtype_and_copy_as_numpy_asks(manager):
    ref = manager.ref("L15-00")
    single = ref.__array__("f4")
    assert single.dtype == np.float32 and single.flags.writeable and (single == GRID).all()
    copied = ref.__array__(copy=True)
    copied[0, 0] = 99
    assert ref.array()[0, 0] == 0
    assert ref.__array__(copy=False).ctypes.data == ref.array().ctypes.data
    with pytest.raises(ValueError):
        ref.__array__("f4", copy=False)
    assert np.array(ref, dtype="f4").dtype == np.float32
    assert np.sum(ref) == np.add.reduce(GRID, axis=None) and np.stack([ref, ref]).shape == (2, 3, 4)


def test_an_array_from_a_reference_keeps_its_memory(manager):
    ref = alone(manager.ref("L15-00"))
    manager.close()
    gc.collect()
    found, path = np.asarray(ref), ref.path  # mapped for it
    del ref
    gc.collect()
    check_same(found, GRID)
    del found
    if HAS_PROC:
        assert not mappings_of(path)


def test_the_interface_names_the_mapping(manager):
    ref = manager.ref("L15-00")
    interface = ref.__array_interface__
    assert interface["data"] == (ref.array().ctypes.data, True)
    assert (interface["shape"], interface["typestr"]) == ((3, 4), "<f8")


def test_buffers(manager):
    view = manager.ref("L15-00").__buffer__(0)
    assert view.readonly and (view.format, view.shape) == ("d", (3, 4))
    assert manager.ref("L15-01").__buffer__(0) == b"text of a layer"
    with pytest.raises(BufferError, match="L15-02: "):
        manager.ref("L15-02").__buffer__(0)  # there is no format for dates
    assert np.asarray(manager.ref("L15-02")).dtype == "M8[D]"


@pytest.mark.parametrize("name", KINDS)
def test_a_buffer_tells_the_dtype_or_is_refused(name, tmp_path):
    builder = RegionBuilder("D15", "One")
    builder.add_array(0, KINDS[name])
    builder.build_to_file(tmp_path / "D15" / "region.mmap")
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D15")
        ref = manager.ref("L15-00")
    try:
        view = ref.__buffer__(0)
    except BufferError as error:
        assert "L15-00: no format of a buffer tells" in str(error)
        assert KINDS[name].dtype.kind in "MmV"
        return
    assert np.asarray(view).dtype == KINDS[name].dtype
    assert view.nbytes == KINDS[name].nbytes


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python asks for it from 3.12 on")
def test_the_buffer_protocol(manager):
    ref = manager.ref("L15-01")
    assert bytes(memoryview(ref)) == bytes(ref) == b"text of a layer"
    assert memoryview(manager.ref("L15-00")).shape == (3, 4)


def test_dlpack(manager):
    ref = manager.ref("L15-00")
    assert ref.__dlpack_device__() == GRID.__dlpack_device__()
    try:
        found = np.from_dlpack(ref)
    except BufferError:  # NumPy before 2.1 hands out nothing that is read-only
        assert tuple(map(int, np.__version__.split(".")[:2])) < (2, 1)
        return
    assert (found == GRID).all() and not found.flags.writeable
    assert found.ctypes.data == ref.array().ctypes.data
    with pytest.raises((BufferError, TypeError)):
        np.from_dlpack(manager.ref("L15-02"))


def test_dask_tokens(manager):
    ref = manager.ref("L15-00")
    token = ref.__dask_tokenize__()
    assert token == alone(ref).__dask_tokenize__() == pickle.loads(pickle.dumps(token))
    assert token != manager.ref("L15-01").__dask_tokenize__()
    assert all(type(part) in (str, int) for part in token)
    base = pytest.importorskip("dask.base")
    assert base.tokenize(ref) == base.tokenize(alone(ref))
    assert base.tokenize(ref) != base.tokenize(manager.ref("L15-01"))


# -- sharing and lifetime --------------------------------------------------------------------------


def test_an_edition_that_is_open_here_is_not_mapped_again(manager):
    region = region_of(manager, "D15")
    ref, start = manager.ref("L15-00"), np.asarray(region.data).ctypes.data
    sent = alone(ref)
    for each in (ref, sent, LayerRef(*ref.__reduce__()[1])):
        address = each.array().ctypes.data
        assert start <= address < start + region.size
    if HAS_PROC:
        assert len(mappings_of(ref.path)) == 1
    del region, each
    manager.close()  # the mapping goes on: they hold it
    assert manager.get_stats().waiting_bytes > 0
    check_same(sent.array(), GRID)
    del ref, sent
    assert manager.get_stats().waiting_bytes == 0


def test_a_reference_that_was_never_read_holds_nothing(manager):
    ref = manager.ref("L15-00")
    manager.unload_dimension("D15")
    assert manager.get_stats().waiting_bytes == 0
    if HAS_PROC:
        assert not mappings_of(ref.path)
    check_same(ref.array(), GRID)  # mapped anew, and charged to nobody
    assert manager.get_stats().total_allocated_bytes == 0
    other = alone(ref)
    check_same(other.array(), GRID)
    if HAS_PROC:
        assert len(mappings_of(ref.path)) == 1
    held, path = other.array(), ref.path
    del ref, other
    gc.collect()
    check_same(held, GRID)
    del held
    if HAS_PROC:
        assert not mappings_of(path)


def test_a_copied_region_is_shared_too(arrays):
    with MmapManager(MemoryConfig(base_path=arrays, load_mode="copy")) as manager:
        manager.load_dimension("D15")
        ref = manager.ref("L15-00")
        assert alone(ref).array().ctypes.data == manager.array("L15-00").ctypes.data


def test_what_is_learned_beside_does_not_matter(manager):
    manager.create_proto_dimension("D15", "beside")
    ref = manager.ref("L15-00")
    assert ref.array().ctypes.data == manager.array("L15-00").ctypes.data


def test_a_file_that_was_loaded_from_elsewhere(arrays):
    there = arrays / "D15" / "region.mmap"
    other = arrays / "elsewhere.bin"
    there.rename(other)
    with MmapManager(base_path=arrays) as manager:
        manager.load_dimension("D15", other)
        ref = manager.ref("L15-00")
        assert ref.path == other
    del manager
    check_same(alone(ref).array(), GRID)


def test_threads_that_attach_at_once(manager):
    ref = alone(manager.ref("L15-00"))
    manager.close()
    gc.collect()
    gate, addresses = threading.Barrier(8), []

    def read():
        gate.wait(30)
        addresses.append(ref.array().ctypes.data)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(addresses) == 8
    check_same(ref.array(), GRID)


# -- other editions --------------------------------------------------------------------------------


def test_another_edition_at_the_path(manager, arrays):
    ref = manager.ref("L15-00")
    held = ref.array()
    write(arrays, GRID + 1)
    check_same(ref.array(), GRID)  # what is mapped stays
    assert manager.refresh("D15")
    newer = manager.ref("L15-00")
    assert newer != ref and newer.generation == 2
    check_same(newer.array(), np.asfortranarray(GRID + 1))
    check_same(alone(ref).array(), GRID)  # shared with `ref`, which has it open
    del held
    sent = pickle.dumps(ref)
    del ref
    gc.collect()
    wanted = r"D15: generation 1 \(2\d{3}-.* is gone, generation 2 \(2\d{3}-.* is there"
    with pytest.raises(RegionNotFound, match=wanted) as caught:
        pickle.loads(sent).array()
    assert (caught.value.dimension, caught.value.generation) == (15, 1)
    lost = pickle.loads(sent)
    for ask in (lost.get, lost.array, lambda: np.asarray(lost), lambda: lost.__buffer__(0)):
        with pytest.raises(RegionNotFound):
            ask()


def test_an_error_that_is_kept_holds_no_mapping(manager, arrays):
    sent = pickle.dumps(manager.ref("L15-00"))
    manager.close()
    path = write(arrays).path
    gc.collect()
    with pytest.raises(RegionNotFound) as caught:
        pickle.loads(sent).get()
    if HAS_PROC:
        assert not mappings_of(path)
    assert "is gone" in str(caught.value)


def test_the_same_layers_written_again_are_another_edition(manager, arrays):
    sent = pickle.dumps(manager.ref("L15-00"))
    manager.close()
    (arrays / "D15" / "region.mmap").unlink()
    write(arrays)  # generation 1 again, created later
    gc.collect()
    with pytest.raises(RegionNotFound):
        pickle.loads(sent).get()


def test_no_file_any_more(manager, arrays):
    sent = pickle.dumps(manager.ref("L15-00"))
    manager.close()
    path = arrays / "D15" / "region.mmap"
    path.unlink()
    gc.collect()
    with pytest.raises(DimensionNotFound) as caught:
        pickle.loads(sent).get()
    assert caught.value.path == str(path)
    path.write_bytes(b"broken" * 100)
    with pytest.raises(RegionFormatError):
        pickle.loads(sent).get()


def test_a_generation_beside(manager, arrays):
    """Where a mapped file cannot be replaced, the newer one has a name of its own."""
    path = arrays / "D15" / "region.mmap"
    older, kept = pickle.dumps(manager.ref("L15-00")), path.read_bytes()
    write(arrays, GRID + 1)
    manager.refresh("D15")
    newer = pickle.dumps(manager.ref("L15-00"))
    manager.close()
    del manager
    gc.collect()
    beside = path.with_name("region.g2.mmap")
    path.rename(beside)
    path.write_bytes(kept)
    (path.with_name("region.g7.mmap")).write_bytes(b"broken")
    check_same(pickle.loads(newer).array(), np.asfortranarray(GRID + 1))
    check_same(pickle.loads(older).array(), GRID)  # it is there, though no longer the newest
    path.unlink()
    check_same(pickle.loads(newer).array(), np.asfortranarray(GRID + 1))
    with pytest.raises(RegionNotFound, match=r"generation 2 \(.* is there"):
        pickle.loads(older).array()


def test_a_generation_that_is_folded_back_meanwhile(manager, arrays, intercept):
    path = arrays / "D15" / "region.mmap"
    kept = path.read_bytes()
    write(arrays, GRID + 1)
    manager.refresh("D15")
    sent = pickle.dumps(manager.ref("L15-00"))
    manager.close()
    del manager
    gc.collect()
    beside = path.with_name("region.g2.mmap")
    path.rename(beside)
    path.write_bytes(kept)

    def fold_back(operation, where, *details):
        if operation == "open" and where == str(beside) and beside.exists():
            beside.replace(path)

    intercept(fold_back)
    check_same(pickle.loads(sent).array(), np.asfortranarray(GRID + 1))


# -- other processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_references_in_other_processes(method, manager):
    refs = [manager.ref("L15-00"), manager.ref("L15-03")]
    check_same(refs[0].array(), GRID)  # attached, or not
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, context) as pool:
        assert list(pool.map(np.sum, refs[:1])) == [GRID.sum()]
        assert pool.submit(LayerRef.array, refs[1]).result().tolist() == [(1, 2.5)]
        assert pool.submit(hash, "x").result() is not None
        back = pool.submit(copy.copy, refs[0]).result()
    assert back == refs[0]


def test_a_pool_of_processes(manager):
    refs = [manager.ref("L15-00")] * 5
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(np.sum, refs) == [GRID.sum()] * 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_reads_what_was_attached_and_what_was_not(manager, arrays):
    attached, other = manager.ref("L15-00"), manager.ref("L15-01")
    attached.get()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            manager.close()
            assert attached.array().tolist() == GRID.tolist()
            assert bytes(other.get()) == b"text of a layer"
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    check_same(manager.array("L15-00"), GRID)


def test_joblib(manager):
    joblib = pytest.importorskip("joblib")
    refs = [manager.ref("L15-00")] * 2
    assert joblib.Parallel(1)(joblib.delayed(np.sum)(ref) for ref in refs) == [66.0, 66.0]


def test_reading_a_reference_needs_no_numba(manager, tmp_path):
    (tmp_path / "ref").write_bytes(pickle.dumps(manager.ref("L15-00")))
    code = (
        "import pickle, sys; ref = pickle.load(open('ref', 'rb')); print(ref.array().sum());"
        "assert 'numba' not in sys.modules and 'jessymem.manager' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert float(result.stdout) == 66


def test_what_is_dropped_is_forgotten(manager):
    ref = alone(manager.ref("L15-00"))
    ref.get()
    path = str(ref.path)
    del ref
    manager.close()
    gc.collect()
    assert not [key for key in open_regions() if key[0] == path]


def test_a_reference_of_a_manager_that_copies_is_read_from_a_copy(arrays, manager):
    mapped = manager.ref("L15-00")
    assert mapped.get() is not None  # what is open now is not to be shared
    with MmapManager(MemoryConfig(base_path=arrays, load_mode="copy")) as copying:
        copying.load_dimension("D15")
        ref = copying.ref("L15-00")
        sent = pickle.dumps(ref)
        assert ref == mapped
        del ref
    gc.collect()
    calls = Calls()
    with intercepted(calls):
        assert bytes(pickle.loads(sent).get()) == bytes(mapped.get())
    assert "read" in calls.operations
    assert "map" not in calls.operations
    with pytest.raises(ValueError, match="load_mode"):
        LayerRef(mapped.path, (1, 0, 1), "L15-00", "other")
