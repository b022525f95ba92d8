"""Kernels of both tiers, and functions that are compiled as a user compiles his own."""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager

from jessymem.kernels import _jit, allocation, bitmap, blocks, budget, memory, near, pages, release
from support.internals import marked_kernels

MODULES = (bitmap, budget, blocks, release, allocation, near, pages)
TIERS = ["plain"] if _jit.is_disabled() else ["plain", "compiled"]

#: What stress tests divide their rounds by: kernels are slower with checks, and slowest in Python.
IS_CHECKED = os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")
SLOWNESS = 400 if _jit.is_disabled() else 10 if IS_CHECKED else 1


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
        for function in marked_kernels():
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


def compiled(function):
    """Compile a user's function, where anything is compiled."""
    if _jit.is_disabled():
        return function
    import numba

    return numba.njit(nogil=True)(function)
