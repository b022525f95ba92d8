"""Resident memory of a fresh process, as the system tells it.

Each measurement is a process of its own, so that nobody else's memory is counted. The system may
be late by some pages with its numbers, so all bounds allow a few hundred.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jessymem import osmem

pytestmark = pytest.mark.skipif(
    not (osmem.CAN_RETURN_PAGES and Path("/proc/self/statm").exists()),
    reason="resident memory is not told, or cannot be returned",
)


PRELUDE = """
import gc, mmap, random, sys
from pathlib import Path
import numpy as np
from jessymem import MemoryConfig, MmapManager, PoolAllocator, LimitExceeded
from jessymem.kernels import _jit
from support.internals import allocator_of

KIB, MIB = 2**10, 2**20
SLACK = MIB

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

def write(memory, offset, n_bytes):
    with memory.view(offset, n_bytes) as view:
        np.frombuffer(view, np.uint8)[:] = 7

# What the first of everything costs is no part of the question, nor what a thread compiles beside.
_jit.promote(_jit.MEMORY)
with MmapManager(MemoryConfig(2, base_path="nowhere", pool_configs=[(1, 4096)])) as first:
    write(first, first.allocate(100), 100)
    first.deallocate_many(first.allocate_many([1, 5000]))
    first.allocate_array(3)
    first.trim()
    first.get_stats()
    first.dump_state()
    try:
        first.allocate(3 * MIB)
    except LimitExceeded:
        pass
del first
PoolAllocator([(1, 4096)], 1).usage
"""


def run(code, *arguments):
    """Run `code` in a fresh process; its output is the answer."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split()
