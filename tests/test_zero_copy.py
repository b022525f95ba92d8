"""No copy is made: addresses, allocations, and the mapping's end."""

from __future__ import annotations

import gc
import re
import sys
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from support.internals import snapshot_of
from support.regions import region_file
from support.system import mappings_of

from jessymem import LayerId, MmapManager, RegionBuilder

LARGE = 8 * 2**20


@pytest.fixture
def large(tmp_path) -> Path:
    builder = RegionBuilder("D30", "Sizes")
    builder.add_layer(0, b"small")
    builder.add_layer(1, bytes(LARGE))
    builder.build_to_file(region_file(tmp_path, "D30"))
    return tmp_path


def address_of(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_a_view_lies_inside_the_mapping_of_the_file(large):
    manager = MmapManager(base_path=large)
    manager.load_dimension("D30")
    (line,) = mappings_of(region_file(large, "D30"))
    low, high = (int(part, 16) for part in line.split()[0].split("-"))
    assert line.split()[1].startswith("r--"), "mapped read-only"
    for number in (0, 1):
        view = manager.access_layer(LayerId(30, number))
        assert low <= address_of(view) and address_of(view) + len(view) <= high
        info = manager.get_layer_info(LayerId(30, number))
        assert address_of(view) - low == info.offset
        assert address_of(view) % 64 == 0
        context = manager.load_layer_context(LayerId(30, number))
        assert address_of(context.content) == address_of(view)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")
def test_opening_makes_nothing_resident(tmp_path):
    builder = RegionBuilder("D31", "Many")
    for number in range(20_000):
        builder.add_layer(number, bytes(256))
    path = region_file(tmp_path, "D31")
    builder.build_to_file(path)
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D31")
        (entry,) = re.findall(rf"{path}\n(.*?)VmFlags", Path("/proc/self/smaps").read_text(), re.S)
        resident = int(re.search(r"Rss:\s+(\d+) kB", entry)[1])
        assert resident == 0, "checked, and dropped"
        manager.access_layer("L31-00")[0]
        (entry,) = re.findall(rf"{path}\n(.*?)VmFlags", Path("/proc/self/smaps").read_text(), re.S)
        assert int(re.search(r"Rss:\s+(\d+) kB", entry)[1]) > 0


def test_nothing_that_grows_with_the_layer_is_allocated(large):
    manager = MmapManager(base_path=large)
    manager.load_dimension("D30")
    reads = (
        manager.access_layer,
        manager.load_layer_context,
        lambda layer: manager.load_contexts([layer]),
        manager.get_layer_info,
    )
    for read in reads:
        for number in (0, 1):
            read(LayerId(30, number))  # what is made once has been made
        tracemalloc.start()
        held = read(LayerId(30, 1))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16_384, read
        del held


def test_nothing_is_made_per_layer_at_load(tmp_path):
    n_blocks, n_bytes = [], []
    for dimension, n_layers in ((30, 64), (31, 32_768)):
        builder = RegionBuilder(dimension, "Many")
        for number in range(n_layers):
            builder.add_layer(number, b"x")
        builder.build_to_file(region_file(tmp_path, f"D{dimension}"))
        del builder
        MmapManager(base_path=tmp_path).load_dimension(dimension)  # what is made once has been made
        manager = MmapManager(base_path=tmp_path)
        gc.collect()
        tracemalloc.start()
        try:
            manager.load_dimension(dimension)
            gc.collect()
            traces = tracemalloc.take_snapshot().traces
        finally:
            tracemalloc.stop()
        n_blocks.append(len(traces))
        n_bytes.append(sum(trace.size for trace in traces))
    assert n_blocks[0] > 0
    assert abs(n_blocks[1] - n_blocks[0]) < 50
    assert abs(n_bytes[1] - n_bytes[0]) < 16_384


def test_the_mapping_is_gone_after_the_last_view(large):
    manager = MmapManager(base_path=large)
    manager.load_dimension("D30")
    owner = weakref.ref(snapshot_of(manager).table_at(30).data)
    view = manager.access_layer("L30-01")
    part = np.frombuffer(view, np.uint8)[100:200]
    manager.unload_dimension("D30")
    del view
    assert owner() is not None and part.sum() == 0
    assert manager.get_stats().waiting_bytes > LARGE
    del part
    assert owner() is None
    assert manager.get_stats().total_allocated_bytes == 0
    assert mappings_of(region_file(large, "D30")) == []


def test_a_view_stays_unchanged_when_the_file_is_replaced(large):
    manager = MmapManager(base_path=large)
    manager.load_dimension("D30")
    view = manager.access_layer("L30-00")
    for generation in range(3):
        builder = RegionBuilder("D30", "Sizes")
        builder.add_layer(0, f"generation {generation}")
        builder.build_to_file(region_file(large, "D30"))
        assert manager.refresh("D30")
    assert bytes(view) == b"small"
    manager.close()
    assert bytes(view) == b"small"


def test_a_released_view_ends_no_other(large):
    manager = MmapManager(base_path=large)
    manager.load_dimension("D30")
    first = manager.access_layer("L30-00")
    first.release()
    assert bytes(manager.access_layer("L30-00")) == b"small"
