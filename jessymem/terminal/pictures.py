"""Values as pictures: each function makes something that rich can print, and prints nothing.

Text that comes from a file becomes a `Text`, never markup, and passes `visible`: no name can move
the cursor, set a colour, or turn the reading direction.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jessymem.bench.run import BenchReport
from jessymem.bench.table import NotRun
from jessymem.demo.run import DemoReport
from jessymem.ingest.reports import BuiltDimension, ExportedDimension
from jessymem.inspection import (
    BYTE_KINDS,
    Finding,
    byte_map,
    byte_use,
    creation_time,
    extension_state,
)
from jessymem.kernels import schema as s
from jessymem.regions.chain import RegionChain
from jessymem.regions.metadata import LayerInfo
from jessymem.regions.region import MmapRegion
from jessymem.terminal.stores import place_of
from jessymem.terminal.wording import (
    count,
    show_amount,
    show_kind,
    show_ratio,
    show_seconds,
    show_target,
    show_value,
    visible,
)
from jessymem.units import show_bytes

_YIELDING_COLUMNS: Final = ("Name", "From", "Keywords", "What", "Peer")

_KIND_STYLES: Final = {"metadata": "cyan", "contents": "green", "padding": "bright_black"}
_KIND_BLOCKS: Final = {"metadata": "\u2588", "contents": "\u2593", "padding": "\u2591"}
_KIND_LETTERS: Final = {"metadata": "#", "contents": "=", "padding": "."}


def _cell(text: object, style: str = "") -> Text:
    return Text(visible(str(text)), style, no_wrap=True, overflow="ellipsis")


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        # Where the window is narrow, only columns that may wrap give way, and their cells are cut.
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in _YIELDING_COLUMNS,
        )
    return table


# -- region files ----------------------------------------------------------------------------------


def regions_table(findings: Sequence[Finding]) -> Table:
    """Show which region files there are."""
    columns = ("Dimension", "Name", "Layers", "Size", "Generation", "Created (UTC)")
    table = _table(*columns, right=("Layers", "Size", "Generation"))
    for finding in findings:
        facts, size = finding.facts, show_bytes(finding.n_bytes)
        if facts is None:
            table.add_row(str(finding.dimension_id), _cell("unreadable", "red"), "", size, "", "")
            continue
        table.add_row(
            str(finding.dimension_id),
            _cell(facts.name),
            f"{facts.n_layers:,}",
            size,
            str(facts.generation) if facts.generation else "-",
            f"{facts.created:%Y-%m-%d %H:%M:%S}" if facts.created else "-",
        )
    return table


def built_table(built: Sequence[BuiltDimension]) -> Table:
    """Show what a build wrote, and what it left alone."""
    columns = ("Dimension", "Name", "From", "Layers", "Size", "Generation", "Outcome")
    table = _table(*columns, right=("Layers", "Size", "Generation"))
    for each in built:
        table.add_row(
            str(each.dimension_id),
            _cell(each.name),
            _cell(each.folder),
            f"{each.n_layers:,}",
            show_bytes(each.n_bytes),
            str(each.generation or "-"),
            "unchanged" if each.is_unchanged else "replaced" if each.is_replaced else "new",
        )
    return table


def exported_table(exported: Sequence[ExportedDimension]) -> Table:
    """Show what an export wrote."""
    table = _table("Dimension", "Name", "To", "Layers", "Contents", right=("Layers", "Contents"))
    for each in exported:
        table.add_row(
            str(each.dimension_id),
            _cell(each.name),
            _cell(each.path.name),
            f"{each.n_layers:,}",
            show_bytes(each.n_bytes),
        )
    return table


def region_view(
    region: MmapRegion | RegionChain, screen: Console, max_layers: int | None
) -> RenderableType:
    """Show one region: its header, where its bytes lie, the deltas beside it, and its layers."""
    file, *deltas = region.members
    parts: list[RenderableType] = [_title(file), _header(file, region), Text()]
    parts.append(_byte_bar(file, screen))
    if deltas:
        parts += [Text(), _deltas_table(deltas)]
    layers = list(region.describe_layers())
    shown = layers[:max_layers]
    if layers:
        parts += [Text(), _layers_table(region, shown, is_wide=screen.width >= 100)]
    if len(shown) < len(layers):
        parts.append(Text(f"{len(layers) - len(shown):,} more layers; --all shows them", "dim"))
    return Group(*parts)


def _title(region: MmapRegion) -> Text:
    title = Text(str(region.dimension_id), "bold cyan")
    title.append(f"  {visible(region.layout.header.name)}", "bold")
    return title


def _deltas_table(deltas: Sequence[MmapRegion]) -> Table:
    columns = ("Delta", "Layers", "Deleted", "Size", "Created")
    table = _table(*columns, right=("Layers", "Deleted", "Size"))
    for delta in deltas:
        created = creation_time(delta)
        table.add_row(
            _cell(delta.path.name if delta.path else ""),
            f"{delta.n_layers:,}",
            f"{len(delta.layout.deleted):,}",
            show_bytes(delta.size),
            f"{created:%Y-%m-%d %H:%M:%S} UTC" if created else "not said",
        )
    return table


def _header(region: MmapRegion, whole: MmapRegion | RegionChain) -> Table:
    """Tell of a region file, and how many layers there are with the deltas beside it."""
    created = creation_time(region)
    facts = {
        "file": place_of(region.path),
        "size": f"{region.size:,} bytes",
        "layers": f"{whole.n_layers:,}",
        "format": f"version {region.layout.header.version}",
        "extension": extension_state(region),
        "generation": str(whole.generation) if whole.generation else "none",
        "created": f"{created:%Y-%m-%d %H:%M:%S} UTC" if created else "not said",
        "contents from": f"byte {region.layout.content_start:,}",
    }
    if region.frames is not None:
        stored, n_bytes, shared = region.frames.totals()
        n_layers = int(region.frames.is_stored.sum())
        told = f"{n_layers:,} layers, {show_bytes(n_bytes)} in {show_bytes(stored)}"
        facts["compressed"] = f"{told}, with {show_bytes(shared)} of dictionary" if shared else told
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, value in facts.items():
        table.add_row(name, Text(visible(value), overflow="fold"))
    return table


def _byte_bar(region: MmapRegion, screen: Console) -> Text:
    """Draw where the bytes lie, each cell what most of its bytes are for, with a legend."""
    is_unicode = screen.encoding.lower().startswith("utf")
    marks = _KIND_BLOCKS if is_unicode else _KIND_LETTERS
    bar = Text(no_wrap=True)
    for kind, cells in groupby(byte_map(region, min(screen.width, 100)).tolist()):
        name = BYTE_KINDS[kind]
        bar.append(marks[name] * len(list(cells)), _KIND_STYLES[name])
    bar.append("\n")
    use = byte_use(region)
    for i, (name, n_bytes) in enumerate(use._asdict().items()):
        bar.append("   " if i else "").append(marks[name] * 2, _KIND_STYLES[name])
        bar.append(f" {name} {show_bytes(n_bytes)}, {n_bytes / region.size:.1%}")
    return bar


def _layers_table(
    region: MmapRegion | RegionChain, layers: Sequence[LayerInfo], is_wide: bool
) -> Table:
    columns = ["Layer", "Name", "Size", "Kind", "Freq", "Depth", "Parent", "Keywords"]
    if is_wide:
        columns.insert(3, "Offset")
    right = ("Size", "Offset", "Freq", "Depth")
    table = _table(*columns, right=right)
    for layer in layers:
        cells: list[RenderableType] = [
            Text(str(layer.layer_id), "cyan"),
            _cell(layer.name),
            show_bytes(layer.size),
            _cell(show_kind(layer)),
            f"{layer.frequency:.4g}",
            str(layer.depth),
            str(layer.parent) if layer.parent is not None else "-",
            _cell(", ".join(layer.keywords)),
        ]
        if is_wide:
            cells.insert(3, f"{layer.offset:,}")
        table.add_row(*cells)
    return table


# -- the demo --------------------------------------------------------------------------------------


def demo_view(report: DemoReport, kept: Path | None) -> RenderableType:
    """Show what the demo found, and where its files are if they are kept."""
    library = f"the sources of Python {platform.python_version()}'s library"
    if report.n_dimensions == s.N_CORE_DIMENSIONS:
        library = "nothing else: this Python comes without sources"
    size = f"{count(report.n_layers, 'layer')}, {show_bytes(report.n_bytes)}"
    summary = Text.assemble(
        (f"{count(report.n_dimensions, 'dimension')}, {size}", "bold"),
        f": the bundled core, and {library}",
    )
    table = _table("What", "Target", "Measured", "Verdict", right=("Measured",))
    for each in report.measurements:
        verdict = Text("met", "green") if each.is_met else Text("missed", "bold red")
        table.add_row(each.what, each.target, show_value(each), verdict)
    steps = ", ".join(f"{step.name} {show_seconds(step.seconds)}" for step in report.steps)
    reasons = [
        Text(f"Missed: {each.key}: {each.why or 'why was not measured'}", "yellow")
        for each in report.missed
    ]
    parts: list[RenderableType] = [
        summary,
        table,
        *reasons,
        Text(f"Time: {steps}", "dim"),
        Text(),
        _verdict(report),
    ]
    if kept is not None:
        parts.append(Text(f"The region files are in {visible(str(kept))}"))
    return Group(*parts)


def _verdict(report: DemoReport) -> Text:
    if report.differing:
        named = ", ".join(map(str, report.differing[:5]))
        more = f" and {len(report.differing) - 5:,} more" if len(report.differing) > 5 else ""
        return Text(f"Not equal to their source: {named}{more}", "bold red")
    if report.missed:
        missed = ", ".join(each.key for each in report.missed)
        return Text(f"Every byte is that of its source; missed on this machine: {missed}", "yellow")
    return Text("Every byte is that of its source, and every target is met.", "bold green")


# -- beside peers ----------------------------------------------------------------------------------


#: From so many columns on there is space for what each took.
_WIDE_TABLE: Final = 120

_VERDICT_STYLES: Final = {
    "met": "green",
    "met (abs)": "green",
    "missed": "bold red",
    "missed (abs)": "yellow",
    "not run": "yellow",
    "for scale": "dim",
}


def bench_view(report: BenchReport, screen: Console) -> RenderableType:
    """Show what was measured beside peers; what each took only where the screen is wide."""
    is_wide = screen.width >= _WIDE_TABLE
    columns = ["What", "Peer", "Ratio", "Target", "Verdict"]
    if is_wide:
        columns[2:2] = ["jessymem", "Peer took"]
    table = _table(*columns, right=("jessymem", "Peer took", "Ratio", "Target"))
    reasons: dict[str, list[str]] = {}
    for row in report.rows:
        line, outcome, verdict = row.line, row.outcome, row.verdict
        if verdict == "missed" and row not in report.missed:
            verdict = "missed, known"
        cells: list[RenderableType] = [show_ratio(row), show_target(line)]
        cells.append(Text(verdict, _VERDICT_STYLES[row.verdict]))
        if isinstance(outcome, NotRun):
            took = ["", ""]
            reasons.setdefault(outcome.reason, []).append(line.key)
        else:
            took = [show_amount(each, line.unit) for each in (outcome.ours, outcome.theirs)]
        table.add_row(line.what, line.peer, *(took if is_wide else ()), *cells)
    ran = report.surroundings
    versions = ", ".join(f"{name} {ran[name]}" for name in ("python", "numpy", "numba"))
    parts: list[RenderableType] = [
        Text(visible(f"{ran['cpu']}, {ran['cpus']} CPUs, {versions}"), "bold"),
        table,
    ]
    parts += [
        Text(f"Not run: {', '.join(keys)}: {visible(reason)}", "yellow")
        for reason, keys in reasons.items()
    ]
    parts.append(Text(f"Time: {show_seconds(report.seconds)}", "dim"))
    parts.append(_bench_verdict(report))
    return Group(*parts)


def _bench_verdict(report: BenchReport) -> Text:
    verdicts = Counter(row.verdict for row in report.rows)
    if report.missed:
        missed = ", ".join(row.line.key for row in report.missed)
        return Text(f"Missed, and not known to be: {missed}", "bold red")
    if verdicts["missed"]:
        return Text("Every ratio is met but for those that are known to be missed.", "yellow")
    if verdicts["not run"]:
        return Text("Every ratio that was measured is met.", "yellow")
    return Text("Every ratio is met.", "bold green")
