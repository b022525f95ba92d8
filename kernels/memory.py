"""Words behind raw addresses: what a kernel reads where no array lies.

The caller vouches for the address: the published region table hands it out together with the object
that keeps the memory alive. Nothing here checks it.
"""

from __future__ import annotations

import ctypes
from typing import Any

from jessymem.kernels._jit import Int, overloaded


def _loader(bits: Int) -> Any:
    """Make the overload that loads a signed (64) or an unsigned word and widens it to int64."""
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word = ir.IntType(bits)
            value = builder.load(builder.inttoptr(arguments[0], word.as_pointer()), align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.int64(types.int64), generate

    def implementation(address: Any) -> Any:
        def load_word(address: Any) -> Any:
            return load(address)  # type: ignore[call-arg]

        return load_word

    return implementation


@overloaded(lambda: _loader(64))
def load_i64(address: Int) -> Int:
    """Load the eight bytes at `address` as a signed integer, in the machine's byte order."""
    return ctypes.c_int64.from_address(int(address)).value


@overloaded(lambda: _loader(16))
def load_u16(address: Int) -> Int:
    """Load the two bytes at `address` as an unsigned integer, in the machine's byte order."""
    return ctypes.c_uint16.from_address(int(address)).value
