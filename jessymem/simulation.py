"""Simulated core dimensions: content made from bundled descriptions where files lack."""

from __future__ import annotations

from typing import Any

from jessymem.core_dimensions import CoreDimension, core_dimensions
from jessymem.ids import DimensionId
from jessymem.regions.builder import RegionBuilder
from jessymem.regions.region import MmapRegion


def core_builder(dimension: DimensionId) -> RegionBuilder:
    """Return a builder with a core dimension's bundled layers, the same ones every time."""
    core = core_dimensions()[dimension]
    builder = RegionBuilder(dimension, core.name)
    for layer in core.layers:
        builder.add_layer(
            layer["layer"],
            simulated_text(core, layer),
            name=layer["name"],
            frequency=layer["frequency"],
            depth=layer["depth"],
            keywords=layer["keywords"],
            parent=layer["parent"],
        )
    return builder


def simulated_region(dimension: DimensionId) -> MmapRegion:
    """Lay a simulated core dimension out in memory; nothing is written to disk."""
    return core_builder(dimension).build_to_memory()


def simulated_text(core: CoreDimension, layer: dict[str, Any]) -> str:
    """Write the context of one bundled layer."""
    position = f"depth {layer['depth']} of {core.name.lower()}"
    return (
        f"{core.name}: {layer['name']}\n\n"
        f"{layer['summary']}\n\n"
        f"At {position} the words to listen for are {', '.join(layer['keywords'])}.\n"
    )
