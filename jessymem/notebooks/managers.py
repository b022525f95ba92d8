"""A manager, and its numbers alone, as HTML."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import TYPE_CHECKING, Final

from jessymem.diagnostics import Moment, collect_stats
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
)
from jessymem.notebooks.usage import budget_of, classes_of, counters_of, pools_of
from jessymem.units import count, show_bytes

if TYPE_CHECKING:
    from jessymem.config import MemoryConfig
    from jessymem.engine.engine import Engine
    from jessymem.engine.snapshot import Slot, Snapshot
    from jessymem.stats import MemoryStats

_COLUMNS: Final = (
    Column("Dimension"),
    Column("Name"),
    Column("State"),
    Column("Layers", is_number=True),
    Column("Learned", is_number=True),
    Column("Files", is_number=True),
    Column("Length", is_number=True),
    Column("Charged", is_number=True),
    Column("Generation", is_number=True),
)


def view(engine: Engine) -> Html:
    """Show a manager's engine, open or closed."""
    moment = Moment.of(engine)
    stats, snapshot = collect_stats(engine, moment), moment.snapshot
    about = "closed" if engine.is_closed else _amount(stats)
    config = engine.config
    return joined(
        [
            heading("MmapManager", foreign(str(engine.loader.place)), about),
            budget_of(stats, tuple(config.thresholds.values())),
            _dimensions(snapshot, stats, engine),
            pools_of(stats.per_pool),
            counters_of(stats),
            _settings(config),
        ]
    )


def view_of_stats(stats: MemoryStats) -> Html:
    """Show a manager's numbers."""
    return joined(
        [
            heading("MemoryStats", NOTHING, _amount(stats)),
            budget_of(stats),
            classes_of(stats),
            pools_of(stats.per_pool),
            counters_of(stats),
        ]
    )


def _amount(stats: MemoryStats) -> str:
    simulated = ", simulated in part" if stats.simulation_mode else ""
    dimensions = count(stats.dimensions_loaded, "dimension")
    layers = count(stats.layers_loaded, "layer")
    return f"{dimensions} ({stats.active_regions:,} in memory), {layers}{simulated}"


def _dimensions(snapshot: Snapshot, stats: MemoryStats, engine: Engine) -> Html:
    n_loaded = stats.dimensions_loaded
    if not n_loaded:
        return section("Dimensions", "none loaded", note("load_dimension and load_all load them"))
    shown = islice(snapshot.slots, N_ROWS)
    rows = (_dimension_row(slot, slot.loaded.dimension_id in engine.pinned) for slot in shown)
    listing = joined([table(_COLUMNS, rows), more(n_loaded, N_ROWS, "dimensions")])
    return section("Dimensions", f"{n_loaded:,}", listing, is_open=True)


def _dimension_row(slot: Slot, is_pinned: bool) -> tuple[Html, ...]:
    loaded = slot.loaded
    table = loaded.resident
    lengths = loaded.file_lengths
    state = s.REGION_STATES[loaded.state] + (", pinned" if is_pinned else "")
    return (
        escape(str(loaded.dimension_id)),
        foreign(loaded.name, 28),
        escape(state),
        escape(f"{loaded.n_layers:,}"),
        escape(f"{loaded.n_learned:,}"),
        escape(f"{len(lengths)}"),
        escape(show_bytes(sum(lengths))),
        escape(show_bytes(0 if table is None else table.n_charged)),
        escape(str(loaded.edition.generation or "-")),
    )


def _settings(config: MemoryConfig) -> Html:
    named = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    plans = (str(pool) for pool in islice(config.pool_configs, N_ROWS))
    named["pool_configs"] = ", ".join(plans) or "none"
    del named["base_path"]  # the heading has it
    shown = ((name, foreign(str(value), 400)) for name, value in named.items())
    limit = show_bytes(config.limit_bytes)
    return section("Settings", f"{limit}, {config.eviction_policy}", facts(shown))
