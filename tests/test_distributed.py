"""Questions to many region files as Dask collections, on threads and on a cluster of processes."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed")
pytest.importorskip("dask.dataframe")

import dask
from click.testing import CliRunner
from distributed import Client, Event, LocalCluster
from support.object_stores import serving

import jessymem.distributed as jd
from jessymem import (
    DimensionNotFound,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
    RemoteError,
)
from jessymem.cli import main
from jessymem.distributed import collections
from jessymem.remote import files as remote_files
from jessymem.remote.cache import FileCache

N_FILES = 12
N_LAYERS = 5


def text_of(place: int, layer: int) -> str:
    return f"file {place} layer {layer} " + "river " * (place + layer)


def write(folder: Path, place: int, extra: str = "") -> Path:
    builder = RegionBuilder(15 + place % 3, f"part {place}")
    for layer in range(N_LAYERS):
        builder.add_layer(
            layer,
            text_of(place, layer) + extra,
            name=f"note {layer}",
            keywords=["even" if layer % 2 == 0 else "odd"],
            depth=layer,
        )
    builder.add_array(9, np.arange(6.0).reshape(2, 3) + place)
    path = folder / f"part-{place:02d}" / "region.mmap"
    builder.build_to_file(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for place in range(N_FILES):
        write(folder, place)
    return folder


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def total(kernel_name="river "):
    return sum(text_of(f, n).count(kernel_name) for f in range(N_FILES) for n in range(N_LAYERS))


def add_up(content, row):
    found = 0
    for at in range(len(content)):
        found += int(content[at])
    return found


# -- what comes back -------------------------------------------------------------------------------


def test_finds_are_those_of_a_manager_in_the_order_of_the_files(folder):
    found = jd.find(folder, "river", task_bytes=2_000)
    assert found.npartitions > 2
    frame = found.compute()
    assert list(frame.columns) == ["url", "layer", "offset"]
    for place in range(N_FILES):
        path = folder / f"part-{place:02d}" / "region.mmap"
        with MmapManager(64, base_path=folder) as manager:
            manager.load_dimension(15 + place % 3, path)
            hits = [(str(hit.layer_id), hit.offset) for hit in manager.find("river")]
        part = frame.loc[[place]]
        assert list(zip(part["layer"], part["offset"], strict=True)) == hits
        assert set(part["url"]) == {f"file://{path}"}


def test_divisions_and_meta_are_known_before_anything_is_read(folder):
    found = jd.find(folder, b"river", task_bytes=2_000)
    assert found.known_divisions
    assert found.divisions[0] == 0
    assert found.divisions[-1] == N_FILES - 1
    computed = found.compute()
    assert computed.dtypes.to_dict() == found.dtypes.to_dict()
    assert computed.index.is_monotonic_increasing
    assert len(found.loc[3].compute()) == len(computed.loc[[3]])


def test_counting(folder):
    counted = jd.count(folder, b"river ").compute()
    assert len(counted) == N_FILES
    assert counted["count"].sum() == total()


def test_scanning(folder):
    scanned = jd.scan(folder, add_up, "i8").compute()
    value = scanned[(scanned["layer"] == "L15-01")].loc[3]["value"]
    assert value == sum(text_of(3, 1).encode())
    assert len(scanned) == N_FILES * (N_LAYERS + 1)


def test_case_words_and_expressions_are_those_of_a_manager(folder):
    path = next(iter(folder.glob("part-*/region.mmap")))
    with MmapManager(base_path=folder, config=MemoryConfig(64, simulation="never")) as manager:
        dimension = int(MmapRegion.from_file(15, path).dimension_id)
        manager.load_dimension(dimension, path)
        for needle, form in (
            (b"RIVER", {"ignore_case": True}),
            ("Layer", {"ignore_case": True, "word": True}),
            (b"rive", {"word": True}),
            (re.compile(rb"layer [0-3]"), {}),
            (re.compile(rb"RIVER (?=r)", re.I), {}),
        ):
            here = [(str(hit.layer_id), hit.offset) for hit in manager.find(needle, **form)]
            frame = jd.find(str(path), needle, **form).compute(scheduler="sync")
            assert list(zip(frame["layer"], frame["offset"], strict=True)) == here
            counted = jd.count(str(path), needle, **form).compute(scheduler="sync")
            assert counted["count"].tolist() == [manager.count(needle, **form)]


def test_keys_tell_needles_and_forms_apart(folder):
    asked = [
        jd.find(str(folder), needle, ignore_case=ignore_case, word=word)
        for needle in (b"river", re.compile(b"river"), re.compile(b"river", re.I))
        for ignore_case in (False, True)
        for word in (False, True)
        if not (isinstance(needle, re.Pattern) and ignore_case)
    ]
    keys = [str(frame.__dask_keys__()) for frame in asked]
    assert len(set(keys)) == len(keys)
    assert str(jd.find(str(folder), re.compile(b"river")).__dask_keys__()) in keys


def test_names_select_as_in_a_manager(folder):
    chosen = jd.select(str(folder), name="note [12]", depth=(2, 9)).compute(scheduler="sync")
    assert set(chosen["name"]) == {"note 2"}
    assert len(chosen) == N_FILES
    brought = jd.layers(str(folder), name="note 1").compute(scheduler="sync")
    assert len(brought) == N_FILES
    assert all(b"layer 1 " in content for content in brought["content"])
    first, again, other = (
        str(jd.select(str(folder), name=name).__dask_keys__()) for name in ("a*", "a*", "b*")
    )
    assert first == again != other


@pytest.mark.parametrize("needle", ["", re.compile("text"), 3])
def test_needles_that_are_none_are_refused_at_once(folder, needle):
    with pytest.raises((TypeError, ValueError)):
        jd.find(str(folder), needle)


def test_selecting_describes_and_reads_no_contents(folder):
    chosen = jd.select(folder, keywords=["even"], depth=(1, 9)).compute()
    assert set(chosen["name"]) == {"note 2", "note 4"}
    assert len(chosen) == 2 * N_FILES
    assert chosen.loc[0]["keywords"].iloc[0] == ["even"]
    arrays = jd.select(folder).compute()
    assert set(arrays["dtype"]) == {"", "float64"}


def test_layers_bring_their_contents(folder):
    found = jd.layers(folder, keywords=["odd"]).compute()
    row = found.loc[4].iloc[1]
    assert (row["name"], row["content"]) == ("note 3", text_of(4, 3).encode())


def test_an_array_of_every_file(folder):
    stacked = jd.array(folder, 9)
    assert stacked.shape == (N_FILES, 2, 3)
    expected = np.stack([np.arange(6.0).reshape(2, 3) + place for place in range(N_FILES)])
    np.testing.assert_array_equal(stacked.compute(), expected)
    (chunk,) = dask.compute(stacked.to_delayed().ravel()[0])
    base = chunk
    while isinstance(base, np.ndarray):
        assert not base.flags.owndata  # it is a view of the file's mapping
        base = base.base
    with pytest.raises(TypeError, match="is no array"):
        jd.array(folder, 1)


def write_with_delta(folder: Path, text: str) -> Path:
    """Write a file, and deltas beside it: with a layer of text, with an array, without layer 1."""
    path = write(folder, 0, "x" * 50_000)
    with MmapManager(64, base_path=folder) as manager:
        manager.load_dimension(15, path)
        manager.create_proto_dimension(15, text, name="late", keywords=["late"])
        manager.create_proto_dimension(15, np.full((2, 3), 7.0), name="array")
        manager.crystallize_dimension(15)
        manager.delete_layer("L15-01")
        manager.crystallize_dimension(15)
    assert list(path.parent.glob("region.d*.mmap"))
    return path


def test_deltas_count_on_this_machine(tmp_path):
    """Whatever is asked: a manager of the same files is who knows."""
    path = write_with_delta(tmp_path, "a new river")
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension(15, path)
        ids = [str(each) for each in manager.list_layers()]
        n_rivers = manager.count("river")
        assert bytes(manager["late"]) == b"a new river"
    assert jd.count(tmp_path, b"river").compute()["count"].sum() == n_rivers
    assert jd.select(tmp_path).compute()["layer"].tolist() == ids
    assert jd.layers(tmp_path).compute()["layer"].tolist() == ids
    assert jd.scan(tmp_path, add_up, np.int64).compute()["layer"].tolist() == ids
    assert jd.select(tmp_path, keywords=["late"]).compute()["name"].tolist() == ["late"]
    assert jd.array(tmp_path, 9).compute().sum() == np.arange(6.0).sum()
    assert (jd.array(tmp_path, 11).compute() == 7.0).all()


# -- which files -----------------------------------------------------------------------------------


def test_globs_paths_and_lists(folder):
    every = jd.count(folder, b"river").compute()
    some = jd.count(f"{folder}/part-0[0-4]/*.mmap", b"river").compute()
    assert list(some["count"]) == list(every["count"][:5])
    paths = [folder / "part-07" / "region.mmap", f"file://{folder}/part-02/region.mmap"]
    listed = jd.count([*paths, paths[0]], b"river").compute()
    assert list(listed["count"]) == [every["count"][7], every["count"][2]]


def test_what_is_not_there_is_said_at_once(tmp_path):
    for urls in (tmp_path / "nothing", f"{tmp_path}/*/region.mmap", tmp_path):
        with pytest.raises(DimensionNotFound, match="at file://"):
            jd.find(urls, b"x")


@pytest.mark.parametrize("arguments", [{"needle": b""}, {"needle": b"x", "config": "big"}])
def test_bad_arguments_are_errors_before_anything_is_computed(folder, arguments):
    with pytest.raises((ValueError, TypeError)):
        jd.find(folder, **arguments)


def test_keys_depend_on_the_files_and_the_question(tmp_path):
    path = write(tmp_path, 0)
    first = jd.find(tmp_path, b"river")
    assert jd.find(tmp_path, b"river")._name == first._name
    assert jd.find(tmp_path, b"sea")._name != first._name
    os.utime(path, ns=(1, 1))
    assert jd.find(tmp_path, b"river")._name != first._name
    scanned = jd.scan(tmp_path, add_up, "i8")
    assert jd.scan(tmp_path, add_up, "i8")._name == scanned._name
    assert jd.scan(tmp_path, lambda content, row: 1, "i8")._name != scanned._name


def test_a_file_that_was_replaced_since_is_an_error_that_names_it(tmp_path):
    write(tmp_path, 0)
    found = jd.find(tmp_path, b"river")
    path = write(tmp_path, 0, "another")
    with pytest.raises(RemoteError, match="by now") as caught:
        found.compute()
    assert str(path) in str(caught.value)


def test_a_file_beyond_the_budget_is_an_error_that_names_it(tmp_path):
    path = write(tmp_path, 0, "x" * (2 * 2**20))
    with pytest.raises(LimitExceeded, match=str(path)):
        jd.find(tmp_path, b"river", config=1).compute()
    assert len(jd.find(tmp_path, b"river", config=32).compute()) == 10


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    path = write(tmp_path, 0)
    raw = bytearray(path.read_bytes())
    raw[80] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(RegionFormatError) as caught:
        jd.count(tmp_path, b"river").compute()
    assert any(str(path) in note for note in caught.value.__notes__)


def test_files_that_are_asked_together_answer_as_each_alone(folder):
    """Those of a task are open at once, as far as they are of other dimensions, and fit."""

    def answers(**options):
        found = [
            jd.find(folder, b"river ", **options),
            jd.find(folder, b"river ", limit=1, **options),
            jd.count(folder, b"river ", **options),
            jd.scan(folder, add_up, np.int64, **options),
            jd.layers(folder, keywords=["odd"], **options),
        ]
        return [each.compute() for each in found]

    for together, alone in zip(answers(), answers(task_bytes=1), strict=True):
        assert together.map(str).equals(alone.map(str))


def test_answers_are_in_the_order_of_the_files_whatever_dimensions_they_are_of(tmp_path):
    places = [2, 0, 4, 1, 3]
    for at, number in enumerate(places):
        builder = RegionBuilder(15 + number, "text")
        for layer in range(number):
            builder.add_layer(layer, f"river {number} ", name=f"of {number}")
        builder.add_layer(9, "sea")
        builder.build_to_file(tmp_path / f"{at}" / "region.mmap")
    expected = [number for number in places for _ in range(number)]
    found = jd.find(tmp_path, b"river").compute()
    assert found.index.tolist() == [at for at, number in enumerate(places) for _ in range(number)]
    assert found["layer"].tolist() == [
        f"L{15 + number}-{layer:02d}" for number in places for layer in range(number)
    ]
    chosen = jd.layers(tmp_path, name="of *").compute()
    assert chosen["name"].tolist() == [f"of {number}" for number in expected]
    assert chosen["content"].tolist() == [f"river {number} ".encode() for number in expected]
    assert jd.count(tmp_path, b"river").compute()["count"].tolist() == places


def test_many_finds_are_counted_file_by_file(folder, monkeypatch):
    from jessymem.distributed import questions

    counts = jd.count(folder, b"river ").compute()
    monkeypatch.setattr(questions, "_FINDS_COUNTED", 3)
    assert jd.count(folder, b"river ").compute().equals(counts)


@pytest.mark.parametrize("name", ["D16", "D15"])
def test_a_folder_may_be_called_as_a_dimension_that_it_is_not(tmp_path, name):
    write(tmp_path, 1).parent.rename(tmp_path / name)  # which is of D16
    assert jd.count(tmp_path, b"river ").compute()["count"].tolist() == [
        sum(text_of(1, layer).count("river ") for layer in range(N_LAYERS))
    ]


def test_what_comes_back_is_of_the_types_that_were_told(folder):
    """Dask is not asked to compare them."""
    questions = [
        lambda needle: jd.find(folder, needle),
        lambda needle: jd.count(folder, needle),
        lambda needle: jd.scan(folder, add_up, np.int64),
        lambda needle: jd.select(folder, keywords=[needle.decode()]),
        lambda needle: jd.layers(folder, keywords=[needle.decode()]),
    ]
    for question in questions:
        for needle in (b"even", b"not there", b"river"):
            frame = question(needle)
            found, told = frame.compute(), frame._meta
            assert found.dtypes.to_dict() == told.dtypes.to_dict()
            assert (found.index.name, found.index.dtype) == ("file", told.index.dtype)


def test_a_task_is_one_step_under_a_name_that_the_dashboard_shows(folder):
    from dask.utils import key_split

    found = jd.find(folder, b"river", task_bytes=2_000)
    graph = dict(found.optimize().__dask_graph__())
    assert len(graph) == found.npartitions > 2
    assert {key_split(key) for key in graph} == {"jessymem-find"}


def test_of_files_that_are_asked_together_the_damaged_one_is_named(tmp_path):
    paths = [write(tmp_path, place) for place in range(3)]
    raw = bytearray(paths[1].read_bytes())
    raw[80] ^= 0xFF
    paths[1].write_bytes(raw)
    with pytest.raises(RegionFormatError) as caught:
        jd.count(tmp_path, b"river").compute()
    assert [str(paths[1]) in note for note in caught.value.__notes__] == [True]


def test_threads_share_one_budget(folder, monkeypatch):
    """At no time more is open than the budget says, what is only kept included."""
    from jessymem.distributed import open_files, tasks

    open_now, most, lock = [0], [0], threading.Lock()
    opened, closed = open_files.OpenFiles.__init__, open_files.OpenFiles.close

    def watched_open(self, files, config):
        opened(self, files, config)
        with lock:
            open_now[0] += self.n_bytes
            most[0] = max(most[0], open_now[0])

    def watched_close(self):
        closed(self)
        with lock:
            open_now[0] -= self.n_bytes

    while open_files.BUDGET.close_oldest():
        pass
    monkeypatch.setattr(open_files.OpenFiles, "__init__", watched_open)
    monkeypatch.setattr(open_files.OpenFiles, "close", watched_close)
    monkeypatch.setattr(tasks, "limit_of", lambda config: 5_000)
    with dask.config.set(scheduler="threads", num_workers=8):
        for _ in range(2):
            counted = jd.count(folder, b"river ", task_bytes=1).compute()
            assert counted["count"].sum() == total()
    assert 0 < most[0] <= 5_000
    assert open_files.BUDGET._n_taken == open_now[0]


def test_files_stay_mapped_for_the_next_question(folder, monkeypatch):
    from jessymem.distributed import open_files

    loads = []
    opened = open_files.OpenFiles.__init__

    def counted_open(self, files, config):
        opened(self, files, config)
        loads.extend(files)

    monkeypatch.setattr(open_files.OpenFiles, "__init__", counted_open)
    with dask.config.set(scheduler="synchronous"):
        first = jd.find(folder, b"river ", task_bytes=1).compute()
        n_loads = len(loads)
        assert n_loads > 0
        again = jd.find(folder, b"river ", task_bytes=1).compute()
        assert again.astype(str).equals(first.astype(str))
        jd.count(folder, b"stone", task_bytes=1).compute()
        assert len(loads) == n_loads


def test_a_file_that_was_replaced_is_mapped_anew(tmp_path):
    with dask.config.set(scheduler="synchronous"):
        write(tmp_path, 0, "zebra ")
        assert jd.count(tmp_path, b"zebra").compute()["count"].sum() == N_LAYERS
        write(tmp_path, 0, "zebra zebra ")
        assert jd.count(tmp_path, b"zebra").compute()["count"].sum() == 2 * N_LAYERS


def test_of_a_file_that_was_replaced_no_older_edition_stays_mapped(tmp_path):
    from jessymem.distributed.open_files import BUDGET

    while BUDGET.close_oldest():
        pass
    before = BUDGET._n_taken
    for n_zebras in range(1, 4):
        path = write(tmp_path, 0, "zebra " * n_zebras)
        for megabytes in (280, 300):  # of one edition both stay
            counted = jd.count(tmp_path, b"zebra", config=megabytes).compute()
            assert counted["count"].sum() == n_zebras * N_LAYERS
        assert BUDGET._n_taken - before == 2 * path.stat().st_size
    while BUDGET.close_oldest():
        pass
    assert BUDGET._n_taken == before and not BUDGET._kept and not BUDGET._same_urls


def test_a_file_that_is_rewritten_where_it_lies_is_found_out(tmp_path):
    path = write(tmp_path, 0, "zebra ")
    with dask.config.set(scheduler="synchronous"):
        counted = jd.count(tmp_path, b"zebra")
        assert counted.compute()["count"].sum() == N_LAYERS
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"zebra", b"tiger"))
        with pytest.raises(RemoteError, match="by now"):
            counted.compute()


def test_a_delta_that_is_rewritten_where_it_lies_is_found_out(tmp_path):
    path = write_with_delta(tmp_path, "a zebra")
    counted = jd.count(tmp_path, b"zebra")
    assert counted.compute()["count"].sum() == 1
    for delta in path.parent.glob("region.d*.mmap"):
        delta.write_bytes(delta.read_bytes().replace(b"zebra", b"tiger"))
    with pytest.raises(RemoteError, match="by now"):
        counted.compute()


# -- a store ---------------------------------------------------------------------------------------


@pytest.fixture
def store(folder, monkeypatch):
    monkeypatch.setattr(remote_files, "FIRST_WAIT_SECONDS", 0.001)
    with serving() as store:
        for path in sorted(folder.glob("*/region.mmap")):
            store.files[f"{path.parent.name}/region.mmap"] = path.read_bytes()
        yield store


def urls_of(store):
    return [store.url + name for name in sorted(store.files)]


def test_a_store_answers_as_the_disk_does(store, folder, tmp_path):
    cache = FileCache(tmp_path / "cache")
    counted = jd.count(urls_of(store), b"river ", cache=cache).compute()
    assert list(counted["count"]) == list(jd.count(folder, b"river ").compute()["count"])
    array = jd.array(urls_of(store), 9, cache=cache).compute()
    np.testing.assert_array_equal(array, jd.array(folder, 9).compute())


def test_selecting_in_a_store_reads_tables_only(store, tmp_path):
    for place in range(3):
        path = write(tmp_path, place, "x" * 200_000)
        store.files[f"long-{place}"] = path.read_bytes()
    urls = [store.url + f"long-{place}" for place in range(3)]
    chosen = jd.select(urls, keywords=["odd"])
    store.requests.clear()
    assert len(chosen.compute()) == 6
    assert store.n_sent <= sum(len(store.files[f"long-{place}"]) for place in range(3)) / 100
    assert len(store.gets()) <= 2 * 3


@pytest.mark.slow
def test_selecting_in_a_thousand_remote_files_reads_a_hundredth_of_them(store, tmp_path):
    content = write(tmp_path, 0, "x" * 200_000).read_bytes()
    store.files = {f"D{place}/region.mmap": content for place in range(15, 1_015)}
    chosen = jd.select(urls_of(store), keywords=["odd"])
    store.requests.clear()
    with dask.config.set(scheduler="threads", num_workers=4):
        assert len(chosen.compute()) == 2_000
    assert store.n_sent <= 1_000 * len(content) / 100


def test_a_file_that_is_replaced_in_a_store_meanwhile_is_one_edition_or_an_error(store, tmp_path):
    counted = jd.count(urls_of(store), b"river", cache=FileCache(tmp_path / "cache"))
    name = sorted(store.files)[3]
    store.files[name] = write(tmp_path, 3, "another").read_bytes()
    with pytest.raises(RemoteError, match=f"{name}.*by now"):
        counted.compute()


def test_a_table_is_of_the_edition_that_was_planned(store, tmp_path):
    chosen = jd.select(urls_of(store), keywords=["even"])
    name = sorted(store.files)[5]
    store.files[name] = write(tmp_path, 5, "another").read_bytes()
    with pytest.raises(RemoteError, match=f"{name}.*by now"):
        chosen.compute()


def test_deltas_in_a_store_are_refused(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    path = write(tmp_path, 0)
    system.pipe("/refused/D15/region.mmap", path.read_bytes())
    system.pipe("/refused/D15/region.d2.mmap", b"")
    with pytest.raises(RegionFormatError, match="fold it"):
        jd.find("memory://refused", b"x")
    system.rm("/refused", recursive=True)


# -- a cluster -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def count_compilations():
    """Count, in a worker, what numba compiles of users' functions."""
    import numba.core.event as events

    class Recorder(events.RecordingListener):
        pass

    recorder = Recorder()
    events.register("numba:compile", recorder)
    globals()["recorder"] = recorder


def compiled_names():
    return [
        str(event.data["dispatcher"].py_func.__name__)
        for _, event in recorder.buffer  # noqa: F821
        if event.is_start
    ]


@pytest.mark.slow
def test_a_kernel_is_compiled_once_in_each_worker(client, folder):
    client.run(count_compilations)
    with dask.config.set(scheduler="distributed"):
        scanned = jd.scan(folder, add_up, "i8", task_bytes=1)
        assert scanned.npartitions == N_FILES
        assert len(scanned.compute()) == N_FILES * (N_LAYERS + 1)
    n_compiled = [names.count("add_up") for names in client.run(compiled_names).values()]
    assert sum(n_compiled) >= 1 == max(n_compiled)


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Sixteen files of one length."""
    folder = tmp_path_factory.mktemp("alike")
    for place in range(16):
        builder = RegionBuilder(20 + place, "alike")
        builder.add_layer(0, b"river " * 200)
        builder.build_to_file(folder / str(builder.dimension_id) / "region.mmap")
    return folder


MIB = 2**20


@pytest.mark.parametrize(
    ("n_bytes", "task_bytes"),
    [
        (0, 64 * MIB),
        (1, 64 * MIB),
        (512 * MIB, 64 * MIB),
        (512 * MIB + 1, 64 * MIB + 1),
        (2_000 * MIB, 250 * MIB),
        (2_048 * MIB, 256 * MIB),
        (2_048 * MIB + 1, 256 * MIB),
        (80 * 256 * MIB, 256 * MIB),
    ],
)
def test_tasks_grow_where_there_are_eight_anyway(n_bytes, task_bytes):
    assert collections._task_bytes(n_bytes) == task_bytes


@pytest.mark.parametrize(
    ("least", "most", "n_tasks"),
    [
        (1, 1, 16),  # of one file, the most that a task is to have
        (1, 3, 8),  # of two files, which make eight
        (3, 4, 6),  # of three files, the least
        (100, 100, 1),
    ],
)
def test_files_are_put_together_by_that_rule(alike, monkeypatch, least, most, n_tasks):
    (n_bytes,) = {path.stat().st_size for path in alike.glob("*/region.mmap")}
    monkeypatch.setattr(collections, "TASK_BYTES", least * n_bytes)
    monkeypatch.setattr(collections, "MAX_TASK_BYTES", most * n_bytes)
    found = jd.find(alike, b"river")
    assert found.npartitions == n_tasks
    assert found.known_divisions and len(found.compute()) == 16 * 200
    assert jd.find(alike, b"river", task_bytes=10**9).npartitions == 1


def test_planning_asks_no_client(alike, monkeypatch):
    """A scheduler that hangs would hold it up, and one with other workers would change the keys."""

    def refuse(*_):
        raise AssertionError("a client was asked")

    monkeypatch.setattr("distributed.default_client", refuse)
    monkeypatch.setattr(Client, "nthreads", refuse)
    expected = jd.find(alike, b"river")._name
    monkeypatch.undo()
    assert jd.find(alike, b"river")._name == expected


@pytest.mark.slow
def test_keys_are_the_same_in_every_process(client, folder):
    """Another process that asks the same of the same files is given what is there already."""

    def keys(folder=folder):
        found = jd.find(folder, b"river"), jd.select(folder, keywords=["odd"])
        return [each._name for each in found]

    expected = keys()
    assert list(client.run(keys).values()) == [expected] * 2


def hold_tasks(dask_worker):
    """Let each task of this worker wait, once it has begun, until it is told to go on."""
    from distributed import Event

    from jessymem.distributed import tasks

    call = tasks.Ask.__call__
    begun = []

    def waiting(self, group):
        begun.append(group.first)
        Event(f"begun {dask_worker.address}").set()
        Event("go on").wait()
        return call(self, group)

    def release():
        tasks.Ask.__call__ = call
        return begun

    tasks.Ask.__call__ = waiting
    tasks.release_tasks = release
    return dask_worker.address


def release_tasks():
    """Undo that; return which tasks have begun."""
    from jessymem.distributed import tasks

    return tasks.release_tasks()


@pytest.fixture
def held(client):
    """Yield the addresses of workers whose tasks wait, once they have begun, for "go on"."""
    Event("go on", client=client).clear()
    yield list(client.run(hold_tasks).values())
    Event("go on", client=client).set()


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_changes_no_answer(client, folder, held):
    expected = jd.find(folder, b"river", task_bytes=1).compute(scheduler="synchronous")
    victim, other = held
    found = client.compute(jd.find(folder, b"river", task_bytes=1))
    assert Event(f"begun {victim}", client=client).wait(60)
    os.kill(client.run(os.getpid, workers=[victim])[victim], signal.SIGKILL)
    Event("go on", client=client).set()
    assert found.result(timeout=120).equals(expected)
    client.run(release_tasks, workers=[other])


@pytest.mark.slow
def test_what_is_cancelled_begins_no_more_and_the_workers_go_on(client, folder, held):
    found = client.compute(jd.find(folder, b"river", task_bytes=1))
    for address in held:
        assert Event(f"begun {address}", client=client).wait(60)
    found.cancel()
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        pass  # what was asked for is forgotten
    Event("go on", client=client).set()
    counted = client.compute(jd.count(folder, b"river ", task_bytes=1)).result(timeout=120)
    assert counted["count"].sum() == total()
    begun = client.run(release_tasks).values()
    # The first of each worker, and those of the count.
    assert sum(map(len, begun)) <= 2 * len(held) + N_FILES < 2 * N_FILES


# -- the command -----------------------------------------------------------------------------------


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result.output


@pytest.mark.slow
def test_the_command_searches_on_workers_of_its_own(folder):
    assert run("find", "river ", "-c", "--workers", "2", "--data", str(folder)) == f"{total()}\n"
    command = "find", "LAYER [34]", "-i", "-e", "-c", "--workers", "2", "--data", str(folder)
    assert run(*command) == f"{2 * N_FILES}\n"
    assert run("find", "lake", "-c", "--workers", "2", "--data", str(folder), exit_code=1) == "0\n"


@pytest.mark.slow
def test_the_command_searches_on_a_cluster_that_runs(client, folder):
    address = client.scheduler.address
    asked = ["--scheduler", address, "--data", str(folder)]
    lines = run("find", "river ", *asked).splitlines()
    assert len(lines) == total()
    found = jd.find(folder, b"river ").compute()
    rows = zip(found["url"], found["layer"], found["offset"], strict=True)
    assert lines == [f"{url}:{layer}:{offset}" for url, layer, offset in rows]
    first = json.loads(run("find", "river ", "--jsonl", "--limit", "1", *asked))
    assert [first["url"], first["layer"], str(first["offset"])] == lines[0].rsplit(":", 2)
