"""An allocator that is called in the middle of its own calls, and what runs under its lock.

As a signal handler does, or a finalizer: here the nested call comes at a chosen line of this
package, one after the other, so nothing depends on time.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from support.internals import budget_lock_of, changing_budget_of, replace_eviction
from support.lines import at_line

from jessymem import AllocationFailed, InvalidAccess, LimitExceeded, MmapOffset, PoolAllocator
from jessymem.kernels import _jit

KIB, MIB = 2**10, 2**20
PATIENCE_SECONDS = 5
#: The default run strikes at every so manieth line only; which ones differs from case to case.
STRIDE = 7


def call_at(n_th: int, call: Callable[[], Any], nested: Callable[[], Any]) -> bool:
    """Make a call, and another at its n-th line; return whether there are so many."""
    return at_line(n_th, call, lambda _: nested()) >= n_th


class Case:
    """An allocator with little left, and calls that take the fast way, every slow one, and back."""

    def __init__(self) -> None:
        self.evicted: list[int] = []
        self.allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16, evict=self.evicted.append)
        self.kept = self.allocator.allocate(100)
        self.refused = 0

    def fast(self) -> None:
        self.allocator.deallocate(self.allocator.allocate(100))

    def grow(self) -> None:
        offset = self.allocator.allocate(3 * MIB)
        self.allocator.deallocate(offset)

    def pass_a_threshold(self) -> None:
        offsets = [self.allocator.allocate(4 * MIB) for _ in range(3)]
        offsets.append(self.allocator.allocate(2 * MIB))
        for offset in offsets:
            self.allocator.deallocate(offset)

    def refuse(self) -> None:
        try:
            self.allocator.deallocate(self.allocator.allocate(20 * MIB))
        except LimitExceeded:
            self.refused += 1

    def many(self) -> None:
        self.allocator.deallocate_many(self.allocator.allocate_many([100, 5_000, 2 * MIB]))

    def view(self) -> None:
        offset = self.allocator.allocate(5_000)
        view = self.allocator.view(offset, 5_000)
        self.allocator.deallocate(offset, 5_000)
        view[0] = 1
        del view
        self.allocator.allocate_array((10, 10))

    def trim(self) -> None:
        self.allocator.deallocate(self.allocator.allocate(MIB))
        self.allocator.trim()

    def look(self) -> None:
        self.allocator.validate()
        self.allocator.survey()
        assert self.allocator.usage[0] >= 0
        repr(self.allocator.pools)

    def nested(self) -> None:
        """Do a bit of everything; being refused is right, but for what needs nothing made."""
        allocator = self.allocator
        offset = allocator.allocate(100)
        view = allocator.view(offset, 100)
        assert not any(view)
        view[:] = b"x" * 100
        allocator.deallocate(offset)
        del view
        for size in (5_000, 6 * MIB):
            try:
                allocator.deallocate(allocator.allocate(size), size)
            except (AllocationFailed, LimitExceeded):
                self.refused += 1
        try:
            allocator.deallocate_many(allocator.allocate_many([64, MIB]))
        except (AllocationFailed, LimitExceeded):
            self.refused += 1
        allocator.trim()
        assert allocator.usage[0] >= 4 * KIB
        assert len(allocator.pools) >= 1


CALLS = ["fast", "grow", "pass_a_threshold", "refuse", "many", "view", "trim", "look"]


def call_everywhere(call: str, step: int) -> None:
    case = Case()
    gc.disable()
    try:
        for _ in range(2):
            getattr(case, call)()
            case.nested()
        before = case.allocator.usage
        n_th = 1 + CALLS.index(call) % step
        while call_at(n_th, getattr(case, call), case.nested):
            n_th += step
            assert case.allocator.validate() == []
            assert case.allocator.usage == before
    finally:
        gc.enable()
    assert n_th > step
    check_lock_is_free(case.allocator)


def check_lock_is_free(allocator: PoolAllocator) -> None:
    done = []
    thread = threading.Thread(target=lambda: done.append(allocator.trim()), daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert done


@pytest.mark.parametrize("call", CALLS)
def test_calls_in_the_middle_of_a_call_corrupt_nothing(call):
    call_everywhere(call, STRIDE)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_calls_at_any_line_of_a_call_corrupt_nothing(call):
    call_everywhere(call, 1)


def test_an_allocator_may_be_closed_in_the_middle_of_any_call():
    for call in CALLS:
        n_th = 1
        is_there = True
        while is_there:
            case = Case()
            try:
                is_there = call_at(n_th, getattr(case, call), case.allocator.close)
            except InvalidAccess:
                is_there = True
            n_th += 3 * STRIDE
            if not is_there:
                break
            with pytest.raises(InvalidAccess, match="closed"):
                case.allocator.allocate(1)
            case.allocator.close()
            assert case.allocator.usage[0] == 0


def test_an_allocator_may_be_closed_while_it_starts():
    is_there, n_th = True, 1
    while is_there:
        allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16)
        try:
            is_there = call_at(n_th, lambda: allocator.allocate(1), allocator.close)  # noqa: B023
        except InvalidAccess:
            is_there = True
        n_th += 1
        if not is_there:
            break
        with pytest.raises(InvalidAccess, match="closed"):
            allocator.allocate(1)
        assert allocator.usage[0] == 0


def test_an_allocator_that_starts_in_the_middle_of_a_start_agrees_with_itself():
    is_there, n_th = True, 1
    while is_there:
        allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16)
        handles: list[MmapOffset] = []

        def nested(allocator=allocator, handles=handles) -> None:
            try:
                handles.append(allocator.allocate(1))
            except InvalidAccess as error:
                assert "in the middle" in str(error)

        is_there = call_at(n_th, lambda: handles.append(allocator.allocate(1)), nested)  # noqa: B023
        n_th += 1
        assert allocator.usage[0] == 4 * KIB * len(handles)
        assert allocator.validate() == []


class Struck(BaseException):
    """What comes from outside."""


@pytest.mark.parametrize(
    "call",
    [
        lambda allocator: [allocator.allocate(3 * MIB)],
        lambda allocator: [allocator.allocate(13 * MIB)],
        lambda allocator: allocator.allocate_many([100, 2 * MIB]).tolist(),
        lambda allocator: [][: allocator.trim()],
    ],
    ids=["a new pool", "past thresholds", "many", "trim"],
)
def test_an_exception_at_any_line_of_a_slow_call_leaves_nothing_behind(call):
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16)
    offsets: list[Any] = []

    def strike() -> None:
        raise Struck

    def make_call() -> None:
        offsets.extend(call(allocator))

    def put_back() -> None:
        for offset in offsets:
            allocator.deallocate(offset)
        offsets.clear()
        allocator.trim()  # which takes up what an interrupted one has left

    make_call()
    put_back()
    n_th, is_there = 1, True
    while is_there:
        try:
            is_there = call_at(n_th, make_call, strike)
        except Struck:
            is_there = True
        put_back()
        assert allocator.usage[0] == 0, n_th
        assert allocator.validate() == [], n_th
        n_th += 1
    check_lock_is_free(allocator)


# -- two threads -----------------------------------------------------------------------------------


def test_a_call_that_interrupts_one_that_waits_for_its_turn_does_not_wait_for_it():
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16)
    allocator.deallocate(allocator.allocate(1))
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with budget_lock_of(allocator).hold():
            inside.set()
            go_on.wait(PATIENCE_SECONDS)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(PATIENCE_SECONDS)
    done = []

    def wait_and_be_interrupted() -> None:
        def nested() -> None:
            go_on.set()
            done.append(allocator.trim())

        lines = iter(range(100))

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            # Past the line where it has queued up.
            if event == "line" and frame.f_code.co_name == "hold" and waits(frame):
                if next(lines) == 0:
                    sys.settrace(None)
                    nested()
            return count

        def waits(frame: FrameType) -> bool:
            return "mine" in frame.f_locals

        before = sys.gettrace()  # coverage's
        sys.settrace(lambda frame, event, argument: count)
        try:
            allocator.trim()
        finally:
            sys.settrace(before)
        done.append(0)

    thread = threading.Thread(target=wait_and_be_interrupted, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    holder.join(PATIENCE_SECONDS)
    assert len(done) == 2


# -- under the lock --------------------------------------------------------------------------------


class Foreign(logging.Handler):
    """A handler of records, and an eviction, that look whether the lock is held."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lock_of_budget: Any = None
        self.events: list[str] = []
        self.under_lock: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.event)

    def evict(self, n_bytes: int) -> None:
        self.note("evict")

    def note(self, event: str) -> None:
        self.events.append(event)
        if self.lock_of_budget is not None and self.lock_of_budget.is_mine():
            self.under_lock.append(event)


@pytest.fixture
def foreign():
    handler = Foreign()
    log = logging.getLogger("jessymem")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    log.setLevel(level)
    log.removeHandler(handler)


EVENTS = {
    "allocated",
    "deallocated",
    "pool_grown",
    "memory_pressure",
    "allocation_failed",
    "evict",
}


@pytest.mark.parametrize("is_nested", [False, True])
def test_nothing_foreign_runs_under_the_lock(is_nested, foreign):
    case = Case()
    foreign.lock_of_budget = budget_lock_of(case.allocator)
    replace_eviction(case.allocator, foreign.evict)

    def everything() -> None:
        for call in CALLS:
            getattr(case, call)()

    if is_nested:
        with changing_budget_of(case.allocator):
            try:
                everything()
            except (AllocationFailed, LimitExceeded):
                pass
            assert not foreign.events[2:]  # but for the first allocation of the case
        assert {"allocated", "deallocated"} < set(foreign.events)
    else:
        everything()
        assert set(foreign.events) == EVENTS
    assert not foreign.under_lock
    assert case.allocator.validate() == []


@pytest.mark.skipif(_jit.is_disabled(), reason="the records are the same")
def test_records_of_a_nested_call_come_when_the_lock_is_given_back(foreign):
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16)
    allocator.deallocate(allocator.allocate(1))
    foreign.events.clear()
    with changing_budget_of(allocator):
        allocator.deallocate(allocator.allocate(1))
        with pytest.raises(AllocationFailed, match="what this interrupts"):
            allocator.allocate(2 * MIB)
        with pytest.raises(AllocationFailed, match="what this interrupts"):
            allocator.add_pool(1, 4 * KIB)
        assert foreign.events == []
    assert foreign.events == ["allocated", "deallocated", "allocation_failed"]
