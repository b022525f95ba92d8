"""Measure what dimensions, layers, deltas, blocks and views take, as docs/capacity.md tells it.

``python tests/benchmarks/capacity.py [--write docs/capacity.md]``, on Linux. Each row is the
difference that many of a thing make in this process, divided by their number.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jessymem import JessyWarning, MemoryConfig, MmapManager, RegionBuilder

FIRST, N_DIMENSIONS, N_LEARNED, N_VIEWS, N_DELTAS = 15, 1_000, 5_000, 50_000, 12
_SHOW = "print(open('/proc/self/status').read())"
_BARE = f"import numpy; {_SHOW}"
_READS = f"""
import sys
from jessymem import MmapManager
manager = MmapManager(280, base_path=sys.argv[1])
manager.load_dimension("D15")
manager.access_layer("L15-00")
{_SHOW}
"""


class Row(NamedTuple):
    """One of the things: its name, its bytes on disk, and what it adds to a `Use`."""

    name: str
    on_disk: int
    taken: list[float]


class Use(NamedTuple):
    """What a process takes of each, in bytes, and how many descriptors and mappings it has."""

    budget: int
    private: int
    descriptors: int
    mappings: int

    def since(self, before: Use, n: int) -> list[float]:
        """Return what each of `n` things has added."""
        return [(now - then) / n for now, then in zip(self, before, strict=True)]


def field_of(status: str, name: str) -> int:
    """Return a field of a process's status, in bytes."""
    return int(re.findall(rf"^{name}:\s+(\d+) kB", status, re.M)[0]) * 1024


def use_of(manager: MmapManager) -> Use:
    """Look at this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return Use(
        manager.get_stats().total_allocated_bytes,
        field_of(status, "RssAnon"),
        len(os.listdir("/proc/self/fd")),
        len(Path("/proc/self/maps").read_text().splitlines()),
    )


def make(folder: Path, number: int, n_layers: int, content: bytes = b"x" * 1_000) -> Path:
    """Write the file of a dimension; return its path."""
    builder = RegionBuilder(number, "text")
    for layer in range(n_layers):
        builder.add_layer(layer, content)
    path = folder / str(builder.dimension_id) / "region.mmap"
    builder.build_to_file(path)
    return path


class Ledger:
    """Differences in what this process uses; it keeps what was made until it is closed."""

    def __init__(self, config: MemoryConfig) -> None:
        self.manager = MmapManager(config)
        self._kept: list[object] = []

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self._kept.clear()
        with warnings.catch_warnings(action="ignore", category=JessyWarning):
            self.manager.close()

    def each(self, n: int, act: Callable[[], object]) -> list[float]:
        """Return what each of `n` things adds that `act` makes."""
        before = use_of(self.manager)
        self._kept.append(act())
        return use_of(self.manager).since(before, n)


def many_dimensions(base: Path) -> Iterator[Row]:
    """Measure dimensions, views on them, and layers that are learned."""
    sizes = [make(base, FIRST + n, 4).stat().st_size for n in range(N_DIMENSIONS)]
    with Ledger(MemoryConfig(1_000, base, simulation="never")) as ledger:
        manager = ledger.manager
        manager.load_dimension(FIRST)
        manager.access_layer(FIRST << 16)  # what the first of everything costs is no part of it
        manager.create_proto_dimension(FIRST, "first")
        rest = range(FIRST + 1, FIRST + N_DIMENSIONS)
        taken = ledger.each(len(rest), lambda: [*map(manager.load_dimension, rest)])
        yield Row("a dimension of 4 layers of 1,000 bytes", sizes[0], taken)
        ids = [number << 16 for number in rest] * (N_VIEWS // len(rest))
        taken = ledger.each(len(ids), lambda: [*map(manager.access_layer, ids)])
        yield Row("a view that is held", 0, taken)
        for length in (100, 4_000):
            layers = [(FIRST, b"y" * length)] * N_LEARNED
            taken = ledger.each(N_LEARNED, partial(manager.create_proto_layers, layers))
            yield Row(f"a learned layer of {length:,} bytes", 0, taken)


def long_dimensions(base: Path) -> Iterator[Row]:
    """Measure a dimension of as many layers as there may be, and deltas."""
    n_bytes = make(base, FIRST, 65_536, b"x" * 64).stat().st_size
    other = FIRST + 1
    make(base, other, 1_000)
    with Ledger(MemoryConfig(1_000, base, simulation="never")) as ledger:
        manager = ledger.manager

        def learn(n: int) -> None:
            for _ in range(n):
                manager.create_proto_dimension(other, b"z" * 1_000)
                manager.crystallize_dimension(other)

        manager.load_dimension(other)
        learn(1)
        taken = ledger.each(1, lambda: manager.load_dimension(FIRST))
        yield Row("a dimension of 65,536 layers of 64 bytes", n_bytes, taken)
        taken = ledger.each(N_DELTAS, partial(learn, N_DELTAS))
        delta = max(path.stat().st_size for path in base.glob(f"D{other}/*.d*.mmap"))
        yield Row("a delta with a layer of 1,000 bytes", delta, taken)


def shown(n_bytes: float) -> str:
    """Write bytes as a person reads them."""
    if abs(n_bytes) < 48:
        return "0"
    for unit, size in (("MB", 1e6), ("KB", 1e3)):
        if abs(n_bytes) >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def describe(folder: Path) -> str:
    """Return the table."""
    lines = [
        "| what | on disk | in the budget | private memory | descriptors | mappings |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in (*many_dimensions(folder / "many"), *long_dimensions(folder / "long")):
        budget, private, *counts = row.taken
        numbers = [shown(each) for each in (row.on_disk, budget, private)]
        numbers += [f"{round(each)}" for each in counts]
        lines.append(f"| {row.name} | {' | '.join(numbers)} |")
    for name, code in (("a process that reads", _READS), ("a process with NumPy alone", _BARE)):
        command = [sys.executable, "-c", code, str(folder / "many")]
        status = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines.append(f"| {name} | | | {shown(field_of(status, 'RssAnon'))} | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="put the table into this page, too")
    page = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        table = describe(Path(folder))
    if page:
        text = page.read_text("utf-8")
        begin, end = "<!-- table: begin -->\n", "<!-- table: end -->"
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        page.write_text(f"{before}{begin}\n{table}\n{end}{after}", "utf-8")
    sys.stdout.write(table)


if __name__ == "__main__":
    main()
