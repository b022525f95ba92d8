"""What an allocator's arrays say: its numbers, whether they agree, and how to set them right.

All of it is read from the block rows, over whole columns and without a kernel: it works before
anything is compiled. Each pool is looked at in one copy, so its numbers agree with each other, also
where threads go on allocating.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.computed_once import computed_once
from jessymem.config import MIB, PoolConfig
from jessymem.kernels import schema as s
from jessymem.kernels import transactions
from jessymem.pools.table import PoolTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PoolStats:
    """One pool's numbers at one moment.

    Attributes
    ----------
    pool_id : int
    block_size : int
        Bytes of one block.
    total_blocks, used_blocks : int
        Blocks there are; blocks handed out or waiting for their views.
    utilization : float
        Used / total, 0 to 1.
    failures : int
        Requests that the pool was chosen for and could not take: they went to the next larger pool,
        or made one, or failed.
    kind : str
        "fixed", or "grown": made where nothing fitted, unmapped once it is empty.
    """

    pool_id: int
    block_size: int
    total_blocks: int
    used_blocks: int
    utilization: float
    failures: int
    kind: str


@dataclass(frozen=True)
class Survey:
    """The pools' numbers together.

    Attributes
    ----------
    per_pool : mapping of int to PoolStats
        By pool id, in the order of block sizes.
    n_block_bytes : int
        Bytes of blocks handed out or waiting, whole blocks.
    n_live_bytes : int
        Of these, what is not waiting.
    n_requested : int
        Bytes that were asked for in them.
    n_waiting : int
        Bytes of blocks freed and still viewed.
    n_retained : int
        Bytes of free blocks whose pages the system has not got back.
    largest_free_run : int
        Bytes of the longest run of free blocks in any pool.
    n_allocations, n_deallocations : int
        So far; a deallocation counts when it is asked for, also where views make the block wait.
    """

    per_pool: Mapping[int, PoolStats]
    n_block_bytes: int
    n_live_bytes: int
    n_requested: int
    n_waiting: int
    n_retained: int
    largest_free_run: int
    n_allocations: int
    n_deallocations: int

    @property
    def fragmentation_ratio(self) -> float:
        """Of the bytes in live blocks, the share that nobody asked for."""
        return 1 - self.n_requested / self.n_live_bytes if self.n_live_bytes else 0.0


def survey_of_plans(configs: Sequence[PoolConfig]) -> Survey:
    """Tell what the pools will be before they are made."""
    ordered = sorted(configs, key=lambda config: config.block_size)
    per_pool = {
        pool: PoolStats(pool, plan.block_size, plan.n_blocks, 0, 0.0, 0, s.POOL_KINDS[s.POOL_FIXED])
        for pool, plan in enumerate(ordered)
    }
    largest = max((plan.size_mb * MIB for plan in ordered), default=0)
    return Survey(per_pool, 0, 0, 0, 0, 0, largest, 0, 0)


class _Pool:
    """One pool's blocks in one copy."""

    def __init__(self, table: PoolTable, pool: int) -> None:
        self.row = table.rows[pool].copy()
        self.pool_id = pool
        self.block_bytes = int(self.row["block_bytes"])
        blocks = table.blocks_of(pool).copy()
        self.status: NDArray[np.int64] = blocks["status"]
        self.requested: NDArray[np.int64] = blocks["n_requested"]

    @computed_once
    def state(self) -> NDArray[np.int64]:
        return self.status & s.STATE_MASK

    @computed_once
    def is_free(self) -> Any:
        return self.state == s.BLOCK_FREE

    @computed_once
    def is_waiting(self) -> Any:
        return self.state == s.BLOCK_WAITING

    @computed_once
    def is_live(self) -> Any:
        return (self.state == s.BLOCK_ALLOCATED) | (self.state == s.BLOCK_RELEASING)

    @property
    def n_allocations(self) -> int:
        generations = self.status >> s.GENERATION_SHIFT
        return int((generations - self.row["first_generation"]).sum())

    def n_bytes(self, heads: NDArray[np.bool_]) -> int:
        """Return the bytes of the blocks that begin with `heads`, with the rest of their runs."""
        n_blocks = -(-self.requested[heads] // self.block_bytes)
        return int(n_blocks.sum()) * self.block_bytes

    @property
    def n_retained(self) -> int:
        dirty = self.is_free & (self.status & s.BLOCK_DIRTY != 0)
        return int(np.count_nonzero(dirty)) * self.block_bytes

    @property
    def largest_free_run(self) -> int:
        edges = np.flatnonzero(np.diff(np.concatenate(([False], self.is_free, [False]))))
        lengths = edges[1::2] - edges[::2]
        return int(lengths.max(initial=0)) * self.block_bytes

    @property
    def stats(self) -> PoolStats:
        return self.stats_of(len(self.status) - int(np.count_nonzero(self.is_free)))

    def stats_of(self, n_used: int) -> PoolStats:
        n_all = len(self.status)
        return PoolStats(
            pool_id=self.pool_id,
            block_size=self.block_bytes,
            total_blocks=n_all,
            used_blocks=n_used,
            utilization=n_used / n_all,
            failures=int(self.row["failures"]),
            kind=s.POOL_KINDS[int(self.row["kind"])],
        )


def retained_in(table: PoolTable, pool: int) -> int:
    """Return the bytes of a pool's free blocks whose pages the system has not got back."""
    return _Pool(table, pool).n_retained


def survey(table: PoolTable) -> Survey:
    """Look at every pool; the lock keeps pools from coming and going meanwhile."""
    per_pool = {}
    largest_free_run = 0
    pools = []
    for number in table.pool_ids:
        pool = _Pool(table, number)
        if pool.status.any():
            pools.append(pool)
            per_pool[number] = pool.stats
            largest_free_run = max(largest_free_run, pool.largest_free_run)
        else:  # never used: there is nothing to add up
            per_pool[number] = pool.stats_of(0)
            largest_free_run = max(largest_free_run, table.n_bytes_of(number))
    n_live = [pool.n_bytes(pool.is_live) for pool in pools]
    n_waiting = [pool.n_bytes(pool.is_waiting) for pool in pools]
    n_live_blocks = sum(int(np.count_nonzero(pool.is_live)) for pool in pools)
    past = int(table.rows["past_allocations"].sum())
    n_allocations = past + sum(pool.n_allocations for pool in pools)
    return Survey(
        per_pool=per_pool,
        n_block_bytes=sum(n_live) + sum(n_waiting),
        n_live_bytes=sum(n_live),
        n_requested=sum(int(pool.requested[pool.is_live].sum()) for pool in pools),
        n_waiting=sum(n_waiting),
        n_retained=sum(pool.n_retained for pool in pools),
        largest_free_run=largest_free_run,
        n_allocations=n_allocations,
        n_deallocations=n_allocations - n_live_blocks,
    )


def waiting_blocks(table: PoolTable) -> list[dict[str, int]]:
    """List the blocks that were freed and are still viewed."""
    found = []
    for number in table.pool_ids:
        pool = _Pool(table, number)
        for block in np.flatnonzero(pool.is_waiting).tolist():
            n_blocks = -(-int(pool.requested[block]) // pool.block_bytes)
            views = int(pool.status[block]) & s.VIEWS_MASK
            found.append(
                {
                    "pool": number,
                    "offset": block * pool.block_bytes,
                    "n_bytes": n_blocks * pool.block_bytes,
                    "n_views": views // s.ONE_VIEW,
                }
            )
    return found


def differences(table: PoolTable, n_region_bytes: int) -> list[str]:
    """Recount everything from the blocks; name each counter and bit that says something else."""
    found: list[str] = []
    n_block_bytes = n_retained = 0
    for number in table.pool_ids:
        pool = _Pool(table, number)
        found += (f"pool {number}: {text}" for text in _pool_differences(table, pool))
        n_block_bytes += int(np.count_nonzero(~pool.is_free)) * pool.block_bytes
        n_retained += pool.n_retained
    state = table.state
    used = n_region_bytes + n_block_bytes
    counted = {
        "used": (int(state[s.USED]), used),
        "of regions": (int(state[s.OF_REGIONS]), n_region_bytes),
        "resident": (int(state[s.RESIDENT]), used + n_retained),
    }
    found += (
        f"{name} is {says:,}, not {got:,}" for name, (says, got) in counted.items() if says != got
    )
    if state[s.PEAK] < used:
        found.append(f"peak is {state[s.PEAK]:,}, below the {used:,} in use")
    sizes = [int(table.rows[number]["block_bytes"]) for number in table.pool_ids]
    if sizes != sorted(sizes):
        found.append(f"the chain of pools is not in order: {sizes}")
    return found


def _pool_differences(table: PoolTable, pool: _Pool) -> Iterator[str]:
    n_free = int(np.count_nonzero(pool.is_free))
    is_closed = table.n_free(pool.pool_id) == s.CLOSED_POOL and n_free == len(pool.is_free)
    if table.n_free(pool.pool_id) != n_free and not is_closed:
        yield f"the free count is {table.n_free(pool.pool_id)}, {n_free} blocks are free"
    bits = _bits(table.words_of(pool.pool_id))
    wrong = np.flatnonzero(bits[: len(pool.is_free)] != pool.is_free)
    if len(wrong):
        yield f"the bitmap is wrong for {len(wrong)} blocks, the first is {wrong[0]}"
    if bits[len(pool.is_free) :].any():
        yield "the bitmap has bits past the last block"
    row = pool.row
    n_words = int(row["n_words"])
    hints = _bits(table.state[row["summary_at"] : row["summary_at"] + -(-n_words // s.WORD_BITS)])
    missing = np.flatnonzero((table.words_of(pool.pool_id) != 0) & ~hints[:n_words])
    if len(missing):
        yield f"the summary misses {len(missing)} words, the first is {missing[0]}"
    if (pool.state == s.BLOCK_RELEASING).any():
        yield "a block is half-way out"
    expected = _continued(pool)
    torn = np.flatnonzero(expected != (pool.state == s.BLOCK_CONTINUED))
    if len(torn):
        yield f"runs are torn at {len(torn)} blocks, the first is {torn[0]}"


def _continued(pool: _Pool) -> NDArray[np.bool_]:
    """Tell for each block whether the run before it must reach it, by what was requested."""
    heads = np.flatnonzero(pool.is_live | pool.is_waiting)
    lengths = -(-pool.requested[heads] // pool.block_bytes)
    steps = np.zeros(len(pool.state) + 1, np.int64)
    np.add.at(steps, np.minimum(heads + 1, len(pool.state)), 1)
    np.add.at(steps, np.minimum(heads + lengths, len(pool.state)), -1)
    return np.cumsum(steps)[:-1] > 0


def _bits(words: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)


def recover(table: PoolTable) -> Survey:
    """Make bitmaps and free counts what the blocks' own words say, where nobody else runs.

    For a forked child: threads of the parent may have been half-way through a call. A block is
    handed out once its own word says so; whatever else was begun is taken back.
    """
    transactions.outdate(table.state)
    table.finish_interrupted()
    for number in table.pool_ids:
        pool = _Pool(table, number)
        blocks = table.blocks_of(number)
        releasing = pool.state == s.BLOCK_RELEASING
        blocks["status"][releasing] += s.BLOCK_ALLOCATED - s.BLOCK_RELEASING
        orphaned = (pool.state == s.BLOCK_CONTINUED) & ~_continued(pool)
        blocks["status"][orphaned] &= ~s.STATE_MASK
        is_free = blocks["status"] & s.STATE_MASK == s.BLOCK_FREE
        words = table.words_of(number)
        words[:] = _words(is_free, len(words))
        summary_at, n_summary = int(pool.row["summary_at"]), -(-len(words) // s.WORD_BITS)
        table.state[summary_at : summary_at + n_summary] = _words(words != 0, n_summary)
        table.state[s.FREE_COUNTS + number] = np.count_nonzero(is_free)
    return survey(table)


def _words(bits: NDArray[Any], n_words: int) -> NDArray[np.int64]:
    padded = np.zeros(n_words * s.WORD_BITS, bool)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view(np.int64)
