"""Blocks before their kernels are compiled, while they are, and afterwards.

Calls from a signal handler, a finalizer, from outside or from the thread that switches come at a
chosen line of this package, one after the other, so nothing depends on time.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from support.internals import PlainTier, plain_version_of
from support.processes import checked_in_child, needs_fork

import jessymem
from jessymem import InvalidAccess, PoolAllocator
from jessymem.kernels import _jit, transactions
from jessymem.pools.stored import free, store

FOLDERS = (str(Path(jessymem.__file__).parent), str(Path(_jit.__file__).parent))
KIB, MIB = 2**10, 2**20
PATIENCE_SECONDS = 60
#: Every so manieth line only; which ones differs from call to call.
STRIDE = 13


class Struck(BaseException):
    """What comes from outside."""


@pytest.fixture
def tier(monkeypatch):
    return PlainTier(monkeypatch)


def interrupt(n_th, call, action):
    """Make a call, and another thing at its n-th line; return whether there are so many."""
    n_seen = 0

    def watch(frame, event, argument):
        return count if frame.f_code.co_filename.startswith(FOLDERS) else None

    def count(frame, event, argument):
        nonlocal n_seen
        if event == "line":
            n_seen += 1
            if n_seen == n_th:
                sys.settrace(None)
                action()
        return count

    before = sys.gettrace()  # coverage's
    sys.settrace(watch)
    try:
        call()
    except Struck:
        return True
    finally:
        sys.settrace(before)
    return n_seen >= n_th


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
