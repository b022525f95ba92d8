"""Blocks handed out and given back: what each kernel changes, and that a failure changes nothing.

The pools are made by hand, so that every word of the state is known.
"""

from __future__ import annotations

import numpy as np
import pytest
from pool_tables import (
    TIERS,
    add_pool,
    changed,
    generation_in,
    handle_for,
    make_table,
    place_of,
    running,
    status_of,
    validate,
)

from jessymem.kernels import allocation, blocks, pages, release
from jessymem.kernels import schema as s

CALM, CRITICAL = s.CALM_LIMIT, s.CRITICAL_LIMIT


class Pools:
    """Hand-made pools, and the kernels on them."""

    def __init__(self, tier, *pools, **options):
        self.table = make_table(*pools, **options)
        self.state = self.table.state
        self.argument = tier.argument(self.state)

    # -- the kernels -------------------------------------------------------------------------------

    def allocate(self, n_bytes):
        return int(allocation.allocate(self.argument, n_bytes, CALM))

    def allocate_any(self, n_bytes, zero=1):
        return int(allocation.allocate_any(self.argument, n_bytes, CRITICAL, zero))

    def allocate_many(self, *sizes):
        """Return the code, and the handles or where it failed."""
        handles = np.zeros(len(sizes) + 1, np.int64)
        wanted = np.array(sizes, np.int64)
        code = allocation.allocate_many(self.argument, wanted, CRITICAL, handles)
        return int(code), handles[: len(sizes)].tolist() if code == s.OK else int(handles[-1])

    def free(self, handle, n_bytes=s.ANY_SIZE):
        return int(release.deallocate(self.argument, handle, n_bytes))

    def free_many(self, *handles):
        """Return the flags or the code, and where it failed."""
        failed = np.full(1, -99, np.int64)
        code = release.deallocate_many(self.argument, np.array(handles, np.int64), failed)
        return int(code), int(failed[0])

    def view(self, handle, n_bytes=0):
        return int(release.add_view(self.argument, handle, n_bytes))

    def drop(self, handle):
        return int(release.drop_view(self.argument, handle))

    def retire(self, pool):
        return int(release.retire_pool(self.argument, pool))

    def claim_dirty(self, pool, start=0):
        """Return the first block of the run, and how many."""
        run = np.full(3, -99, np.int64)
        n_blocks = pages.claim_dirty_run(self.argument, pool, start, 1, run)
        assert run.tolist() == [pool, run[1], n_blocks]
        return int(run[1]), int(n_blocks)

    def trim(self, pool):
        """Give back the pages of all dirty free blocks, as the allocator would."""
        block, n_blocks = self.claim_dirty(pool)
        while n_blocks:
            self.clean(pool, block, n_blocks)
            block, n_blocks = self.claim_dirty(pool, block + n_blocks)

    def clean(self, pool, block, n_blocks):
        size = int(self.table.rows[pool]["block_bytes"])
        self.bytes_of(pool)[block * size : (block + n_blocks) * size] = 0
        pages.mark_clean(self.argument, pool, block, n_blocks)
        blocks.put_back(self.argument, pool, block, n_blocks)

    # -- what there is -----------------------------------------------------------------------------

    def __getitem__(self, name):
        return int(self.state[getattr(s, name)])

    @property
    def charged(self):
        return self["USED"], self["RESIDENT"]

    def n_free(self, pool=0):
        return self.table.n_free(pool)

    def failures(self):
        return [int(self.table.rows[pool]["failures"]) for pool in self.table.pool_ids]

    def place(self, handle):
        assert handle >= 0
        return place_of(self.table, handle)

    def bytes_of(self, pool):
        return np.frombuffer(self.table.memory_at(pool, 0, self.table.n_bytes_of(pool)), np.uint8)

    def take_all(self, pool, n_bytes=None):
        """Take every free block of a pool by itself, the lowest first; return their handles."""
        size = n_bytes or int(self.table.rows[pool]["block_bytes"])
        return {
            self.place(handle)[1]: handle
            for handle in [self.take(pool, size) for _ in range(self.n_free(pool))]
        }

    def take(self, pool, n_bytes):
        return int(allocation.allocate_block(self.argument, pool, n_bytes, CRITICAL, 1))

    def make_clean(self, pool, *blocks):
        """Note of free blocks that the system has got back their pages; they keep their bytes."""
        self.table.blocks_of(pool)["status"][list(blocks)] &= ~s.BLOCK_DIRTY
        self.state[s.RESIDENT] -= len(blocks) * int(self.table.rows[pool]["block_bytes"])

    def use_all(self, pool):
        """Leave every block free and dirty."""
        for handle in self.take_all(pool).values():
            assert self.free(handle) == s.OK

    def check(self):
        assert validate(self.table) == []


@pytest.fixture(params=TIERS)
def tier(request):
    with running(request.param) as tier:
        yield tier


@pytest.fixture
def plain():
    with running("plain") as tier:
        yield tier


# -- which pool ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_bytes", "pool"),
    [(1, 1), (63, 1), (64, 1), (65, 0), (256, 0), (257, 2), (1023, 2), (1024, 2)],
)
@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_the_best_fitting_pool_serves(tier, kernel, n_bytes, pool):
    pools = Pools(tier, (256, 4), (64, 4), (1024, 4))  # ids need not follow sizes
    handle = getattr(pools, kernel)(n_bytes)
    assert pools.place(handle)[0] == pool
    block_bytes = int(pools.table.rows[pool]["block_bytes"])
    assert pools.charged == (block_bytes, block_bytes)
    assert pools.table.blocks_of(pool)["n_requested"][pools.place(handle)[1]] == n_bytes
    pools.check()


@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_full_pools_are_passed_over_in_the_order_of_their_blocks(tier, kernel):
    pools = Pools(tier, (64, 2), (256, 1), (1024, 2))
    allocate = getattr(pools, kernel)
    handles = [allocate(10) for _ in range(5)]
    assert [pools.place(handle)[0] for handle in handles] == [0, 0, 1, 2, 2]
    assert allocate(10) == s.POOL_FULL
    assert pools.failures() == [4, 3, 1]
    assert pools["USED"] == 2 * 64 + 256 + 2 * 1024
    for handle in handles:
        assert pools.free(handle, 10) == s.OK
    assert pools["USED"] == 0
    pools.check()


def test_of_pools_alike_the_older_is_filled_first(tier):
    pools = Pools(tier, (64, 1), (64, 1), (128, 1), (64, 1))
    assert [pools.place(pools.allocate(64))[0] for _ in range(4)] == [0, 1, 3, 2]


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
    assert pools.place(pools.allocate(100))[0] == 1
    assert pools.place(pools.allocate_any(101))[0] == 1


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
    assert pools.place(handle) == (1, 0)
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
    assert pools.place(handle) == (0, 62)
    assert pools.allocate_any(3 * 64) == s.FRAGMENTED  # four are free
    assert pools.allocate_any(5 * 64) == s.POOL_FULL
    assert pools.place(pools.allocate_any(2 * 64)) == (0, 0)
    pools.check()


def test_a_whole_pool_is_a_run(tier):
    pools = Pools(tier, (64, 130))
    handle = pools.allocate_any(130 * 64)
    assert pools.place(handle) == (0, 0)
    assert pools.allocate_any(1) == s.POOL_FULL
    assert pools.free(handle) == s.OK
    assert pools.allocate_any(130 * 64 + 1) == s.POOL_FULL
    pools.check()


def test_runs_lie_in_the_largest_blocks_only(tier):
    pools = Pools(tier, (64, 64), (256, 2))
    assert pools.place(pools.allocate_any(512)) == (1, 0)
    assert pools.allocate_any(512) == s.POOL_FULL
    assert pools.n_free(0) == 64


def test_the_next_pool_with_the_largest_blocks_serves_a_run_too(tier):
    pools = Pools(tier, (64, 2), (64, 4))
    assert pools.place(pools.allocate_any(3 * 64)) == (1, 0)
    assert pools.place(pools.allocate_any(2 * 64)) == (0, 0)
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
    assert pools.place(lost[0]) == (0, 64)
    assert handle == s.FRAGMENTED
    assert pools.table.rows[0]["rollbacks"] == 1
    assert pools.n_free() == 129
    assert pools.place(pools.allocate_any(64 * 64)) == (0, 0)
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
    assert pools.place(pools.allocate_any(100 * 64)) == (0, 0)
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
    pools.state[s.CALM_LIMIT] = pools.state[s.CRITICAL_LIMIT] = limit
    before = pools.state.copy()
    assert getattr(pools, kernel)(64) == s.OVER_LIMIT
    assert_unchanged(pools, before, peak=8 * 64)
    assert pools.failures() == [0]  # the pool had a block
    pools.state[s.CALM_LIMIT] = pools.state[s.CRITICAL_LIMIT] = limit + 1
    assert getattr(pools, kernel)(64) >= 0
    pools.check()


def test_a_limit_is_that_of_the_call(tier):
    pools = Pools(tier, (64, 3))
    pools.state[s.CALM_LIMIT] = 64
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


def partly_dirty(tier):
    """Make a pool over three words; of its blocks 60 to 66 and 130 were used before."""
    pools = Pools(tier, (64, 131))
    pools.use_all(0)
    pools.bytes_of(0)[:] = 0xEE
    pools.make_clean(0, *range(60), *range(67, 130))
    pools.check()
    return pools


def test_a_run_over_the_limit_is_given_back(tier):
    pools = partly_dirty(tier)
    peak = pools["PEAK"]
    pools.state[s.CRITICAL_LIMIT] = 70 * 64 - 1
    before = pools.state.copy()
    assert pools.allocate_any(70 * 64) == s.OVER_LIMIT
    assert_unchanged(pools, before, peak=peak)
    assert pools.failures() == [0]
    pools.state[s.CRITICAL_LIMIT] = 70 * 64
    assert pools.place(pools.allocate_any(70 * 64)) == (0, 0)
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
    assert pools.place(pools.allocate_any(70 * 64)) == (0, 0)
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
    assert pools.place(pools.allocate_any(n_bytes))[0] in fresh
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
    assert pools.place(handle) == (0, 0)
    assert handle != old and pools.free(old) == s.STALE
    assert pools.charged == (64, 64)
    pools.check()


# -- generations -----------------------------------------------------------------------------------


def test_each_owner_of_a_block_has_a_generation_of_its_own(tier):
    pools = Pools(tier, (64, 1))
    seen = []
    for _ in range(5):
        handle = pools.allocate(64)
        assert pools.place(handle) == (0, 0)
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


# -- what may not be given back --------------------------------------------------------------------


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
    assert {pools.place(each)[1] for each in (between, pools.take(0, 64))} == {3}
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
        "given back": (freed, s.FREED_TWICE),
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
    "given back",
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


# -- many given back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "failed"), [((0, 0), 1), ((0, 1, 2, 0), 3), ((2, 1, 1, 0), 2), ((0, 3, 2, 3), 3)]
)
def test_a_handle_that_is_there_twice_leaves_them_all(tier, places, failed):
    pools = Pools(tier, (64, 66), (256, 1))
    run = int(allocation.allocate_run(pools.argument, 0, 64 * 64, CRITICAL, 1))
    handles = [pools.allocate(64), pools.allocate(64), pools.allocate(256), run]
    before = pools.state.copy()
    assert pools.free_many(*[handles[i] for i in places]) == (s.FREED_TWICE, failed)
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


# -- what giving back reports ----------------------------------------------------------------------


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
    assert pools.place(pools.allocate(64))[0] == 1
    assert pools.allocate(64) == s.POOL_FULL
    assert pools.n_free(0) == s.CLOSED_POOL


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
    real = release.leave

    def leave(*arguments):
        monkeypatch.setattr(release, "leave", real)
        assert pools.drop(handles[0]) == s.OK
        return real(*arguments)

    monkeypatch.setattr(release, "leave", leave)
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
    block = pools.place(handle)[1]
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
    assert pools.place(handle) == (0, 0)
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
        blocks.put_back(pools.argument, 0, first, n_blocks)
    assert pools.state.tolist() == before.tolist()
    pools.check()


def test_used_blocks_are_claimed_across_words(tier):
    pools = Pools(tier, (64, 200))
    pools.use_all(0)
    taken = pools.take(0, 64)
    block = pools.place(taken)[1]
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
    assert pools.place(pools.allocate_any(62 * 64)) == (0, 0)
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
    assert pools.place(taken[0]) == (0, 0)
    assert pools.n_free() == 0
