"""Memory pressure: thresholds that speak once a crossing, eviction asked for, allocations refused.

Budgets of 100 MiB and blocks of 1 MiB, so that a block is one percent.
"""

from __future__ import annotations

import logging

import pytest
from support.internals import allocator_of, replace_eviction
from support.logs import facts
from support.regions import write_sparse

from jessymem import (
    AllocationFailed,
    InvalidAccess,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    PoolAllocator,
    osmem,
)

KIB = 2**10
MIB = 2**20


def make_allocator(**settings):
    """One hundred blocks, one percent each."""
    return PoolAllocator([(100, MIB)], limit_mb=100, **settings)


@pytest.fixture
def allocator():
    made = make_allocator()
    yield made
    assert made.validate() == []
    made.close()


@pytest.fixture
def pressure(caplog):
    """The records of pressure since the last call, as (name, level, used in MiB)."""
    caplog.set_level(logging.INFO, logger="jessymem")

    def take():
        records = [each for each in caplog.records if facts(each).get("event") == "memory_pressure"]
        caplog.clear()
        return [(each.threshold_name, each.levelno, each.used_bytes // MIB) for each in records]

    return take


@pytest.fixture
def log(caplog):
    """All records since the last call."""
    caplog.set_level(logging.DEBUG, logger="jessymem")

    def take():
        records = caplog.records.copy()
        caplog.clear()
        return records

    return take


class Blocks:
    """Blocks of an allocator, brought to a number of them."""

    def __init__(self, memory):
        self.memory = memory
        self.blocks = []

    def fill_to(self, n_blocks):
        while len(self.blocks) < n_blocks:
            self.blocks.append(self.memory.allocate(MIB))
        while len(self.blocks) > n_blocks:
            self.memory.deallocate(self.blocks.pop())


WARNING = ("warning", logging.INFO)
EVICTION = ("eviction", logging.WARNING)
CRITICAL = ("critical", logging.ERROR)


# -- once a crossing -------------------------------------------------------------------------------


def test_each_threshold_speaks_when_use_is_above_and_not_before(allocator, pressure):
    blocks = Blocks(allocator)
    blocks.fill_to(75)
    assert pressure() == []
    blocks.fill_to(76)
    assert pressure() == [(*WARNING, 76)]
    blocks.fill_to(85)
    assert pressure() == []
    blocks.fill_to(86)
    assert pressure() == [(*EVICTION, 86)]
    blocks.fill_to(95)
    assert pressure() == []
    with pytest.raises(LimitExceeded):
        allocator.allocate(1)
    assert pressure() == [(*CRITICAL, 95)]


def test_a_threshold_speaks_once_not_per_call(allocator, pressure):
    blocks = Blocks(allocator)
    blocks.fill_to(80)
    pressure()
    for n_blocks in (76, 84, 75, 77, 71, 85, 70, 76):
        blocks.fill_to(n_blocks)
    assert pressure() == []
    blocks.fill_to(95)
    assert pressure() == [(*EVICTION, 86)]
    for _ in range(20):
        with pytest.raises(LimitExceeded):
            allocator.allocate(1)
    assert pressure() == [(*CRITICAL, 95)]


@pytest.mark.parametrize(
    ("low", "expected"),
    [(74, []), (71, []), (70, []), (69, [(*WARNING, 76)]), (0, [(*WARNING, 76)])],
)
def test_the_warning_speaks_again_after_a_fall_of_five_points(allocator, pressure, low, expected):
    blocks = Blocks(allocator)
    for _ in range(3):
        blocks.fill_to(78)
        pressure()
        blocks.fill_to(low)
        assert pressure() == []
        blocks.fill_to(75)
        assert pressure() == []
        blocks.fill_to(78)
        assert pressure() == expected


@pytest.mark.parametrize(("low", "expected"), [(80, []), (79, [(*EVICTION, 86)])])
def test_the_level_for_eviction_speaks_again_alone(allocator, pressure, low, expected):
    blocks = Blocks(allocator)
    blocks.fill_to(90)
    pressure()
    blocks.fill_to(low)
    blocks.fill_to(90)
    assert pressure() == expected


@pytest.mark.parametrize(("low", "expected"), [(90, []), (89, [(*CRITICAL, 95)])])
def test_the_critical_level_speaks_again_alone(allocator, pressure, low, expected):
    blocks = Blocks(allocator)

    def refuse():
        blocks.fill_to(95)
        with pytest.raises(LimitExceeded):
            allocator.allocate(1)

    refuse()
    pressure()
    blocks.fill_to(low)
    refuse()
    assert pressure() == expected


def test_one_call_may_pass_two_thresholds(allocator, pressure):
    run = allocator.allocate(90 * MIB)
    assert pressure() == [(*WARNING, 90), (*EVICTION, 90)]
    allocator.deallocate(run)
    packed = allocator.allocate_many([MIB] * 90)
    assert pressure() == [(*WARNING, 90), (*EVICTION, 90)]
    allocator.deallocate_many(packed)
    array = allocator.allocate_array(90 * MIB, "u1")
    assert pressure() == [(*WARNING, 90), (*EVICTION, 90)]
    del array
    allocator.allocate(90 * MIB)
    assert pressure() == [(*WARNING, 90), (*EVICTION, 90)]


def test_blocks_that_wait_for_their_views_count(allocator, pressure):
    blocks = Blocks(allocator)
    blocks.fill_to(76)
    pressure()
    views = [allocator.view(block, 1) for block in blocks.blocks]
    blocks.fill_to(0)
    blocks.fill_to(1)
    assert pressure() == []  # 77 % by now
    views.clear()
    blocks.fill_to(76)
    assert pressure() == [(*WARNING, 76)]


def test_a_request_that_is_refused_is_no_crossing_of_lower_levels(allocator, pressure):
    blocks = Blocks(allocator)
    blocks.fill_to(50)
    with pytest.raises(LimitExceeded):
        allocator.allocate(46 * MIB)
    assert pressure() == [(*CRITICAL, 50)]
    blocks.fill_to(76)
    assert pressure() == [(*WARNING, 76)]


def test_thresholds_are_the_configured_ones(tmp_path, pressure):
    config = MemoryConfig(
        100,
        base_path=tmp_path,
        pool_configs=[(100, MIB)],
        warning_threshold=0.2,
        eviction_threshold=0.3,
        critical_threshold=0.4,
    )
    with MmapManager(config) as manager:
        blocks = Blocks(manager)
        blocks.fill_to(40)
        assert pressure() == [(*WARNING, 21), (*EVICTION, 31)]
        with pytest.raises(LimitExceeded) as caught:
            manager.allocate(1)
        assert caught.value.limit == 40 * MIB
        assert pressure() == [(*CRITICAL, 40)]
        for low, expected in (
            (25, []),
            (24, [(*EVICTION, 31)]),
            (15, [(*EVICTION, 31)]),
            (14, [(*WARNING, 21), (*EVICTION, 31)]),
        ):
            blocks.fill_to(low)
            blocks.fill_to(35)
            assert pressure() == expected


# -- what the records say --------------------------------------------------------------------------


def test_records_say_pool_budget_use_free_run_and_request(allocator, log):
    viewed = allocator.allocate(10)
    view = allocator.view(viewed, 10)
    allocator.deallocate(viewed)
    blocks = Blocks(allocator)
    blocks.fill_to(75)
    log()
    (said,) = facts_of(log, lambda: blocks.fill_to(85))
    assert said == {
        "event": "memory_pressure",
        "threshold_name": "eviction",
        "threshold": 0.85,
        "used_bytes": 86 * MIB,
        "limit_bytes": 100 * MIB,
        "waiting_bytes": MIB,
        "pool": 0,
        "requested_bytes": MIB,
        "largest_free_run_bytes": allocator.survey().largest_free_run,
    }
    assert len(view) == 10


def facts_of(log, act, event="memory_pressure"):
    """What the records of one event say that `act` brings about."""
    log()
    act()
    return [said for record in log() if (said := facts(record)).get("event") == event]


def test_the_message_tells_the_same(allocator, log):
    log()
    allocator.allocate(80 * MIB)
    (record,) = (each for each in log() if facts(each)["event"] == "memory_pressure")
    expected = f"memory use is above the warning threshold: {80 * MIB} of {100 * MIB} bytes (80 %)"
    assert record.getMessage() == expected


def test_a_refusal_says_what_was_asked_for(allocator, log):
    allocator.allocate(20 * MIB)

    def refuse():
        with pytest.raises(LimitExceeded):
            allocator.allocate(76 * MIB)

    (said,) = facts_of(log, refuse)
    assert (said["threshold_name"], said["threshold"]) == ("critical", 0.95)
    assert (said["requested_bytes"], said["used_bytes"]) == (76 * MIB, 20 * MIB)
    assert said["largest_free_run_bytes"] == 80 * MIB
    (failed,) = facts_of(log, refuse, "allocation_failed")
    assert failed["error"] == "LimitExceeded"
    assert (failed["requested_bytes"], failed["used_bytes"]) == (76 * MIB, 20 * MIB)
    assert failed["limit_bytes"] == 100 * MIB


def test_the_pool_is_the_one_that_fits_best(log):
    allocator = PoolAllocator([(1, 4 * KIB), (40, MIB)], limit_mb=40)
    allocator.allocate_many([MIB] * 30)
    (small,) = facts_of(log, lambda: allocator.allocate(100))
    assert (small["threshold_name"], small["pool"], small["requested_bytes"]) == ("warning", 0, 100)
    (large,) = facts_of(log, lambda: allocator.allocate_many([MIB] * 6))
    assert (large["threshold_name"], large["pool"]) == ("eviction", 1)
    assert large["requested_bytes"] == 6 * MIB


def test_a_failure_that_is_not_for_the_limit_is_a_warning(allocator, log, intercept):
    def refuse(operation, path, *details):
        if operation == "map private":
            raise OSError(12, "no memory")

    held = allocator.allocate_many([MIB] * 50)
    allocator.deallocate_many(held[::2])  # no two free blocks in a row among the first fifty
    log()
    intercept(refuse)
    with pytest.raises(AllocationFailed):
        allocator.allocate(60 * MIB)
    (record,) = (each for each in log() if facts(each)["event"] == "allocation_failed")
    assert record.levelno == logging.WARNING
    assert (record.error, record.reason) == ("AllocationFailed", "os_refused")


# -- blocks at debug -------------------------------------------------------------------------------


def test_allocations_and_frees_are_said_at_debug(allocator, log):
    log()
    offset = allocator.allocate(100)
    allocator.deallocate(offset)
    taken, given = log()
    location = {
        "pool": offset.pool_id,
        "offset": offset.offset,
        "generation": offset.generation,
    }
    assert taken.levelno == given.levelno == logging.DEBUG
    assert taken.getMessage() == f"allocated {offset!r}"
    assert given.getMessage() == f"deallocated {offset!r}"
    assert facts(taken) == {"event": "allocated", "n_bytes": 100, **location}
    assert facts(given) == {"event": "deallocated", "n_bytes": 100, **location}


def test_each_of_many_is_said_at_debug(allocator, log):
    log()
    packed = allocator.allocate_many([1, 2, 3 * MIB])
    records = log()
    assert [facts(each)["event"] for each in records] == ["allocated"] * 3
    assert [each.n_bytes for each in records] == [1, 2, 3 * MIB]
    allocator.deallocate_many(packed)
    records = log()
    assert [facts(each)["event"] for each in records] == ["deallocated"] * 3
    locations = [(each.pool, each.offset) for each in records]
    assert len(set(locations)) == 3
    assert [each.n_bytes for each in records] == [1, 2, 3 * MIB]


def test_what_is_refused_is_not_said_to_be_given_back(allocator, log):
    offset = allocator.allocate(1)
    allocator.deallocate(offset)
    log()
    with pytest.raises(InvalidAccess):
        allocator.deallocate(offset)
    with pytest.raises(InvalidAccess):
        allocator.deallocate_many([offset])
    assert [each.event for each in log()] == ["deallocation_failed"] * 2


def test_at_info_blocks_say_nothing(allocator, caplog):
    caplog.set_level(logging.INFO, logger="jessymem")
    allocator.deallocate(allocator.allocate(1))
    allocator.deallocate_many(allocator.allocate_many([1, 2]))
    assert caplog.records == []


def test_a_pool_that_is_made_is_said_at_info(caplog):
    caplog.set_level(logging.INFO, logger="jessymem")
    allocator = PoolAllocator([(1, MIB)], limit_mb=100)
    allocator.allocate(3 * MIB)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    said = facts(record)
    assert (said["event"], said["n_bytes"]) == ("pool_grown", 8 * MIB)
    assert (said["block_size"], said["requested_bytes"]) == (MIB, 3 * MIB)


# -- eviction --------------------------------------------------------------------------------------


class Evictor:
    """Something else that is charged: here blocks, freed on demand."""

    def __init__(self, **settings):
        self.asked = []
        self.spare = []
        self.held_at_call = []
        self.allocator = make_allocator(evict=self.evict, **settings)

    def evict(self, n_bytes):
        self.asked.append(n_bytes)
        self.held_at_call.append(self.allocator.usage[0])
        for _ in range(min(-(-n_bytes // MIB), len(self.spare))):
            self.allocator.deallocate(self.spare.pop())


def test_up_to_85_percent_nobody_is_asked_to_evict():
    evictor = Evictor()
    Blocks(evictor.allocator).fill_to(85)
    assert evictor.asked == []


@pytest.mark.parametrize("extra", [1, MIB, 5 * MIB])
def test_above_85_percent_so_much_is_evicted_first_that_75_are_left(extra):
    evictor = Evictor()
    allocator = evictor.allocator
    evictor.spare = allocator.allocate_many([MIB] * 20).tolist()
    Blocks(allocator).fill_to(65)
    assert evictor.asked == []
    offset = allocator.allocate(extra)
    cost = -(-extra // MIB) * MIB
    assert evictor.asked == [85 * MIB + cost - 75 * MIB]
    assert evictor.held_at_call == [85 * MIB]  # before the allocation
    assert allocator.usage[0] == 75 * MIB
    evictor.asked.clear()
    allocator.deallocate(offset)
    allocator.deallocate(allocator.allocate(1))
    assert evictor.asked == []
    assert allocator.validate() == []


def test_where_nothing_can_be_evicted_allocations_go_on_to_95_percent():
    evictor = Evictor()
    blocks = Blocks(evictor.allocator)
    blocks.fill_to(95)
    assert evictor.asked == [n * MIB for n in range(11, 21)]
    with pytest.raises(LimitExceeded):
        evictor.allocator.allocate(1)
    assert evictor.asked[-1] == 21 * MIB


def test_what_is_evicted_makes_room_for_a_request_that_would_be_refused():
    evictor = Evictor()
    allocator = evictor.allocator
    evictor.spare = allocator.allocate_many([MIB] * 60).tolist()
    Blocks(allocator).fill_to(25)
    allocator.allocate(20 * MIB)
    assert evictor.asked == [30 * MIB]
    assert allocator.usage[0] == 75 * MIB


def test_many_ask_for_the_blocks_they_take_not_for_the_bytes():
    evictor = Evictor()
    allocator = evictor.allocator
    evictor.spare = allocator.allocate_many([MIB] * 50).tolist()
    Blocks(allocator).fill_to(30)
    packed = allocator.allocate_many([1] * 40)
    assert evictor.asked == [45 * MIB]
    assert allocator.usage[0] == 75 * MIB
    allocator.deallocate_many(packed)
    assert allocator.n_failures == 0


def test_an_error_of_the_hook_passes_and_nothing_is_allocated():
    evictor = Evictor()
    Blocks(evictor.allocator).fill_to(85)

    def fail(n_bytes):
        raise RuntimeError("cannot evict")

    replace_eviction(evictor.allocator, fail)
    with pytest.raises(RuntimeError, match="cannot evict"):
        evictor.allocator.allocate(1)
    assert evictor.allocator.usage[0] == 85 * MIB
    assert evictor.allocator.validate() == []


def test_a_hook_that_does_nothing_hears_of_each_call_and_records_stay_one(pressure):
    evictor = Evictor()
    blocks = Blocks(evictor.allocator)
    blocks.fill_to(95)
    assert pressure() == [(*WARNING, 76), (*EVICTION, 86)]


# -- loads and blocks together ---------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path):
    """Regions D20 and D21 of 40 MiB, D22 of 26, D23 of 6 MiB; blocks of 1 MiB."""
    for number, megabytes in ((20, 40), (21, 40), (22, 26), (23, 6)):
        write_sparse(tmp_path, number, megabytes * MIB, n_layers=1)
    config = MemoryConfig(100, base_path=tmp_path, pool_configs=[(100, MIB)])
    with MmapManager(config) as manager:
        yield manager
        assert allocator_of(manager).validate() == []


def test_a_block_crosses_what_loads_have_filled(manager, pressure):
    manager.load_dimension(20)
    blocks = Blocks(manager)
    blocks.fill_to(35)
    assert pressure() == []
    blocks.fill_to(36)
    assert pressure() == [(*WARNING, 76)]


def test_a_load_crosses_what_blocks_have_filled(manager, pressure):
    blocks = Blocks(manager)
    blocks.fill_to(40)
    manager.load_dimension(20)
    assert pressure() == [(*WARNING, 80)]
    manager.load_dimension(23)
    assert pressure() == [(*EVICTION, 86)]
    blocks.fill_to(41)
    assert pressure() == []


def test_what_one_kind_has_said_the_other_does_not_repeat(manager, pressure):
    blocks = Blocks(manager)
    blocks.fill_to(76)
    assert pressure() == [(*WARNING, 76)]
    blocks.fill_to(72)
    manager.load_dimension(23)
    assert pressure() == []
    blocks.fill_to(75)
    assert pressure() == []


def test_an_unload_lets_a_level_speak_again_for_blocks(manager, pressure):
    blocks = Blocks(manager)
    manager.load_dimension(20)
    blocks.fill_to(38)
    assert pressure() == [(*WARNING, 76)]
    manager.unload_dimension(20)
    assert pressure() == []
    blocks.fill_to(78)
    assert pressure() == [(*WARNING, 76)]


def test_freed_blocks_let_a_level_speak_again_for_loads(manager, pressure):
    blocks = Blocks(manager)
    blocks.fill_to(78)
    pressure()
    blocks.fill_to(60)
    manager.load_dimension(22)
    assert pressure() == [(*WARNING, 86), (*EVICTION, 86)]


def test_a_dropped_view_lets_a_level_speak_again(manager, pressure):
    manager.load_dimension(20)
    blocks = Blocks(manager)
    blocks.fill_to(38)
    held = manager.access_layer("L20-00")
    manager.unload_dimension(20)
    pressure()
    blocks.fill_to(39)
    assert pressure() == []
    del held
    blocks.fill_to(78)
    assert pressure() == [(*WARNING, 76)]


def test_a_load_may_fill_the_limit_where_a_block_is_refused(manager, pressure):
    blocks = Blocks(manager)
    blocks.fill_to(60)
    manager.load_dimension(20)
    manager.pin(20)  # or it would have to go
    assert manager.get_stats().utilization == 1.0
    assert pressure() == [(*WARNING, 100), (*EVICTION, 100)]
    with pytest.raises(LimitExceeded):
        manager.allocate(1)
    assert pressure() == [(*CRITICAL, 100)]
    with pytest.raises(LimitExceeded) as caught:
        manager.load_dimension(23)
    assert (caught.value.current, caught.value.limit) == (100 * MIB, 100 * MIB)
    assert pressure() == []  # the load has a record of its own
    stats = manager.get_stats()
    assert stats.total_allocated_bytes == stats.peak_usage_bytes == 100 * MIB
    assert stats.should_reject_allocations


def test_a_load_that_does_not_fit_beside_blocks_is_refused_and_changes_nothing(manager):
    blocks = Blocks(manager)
    blocks.fill_to(61)
    before = manager.get_stats()
    with pytest.raises(LimitExceeded) as caught:
        manager.load_dimension(20)
    assert caught.value.requested == osmem.round_to_pages(40 * MIB)
    assert manager.get_stats() == before
    blocks.fill_to(60)
    manager.load_dimension(20)


def test_the_flags_of_the_stats_follow_blocks(manager):
    blocks = Blocks(manager)
    for n_blocks, flags in (
        (75, (False, False, False)),
        (76, (True, False, False)),
        (86, (True, True, False)),
        (95, (True, True, False)),
    ):
        blocks.fill_to(n_blocks)
        stats = manager.get_stats()
        assert stats.utilization == n_blocks / 100
        assert flags == (
            stats.is_at_warning_threshold,
            stats.should_trigger_eviction,
            stats.should_reject_allocations,
        )
