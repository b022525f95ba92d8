"""Values as dictionaries that `json.dumps` takes: what ``--json`` writes."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from datetime import datetime
from math import isfinite
from typing import Any

from jessymem._version import __version__
from jessymem.bench.run import BenchReport, accepted_misses
from jessymem.bench.table import NotRun, Row
from jessymem.contexts import ContextCollection
from jessymem.demo.run import DemoReport
from jessymem.diagnostics import latency_record
from jessymem.errors import JessyMemoryError
from jessymem.ids import DimensionId
from jessymem.ingest.reports import BuildReport, ExportReport
from jessymem.inspection import Finding, byte_use, creation_time, extension_state
from jessymem.regions.arrays import descr_of
from jessymem.regions.chain import RegionChain
from jessymem.regions.metadata import LayerInfo, shortest
from jessymem.regions.region import MmapRegion
from jessymem.status.reader import Status
from jessymem.terminal.stores import place_of
from jessymem.warming import WarmupReport


def build_record(report: BuildReport) -> dict[str, Any]:
    """Describe what a build wrote, left alone and left out."""
    return {
        "dimensions": [
            {
                "dimension": str(each.dimension_id),
                "name": each.name,
                "folder": each.folder,
                "path": str(each.path),
                "n_layers": each.n_layers,
                "n_bytes": each.n_bytes,
                "generation": each.generation,
                "is_replaced": each.is_replaced,
                "is_unchanged": each.is_unchanged,
            }
            for each in report.dimensions
        ],
        "skipped": [each._asdict() for each in report.skipped],
        "is_dry_run": report.is_dry_run,
    }


def export_record(report: ExportReport) -> dict[str, Any]:
    """Describe what an export wrote."""
    return {
        "format": report.format,
        "dimensions": [
            {
                "dimension": str(each.dimension_id),
                "name": each.name,
                "path": str(each.path),
                "n_layers": each.n_layers,
                "n_bytes": each.n_bytes,
            }
            for each in report.dimensions
        ],
    }


def finding_record(finding: Finding) -> dict[str, Any]:
    """Describe a region file, and what is wrong with it."""
    facts = finding.facts
    return {
        "dimension": None if finding.dimension_id is None else str(finding.dimension_id),
        "path": place_of(finding.path),
        "n_bytes": finding.n_bytes,
        "name": None if facts is None else facts.name,
        "n_layers": None if facts is None else facts.n_layers,
        "generation": None if facts is None else facts.generation,
        "created_at": None if facts is None else _iso(facts.created),
        "error": None if finding.error is None else _error(finding.error),
    }


def fold_record(outcomes: Sequence[tuple[DimensionId, bool]]) -> dict[str, Any]:
    """Describe which dimensions were folded; of the others there was one file only."""
    dimensions = [
        {"dimension": str(dimension), "is_folded": is_folded} for dimension, is_folded in outcomes
    ]
    return {"n_folded": sum(is_folded for _, is_folded in outcomes), "dimensions": dimensions}


def region_record(region: MmapRegion | RegionChain) -> dict[str, Any]:
    """Describe a region, the deltas beside it, and all layers."""
    file, *deltas = region.members
    return {
        "dimension": str(region.dimension_id),
        "name": region.name,
        "path": place_of(region.path),
        "version": file.metadata.version,
        "extension": extension_state(file),
        "generation": file.generation,
        "created_at": _iso(creation_time(file)),
        "n_bytes": file.size,
        "content_offset": file.layout.content_start,
        "bytes": byte_use(file)._asdict(),
        "compressed": _compressed(file),
        "deltas": [
            {
                "path": place_of(delta.path),
                "generation": delta.generation,
                "created_at": _iso(creation_time(delta)),
                "n_bytes": delta.size,
                "n_layers": delta.n_layers,
                "deleted": delta.layout.deleted.tolist(),
            }
            for delta in deltas
        ],
        "layers": [_layer(layer) for layer in region.describe_layers()],
    }


def contexts_record(contexts: ContextCollection) -> list[dict[str, Any]]:
    """Describe contexts, each with its text."""
    return [
        {
            "layer": str(context.layer_id),
            "name": context.name,
            "dimension_name": context.dimension_name,
            "frequency": float(shortest(context.frequency)),
            "depth": context.depth,
            "parent": None if context.parent is None else str(context.parent),
            "keywords": list(context.keywords),
            "n_bytes": context.content.nbytes,
            "encoding": context.encoding,
            "is_binary": context.is_binary,
            "text": context.text,
        }
        for context in contexts
    ]


def warmup_record(report: WarmupReport) -> dict[str, Any]:
    """Describe what warming up came to."""
    return {
        "is_disabled": report.is_disabled,
        "n_compiled": report.n_compiled,
        "n_cached": report.n_cached,
        "cache": None if report.cache is None else str(report.cache),
        "seconds": report.seconds,
    }


def demo_record(report: DemoReport) -> dict[str, Any]:
    """Describe what the demo found, and where."""
    return {
        "jessymem": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_dimensions": report.n_dimensions,
        "n_layers": report.n_layers,
        "n_bytes": report.n_bytes,
        "n_file_bytes": report.n_file_bytes,
        "is_identical": not report.differing,
        "differing": [str(layer) for layer in report.differing],
        "missed": [each.key for each in report.missed],
        "measurements": [each._asdict() for each in report.measurements],
        "steps": [step._asdict() for step in report.steps],
    }


def bench_record(report: BenchReport) -> dict[str, Any]:
    """Describe what was measured beside peers, and on what."""
    return {
        "surroundings": report.surroundings,
        "is_quick": report.is_quick,
        "seconds": report.seconds,
        "missed": [row.line.key for row in report.missed],
        "rows": [_row(row) for row in report.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    line, outcome, target = row.line, row.outcome, row.line.target
    found: dict[str, Any] = {"ours": None, "theirs": None, "value": None, "reason": None}
    if isinstance(outcome, NotRun):
        found["reason"] = outcome.reason
    else:
        found["ours"], found["value"] = outcome.ours, outcome.value
        found["theirs"] = outcome.theirs if isfinite(outcome.theirs) else None
    return {
        "key": line.key,
        "what": line.what,
        "peer": line.peer or None,
        "unit": line.unit,
        **found,
        "target": None if target is None else [target.sense, target.value],
        "is_absolute": target is not None and target.is_absolute,
        "verdict": row.verdict,
        "evidence": accepted_misses().get(line.key),
    }


def _compressed(region: MmapRegion) -> dict[str, Any] | None:
    if region.frames is None:
        return None
    stored, n_bytes, dictionary = region.frames.totals()
    return {"n_stored_bytes": stored, "n_bytes": n_bytes, "n_dictionary_bytes": dictionary}


def _layer(layer: LayerInfo) -> dict[str, Any]:
    return {
        "layer": str(layer.layer_id),
        "name": layer.name,
        "offset": layer.offset,
        "n_bytes": layer.size,
        "encoding": layer.encoding,
        "compression": layer.compression,
        "n_stored_bytes": layer.stored_size,
        "dtype": None if layer.dtype is None else descr_of(layer.dtype),
        "shape": layer.shape,
        "frequency": float(shortest(layer.frequency)),
        "depth": layer.depth,
        "keywords": list(layer.keywords),
        "parent": None if layer.parent is None else str(layer.parent),
        "children": [str(child) for child in layer.children],
    }


def _error(error: JessyMemoryError) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error)}


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def status_record(status: Status) -> dict[str, Any]:
    """Describe what a process shows of itself."""
    return {
        "path": str(status.path),
        "pid": status.pid,
        "is_alive": status.is_alive,
        "command": status.command,
        "release": status.release,
        "store": status.store,
        "made_at": status.made_at,
        "written_at": status.written_at,
        "thresholds": status.thresholds,
        "counters": status.counters,
        "classes": {name: dataclasses.asdict(usage) for name, usage in status.classes.items()},
        "n_dimensions": status.n_dimensions,
        "dimensions": [
            {
                "dimension": str(each.dimension_id),
                "name": each.name,
                "state": each.state,
                "n_layers": each.n_layers,
                "n_learned": each.n_learned,
                "n_charged": each.n_charged,
                "generation": each.generation,
                "pinned": each.is_pinned,
            }
            for each in status.dimensions
        ],
        "pools": list(map(dataclasses.asdict, status.pools)),
        "placement": status.placement and dataclasses.asdict(status.placement),
        "latency_seconds": {
            kind: latency_record(found) for kind, found in status.latencies.items()
        },
    }
