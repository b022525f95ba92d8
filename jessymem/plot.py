"""Plots of a manager's numbers with matplotlib; needs the extra ``plot``.

Every function takes the axes to draw in, and returns them; without any it makes a figure of its
own, as `matplotlib.pyplot.subplots` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jessymem.errors import shown
from jessymem.ingest import extras
from jessymem.manager import MmapManager
from jessymem.stats import MemoryStats
from jessymem.units import show_bytes

if TYPE_CHECKING:
    import matplotlib.axes

__all__ = ["memory_classes", "pool_occupancy"]

_MIB: Final = 2**20

# Colours that people who see few of them can tell apart, and dark enough on white.
_USED: Final = "#0072b2"
_FREE: Final = "#d5dae1"
_LIMIT: Final = "#d55e00"


def pool_occupancy(
    source: MmapManager | MemoryStats, ax: matplotlib.axes.Axes | None = None
) -> matplotlib.axes.Axes:
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
    source: MmapManager | MemoryStats, ax: matplotlib.axes.Axes | None = None
) -> matplotlib.axes.Axes:
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


def _stats_of(source: object) -> MemoryStats:
    if isinstance(source, MemoryStats):
        return source
    if isinstance(source, MmapManager):
        return source.get_stats()
    raise TypeError(f"a plot is of an MmapManager or its MemoryStats, not of {shown(source)}")


def _axes(ax: matplotlib.axes.Axes | None, what: str) -> matplotlib.axes.Axes:
    """Return the axes to draw in."""
    if ax is not None:
        return ax
    pyplot = extras.load("matplotlib.pyplot", "plot", f"jessymem.plot.{what}")
    made: matplotlib.axes.Axes = pyplot.subplots(layout="constrained")[1]
    return made


def _labelled(
    axes: matplotlib.axes.Axes, rows: list[int], labels: list[str], kind: str, title: str
) -> matplotlib.axes.Axes:
    """Write on a plot of bars what they are, the first one on top."""
    axes.set_yticks(rows, labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.set_xlabel("MiB")
    axes.set_ylabel(kind)
    axes.set_title(title, loc="left")
    # Above the plot, where it hides no bar.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0)
    return axes
