"""Arrays: one read each of 10,000, next to what one would write by hand, and references.

    python -m pytest tests/benchmarks/test_array_reads.py --benchmark-enable

Mappings are touched before anything is timed.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jessymem import LayerId, MmapManager, RegionBuilder

N_ARRAYS = 10_000
SHAPE = (32, 32)  # of 8-byte elements: 8 KiB

LAYERS = [LayerId("D20", number) for number in range(N_ARRAYS)]
SHUFFLED = random.Random(1).sample(LAYERS, N_ARRAYS)


@pytest.fixture(scope="module")
def manager(tmp_path_factory) -> Iterator[MmapManager]:
    base: Path = tmp_path_factory.mktemp("arrays")
    builder = RegionBuilder("D20", "Arrays")
    for number in range(N_ARRAYS):
        builder.add_array(number, np.full(SHAPE, float(number)))
    builder.build_to_file(base / "D20" / "region.mmap")
    with MmapManager(base_path=base) as manager:
        manager.load_dimension("D20")
        assert all(manager.array(layer)[-1, -1] == layer.layer for layer in LAYERS)
        yield manager


def read_each(get: Callable, keys: list) -> None:
    for key in keys:
        get(key)


@pytest.mark.benchmark(group="arrays: 10,000 of 8 KiB, one call each")
def test_array(benchmark, manager):
    benchmark(read_each, manager.array, SHUFFLED)


@pytest.mark.benchmark(group="arrays: 10,000 of 8 KiB, one call each")
def test_access_layer_and_ndarray(benchmark, manager):
    """What one writes who knows dtype and shape: the floor."""
    dtype = np.dtype("f8")

    def get(layer):
        return np.ndarray(SHAPE, dtype, manager.access_layer(layer))

    benchmark(read_each, get, SHUFFLED)


@pytest.mark.benchmark(group="arrays: 10,000 of 8 KiB, one call each")
def test_access_layer_and_frombuffer(benchmark, manager):
    def get(layer):
        return np.frombuffer(manager.access_layer(layer), "f8").reshape(SHAPE)

    benchmark(read_each, get, SHUFFLED)


@pytest.mark.benchmark(group="arrays: a reference")
def test_pickle_a_reference_and_read_it(benchmark, manager):
    ref = manager.ref(LAYERS[7])
    assert benchmark(lambda: pickle.loads(pickle.dumps(ref)).array()[0, 0]) == 7


@pytest.mark.benchmark(group="arrays: a reference")
def test_pickle_the_array(benchmark, manager):
    array = manager.array(LAYERS[7])
    assert benchmark(lambda: pickle.loads(pickle.dumps(array))[0, 0]) == 7
