"""A region as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jessymem import osmem
from jessymem.errors import JessyMemoryError
from jessymem.ids import LayerId
from jessymem.inspection import byte_use, creation_time, extension_state
from jessymem.kernels import schema as s
from jessymem.notebooks.markup import (
    N_ROWS,
    NOTHING,
    Column,
    Html,
    escape,
    facts,
    foreign,
    heading,
    joined,
    more,
    note,
    section,
    table,
    unreadable,
)
from jessymem.notebooks.usage import Part, bar, legend
from jessymem.regions.metadata import kind_of, shortest
from jessymem.units import count, show_bytes

if TYPE_CHECKING:
    from jessymem.regions.region import MmapRegion

_COLUMNS: Final = (
    Column("Layer"),
    Column("Name"),
    Column("Size", is_number=True),
    Column("Content"),
    Column("Frequency", is_number=True),
    Column("Depth", is_number=True),
    Column("Parent"),
    Column("Keywords"),
)


def view(region: MmapRegion) -> Html:
    """Show one region; of one whose file was cut since it was mapped only what is in memory."""
    size, state = show_bytes(region.size), s.REGION_STATES[region.state]
    name = joined([escape(f"{region.dimension_id} "), foreign(region.name)])
    title = heading("MmapRegion", name, f"{count(region.n_layers, 'layer')}, {size}, {state}")
    if osmem.is_cut(region.data):
        return joined([title, note("its file was cut since it was mapped")])
    return joined([title, _bytes(region), facts(_facts(region)), _layers(region)])


def _facts(region: MmapRegion) -> list[tuple[str, Html]]:
    created = creation_time(region)
    return [
        ("file", foreign(str(region.path), 200) if region.path else escape("none")),
        ("size", escape(f"{region.size:,} bytes")),
        ("generation", escape(str(region.generation or "none"))),
        ("created", escape(f"{created:%Y-%m-%d %H:%M:%S} UTC" if created else "not said")),
        ("extension", escape(extension_state(region))),
    ]


def _bytes(region: MmapRegion) -> Html:
    use = byte_use(region)._asdict()
    parts = [Part(name, name, n_bytes) for name, n_bytes in use.items() if n_bytes > 0]
    about = ", ".join(f"{part.label} {show_bytes(part.n_bytes)}" for part in parts)
    return joined([bar(parts, region.size, about), legend(parts)])


def _layers(region: MmapRegion) -> Html:
    numbers = region.numbers[:N_ROWS].tolist()
    ids = LayerId.in_order(region.dimension_id, numbers)
    rows = (_row(region, layer_id, row) for row, layer_id in enumerate(ids))
    listing = joined([table(_COLUMNS, rows), more(region.n_layers, N_ROWS, "layers")])
    return section("Layers", f"{region.n_layers:,}", listing, is_open=True)


def _row(region: MmapRegion, layer_id: LayerId, row: int) -> tuple[Html, ...]:
    try:
        layer = region.info_of(layer_id, row, ())
    except (JessyMemoryError, ValueError) as error:
        return (escape(str(layer_id)), unreadable(error), *[NOTHING] * (len(_COLUMNS) - 2))
    return (
        escape(str(layer_id)),
        foreign(layer.name),
        escape(show_bytes(layer.size)),
        foreign(kind_of(layer)),
        escape(shortest(layer.frequency)),
        escape(str(layer.depth)),
        escape("-" if layer.parent is None else str(layer.parent)),
        foreign(", ".join(layer.keywords[:8])),
    )
