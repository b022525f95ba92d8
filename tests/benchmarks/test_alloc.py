"""Blocks beside their peers, in one run: ``pytest tests/benchmarks --benchmark-enable -k alloc``.

A *pair* is one block allocated and freed. Compiled loops make a million, so that their milliseconds
read as nanoseconds a pair. The suite runs everything once, as a test that each benchmark leaves its
allocator as it found it; what is about compiled code is skipped where compilation is disabled.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.internals import table_of

from jessymem import MemoryConfig, MmapManager
from jessymem.config import DEFAULT_POOLS
from jessymem.kernels import _jit, allocation, release
from jessymem.kernels.schema import ANY_SIZE, OK, QUIET_LIMIT
from jessymem.pools.allocator import PoolAllocator

KIB = 2**10
MIB = 2**20
BLOCK_BYTES = DEFAULT_POOLS[0].block_size
N_BLOCKS = DEFAULT_POOLS[0].n_blocks

N_COMPILED = 1_000_000
N_FROM_PYTHON = 50 if _jit.is_disabled() else 10_000
N_AT_ONCE = 1_000
N_LIVE = 4_096

# How many blocks of the pool are taken, at random: a curve that should be flat, up to a full pool.
FILLS = {
    "empty": 0,
    "1/4 full": N_BLOCKS // 4,
    "half full": N_BLOCKS // 2,
    "3/4 full": N_BLOCKS * 3 // 4,
    "99 % full": N_BLOCKS * 99 // 100,
    "one block left": N_BLOCKS - 1,
}


def fill(allocator: PoolAllocator, n_blocks: int) -> np.ndarray:
    """Take `n_blocks` of the first pool, scattered over it; return their offsets."""
    offsets = allocator.allocate_many([BLOCK_BYTES] * N_BLOCKS)
    np.random.default_rng(1).shuffle(offsets)
    allocator.deallocate_many(offsets[n_blocks:])
    return offsets[:n_blocks]


@pytest.fixture(scope="module")
def loops() -> SimpleNamespace:
    """What a user would compile: kernels, and `np.empty`, in loops of their own."""
    if _jit.is_disabled():
        pytest.skip("the cost of compiled code, which is disabled")
    _jit.promote(_jit.MEMORY)
    from numba import njit

    # As they are now: the dispatchers that `promote` put in place.
    allocate, deallocate = allocation.allocate, release.deallocate

    @njit(nogil=True)
    def pairs(words, n_bytes, n_pairs):
        n_wrong = 0
        for _ in range(n_pairs):
            handle = allocate(words, n_bytes, QUIET_LIMIT)
            n_wrong += deallocate(words, handle, ANY_SIZE) != OK
        return n_wrong

    @njit(nogil=True)
    def empty_pairs(n_bytes, n_pairs):
        n_wrong = 0
        for _ in range(n_pairs):
            n_wrong += np.empty(n_bytes, np.uint8).size != n_bytes
        return n_wrong

    @njit(nogil=True)
    def churn(words, n_bytes, order):
        n_wrong = 0
        live = [allocate(words, n_bytes, QUIET_LIMIT) for _ in range(N_LIVE)]
        for i in order:
            n_wrong += deallocate(words, live[i], ANY_SIZE) != OK
            live[i] = allocate(words, n_bytes, QUIET_LIMIT)
        for handle in live:
            n_wrong += deallocate(words, handle, ANY_SIZE) != OK
        return n_wrong

    @njit(nogil=True)
    def churn_empty(n_bytes, order):
        n_wrong = 0
        live = [np.empty(n_bytes, np.uint8) for _ in range(N_LIVE)]
        for i in order:
            live[i] = np.empty(n_bytes, np.uint8)
        for array in live:
            n_wrong += array.size != n_bytes
        return n_wrong

    return SimpleNamespace(
        pairs=pairs, empty_pairs=empty_pairs, churn=churn, churn_empty=churn_empty
    )


@pytest.fixture
def make_allocator() -> Iterator[Callable[..., PoolAllocator]]:
    """Make allocators that are awake; afterwards nothing may be in use, and all counters right."""
    made = []

    def make(**settings: Any) -> PoolAllocator:
        allocator = PoolAllocator(**settings)
        made.append(allocator)
        allocator.deallocate(allocator.allocate(1))
        return allocator

    yield make
    for allocator in made:
        assert allocator.usage[0] == 0
        assert allocator.validate() == []
        allocator.close()


@pytest.fixture
def plain(make_allocator) -> PoolAllocator:
    """An allocator that leaves zeroing to its users."""
    return make_allocator(zero_on_reuse=False)


@pytest.fixture
def manager() -> Iterator[MmapManager]:
    """A manager with default settings, awake."""
    with MmapManager() as manager:
        manager.deallocate(manager.allocate(1))
        yield manager
        assert manager.get_stats().total_allocated_bytes == 0


def words_of(allocator: PoolAllocator) -> Any:
    """Return what kernels are given."""
    return table_of(allocator).argument


# -- pairs in compiled code, by how full the pool is -----------------------------------------------


@pytest.mark.parametrize("filled", FILLS)
@pytest.mark.benchmark(group="alloc: 1,000,000 compiled pairs of 4 KiB")
def test_pairs(benchmark, loops, plain, filled):
    taken = fill(plain, FILLS[filled])
    loops.pairs(words_of(plain), BLOCK_BYTES, 1)
    assert benchmark(loops.pairs, words_of(plain), BLOCK_BYTES, N_COMPILED) == 0
    plain.deallocate_many(taken)


@pytest.mark.benchmark(group="alloc: 1,000,000 compiled pairs of 4 KiB")
def test_np_empty_pairs(benchmark, loops):
    loops.empty_pairs(BLOCK_BYTES, 1)
    assert benchmark(loops.empty_pairs, BLOCK_BYTES, N_COMPILED) == 0


# -- churn -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def order() -> np.ndarray:
    """Which of the live blocks is replaced next."""
    return np.random.default_rng(2).integers(0, N_LIVE, N_COMPILED)


@pytest.mark.benchmark(group="alloc: 1,000,000 compiled replacements among 4,096 live blocks")
def test_churn(benchmark, loops, plain, order):
    loops.churn(words_of(plain), BLOCK_BYTES, order[:1])
    assert benchmark(loops.churn, words_of(plain), BLOCK_BYTES, order) == 0


@pytest.mark.benchmark(group="alloc: 1,000,000 compiled replacements among 4,096 live blocks")
def test_np_empty_churn(benchmark, loops, order):
    loops.churn_empty(BLOCK_BYTES, order[:1])
    assert benchmark(loops.churn_empty, BLOCK_BYTES, order) == 0


# -- threads ---------------------------------------------------------------------------------------


def run_in_threads(n_threads: int, work: Callable[..., int], *arguments: Any) -> list[int]:
    """Do all of `work` in every thread; return what each returned."""
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(work(*arguments))) for _ in range(n_threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.benchmark(group="alloc: 1,000,000 compiled pairs in each thread, on one pool")
def test_pairs_in_threads(benchmark, loops, plain, n_threads):
    arguments = (loops.pairs, words_of(plain), BLOCK_BYTES)
    run_in_threads(n_threads, *arguments, 1)
    assert not any(benchmark(run_in_threads, n_threads, *arguments, N_COMPILED))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.benchmark(group="alloc: 1,000,000 compiled pairs in each thread, on one pool")
def test_np_empty_pairs_in_threads(benchmark, loops, n_threads):
    arguments = (loops.empty_pairs, BLOCK_BYTES)
    run_in_threads(n_threads, *arguments, 1)
    assert not any(benchmark(run_in_threads, n_threads, *arguments, N_COMPILED))


# -- from Python -----------------------------------------------------------------------------------


def repeat(work: Callable[[int], object], size: int, n_times: int) -> None:
    """Make `n_times` of something and drop each before the next."""
    for _ in range(n_times):
        work(size)


def repeat_pairs(
    allocate: Callable[[int], Any], deallocate: Callable[[Any], None], size: int, n_pairs: int
) -> None:
    for _ in range(n_pairs):
        deallocate(allocate(size))


@pytest.mark.benchmark(group="alloc: 10,000 pairs of 4 KiB from Python")
def test_manager_pairs(benchmark, manager):
    benchmark(repeat_pairs, manager.allocate, manager.deallocate, BLOCK_BYTES, N_FROM_PYTHON)


@pytest.mark.benchmark(group="alloc: 10,000 pairs of 4 KiB from Python")
def test_allocator_pairs(benchmark, make_allocator):
    allocator = make_allocator()
    benchmark(repeat_pairs, allocator.allocate, allocator.deallocate, BLOCK_BYTES, N_FROM_PYTHON)


@pytest.mark.benchmark(group="alloc: 10,000 pairs of 4 KiB from Python")
def test_np_empty(benchmark):
    def make_all(n_arrays: int) -> None:
        for _ in range(n_arrays):
            np.empty(BLOCK_BYTES, np.uint8)

    benchmark(make_all, N_FROM_PYTHON)


@pytest.mark.benchmark(group="alloc: 10,000 pairs of 4 KiB from Python")
def test_bytearray(benchmark):
    benchmark(repeat, bytearray, BLOCK_BYTES, N_FROM_PYTHON)


@pytest.mark.benchmark(group="alloc: 10,000 pairs of 4 KiB from Python")
def test_mmap(benchmark):
    def make_all(n_maps: int) -> None:
        for _ in range(n_maps):
            mmap.mmap(-1, BLOCK_BYTES)

    benchmark(make_all, N_FROM_PYTHON)


# -- many at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_on_reuse", [True, False], ids=["zeroed", "not zeroed"])
@pytest.mark.benchmark(group="alloc: 1,000 blocks of 4 KiB in one call")
def test_allocate_many(benchmark, make_allocator, zero_on_reuse):
    allocator = make_allocator(zero_on_reuse=zero_on_reuse)
    sizes = np.full(N_AT_ONCE, BLOCK_BYTES)

    def make_all() -> None:
        allocator.deallocate_many(allocator.allocate_many(sizes))

    make_all()  # the blocks are used ones from here on
    benchmark(make_all)


@pytest.mark.benchmark(group="alloc: 1,000 blocks of 4 KiB in one call")
def test_np_empty_one_by_one(benchmark):
    def make_all() -> None:
        for _ in range(N_AT_ONCE):
            np.empty(BLOCK_BYTES, np.uint8)

    benchmark(make_all)


@pytest.mark.benchmark(group="alloc: 1,000 blocks of 4 KiB in one call")
def test_np_empty_held(benchmark):
    def make_all() -> int:
        return len([np.empty(BLOCK_BYTES, np.uint8) for _ in range(N_AT_ONCE)])

    assert benchmark(make_all) == N_AT_ONCE


# -- zeroing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_on_reuse", [True, False], ids=["zeroed", "not zeroed"])
@pytest.mark.parametrize("size", [4 * KIB, 256 * KIB])
@pytest.mark.benchmark(group="alloc: 10,000 compiled pairs, zeroed by writing")
def test_zero_by_writing(benchmark, loops, make_allocator, size, zero_on_reuse):
    allocator = make_allocator(zero_on_reuse=zero_on_reuse)
    loops.pairs(words_of(allocator), size, 1)  # the block is a used one from here on
    assert benchmark(loops.pairs, words_of(allocator), size, 10_000) == 0


@pytest.mark.parametrize("zero_on_reuse", [True, False], ids=["zeroed", "not zeroed"])
@pytest.mark.benchmark(group="alloc: 8 MiB allocated, written and freed")
def test_zero_by_pages(benchmark, make_allocator, zero_on_reuse):
    allocator = make_allocator(zero_on_reuse=zero_on_reuse)

    def write_all() -> int:
        offset = allocator.allocate(8 * MIB)
        run = np.frombuffer(allocator.view(offset, 8 * MIB), np.uint8)
        was = int(run[0])
        run[:] = 1
        allocator.deallocate(offset)
        return was

    write_all()
    assert benchmark(write_all) == int(not zero_on_reuse)


@pytest.mark.benchmark(group="alloc: 8 MiB allocated, written and freed")
def test_np_zeros_by_pages(benchmark):
    def write_all() -> int:
        run = np.zeros(8 * MIB, np.uint8)
        was = int(run[0])
        run[:] = 1
        return was

    assert benchmark(write_all) == 0


# -- views and arrays ------------------------------------------------------------------------------


@pytest.mark.benchmark(group="alloc: 10,000 views on 4 KiB")
def test_view(benchmark, manager):
    offset = manager.allocate(BLOCK_BYTES)

    def view_all(n_views: int) -> None:
        for _ in range(n_views):
            manager.view(offset, BLOCK_BYTES)

    benchmark(view_all, N_FROM_PYTHON)
    manager.deallocate(offset)


@pytest.mark.benchmark(group="alloc: 10,000 views on 4 KiB")
def test_np_frombuffer(benchmark):
    memory = bytearray(BLOCK_BYTES)

    def view_all(n_views: int) -> None:
        for _ in range(n_views):
            np.frombuffer(memory, np.uint8)

    benchmark(view_all, N_FROM_PYTHON)


@pytest.mark.parametrize("size", [4 * KIB, 256 * KIB])
@pytest.mark.benchmark(group="alloc: 100 arrays, one after another")
def test_allocate_array(benchmark, manager, size):
    manager.allocate_array(size, np.uint8)
    benchmark(repeat, lambda size: manager.allocate_array(size, np.uint8), size, 100)


@pytest.mark.parametrize("size", [4 * KIB, 256 * KIB])
@pytest.mark.benchmark(group="alloc: 100 arrays, one after another")
def test_np_zeros(benchmark, size):
    benchmark(repeat, lambda size: np.zeros(size, np.uint8), size, 100)


# -- stats and start -------------------------------------------------------------------------------


@pytest.mark.benchmark(group="alloc: stats")
def test_get_stats(benchmark, manager):
    offsets = manager.allocate_many([pool.block_size for pool in DEFAULT_POOLS] * 100)
    manager.deallocate_many(offsets[::2])
    assert benchmark(manager.get_stats).total_used_bytes > 0
    manager.deallocate_many(offsets[1::2])


@pytest.mark.benchmark(group="alloc: start")
def test_pool_allocator(benchmark):
    benchmark(lambda: PoolAllocator().close())


@pytest.mark.benchmark(group="alloc: start")
def test_mmap_manager(benchmark):
    benchmark(lambda: MmapManager(MemoryConfig()).close())


@pytest.mark.benchmark(group="alloc: start")
def test_first_allocation(benchmark, manager):  # that one has compiled the kernels
    def allocate_once() -> None:
        with MmapManager() as fresh:
            fresh.deallocate(fresh.allocate(BLOCK_BYTES))

    benchmark(allocate_once)
