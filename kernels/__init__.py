"""Kernels: arrays and integers in, integers out.

They never raise, allocate nothing, and import nothing of `jessymem` above them. Each is a plain
Python function until `jessymem.kernels._jit.promote` compiles it; reach them as `module.name`,
never by a name bound early. `schema` holds the dtypes and codes and needs no numba.

A user's own compiled code calls the functions that are exported here, with a store that
`MmapManager.store` has made; see docs/compiled.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jessymem.kernels.store import (
        Place,
        Store,
        count_layers,
        count_slots,
        dimension_at,
        layer_array,
        layer_at,
        layer_bytes,
        locate,
    )

__all__ = [
    "Place",
    "Store",
    "count_layers",
    "count_slots",
    "dimension_at",
    "layer_array",
    "layer_at",
    "layer_bytes",
    "locate",
]


def __getattr__(name: str) -> Any:
    """Import an exported name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.store"), name)
    globals()[name] = value
    return value
