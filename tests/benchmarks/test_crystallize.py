"""Crystallizing beside a plain durable write: ``pytest tests/benchmarks --benchmark-enable``.

Three groups: files of 1, 10 and 100 MB beside write, fsync and rename of the same bytes; readers
while a dimension is crystallized again and again, beside the same readers when nothing happens;
and what publishing one more layer costs in a dimension that has few or 65,535.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from jessymem import LayerId, MemoryConfig, MmapManager
from jessymem.kernels.schema import MAX_LAYERS

MIB = 2**20
N_LAYERS = 40
SIZES_MB = (1, 10, 100)
N_HELD = (1, 1_000, MAX_LAYERS - 1)
N_READS = 20_000


def make_manager(base: Path, total_mb: int = 1024) -> MmapManager:
    return MmapManager(MemoryConfig(total_memory_mb=total_mb, base_path=base, simulation="never"))


def contents_of(n_mb: int) -> list[bytes]:
    """Bytes that are alike nowhere, so that no file system stores less of them."""
    generator = np.random.default_rng(n_mb)
    return [generator.bytes(n_mb * MIB // N_LAYERS) for _ in range(N_LAYERS)]


# -- one dimension to disk -------------------------------------------------------------------------


@pytest.mark.parametrize("n_mb", SIZES_MB)
@pytest.mark.benchmark(group="crystallize: 40 layers, durable", warmup=False)
def test_crystallize_dimension(benchmark, tmp_path, n_mb):
    contents = contents_of(n_mb)
    numbers = count(20)
    with make_manager(tmp_path) as manager:

        def learn():
            dimension = next(numbers)
            manager.create_proto_layers([(dimension, content) for content in contents])
            if dimension > 20:
                manager.unload_dimension(dimension - 1)
            return (dimension,), {}

        benchmark.pedantic(manager.crystallize_dimension, setup=learn, rounds=rounds_of(benchmark))
        last = next(numbers) - 1
        for layer, content in enumerate(contents):
            assert manager.access_layer(LayerId(last, layer)) == content


@pytest.mark.parametrize("n_mb", SIZES_MB)
@pytest.mark.benchmark(group="crystallize: 40 layers, durable", warmup=False)
def test_write_fsync_rename(benchmark, tmp_path, n_mb):
    contents = contents_of(n_mb)
    numbers = count()

    def write(folder: Path) -> None:
        temporary = folder / "temporary"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for content in contents:
            os.write(descriptor, content)
        os.fsync(descriptor)
        os.close(descriptor)
        temporary.rename(folder / "file")
        for directory in (folder, folder.parent):
            descriptor = os.open(directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def make_folder():
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return (folder,), {}

    benchmark.pedantic(write, setup=make_folder, rounds=rounds_of(benchmark))
    assert sum(path.stat().st_size for path in tmp_path.glob("0/file")) == sum(map(len, contents))


def rounds_of(benchmark) -> int:
    return 1 if benchmark.disabled else 15


# -- readers meanwhile -----------------------------------------------------------------------------


@pytest.fixture
def readable(tmp_path) -> Iterator[MmapManager]:
    with make_manager(tmp_path) as manager:
        manager.create_proto_layers([("D15", bytes([n]) * 8_192) for n in range(64)])
        manager.crystallize_dimension("D15")
        yield manager


def read_many(manager: MmapManager) -> None:
    layers = [LayerId(15, number % 64) for number in range(N_READS)]
    for layer in layers:
        manager.access_layer(layer)


@pytest.mark.benchmark(group="crystallize: 20,000 reads meanwhile")
def test_reads_when_nothing_is_written(benchmark, readable):
    benchmark(read_many, readable)


@pytest.mark.benchmark(group="crystallize: 20,000 reads meanwhile")
def test_reads_while_another_thread_crystallizes(benchmark, readable):
    """The writer makes, writes and unloads dimensions of 10 MB without a pause."""
    contents = contents_of(10)
    stop, n_written = threading.Event(), 0

    def write() -> None:
        nonlocal n_written
        while not stop.is_set() or not n_written:
            readable.create_proto_layers([("D30", content) for content in contents])
            readable.crystallize_dimension("D30")
            readable.unload_dimension("D30")
            (Path(readable.config.base_path) / "D30" / "region.mmap").unlink()
            n_written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        benchmark(read_many, readable)
    finally:
        stop.set()
        writer.join()
    assert n_written


# -- one more layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_held", N_HELD)
@pytest.mark.benchmark(group="crystallize: publishing one more layer")
def test_create_and_discard(benchmark, tmp_path, n_held):
    n_held = min(n_held, 2_000) if benchmark.disabled else n_held
    with make_manager(tmp_path) as manager:
        manager.create_proto_layers([("D15", b"x")] * n_held)

        def add_one() -> None:
            manager.create_proto_dimension("D15", b"one more")

        def take_it_back():
            if len(manager) > n_held:
                manager.discard_proto_dimension(LayerId(15, n_held))
            return (), {}

        benchmark.pedantic(add_one, setup=take_it_back, rounds=1 if benchmark.disabled else 50)
        assert len(manager) == n_held + 1


@pytest.mark.benchmark(group="crystallize: publishing one more layer")
def test_create_many_at_once(benchmark, tmp_path):
    with make_manager(tmp_path) as manager:
        items = [("D15", b"x")] * 1_000

        def take_them_back():
            manager.close()
            return (make_manager(tmp_path),), {}

        def make(fresh: MmapManager) -> None:
            fresh.create_proto_layers(items)

        benchmark.pedantic(make, setup=take_them_back, rounds=1 if benchmark.disabled else 10)
