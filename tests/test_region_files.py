"""`RegionFiles`: the lock, what killed writers leave, what cannot be replaced, reading back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import naive
from support.naive import write_plain
from support.system import open_files, opened_since
from support.system_calls import intercepted, refuse_to_replace

from jessymem import DimensionId, MmapRegion, RegionBuilder, RegionIOError, osmem
from jessymem.regions.files import RegionFiles

PATIENCE_SECONDS = 60
LOCK = ".region.mmap.lock"
STALE = ".region.mmap.123-0123abcd.tmp"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "D07" / "region.mmap"


@pytest.fixture
def files(target: Path) -> RegionFiles:
    return RegionFiles(DimensionId(7), target)


def build(target: Path, content: bytes = b"new", dimension: int = 7) -> MmapRegion:
    builder = RegionBuilder(dimension, "Name")
    builder.add_layer(0, content)
    return builder.build_to_file(target)


def build_beside(target: Path, content: bytes = b"new") -> MmapRegion:
    with intercepted(refuse_to_replace):
        return build(target, content)


def content_of(path: Path) -> bytes:
    region = MmapRegion.from_file(7, path)
    assert region.verify_integrity()
    info = region.get_layer_info("L07-00")
    return bytes(region.read_content(info.offset, info.size))


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@contextmanager
def refused(operation: str, number: int, path: Path | None = None) -> Iterator[None]:
    """Let the system refuse an operation, on one path or on all."""

    def refuse(now: str, at: str, *details: object) -> None:
        if now == operation and at == str(path or at):
            raise OSError(number, os.strerror(number))

    with intercepted(refuse):
        yield


# -- other writers ---------------------------------------------------------------------------------

BUILD_MANY = """
import sys
from jessymem import RegionBuilder
for number in range(int(sys.argv[2])):
    builder = RegionBuilder(7, "Name")
    builder.add_layer(0, sys.argv[3] * (number + 1))
    print(builder.build_to_file(sys.argv[1]).generation)
"""

#: Stops when its temporary file is whole; goes on when it is told to.
STOP_BEFORE_RENAMING = """
import sys
from jessymem import RegionBuilder, osmem

def stop(operation, path, *details):
    if operation == "rename":
        print(details[0], flush=True)
        sys.stdin.readline()

osmem.intercept = stop
builder = RegionBuilder(7, "Name")
builder.add_layer(0, b"theirs")
print(builder.build_to_file(sys.argv[1]).generation)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def other(target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of a write."""
    with start(STOP_BEFORE_RENAMING, target) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(str(target.parent))
        yield process
        process.kill()


def test_processes_that_build_the_same_file_lose_no_generation(target):
    n_builds = 30
    writers = [start(BUILD_MANY, target, n_builds, letter) for letter in "abc"]
    printed = [writer.communicate(timeout=PATIENCE_SECONDS)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert all(len(lines) == n_builds for lines in printed)
    generations = sorted(int(line) for lines in printed for line in lines)
    if os.name == "posix":  # elsewhere a newer one may be there when a writer maps its own
        assert generations == list(range(1, 3 * n_builds + 1))
    assert MmapRegion.from_file(7, target).generation == 3 * n_builds
    assert names_in(target.parent) == ["region.mmap"]


def test_what_another_process_is_writing_is_left_alone(target, files, other):
    there = names_in(target.parent)
    assert len(there) == 2 and LOCK in there
    assert files.newest_path(tidy=True) == target
    with pytest.raises(RegionIOError), files.writing(timeout=0.05):
        pytest.fail("the lock was held")
    assert names_in(target.parent) == there
    assert other.communicate("go on\n", timeout=PATIENCE_SECONDS)[0] == "1\n"
    assert content_of(target) == b"theirs"
    assert names_in(target.parent) == ["region.mmap"]


def test_a_writer_waits_for_another_process(target, other):
    regions: list[MmapRegion] = []
    waiting = threading.Thread(target=lambda: regions.append(build(target, b"mine")))
    is_waiting = threading.Event()

    def note(operation: str, path: str, *details: object) -> None:
        if operation == "lock":
            is_waiting.set()

    with intercepted(note):
        waiting.start()
        assert is_waiting.wait(PATIENCE_SECONDS)
    assert not regions
    other.communicate("go on\n", timeout=PATIENCE_SECONDS)
    waiting.join(PATIENCE_SECONDS)
    assert [region.generation for region in regions] == [2]
    assert content_of(target) == b"mine"


def test_the_lock_of_a_writer_that_was_killed_is_free(target, files, other):
    other.kill()
    other.wait()
    assert len(names_in(target.parent)) == 2
    with files.writing(timeout=0):
        assert names_in(target.parent) == [LOCK]
    assert names_in(target.parent) == []


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_lock_that_cannot_be_had_in_time(timeout, target, files):
    build(target, b"old")
    with files.writing():
        there, descriptors = names_in(target.parent), open_files()
        began = time.monotonic()
        second = RegionFiles(DimensionId(7), target)
        with pytest.raises(RegionIOError) as caught, second.writing(timeout):
            pytest.fail("the lock was held")
        assert time.monotonic() - began >= timeout
        error = caught.value
        assert (error.errno, error.operation) == (errno.ETIMEDOUT, "lock")
        assert (error.path, error.dimension) == (str(target), DimensionId(7))
        assert "others are writing there" in str(error)
        assert names_in(target.parent) == there
        assert not opened_since(descriptors)
    build(target)
    assert names_in(target.parent) == ["region.mmap"]


def test_who_waits_outlives_the_failure_of_who_made_the_directory(target):
    # That one takes the directory away, and with it the lock that is waited for.
    regions: list[MmapRegion] = []
    waiting = threading.Thread(target=lambda: regions.append(build(target)))
    is_waiting = threading.Event()

    def fail(operation: str, path: str, *details: object) -> None:
        if operation == "lock" and threading.current_thread() is waiting:
            is_waiting.set()
        if operation == "sync" and threading.current_thread() is not waiting:
            waiting.start()
            assert is_waiting.wait(PATIENCE_SECONDS)
            raise OSError(errno.ENOSPC, "full")

    with intercepted(fail), pytest.raises(RegionIOError, match="full"):
        build(target, b"fails")
    waiting.join(PATIENCE_SECONDS)
    assert content_of(target) == b"new"
    assert names_in(target.parent) == ["region.mmap"]


def test_a_directory_that_always_goes_away_is_an_error(target, files):
    with (
        refused("lock", errno.ENOENT),
        pytest.raises(RegionIOError) as caught,
        files.writing(timeout=0),
    ):
        pytest.fail("there was no directory")
    assert (caught.value.errno, caught.value.operation) == (errno.ENOENT, "lock")
    assert not target.parent.exists()


# -- leftovers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tidy", [False, True])
def test_a_stale_temporary_file_goes_when_the_region_is_opened_for_good(tidy, target, files):
    build(target)
    (target.parent / STALE).write_bytes(b"half of it")
    assert files.newest_path(tidy=tidy) == target
    assert names_in(target.parent) == (["region.mmap"] if tidy else [STALE, "region.mmap"])


def test_a_stale_temporary_file_goes_with_the_next_write(target):
    target.parent.mkdir()
    (target.parent / STALE).write_bytes(b"half of it")
    build(target)
    assert names_in(target.parent) == ["region.mmap"]


@pytest.mark.parametrize(
    "name",
    [
        ".region.mmap.tmp",
        ".region.mmap.notes.tmp",
        ".region.mmap.123-0123abcd.tmp~",
        ".other.mmap.123-0123abcd.tmp",
        "region.mmap.123-0123abcd.tmp",
        "region.mmap.tmp",
        "region.gx.mmap",
        "region.g0.mmap",
        "region.g01.mmap",
        "region.g2.mmap.bak",
        "other.g2.mmap",
    ],
)
def test_files_that_are_not_ours_stay(name, target, files):
    build(target)
    (target.parent / name).write_bytes(b"kept")
    build_beside(target)
    build(target)
    assert files.newest_path(tidy=True) == target
    assert names_in(target.parent) == sorted(["region.mmap", name])


def test_what_cannot_be_tidied_is_left_for_the_next_time(target, files):
    build(target)
    (target.parent / STALE).touch()
    for operation in ("lock", "remove"):
        with refused(operation, errno.EROFS):
            assert files.newest_path(tidy=True) == target
        assert STALE in names_in(target.parent)
    files.newest_path(tidy=True)
    assert names_in(target.parent) == ["region.mmap"]


# -- files that cannot be replaced -----------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EBUSY, errno.EINVAL])
def test_beside_a_file_that_cannot_be_replaced(number, target, files):
    build(target, b"old")
    with refused("rename", number, target):
        region = build(target)
        assert (region.path, region.generation) == (target.with_name("region.g2.mmap"), 2)
        for tidy in (False, True):
            assert files.newest_path(tidy=tidy) == region.path
    assert files.exists()
    assert (content_of(target), content_of(region.path)) == (b"old", b"new")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_what_keeps_any_file_from_being_renamed_is_an_error(number, target):
    build(target, b"old")
    with refused("rename", number, target), pytest.raises(RegionIOError) as caught:
        build(target)
    assert (caught.value.errno, caught.value.operation) == (number, "rename")
    assert names_in(target.parent) == ["region.mmap"]
    assert content_of(target) == b"old"


def test_a_file_that_is_not_there_is_not_written_beside(target):
    with refused("rename", errno.EACCES, target), pytest.raises(RegionIOError) as caught:
        build(target)
    assert caught.value.errno == errno.EACCES
    assert not target.parent.exists()


def test_the_newest_is_folded_back_when_that_can_be_done_again(target, files):
    build(target, b"old")
    region = build_beside(target)
    assert files.newest_path(tidy=False) == region.path
    del region
    assert files.newest_path(tidy=True) == target
    assert names_in(target.parent) == ["region.mmap"]
    assert content_of(target) == b"new"
    assert build(target).generation == 3


def test_the_next_write_folds_back_too(target):
    build(target, b"old")
    build_beside(target)
    assert build(target, b"third").generation == 3
    assert names_in(target.parent) == ["region.mmap"]
    assert content_of(target) == b"third"


def test_of_generations_beside_each_other_only_the_last_stays(target):
    build(target, b"old")
    for generation in range(2, 6):
        region = build_beside(target, b"%d" % generation)
        assert region.generation == generation
        assert names_in(target.parent) == [f"region.g{generation}.mmap", "region.mmap"]
    assert content_of(target) == b"old"


def test_the_highest_generation_wins_whatever_the_names_say(target, files):
    build(target, b"old")
    paths = {}
    with refused("remove", errno.EACCES):
        for generation in (2, 3, 4):
            paths[generation] = build_beside(target, b"%d" % generation).path
    assert files.newest_path(tidy=False) == paths[4]
    paths[2].rename(target.with_name("region.g12.mmap"))
    assert files.newest_path(tidy=False) == paths[4]
    assert files.newest_path(tidy=True) == target
    assert content_of(target) == b"4"
    # What is not what its name says was not put there by a writer.
    assert names_in(target.parent) == ["region.g12.mmap", "region.mmap"]
    assert build(target).generation == 13


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "garbage": lambda raw: b"garbage" * 100,
    "cut short": lambda raw: raw[:-1],
    "another dimension": lambda raw: write_plain(dimension=8),
    "no extension": lambda raw: naive.set_field(raw, "header_xxh3", 1),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_beside_is_ignored_and_kept(how, target, files):
    build(target, b"old")
    broken = target.with_name("region.g9.mmap")
    raw = naive.resign(naive.set_field(target.read_bytes(), "generation", 9))
    broken.write_bytes(BROKEN[how](raw))
    before = broken.read_bytes()
    for tidy in (False, True):
        assert files.newest_path(tidy=tidy) == target
    region = build(target)
    # No generation is given twice, not even a broken one's.
    assert (region.path, region.generation) == (target, 10)
    del region
    region = build_beside(target)
    assert (files.newest_path(tidy=False), region.generation) == (region.path, 11)
    del region
    assert files.newest_path(tidy=True) == target
    assert broken.read_bytes() == before
    assert names_in(target.parent) == ["region.g9.mmap", "region.mmap"]


def test_a_broken_file_under_the_name_does_not_hide_the_one_beside(target, files):
    build(target, b"old")
    build_beside(target)
    target.write_bytes(b"garbage")
    assert files.newest_path(tidy=False) == target.with_name("region.g2.mmap")
    assert files.newest_path(tidy=True) == target
    assert content_of(target) == b"new"


def test_a_generation_beside_stands_for_the_region_alone(target, files):
    build(target, b"old")
    assert files.exists()
    beside = build_beside(target).path
    target.unlink()
    assert files.exists()
    assert files.newest_path(tidy=False) == beside
    assert build(target, b"third").generation == 3
    assert names_in(target.parent) == ["region.mmap"]


@pytest.mark.parametrize("name", ["region", "a+b.(c).mmap", ".hidden", "\u5730.mmap"])
def test_names_of_every_kind(name, tmp_path):
    target = tmp_path / name
    files = RegionFiles(DimensionId(7), target)
    build(target, b"old")
    with refused("rename", errno.EACCES, target):
        region = build(target)
    assert region.path != target
    assert files.newest_path(tidy=False) == region.path
    del region
    assert files.newest_path(tidy=True) == target
    assert names_in(tmp_path) == [name]


# -- reading back ----------------------------------------------------------------------------------

TAMPERED: dict[str, Callable[[bytes], bytes]] = {
    "first byte": lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
    "last byte": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "in the middle": lambda raw: raw[:1_000_000] + b"?" + raw[1_000_001:],
    "cut short": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "zeros": lambda raw: bytes(len(raw)),
    "empty": lambda raw: b"",
}


@pytest.mark.parametrize("how", TAMPERED)
def test_other_bytes_than_were_written_are_noticed(how, target):
    build(target, b"old")
    before, descriptors = target.read_bytes(), open_files()

    def tamper(operation: str, path: str, *details: object) -> None:
        if operation == "open" and path.endswith(".tmp"):
            Path(path).write_bytes(TAMPERED[how](Path(path).read_bytes()))

    with intercepted(tamper), pytest.raises(RegionIOError) as caught:
        build(target, b"x" * (2**20 + 5))
    assert (caught.value.errno, caught.value.operation) == (errno.EIO, "read back")
    assert target.read_bytes() == before
    assert names_in(target.parent) == ["region.mmap"]
    assert not opened_since(descriptors)


# -- directories -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_a_directory_that_cannot_be_made(number, tmp_path):
    target = tmp_path / "a" / "b" / "region.mmap"
    for directory in (target.parent, target.parent.parent):
        with (
            refused("make directory", number, directory),
            pytest.raises(RegionIOError) as caught,
        ):
            build(target)
        assert (caught.value.errno, caught.value.operation) == (number, "make the directory of")
        assert caught.value.path == str(target)
        assert names_in(tmp_path) == []


@pytest.mark.parametrize("operation", ["lock", "create"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_directory_that_may_only_be_read(operation, number, target, files):
    build(target, b"old")
    with refused(operation, number), pytest.raises(RegionIOError) as caught:
        build(target)
    assert (caught.value.errno, caught.value.operation) == (number, operation)
    assert content_of(target) == b"old"
    with ExitStack() as nothing_may_change:
        for change in ("lock", "create", "rename", "remove", "sync directory"):
            nothing_may_change.enter_context(refused(change, number))
        assert files.newest_path(tidy=True) == target
    assert names_in(target.parent) == ["region.mmap"]


def test_a_directory_that_may_be_passed_but_not_listed(target, files):
    build(target)
    (target.parent / STALE).touch()
    with refused("list", errno.EACCES):
        assert files.newest_path(tidy=True) == target
        assert files.exists()
    with refused("list", errno.EMFILE), pytest.raises(RegionIOError) as caught:
        files.newest_path(tidy=True)
    assert (caught.value.errno, caught.value.operation) == (errno.EMFILE, "list the directory of")


def test_no_directory_is_no_file(target, files):
    assert not files.exists()
    assert files.newest_path(tidy=True) == target
    target.parent.write_bytes(b"a file where the directory should be")
    assert not files.exists()
    assert files.newest_path(tidy=True) == target


def test_a_file_that_cannot_be_read_for_want_of_resources_is_not_passed_over(target, files):
    build(target, b"old")
    beside = build_beside(target).path
    for path in (target, beside):
        with refused("open", errno.EMFILE, path), pytest.raises(RegionIOError):
            files.newest_path(tidy=False)
        with refused("open", errno.EMFILE, path), pytest.raises(RegionIOError):
            build(target)
    assert (content_of(target), content_of(beside)) == (b"old", b"new")
    assert osmem.intercept is None
