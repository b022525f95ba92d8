"""Pages of freed blocks, claimed so that they can be given back to the system.

A freed block stays *dirty*: its pages are in memory and count as resident. Who gives them back
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
    FREE_COUNTS,
    N_TRIMMED_TOGETHER,
    STATE_MASK,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@kernel
def claim_dirty_block(state: Words, pool: Int, block: Int) -> bool:
    """Claim a certain block if it is free and its pages were used; tell whether it was."""
    at = blocks.block_at(state, pool, block)
    if atomics.load(state, at) & (STATE_MASK | BLOCK_DIRTY) != BLOCK_FREE | BLOCK_DIRTY:
        return False
    if not blocks.count_off(state, pool, 1):
        return False
    if bitmap.claim_block(
        state,
        blocks.field(state, pool, blocks.BITMAP),
        blocks.field(state, pool, blocks.SUMMARY),
        block,
    ):
        return True
    atomics.add(state, FREE_COUNTS + pool, 1)
    return False


@kernel
def claim_dirty_run(state: Words, pool: Int, start: Int, run: NDArray[Any]) -> Int:
    """Claim the next free blocks in a row whose pages were used, a few at a time; return how many.

    They are missing to allocations meanwhile. `run` then holds pool, first block and how many; it
    is what `return_run` takes, also after an interrupt.
    """
    n_all = blocks.field(state, pool, blocks.N_BLOCKS)
    block = np.int64(start)
    while block < n_all and not claim_dirty_block(state, pool, block):
        block += 1
    run[0] = pool
    run[1] = block
    n_blocks = np.int64(0)
    while (
        block < n_all
        and n_blocks < N_TRIMMED_TOGETHER
        and (n_blocks == 0 or claim_dirty_block(state, pool, block))
    ):
        block += 1
        n_blocks += 1
    run[2] = n_blocks
    return n_blocks


@kernel
def return_run(state: Words, run: NDArray[Any]) -> None:
    """Make claimed blocks free again, once."""
    if run[2] > 0:
        blocks.put_back(state, run[0], run[1], run[2])
    run[2] = 0


@kernel
def mark_clean(state: Words, pool: Int, block: Int, n_blocks: Int) -> None:
    """Note that the system has got back the pages of claimed blocks."""
    for i in range(block, block + n_blocks):
        at = blocks.block_at(state, pool, i)
        memory.put_word(state, at, memory.get_word(state, at) & ~BLOCK_DIRTY)
    budget.dismiss(state, n_blocks << blocks.field(state, pool, blocks.BLOCK_SHIFT))


@on_promotion(MEMORY)
def _call_first() -> None:
    state = memory.empty_state()
    run = np.zeros(3, np.int64)
    claim_dirty_run(state, 0, 0, run)
    return_run(state, run)
    mark_clean(state, 0, 0, 0)
