"""`PoolTable`: the words that kernels work on, and which pools they describe.

They are one array (`jessymem.kernels.schema` describes it), made once and long enough for pools
that may be added: it lies in memory that is committed only where it is touched. Rows are written
here before others can reach them, or under the lock of the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import jessymem
from jessymem import osmem
from jessymem.config import MIB, PoolConfig
from jessymem.errors import AllocationFailed
from jessymem.kernels import allocation, blocks, memory, near
from jessymem.kernels import schema as s
from jessymem.named_tuples import NamedTuple
from jessymem.pools.arena import Arena
from jessymem.pools.offsets import unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Requests up to here are zeroed by writing; for larger ones the pages are returned.
INLINE_BYTES: Final = MIB

#: How many times the budget's worth of blocks the state has rows for, beside the configured pools;
#: 64 MiB to 1 GiB of addresses.
_SPARE: Final = 4
_MIN_SPARE: Final = 2**22
_MAX_SPARE: Final = 2**26
_DEFAULT_BLOCK_BYTES: Final = 4096

#: The blocks of a pool that is made where there is none at all.
_FIRST_BLOCK_BYTES: Final = (4096, 2**18)

_NEXT: Final = s.word_of(s.POOL, "next_pool")


class MappedPool(NamedTuple):
    """A pool that is to be made, and where."""

    block_bytes: int
    n_bytes: int
    memory: osmem.PrivateMemory
    start: int
    node: int | None = None


class PoolTable:
    """The pools of one allocator.

    Attributes
    ----------
    state : ndarray of int64
        The words; the array owns its memory.
    arena : Arena
        What the pools lie in.
    rows : ndarray of POOL, shape (N_POOL_IDS,)
        The same words seen as rows.
    allocation : module
        Whose kernels hand out blocks: `jessymem.kernels.allocation`, or `near` where pools are of
        nodes.
    argument : PlainState, Words or None
        The state as kernels are given it, once they may be called. Whoever calls one holds the
        table meanwhile, and names the kernel before this: `module.kernel(table.argument, ...)`. So
        what is compiled never gets what is for plain Python.
    """

    def __init__(
        self,
        configs: Sequence[PoolConfig],
        limit_bytes: int,
        placement: jessymem.hints.Placement | None = None,
    ) -> None:
        ordered = sorted(configs, key=lambda config: config.block_size)
        self.arena = Arena(placement)
        self.argument: memory.Words = None
        mapped: list[MappedPool] = []
        try:
            if ordered:
                mapped = self._place(ordered) or self._map(ordered, limit_bytes)
            self.state = self._new_state(mapped, limit_bytes)
        except AllocationFailed as error:
            n_mb = sum(config.size_mb for config in configs)
            raise AllocationFailed(
                f"no addresses for pools of {n_mb} MiB, or for the account of their blocks: "
                f"{error}; smaller pools, or a smaller limit, take fewer",
                **error.details,
            ) from error
        rows_end = s.POOLS_AT + s.N_POOL_IDS * s.POOL_WORDS
        self.rows = self.state[s.POOLS_AT : rows_end].view(s.POOL)
        self._next_word = s.SEGMENTS_AT
        self.state[s.FREE_COUNTS : s.FREE_COUNTS + s.N_POOL_IDS] = s.CLOSED_POOL
        self.state[s.FIRST_POOL] = s.NO_POOL_ID
        if placement is not None and placement.huge_pages != "never":
            self.state[s.PAGES_AT] = self._next_word
            self._next_word += _whole_lines(s.N_POOL_IDS)
        for pool in mapped:
            self.add(*pool[:4], s.POOL_FIXED, pool.node)
        self.allocation: Any = allocation
        if placement is not None and placement.pool_nodes:
            self.allocation = near
            self._note_processors(placement)

    def _place(self, configs: list[PoolConfig]) -> list[MappedPool]:
        """Map each pool by itself, in the pages that it is to have; none where that is no use."""
        placement = self.arena.placement
        if placement is None:
            return []
        mapped = []
        with suppress(AllocationFailed):  # too few addresses: one mapping takes fewer
            for config in configs:
                block_bytes = config.block_size
                for n_bytes, node in placement.shares(config.n_blocks * block_bytes, block_bytes):
                    memory = self.arena.map_pool(n_bytes, block_bytes, node)
                    mapped.append(MappedPool(block_bytes, n_bytes, memory, 0, node))
            if len(mapped) <= s.N_POOL_IDS:
                return mapped
        return []

    def _map(self, configs: list[PoolConfig], limit_bytes: int) -> list[MappedPool]:
        """Map the pools' address space; cut to the budget where the system refuses more than that.

        Raises
        ------
        AllocationFailed
            "os_refused".
        """
        n_mb, limit_mb = sum(config.size_mb for config in configs), limit_bytes // MIB
        try:
            return _side_by_side(configs, self.arena.map_pool(n_mb * MIB))
        except AllocationFailed:
            if n_mb <= limit_mb:
                raise
        # In proportion, each at least one MiB: that holds a block of any size but the largest.
        cut = [
            replace(config, size_mb=size_mb)
            for config in configs
            if (size_mb := max(config.size_mb * limit_mb // n_mb, 1)) * MIB >= config.block_size
            and size_mb * MIB % config.block_size == 0
        ]
        if not cut:
            cut = configs[:1]
        return _side_by_side(cut, self.arena.map_pool(sum(each.size_mb for each in cut) * MIB))

    # -- what is there -----------------------------------------------------------------------------

    @property
    def pool_ids(self) -> list[int]:
        """The pools there are, by block size."""
        found = []
        pool = int(self.state[s.FIRST_POOL])
        while pool != s.NO_POOL_ID:
            found.append(pool)
            pool = int(self.rows[pool]["next_pool"])
        return found

    @property
    def smallest_block_bytes(self) -> int:
        """The block size of the first pool; where there is none yet, of one that may come."""
        pool = int(self.state[s.FIRST_POOL])
        return (
            _FIRST_BLOCK_BYTES[0] if pool == s.NO_POOL_ID else int(self.rows[pool]["block_bytes"])
        )

    @property
    def grown_ids(self) -> list[int]:
        """Of these, the pools that were made where nothing fitted."""
        return [pool for pool in self.pool_ids if self.rows[pool]["kind"] == s.POOL_GROWN]

    def block_bytes_for(self, n_bytes: int) -> int:
        """Return the size of the blocks that fit `n_bytes` best, or of the largest."""
        sizes = [int(self.rows[pool]["block_bytes"]) for pool in self.pool_ids]
        if not sizes:
            smallest, largest = _FIRST_BLOCK_BYTES
            return min(max(1 << (n_bytes - 1).bit_length(), smallest), largest)
        return min((size for size in sizes if size >= n_bytes), default=sizes[-1])

    def cost_of(self, n_bytes: int) -> int:
        """Return the bytes of the blocks that `n_bytes` take where they fit best."""
        return whole_blocks(n_bytes, self.block_bytes_for(n_bytes))

    def has(self, pool: int) -> bool:
        """Tell whether there is a pool of this id."""
        return 0 <= pool < s.N_POOL_IDS and self.rows[pool]["kind"] != s.POOL_ABSENT

    def n_bytes_of(self, pool: int) -> int:
        """Return the size of a pool in bytes."""
        return int(self.rows[pool]["n_blocks"]) * int(self.rows[pool]["block_bytes"])

    def n_free(self, pool: int) -> int:
        """Return how many blocks of a pool may be claimed."""
        return int(self.state[s.FREE_COUNTS + pool])

    def is_unused(self, pool: int) -> bool:
        """Tell whether no block of a pool is handed out, waiting or being claimed."""
        return self.n_free(pool) == int(self.rows[pool]["n_blocks"])

    def blocks_of(self, pool: int) -> NDArray[Any]:
        """Return a pool's BLOCK rows; they change while threads allocate."""
        row = self.rows[pool]
        start, n_words = int(row["blocks_at"]), int(row["n_blocks"]) * s.BLOCK_WORDS
        return self.state[start : start + n_words].view(s.BLOCK)

    def n_requested(self, pool: int, offset: int) -> int:
        """Return how many bytes were asked for in the block at `offset`."""
        block = offset // int(self.rows[pool]["block_bytes"])
        return int(self.blocks_of(pool)["n_requested"][block])

    def requested_by(self, handle: int) -> int | None:
        """Return how many bytes were asked for in the block of a handle; None: it is of none."""
        pool, offset, _ = unpack(handle)
        if not self.has(pool) or offset >= self.n_bytes_of(pool):
            return None
        return self.n_requested(pool, offset)

    def words_of(self, pool: int) -> NDArray[np.int64]:
        """Return a pool's bitmap."""
        row = self.rows[pool]
        return self.state[row["bitmap_at"] : row["bitmap_at"] + row["n_words"]]

    def clear(self, pool: int, offset: int, n_bytes: int) -> None:
        """Make a large allocation read as zeros: new pages in place of the old ones.

        A page that is not all its own is filled with zeros as far as it is.
        """
        page_bytes = self.arena.page_bytes_of(pool)
        whole = whole_blocks(n_bytes, int(self.rows[pool]["block_bytes"]))
        start = whole_blocks(offset, page_bytes)
        end = (offset + whole) // page_bytes * page_bytes
        bytes_at = np.frombuffer(self.arena.view(pool, offset, n_bytes), np.uint8)
        if end <= start or not self.arena.return_pages(pool, start, end - start):
            bytes_at[:] = 0
        else:
            bytes_at[: start - offset] = 0
            bytes_at[end - offset :] = 0

    # -- making and unmaking -----------------------------------------------------------------------

    def add(
        self,
        block_bytes: int,
        n_bytes: int,
        mapped: osmem.PrivateMemory,
        start: int,
        kind: int,
        node: int | None = None,
        n_most: int = 0,
    ) -> int:
        """Make a pool of `n_bytes` at `start` of `mapped` memory, for a node; return its id.

        It has words for blocks of `n_most` bytes, to which it may be extended.

        Raises
        ------
        AllocationFailed
            "no_pool": all ids are taken, or all rows for blocks.
        """
        self.finish_interrupted()
        n_blocks = n_bytes // block_bytes
        n_most_blocks = max(n_blocks, n_most // block_bytes)
        pool = self._absent_pool(block_bytes, n_most_blocks, n_bytes)
        n_words = _words_for(n_most_blocks)
        row = self.rows[pool]
        # From here on the id is taken, also for a signal handler that interrupts this.
        row["kind"] = kind
        row["address"] = self.arena.assign(pool, mapped, start)
        row["n_blocks"] = n_blocks
        row["n_words"] = n_words
        row["node"] = 0 if node is None else node + 1
        if self.state[s.PAGES_AT]:
            self.state[self.state[s.PAGES_AT] + pool] = mapped.huge_bytes // block_bytes
        row["failures"] = row["rollbacks"] = 0
        _set_first_bits(self.state, int(row["bitmap_at"]), n_blocks)
        _set_first_bits(self.state, int(row["summary_at"]), _words_for(n_blocks))
        if row["first_generation"]:  # fresh memory is zero by itself, and stays uncommitted
            self.blocks_of(pool)["status"] = row["first_generation"] << s.GENERATION_SHIFT
        self._publish(s.FREE_COUNTS + pool, n_blocks)
        self._link(pool)
        self._set_inline_limit()
        return pool

    def room_of(self, pool: int) -> int:
        """Return by how many bytes a pool may be extended."""
        row = self.rows[pool]
        n_blocks = self.arena.extent_of(pool) // int(row["block_bytes"])
        n_more = min(n_blocks, int(row["n_words"]) * s.WORD_BITS, int(row["max_blocks"]))
        n_more -= int(row["n_blocks"])
        return n_more * int(row["block_bytes"])

    def extend(self, pool: int, n_bytes: int) -> None:
        """Let a pool be larger by `n_bytes`, which there is room for; threads may be using it."""
        row = self.rows[pool]
        n_before, n_blocks = int(row["n_blocks"]), n_bytes // int(row["block_bytes"])
        if row["first_generation"]:
            start = int(row["blocks_at"]) + n_before * s.BLOCK_WORDS
            rows = self.state[start : start + n_blocks * s.BLOCK_WORDS].view(s.BLOCK)
            rows["status"] = row["first_generation"] << s.GENERATION_SHIFT
        blocks.extend_pool(self.argument, pool, n_blocks)

    def most_blocks(self, n_blocks: int) -> int:
        """Return how many of `n_blocks` a further pool may be given words for, to grow into.

        For all of them, as long as that takes no more than a quarter of the words that are left.
        """
        n_left = (len(self.state) - self._next_word) // (4 * _segment_words(s.WORD_BITS))
        n_left *= s.WORD_BITS
        if _power_above(n_blocks) <= n_left:
            return n_blocks
        return _power_above(n_left + 1) // 2 if n_left else 0

    def remove(self, pool: int) -> None:
        """Unmake a pool that nobody can claim from any more; its id may be used again.

        What was handed out of it earlier stays recognizable: generations go on where they were.
        """
        self._unlink(pool)
        self._finish_removing(pool)
        self._set_inline_limit()

    def finish_interrupted(self) -> None:
        """Unmake pools that are not in the chain: an interrupt or a fork cut their change short."""
        linked = set(self.pool_ids)
        for pool in np.flatnonzero(self.rows["kind"] != s.POOL_ABSENT).tolist():
            if pool not in linked:
                self._finish_removing(pool)

    def _finish_removing(self, pool: int) -> None:
        row = self.rows[pool]
        self.state[s.FREE_COUNTS + pool] = s.CLOSED_POOL
        generations = self.blocks_of(pool)["status"] >> s.GENERATION_SHIFT
        row["past_allocations"] += int((generations - row["first_generation"]).sum())
        row["first_generation"] = int(generations.max(initial=row["first_generation"]))
        start, end = int(row["bitmap_at"]), int(row["blocks_at"])
        end += int(row["n_blocks"]) * s.BLOCK_WORDS
        row["n_blocks"] = 0  # what follows may be done twice
        self.state[start:end] = 0
        self.arena.release(pool)
        row["kind"] = s.POOL_ABSENT

    def unmap(self) -> None:
        """Forget the pools' memory for good; what is viewed stays mapped by its views."""
        self.state[s.FREE_COUNTS : s.FREE_COUNTS + s.N_POOL_IDS] = s.CLOSED_POOL
        self.arena.release_pools()

    @property
    def is_unmapped(self) -> bool:
        """Whether `unmap` was called, or there never was a pool."""
        return self.arena.is_empty

    # -- inside ------------------------------------------------------------------------------------

    def _new_state(self, pools: Sequence[MappedPool], limit_bytes: int) -> NDArray[np.int64]:
        smallest = min((pool.block_bytes for pool in pools), default=_DEFAULT_BLOCK_BYTES)
        n_words = s.SEGMENTS_AT + s.N_POOL_IDS * 4 * s.LINE_WORDS
        n_spare = min(max(_SPARE * limit_bytes // smallest, _MIN_SPARE), _MAX_SPARE)
        n_words += _segment_words(n_spare)
        if self.arena.placement is not None:
            n_words += _whole_lines(self.arena.placement.n_processors)
            n_words += _whole_lines(s.N_POOL_IDS)
        for pool in pools:
            n_words += _segment_words(2 * (pool.n_bytes // pool.block_bytes))
        return self.arena.map_words(n_words)

    def _note_processors(self, placement: jessymem.hints.Placement) -> None:
        """Write down which node each processor is on, as pools have it."""
        at, n_processors = self._next_word, placement.n_processors
        self._next_word += _whole_lines(n_processors)
        for processor, node in placement.node_of_cpu.items():
            self.state[at + processor] = node + 1
        self.state[s.NODES_AT], self.state[s.N_PROCESSORS] = at, n_processors

    def _absent_pool(self, block_bytes: int, n_blocks: int, n_bytes: int) -> int:
        """Return an id without a pool, whose words fit so many blocks of that size.

        An id keeps its block size and its words for good: a thread that still holds a handle of an
        earlier pool under it looks at words that mean the same.
        """
        is_absent = self.rows["kind"] == s.POOL_ABSENT
        fits = self.rows["block_bytes"] == block_bytes
        fits &= self.rows["max_blocks"] >= n_blocks
        known = np.flatnonzero(is_absent & fits)
        if len(known):
            return int(known[self.rows["max_blocks"][known].argmin()])
        fresh = np.flatnonzero(self.rows["block_bytes"] == 0)
        if not len(fresh):
            raise _no_space(n_bytes, f"all {s.N_POOL_IDS} pool ids are taken")
        # So that pools of growing sizes find their words again.
        max_blocks = _power_above(n_blocks)
        if self._next_word + _segment_words(max_blocks) > len(self.state):
            raise _no_space(n_bytes, "there are no rows left for so many blocks")
        row, n_words = self.rows[fresh[0]], _words_for(max_blocks)
        row["block_bytes"] = block_bytes
        row["block_shift"] = block_bytes.bit_length() - 1
        row["max_blocks"] = max_blocks
        row["bitmap_at"] = self._next_word
        row["summary_at"] = row["bitmap_at"] + _whole_lines(n_words)
        row["blocks_at"] = row["summary_at"] + _whole_lines(_words_for(n_words))
        self._next_word += _segment_words(max_blocks)
        return int(fresh[0])

    def _link(self, pool: int) -> None:
        """Put a pool into the chain; a thread that follows it sees the old chain or the new."""
        smaller = [
            other
            for other in self.pool_ids
            if self.rows[other]["block_bytes"] <= self.rows[pool]["block_bytes"]
        ]
        if smaller:
            self.rows[pool]["next_pool"] = self.rows[smaller[-1]]["next_pool"]
            self._publish(_next_at(smaller[-1]), pool)
        else:
            self.rows[pool]["next_pool"] = self.state[s.FIRST_POOL]
            self._publish(s.FIRST_POOL, pool)

    def _unlink(self, pool: int) -> None:
        """Take a pool out of the chain; a thread that has come to it finds its way on."""
        after = self.rows[pool]["next_pool"]
        ids = self.pool_ids
        where = ids.index(pool)
        self._publish(_next_at(ids[where - 1]) if where else s.FIRST_POOL, int(after))

    def _publish(self, at: int, value: int) -> None:
        """Set a word after all that was written before it, on every machine."""
        if self.argument is None:
            self.state[at] = value  # no kernel has run yet
        else:
            blocks.publish(self.argument, at, value)

    def _set_inline_limit(self) -> None:
        largest = max((int(self.rows[pool]["block_bytes"]) for pool in self.pool_ids), default=0)
        self.state[s.INLINE_LIMIT] = min(largest, INLINE_BYTES)


def _side_by_side(configs: Sequence[PoolConfig], memory: osmem.PrivateMemory) -> list[MappedPool]:
    """Let pools lie one behind the other in one mapping."""
    sizes = [config.size_mb * MIB for config in configs]
    starts = accumulate(sizes, initial=0)
    return [
        MappedPool(config.block_size, n_bytes, memory, start)
        for config, n_bytes, start in zip(configs, sizes, starts, strict=False)
    ]


def whole_blocks(n_bytes: int, block_bytes: int) -> int:
    """Return the bytes of the blocks that `n_bytes` take."""
    return -(-n_bytes // block_bytes) * block_bytes


def _next_at(pool: int) -> int:
    return s.POOLS_AT + pool * s.POOL_WORDS + _NEXT


def _no_space(n_bytes: int, why: str) -> AllocationFailed:
    return AllocationFailed(
        f"no further pool of {n_bytes:,} bytes: {why}", reason="no_pool", requested=n_bytes
    )


def _power_above(n: int) -> int:
    """Return the lowest power of two that is `n` or more."""
    return 1 << max(n - 1, 0).bit_length()


def _words_for(n_bits: int) -> int:
    return -(-n_bits // s.WORD_BITS)


def _whole_lines(n_words: int) -> int:
    return -(-n_words // s.LINE_WORDS) * s.LINE_WORDS


def _segment_words(n_blocks: int) -> int:
    """Return the words that the bitmap, the summary and the rows of so many blocks take."""
    n_words = _words_for(n_blocks)
    n_rows = n_blocks * s.BLOCK_WORDS
    return _whole_lines(n_words) + _whole_lines(_words_for(n_words)) + _whole_lines(n_rows)


def _set_first_bits(state: NDArray[np.int64], at: int, n_bits: int) -> None:
    """Set the first `n_bits` bits of the words from `at` on, and clear the rest of the last one."""
    n_full, n_rest = divmod(n_bits, s.WORD_BITS)
    state[at : at + n_full] = -1
    if n_rest:
        state[at + n_full] = 2**n_rest - 1
