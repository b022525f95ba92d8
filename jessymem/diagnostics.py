"""What the manager shows of itself: `MemoryStats`, and for `dump_state` everything."""

from __future__ import annotations

import dataclasses
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from jessymem.budget import Usage
from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.pools.survey import Survey, survey_of_plans
from jessymem.regions.region import MmapRegion
from jessymem.snapshot import Snapshot
from jessymem.stats import MemoryStats

if TYPE_CHECKING:
    from jessymem.manager import MmapManager


class Moment(NamedTuple):
    """What all numbers are made from."""

    snapshot: Snapshot
    blocks: Survey
    usage: Usage

    @classmethod
    def of(cls, manager: MmapManager) -> Moment:
        """Look once."""
        # The snapshot is held, so what it has loaded stays charged.
        snapshot = manager._snapshot
        allocator = manager._allocator
        if allocator is not None:
            return cls(snapshot, *allocator.look())
        blocks = survey_of_plans(manager.config.pool_configs)  # type: ignore[arg-type]
        return cls(snapshot, blocks, manager._budget.usage())


def collect_stats(manager: MmapManager, moment: Moment | None = None) -> MemoryStats:
    """Gather the numbers of one moment."""
    snapshot, blocks, usage = moment or Moment.of(manager)
    config, sampler = manager.config, manager._sampler
    loaded = snapshot.loaded
    utilization = usage.total / config.limit_bytes
    used = sum(region.size for region in loaded) + blocks.n_requested
    return MemoryStats(
        total_allocated_bytes=usage.total,
        total_used_bytes=min(used, usage.total),  # blocks may have gone between the two looks
        total_limit_bytes=config.limit_bytes,
        utilization=utilization,
        peak_usage_bytes=usage.peak,
        waiting_bytes=sum(usage.waiting.values()) + blocks.n_waiting,
        retained_bytes=blocks.n_retained,
        per_class=usage.per_class,
        per_pool=blocks.per_pool,
        fragmentation_ratio=blocks.fragmentation_ratio,
        largest_free_run_bytes=blocks.largest_free_run,
        total_allocations=blocks.n_allocations,
        total_deallocations=blocks.n_deallocations,
        allocation_failures=manager._allocator.n_failures if manager._allocator else 0,
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


def dump_state(manager: MmapManager) -> dict[str, Any]:
    """Write down everything, in types that `json.dumps` takes."""
    moment = Moment.of(manager)
    stats = collect_stats(manager, moment)
    config, snapshot = manager.config, moment.snapshot
    loaded = set(snapshot.region_ids())
    settings = dataclasses.asdict(config) | {"base_path": str(config.base_path)}
    return {
        "config": settings,
        "budget": {
            "limit_bytes": stats.total_limit_bytes,
            "allocated_bytes": stats.total_allocated_bytes,
            "used_bytes": stats.total_used_bytes,
            "peak_bytes": stats.peak_usage_bytes,
            "waiting_bytes": stats.waiting_bytes,
            "retained_bytes": stats.retained_bytes,
            "utilization": stats.utilization,
            "per_class": {
                name: dataclasses.asdict(usage) for name, usage in stats.per_class.items()
            },
        },
        "pools": [dataclasses.asdict(pool) for pool in stats.per_pool.values()],
        "regions": [_region(region, snapshot) for region in snapshot.loaded],
        "layers": [layer for region in snapshot.loaded for layer in _layers(region)],
        "counters": {
            "dimensions_loaded": stats.dimensions_loaded,
            "layers_loaded": stats.layers_loaded,
            "active_regions": stats.active_regions,
            "avg_access_latency_us": stats.avg_access_latency_us,
            "access_samples": manager._sampler.n_samples,
            "peak_concurrent_readers": stats.peak_concurrent_readers,
            "simulation_mode": stats.simulation_mode,
            "fragmentation_ratio": stats.fragmentation_ratio,
            "largest_free_run_bytes": stats.largest_free_run_bytes,
            "total_allocations": stats.total_allocations,
            "total_deallocations": stats.total_deallocations,
            "allocation_failures": stats.allocation_failures,
        },
        "waiting": [
            {"region_id": region_id, "n_bytes": n_bytes}
            for region_id, n_bytes in sorted(moment.usage.waiting.items())
            if region_id not in loaded  # it was just about to be published again
        ]
        + (manager._allocator.waiting_blocks() if manager._allocator else []),
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
            "frequency": frequency if isfinite(frequency) else None,  # JSON has no NaN
            "parent": str(LayerId.from_packed(parent)) if parent >> s.LAYER_BITS else None,
            "location": location,
            "state": state,
        }
        for number, start, end, depth, frequency, parent in zip(*columns, strict=True)
    ]
