"""`MappedDimension`: what of a loaded dimension a memory map shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jessymem
from jessymem.kernels import schema as s

if TYPE_CHECKING:
    from jessymem.regions.table import LoadedDimension


@dataclass(frozen=True)
class MappedDimension:
    """One loaded dimension as it is drawn.

    Attributes
    ----------
    dimension_id : DimensionId
    name : str
    state : str
        One of `kernels.schema.REGION_STATES`.
    is_pinned : bool
    n_layers : int
    lengths : tuple of int
        Bytes of its region file, or its simulation, and of each delta beside it.
    n_learned, n_learned_bytes : int
        Layers that are learned in it, and the bytes of their contents.
    """

    dimension_id: jessymem.DimensionId
    name: str
    state: str
    is_pinned: bool
    n_layers: int
    lengths: tuple[int, ...]
    n_learned: int
    n_learned_bytes: int

    @classmethod
    def of(cls, loaded: LoadedDimension, *, is_pinned: bool) -> MappedDimension:
        """Look at a loaded dimension; what it maps is not touched."""
        return cls(
            loaded.dimension_id,
            loaded.name,
            s.REGION_STATES[loaded.state],
            is_pinned,
            loaded.n_layers,
            loaded.file_lengths,
            loaded.n_learned,
            _learned_in(loaded),
        )

    @property
    def n_bytes(self) -> int:
        """How long all of it is."""
        return sum(self.lengths) + self.n_learned_bytes


def length_of(loaded: LoadedDimension) -> int:
    """Return how long a loaded dimension is: its files, and what is learned in it."""
    return sum(loaded.file_lengths) + _learned_in(loaded)


def _learned_in(loaded: LoadedDimension) -> int:
    return sum(len(layer.content) for layer in loaded.learned.values())
