"""Blocks handed out: what each kernel changes, and that a failure changes nothing.

The pools are made by hand, so that every word of the state is known.
"""

from __future__ import annotations

import pytest
from support.pools import (
    Pools,
    add_pool,
    changed,
    generation_in,
    partly_dirty,
)

from jessymem.kernels import allocation, blocks
from jessymem.kernels import schema as s

# -- which pool ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_bytes", "pool"),
    [(1, 1), (63, 1), (64, 1), (65, 0), (256, 0), (257, 2), (1023, 2), (1024, 2)],
)
@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_the_best_fitting_pool_serves(tier, kernel, n_bytes, pool):
    pools = Pools(tier, (256, 4), (64, 4), (1024, 4))  # ids need not follow sizes
    handle = getattr(pools, kernel)(n_bytes)
    assert pools.location(handle)[0] == pool
    block_bytes = int(pools.table.rows[pool]["block_bytes"])
    assert pools.charged == (block_bytes, block_bytes)
    assert pools.table.blocks_of(pool)["n_requested"][pools.location(handle)[1]] == n_bytes
    pools.check()


@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_full_pools_are_passed_over_in_the_order_of_their_blocks(tier, kernel):
    pools = Pools(tier, (64, 2), (256, 1), (1024, 2))
    allocate = getattr(pools, kernel)
    handles = [allocate(10) for _ in range(5)]
    assert [pools.location(handle)[0] for handle in handles] == [0, 0, 1, 2, 2]
    assert allocate(10) == s.POOL_FULL
    assert pools.failures() == [4, 3, 1]
    assert pools["USED"] == 2 * 64 + 256 + 2 * 1024
    for handle in handles:
        assert pools.free(handle, 10) == s.OK
    assert pools["USED"] == 0
    pools.check()


def test_of_pools_alike_the_older_is_filled_first(tier):
    pools = Pools(tier, (64, 1), (64, 1), (128, 1), (64, 1))
    assert [pools.location(pools.allocate(64))[0] for _ in range(4)] == [0, 1, 3, 2]


@pytest.mark.parametrize("n_bytes", [0, -1, -(2**63)])
@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_no_size_is_a_bad_size(tier, kernel, n_bytes):
    pools = Pools(tier, (64, 2))
    before = pools.state.copy()
    assert getattr(pools, kernel)(n_bytes) == s.BAD_SIZE
    assert pools.state.tolist() == before.tolist()


def test_the_short_way_leaves_large_requests_alone(tier):
    pools = Pools(tier, (64, 4), (256, 4))
    before = pools.state.copy()
    assert pools.allocate(257) == s.TOO_LARGE
    assert pools.state.tolist() == before.tolist()
    pools.state[s.INLINE_LIMIT] = 100
    assert pools.allocate(101) == s.TOO_LARGE
    assert pools.location(pools.allocate(100))[0] == 1
    assert pools.location(pools.allocate_any(101))[0] == 1


def test_without_a_pool_there_is_none(tier):
    pools = Pools(tier)
    assert pools.allocate(1) == s.TOO_LARGE
    assert pools.allocate_any(1) == s.NO_POOL
    assert pools.allocate_many(1) == (s.NO_POOL, 0)


def test_blocks_are_handed_out_until_none_is_left(tier):
    pools = Pools(tier, (64, 130))
    taken = pools.take_all(0)
    assert sorted(taken) == list(range(130))
    assert (pools.n_free(), pools["USED"], pools["PEAK"]) == (0, 130 * 64, 130 * 64)
    assert pools.table.words_of(0).tolist() == [0, 0, 0]
    assert pools.allocate(1) == s.POOL_FULL
    pools.check()


def test_addresses_are_those_of_the_blocks(tier):
    pools = Pools(tier, (64, 4), (256, 4))
    for pool, size in ((0, 64), (1, 256)):
        start = int(pools.table.rows[pool]["address"])
        for block, handle in pools.take_all(pool).items():
            assert blocks.address_of(pools.argument, handle) == start + block * size


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_bytes", "n_blocks"), [(257, 2), (512, 2), (513, 3), (256 * 70, 70)])
def test_what_is_larger_than_a_block_takes_several_in_a_row(tier, n_bytes, n_blocks):
    pools = Pools(tier, (64, 16), (256, 80))
    before = pools.state.copy()
    handle = pools.allocate_any(n_bytes)
    assert pools.location(handle) == (1, 0)
    assert pools.charged == (256 * n_blocks, 256 * n_blocks)
    assert pools.n_free(1) == 80 - n_blocks
    states = pools.table.blocks_of(1)["status"] & s.STATE_MASK
    assert states.tolist() == (
        [s.BLOCK_ALLOCATED]
        + [s.BLOCK_CONTINUED] * (n_blocks - 1)
        + [s.BLOCK_FREE] * (80 - n_blocks)
    )
    pools.check()
    assert pools.free(handle, n_bytes) == s.OK
    pools.trim(1)
    after = pools.state.copy()
    after[int(pools.table.rows[1]["blocks_at"]) : len(after)] = 0
    before[int(pools.table.rows[1]["blocks_at"]) : len(before)] = 0
    assert changed(before, after) == []
    pools.check()


def test_a_run_is_not_taken_where_a_block_is_in_the_way(tier):
    pools = Pools(tier, (64, 66))
    taken = pools.take_all(0)
    for block in (0, 1, 3, 62, 63, 64, 65):
        pools.free(taken[block])
    handle = pools.allocate_any(3 * 64)
    assert pools.location(handle) == (0, 62)
    assert pools.allocate_any(3 * 64) == s.FRAGMENTED  # four are free
    assert pools.allocate_any(5 * 64) == s.POOL_FULL
    assert pools.location(pools.allocate_any(2 * 64)) == (0, 0)
    pools.check()


def test_a_whole_pool_is_a_run(tier):
    pools = Pools(tier, (64, 130))
    handle = pools.allocate_any(130 * 64)
    assert pools.location(handle) == (0, 0)
    assert pools.allocate_any(1) == s.POOL_FULL
    assert pools.free(handle) == s.OK
    assert pools.allocate_any(130 * 64 + 1) == s.POOL_FULL
    pools.check()


def test_runs_lie_in_the_largest_blocks_only(tier):
    pools = Pools(tier, (64, 64), (256, 2))
    assert pools.location(pools.allocate_any(512)) == (1, 0)
    assert pools.allocate_any(512) == s.POOL_FULL
    assert pools.n_free(0) == 64


def test_the_next_pool_with_the_largest_blocks_serves_a_run_too(tier):
    pools = Pools(tier, (64, 2), (64, 4))
    assert pools.location(pools.allocate_any(3 * 64)) == (1, 0)
    assert pools.location(pools.allocate_any(2 * 64)) == (0, 0)
    assert pools.failures() == [1, 0]


@pytest.mark.parametrize("fragmented", [0, 1])
def test_fragmented_is_told_before_full(tier, fragmented):
    pools = Pools(tier, (64, 4), (64, 4))
    taken = [pools.take_all(0), pools.take_all(1)]
    for block in (0, 2):
        pools.free(taken[fragmented][block])
    assert pools.allocate_any(2 * 64) == s.FRAGMENTED


def test_a_run_that_was_lost_to_another_thread_is_looked_for_again(plain, monkeypatch):
    pools = Pools(plain, (64, 130))
    real, lost = allocation.bitmap.claim_run, []

    def claim_run(*arguments):
        if not lost:
            lost.append(pools.take(0, 64))
        return real(*arguments)

    monkeypatch.setattr(allocation.bitmap, "claim_run", claim_run)
    monkeypatch.setattr(blocks, "start_word", lambda n_words: 1)
    handle = pools.allocate_any(100 * 64)
    assert pools.location(lost[0]) == (0, 64)
    assert handle == s.FRAGMENTED
    assert pools.table.rows[0]["rollbacks"] == 1
    assert pools.n_free() == 129
    assert pools.location(pools.allocate_any(64 * 64)) == (0, 0)
    pools.check()


def test_a_search_that_a_roll_back_blinded_is_made_again(plain, monkeypatch):
    # Another thread holds half of a run while this one searches, and then returns it.
    pools = Pools(plain, (64, 128))
    row = pools.table.rows[0]
    first, summary = int(row["bitmap_at"]), int(row["summary_at"])
    real, searches = allocation.bitmap.find_run, []

    def find_run(*arguments):
        searches.append(arguments)
        if len(searches) > 1:
            return real(*arguments)
        assert allocation.bitmap.claim_run(pools.state, first, summary, 0, 100) == s.OK
        found = real(*arguments)
        allocation.bitmap.release_run(pools.state, first, summary, 0, 100)
        row["rollbacks"] += 1
        return found

    monkeypatch.setattr(allocation.bitmap, "find_run", find_run)
    assert pools.location(pools.allocate_any(100 * 64)) == (0, 0)
    assert len(searches) == 2


def test_a_run_that_is_not_there_keeps_no_block_from_others(plain, monkeypatch):
    pools = Pools(plain, (64, 4))
    taken = pools.take_all(0)
    for block in (0, 2):
        pools.free(taken[block])
    real, meanwhile = allocation.bitmap.find_run, []

    def find_run(*arguments):
        if not meanwhile:
            meanwhile.append(pools.allocate(64))
        return real(*arguments)

    monkeypatch.setattr(allocation.bitmap, "find_run", find_run)
    assert pools.allocate_any(2 * 64) in (s.FRAGMENTED, s.POOL_FULL)
    assert meanwhile[0] >= 0


# -- what fails half-way ---------------------------------------------------------------------------

#
# Every word is compared but for those that count failures, roll-backs and the peak.


def half_used(tier):
    """Make a pool of eight blocks: the odd ones are free, of them 1 and 5 were used before."""
    pools = Pools(tier, (64, 8))
    taken = pools.take_all(0)
    for block in (1, 3, 5, 7):
        pools.free(taken[block])
    pools.make_clean(0, 3, 7)
    pools.check()
    return pools


def assert_unchanged(pools, before, *, peak=None):
    assert changed(before, pools.state) == []
    if peak is not None:
        assert pools["PEAK"] == peak
    pools.check()


def test_a_full_pool_changes_nothing(tier):
    pools = Pools(tier, (64, 3))
    pools.take_all(0)
    before = pools.state.copy()
    assert pools.take(0, 64) == s.POOL_FULL
    assert_unchanged(pools, before, peak=3 * 64)
    assert pools.failures() == [1]


@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_a_block_over_the_limit_is_given_back(tier, kernel):
    pools = half_used(tier)
    limit = pools["USED"] + 63
    pools.state[s.QUIET_LIMIT] = pools.state[s.CRITICAL_LIMIT] = limit
    before = pools.state.copy()
    assert getattr(pools, kernel)(64) == s.OVER_LIMIT
    assert_unchanged(pools, before, peak=8 * 64)
    assert pools.failures() == [0]  # the pool had a block
    pools.state[s.QUIET_LIMIT] = pools.state[s.CRITICAL_LIMIT] = limit + 1
    assert getattr(pools, kernel)(64) >= 0
    pools.check()


def test_a_limit_is_that_of_the_call(tier):
    pools = Pools(tier, (64, 3))
    pools.state[s.QUIET_LIMIT] = 64
    assert pools.allocate(64) >= 0
    assert pools.allocate(64) == s.OVER_LIMIT
    assert pools.allocate_any(64) >= 0


@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_a_clean_block_that_may_not_become_resident_is_given_back(tier, kernel):
    pools = Pools(tier, (64, 66))
    pools.state[s.RESIDENT_LIMIT] = 63
    before = pools.state.copy()
    assert getattr(pools, kernel)(10) == s.RETAINED
    assert_unchanged(pools, before)
    pools.state[s.RESIDENT_LIMIT] = 64
    assert getattr(pools, kernel)(10) >= 0
    assert getattr(pools, kernel)(10) == s.RETAINED
    pools.check()


def test_the_last_block_of_a_word_is_given_back_with_its_hint(tier):
    pools = Pools(tier, (64, 65))
    taken = pools.take_all(0)
    pools.free(taken[64])
    pools.trim(0)
    pools.state[s.RESIDENT_LIMIT] = 65 * 64 - 1
    before = pools.state.copy()
    assert pools.allocate(64) == s.RETAINED
    assert_unchanged(pools, before)


def test_a_dirty_block_is_resident_already(tier):
    pools = Pools(tier, (64, 66))
    pools.use_all(0)
    pools.state[s.RESIDENT_LIMIT] = 0
    assert pools.allocate(64) >= 0
    assert pools.charged == (64, 66 * 64)
    pools.check()


def test_a_run_that_does_not_fit_changes_nothing(tier):
    pools = half_used(tier)
    before = pools.state.copy()
    assert pools.allocate_any(5 * 64) == s.POOL_FULL
    assert_unchanged(pools, before)
    assert pools.failures() == [1]
    assert pools.allocate_any(2 * 64) == s.FRAGMENTED
    assert_unchanged(pools, before)
    assert pools.failures() == [2]


def test_a_run_over_the_limit_is_given_back(tier):
    pools = partly_dirty(tier)
    peak = pools["PEAK"]
    pools.state[s.CRITICAL_LIMIT] = 70 * 64 - 1
    before = pools.state.copy()
    assert pools.allocate_any(70 * 64) == s.OVER_LIMIT
    assert_unchanged(pools, before, peak=peak)
    assert pools.failures() == [0]
    pools.state[s.CRITICAL_LIMIT] = 70 * 64
    assert pools.location(pools.allocate_any(70 * 64)) == (0, 0)
    pools.check()


def test_a_run_whose_clean_blocks_may_not_become_resident_is_given_back(tier):
    pools = partly_dirty(tier)
    n_resident = pools["RESIDENT"]
    assert n_resident == 8 * 64
    pools.state[s.RESIDENT_LIMIT] = n_resident + 63 * 64 - 1
    before = pools.state.copy()
    assert pools.allocate_any(70 * 64) == s.RETAINED  # 63 of 70 are clean
    assert_unchanged(pools, before)
    pools.state[s.RESIDENT_LIMIT] += 1
    assert pools.location(pools.allocate_any(70 * 64)) == (0, 0)
    assert pools.charged == (70 * 64, n_resident + 63 * 64)
    pools.check()


def without_blocks(pools, words):
    """Return the words before the pools' segments, the bitmaps and the summaries."""
    kept = words.copy()
    for pool in pools.table.pool_ids:
        row = pools.table.rows[pool]
        start = int(row["blocks_at"])
        kept[start : start + int(row["n_blocks"]) * s.BLOCK_WORDS] = 0
    return kept


@pytest.mark.parametrize("at", [0, 1, 3, 4])
@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        (s.BAD_SIZE, 0),
        (s.POOL_FULL, 256 * 10),
        (s.FRAGMENTED, 256 * 8),
        (s.OVER_LIMIT, 256),
        (s.RETAINED, 256),
    ],
)
def test_many_are_allocated_or_none(tier, at, code, wrong):
    pools = Pools(tier, (64, 66), (256, 9))
    pools.use_all(0)
    if code == s.RETAINED:  # of the larger blocks none was used: they are not resident
        pools.state[s.RESIDENT_LIMIT] = pools["RESIDENT"] + 255
    else:
        pools.use_all(1)
    if code == s.FRAGMENTED:
        taken = pools.take_all(1)
        for block in set(taken) - {4}:
            pools.free(taken[block])
    sizes = [64, 10, 64, 1]
    if code == s.OVER_LIMIT:
        pools.state[s.CRITICAL_LIMIT] = at * 64 + 255
    sizes.insert(at, wrong)
    before = pools.state.copy()
    result = pools.allocate_many(*sizes)
    assert result == (code, at)
    assert changed(without_blocks(pools, before), without_blocks(pools, pools.state)) == []
    for pool in (0, 1):
        status = pools.table.blocks_of(pool)["status"]
        old = before[int(pools.table.rows[pool]["blocks_at"]) :][: 2 * len(status) : 2]
        assert status.tolist() == old.tolist()  # generations too: it counts as no allocation
    pools.check()


def test_many_give_runs_back_too(tier):
    pools = Pools(tier, (64, 130))
    pools.use_all(0)
    before = pools.state.copy()
    assert pools.allocate_many(70 * 64, 64, 64, 128 * 64) == (s.POOL_FULL, 3)
    assert changed(without_blocks(pools, before), without_blocks(pools, pools.state)) == []
    code, handles = pools.allocate_many(70 * 64, 64, 64, 58 * 64)
    assert code == s.OK
    assert len(set(handles)) == 4
    pools.check()


def test_none_of_many_is_no_failure(tier):
    pools = Pools(tier, (64, 2))
    before = pools.state.copy()
    assert pools.allocate_many() == (s.OK, [])
    assert pools.free_many() == (s.OK, -99)
    assert pools.state.tolist() == before.tolist()


def test_many_are_what_single_calls_would_give(tier):
    sizes = [64, 65, 1, 300, 256, 64, 700]
    together, alone = (Pools(tier, (64, 4), (256, 8)) for _ in range(2))
    code, handles = together.allocate_many(*sizes)
    assert code == s.OK
    assert handles == [alone.allocate_any(n_bytes) for n_bytes in sizes]
    together.check()


# -- generations -----------------------------------------------------------------------------------


def test_each_owner_of_a_block_has_a_generation_of_its_own(tier):
    pools = Pools(tier, (64, 1))
    seen = []
    for _ in range(5):
        handle = pools.allocate(64)
        assert pools.location(handle) == (0, 0)
        seen.append(generation_in(handle))
        assert pools.free(handle) == s.OK
    assert seen == [1, 2, 3, 4, 5]


def test_the_generation_in_a_handle_starts_over_where_its_bits_end(tier):
    pools = Pools(tier, (64, 1))
    status = pools.table.blocks_of(0)["status"]
    status[0] = (2**28 - 2) << s.GENERATION_SHIFT
    seen = []
    for _ in range(3):
        handle = pools.allocate(64)
        assert pools.free(handle) == s.OK
        seen.append(handle)
    assert list(map(generation_in, seen)) == [2**28 - 1, 0, 1]
    assert [pools.free(handle) for handle in seen] == [s.STALE, s.STALE, s.FREED_TWICE]


def test_the_generation_of_a_block_starts_over_where_its_bits_end(tier):
    pools = Pools(tier, (64, 1))
    status = pools.table.blocks_of(0)["status"]
    status[0] = (2**39 - 1) << s.GENERATION_SHIFT
    handle = pools.allocate(64)
    assert generation_in(handle) == 0
    assert int(status[0]) >> s.GENERATION_SHIFT == 0
    assert pools.free(handle) == s.OK


def test_only_the_first_block_of_a_run_has_a_new_owner(tier):
    pools = Pools(tier, (64, 4))
    pools.free(pools.allocate_any(3 * 64))
    status = pools.table.blocks_of(0)["status"]
    assert (status >> s.GENERATION_SHIFT).tolist() == [1, 0, 0, 0]


def test_a_pool_under_an_old_id_goes_on_with_the_generations(tier):
    pools = Pools(tier, (64, 4), kind=s.POOL_GROWN)
    old = [pools.allocate(64)]
    assert pools.free(old[0]) & s.IS_EMPTY
    blocks.close_pool(pools.argument, 0)
    pools.table.remove(0)
    assert pools.free(old[0]) == s.NOT_A_POOL
    add_pool(pools.table, 64, 4, s.POOL_GROWN)
    assert pools.free(old[0]) == s.NEVER_ALLOCATED
    handle = pools.allocate(64)
    assert handle != old[0]
    assert pools.free(old[0]) == s.STALE
    assert pools.free(handle) & s.IS_EMPTY
