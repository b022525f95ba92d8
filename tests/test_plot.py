"""`jessymem.plot`: plots of a manager's numbers."""

from __future__ import annotations

import sys

import pytest
from support.processes import PATIENCE_SECONDS

from jessymem import ConfigError, MemoryConfig, MmapManager, RegionBuilder, plot, status
from jessymem.config import MIB


@pytest.fixture
def busy(tmp_path):
    """A manager with a region and blocks of two pools."""
    builder = RegionBuilder(20, "some")
    builder.add_layer(0, b"x" * MIB)
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    with MmapManager(MemoryConfig(64, tmp_path, pool_configs=[(1, 4096), (4, 65_536)])) as manager:
        manager.load_dimension(20)
        offsets = manager.allocate_many([4_000] * 10 + [60_000] * 16)
        yield manager
        manager.deallocate_many(offsets)


@pytest.fixture
def axes():
    """Axes of a figure that no window shows."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    return figure.subplots()


def widths(bars):
    return [bar.get_width() for bar in bars]


def test_pools_are_drawn_as_they_are(busy, axes):
    assert plot.pool_occupancy(busy, ax=axes) is axes
    used, free = axes.containers
    assert widths(used) == pytest.approx([10 * 4_096 / MIB, 1])
    assert widths(free) == pytest.approx([1 - 10 * 4_096 / MIB, 3])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0: 4.0 KB", "1: 64.0 KB"]
    assert axes.get_xlabel() == "MiB"


def test_classes_are_drawn_with_what_they_are_meant_to_hold(busy, axes):
    stats = busy.get_stats()
    assert plot.memory_classes(stats, ax=axes) is axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    drawn = dict(zip(labels, widths(axes.containers[0]), strict=True))
    for name, usage in stats.per_class.items():
        assert drawn[name.replace("_", " ")] == pytest.approx(usage.allocated_bytes / MIB)
    assert sum(drawn.values()) == pytest.approx(stats.total_allocated_bytes / MIB)
    (limits,) = axes.collections
    at = [segment[0][0] for segment in limits.get_segments()]
    assert at == pytest.approx([usage.limit_bytes / MIB for usage in stats.per_class.values()])


def test_without_axes_a_figure_is_made(busy, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    for draw in (plot.pool_occupancy, plot.memory_classes):
        made = draw(busy)
        assert made.figure.number in pyplot.get_fignums()
        pyplot.close(made.figure)


def test_a_manager_without_pools_is_drawn_too(tmp_path, axes):
    with MmapManager(MemoryConfig(64, tmp_path, pool_configs=[])) as manager:
        plot.pool_occupancy(manager, ax=axes)
    plot.memory_classes(manager, ax=axes)  # closed


def test_without_matplotlib_it_is_said_what_to_install(busy, monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    for draw in (plot.pool_occupancy, plot.memory_classes):
        with pytest.raises(ConfigError, match=r"pip install 'jessymem\[plot\]'") as caught:
            draw(busy)
        assert caught.value.field == "plot"


@pytest.mark.parametrize("source", [None, 5, "manager"])
def test_what_is_no_manager_is_refused(source):
    with pytest.raises(TypeError, match="MmapManager or its MemoryStats"):
        plot.pool_occupancy(source)


def test_latencies_are_drawn_as_they_were(busy, axes):
    stats = busy.get_stats()
    assert plot.latency(busy, ax=axes) is axes
    (line,) = axes.lines
    assert line.get_label() == "load"
    times, shares = line.get_data()
    assert times[-1] == pytest.approx(stats.latencies["load"].max_seconds, rel=0.02)
    assert (shares[0], shares[-1]) == (1.0, 0.5)
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_latencies_that_nobody_measures_are_named(busy, axes):
    with pytest.raises(ValueError, match="'writes' is not measured: read, batch"):
        plot.latency(busy, ["writes"], ax=axes)
    assert not plot.latency(busy, ["reload"], ax=axes).lines  # there are none yet


def test_memory_is_drawn_over_time(busy, axes, tmp_path):
    config = MemoryConfig(64, tmp_path, status=tmp_path / "here.status")
    with MmapManager(config) as manager:
        seen = [status.read(config.status)]
        manager.load_dimension(20)
        watched = status.watch(config.status, PATIENCE_SECONDS, 0.05)
        seen.append(next(each for each in watched if each.n_dimensions))
    assert plot.memory_over_time(seen, ax=axes) is axes
    heights = [collection.get_paths()[0].get_extents().y1 for collection in axes.collections]
    assert max(heights) == pytest.approx(seen[-1].counters["total_allocated_bytes"] / MIB)
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([48, 54.4, 60.8, 64])
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.memory_over_time([], ax=axes)
