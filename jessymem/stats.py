"""`MemoryStats`: what a manager measured of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jessymem
from jessymem.histograms import LatencyHistogram
from jessymem.ids import DimensionId
from jessymem.pools.survey import PoolStats
from jessymem.units import show_bytes


@dataclass(frozen=True)
class ClassUsage:
    """One class of the budget.

    Attributes
    ----------
    allocated_bytes : int
        What is counted in it.
    limit_bytes : int
        What it is meant to hold.

    Examples
    --------
    >>> manager.get_stats().per_class["user"]
    ClassUsage(allocated_bytes=0, limit_bytes=33554432)
    """

    allocated_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class PlacementStats:
    """In which pages memory is, and on which nodes: what was asked for, and what the system gave.

    Of the pools, and of the files that were copied; measured when it is asked for.

    Attributes
    ----------
    huge_pages, numa : str
        As configured.
    huge_bytes : mapping of str to int
        By kind of huge pages ("thp", "2MB", "1GB"), the bytes that are resident in such.
    policy : str
        What is done of `numa`: "none" where there is one node.
    n_nodes : int
        Nodes with memory that this process may use; 0: nobody asked, or nothing tells.
    node_bytes : mapping of int to int
        By node, the bytes that are resident there; none where nobody asked.
    note : str
        Why `policy` is not `numa`, or not in full; empty: it is.

    Examples
    --------
    >>> with MmapManager(MemoryConfig(64, base_path="data", huge_pages="thp")) as other:
    ...     placement = other.get_stats().placement
    >>> placement.huge_pages, placement.huge_bytes, placement.numa
    ('thp', {}, 'none')
    """

    huge_pages: str
    huge_bytes: Mapping[str, int]
    numa: str
    policy: str
    n_nodes: int
    node_bytes: Mapping[int, int]
    note: str

    def __str__(self) -> str:
        """Write it as a line."""
        parts = [f"huge pages {self.huge_pages}"]
        parts += [f"{show_bytes(found)} in {kind}" for kind, found in self.huge_bytes.items()]
        if self.numa != "none":
            parts.append(f"numa {self.numa}{f' ({self.note})' if self.note else ''}")
            found = self.node_bytes.items()
            parts += [f"{show_bytes(n_bytes)} on node {node}" for node, n_bytes in found]
        return ", ".join(parts)


@dataclass(frozen=True, repr=False)
class MemoryStats:
    """A manager's numbers at one moment; every one is counted or measured.

    Attributes
    ----------
    total_allocated_bytes : int
        What the budget counts: loaded regions in whole pages, blocks handed out, and what is
        waiting.
    total_used_bytes : int
        Of that, what was asked for: the loaded regions' own lengths, and the sizes of allocations.
    total_limit_bytes : int
    utilization : float
        Allocated / limit, 0 to 1.
    peak_usage_bytes : int
        The highest `total_allocated_bytes` so far, at any instant.
    waiting_bytes : int
        Retired (unloaded, replaced or freed), but still viewed by someone.
    retained_bytes : int
        Pages of freed blocks that the system has not got back yet; not in `total_allocated_bytes`,
        and returned before a request is refused for want of them.
    inflated_layers, inflated_bytes : int
        Compressed layers that are inflated for all readers, and their blocks' bytes as asked for;
        they are in "blocks", and go first.
    per_class : mapping of str to ClassUsage
        Regions by their dimension: "core_slots", "core_headroom", "grown" (D15 to D32767), "user"
        (D32768 and above); and "blocks", whatever is in them. Together they are all that is
        allocated. Only the two of the core dimensions bind; blocks may fill the budget up to the
        critical threshold.
    per_pool : mapping of int to PoolStats
        By pool id, in the order of block sizes.
    fragmentation_ratio : float
        Of the bytes in blocks handed out, the share that nobody asked for: 1 - requested / blocks.
    largest_free_run_bytes : int
        The longest row of free blocks in any pool.
    total_allocations, total_deallocations : int
        Successful ones. A deallocation counts when it is asked for, also where views make the block
        wait.
    allocation_failures : int
        Calls for memory that were refused.
    evictions, reloads : int
        Regions that were evicted to make room, and those that a read has brought back.
    dimensions_loaded, layers_loaded : int
        Simulated, learned and evicted ones count too.
    active_regions : int
        Of the dimensions loaded, those in memory.
    latencies : mapping of str to LatencyHistogram
        How long things took so far: "read" (single reads, as for the average below), "batch"
        (each), "allocation" (single ones from Python, one in 1,024), "load" and "reload" (each
        dimension that is read from its file), "crystallization" (each) and of these
        "crystallization_lock" (waiting for the file's lock), "crystallization_write" (looking what
        is there, and until it is durable) and "crystallization_publish" (switching readers over).
        What failed is not in it.
    avg_access_latency_us : float
        Mean over the latest 4,096 measured single reads (`access_layer`, `load_layer_context`), in
        microseconds. Each thread's first read is measured and then one in 1,024; 0.0: none yet.
    peak_concurrent_readers : int
        The most threads that were readers at one moment. A thread is a reader while it is inside a
        batch or a scan, as the one that asked for it or a worker; and from its first single read,
        or the first `store` that it took for compiled code, for as long as it lives: neither a
        single read nor a kernel of yours says when it begins.
    simulation_mode : bool
        Whether any loaded region is simulated.
    is_at_warning_threshold, should_trigger_eviction, should_reject_allocations : bool
        Whether utilization is above the configured shares.
    placement : PlacementStats or None
        In which pages memory is, and on which nodes; None: neither was asked for.

    Examples
    --------
    >>> offset = manager.allocate(1_024)
    >>> stats = manager.get_stats()
    >>> stats.fragmentation_ratio, stats.is_at_warning_threshold, stats.active_regions
    (0.75, False, 2)
    """

    total_allocated_bytes: int
    total_used_bytes: int
    total_limit_bytes: int
    utilization: float
    peak_usage_bytes: int
    waiting_bytes: int
    retained_bytes: int
    inflated_layers: int
    inflated_bytes: int
    per_class: Mapping[str, ClassUsage]
    per_pool: Mapping[int, PoolStats]
    fragmentation_ratio: float
    largest_free_run_bytes: int
    total_allocations: int
    total_deallocations: int
    allocation_failures: int
    evictions: int
    reloads: int
    dimensions_loaded: int
    layers_loaded: int
    active_regions: int
    latencies: Mapping[str, LatencyHistogram]
    avg_access_latency_us: float
    peak_concurrent_readers: int
    simulation_mode: bool
    is_at_warning_threshold: bool
    should_trigger_eviction: bool
    should_reject_allocations: bool
    placement: PlacementStats | None = None

    def __repr__(self) -> str:
        """Say in one line how full it is; `str` gives all of it as a table."""
        shown = _share(self.total_allocated_bytes, self.total_limit_bytes)
        return (
            f"<MemoryStats {shown} ({self.utilization:.1%}),"
            f" {self.dimensions_loaded:,} dimensions, {self.layers_loaded:,} layers>"
        )

    def _repr_html_(self) -> str:
        """Show it in a notebook's cell."""
        return jessymem.notebooks.show_stats(self)

    def __str__(self) -> str:
        """Write all of it as a table, a line each."""
        alarms = {
            "reject allocations": self.should_reject_allocations,
            "evict": self.should_trigger_eviction,
            "warning": self.is_at_warning_threshold,
        }
        simulated = ", simulated in part" if self.simulation_mode else ""
        lines = {
            "allocated": f"{_share(self.total_allocated_bytes, self.total_limit_bytes)}"
            f" ({self.utilization:.1%}), of that asked for {show_bytes(self.total_used_bytes)}",
            "peak": show_bytes(self.peak_usage_bytes),
            "waiting": show_bytes(self.waiting_bytes),
            "retained": show_bytes(self.retained_bytes),
            "inflated": f"{self.inflated_layers:,} layers, {show_bytes(self.inflated_bytes)}",
            "thresholds": next((name for name, is_on in alarms.items() if is_on), "below all"),
            "dimensions": f"{self.dimensions_loaded:,},"
            f" in memory {self.active_regions:,}{simulated}",
            "layers": f"{self.layers_loaded:,}",
            "evictions": f"{self.evictions:,}, brought back {self.reloads:,}",
            "reads": f"{self.avg_access_latency_us:.2f} us on average,"
            f" at most {self.peak_concurrent_readers:,} readers at once",
            "allocations": f"{self.total_allocations:,}, freed {self.total_deallocations:,},"
            f" refused {self.allocation_failures:,}",
            "blocks": f"{self.fragmentation_ratio:.1%} not asked for,"
            f" longest free run {show_bytes(self.largest_free_run_bytes)}",
        }
        for name, usage in self.per_class.items():
            lines[name.replace("_", " ")] = _share(usage.allocated_bytes, usage.limit_bytes)
        for pool_id, pool in self.per_pool.items():
            lines[f"pool {pool_id}"] = (
                f"{pool.used_blocks:,} of {pool.total_blocks:,} blocks of {pool.block_size:,} bytes"
            )
        if self.placement is not None:
            lines["placement"] = str(self.placement)
        width = max(map(len, lines))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _share(n_bytes: int, limit: int) -> str:
    return f"{show_bytes(n_bytes)} of {show_bytes(limit)}"


@dataclass(frozen=True, repr=False)
class LoadReport:
    """What a load of several dimensions came to.

    Attributes
    ----------
    loaded : tuple of DimensionId
    skipped : tuple of (DimensionId, str)
        With the reason.
    seconds : float

    Examples
    --------
    >>> (folder / "data/D17").mkdir()
    >>> size = (folder / "data/D17/region.mmap").write_bytes(b"no region file")
    >>> with MmapManager(64, base_path="data") as other:
    ...     report = other.load_all()
    >>> report.loaded, report.skipped[0][0]
    ((D15, D16), D17)
    >>> report
    <LoadReport 2 loaded, 1 skipped (D17: ...expected 256 bytes, got 14 bytes), ... ms>
    """

    loaded: tuple[DimensionId, ...]
    skipped: tuple[tuple[DimensionId, str], ...]
    seconds: float

    def __repr__(self) -> str:
        """Say in one line how many there were, and why the first one was skipped."""
        parts = [f"{len(self.loaded):,} loaded", f"{len(self.skipped):,} skipped"]
        if self.skipped:
            dimension, reason = self.skipped[0]
            reason = reason.removeprefix(f"{dimension}: ")
            parts[1] += f" ({dimension}: {reason}{', ...' if len(self.skipped) > 1 else ''})"
        return f"<LoadReport {', '.join(parts)}, {1_000 * self.seconds:.1f} ms>"

    def _repr_html_(self) -> str:
        """Show it in a notebook's cell."""
        return jessymem.notebooks.show_report(self)
