"""The read path beside its peers, in one run: ``pytest tests/benchmarks --benchmark-enable``.

Each peer is a benchmark of its own in the same group, so the printed table holds the ratios. The
suite runs every one once, as a test that both sides return the same bytes.
"""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jessymem import LayerId, MmapManager, MmapRegion, RegionBuilder

N_LAYERS = 10_000
LAYER_BYTES = 8_192
N_THREADS = 100

IDS = [LayerId(20, number) for number in range(N_LAYERS)]
SHUFFLED = random.Random(1).sample(IDS, N_LAYERS)
HOT = [LayerId(20, N_LAYERS // 2)] * N_LAYERS
ORDERS = {"random": SHUFFLED, "one hot": HOT}


def content_of(number: int) -> bytes:
    return struct.pack("<I", number) * (LAYER_BYTES // 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("read")
    builder = RegionBuilder("D20", "Benchmark")
    for number in range(N_LAYERS):
        builder.add_layer(number, content_of(number))
    builder.build_to_file(base / "D20" / "region.mmap")
    return base


@pytest.fixture(scope="module")
def manager(base) -> Iterator[MmapManager]:
    with MmapManager(512, base_path=base) as manager:
        manager.load_dimension("D20")
        yield manager


@pytest.fixture(scope="module")
def lmdb_environment(tmp_path_factory) -> Iterator[Any]:
    lmdb = pytest.importorskip("lmdb", reason="the peer is not installed: not run")
    path = str(tmp_path_factory.mktemp("lmdb"))
    with lmdb.open(path, map_size=2**30, max_readers=2 * N_THREADS) as environment:
        with environment.begin(write=True) as transaction:
            for layer in IDS:
                transaction.put(key_of(layer), content_of(layer.layer))
        yield environment


@pytest.fixture
def lmdb_get(lmdb_environment) -> Iterator[Callable[[bytes], memoryview]]:
    with lmdb_environment.begin(buffers=True) as transaction:
        yield transaction.get


def key_of(layer: LayerId) -> bytes:
    return int(layer).to_bytes(4, "big")


@pytest.fixture(scope="module")
def dict_get(base) -> Callable[[LayerId], memoryview]:
    region = MmapRegion.from_file("D20", base / "D20" / "region.mmap")
    whole = region.read_content(0, region.size)
    spans = {
        info.layer_id: (info.offset, info.offset + info.size) for info in region.metadata.layers
    }

    def get(layer: LayerId) -> memoryview:
        start, end = spans[layer]
        return whole[start:end]

    return get


@pytest.fixture(scope="module")
def memmap_get(base) -> Callable[[LayerId], np.memmap]:
    path = base / "D20" / "region.mmap"
    whole = np.memmap(path, np.uint8, "r")
    layers = MmapRegion.from_file("D20", path).metadata.layers
    spans = {info.layer_id: (info.offset, info.offset + info.size) for info in layers}

    def get(layer: LayerId) -> np.memmap:
        start, end = spans[layer]
        return whole[start:end]

    return get


def read_each(get: Callable, keys: list) -> None:
    for key in keys:
        get(key)


# -- one read from Python, 10,000 times ------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.benchmark(group="read: 10,000 layers of 8 KiB, one call each")
def test_access_layer(benchmark, manager, order):
    assert bytes(manager.access_layer(SHUFFLED[0])) == content_of(SHUFFLED[0].layer)
    benchmark(read_each, manager.access_layer, ORDERS[order])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.benchmark(group="read: 10,000 layers of 8 KiB, one call each")
def test_lmdb_get_buffers(benchmark, lmdb_get, order):
    assert bytes(lmdb_get(key_of(SHUFFLED[0]))) == content_of(SHUFFLED[0].layer)
    benchmark(read_each, lmdb_get, [key_of(layer) for layer in ORDERS[order]])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.benchmark(group="read: 10,000 layers of 8 KiB, one call each")
def test_dict_and_slice(benchmark, dict_get, order):
    assert bytes(dict_get(SHUFFLED[0])) == content_of(SHUFFLED[0].layer)
    benchmark(read_each, dict_get, ORDERS[order])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.benchmark(group="read: 10,000 layers of 8 KiB, one call each")
def test_dict_and_memmap(benchmark, memmap_get, order):
    assert bytes(memmap_get(SHUFFLED[0])) == content_of(SHUFFLED[0].layer)
    benchmark(read_each, memmap_get, ORDERS[order])


# -- the same reads from 100 threads, and from one -------------------------------------------------


def read_in_threads(read: Callable[[list], None], keys: list, n_threads: int) -> None:
    """Split `keys` over threads: the same number of reads whatever `n_threads` is."""
    share = len(keys) // n_threads
    threads = [
        threading.Thread(target=read, args=(keys[i * share : (i + 1) * share],))
        for i in range(n_threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("n_threads", [1, N_THREADS])
@pytest.mark.benchmark(group="read: 1,000,000 layers from threads")
def test_access_layer_from_threads(benchmark, manager, n_threads):
    def read(keys: list) -> None:
        read_each(manager.access_layer, keys)

    n_times = 100 if benchmark.enabled else 1
    benchmark(read_in_threads, read, SHUFFLED * n_times, n_threads)


@pytest.mark.parametrize("n_threads", [1, N_THREADS])
@pytest.mark.benchmark(group="read: 1,000,000 layers from threads")
def test_lmdb_from_threads(benchmark, lmdb_environment, n_threads):
    def read(keys: list) -> None:
        with lmdb_environment.begin(buffers=True) as transaction:
            read_each(transaction.get, keys)

    n_times = 100 if benchmark.enabled else 1
    keys = [key_of(layer) for layer in SHUFFLED] * n_times
    benchmark(read_in_threads, read, keys, n_threads)


# -- loading ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[4, 65_536])
def region_path(request, tmp_path_factory) -> Path:
    builder = RegionBuilder("D30", "Loaded")
    for number in range(request.param):
        builder.add_layer(number, b"content", keywords=["word"])
    path = tmp_path_factory.mktemp("load") / "region.mmap"
    builder.build_to_file(path)
    return path


@pytest.fixture(scope="module")
def plain_path(region_path, tmp_path_factory) -> Path:
    """The same file as another writer leaves it: without an extension."""
    raw = bytearray(region_path.read_bytes())
    raw[100:256] = bytes(156)
    path = tmp_path_factory.mktemp("plain") / "region.mmap"
    path.write_bytes(raw)
    return path


def load_and_unload(manager: MmapManager, path: Path) -> None:
    manager.load_dimension("D30", path)
    manager.unload_dimension("D30")


@pytest.mark.benchmark(group="read: load and unload 4 and 65,536 layers")
def test_load(benchmark, region_path):
    with MmapManager() as manager:
        benchmark(load_and_unload, manager, region_path)


@pytest.mark.benchmark(group="read: load and unload 4 and 65,536 layers")
def test_load_plain(benchmark, plain_path):
    with MmapManager() as manager:
        load_and_unload(manager, plain_path)  # compiles, where that is worth it
        benchmark(load_and_unload, manager, plain_path)


@pytest.mark.benchmark(group="read: start")
def test_manager(benchmark):
    benchmark(lambda: MmapManager().close())


@pytest.mark.benchmark(group="read: start")
def test_core_dimensions(benchmark, tmp_path):
    for number in range(1, 15):
        builder = RegionBuilder(number, "Core")
        for layer in range(4):
            builder.add_layer(layer, b"content")
        builder.build_to_file(tmp_path / f"D{number:02d}" / "region.mmap")

    def load_all():
        with MmapManager(base_path=tmp_path) as manager:
            assert len(manager.load_core_dimensions().loaded) == 14

    benchmark(load_all)


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="read: contexts")
def test_load_contexts(benchmark, manager):
    assert len(benchmark(manager.load_contexts, SHUFFLED[:1000])) == 1000
