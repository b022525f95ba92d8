"""All that is shown of a manager, compared: statistics, dump, metrics and status."""

from __future__ import annotations

import dataclasses

import numpy as np

from jessymem.metric_families import samples
from jessymem.status import layout, writer


def check_shown(manager):
    """Check, at rest, that all numbers add up, and that all ways to see them say the same."""
    stats, state = manager.get_stats(), manager.dump_state()
    _check_sums(stats, state)
    _check_dump(stats, state)
    _check_metrics(stats, samples(stats, manager.config))
    record = np.zeros((), layout.STATUS)
    writer.fill(record, manager._engine)
    _check_status(stats, record)
    return stats


def _check_sums(stats, state):
    classes = {name: usage.allocated_bytes for name, usage in stats.per_class.items()}
    assert sum(classes.values()) == stats.total_allocated_bytes
    blocks = sum(pool.used_blocks * pool.block_size for pool in stats.per_pool.values())
    assert classes["blocks"] == blocks
    held = [block for pool in state["pools"] for block in pool["blocks"]]
    waiting = [each for each in state["waiting"] if "pool" in each]
    assert sum(each["n_bytes"] for each in held + waiting) == blocks
    assert len(held) == stats.total_allocations - stats.total_deallocations
    regions = sum(each["n_charged"] for each in state["regions"])
    waiting_regions = sum(each["n_bytes"] for each in state["waiting"] if "pool" not in each)
    assert regions + waiting_regions + blocks == stats.total_allocated_bytes
    assert sum(each["n_bytes"] for each in state["waiting"]) == stats.waiting_bytes
    in_memory = [each for each in state["regions"] if each["state"] != "evicted"]
    requested = sum(each["n_requested"] for each in held)
    assert requested + sum(each["n_bytes"] for each in in_memory) == stats.total_used_bytes
    assert stats.total_used_bytes <= stats.total_allocated_bytes <= stats.peak_usage_bytes
    assert stats.reloads <= stats.evictions
    assert stats.utilization == stats.total_allocated_bytes / stats.total_limit_bytes
    live = sum(each["n_bytes"] for each in held)
    assert stats.fragmentation_ratio == (1 - requested / live if live else 0.0)


def _check_dump(stats, state):
    budget, counters = state["budget"], state["counters"]
    for name in ("allocated", "used", "limit"):
        assert budget[f"{name}_bytes"] == getattr(stats, f"total_{name}_bytes")
    assert budget["peak_bytes"] == stats.peak_usage_bytes
    assert budget["waiting_bytes"] == stats.waiting_bytes
    assert budget["retained_bytes"] == stats.retained_bytes
    assert budget["inflated_bytes"] == stats.inflated_bytes
    for name in counters.keys() & {field.name for field in dataclasses.fields(stats)}:
        assert counters[name] == getattr(stats, name), name
    assert len(state["regions"]) == stats.dimensions_loaded
    assert len(state["layers"]) == stats.layers_loaded
    evicted = [each for each in state["regions"] if each["state"] == "evicted"]
    assert stats.active_regions == stats.dimensions_loaded - len(evicted)
    where = {(p["pool_id"], b["offset"]): b for p in state["pools"] for b in p["blocks"]}
    for layer in state["layers"]:
        if layer["pool"] is not None and layer["size"]:
            starts = [at for pool, at in where if pool == layer["pool"] and at <= layer["offset"]]
            block = where[layer["pool"], max(starts)]
            assert layer["offset"] + layer["size"] <= block["offset"] + block["n_bytes"]
    for kind, found in stats.latencies.items():
        assert counters["latency_seconds"][kind]["n_samples"] == found.n_samples


def _check_metrics(stats, found):
    def value(name, *labels):
        (wanted,) = [each.value for each in found[f"jessymem_{name}"] if each.labels == labels]
        return wanted

    for name, attribute in (
        ("limit_bytes", "total_limit_bytes"),
        ("used_bytes", "total_used_bytes"),
        ("peak_bytes", "peak_usage_bytes"),
        ("waiting_bytes", "waiting_bytes"),
        ("retained_bytes", "retained_bytes"),
        ("inflated_bytes", "inflated_bytes"),
        ("inflated_layers", "inflated_layers"),
        ("utilization_ratio", "utilization"),
        ("layers", "layers_loaded"),
        ("readers_peak", "peak_concurrent_readers"),
        ("evictions", "evictions"),
        ("reloads", "reloads"),
        ("allocations", "total_allocations"),
        ("deallocations", "total_deallocations"),
        ("allocation_failures", "allocation_failures"),
        ("fragmentation_ratio", "fragmentation_ratio"),
        ("largest_free_run_bytes", "largest_free_run_bytes"),
    ):
        assert value(name) == getattr(stats, attribute), name
    allocated = sum(each.value for each in found["jessymem_allocated_bytes"])
    assert allocated == stats.total_allocated_bytes
    assert value("dimensions", "memory") == stats.active_regions
    both = value("dimensions", "memory") + value("dimensions", "evicted")
    assert both == stats.dimensions_loaded
    used = [each.value for each in found["jessymem_pool_bytes"] if each.labels[1] == "used"]
    assert sum(used) == stats.per_class["blocks"].allocated_bytes
    measured = {each.labels[0]: each.value for each in found["jessymem_latency_seconds"]}
    for each in found["jessymem_crystallization_step_seconds"]:
        measured[f"crystallization_{each.labels[0]}"] = each.value
    assert measured == stats.latencies


def _check_status(stats, record):
    counters = dict(zip(layout.COUNTERS.names, record["counters"].item(), strict=True))
    assert counters == {name: getattr(stats, name) for name in counters}
    for row, (name, usage) in zip(record["classes"], stats.per_class.items(), strict=True):
        assert row.item() == (name.encode(), usage.allocated_bytes, usage.limit_bytes)
    assert record["n_pools"] == len(stats.per_pool)
    for row, pool in zip(record["pools"], stats.per_pool.values(), strict=False):
        assert (row["pool_id"], row["used_blocks"]) == (pool.pool_id, pool.used_blocks)
    assert record["n_dimensions"] == stats.dimensions_loaded
    listed = record["dimensions"][: record["n_listed"]]
    regions = sum(
        usage.allocated_bytes for name, usage in stats.per_class.items() if name != "blocks"
    )
    assert int(listed["n_charged"].sum()) <= regions
    for row, (kind, found) in zip(record["latencies"], stats.latencies.items(), strict=True):
        assert (row["kind"], row["total_ns"]) == (kind.encode(), found.total_ns)
        assert int(row["counts"].sum()) == found.n_samples
