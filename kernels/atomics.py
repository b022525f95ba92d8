"""Atomic operations on 64-bit words in arrays or at an address, and a few instructions on words.

Each is a plain Python function whose compiled form is one instruction: loads acquire, stores
release, what reads and writes is sequentially consistent. As plain Python they take one lock of the
process, so they are atomic among themselves; beside compiled threads they would not be, so what
plain kernels share with those is given to them as a `Transaction`, which is one thread's and needs
no lock. Arithmetic wraps around at 64 bits in both forms.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from jessymem.kernels._jit import Int
from jessymem.kernels.instructions import llvm, on_values, on_word
from jessymem.kernels.memory import Words
from jessymem.kernels.transactions import Transaction

P = ParamSpec("P")
R = TypeVar("R")

_MASK = 2**64 - 1

_lock = threading.RLock()


def _alone(operation: Callable[P, R]) -> Callable[P, R]:
    """Let one thread at a time do something with words that threads share."""

    @wraps(operation)
    def do(words: Any, *arguments: Any) -> Any:
        if type(words) is Transaction:
            return plain(words, *arguments)
        with _lock:
            return plain(words, *arguments)

    plain: Any = operation
    done: Any = do
    return done


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _swap(builder: Any, word: Any, expected: Any, desired: Any) -> Any:
    return builder.extract_value(builder.cmpxchg(word, expected, desired, "seq_cst", "seq_cst"), 1)


def _prefetch(builder: Any, word: Any, is_written: int) -> None:
    ir = llvm()
    flag, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    form = ir.FunctionType(ir.VoidType(), (pointer, flag, flag, flag))
    instruction = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), form)
    keep_close, is_data = flag(3), flag(1)
    address = builder.bitcast(word, pointer)
    builder.call(instruction, (address, flag(is_written), keep_close, is_data))


def _address_of_local(builder: Any) -> Any:
    from numba.core import cgutils

    word = llvm().IntType(64)
    return builder.ptrtoint(cgutils.alloca_once(builder, word), word)  # type: ignore[no-untyped-call]


@on_word("word", lambda b, word: b.load_atomic(word, "acquire", 8))
@_alone
def load(words: Words, index: Int) -> Any:
    """Return ``words[index]``."""
    return words[index]


@on_word("void", lambda b, word, value: b.store_atomic(value, word, "release", 8))
@_alone
def store(words: Words, index: Int, value: Any) -> None:
    """Put `value` into ``words[index]``."""
    words[index] = value


@on_word("word", lambda b, word, value: b.atomic_rmw("xchg", word, value, "seq_cst"))
@_alone
def exchange(words: Words, index: Int, value: Any) -> Any:
    """Put `value` into ``words[index]``; return what was there."""
    old = words[index]
    words[index] = value
    return old


@on_word("word", lambda b, word, value: b.atomic_rmw("add", word, value, "seq_cst"))
@_alone
def add(words: Words, index: Int, value: Any) -> Any:
    """Add `value` to ``words[index]``; return what was there."""
    old = words[index]
    words[index] = _wrap(words, int(old) + int(value))
    return old


@on_word("word", lambda b, word, value: b.atomic_rmw("or", word, value, "seq_cst"))
@_alone
def bitwise_or(words: Words, index: Int, value: Any) -> Any:
    """Set the bits of `value` in ``words[index]``; return what was there."""
    old = words[index]
    words[index] = old | value
    return old


@on_word("word", lambda b, word, value: b.atomic_rmw("and", word, value, "seq_cst"))
@_alone
def bitwise_and(words: Words, index: Int, value: Any) -> Any:
    """Keep in ``words[index]`` only the bits of `value`; return what was there."""
    old = words[index]
    words[index] = old & value
    return old


@on_word("boolean", _swap)
@_alone
def compare_and_swap(words: Words, index: Int, expected: Any, desired: Any) -> bool:
    """Put `desired` into ``words[index]`` if `expected` is there; tell whether it was."""
    if words[index] != expected:
        return False
    words[index] = desired
    return True


@on_values("int64", lambda b, bits: b.cttz(bits, llvm().IntType(1)(0)))
def count_trailing_zeros(word: Any) -> int:
    """Return the number of the lowest set bit of a 64-bit word, 64 where none is set."""
    bits = int(word)
    return (bits & -bits).bit_length() - 1 if bits else 64


@on_values("int64", lambda b, bits: b.ctpop(bits))
def count_ones(word: Any) -> int:
    """Return how many bits of a 64-bit word are set."""
    return (int(word) & _MASK).bit_count()


@on_word("void", lambda b, word: _prefetch(b, word, 1))
def prefetch(words: Words, index: Int) -> None:
    """Ask for the cache line of ``words[index]``, soon to be written; changes nothing."""


@on_word("void", lambda b, word: _prefetch(b, word, 0))
def prefetch_to_read(words: Words, index: Int) -> None:
    """Ask for the cache line of ``words[index]``, soon to be read; changes nothing."""


@on_values("int64", _address_of_local)
def stack_address() -> int:
    """Return a number that tells running threads apart: where the caller's stack lies, roughly."""
    return threading.get_ident()


def _wrap(words: Words, value: int) -> Any:
    """Bring a sum back into 64 bits, as the instruction does."""
    bits = value & _MASK
    if type(words) is Transaction:
        return bits - 2**64 if bits >> 63 else bits
    return np.array(bits, np.uint64).astype(words.dtype)
