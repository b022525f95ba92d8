"""Batches beside their peers, in one run: ``pytest tests/benchmarks --benchmark-enable -k batch``.

Stores of 56 layers (the core dimensions), 14,000 and 1,000,000, whose tables are in every cache, in
a second-level one, and in none; ids in random order. The suite runs each once, on small stores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.internals import snapshot_of

from jessymem import MmapManager
from jessymem.bench import data, loops
from jessymem.kernels import _jit, layer_bytes

N_LAYERS = (56, 14_000, 1_000_000)
BATCHES = (1, 100, 10_000, 1_000_000)
N_THREADS = 100
FIRST = 20


class Loaded(NamedTuple):
    """A store, and ids in random order as a batch takes them."""

    manager: MmapManager
    ids: np.ndarray[Any, np.dtype[np.int64]]


@pytest.fixture(scope="module", params=N_LAYERS)
def loaded(request, tmp_path_factory) -> Iterator[Loaded]:
    n_layers, is_measured = request.param, request.config.getoption("benchmark_enable")
    if not is_measured:
        n_layers = min(n_layers, 500)
    base = tmp_path_factory.mktemp("batch")
    if n_layers <= 14 * 4:
        dimensions = range(FIRST, FIRST + 14)
        for dimension in dimensions:
            data.build(base, dimension, data.numbered(4, 64))
    elif n_layers <= 65_536:
        dimensions = range(FIRST, FIRST + 1)
        data.build(base, FIRST, data.numbered(n_layers, 64))
    else:
        dimensions = data.build_tables(base, FIRST, -(-n_layers // 65_536))
    with data.open_manager(base) as manager:
        for dimension in dimensions:
            manager.load_dimension(dimension)
        _jit.promote()
        known = manager.store().layer_ids()
        n_ids = max(BATCHES) if is_measured else 1000
        yield Loaded(manager, np.random.default_rng(1).choice(known, n_ids))


@pytest.mark.parametrize("n_ids", BATCHES)
@pytest.mark.benchmark(group="batch: locate_many")
def test_locate_many(benchmark, loaded, n_ids):
    ids = loaded.ids[:n_ids]
    found = benchmark(loaded.manager.locate_many, ids)
    benchmark.extra_info["ns_per_layer"] = per_layer(benchmark, len(ids))
    assert (found["status"] == 0).all()


@pytest.mark.benchmark(group="batch: 10,000 layers, one way and another")
@pytest.mark.parametrize("verb", ["locate_many", "access_many", "gather"])
def test_verbs(benchmark, loaded, verb):
    benchmark(getattr(loaded.manager, verb), loaded.ids[:10_000])


@pytest.mark.benchmark(group="batch: 10,000 layers, one way and another")
def test_numpy_rows(benchmark, loaded):
    rows = loaded.ids[:10_000] & 0xFFFF
    table = np.zeros(65_536, snapshot_of(loaded.manager).resident[0].rows.dtype)
    benchmark(table.__getitem__, rows)


@pytest.mark.benchmark(group="batch: 10,000 layers, one way and another")
def test_compiled_loop(benchmark, loaded):
    def read(store, ids):
        n_bytes = 0
        for i in range(len(ids)):
            n_bytes += len(layer_bytes(store, ids[i]))
        return n_bytes

    if not _jit.is_disabled():
        read = loops.compile_loop(read)
    store, ids = loaded.manager.store(), loaded.ids[:10_000]
    n_bytes = int(loaded.manager.locate_many(ids)["size"].sum())
    assert read(store, ids) == n_bytes
    benchmark(read, store, ids)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.benchmark(group="batch: 200 calls of 10,000 ids from threads")
def test_cores(benchmark, loaded, n_threads):
    """The same work in one thread and in two: kernels hold no GIL."""
    ids = loaded.ids[:10_000]
    n_calls = 200 if benchmark.enabled else 2

    def locate(n):
        for _ in range(n):
            loaded.manager.locate_many(ids)

    with ThreadPoolExecutor(n_threads) as threads:
        benchmark(lambda: list(threads.map(locate, [n_calls // n_threads] * n_threads)))


@pytest.mark.parametrize("n_threads", [1, N_THREADS])
@pytest.mark.benchmark(group="batch: 1,000 ids a call, from threads")
def test_crowd(benchmark, loaded, n_threads):
    """100 Python threads against one, the same work; single reads beside lmdb are in `read`."""
    n_calls = 1000 if benchmark.enabled else N_THREADS
    ids = loaded.ids[:1000]

    def locate():
        for _ in range(n_calls // n_threads):
            loaded.manager.locate_many(ids)

    def crowd():
        threads = [threading.Thread(target=locate) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    benchmark(crowd)


def per_layer(benchmark: Any, n_layers: int) -> float | None:
    """Return nanoseconds a layer, where anything was measured."""
    return benchmark.stats.stats.median / n_layers * 1e9 if benchmark.enabled else None
