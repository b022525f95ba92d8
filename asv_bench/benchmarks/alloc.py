"""Blocks: in compiled loops, from Python one by one and many at once.

A pair is one block allocated and freed, so every body leaves its allocator as it found it.
"""

import numpy as np

from jessymem import MemoryConfig, MmapManager

from .common import geometry, kept, module, named, skipping

N_PAIRS = geometry(100_000, 10)
N_FROM_PYTHON = geometry(1_000, 5)
KIB, MIB = 2**10, 2**20


def compile_kernels():
    """Have the allocator's kernels compiled; else a thread does it in the middle of something."""
    module("kernels._jit").promote("memory")


def make_allocator(zero_on_reuse, n_mb=32, block_size=4_096):
    """An allocator with one pool, awake; for `kept`."""
    allocator = module("pools.allocator").PoolAllocator(
        [(n_mb, block_size)], limit_mb=4 * n_mb, zero_on_reuse=zero_on_reuse
    )
    compile_kernels()
    allocator.deallocate(allocator.allocate(1))
    return allocator


def make_manager(zero_on_reuse):
    """A manager, awake; for `kept`."""
    compile_kernels()
    manager = MmapManager(MemoryConfig(total_memory_mb=1_024, zero_on_reuse=zero_on_reuse))
    manager.deallocate(manager.allocate(1))
    return manager


class PairsCompiled_4KiB:
    """How full the pool is: O(1) means flat, down to the last free block."""

    params = ["empty", "half full", "99 % full", "one block left"]
    param_names = ["pool"]
    version = "1"

    def setup(self, filled):
        with skipping():
            self.pairs = module("bench.loops").pairs()
        self.allocator = make_allocator(zero_on_reuse=False)
        n_blocks = 32 * MIB // 4_096
        n_taken = {"empty": 0, "half full": n_blocks // 2, "99 % full": n_blocks * 99 // 100}
        offsets = self.allocator.allocate_many([4_096] * n_blocks)
        np.random.default_rng(1).shuffle(offsets)  # scattered over the pool
        self.allocator.deallocate_many(offsets[n_taken.get(filled, n_blocks - 1) :])
        self.pairs(self.allocator.words, 4_096, 1)

    def teardown(self, filled):
        self.allocator.close()

    @named("100,000 pairs of 4 KiB in a compiled loop, by how full the pool is")
    def time_pairs(self, filled):
        self.pairs(self.allocator.words, 4_096, N_PAIRS)


class PairsCompiled_NBytes:
    """Below and above a block: the next pool; above the largest: a run of blocks."""

    params = [1, 4 * KIB, 4 * KIB + 1, 256 * KIB, 256 * KIB + 1]
    param_names = ["bytes"]
    version = "1"

    def setup(self, n_bytes):
        with skipping():
            self.pairs = module("bench.loops").pairs()
        self.words = kept(make_default, False).words
        self.n_pairs = N_PAIRS
        self.pairs(self.words, n_bytes, 10)

    @named("100,000 pairs in a compiled loop, by size, default pools")
    def time_pairs(self, n_bytes):
        self.pairs(self.words, n_bytes, self.n_pairs)


def make_default(zero_on_reuse):
    """An allocator with the default pools, awake; for `kept`."""
    allocator = module("pools.allocator").PoolAllocator(zero_on_reuse=zero_on_reuse)
    allocator.deallocate(allocator.allocate(1))
    return allocator


class PairsFromPython_NBytes:
    """Zeroed by writing up to 1 MiB, by fresh pages from the system above."""

    params = [[4 * KIB, 64 * KIB, MIB, geometry(2 * MIB, MIB + 1)], [True, False]]
    param_names = ["bytes", "zero_on_reuse"]
    version = "1"

    def setup(self, n_bytes, zero_on_reuse):
        self.manager = kept(make_manager, zero_on_reuse)
        self.n_pairs = N_FROM_PYTHON if n_bytes < MIB else geometry(50, 1)
        self.time_pairs(n_bytes, zero_on_reuse)

    @named("allocate and deallocate from Python (1,000 pairs; 50 from 1 MiB on)")
    def time_pairs(self, n_bytes, zero_on_reuse):
        allocate, deallocate = self.manager.allocate, self.manager.deallocate
        for _ in range(self.n_pairs):
            deallocate(allocate(n_bytes))


class ManyAtOnce_4KiB:
    """What a call costs, and what a block."""

    params = [geometry([1, 10, 100, 1_000], [10]), [True, False]]
    param_names = ["blocks", "zero_on_reuse"]
    version = "1"

    def setup(self, n_blocks, zero_on_reuse):
        self.manager = kept(make_manager, zero_on_reuse)
        self.sizes = np.full(n_blocks, 4_096)
        self.n_calls = geometry(1_000 // n_blocks, 1)
        self.time_allocate_many(n_blocks, zero_on_reuse)

    @named("allocate_many and deallocate_many, 1,000 blocks in calls of so many")
    def time_allocate_many(self, n_blocks, zero_on_reuse):
        for _ in range(self.n_calls):
            self.manager.deallocate_many(self.manager.allocate_many(self.sizes))


class Views_4KiB:
    """A view has an owner of its own, and an array a block of its own."""

    version = "1"

    def setup(self):
        self.manager = kept(make_manager, True)
        self.offset = self.manager.allocate(4_096)
        self.time_view()
        self.time_allocate_array()

    def teardown(self):
        self.manager.deallocate(self.offset)

    @named("view of a block, 1,000 times")
    def time_view(self):
        for _ in range(N_FROM_PYTHON):
            self.manager.view(self.offset, 4_096)

    @named("allocate_array and drop, 1,000 times")
    def time_allocate_array(self):
        for _ in range(N_FROM_PYTHON):
            self.manager.allocate_array(4_096, np.uint8)


class Start_DefaultPools:
    """Pools are made when the first block is wanted."""

    version = "1"

    def setup(self):
        kept(make_manager, True)  # compiles
        self.time_first_allocation()

    @named("a new manager's first allocation")
    def time_first_allocation(self):
        with MmapManager() as manager:
            manager.deallocate(manager.allocate(4_096))
