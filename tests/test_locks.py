"""`Lock`, and what may not wait for one: calls that interrupt another call of their own thread."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.internals import budget_of, writing

from jessymem import InvalidAccess, LayerNotFound, MmapManager, RegionBuilder
from jessymem.locks import Lock

PATIENCE_SECONDS = 30


def in_thread(call) -> object:
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return found[0] if found else "it waits"


def test_one_thread_at_a_time_first_come_first_served():
    lock, log = Lock(), []

    def add_many() -> None:
        for _ in range(500):
            with lock.hold():
                log.append("in")
                log.append("out")

    threads = [threading.Thread(target=add_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert log == ["in", "out"] * 2_000


def test_its_holder_may_take_it_again():
    lock = Lock()
    with lock.hold():
        assert lock.is_mine()
        with lock.hold():
            pass
        assert lock.is_mine()
        assert in_thread(lock.hold_if_free) is None
    assert not lock.is_mine()
    assert in_thread(lock.hold_if_free) is not None


def test_it_is_free_once_nobody_holds_what_holds_it():
    lock = Lock()
    hold = lock.hold()
    assert in_thread(lock.is_mine) is False
    assert in_thread(lock.hold_if_free) is None
    del hold
    assert in_thread(lock.hold_if_free) is not None


def test_who_waits_is_woken_by_an_end_that_nobody_told():
    lock = Lock()
    hold = [lock.hold()]
    waits = threading.Event()

    def wait() -> bool:
        waits.set()
        with lock.hold():
            return lock.is_mine()

    found = []
    thread = threading.Thread(target=lambda: found.append(wait()))
    thread.start()
    assert waits.wait(PATIENCE_SECONDS)
    hold.clear()
    thread.join(PATIENCE_SECONDS)
    assert found == [True]


# -- calls that interrupt others -------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path):
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, b"content")
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    with MmapManager(64, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        yield manager


class OtherWriter:
    """A thread that writes, and wants the budget's lock too when it is told to go on."""

    def __init__(self, manager: MmapManager) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.write, args=(manager,), daemon=True)
        self.thread.start()
        assert self.inside.wait(PATIENCE_SECONDS)

    def write(self, manager: MmapManager) -> None:
        with writing(manager):
            self.inside.set()
            self.go_on.wait(PATIENCE_SECONDS)
            with budget_of(manager).changing():
                pass

    def finish(self) -> None:
        self.go_on.set()
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


def test_what_a_finalizer_gives_up_waits_for_nobody(manager):
    # A collection in the middle of `get_stats` runs a finalizer of the user's while another thread
    # writes, which will want the lock that `get_stats` holds.
    layer = manager.create_proto_dimension("D21", b"learned")
    other = OtherWriter(manager)
    with budget_of(manager).changing():
        other.go_on.set()
        manager.discard_proto_dimension(layer)
    other.finish()
    manager.get_stats()
    assert layer not in manager
    assert manager.get_stats().total_used_bytes == len(manager.access_layer("L20-00").obj)


def test_what_would_have_to_wait_is_refused_at_once(manager):
    manager.deallocate(manager.allocate(1))
    other = OtherWriter(manager)
    with budget_of(manager).changing():
        with pytest.raises(InvalidAccess, match="another thread is writing"):
            manager.create_proto_dimension("D21", b"learned")
    other.finish()
    manager.create_proto_dimension("D21", b"learned")


@pytest.mark.parametrize("give_up", ["unload", "unpin", "close", "discard", "drop"])
def test_what_is_given_up_within_a_write_goes_after_it(give_up, manager):
    layer = manager.create_proto_dimension("D21", b"learned")
    manager.overlay_layer("L20-00", b"more")
    if give_up == "unload":
        manager.drop_overlay("L20-00")
    calls = {
        "unload": lambda: manager.unload_dimension("D20"),
        "unpin": lambda: manager.unpin("D20"),
        "close": manager.close,
        "discard": lambda: manager.discard_proto_dimension(layer),
        "drop": lambda: manager.drop_overlay("L20-00"),
    }
    manager.pin("D20")
    with writing(manager):
        before = manager.dump_state()
        calls[give_up]()
        assert manager.dump_state() == before
    assert manager.dump_state() != before


def test_what_goes_wrong_afterwards_is_recorded(manager, caplog):
    layer = manager.create_proto_dimension("D21", b"learned")
    with caplog.at_level(logging.WARNING, "jessymem"), writing(manager):
        manager.discard_proto_dimension(layer)
        manager.discard_proto_dimension(layer)
    assert layer not in manager
    (record,) = [each for each in caplog.records if each.event == "postponed_failed"]
    assert record.error == LayerNotFound.__name__


LEFT_OPEN = """
import sys
from jessymem import MmapManager, RegionBuilder
builder = RegionBuilder("D20", "Name")
builder.add_layer(0, b"content")
builder.build_to_file(sys.argv[1] + "/D20/region.mmap")
manager = MmapManager(64, base_path=sys.argv[1])
manager.load_dimension("D20")
manager.overlay_layer("L20-00", "more")
manager.create_proto_dimension("D21", "learned")
held = [manager.access_layer("L20-00"), manager.get_stats(), manager.store()]
"""


@pytest.mark.parametrize("n_lines", [7, 8, 11])
def test_a_manager_that_is_left_open_ends_with_the_interpreter_and_says_nothing(n_lines, tmp_path):
    code = "\n".join(LEFT_OPEN.splitlines()[: n_lines + 1])
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
