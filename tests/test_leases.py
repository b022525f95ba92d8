"""`MemoryConfig(guard="lease")`: files that other processes truncate and rewrite under readers."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading

import pytest
from support import internals
from support.processes import checked_in_child, run_python
from support.regions import build_region, region_file

from jessymem import (
    ContentLocation,
    MemoryConfig,
    MmapManager,
    RegionFormatError,
    RegionIOError,
    leases,
    osmem,
)
from jessymem.kernels import _jit

CONTENT = bytes(range(251)) * 400
TRUNCATE = "import os, sys; [os.truncate(path, 0) for path in sys.argv[1:]]"
REWRITE = "import sys; open(sys.argv[1], 'r+b').write(b'x' * 200_000)"


def can_lease() -> bool:
    """Tell whether the system leases files of the directory that tests use."""
    if sys.platform != "linux":
        return False
    import fcntl

    with open(__file__, "rb") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            return False
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


pytestmark = pytest.mark.skipif(not can_lease(), reason="files cannot be leased here")


@pytest.fixture
def path(tmp_path):
    return build_region(tmp_path, "D20", CONTENT, layers=3)


@pytest.fixture
def guarded(tmp_path, path):
    with MmapManager(MemoryConfig(base_path=tmp_path, guard="lease")) as manager:
        manager.load_dimension("D20")
        yield manager


def is_leased(path) -> bool:
    """Tell whether who opens a file for writing has to wait; if so, the lease is to be ended."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("change", [TRUNCATE, REWRITE])
def test_bytes_stay_when_others_change_the_file(guarded, path, change):
    view = guarded.access_layer("L20-01")
    run_python(change, str(path))
    assert path.read_bytes()[:9] in (b"", b"x" * 9)
    assert view == CONTENT
    assert all(guarded.access_layer(f"L20-{number:02d}") == CONTENT for number in range(3))
    assert guarded.find(CONTENT[:251])
    assert guarded.load_contexts(["L20-00", "L20-02"]).total_size == 2 * len(CONTENT)
    guarded.unload_dimension("D20")
    assert view == CONTENT
    with pytest.raises(RegionFormatError):
        guarded.load_dimension("D20")


def test_a_copy_is_recorded(guarded, path, caplog):
    caplog.set_level("WARNING", "jessymem")
    run_python(TRUNCATE, str(path))
    while not caplog.records:
        os.sched_yield()
    (record,) = caplog.records
    assert (record.event, record.path) == ("mapping_copied", str(path))
    assert record.size > 3 * len(CONTENT)


def test_a_file_that_is_replaced_is_not_copied(guarded, path, tmp_path):
    view = guarded.access_layer("L20-01")
    build_region(tmp_path, "D20", b"new", layers=3)
    assert guarded.refresh("D20")
    assert (view, guarded.access_layer("L20-01")) == (CONTENT, b"new")
    layer = guarded.create_proto_dimension("D20", "learned")
    guarded.crystallize_proto_dimension(layer)
    assert guarded.access_layer(layer) == b"learned"
    with open("/proc/self/maps") as maps:
        assert "memfd:jessy" not in maps.read()


def test_a_lease_ends_with_the_last_view(guarded, path):
    view = guarded.access_layer("L20-01")
    guarded.unload_dimension("D20")
    del view
    assert not is_leased(path)


def test_a_lease_is_held_as_long_as_a_view(guarded, path):
    view = guarded.access_layer("L20-01")
    guarded.unload_dimension("D20")
    assert is_leased(path)
    run_python(TRUNCATE, str(path))
    assert view == CONTENT


def test_a_file_that_is_refused_is_leased_no_longer(tmp_path, path):
    raw = bytearray(path.read_bytes())
    raw[90] ^= 1
    path.write_bytes(raw)
    with MmapManager(MemoryConfig(base_path=tmp_path, guard="lease")) as manager:
        with pytest.raises(RegionFormatError):
            manager.load_dimension("D20")
        assert not is_leased(path)


def test_a_file_that_somebody_may_write_to_is_copied(tmp_path, path, caplog):
    caplog.set_level("WARNING", "jessymem")
    with (
        path.open("r+b") as file,
        MmapManager(MemoryConfig(base_path=tmp_path, guard="lease")) as manager,
    ):
        manager.load_dimension("D20")
        file.truncate(0)
        assert manager.access_layer("L20-01") == CONTENT
        assert manager.get_layer_info("L20-01").location == ContentLocation.HEAP
    assert [record.operation for record in caplog.records] == ["lease"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.EAGAIN, errno.EIO])
def test_what_the_system_answers_to_a_lease(tmp_path, path, intercept, number):
    def refuse(operation, *_):
        if operation == "lease":
            raise OSError(number, os.strerror(number))

    with MmapManager(MemoryConfig(base_path=tmp_path, guard="lease")) as manager:
        intercept(refuse)
        if number == errno.EIO:
            with pytest.raises(RegionIOError):
                manager.load_dimension("D20")
            return
        manager.load_dimension("D20")
        run_python(TRUNCATE, str(path))
        assert manager.access_layer("L20-01") == CONTENT


@pytest.mark.parametrize("told", ["0", "9", "", None])
def test_a_system_that_does_not_wait_is_not_trusted(tmp_path, path, monkeypatch, told):
    setting = tmp_path / "lease-break-time"
    if told is not None:
        setting.write_text(told)
    internals.let_leases_end_after(monkeypatch, setting)
    with MmapManager(MemoryConfig(base_path=tmp_path, guard="lease")) as manager:
        manager.load_dimension("D20")
        assert manager.get_layer_info("L20-01").location == ContentLocation.HEAP


REFUSED = """
import errno, os, sys, threading
from jessymem import MemoryConfig, MmapManager
refused, start, eventfd = sys.argv[2], threading.Thread.start, os.eventfd

def refuse_thread(thread):
    if thread.name == refused:
        raise RuntimeError("can't start new thread")
    start(thread)

def refuse_eventfd(*arguments):
    raise OSError(errno.EPERM, "not here")

def guarded():
    manager = MmapManager(MemoryConfig(base_path=sys.argv[1], guard="lease", simulation="never"))
    manager.load_dimension("D20")
    assert bytes(manager.access_layer("L20-01"))[:3] == bytes(range(3))
    return manager

threading.Thread.start = refuse_thread
if refused == "eventfd":
    os.eventfd = refuse_eventfd
manager = guarded()
n_open = len(os.listdir("/proc/self/fd"))
for _ in range(3):
    guarded().close()
    assert len(os.listdir("/proc/self/fd")) == n_open
threading.Thread.start, os.eventfd = start, eventfd
leased = guarded()
assert len(os.listdir("/proc/self/fd")) > n_open
"""


@pytest.mark.processes
@pytest.mark.parametrize("refused", ["jessymem leases", "jessymem leases' log", "eventfd"])
def test_where_no_thread_can_be_started_files_are_copied_and_nothing_is_leaked(
    tmp_path, path, refused
):
    run_python(REFUSED, str(tmp_path), refused)


def test_more_files_than_can_be_leased_are_copied(tmp_path, path, monkeypatch):
    with MmapManager(MemoryConfig(base_path=tmp_path, guard="lease")) as manager:
        build_region(tmp_path, "D21")
        manager.load_dimension("D21")  # it has the only row, or one of some
        monkeypatch.setattr(leases, "MAX_LEASES", 0)
        rows = [build_region(tmp_path, f"D{number}", CONTENT) for number in range(22, 30)]
        for number in range(22, 30):
            manager.load_dimension(f"D{number}")
        run_python(TRUNCATE, *map(str, rows))
        assert all(manager.access_layer(f"L{n}-00") == CONTENT for n in range(22, 30))


def test_what_a_mapping_holds_ends_before_its_memory(path):
    was_mapped = []

    class Held:
        def __del__(self):
            with open("/proc/self/maps") as maps:
                was_mapped.append(str(path) in maps.read())

    data = osmem.map_file(path).data
    osmem.keep_with(data, Held())
    del data
    assert was_mapped == [True]


def test_many_files_under_readers(tmp_path):
    numbers = range(20, 60)
    paths = [build_region(tmp_path, f"D{number}", CONTENT) for number in numbers]
    with MmapManager(MemoryConfig(base_path=tmp_path, guard="lease")) as manager:
        manager.load_all()
        views = [manager.access_layer(f"L{number}-00") for number in numbers]
        stop, wrong = threading.Event(), []

        def read():
            while not stop.is_set():
                wrong.extend(view for view in views if view != CONTENT)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        run_python(TRUNCATE, *map(str, paths))
        stop.set()
        for reader in readers:
            reader.join()
        assert not wrong
        assert all(manager.access_layer(f"L{number}-00") == CONTENT for number in numbers)
        assert not any(path.stat().st_size for path in paths)


def test_files_that_come_and_go_while_others_truncate_them(tmp_path):
    paths = [build_region(tmp_path, f"D{number}", CONTENT) for number in (20, 21)]
    raws = [path.read_bytes() for path in paths]
    code = "import os, sys\nwhile True:\n  for path in sys.argv[1:]: os.truncate(path, 0)"
    with (
        MmapManager(MemoryConfig(base_path=tmp_path, guard="lease")) as manager,
        subprocess.Popen([sys.executable, "-c", code, *map(str, paths)]) as others,
    ):
        n_loaded = 0
        for _ in range(150):
            for number, path, raw in zip((20, 21), paths, raws, strict=True):
                fresh = path.with_suffix(".new")
                fresh.write_bytes(raw)
                fresh.replace(path)
                try:
                    manager.load_dimension(f"D{number}")
                except (RegionFormatError, RegionIOError):  # they were first
                    continue
                n_loaded += 1
                assert manager.access_layer(f"L{number}-00") == CONTENT
                manager.unload_dimension(f"D{number}")
        others.kill()
    assert n_loaded


def test_a_forked_child_has_leases_of_its_own(guarded, path):
    view = guarded.access_layer("L20-01")

    def child():
        run_python(TRUNCATE, str(path))
        assert view == CONTENT
        assert guarded.access_layer("L20-02") == CONTENT

    checked_in_child(child)
    assert view == CONTENT


def test_a_child_that_ends_leaves_its_parent_guarded(guarded, path):
    view = guarded.access_layer("L20-01")
    checked_in_child(lambda: guarded.unload_dimension("D20"))
    assert is_leased(path)
    run_python(TRUNCATE, str(path))
    assert view == CONTENT


@pytest.mark.skipif(_jit.is_disabled(), reason="plain Python needs the GIL")
def test_a_call_that_keeps_the_gil_does_not_wait_for_itself(guarded, path):
    view = guarded.access_layer("L20-01")
    assert ctypes.PyDLL(None).truncate(os.fsencode(path), ctypes.c_long(0)) == 0
    assert view == CONTENT


def test_who_changes_a_file_waits_until_there_is_memory_for_the_copy(tmp_path, path):
    code = """
import resource, subprocess, sys
from jessymem import MemoryConfig, MmapManager
with MmapManager(MemoryConfig(base_path=sys.argv[1], guard="lease")) as manager:
    manager.load_dimension("D20")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    change = subprocess.Popen([sys.executable, "-c", sys.argv[3], sys.argv[2]])
    try:
        change.wait(0.5)
    except subprocess.TimeoutExpired:
        print("waits")
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    change.wait()
    print(hash(bytes(manager.access_layer("L20-01"))) == hash(bytes(range(251)) * 400))
"""
    assert run_python(code, str(tmp_path), str(path), TRUNCATE).split() == ["waits", "True"]


def test_each_lease_costs_a_descriptor(tmp_path):
    def load(guard):
        with MmapManager(MemoryConfig(base_path=tmp_path, guard=guard)) as manager:
            before = len(os.listdir("/proc/self/fd"))
            manager.load_dimension("D20")
            return len(os.listdir("/proc/self/fd")) - before

    build_region(tmp_path, "D20")
    assert load("lease") == load("none") + 1
    assert region_file(tmp_path, "D20").exists()
