"""Bytes behind raw addresses: what a kernel reads or clears where no array lies.

The caller vouches for the address: the published region table and the table of pools hand it out
together with the object that keeps the memory alive. Nothing here checks it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from jessymem.kernels import _jit
from jessymem.kernels._jit import Int
from jessymem.kernels.instructions import (
    load_wide,
    lowered,
    numba_types,
    on_values,
    on_word,
    pointer,
)
from jessymem.kernels.schema import FIRST_POOL, NO_POOL_ID, SEGMENTS_AT
from jessymem.kernels.transactions import Transaction

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: 64-bit words: an int64 or uint64 array, or, in compiled code, the address of one of int64. An
#: address needs no reference counts, which would cost more than the work; an array's bounds are
#: checked where they are at all.
Words: TypeAlias = Any

_kept: list[NDArray[np.int64]] = []  # an address keeps nothing alive


def argument_of(words: NDArray[np.int64]) -> Words:
    """Return what kernels are given for an array that outlives the call, once they are compiled.

    The address; the array where bounds are checked, or where compilation is disabled.
    """
    if _jit.is_disabled() and not _jit.is_promoted(_jit.MEMORY):
        return words
    return words if sys.modules["numba"].config.BOUNDSCHECK else words.ctypes.data


def empty_state() -> Words:
    """Return an allocator's state without a pool, for the first calls of the kernels."""
    words = np.zeros(SEGMENTS_AT, np.int64)
    words[FIRST_POOL] = NO_POOL_ID
    _kept.append(words)
    return argument_of(words)


def _fill(builder: Any, address: Any, n_bytes: Any) -> None:
    from numba.core import cgutils

    cgutils.memset(builder, pointer(builder, address), n_bytes, 0)  # type: ignore[no-untyped-call]


def _type_clear(words: Any, address: Any, n_bytes: Any) -> Any:
    types = numba_types()
    return types.void(words, types.int64, types.int64)


def _clear(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
    _fill(builder, *arguments[1:])


def _copy(builder: Any, target: Any, source: Any, n_bytes: Any) -> None:
    from numba.core import cgutils

    pointers = pointer(builder, target), pointer(builder, source)
    cgutils.raw_memcpy(builder, *pointers, n_bytes, 1)  # type: ignore[no-untyped-call]


def _type_item(values: Any, index: Any, value: Any, dtype: Any) -> Any:
    types = numba_types()
    return types.void(types.int64, types.intp, dtype.dtype, dtype)  # which casts the value


def _store_item(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
    values, index, value, _ = arguments
    item = context.data_model_manager[signature.args[2]]
    first = builder.inttoptr(values, item.get_data_type().as_pointer())
    builder.store(item.as_data(builder, value), builder.gep(first, [index]))


def _type_layout(dtype: Any) -> Any:
    types = numba_types()
    return types.UniTuple(types.int64, 2)(dtype)


def _give_layout(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    from numba.np.numpy_support import as_dtype

    item = as_dtype(signature.args[0].dtype)
    pair = signature.return_type
    numbers = [context.get_constant(pair.dtype, n) for n in (item.itemsize, item.alignment)]
    return context.make_tuple(builder, pair, numbers)


def _type_array(owner: Any, address: Any, n_items: Any, dtype: Any) -> Any:
    types = numba_types()
    made = types.Array(dtype.dtype, 1, "C", readonly=True)
    return made(owner, types.int64, types.intp, dtype)


def _make_array(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit an array over an address that has its owner's references, and one more is counted."""
    from numba.core import imputils
    from numba.np import arrayobj

    array_struct: Any = arrayobj.make_array
    populate: Any = arrayobj.populate_array
    borrowed: Any = imputils.impl_ret_borrowed
    types, made, owner = numba_types(), signature.return_type, signature.args[0]
    owning = None
    if not isinstance(owner, types.NoneType):
        owning = array_struct(owner)(context, builder, arguments[0])
    array = array_struct(made)(context, builder)
    item_bytes = context.get_constant(
        types.intp, context.get_abi_sizeof(context.get_data_type(made.dtype))
    )
    populate(
        array,
        data=builder.inttoptr(arguments[1], array.data.type),
        shape=[arguments[2]],
        strides=[item_bytes],
        itemsize=item_bytes,
        meminfo=owning and owning.meminfo,
        parent=owning and owning.parent,
    )
    return borrowed(context, builder, made, array._getvalue())


@on_word("word", lambda b, word: b.load(word, align=8))
def get_word(words: Words, index: Int) -> Any:
    """Return a word that no other thread changes meanwhile."""
    return words[index]


@on_word("void", lambda b, word, value: b.store(value, word, align=8))
def put_word(words: Words, index: Int, value: Any) -> None:
    """Set a word that no other thread reads meanwhile."""
    words[index] = value


@on_values("int64", lambda b, address: load_wide(b, address, 64))
def load_i64(address: Int) -> Int:
    """Load the eight bytes at `address` as a signed integer, in the machine's byte order."""
    return ctypes.c_int64.from_address(int(address)).value


@on_values("int64", lambda b, address: load_wide(b, address, 32, is_signed=True))
def load_i32(address: Int) -> Int:
    """Load the four bytes at `address` as a signed integer, in the machine's byte order."""
    return ctypes.c_int32.from_address(int(address)).value


@on_values("int64", lambda b, address: load_wide(b, address, 16))
def load_u16(address: Int) -> Int:
    """Load the two bytes at `address` as an unsigned integer, in the machine's byte order."""
    return ctypes.c_uint16.from_address(int(address)).value


@on_values("int64", lambda b, address: load_wide(b, address, 8))
def load_u8(address: Int) -> Int:
    """Load the byte at `address`."""
    return ctypes.c_uint8.from_address(int(address)).value


@on_values("void", lambda b, address, value: b.store(value, pointer(b, address, 64), align=1))
def store_i64(address: Int, value: Int) -> None:
    """Store a signed integer in the eight bytes at `address`."""
    ctypes.c_int64.from_address(int(address)).value = int(value)


@lowered(_type_clear, _clear)
def clear(words: Words, address: Int, n_bytes: Int) -> None:
    """Set bytes from `address` on to zero, in a block that was just claimed in `words`."""
    if type(words) is Transaction:
        words.clear_memory(address, n_bytes)
    else:
        ctypes.memset(int(address), 0, int(n_bytes))


@on_values("void", _fill)
def fill_zero(address: Int, n_bytes: Int) -> None:
    """Set `n_bytes` from `address` on to zero."""
    ctypes.memset(int(address), 0, int(n_bytes))


@on_values("void", _copy)
def copy_bytes(target: Int, source: Int, n_bytes: Int) -> None:
    """Copy `n_bytes` from one address to another; they must not overlap."""
    ctypes.memmove(int(target), int(source), int(n_bytes))


@lowered(_type_item, _store_item)
def store_item(values: Int, index: Int, value: Any, dtype: Any) -> None:
    """Cast a number to a dtype and store it as item `index` of an array at an address."""
    item = np.dtype(dtype)
    target = (ctypes.c_char * item.itemsize).from_address(int(values) + index * item.itemsize)
    np.frombuffer(target, item)[0] = value


@lowered(_type_layout, _give_layout)
def layout_of(dtype: Any) -> tuple[Int, Int]:
    """Return the bytes of one item, and on multiples of how many bytes it may lie."""
    item = np.dtype(dtype)
    return item.itemsize, item.alignment


@lowered(_type_array, _make_array)
def array_at(owner: NDArray[Any] | None, address: Int, n_items: Int, dtype: Any) -> NDArray[Any]:
    """Return the `n_items` of a dtype at `address` as a read-only array, shape ``(n_items,)``.

    It keeps `owner` alive, as a slice of it would, also once compiled code has returned it. Without
    an owner it keeps nothing alive: the caller outlasts it.
    """
    item = np.dtype(dtype)
    array = np.asarray(_Memory(owner, int(address), int(n_items), item)).view(item)
    array.flags.writeable = False  # which an empty one is not by itself
    return array


#: Where nothing lies: NumPy before 2.4 takes no array at address 0, not even an empty one.
_NOTHING: Final = np.zeros(1, np.uint8)


class _Memory:
    """What an array at an address has as its base, where nothing is compiled."""

    def __init__(
        self, owner: NDArray[Any] | None, address: int, n_items: int, item: np.dtype[Any]
    ) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address or _NOTHING.ctypes.data, True),
            "shape": (n_items * item.itemsize,),
            "typestr": "|u1",
        }
