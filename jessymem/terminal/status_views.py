"""What a status file tells, drawn for a terminal of at least 80 columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jessymem.histograms import show_seconds
from jessymem.latencies import STEP_PREFIX
from jessymem.pools.survey import blocks_by_size
from jessymem.status.reader import ShownDimension, Status
from jessymem.units import count, show_bytes
from jessymem.visible_text import fitting, visible

_BAR_COLUMNS: Final = 40
_NAME_COLUMNS: Final = 24
#: What dimensions have at least, of lines; and texts, of columns.
_FEWEST_ROWS: Final = 5
_FEWEST_COLUMNS: Final = 8
#: What the columns of dimensions take beside the name, with the longest numbers that there are.
_OTHER_COLUMNS: Final = 66
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
    status: Status,
    before: Status | None,
    sort: str,
    width: int,
    n_rows: int | None = None,
    *,
    is_short: bool = False,
) -> RenderableType:
    """Draw a status.

    Parameters
    ----------
    status : Status
    before : Status or None
        An earlier one, for rates; None: numbers are since the manager was made.
    sort : str
        A key of `SORTS`.
    width : int
        Columns; names are cut so that all else fits.
    n_rows : int or None
        So many lines for dimensions, at most; None: all that are listed.
    is_short : bool
        Whether pools are a line together.
    """
    top = [*_head(status), _budget(status), _counters(status, before), _latencies(status, before)]
    pools = _pools_in_short(status) if is_short else _pools(status)
    return Group(*top, pools, _dimensions(status, sort, width, n_rows))


def fitting_view(
    status: Status, before: Status | None, sort: str, screen: Console
) -> RenderableType:
    """Draw a status so that it fits a screen, with some dimensions however low that is."""
    for is_short in (False, True):
        whole = status_view(status, before, sort, screen.width, 1, is_short=is_short)
        n_others = len(screen.render_lines(whole, pad=False)) - 1
        n_left = screen.height - n_others - 1
        if n_left >= _FEWEST_ROWS:
            break
    n_rows = max(n_left, 1)
    return status_view(status, before, sort, screen.width, n_rows, is_short=is_short)


def processes_table(found: list[Status], width: int) -> Table:
    """List the processes that show themselves, a line each; only texts are cut."""
    table = Table(box=None, pad_edge=False)
    for name in ("pid", "up", "memory", "of", "dimensions", "layers"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = []
    for status in found:
        counters = status.counters
        cells = (
            str(status.pid),
            show_age(time.time() - status.made_at),
            show_bytes(counters["total_allocated_bytes"]),
            show_bytes(counters["total_limit_bytes"]),
            f"{counters['dimensions_loaded']:,}",
            f"{counters['layers_loaded']:,}",
        )
        rows.append((status, cells))
    taken = sum(
        2 + max(len(str(column.header)), *(len(cells[at]) for _, cells in rows))
        for at, column in enumerate(table.columns)
    )
    left = max(width - taken - 2, _FEWEST_COLUMNS)
    n_store = max(len(status.store) for status, _ in rows)
    n_store = min(n_store, left if left < 3 * _FEWEST_COLUMNS else 2 * left // 3)
    n_command = left - n_store - 1
    table.add_column("store", no_wrap=True)
    if n_command >= _FEWEST_COLUMNS:
        table.add_column("command", no_wrap=True)
    for status, cells in rows:
        texts = [Text(fitting(status.store, n_store))]
        if n_command >= _FEWEST_COLUMNS:
            texts.append(Text(fitting(status.command, n_command)))
        table.add_row(*cells, *texts)
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
    is_alive = status.is_alive
    up = show_age((time.time() if is_alive else status.written_at) - status.made_at)
    line = Text.assemble(
        (f"jessymem {status.release}", "bold"),
        f"  process {status.pid}, up {up}  ",
        no_wrap=True,
        overflow="ellipsis",
    )
    if not is_alive:
        line.append("gone", "bold red")
    elif age > 4 * status.interval + 1:
        line.append(f"silent for {show_age(age)}", "yellow")
    yield line
    yield Text(fitting(status.store, 78), "dim", no_wrap=True, overflow="ellipsis")


def _budget(status: Status) -> RenderableType:
    counters = status.counters
    limit = max(int(counters["total_limit_bytes"]), 1)
    level = counters["total_allocated_bytes"] / limit
    at = [round(share * _BAR_COLUMNS) for share in status.thresholds.values()]
    bar, total = Text("budget ["), 0
    filled: list[str] = []
    for name, usage in status.classes.items():
        total += usage.allocated_bytes
        n_cells = min(round(total * _BAR_COLUMNS / limit), _BAR_COLUMNS) - len(filled)
        filled += [_STYLES.get(name, "white")] * n_cells
    if total and not filled:
        filled = [_STYLES["blocks"]]
    for cell in range(_BAR_COLUMNS):
        if cell in at:
            bar.append("|", filled[cell] if cell < len(filled) else "dim")
        elif cell < len(filled):
            bar.append("#", filled[cell])
        else:
            bar.append(".", "dim")
    n_passed = sum(level > share for share in status.thresholds.values())
    style = ("green", "yellow", "dark_orange", "red")[n_passed]
    bar.append(f"] {show_bytes(counters['total_allocated_bytes'])} of {show_bytes(limit)}")
    bar.append(f" ({level:.1%})", style)
    classes = Text("       ")
    for name, usage in status.classes.items():
        if usage.allocated_bytes:
            shown = f"{name.replace('_', ' ')} {show_bytes(usage.allocated_bytes)}  "
            classes.append(shown, _STYLES.get(name, "white"))
    rest = (
        f"       peak {show_bytes(counters['peak_usage_bytes'])}, waiting for views"
        f" {show_bytes(counters['waiting_bytes'])}, retained"
        f" {show_bytes(counters['retained_bytes'])}"
    )
    if counters["inflated_layers"]:
        rest += f", inflated {show_bytes(counters['inflated_bytes'])}"
    lines = [Text(rest)]
    if status.placement is not None:
        lines.append(Text(f"       {visible(str(status.placement))}"))
    return Group(bar, *([classes] if total else []), *lines)


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


def _latencies(status: Status, before: Status | None) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("latency", no_wrap=True)
    for name in ("samples", "per s", "median", "99 %", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    seconds = 0.0 if before is None else status.written_at - before.written_at
    for kind, found in status.latencies.items():
        if not found.n_samples or kind.startswith(STEP_PREFIX):
            continue
        median, tail = found.percentiles((50, 99))
        rate = ""
        if before is not None and seconds > 0:
            rate = f"{(found.n_samples - before.latencies[kind].n_samples) / seconds:,.1f}"
        times = (show_seconds(each) for each in (median, tail, found.max_seconds))
        table.add_row(kind, f"{found.n_samples:,}", rate, *times)
    if not table.row_count:
        table.add_row("nothing yet", "", "", "", "", "")
    steps = [
        f"{kind.removeprefix(STEP_PREFIX)} {show_seconds(found.percentile(50))}"
        for kind, found in status.latencies.items()
        if kind.startswith(STEP_PREFIX) and found.n_samples
    ]
    if not steps:
        return table
    return Group(table, Text(f"  of a crystallization, median: {', '.join(steps)}", "dim"))


def _pools(status: Status) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("pool", no_wrap=True)
    for name in ("block", "used", "of", "full", "passed on"):
        table.add_column(name, justify="right", no_wrap=True)
    is_placed = status.placement is not None
    for name in ("pages", "node") if is_placed else ():
        table.add_column(name, justify="right", no_wrap=True)
    for pool in status.pools:
        node = "any" if pool.node is None else str(pool.node)
        table.add_row(
            f"{pool.pool_id} {pool.kind}",
            show_bytes(pool.block_size),
            f"{pool.used_blocks:,}",
            f"{pool.total_blocks:,}",
            f"{pool.utilization:.0%}",
            f"{pool.failures:,}",
            *((pool.pages, node) if is_placed else ()),
        )
    return table


def _pools_in_short(status: Status) -> Text:
    sizes = blocks_by_size(status.pools).items()
    shown = [f"{show_bytes(size)} {used:,}/{total:,}" for size, (used, total) in sizes]
    return Text("blocks " + ", ".join(shown), no_wrap=True, overflow="ellipsis")


def _dimensions(status: Status, sort: str, width: int, n_rows: int | None) -> RenderableType:
    name, key = SORTS[sort]
    chosen = sorted(status.dimensions, key=key)
    shown = chosen if n_rows is None else chosen[: max(n_rows, 1)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("dimension", no_wrap=True)
    table.add_column("name", no_wrap=True)
    for column in ("mapped", "layers", "learned", "gen."):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(f"state (by {name})", no_wrap=True)
    n_columns = max(min(width - _OTHER_COLUMNS, _NAME_COLUMNS), 4)
    for each in shown:
        table.add_row(
            str(each.dimension_id),
            Text(fitting(each.name, n_columns)),
            show_bytes(each.n_charged),
            f"{each.n_layers:,}",
            f"{each.n_learned:,}",
            str(each.generation),
            each.state + (", pinned" if each.is_pinned else ""),
        )
    n_more = status.n_dimensions - len(shown)
    return Group(table, Text(f"and {count(n_more, 'dimension')} more", "dim")) if n_more else table
