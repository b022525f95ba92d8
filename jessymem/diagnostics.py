"""What the manager shows of itself: `MemoryStats`, and for `dump_state` everything."""

from __future__ import annotations

import dataclasses
from typing import Any

from jessymem.budget import Budget, Usage
from jessymem.config import MemoryConfig
from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.regions.region import MmapRegion
from jessymem.sampling import ReadSampler
from jessymem.snapshot import Snapshot
from jessymem.stats import MemoryStats


def collect_stats(
    config: MemoryConfig,
    snapshot: Snapshot,
    budget: Budget,
    sampler: ReadSampler,
    usage: Usage | None = None,
) -> MemoryStats:
    """Gather the numbers of one moment, `usage` being the budget's where it was asked already."""
    # The snapshot is held, so what it has loaded is charged: used is never above allocated.
    loaded = snapshot.loaded
    usage = usage or budget.usage()
    utilization = usage.total / budget.limit_bytes
    return MemoryStats(
        total_allocated_bytes=usage.total,
        total_used_bytes=sum(region.size for region in loaded),
        total_limit_bytes=budget.limit_bytes,
        utilization=utilization,
        peak_usage_bytes=usage.peak,
        waiting_bytes=sum(usage.waiting.values()),
        per_class=usage.per_class,
        dimensions_loaded=len(loaded),
        layers_loaded=sum(len(region.layout.rows) for region in loaded),
        active_regions=len(loaded),
        avg_access_latency_us=sampler.average_latency_us,
        peak_concurrent_readers=sampler.peak_readers,
        simulation_mode=any(region.state == s.REGION_SIMULATED for region in loaded),
        is_at_warning_threshold=utilization > config.warning_threshold,
        should_trigger_eviction=utilization > config.eviction_threshold,
        should_reject_allocations=utilization > config.critical_threshold,
    )


def dump_state(
    config: MemoryConfig, snapshot: Snapshot, budget: Budget, sampler: ReadSampler
) -> dict[str, Any]:
    """Write down everything, in types that `json.dumps` takes."""
    usage = budget.usage()
    stats = collect_stats(config, snapshot, budget, sampler, usage)
    settings = dataclasses.asdict(config) | {"base_path": str(config.base_path)}
    return {
        "config": settings,
        "budget": {
            "limit_bytes": stats.total_limit_bytes,
            "allocated_bytes": stats.total_allocated_bytes,
            "used_bytes": stats.total_used_bytes,
            "peak_bytes": stats.peak_usage_bytes,
            "waiting_bytes": stats.waiting_bytes,
            "utilization": stats.utilization,
            "per_class": {
                name: dataclasses.asdict(usage) for name, usage in stats.per_class.items()
            },
        },
        "pools": [],
        "regions": [_region(region, snapshot) for region in snapshot.loaded],
        "layers": [layer for region in snapshot.loaded for layer in _layers(region)],
        "counters": {
            "dimensions_loaded": stats.dimensions_loaded,
            "layers_loaded": stats.layers_loaded,
            "active_regions": stats.active_regions,
            "avg_access_latency_us": stats.avg_access_latency_us,
            "access_samples": sampler.n_samples,
            "peak_concurrent_readers": stats.peak_concurrent_readers,
            "simulation_mode": stats.simulation_mode,
        },
        "waiting": [
            {"region_id": region_id, "n_bytes": n_bytes}
            for region_id, n_bytes in sorted(usage.waiting.items())
        ],
    }


def _region(region: MmapRegion, snapshot: Snapshot) -> dict[str, Any]:
    slot = snapshot.regions[snapshot.directory[region.dimension_id]]
    return {
        "region_id": int(slot["region_id"]),
        "dimension": str(region.dimension_id),
        "name": region.layout.header.name,
        "path": None if region.path is None else str(region.path),
        "state": s.REGION_STATES[region.state],
        "n_bytes": region.size,
        "n_charged": int(slot["n_charged"]),
        "capacity": int(slot["capacity"]) or None,
        "generation": region.generation,
        "created_at": region.layout.created_at,
        "extended": region.layout.is_extended,
        "n_layers": len(region.layout.rows),
    }


def _layers(region: MmapRegion) -> list[dict[str, Any]]:
    """List a region's layers without their keywords: cheap also where there are 65,536."""
    rows = region.layout.rows
    fields = ("layer_num", "content_offset", "content_end", "depth", "frequency", "parent")
    columns = [rows[field].tolist() for field in fields]
    location, state = region.location.value, region.layer_state.value
    return [
        {
            "layer": str(LayerId(region.dimension_id, number)),
            "offset": start,
            "size": end - start,
            "depth": depth,
            "frequency": frequency,
            "parent": str(LayerId.from_packed(parent)) if parent >> s.LAYER_BITS else None,
            "location": location,
            "state": state,
        }
        for number, start, end, depth, frequency, parent in zip(*columns, strict=True)
    ]
