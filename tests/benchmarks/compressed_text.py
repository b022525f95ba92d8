"""Measure a corpus of text kept plain and compressed, and what each level makes of what.

``python tests/benchmarks/compressed_text.py [--write docs/performance.md docs/compression.md]``, on
Linux. 280 MB of real text (the source files of Python's standard library, again and again with
other beginnings) in layers of 16 KiB, and of 128 KiB; then single dimensions of several kinds of
content at several levels. Each store is opened in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from jessymem import MmapManager, RegionBuilder
from jessymem.bench.data import build_text, drop_from_cache, open_manager, real_text

N_MB, N_READS, N_ROUNDS = 280, 500, 5
LAYER_BYTES, LARGE_LAYER_BYTES = 16 * 1024, 128 * 1024
ABSENT = b"zebra~of~the~river"
LEVELS = (1, 3, 9, 19)


def resident_bytes() -> int:
    """Return how much of this process is in memory, files' pages included."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def reads(manager: MmapManager, layer_ids: list[int]) -> float:
    """Return the median seconds of a read of each of some layers, and a byte of each page."""
    taken = []
    for layer_id in layer_ids:
        start = perf_counter()
        sum(manager.access_layer(layer_id)[::4096])
        taken.append(perf_counter() - start)
    return median(taken)


def measure(base: Path) -> dict[str, float]:
    """Measure one store in this process."""
    paths = sorted(base.rglob("region.mmap"))
    found: dict[str, float] = {"on_disk": sum(path.stat().st_size for path in paths)}
    drop_from_cache(paths)
    before = resident_bytes()
    with open_manager(base, 1_024, advice="random") as manager:
        manager.load_all()
        found["opened"] = resident_bytes() - before
        everything = [int(each) for each in manager.list_layers()]
        chosen = random.Random(1).sample(everything, 3 * N_READS)
        cold, warm = chosen[:N_READS], chosen[N_READS : 2 * N_READS]
        manager.access_layer(chosen[-1])  # what the first read imports
        found["cold"] = reads(manager, cold)
        for path in paths:
            path.read_bytes()  # now all of it is in the system's memory
        found["first"] = reads(manager, warm)
        found["again"] = reads(manager, warm)
        found["used"] = manager.get_stats().total_used_bytes
        for workers in (1, 2):
            manager.count(ABSENT, workers=workers)
            rounds = []
            for _ in range(N_ROUNDS):
                start = perf_counter()
                manager.count(ABSENT, workers=workers)
                rounds.append(perf_counter() - start)
            n_bytes = int(manager.locate_many(np.array(everything))["size"].sum())
            found[f"scan_{workers}"] = n_bytes / median(rounds)
        found["scanned"] = resident_bytes() - before
    return found


def measured_apart(base: Path) -> dict[str, float]:
    """Measure one store in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(base)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {key: float(value) for key, value in json.loads(answer).items()}


def corpus_table(folder: Path) -> str:
    """Return the table of one corpus kept in two ways."""
    builds, stores = [], []
    for name, layer_bytes, compress in (
        ("plain", LAYER_BYTES, None),
        ("zstd", LAYER_BYTES, "zstd"),
        ("large", LARGE_LAYER_BYTES, "zstd"),
    ):
        start = perf_counter()
        dimensions = build_text(folder / name, N_MB, layer_bytes, compress=compress)
        builds.append(perf_counter() - start)
        stores.append(measured_apart(folder / name))
    rows = [
        ("bytes on disk", "on_disk", lambda n: f"{n / 1e6:.0f} MB"),
        ("resident after opening all, beyond before", "opened", lambda n: f"{n / 1e6:.1f} MB"),
        ("first read of a layer, file not in the cache", "cold", lambda n: f"{n * 1e6:.1f} us"),
        ("first read of a layer, file in the cache", "first", lambda n: f"{n * 1e6:.1f} us"),
        ("the same layer again", "again", lambda n: f"{n * 1e9:.0f} ns"),
        ("`count` of what is nowhere, one thread", "scan_1", lambda n: f"{n / 1e9:.2f} GB/s"),
        ("the same, two threads", "scan_2", lambda n: f"{n / 1e9:.2f} GB/s"),
        ("resident after that, with 1,000 layers read", "scanned", lambda n: f"{n / 1e6:.0f} MB"),
    ]
    n_mb = len(dimensions) * 16
    columns = "16 KiB, plain | 16 KiB, `zstd` | 128 KiB, `zstd`"
    lines = [f"| {n_mb} MiB of text in layers of | {columns} |", "|---|---:|---:|---:|"]
    lines.append("| built in | " + " | ".join(f"{each:.1f} s" for each in builds) + " |")
    for what, key, show in rows:
        lines.append(f"| {what} | " + " | ".join(show(each[key]) for each in stores) + " |")
    return "\n".join(lines) + "\n"


def kinds() -> Iterator[tuple[str, list[bytes]]]:
    """Yield contents of several kinds, some 8 MB each."""
    text, rng = real_text(), np.random.default_rng(1)
    yield "text, 16 KiB", [text[at : at + 16_384] for at in range(0, 2**23, 16_384)]
    yield "text, 1 KiB, with a dictionary", [text[at : at + 1_024] for at in range(0, 2**22, 1_024)]
    steps = rng.integers(0, 9, (64, 16_384)).cumsum(1).astype("<i4")
    yield "int32 arrays that rise, 64 KiB", [row.tobytes() for row in steps]
    floats = rng.standard_normal((64, 16_384)).astype("<f4")
    yield "float32 arrays of noise, 64 KiB", [row.tobytes() for row in floats]
    yield "random bytes, 16 KiB", [rng.bytes(16_384) for _ in range(256)]


def levels_table() -> str:
    """Return the table of levels."""
    lines = [
        "| content of a layer | level | stored | deflated at | inflated at | a first read |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for what, contents in kinds():
        for level in LEVELS:
            builder = RegionBuilder(20, "measured")
            for number, content in enumerate(contents):
                builder.add_layer(number, content)
            start = perf_counter()
            builder.build_to_memory(compress="none")
            plain = perf_counter() - start
            start = perf_counter()
            region = builder.build_to_memory(compress=f"zstd:{level}")
            deflated = perf_counter() - start - plain
            n_bytes = sum(map(len, contents))
            if region.frames is None:
                at = f"{n_bytes / deflated / 1e6:.0f} MB/s"
                lines.append(f"| {what} | {level} | plain | {at} | | |")
                continue
            taken = []
            for row in range(len(contents)):
                start = perf_counter()
                view = region.content_of(row)
                taken.append(perf_counter() - start)
                del view
            stored = region.size / n_bytes
            lines.append(
                f"| {what} | {level} | {stored:.0%} | {n_bytes / deflated / 1e6:.0f} MB/s "
                f"| {n_bytes / sum(taken) / 1e9:.2f} GB/s | {median(taken) * 1e6:.0f} us |"
            )
    return "\n".join(lines) + "\n"


def put_into(page: Path, mark: str, table: str) -> None:
    """Put a table between its marks in a page."""
    text = page.read_text("utf-8")
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    before, rest = text.split(begin)
    page.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}", "utf-8")


def main() -> None:
    """Print both tables, and put them into pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, nargs=2, help="put them into these pages, too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        tables = {"compressed": corpus_table(Path(folder)), "levels": levels_table()}
    for page, (mark, table) in zip(options.write or (), tables.items(), strict=False):
        put_into(page, mark, table)
    sys.stdout.write("\n".join(tables.values()))


if __name__ == "__main__":
    main()
