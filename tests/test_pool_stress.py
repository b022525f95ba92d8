"""Many threads on few blocks: nobody is given what another owns, and nothing gets lost.

Threads write a cookie of their own into each block, look for it before they free the block,
and find zeros where they write it. The loops are compiled and run without the GIL; where
compilation is disabled the same functions run as they are, over fewer rounds. Every test ends with
a recount of all blocks.
"""

from __future__ import annotations

import gc
import logging
import random
import sys

import numpy as np
import pytest
from support import samples
from support.internals import table_of
from support.kernels import SLOWNESS, TIERS, compile_loop, running
from support.pools import make_table, set_limits, validate
from support.samples import sampled
from support.threads import run_together

from jessymem import AllocationFailed, InvalidAccess, LimitExceeded, osmem
from jessymem.kernels import _jit, allocation, blocks, memory, release
from jessymem.kernels import schema as s
from jessymem.pools.allocator import PoolAllocator
from jessymem.pools.offsets import MmapOffset
from jessymem.pools.table import PoolTable

N_THREADS = 32
N_ROUNDS = samples.number(12, of=50)
KIB = 2**10
MIB = 2**20

#: What a loop reports, one number each.
N_WRONG, N_CLAIMED, N_REFUSED, N_NOT_FREED, N_DIRTY = range(5)


@pytest.fixture(autouse=True)
def _switch_often():
    """Let threads take turns more often than usual: more interleavings."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """Keep no record of each of the many requests that are refused."""
    caplog.set_level(logging.CRITICAL, "jessymem")


@pytest.fixture(autouse=True)
def _fastest():
    if _jit.is_disabled():  # as whoever calls an allocator finds them
        yield
        return
    with running(TIERS[-1]):
        yield


class Watch:
    """Samples what is charged and what is resident, and keeps the highest of each."""

    def __init__(self, state):
        self.state = state
        self.n_samples = self.used = self.resident = 0

    def __call__(self):
        self.n_samples += 1
        self.used = max(self.used, int(self.state[s.USED]))
        self.resident = max(self.resident, int(self.state[s.RESIDENT]))


def make_arena(*pools, limit):
    """Make pools that lie in one piece of memory; return the table and the memory as words."""
    table = PoolTable([], 4 * MIB)
    arena = osmem.private_memory(sum(size * n_blocks for size, n_blocks in pools))
    start = 0
    for block_bytes, n_blocks in pools:
        table.add(block_bytes, block_bytes * n_blocks, arena, start, s.POOL_FIXED)
        start += block_bytes * n_blocks
    set_limits(table.state, limit)
    table.state[s.ZERO_ON_REUSE] = 1
    return table, np.frombuffer(arena.mapping, np.int64)


def take_all_but(table, kept):
    """Take every block of the only pool for good, except some."""
    argument = memory.argument_of(table.state)
    handles = {}
    for _ in range(table.n_free(0)):
        handle = int(allocation.allocate(argument, 64, s.QUIET_LIMIT))
        handles[blocks.offset_of(handle) // 64] = handle
    for block in kept:
        assert release.deallocate(argument, handles[block], s.ANY_SIZE) == s.OK


# -- loops that are compiled -----------------------------------------------------------------------


def churn(state, arena, start, largest, n_held, seed, n_rounds, n_steps, counts):
    """Hold up to `n_held` requests of 8 to `largest` bytes, with a cookie in every 64 bytes."""
    handles = np.zeros(n_held, np.int64)
    sizes = np.zeros(n_held, np.int64)
    number = seed
    for _ in range(n_rounds):
        for step in range(n_steps + n_held):
            number = (number * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
            slot = (number >> 8) % n_held if step < n_steps else step - n_steps
            cookie = (seed << 32) + slot + 1
            if sizes[slot] > 0:
                at = (blocks.address_of(state, handles[slot]) - start) >> 3
                for word in range(0, sizes[slot] >> 3, 8):
                    if arena[at + word] != cookie:
                        counts[N_WRONG] += 1
                if release.deallocate(state, handles[slot], sizes[slot]) < 0:
                    counts[N_NOT_FREED] += 1
                sizes[slot] = 0
            elif step < n_steps:
                number = (number * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
                # Small ones are frequent: the square of a share of the largest.
                share = (number >> 8) & 1023
                n_bytes = 8 + ((share * share * (largest - 8)) >> 20)
                handle = allocation.allocate_any(state, n_bytes, s.CRITICAL_LIMIT, 1)
                if handle < 0:
                    counts[N_REFUSED] += 1
                    continue
                counts[N_CLAIMED] += 1
                handles[slot], sizes[slot] = handle, n_bytes
                at = (blocks.address_of(state, handle) - start) >> 3
                for word in range(0, n_bytes >> 3, 8):
                    if arena[at + word] != 0:
                        counts[N_DIRTY] += 1
                    arena[at + word] = cookie


def claim_and_free(state, n_bytes, n_pairs):
    """Hold one block at a time; return how many claims failed."""
    n_failed = 0
    for _ in range(n_pairs):
        handle = allocation.allocate(state, n_bytes, s.QUIET_LIMIT)
        if handle < 0:
            n_failed += 1
        else:
            release.deallocate(state, handle, s.ANY_SIZE)
    return n_failed


def claim_and_free_runs(state, n_bytes, n_pairs):
    """Hold one run at a time; return how many were claimed."""
    n_claimed = 0
    for _ in range(n_pairs):
        handle = allocation.allocate_any(state, n_bytes, s.QUIET_LIMIT, 0)
        if handle >= 0:
            n_claimed += 1
            release.deallocate(state, handle, n_bytes)
    return n_claimed


def free_all(state, handles, counts):
    """Free each block, as others do too; count the answers by what they are."""
    for i in range(handles.shape[0]):
        code = release.deallocate(state, handles[i], s.ANY_SIZE)
        if code == s.OK:
            counts[0] += 1
        elif code == s.FREED_TWICE:
            counts[1] += 1


def free_in_batches(state, handles, n_batch, counts):
    """Free blocks in batches, as others do too; count the answers by what they are."""
    failed = np.zeros(1, np.int64)
    for i in range(0, handles.shape[0], n_batch):
        code = release.deallocate_many(state, handles[i : i + n_batch], failed)
        if code == s.OK:
            counts[0] += 1
        elif code == s.FREED_TWICE:
            counts[1] += 1


def view_and_drop(state, handles, n_rounds, counts):
    """View each block for a moment, as long as it has its owner; count the views."""
    for _ in range(n_rounds):
        for i in range(handles.shape[0]):
            if release.add_view(state, handles[i], 64) == s.OK:
                counts[0] += 1
                release.drop_view(state, handles[i])


def free_with_flags(state, handles, counts):
    """Free each block; count those that go at once, and those that wait."""
    for i in range(handles.shape[0]):
        flags = release.deallocate(state, handles[i], 64)
        counts[0] += flags == s.OK
        counts[1] += flags == s.IS_WAITING


# -- ownership -------------------------------------------------------------------------------------


def run_churn(argument, arena, largest, n_held, look, n_threads=N_THREADS, n_rounds=N_ROUNDS):
    """Run `churn` in many threads; return the sum of what they report."""
    loop = compile_loop(churn)
    start, n_steps = arena.ctypes.data, max(2 * 300 // SLOWNESS, 2)
    counts = np.zeros((n_threads, 8), np.int64)
    run_together(
        [
            lambda i=i: loop(
                argument, arena, start, largest, n_held, i + 1, n_rounds, n_steps, counts[i]
            )
            for i in range(n_threads)
        ],
        look,
    )
    return counts.sum(axis=0)


def assert_owned(counts):
    assert counts[N_CLAIMED] > 0
    assert (counts[N_WRONG], counts[N_NOT_FREED], counts[N_DIRTY]) == (0, 0, 0)


@sampled
@pytest.mark.parametrize("largest", [200, 1 * KIB, 6 * KIB], ids="up to {} bytes".format)
def test_compiled_threads_own_what_they_hold(largest):
    limit = 256 * KIB
    table, arena = make_arena((64, 200), (256, 300), (1 * KIB, 500), limit=limit)
    table.state[s.RESIDENT_LIMIT] = 2**40
    watch = Watch(table.state)
    n_held = 3 if _jit.is_disabled() else 8
    counts = run_churn(memory.argument_of(table.state), arena, largest, n_held, watch)
    assert_owned(counts)
    assert watch.n_samples > 0
    assert watch.used <= table.state[s.PEAK] <= limit
    assert table.state[s.USED] == 0
    assert validate(table) == []


def test_compiled_threads_own_what_they_hold_while_their_pool_grows():
    """By a few blocks at a time, in the middle of words and across them."""
    n_first, n_most = 70, 5_056  # whole pages
    table, arena = PoolTable([], 4 * MIB), osmem.private_memory(64 * n_most)
    pool = table.add(64, 64 * n_first, arena, 0, s.POOL_GROWN, n_most=64 * n_most)
    set_limits(table.state, 2**40)
    table.state[s.ZERO_ON_REUSE] = 1
    table.argument = memory.argument_of(table.state)

    def grow():
        if table.room_of(pool):
            table.extend(pool, min(64 * 7, table.room_of(pool)))

    words = np.frombuffer(arena.mapping, np.int64)
    n_held = 3 if _jit.is_disabled() else 8
    assert_owned(run_churn(table.argument, words, 200, n_held, grow))
    assert n_first < table.rows[pool]["n_blocks"] <= n_most
    while table.room_of(pool):
        grow()
    assert table.n_free(pool) == table.rows[pool]["n_blocks"] == n_most
    assert table.state[s.USED] == 0
    assert validate(table) == []


@sampled
def test_python_threads_own_what_they_hold():
    allocator = PoolAllocator([(1, 4 * KIB), (1, 16 * KIB)], limit_mb=4)
    limit = int(0.95 * 4 * MIB)
    allocator.deallocate(allocator.allocate(1))
    watch = Watch(table_of(allocator).state)
    n_steps = 2 if _jit.is_disabled() else 8
    run_together(
        [lambda i=i: own_blocks(allocator, i, N_ROUNDS, n_steps) for i in range(N_THREADS)], watch
    )
    assert watch.n_samples > 0
    assert watch.used <= limit
    assert watch.resident <= 4 * MIB
    assert allocator.validate() == []
    assert allocator.usage[0] == 0
    allocator.trim()
    assert len(allocator.pools) == 2  # those that were made are gone
    assert allocator.validate() == []


def own_blocks(allocator, number, n_rounds, n_steps):
    """Do all that a thread can do with blocks, with a cookie in each."""
    rng = random.Random(number)
    for i in range(n_rounds):
        held, arrays = [], []
        cookie = np.uint64(number * n_rounds + i + 1)
        for _ in range(n_steps):
            try:
                claim_something(allocator, rng, cookie, held, arrays)
            except (LimitExceeded, AllocationFailed):
                while held:  # others wait for it
                    free(allocator, rng, cookie, held)
        for array in arrays:
            assert (array == cookie).all()
        while held:
            free(allocator, rng, cookie, held)


def claim_something(allocator, rng, cookie, held, arrays):
    n_words = rng.choice((1, 100, 512, 513, 2_000, 2_049, 9_000))
    kind = rng.random()
    if kind < 0.2:
        array = allocator.allocate_array(n_words, np.uint64)
        assert not array.any()
        array[:] = cookie
        arrays.append(array)
    elif kind < 0.5:
        sizes = [8 * n_words, 8, 4_104]
        for packed, n_bytes in zip(allocator.allocate_many(sizes).tolist(), sizes, strict=True):
            held.append((MmapOffset.from_packed(packed), n_bytes))
            write_cookie(allocator, *held[-1], cookie)
    else:
        held.append((allocator.allocate(8 * n_words), 8 * n_words))
        write_cookie(allocator, *held[-1], cookie)


def write_cookie(allocator, offset, n_bytes, cookie):
    words = np.frombuffer(allocator.view(offset, n_bytes), np.uint64)
    assert not words.any()
    words[:] = cookie


def free(allocator, rng, cookie, held):
    """Free one block or all, before or after the last view on it is gone."""
    for offset, n_bytes in held:
        words = np.frombuffer(allocator.view(offset, n_bytes), np.uint64)
        assert (words == cookie).all()
    if rng.random() < 0.5:
        allocator.deallocate_many([offset for offset, _ in held])
        held.clear()
    else:
        offset, n_bytes = held.pop()
        words = np.frombuffer(allocator.view(offset, n_bytes), np.uint64)
        allocator.deallocate(offset, n_bytes)
        assert (words == cookie).all()


# -- the false "full" ------------------------------------------------------------------------------

#: Where a thread looks first depends on where its stack lies: threads are made anew so often.
N_CROWDS = 10

# Blocks that are free, in more than one word; one thread for each, and more than there are cores.
FEW_FREE = [
    pytest.param(66, (5, 64, 65), id="3 in 2 words"),
    pytest.param(66, (0, 63, 64, 65), id="4 in 2 words"),
    pytest.param(130, (63, 64, 127, 128, 129), id="5 in 3 words"),
    pytest.param(66, (*range(10, 17), 65), id="8 in 2 words"),
]


def failed_claims(n_blocks, free, n_claims):
    """Let as many threads as there are free blocks hold one each; return how many had to fail."""
    table = make_table((64, n_blocks))
    take_all_but(table, free)
    argument, loop = memory.argument_of(table.state), compile_loop(claim_and_free)
    n_each = n_claims // N_CROWDS // len(free) + 1
    n_failed = 0
    for _ in range(N_CROWDS):
        n_failed += sum(run_together([lambda: loop(argument, 64, n_each)] * len(free)))
        assert table.n_free(0) == len(free)
        assert validate(table) == []
    return n_failed


@pytest.mark.parametrize(("n_blocks", "free"), FEW_FREE)
def test_no_claim_of_three_million_fails_while_a_block_is_free(n_blocks, free):
    assert failed_claims(n_blocks, free, 3_000_000 // SLOWNESS) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("n_blocks", "free"), FEW_FREE)
def test_no_claim_of_a_hundred_million_fails_while_a_block_is_free(n_blocks, free):
    assert failed_claims(n_blocks, free, 100_000_000 // SLOWNESS) == 0


def test_no_claim_fails_where_another_pool_has_a_block():
    # Together the pools have one for each thread, and who is the last to look into the first pool
    # finds its block there: nobody is left who could hold it.
    table = make_table((64, 66), (128, 66))
    argument, loop = memory.argument_of(table.state), compile_loop(claim_and_free)
    for pool, n_kept in ((0, 1), (1, 3)):
        size = 64 << pool
        for _ in range(66 - n_kept):
            assert allocation.allocate(argument, size, s.QUIET_LIMIT) >> s.HANDLE_POOL_SHIFT == pool
    for _ in range(N_CROWDS):
        assert run_together([lambda: loop(argument, 64, 100_000 // SLOWNESS)] * 4) == [0] * 4
    assert validate(table) == []


# -- runs against blocks ---------------------------------------------------------------------------


def test_runs_that_lose_to_single_blocks_are_rolled_back_and_nothing_is_lost():
    table = make_table((64, 200))
    argument = memory.argument_of(table.state)
    ones, runs = compile_loop(claim_and_free), compile_loop(claim_and_free_runs)
    n_pairs = 100_000 // SLOWNESS
    work = [lambda n=n: runs(argument, n * 64, n_pairs) for n in (65, 70, 100, 130)]
    work += [lambda: ones(argument, 64, n_pairs)] * 4
    n_claimed = 0
    for _ in range(1_000):  # where others have the cores, threads seldom meet
        n_claimed += sum(run_together(work)[:4])
        assert validate(table) == []
        if n_claimed and table.rows[0]["rollbacks"]:
            break
    assert n_claimed > 0
    assert table.rows[0]["rollbacks"] > 0
    assert (table.n_free(0), int(table.state[s.USED])) == (200, 0)
    assert allocation.allocate_any(argument, 200 * 64, s.QUIET_LIMIT, 0) >= 0
    assert validate(table) == []


# -- double frees ----------------------------------------------------------------------------------


def all_blocks(table):
    """Take every block of the only pool; return the handles."""
    handles = np.zeros(table.n_free(0), np.int64)
    sizes = np.full(len(handles), 64, np.int64)
    argument = memory.argument_of(table.state)
    assert allocation.allocate_many(argument, sizes, s.QUIET_LIMIT, handles) == s.OK
    return handles


@pytest.mark.parametrize("n_batch", [0, 1, 7])
def test_of_eight_threads_that_free_a_block_one_wins(n_batch):
    n_blocks = 7 * max(4_000 // SLOWNESS, 20)
    table = make_table((64, n_blocks), limit=64 * MIB)
    argument, counts = memory.argument_of(table.state), np.zeros((8, 8), np.int64)
    single, batched = compile_loop(free_all), compile_loop(free_in_batches)
    for _ in range(5):
        handles, counts[:] = all_blocks(table), 0
        if n_batch:
            work = [
                lambda i=i, handles=handles: batched(argument, handles, n_batch, counts[i])
                for i in range(8)
            ]
        else:
            work = [
                lambda i=i, handles=handles: single(argument, handles, counts[i]) for i in range(8)
            ]
        run_together(work)
        n_attempts = n_blocks // (n_batch or 1)
        assert counts.sum(axis=0)[:2].tolist() == [n_attempts, 7 * n_attempts]
        assert (table.n_free(0), int(table.state[s.USED])) == (n_blocks, 0)
        assert validate(table) == []


def test_of_eight_calls_that_free_a_block_one_returns():
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=2)

    def free(offset):
        try:
            allocator.deallocate(offset)
        except InvalidAccess as error:
            return str(error)
        return None

    for _ in range(20):
        offset = allocator.allocate(100)
        answers = run_together([lambda offset=offset: free(offset)] * 8)
        assert answers.count(None) == 1
        assert sum("freed before" in (answer or "") for answer in answers) == 7
    assert allocator.validate() == []


def test_a_block_that_is_viewed_and_freed_at_once_goes_once():
    n_blocks = max(20_000 // SLOWNESS, 50)
    table = make_table((64, n_blocks), limit=64 * MIB)
    argument, counts = memory.argument_of(table.state), np.zeros((8, 8), np.int64)
    viewing, freeing = compile_loop(view_and_drop), compile_loop(free_with_flags)
    for _ in range(5):
        handles = all_blocks(table)
        counts[:] = 0
        work = [
            lambda i=i, handles=handles: viewing(argument, handles, 3, counts[i]) for i in range(7)
        ]
        run_together([*work, lambda handles=handles: freeing(argument, handles, counts[7])])
        assert counts[7, :2].sum() == n_blocks
        assert (table.n_free(0), int(table.state[s.USED])) == (n_blocks, 0)
        assert validate(table) == []


# -- what a refusal leaves behind ------------------------------------------------------------------


def test_a_record_of_a_refusal_keeps_no_block(caplog):
    # An error leads to the frames it passed, and these to arrays: a record must not hold it.
    caplog.set_level(logging.DEBUG, "jessymem")
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=2)

    def fill():
        array = allocator.allocate_array(MIB, np.uint8)
        array[:] = 1
        allocator.allocate_array(2 * MIB)

    with pytest.raises(LimitExceeded):
        fill()
    assert "allocation_failed" in [record.event for record in caplog.records]
    gc.collect()
    assert allocator.usage[0] == 0


# -- trimming --------------------------------------------------------------------------------------


def test_trimming_takes_nothing_that_is_owned():
    # What is freed stays resident, so threads run into the limit unless pages are returned.
    allocator = PoolAllocator([(1, 256), (1, 4 * KIB)], limit_mb=1)
    allocator.deallocate(allocator.allocate(1))
    table = table_of(allocator)
    table.state[s.RESIDENT_LIMIT] = 300 * KIB
    arena = np.frombuffer(table.arena.view(0, 0, 2 * MIB), np.int64)
    watch = Watch(table.state)
    n_given = []

    def look():
        watch()
        n_given.append(allocator.trim())

    counts = run_churn(
        table_of(allocator).argument, arena, 12 * KIB, 4, look, 8, 20 if _jit.is_disabled() else 200
    )
    assert_owned(counts)
    assert sum(n_given) > 0
    assert watch.used <= int(0.95 * MIB)  # for a moment more is charged than can be resident
    assert watch.resident <= 300 * KIB
    assert allocator.validate() == []
    allocator.trim()
    assert table.state[s.USED] == 0
    assert allocator.validate() == []
    for pool in table.pool_ids:  # only pages with blocks that were never used are left
        used = table.blocks_of(pool)["status"] & s.BLOCK_DIRTY != 0
        per_page = max(osmem.page_size() // int(table.rows[pool]["block_bytes"]), 1)
        assert not used.reshape(-1, per_page).all(axis=1).any()


def test_trimming_and_allocating_from_python():
    allocator = PoolAllocator([(1, 4 * KIB)], limit_mb=1)
    allocator.deallocate(allocator.allocate(1))
    watch = Watch(table_of(allocator).state)
    n_rounds = 20 if _jit.is_disabled() else 100

    def look():
        watch()
        allocator.trim()

    def own(number):
        own_blocks(allocator, number, n_rounds, 3)

    run_together([lambda i=i: own(i) for i in range(4)], look)
    assert watch.used <= int(0.95 * MIB)
    assert watch.resident <= MIB
    assert allocator.validate() == []
    assert allocator.usage[0] == 0
