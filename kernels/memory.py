"""Bytes behind raw addresses: what a kernel reads or clears where no array lies.

The caller vouches for the address: the published region table and the table of pools hand it out
together with the object that keeps the memory alive. Nothing here checks it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from jessymem.kernels import _jit
from jessymem.kernels._jit import Int, overloaded
from jessymem.kernels.schema import FIRST_POOL, NO_POOL_ID, SEGMENTS_AT

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
    takes_addresses = not _jit.is_disabled() and not sys.modules["numba"].config.BOUNDSCHECK
    return words.ctypes.data if takes_addresses else words


def empty_state() -> Words:
    """Return an allocator's state without a pool, for the first calls of the kernels."""
    words = np.zeros(SEGMENTS_AT, np.int64)
    words[FIRST_POOL] = NO_POOL_ID
    _kept.append(words)
    return argument_of(words)


def word_type(words: Any) -> Any:
    """Return the numba type of one word."""
    from numba.core import types

    return words.dtype if isinstance(words, types.Array) else types.int64


def place_of_word(context: Any, builder: Any, words_type: Any, words: Any, index: Any) -> Any:
    """Generate the pointer to a word; in an array its bounds are checked where they are at all."""
    from llvmlite import ir
    from numba.core import cgutils, types

    if not isinstance(words_type, types.Array):
        pointer = builder.inttoptr(words, ir.IntType(64).as_pointer())
        return builder.gep(pointer, [index])
    return cgutils.get_item_pointer(  # type: ignore[no-untyped-call]
        context,
        builder,
        words_type,
        context.make_array(words_type)(context, builder, words),
        [index],
        wraparound=False,
        boundscheck=context.enable_boundscheck,
    )


def _getter() -> Any:
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def get(typingctx: Any, words: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = place_of_word(context, builder, signature.args[0], *arguments)
            return builder.load(place, align=8)

        return word_type(words)(words, types.intp), generate

    def implementation(words: Any, index: Any) -> Any:
        def get_one(words: Any, index: Any) -> Any:
            return get(words, index)  # type: ignore[call-arg]

        return get_one

    return implementation


def _putter() -> Any:
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def put(typingctx: Any, words: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *element, value = arguments
            place = place_of_word(context, builder, signature.args[0], *element)
            builder.store(value, place, align=8)
            return context.get_dummy_value()

        return types.void(words, types.intp, word_type(words)), generate

    def implementation(words: Any, index: Any, value: Any) -> Any:
        def put_one(words: Any, index: Any, value: Any) -> Any:
            put(words, index, value)  # type: ignore[call-arg]

        return put_one

    return implementation


def _loader(bits: Int) -> Any:
    """Make the overload that loads a signed (64, 32) or unsigned word and widens it to int64."""
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word = ir.IntType(bits)
            value = builder.load(builder.inttoptr(arguments[0], word.as_pointer()), align=1)
            if bits == 64:
                return value
            widen = builder.sext if bits == 32 else builder.zext
            return widen(value, ir.IntType(64))

        return types.int64(types.int64), generate

    def implementation(address: Any) -> Any:
        def load_word(address: Any) -> Any:
            return load(address)  # type: ignore[call-arg]

        return load_word

    return implementation


def _storer() -> Any:
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
            builder.store(arguments[1], place, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    def implementation(address: Any, value: Any) -> Any:
        def store_word(address: Any, value: Any) -> Any:
            store(address, value)  # type: ignore[call-arg]

        return store_word

    return implementation


def _copier() -> Any:
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    @intrinsic
    def copy(typingctx: Any, target: Any, source: Any, n_bytes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = ir.IntType(8).as_pointer()
            to, origin = (builder.inttoptr(address, pointer) for address in arguments[:2])
            cgutils.raw_memcpy(builder, to, origin, arguments[2], 1)  # type: ignore[no-untyped-call]
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    def implementation(target: Any, source: Any, n_bytes: Any) -> Any:
        def copy_from_to(target: Any, source: Any, n_bytes: Any) -> Any:
            copy(target, source, n_bytes)  # type: ignore[call-arg]

        return copy_from_to

    return implementation


def _array_maker() -> Any:
    from numba.core import imputils, types
    from numba.extending import intrinsic
    from numba.np import arrayobj

    array_struct: Any = arrayobj.make_array
    populate: Any = arrayobj.populate_array
    borrowed: Any = imputils.impl_ret_borrowed

    @intrinsic
    def make(typingctx: Any, owner: Any, address: Any, n_items: Any, dtype: Any) -> Any:
        made = types.Array(dtype.dtype, 1, "C", readonly=True)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
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

        return made(owner, types.int64, types.intp, dtype), generate

    def implementation(owner: Any, address: Any, n_items: Any, dtype: Any) -> Any:
        def make_array_at(owner: Any, address: Any, n_items: Any, dtype: Any) -> Any:
            return make(owner, address, n_items, dtype)  # type: ignore[call-arg]

        return make_array_at

    return implementation


def _item_storer() -> Any:
    from numba.core import types
    from numba.extending import intrinsic

    @intrinsic
    def store(typingctx: Any, values: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.data_model_manager[value]
            pointer = builder.inttoptr(arguments[0], data.get_data_type().as_pointer())
            place = builder.gep(pointer, [arguments[1]])
            builder.store(data.as_data(builder, arguments[2]), place)
            return context.get_dummy_value()

        return types.void(types.int64, types.intp, value), generate

    def implementation(values: Any, index: Any, value: Any, dtype: Any) -> Any:
        cast = dtype.dtype

        def store_cast(values: Any, index: Any, value: Any, dtype: Any) -> Any:
            store(values, index, cast(value))  # type: ignore[call-arg]

        return store_cast

    return implementation


def _measurer() -> Any:
    from numba.np.numpy_support import as_dtype

    def implementation(dtype: Any) -> Any:
        item = as_dtype(dtype.dtype)
        n_bytes, alignment = item.itemsize, item.alignment

        def measure(dtype: Any) -> Any:
            return n_bytes, alignment

        return measure

    return implementation


def _zeroer() -> Any:
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    @intrinsic
    def clear(typingctx: Any, address: Any, n_bytes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
            cgutils.memset(builder, place, arguments[1], 0)  # type: ignore[no-untyped-call]
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    def implementation(address: Any, n_bytes: Any) -> Any:
        def clear_bytes(address: Any, n_bytes: Any) -> Any:
            clear(address, n_bytes)  # type: ignore[call-arg]

        return clear_bytes

    return implementation


@overloaded(_getter)
def get_word(words: Words, index: Int) -> Any:
    """Return a word that no other thread changes meanwhile."""
    return words[index]


@overloaded(_putter)
def put_word(words: Words, index: Int, value: Any) -> None:
    """Set a word that no other thread reads meanwhile."""
    words[index] = value


@overloaded(lambda: _loader(64))
def load_i64(address: Int) -> Int:
    """Load the eight bytes at `address` as a signed integer, in the machine's byte order."""
    return ctypes.c_int64.from_address(int(address)).value


@overloaded(lambda: _loader(32))
def load_i32(address: Int) -> Int:
    """Load the four bytes at `address` as a signed integer, in the machine's byte order."""
    return ctypes.c_int32.from_address(int(address)).value


@overloaded(lambda: _loader(16))
def load_u16(address: Int) -> Int:
    """Load the two bytes at `address` as an unsigned integer, in the machine's byte order."""
    return ctypes.c_uint16.from_address(int(address)).value


@overloaded(lambda: _loader(8))
def load_u8(address: Int) -> Int:
    """Load the byte at `address`."""
    return ctypes.c_uint8.from_address(int(address)).value


@overloaded(_storer)
def store_i64(address: Int, value: Int) -> None:
    """Store a signed integer in the eight bytes at `address`."""
    ctypes.c_int64.from_address(int(address)).value = int(value)


@overloaded(_zeroer)
def fill_zero(address: Int, n_bytes: Int) -> None:
    """Set `n_bytes` from `address` on to zero."""
    ctypes.memset(int(address), 0, int(n_bytes))


@overloaded(_copier)
def copy_bytes(target: Int, source: Int, n_bytes: Int) -> None:
    """Copy `n_bytes` from one address to another; they must not overlap."""
    ctypes.memmove(int(target), int(source), int(n_bytes))


@overloaded(_item_storer)
def store_item(values: Int, index: Int, value: Any, dtype: Any) -> None:
    """Cast a number to a dtype and store it as item `index` of an array at an address."""
    item = np.dtype(dtype)
    place = (ctypes.c_char * item.itemsize).from_address(int(values) + index * item.itemsize)
    np.frombuffer(place, item)[0] = value


@overloaded(_measurer)
def layout_of(dtype: Any) -> tuple[Int, Int]:
    """Return the bytes of one item, and on multiples of how many bytes it may lie."""
    item = np.dtype(dtype)
    return item.itemsize, item.alignment


@overloaded(_array_maker)
def array_at(owner: NDArray[Any] | None, address: Int, n_items: Int, dtype: Any) -> NDArray[Any]:
    """Return the `n_items` of a dtype at `address` as a read-only array, shape ``(n_items,)``.

    It keeps `owner` alive, as a slice of it would, also once compiled code has returned it. Without
    an owner it keeps nothing alive: the caller outlasts it.
    """
    item = np.dtype(dtype)
    array = np.asarray(_Placed(owner, int(address), int(n_items), item)).view(item)
    array.flags.writeable = False  # which an empty one is not by itself
    return array


class _Placed:
    """What an array at an address has as its base, where nothing is compiled."""

    def __init__(
        self, owner: NDArray[Any] | None, address: int, n_items: int, item: np.dtype[Any]
    ) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": (n_items * item.itemsize,),
            "typestr": "|u1",
        }
