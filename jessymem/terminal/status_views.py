"""What a status file tells, drawn for a terminal of at least 80 columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jessymem.histograms import show_seconds
from jessymem.status.reader import ShownDimension, Status
from jessymem.units import count, show_bytes
from jessymem.visible_text import fitting

_BAR_COLUMNS: Final = 40
_NAME_COLUMNS: Final = 24
_STYLES: Final = {
    "core_slots": "blue",
    "core_headroom": "cyan",
    "grown": "green",
    "user": "magenta",
    "blocks": "yellow",
}

#: By the key that chooses it, what dimensions are sorted by.
SORTS: Final[Mapping[str, tuple[str, Callable[[ShownDimension], Any]]]] = {
    "b": ("bytes", lambda each: (-each.n_charged, each.dimension_id)),
    "l": ("layers", lambda each: (-each.n_layers, each.dimension_id)),
    "w": ("learned", lambda each: (-each.n_learned, -each.n_charged, each.dimension_id)),
    "n": ("name", lambda each: (each.name, each.dimension_id)),
    "d": ("number", lambda each: each.dimension_id),
}


def status_view(
    status: Status, before: Status | None = None, sort: str = "b", n_rows: int | None = None
) -> RenderableType:
    """Draw a status.

    Parameters
    ----------
    status : Status
    before : Status or None
        An earlier one, for rates; None: numbers are since the manager was made.
    sort : str
        A key of `SORTS`.
    n_rows : int or None
        So many lines for dimensions, at most; None: all that are listed.
    """
    parts = [*_head(status), _budget(status), _counters(status, before)]
    parts += [_latencies(status, before), _pools(status), _dimensions(status, sort, n_rows)]
    return Group(*parts)


def processes_table(found: list[Status]) -> Table:
    """List the processes that show themselves, a line each."""
    table = Table(box=None, pad_edge=False)
    for name in ("pid", "up", "memory", "of", "dimensions", "layers"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("store", no_wrap=True, overflow="ellipsis")
    table.add_column("command", no_wrap=True, overflow="ellipsis")
    for status in found:
        counters = status.counters
        table.add_row(
            str(status.pid),
            show_age(time.time() - status.made_at),
            show_bytes(counters["total_allocated_bytes"]),
            show_bytes(counters["total_limit_bytes"]),
            f"{counters['dimensions_loaded']:,}",
            f"{counters['layers_loaded']:,}",
            Text(fitting(status.store, 200)),
            Text(fitting(status.command, 200)),
        )
    return table


def show_age(seconds: float) -> str:
    """Write how long ago something was: ``5 s``, ``3 m 20 s``, ``2 h 05 m``, ``3 d 04 h``."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} m {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60:02} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600:02} h"


def _head(status: Status) -> Iterator[Text]:
    age = time.time() - status.written_at
    up = show_age(time.time() - status.made_at)
    line = Text.assemble(
        (f"jessymem {status.release}", "bold"),
        f"  process {status.pid}, up {up}  ",
        no_wrap=True,
        overflow="ellipsis",
    )
    if not status.is_alive:
        line.append("gone", "bold red")
    elif age > 4 * status.interval + 1:
        line.append(f"silent for {show_age(age)}", "yellow")
    yield line
    yield Text(fitting(status.store, 78), "dim", no_wrap=True, overflow="ellipsis")


def _budget(status: Status) -> RenderableType:
    counters = status.counters
    limit = max(int(counters["total_limit_bytes"]), 1)
    level = counters["total_allocated_bytes"] / limit
    at = [round(share * _BAR_COLUMNS) for share in status.thresholds]
    bar, n_drawn = Text("budget ["), 0
    filled = []
    for name, (allocated, _) in status.classes.items():
        n_cells = min(-(-allocated * _BAR_COLUMNS // limit), _BAR_COLUMNS - n_drawn)
        filled += [_STYLES.get(name, "white")] * n_cells
        n_drawn += n_cells
    for cell in range(_BAR_COLUMNS):
        if cell < len(filled):
            bar.append("#", filled[cell])
        else:
            bar.append("|" if cell in at else ".", "dim")
    style = ["green", "yellow", "dark_orange", "red"][sum(level > t for t in status.thresholds)]
    bar.append(f"] {show_bytes(counters['total_allocated_bytes'])} of {show_bytes(limit)}")
    bar.append(f" ({level:.1%})", style)
    parts = [
        (f"{name.replace('_', ' ')} {show_bytes(allocated)}", _STYLES.get(name, "white"))
        for name, (allocated, _) in status.classes.items()
        if allocated
    ]
    classes = Text("       ")
    for text, each_style in parts:
        classes.append(f"{text}  ", each_style)
    rest = (
        f"       peak {show_bytes(counters['peak_usage_bytes'])}, waiting for views"
        f" {show_bytes(counters['waiting_bytes'])}, retained"
        f" {show_bytes(counters['retained_bytes'])}"
    )
    return Group(bar, *([classes] if parts else []), Text(rest))


def _counters(status: Status, before: Status | None) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    cells = []
    for name, shown in (
        ("dimensions_loaded", "dimensions"),
        ("active_regions", "in memory"),
        ("layers_loaded", "layers"),
        ("peak_concurrent_readers", "readers, peak"),
    ):
        cells.append(f"{shown} {status.counters[name]:,}")
    table.add_row(*cells)
    cells = []
    for name, shown in (
        ("evictions", "evictions"),
        ("reloads", "reloads"),
        ("total_allocations", "allocations"),
        ("allocation_failures", "refused"),
    ):
        cells.append(f"{shown} {status.counters[name]:,}{_rate(status, before, name)}")
    table.add_row(*cells)
    return table


def _rate(status: Status, before: Status | None, name: str) -> str:
    seconds = 0.0 if before is None else status.written_at - before.written_at
    if before is None or seconds <= 0:
        return ""
    return f" ({(status.counters[name] - before.counters[name]) / seconds:,.0f}/s)"


def _latencies(status: Status, before: Status | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("latency", no_wrap=True)
    for name in ("samples", "per s", "median", "99 %", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    seconds = 0.0 if before is None else status.written_at - before.written_at
    for kind, found in status.latencies.items():
        if not found.n_samples:
            continue
        median, tail = found.percentiles((50, 99))
        rate = ""
        if before is not None and seconds > 0:
            rate = f"{(found.n_samples - before.latencies[kind].n_samples) / seconds:,.1f}"
        times = (show_seconds(each) for each in (median, tail, found.max_seconds))
        table.add_row(kind.replace("_", ", "), f"{found.n_samples:,}", rate, *times)
    if not table.row_count:
        table.add_row("nothing yet", "", "", "", "", "")
    return table


def _pools(status: Status) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("pool", no_wrap=True)
    for name in ("block", "used", "of", "full", "passed on"):
        table.add_column(name, justify="right", no_wrap=True)
    for pool in status.pools:
        table.add_row(
            f"{pool['pool_id']} {pool['kind']}",
            show_bytes(pool["block_size"]),
            f"{pool['used_blocks']:,}",
            f"{pool['total_blocks']:,}",
            f"{pool['utilization']:.0%}",
            f"{pool['failures']:,}",
        )
    return table


def _dimensions(status: Status, sort: str, n_rows: int | None) -> RenderableType:
    name, key = SORTS[sort]
    chosen = sorted(status.dimensions, key=key)
    shown = chosen if n_rows is None else chosen[: max(n_rows, 1)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("dimension", no_wrap=True)
    table.add_column("name", no_wrap=True)
    for column in ("mapped", "layers", "learned", "gen."):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(f"state (by {name})", no_wrap=True)
    for each in shown:
        table.add_row(
            str(each.dimension_id),
            Text(fitting(each.name, _NAME_COLUMNS)),
            show_bytes(each.n_charged),
            f"{each.n_layers:,}",
            f"{each.n_learned:,}",
            str(each.generation),
            each.state + (", pinned" if each.is_pinned else ""),
        )
    n_more = status.n_dimensions - len(shown)
    return Group(table, Text(f"and {count(n_more, 'dimension')} more", "dim")) if n_more else table
