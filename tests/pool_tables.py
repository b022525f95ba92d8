"""What the tests of the allocator's kernels share: both tiers, pools made by hand, threads."""

from __future__ import annotations

import functools
import os
import threading
from contextlib import contextmanager

import numpy as np

from jessymem import osmem
from jessymem.kernels import _jit, allocation, bitmap, blocks, budget, memory, pages, release
from jessymem.kernels import schema as s
from jessymem.pools import survey
from jessymem.pools.table import PoolTable

MIB = 2**20
MODULES = (bitmap, budget, blocks, release, allocation, pages)
TIERS = ["plain"] if _jit.is_disabled() else ["plain", "compiled"]

#: What stress tests divide their rounds by: kernels are slower with checks, and slowest in Python.
IS_CHECKED = os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")
SLOWNESS = 400 if _jit.is_disabled() else 10 if IS_CHECKED else 1


# -- tiers -----------------------------------------------------------------------------------------


class Tier:
    """How kernels run now, and what they take."""

    def __init__(self, name):
        self.name = name

    def argument(self, array):
        """Return what kernels of this tier are given for an array of words."""
        return array if self.name == "plain" else memory.argument_of(array)


@contextmanager
def running(name):
    """Run every kernel of the allocator as plain Python, or as compiled code."""
    _jit.promote(_jit.MEMORY)
    compiled = []
    if name == "plain":
        for function in _jit._kernels:
            for module in MODULES:
                if function.__module__ == module.__name__:
                    compiled.append((module, getattr(module, function.__name__)))
                    setattr(module, function.__name__, function)
    try:
        yield Tier(name)
    finally:
        for module, function in compiled:
            setattr(module, function.__name__, function)


@functools.cache
def compile_loop(function):
    """Compile a loop over kernels so that it runs without the GIL; plain where that is disabled."""
    if not _jit.promote(_jit.MEMORY):
        return function
    import numba

    return numba.njit(nogil=True)(function)


# -- words -----------------------------------------------------------------------------------------


def signed(words):
    """Return 64-bit patterns as the integers that they are in an array of int64."""
    return np.array(words, np.uint64).view(np.int64)


def word_with(*bits):
    """Return the pattern in which these bits are set."""
    return sum(1 << bit for bit in set(bits))


# -- pools -----------------------------------------------------------------------------------------


def make_table(*pools, limit=MIB, kind=s.POOL_FIXED):
    """Make a table of pools, each given as (bytes of a block, number of blocks)."""
    table = PoolTable([], limit)
    for block_bytes, n_blocks in pools:
        add_pool(table, block_bytes, n_blocks, kind)
    set_limits(table.state, limit)
    table.state[s.ZERO_ON_REUSE] = 1
    return table


def add_pool(table, block_bytes, n_blocks, kind=s.POOL_FIXED):
    """Make a pool in memory of its own; return its id."""
    n_bytes = block_bytes * n_blocks
    return table.add(block_bytes, n_bytes, osmem.private_memory(n_bytes), 0, kind)


def set_limits(state, limit):
    """Set every limit to the same; no threshold is waiting to speak."""
    for at in (s.LIMIT, s.CRITICAL_LIMIT, s.CALM_LIMIT, s.RESIDENT_LIMIT):
        state[at] = limit
    state[s.REARM_BELOW] = -1


def validate(table, n_region_bytes=0):
    """Return what counters and bits say differently from the blocks."""
    return survey.differences(table, n_region_bytes)


def status_of(table, handle):
    """Return the status of the block of a handle."""
    pool, block = place_of(table, handle)
    return int(table.blocks_of(pool)["status"][block])


def place_of(table, handle):
    """Return the pool and the block of a handle, by its bits."""
    pool = handle >> 56
    offset = (handle >> 28 & (2**28 - 1)) * 64
    return pool, offset // int(table.rows[pool]["block_bytes"])


def handle_for(pool, offset, generation):
    """Make a handle, by its bits."""
    return pool << 56 | offset // 64 << 28 | generation


def generation_in(handle):
    """Return the generation of a handle, by its bits."""
    return handle & (2**28 - 1)


def changed(before, after):
    """Return the positions of words that differ, but for what counts attempts and peaks."""
    different = set(np.flatnonzero(before != after).tolist())
    different.discard(s.PEAK)
    for pool in range(s.N_POOL_IDS):
        row = s.POOLS_AT + pool * s.POOL_WORDS
        different -= {row + blocks.FAILURES, row + blocks.ROLLBACKS}
    return sorted(different)


# -- threads ---------------------------------------------------------------------------------------


def run_together(functions, look=None):
    """Run all at once, and `look` all the while if there is one.

    Return what each returned, or raise the first error.
    """
    barrier = threading.Barrier(len(functions))
    results = [None] * len(functions)
    errors = []

    def enter(i):
        barrier.wait()
        try:
            results[i] = functions[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=enter, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    while look is not None and any(thread.is_alive() for thread in threads):
        look()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
