"""Blocks near to the processor that asks: out of the pools of its node first.

Of pools with the best-fitting blocks those of the calling thread's node are tried; where they are
full, any, as `allocation` does. Which node a processor is on is said by a table of the state.
Called in place of `allocation` where pools were made node by node, and from a user's own compiled
code.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import _jit, allocation, atomics, blocks, memory
from jessymem.kernels._jit import MEMORY, Int, kernel, on_promotion
from jessymem.kernels.instructions import llvm, on_values
from jessymem.kernels.memory import Words
from jessymem.kernels.schema import (
    BAD_SIZE,
    FIRST_POOL,
    FRAGMENTED,
    FREE_COUNTS,
    INLINE_LIMIT,
    N_PROCESSORS,
    NO_POOL,
    NO_POOL_ID,
    NODES_AT,
    OK,
    POOL_FULL,
    QUIET_LIMIT,
    TOO_LARGE,
    ZERO_ON_REUSE,
)
from jessymem.kernels.transactions import entry

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _ask_processor(builder: Any) -> Any:
    from numba.core import cgutils

    ir = llvm()
    word = ir.IntType(64)
    if sys.platform != "linux":
        return word(-1)
    form = ir.FunctionType(ir.IntType(32), [])
    function = cgutils.get_or_insert_function(builder.module, form, "sched_getcpu")  # type: ignore[no-untyped-call]
    return builder.sext(builder.call(function, []), word)


@on_values("int64", _ask_processor)
def processor() -> int:
    """Return the processor that this thread runs on at present; -1: that is not told."""
    ask = _sched_getcpu()
    return -1 if ask is None else int(ask())


@cache
def _sched_getcpu() -> Any:
    try:
        return ctypes.PyDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return None


@kernel
def node_here(state: Words) -> Int:
    """Return what pools of this thread's node have as theirs; 0: there are none."""
    here = processor()
    if here < 0 or here >= memory.get_word(state, N_PROCESSORS):
        return np.int64(0)
    return memory.get_word(state, memory.get_word(state, NODES_AT) + here)


@kernel
def allocate_block_here(state: Words, n_bytes: Int, limit_at: Int, zero: Int) -> Int:
    """Take one block of this node's pools with the best-fitting blocks; NO_POOL: there is none."""
    node = node_here(state)
    best: Int = 0
    pool = atomics.load(state, FIRST_POOL)
    while pool != NO_POOL_ID and node != 0:
        block_bytes = blocks.field(state, pool, blocks.BLOCK_BYTES)
        if n_bytes <= block_bytes and blocks.field(state, pool, blocks.NODE) == node:
            if best != 0 and block_bytes != best:
                return NO_POOL
            best = block_bytes
            # One that is full is told as such by who tries all.
            if atomics.load(state, FREE_COUNTS + pool) > 0:
                result = allocation.allocate_block(state, pool, n_bytes, limit_at, zero)
                if result != POOL_FULL:
                    return result
        pool = atomics.load(state, blocks.row_of(pool) + blocks.NEXT)
    return NO_POOL


@kernel
def allocate_run_here(state: Words, n_bytes: Int, limit_at: Int, zero: Int) -> Int:
    """Take a run of largest blocks of this node's pools; NO_POOL: there is none."""
    node = node_here(state)
    largest = allocation.largest_block(state)
    pool = atomics.load(state, FIRST_POOL)
    while pool != NO_POOL_ID and node != 0:
        is_largest = blocks.field(state, pool, blocks.BLOCK_BYTES) == largest
        n_free = atomics.load(state, FREE_COUNTS + pool)
        if (
            is_largest
            and blocks.field(state, pool, blocks.NODE) == node
            and n_free >= blocks.blocks_for(state, pool, n_bytes)
        ):
            result = allocation.allocate_run(state, pool, n_bytes, limit_at, zero)
            if result != POOL_FULL and result != FRAGMENTED:
                return result
        pool = atomics.load(state, blocks.row_of(pool) + blocks.NEXT)
    return NO_POOL


@entry
@kernel(nogil=False)
def allocate(state: Words, n_bytes: Int, limit_at: Int) -> Int:
    """As `allocation.allocate`, on this thread's node if it has one left."""
    if n_bytes < 1:
        return BAD_SIZE
    if n_bytes > memory.get_word(state, INLINE_LIMIT):
        return TOO_LARGE
    zero = memory.get_word(state, ZERO_ON_REUSE)
    result = allocate_block_here(state, n_bytes, limit_at, zero)
    return result if result != NO_POOL else allocation.allocate(state, n_bytes, limit_at)


@entry
@kernel(nogil=False)
def allocate_quietly(state: Words, n_bytes: Int) -> Int:
    """As `allocate`, as long as nothing is to be done beside it."""
    return allocate(state, n_bytes, QUIET_LIMIT)


@entry
@kernel
def allocate_any(state: Words, n_bytes: Int, limit_at: Int, zero: Int) -> Int:
    """As `allocation.allocate_any`, on this thread's node if it has what is wanted."""
    if n_bytes < 1:
        return BAD_SIZE
    result: Int = NO_POOL
    if n_bytes <= allocation.largest_block(state):
        result = allocate_block_here(state, n_bytes, limit_at, zero)
    else:
        result = allocate_run_here(state, n_bytes, limit_at, zero)
    return result if result != NO_POOL else allocation.allocate_any(state, n_bytes, limit_at, zero)


@entry
@kernel
def allocate_many(state: Words, sizes: NDArray[Any], limit_at: Int, handles: NDArray[Any]) -> Int:
    """As `allocation.allocate_many`, each on this thread's node if it has one left."""
    zero = memory.get_word(state, ZERO_ON_REUSE)
    for i in range(sizes.shape[0]):
        result = allocate_any(state, sizes[i], limit_at, zero)
        if result < 0:
            allocation.give_up(state, handles, i)
            return result
        handles[i] = result
    return OK


#: Whether anybody has pools that were made node by node; who has none compiles nothing here.
_wanted: list[bool] = []


def want() -> None:
    """Have these kernels compiled with the others; at once where those are by now."""
    _wanted[:] = [True]
    if _jit.is_promoted(MEMORY):
        _call_first()


@on_promotion(MEMORY)
def _call_first() -> None:
    if _wanted:
        state = memory.empty_state()
        allocate(state, 1, QUIET_LIMIT)
        allocate_quietly(state, 1)
        allocate_any(state, 1, QUIET_LIMIT, 0)
        allocate_many(state, np.ones(1, np.int64), QUIET_LIMIT, np.zeros(2, np.int64))
