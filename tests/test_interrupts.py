"""An exception that strikes anywhere inside a call leaves no lock, charge or descriptor behind.

As Ctrl-C does, or `PyThreadState_SetAsyncExc`: here it comes at a chosen line or bytecode of this
package, one after the other, so nothing depends on time.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.internals import allocator_of, evict, has_allocator, held_limit_of, wants_a_lock
from support.lines import CONTEXTS, PACKAGE, at_line
from support.system_calls import intercepted

from jessymem import (
    InvalidAccess,
    JessyMemoryError,
    LayerState,
    MmapManager,
    MmapOffset,
    RegionBuilder,
)
from jessymem.errors import clears_frames

PATIENCE_SECONDS = 5
#: The default run strikes at every so manieth line only; which ones differs from verb to verb.
STRIDE = 17
#: And so many bytecodes of each verb.
N_OPCODES = 25
FOLDERS = (PACKAGE, CONTEXTS)
#: Of a timer, in the slow run.
N_INTERRUPTS = 5_000
#: Layers that are learned before, and stay.
N_LEARNED = 3


where: list[str] = []  # it struck last


#: A file that is closed by its end and not by name is what is to happen here.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


class Struck(BaseException):
    """What comes from outside."""


class StruckByError(Exception):
    """The same, as a signal handler may raise it: who handles errors must not take it for one."""


def strike_at(n_th: int, call: Callable[[], Any], manager: MmapManager, of: str = "line") -> bool:
    """Make a call and raise at its n-th line, or bytecode; return whether there are so many."""
    where.clear()

    def strike(frame: FrameType) -> None:
        code = frame.f_code
        where[:] = [f"{code.co_filename}:{frame.f_lineno}, {code.co_name} at {frame.f_lasti}"]
        raise StruckByError if n_th % 2 else Struck

    try:
        n_seen = at_line(n_th, call, strike, folders=FOLDERS, of=of)
    except (Struck, StruckByError):
        # Whoever handles or keeps the exception keeps its frames, but no lock.
        assert not wants_a_lock(manager), f"struck at {where}"
        return True
    return n_seen >= n_th  # inside a finalizer, where it is swallowed


class Case:
    """A manager, a verb, and what puts everything back."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.manager = MmapManager(64, base_path=base)
        self.manager.load_dimension("D20")
        self.manager.deallocate(self.manager.allocate(100))
        self.offsets: list[MmapOffset] = []
        for number in range(N_LEARNED):
            self.manager.create_proto_dimension("D25", b"learned %d" % number)

    def load(self) -> None:
        self.manager.load_dimension("D21")

    def unload(self) -> None:
        self.manager.load_dimension("D21")
        self.manager.unload_dimension("D21")

    def learn(self) -> None:
        self.manager.create_proto_dimension("D22", b"learned", keywords=["word"])

    def learn_more(self) -> None:
        self.manager.create_proto_dimension("D25", b"one more")

    def overlay(self) -> None:
        self.manager.overlay_layer("L20-00", b"more")

    def crystallize(self) -> None:
        self.manager.create_proto_dimension("D23", b"learned")
        self.manager.crystallize_dimension("D23")

    def allocate(self) -> None:
        self.offsets.append(self.manager.allocate(9_000))

    def allocate_much(self) -> None:
        self.offsets.append(self.manager.allocate(41 * 2**20))  # in a pool of its own

    def allocate_many(self) -> None:
        self.offsets.extend(self.manager.allocate_many([100, 9_000, 100_000]))

    def allocate_array(self) -> None:
        assert len(self.manager.allocate_array(100)[:50]) == 50

    def view(self) -> None:
        self.offsets.append(block := self.manager.allocate(100))
        view = self.manager.view(block, 100)[:50]
        self.manager.deallocate(block)
        del view

    def learn_many(self) -> None:
        contents = b"small", b"larger" * 2_000, b"also small"
        self.manager.create_proto_layers([("D22", content) for content in contents])

    def evict(self) -> None:
        clears_frames(evict)(self.manager, 20)
        self.manager.access_layer("L20-00")

    def resize(self) -> None:
        for total_mb in (48, 96, 64):
            self.manager.resize(total_mb)

    def find(self) -> None:
        self.manager.find(b"rain")

    def stats(self) -> None:
        self.manager.get_stats()

    def dump(self) -> None:
        self.manager.dump_state()

    def put_back(self) -> None:
        """Take away what the verb may have made."""
        manager = self.manager
        assert manager.get_stats().total_limit_bytes == manager.config.limit_bytes
        if has_allocator(manager):
            assert allocator_of(manager).usage[1] == held_limit_of(manager)
        manager.resize(64)
        shutil.rmtree(self.base / "D23", ignore_errors=True)
        while self.offsets:
            with suppress(InvalidAccess):  # it was freed
                manager.deallocate(self.offsets.pop())
        for dimension in manager.list_dimensions():
            if dimension == 20:
                continue
            for layer in manager.list_layers(dimension):
                if dimension == 25 and layer.layer < N_LEARNED:
                    assert bytes(manager.access_layer(layer)) == b"learned %d" % layer.layer
                    continue
                if manager.get_layer_info(layer).state.name in ("ACTIVE", "CREATED"):
                    manager.discard_proto_dimension(layer)
            if dimension != 25 and manager.is_loaded(dimension):
                manager.unload_dimension(dimension)
        try:
            manager.drop_overlay("L20-00")
        except JessyMemoryError:
            pass


VERBS = [
    "load",
    "unload",
    "learn",
    "learn_more",
    "learn_many",
    "overlay",
    "crystallize",
    "evict",
    "allocate",
    "allocate_much",
    "allocate_many",
    "allocate_array",
    "view",
    "resize",
    "find",
    "stats",
    "dump",
]


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Let the collector look at what was frozen here, once; then at none of it in other tests."""
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture
def case(tmp_path: Path, monkeypatch):
    shown = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if unraisable.exc_type not in (Struck, StruckByError):
            shown(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", show_others)
    for number in (20, 21):
        builder = RegionBuilder(number, "Name")
        builder.add_layer(0, b"rain since Monday")
        builder.build_to_file(tmp_path / f"D{number}" / "region.mmap")
    case = Case(tmp_path)
    yield case
    case.manager.close()


def state_of(case: Case) -> tuple[Any, ...]:
    gc.collect()
    stats = case.manager.get_stats()
    return (
        stats.total_allocated_bytes,
        stats.waiting_bytes,
        stats.layers_loaded,
        sum(pool.used_blocks for pool in stats.per_pool.values()),
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    )


def check_nothing_is_held(case: Case) -> None:
    """Let another thread read, write and look: it waits for no lock."""
    done = []

    def others() -> None:
        case.manager.get_stats()
        case.manager.pin("D20")
        case.manager.unpin("D20")
        done.append(bytes(case.manager.access_layer("L20-00")))

    thread = threading.Thread(target=others, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert done, f"struck at {where}: another thread waits for a lock that nobody holds"


def strike_everywhere(
    case: Case, verb: str, step: int = 1, of: str = "line", n_times: int | None = None
) -> None:
    """Strike at every so manieth line, or bytecode; or so many times."""
    gc.collect()
    gc.freeze()  # what there is by now need not be looked at again and again
    call = getattr(case, verb)
    call()  # imports, compiles
    case.put_back()
    call()
    case.put_back()
    before = state_of(case)
    if n_times is not None:
        n_all = at_line(0, call, lambda frame: None, folders=FOLDERS, of=of)
        step = max(n_all // n_times, 1)
        case.put_back()
    n_th, n_struck = 1 + VERBS.index(verb) * 13 % step, 0
    while strike_at(n_th, call, case.manager, of):
        n_struck += 1
        n_th += step
        check_nothing_is_held(case)
        case.put_back()
        assert len(case.manager.list_layers("D25")) == N_LEARNED
        assert state_of(case) == before, f"struck at {where}"
    assert n_struck
    case.put_back()
    if has_allocator(case.manager):
        assert allocator_of(case.manager).validate() == []
    call()


@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_leaves_nothing_behind(verb, case):
    strike_everywhere(case, verb, STRIDE)


@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_between_bytecodes_leaves_nothing_behind(verb, case):
    strike_everywhere(case, verb, of="opcode", n_times=N_OPCODES)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_at_any_line_leaves_nothing_behind(verb, case):
    strike_everywhere(case, verb)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_at_any_bytecode_leaves_nothing_behind(verb, case):
    strike_everywhere(case, verb, of="opcode")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such timers")
def test_thousands_of_interrupts_at_any_time_leave_nothing_behind(case):
    """Where the test above chooses the bytecode, here the interpreter does, by its own rules."""
    rng = random.Random(1)
    is_armed = False

    def strike(number: int, frame: FrameType | None) -> None:
        nonlocal is_armed
        if is_armed:
            is_armed = False
            raise Struck

    def interrupt(call: Callable[[], Any]) -> bool:
        nonlocal is_armed
        try:
            is_armed = True
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 3e-3))
            call()
            is_armed = False
        except Struck:
            return True
        return False

    for verb in VERBS:
        getattr(case, verb)()
        case.put_back()
    before = state_of(case)
    replaced = signal.signal(signal.SIGALRM, strike)
    try:
        n_struck = dict.fromkeys(VERBS, 0)
        while sum(n_struck.values()) < N_INTERRUPTS:
            verb = rng.choice(VERBS)
            n_struck[verb] += interrupt(getattr(case, verb))
            case.put_back()
            assert state_of(case) == before, verb
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, replaced)
    assert min(n_struck.values()) > 0
    check_nothing_is_held(case)
    assert allocator_of(case.manager).validate() == []


def test_an_interrupt_of_what_follows_an_error_leaves_no_layer_on_its_way_to_disk(case):
    """Whatever the lines that put things back come to, a layer is its own again afterwards."""
    manager = case.manager

    def refuse(operation: str, path: str, *details: Any) -> None:
        if operation == "sync":
            raise OSError(errno.EIO, "an error of the medium")

    def crystallize() -> None:
        with pytest.raises(JessyMemoryError), intercepted(refuse):
            manager.crystallize_dimension("D25")

    crystallize()
    n_th = 1
    while strike_at(n_th, crystallize, manager):
        states = {manager.get_layer_info(each).state for each in manager.list_layers("D25")}
        assert states == {LayerState.ACTIVE}, f"struck at {where}"
        manager.update_proto_dimension("L25-00", b"learned 0")
        n_th += STRIDE
    assert manager.crystallize_dimension("D25")
