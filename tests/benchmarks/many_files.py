"""Time questions to many files on two Dask workers beside one process with two threads.

``python tests/benchmarks/many_files.py [FILES ...]`` with the extra ``distributed``; for each
number of files it prints medians, as docs/distributed.md quotes them, and how much of the
throughput of one process Dask reaches. All ways are measured in turns, in one run. Every file holds
the needle once, so that there are answers.

mapped
    The workers have every file mapped, as after some questions with a budget in which all fit; the
    manager has them loaded. "Again" computes a collection that was planned before.
from nothing
    Nobody has a file mapped, but the system has them cached; the workers are there, and have
    imported and compiled what they need. The other side is `MmapManager()`, `load_all`, `find`.
empty
    As many tasks on the same cluster that return a frame with no rows: by `from_map`, as a
    question is made; and as mere futures of nothing.
"""

from __future__ import annotations

import gc
import re
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster

import jessymem.distributed as jd
from jessymem import MemoryConfig, MmapManager, RegionBuilder

NEEDLE = b"monday lighthouse"
EXPRESSION = re.compile(rb"monday l[a-z]*ghthouse")
N_BYTES, N_LAYERS, N_ROUNDS = 1_000_000, 4, 5
TASK_BYTES = None, 64 * 2**20  # as by default, which grows here, and what it grows from
_FIRST = 15
_numbers = count()


def make_files(folder: Path, n_files: int) -> None:
    """Write a dimension of about a megabyte of text for each file."""
    words = "the river rose twice since monday and rain held bridge".split()
    text = " ".join(np.random.default_rng(1).choice(words, N_BYTES // 4))
    n_bytes = (N_BYTES - 2_000) // N_LAYERS
    for number in range(_FIRST, _FIRST + n_files):
        builder = RegionBuilder(number, "text")
        for layer in range(N_LAYERS):
            content = text[layer * n_bytes // 2 :][:n_bytes]
            if layer == number % N_LAYERS:
                content = NEEDLE.decode() + content[len(NEEDLE) :]
            builder.add_layer(layer, content)
        region = builder.build_to_memory()
        path = folder / str(builder.dimension_id) / "region.mmap"
        path.parent.mkdir()
        path.write_bytes(region.read_content(0, region.size))


def unmap() -> None:
    """Close, in a worker, what it keeps."""
    from jessymem.distributed.open_files import BUDGET

    while BUDGET.close_oldest():
        pass


class Ways:
    """What is measured over some files: each way a method that takes one question."""

    def __init__(self, folder: Path, client: Client, config: MemoryConfig, loaded: MmapManager):
        self.folder, self.client, self.config, self.loaded = folder, client, config, loaded
        self.question: Any = NEEDLE
        self.task_bytes: int | None = TASK_BYTES[0]
        self.planned: Any = None

    def ask(self) -> pd.DataFrame:
        self.plan()
        return self.compute()

    def plan(self) -> Any:
        how: Any = {"config": self.config, "task_bytes": self.task_bytes}
        self.planned = jd.find(self.folder, self.question, **how)
        return self.planned

    def compute(self) -> pd.DataFrame:
        found: pd.DataFrame = self.planned.compute(scheduler=self.client)
        return found

    def find(self) -> int:
        return len(self.loaded.find(self.question, workers=2))

    def load_and_find(self) -> int:
        with MmapManager(self.config) as manager:
            manager.load_all()
            return len(manager.find(self.question, workers=2))

    def ask_nothing(self) -> None:
        empty = self.planned._meta
        places = range(self.planned.npartitions + 1)
        label = f"nothing-{next(_numbers)}"  # Dask answers one question once
        given = [empty] * (len(places) - 1)
        with dask.config.set({"dataframe.convert-string": False}):
            nothing: Any = dd.from_map(
                pd.DataFrame.copy, given, meta=empty, divisions=(*places,), label=label
            )
        nothing.compute(scheduler=self.client)

    def await_nothing(self) -> None:
        number = next(_numbers)
        places = range(self.planned.npartitions)
        self.client.gather(self.client.map(lambda _: (None, number)[0], places))

    def unmap_everywhere(self) -> None:
        self.client.run(unmap)

    def map_everywhere(self) -> None:
        """Have every worker map every file, which is not measured."""
        planned = self.planned
        self.client.run(lambda: len(planned.compute(scheduler="synchronous")))


def measure(ways: Ways, n_files: int) -> dict[str, float]:
    """Return the median of each way's seconds, all taken in turns.

    Of each only the last step is measured. Workers that were busy with what is not have messages to
    read; they have read them when they have done a few tasks of nothing.
    """
    steps: dict[str, tuple[Callable[[], object], ...]] = {
        "mapped: Dask": (ways.map_everywhere, ways.await_nothing, ways.ask),
        "mapped: find": (ways.find,),
        "mapped: Dask, again": (ways.compute,),
        "planning of it": (ways.plan,),
        "empty: from_map": (ways.ask_nothing,),
        "empty: futures": (ways.await_nothing,),
        "from nothing: Dask": (ways.unmap_everywhere, ways.await_nothing, ways.ask),
        "from nothing: load_all, find": (ways.load_and_find,),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(N_ROUNDS + 1):
        for name, (*before, step) in steps.items():
            for each in before:
                each()
            gc.collect()  # which takes as long as a question, and comes to whichever allocates
            gc.disable()
            start = perf_counter()
            step()
            seconds[name].append(perf_counter() - start)
            gc.enable()
    if len(ways.ask()) != n_files or ways.find() != n_files:
        raise AssertionError("Dask and one process do not find the same")
    return {name: median(taken[1:]) for name, taken in seconds.items()}  # the first compiles


def write(found: dict[str, float], n_files: int) -> None:
    """Print what was measured, and the shares."""
    for name, taken in found.items():
        each = taken / n_files * 1_000
        sys.stdout.write(f"  {name:30} {taken:6.3f} s {each:6.3f} ms a file\n")
    shares = {
        "mapped": found["mapped: find"] / found["mapped: Dask"],
        "mapped, planned before": found["mapped: find"] / found["mapped: Dask, again"],
        "from nothing": found["from nothing: load_all, find"] / found["from nothing: Dask"],
        "at most, for the empty tasks": found["mapped: find"]
        / (found["mapped: find"] + found["empty: from_map"]),
    }
    for name, share in shares.items():
        sys.stdout.write(f"  {name:30} {share:6.2f} x the throughput of one process\n")


def main(n_files: int = 2_000) -> None:
    """Measure all ways, for a needle and for an expression."""
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
            ways = Ways(folder, client, config, loaded)
            for kind, ways.question, ways.task_bytes in (
                ("bytes", NEEDLE, TASK_BYTES[0]),
                ("an expression", EXPRESSION, TASK_BYTES[0]),
                ("bytes", NEEDLE, TASK_BYTES[1]),
            ):
                n_tasks = ways.plan().npartitions
                sys.stdout.write(f"{n_files:,} files in {n_tasks} tasks, {kind}\n")
                write(measure(ways, n_files), n_files)


if __name__ == "__main__":
    for n_files in map(int, sys.argv[1:] or ["2000"]):
        main(n_files)
