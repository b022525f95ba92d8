"""The store inside a user's own compiled code: what it finds, how long it lives, what it is not."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import sys
import threading

import numpy as np
import pytest
from support.eviction import load_into
from support.internals import allocator_of, evict, mapping_of, origins, region_of
from support.kernels import compiled
from support.processes import run_python
from support.regions import region_file, write_packed
from support.stores import NOT_THERE, POOLS, mixed_store

from jessymem import (
    InvalidAccess,
    LayerId,
    MmapManager,
    RegionBuilder,
    RegionNotFound,
    kernels,
)
from jessymem.kernels import _jit
from jessymem.kernels import schema as s
from jessymem.kernels.store import FUNCTIONS, Place, Store

is_compiled = not _jit.is_disabled()
compiles = pytest.mark.skipif(not is_compiled, reason="compilation is disabled")

RECORD = np.dtype([("a", "u1"), ("b", "<u2")])


def user_locate(store, layer_id):
    return kernels.locate(store, layer_id)


def user_bytes(store, layer_id):
    return kernels.layer_bytes(store, layer_id)


def user_words(store, layer_id):
    return kernels.layer_array(store, layer_id, np.uint16)


def user_doubles(store, layer_id):
    return kernels.layer_array(store, layer_id, np.float64)


def user_records(store, layer_id):
    return kernels.layer_array(store, layer_id, RECORD)


def user_walk(store, found):
    """Write the ids of all layers; return how many."""
    n = 0
    for slot in range(kernels.count_slots(store)):
        dimension = kernels.dimension_at(store, slot)
        for row in range(kernels.count_layers(store, dimension)):
            found[n] = kernels.layer_at(store, dimension, row)
            n += 1
    return n


def user_edges(store, dimension, row):
    return (
        kernels.count_layers(store, dimension),
        kernels.layer_at(store, dimension, row),
        kernels.dimension_at(store, row),
    )


def user_sum(store, ids):
    total = 0
    for i in range(len(ids)):
        for byte in kernels.layer_bytes(store, ids[i]):
            total += int(byte)
    return total


FORMS = {}


@pytest.fixture(scope="module", params=["plain", "compiled"])
def form(request):
    """Return a function as it is called: plain Python, or compiled once for the module."""
    if request.param == "plain":
        return lambda function: function
    if not is_compiled:
        pytest.skip("compilation is disabled")
    return lambda function: FORMS.setdefault(function, compiled(function))


@pytest.fixture
def mixed(tmp_path):
    manager, contents = mixed_store(tmp_path)
    with manager:
        yield manager, contents


# -- what is found ---------------------------------------------------------------------------------


def test_every_layer_is_found(mixed, form):
    manager, contents = mixed
    store = manager.store()
    for layer_id, content in contents.items():
        location = form(user_locate)(store, layer_id)
        assert (location.status, location.size) == (s.OK, len(content))
        assert store.regions[location.slot]["dimension"] == layer_id.dimension
        assert manager.list_layers(layer_id.dimension)[location.row] == layer_id
        data = form(user_bytes)(store, layer_id)
        assert (data.dtype, data.shape) == (np.uint8, (len(content),))
        assert data.tobytes() == content
        assert not data.flags.writeable


@pytest.mark.parametrize("packed", NOT_THERE)
def test_what_is_not_there_is_empty_and_says_why(mixed, form, packed):
    store = mixed[0].store()
    is_dimension = packed >> 16 in (15, 16)
    status = s.NO_SUCH_LAYER if is_dimension else s.NO_DIMENSION
    assert form(user_locate)(store, packed) == (status, s.ABSENT, s.ABSENT, 0, 0)
    assert form(user_bytes)(store, packed).shape == (0,)
    assert form(user_doubles)(store, packed).shape == (0,)


def test_what_was_evicted_says_so(tmp_path, form):
    with load_into(tmp_path, [20, 21], 4, pool_configs=POOLS) as manager:
        held = manager.store()
        evict(manager, 20)
        store = manager.store()
        assert form(user_locate)(store, int(LayerId(20, 0))).status == s.EVICTED
        assert form(user_bytes)(store, int(LayerId(20, 0))).shape == (0,)
        assert form(user_edges)(store, 20, 0)[:2] == (0, 0)
        assert (store.layer_ids() >> 16).tolist() == [21] * 3
        # What was held before still leads there.
        assert form(user_bytes)(held, int(LayerId(20, 0))).tobytes() == manager.access_layer(
            "L20-00"
        )


def test_a_row_that_was_changed_in_its_file_leads_nowhere(mixed, form, tmp_path):
    manager, contents = mixed
    region = region_of(manager, 15)
    row_offset = region.layout.rows[3:].ctypes.data - region.data.ctypes.data
    with region_file(tmp_path, "D15").open("r+b") as file:
        file.seek(row_offset)
        file.write(np.array([0, 10**9], "<u8").tobytes())
    store = manager.store()
    assert form(user_locate)(store, int(LayerId(15, 3))).status == s.OUT_OF_BOUNDS
    assert form(user_bytes)(store, int(LayerId(15, 3))).shape == (0,)
    assert form(user_bytes)(store, int(LayerId(15, 4))).tobytes() == contents[LayerId(15, 4)]


def test_bytes_as_items_of_a_dtype(tmp_path, form):
    content = np.arange(24, dtype="<u8").tobytes()  # 192 bytes: 24 doubles, 64 records
    builder = RegionBuilder(15, "typed")
    builder.add_layer(0, content)
    builder.add_layer(1, content[:-1])
    builder.build_to_file(region_file(tmp_path, "D15"))
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension(15)
        store, whole, odd = manager.store(), int(LayerId(15, 0)), int(LayerId(15, 1))
        for function, dtype in ((user_words, "u2"), (user_doubles, "f8"), (user_records, RECORD)):
            found = form(function)(store, whole)
            assert found.dtype == dtype
            assert found.tobytes() == content
            assert not found.flags.writeable
            assert form(function)(store, odd).shape == (0,)


def test_what_is_not_aligned_for_a_dtype_is_empty(tmp_path, form):
    path = region_file(tmp_path, "D17")
    write_packed(path, 17, {layer: bytes(range(48)) + bytes(layer) for layer in range(16)})
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension(17)
        store = manager.store()
        rows = store.regions[17]
        found = {}
        for layer in (0, 8):
            location = form(user_locate)(store, int(LayerId(17, layer)))
            is_aligned = (int(rows["content_address"]) + int(location.offset)) % 8 == 0
            doubles = form(user_doubles)(store, int(LayerId(17, layer)))
            assert len(doubles) == ((48 + layer) // 8 if is_aligned else 0)
            found[is_aligned] = True
            # A record without padding may lie anywhere.
            n_records = 16 if layer == 0 else 0
            assert len(form(user_records)(store, int(LayerId(17, layer)))) == n_records
        assert False in found


def test_all_layers_can_be_walked(mixed, form):
    manager, contents = mixed
    store = manager.store()
    found = np.zeros(len(contents) + 5, np.int64)
    n_found = form(user_walk)(store, found)
    assert sorted(found[:n_found].tolist()) == sorted(contents)
    assert store.layer_ids().tolist() == sorted(contents) == manager.list_layers()


@pytest.mark.parametrize("number", [-1, 0, 1, 14, 64, 65_536, 2**40, -(2**40)])
def test_there_is_nothing_beyond_the_edges(mixed, form, number):
    store = mixed[0].store()
    assert form(user_edges)(store, number, number) == (0, 0, 0)
    assert form(user_edges)(store, 15, 8)[:2] == (8, 0)
    assert form(user_edges)(store, 15, -1)[:2] == (8, 0)


def test_an_unloaded_dimension_leaves_an_empty_slot(mixed, form):
    manager, contents = mixed
    manager.unload_dimension(16)
    manager.unload_dimension(15)
    store = manager.store()
    found = np.zeros(len(contents), np.int64)
    n_found = form(user_walk)(store, found)
    assert sorted(found[:n_found].tolist()) == manager.list_layers()
    assert "D" not in repr(store) and repr(store) == "<Store of 3 dimensions, 9 layers>"


def test_no_layers_at_all(form):
    with MmapManager(base_path="nowhere") as manager:
        store = manager.store()
        assert form(user_walk)(store, np.zeros(1, np.int64)) == 0
        assert store.layer_ids().shape == (0,)


@compiles
def test_threads_and_parallel_loops_read_one_store(mixed):
    import numba

    manager, contents = mixed
    store = manager.store()
    ids = np.tile(store.layer_ids(), 20)
    expected = 20 * sum(map(sum, contents.values()))

    @numba.njit(parallel=True)
    def in_parallel(store, ids):
        total = 0
        for i in numba.prange(ids.shape[0]):
            total += kernels.layer_bytes(store, ids[i]).astype(np.int64).sum()
        return total

    assert in_parallel(store, ids) == expected
    answers = []
    read = compiled(user_sum)
    threads = [threading.Thread(target=lambda: answers.append(read(store, ids))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4


# -- lifetimes -------------------------------------------------------------------------------------


def test_a_returned_view_keeps_its_memory_alive_alone(tmp_path, form):
    manager, contents = mixed_store(tmp_path)
    mapped = mapping_of(manager, 15)
    views = {
        layer_id: form(user_bytes)(manager.store(), layer_id)
        for layer_id in contents  # of files, plain ones, overlays, proto layers
    }
    allocator = allocator_of(manager)
    manager.close()
    del manager
    gc.collect()
    for layer_id, content in contents.items():
        assert views[layer_id].tobytes() == content
    assert mapped() is not None
    del views
    gc.collect()
    assert mapped() is None
    assert allocator.usage[0] == 0


def test_a_store_keeps_what_it_leads_to(mixed, form):
    manager, contents = mixed
    store = manager.store()
    region = mapping_of(manager, 15)
    manager.update_proto_dimension("L18-02", b"another")
    manager.drop_overlay("L18-01")
    manager.discard_proto_dimension("L19-05")
    manager.unload_dimension(15)
    for _ in range(50):  # whatever was freed would be taken
        manager.create_proto_dimension(20, b"z" * 6300)
    for layer_id, content in contents.items():
        assert form(user_bytes)(store, layer_id).tobytes() == content
    assert manager.get_stats().waiting_bytes > 0
    del store
    gc.collect()
    assert region() is None
    assert manager.get_stats().waiting_bytes == 0


def test_a_view_that_is_empty_is_held_and_dropped_like_any_other(mixed, form):
    store = mixed[0].store()
    views = [form(user_bytes)(store, packed) for packed in NOT_THERE]
    del store
    gc.collect()
    assert [view.tobytes() for view in views] == [b""] * len(views)


@compiles
def test_reading_in_a_loop_leaks_nothing(mixed):
    manager, _ = mixed
    store = manager.store()
    read, view = compiled(user_sum), compiled(user_bytes)
    ids = store.layer_ids()
    read(store, ids), view(store, ids[0])
    before = sys.getrefcount(store.directory), sys.getrefcount(store)
    for _ in range(50):
        read(store, ids)
        view(store, ids[3])
    assert (sys.getrefcount(store.directory), sys.getrefcount(store)) == before


# -- what is refused -------------------------------------------------------------------------------

FROZEN = "passed to a compiled function as an argument"


@compiles
def test_a_store_is_never_frozen_into_code(mixed):
    import numba

    store = mixed[0].store()
    pair = (store, 1)

    def closure():
        return kernels.count_slots(store)

    def within_a_tuple():
        return kernels.count_slots(pair[0])

    def as_a_default(held=store):
        return kernels.count_slots(held)

    for function in (closure, within_a_tuple, as_a_default):
        with pytest.raises((numba.TypingError, ValueError), match=FROZEN):
            numba.njit(function)()
    code = compile("def as_a_global(): return count_slots(store)", "user", "exec")
    names = {"store": store, "count_slots": kernels.count_slots}
    exec(code, names)
    with pytest.raises(numba.TypingError, match=FROZEN):
        numba.njit(names["as_a_global"])()


@compiles
@pytest.mark.parametrize("wrong", ["tuple", "array", "number"])
def test_what_is_no_store_is_refused_when_it_is_compiled(mixed, wrong):
    import numba

    store = mixed[0].store()
    other = {"tuple": tuple(store), "array": store.directory, "number": 7}[wrong]
    read = numba.njit(user_bytes)
    assert len(read(store, int(LayerId(15, 1)))) == 101  # and not taken for the same afterwards
    with pytest.raises(numba.TypingError):
        read(other, 1)


@compiles
def test_a_store_does_not_come_back_from_compiled_code(mixed):
    import numba

    with pytest.raises(TypeError, match="cannot convert native jessymem"):
        numba.njit(lambda store: store)(mixed[0].store())


def test_a_store_is_immutable(mixed):
    store = mixed[0].store()
    for array in store:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]
    with pytest.raises(TypeError):
        store[0] = None
    assert len(store) == 1 and isinstance(store, tuple)


def test_a_closed_manager_has_no_store(mixed):
    manager, _ = mixed
    manager.close()
    with pytest.raises(InvalidAccess, match="is closed"):
        manager.store()


# -- compilation -----------------------------------------------------------------------------------

USER = """
import sys
from numba import njit
from jessymem import LayerId, MmapManager
from jessymem.kernels import layer_bytes
{before}
@njit(cache={cache})
def first(store, layer_id):
    return layer_bytes(store, layer_id)[0]
with MmapManager(base_path=sys.argv[1]) as manager:
    manager.load_dimension("D01")
    assert first(manager.store(), LayerId("D01", 0)) == ord("l")
{after}
"""


@pytest.mark.processes
@compiles
@pytest.mark.parametrize(
    "before", ["", "from jessymem.kernels import _jit; assert _jit.promote()"], ids=["", "promoted"]
)
def test_a_users_function_needs_no_preparation(store, before):
    after = "from jessymem.kernels import _jit; print(_jit.is_promoted())"
    code = USER.format(before=before, cache=False, after=after)
    assert run_python(code, str(store)) == str(bool(before))


@pytest.mark.processes
@compiles
def test_a_users_function_is_cached_for_these_sources_alone(store, tmp_path):
    script = tmp_path / "user.py"
    after = "print(sum(first.stats.cache_hits.values()))"
    other = "_jit.digest_of_sources = lambda: 'other'"
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    script.write_text(USER.format(before="", cache=True, after=after))
    hits = []
    for before in ("", "", f"from jessymem.kernels import _jit; {other}"):
        code = f"{before}\n{run}"
        hits.append(run_python(code, str(script), str(store), **cache))
    assert hits == ["0", "1", "0"]


@pytest.mark.processes
@compiles
def test_compiling_and_promoting_at_once_do_not_wait_for_each_other(store):
    code = f"""
import faulthandler, threading
faulthandler.dump_traceback_later(120, exit=True)
from numba import njit
from jessymem import MmapManager
from jessymem.kernels import _jit, layer_bytes
manager = MmapManager(base_path={str(store)!r})
manager.load_dimension("D01")
barrier, answers = threading.Barrier(4), []
def compile_and_read():
    @njit
    def first(store, layer_id):
        return layer_bytes(store, layer_id)[0]
    barrier.wait()
    answers.append(int(first(manager.store(), 1 << 16)))
def promote():
    barrier.wait()
    _jit.promote()
threads = [threading.Thread(target=f) for f in (compile_and_read, promote) * 2]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(answers == [ord("l")] * 2 and _jit.is_promoted())
"""
    assert run_python(code, JESSYMEM_KERNEL_CACHE="0") == "True"


def test_exports():
    assert {function.__name__ for function in FUNCTIONS} <= set(kernels.__all__)
    for name in kernels.__all__:
        assert getattr(kernels, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'layers'"):
        _ = kernels.layers
    assert Place._fields == ("status", "slot", "row", "offset", "size")


# -- other processes -------------------------------------------------------------------------------


def read_all(store):
    return [kernels.layer_bytes(store, each).tobytes() for each in store.layer_ids().tolist()]


def test_a_pickled_store_is_attached_once_while_it_is_held(mixed):
    manager, contents = mixed
    pickled = pickle.dumps(manager.store())
    assert len(pickled) < 2000
    store, again = pickle.loads(pickled), pickle.loads(pickled)
    assert store.directory is again.directory and pickle.dumps(again) == pickled
    # What is only in memory stays behind, and what it lay over is seen again.
    expected = {each: contents[each] for each in contents if each.dimension in (15, 16, 17)}
    expected |= {LayerId(18, layer): b"base %d" % layer for layer in (0, 1, 4)}
    assert dict(zip(store.layer_ids().tolist(), read_all(store), strict=True)) == expected
    assert len(origins()) == 1
    del store, again
    gc.collect()
    assert len(origins()) == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_stores_travel_to_other_processes(tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    manager, contents = mixed_store(tmp_path)
    with manager, multiprocessing.get_context(method).Pool(1) as pool:
        manager.drop_overlay("L18-01")
        manager.discard_proto_dimension("L18-02")
        manager.unload_dimension(18)
        used = manager.get_stats().total_used_bytes
        expected = [contents[LayerId.from_packed(each)] for each in manager.list_layers()]
        answer = pool.apply_async(read_all, (manager.store(),)).get(60)
        assert answer == expected[:-2]  # D19 stays here
        assert manager.get_stats().total_used_bytes == used


def test_a_store_whose_files_were_replaced(mixed, tmp_path):
    manager, _ = mixed
    pickled = pickle.dumps(manager.store())
    builder = RegionBuilder(15, "newer")
    builder.add_layer(0, b"newer")
    builder.build_to_file(region_file(tmp_path, "D15"))
    with pytest.raises(RegionNotFound, match=r"D15: generation 1 .* is gone, generation 2"):
        pickle.loads(pickled)


def test_a_store_made_by_hand_stays_here(mixed):
    store = Store(*mixed[0].store())
    with pytest.raises(TypeError, match="not made by a manager"):
        pickle.dumps(store)


def test_the_tables_of_a_store_are_read_only_for_good(manager):
    store = manager.store()
    for table in (store.directory, manager.access_layer("L20-00").obj):
        assert not table.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            table.flags.writeable = True
    owner = manager.access_layer("L20-00").obj.base
    with pytest.raises(BufferError):
        owner.obj.close()  # under a view
