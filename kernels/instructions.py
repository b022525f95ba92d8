"""Instructions: plain functions whose compiled form is written in LLVM's terms, most in one line.

    @on_word("word", lambda builder, word, value: builder.atomic_rmw("add", word, value, "seq_cst"))
    def add(words, index, value): ...

The body of the function is its plain Python form. The line above it is what compiled code runs: it
is put in place of every call, so that nothing is compiled or called for it. Used by `atomics`,
`memory` and `vectors`; what numba's and LLVM's modules hold is imported when it is first needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from jessymem.kernels._jit import at_registration, look_up

if TYPE_CHECKING:
    import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

#: Called with LLVM's builder and the values of the arguments; returns the value of the result.
Emit: TypeAlias = Callable[..., Any]

#: Called with the numba types of the arguments; returns the signature to which they are cast.
Typer: TypeAlias = Callable[..., Any]

#: Called as numba calls what lowers a function: with context, builder, signature and arguments.
Generate: TypeAlias = Callable[[Any, Any, Any, Any], Any]


def lowered(typer: Typer, generate: Generate) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function its compiled form in numba's own terms, for what `on_values` cannot say."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        at_registration(lambda: _register(function, typer, generate))
        return function

    return mark


def on_values(result: str, emit: Emit) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function its compiled form, where all arguments are 64-bit integers or addresses.

    Parameters
    ----------
    result : str
        The numba type that is returned: "int64", "boolean" or "void".
    emit : callable
        Takes the builder, then the arguments.
    """

    def typer(*arguments: Any) -> Any:
        types = numba_types()
        return getattr(types, result)(*[types.int64] * len(arguments))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit(builder, *arguments)

    return lowered(typer, generate)


def on_word(result: str, emit: Emit) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function of words, an index and values its compiled form, for a pointer to that word.

    The words are an array of 64-bit integers, whose bounds are checked where they are at all, or
    the address of one of int64, which needs no reference counts.

    Parameters
    ----------
    result : str
        The numba type that is returned, or "word": the type of the words.
    emit : callable
        Takes the builder, the pointer and the values, which have the type of the words.
    """

    def typer(words: Any, index: Any, *values: Any) -> Any:
        types = numba_types()
        word = words.dtype if isinstance(words, types.Array) else types.int64
        returned = word if result == "word" else getattr(types, result)
        return returned(words, types.intp, *[word] * len(values))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, index, *values = arguments
        item = _pointer_to(context, builder, signature.args[0], words, index)
        return emit(builder, item, *values)

    return lowered(typer, generate)


def fields_at(dtype: np.dtype[Any]) -> tuple[Typer, Generate]:
    """Return what makes a function of bytes and an offset return the integers of a packed record.

    The bytes are an array of uint8. Its bounds are checked where they are at all. An unsigned field
    of 64 bits may come out negative.
    """
    names = dtype.names or ()
    fields = [(dtype[name], int(dtype.fields[name][1])) for name in names]  # type: ignore[index]

    def typer(data: Any, at: Any) -> Any:
        types = numba_types()
        return types.UniTuple(types.int64, len(fields))(data, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = llvm().IntType(64)
        data, at = arguments
        last = builder.add(at, word(dtype.itemsize - 1))
        end = builder.ptrtoint(_pointer_to(context, builder, signature.args[0], data, last), word)
        numbers = []
        for field, offset in fields:
            address = builder.add(end, word(offset + 1 - dtype.itemsize))
            numbers.append(load_wide(builder, address, 8 * field.itemsize, field.kind == "i"))
        return context.make_tuple(builder, signature.return_type, numbers)

    return typer, generate


def load_wide(builder: Any, address: Any, bits: int, is_signed: bool = False) -> Any:
    """Emit a load of so many bits, which need not be aligned, as 64."""
    value = builder.load(pointer(builder, address, bits), align=1)
    widen = builder.sext if is_signed else builder.zext
    return value if bits == 64 else widen(value, llvm().IntType(64))


def pointer(builder: Any, address: Any, bits: int = 8) -> Any:
    """Emit an address as a pointer to integers of so many bits."""
    return builder.inttoptr(address, llvm().IntType(bits).as_pointer())


def numba_types() -> Any:
    """Return the module of numba's types."""
    from numba.core import types

    return types


def llvm() -> Any:
    """Return the module that makes LLVM's types and constants."""
    from llvmlite import ir

    return ir


def _pointer_to(context: Any, builder: Any, words_type: Any, words: Any, index: Any) -> Any:
    """Emit the pointer to an item of an array, or to a word from an address on."""
    from numba.core import cgutils

    if not isinstance(words_type, numba_types().Array):
        return builder.gep(pointer(builder, words, 64), [index])
    return cgutils.get_item_pointer(  # type: ignore[no-untyped-call]
        context,
        builder,
        words_type,
        context.make_array(words_type)(context, builder, words),
        [index],
        wraparound=False,
        boundscheck=context.enable_boundscheck,
    )


def _register(function: Callable[..., Any], typer: Typer, generate: Generate) -> None:
    """Tell numba how a function is typed and lowered."""
    from numba.core.imputils import lower_builtin
    from numba.core.typing.templates import Signature
    from numba.extending import type_callable

    types = numba_types()
    parameters = inspect.signature(function).parameters.values()
    signature = inspect.Signature([inspect.Parameter(p.name, p.kind) for p in parameters])

    def type_call(*arguments: Any) -> Signature:
        look_up()
        typed: Signature = typer(*arguments)
        return typed

    type_call.__signature__ = signature  # type: ignore[attr-defined]
    type_callable(function)(lambda context: type_call)

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = generate(context, builder, signature, arguments)
        return context.get_dummy_value() if signature.return_type == types.void else value

    lower_builtin(function, types.VarArg(types.Any))(lower)  # type: ignore[no-untyped-call]
