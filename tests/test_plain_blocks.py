"""Blocks before their kernels are compiled, while they are, and afterwards.

Calls from a signal handler, a finalizer, from outside or from the thread that switches come at a
chosen line of this package, one after the other, so nothing depends on time.
"""

from __future__ import annotations

import gc
import os
import threading
from contextlib import suppress
from time import sleep

import pytest
from support import samples
from support.internals import PlainTier, plain_version_of, table_of
from support.lines import KERNELS, PACKAGE, at_line
from support.processes import checked_in_child, needs_fork

from jessymem import InvalidAccess, PoolAllocator
from jessymem.kernels import _jit, atomics, blocks, transactions
from jessymem.kernels import schema as s
from jessymem.pools.stored import free, store

KIB, MIB = 2**10, 2**20
PATIENCE_SECONDS = 60
#: Every so manieth line only; which ones differs from call to call.
STRIDE = 71


class Struck(BaseException):
    """What comes from outside."""


@pytest.fixture
def tier(monkeypatch):
    return PlainTier(monkeypatch)


def interrupt(n_th, call, action):
    """Make a call, and another thing at its n-th line; return whether there are so many."""
    try:
        return at_line(n_th, call, lambda _: action(), folders=(PACKAGE, KERNELS)) >= n_th
    except Struck:
        return True


class Case:
    """An allocator, and calls of which each leaves all as it was, but for what it was struck in."""

    def __init__(self):
        self.allocator = PoolAllocator([(1, 4 * KIB), (1, 64 * KIB)], limit_mb=16)
        self.kept = self.allocator.allocate(100)
        self.view_of_kept = self.allocator.view(self.kept, 100)
        self.view_of_kept[:] = b"k" * 100
        self.offsets = []
        self.nested_offsets = []

    def one(self):
        self.offsets.append(self.allocator.allocate(5_000))
        view = self.allocator.view(self.offsets[-1], 5_000)
        assert not any(view)
        view[:] = b"x" * 5_000
        del view
        self.allocator.deallocate(self.offsets[-1], 5_000)
        self.offsets.pop()

    def run(self):
        self.offsets.append(self.allocator.allocate(300_000))
        self.allocator.deallocate(self.offsets[-1])
        self.offsets.pop()

    def many(self):
        offsets = self.allocator.allocate_many([100, 70_000, 64 * KIB])
        self.offsets.extend(offsets.tolist())
        self.allocator.deallocate_many(offsets)
        del self.offsets[-3:]

    def waiting(self):
        array = self.allocator.allocate_array((3, 5))
        assert not array.any()
        array += 1

    def stored(self):
        blocks = store(self.allocator, [[b"some", b"thing"]])
        assert bytes(blocks[0].view) == b"something"
        free(self.allocator, blocks)

    def trim(self):
        self.allocator.trim()

    def nested(self):
        """Do what a handler might, and leave it."""
        offset = self.allocator.allocate(200)
        view = self.allocator.view(offset, 200)
        assert not any(view)
        view[:] = b"n" * 200
        self.allocator.deallocate_many(self.allocator.allocate_many([64, 64]))
        self.nested_offsets.append((offset, view))
        del self.view_of_kept  # whose end is collected in here
        self.view_of_kept = self.allocator.view(self.kept, 100)
        assert self.allocator.usage[0] > 0

    def check(self):
        """Everything is exact, and what is held is untouched; what is left over goes back."""
        assert self.allocator.validate() == []
        assert bytes(self.view_of_kept) == b"k" * 100
        for offset, view in self.nested_offsets:
            assert bytes(view) == b"n" * 200
            self.allocator.deallocate(offset)
            del view
        self.nested_offsets.clear()


def check_lines(call, action_of, check, monkeypatch):
    """Make the call of a new case, and let something happen at one of its lines after the other."""
    n_th, is_there = 1 + len(call) % STRIDE, True
    while is_there:
        with monkeypatch.context() as patch:
            tier, case = PlainTier(patch), Case()
            getattr(case, call)()
            before = case.allocator.usage[0]
            is_there = interrupt(n_th, getattr(case, call), action_of(tier, case))
            check(case)
            gc.collect()
            assert case.allocator.validate() == []
            assert case.allocator.usage[0] == before, n_th
            del case
        n_th += STRIDE


CALLS = ["one", "run", "many", "waiting", "stored", "trim"]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_in_the_middle_of_a_plain_call_is_done(call, monkeypatch):
    check_lines(call, lambda tier, case: case.nested, Case.check, monkeypatch)


def strike():
    raise Struck


def give_back(case):
    """Free what a call was struck behind of."""
    for offset in case.offsets:
        with suppress(InvalidAccess):
            case.allocator.deallocate(offset)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", CALLS)
def test_an_exception_from_outside_leaves_nothing_half_done(call, monkeypatch):
    check_lines(call, lambda tier, case: strike, give_back, monkeypatch)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [RuntimeError, ValueError, Struck])
@pytest.mark.parametrize("call", CALLS)
def test_an_error_from_outside_right_after_a_step_is_no_reason_to_take_it_again(
    call, error, monkeypatch
):
    """Words that are not of one moment lead to errors too: those are taken for nothing."""
    PlainTier(monkeypatch)
    case, n_steps = Case(), [0]
    take_step = transactions.PlainState._take_step

    def strike_after(self, version, changes):
        is_taken = take_step(self, version, changes)
        n_steps[0] += is_taken
        if is_taken and n_steps[0] == n_th:
            raise error
        return is_taken

    getattr(case, call)()
    before = case.allocator.usage[0]
    for n_th in range(1, 4):
        n_steps[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(transactions.PlainState, "_take_step", strike_after)
            with suppress(error):
                getattr(case, call)()
        give_back(case)
        gc.collect()
        assert case.allocator.validate() == []
        assert case.allocator.usage[0] == before, n_th


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
@pytest.mark.parametrize("call", CALLS)
def test_compiled_kernels_take_over_in_the_middle_of_any_call(call, monkeypatch):
    def action_of(tier, case):
        def switch():
            case.nested()
            tier.switch()
            case.nested()

        return switch

    def check(case):
        is_switched = plain_version_of(case.allocator) == transactions.COMPILED
        assert is_switched == bool(case.nested_offsets)
        case.check()
        getattr(case, call)()
        offset = case.allocator.allocate(10)
        with pytest.raises(InvalidAccess):
            case.allocator.deallocate(offset, 11)
        case.allocator.deallocate(offset)
        with pytest.raises(InvalidAccess, match="freed before"):
            case.allocator.deallocate(offset)

    check_lines(call, action_of, check, monkeypatch)


# -- threads ---------------------------------------------------------------------------------------

N_THREADS = 4
N_ROUNDS = 30


class Worker(threading.Thread):
    """Takes and frees blocks with its own sign in them until it has seen all that it is to see."""

    def __init__(self, allocator, sign, is_over):
        super().__init__()
        self.allocator = allocator
        self.sign = bytes([sign])
        self.is_over = is_over
        self.n_rounds = 0
        self.failure = None

    def run(self):
        try:
            while not self.is_over.is_set() or self.n_rounds % N_ROUNDS:
                self.work()
                self.n_rounds += 1
        except BaseException as error:
            self.failure = error
            raise

    def work(self):
        allocator, sign = self.allocator, self.sign
        offsets = [allocator.allocate(n_bytes) for n_bytes in (100, 5_000, 200_000)]
        views = [allocator.view(offset, 100) for offset in offsets]
        for view in views:
            assert not any(view)
            view[:] = sign * 100
        array = allocator.allocate_array(100, "u1")
        array[:] = sign[0]
        many = allocator.allocate_many([64] * 10)
        for offset, view in zip(offsets, views, strict=True):
            allocator.deallocate(offset)
            assert bytes(view) == sign * 100
        assert bytes(array) == sign * 100
        allocator.deallocate_many(many)
        with pytest.raises(InvalidAccess):
            allocator.deallocate_many(many)


def wait_for(condition):
    """Wait until something is so, for as long as a test has patience."""
    for _ in range(PATIENCE_SECONDS * 100):
        if condition():
            return
        sleep(0.01)
    raise AssertionError("it never came")


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_threads_hold_their_blocks_across_the_switch(tier):
    allocator, is_over = (
        PoolAllocator([(1, 4 * KIB), (1, 64 * KIB)], limit_mb=32),
        threading.Event(),
    )
    kept = allocator.allocate(100)
    workers = [Worker(allocator, sign, is_over) for sign in range(1, N_THREADS + 1)]
    for worker in workers:
        worker.start()
    wait_for(lambda: all(worker.n_rounds for worker in workers))
    assert plain_version_of(allocator) != transactions.COMPILED
    tier.switch()
    n_before = [worker.n_rounds for worker in workers]
    wait_for(
        lambda: all(
            worker.n_rounds > n or worker.failure
            for worker, n in zip(workers, n_before, strict=True)
        )
    )
    is_over.set()
    for worker in workers:
        worker.join(PATIENCE_SECONDS)
    assert [worker.failure for worker in workers] == [None] * N_THREADS
    assert plain_version_of(allocator) == transactions.COMPILED
    gc.collect()
    assert allocator.usage[0] == 4 * KIB
    allocator.deallocate(kept)
    assert allocator.validate() == []


def test_a_long_call_gets_through_beside_short_ones(tier):
    """After some tries in vain it keeps others from changing the words, who wait for it."""
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16)
    taken, others, versions = [allocator.allocate(100)], [], []

    def count_failure(state, pool):
        thread = threading.Thread(target=lambda: taken.append(allocator.allocate(100)))
        thread.start()
        versions.append(plain_version_of(allocator))
        if versions[-1] > 0:
            thread.join(PATIENCE_SECONDS)  # it is done, and this in vain
        others.append(thread)
        return int(atomics.add(state, s.POOLS_AT + blocks.FAILURES, 1))

    assert table_of(allocator).argument.call(count_failure, 0) == 0
    for thread in others:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert versions[-1] < transactions.COMPILED < min(versions[:-1])
    assert len(taken) == 1 + len(versions) == 5
    assert [pool.failures for pool in allocator.survey().per_pool.values()] == [1]
    allocator.deallocate_many(taken)
    assert allocator.validate() == []


def test_a_call_that_interrupts_a_long_one_waits_for_nothing(tier):
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16)
    taken = []

    def look_and_allocate(state, pool):
        atomics.load(state, 0)
        if len(taken) < 10:
            taken.append(allocator.allocate(100))
        return int(atomics.load(state, 0))

    allocator.deallocate(allocator.allocate(100))
    assert table_of(allocator).argument.call(look_and_allocate, 0) == 10 * 4 * KIB
    assert plain_version_of(allocator) > 0
    allocator.deallocate_many(taken)
    assert allocator.validate() == []


def test_a_lease_that_nobody_ends_keeps_others_for_a_moment_only(tier):
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=16)
    allocator.deallocate(allocator.allocate(100))
    table_of(allocator).state[s.PLAIN_VERSION] = transactions.COMPILED - 10**6
    allocator.deallocate(allocator.allocate(100))
    assert plain_version_of(allocator) > 0
    assert allocator.validate() == []


# -- processes -------------------------------------------------------------------------------------


class Stopped:
    """A thread that makes a call and stands still at its n-th line, until it may go on."""

    def __init__(self, n_th, call):
        self.is_there, self.may_go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=interrupt, args=(n_th, call, self.stand))
        self.thread.start()
        assert self.is_there.wait(PATIENCE_SECONDS)

    def stand(self):
        self.is_there.set()
        self.may_go_on.wait(PATIENCE_SECONDS)

    def go_on(self):
        self.may_go_on.set()
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


@needs_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@samples.sampled
@pytest.mark.parametrize("n_th", range(20, 220, samples.number(50, of=20)))
def test_a_child_forked_in_the_middle_of_a_plain_call_has_exact_words(n_th, monkeypatch):
    with monkeypatch.context() as patch:
        PlainTier(patch)
        case = Case()
        before = case.allocator.usage[0]
        stopped = Stopped(n_th, lambda: case.allocator.deallocate(case.allocator.allocate(100)))

        def child():
            assert case.allocator.validate() == []
            case.nested()
            case.check()
            assert case.allocator.usage[0] in (before, before + 4 * KIB)

        try:
            checked_in_child(child)
        finally:
            stopped.go_on()
        assert case.allocator.usage[0] == before
        case.check()


@needs_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
@pytest.mark.parametrize("n_th", [1, 2, 3, 5, 8, 13, 21, 30, 40, 50])
def test_a_child_forked_in_the_middle_of_the_switch_ends_it(n_th, monkeypatch):
    with monkeypatch.context() as patch:
        tier = PlainTier(patch)
        case = Case()
        before = case.allocator.usage[0]
        stopped = Stopped(n_th, tier.switch)

        def child():
            case.nested()
            is_compiled = plain_version_of(case.allocator) == transactions.COMPILED
            assert is_compiled == _jit.is_promoted(_jit.MEMORY)
            case.check()
            assert case.allocator.usage[0] == before

        try:
            checked_in_child(child)
            case.nested()
        finally:
            stopped.go_on()
        assert _jit.is_promoted(_jit.MEMORY)
        case.check()
        assert case.allocator.usage[0] == before


@needs_fork
@samples.sampled
@pytest.mark.parametrize("n_th", range(20, 700, samples.number(194, of=97)))
def test_both_go_on_where_a_plain_call_is_interrupted_by_a_fork(n_th, monkeypatch):
    with monkeypatch.context() as patch:
        PlainTier(patch)
        case, pids = Case(), []
        before = case.allocator.usage[0]

        def fork():
            pids.append(os.fork())
            case.nested()

        interrupt(n_th, case.one, fork)
        if pids[0] == 0:
            code = 1
            try:
                case.check()
                code = 0 if case.allocator.usage[0] == before else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
        case.check()
        assert case.allocator.usage[0] == before
