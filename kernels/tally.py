"""What the blocks of a pool add up to, in one pass over their rows.

Threads may allocate meanwhile: each row is read once, so the sums of one pass agree with each
other. Called by `jessymem.pools.survey`, whose plain twin works on whole columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels._jit import MEMORY, Int, kernel, on_promotion
from jessymem.kernels.schema import (
    BLOCK_ALLOCATED,
    BLOCK_DIRTY,
    BLOCK_FREE,
    BLOCK_RELEASING,
    BLOCK_WAITING,
    BLOCK_WORDS,
    GENERATION_SHIFT,
    STATE_MASK,
    TALLY,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@kernel
def tally_blocks(rows: NDArray[Any], block_shift: Int, out: NDArray[Any]) -> None:
    """Add up the BLOCK rows in an array of words into ``out[0]``, a TALLY."""
    n_free = n_dirty = longest = run = np.int64(0)
    n_heads = n_live = n_waiting = n_requested = n_generations = np.int64(0)
    block_bytes = np.int64(1) << block_shift
    for at in range(0, rows.shape[0], BLOCK_WORDS):
        status, requested = rows[at], rows[at + 1]
        state = status & STATE_MASK
        n_generations += status >> GENERATION_SHIFT
        if state == BLOCK_FREE:
            run += 1
            n_free += 1
            n_dirty += (status & BLOCK_DIRTY) != 0
            continue
        longest = max(longest, run)
        run = np.int64(0)
        n_blocks = (requested + block_bytes - 1) >> block_shift
        if state == BLOCK_ALLOCATED or state == BLOCK_RELEASING:
            n_heads += 1
            n_live += n_blocks
            n_requested += requested
        elif state == BLOCK_WAITING:
            n_waiting += n_blocks
    row = out[0]
    row["n_free"] = n_free
    row["n_dirty"] = n_dirty
    row["n_longest_free"] = max(longest, run)
    row["n_heads"] = n_heads
    row["n_live"] = n_live
    row["n_waiting"] = n_waiting
    row["n_requested"] = n_requested
    row["n_generations"] = n_generations


@on_promotion(MEMORY)
def _call_first() -> None:
    tally_blocks(np.zeros(0, np.int64), 0, np.zeros(1, TALLY))
