"""Views of blocks, zeros and pages, as kernels count them."""

from __future__ import annotations

import numpy as np
import pytest
from support.pools import (
    Pools,
    changed,
    partly_dirty,
    status_of,
)

from jessymem.kernels import blocks, release
from jessymem.kernels import schema as s

# -- views -----------------------------------------------------------------------------------------


def test_a_viewed_block_waits_for_its_last_view(tier):
    pools = Pools(tier, (64, 2))
    handle = pools.allocate(40)
    assert [pools.view(handle, n_bytes) for n_bytes in (0, 40)] == [s.OK, s.OK]
    assert pools.free(handle, 40) == s.IS_WAITING
    assert (pools.n_free(), pools["USED"]) == (1, 64)
    assert pools.free(handle) == s.FREED_TWICE
    assert pools.view(handle) == s.FREED_TWICE
    pools.check()
    assert pools.drop(handle) == s.OK
    assert (pools.n_free(), pools["USED"]) == (1, 64)
    assert pools.drop(handle) == s.OK
    assert (pools.n_free(), pools["USED"]) == (2, 0)
    assert pools.free(handle) == s.FREED_TWICE
    pools.check()


def test_a_block_stays_when_views_go_before_it(tier):
    pools = Pools(tier, (64, 2))
    handle = pools.allocate(64)
    before = pools.state.copy()
    assert pools.view(handle) == s.OK
    assert pools.drop(handle) == s.OK
    assert pools.state.tolist() == before.tolist()
    assert pools.free(handle) == s.OK
    pools.check()


@pytest.mark.parametrize(("n_bytes", "code"), [(0, 0), (99, 0), (100, 0), (101, s.OUT_OF_BOUNDS)])
def test_a_view_ends_where_the_request_does(tier, n_bytes, code):
    pools = Pools(tier, (128, 2))
    handle = pools.allocate(100)
    before = pools.state.copy()
    assert pools.view(handle, n_bytes) == code
    assert (code == 0) == (pools.state.tolist() != before.tolist())


def test_there_are_no_more_views_than_can_be_counted(tier):
    pools = Pools(tier, (64, 2))
    handle = pools.allocate(64)
    status = pools.table.blocks_of(0)["status"]
    status[0] += s.VIEWS_MASK - s.ONE_VIEW
    assert pools.view(handle) == s.OK
    before = pools.state.copy()
    assert pools.view(handle) == s.TOO_MANY_VIEWS
    assert pools.state.tolist() == before.tolist()
    assert pools.free(handle) == s.IS_WAITING
    assert int(status[0]) >> s.GENERATION_SHIFT == 1
    assert pools.drop(handle) == s.OK
    assert int(status[0]) & s.STATE_MASK == s.BLOCK_WAITING


def test_a_viewed_run_waits_as_one(tier):
    pools = Pools(tier, (64, 130))
    handle = pools.allocate_any(100 * 64 - 5)
    pools.view(handle, 100 * 64 - 5)
    assert pools.free(handle) == s.IS_WAITING
    assert (pools.n_free(), pools["USED"]) == (30, 100 * 64)
    pools.check()
    assert pools.drop(handle) == s.OK
    assert (pools.n_free(), pools["USED"]) == (130, 0)
    pools.check()


def test_the_last_view_tells_what_the_block_would_have(tier):
    pools = Pools(tier, (64, 2), kind=s.POOL_GROWN)
    pools.state[s.REARM_BELOW] = 1
    handle = pools.allocate(64)
    pools.view(handle)
    assert pools.free(handle) == s.IS_WAITING
    assert pools.drop(handle) == s.IS_REARMED | s.IS_EMPTY


def test_views_that_go_while_many_are_given_back_let_the_block_go(plain, monkeypatch):
    pools = Pools(plain, (64, 4))
    handles = [pools.allocate(64) for _ in range(2)]
    pools.view(handles[0])
    real = release.release_marked

    def leave(*arguments):
        monkeypatch.setattr(release, "release_marked", real)
        assert pools.drop(handles[0]) == s.OK
        return real(*arguments)

    monkeypatch.setattr(release, "release_marked", leave)
    assert pools.free_many(*handles) == (s.OK, -99)
    assert (pools.n_free(), pools["USED"]) == (4, 0)
    pools.check()


@pytest.mark.parametrize("step", ["view", "free", "drop"])
def test_a_status_that_another_thread_changed_is_looked_at_again(plain, monkeypatch, step):
    pools = Pools(plain, (64, 4))
    handle = pools.allocate(64)
    if step == "drop":
        pools.view(handle)
    atomics = release.atomics
    real = atomics.compare_and_swap

    def compare_and_swap(*arguments):
        monkeypatch.setattr(atomics, "compare_and_swap", real)
        if step == "free":
            assert pools.free(handle) == s.OK
        else:
            assert getattr(pools, step)(handle) == s.OK
        return real(*arguments)

    monkeypatch.setattr(atomics, "compare_and_swap", compare_and_swap)
    expected = {"view": s.IS_WAITING, "free": s.FREED_TWICE, "drop": s.OK}
    assert pools.free(handle) == expected[step]
    assert pools["USED"] == (64 if step == "view" else 0)
    pools.check()


def test_a_retired_pool_takes_all_back_but_what_is_viewed(tier):
    pools = Pools(tier, (64, 130), (256, 4))
    run = pools.allocate_any(2 * 256)
    handles = pools.take_all(0)
    waiting, viewed = handles[7], handles[100]
    pools.view(waiting)
    pools.free(waiting)
    pools.view(viewed)
    pools.view(viewed)
    assert pools.retire(0) == 2
    assert (pools.n_free(), pools["USED"]) == (128, 2 * 64 + 2 * 256)
    pools.check()
    assert pools.retire(1) == 0
    assert pools.free(run) == s.FREED_TWICE
    assert pools.retire(0) == 2
    assert [pools.drop(handle) for handle in (waiting, viewed, viewed)] == [0, 0, 0]
    assert pools.retire(0) == 0
    assert pools["USED"] == 0
    pools.check()


# -- zeros -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zero", "n_bytes", "expected"),
    [(1, 64, [0] * 64), (1, 10, [0] * 10 + [0xEE] * 54), (0, 64, [0xEE] * 64)],
)
def test_a_used_block_is_zeroed_as_far_as_it_was_asked_for(tier, zero, n_bytes, expected):
    pools = Pools(tier, (64, 3))
    pools.use_all(0)
    pools.bytes_of(0)[:] = 0xEE
    pools.state[s.ZERO_ON_REUSE] = zero
    handle = pools.allocate(n_bytes)
    block = pools.location(handle)[1]
    got = pools.bytes_of(0).reshape(3, 64)
    assert got[block].tolist() == expected
    assert (got[[i for i in range(3) if i != block]] == 0xEE).all()


def test_a_fresh_block_is_not_written(tier):
    pools = Pools(tier, (64, 3))
    pools.bytes_of(0)[:] = 0xEE  # no allocator would: it tells who writes
    pools.allocate(64)
    assert (pools.bytes_of(0) == 0xEE).all()


@pytest.mark.parametrize(("zero", "n_bytes"), [(1, 70 * 64), (1, 63 * 64 + 1), (0, 70 * 64)])
def test_of_a_run_the_used_blocks_are_zeroed(tier, zero, n_bytes):
    pools = partly_dirty(tier)
    expected = np.full(131 * 64, 0xEE, np.uint8)
    if zero:
        expected[60 * 64 : min(67 * 64, n_bytes)] = 0
    handle = pools.allocate_any(n_bytes, zero=zero)
    assert pools.location(handle) == (0, 0)
    assert pools.bytes_of(0).tolist() == expected.tolist()
    status = pools.table.blocks_of(0)["status"]
    n_blocks = -(-n_bytes // 64)
    assert (status[:n_blocks] & s.BLOCK_DIRTY != 0).all()
    pools.check()


def test_many_are_zeroed_where_reuse_is(tier):
    for zero in (0, 1):
        pools = Pools(tier, (64, 4))
        pools.use_all(0)
        pools.bytes_of(0)[:] = 0xEE
        pools.state[s.ZERO_ON_REUSE] = zero
        assert pools.allocate_many(64, 3 * 64)[0] == s.OK
        assert (pools.bytes_of(0) == (0 if zero else 0xEE)).all()


# -- pages of freed blocks -------------------------------------------------------------------------


def test_what_is_freed_stays_resident_until_its_pages_are_given_back(tier):
    pools = Pools(tier, (64, 8))
    handles = [pools.allocate(64) for _ in range(3)]
    assert pools.charged == (192, 192)
    for handle in handles:
        pools.free(handle)
    assert pools.charged == (0, 192)
    again = pools.allocate(64)
    assert pools.charged == (64, 192 if status_of(pools.table, again) >> 24 == 2 else 256)
    pools.check()
    pools.trim(0)
    assert pools.charged == (64, 64)
    pools.check()


@pytest.mark.parametrize(
    ("states", "start", "run"),
    [
        # c: never used, u: used and free, a: allocated
        ("cccc", 0, (4, 0)),
        ("uuuu", 0, (0, 4)),
        ("uuuu", 2, (2, 2)),
        ("uuuu", 4, (4, 0)),
        ("cuuc", 0, (1, 2)),
        ("cuac", 0, (1, 1)),
        ("aaaa", 0, (4, 0)),
        ("auau", 0, (1, 1)),
        ("auau", 2, (3, 1)),
        ("ccau", 0, (3, 1)),
    ],
)
def test_runs_of_used_blocks_are_claimed(tier, states, start, run):
    pools = Pools(tier, (64, 4))
    taken = pools.take_all(0)
    for block, state in enumerate(states):
        if state != "a":
            pools.free(taken[block])
        if state == "c":
            pools.make_clean(0, block)
    before = pools.state.copy()
    assert pools.claim_dirty(0, start) == run
    first, n_blocks = run
    n_free = states.count("c") + states.count("u")
    assert pools.n_free() == n_free - n_blocks
    claimed = sum(1 << block for block in range(first, first + n_blocks))
    words = pools.table.words_of(0)
    assert int(words[0]) & claimed == 0
    if n_blocks:
        blocks.release(pools.argument, 0, first, n_blocks)
    assert pools.state.tolist() == before.tolist()
    pools.check()


def test_used_blocks_are_claimed_across_words(tier):
    pools = Pools(tier, (64, 200))
    pools.use_all(0)
    taken = pools.take(0, 64)
    block = pools.location(taken)[1]
    found, at = [], 0
    while at < 200:
        first, n_blocks = pools.claim_dirty(0, at)
        found += range(first, first + n_blocks)
        at = first + n_blocks
    assert found == [i for i in range(200) if i != block]
    assert (pools.n_free(), pools.allocate(64)) == (0, s.POOL_FULL)


def test_blocks_under_a_trim_are_nobodys(tier):
    pools = Pools(tier, (64, 66))
    pools.use_all(0)
    assert pools.claim_dirty(0) == (0, 66)
    before = pools.state.copy()
    assert pools.allocate(64) == s.POOL_FULL
    assert pools.allocate_any(2 * 64) == s.POOL_FULL
    assert changed(before, pools.state) == []
    pools.clean(0, 0, 66)
    assert pools.charged == (0, 0)
    handle = pools.allocate(64)
    assert handle >= 0
    assert pools.charged == (64, 64)
    pools.check()


def test_a_run_over_used_and_fresh_blocks_admits_the_fresh_ones(tier):
    pools = partly_dirty(tier)
    resident = pools["RESIDENT"]
    assert pools.location(pools.allocate_any(62 * 64)) == (0, 0)
    assert pools.charged == (62 * 64, resident + 60 * 64)
    pools.check()


def test_a_block_lost_to_another_thread_is_not_trimmed(plain, monkeypatch):
    pools = Pools(plain, (64, 4))
    pools.use_all(0)
    real = blocks.count_off
    taken = []

    def count_off(*arguments):
        monkeypatch.setattr(blocks, "count_off", real)
        taken.append(pools.take(0, 64))
        return real(*arguments)

    monkeypatch.setattr(blocks, "count_off", count_off)
    assert pools.claim_dirty(0) == (1, 3)
    assert pools.location(taken[0]) == (0, 0)
    assert pools.n_free() == 0
