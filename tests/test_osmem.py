"""The seam to the system: page sizes, mappings, hints, and that every call passes `intercept`."""

import errno
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.system import HAS_PROC, mappings_of, open_files, opened_since
from support.system_calls import Calls, intercepted

from jessymem import AllocationFailed, RegionBuilder, osmem
from jessymem.kernels import schema
from jessymem.short_calls import PlainCalls, calls_in

POSIX = os.name == "posix"
KIB = 1024
page_sizes = pytest.mark.parametrize("page", [4 * KIB, 16 * KIB, 64 * KIB])


@pytest.fixture
def calls(monkeypatch):
    calls = Calls(hints=True)
    monkeypatch.setattr(osmem, "intercept", calls)
    return calls


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    return path


# -- pages -----------------------------------------------------------------------------------------


def test_the_page_size_is_the_system_s():
    assert osmem.page_size() == mmap.PAGESIZE
    assert osmem.page_size() & (osmem.page_size() - 1) == 0


@page_sizes
def test_bytes_are_rounded_to_whole_pages(page, monkeypatch):
    monkeypatch.setattr(osmem, "page_size", lambda: page)
    for n_bytes, n_pages in [(0, 0), (1, 1), (page, 1), (page + 1, 2), (5 * page - 1, 5)]:
        assert osmem.round_to_pages(n_bytes) == n_pages * page
    assert osmem.round_to_pages(2**62 + 1) == 2**62 + page


@page_sizes
def test_regions_work_with_every_page_size(page, monkeypatch, tmp_path):
    monkeypatch.setattr(osmem, "page_size", lambda: page)
    builder = RegionBuilder(1, "")
    builder.add_layer(0, b"x" * (page + 1))
    for region in (builder.build_to_memory(), builder.build_to_file(tmp_path / "region.mmap")):
        slot = np.zeros(1, schema.REGION)[0]
        region.describe_into(slot)
        assert slot["n_charged"] == -(-region.size // page) * page
        assert region.verify_integrity()


@page_sizes
def test_private_memory_comes_in_whole_pages(page, monkeypatch, calls):
    monkeypatch.setattr(osmem, "page_size", lambda: page)
    asked = []
    real = osmem.Mapping
    monkeypatch.setattr(osmem, "Mapping", lambda *a, **k: asked.append(a[1]) or real(*a, **k))
    for n_bytes, mapped in [(1, page), (page, page), (page + 1, 2 * page)]:
        data = osmem.private_copy([b"a" * n_bytes], n_bytes)
        assert len(data) == n_bytes
        assert asked.pop() == mapped
    assert calls.made == [("map private", "")] * 3


# -- mapping and reading ---------------------------------------------------------------------------


@pytest.mark.parametrize("take", [osmem.map_file, osmem.read_file])
def test_a_file_s_bytes(take, file, calls):
    descriptors = open_files()
    data, identity = take(file)
    assert data.tobytes() == bytes(range(200))
    assert data.dtype == np.uint8 and not data.flags.writeable
    assert memoryview(data).readonly
    assert identity == osmem.identify(file)
    assert identity.n_bytes == 200
    assert identity.modified_ns == file.stat().st_mtime_ns
    wanted = (
        ["open", "stat", "map"]
        if take is osmem.map_file
        else ["open", "stat", "map private", "read"]
    )
    assert calls.operations == [*wanted, "stat"]
    del data
    assert not opened_since(descriptors)


@pytest.mark.parametrize("take", [osmem.map_file, osmem.read_file])
def test_a_file_without_bytes_is_an_empty_array(take, tmp_path):
    (tmp_path / "file").touch()
    data, identity = take(tmp_path / "file")
    assert (len(data), data.dtype, identity.n_bytes) == (0, np.uint8, 0)


@pytest.mark.parametrize("take", [osmem.map_file, osmem.read_file, osmem.identify])
def test_what_is_no_regular_file(take, tmp_path):
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "missing")
    descriptors = open_files()
    with pytest.raises(OSError) as caught:
        take(tmp_path)
    if POSIX:
        assert caught.value.errno == errno.EISDIR
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="not a regular file"):
            take(tmp_path / "pipe")
    assert not opened_since(descriptors)


@pytest.mark.skipif(not HAS_PROC, reason="needs /proc")
def test_a_mapping_is_shared_with_the_file_and_a_copy_is_not(file):
    mapped, copied = osmem.map_file(file).data, osmem.read_file(file).data
    assert len(mappings_of(file)) == 1
    with file.open("r+b") as handle:
        handle.write(b"\xff")
    assert (mapped[0], copied[0]) == (0xFF, 0)
    del mapped
    assert not mappings_of(file)


def test_every_advice_has_a_hint_or_none():
    assert set(osmem.ADVICE) == {"willneed", "random", "sequential", "none"}
    if POSIX:
        assert all(hasattr(mmap, hint) for hint in osmem.ADVICE.values() if hint)


def test_the_length_of_the_file_under_a_mapping(file):
    data = osmem.map_file(file).data
    assert osmem.mapped_file_bytes(data) == 200
    if POSIX:
        os.truncate(file, 20)
        assert osmem.mapped_file_bytes(data) == 20


def test_what_is_no_mapping_has_no_length(file):
    assert osmem.mapped_file_bytes(osmem.read_file(file).data) is None
    assert osmem.mapped_file_bytes(osmem.private_copy([b"abc"], 3)) is None
    assert osmem.mapped_file_bytes(np.zeros(3, np.uint8)) is None


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "gone"), ValueError("closed")])
def test_a_mapping_that_holds_no_descriptor_has_no_length(error, monkeypatch):
    class Mapping:
        def size(self):
            raise error

    monkeypatch.setattr(osmem, "file_mapping_of", lambda data: Mapping())
    assert osmem.mapped_file_bytes(np.zeros(1, np.uint8)) is None


def test_a_copy_of_pieces():
    pieces = [b"ab", bytearray(b"cd"), b"", memoryview(b"ef")]
    data = osmem.private_copy(pieces, 6)
    assert data.tobytes() == b"abcdef"
    assert not data.flags.writeable
    assert data.ctypes.data % mmap.PAGESIZE == 0


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN])
def test_memory_that_is_refused(number, monkeypatch):
    monkeypatch.setattr(osmem, "intercept", Calls(fail_at=0, number=number))
    with pytest.raises(AllocationFailed) as caught:
        osmem.private_copy([b"abc"], 3)
    assert isinstance(caught.value, MemoryError)
    assert (caught.value.reason, caught.value.requested) == ("os_refused", osmem.page_size())
    assert isinstance(caught.value.__cause__, OSError)


def test_memory_that_the_system_really_refuses():
    with pytest.raises((AllocationFailed, OverflowError)) as caught:
        osmem.private_copy([], 2**62)
    if isinstance(caught.value, AllocationFailed):
        assert caught.value.requested == 2**62


# -- hints -----------------------------------------------------------------------------------------


class Mapping:
    """Takes the place of a mapping: notes the hints that it is given."""

    def __init__(self, error=None):
        self.hints = []
        self.error = error

    def madvise(self, hint):
        self.hints.append(hint)
        if self.error:
            raise self.error


@pytest.fixture
def data_of(monkeypatch):
    """Make arrays that own a mapping of ours."""
    owned = {}
    real = osmem.file_mapping_of
    monkeypatch.setattr(osmem, "file_mapping_of", lambda data: owned.get(id(data)) or real(data))

    def make(mapping):
        data = np.zeros(1, np.uint8)
        owned[id(data)] = mapping
        return data

    return make


@pytest.mark.parametrize(
    ("advice", "hint"),
    [
        ("willneed", "MADV_WILLNEED"),
        ("random", "MADV_RANDOM"),
        ("sequential", "MADV_SEQUENTIAL"),
    ],
)
def test_a_hint_reaches_the_mapping(data_of, advice, hint, calls, monkeypatch):
    monkeypatch.setattr(mmap, hint, 77, raising=False)
    mapping = Mapping()
    assert osmem.advise(data_of(mapping), advice)
    assert mapping.hints == [77]
    assert calls.made == [("advise", "")]


def test_no_advice_asks_nothing(data_of, calls):
    mapping = Mapping()
    assert not osmem.advise(data_of(mapping), "none")
    assert not mapping.hints and not calls.made


def test_a_hint_that_the_system_lacks_is_skipped(data_of, calls, monkeypatch):
    monkeypatch.delattr(mmap, "MADV_RANDOM", raising=False)
    mapping = Mapping()
    assert not osmem.advise(data_of(mapping), "random")
    assert not mapping.hints and not calls.made


def test_a_mapping_that_takes_no_hints_gets_none(data_of, calls, monkeypatch):
    monkeypatch.setattr(mmap, "MADV_RANDOM", 1, raising=False)
    assert not osmem.advise(data_of(object()), "random")
    assert not osmem.advise(np.zeros(3, np.uint8), "random")
    assert not osmem.advise(osmem.private_copy([b"abc"], 3), "random")
    assert "advise" not in calls.operations


def test_a_hint_that_is_refused_is_no_error(data_of, monkeypatch):
    monkeypatch.setattr(mmap, "MADV_RANDOM", 1, raising=False)
    assert not osmem.advise(data_of(Mapping(OSError(errno.EINVAL, "no"))), "random")
    monkeypatch.setattr(osmem, "intercept", Calls(fail_at=0, hints=True))
    assert not osmem.advise(data_of(Mapping()), "random")


@pytest.mark.skipif(not hasattr(mmap.mmap, "madvise"), reason="the system takes no hints")
@pytest.mark.parametrize("advice", ["willneed", "random", "sequential"])
def test_hints_on_a_real_mapping(advice, file):
    assert osmem.advise(osmem.map_file(file).data, advice)


@pytest.mark.skipif(not HAS_PROC, reason="needs /proc")
def test_pages_that_were_touched_are_dropped(file):
    file.write_bytes(b"x" * 2**20)
    data = osmem.map_file(file).data
    assert data.sum() == 2**20 * ord("x")
    assert resident_bytes(file) >= 2**19
    assert osmem.drop_pages(data)
    assert resident_bytes(file) == 0
    assert data.sum() == 2**20 * ord("x")
    assert not osmem.drop_pages(np.zeros(3, np.uint8))


def resident_bytes(path):
    """Return how much of the mapping of a file is resident in this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return 1024 * next(int(field.split()[1]) for field in lines if field.startswith("Rss:"))
    return None


# -- writing ---------------------------------------------------------------------------------------


def test_every_writing_call_passes_the_seam(tmp_path, calls):
    folder = tmp_path / "a" / "b"
    temporary, target = folder / "temporary", folder / "target"
    assert osmem.make_directory(folder) == [tmp_path / "a", folder]
    descriptor = osmem.create_file(temporary)
    assert osmem.write_pieces(descriptor, temporary, [b"ab", b"", b"c"]) == 3
    osmem.sync_file(descriptor, temporary)
    osmem.close_file(descriptor)
    osmem.replace_file(temporary, target)
    osmem.sync_directory(folder)
    assert osmem.list_directory(folder) == ["target"]
    assert target.read_bytes() == b"abc"
    osmem.remove_file(target)
    osmem.remove_file(target)

    def synced(directory):
        return [("sync directory", str(directory))] if POSIX else []

    assert calls.made == [
        *synced(tmp_path.parent),
        ("make directory", str(folder.parent)),
        *synced(tmp_path),
        ("make directory", str(folder)),
        ("create", str(temporary)),
        ("write", str(temporary)),
        ("sync", str(temporary)),
        ("rename", str(target)),
        *synced(folder),
        ("list", str(folder)),
        ("remove", str(target)),
        ("remove", str(target)),
    ]


@pytest.mark.skipif(not POSIX, reason="directories are not synced elsewhere")
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO])
def test_a_directory_of_others_is_synced_as_far_as_we_may(number, tmp_path, monkeypatch):
    def intercept(operation, path, *details):
        if (operation, path) == ("sync directory", str(tmp_path.parent)):
            raise OSError(number, "refused")

    monkeypatch.setattr(osmem, "intercept", intercept)
    if number == errno.EIO:
        with pytest.raises(OSError, match="refused"):
            osmem.make_directory(tmp_path / "new")
    else:
        assert osmem.make_directory(tmp_path / "new") == [tmp_path / "new"]
    assert (tmp_path / "new").exists() == (number != errno.EIO)


def test_each_call_may_be_failed(file, monkeypatch):
    folder = file.parent
    steps = [
        lambda: osmem.identify(file),
        lambda: osmem.list_directory(folder),
        lambda: osmem.map_file(file),
        lambda: osmem.read_file(file),
        lambda: osmem.create_file(folder / "new"),
        lambda: osmem.write_pieces(-1, file, [b"x"]),
        lambda: osmem.sync_file(-1, file),
        lambda: osmem.replace_file(file, folder / "new"),
        lambda: osmem.remove_file(file),
        lambda: osmem.make_directory(folder / "new"),
    ]
    if POSIX:
        steps.append(lambda: osmem.sync_directory(folder))
    for step in steps:
        monkeypatch.setattr(osmem, "intercept", Calls(fail_at=0, number=errno.EIO))
        with pytest.raises(OSError) as caught:
            step()
        assert caught.value.errno == errno.EIO
    assert os.listdir(folder) == ["file"]
    assert file.read_bytes() == bytes(range(200))


def test_a_file_that_is_there_is_not_created(file):
    with pytest.raises(FileExistsError):
        osmem.create_file(file)


def test_descriptors_are_not_inherited(tmp_path):
    descriptor = osmem.create_file(tmp_path / "new")
    try:
        assert not os.get_inheritable(descriptor.fileno())
    finally:
        osmem.close_file(descriptor)


def test_a_directory_that_is_there_is_not_made(tmp_path, calls):
    assert osmem.make_directory(tmp_path) == []
    assert not calls.made


def test_a_directory_that_cannot_be_made_leaves_none_above_it(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def refuse_second(path, *arguments, **how):
        if os.path.basename(path) == "b" and os.path.exists(os.path.dirname(path)):
            raise OSError(errno.ENOSPC, "full")
        mkdir(path, *arguments, **how)

    monkeypatch.setattr(os, "mkdir", refuse_second)
    with pytest.raises(OSError, match="full"):
        osmem.make_directory(tmp_path / "a" / "b" / "c")
    assert os.listdir(tmp_path) == []


def test_a_name_is_made_durable_once_for_each_directory(tmp_path):
    store = tmp_path / "store"
    osmem.prepare_writing(store / "D20")
    if calls_in(tmp_path).birth_of(tmp_path) is None:
        pytest.skip("nobody tells here when a directory was made")

    def steps(name: str) -> list[str]:
        calls = Calls()
        with intercepted(calls):
            osmem.make_directory(store / name)
        return calls.operations

    make, sync = "make directory", "sync directory"
    assert steps("D20") == [sync, make, sync, make]
    assert steps("D21") == [make]
    store.rename(tmp_path / "gone")
    store.mkdir()
    assert steps("D22") == [sync, make]
    shutil.rmtree(store)
    assert steps("D22") == [make, sync, make]
    with fails_at(sync), pytest.raises(osmem.NameNotSynced):
        shutil.rmtree(store)
        osmem.make_directory(store / "D20")
    assert steps("D20")[-3:] == [make, sync, make]


@contextmanager
def fails_at(wanted: str) -> Iterator[None]:
    def fail(operation: str, *details: object) -> None:
        if operation == wanted:
            raise OSError(errno.EIO, "no medium")

    with intercepted(fail):
        yield


class Nowhere(PlainCalls):
    """Calls on a drive that is not there, as on Windows: its outermost parent is itself."""

    n_asked = 0

    def stat(self, path):
        self.n_asked += 1
        if self.n_asked > 50:
            raise RuntimeError("goes round in circles")
        raise FileNotFoundError(errno.ENOENT, "no such drive")

    make_directory = stat


def test_a_path_whose_root_is_missing_ends(monkeypatch):
    nowhere = Nowhere()
    monkeypatch.setattr(osmem, "calls_in", lambda directory: nowhere)
    monkeypatch.setattr(osmem, "sync_name", lambda path, made_here: None)
    with pytest.raises(FileNotFoundError):
        osmem.make_directory(Path("/drive/below"))
    assert 0 < nowhere.n_asked < 10


@pytest.mark.skipif(not POSIX, reason="directories are not synced elsewhere")
class Darwin:
    """What `sync_file` finds on macOS: an fcntl that answers with `number`, and fsync."""

    F_FULLFSYNC = 51

    def __init__(self, monkeypatch, number):
        self.number = number
        self.made = []
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setitem(sys.modules, "fcntl", self)
        monkeypatch.setattr(os, "fsync", lambda descriptor: self.made.append("fsync"))

    def fcntl(self, descriptor, command):
        assert command == self.F_FULLFSYNC
        self.made.append("full")
        if self.number:
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "made"),
    [
        (0, ["full"]),
        (errno.ENOTSUP, ["full", "fsync"]),
        (errno.EINVAL, ["full", "fsync"]),
        (errno.ENOTTY, ["full", "fsync"]),
    ],
)
def test_macos_syncs_the_medium_or_at_least_the_file(number, made, tmp_path, monkeypatch):
    darwin = Darwin(monkeypatch, number)
    osmem.sync_file(0, tmp_path)
    assert darwin.made == made


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_macos_raises_what_is_no_missing_feature(number, tmp_path, monkeypatch):
    darwin = Darwin(monkeypatch, number)
    with pytest.raises(OSError, match=f"Errno {number}"):
        osmem.sync_file(0, tmp_path)
    assert darwin.made == ["full"]


def test_a_directory_that_cannot_be_opened_is_not_synced(tmp_path):
    descriptors = open_files()
    with pytest.raises(FileNotFoundError):
        osmem.sync_directory(tmp_path / "missing")
    assert not opened_since(descriptors)


@pytest.mark.parametrize(
    "sizes", [[3, 0, 4], [2**20, 1], [1, 2**20], [2**20 - 1, 2**20 - 1], [0], []]
)
def test_pieces_are_written_in_order(sizes, tmp_path, calls):
    pieces = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    path = tmp_path / "file"
    descriptor = osmem.create_file(path)
    assert osmem.write_pieces(descriptor, path, iter(pieces)) == sum(sizes)
    osmem.close_file(descriptor)
    assert path.read_bytes() == b"".join(pieces)
    assert calls.operations.count("write") <= 1 + sum(size >= 2**20 for size in sizes) + 1
