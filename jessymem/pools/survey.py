"""What an allocator's arrays say: its numbers, whether they agree, and how to set them right.

All of it is read from the block rows: over whole columns before anything is compiled, afterwards by
a kernel in one pass. Each row is read once, so a pool's numbers agree with each other, also where
threads go on allocating.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

import jessymem
from jessymem.computed_once import computed_once
from jessymem.config import MIB, PoolConfig
from jessymem.kernels import _jit, tally, transactions
from jessymem.kernels import schema as s
from jessymem.named_tuples import NamedTuple
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
    pages : str
        What its pages were asked to be: "small", "thp", "2MB" or "1GB".
    node : int or None
        Of the machine, whose memory it is; None: any.

    Examples
    --------
    >>> offset = manager.allocate(100)
    >>> found = manager.get_stats().per_pool[offset.pool_id]
    >>> found.block_size, found.used_blocks, found.total_blocks, found.kind
    (4096, 1, 8192, 'fixed')
    """

    pool_id: int
    block_size: int
    total_blocks: int
    used_blocks: int
    utilization: float
    failures: int
    kind: str
    pages: str = "small"
    node: int | None = None


def blocks_by_size(pools: Iterable[PoolStats]) -> dict[int, tuple[int, int]]:
    """Add up pools of one block size: how many blocks are used, and how many there are."""
    sizes: dict[int, tuple[int, int]] = {}
    for pool in pools:
        used, total = sizes.get(pool.block_size, (0, 0))
        sizes[pool.block_size] = used + pool.used_blocks, total + pool.total_blocks
    return sizes


def run_lengths(is_free: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return how long each row of free blocks is."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_free, [False]))))
    return edges[1::2] - edges[::2]


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


def survey_of_plans(
    configs: Sequence[PoolConfig], placement: jessymem.hints.Placement | None = None
) -> Survey:
    """Tell what the pools will be before they are made, as far as the system lets them."""
    kind = s.POOL_KINDS[s.POOL_FIXED]
    plans: list[tuple[int, int, str, int | None]] = []
    for config in sorted(configs, key=lambda config: config.block_size):
        block_bytes, n_bytes = config.block_size, config.size_mb * MIB
        if placement is None:
            plans.append((block_bytes, n_bytes, "small", None))
            continue
        shares = placement.shares(n_bytes // block_bytes * block_bytes, block_bytes)
        kinds = [next(iter(placement.kinds_for(block_bytes, n)), "small") for n, _ in shares]
        plans += [
            (block_bytes, share, kind, node)
            for (share, node), kind in zip(shares, kinds, strict=True)
        ]
    per_pool = {
        pool: PoolStats(pool, block_bytes, n_bytes // block_bytes, 0, 0.0, 0, kind, pages, node)
        for pool, (block_bytes, n_bytes, pages, node) in enumerate(plans)
    }
    largest = max((n_bytes for _, n_bytes, _, _ in plans), default=0)
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

    def fill(self, tally: Any) -> None:
        """Do what the kernel does: add up the blocks into a TALLY."""
        tally["n_free"] = np.count_nonzero(self.is_free)
        tally["n_dirty"] = np.count_nonzero(self.is_free & (self.status & s.BLOCK_DIRTY != 0))
        tally["n_longest_free"] = run_lengths(self.is_free).max(initial=0)
        tally["n_heads"] = np.count_nonzero(self.is_live)
        tally["n_live"] = self._n_blocks(self.is_live)
        tally["n_waiting"] = self._n_blocks(self.is_waiting)
        tally["n_requested"] = self.requested[self.is_live].sum()
        tally["n_generations"] = (self.status >> s.GENERATION_SHIFT).sum()

    def _n_blocks(self, heads: NDArray[np.bool_]) -> np.int64:
        """Return how many blocks begin with `heads`, with the rest of their runs."""
        return np.int64((-(-self.requested[heads] // self.block_bytes)).sum())


def tally_of(table: PoolTable, pool: int) -> Any:
    """Add up the blocks of a pool, by the quicker of two twins; return a TALLY."""
    found: NDArray[Any] = np.zeros(1, s.TALLY)
    if _jit.is_promoted(_jit.MEMORY):
        words = table.blocks_of(pool).view(np.int64)
        tally.tally_blocks(words, int(table.rows[pool]["block_shift"]), found)
    else:
        _Pool(table, pool).fill(found[0])
    return found[0]


def retained_in(table: PoolTable, pool: int) -> int:
    """Return the bytes of a pool's free blocks whose pages the system has not got back."""
    return int(tally_of(table, pool)["n_dirty"]) * int(table.rows[pool]["block_bytes"])


def survey(table: PoolTable) -> Survey:
    """Look at every pool; the lock keeps pools from coming and going meanwhile."""
    per_pool = {}
    n_live_bytes = n_waiting = n_retained = n_requested = largest_free_run = n_heads = 0
    n_allocations = int(table.rows["past_allocations"].sum())
    for number in table.pool_ids:
        row = table.rows[number]
        n_all, block_bytes = int(row["n_blocks"]), int(row["block_bytes"])
        found = dict(zip(s.TALLY.fields or (), tally_of(table, number).item(), strict=True))
        n_used = n_all - found["n_free"]
        per_pool[number] = PoolStats(
            pool_id=number,
            block_size=block_bytes,
            total_blocks=n_all,
            used_blocks=n_used,
            utilization=n_used / n_all,
            failures=int(row["failures"]),
            kind=s.POOL_KINDS[int(row["kind"])],
            pages=table.arena.pages_of(number),
            node=int(row["node"]) - 1 if row["node"] else None,
        )
        n_live_bytes += found["n_live"] * block_bytes
        n_waiting += found["n_waiting"] * block_bytes
        n_retained += found["n_dirty"] * block_bytes
        n_requested += found["n_requested"]
        largest_free_run = max(largest_free_run, found["n_longest_free"] * block_bytes)
        n_heads += found["n_heads"]
        n_allocations += found["n_generations"] - n_all * int(row["first_generation"])
    return Survey(
        per_pool=per_pool,
        n_block_bytes=n_live_bytes + n_waiting,
        n_live_bytes=n_live_bytes,
        n_requested=n_requested,
        n_waiting=n_waiting,
        n_retained=n_retained,
        largest_free_run=largest_free_run,
        n_allocations=n_allocations,
        n_deallocations=n_allocations - n_heads,
    )


class ListedBlock(NamedTuple):
    """A block that is handed out, or was freed and is still viewed; a run is one.

    Attributes
    ----------
    pool, offset, generation : int
        As an `MmapOffset` has them.
    n_requested, n_bytes : int
        What was asked for, and the whole blocks that it takes.
    n_views : int
    is_waiting : bool
    """

    pool: int
    offset: int
    generation: int
    n_requested: int
    n_bytes: int
    n_views: int
    is_waiting: bool


def list_blocks(table: PoolTable) -> list[ListedBlock]:
    """List all blocks that are not free, by pool and offset."""
    found: list[ListedBlock] = []
    for number in table.pool_ids:
        pool = _Pool(table, number)
        at = np.flatnonzero(pool.is_live | pool.is_waiting)
        status, requested = pool.status[at], pool.requested[at]
        columns = (
            at * pool.block_bytes,
            status >> s.GENERATION_SHIFT & s.HANDLE_GENERATION_MASK,
            requested,
            -(-requested // pool.block_bytes) * pool.block_bytes,
            (status & s.VIEWS_MASK) // s.ONE_VIEW,
            pool.is_waiting[at],
        )
        found += map(ListedBlock, repeat(number), *(column.tolist() for column in columns))
    return found


def differences(table: PoolTable, n_region_bytes: int) -> list[str]:
    """Recount everything from the blocks; name each counter and bit that says something else."""
    found: list[str] = []
    n_block_bytes = n_retained = 0
    for number in table.pool_ids:
        pool = _Pool(table, number)
        found += (f"pool {number}: {text}" for text in _pool_differences(table, pool))
        n_block_bytes += int(np.count_nonzero(~pool.is_free)) * pool.block_bytes
        n_retained += int(tally_of(table, number)["n_dirty"]) * pool.block_bytes
    state = table.state
    n_region_bytes += int(state[s.HELD_BACK])  # which counts as one
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
