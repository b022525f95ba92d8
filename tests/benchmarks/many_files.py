"""Time a question to many files on two Dask workers beside one process with two threads.

``python tests/benchmarks/many_files.py [FILES]`` with the extra ``distributed``; it prints medians,
in seconds and milliseconds a file, as docs/distributed.md quotes them. "Kept" is with a budget in
which all files fit, after some questions: then workers have them mapped.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from distributed import Client, LocalCluster

import jessymem.distributed as jd
from jessymem import MemoryConfig, MmapManager, RegionBuilder

NEEDLE = b"monday bridges"
N_BYTES, N_LAYERS, N_ROUNDS, N_WARMING = 1_000_000, 4, 5, 6
_FIRST = 15


def make_files(folder: Path, n_files: int) -> None:
    """Write a dimension of about a megabyte of text for each file."""
    words = "the river rose twice since monday and rain held bridge".split()
    text = " ".join(np.random.default_rng(1).choice(words, N_BYTES // 4))
    n_bytes = (N_BYTES - 2_000) // N_LAYERS
    for number in range(_FIRST, _FIRST + n_files):
        builder = RegionBuilder(number, "text")
        for layer in range(N_LAYERS):
            builder.add_layer(layer, text[layer * n_bytes // 2 :][:n_bytes])
        region = builder.build_to_memory()
        path = folder / str(builder.dimension_id) / "region.mmap"
        path.parent.mkdir()
        path.write_bytes(region.read_content(0, region.size))


def main(n_files: int = 2_000) -> None:
    """Measure each way in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, n_files)
        config = MemoryConfig(2 * n_files + 280, folder, simulation="never", read_only=True)
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
            MmapManager(config) as loaded,
        ):
            loaded.load_all()

            def load_and_find() -> None:
                with MmapManager(config) as manager:
                    manager.load_all()
                    manager.find(NEEDLE, workers=2)

            ways: dict[str, Callable[[], object]] = {
                "planned": lambda: jd.find(folder, NEEDLE),
                "on Dask": lambda: jd.find(folder, NEEDLE).compute(scheduler=client),
                "on Dask, kept": lambda: jd.find(folder, NEEDLE, config=2 * n_files + 280).compute(
                    scheduler=client
                ),
                "load_all, find": load_and_find,
                "find": lambda: loaded.find(NEEDLE, workers=2),
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}

            def measure(*names: str) -> None:
                for name in names:
                    start = perf_counter()
                    ways[name]()
                    seconds[name].append(perf_counter() - start)

            for _ in range(N_ROUNDS + 1):
                measure("planned", "on Dask", "load_all, find", "find")
            # With a small budget, as above, workers would close what is kept.
            for _ in range(N_WARMING):
                ways["on Dask, kept"]()
            for _ in range(N_ROUNDS + 1):
                measure("on Dask, kept")
            for name, found in seconds.items():
                taken = median(found[1:])  # the first round compiles
                each = taken / n_files * 1_000
                sys.stdout.write(f"{name:16} {taken:6.3f} s {each:6.3f} ms a file\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
