"""Blocks freed: what each kernel changes and reports, and what may not be freed."""

from __future__ import annotations

import pytest
from support.pools import (
    CRITICAL,
    Pools,
    add_pool,
    handle_for,
)

from jessymem.kernels import allocation, blocks
from jessymem.kernels import schema as s

# -- another pool under the same id ----------------------------------------------------------------


def replace_pools(pools, *fresh):
    """Unmake every pool, as one does that is empty, and make others under the same ids."""
    for pool in pools.table.pool_ids:
        assert blocks.close_pool(pools.state, pool) == s.OK
        pools.table.remove(pool)
    for block_bytes, n_blocks in fresh:
        add_pool(pools.table, block_bytes, n_blocks, s.POOL_GROWN)


@pytest.mark.parametrize("n_bytes", [256, 65, 1024, 1025, 2048])
@pytest.mark.parametrize("n_fresh", [1, 2])
def test_a_pool_that_was_replaced_by_one_of_smaller_blocks_is_not_taken_for_it(
    plain, monkeypatch, n_bytes, n_fresh
):
    # A thread may stop between its look at a pool and its claim; meanwhile the pool was empty.
    pools = Pools(plain, (256, 4), (1024, 4), kind=s.POOL_GROWN)
    real = blocks.count_off

    def count_off(*arguments):
        monkeypatch.setattr(blocks, "count_off", real)
        replace_pools(pools, *[(64, 40)] * n_fresh)
        return real(*arguments)

    monkeypatch.setattr(blocks, "count_off", count_off)
    assert pools.allocate_any(n_bytes) == s.POOL_FULL
    assert pools.charged == (0, 0)
    fresh = pools.table.pool_ids
    assert len(fresh) == n_fresh and min(fresh) == 2  # ids stay with the size of their blocks
    assert pools.n_free(2) == 40
    pools.check()
    assert pools.location(pools.allocate_any(n_bytes))[0] in fresh
    assert pools["USED"] == -(-n_bytes // 64) * 64
    pools.check()


def test_a_pool_that_was_replaced_by_one_of_the_same_blocks_serves(plain, monkeypatch):
    pools = Pools(plain, (64, 40), kind=s.POOL_GROWN)
    old = pools.allocate(64)
    pools.free(old)
    real = blocks.count_off

    def count_off(*arguments):
        monkeypatch.setattr(blocks, "count_off", real)
        replace_pools(pools, (64, 4))
        pools.state[s.RESIDENT] = 0
        return real(*arguments)

    monkeypatch.setattr(blocks, "count_off", count_off)
    handle = pools.allocate_any(64)
    assert pools.location(handle) == (0, 0)
    assert handle != old and pools.free(old) == s.STALE
    assert pools.charged == (64, 64)
    pools.check()


# -- what may not be freed -------------------------------------------------------------------------


def wrong_handles(tier):
    """Make pools in every condition; return them, and handles by name with their codes."""
    pools = Pools(tier, (64, 66), (256, 4))
    taken = pools.take_all(0)
    viewed, freed, reused = taken[5], taken[4], taken[3]
    pools.view(viewed)
    pools.free(viewed)
    pools.free(reused)
    between = pools.take(0, 64)
    pools.free(between)
    assert {pools.location(each)[1] for each in (between, pools.take(0, 64))} == {3}
    pools.free(freed)
    run = pools.allocate_any(600)
    return pools, {
        "no pool": (handle_for(2, 0, 1), s.NOT_A_POOL),
        "the last id": (handle_for(126, 0, 1), s.NOT_A_POOL),
        "no id": (handle_for(127, 0, 1), s.NOT_A_POOL),
        "a negative handle": (-1, s.NOT_A_POOL),
        "the least handle": (-(2**63), s.NOT_A_POOL),
        "past the end": (handle_for(0, 66 * 64, 1), s.PAST_END),
        "far past the end": (handle_for(0, (2**28 - 1) * 64, 1), s.PAST_END),
        "past the end and inside a block": (handle_for(1, 4 * 256 + 64, 1), s.PAST_END),
        "inside a block": (handle_for(1, 64, 1), s.NOT_A_BLOCK),
        "inside a run": (handle_for(1, 256, 0), s.NOT_A_BLOCK),
        "inside a run, its generation": (run + (256 // 64 << 28), s.NOT_A_BLOCK),
        "never handed out": (handle_for(1, 3 * 256, 1), s.NEVER_ALLOCATED),
        "freed": (freed, s.FREED_TWICE),
        "the first of three owners": (reused, s.STALE),
        "the second of three owners": (between, s.STALE),
        "an owner to come": (taken[6] + 1, s.STALE),
        "waiting": (viewed, s.FREED_TWICE),
    }


WRONG = [
    "no pool",
    "the last id",
    "no id",
    "a negative handle",
    "the least handle",
    "past the end",
    "far past the end",
    "past the end and inside a block",
    "inside a block",
    "inside a run",
    "inside a run, its generation",
    "never handed out",
    "freed",
    "the first of three owners",
    "the second of three owners",
    "an owner to come",
    "waiting",
]


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("action", ["free", "free with its size", "view"])
def test_a_wrong_handle_has_its_code_and_changes_nothing(tier, name, action):
    pools, cases = wrong_handles(tier)
    assert list(cases) == WRONG
    handle, code = cases[name]
    before = pools.state.copy()
    if action == "view":
        assert pools.view(handle, 1) == code
    else:
        assert pools.free(handle, 64 if "size" in action else s.ANY_SIZE) == code
    assert pools.state.tolist() == before.tolist()
    pools.check()


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_wrong_handle_among_many_leaves_them_all(tier, name, at):
    pools, cases = wrong_handles(tier)
    handle, code = cases[name]
    status = pools.table.blocks_of(0)["status"]
    right = [handle_for(0, block * 64, int(status[block]) >> 24) for block in (10, 65, 20)]
    before = pools.state.copy()
    mixed = [*right[:at], handle, *right[at:]]
    assert pools.free_many(*mixed) == (code, at)
    assert pools.state.tolist() == before.tolist()
    assert pools.free_many(*right) == (s.OK, -99)
    pools.check()


@pytest.mark.parametrize("n_bytes", [0, 1, 99, 101, 128, -2, 2**62])
def test_a_wrong_size_changes_nothing(tier, n_bytes):
    pools = Pools(tier, (128, 4))
    handle = pools.allocate(100)
    before = pools.state.copy()
    assert pools.free(handle, n_bytes) == s.WRONG_SIZE
    assert pools.state.tolist() == before.tolist()
    assert pools.free(handle, 100) == s.OK


@pytest.mark.parametrize(
    ("pool", "offset", "code"),
    [
        (-1, 0, s.NOT_A_POOL),
        (2, 0, s.NOT_A_POOL),
        (127, 0, s.NOT_A_POOL),
        (0, -64, s.PAST_END),
        (0, 4 * 64, s.PAST_END),
        (0, 2**62, s.PAST_END),
        (0, 1, s.NOT_A_BLOCK),
        (0, 63, s.NOT_A_BLOCK),
        (1, 64, s.NOT_A_BLOCK),
        (1, 256, s.NOT_A_BLOCK),  # of the run
        (1, 3 * 256, s.NEVER_ALLOCATED),
    ],
)
def test_a_place_without_an_owner_resolves_to_its_code(tier, pool, offset, code):
    pools = Pools(tier, (64, 4), (256, 4))
    run = pools.allocate_any(700)
    assert blocks.resolve(pools.argument, pool, offset) == code
    assert blocks.resolve(pools.argument, 1, 0) == run
    pools.free(run)
    assert blocks.resolve(pools.argument, 1, 0) == s.FREED_TWICE


# -- many freed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "failed"), [((0, 0), 1), ((0, 1, 2, 0), 3), ((2, 1, 1, 0), 2), ((0, 3, 2, 3), 3)]
)
def test_a_handle_that_is_there_twice_leaves_them_all(tier, positions, failed):
    pools = Pools(tier, (64, 66), (256, 1))
    run = int(allocation.allocate_run(pools.argument, 0, 64 * 64, CRITICAL, 1))
    handles = [pools.allocate(64), pools.allocate(64), pools.allocate(256), run]
    before = pools.state.copy()
    assert pools.free_many(*[handles[i] for i in positions]) == (s.FREED_TWICE, failed)
    assert pools.state.tolist() == before.tolist()
    pools.check()
    assert pools.free_many(*handles) == (s.OK, -99)
    assert pools["USED"] == 0
    pools.check()


def test_what_many_report_is_added_up(tier):
    pools = Pools(tier, (64, 66), (256, 1))
    pools.state[s.REARM_BELOW] = 3 * 64
    handles = [pools.take(0, 64) for _ in range(4)]
    pools.view(handles[1])
    assert pools.free_many(handles[0], handles[1]) == (s.IS_WAITING, -99)
    assert pools.free_many(handles[2], handles[3]) == (s.IS_REARMED, -99)
    assert pools.drop(handles[1]) == s.IS_REARMED
    pools.table.rows[0]["kind"] = s.POOL_GROWN
    handles = [pools.take(0, 64), pools.take(1, 256)]
    assert pools.free_many(*handles) == (s.IS_REARMED | s.IS_EMPTY, -99)
    pools.check()


# -- what freeing reports --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [s.POOL_FIXED, s.POOL_GROWN])
def test_only_a_grown_pool_is_told_to_be_empty(tier, kind):
    pools = Pools(tier, (64, 4), kind=kind)
    handles = [pools.allocate(64), pools.allocate_any(2 * 64)]
    assert pools.free(handles[0]) == s.OK
    assert pools.free(handles[1]) == (s.IS_EMPTY if kind == s.POOL_GROWN else s.OK)


def test_a_fall_is_told_until_the_mark_is_moved(tier):
    pools = Pools(tier, (64, 4))
    pools.state[s.REARM_BELOW] = 2 * 64
    handles = [pools.allocate(64) for _ in range(4)]
    assert [pools.free(handle) for handle in handles] == [0, 0, s.IS_REARMED, s.IS_REARMED]


def test_nobody_claims_from_a_closed_pool(tier):
    pools = Pools(tier, (64, 4), (256, 1))
    handle = pools.allocate(64)
    before = pools.state.copy()
    assert blocks.close_pool(pools.argument, 0) == s.POOL_FULL
    assert pools.state.tolist() == before.tolist()
    pools.free(handle)
    assert blocks.close_pool(pools.argument, 0) == s.OK
    assert pools.n_free(0) == s.CLOSED_POOL
    assert pools.claim_dirty(0) == (4, 0)
    assert pools.location(pools.allocate(64))[0] == 1
    assert pools.allocate(64) == s.POOL_FULL
    assert pools.n_free(0) == s.CLOSED_POOL
