"""Views of contents that travel: copied or pickled they become bytes.

Python copies and pickles no memoryview. `dataclasses.asdict` copies what is in a field, and has
only the type to go by; so all views come by here, and those of other memory are refused as before.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from jessymem.osmem import Mapping

_reduce_others: Final[Callable[[memoryview], Any] | None] = copyreg.dispatch_table.get(memoryview)


class _Content(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """Bytes that a context was given, and that lie in no memory of this package."""


def as_content_view(content: memoryview | bytes) -> memoryview:
    """Return a read-only view that travels, of the same bytes if they lie in a row."""
    view = memoryview(content)
    if view.readonly and _is_content(view):
        return view
    if not view.c_contiguous or not view.nbytes:  # what cannot be cast
        view = memoryview(view.tobytes())
    array = _Content(view.nbytes, np.uint8, view)
    array.flags.writeable = False
    return memoryview(array)


def _is_content(view: memoryview) -> bool:
    """Tell whether what a view is of lies in memory of this package, or is a context's."""
    owner: Any = view
    while isinstance(owner, memoryview | np.ndarray):
        if isinstance(owner, _Content):
            return True
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    return isinstance(owner, Mapping)


def _reduce(view: memoryview) -> Any:
    if view.readonly and _is_content(view):
        return bytes, (view.tobytes(),)
    if _reduce_others is not None:
        return _reduce_others(view)
    raise TypeError("cannot pickle memoryview objects")


copyreg.pickle(memoryview, _reduce)
