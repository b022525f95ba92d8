"""What is known of one layer as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jessymem.notebooks.markup import Html, escape, facts, foreign, heading, joined, listed, section
from jessymem.regions.metadata import kind_of, shortest

if TYPE_CHECKING:
    from jessymem.regions.metadata import LayerInfo


def view(layer: LayerInfo) -> Html:
    """Show one layer."""
    known = [
        ("content", foreign(kind_of(layer))),
        ("size", escape(f"{layer.size:,} bytes")),
        ("offset", escape(f"{layer.offset:,}")),
        ("frequency", escape(shortest(layer.frequency))),
        ("depth", escape(str(layer.depth))),
        ("parent", escape("none" if layer.parent is None else str(layer.parent))),
        ("where", escape(layer.location.value)),
        ("state", escape(layer.state.value)),
    ]
    parts = [
        heading("LayerInfo", joined([escape(f"{layer.layer_id} "), foreign(layer.name)]), ""),
        facts(known),
    ]
    for title, items in (("Keywords", layer.keywords), ("Children", layer.children)):
        if items:
            found = listed(items, len(items), title.lower())
            parts.append(section(title, f"{len(items):,}", found, is_open=title == "Keywords"))
    return joined(parts)
