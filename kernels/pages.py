"""Pages of freed blocks, claimed so that they can be returned to the system.

A freed block stays *dirty*: its pages are in memory and count as resident. Who returns them
claims the blocks as an allocation would, so nobody writes there meanwhile. Called by
`jessymem.pools`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import atomics, bitmap, blocks, budget, memory
from jessymem.kernels._jit import MEMORY, Int, kernel, on_promotion
from jessymem.kernels.memory import Words
from jessymem.kernels.schema import (
    BLOCK_DIRTY,
    BLOCK_FREE,
    BLOCK_WORDS,
    FREE_COUNTS,
    N_TRIMMED_TOGETHER,
    OK,
    STATE_MASK,
)
from jessymem.kernels.transactions import entry

if TYPE_CHECKING:
    from numpy.typing import NDArray


@kernel
def claim_dirty(state: Words, pool: Int, block: Int, n_blocks: Int) -> bool:
    """Claim certain blocks if all are free and the pages of any were used; tell whether it was."""
    is_dirty = False
    at = blocks.block_at(state, pool, block)
    for i in range(n_blocks):
        status = atomics.load(state, at + i * BLOCK_WORDS)
        if status & STATE_MASK != BLOCK_FREE:
            return False
        is_dirty |= status & BLOCK_DIRTY != 0
    if not is_dirty or not blocks.count_off(state, pool, n_blocks):
        return False
    first, summary = (
        blocks.field(state, pool, blocks.BITMAP),
        blocks.field(state, pool, blocks.SUMMARY),
    )
    if bitmap.claim_run(state, first, summary, block, n_blocks) == OK:
        return True
    atomics.add(state, blocks.row_of(pool) + blocks.ROLLBACKS, 1)
    atomics.add(state, FREE_COUNTS + pool, n_blocks)
    return False


@entry
@kernel
def claim_dirty_run(state: Words, pool: Int, start: Int, step: Int, run: NDArray[Any]) -> Int:
    """Claim the next free blocks in a row whose pages were used, a few at a time; return how many.

    Always `step` together: as many as share a page. They are missing to allocations meanwhile.
    `run` then holds pool, first block and how many; it is what `release_run` takes, also after an
    interrupt.
    """
    n_all = blocks.field(state, pool, blocks.N_BLOCKS)
    block = np.int64(start)
    while block < n_all and not claim_dirty(state, pool, block, min(step, n_all - block)):
        block += step
    run[0] = pool
    run[1] = block
    n_blocks = np.int64(0)
    while (
        block < n_all
        and n_blocks < N_TRIMMED_TOGETHER
        and (n_blocks == 0 or claim_dirty(state, pool, block, min(step, n_all - block)))
    ):
        n_blocks += min(step, n_all - block)
        block += step
    run[2] = n_blocks
    return n_blocks


@entry
@kernel
def release_run(state: Words, run: NDArray[Any]) -> None:
    """Make claimed blocks free again, once."""
    if run[2] > 0:
        blocks.release(state, run[0], run[1], run[2])
    run[2] = 0


@entry
@kernel
def mark_clean(state: Words, pool: Int, block: Int, n_blocks: Int) -> None:
    """Note that the system has got back the pages of claimed blocks."""
    n_dirty = np.int64(0)
    for i in range(block, block + n_blocks):
        at = blocks.block_at(state, pool, i)
        status = memory.get_word(state, at)
        if status & BLOCK_DIRTY:
            memory.put_word(state, at, status & ~BLOCK_DIRTY)
            n_dirty += 1
    budget.dismiss(state, n_dirty << blocks.field(state, pool, blocks.BLOCK_SHIFT))


@on_promotion(MEMORY)
def _call_first() -> None:
    state = memory.empty_state()
    run = np.zeros(3, np.int64)
    claim_dirty_run(state, 0, 0, 1, run)
    release_run(state, run)
    mark_clean(state, 0, 0, 0)
