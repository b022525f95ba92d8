"""Values as words: plain text that is safe to show, whatever the files it comes from contain."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Final

from jessymem.units import count as count
from jessymem.units import show_bytes
from jessymem.visible_text import visible as visible

if TYPE_CHECKING:
    from jessymem.bench.table import Line, Row
    from jessymem.demo.measurements import Measurement
    from jessymem.ingest.folders import Skipped
    from jessymem.ingest.reports import BuildReport, BuiltDimension, ExportReport
    from jessymem.regions.metadata import LayerInfo
    from jessymem.warming import WarmupReport


#: What is shown around a find.
CONTEXT_BYTES: Final = 30
MAX_FOUND_CHARS: Final = 60

_MAX_LINE_CHARS: Final = 500
_MAX_SKIPPED_SHOWN: Final = 20


def one_line(message: str) -> str:
    """Bring a message to one visible line; what is very long loses its middle."""
    shown = visible(message)
    if len(shown) > _MAX_LINE_CHARS:
        half = _MAX_LINE_CHARS // 2
        shown = f"{shown[:half]} ... {shown[-half:]}"
    return shown


def excerpt(content: memoryview, start: int, n_bytes: int) -> tuple[str, str, str]:
    """Return as text what is before a find in its line, the find itself, and what follows in it.

    Nothing is made visible yet; what is not UTF-8 is U+FFFD, and what is long is cut.
    """
    end = start + n_bytes
    before = _decode_torn(content[max(start - CONTEXT_BYTES, 0) : start]).rpartition("\n")[2]
    found = str(content[start:end], "utf-8", "replace")
    if len(found) > MAX_FOUND_CHARS:
        found = f"{found[: MAX_FOUND_CHARS // 2]} ... {found[-MAX_FOUND_CHARS // 2 :]}"
    after = _decode_torn(content[end : end + CONTEXT_BYTES]).partition("\n")[0]
    return before, found, after


def _decode_torn(piece: memoryview) -> str:
    """Decode a piece of UTF-8, without the parts of characters that it begins and ends with."""
    raw = bytes(piece)
    n_torn = 0
    while n_torn < min(3, len(raw)) and raw[n_torn] & 0xC0 == 0x80:
        n_torn += 1
    return codecs.getincrementaldecoder("utf-8")("replace").decode(raw[n_torn:])


def show_seconds(seconds: float) -> str:
    """Write a duration to three digits: ``0.41 us``, ``27.8 us``, ``305 ms``, ``4.27 s``."""
    value, unit = seconds * 1e6, "us"
    for larger in ("ms", "s"):
        if value >= 1000:
            value, unit = value / 1000, larger
    n_decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{n_decimals}f} {unit}"


def show_amount(amount: float, unit: str) -> str:
    """Write what a row took or came to: ``0.27 us``, ``4.10 million/s``, ``13.2 GB/s``."""
    if not isfinite(amount):
        return ""
    if unit == "seconds":
        return f"{amount * 1e9:.3g} ns" if amount < 1e-6 else show_seconds(amount)
    if unit == "bytes":
        return show_bytes(amount)
    if unit == "bytes per second":
        return f"{amount / 1e9:.3g} GB/s"
    return f"{amount / 1e6:.3g} million/s"


def show_ratio(row: Row) -> str:
    """Write what is compared with a row's target."""
    from jessymem.bench.table import NotRun

    if isinstance(row.outcome, NotRun):
        return ""
    if row.line.of == "ours":
        return show_amount(row.value, row.line.unit)
    return f"{row.value:.3g} x" if row.value < 100 else f"{row.value:.0f} x"


def show_target(line: Line) -> str:
    """Write a target: ``<= 0.8 x``, ``<= 2.00 ms``; nothing where there is none."""
    target = line.target
    if target is None:
        return ""
    is_ratio = line.of == "ratio"
    value = f"{target.value:g} x" if is_ratio else show_amount(target.value, line.unit)
    return f"{target.sense} {value}"


def show_value(measurement: Measurement) -> str:
    """Write a measured value in its unit."""
    value = measurement.value
    if measurement.unit == "seconds":
        return show_seconds(value)
    if measurement.unit == "share":
        loss = f"{100 * value:.1f} %" if value >= 0 else "none,"
        return f"{loss} +-{100 * measurement.spread:.1f} %"
    return show_bytes(value) if measurement.unit == "bytes" else f"{value:,.0f}"


def show_kind(layer: LayerInfo) -> str:
    """Write what a layer's content is: ``text``, or an array's dtype and shape, ``float64 3x4``."""
    kind = layer.encoding
    if layer.dtype is not None and layer.shape is not None:
        kind = f"{layer.dtype.name} {'x'.join(map(str, layer.shape))}".strip()
    if layer.compression is None:
        return kind
    return f"{kind}, {layer.compression} {show_bytes(layer.stored_size)}"


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Say what was left out, the first few by name."""
    lines = [f"skipped {visible(path)}: {reason}" for path, reason in skipped[:_MAX_SKIPPED_SHOWN]]
    if len(skipped) > _MAX_SKIPPED_SHOWN:
        lines.append(f"skipped {len(skipped) - _MAX_SKIPPED_SHOWN:,} more; --json names them all")
    return lines


def built_line(report: BuildReport, data: object) -> str:
    """Say what came of a build, in one line."""
    layers = f"{count(report.n_layers, 'layer')}, {show_bytes(report.n_bytes)}"
    left = f", {len(report.unchanged):,} unchanged" if report.unchanged else ""
    files = count(len(report.written), "region file")
    verb = "would be written" if report.is_dry_run else "written"
    return f"{files} {verb} under {visible(str(data))}{left} ({layers})"


def exported_line(report: ExportReport, out: object) -> str:
    """Say what came of an export, in one line."""
    dimensions = count(len(report.dimensions), "dimension")
    layers = f"{count(report.n_layers, 'layer')}, {show_bytes(report.n_bytes)}"
    return f"{dimensions} written under {visible(str(out))} ({layers})"


def fault_lines(built: Sequence[BuiltDimension]) -> list[str]:
    """Say which of the region files that were written cannot be loaded with default settings."""
    return [f"Warning: {one_line(each.fault)}" for each in built if each.fault is not None]


def warmup_lines(report: WarmupReport) -> list[str]:
    """Say what warming up came to."""
    if report.is_disabled:
        return [
            "JIT is disabled (NUMBA_DISABLE_JIT): kernels run as plain Python, none to compile."
        ]
    took = f"in {show_seconds(report.seconds)}"
    if report.n_compiled:
        first = f"Compiled {count(report.n_compiled, 'function')} {took}."
    else:
        first = f"Everything was compiled already; loaded {took}."
    if report.cache is None:
        return [first, "Nothing is kept for later processes: there is no folder for the cache."]
    return [first, f"Cache: {visible(str(report.cache))}"]
