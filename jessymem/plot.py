"""Plots of a manager's numbers with matplotlib; needs the extra ``plot``.

Every function takes the axes to draw in, and returns them; without any it makes a figure of its
own, as `matplotlib.pyplot.subplots` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import jessymem
from jessymem import extras
from jessymem.errors import shown
from jessymem.histograms import bucket_edges
from jessymem.manager import MmapManager
from jessymem.stats import MemoryStats
from jessymem.status.reader import Status
from jessymem.units import show_bytes

__all__ = ["latency", "memory_classes", "memory_over_time", "pool_occupancy"]

_MIB: Final = 2**20

# Colours that people who see few of them can tell apart, and dark enough on white.
_USED: Final = "#0072b2"
_FREE: Final = "#d5dae1"
_LIMIT: Final = "#d55e00"
_CLASSES: Final = ("#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00")


def pool_occupancy(
    source: MmapManager | MemoryStats, ax: jessymem.hints.Axes | None = None
) -> jessymem.hints.Axes:
    """Draw how much of each pool is used, a bar each.

    Parameters
    ----------
    source : MmapManager or MemoryStats
        A manager is looked at now, open or closed.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a figure of its own.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    TypeError
        If `source` is neither.
    """
    stats = _stats_of(source)
    axes = _axes(ax, "pool_occupancy")
    pools = list(stats.per_pool.values())
    used = [pool.used_blocks * pool.block_size / _MIB for pool in pools]
    free = [(pool.total_blocks - pool.used_blocks) * pool.block_size / _MIB for pool in pools]
    rows = list(range(len(pools)))
    axes.barh(rows, used, color=_USED, label="used")
    axes.barh(rows, free, left=used, color=_FREE, label="free")
    for row, pool in zip(rows, pools, strict=True):
        share = f" {100 * pool.utilization:.0f} %"
        axes.annotate(share, (used[row] + free[row], row), va="center")
    labels = [f"{pool.pool_id}: {show_bytes(pool.block_size)}" for pool in pools]
    return _labelled(axes, rows, labels, "pool and its blocks", "Pools")


def memory_classes(
    source: MmapManager | MemoryStats, ax: jessymem.hints.Axes | None = None
) -> jessymem.hints.Axes:
    """Draw what each class of the budget holds, and a line at what it is meant to hold.

    Parameters
    ----------
    source : MmapManager or MemoryStats
        A manager is looked at now, open or closed.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a figure of its own.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    TypeError
        If `source` is neither.
    """
    stats = _stats_of(source)
    axes = _axes(ax, "memory_classes")
    classes = list(stats.per_class.values())
    rows = list(range(len(classes)))
    held = [usage.allocated_bytes / _MIB for usage in classes]
    axes.barh(rows, held, color=_USED, label="in use")
    limits = [usage.limit_bytes / _MIB for usage in classes]
    low, high = [row - 0.4 for row in rows], [row + 0.4 for row in rows]
    axes.vlines(limits, low, high, color=_LIMIT, linewidth=2, label="meant to hold")
    labels = [name.replace("_", " ") for name in stats.per_class]
    return _labelled(axes, rows, labels, "class", "Budget by class")


def latency(
    source: MmapManager | MemoryStats | Status,
    kinds: Sequence[str] | None = None,
    ax: jessymem.hints.Axes | None = None,
) -> jessymem.hints.Axes:
    """Draw how long operations took: for each share of them, within what time they were done.

    Parameters
    ----------
    source : MmapManager, MemoryStats or jessymem.status.Status
    kinds : sequence of str, optional
        Keys of `MemoryStats.latencies`; by default all of which there are samples.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a figure of its own.

    Returns
    -------
    matplotlib.axes.Axes
        Seconds, and the share that took longer, both in powers of ten.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    TypeError, ValueError
        If `source` is something else, or one of `kinds` is not measured.
    """
    found = source.latencies if isinstance(source, Status) else _stats_of(source).latencies
    chosen = [kind for kind, each in found.items() if each.n_samples] if kinds is None else kinds
    unknown = [kind for kind in chosen if kind not in found]
    if unknown:
        raise ValueError(f"{shown(unknown[0])} is not measured: {', '.join(found)} are")
    axes = _axes(ax, "latency")
    for kind in chosen:
        histogram = found[kind]
        if not histogram.n_samples:
            continue
        taken = histogram.counts.nonzero()[0]
        ends = bucket_edges()[taken + 1] / 1e9
        counts = histogram.counts[taken]
        # Before the first sample all take longer; the last one ends where none does.
        longer = 1 - counts.cumsum() / histogram.n_samples
        longer[-1] = 0.5 / histogram.n_samples
        axes.step([ends[0], *ends], [1.0, *longer], where="post", label=kind.replace("_", ", "))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("share that takes longer")
    axes.set_title("Latencies", loc="left")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return axes


def memory_over_time(
    statuses: Iterable[Status], ax: jessymem.hints.Axes | None = None
) -> jessymem.hints.Axes:
    """Draw what the budget of a running process counts, by class, over time.

    Parameters
    ----------
    statuses : iterable of jessymem.status.Status
        As `jessymem.status.watch` yields them, or a list of them.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a figure of its own.

    Returns
    -------
    matplotlib.axes.Axes
        Seconds since the first, and MiB; lines at the thresholds and the limit.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    ValueError
        If there is no status.
    """
    found = list(statuses)
    if not found:
        raise ValueError("there is nothing to draw: no status was given")
    axes = _axes(ax, "memory_over_time")
    times = [each.written_at - found[0].written_at for each in found]
    names = list(found[-1].classes)
    heights = [[each.classes[name].allocated_bytes / _MIB for each in found] for name in names]
    labels = [name.replace("_", " ") for name in names]
    axes.stackplot(times, heights, labels=labels, colors=_CLASSES)
    limit = found[-1].counters["total_limit_bytes"] / _MIB
    for share in found[-1].thresholds.values():
        axes.axhline(share * limit, color=_LIMIT, linewidth=1, linestyle="--")
    axes.axhline(limit, color=_LIMIT, linewidth=2, label="limit")
    axes.set_xlabel("seconds")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.set_title(f"Memory of process {found[-1].pid}", loc="left")
    _put_legend_above(axes, 3)
    return axes


def _stats_of(source: object) -> MemoryStats:
    if isinstance(source, MemoryStats):
        return source
    if isinstance(source, MmapManager):
        return source.get_stats()
    raise TypeError(f"a plot is of an MmapManager or its MemoryStats, not of {shown(source)}")


def _axes(ax: jessymem.hints.Axes | None, what: str) -> jessymem.hints.Axes:
    """Return the axes to draw in."""
    if ax is not None:
        return ax
    pyplot = extras.load("matplotlib.pyplot", "plot", f"jessymem.plot.{what}")
    made: jessymem.hints.Axes = pyplot.subplots(layout="constrained")[1]
    return made


def _labelled(
    axes: jessymem.hints.Axes, rows: list[int], labels: list[str], kind: str, title: str
) -> jessymem.hints.Axes:
    """Write on a plot of bars what they are, the first one on top."""
    axes.set_yticks(rows, labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.set_xlabel("MiB")
    axes.set_ylabel(kind)
    axes.set_title(title, loc="left")
    _put_legend_above(axes, 2)
    return axes


def _put_legend_above(axes: jessymem.hints.Axes, n_columns: int) -> None:
    """Say what the colours are, where that hides nothing."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=n_columns,
        frameon=False,
        borderaxespad=0,
    )
