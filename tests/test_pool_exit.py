"""The end of the interpreter beside daemon threads that are in blocks, or read layers."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import samples
from support.samples import sampled

from jessymem.kernels import _jit

SLOW_MANY, SLOW_VIEWS = (pytest.param(way, marks=pytest.mark.slow) for way in ("many", "views"))

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
@pytest.mark.parametrize("way", ["compiled", SLOW_MANY, "single"])
@sampled
def test_daemon_threads_may_be_in_blocks_when_the_interpreter_ends(way):
    for _ in range(samples.number(1, of=3)):
        command = [sys.executable, "-c", PROGRAM, way]
        ended = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert (ended.returncode, ended.stderr) == (0, b"")


READERS = """
import sys, threading
import numpy as np
from jessymem import MmapManager, RegionBuilder
from jessymem.kernels import layer_bytes
from numba import njit

builder = RegionBuilder("D20", "Name")
builder.add_layer(0, bytes(2**23))
builder.build_to_file(sys.argv[2] + "/D20/region.mmap")
manager = MmapManager(64, base_path=sys.argv[2])
manager.load_dimension("D20")
manager.create_proto_dimension("D21", bytes(2**20))


@njit(nogil=True)
def read(store, layer_id, running, n):
    total = 0
    for _ in range(n):
        running[0] += 1
        for byte in layer_bytes(store, layer_id):
            total += byte
    return total


@njit(nogil=True)
def read_array(content, running, n):
    total = 0
    for _ in range(n):
        running[0] += 1
        for byte in content:
            total += byte
    return total


def stores(running, layer_id):
    read(manager.store(), layer_id, running, 10**12)


def views(running, layer_id):
    read_array(np.frombuffer(manager.access_layer(layer_id), np.uint8), running, 10**12)


def scans(running, layer_id):
    try:
        while True:
            manager.count(b"needle", workers=2)
            running[0] += 1
    except RuntimeError:  # Python starts no thread at its end
        pass


read(manager.store(), 20 << 16, np.zeros(1, np.int64), 1)
read_array(np.frombuffer(manager.access_layer("L20-00"), np.uint8), np.zeros(1, np.int64), 1)
manager.count(b"needle")
counts = [np.zeros(1, np.int64) for _ in range(4)]
work = {"stores": stores, "views": views, "scans": scans}[sys.argv[1]]
for number, count in enumerate(counts):
    layer_id = (20 + number % 2) << 16
    threading.Thread(target=work, args=(count, layer_id), daemon=True).start()
while not all(counts):
    pass
"""


@pytest.mark.skipif(_jit.is_disabled(), reason="plain Python holds the GIL all the time")
@pytest.mark.parametrize("way", ["stores", SLOW_VIEWS, "scans"])
def test_daemon_threads_may_read_layers_when_the_interpreter_ends(way, tmp_path):
    command = [sys.executable, "-c", READERS, way, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
