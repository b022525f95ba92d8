"""Where in its pools an allocator's blocks are used: counts per piece, however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jessymem.kernels import schema as s
from jessymem.pools.survey import run_lengths
from jessymem.pools.table import PoolTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Occupancy(NamedTuple):
    """One pool, cut into equal pieces.

    Attributes
    ----------
    pool_id : int
    used, waiting : ndarray of float64, shape (n_pieces,)
        Of each piece's blocks the shares that are handed out, and that were freed and are still
        viewed; the rest is free.
    n_free_runs : int
        Rows of free blocks.
    longest_free_run : int
        Blocks in the longest of them.
    """

    pool_id: int
    used: NDArray[np.float64]
    waiting: NDArray[np.float64]
    n_free_runs: int
    longest_free_run: int


def occupancy_of(table: PoolTable, pool: int, max_pieces: int) -> Occupancy:
    """Cut a pool into at most `max_pieces` pieces of at least a block, and look at each."""
    states = table.blocks_of(pool)["status"] & s.STATE_MASK
    is_free = states == s.BLOCK_FREE
    is_waiting = _with_rest_of_runs(states, s.BLOCK_WAITING)
    n_blocks = len(states)
    edges = np.linspace(0, n_blocks, min(max_pieces, n_blocks) + 1).astype(np.int64)
    n_each = np.diff(edges)
    free, waiting = (
        np.add.reduceat(kind, edges[:-1], dtype=np.int64) / n_each for kind in (is_free, is_waiting)
    )
    lengths = run_lengths(is_free)
    longest = int(lengths.max(initial=0))
    return Occupancy(pool, 1 - free - waiting, waiting, len(lengths), longest)


def _with_rest_of_runs(states: NDArray[Any], state: int) -> NDArray[np.bool_]:
    """Tell which blocks are in a state, or go on a run whose first block is."""
    heads = np.where(states == s.BLOCK_CONTINUED, 0, np.arange(len(states)))
    found: NDArray[np.bool_] = states[np.maximum.accumulate(heads)] == state
    return found
