"""`Crystallizing`: one crystallization that is going on."""

from __future__ import annotations

from _thread import get_ident

from jessymem.ids import DimensionId


class Crystallizing:
    """One crystallization that has begun; it ends with this object at the latest.

    Attributes
    ----------
    dimension : DimensionId
    thread : int
    layers : set of int
        The `id` of each learned layer that it writes.
    is_over : bool
    """

    __slots__ = ("__weakref__", "dimension", "is_over", "layers", "thread")

    def __init__(self, dimension: DimensionId) -> None:
        self.dimension = dimension
        self.thread = get_ident()
        self.layers: set[int] = set()
        self.is_over = False
