"""Resident memory, as the system tells it: within the limit, not committed early, returned.

Each test is a process of its own, so that nobody else's memory is counted. The system may be late
by some pages with its numbers, so all bounds allow a few hundred.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.memory import run
from support.regions import write_sparse
from support.system import HAS_PROC

MIB = 2**20


MANAGER_STARTS = """
before = resident()
manager = MmapManager(280, base_path="nowhere")
stats = manager.get_stats()
after = resident()
assert stats.total_allocated_bytes == 0 and stats.retained_bytes == 0
assert after - before < SLACK, (before, after)
offset = manager.allocate(100)
write(manager, offset, 100)
assert resident() - before < 2 * SLACK, (before, resident())
"""


def test_a_manager_commits_no_pages_when_it_is_made():
    run(MANAGER_STARTS)


ALLOCATOR_STARTS = """
before = resident()
allocator = PoolAllocator([(280, 4096), (280, 64 * KIB), (464, 256 * KIB)], limit_mb=1024)
allocator.usage
assert len(allocator.pools) == 3
after = resident()
assert after - before < SLACK, (before, after)
offset = allocator.allocate(300)
write(allocator, offset, 300)
assert resident() - before < 2 * SLACK, (before, resident())
"""


def test_an_allocator_commits_no_pages_when_it_is_made():
    run(ALLOCATOR_STARTS)


UNWRITTEN = """
allocator = PoolAllocator([(128, 256 * KIB)], limit_mb=280)
allocator.deallocate(allocator.allocate(1))
before = resident()
offsets = allocator.allocate_many([256 * KIB] * 400)
run = allocator.allocate(100 * MIB)
assert allocator.usage[0] >= 200 * MIB
assert resident() - before < 2 * SLACK, (before, resident())
"""


def test_blocks_that_nobody_writes_commit_no_pages():
    run(UNWRITTEN)


TRIM = """
allocator = PoolAllocator([(16, 4 * KIB), (64, 256 * KIB)], limit_mb=100)
allocator.deallocate(allocator.allocate(1))
before = resident()
offsets = allocator.allocate_many([256 * KIB] * 120 + [4 * KIB] * 2000)
sizes = [256 * KIB] * 120 + [4 * KIB] * 2000
for offset, n_bytes in zip(offsets, sizes):
    write(allocator, offset, n_bytes)
written = resident()
assert written - before > 36 * MIB, (before, written)
allocator.deallocate_many(offsets)
assert resident() > written - SLACK  # retained
given = allocator.trim()
after = resident()
assert given == sum(sizes), given
assert after - before < 2 * SLACK, (before, written, after)
again = allocator.allocate(256 * KIB)
assert not any(allocator.view(again, 256 * KIB))
"""


def test_trim_lowers_resident_memory_by_what_it_says():
    run(TRIM)


SMALL = """
allocator = PoolAllocator([(16, 256)], limit_mb=100)
allocator.deallocate(allocator.allocate(1))
before = resident()
offsets = allocator.allocate_many([256] * (16 * MIB // 256))
memory = np.frombuffer(allocator.view(offsets[0], 256), np.uint8)
for offset in offsets[::8]:
    write(allocator, offset, 256)
assert resident() - before > 15 * MIB
del memory
allocator.deallocate_many(offsets)
allocator.trim()
rows = 2 * MIB  # the bookkeeping of 65,536 blocks
assert resident() - before < 2 * SLACK + rows, (before, resident())
"""


def test_trim_gives_back_the_pages_that_small_blocks_share():
    run(SMALL)


GROWN = """
allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=100)
allocator.deallocate(allocator.allocate(1))
before = resident()
for _ in range(3):
    offset = allocator.allocate(30 * MIB)
    write(allocator, offset, 30 * MIB)
    assert resident() - before > 29 * MIB
    allocator.deallocate(offset)
    assert resident() - before < 2 * SLACK, (before, resident())
"""


def test_a_grown_pool_that_is_empty_takes_no_memory():
    run(GROWN)


CLOSED = """
before = resident()
allocator = PoolAllocator([(64, 256 * KIB)], limit_mb=100)
offsets = [allocator.allocate(10 * MIB) for _ in range(3)]
for offset in offsets:
    write(allocator, offset, 10 * MIB)
view = allocator.view(offsets[1], 10 * MIB)
allocator.close()
held = resident()
assert 9 * MIB < held - before < 10 * MIB + 2 * SLACK, (before, held)
assert view[0] == view[-1] == 7
del view
assert resident() - before < 2 * SLACK, (before, resident())
"""


def test_a_closed_allocator_keeps_only_what_is_viewed():
    run(CLOSED)


IN_TURN = """
LIMIT = 48 * MIB
pools = [(16, 4 * KIB), (48, 64 * KIB), (48, 256 * KIB)]
config = MemoryConfig(48, base_path=sys.argv[1], pool_configs=pools, advice="none")
manager = MmapManager(config)
rng = random.Random(7)
before = resident()
live, peak = [], 0
for turn in range(int(sys.argv[2])):
    n_bytes = rng.choice([4 * KIB, 64 * KIB, 256 * KIB, 3 * MIB])
    try:
        for _ in range(rng.randrange(1, 4 * MIB // n_bytes + 2)):
            offset = manager.allocate(n_bytes)
            live.append((offset, n_bytes))
            write(manager, offset, n_bytes)
    except LimitExceeded:
        rng.shuffle(live)
        for offset, _ in live[len(live) // 4 :]:
            manager.deallocate(offset)
        del live[len(live) // 4 :]
    if turn % 3 == 0:
        for number in (20, 21):
            try:
                manager.load_dimension(number)
            except LimitExceeded:
                continue
            layer = f"L{number}-00"
            with manager.access_layer(layer) as view:
                np.frombuffer(view, np.uint8).sum()  # reads every page
    stats = manager.get_stats()
    assert stats.total_allocated_bytes + stats.retained_bytes <= LIMIT
    now = resident() - before
    peak = max(peak, now)
    assert now <= LIMIT + 2 * SLACK, (turn, now, stats)
    for number in (20, 21):
        if manager.is_loaded(number):
            manager.unload_dimension(number)
assert allocator_of(manager).validate() == []
stats = manager.get_stats()
assert stats.peak_usage_bytes > 0.8 * LIMIT, stats
assert peak > 0.6 * LIMIT, peak
print(peak)
"""


def write_filled(base, number, n_bytes):
    """A region whose one layer is nearly all of it."""
    path = write_sparse(base, number, n_bytes, n_layers=1)
    with path.open("r+b") as file:
        file.seek(0)
        head = bytearray(file.read(512))
        at = 256 + 11
        head[at : at + 8] = (512).to_bytes(8, "little")
        head[at + 8 : at + 12] = (n_bytes - 512).to_bytes(4, "little")
        file.seek(0)
        file.write(head)
        file.seek(512)
        file.write(b"\x05" * (n_bytes - 512))
    return path


def test_resident_memory_stays_within_the_limit_while_blocks_and_regions_take_turns(tmp_path):
    write_filled(tmp_path, 20, 12 * MIB)
    write_filled(tmp_path, 21, 20 * MIB)
    run(IN_TURN, tmp_path, 30)


LITTLE_ADDRESS_SPACE = """
import resource, sys
from jessymem import MmapManager, warmup
warmup()
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 200 * 2**20,) * 2)
manager = MmapManager(16, base_path=sys.argv[1])
offsets = [manager.allocate(size) for size in (100, 10_000, 60_000, 200_000)]
assert 0 < sum(pool.total_blocks * pool.block_size
               for pool in manager.get_stats().per_pool.values()) <= 32 * 2**20
for offset in offsets:
    manager.deallocate(offset)
"""


@pytest.mark.skipif(not HAS_PROC, reason="needs a limit for address space")
def test_where_the_system_refuses_the_address_space_it_is_cut_to_the_budget(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", LITTLE_ADDRESS_SPACE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
