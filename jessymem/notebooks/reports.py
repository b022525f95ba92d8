"""What a load came to as HTML."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from jessymem.notebooks.markup import (
    N_ROWS,
    NOTHING,
    Column,
    Html,
    escape,
    foreign,
    heading,
    joined,
    listed,
    more,
    section,
    table,
)

if TYPE_CHECKING:
    from jessymem.stats import LoadReport

_COLUMNS: Final = (Column("Dimension"), Column("Why"))
_N_REASON: Final = 100


def view(report: LoadReport) -> Html:
    """Show what was loaded, and why the rest was not."""
    n_loaded, n_skipped = len(report.loaded), len(report.skipped)
    about = f"{n_loaded:,} loaded, {n_skipped:,} skipped, {1_000 * report.seconds:.1f} ms"
    parts = [heading("LoadReport", NOTHING, about)]
    if n_loaded:
        ids = listed(report.loaded, n_loaded, "dimensions")
        parts.append(section("Loaded", f"{n_loaded:,}", ids, is_open=True))
    if n_skipped:
        rows = (
            (escape(str(dimension)), foreign(reason.removeprefix(f"{dimension}: "), _N_REASON))
            for dimension, reason in islice(report.skipped, N_ROWS)
        )
        listing = joined([table(_COLUMNS, rows), more(n_skipped, N_ROWS, "dimensions")])
        parts.append(section("Skipped", f"{n_skipped:,}", listing, is_open=True))
    return joined(parts)
