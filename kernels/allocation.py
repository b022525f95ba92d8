"""Blocks handed out: one call makes a whole allocation, or nothing.

In the order of the protocol: count the block off its pool, charge it, claim its bit, mark it. What
fails half-way returns everything it took. Safe under any number of threads that hold neither a lock
nor the GIL. Called by `jessymem.pools`, and from a user's own compiled code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import atomics, bitmap, blocks, budget, memory, release
from jessymem.kernels._jit import MEMORY, Int, kernel, on_promotion
from jessymem.kernels.memory import Words
from jessymem.kernels.schema import (
    BAD_SIZE,
    BLOCK_ALLOCATED,
    BLOCK_CONTINUED,
    BLOCK_DIRTY,
    BLOCK_WORDS,
    FIRST_POOL,
    FRAGMENTED,
    FREE_COUNTS,
    GENERATION_SHIFT,
    INLINE_LIMIT,
    NO_POOL,
    NO_POOL_ID,
    OK,
    PAGES_AT,
    POOL_FULL,
    QUIET_LIMIT,
    TOO_LARGE,
    ZERO_ON_REUSE,
)
from jessymem.kernels.transactions import entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GENERATION_MASK = 2 ** (63 - GENERATION_SHIFT) - 1


@kernel
def count_clean(state: Words, pool: Int, block: Int, n_blocks: Int) -> Int:
    """Count, of claimed blocks, those whose pages the system has."""
    n_clean = np.int64(0)
    at = blocks.block_at(state, pool, block)
    for i in range(n_blocks):
        if memory.get_word(state, at + i * BLOCK_WORDS) & BLOCK_DIRTY == 0:
            n_clean += 1
    return n_clean


@kernel
def admit_pages(state: Words, pool: Int, block: Int, n_blocks: Int) -> Int:
    """Let claimed blocks become resident, with those that share their huge pages; as `admit`.

    Those are marked as used, and count as retained until the pages are returned. Several threads
    may do so with one page: who marks a block counts it. Nobody returns it meanwhile, for which all
    its blocks would have to be free.
    """
    shared = max(memory.get_word(state, memory.get_word(state, PAGES_AT) + pool), 1)
    shift = blocks.field(state, pool, blocks.BLOCK_SHIFT)
    first = block - block % shared
    last = block + n_blocks - 1
    end = min(last - last % shared + shared, blocks.field(state, pool, blocks.N_BLOCKS))
    at = blocks.block_at(state, pool, first)
    n_clean = np.int64(0)
    for i in range(end - first):
        if atomics.load(state, at + i * BLOCK_WORDS) & BLOCK_DIRTY == 0:
            n_clean += 1
    code = budget.admit(state, n_clean << shift)
    if code != OK:
        return code
    for i in range(end - first):
        if atomics.bitwise_or(state, at + i * BLOCK_WORDS, BLOCK_DIRTY) & BLOCK_DIRTY == 0:
            n_clean -= 1
    budget.dismiss(state, n_clean << shift)  # what others have marked and counted since
    return OK


@kernel
def zero_dirty(state: Words, pool: Int, block: Int, n_bytes: Int) -> None:
    """Fill what was handed out before with zeros, in the first `n_bytes` of claimed blocks."""
    block_bytes = blocks.field(state, pool, blocks.BLOCK_BYTES)
    at = blocks.block_at(state, pool, block)
    address = blocks.field(state, pool, blocks.ADDRESS) + block * block_bytes
    done = np.int64(0)
    while done < n_bytes:
        if memory.get_word(state, at) & BLOCK_DIRTY:
            memory.clear(state, address + done, min(n_bytes - done, block_bytes))
        done += block_bytes
        at += BLOCK_WORDS


@kernel
def mark_allocated(state: Words, pool: Int, block: Int, n_bytes: Int, n_blocks: Int) -> Int:
    """Give claimed blocks their new owner; return the handle.

    The first block's status is stored last: until then nobody takes the others for a run.
    """
    at = blocks.block_at(state, pool, block)
    for i in range(1, n_blocks):
        further = at + i * BLOCK_WORDS
        generation = memory.get_word(state, further) >> GENERATION_SHIFT
        atomics.store(
            state, further, (generation << GENERATION_SHIFT) | BLOCK_DIRTY | BLOCK_CONTINUED
        )
    memory.put_word(state, at + blocks.REQUESTED, n_bytes)
    generation = ((memory.get_word(state, at) >> GENERATION_SHIFT) + 1) & _GENERATION_MASK
    atomics.store(state, at, (generation << GENERATION_SHIFT) | BLOCK_DIRTY | BLOCK_ALLOCATED)
    return blocks.handle_of(state, pool, block)


@kernel(inline=True)
def allocate_block(state: Words, pool: Int, n_bytes: Int, limit_at: Int, zero: Int) -> Int:
    """Take one block of `pool`; return its handle, or POOL_FULL, OVER_LIMIT or RETAINED."""
    row = blocks.row_of(pool)
    if not blocks.count_off(state, pool, 1):
        atomics.add(state, row + blocks.FAILURES, 1)
        return POOL_FULL
    block_bytes = blocks.field(state, pool, blocks.BLOCK_BYTES)
    code = budget.reserve(state, block_bytes, limit_at)
    if code != OK:
        atomics.add(state, FREE_COUNTS + pool, 1)
        return code
    block = bitmap.claim_one(
        state,
        blocks.field(state, pool, blocks.BITMAP),
        blocks.field(state, pool, blocks.N_WORDS),
        blocks.field(state, pool, blocks.SUMMARY),
        blocks.start_word(blocks.field(state, pool, blocks.N_BLOCKS)),
    )
    if memory.get_word(state, blocks.block_at(state, pool, block)) & BLOCK_DIRTY == 0:
        if memory.get_word(state, PAGES_AT) == 0:
            code = budget.admit(state, block_bytes)
        else:
            code = admit_pages(state, pool, block, 1)
        if code != OK:
            budget.release(state, block_bytes)
            blocks.release(state, pool, block, 1)
            return code
    elif zero:
        address = blocks.field(state, pool, blocks.ADDRESS) + (
            block << blocks.field(state, pool, blocks.BLOCK_SHIFT)
        )
        memory.clear(state, address, n_bytes)
    return mark_allocated(state, pool, block, n_bytes, 1)


@kernel
def claim_some_run(state: Words, pool: Int, n_blocks: Int) -> Int:
    """Claim blocks in a row, and count them off; return the first, or FRAGMENTED or POOL_FULL.

    They are counted off once found: a search that finds none hides nothing from others. One
    that another thread's roll-back may have blinded is made again.
    """
    row = blocks.row_of(pool)
    first, n_words, summary = (
        blocks.field(state, pool, blocks.BITMAP),
        blocks.field(state, pool, blocks.N_WORDS),
        blocks.field(state, pool, blocks.SUMMARY),
    )
    n_rollbacks = np.int64(-1)
    while n_rollbacks != atomics.load(state, row + blocks.ROLLBACKS):
        n_rollbacks = atomics.load(state, row + blocks.ROLLBACKS)
        block = bitmap.find_run(state, first, n_words, n_blocks, 0)
        while block >= 0:
            if not blocks.count_off(state, pool, n_blocks):
                return POOL_FULL
            if bitmap.claim_run(state, first, summary, block, n_blocks) == OK:
                return block
            atomics.add(state, FREE_COUNTS + pool, n_blocks)
            atomics.add(state, row + blocks.ROLLBACKS, 1)
            block = bitmap.find_run(state, first, n_words, n_blocks, block + 1)
    n_free = atomics.load(state, FREE_COUNTS + pool)
    return FRAGMENTED if n_free >= n_blocks else POOL_FULL


@kernel
def allocate_run(state: Words, pool: Int, n_bytes: Int, limit_at: Int, zero: Int) -> Int:
    """Take blocks of `pool` in a row; as `allocate_block`, or FRAGMENTED."""
    row = blocks.row_of(pool)
    n_blocks = blocks.blocks_for(state, pool, n_bytes)
    block = claim_some_run(state, pool, n_blocks)
    if block < 0:
        atomics.add(state, row + blocks.FAILURES, 1)
        return block
    block_bytes = blocks.field(state, pool, blocks.BLOCK_BYTES)
    n_clean_bytes = count_clean(state, pool, block, n_blocks) * block_bytes
    code = budget.reserve(state, n_blocks * block_bytes, limit_at)
    if code == OK:
        if memory.get_word(state, PAGES_AT) == 0:
            code = budget.admit(state, n_clean_bytes)
        else:
            code = admit_pages(state, pool, block, n_blocks)
        if code != OK:
            budget.release(state, n_blocks * block_bytes)
    if code != OK:
        blocks.release(state, pool, block, n_blocks)
        return code
    if zero:
        zero_dirty(state, pool, block, n_bytes)
    return mark_allocated(state, pool, block, n_bytes, n_blocks)


@entry
@kernel(nogil=False, inline=True)
def allocate(state: Words, n_bytes: Int, limit_at: Int) -> Int:
    """Take the best-fitting free block for `n_bytes`; return its handle, or the code why not.

    A full pool is passed over for the next larger. Requests above INLINE_LIMIT give TOO_LARGE.
    """
    if n_bytes < 1:
        return BAD_SIZE
    if n_bytes > memory.get_word(state, INLINE_LIMIT):
        return TOO_LARGE
    result: Int = NO_POOL
    pool = atomics.load(state, FIRST_POOL)
    while pool != NO_POOL_ID:
        if n_bytes <= blocks.field(state, pool, blocks.BLOCK_BYTES):
            result = allocate_block(
                state, pool, n_bytes, limit_at, memory.get_word(state, ZERO_ON_REUSE)
            )
            if result != POOL_FULL:
                return result
        pool = atomics.load(state, blocks.row_of(pool) + blocks.NEXT)
    return result


@entry
@kernel(nogil=False, inline=True)
def allocate_quietly(state: Words, n_bytes: Int) -> Int:
    """As `allocate`, as long as nothing is to be done beside it."""
    return allocate(state, n_bytes, QUIET_LIMIT)


@kernel
def largest_block(state: Words) -> Int:
    """Return the bytes of the largest blocks there are, 0 where there is no pool."""
    n_bytes: Int = 0
    pool = atomics.load(state, FIRST_POOL)
    while pool != NO_POOL_ID:
        n_bytes = max(n_bytes, blocks.field(state, pool, blocks.BLOCK_BYTES))
        pool = atomics.load(state, blocks.row_of(pool) + blocks.NEXT)
    return n_bytes


@entry
@kernel
def allocate_any(state: Words, n_bytes: Int, limit_at: Int, zero: Int) -> Int:
    """Take a block of any size, or, above the largest, a run of largest blocks; as `allocate`.

    Of several pools that fail, FRAGMENTED is told before POOL_FULL.
    """
    if n_bytes < 1:
        return BAD_SIZE
    largest = largest_block(state)
    worst: Int = NO_POOL
    pool = atomics.load(state, FIRST_POOL)
    while pool != NO_POOL_ID:
        result: Int = NO_POOL
        block_bytes = blocks.field(state, pool, blocks.BLOCK_BYTES)
        if n_bytes <= block_bytes:
            result = allocate_block(state, pool, n_bytes, limit_at, zero)
        elif block_bytes == largest:
            result = allocate_run(state, pool, n_bytes, limit_at, zero)
        if result != NO_POOL and result != POOL_FULL and result != FRAGMENTED:
            return result
        if result == FRAGMENTED or worst == NO_POOL:
            worst = result
        pool = atomics.load(state, blocks.row_of(pool) + blocks.NEXT)
    return worst


@kernel
def give_up(state: Words, handles: NDArray[Any], failing: Int) -> None:
    """Take back what was allocated for many before the one that fails; note which that is."""
    for i in range(failing):
        release.undo(state, handles[i])
        handles[i] = 0
    handles[handles.shape[0] - 1] = failing


@entry
@kernel
def allocate_many(state: Words, sizes: NDArray[Any], limit_at: Int, handles: NDArray[Any]) -> Int:
    """Allocate for each of `sizes`, or for none; return OK, or the code of the one that failed.

    Its position is then in the last of `handles`, which are one more than there are sizes; the
    others are 0.
    """
    zero = memory.get_word(state, ZERO_ON_REUSE)
    for i in range(sizes.shape[0]):
        result = allocate(state, sizes[i], limit_at)
        if result == TOO_LARGE:
            result = allocate_any(state, sizes[i], limit_at, zero)
        if result < 0:
            give_up(state, handles, i)
            return result
        handles[i] = result
    return OK


@on_promotion(MEMORY)
def _call_first() -> None:
    state = memory.empty_state()
    sizes = np.ones(1, np.int64)
    allocate(state, 1, QUIET_LIMIT)
    allocate_quietly(state, 1)
    allocate_any(state, 1, QUIET_LIMIT, 0)
    allocate_many(state, sizes, QUIET_LIMIT, np.zeros(2, np.int64))
