"""Dimensions of about a MiB, in managers whose budget holds some of them."""

from __future__ import annotations

import random
from pathlib import Path

from jessymem import DimensionId, LayerId, MemoryConfig, MmapManager, RegionBuilder, osmem
from jessymem.kernels import schema as s
from support.internals import snapshot_of

MIB = 2**20
N_LAYERS = 3


def content_of(number, layer, edition=0):
    """What a layer holds: most of a MiB in layer 0, little in the others."""
    n_bytes = MIB - 2**16 if layer == 0 else 1000 + layer
    return random.Random(f"{number} {layer} {edition}").randbytes(n_bytes)


def write_dimension(base, number, edition=0, n_large=1):
    """Write a dimension of `n_large` MiB, a little less, and return its path."""
    dimension = DimensionId(number)
    builder = RegionBuilder(dimension, f"name of {number}")
    for layer in range(N_LAYERS):
        content = content_of(number, layer, edition)
        parent = LayerId(number, 0) if layer else "L20-00"
        builder.add_layer(
            layer,
            content * n_large if layer == 0 else content,
            name=f"layer {layer}",
            frequency=float(layer),
            depth=layer,
            keywords=["every", f"only{number}"],
            parent=parent if (number, layer) != (20, 0) else None,
        )
    path = path_of(base, number)
    builder.build_to_file(path)
    return path


def path_of(base, number):
    return Path(base) / str(DimensionId(number)) / "region.mmap"


def load_into(base, numbers, n_mib, policy="lru", n_large=1, **settings):
    """Return a manager of so many MiB, after loading `numbers` in order."""
    config = MemoryConfig(n_mib, base, eviction_policy=policy, simulation="never", **settings)
    for number in numbers:
        if not path_of(base, number).exists():
            write_dimension(base, number, n_large=n_large)
    manager = MmapManager(config)
    for number in numbers:
        manager.load_dimension(number)
    return manager


def evicted(manager):
    """Return the numbers of the dimensions that are known by name only."""
    regions = manager.dump_state()["regions"]
    return [DimensionId.parse(each["dimension"]) for each in regions if each["state"] == "evicted"]


def charged(manager):
    """Return the bytes that regions in memory cost, as their files tell."""
    resident = snapshot_of(manager).resident
    return sum(osmem.round_to_pages(region.size) for region in resident)


def check_numbers(manager):
    """Compare what is counted with what is there; nobody else may be at work."""
    stats = manager.get_stats()
    regions = manager.dump_state()["regions"]
    n_in_memory = sum(each["state"] != "evicted" for each in regions)
    assert stats.active_regions == n_in_memory
    assert stats.total_allocated_bytes == charged(manager) + stats.waiting_bytes
    for region in snapshot_of(manager).loaded:
        slot = snapshot_of(manager).region_at(region.dimension_id)
        is_in_memory = slot["state"] != s.REGION_EVICTED
        path = snapshot_of(manager).path_of(region.dimension_id)
        assert (path is not None) == is_in_memory
