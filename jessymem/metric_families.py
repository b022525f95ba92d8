"""The metrics of a manager: their names, kinds, units and what they mean; and their values.

Names follow the conventions of Prometheus: base units, `_total` for counters, shares from 0 to 1.
Labels have few values: no layer, no keyword and no dimension is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from jessymem._version import __version__
from jessymem.config import HUGE_PAGES, MemoryConfig
from jessymem.histograms import LatencyHistogram
from jessymem.latencies import STEP_PREFIX
from jessymem.pools.survey import blocks_by_size
from jessymem.stats import MemoryStats

#: Upper bounds of the buckets of latencies, in seconds.
BOUNDS: Final = tuple(
    float(f"{digits}e{exponent}") for exponent in range(-7, 2) for digits in (1, 2.5, 5)
)


class Family(NamedTuple):
    """One metric.

    Attributes
    ----------
    name : str
        With the prefix and the unit; of a counter without `_total`.
    kind : {"gauge", "counter", "histogram", "info"}
    unit : str
        "bytes", "seconds", "ratio", or "" for a number of things.
    help : str
    labels : tuple of str
        Names of its labels.
    """

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()


class Sample(NamedTuple):
    """One value of a metric.

    Attributes
    ----------
    labels : tuple of str
        A value of each label.
    value : int, float or LatencyHistogram
    """

    labels: tuple[str, ...]
    value: int | float | LatencyHistogram


def _family(name: str, kind: str, unit: str, text: str, *labels: str) -> Family:
    return Family("_".join(filter(None, ("jessymem", name, unit))), kind, unit, text, labels)


#: Every metric, in the order in which they are shown.
FAMILIES: Final = (
    _family("build", "info", "", "Version of jessymem.", "version"),
    _family("limit", "gauge", "bytes", "What the budget may count."),
    _family("allocated", "gauge", "bytes", "What the budget counts, by class.", "class"),
    _family("used", "gauge", "bytes", "Of what the budget counts, what was asked for."),
    _family("peak", "gauge", "bytes", "The most that the budget has counted at any instant."),
    _family("waiting", "gauge", "bytes", "Retired, and still viewed by somebody."),
    _family(
        "retained", "gauge", "bytes", "Pages of freed blocks that the system has not back yet."
    ),
    _family("inflated_layers", "gauge", "", "Compressed layers that are inflated."),
    _family("inflated", "gauge", "bytes", "Contents of compressed layers that are inflated."),
    _family("utilization", "gauge", "ratio", "Of the limit, what the budget counts."),
    _family("threshold", "gauge", "ratio", "Of the limit, where a threshold is.", "threshold"),
    _family("dimensions", "gauge", "", "Loaded dimensions, in memory or evicted.", "state"),
    _family("layers", "gauge", "", "Loaded layers."),
    _family("simulated", "gauge", "", "1 where bundled content stands in for files, else 0."),
    _family("readers_peak", "gauge", "", "The most threads that were readers at one moment."),
    _family("evictions", "counter", "", "Dimensions that were evicted to make room."),
    _family("reloads", "counter", "", "Evicted dimensions that were mapped again."),
    _family("allocations", "counter", "", "Blocks that were handed out."),
    _family("deallocations", "counter", "", "Blocks that were freed."),
    _family("allocation_failures", "counter", "", "Requests for memory that were refused."),
    _family("fragmentation", "gauge", "ratio", "Of blocks in use, the share nobody asked for."),
    _family("largest_free_run", "gauge", "bytes", "The longest row of free blocks in any pool."),
    _family("pools", "gauge", "", "Pools, by what they were made for.", "kind"),
    _family("pool", "gauge", "bytes", "Blocks of pools, by block size.", "block_size", "state"),
    _family("huge_page", "gauge", "bytes", "Resident in huge pages, by their kind.", "kind"),
    _family("node", "gauge", "bytes", "Resident on a node of the machine.", "node"),
    _family(
        "latency",
        "histogram",
        "seconds",
        "How long operations took; of single reads and allocations one in 1,024 is counted.",
        "operation",
    ),
    _family("crystallization_step", "histogram", "seconds", "Steps of crystallizations.", "step"),
)


def samples(stats: MemoryStats, config: MemoryConfig) -> dict[str, list[Sample]]:
    """Return the values of every metric, by its name."""
    in_memory = stats.active_regions
    measured = stats.latencies.items()
    steps = {kind: found for kind, found in measured if kind.startswith(STEP_PREFIX)}
    measured = stats.latencies.items()
    steps = {kind: found for kind, found in measured if kind.startswith(STEP_PREFIX)}
    values: list[Iterable[tuple[tuple[str, ...], int | float | LatencyHistogram]]] = [
        [((__version__,), 1)],
        _one(stats.total_limit_bytes),
        [((name,), usage.allocated_bytes) for name, usage in stats.per_class.items()],
        _one(stats.total_used_bytes),
        _one(stats.peak_usage_bytes),
        _one(stats.waiting_bytes),
        _one(stats.retained_bytes),
        _one(stats.inflated_layers),
        _one(stats.inflated_bytes),
        _one(stats.utilization),
        [((name,), share) for name, share in config.thresholds.items()],
        [(("memory",), in_memory), (("evicted",), stats.dimensions_loaded - in_memory)],
        _one(stats.layers_loaded),
        _one(int(stats.simulation_mode)),
        _one(stats.peak_concurrent_readers),
        _one(stats.evictions),
        _one(stats.reloads),
        _one(stats.total_allocations),
        _one(stats.total_deallocations),
        _one(stats.allocation_failures),
        _one(stats.fragmentation_ratio),
        _one(stats.largest_free_run_bytes),
        _pools(stats),
        _pool_bytes(stats),
        _huge_pages(stats),
        _nodes(stats),
        [((kind,), found) for kind, found in measured if kind not in steps],
        [((kind.removeprefix(STEP_PREFIX),), found) for kind, found in steps.items()],
    ]
    named = zip(FAMILIES, values, strict=True)
    return {family.name: [Sample(*each) for each in found] for family, found in named}


def _one(value: int | float) -> list[tuple[tuple[str, ...], int | float | LatencyHistogram]]:
    return [((), value)]


def _pools(stats: MemoryStats) -> list[tuple[tuple[str, ...], int]]:
    kinds = [pool.kind for pool in stats.per_pool.values()]
    return [((kind,), kinds.count(kind)) for kind in ("fixed", "grown")]


def _pool_bytes(stats: MemoryStats) -> list[tuple[tuple[str, ...], int]]:
    return [
        ((str(size), state), n_blocks * size)
        for size, (used, total) in sorted(blocks_by_size(stats.per_pool.values()).items())
        for state, n_blocks in (("used", used), ("free", total - used))
    ]


def _huge_pages(stats: MemoryStats) -> list[tuple[tuple[str, ...], int]]:
    found = {} if stats.placement is None else stats.placement.huge_bytes
    return [((kind,), found.get(kind, 0)) for kind in HUGE_PAGES[1:]]


def _nodes(stats: MemoryStats) -> list[tuple[tuple[str, ...], int]]:
    found = {} if stats.placement is None else stats.placement.node_bytes
    return [((str(node),), n_bytes) for node, n_bytes in found.items()]


def buckets(found: LatencyHistogram) -> list[tuple[str, int]]:
    """Return how many samples took no longer than each bound; the last bound is infinite."""
    return [(repr(bound), found.below(bound)) for bound in BOUNDS] + [("+Inf", found.n_samples)]
