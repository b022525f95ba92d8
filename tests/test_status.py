"""Status files: what another process sees, that it is never torn, and whose files are whose."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support.internals import status_record
from support.processes import PATIENCE_SECONDS, checked_in_child
from support.shown import check_shown

from jessymem import (
    ConfigError,
    JessyWarning,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    RegionFormatError,
    RegionIOError,
)
from jessymem.status import layout, processes, reader, writer


def shown_manager(store, status="auto", **settings):
    return MmapManager(MemoryConfig(64, store, status=status, simulation="never", **settings))


def path_of(manager):
    return manager._engine.watcher.path


def rewrite(manager):
    """Have the file written now."""
    assert manager._engine.watcher._write()


def edited(path, **changes):
    """Change fields of a file, with a checksum that holds."""
    record = np.frombuffer(path.read_bytes(), layout.STATUS).copy()
    for name, value in changes.items():
        record[name] = value
    content = bytearray(record.tobytes())
    at = layout.STATUS.fields["checksum"][1]
    summed = writer.xxhash.xxh3_64_intdigest(bytes(content[layout.SUMMED]))
    content[at : at + 8] = summed.to_bytes(8, "little")
    path.write_bytes(content)


def test_others_see_what_the_manager_sees(store, status_folder):
    with shown_manager(store) as manager:
        manager.load_all()
        manager.create_proto_dimension(20, b"learned", name="l")
        manager.allocate(5_000)
        manager.access_layer("L01-00")
        manager.pin("D01")
        rewrite(manager)
        (status,) = reader.running()
        assert status.path == path_of(manager)
        assert status.path.parent == status_folder
        assert (status.pid, status.is_alive) == (os.getpid(), True)
        assert status.store == str(store)
        assert list(status.thresholds.values()) == [0.75, 0.85, 0.95]
        assert abs(time.time() - status.written_at) < PATIENCE_SECONDS
        by_number = {int(each.dimension_id): each for each in status.dimensions}
        assert by_number[1].name == "Emotion"
        assert (by_number[1].is_pinned, by_number[20].is_pinned) == (True, False)
        assert (by_number[20].n_learned, by_number[20].n_layers) == (1, 5)
        check_shown(manager)


def test_it_is_written_again_and_again(store, status_folder, monkeypatch):
    monkeypatch.setattr(writer, "INTERVAL_SECONDS", 0.01)
    with shown_manager(store) as manager:
        manager.load_dimension("D01")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while reader.read(path_of(manager)).n_dimensions != 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_only_this_user_may_read_it(store, status_folder):
    with shown_manager(store) as manager:
        path = path_of(manager)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(status_folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("end", ["close", "forget"])
def test_it_is_gone_with_the_manager(store, status_folder, end, monkeypatch):
    monkeypatch.setattr(writer, "INTERVAL_SECONDS", 0.01)
    manager = shown_manager(store)
    path, thread = path_of(manager), manager._engine.watcher._thread
    assert path.exists()
    if end == "close":
        manager.close()
    else:
        del manager
        gc.collect()
    thread.join(PATIENCE_SECONDS)
    assert not path.exists()
    assert list(reader.running()) == []


PROGRAM = """
import sys, time
from jessymem import MemoryConfig, MmapManager
manager = MmapManager(MemoryConfig(64, sys.argv[1], status=sys.argv[2], simulation="never"))
print(manager._engine.watcher.path, flush=True)
if sys.argv[3] == "stay":
    time.sleep(600)
"""


def start(store, status="auto", then="stay"):
    arguments = [sys.executable, "-c", PROGRAM, str(store), status, then]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_it_is_gone_when_the_process_ends_without_closing(store, status_folder):
    with start(store, then="end") as process:
        path = process.stdout.readline().strip()
    assert path.startswith(str(status_folder))
    assert not os.path.exists(path)


def test_a_killed_process_is_not_shown_and_its_file_is_swept(store, status_folder):
    with start(store) as process:
        path = process.stdout.readline().strip()
        assert [each.pid for each in reader.running()] == [process.pid]
        process.kill()
        process.wait()
    assert os.path.exists(path)
    assert list(reader.running()) == []
    with shown_manager(store):
        assert not os.path.exists(path)
        assert len(list(reader.running())) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it tells no starts of processes")
def test_another_process_of_the_same_id_is_another_one(store, status_folder):
    with shown_manager(store) as manager:
        status = reader.read(path_of(manager))
        assert status.is_alive
        assert not dataclasses.replace(status, process_started=status.process_started - 1).is_alive
    assert processes.start_of(os.getpid()) == processes.start_of(os.getpid()) > 0
    assert processes.start_of(2**22 + 5) == 0


def test_a_forked_child_neither_writes_nor_removes_it(store, status_folder):
    with shown_manager(store) as manager:
        path = path_of(manager)

        def in_child():
            manager.load_dimension("D01")
            manager.close()
            return path.exists() and manager._engine.watcher is None

        checked_in_child(in_child)
        assert path.exists()
        assert reader.read(path).pid == os.getpid()


def test_of_another_container_only_what_is_new_counts(store, tmp_path, status_folder):
    with shown_manager(store) as manager:
        rewrite(manager)
        path = path_of(manager)
        elsewhere = dataclasses.replace(reader.read(path), namespace=1)
        assert (elsewhere.is_here, elsewhere.is_alive) == (False, True)
        assert not dataclasses.replace(elsewhere, written_at=0.0).is_alive
        content = path.read_bytes()
    kept = status_folder / "1-1.status"
    kept.write_bytes(content)
    edited(kept, namespace=1, pid=2**22 + 5, written_at_ns=0)
    assert reader.sweep(status_folder) == []
    assert kept.exists()


def test_what_cannot_be_read_is_swept_once_it_is_old(status_folder):
    status_folder.mkdir(mode=0o700)
    gone, young, alive, other = (
        status_folder / f"{name}.status"
        for name in (f"{2**22 + 5}-1", f"{2**22 + 5}-2", f"{os.getpid()}-1", "letter")
    )
    for path in (gone, young, alive, other):
        path.write_bytes(b"of another version")
        if path != young:
            os.utime(path, (0, 0))
    assert reader.sweep(status_folder) == [gone]


def test_a_folder_that_is_not_there_is_not_made_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert processes.directory().parent != tmp_path / "missing"
    assert not (tmp_path / "missing").exists()


def test_a_manager_that_travels_shows_itself_anew(store, status_folder):
    with shown_manager(store) as manager:
        manager.load_dimension("D01")
        with pickle.loads(pickle.dumps(manager)) as copy:
            assert path_of(copy) != path_of(manager)
            assert len(list(reader.running())) == 2


# -- a place of one's own --------------------------------------------------------------------------


def test_the_file_is_where_it_was_asked_for(store, tmp_path):
    path = tmp_path / "here.status"
    with shown_manager(store, path) as manager:
        assert path_of(manager) == path
        assert reader.read(path).store == str(store)
    assert not path.exists()


def off(store, path):
    """Make a manager whose file cannot be made; return what it says."""
    with (
        pytest.warns(JessyWarning, match="no status is shown any more") as said,
        shown_manager(store, path) as manager,
    ):
        manager.load_dimension("D01")
        assert bytes(manager.access_layer("L01-00"))
    return str(said[0].message)


def test_two_managers_do_not_share_a_file(store, tmp_path):
    path = tmp_path / "here.status"
    with shown_manager(store, path):
        assert f"the status file of process {os.getpid()}" in off(store, path)
        assert path.exists()


def test_a_file_of_a_killed_process_is_replaced(store, tmp_path):
    path = tmp_path / "here.status"
    with start(store, str(path)) as process:
        process.stdout.readline()
        process.kill()
        process.wait()
    with shown_manager(store, path):
        assert reader.read(path).pid == os.getpid()


def test_what_is_no_status_file_is_left_alone(store, tmp_path):
    path = tmp_path / "letter.txt"
    path.write_bytes(b"dear all")
    assert "no status file" in off(store, path)
    assert path.read_bytes() == b"dear all"


def test_where_there_is_no_folder_nothing_is_shown(store, tmp_path):
    assert "No such file" in off(store, tmp_path / "missing" / "x.status")


def test_a_folder_that_others_may_write_into_is_no_place(store, status_folder):
    status_folder.mkdir()
    status_folder.chmod(0o777)
    assert "others may write into" in off(store, "auto")
    assert list(reader.running()) == []


def test_a_file_that_others_replaced_is_not_removed(store, tmp_path):
    path = tmp_path / "here.status"
    with shown_manager(store, path) as manager:
        path.unlink()
        path.write_bytes(b"another")
        with pytest.raises(FileNotFoundError, match="others removed it"):
            rewrite(manager)
    assert path.read_bytes() == b"another"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_said_and_nothing_is_left(store, tmp_path, monkeypatch):
    path = tmp_path / "here.status"
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:1_000]))
    assert "No space left" in off(store, path)
    assert not path.exists()


def test_a_load_waits_for_a_look_that_holds_what_was_unloaded(tmp_path):
    from support.regions import write_sparse

    write_sparse(tmp_path, 20, 5 * 2**20)
    write_sparse(tmp_path, 21, 5 * 2**20)
    config = MemoryConfig(8, tmp_path, status=tmp_path / "here.status", simulation="never")
    with MmapManager(config) as manager:
        manager.load_dimension(20)
        held = [manager._engine.snapshot]
        manager.unload_dimension(20)
        threading.Timer(0.005, held.clear).start()
        manager.load_dimension(21)
        held.append(manager._engine.snapshot)
        manager.unload_dimension(21)
        with pytest.raises(LimitExceeded):  # for as long as that no look takes
            manager.load_dimension(20)


def test_a_file_that_others_truncate_kills_nobody(store, tmp_path):
    path = tmp_path / "here.status"
    with shown_manager(store, path) as manager:
        os.truncate(path, 0)
        rewrite(manager)
        assert reader.read(path).pid == os.getpid()


@pytest.mark.parametrize("wrong", [3, None, b"x", "a\0b", "Auto", "OFF"])
def test_a_status_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="status"):
        MemoryConfig(status=wrong)


# -- hostile files ---------------------------------------------------------------------------------


@pytest.fixture
def path(store, tmp_path):
    """A status file that nobody writes any more."""
    path = tmp_path / "kept.status"
    with shown_manager(store, path) as manager:
        manager.load_dimension("D01")
        rewrite(manager)
        content = path.read_bytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda content: content[:-1], "length"),
        (lambda content: content + b"x", "length"),
        (lambda content: b"", "length"),
        (lambda content: bytes(len(content)), "magic"),
        (lambda content: content[:-8] + bytes(8), "sequence"),
        (lambda content: content[:5000] + b"\xff" + content[5001:], "checksum"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(path, monkeypatch, spoil, field):
    monkeypatch.setattr(reader, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(reader, "_N_TRIES", 3)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(RegionFormatError, match=str(path)) as caught:
        reader.read(path)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("n_bytes", 7),
        ("n_listed", layout.MAX_DIMENSIONS + 1),
        ("n_listed", -1),
        ("n_pools", layout.MAX_POOLS + 1),
    ],
)
def test_numbers_that_no_manager_writes_are_refused(path, field, value):
    edited(path, **{field: value})
    with pytest.raises(RegionFormatError) as caught:
        reader.read(path)
    assert caught.value.field == field


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
def test_counts_that_are_none_are_refused(path, value):
    record = np.frombuffer(path.read_bytes(), layout.STATUS).copy()
    record["counters"]["utilization"] = value
    edited(path, counters=record["counters"])
    with pytest.raises(RegionFormatError) as caught:
        reader.read(path)
    assert caught.value.field == "counters"


def test_rows_that_no_manager_writes_are_refused(path):
    edited(path, n_listed=3)  # two of which are empty: there is no dimension 0
    with pytest.raises(RegionFormatError, match="no status file"):
        reader.read(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("huge_pages", b"?"), ("numa", b"far"), ("n_nodes", -1), ("n_listed", 65), ("n_listed", -1)],
)
def test_pages_and_nodes_that_no_manager_has_are_refused(field, value, path):
    record = np.frombuffer(path.read_bytes(), layout.STATUS).copy()
    record["placement"]["huge_pages"], record["placement"]["numa"] = b"thp", b"none"
    record["placement"]["policy"] = b"none"
    edited(path, placement=record["placement"])
    assert reader.read(path).placement.huge_pages == "thp"
    record["placement"][field] = value
    edited(path, placement=record["placement"])
    with pytest.raises(RegionFormatError, match="pages and nodes"):
        reader.read(path)


def test_links_folders_and_pipes_are_not_read(path, tmp_path):
    link, pipe = tmp_path / "link.status", tmp_path / "pipe.status"
    link.symlink_to(path)
    os.mkfifo(pipe)
    for each in (link, pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(RegionIOError, match=str(each)):
            reader.read(each)


# -- torn reads ------------------------------------------------------------------------------------


def read_against_a_writer(store, path, n_reads):
    """Read a file that is written all the time; each is of one moment."""
    with shown_manager(store, path) as manager:
        watcher, over, errors = manager._engine.watcher, threading.Event(), []

        def write():
            try:
                while not over.is_set():
                    offset = manager.allocate(100)
                    watcher._write()
                    manager.deallocate(offset)
                    watcher._write()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            seen = set()
            for _ in range(n_reads):
                counters = reader.read(path).counters
                n_live = counters["total_allocations"] - counters["total_deallocations"]
                assert n_live in (0, 1)
                assert counters["total_allocated_bytes"] == n_live * 4096
                seen.add(counters["total_allocations"])
        finally:
            over.set()
            thread.join(PATIENCE_SECONDS)
        assert errors == []
        return seen


def test_no_read_is_torn(store, tmp_path):
    assert len(read_against_a_writer(store, tmp_path / "here.status", 300)) > 2


WRITING = """
import sys
from jessymem import MemoryConfig, MmapManager
with MmapManager(MemoryConfig(64, sys.argv[1], status=sys.argv[2], simulation="never")) as manager:
    watcher = manager._engine.watcher
    print(flush=True)
    while True:
        offset = manager.allocate(100)
        watcher._write()
        manager.deallocate(offset)
        watcher._write()
"""


@pytest.mark.slow
def test_of_a_million_reads_none_is_torn(store, tmp_path):
    """Of a process that does nothing but write: each has a checksum that holds, and agrees."""
    path = tmp_path / "here.status"
    command = [sys.executable, "-c", WRITING, str(store), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        seen = set()
        for _ in range(1_000_000):
            counters = status_record(path)["counters"]
            n_live = counters["total_allocations"] - counters["total_deallocations"]
            assert n_live in (0, 1)
            assert counters["total_allocated_bytes"] == n_live * 4096
            seen.add(int(counters["total_allocations"]))
        process.kill()
    assert len(seen) > 1_000


def test_it_is_watched_until_it_ends(store, tmp_path):
    path = tmp_path / "here.status"
    manager = shown_manager(store, path)
    watched = reader.watch(path, PATIENCE_SECONDS, 0.001)
    first = next(watched)
    manager.load_dimension("D01")
    rewrite(manager)
    second = next(watched)
    assert second.written_at > first.written_at
    assert (first.n_dimensions, second.n_dimensions) == (0, 1)
    manager.close()
    assert list(watched) == []
    with pytest.raises(RegionIOError):
        next(reader.watch(path, 1))
