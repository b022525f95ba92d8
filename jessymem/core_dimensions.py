"""The 14 core dimensions as shipped: names, slots, and what stands in for their layers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jessymem.config import MIB
from jessymem.ids import DimensionId


class CoreDimension(NamedTuple):
    """One of D01 to D14."""

    dimension_id: DimensionId
    name: str
    capacity_bytes: int
    immutable: bool
    layers: tuple[dict[str, Any], ...]  # layer, name, depth, frequency, parent, keywords, summary


@lru_cache(maxsize=1)
def core_dimensions() -> dict[DimensionId, CoreDimension]:
    """Return the core dimensions by id, ascending, as ``data/dimensions.json`` has them."""
    text = Path(__file__).with_name("data").joinpath("dimensions.json").read_text("utf-8")
    found = {}
    for entry in json.loads(text)["dimensions"]:
        dimension = DimensionId.parse(entry["id"])
        capacity = entry["capacity_mb"] * MIB
        layers = tuple(entry["layers"])
        found[dimension] = CoreDimension(
            dimension, entry["name"], capacity, entry["immutable"], layers
        )
    return found


def is_immutable(dimension: DimensionId) -> bool:
    """Tell whether nobody may change a dimension: the ethical and the protective one."""
    core = core_dimensions().get(dimension)
    return core is not None and core.immutable
