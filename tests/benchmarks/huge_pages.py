"""Time random reads over 1 GB of blocks in pages of each size, as docs/large_memory.md tells it.

``python tests/benchmarks/huge_pages.py [--write docs/large_memory.md]``, on Linux. All kinds are
measured in turns, each time in a process of its own, and the best of each counts; where perf(1) may
count, it counts misses of the TLB in one more. Kinds that the system does not give are left out:
``echo 600 > /proc/sys/vm/nr_hugepages`` sets pages of 2 MiB aside.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numba import njit

from jessymem import PoolAllocator, resident
from jessymem.units import show_bytes

KINDS = ("never", "thp", "2MB", "1GB")
N_BYTES, HUGE, GIB = 2**30, 2**21, 2**30
N_READS, N_ROUNDS, N_TURNS = 2_000_000, 5, 4
COPIED_BYTES, N_COPIES = 4_096, 200_000
HEADER = ("pages", "really in huge ones", "first write of all", "one read after another")
HEADER += ("reads that do not wait", "copies of 4 KiB", "TLB misses a read")


@njit(nogil=True)
def read_in_turn(words: Any, n_reads: int) -> int:
    """Read words at random; where the next one is depends on what is read."""
    at = np.uint64(0)
    mask = np.uint64(len(words) - 1)
    for _ in range(n_reads):
        at = at * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        at += np.uint64(words[(at >> np.uint64(33)) & mask])
    return at


@njit(nogil=True)
def read_at_once(words: Any, n_reads: int) -> int:
    """Read words at random, as many at a time as the processor can."""
    at, total = np.uint64(0), np.int64(0)
    mask = np.uint64(len(words) - 1)
    for _ in range(n_reads):
        at = at * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        total += words[(at >> np.uint64(33)) & mask]
    return total


@njit(nogil=True)
def copy_pieces(words: Any, n_copies: int) -> int:
    """Copy pieces from random places into one that is in the cache."""
    target = np.zeros(COPIED_BYTES // 8, np.int64)
    at, n_pieces = np.uint64(0), np.uint64(len(words) // len(target))
    for _ in range(n_copies):
        at = at * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        first = ((at >> np.uint64(33)) & (n_pieces - np.uint64(1))) * np.uint64(len(target))
        for i in range(len(target)):
            target[i] = words[first + np.uint64(i)]
    return target[0]


def shortest(read: Callable[[Any, int], int], words: Any, n: int) -> float:
    """Return seconds a read or copy, of the best round."""
    read(words, 10)
    times = []
    for _ in range(N_ROUNDS):
        start = perf_counter()
        read(words, n)
        times.append(perf_counter() - start)
    return min(times) / n


def measure(kind: str, *, only_reads: bool) -> dict[str, Any]:
    """Return what one kind of pages takes, in seconds and bytes."""
    block_bytes = GIB if kind == "1GB" else HUGE
    pools = [(N_BYTES // 2**20, block_bytes)]
    allocator = PoolAllocator(pools, limit_mb=2 * N_BYTES // 2**20, huge_pages=kind)
    words = allocator.allocate_array(N_BYTES // 8, np.int64)
    start = perf_counter()
    words[:] = 0
    took = perf_counter() - start
    if only_reads:
        read_in_turn(words, N_READS)
        return {}
    return {
        "huge": resident.huge_bytes(allocator.extents()),
        "write": took,
        "in_turn": shortest(read_in_turn, words, N_READS),
        "at_once": shortest(read_at_once, words, N_READS),
        "copies": shortest(copy_pieces, words, N_COPIES),
    }


def run(kind: str, *before: str, only_reads: bool = False) -> subprocess.CompletedProcess[str]:
    """Measure in a process of its own."""
    flags = ["--only-reads"] if only_reads else []
    command = [*before, sys.executable, __file__, "--kind", kind, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def misses_of(kind: str) -> str:
    """Return how often a read missed the TLB, where that is counted."""
    if not Path("/usr/bin/perf").exists():
        return "not counted"
    perf = "perf", "stat", "-x", ";", "-e", "dTLB-load-misses"
    try:
        found = re.search(r"^(\d+);", run(kind, *perf, only_reads=True).stderr, re.M)
    except subprocess.CalledProcessError:
        found = None
    return "not counted" if found is None else f"{int(found[1]) / N_READS:.2f}"


def rows() -> list[tuple[str, ...]]:
    """Measure every kind that the system gives."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(N_TURNS):
        for kind in KINDS:
            taken = json.loads(run(kind).stdout)
            known = best.get(kind, taken)
            best[kind] = {"huge": taken.pop("huge")}
            best[kind] |= {name: min(value, known[name]) for name, value in taken.items()}
    found = []
    for kind, taken in best.items():
        if kind != "never" and kind not in taken["huge"]:
            continue
        in_huge = sum(taken["huge"].values())
        found.append(
            (
                f'`"{kind}"`',
                show_bytes(in_huge),
                f"{taken['write'] * 1e3:.0f} ms",
                f"{taken['in_turn'] * 1e9:.1f} ns",
                f"{taken['at_once'] * 1e9:.1f} ns",
                f"{taken['copies'] * 1e9:.0f} ns",
                misses_of(kind),
            )
        )
    return found


def table(found: list[tuple[str, ...]]) -> str:
    """Write it as Markdown."""
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the table, and write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--only-reads", action="store_true")
    given = parser.parse_args()
    if given.kind:
        json.dump(measure(given.kind, only_reads=given.only_reads), sys.stdout)
        return
    text = table(rows())
    sys.stdout.write(f"{text}\n")
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        mark = "<!-- huge pages: {} -->\n"
        before, rest = page.split(mark.format("begin"))
        after = rest.split(mark.format("end"))[1]
        parts = before, mark.format("begin"), f"\n{text}\n\n", mark.format("end"), after
        given.write.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("NUMBA_CACHE_DIR", "/tmp/jessymem-huge-pages")
    main()
