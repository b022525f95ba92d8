"""Resident memory while dimensions come and go: within the budget, and the same at every turn."""

from __future__ import annotations

from support import samples
from support.eviction import write_dimension
from support.memory import pytestmark as pytestmark
from support.memory import run
from support.samples import sampled

ROUNDS = """
config = MemoryConfig(4, sys.argv[1], simulation="never", load_mode=sys.argv[2])
manager = MmapManager(config)
numbers = range(20, 28)

def read_all():
    for number in numbers:
        with manager.access_layer(f"L{number}-00") as view:
            np.frombuffer(view, np.uint8).sum()  # reads every page

before = resident()
for number in numbers:
    manager.load_dimension(number)
for _ in range(3):
    read_all()
first = resident()
assert first - before < 4 * MIB + 2 * SLACK, (before, first)
for _ in range(int(sys.argv[3])):
    read_all()
    assert manager.get_stats().total_allocated_bytes <= 4 * MIB
stats = manager.get_stats()
assert stats.reloads > 6 * int(sys.argv[3]) and stats.waiting_bytes == 0, stats
assert resident() - first < SLACK, (before, first, resident())
manager.close()
assert resident() - before < 2 * SLACK, (before, resident())
"""


@sampled
def test_resident_memory_stays_within_the_budget_over_many_reloads(tmp_path):
    for number in range(20, 28):
        write_dimension(tmp_path, number)
    for load_mode in ("map", "copy"):
        run(ROUNDS, tmp_path, load_mode, samples.number(20, of=60))
