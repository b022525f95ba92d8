"""Locks between writers of one group: whose the lock file is; each removes only his own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.system_calls import intercepted, make_calls_plain

from jessymem import (
    DimensionId,
    InvalidAccess,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionIOError,
    osmem,
)
from jessymem.regions.files import RegionFiles

fcntl = pytest.importorskip("fcntl", reason="on Windows the system removes lock files")

LOCK = ".region.mmap.lock"
PATIENCE_SECONDS = 60
ONE, OTHER, GROUP = 54_321, 54_322, 54_320

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def build(target: Path, content: bytes = b"new") -> MmapRegion:
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, content)
    return builder.build_to_file(target)


def files_of(target: Path) -> RegionFiles:
    return RegionFiles(DimensionId(20), target)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "D20" / "region.mmap"


@pytest.fixture
def mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@contextmanager
def mode_of_directory(target: Path, mode: int) -> Iterator[None]:
    target.parent.mkdir()
    target.parent.chmod(mode)
    yield


# -- whose the lock file is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directory", "lock"),
    [(0o755, 0o644), (0o775, 0o664), (0o2775, 0o664), (0o1777, 0o666), (0o700, 0o644)],
)
def test_who_may_make_a_lock_file_may_open_it(directory, lock, target, mask):
    with mode_of_directory(target, directory), files_of(target).writing():
        assert (target.parent / LOCK).stat().st_mode & 0o777 == lock


@needs_root
def test_a_lock_file_is_of_the_directory_s_group(target):
    for mode, group in ((0o775, GROUP), (0o755, os.getegid())):
        target.parent.mkdir(exist_ok=True)
        os.chown(target.parent, -1, GROUP)
        target.parent.chmod(mode)
        with files_of(target).writing():
            assert (target.parent / LOCK).stat().st_gid == group


def test_a_lock_file_whose_mode_cannot_be_set_is_a_lock_all_the_same(target, monkeypatch, mask):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "no modes here")

    make_calls_plain(monkeypatch)
    monkeypatch.setattr(os, "fchmod", refuse)
    with mode_of_directory(target, 0o775):
        build(target)
    assert os.listdir(target.parent) == ["region.mmap"]


#: A member of the group, who writes in a shared directory and may stop before the renaming.
BUILD_AS = f"""
import encodings.ascii, os, sys, traceback  # what lies where only root may look
import numpy, xxhash
import jessymem.regions.builder, jessymem.regions.drafts, jessymem.regions.encoding
import jessymem.regions.files
from jessymem import RegionBuilder, RegionIOError, osmem
os.setgroups([{GROUP}]); os.setgid({GROUP}); os.setuid(int(sys.argv[2])); os.umask(0o022)

def stop(operation, path, *details):
    if operation == "rename":
        print("stopped", flush=True)
        sys.stdin.readline()

if sys.argv[3] == "stop":
    osmem.intercept = stop
builder = RegionBuilder("D20", "Name")
builder.add_layer(0, sys.argv[2])
print("begins", flush=True)
try:
    print(builder.build_to_file(sys.argv[1]).generation, flush=True)
except RegionIOError as error:
    print(error, flush=True)
"""


@pytest.fixture
def shared(target: Path) -> Path:
    target.parent.mkdir()
    os.chown(target.parent, ONE, GROUP)
    target.parent.chmod(0o2775)
    for folder in target.parent.parents:
        if not os.stat(folder).st_mode & 0o001:
            folder.chmod(os.stat(folder).st_mode | 0o001)
    return target


def start(target: Path, user: int, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_AS, str(target), str(user), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@needs_root
def test_a_member_of_the_group_waits(shared):
    with start(shared, ONE, "stop") as first:
        assert [first.stdout.readline(), first.stdout.readline()] == ["begins\n", "stopped\n"]
        with start(shared, OTHER, "go") as second:
            assert second.stdout.readline() == "begins\n"
            time.sleep(0.1)
            assert second.poll() is None
            assert first.communicate("go on\n", timeout=PATIENCE_SECONDS)[0] == "1\n"
            assert second.communicate(timeout=PATIENCE_SECONDS)[0] == "2\n"
    assert os.listdir(shared.parent) == ["region.mmap"]
    assert (shared.stat().st_uid, shared.stat().st_gid) == (OTHER, GROUP)


@needs_root
def test_what_a_member_left_who_was_killed_is_taken_over(shared):
    with start(shared, ONE, "stop") as first:
        assert [first.stdout.readline(), first.stdout.readline()] == ["begins\n", "stopped\n"]
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert LOCK in os.listdir(shared.parent)
    with start(shared, OTHER, "go") as second:
        assert second.communicate(timeout=PATIENCE_SECONDS)[0] == "begins\n1\n"
    assert os.listdir(shared.parent) == ["region.mmap"]


@needs_root
def test_a_lock_file_that_one_may_only_read_is_a_lock(shared):
    (shared.parent / LOCK).touch()
    os.chown(shared.parent / LOCK, ONE, ONE)
    (shared.parent / LOCK).chmod(0o644)
    with start(shared, OTHER, "go") as second:
        assert second.communicate(timeout=PATIENCE_SECONDS)[0] == "begins\n1\n"
    assert os.listdir(shared.parent) == ["region.mmap"]


# -- locks that cannot be had ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("is_there", [False, True])
def test_nothing_stays_of_a_lock_that_cannot_be_had(is_there, number, target, monkeypatch):
    if is_there:
        build(target, b"old")

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    make_calls_plain(monkeypatch)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RegionIOError) as caught:
        build(target)
    assert (caught.value.operation, caught.value.errno) == ("lock", number)
    assert target.parent.exists() == is_there
    if is_there:
        assert os.listdir(target.parent) == ["region.mmap"]


@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_what_is_no_lock_file_is_refused_and_kept(kind, target):
    build(target, b"old")
    odd = target.parent / LOCK
    if kind == "directory":
        odd.mkdir()
    elif kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to(target)
    with pytest.raises(RegionIOError) as caught:
        build(target)
    assert caught.value.operation == "lock"
    assert os.path.lexists(odd)
    assert MmapRegion.from_file("D20", target).generation == 1


# -- the lock file that is removed -----------------------------------------------------------------


def test_a_release_leaves_the_lock_of_another(target):
    build(target, b"old")
    lock = target.parent / LOCK
    with files_of(target).writing():
        lock.unlink()  # as an administrator may
        others = osmem.locked(lock, timeout=0)
        others.__enter__()
        taken = lock.stat().st_ino
    assert lock.stat().st_ino == taken
    with pytest.raises(RegionIOError), files_of(target).writing(timeout=0):
        pytest.fail("others are there")
    others.__exit__(None, None, None)
    assert os.listdir(target.parent) == ["region.mmap"]


def test_who_waits_for_a_lock_file_that_was_removed_gets_the_next(target):
    build(target, b"old")
    lock, order = target.parent / LOCK, []

    def wait() -> None:
        with osmem.locked(lock, timeout=PATIENCE_SECONDS):
            order.append("second")
            assert lock.exists()

    with osmem.locked(lock, timeout=0):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.05)
        order.append("first")
    waiting.join(PATIENCE_SECONDS)
    assert order == ["first", "second"]
    assert not lock.exists()


@pytest.mark.parametrize("is_used", [True, False], ids=["and another writes", "and nobody comes"])
def test_who_has_lost_the_lock_replaces_nothing(is_used, target):
    build(target, b"old")

    def let_another_in(operation: str, path: str, *details: object) -> None:
        if operation == "sync" and not lost:
            lost.append(path)
            (target.parent / LOCK).unlink()  # as an administrator may
            if is_used:
                build(target, b"theirs")

    lost: list[str] = []
    with intercepted(let_another_in), pytest.raises(RegionIOError) as caught:
        build(target, b"ours")
    # Another writer takes away what it thinks one that was killed has left.
    assert caught.value.operation == ("read back" if is_used else "rename")
    found = MmapRegion.from_file("D20", target)
    assert bytes(found.content_of(0)) == (b"theirs" if is_used else b"old")
    assert os.listdir(target.parent) == ["region.mmap"]
    assert build(target, b"next").generation == found.generation + 1


def test_a_layer_whose_writer_has_lost_the_lock_stays_learned(target):
    with MmapManager(64, base_path=target.parents[1]) as manager:
        for content in (b"first", b"second"):  # a file, and what is added to one
            layer = manager.create_proto_dimension("D20", content)

            def remove_lock(operation: str, path: str, *details: object) -> None:
                if operation == "sync":
                    (target.parent / LOCK).unlink(missing_ok=True)

            before = sorted(os.listdir(target.parent)) if target.parent.exists() else []
            with intercepted(remove_lock), pytest.raises(RegionIOError, match="was removed"):
                manager.crystallize_proto_dimension(layer)
            assert (sorted(os.listdir(target.parent)) if before else []) == before
            assert bytes(manager.access_layer(layer)) == content
            manager.crystallize_proto_dimension(layer)
            assert bytes(manager.access_layer(layer)) == content


# -- a write within a write ------------------------------------------------------------------------


def test_a_write_in_the_middle_of_a_write_of_the_same_file_is_refused_at_once(target):
    seen = []

    def build_again(operation: str, path: str, *details: object) -> None:
        if operation == "sync" and not seen:
            seen.append(None)
            began = time.monotonic()
            with pytest.raises(InvalidAccess, match="in the middle of writing"):
                build(target, b"inner")
            build(target.with_name("other.mmap"), b"inner")
            seen[0] = time.monotonic() - began

    with intercepted(build_again):
        build(target, b"outer")
    assert seen[0] < PATIENCE_SECONDS / 2
    assert sorted(os.listdir(target.parent)) == ["other.mmap", "region.mmap"]
    assert bytes(MmapRegion.from_file("D20", target).content_of(0)) == b"outer"


def test_an_error_that_is_kept_holds_no_lock(target):
    build(target, b"old")
    errors = []
    for _ in range(3):

        def fail(operation: str, path: str, *details: object) -> None:
            if operation == "sync":
                raise OSError(errno.EIO, "refused")

        with intercepted(fail):
            try:
                build(target)
            except RegionIOError as error:
                errors.append(error)
        with suppress(RegionIOError), files_of(target).writing(timeout=0):
            assert (target.parent / LOCK).exists()
    assert len(errors) == 3
    assert build(target).generation == 2


# -- forks -----------------------------------------------------------------------------------------

ORPHAN = """
import os, signal, sys, threading, time
from jessymem import RegionBuilder, osmem
is_held = threading.Event()

def hold(operation, path, *details):
    if operation == "sync":
        is_held.set()
        time.sleep(600)

def build():
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, b"lost")
    builder.build_to_file(sys.argv[1])

osmem.intercept = hold
threading.Thread(target=build, daemon=True).start()
is_held.wait()
child = os.fork()
if child == 0:
    time.sleep(600)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_does_not_keep_the_lock_that_its_killed_parent_held(target):
    command = [sys.executable, "-c", ORPHAN, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.stdout.close()
    try:
        with files_of(target).writing(timeout=5):
            pass
        assert build(target).generation == 1
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_is_forked_while_its_parent_writes_ends_no_lock(target):
    build(target)
    with files_of(target).writing():
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with pytest.raises(RegionIOError), files_of(target).writing(timeout=0):
                    pass
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (target.parent / LOCK).exists()
