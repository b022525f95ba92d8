"""Pools and blocks: where their rows lie, what a handle says, who owns a block.

Works on an allocator's *state*, the one array of words that `schema` describes. Called by
`allocation`, `release`, `pages` and `jessymem.pools.table`, and from a user's own compiled code.
"""

from __future__ import annotations

import numpy as np

from jessymem.kernels import atomics, bitmap, memory
from jessymem.kernels._jit import MEMORY, Int, kernel, on_promotion
from jessymem.kernels.memory import Words
from jessymem.kernels.schema import (
    BLOCK,
    BLOCK_ALLOCATED,
    BLOCK_CONTINUED,
    BLOCK_WORDS,
    CLOSED_POOL,
    FREE_COUNTS,
    FREED_TWICE,
    GENERATION_SHIFT,
    GRANULE_SHIFT,
    HANDLE_GENERATION_BITS,
    HANDLE_GENERATION_MASK,
    HANDLE_GRANULE_MASK,
    HANDLE_POOL_SHIFT,
    N_POOL_IDS,
    NEVER_ALLOCATED,
    NOT_A_BLOCK,
    NOT_A_POOL,
    OK,
    PAST_END,
    POOL,
    POOL_ABSENT,
    POOL_FULL,
    POOL_WORDS,
    POOLS_AT,
    STALE,
    STATE_MASK,
    WORD_BITS,
    word_of,
)
from jessymem.kernels.transactions import entry

# The words of a row.
ADDRESS = word_of(POOL, "address")
BLOCK_BYTES = word_of(POOL, "block_bytes")
BLOCK_SHIFT = word_of(POOL, "block_shift")
N_BLOCKS = word_of(POOL, "n_blocks")
BITMAP = word_of(POOL, "bitmap_at")
N_WORDS = word_of(POOL, "n_words")
SUMMARY = word_of(POOL, "summary_at")
BLOCKS = word_of(POOL, "blocks_at")
NEXT = word_of(POOL, "next_pool")
KIND = word_of(POOL, "kind")
FAILURES = word_of(POOL, "failures")
ROLLBACKS = word_of(POOL, "rollbacks")
NODE = word_of(POOL, "node")
FIRST_GENERATION = word_of(POOL, "first_generation")
REQUESTED = word_of(BLOCK, "n_requested")

# What tells threads apart lies in the upper bits of where their stacks are.
_STACK_SHIFT = 16
_SPREAD = 0x9E3779B1
_HASH_BITS = 32


# -- where things are ------------------------------------------------------------------------------


@kernel
def row_of(pool: Int) -> Int:
    """Return the first word of a pool's row."""
    return POOLS_AT + pool * POOL_WORDS


@kernel
def field(state: Words, pool: Int, which: Int) -> Int:
    """Return one of the words of a pool's row."""
    return memory.get_word(state, row_of(pool) + which)


@kernel
def block_at(state: Words, pool: Int, block: Int) -> Int:
    """Return the first word of a block's row."""
    return field(state, pool, BLOCKS) + block * BLOCK_WORDS


@kernel
def start_word(n_blocks: Int) -> Int:
    """Choose the word in which this thread looks first: threads differ, a thread stays.

    Of a pool that may grow in place, only words of blocks that are there.
    """
    scattered = ((atomics.stack_address() >> _STACK_SHIFT) * _SPREAD) & (2**_HASH_BITS - 1)
    return (scattered * ((n_blocks + WORD_BITS - 1) // WORD_BITS)) >> _HASH_BITS


@kernel
def handle_of(state: Words, pool: Int, block: Int) -> Int:
    """Return the handle of an allocated block."""
    granule = block << (field(state, pool, BLOCK_SHIFT) - GRANULE_SHIFT)
    generation = memory.get_word(state, block_at(state, pool, block)) >> GENERATION_SHIFT
    upper = (np.int64(pool) << HANDLE_POOL_SHIFT) | (granule << HANDLE_GENERATION_BITS)
    return upper | (generation & HANDLE_GENERATION_MASK)


@kernel
def blocks_for(state: Words, pool: Int, n_bytes: Int) -> Int:
    """Return how many of a pool's blocks `n_bytes` take."""
    shift = field(state, pool, BLOCK_SHIFT)
    return (n_bytes + (np.int64(1) << shift) - 1) >> shift


@kernel
def pool_of(handle: Int) -> Int:
    """Return the pool id of a handle."""
    return handle >> HANDLE_POOL_SHIFT


@kernel
def offset_of(handle: Int) -> Int:
    """Return the offset of a handle's block in its pool."""
    return ((handle >> HANDLE_GENERATION_BITS) & HANDLE_GRANULE_MASK) << GRANULE_SHIFT


@kernel
def generation_of(handle: Int) -> Int:
    """Return the generation of a handle."""
    return handle & HANDLE_GENERATION_MASK


@kernel
def address_of(state: Words, handle: Int) -> Int:
    """Return the address of the first byte of an allocated block; the handle is not checked."""
    return field(state, pool_of(handle), ADDRESS) + offset_of(handle)


# -- free counts and bits -------------------------------------------------------------------------


@kernel
def count_off(state: Words, pool: Int, n_blocks: Int) -> bool:
    """Take blocks off a pool's free count; tell whether there were so many."""
    n_free = atomics.load(state, FREE_COUNTS + pool)
    while n_free >= n_blocks:
        if atomics.compare_and_swap(state, FREE_COUNTS + pool, n_free, n_free - n_blocks):
            return True
        n_free = atomics.load(state, FREE_COUNTS + pool)
    return False


@kernel
def release(state: Words, pool: Int, block: Int, n_blocks: Int) -> None:
    """Make claimed blocks free again: their bits first, the free count last."""
    if n_blocks == 1:
        bitmap.release_block(state, field(state, pool, BITMAP), field(state, pool, SUMMARY), block)
    else:
        bitmap.release_run(
            state, field(state, pool, BITMAP), field(state, pool, SUMMARY), block, n_blocks
        )
    atomics.add(state, FREE_COUNTS + pool, n_blocks)


@entry
@kernel
def publish(state: Words, at: Int, value: Int) -> None:
    """Set a word of the chain of pools, after all that it leads to."""
    atomics.store(state, at, value)


@entry
@kernel
def extend_pool(state: Words, pool: Int, n_blocks: Int) -> None:
    """Let a pool have `n_blocks` more, whose rows and memory are there, behind the others.

    First there are so many, then they are free: who claims one can free it.
    """
    n_before = field(state, pool, N_BLOCKS)
    atomics.store(state, row_of(pool) + N_BLOCKS, n_before + n_blocks)
    bitmap.release_run(
        state, field(state, pool, BITMAP), field(state, pool, SUMMARY), n_before, n_blocks
    )
    atomics.add(state, FREE_COUNTS + pool, n_blocks)


@entry
@kernel
def close_pool(state: Words, pool: Int) -> Int:
    """Let nobody claim from a pool any more if all of it is free; return OK or POOL_FULL."""
    n_all = field(state, pool, N_BLOCKS)
    is_closed = atomics.compare_and_swap(state, FREE_COUNTS + pool, n_all, np.int64(CLOSED_POOL))
    return OK if is_closed else POOL_FULL


# -- whose a block is ------------------------------------------------------------------------------


@kernel
def find_block(state: Words, pool: Int, offset: Int) -> Int:
    """Return the number of the block that begins at `offset`, or a code where none does."""
    row = row_of(pool)
    if pool < 0 or pool >= N_POOL_IDS or atomics.load(state, row + KIND) == POOL_ABSENT:
        return NOT_A_POOL
    block = offset >> field(state, pool, BLOCK_SHIFT)
    if offset < 0 or block >= field(state, pool, N_BLOCKS):
        return PAST_END
    if offset & (field(state, pool, BLOCK_BYTES) - 1):
        return NOT_A_BLOCK
    return block


@kernel
def is_owned(status: Int, handle: Int) -> bool:
    """Tell whether a block with this status is allocated to the holder of `handle`."""
    generation = (status >> GENERATION_SHIFT) & HANDLE_GENERATION_MASK
    return status & STATE_MASK == BLOCK_ALLOCATED and generation == generation_of(handle)


@kernel
def why_not_owned(state: Words, status: Int, handle: Int) -> Int:
    """Return the code that says why a block is not the one of `handle`."""
    if status & STATE_MASK == BLOCK_CONTINUED:
        return NOT_A_BLOCK
    generation = status >> GENERATION_SHIFT
    if generation == field(state, pool_of(handle), FIRST_GENERATION):
        return NEVER_ALLOCATED
    if generation & HANDLE_GENERATION_MASK == generation_of(handle):
        return FREED_TWICE
    return STALE


@entry
@kernel
def resolve(state: Words, pool: Int, offset: Int) -> Int:
    """Return the handle of the block that is allocated at `offset` of `pool`, or a code."""
    block = find_block(state, pool, offset)
    if block < 0:
        return block
    status = atomics.load(state, block_at(state, pool, block))
    handle = handle_of(state, pool, block)
    return handle if is_owned(status, handle) else why_not_owned(state, status, handle)


@on_promotion(MEMORY)
def _call_first() -> None:
    state = memory.empty_state()
    address_of(state, 0)
    bitmap.count_free(state, 0, 0)
    resolve(state, 0, 0)
    close_pool(state, 0)
    extend_pool(state, 0, 0)
    publish(state, FREE_COUNTS, 0)
    release(state, 0, 0, 0)
