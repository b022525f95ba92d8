"""How numba sees a `Store`: its type, and the functions that compiled code calls with it.

`init` is this package's entry point for extensions of numba, which calls it before the first
function is compiled; so a user's code needs no preparation. Nothing is compiled here. Where two
threads compile their first functions at once, numba waits for the entry points in one of them only:
so who makes a store sees to it too. Imports numba by itself, as only `_cache` does besides.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types
from numba.core.typing.typeof import Purpose, typeof_impl
from numba.extending import (
    NativeValue,
    make_attribute_wrapper,
    models,
    overload,
    register_jitable,
    register_model,
    unbox,
)
from numba.np.numpy_support import from_dtype

from jessymem.kernels import _jit, lookup, schema, store

_MEMBERS = [
    ("directory", types.Array(from_dtype(schema.DIRECTORY), 1, "C", readonly=True)),
]

_is_done = False


def init() -> None:
    """Make the type and the functions known to numba, once."""
    global _is_done
    if _is_done or _jit.is_disabled():
        return
    with _jit.compiling():
        if not _is_done:
            _jit.register_overloads()
            _register_functions()
            _register_type()
            _is_done = True


class StoreType(types.Type):
    """A store as an argument; its name tells these sources.

    Code that users keep in numba's cache has offsets of these tables compiled into it: with other
    sources the type is another one, and the code is compiled again.
    """

    def __init__(self) -> None:
        super().__init__(name=f"jessymem.Store({_jit.digest_of_sources()})")


class StoreModel(models.StructModel):
    """The directory."""

    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _MEMBERS)  # type: ignore[no-untyped-call]


def _register_functions() -> None:
    for helper in (lookup.find_region, lookup.find_row, lookup.find_extent, lookup.find_layer):
        if not hasattr(helper, "py_func"):  # else it is compiled already, and known to numba
            register_jitable(helper)
    for function in store.FUNCTIONS:

        def choose(*arguments: Any, _function: Any = function) -> Any:
            return _function if isinstance(arguments[0], StoreType) else None

        overload(function, strict=False)(choose)


def _register_type() -> None:
    store_type = StoreType()

    @typeof_impl.register(store.Store)
    def typeof_store(value: Any, context: Any) -> Any:
        if context.purpose is Purpose.constant:
            raise ValueError(
                "a jessymem Store is passed to a compiled function as an argument: as a global or "
                "a closure its addresses would be frozen into the code"
            )
        return store_type

    register_model(StoreType)(StoreModel)
    for name, _ in _MEMBERS:
        make_attribute_wrapper(StoreType, name, name)
    unbox(StoreType)(_unbox)  # type: ignore[no-untyped-call]


def _unbox(typ: Any, value: Any, c: Any) -> Any:
    """Take the directory out of a store, with a reference of its own."""
    make_native: Any = cgutils.create_struct_proxy
    native = make_native(typ)(c.context, c.builder)
    is_wrong = cgutils.false_bit
    for position, (name, array_type) in enumerate(_MEMBERS):
        array = c.unbox(array_type, c.pyapi.tuple_getitem(value, position))
        setattr(native, name, array.value)
        is_wrong = c.builder.or_(is_wrong, array.is_error)
    whole: Any = NativeValue
    return whole(native._getvalue(), is_error=is_wrong)
