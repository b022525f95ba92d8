"""What the manager shows of itself: `MemoryStats`, and for `dump_state` everything."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from jessymem import osmem
from jessymem.budget import Usage
from jessymem.engine.snapshot import Snapshot
from jessymem.histograms import LatencyHistogram
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import schema as s
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.survey import ListedBlock, Survey, survey_of_plans
from jessymem.regions.metadata import LayerState
from jessymem.regions.table import LoadedDimension
from jessymem.stats import ClassUsage, MemoryStats, PlacementStats

if TYPE_CHECKING:
    from jessymem.engine.engine import Engine


class Moment(NamedTuple):
    """What all numbers are made from."""

    snapshot: Snapshot
    blocks: Survey
    usage: Usage

    @classmethod
    def of(cls, engine: Engine) -> Moment:
        """Look once."""
        # The snapshot is held, so what it has loaded stays charged.
        snapshot = engine.snapshot
        allocator = engine.present_allocator
        if allocator is not None:
            return cls(snapshot, *allocator.look())
        plans: Any = engine.config.pool_configs
        blocks = survey_of_plans(plans, engine.loader.placement)
        return cls(snapshot, blocks, engine.budget.usage())


def collect_stats(engine: Engine, moment: Moment | None = None) -> MemoryStats:
    """Gather the numbers of one moment."""
    snapshot, blocks, usage = moment or Moment.of(engine)
    config, sampler = engine.config, engine.sampler
    loaded = snapshot.totals
    utilization = usage.total / usage.limit
    used = loaded.n_bytes + blocks.n_requested
    return MemoryStats(
        total_allocated_bytes=usage.total,
        total_used_bytes=min(used, usage.total),  # blocks may have gone between the two looks
        total_limit_bytes=usage.limit,
        utilization=utilization,
        peak_usage_bytes=usage.peak,
        waiting_bytes=sum(usage.waiting.values()) + blocks.n_waiting,
        retained_bytes=blocks.n_retained,
        inflated_layers=len(engine.inflated),
        inflated_bytes=engine.inflated.n_bytes,
        per_class=usage.per_class | {"blocks": _of_blocks(engine, usage)},
        per_pool=blocks.per_pool,
        fragmentation_ratio=blocks.fragmentation_ratio,
        largest_free_run_bytes=blocks.largest_free_run,
        total_allocations=blocks.n_allocations,
        total_deallocations=blocks.n_deallocations,
        allocation_failures=engine.present_allocator.n_failures if engine.present_allocator else 0,
        evictions=engine.n_evictions,
        reloads=engine.n_reloads,
        dimensions_loaded=loaded.n_loaded,
        layers_loaded=loaded.n_layers,
        active_regions=loaded.n_resident,
        latencies=engine.latencies.histograms(),
        avg_access_latency_us=sampler.average_latency_us,
        peak_concurrent_readers=sampler.peak_readers,
        simulation_mode=loaded.n_simulated > 0,
        is_at_warning_threshold=utilization > config.warning_threshold,
        should_trigger_eviction=utilization > config.eviction_threshold,
        should_reject_allocations=utilization > config.critical_threshold,
        placement=_placement(engine, snapshot),
    )


def _placement(engine: Engine, snapshot: Snapshot) -> PlacementStats | None:
    """Measure where memory is, if anything was asked for."""
    asked = engine.loader.placement
    if asked is None:
        return None
    from jessymem import resident

    allocator = engine.present_allocator
    extents = [] if allocator is None else allocator.extents()
    for table in snapshot.resident:
        for member in table.members:
            if member.state == s.REGION_COPIED:
                extents.append((member.data.ctypes.data, osmem.n_taken(member.data)))
    topology = asked.topology
    return PlacementStats(
        huge_pages=asked.huge_pages,
        huge_bytes=resident.huge_bytes(extents) if asked.huge_pages != "never" else {},
        numa=asked.numa,
        policy=asked.policy,
        n_nodes=0 if topology is None else len(topology.nodes),
        node_bytes={} if topology is None else resident.node_bytes(extents),
        note=asked.note,
    )


def _of_blocks(engine: Engine, usage: Usage) -> ClassUsage:
    """Return what the budget counts beside regions."""
    return ClassUsage(usage.total - usage.n_region_bytes, engine.pressure.critical.above_bytes)


def dump_state(engine: Engine) -> dict[str, Any]:
    """Write down everything, in types that `json.dumps` takes."""
    moment = Moment.of(engine)
    stats = collect_stats(engine, moment)
    config, snapshot = engine.config, moment.snapshot
    in_memory = {each for region in snapshot.resident for each in region.charge_ids}
    blocks = engine.present_allocator.blocks() if engine.present_allocator else []
    in_use: dict[int, list[ListedBlock]] = defaultdict(list)
    for block in blocks:
        if not block.is_waiting:
            in_use[block.pool].append(block)
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
            "inflated_layers": stats.inflated_layers,
            "inflated_bytes": stats.inflated_bytes,
            "utilization": stats.utilization,
            "per_class": {
                name: dataclasses.asdict(usage) for name, usage in stats.per_class.items()
            },
        },
        "pools": [
            dataclasses.asdict(pool) | {"blocks": list(map(_block, in_use[pool.pool_id]))}
            for pool in stats.per_pool.values()
        ],
        "placement": stats.placement and dataclasses.asdict(stats.placement),
        "regions": [_region(region, snapshot, engine.pinned) for region in snapshot.loaded],
        "layers": [layer for region in snapshot.loaded for layer in _layers(region)],
        "counters": {
            "dimensions_loaded": stats.dimensions_loaded,
            "layers_loaded": stats.layers_loaded,
            "active_regions": stats.active_regions,
            "avg_access_latency_us": stats.avg_access_latency_us,
            "access_samples": engine.sampler.n_samples,
            "latency_seconds": _latency_records(stats),
            "peak_concurrent_readers": stats.peak_concurrent_readers,
            "simulation_mode": stats.simulation_mode,
            "fragmentation_ratio": stats.fragmentation_ratio,
            "largest_free_run_bytes": stats.largest_free_run_bytes,
            "total_allocations": stats.total_allocations,
            "total_deallocations": stats.total_deallocations,
            "allocation_failures": stats.allocation_failures,
            "evictions": stats.evictions,
            "reloads": stats.reloads,
        },
        "waiting": [
            {"region_id": charge_id, "n_bytes": n_bytes}
            for charge_id, n_bytes in sorted(moment.usage.waiting.items())
            if charge_id not in in_memory  # it was just about to be published again
        ]
        + [{"pool": block.pool, **_block(block)} for block in blocks if block.is_waiting],
    }


def _latency_records(stats: MemoryStats) -> dict[str, dict[str, float]]:
    return {kind: latency_record(found) for kind, found in stats.latencies.items()}


def latency_record(found: LatencyHistogram) -> dict[str, float]:
    """Describe a histogram: how many samples, and times in seconds."""
    percentiles = dict(zip(("p50", "p90", "p99"), found.percentiles((50, 90, 99)), strict=True))
    return {
        "n_samples": found.n_samples,
        "mean": found.mean_seconds,
        **percentiles,
        "max": found.max_seconds,
    }


def _block(block: ListedBlock) -> dict[str, int]:
    return {
        "offset": block.offset,
        "generation": block.generation,
        "n_requested": block.n_requested,
        "n_bytes": block.n_bytes,
        "n_views": block.n_views,
    }


def _region(
    region: LoadedDimension, snapshot: Snapshot, pinned: set[DimensionId]
) -> dict[str, Any]:
    slot, base = snapshot.region_at(region.dimension_id), region.base
    return {
        "region_id": int(slot["region_id"]),
        "dimension": str(region.dimension_id),
        "name": region.name,
        "path": None if region.path is None else str(region.path),
        "state": s.REGION_STATES[region.state],
        "n_bytes": region.edition.n_bytes if base is None else base.n_file_bytes,
        "n_charged": int(slot["n_charged"]),
        "capacity": int(slot["capacity"]) or None,
        "generation": region.edition.generation,
        "created_at": None if base is None else base.created_at,
        "extended": None if base is None else base.generation > 0,
        "n_layers": region.n_layers,
        "n_learned": len(region.learned),
        "pinned": region.dimension_id in pinned,
    }


def _layers(loaded: LoadedDimension) -> list[dict[str, Any]]:
    """List a region's layers without their keywords: cheap also where there are 65,536.

    Where a layer begins is told from the start of its pool, or, where that is None, of its file,
    which its generation names.
    """
    region = loaded.resident
    if region is None:  # its names are all that is known
        unknown = dict.fromkeys(
            ("pool", "generation", "offset", "size", "depth", "frequency", "parent")
        )
        where = {"location": None, "state": LayerState.PERMANENT.value}
        return [{"layer": str(layer), **unknown, **where} for layer in loaded.list_layers()]
    rows, base = region.rows, region.base
    # A region's own layers have one location and one state.
    is_plain = base is region and len(region.members) == 1 and len(rows) > 0
    is_stored_plain = is_plain and region.members[0].frames is None
    location = region.location_of(0) if is_plain else None
    state = region.state_of(0) if is_plain else None
    fields = ("layer_num", "content_offset", "content_end", "depth", "frequency", "parent")
    columns = [rows[field].tolist() for field in fields]
    pools = {
        number: MmapOffset.from_packed(layer.block.handle).pool_id
        for number, layer in loaded.learned.items()
        if layer.block is not None
    }

    def generation_of(number: int) -> int | None:
        edition = None if number in pools else region.edition_of(number)
        return None if edition is None else edition.generation

    file = generation_of(int(rows["layer_num"][0])) if is_plain else None

    return [
        {
            "layer": str(LayerId(region.dimension_id, number)),
            "pool": pools.get(number),
            "generation": file if is_plain else generation_of(number),
            "offset": start if is_stored_plain else region.extent_of(row)[0],
            "size": end - start,
            "depth": depth,
            "frequency": frequency if isfinite(frequency) else None,  # JSON has no NaN
            "parent": str(LayerId.from_packed(parent)) if parent >> s.LAYER_BITS else None,
            "location": (location or region.location_of(row)).value,
            "state": (state or region.state_of(row)).value,
        }
        for row, (number, start, end, depth, frequency, parent) in enumerate(
            zip(*columns, strict=True)
        )
    ]
