"""Names of this package that annotations use and that it does not export.

Where importing a class would cost a fresh process time, or go in a circle, an annotation says
`jessymem.LoadReport`, `np.typing.NDArray`, or `jessymem.hints.Content` for what is listed here. It
is a string until `typing.get_type_hints` looks at it, and only then are these modules imported.
Types that no public signature names are imported under TYPE_CHECKING as ever.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from matplotlib.axes import Axes
    from typing_extensions import Buffer as BufferProtocol

    from jessymem.engine.locations import LayersLike
    from jessymem.kernels.store import Store
    from jessymem.placement import Placement
    from jessymem.pools.occupancy import Occupancy
    from jessymem.regions.arrays import ArrayForm
    from jessymem.regions.drafts import Content, ContentOrArray, LayerDraft
    from jessymem.regions.frames import Frames
    from jessymem.regions.name_patterns import NamePattern
    from jessymem.regions.name_table import NameTable
    from jessymem.scanning.batches import HitBatch
    from jessymem.scanning.searching import SearchPattern
    from jessymem.scanning.workers import CancelToken

    # Python 3.11 has no type for it, and there NumPy's stubs do not say that arrays are one. What
    # typing_extensions has, type checkers know by themselves.
    Buffer: TypeAlias = BufferProtocol | np.typing.NDArray[Any]

__all__ = [
    "ArrayForm",
    "Axes",
    "Buffer",
    "CancelToken",
    "Content",
    "ContentOrArray",
    "Frames",
    "HitBatch",
    "LayerDraft",
    "LayersLike",
    "NamePattern",
    "NameTable",
    "Occupancy",
    "Placement",
    "SearchPattern",
    "Store",
]

_HOME_OF: Final = {
    "ArrayForm": "jessymem.regions.arrays",
    "Axes": "matplotlib.axes",
    "Buffer": "collections.abc",
    "CancelToken": "jessymem.scanning.workers",
    "Content": "jessymem.regions.drafts",
    "ContentOrArray": "jessymem.regions.drafts",
    "Frames": "jessymem.regions.frames",
    "HitBatch": "jessymem.scanning.batches",
    "LayerDraft": "jessymem.regions.drafts",
    "LayersLike": "jessymem.engine.locations",
    "NamePattern": "jessymem.regions.name_patterns",
    "NameTable": "jessymem.regions.name_table",
    "Occupancy": "jessymem.pools.occupancy",
    "Placement": "jessymem.placement",
    "SearchPattern": "jessymem.scanning.searching",
    "Store": "jessymem.kernels.store",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOME_OF[name])
    if name == "Buffer" and not hasattr(home, name):  # Python 3.11
        value: Any = bytes | bytearray | memoryview | import_module("numpy").ndarray
    else:
        value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names."""
    return sorted(__all__)
