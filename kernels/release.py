"""Blocks freed, and the views that keep them a while.

A block's status is exchanged in one step: who loses has found a double free. While views on it are
noted it waits, and the last of them frees it. Safe under any number of threads, as
`allocation`. Called by `jessymem.pools`, and from a user's own compiled code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import atomics, bitmap, blocks, budget, memory
from jessymem.kernels._jit import MEMORY, Int, kernel, on_promotion
from jessymem.kernels.memory import Words
from jessymem.kernels.schema import (
    ANY_SIZE,
    BLOCK_ALLOCATED,
    BLOCK_DIRTY,
    BLOCK_FREE,
    BLOCK_RELEASING,
    BLOCK_WAITING,
    BLOCK_WORDS,
    FREE_COUNTS,
    GENERATION_SHIFT,
    IS_EMPTY,
    IS_WAITING,
    OK,
    ONE_VIEW,
    OUT_OF_BOUNDS,
    POOL_GROWN,
    STATE_MASK,
    TOO_MANY_VIEWS,
    VIEWS_MASK,
    WRONG_SIZE,
)
from jessymem.kernels.transactions import entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

NONE = bitmap.NONE

PREFETCHED_AHEAD = 8


# -- freeing ---------------------------------------------------------------------------------------


@kernel
def free_continued(state: Words, pool: Int, block: Int, n_blocks: Int) -> None:
    """Set the further blocks of a run free in their status."""
    for i in range(1, n_blocks):
        at = blocks.block_at(state, pool, block + i)
        atomics.store(state, at, memory.get_word(state, at) & ~STATE_MASK)


@kernel(inline=True)
def finish(state: Words, pool: Int, block: Int) -> Int:
    """Make a block free whose status says so by now, with the rest of its run; return IS_* flags.

    Its charge goes first, the free count follows last.
    """
    n_bytes = memory.get_word(state, blocks.block_at(state, pool, block) + blocks.REQUESTED)
    n_blocks = blocks.blocks_for(state, pool, n_bytes)
    if n_blocks > 1:
        free_continued(state, pool, block, n_blocks)
    flags = budget.release(state, n_blocks << blocks.field(state, pool, blocks.BLOCK_SHIFT))
    is_grown = blocks.field(state, pool, blocks.KIND) == POOL_GROWN
    n_all = blocks.field(state, pool, blocks.N_BLOCKS)
    blocks.release(state, pool, block, n_blocks)
    if is_grown and atomics.load(state, FREE_COUNTS + pool) == n_all:
        flags |= IS_EMPTY
    return flags


@kernel
def release_or_retire(state: Words, pool: Int, block: Int, status: Int) -> Int:
    """Free a block, or let it wait for its views, if its status is still `status`.

    Return IS_* flags, or NONE where another thread has changed it.
    """
    is_viewed = status & VIEWS_MASK != 0
    kind = BLOCK_WAITING if is_viewed else BLOCK_FREE
    at = blocks.block_at(state, pool, block)
    if not atomics.compare_and_swap(state, at, status, (status & ~STATE_MASK) | kind):
        return NONE
    return IS_WAITING if is_viewed else finish(state, pool, block)


@entry
@kernel(nogil=False, inline=True)
def deallocate(state: Words, handle: Int, n_bytes: Int) -> Int:
    """Free a block; return IS_* flags added up, or the code why not.

    `n_bytes` must be what was asked for, unless it is ANY_SIZE.
    """
    pool = blocks.pool_of(handle)
    block = blocks.find_block(state, pool, blocks.offset_of(handle))
    if block < 0:
        return block
    at = blocks.block_at(state, pool, block)
    flags: Int = NONE
    while flags == NONE:
        status = atomics.load(state, at)
        if not blocks.is_owned(status, handle):
            return blocks.why_not_owned(state, status, handle)
        if n_bytes != ANY_SIZE and n_bytes != memory.get_word(state, at + blocks.REQUESTED):
            return WRONG_SIZE
        flags = release_or_retire(state, pool, block, status)
    return flags


@entry
@kernel
def undo(state: Words, handle: Int) -> None:
    """Take an allocation back that nobody has heard of; it does not count as one.

    Closing may have taken it back meanwhile.
    """
    pool = blocks.pool_of(handle)
    block = blocks.offset_of(handle) >> blocks.field(state, pool, blocks.BLOCK_SHIFT)
    at = blocks.block_at(state, pool, block)
    status = atomics.load(state, at)
    generation = (status >> GENERATION_SHIFT) - 1
    undone = (generation << GENERATION_SHIFT) | BLOCK_DIRTY | BLOCK_FREE
    if blocks.is_owned(status, handle) and atomics.compare_and_swap(state, at, status, undone):
        finish(state, pool, block)


@kernel
def mark_releasing(state: Words, handle: Int) -> Int:
    """Mark a block for release together with others; return OK or the code why not."""
    pool = blocks.pool_of(handle)
    block = blocks.find_block(state, pool, blocks.offset_of(handle))
    if block < 0:
        return block
    at = blocks.block_at(state, pool, block)
    status = atomics.load(state, at)
    while blocks.is_owned(status, handle):
        if atomics.compare_and_swap(state, at, status, (status & ~STATE_MASK) | BLOCK_RELEASING):
            return OK
        status = atomics.load(state, at)
    return blocks.why_not_owned(state, status, handle)


@kernel
def release_marked(state: Words, handle: Int, is_released: Int) -> Int:
    """Free a block that is marked for release, or unmark it; return IS_* flags."""
    pool = blocks.pool_of(handle)
    block = blocks.find_block(state, pool, blocks.offset_of(handle))
    at = blocks.block_at(state, pool, block)
    flags: Int = NONE
    while flags == NONE:
        status = atomics.load(state, at)
        if is_released:
            flags = release_or_retire(state, pool, block, status)
        elif atomics.compare_and_swap(state, at, status, (status & ~STATE_MASK) | BLOCK_ALLOCATED):
            flags = OK
    return flags


@kernel
def prefetch_block(state: Words, handle: Int) -> None:
    """Ask for the row of a handle's block, if there is one."""
    pool = blocks.pool_of(handle)
    block = blocks.find_block(state, pool, blocks.offset_of(handle))
    if block >= 0:
        atomics.prefetch(state, blocks.block_at(state, pool, block))


@entry
@kernel
def deallocate_many(state: Words, handles: NDArray[Any], failed: NDArray[Any]) -> Int:
    """Free all of `handles`, or none; return IS_* flags added up, or the code of one.

    ``failed[0]`` is then the position of that one.
    """
    n_handles = handles.shape[0]
    for i in range(n_handles):
        if i + PREFETCHED_AHEAD < n_handles:
            prefetch_block(state, handles[i + PREFETCHED_AHEAD])
        code = mark_releasing(state, handles[i])
        if code != OK:
            for j in range(i):
                release_marked(state, handles[j], 0)
            failed[0] = i
            return code
    flags: Int = OK
    for i in range(n_handles):
        flags |= release_marked(state, handles[i], 1)
    return flags


# -- views -----------------------------------------------------------------------------------------


@entry
@kernel(nogil=False)
def add_view(state: Words, handle: Int, n_bytes: Int) -> Int:
    """Note a view on the first `n_bytes` of a block; return OK or the code why it may not be."""
    pool = blocks.pool_of(handle)
    block = blocks.find_block(state, pool, blocks.offset_of(handle))
    if block < 0:
        return block
    at = blocks.block_at(state, pool, block)
    status = atomics.load(state, at)
    while blocks.is_owned(status, handle):
        if n_bytes > memory.get_word(state, at + blocks.REQUESTED):
            return OUT_OF_BOUNDS
        if status & VIEWS_MASK == VIEWS_MASK:
            return TOO_MANY_VIEWS
        if atomics.compare_and_swap(state, at, status, status + ONE_VIEW):
            return OK
        status = atomics.load(state, at)
    return blocks.why_not_owned(state, status, handle)


@entry
@kernel(nogil=False)
def drop_view(state: Words, handle: Int) -> Int:
    """Take a noted view back; the last one frees a block that waits. Return IS_* flags added up."""
    pool = blocks.pool_of(handle)
    block = blocks.offset_of(handle) >> blocks.field(state, pool, blocks.BLOCK_SHIFT)
    at = blocks.block_at(state, pool, block)
    while True:
        status = atomics.load(state, at)
        rest = status - ONE_VIEW
        is_last = rest & VIEWS_MASK == 0 and rest & STATE_MASK == BLOCK_WAITING
        if is_last:
            rest = rest & ~STATE_MASK
        if atomics.compare_and_swap(state, at, status, rest):
            return finish(state, pool, block) if is_last else np.int64(OK)


@entry
@kernel
def retire_pool(state: Words, pool: Int) -> Int:
    """Free every block of a pool, as its owners would; return how many wait for views."""
    n_waiting = np.int64(0)
    first = blocks.block_at(state, pool, 0)
    for block in range(blocks.field(state, pool, blocks.N_BLOCKS)):
        at = first + block * BLOCK_WORDS
        status = atomics.load(state, at)
        while status & STATE_MASK == BLOCK_ALLOCATED:
            release_or_retire(state, pool, block, status)
            status = atomics.load(state, at)
        if status & STATE_MASK == BLOCK_WAITING:
            n_waiting += 1
    return n_waiting


@on_promotion(MEMORY)
def _call_first() -> None:
    state = memory.empty_state()
    handles = np.zeros(1, np.int64)
    deallocate(state, 0, ANY_SIZE)
    deallocate_many(state, handles, handles)
    add_view(state, 0, 0)
    drop_view(state, 0)
    retire_pool(state, 0)
