"""The end of the interpreter beside daemon threads that are at work in blocks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jessymem.kernels import _jit

N_RUNS = 3

PROGRAM = """
import sys, threading
import numpy as np
from jessymem import PoolAllocator
from jessymem.kernels import allocation, blocks, memory, release
from jessymem.kernels.schema import ANY_SIZE, QUIET_LIMIT
from numba import njit

allocator = PoolAllocator([(4, 4096)], limit_mb=64)
words = allocator.words
grown = allocator.allocate(6 * 2**20)  # a second mapping


@njit(nogil=True)
def churn(words, grown, running, n):
    for _ in range(n):
        running[0] += 1
        memory.fill_zero(blocks.address_of(words, grown), 4096)
        handle = allocation.allocate(words, 4096, QUIET_LIMIT)
        if handle < 0:
            return handle
        memory.fill_zero(blocks.address_of(words, handle), 4096)
        release.deallocate(words, handle, ANY_SIZE)
    return 0


sizes = np.full(100, 4096)


def compiled(running):
    churn(words, int(grown), running, 10**12)


def many(running):
    while True:
        allocator.deallocate_many(allocator.allocate_many(sizes))
        running[0] += 1


def single(running):
    while True:
        allocator.deallocate(allocator.allocate(4096))
        running[0] += 1


churn(words, int(grown), np.zeros(1, np.int64), 1)
counts = [np.zeros(1, np.int64) for _ in range(3)]
work = {"compiled": compiled, "many": many, "single": single}[sys.argv[1]]
for count in counts:
    threading.Thread(target=work, args=(count,), daemon=True).start()
while not all(counts):
    pass
"""


@pytest.mark.skipif(_jit.is_disabled(), reason="plain Python holds the GIL all the time")
@pytest.mark.parametrize("way", ["compiled", "many", "single"])
def test_daemon_threads_may_be_in_blocks_when_the_interpreter_ends(way):
    for _ in range(N_RUNS):
        command = [sys.executable, "-c", PROGRAM, way]
        ended = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert (ended.returncode, ended.stderr) == (0, b"")
