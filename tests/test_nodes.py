"""Nodes of a machine (NUMA): who tells of them, where memory is said to be, which pool serves."""

from __future__ import annotations

import ctypes
import errno
import logging
import sys

import numpy as np
import pytest
from support.internals import table_of
from support.machines import on_processor, two_processors, use_machine, write_machine
from support.pools import CRITICAL, QUIET, Pools
from support.system_calls import Calls, intercepted

from jessymem import MemoryConfig, MmapManager, MmapOffset, PoolAllocator, nodes, osmem, resident
from jessymem.kernels import near
from jessymem.kernels import schema as s
from jessymem.nodes import INTERLEAVE, PREFERRED, Topology, numbers_in

KIB, MIB = 2**10, 2**20

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these calls")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two nodes, with one of two processors of this machine each."""
    first, second = two_processors()
    write_machine(tmp_path / "nodes", {0: str(first), 1: str(second)}, with_memory="0-1")
    return use_machine(monkeypatch, tmp_path / "nodes")


# -- what is told ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0\n", [0]), ("0-3,8", [0, 1, 2, 3, 8]), ("5,1-2\n", [1, 2, 5]), ("\n", []), ("", [])],
)
def test_lists_of_numbers(text, numbers):
    assert numbers_in(text) == numbers


def topology(tmp_path, monkeypatch, *arguments, **told):
    write_machine(tmp_path / "nodes", *arguments, **told)
    use_machine(monkeypatch, tmp_path / "nodes")
    return Topology.read()


def test_processors_belong_to_their_node(tmp_path, monkeypatch):
    found = topology(tmp_path, monkeypatch, {0: "0-1,4", 2: "2-3"}, with_memory="0,2")
    assert found == ((0, 2), {0: 0, 1: 0, 4: 0, 2: 2, 3: 2})


def test_processors_without_memory_have_the_nearest_node(tmp_path, monkeypatch):
    found = topology(
        tmp_path,
        monkeypatch,
        {0: "0", 1: "1", 2: "2"},
        with_memory="0,2",
        distances={0: "10 20 30", 1: "20 10 15", 2: "30 15 10"},
    )
    assert found == ((0, 2), {0: 0, 1: 2, 2: 2})


def test_only_nodes_that_a_container_allows_count(tmp_path, monkeypatch):
    found = topology(tmp_path, monkeypatch, {0: "0", 1: "1", 2: "2"}, allowed="0,2")
    assert found == ((0, 2), {0: 0, 1: 0, 2: 2})


def test_where_nothing_is_told_there_are_no_nodes(tmp_path, monkeypatch):
    use_machine(monkeypatch, tmp_path / "missing")
    assert Topology.read() == ((), {})
    (tmp_path / "online").write_text("what?")
    use_machine(monkeypatch, tmp_path)
    assert Topology.read() == ((), {})


@on_linux
def test_this_machine_has_a_node_for_each_processor():
    found = Topology.read()
    if found.nodes:
        assert near.processor() in found.node_of_cpu
        assert set(found.node_of_cpu.values()) <= set(found.nodes)


@on_linux
def test_the_system_is_told_nodes_bit_by_bit(monkeypatch):
    asked = []

    def syscall(number, address, n_bytes, mode, mask, n_bits, flags):
        asked.append((address, n_bytes, mode, list(mask), n_bits, flags))
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(nodes, "_syscall", lambda: syscall)
    with pytest.raises(PermissionError):
        nodes.bind(4096, 8192, INTERLEAVE, (0, 3, 65))
    assert asked == [(4096, 8192, INTERLEAVE, [0b1001, 0b10], 129, 0)]


@on_linux
def test_the_system_does_what_it_is_told():
    found = Topology.read()
    memory = osmem.private_memory(4 * MIB)
    try:
        nodes.bind(memory.address, 4 * MIB, PREFERRED, found.nodes[:1])
    except (OSError, ValueError):
        pytest.skip("the system has no nodes, or refuses to be told")
    memory.mapping[: 2 * MIB] = b"x" * 2 * MIB
    assert resident.node_bytes([(memory.address, 4 * MIB)]) == {found.nodes[0]: 2 * MIB}


@on_linux
def test_blocks_are_on_the_node_of_who_asked():
    found = Topology.read()
    if len(found.nodes) < 2:
        pytest.skip("a machine of several nodes is needed")
    allocator = PoolAllocator([(64, 256 * KIB)], 64, numa="local")
    for node in found.nodes:
        with on_processor(next(cpu for cpu, at in found.node_of_cpu.items() if at == node)):
            allocator.allocate_array(MIB, np.uint8)[:] = 1
    resident_on = resident.node_bytes(allocator.extents())
    assert all(resident_on.get(node, 0) >= MIB for node in found.nodes)


# -- which pool serves: the kernels ----------------------------------------------------------------


class NodePools(Pools):
    """Pools of two nodes by turns, and a table of two processors."""

    def __init__(self, tier, *pools):
        super().__init__(tier, *pools)
        if tier.name == "compiled":
            near.want()
        self.processors = two_processors()
        at = len(self.state) - max(self.processors) - 1
        self.state[s.NODES_AT], self.state[s.N_PROCESSORS] = at, max(self.processors) + 1
        for number, processor in enumerate(self.processors):
            self.state[at + processor] = number + 1
        for pool in range(len(pools)):
            self.table.rows[pool]["node"] = pool % 2 + 1

    def take_on(self, node, n_bytes, kernel="allocate"):
        """Return the pool that serves a thread on a node."""
        more = {"allocate": (QUIET,), "allocate_any": (CRITICAL, 1)}[kernel]
        with on_processor(self.processors[node]):
            handle = int(getattr(near, kernel)(self.argument, n_bytes, *more))
        return self.location(handle)[0] if handle >= 0 else handle


each_kernel = pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])


@each_kernel
def test_a_pool_of_the_node_serves_then_any(tier, kernel):
    pools = NodePools(tier, (64, 2), (64, 2), (256, 1), (256, 1))
    assert [pools.take_on(node, 10, kernel) for node in (1, 0, 1, 1, 0)] == [1, 0, 1, 0, 2]
    assert pools.take_on(1, 10, kernel) == 3
    assert pools.take_on(1, 10, kernel) == s.POOL_FULL
    pools.check()


@each_kernel
def test_the_other_node_s_pool_comes_before_larger_blocks(tier, kernel):
    pools = NodePools(tier, (64, 1), (64, 2), (256, 1), (256, 1))
    assert [pools.take_on(0, 64, kernel) for _ in range(4)] == [0, 1, 1, 2]


@each_kernel
def test_pools_of_no_node_serve_all(tier, kernel):
    pools = NodePools(tier, (64, 2), (64, 2))
    pools.table.rows[1]["node"] = 0
    assert [pools.take_on(1, 10, kernel) for _ in range(3)] == [0, 0, 1]


@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_a_processor_that_nobody_told_of_takes_any(tier, kernel):
    pools = NodePools(tier, (64, 1), (64, 1))
    pools.state[s.N_PROCESSORS] = pools.processors[1]
    assert [pools.take_on(1, 10, kernel) for _ in range(2)] == [0, 1]


def test_runs_come_from_the_node(tier):
    pools = NodePools(tier, (64, 4), (64, 4))
    assert pools.take_on(1, 3 * 64, "allocate_any") == 1
    assert pools.take_on(1, 3 * 64, "allocate_any") == 0
    assert pools.take_on(1, 3 * 64, "allocate_any") == s.POOL_FULL
    assert pools.take_on(1, 64, "allocate_any") == 1
    pools.check()


def test_many_come_from_the_node_or_none(tier):
    pools = NodePools(tier, (64, 2), (64, 3))
    handles = np.zeros(6, np.int64)
    with on_processor(pools.processors[1]):
        sizes = np.full(5, 64)
        assert near.allocate_many(pools.argument, sizes, CRITICAL, handles) == s.OK
        assert [pools.location(int(each))[0] for each in handles[:5]] == [1, 1, 1, 0, 0]
        assert pools.free_many(*handles[:5].tolist()) == (s.OK, -99)
        sizes, more = np.full(6, 64), np.zeros(7, np.int64)
        assert near.allocate_many(pools.argument, sizes, CRITICAL, more) == s.POOL_FULL
    assert more.tolist() == [0] * 6 + [5]
    assert pools.charged[0] == 0
    pools.check()


@pytest.mark.parametrize("kernel", ["allocate", "allocate_any"])
def test_sizes_are_checked_as_elsewhere(tier, kernel):
    pools = NodePools(tier, (64, 2), (64, 2))
    assert pools.take_on(0, 0, kernel) == s.BAD_SIZE
    if kernel == "allocate":
        pools.state[s.INLINE_LIMIT] = 50
        assert pools.take_on(0, 51, kernel) == s.TOO_LARGE


# -- allocators and managers -----------------------------------------------------------------------


def pools_of(allocator):
    return [(each.block_size, each.total_blocks, each.node) for each in stats_of(allocator)]


def stats_of(allocator):
    return allocator.survey().per_pool.values()


def test_each_pool_is_one_on_each_node(machine):
    allocator = PoolAllocator([(5, 4 * KIB), (1, 64 * KIB), (4, 2 * MIB)], 64, numa="local")
    rows = table_of(allocator).rows
    wanted = [(4 * KIB, 3 * 256, 0), (4 * KIB, 2 * 256, 1), (64 * KIB, 16, None)]
    assert pools_of(allocator) == [*wanted, (2 * MIB, 1, 0), (2 * MIB, 1, 1)]
    placed = [(3 * MIB, (0,)), (2 * MIB, (1,)), (2 * MIB, (0,)), (2 * MIB, (1,))]
    assert [(n_bytes, where) for _, n_bytes, _, where in machine.placed] == placed
    assert {mode for _, _, mode, _ in machine.placed} == {PREFERRED}
    addresses = [int(rows[pool]["address"]) for pool in (0, 1, 3, 4)]
    assert [address for address, *_ in machine.placed] == addresses


def test_blocks_are_near_to_who_asks(machine):
    first, second = two_processors()
    allocator = PoolAllocator([(4, 4 * KIB), (4, 64 * KIB)], 64, numa="local")
    node_of = {each.pool_id: each.node for each in stats_of(allocator)}
    for node, processor in enumerate((first, second)):
        with on_processor(processor):
            taken = [allocator.allocate(n_bytes) for n_bytes in (100, 40 * KIB, 300 * KIB)]
            taken += map(MmapOffset.from_packed, allocator.allocate_many([1, 5_000, 200_000]))
            array = allocator.allocate_array(1_000)
        assert [node_of[each.pool_id] for each in taken] == [node] * 6
        assert array.sum() == 0
    assert allocator.validate() == []


def test_a_pool_that_is_made_is_near_to_who_needs_it(machine):
    allocator = PoolAllocator([(2, 64 * KIB)], 64, numa="local")
    with on_processor(two_processors()[1]):
        offset = allocator.allocate(10 * MIB)
    (grown,) = [each for each in stats_of(allocator) if each.kind == "grown"]
    assert (grown.pool_id, grown.node) == (offset.pool_id, 1)
    _, n_bytes, *how = machine.placed[-1]
    assert n_bytes >= grown.total_blocks * 64 * KIB and how == [PREFERRED, (1,)]


def test_one_pool_for_all_where_ids_would_run_out(machine):
    allocator = PoolAllocator([(1, 4 * KIB), *[(2, 4 * KIB)] * 70], 256, numa="local")
    assert {each.node for each in stats_of(allocator)} == {None}
    assert len(list(stats_of(allocator))) == 71


def test_memory_is_on_all_nodes_by_turns(machine, store):
    config = MemoryConfig(
        64, store, pool_configs=[(4, 4 * KIB), (2, 64 * KIB)], load_mode="copy", numa="interleave"
    )
    with MmapManager(config) as manager:
        manager.load_dimension("D01")
        assert [each[1:] for each in machine.placed] == [
            (osmem.round_to_pages((store / "D01" / "region.mmap").stat().st_size), 3, (0, 1))
        ]
        manager.view(manager.allocate(100), 1)[0] = 1
        asked = [(n_bytes, mode, where) for _, n_bytes, mode, where in machine.placed[1:]]
        assert asked == [(n_mb * MIB, INTERLEAVE, (0, 1)) for n_mb in (4, 2)]
        found = manager.get_stats()
        assert [each.node for each in found.per_pool.values()] == [None, None]
        placement = found.placement
        assert (placement.numa, placement.policy, placement.n_nodes) == ("interleave",) * 2 + (2,)
        assert sum(placement.node_bytes.values()) >= 2 * 4 * KIB  # wherever this machine has them


@pytest.mark.parametrize("numa", ["interleave", "local"])
def test_one_node_is_no_reason_to_do_anything(numa, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "jessymem")
    write_machine(tmp_path / "nodes", {0: "0-255"})
    use_machine(monkeypatch, tmp_path / "nodes")
    config = MemoryConfig(64, tmp_path, pool_configs=[(4, 4 * KIB)], numa=numa)
    calls = Calls(hints=True)
    with intercepted(calls), MmapManager(config) as manager:
        manager.allocate(100)
        placement = manager.get_stats().placement
        assert pools_of(manager._engine.present_allocator) == [(4 * KIB, 1024, None)]
        assert manager.dump_state()["placement"]["note"] == "one node"
    assert "place memory" not in calls.operations
    assert (placement.numa, placement.policy, placement.n_nodes) == (numa, "none", 1)
    (record,) = [each for each in caplog.records if getattr(each, "numa", "")]
    assert (record.event, record.numa, record.reason) == ("numa_not_needed", numa, "one node")


@pytest.mark.parametrize(("numa", "left"), [("interleave", "none"), ("local", "local")])
def test_what_is_refused_is_said_once(numa, left, machine, tmp_path, caplog):
    machine.error = PermissionError(errno.EPERM, "not you")
    config = MemoryConfig(64, tmp_path, pool_configs=[(4, 4 * KIB), (4, 64 * KIB)], numa=numa)
    with MmapManager(config) as manager:
        manager.view(manager.allocate(100), 100)[:] = b"x" * 100
        placement = manager.get_stats().placement
    assert (placement.policy, placement.note) == (left, "refused: not you")
    (record,) = [each for each in caplog.records if getattr(each, "numa", "")]
    facts = record.event, record.levelname, record.errno, record.reason
    assert facts == ("numa_refused", "WARNING", errno.EPERM, "refused: not you")


def test_pools_that_are_not_made_yet_are_shown_as_they_will_be(machine, tmp_path):
    config = MemoryConfig(64, tmp_path, pool_configs=[(4, 4 * KIB), (1, 2**20)], numa="local")
    with MmapManager(config) as manager:
        before = manager.get_stats()
        manager.deallocate(manager.allocate(100))
        assert manager.get_stats().per_pool == before.per_pool
        assert manager.get_stats().largest_free_run_bytes == before.largest_free_run_bytes


def test_nobody_looks_at_nodes_who_does_not_ask(store, monkeypatch):
    monkeypatch.setattr(Topology, "read", pytest.fail)
    with MmapManager(MemoryConfig(64, store)) as manager:
        manager.load_all()
        manager.allocate(100)
        assert manager.get_stats().placement is None
        assert manager.dump_state()["placement"] is None
