"""Blocks that share a huge page: the first that is touched makes all of it resident."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support.internals import table_of
from support.kernels import SLOWNESS, compile_loop
from support.pools import QUIET, Pools, changed

from jessymem import LimitExceeded, PoolAllocator, osmem, placement
from jessymem.kernels import allocation, pages, release
from jessymem.kernels import schema as s

KIB, MIB = 2**10, 2**20


class SharingPools(Pools):
    """A pool whose blocks share pages, four each, the last two one; and a pool of whose none do."""

    def __init__(self, tier, n_blocks=10):
        super().__init__(tier, (64, n_blocks), (256, 2))
        at = len(self.state) - s.N_POOL_IDS
        self.state[s.PAGES_AT] = at
        self.state[at] = 4

    def take_block(self, block):
        """Take a certain block of the first pool, the only one that is free."""
        (row,) = self.table.words_of(0)
        self.table.words_of(0)[0] = 1 << block
        handle = self.take(0, 64)
        self.table.words_of(0)[0] = row & ~(1 << block) if handle >= 0 else row
        return handle

    def take_run(self, n_bytes):
        return int(allocation.allocate_run(self.argument, 0, n_bytes, QUIET, 0))

    def dirty(self):
        return np.flatnonzero(self.table.blocks_of(0)["status"] & s.BLOCK_DIRTY).tolist()


def test_the_first_block_counts_its_page(tier):
    pools = SharingPools(tier)
    handles = [pools.take_block(5)]
    assert (pools.charged, pools.dirty()) == ((64, 256), [4, 5, 6, 7])
    handles += [pools.take_block(block) for block in (4, 7)]
    assert (pools.charged, pools.dirty()) == ((192, 256), [4, 5, 6, 7])
    handles.append(pools.take_block(9))  # a page is cut where the pool ends
    assert (pools.charged, pools.dirty()) == ((256, 384), [4, 5, 6, 7, 8, 9])
    pools.check()
    assert [pools.free(handle) for handle in handles] == [s.OK] * 4
    assert pools.charged == (0, 384)
    pools.check()


def test_a_run_counts_all_pages_that_it_touches(tier):
    pools = SharingPools(tier)
    first = pools.take_block(0)
    assert pools.free(first) == s.OK
    assert pools.charged == (0, 256)
    pools.table.rows[1]["kind"] = s.POOL_FIXED
    pools.state[s.FREE_COUNTS + 1] = 0  # whose blocks are the largest
    words = pools.table.words_of(0)
    words[0] = 0b1111111100  # from the third on
    pools.state[s.FREE_COUNTS] = 8
    handle = pools.take_run(3 * 64)
    assert pools.location(handle) == (0, 2)
    assert (pools.charged, pools.dirty()) == ((192, 512), [0, 1, 2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize("room", [64, 255])
def test_a_page_that_does_not_fit_is_not_touched(tier, room):
    pools = SharingPools(tier)
    pools.state[s.RESIDENT_LIMIT] = room
    before = pools.state.copy()
    assert pools.take(0, 64) == s.RETAINED
    assert changed(before, pools.state) == []
    assert pools.take_run(128) == s.RETAINED
    assert changed(before, pools.state) == []
    pools.state[s.RESIDENT_LIMIT] = 256
    assert pools.take(0, 64) >= 0


def test_pools_that_share_nothing_count_blocks(tier):
    pools = SharingPools(tier)
    assert pools.allocate(200) >= 0
    assert pools.charged == (256, 256)
    pools.check()


def test_a_page_is_returned_whole_or_not_at_all(tier):
    pools = SharingPools(tier)
    kept, gone = pools.take_block(1), pools.take_block(5)
    assert pools.free(gone) == s.OK
    run = np.zeros(3, np.int64)
    assert pages.claim_dirty_run(pools.argument, 0, 0, 4, run) == 4
    assert run.tolist() == [0, 4, 4]
    pages.mark_clean(pools.argument, 0, 4, 4)
    pages.release_run(pools.argument, run)
    assert (pools.charged, pools.dirty()) == ((64, 256), [0, 1, 2, 3])
    assert pools.free(kept) == s.OK
    pools.check()


# -- threads ---------------------------------------------------------------------------------------


@pytest.fixture
def sharing(monkeypatch):
    """An allocator whose huge pages are such by name only, with a small limit."""

    def take(page_bytes, n_bytes, is_read_only):
        return osmem.private_mapping(n_bytes, is_read_only=is_read_only)

    monkeypatch.setattr(placement, "_map_reserved", take)
    return PoolAllocator([(16, 256 * KIB)], 12, huge_pages="2MB")


def test_pages_are_counted_once_by_any_number_of_threads(sharing):
    failures = []

    def churn(seed):
        rng = np.random.default_rng(seed)
        live = []
        for _ in range(max(2_000 // SLOWNESS, 50)):
            try:
                if live and rng.random() < 0.5:
                    sharing.deallocate(live.pop(rng.integers(len(live))))
                else:
                    live.append(sharing.allocate(int(rng.integers(1, 600)) * KIB))
            except LimitExceeded:
                continue
            except Exception as error:
                failures.append(error)
                raise
        for each in live:
            sharing.deallocate(each)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sharing.trim()
        assert 0 <= int(table_of(sharing).state[s.RESIDENT]) <= 12 * MIB
    for thread in threads:
        thread.join()
    assert failures == []
    assert sharing.validate() == []
    sharing.trim()
    assert sharing.survey().n_retained == 0
    assert sharing.validate() == []


def churn_blocks(words, n_rounds, n_bytes):
    """Take two blocks and free them, again and again; return how often there was none."""
    n_refused = 0
    for _ in range(n_rounds):
        first = allocation.allocate(words, n_bytes, s.QUIET_LIMIT)
        second = allocation.allocate(words, n_bytes, s.QUIET_LIMIT)
        for handle in (first, second):
            if handle < 0:
                n_refused += 1
            else:
                release.deallocate(words, handle, s.ANY_SIZE)
    return n_refused


def test_pages_are_counted_once_by_compiled_code_without_the_gil(sharing):
    loop, words = compile_loop(churn_blocks), sharing.words
    n_rounds = max(50_000 // SLOWNESS, 50)
    arguments = words, n_rounds, 256 * KIB
    n_trims = 0
    for _ in range(20):  # a busy machine may run the threads at other times than the trims
        threads = [threading.Thread(target=loop, args=arguments) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            n_trims += sharing.trim() > 0
        if n_trims or SLOWNESS > 1:
            break
    assert n_trims or SLOWNESS > 1
    assert sharing.validate() == []
    sharing.trim()
    assert sharing.survey().n_retained == 0
    assert sharing.validate() == []
