"""Huge pages: which memory may have them, what comes instead, what budget and statistics say."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from support.memory import run
from support.system_calls import Calls, intercepted

from jessymem import (
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    PoolAllocator,
    RegionBuilder,
    osmem,
    placement,
    resident,
)
from jessymem.placement import PAGE_BYTES, Placement

KIB, MIB, GIB = 2**10, 2**20, 2**30
HUGE = 2 * MIB
KINDS = ["thp", "2MB", "1GB"]
MEMINFO = Path("/proc/meminfo")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has huge pages so")


def makes_huge_pages() -> bool:
    """Tell whether the system makes huge pages by itself for who asks."""
    try:
        return "[never]" not in (placement.THP / "enabled").read_text()
    except OSError:
        return False


def n_set_aside() -> int:
    """Return how many huge pages of 2 MiB are set aside, and nobody's."""
    try:
        found = dict(re.findall(r"HugePages_(Free|Rsvd): +(\d+)", MEMINFO.read_text()))
    except OSError:
        return 0
    return int(found.get("Free", 0)) - int(found.get("Rsvd", 0))


needs_thp = pytest.mark.skipif(not makes_huge_pages(), reason="the system makes no huge pages")
needs_set_aside = pytest.mark.skipif(
    n_set_aside() < 40, reason="no huge pages are set aside: echo 64 > /proc/sys/vm/nr_hugepages"
)
each_real_kind = pytest.mark.parametrize(
    "kind", [pytest.param("thp", marks=needs_thp), pytest.param("2MB", marks=needs_set_aside)]
)


@pytest.fixture
def told(caplog):
    """Return what was recorded of huge pages: kind, what comes instead, error number."""

    def records():
        found = [each for each in caplog.records if each.event == "huge_pages_refused"]
        assert all(each.levelname == "WARNING" for each in found)
        return [(each.kind, each.instead, each.errno) for each in found]

    return records


def refusing(**numbers):
    """Return what refuses calls of the system: which of them, and with what."""

    def refuse(operation, path, *details):
        number = numbers.get(operation.replace(" ", "_"))
        if number is not None:
            raise OSError(number, os.strerror(number))

    return intercepted(refuse)


def set_aside_anything(monkeypatch):
    """Let the system have huge pages set aside, as many as anybody wants."""

    def take(page_bytes, n_bytes, is_read_only):
        assert n_bytes % page_bytes == 0
        return osmem.private_mapping(n_bytes, is_read_only=is_read_only)

    monkeypatch.setattr(placement, "_map_reserved", take)


def pages_of(allocator):
    return [each.pages for each in allocator.survey().per_pool.values()]


def use_up(allocator, pool_bytes, n_bytes):
    """Take blocks until so many bytes are taken, and write one byte into each page of 4 KiB."""
    offsets = [allocator.allocate(n_bytes) for _ in range(pool_bytes // n_bytes)]
    for offset in offsets:
        np.frombuffer(allocator.view(offset, n_bytes), np.uint8)[:: 4 * KIB] = 7
    return offsets


# -- which memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "block_bytes", "n_bytes", "kinds"),
    [
        ("never", GIB, GIB, []),
        ("thp", 128 * KIB, GIB, []),
        ("thp", 256 * KIB, GIB, ["thp"]),
        ("thp", 256 * KIB, HUGE, ["thp"]),
        ("thp", 256 * KIB, MIB, []),
        ("thp", GIB, GIB, ["thp"]),
        ("2MB", 128 * KIB, GIB, []),
        ("2MB", 256 * KIB, GIB, ["2MB", "thp"]),
        ("2MB", 256 * KIB, 3 * MIB, ["thp"]),
        ("1GB", HUGE, GIB, ["2MB", "thp"]),
        ("1GB", 128 * MIB, GIB, ["1GB", "2MB", "thp"]),
        ("1GB", GIB, GIB, ["1GB", "2MB", "thp"]),
    ],
)
def test_few_blocks_share_a_page(asked, block_bytes, n_bytes, kinds):
    assert Placement(asked).kinds_for(block_bytes, n_bytes) == kinds


def test_small_blocks_have_small_pages(told):
    calls = Calls(hints=True)
    with intercepted(calls):
        allocator = PoolAllocator([(8, 4 * KIB), (8, 128 * KIB)], 64, huge_pages="1GB")
        use_up(allocator, 4 * MIB, 128 * KIB)
    assert pages_of(allocator) == ["small", "small"]
    assert not {"map huge", "advise huge"} & set(calls.operations)
    assert resident.huge_bytes(allocator.extents()) == {}
    assert told() == []


# -- what is refused -------------------------------------------------------------------------------


POOLS = [(1, 4 * KIB), (16, HUGE), (16, 4 * MIB)]


@needs_thp
def test_pages_that_are_not_set_aside_are_made_by_the_system(told):
    with refusing(map_huge=errno.ENOMEM):
        allocator = PoolAllocator(POOLS, 64, huge_pages="2MB")
        allocator.add_pool(8, HUGE)
    assert pages_of(allocator) == ["small", "thp", "thp", "thp"]
    assert told() == [("2MB", "thp", errno.ENOMEM)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.EIO])
def test_small_pages_are_never_refused(number, told):
    with refusing(map_huge=errno.ENOMEM, advise_huge=number):
        allocator = PoolAllocator([*POOLS, (1024, GIB)], 64, huge_pages="1GB")
        offsets = use_up(allocator, 16 * MIB, HUGE)
    assert pages_of(allocator) == ["small"] * 4
    assert told() == [
        ("2MB", "thp", errno.ENOMEM),
        ("thp", "small", number),
        ("1GB", "2MB", errno.ENOMEM),
    ]
    assert resident.huge_bytes(allocator.extents()) == {}
    for offset in offsets:
        allocator.deallocate(offset)
    assert allocator.trim() == 16 * MIB
    assert allocator.validate() == []


def test_another_cause_is_told_too(told):
    allocator = PoolAllocator([(1, 4 * KIB)], 64, huge_pages="thp")
    for number in (errno.EINVAL, errno.EPERM, errno.EINVAL):
        with refusing(advise_huge=number):
            allocator.add_pool(2, HUGE)
    assert [number for *_, number in told()] == [errno.EINVAL, errno.EPERM]


@pytest.mark.parametrize(
    ("name", "text"), [("enabled", "always madvise [never]\n"), ("hpage_pmd_size", "33554432\n")]
)
def test_a_system_that_makes_none_is_not_asked(name, text, tmp_path, monkeypatch, told):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(placement, "THP", tmp_path)
    calls = Calls(hints=True)
    with intercepted(calls):
        allocator = PoolAllocator(POOLS, 64, huge_pages="thp")
    assert pages_of(allocator) == ["small"] * 3
    assert "advise huge" not in calls.operations
    assert told() == [("thp", "small", errno.ENOTSUP)]


def test_too_few_addresses_are_no_cause(told):
    def refuse(operation, path, *details):
        asked.append(operation)
        if operation == "map private" and asked.count(operation) in (2, 3):
            raise OSError(errno.ENOMEM, "")

    asked = []  # the first pool; the second in huge pages, and in small ones; both in one mapping
    with intercepted(refuse):
        allocator = PoolAllocator([(4, 4 * KIB), (8, HUGE)], 64, huge_pages="thp")
    assert pages_of(allocator) == ["small", "small"]
    (first, n_bytes), (second, _) = allocator.extents()
    assert second == first + n_bytes
    assert told() == []


@pytest.mark.parametrize(("kind", "told"), [("2MB", "2MB"), ("thp", "thp")])
def test_a_pool_that_is_made_is_whole_pages(kind, told, monkeypatch):
    set_aside_anything(monkeypatch)
    allocator = PoolAllocator([(1, 4 * KIB), (1, 256 * KIB)], 64, huge_pages=kind)
    allocator.allocate(11 * MIB)
    *_, grown = allocator.survey().per_pool.values()
    assert (grown.kind, grown.total_blocks * grown.block_size) == ("grown", 12 * MIB)
    assert grown.pages == told or not makes_huge_pages()


# -- what the system gives -------------------------------------------------------------------------


@each_real_kind
def test_a_block_is_what_becomes_resident(kind):
    allocator = PoolAllocator([(16, HUGE)], 64, huge_pages=kind)
    (extent,) = allocator.extents()
    assert extent[0] % HUGE == 0 and extent[1] == 16 * MIB
    assert resident.huge_bytes([extent]) == {}
    first, second = allocator.allocate(HUGE), allocator.allocate(100)
    for offset in (first, second):
        allocator.view(offset, 1)[0] = 1  # one byte
    assert resident.huge_bytes([extent]) == {kind: 2 * HUGE}
    assert allocator.usage[0] == 2 * HUGE
    allocator.deallocate(first)
    assert allocator.survey().n_retained == HUGE
    if kind == "thp" or placement._keeps_reserved():
        assert allocator.trim() == HUGE
        assert resident.huge_bytes([extent]) == {kind: HUGE}
    assert not any(allocator.view(allocator.allocate(HUGE), HUGE))
    assert allocator.validate() == []


@each_real_kind
def test_a_page_that_blocks_share_is_resident_with_the_first(kind):
    allocator = PoolAllocator([(16, 256 * KIB)], 64, huge_pages=kind)
    offsets = [allocator.allocate(256 * KIB) for _ in range(2)]
    pages = {offset.offset // HUGE for offset in offsets}
    for offset in offsets:
        allocator.view(offset, 1)[0] = 1
    found = allocator.survey()
    assert (allocator.usage[0], found.n_retained) == (HUGE // 4, len(pages) * HUGE - HUGE // 4)
    assert resident.huge_bytes(allocator.extents()) == {kind: len(pages) * HUGE}
    allocator.deallocate(offsets[0])
    if len(pages) == 1:
        assert allocator.trim() == 0  # its neighbour is in use: nothing is split
        assert resident.huge_bytes(allocator.extents()) == {kind: HUGE}
    allocator.deallocate(offsets[1])
    allocator.trim()
    if kind == "thp" or placement._keeps_reserved():
        assert allocator.survey().n_retained == 0
        assert resident.huge_bytes(allocator.extents()) == {}
    assert allocator.validate() == []


@each_real_kind
def test_memory_that_shares_pages_is_zero_when_it_comes_again(kind):
    allocator = PoolAllocator([(16, 256 * KIB)], 64, huge_pages=kind)
    whole = allocator.allocate(16 * MIB)
    allocator.view(whole, 16 * MIB)[:] = b"x" * 16 * MIB
    allocator.deallocate(whole)
    small = allocator.allocate(256 * KIB)
    size = 5 * MIB - 3  # begins and ends within pages that others use too
    offset = allocator.allocate(size)
    assert not any(allocator.view(offset, size))
    assert not any(allocator.view(small, 256 * KIB))
    assert allocator.validate() == []


@each_real_kind
def test_a_run_of_blocks_is_zero_when_it_comes_again(kind):
    allocator = PoolAllocator([(16, HUGE)], 64, huge_pages=kind)
    for _ in range(2):
        offset = allocator.allocate(10 * MIB)
        view = allocator.view(offset, 10 * MIB)
        assert not any(view[:: 64 * KIB])
        view[:] = b"x" * len(view)
        del view
        allocator.deallocate(offset)


@needs_set_aside
def test_a_page_that_was_returned_is_still_ours():
    if not placement._keeps_reserved():
        pytest.skip("this kernel gives it to others")
    allocator = PoolAllocator([(40, HUGE)], 64, huge_pages="2MB")
    assert pages_of(allocator) == ["2MB"]
    n_left = n_set_aside()
    offsets = use_up(allocator, 20 * HUGE, HUGE)
    assert n_set_aside() == n_left
    allocator.deallocate_many(offsets)
    assert allocator.trim() == 20 * HUGE
    assert n_set_aside() == n_left
    use_up(allocator, 20 * HUGE, HUGE)


def test_pages_that_might_be_lost_are_not_returned(monkeypatch):
    set_aside_anything(monkeypatch)
    monkeypatch.setattr(placement, "_keeps_reserved", lambda: False)
    allocator = PoolAllocator([(8, HUGE)], 64, huge_pages="2MB")
    assert pages_of(allocator) == ["2MB"]
    for offset in use_up(allocator, 8 * MIB, HUGE):
        allocator.deallocate(offset)
    assert allocator.trim() == 0
    assert allocator.survey().n_retained == 8 * MIB
    assert not any(allocator.view(allocator.allocate(HUGE), HUGE))
    assert allocator.validate() == []


@pytest.mark.parametrize(
    ("release", "keeps"),
    [("6.8.0-31-generic", True), ("6.7.9", False), ("5.15.0", False), ("10.0", True), ("?", False)],
)
def test_which_kernels_keep_what_was_returned(release, keeps, monkeypatch):
    told = os.uname_result(("Linux", "host", release, "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: told)
    assert placement._keeps_reserved() is keeps


LOAD = """
kind, LIMIT = sys.argv[1], 48 * MIB
pools = [(8, 4 * KIB), (24, 256 * KIB), (48, 2 * MIB)]
config = MemoryConfig(48, base_path=sys.argv[2], pool_configs=pools, load_mode="copy",
                      huge_pages=kind)
manager = MmapManager(config)

def memory():
    '''Of all of the process: resident in any pages, and of that huge.'''
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, *values = line.split()
        if values and values[-1] == "kB":
            found[name] = found.get(name, 0) + int(values[0]) * KIB
    huge = found["AnonHugePages:"], found["Private_Hugetlb:"] + found["Shared_Hugetlb:"]
    return found["Rss:"] + huge[1], sum(huge)

# What the first load and the first statistics import is no part of the question.
manager.load_dimension(20)
write(manager, manager.allocate(300 * KIB), 1)
manager.get_stats()
manager.unload_dimension(20)
rng = random.Random(7)
live, most = [], 0
gc.collect()
stats = manager.get_stats()
before = memory()[0] - stats.total_allocated_bytes - stats.retained_bytes
for turn in range(30):
    n_bytes = rng.choice([4 * KIB, 100 * KIB, 256 * KIB, 2 * MIB, 7 * MIB])
    try:
        for _ in range(rng.randrange(1, 8)):
            offset = manager.allocate(n_bytes)
            live.append(offset)
            write(manager, offset, 1 if rng.random() < 0.5 else n_bytes)
        if turn % 3 == 0:
            manager.load_dimension(20)
    except LimitExceeded:
        rng.shuffle(live)
        manager.deallocate_many(live[len(live) // 3:])
        del live[len(live) // 3:]
    stats = manager.get_stats()
    assert stats.total_allocated_bytes + stats.retained_bytes <= LIMIT
    now, huge = memory()
    counted = stats.total_allocated_bytes + stats.retained_bytes
    assert now - before <= counted + SLACK // 4, (turn, now - before, counted)
    most = max(most, sum(stats.placement.huge_bytes.values()))
    assert huge == sum(stats.placement.huge_bytes.values()), (huge, stats.placement)
    if manager.is_loaded(20) and turn % 2:
        manager.unload_dimension(20)
assert allocator_of(manager).validate() == []
assert most > 2 * MIB, most
"""


@each_real_kind
def test_resident_memory_stays_within_what_is_counted(kind, tmp_path):
    make_region(tmp_path, 15 * MIB)
    run(LOAD, kind, tmp_path)


# -- files that are copied -------------------------------------------------------------------------


def make_region(base, n_bytes, number=20):
    builder = RegionBuilder(number, "large")
    builder.add_layer(0, np.random.default_rng(number).bytes(n_bytes))
    return builder.build_to_file(base / f"D{number}" / "region.mmap").size


def copying(base, huge_pages, total_mb=64):
    settings = {"pool_configs": [(1, 4 * KIB)], "load_mode": "copy", "huge_pages": huge_pages}
    return MmapManager(MemoryConfig(total_mb, base, **settings))


@needs_thp
def test_a_copy_has_huge_pages_but_for_what_is_left_over(tmp_path):
    size = make_region(tmp_path, 5 * MIB)
    with copying(tmp_path, "thp") as manager:
        manager.load_dimension("D20")
        stats = manager.get_stats()
        assert stats.total_allocated_bytes == osmem.round_to_pages(size)
        assert stats.placement.huge_bytes == {"thp": 4 * MIB}
        view = manager.access_layer("L20-00")
        assert view.readonly and len(view) == 5 * MIB
        assert bytes(view) == np.random.default_rng(20).bytes(5 * MIB)


@pytest.mark.parametrize("kind", ["2MB", "1GB"])
def test_pages_that_are_set_aside_are_charged_whole(kind, tmp_path, monkeypatch):
    set_aside_anything(monkeypatch)
    make_region(tmp_path, 17 * MIB)
    with copying(tmp_path, kind) as manager:
        manager.load_dimension("D20")
        assert manager.get_stats().total_allocated_bytes == 18 * MIB
        (region,) = manager.dump_state()["regions"]
        assert region["n_charged"] == 18 * MIB
        view = manager.access_layer("L20-00")
        assert view.readonly
        assert bytes(view) == np.random.default_rng(20).bytes(17 * MIB)
        manager.unload_dimension("D20")
        assert manager.get_stats().waiting_bytes == 18 * MIB
        del view
        gc.collect()
        assert manager.get_stats().total_allocated_bytes == 0


@needs_set_aside
def test_a_copy_lies_in_pages_that_are_set_aside(tmp_path):
    make_region(tmp_path, 17 * MIB)
    n_free = n_set_aside()
    with copying(tmp_path, "2MB") as manager:
        manager.load_dimension("D20")
        assert manager.get_stats().placement.huge_bytes == {"2MB": 18 * MIB}
        assert n_set_aside() == n_free - 9
    gc.collect()
    assert n_set_aside() == n_free


@pytest.mark.parametrize("n_bytes", [MIB, 5 * MIB, 14 * MIB])
def test_what_would_be_wasted_is_not_set_aside(n_bytes, tmp_path, told):
    size = make_region(tmp_path, n_bytes)
    calls = Calls(hints=True)
    with intercepted(calls), copying(tmp_path, "2MB") as manager:
        manager.load_dimension("D20")
        assert manager.get_stats().total_allocated_bytes == osmem.round_to_pages(size)
    assert "map huge" not in calls.operations
    assert ("advise huge" in calls.operations) == (n_bytes >= HUGE)


def test_a_budget_that_whole_pages_would_pass_has_smaller_ones(tmp_path, monkeypatch):
    set_aside_anything(monkeypatch)
    size = make_region(tmp_path, 17 * MIB - 8 * KIB)
    with copying(tmp_path, "2MB", total_mb=17) as manager:
        manager.load_dimension("D20")
        assert manager.get_stats().total_allocated_bytes == osmem.round_to_pages(size)
    with copying(tmp_path, "2MB", total_mb=16) as manager, pytest.raises(LimitExceeded) as caught:
        manager.load_dimension("D20")
    assert caught.value.requested == osmem.round_to_pages(size)


def test_a_copy_that_is_refused_huge_pages_has_small_ones(tmp_path, told):
    size = make_region(tmp_path, 17 * MIB)
    make_region(tmp_path, 16 * MIB, 21)
    with (
        refusing(map_huge=errno.ENOMEM, advise_huge=errno.EINVAL),
        copying(tmp_path, "2MB") as manager,
    ):
        manager.load_dimension("D20")
        assert manager.get_stats().total_allocated_bytes == osmem.round_to_pages(size)
        manager.load_dimension("D21")
        assert manager.get_stats().placement.huge_bytes == {}
        assert bytes(manager.access_layer("L21-00")[:9]) == np.random.default_rng(21).bytes(9)
    assert told() == [("2MB", "thp", errno.ENOMEM), ("thp", "small", errno.EINVAL)]


# -- what smaps tells ------------------------------------------------------------------------------

SMAPS = """\
10000000-10400000 rw-p 00000000 00:00 0
Size:               4096 kB
KernelPageSize:        4 kB
AnonHugePages:      2048 kB
Private_Hugetlb:       0 kB
VmFlags: rd wr mr mw me ac
10400000-10800000 rw-p 00000000 00:0f 12   /anon_hugepage (deleted)
KernelPageSize:     2048 kB
AnonHugePages:         0 kB
Private_Hugetlb:    4096 kB
40000000-c0000000 rw-p 00000000 00:0f 12   /anon_hugepage (deleted)
KernelPageSize:  1048576 kB
Shared_Hugetlb: 1048576 kB
Private_Hugetlb:       0 kB
f0000000-f0400000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
AnonHugePages:      4096 kB
"""


@pytest.mark.parametrize(
    ("extents", "found"),
    [
        ([], {}),
        ([(0x10000000, 4 * MIB)], {"thp": HUGE}),
        ([(0x10000000, 4 * MIB), (0x10400000, 4 * MIB)], {"thp": HUGE, "2MB": 4 * MIB}),
        ([(0x40000000, 2 * GIB)], {"1GB": GIB}),
        ([(0xF0100000, MIB), (0xF0300000, MIB)], {"thp": HUGE}),  # the rest is others'
        ([(0x20000000, 4 * MIB)], {}),
    ],
)
def test_what_is_ours_of_the_pages(extents, found, tmp_path, monkeypatch):
    (tmp_path / "smaps").write_text(SMAPS)
    monkeypatch.setattr(resident, "SMAPS", tmp_path / "smaps")
    assert resident.huge_bytes(extents) == found


def test_nothing_is_known_where_the_system_tells_nothing(tmp_path, monkeypatch):
    for name in ("SMAPS", "NUMA_MAPS"):
        monkeypatch.setattr(resident, name, tmp_path / "missing")
    assert resident.huge_bytes([(0, GIB)]) == {}
    assert resident.node_bytes([(0, GIB)]) == {}


def test_every_kind_is_one_that_can_be_asked_for():
    assert list(PAGE_BYTES) == KINDS[::-1]
