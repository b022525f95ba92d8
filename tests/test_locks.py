"""`Lock`, and what may not wait for one: calls that interrupt another call of their own thread."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.internals import budget_of, wants_a_lock, writing

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


def test_a_call_that_interrupts_one_that_waits_waits_for_nobody(manager):
    # This thread waits for the budget's lock, and its turn would come while a handler of its own
    # waits for a writer who waits for this thread's turn to be over.
    budget, told = budget_of(manager), []
    has, go_on, is_called = threading.Event(), threading.Event(), threading.Event()

    def hold_budget() -> None:
        with budget.changing():
            has.set()
            go_on.wait(PATIENCE_SECONDS)

    def handle(*arguments: object) -> None:
        other = OtherWriter(manager)
        other.go_on.set()
        go_on.set()
        try:
            manager.create_proto_dimension("D21", b"learned")
        except InvalidAccess as error:
            told.append(str(error))
        is_called.set()

    def interrupt() -> None:
        while not any(thread == main for thread, *_ in budget.lock._claims.copy().values()):
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        holder = threading.Thread(target=hold_budget, daemon=True)
        holder.start()
        assert has.wait(PATIENCE_SECONDS)
        threading.Thread(target=interrupt, daemon=True).start()
        manager.get_stats()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert is_called.is_set() and len(told) == 1


def test_what_is_closed_while_a_charge_ends_is_closed_after_it(manager, monkeypatch):
    view = manager.access_layer("L20-00")
    manager.unload_dimension("D20")
    budget = budget_of(manager)
    take_out = budget._take_out_ended

    def take_out_and_close() -> None:
        monkeypatch.undo()
        manager.close()
        take_out()

    monkeypatch.setattr(budget, "_take_out_ended", take_out_and_close)
    del view
    with pytest.raises(InvalidAccess, match="closed"):
        manager.list_dimensions()


def test_records_of_blocks_wait_until_no_lock_is_held(tmp_path, caplog):
    def build(content: bytes) -> None:
        builder = RegionBuilder("D20", "Name")
        builder.add_layer(0, content)
        builder.build_to_file(tmp_path / "D20" / "region.mmap")

    build(b"old" * 2**20)
    held = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            held.append(wants_a_lock(manager))

    logger = logging.getLogger("jessymem")
    handler = Handler()
    with MmapManager(16, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        manager.overlay_layer("L20-00", "more")
        build(b"new" * 2**20)
        logger.addHandler(handler)
        with caplog.at_level(logging.DEBUG, "jessymem"):
            assert manager.refresh("D20")
        logger.removeHandler(handler)
        assert bytes(manager.access_layer("L20-00")).endswith(b"new\nmore")
    assert len(held) > 1 and not any(held)


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
