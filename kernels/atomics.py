"""Atomic operations on 64-bit words in arrays or at an address, and a few instructions on words.

Each is a plain Python function whose compiled form is one instruction: loads acquire, stores
release, what reads and writes is sequentially consistent. Where compilation is disabled they take
one lock of the process, so they are atomic among themselves. Plain Python beside compiled threads
would not be: kernels that write shared state are compiled before the first of them runs. Arithmetic
wraps around at 64 bits in both forms.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from jessymem.kernels import memory
from jessymem.kernels._jit import Int, overloaded
from jessymem.kernels.memory import Words

_MASK = 2**64 - 1

# Re-entrant, so that a finalizer that interrupts its holder can find out instead of hanging.
_lock = threading.RLock()


def is_interrupted() -> bool:
    """Tell whether this thread is inside a plain atomic: a finalizer leaves words alone then."""
    return _lock._is_owned()  # type: ignore[attr-defined]


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _load() -> Any:
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def load(typingctx: Any, words: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = memory.place_of_word(context, builder, signature.args[0], *arguments)
            return builder.load_atomic(place, "acquire", 8)

        return memory.word_type(words)(words, types.intp), generate

    def implementation(words: Any, index: Any) -> Any:
        def atomic_load(words: Any, index: Any) -> Any:
            return load(words, index)  # type: ignore[call-arg]

        return atomic_load

    return implementation


def _store() -> Any:
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def store(typingctx: Any, words: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *element, value = arguments
            place = memory.place_of_word(context, builder, signature.args[0], *element)
            builder.store_atomic(value, place, "release", 8)
            return context.get_dummy_value()

        return types.void(words, types.intp, memory.word_type(words)), generate

    def implementation(words: Any, index: Any, value: Any) -> Any:
        def atomic_store(words: Any, index: Any, value: Any) -> Any:
            store(words, index, value)  # type: ignore[call-arg]

        return atomic_store

    return implementation


def _modify(operation: str) -> Any:
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def modify(typingctx: Any, words: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *element, value = arguments
            place = memory.place_of_word(context, builder, signature.args[0], *element)
            return builder.atomic_rmw(operation, place, value, "seq_cst")

        word = memory.word_type(words)
        return word(words, types.intp, word), generate

    def implementation(words: Any, index: Any, value: Any) -> Any:
        def atomic_modify(words: Any, index: Any, value: Any) -> Any:
            return modify(words, index, value)  # type: ignore[call-arg]

        return atomic_modify

    return implementation


def _compare_and_swap() -> Any:
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def swap(typingctx: Any, words: Any, index: Any, expected: Any, desired: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *element, expected, desired = arguments
            place = memory.place_of_word(context, builder, signature.args[0], *element)
            result = builder.cmpxchg(place, expected, desired, "seq_cst", "seq_cst")
            return builder.extract_value(result, 1)

        word = memory.word_type(words)
        return types.boolean(words, types.intp, word, word), generate

    def implementation(words: Any, index: Any, expected: Any, desired: Any) -> Any:
        def atomic_swap(words: Any, index: Any, expected: Any, desired: Any) -> Any:
            return swap(words, index, expected, desired)  # type: ignore[call-arg]

        return atomic_swap

    return implementation


def _count(instruction: str) -> Any:
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def count(typingctx: Any, word: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if instruction == "ctpop":
                return builder.ctpop(arguments[0])
            return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

        return types.int64(word), generate

    def implementation(word: Any) -> Any:
        def count_bits(word: Any) -> Any:
            return count(word)  # type: ignore[call-arg]

        return count_bits

    return implementation


def _prefetch(is_written: int) -> Any:
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def prefetch_line(typingctx: Any, words: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            flag, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
            instruction = builder.module.declare_intrinsic(
                "llvm.prefetch",
                (pointer,),
                ir.FunctionType(ir.VoidType(), (pointer, flag, flag, flag)),
            )
            place = memory.place_of_word(context, builder, signature.args[0], *arguments)
            for_writing, keep_close, data = flag(is_written), flag(3), flag(1)
            address = builder.bitcast(place, pointer)
            builder.call(instruction, (address, for_writing, keep_close, data))
            return context.get_dummy_value()

        return types.void(words, types.intp), generate

    def implementation(words: Any, index: Any) -> Any:
        def prefetch_element(words: Any, index: Any) -> Any:
            prefetch_line(words, index)  # type: ignore[call-arg]

        return prefetch_element

    return implementation


def _stack_address() -> Any:
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    @intrinsic
    def address_of_local(typingctx: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            local = cgutils.alloca_once(builder, ir.IntType(64))  # type: ignore[no-untyped-call]
            return builder.ptrtoint(local, ir.IntType(64))

        return types.int64(), generate

    def implementation() -> Any:
        def read_address() -> Any:
            return address_of_local()  # type: ignore[call-arg]

        return read_address

    return implementation


@overloaded(_load)
def load(words: Words, index: Int) -> Any:
    """Return ``words[index]``."""
    with _lock:
        return words[index]


@overloaded(_store)
def store(words: Words, index: Int, value: Any) -> None:
    """Put `value` into ``words[index]``."""
    with _lock:
        words[index] = value


@overloaded(lambda: _modify("xchg"))
def exchange(words: Words, index: Int, value: Any) -> Any:
    """Put `value` into ``words[index]``; return what was there."""
    with _lock:
        old = words[index]
        words[index] = value
        return old


@overloaded(lambda: _modify("add"))
def add(words: Words, index: Int, value: Any) -> Any:
    """Add `value` to ``words[index]``; return what was there."""
    with _lock:
        old = words[index]
        words[index] = _wrap(words, int(old) + int(value))
        return old


@overloaded(lambda: _modify("or"))
def bitwise_or(words: Words, index: Int, value: Any) -> Any:
    """Set the bits of `value` in ``words[index]``; return what was there."""
    with _lock:
        old = words[index]
        words[index] = old | value
        return old


@overloaded(lambda: _modify("and"))
def bitwise_and(words: Words, index: Int, value: Any) -> Any:
    """Keep in ``words[index]`` only the bits of `value`; return what was there."""
    with _lock:
        old = words[index]
        words[index] = old & value
        return old


@overloaded(_compare_and_swap)
def compare_and_swap(words: Words, index: Int, expected: Any, desired: Any) -> bool:
    """Put `desired` into ``words[index]`` if `expected` is there; tell whether it was."""
    with _lock:
        if words[index] != expected:
            return False
        words[index] = desired
        return True


@overloaded(lambda: _count("cttz"))
def count_trailing_zeros(word: Any) -> int:
    """Return the number of the lowest set bit of a 64-bit word, 64 where none is set."""
    bits = int(word)
    return (bits & -bits).bit_length() - 1 if bits else 64


@overloaded(lambda: _count("ctpop"))
def count_ones(word: Any) -> int:
    """Return how many bits of a 64-bit word are set."""
    return (int(word) & _MASK).bit_count()


@overloaded(lambda: _prefetch(1))
def prefetch(words: Words, index: Int) -> None:
    """Ask for the cache line of ``words[index]``, soon to be written; changes nothing."""


@overloaded(lambda: _prefetch(0))
def prefetch_to_read(words: Words, index: Int) -> None:
    """Ask for the cache line of ``words[index]``, soon to be read; changes nothing."""


@overloaded(_stack_address)
def stack_address() -> int:
    """Return a number that tells running threads apart: where the caller's stack lies, roughly."""
    return threading.get_ident()


def _wrap(words: Words, value: int) -> Any:
    """Bring a sum back into 64 bits, as the instruction does."""
    return np.array(value & _MASK, np.uint64).astype(words.dtype)
