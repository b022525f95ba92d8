"""Files behind URLs: ranges, the cache, and stores on bad days."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest
from support.processes import needs_fork, with_support

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

from support.object_stores import serving

from jessymem import (
    DimensionNotFound,
    LayerRef,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
    RegionIOError,
    RegionNotFound,
    RemoteError,
)
from jessymem.osmem import is_url
from jessymem.regions.remote import read_whole_table
from jessymem.remote import files as remote_files
from jessymem.remote.cache import FileCache
from jessymem.remote.files import RemoteFile

NAME = "D15/region.mmap"


def bytes_of(builder):
    region = builder.build_to_memory()
    return bytes(region.read_content(0, region.size))


def content_of(n_layers=8, n_bytes=100_000, text="river "):
    """Return a region file's bytes."""
    builder = RegionBuilder("D15", "Notes")
    for number in range(n_layers):
        content = (f"{number} " + text) * (n_bytes // len(text))
        builder.add_layer(number, content[:n_bytes], name=f"note {number}", keywords=["water"])
    return bytes_of(builder)


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(remote_files, "FIRST_WAIT_SECONDS", 0.001)
    with serving() as store:
        store.files[NAME] = content_of()
        yield store


@pytest.fixture
def cache(tmp_path):
    return FileCache(tmp_path / "cache", 10 * 2**20)


def open_region(store, cache):
    return MmapRegion.from_url(store.url + NAME, cache=cache)


def entries_in(cache):
    return [each for each in cache.directory.iterdir() if each.suffix == ".mmap"]


def partial_in(cache):
    return [each for each in cache.directory.iterdir() if each.suffix == ".part"]


# -- whole files -----------------------------------------------------------------------------------


def test_a_file_is_fetched_once_and_every_byte_is_the_store_s(store, cache):
    first = open_region(store, cache)
    assert bytes(first.read_content(0, first.size)) == store.files[NAME]
    n_asked = len(store.gets())
    second = open_region(store, cache)
    assert second.path == first.path
    assert len(store.gets()) == n_asked


def test_another_edition_is_another_entry_and_what_is_held_stays(store, cache):
    old = open_region(store, cache)
    kept = old.read_content(0, old.size)
    before = store.files[NAME]
    store.files[NAME] = content_of(text="sea ")
    new = open_region(store, cache)
    assert bytes(new.read_content(0, new.size)) == store.files[NAME]
    assert bytes(kept) == before
    assert len(entries_in(cache)) == 2


def test_a_store_without_editions_is_asked_each_time(store, cache):
    store.has_tags = False
    open_region(store, cache)
    n_asked = len(store.gets())
    open_region(store, cache)
    assert len(store.gets()) == 2 * n_asked


def test_the_dimension_may_be_told_and_must_be_the_file_s_then(store, cache):
    assert MmapRegion.from_url(store.url + NAME, 15, cache=cache).dimension_id == 15
    with pytest.raises(RegionFormatError, match="dimension_id"):
        MmapRegion.from_url(store.url + NAME, 16, cache=cache)


def test_files_of_this_machine_are_mapped_where_they_lie(tmp_path, cache):
    path = tmp_path / "region.mmap"
    path.write_bytes(content_of())
    assert MmapRegion.from_url(f"file://{path}", cache=cache).path == path
    assert not cache.directory.exists()


def test_the_mapping_holds_its_entry_and_what_nobody_holds_goes(store, tmp_path):
    cache = FileCache(tmp_path / "cache", len(store.files[NAME]) * 3 // 2)
    region = open_region(store, cache)
    view = region.read_content(0, 10)
    del region
    store.files["other"] = content_of(text="lake ")
    with pytest.raises(RegionIOError, match="in use") as caught:
        MmapRegion.from_url(store.url + "other", cache=cache)
    assert str(caught.value).count("bytes")
    del view, caught
    gc.collect()
    MmapRegion.from_url(store.url + "other", cache=cache)
    assert len(entries_in(cache)) == 1


def test_the_longest_unused_goes_first(store, tmp_path):
    cache = FileCache(tmp_path / "cache", len(store.files[NAME]) * 5 // 2)
    for name in ("first", "second", "third"):
        store.files[name] = content_of(text=name)
    for name in ("first", "second"):
        del_me = MmapRegion.from_url(store.url + name, cache=cache)
        del del_me
    gc.collect()
    for at, path in enumerate(sorted(entries_in(cache), key=lambda path: path.stat().st_atime_ns)):
        os.utime(path, ns=(at, path.stat().st_mtime_ns))
    again = MmapRegion.from_url(store.url + "first", cache=cache).path
    gc.collect()
    MmapRegion.from_url(store.url + "third", cache=cache)
    assert again in entries_in(cache)
    assert len(entries_in(cache)) == 2


# -- bad days --------------------------------------------------------------------------------------


def failing(n_times, answer):
    """Return what goes wrong so many times and then no more."""
    left = [n_times]

    def on_get(store, name, sent):
        if left[0]:
            left[0] -= 1
            return answer(sent)
        return sent

    return on_get


TROUBLES = {
    "unavailable": lambda sent: 503,
    "too many": lambda sent: 429,
    "truncated": lambda sent: sent[: len(sent) // 2],
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_passes_is_asked_again(trouble, store, cache):
    store.on_get = failing(2, TROUBLES[trouble])
    region = open_region(store, cache)
    assert bytes(region.read_content(0, region.size)) == store.files[NAME]


@pytest.mark.parametrize("trouble", [*TROUBLES, "forbidden"])
def test_what_stays_is_an_error_with_url_range_and_cause(trouble, store, cache):
    answer = TROUBLES.get(trouble, lambda sent: 403)
    store.on_get = failing(1_000, answer)
    with pytest.raises(RemoteError, match="cannot read bytes 0 to") as caught:
        open_region(store, cache)
    assert caught.value.url == store.url + NAME
    assert (caught.value.start, caught.value.stop) == (0, len(store.files[NAME]))
    assert caught.value.__cause__ is not None
    assert (caught.value.n_tries == 1) == (trouble == "forbidden")
    assert not entries_in(cache)
    assert not partial_in(cache)


@pytest.mark.parametrize("n_times", [2, 1_000])
def test_a_store_that_does_not_answer_in_time_is_asked_again(n_times, store, cache):
    """How long it may take is told to fsspec."""
    import aiohttp

    go_on = threading.Event()

    def wait(sent):
        go_on.wait()
        return sent

    store.on_get = failing(n_times, wait)
    options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=0.2)}}
    url = store.url + NAME
    try:
        if n_times == 2:
            region = MmapRegion.from_url(url, storage_options=options, cache=cache)
            assert bytes(region.read_content(0, region.size)) == store.files[NAME]
            return
        with pytest.raises(RemoteError, match="cannot read bytes 0 to") as caught:
            MmapRegion.from_url(url, storage_options=options, cache=cache)
        assert caught.value.n_tries == remote_files.N_TRIES
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert not entries_in(cache)
        assert not partial_in(cache)
    finally:
        go_on.set()


def test_other_bytes_than_those_that_were_summed_up_are_never_mapped(store, cache):
    middle = len(store.files[NAME]) // 2
    store.on_get = lambda store, name, sent: sent[:middle] + b"!" + sent[middle + 1 :]
    with pytest.raises(RegionFormatError, match=f"{store.url}{NAME}.*content_xxh3"):
        open_region(store, cache)
    assert not entries_in(cache)
    assert not partial_in(cache)


def test_a_file_that_is_replaced_while_it_is_fetched_is_named_with_both_editions(store, cache):
    def replace(store, name, sent):
        store.files[name] = content_of(text="replaced ")
        return sent

    store.on_get = replace
    with pytest.raises(RemoteError, match=r"it was ETag .* and is ETag .* by now"):
        open_region(store, cache)
    assert not entries_in(cache)


def test_a_store_without_ranges_is_refused(store, cache):
    store.has_ranges = False
    with pytest.raises(RemoteError):
        read_whole_table(RemoteFile.of(store.url + NAME))


def test_what_is_not_there_is_said_at_once(store, cache):
    with pytest.raises(RemoteError, match="cannot look at") as caught:
        MmapRegion.from_url(store.url + "nothing", cache=cache)
    assert caught.value.n_tries == 1


def test_a_cache_that_cannot_be_made_is_named(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RegionIOError, match=r"cannot make .*file"):
        open_region(store, FileCache(tmp_path / "file" / "cache"))


@pytest.mark.parametrize("url", ["", "a/b", "C://x", "://", "D15", 5, None])
def test_not_everything_is_a_url(url):
    assert not is_url(url)


# -- tables ----------------------------------------------------------------------------------------


def test_two_requests_tell_all_but_the_contents(store):
    store.files[NAME] = content_of(n_layers=200, n_bytes=10_000)
    file = RemoteFile.of(store.url + NAME)
    store.requests.clear()
    table = read_whole_table(file)
    assert len(store.gets()) == 2
    assert store.n_sent < len(store.files[NAME]) / 50
    assert table.metadata.layers[7].name == "note 7"
    assert len(table.metadata.layers) == 200


def test_a_table_is_what_the_whole_file_says(store, cache):
    whole = open_region(store, cache)
    table = read_whole_table(RemoteFile.of(store.url + NAME))
    told, expected = table.metadata, whole.metadata
    assert [layer.name for layer in told.layers] == [layer.name for layer in expected.layers]
    assert [layer.size for layer in told.layers] == [layer.size for layer in expected.layers]
    assert (told.total_size, told.generation) == (expected.total_size, expected.generation)


def test_the_entries_of_a_plain_file_are_followed_to_their_end(store):
    builder = RegionBuilder("D15", "Notes")
    for number in range(3_000):
        builder.add_layer(number, b"x" * 50, keywords=["river", "k" * 40])
    content = bytearray(bytes_of(builder))
    content[100:256] = bytes(156)  # no extension: a plain file
    store.files[NAME] = bytes(content)
    table = read_whole_table(RemoteFile.of(store.url + NAME))
    assert not table.layout.is_extended
    assert len(table.rows) == 3_000
    assert table.keywords_of(2_999) == ("river", "k" * 40)


# -- processes -------------------------------------------------------------------------------------

FETCH = """
import sys
from jessymem import MmapRegion
from jessymem.remote.cache import FileCache
region = MmapRegion.from_url(sys.argv[1], cache=FileCache(sys.argv[2]))
print(region.size, flush=True)
"""


def start_fetch(store, cache):
    command = [sys.executable, "-c", FETCH, store.url + NAME, str(cache.directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=with_support({}))


def test_processes_that_want_the_same_fetch_it_once(store, cache):
    fetches = [start_fetch(store, cache) for _ in range(3)]
    for fetch in fetches:
        assert fetch.communicate(timeout=60)[0] == f"{len(store.files[NAME])}\n"
    assert len(store.gets()) == 1


@needs_fork
def test_a_killed_fetch_leaves_nothing_that_is_taken_for_a_file(store, cache):
    fetches = []

    def kill(store, name, sent):
        fetches[0].send_signal(signal.SIGKILL)
        fetches[0].wait()
        store.on_get = lambda store, name, sent: sent
        return sent

    store.on_get = kill
    fetches.append(start_fetch(store, cache))
    fetches[0].communicate(timeout=60)
    assert not entries_in(cache)
    region = open_region(store, cache)
    assert bytes(region.read_content(0, region.size)) == store.files[NAME]
    assert not partial_in(cache)


def test_what_a_killed_fetch_of_the_same_file_left_takes_no_room(store, tmp_path):
    cache = FileCache(tmp_path / "cache", len(store.files[NAME]) * 3 // 2)
    cache.directory.mkdir()
    file = RemoteFile.of(store.url + NAME)
    (cache.directory / f"{file.key()}.part").write_bytes(store.files[NAME])
    assert open_region(store, cache).size == len(store.files[NAME])


def test_a_partial_file_of_a_dead_process_is_swept_by_any_fetch(store, cache):
    cache.directory.mkdir()
    (cache.directory / f"{'0' * 32}.part").write_bytes(b"half")
    open_region(store, cache)
    assert not partial_in(cache)


def test_without_fsspec_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"jessymem\[remote\]"):
        MmapRegion.from_url("memory://b/region.mmap")


@pytest.mark.parametrize("url", [None, b"memory://b/region.mmap", ["memory://b"], 7])
def test_what_is_no_text_is_no_url(url):
    with pytest.raises(TypeError, match="a URL is a str"):
        MmapRegion.from_url(url)


def test_a_directory_is_no_region_file(tmp_path, cache):
    with pytest.raises((RegionIOError, DimensionNotFound)):
        MmapRegion.from_url(f"file://{tmp_path}", cache=cache)


# -- references ------------------------------------------------------------------------------------


def test_a_reference_leads_to_a_url(store, tmp_path, monkeypatch):
    monkeypatch.setenv("JESSYMEM_CACHE_DIR", str(tmp_path / "cache"))
    edition = MmapRegion.from_url(store.url + NAME).edition
    ref = LayerRef(store.url + NAME, edition, "L15-03")
    assert ref.path == store.url + NAME
    copy = pickle.loads(pickle.dumps(ref))
    assert copy == ref
    assert bytes(copy.get()).startswith(b"3 river")
    store.files[NAME] = content_of(text="sea ")
    with pytest.raises(RegionNotFound, match="is gone"):
        LayerRef(store.url + NAME, (7, 7, 7), "L15-03").get()
