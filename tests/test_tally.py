"""`tally`: the sums over a pool's blocks, compiled and over columns, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from support.internals import table_of

from jessymem import PoolAllocator
from jessymem.kernels import _jit, tally
from jessymem.kernels import schema as s
from jessymem.pools.survey import survey

BLOCK_BYTES = 4096


def row(state, n_requested=0, generation=0, *, is_dirty=False, n_views=0):
    status = state | is_dirty * s.BLOCK_DIRTY | n_views * s.ONE_VIEW
    return status | generation << s.GENERATION_SHIFT, n_requested


FREE = row(s.BLOCK_FREE)
DIRTY = row(s.BLOCK_FREE, 7, 5, is_dirty=True)  # what was asked for last is still written there
ONE = row(s.BLOCK_ALLOCATED, 1, 3)
FULL = row(s.BLOCK_ALLOCATED, BLOCK_BYTES, 1, is_dirty=True, n_views=2)
RUN = (row(s.BLOCK_ALLOCATED, 2 * BLOCK_BYTES + 1, 2), *[row(s.BLOCK_CONTINUED, 0, 4)] * 2)
WAITING = (row(s.BLOCK_WAITING, BLOCK_BYTES + 1, 9, n_views=1), row(s.BLOCK_CONTINUED))
LEAVING = row(s.BLOCK_RELEASING, 100, 1)

#: Rows, and free, dirty, longest free run, heads, live, waiting, requested, generations.
CASES = {
    "no blocks": ((), (0, 0, 0, 0, 0, 0, 0, 0)),
    "never used": ((FREE,) * 3, (3, 0, 3, 0, 0, 0, 0, 0)),
    "freed": ((DIRTY, FREE), (2, 1, 2, 0, 0, 0, 0, 5)),
    "a run at the end": ((FREE, ONE, FREE, DIRTY), (3, 1, 2, 1, 1, 0, 1, 8)),
    "a run at the start": ((FREE, FREE, FULL, FREE), (3, 0, 2, 1, 1, 0, BLOCK_BYTES, 1)),
    "several blocks": ((*RUN, FREE), (1, 0, 1, 1, 3, 0, 2 * BLOCK_BYTES + 1, 10)),
    "waiting": ((*WAITING, ONE), (0, 0, 0, 1, 1, 2, 1, 12)),
    "half-way out": ((LEAVING, ONE), (0, 0, 0, 2, 2, 0, 101, 4)),
}


@pytest.mark.parametrize("form", ["plain", "compiled"])
@pytest.mark.parametrize("case", CASES)
def test_each_state_counts_where_it_belongs(case, form):
    rows, expected = CASES[case]
    if form == "compiled" and not _jit.promote(_jit.MEMORY):
        pytest.skip("compilation is disabled")
    add_up = tally.tally_blocks
    if form == "plain":
        add_up = getattr(add_up, "py_func", add_up)
    found = np.zeros(1, s.TALLY)
    words = np.array(rows, np.int64).ravel()
    add_up(words, BLOCK_BYTES.bit_length() - 1, found)
    assert found[0].item() == expected


def test_a_survey_is_the_same_before_and_after_compilation(monkeypatch):
    allocator = PoolAllocator([(1, 4096), (1, 65_536)], 8)
    held = [allocator.allocate(size) for size in (1, 5_000, 4096, 200_000, 100, 100)]
    for offset in held[::2]:
        allocator.deallocate(offset)
    view = allocator.view(held[1], 10)
    allocator.deallocate(held[1])
    table = table_of(allocator)
    found = survey(table)
    monkeypatch.setattr(_jit, "is_promoted", lambda group=_jit.READING: False)
    assert survey(table) == found
    assert (found.n_waiting, found.n_requested) == (65_536, 200_100)
    assert (found.n_allocations, found.n_deallocations) == (6, 4)
    del view
