"""What a user would compile: the loops that are measured, made once in a process.

Each is called once where it is made, so that no measurement compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from jessymem.kernels import _jit, allocation, release
from jessymem.kernels.schema import ANY_SIZE, OK, QUIET_LIMIT
from jessymem.warming import warmup


class NotCompiled(RuntimeError):
    """Compiled code was to be measured, but compilation is disabled."""


def compile_loop(function: Callable[..., Any]) -> Any:
    """Compile a loop as a user would, without the GIL; the kernels that it calls are there then."""
    if _jit.is_disabled():
        raise NotCompiled("compilation is disabled (NUMBA_DISABLE_JIT)")
    warmup()
    from numba import njit

    return njit(nogil=True)(function)


@cache
def pairs() -> Any:
    """Return ``(words, n_bytes, n_pairs) -> n_wrong``: a block allocated and freed each time."""

    def pairs(words, n_bytes, n_pairs):  # type: ignore[no-untyped-def]
        n_wrong = 0
        for _ in range(n_pairs):
            handle = allocation.allocate(words, n_bytes, QUIET_LIMIT)
            n_wrong += release.deallocate(words, handle, ANY_SIZE) != OK
        return n_wrong

    return compile_loop(pairs)


@cache
def empty_pairs() -> Any:
    """Return ``(n_bytes, n_pairs) -> n_wrong``: an array made and dropped each time."""

    def empty_pairs(n_bytes, n_pairs):  # type: ignore[no-untyped-def]
        n_wrong = 0
        for _ in range(n_pairs):
            n_wrong += np.empty(n_bytes, np.uint8).size != n_bytes
        return n_wrong

    compiled = compile_loop(empty_pairs)
    compiled(1, 1)
    return compiled


@cache
def sum_words() -> Any:
    """Return ``(content, row) -> sum`` of the content's words of 64 bits, for `scan`."""

    def sum_words(content, row):  # type: ignore[no-untyped-def]
        words = content.view(np.uint64)
        total = np.uint64(0)
        for i in range(words.shape[0]):
            total += words[i]
        return total

    return compile_loop(sum_words)


@cache
def locate_each() -> Any:
    """Return ``(store, layer_ids) -> sum of sizes``: the store inside compiled code."""
    from jessymem.kernels import store as stores

    def locate_each(store, layer_ids):  # type: ignore[no-untyped-def]
        n_bytes: Any = 0
        for i in range(layer_ids.shape[0]):
            n_bytes += stores.locate(store, layer_ids[i]).size
        return n_bytes

    return compile_loop(locate_each)
