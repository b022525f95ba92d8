"""Tables of pools made by hand, as the allocator's kernels take them."""

from __future__ import annotations

import numpy as np

from jessymem import osmem
from jessymem.kernels import allocation, blocks, pages, release
from jessymem.kernels import schema as s
from jessymem.pools import survey
from support.internals import empty_table

MIB = 2**20

#: Rows for pools that a test adds to a table.
SPARE_BLOCKS = 2**12


# -- tiers -----------------------------------------------------------------------------------------


# -- words -----------------------------------------------------------------------------------------


def signed(words):
    """Return 64-bit patterns as the integers that they are in an array of int64."""
    return np.array(words, np.uint64).view(np.int64)


def word_with(*bits):
    """Return the pattern in which these bits are set."""
    return sum(1 << bit for bit in set(bits))


# -- pools -----------------------------------------------------------------------------------------


def make_table(*pools, limit=MIB, kind=s.POOL_FIXED):
    """Make a table of pools, each given as (bytes of a block, number of blocks)."""
    table = empty_table(limit, SPARE_BLOCKS + 2 * sum(n_blocks for _, n_blocks in pools))
    for block_bytes, n_blocks in pools:
        add_pool(table, block_bytes, n_blocks, kind)
    set_limits(table.state, limit)
    table.state[s.ZERO_ON_REUSE] = 1
    return table


def add_pool(table, block_bytes, n_blocks, kind=s.POOL_FIXED):
    """Make a pool in memory of its own; return its id."""
    n_bytes = block_bytes * n_blocks
    return table.add(block_bytes, n_bytes, osmem.private_memory(n_bytes), 0, kind)


def set_limits(state, limit):
    """Set every limit to the same; no threshold is waiting to speak."""
    for at in (s.LIMIT, s.CRITICAL_LIMIT, s.QUIET_LIMIT, s.RESIDENT_LIMIT):
        state[at] = limit
    state[s.REARM_BELOW] = -1


def validate(table, n_region_bytes=0):
    """Return what counters and bits say differently from the blocks."""
    return survey.differences(table, n_region_bytes)


def status_of(table, handle):
    """Return the status of the block of a handle."""
    pool, block = location_of(table, handle)
    return int(table.blocks_of(pool)["status"][block])


def location_of(table, handle):
    """Return the pool and the block of a handle, by its bits."""
    pool = handle >> 56
    offset = (handle >> 28 & (2**28 - 1)) * 64
    return pool, offset // int(table.rows[pool]["block_bytes"])


def handle_for(pool, offset, generation):
    """Make a handle, by its bits."""
    return pool << 56 | offset // 64 << 28 | generation


def generation_in(handle):
    """Return the generation of a handle, by its bits."""
    return handle & (2**28 - 1)


def changed(before, after):
    """Return the positions of words that differ, but for what counts attempts and peaks."""
    different = set(np.flatnonzero(before != after).tolist())
    different.discard(s.PEAK)
    for pool in range(s.N_POOL_IDS):
        row = s.POOLS_AT + pool * s.POOL_WORDS
        different -= {row + blocks.FAILURES, row + blocks.ROLLBACKS}
    return sorted(different)


# -- threads ---------------------------------------------------------------------------------------


# -- pools and the kernels on them -----------------------------------------------------------------

QUIET, CRITICAL = s.QUIET_LIMIT, s.CRITICAL_LIMIT


class Pools:
    """Hand-made pools, and the kernels on them."""

    def __init__(self, tier, *pools, **options):
        self.table = make_table(*pools, **options)
        self.state = self.table.state
        self.argument = tier.argument(self.state)

    # -- the kernels -------------------------------------------------------------------------------

    def allocate(self, n_bytes):
        return int(allocation.allocate(self.argument, n_bytes, QUIET))

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
        """Return the pages of all dirty free blocks, as the allocator would."""
        block, n_blocks = self.claim_dirty(pool)
        while n_blocks:
            self.clean(pool, block, n_blocks)
            block, n_blocks = self.claim_dirty(pool, block + n_blocks)

    def clean(self, pool, block, n_blocks):
        size = int(self.table.rows[pool]["block_bytes"])
        self.bytes_of(pool)[block * size : (block + n_blocks) * size] = 0
        pages.mark_clean(self.argument, pool, block, n_blocks)
        blocks.release(self.argument, pool, block, n_blocks)

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

    def location(self, handle):
        assert handle >= 0
        return location_of(self.table, handle)

    def bytes_of(self, pool):
        return np.frombuffer(self.table.arena.view(pool, 0, self.table.n_bytes_of(pool)), np.uint8)

    def take_all(self, pool, n_bytes=None):
        """Take every free block of a pool by itself, the lowest first; return their handles."""
        size = n_bytes or int(self.table.rows[pool]["block_bytes"])
        return {
            self.location(handle)[1]: handle
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


def partly_dirty(tier):
    """Make a pool over three words; of its blocks 60 to 66 and 130 were used before."""
    pools = Pools(tier, (64, 131))
    pools.use_all(0)
    pools.bytes_of(0)[:] = 0xEE
    pools.make_clean(0, *range(60), *range(67, 130))
    pools.check()
    return pools
