"""`find` and `count` over a manager's layers: what is found where, who works, how it ends."""

from __future__ import annotations

import gc
import pickle
import threading
from concurrent.futures import CancelledError
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.eviction import MIB, content_of, evicted, load_into, path_of
from support.internals import (
    evict,
    make_room_for_blocks,
    mapping_of,
    region_of,
    search_by_kernels,
    set_needles_of_a_job,
    set_search_job,
    set_small_scan_bytes,
    wait_without_polls,
)
from support.processes import PATIENCE_SECONDS, run_python
from support.regions import region_file
from support.search import find_all, hard_cases
from support.stores import POOLS, mixed_store

from jessymem import (
    DimensionId,
    DimensionNotFound,
    Hit,
    Hits,
    InvalidAccess,
    LayerId,
    LimitExceeded,
    MmapManager,
    OutOfBounds,
    RegionBuilder,
)
from jessymem.kernels import _jit
from jessymem.kernels import schema as s
from jessymem.scanning import needles, workers
from jessymem.scanning.needles import Needle
from jessymem.scanning.spans import Spans


@pytest.fixture
def finely(monkeypatch):
    """Cut even small stores into many jobs, done by threads that hand over a few finds each."""
    search_by_kernels(monkeypatch)
    set_small_scan_bytes(monkeypatch, 0)
    set_search_job(monkeypatch, 700)
    set_needles_of_a_job(monkeypatch, 1)
    monkeypatch.setattr(needles, "MAX_HITS_AT_ONCE", 100)


@pytest.fixture
def mixed(tmp_path):
    manager, contents = mixed_store(tmp_path)
    with manager:
        yield manager, contents


def hits_in(contents, needle):
    return [Hit(each, at) for each in sorted(contents) for at in find_all(contents[each], needle)]


NEEDLES = [
    b"base",
    b"x",
    b"learned",
    b"dlearnedl",
    b"\x00\x01\x02\x03\x04",
    b"\xfe\xff\x00",
    b"x" * 60_000,
    b"no such bytes",
    b"|",
]

# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize("needle", NEEDLES, ids=range(len(NEEDLES)))
def test_every_kind_of_layer_is_searched(mixed, needle):
    manager, contents = mixed
    expected = hits_in(contents, needle)
    assert list(manager.find(needle)) == expected
    assert manager.count(needle) == len(expected)


@pytest.mark.parametrize("n_workers", [1, 2, 5])
@pytest.mark.parametrize("needle", NEEDLES, ids=range(len(NEEDLES)))
def test_many_threads_and_jobs_find_the_same(mixed, finely, needle, n_workers):
    manager, contents = mixed
    if _jit.is_disabled() and len(needle) > 1000:
        pytest.skip("too much for plain Python")
    expected = hits_in(contents, needle)
    assert list(manager.find(needle, workers=n_workers)) == expected
    assert manager.count(needle, workers=n_workers) == len(expected)


@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_as_many_threads_as_the_system_lets_start(mixed, finely, monkeypatch, n_threads):
    manager, contents = mixed
    start, started = threading.Thread.start, []

    def refuse_more(thread):
        if len(started) == n_threads:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    expected = hits_in(contents, b"x")
    monkeypatch.setattr(threading.Thread, "start", refuse_more)
    assert list(manager.find(b"x", workers=5)) == expected
    assert len(started) == n_threads
    assert manager.count(b"x", workers=5) == len(expected)
    assert not any(thread.is_alive() for thread in started)


@given(case=hard_cases(), job_bytes=st.integers(1, 2000), capacity=st.integers(1, 50))
@settings(
    max_examples=15 if _jit.is_disabled() else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_stores(memory_path, finely, monkeypatch, case, job_bytes, capacity):
    contents, needle = case
    set_search_job(monkeypatch, job_bytes)
    monkeypatch.setattr(needles, "MAX_HITS_AT_ONCE", capacity)
    layers = {LayerId(20 + i % 2, 3 * i): content for i, content in enumerate(contents)}
    for dimension in {each.dimension for each in layers}:
        builder = RegionBuilder(dimension, "random")
        for each in layers:
            if each.dimension == dimension:
                builder.add_layer(each.layer, layers[each])
        builder.build_to_file(region_file(memory_path, str(dimension)))
    with MmapManager(base_path=memory_path) as manager:
        for dimension in {each.dimension for each in layers}:
            manager.load_dimension(dimension)
        expected = hits_in(layers, needle)
        assert list(manager.find(needle, workers=2)) == expected
        assert manager.count(needle, workers=2) == len(expected)
        n = len(expected) // 2
        assert list(manager.find(needle, workers=2, limit=n)) == expected[:n]


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, np.array, lambda n: n[::-1][::-1]])
def test_needles_come_in_many_forms(mixed, form):
    manager, contents = mixed
    needle = np.frombuffer(b"base", np.uint8) if form is np.array else b"base"
    assert list(manager.find(form(needle))) == hits_in(contents, b"base")


def test_a_string_is_utf8(tmp_path):
    with MmapManager(8, base_path=tmp_path) as manager:
        layer = manager.create_proto_dimension(40, "a na\u00efve r\u00f4le")
        assert list(manager.find("r\u00f4le")) == [(layer, 9)]
        assert manager.count("\u00ef") == 1


def test_dimensions_can_be_chosen(mixed):
    manager, contents = mixed
    chosen = {each: content for each, content in contents.items() if each.dimension in (16, 19)}
    assert list(manager.find(b"x", [19, "D16", DimensionId(19)])) == hits_in(chosen, b"x")
    assert manager.count(b"x", ["D19"]) == 70_000
    assert list(manager.find(b"x", [])) == [] and manager.count(b"x", []) == 0


def test_nothing_is_found_in_an_empty_store(tmp_path):
    with MmapManager(base_path=tmp_path) as manager:
        assert (manager.find(b"x"), manager.count(b"x")) == (manager.find(b"y"), 0)
        assert manager.find("x").array.dtype == s.HIT


def test_nothing_spans_two_layers(tmp_path):
    builder = RegionBuilder("D20", "pair")
    builder.add_layer(0, b"a" * 64 + b"nee")  # the next begins where this one ends, or nearly
    builder.add_layer(1, b"dle")
    builder.build_to_file(region_file(tmp_path, "D20"))
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension(20)
        assert manager.count(b"needle") == manager.count(b"nee\0") == 0
        assert manager.count(b"nee") == manager.count(b"dle") == 1


def test_a_batch_knows_the_names_of_its_layers(tmp_path):
    builder = RegionBuilder("D20", "named")
    builder.add_layer(3, b"needle", name="three")
    builder.add_layer(7, b"needle needle")
    builder.add_layer(9, b"no", name="nine")
    builder.build_to_file(region_file(tmp_path, "D20"))
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension(20)
        manager.create_proto_dimension(21, b"needle", name="learned")
        manager.overlay_layer("L20-09", b"needle")
        (batch,) = manager.find_batches(b"needle")
        layers = dict.fromkeys(batch.array["layer"].tolist())
        named = {str(LayerId.from_packed(each)): batch.name(each) for each in layers}
    assert named == {"L20-03": "three", "L20-07": "", "L20-09": "nine", "L21-00": "learned"}


# -- the first of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 2, 99, 100, 101, 1000, 10**6])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_a_limit_keeps_the_first_in_order(mixed, finely, limit, n_workers):
    manager, contents = mixed
    expected = hits_in(contents, b"e")
    assert list(manager.find(b"e", limit=limit, workers=n_workers)) == expected[:limit]


@pytest.mark.parametrize("small", [False, True])
def test_a_limit_ends_the_scan(mixed, finely, monkeypatch, small):
    manager, _ = mixed
    set_small_scan_bytes(monkeypatch, 2**30 if small else 0)
    wait_without_polls(monkeypatch)  # nobody has to wait for a poll
    first, told = threading.Event(), []
    search_on = needles.search.search_on

    def search_after_the_first(spans, needle, search, stop):
        if search["span"][0] > 2:
            first.wait()
        return search_on(spans, needle, search, stop)

    def progress(*numbers):
        told.append(numbers)
        first.set()

    monkeypatch.setattr(needles.search, "search_on", search_after_the_first)
    assert len(manager.find(b"\x01", limit=5, workers=2, progress=progress)) == 5
    assert told[0][0] < told[0][1]
    assert not small or len(told) == 1


@pytest.mark.parametrize("limit", [-1, 1.5, "3", True])
def test_what_is_no_limit(mixed, limit):
    with pytest.raises((ValueError, TypeError), match="limit"):
        mixed[0].find(b"x", limit=limit)


# -- hits ------------------------------------------------------------------------------------------


def test_hits_are_a_sequence_over_an_array(mixed):
    manager, contents = mixed
    hits, expected = manager.find(b"base"), hits_in(contents, b"base")
    assert isinstance(hits, Hits) and len(hits) == len(expected) > 2
    assert list(hits) == expected == [hits[i] for i in range(len(hits))]
    assert hits[-1] == expected[-1] and type(hits[0].layer_id) is LayerId
    assert hits[0] in hits and hits.index(hits[1]) == 1 and Hit(LayerId(1, 1), 0) not in hits
    assert isinstance(hits[1:], Hits) and list(hits[::-1]) == expected[::-1]
    assert hits == manager.find(b"base") != hits[1:] and hits != expected
    assert pickle.loads(pickle.dumps(hits)) == hits
    with pytest.raises(IndexError):
        hits[len(hits)]
    assert hits.array["layer"].tolist() == [int(layer) for layer, _ in expected]
    assert hits.array["offset"].tolist() == [at for _, at in expected]
    with pytest.raises(ValueError, match="read-only"):
        hits.array["offset"] = 0


def test_hits_show_the_first_few(mixed):
    manager, _ = mixed
    assert repr(manager.find(b"base 1")) == "<1 hits: L18-01+0>"
    assert repr(manager.find(b"x", ["D19"])) == "<70,000 hits: L19-05+0, L19-05+1, L19-05+2, ...>"
    assert repr(manager.find(b"nowhere")) == "<0 hits>"


def test_hits_outlive_the_manager(mixed):
    manager, contents = mixed
    hits = manager.find(b"base")
    manager.close()
    assert list(hits) == hits_in(contents, b"base")


# -- wrong arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["find", "count"])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((b"",), {}, ValueError, "at least one byte"),
        (("",), {}, ValueError, "at least one byte"),
        ((7,), {}, TypeError, "a needle is bytes, a string or a pattern, not int"),
        ((None,), {}, TypeError, "a needle is bytes, a string or a pattern, not NoneType"),
        ((b"x", b"D15"), {}, TypeError, "a dimension is a number or text"),
        ((b"x", "L15-00"), {}, ValueError, "not a dimension"),
        ((b"x", [0]), {}, ValueError, "1 to 65535"),
        ((b"x", ["L15-00"]), {}, ValueError, "not a dimension"),
        ((b"x",), {"workers": 0}, ValueError, "at least 1"),
        ((b"x",), {"workers": 1.0}, TypeError, "workers"),
        ((b"x",), {"progress": 3}, TypeError, "progress"),
        ((b"x",), {"cancel": True}, TypeError, "is_set"),
    ],
)
def test_wrong_arguments(mixed, verb, arguments, options, error, message):
    with pytest.raises(error, match=message):
        getattr(mixed[0], verb)(*arguments, **options)


def test_one_dimension_needs_no_list(mixed):
    manager = mixed[0]
    for one in ("D15", 15, DimensionId(15)):
        assert manager.find(b"a", one) == manager.find(b"a", [15])
        assert manager.count(b"\0", dimensions=one) == manager.count(b"\0", [15]) > 0


def test_a_dimension_that_is_not_loaded(mixed):
    for verb in (mixed[0].find, mixed[0].count):
        with pytest.raises(DimensionNotFound, match="D02 is not loaded") as caught:
            verb(b"x", [15, 2])
        assert caught.value.dimension == 2


def test_a_closed_manager(mixed):
    manager, _ = mixed
    manager.close()
    for verb in (manager.find, manager.count):
        with pytest.raises(InvalidAccess, match="is closed"):
            verb(b"x")


def test_a_row_that_was_changed_in_its_file(mixed, tmp_path):
    manager, contents = mixed
    region = region_of(manager, 15)
    row_offset = region.layout.rows[3:].ctypes.data - region.data.ctypes.data
    with (tmp_path / "D15" / "region.mmap").open("r+b") as file:
        file.seek(row_offset)
        file.write(np.array([0, 10**9], "<u8").tobytes())
    for verb in (manager.find, manager.count):
        with pytest.raises(OutOfBounds, match="layer 3 of D15"):
            verb(b"x")
    assert manager.count(b"base", [18]) == len(hits_in(contents, b"base"))


# -- who works, who watches ------------------------------------------------------------------------


def scan_threads():
    return [each.name for each in threading.enumerate() if each.name.startswith("jessymem-scan")]


def test_small_scans_make_no_thread(mixed, monkeypatch):
    monkeypatch.setattr(workers, "Thread", None)
    assert mixed[0].count(b"x", ["D16"], workers=8) == 40


def test_threads_are_gone_afterwards(mixed, finely, monkeypatch):
    start, started = threading.Thread.start, []
    monkeypatch.setattr(threading.Thread, "start", lambda each: (started.append(each), start(each)))
    mixed[0].count(b"x", workers=3)
    assert len(started) >= 3 and scan_threads() == []


def test_as_many_threads_as_cpus(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {1, 4, 7}, raising=False)
    assert workers.Workers(None, None, None).n_workers == 3
    monkeypatch.delattr(workers.os, "sched_getaffinity")
    monkeypatch.setattr(workers.os, "cpu_count", lambda: None)
    assert workers.Workers(None, None, None).n_workers == 1


@pytest.mark.parametrize("n_workers", [1, 4])
@pytest.mark.parametrize("verb", ["find", "count"])
@pytest.mark.parametrize("small", [False, True])
def test_progress_rises_to_all_bytes(mixed, finely, monkeypatch, verb, n_workers, small):
    manager, contents = mixed
    set_small_scan_bytes(monkeypatch, 2**30 if small else 0)
    told, caller = [], threading.get_ident()

    def progress(n_done, n_total):
        assert threading.get_ident() == caller
        told.append((n_done, n_total))

    getattr(manager, verb)(b"x", workers=n_workers, progress=progress)
    total = sum(map(len, contents.values()))
    assert {n_total for _, n_total in told} == {total}
    done = [n_done for n_done, _ in told]
    assert done == sorted(done) and done[-1] == total and (not small or len(done) > 50)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("small", [False, True])
def test_what_progress_raises_ends_the_scan(mixed, finely, monkeypatch, error, small):
    manager, _ = mixed
    set_small_scan_bytes(monkeypatch, 2**30 if small else 0)
    mapped = mapping_of(manager, 15)
    told = []

    def progress(*numbers):
        told.append(numbers)
        raise error("enough")

    with pytest.raises(error, match="enough") as caught:
        manager.find(b"x", workers=3, progress=progress)
    assert len(told) == 1 and scan_threads() == []
    manager.close()  # and what is still held is the error
    gc.collect()
    assert mapped() is None and caught.value is not None


@pytest.mark.parametrize("small", [False, True])
def test_a_scan_can_be_cancelled(mixed, finely, monkeypatch, small):
    manager, contents = mixed
    set_small_scan_bytes(monkeypatch, 2**30 if small else 0)
    event, told = threading.Event(), []

    def progress(*numbers):
        told.append(numbers)
        event.set()

    for verb in (manager.find, manager.count):
        event.clear()
        told.clear()
        with pytest.raises(CancelledError, match="cancelled"):
            verb(b"x", workers=2, progress=progress, cancel=event)
        assert len(told) == 1 and scan_threads() == []
    with pytest.raises(CancelledError):
        manager.count(b"x", cancel=event)  # before it began
    assert len(told) == 1
    event.clear()
    assert manager.count(b"base", cancel=event) == len(hits_in(contents, b"base"))


def test_cancelling_does_not_wait_for_a_job(mixed, finely, monkeypatch):
    """The caller is told within a poll although the job goes on until it looks at the stop."""
    manager, _ = mixed
    event, stopped = threading.Event(), []

    def search_on(spans, needle, search, stop):
        event.set()
        while not stop[0]:
            pass
        stopped.append(True)
        return s.OK

    monkeypatch.setattr(needles.search, "search_on", search_on)
    with pytest.raises(CancelledError):
        manager.count(b"x", workers=2, cancel=event)
    assert stopped and scan_threads() == []


def test_an_error_in_a_thread_comes_out(mixed, finely, monkeypatch):
    def search_on(*_):
        raise MemoryError("no more")

    monkeypatch.setattr(needles.search, "search_on", search_on)
    with pytest.raises(MemoryError, match="no more"):
        mixed[0].count(b"x", workers=2)
    assert scan_threads() == []


def test_jobs_cover_every_byte_once():
    lengths = [0, 5, 1000, 0, 3, 64, 0]
    rows = np.zeros(len(lengths), s.SPAN)
    rows["n_bytes"] = lengths
    spans = Spans(rows, ())
    for n_bytes in (1, 7, 64, 100, 10**6):
        for is_whole in (False, True):
            jobs = list(spans.jobs(1, (n_bytes, n_bytes), is_whole=is_whole))
            assert sum(job.n_bytes for job in jobs) == sum(lengths)
            assert (jobs[0].span, jobs[0].at) == (0, 0)
            assert jobs[-1][2:4] == (len(lengths), 0)
            for before, after in pairwise(jobs):
                assert before[2:4] == after[:2]
                assert before[:2] < after[:2] and (not is_whole or after.at == 0)
            assert n_bytes < 10**6 or len(jobs) == 1
    assert len(list(spans.jobs(5, (1, 10**6), is_whole=False))) in (5, 6)
    assert list(Spans(rows[:0], ()).jobs(10, (1, 10), is_whole=True)) == []


# -- which bytes are compared first ----------------------------------------------------------------


def aimed(needle, contents):
    found = Needle(needle)
    arrays = [np.frombuffer(each, np.uint8) for each in contents]
    rows = np.zeros(len(arrays), s.SPAN)
    rows["address"] = [array.ctypes.data for array in arrays]
    rows["n_bytes"] = [len(array) for array in arrays]
    found.aim_at(Spans(rows, ()))
    return bytes(found.record["values"][0].astype(np.uint8)), found.record["offsets"][0].tolist()


def test_the_bytes_that_are_rare_in_the_layers_are_compared_first():
    text = [b"eeee tttt", b"e" * 5000 + b"t" * 100 + b"aa"]
    assert aimed(b"tetaeq", text) == (b"qat", [5, 3, 0])
    others = [b"q" * 300 + b"e" * 100 + b"t" * 9]
    assert aimed(b"tetaeq", others) == (b"ate", [3, 0, 1])


@pytest.mark.parametrize(
    ("needle", "offsets"),
    [(b"a", {0}), (b"ab", {0, 1}), (b"aa", {0, 1}), (b"aba", {0, 1, 2}), (b"aaaaaaa", {0, 3, 6})],
)
def test_short_needles_are_compared_whole_and_equal_bytes_far_apart(needle, offsets):
    assert set(aimed(needle, [b"abc"])[1]) == offsets


# -- memory ----------------------------------------------------------------------------------------


def test_who_scans_is_a_reader_and_so_is_each_worker(mixed, finely, monkeypatch):
    manager, _ = mixed
    barrier = threading.Barrier(3)

    class Stop:
        """What workers ask within, before each job: all three are at it together."""

        def __init__(self):
            self.value = 0
            self.threads = set()

        def __getitem__(self, at):
            thread = threading.get_ident()
            if thread not in self.threads:
                self.threads.add(thread)
                barrier.wait(PATIENCE_SECONDS)
            return self.value

        def __setitem__(self, at, value):
            self.value = value

    init = workers._JobQueue.__init__

    def watched(queue, work, jobs, n_workers, stop, *rest):
        init(queue, work, jobs, n_workers, Stop(), *rest)

    monkeypatch.setattr(workers._JobQueue, "__init__", watched)
    manager.count(b"x", workers=3)
    assert manager.get_stats().peak_concurrent_readers == 4


def test_a_scan_is_an_access_of_each_of_its_dimensions(tmp_path):
    with load_into(tmp_path, [20, 21, 22], 5, policy="lru", pool_configs=POOLS) as manager:
        manager.count(b"x", [20, 22])
        evict(manager, 21)  # the one that was not read since


def test_what_was_evicted_is_mapped_again(tmp_path):
    with load_into(tmp_path, [20, 21, 22], 5, pool_configs=POOLS) as manager:
        evict(manager, 20)
        needle = content_of(20, 0)[1000:1010]
        assert list(manager.find(needle)) == [(LayerId(20, 0), 1000)]
        assert evicted(manager) == [] and manager.get_stats().reloads == 1


@pytest.mark.parametrize("n_mib", [3, 1])
def test_a_store_larger_than_the_budget_is_searched_one_after_the_other(tmp_path, n_mib):
    numbers = [20, 21, 22, 23, 24]
    with load_into(tmp_path, numbers, n_mib, pool_configs=[(1, 4096)]) as manager:
        assert len(evicted(manager)) >= 2
        told = []
        needle = content_of(22, 0)[5:25]
        assert list(manager.find(needle)) == [(LayerId(22, 0), 5)]
        found = manager.find(b"ab", progress=lambda *numbers: told.append(numbers))
        contents = {LayerId(n, layer): content_of(n, layer) for n in numbers for layer in range(3)}
        assert list(found) == hits_in(contents, b"ab")
        assert manager.count(b"ab") == len(found)
        assert told[-1][0] == told[-1][1] == sum(map(len, contents.values()))
        assert list(manager.find(b"ab", limit=3)) == hits_in(contents, b"ab")[:3]
        n_found = 0
        for batch in manager.find_batches(b"ab"):
            n_found += len(batch)
            del batch  # it holds its dimension
        assert n_found == len(found)
        assert manager.get_stats().peak_usage_bytes <= n_mib * MIB


def test_an_evicted_dimension_whose_file_is_gone(tmp_path):
    with load_into(tmp_path, [20, 21], 3, pool_configs=[(1, 4096)]) as manager:
        evict(manager, 20)
        path_of(tmp_path, 20).unlink()
        with pytest.raises(DimensionNotFound, match="D20"):
            manager.count(b"x")
        assert manager.count(content_of(21, 1)[:8], [21]) == 1


def test_no_room_for_one_that_was_evicted(tmp_path):
    with load_into(tmp_path, [20, 21, 22, 23], 3, pool_configs=[(1, 4096)]) as manager:
        assert evicted(manager) == [20]
        for number in (21, 22, 23):
            manager.pin(number)
        with pytest.raises(LimitExceeded, match="D20"):
            manager.count(b"x")
        assert manager.count(content_of(21, 1)[:8], [21]) == 1


def test_others_may_go_while_some_are_scanned(mixed, finely):
    """A scan holds what it scans, and nothing else."""
    manager, contents = mixed
    gone = mapping_of(manager, 15)
    held = mapping_of(manager, 16)
    seen = []

    def progress(n_done, n_total):
        if not seen:
            manager.unload_dimension(15)
            manager.unload_dimension(16)
            gc.collect()
            seen.append((gone() is None, held() is None))

    chosen = {each: content for each, content in contents.items() if each.dimension == 16}
    found = manager.find(b"\x07", [16], workers=2, progress=progress)
    assert list(found) == hits_in(chosen, b"\x07")
    assert seen == [(True, False)]
    gc.collect()
    assert held() is None
    assert manager.get_stats().waiting_bytes == 0


def test_what_is_scanned_is_not_evicted_meanwhile(tmp_path, finely):
    with load_into(tmp_path, [20, 21, 22], 4, policy="lru", pool_configs=[(1, 4096)]) as manager:
        seen = []

        def progress(n_done, n_total):
            if not seen:
                manager.access_layer(LayerId(21, 0))
                manager.access_layer(LayerId(22, 0))
                make_room_for_blocks(manager, MIB)
                seen.extend(evicted(manager))

        manager.count(b"x", [20], workers=2, progress=progress)
        assert seen == [21, 22]  # not the one that was read least


def test_scans_beside_a_writer_see_old_or_new(tmp_path, finely):
    """Every scan is of one state: each edition of the dimension has its own number of finds."""
    base = tmp_path / "base"
    paths = []
    for edition in range(4):
        builder = RegionBuilder("D20", f"edition {edition}")
        for layer in range(5 + edition):
            builder.add_layer(layer, b"-".join([b"needle"] * 40) + b"%d" % edition)
        paths.append(tmp_path / f"{edition}.mmap")
        builder.build_to_file(paths[-1])
    with MmapManager(64, base_path=base) as manager:
        manager.load_dimension(20, paths[0])
        manager.create_proto_dimension(21, b"needle")
        done, seen, errors = threading.Event(), set(), []

        def scan():
            try:
                while not done.is_set():
                    seen.add(manager.count(b"needle", workers=2))
                    hits = manager.find(b"needle", workers=2)
                    per_layer = np.unique(hits.array["layer"], return_counts=True)[1].tolist()
                    assert per_layer[:-1] in [[], *([40] * n for n in range(5, 9))]
                    assert per_layer[-1] == 1
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=scan)
        thread.start()
        try:
            for i in range(60):
                manager.unload_dimension(20)
                manager.load_dimension(20, paths[i % 4])
                manager.update_proto_dimension("L21-00", b"needle" + b"." * i)
        finally:
            done.set()
            thread.join()
    assert errors == []
    assert seen <= {1, 201, 241, 281, 321} and seen & {201, 241, 281, 321}
    gc.collect()
    assert manager.get_stats().total_allocated_bytes == 0


# -- tiers -----------------------------------------------------------------------------------------


def test_a_small_scan_needs_no_numba(store):
    code = f"""
import sys
from jessymem import MmapManager
with MmapManager(base_path={str(store)!r}) as manager:
    manager.load_all()
    print(manager.count("emotion", ["D01"]), len(manager.find("layer 3", ["D01"])), end=" ")
print("numba" in sys.modules)
"""
    assert run_python(code) == "10 4 False"


@pytest.mark.processes
@pytest.mark.skipif(_jit.is_disabled(), reason="nothing is compiled")
def test_a_large_one_compiles():
    code = """
from jessymem import MmapManager
from jessymem.kernels import _jit
with MmapManager(base_path="nowhere") as manager:
    manager.create_proto_dimension(40, b"a" * (2**23 + 2**17))
    print(manager.count(b"a"), _jit.is_promoted(_jit.SEARCHING))
"""
    assert run_python(code) == f"{2**23 + 2**17} True"
