"""The 14 core dimensions as shipped: slots, names, and what is read where there is no file.

Names and layers are read from a file when somebody asks for them: most processes never do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from jessymem.config import MIB, MemoryConfig, part_of
from jessymem.ids import DimensionId
from jessymem.locks import outside
from jessymem.named_tuples import NamedTuple

CORE_DIMENSIONS: Final = tuple(map(DimensionId, range(1, 15)))

#: What each may take in memory, in bytes, before it takes headroom, of the default budget.
SLOTS: Final = {
    dimension: n_mb * MIB
    for dimension, n_mb in zip(
        CORE_DIMENSIONS, (16, 16, 16, 8, 8, 16, 12, 8, 12, 8, 8, 8, 8, 4), strict=True
    )
}

#: The ethical and the protective one: nobody may change them.
IMMUTABLE: Final = frozenset({DimensionId(9), DimensionId(14)})


def slots_of(config: MemoryConfig) -> dict[DimensionId, int]:
    """Return what each may take under these settings, in bytes, before it takes headroom."""
    given = dict(config.core_slots)
    return {
        dimension: given.get(dimension, part_of(config.total_memory_mb, n_bytes // MIB)) * MIB
        for dimension, n_bytes in SLOTS.items()
    }


class CoreDimension(NamedTuple):
    """One of D01 to D14."""

    dimension_id: DimensionId
    name: str
    layers: tuple[dict[str, Any], ...]  # layer, name, depth, frequency, parent, keywords, summary


def core_dimensions() -> dict[DimensionId, CoreDimension]:
    """Return the core dimensions by id, ascending, as ``data/dimensions.json`` has them.

    Raises
    ------
    RegionIOError
        If the package was installed or frozen without its data.
    """
    if not _read.cache_info().currsize:
        outside(_read)
    return _read()


@lru_cache(maxsize=1)
def _read() -> dict[DimensionId, CoreDimension]:
    import json

    from jessymem.bundled import read_bundled

    found = {}
    for entry in json.loads(read_bundled("dimensions.json"))["dimensions"]:
        dimension = DimensionId.parse(entry["id"])
        found[dimension] = CoreDimension(dimension, entry["name"], tuple(entry["layers"]))
    return found
