"""Threads: how many readers share the GIL, and what goes on without it."""

import threading
from pathlib import Path

import numpy as np

from jessymem import LayerId

from .batch import compile_kernels, ids_of
from .common import (
    FIRST_FULL,
    FULL_LAYERS,
    N_CPUS,
    READ,
    READ_LAYERS,
    Contents,
    Tables,
    geometry,
    kept,
    module,
    named,
    open_store,
    skip_unless,
    skipping,
)
from .read import read_each

N_READS = geometry(100_000, 400)


def in_threads(n_threads, work, *arguments):
    """Do all of `work` in each of the threads."""
    threads = [threading.Thread(target=work, args=arguments) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class ReadFromThreads_8KiB(Contents):
    """As many reads whatever the threads: with the GIL a flat line is what can be had."""

    params = geometry([1, 2, 10, 100], [1, 4])
    param_names = ["threads"]
    version = "1"

    def setup(self, base, n_threads):
        self.access = kept(open_store, base, (READ,)).access_layer
        chosen = np.random.default_rng(1).integers(0, READ_LAYERS, N_READS // n_threads)
        self.keys = [LayerId(READ, number) for number in chosen.tolist()]
        read_each(self.access, self.keys)

    @named("100,000 single reads, split over threads")
    def time_access_layer(self, base, n_threads):
        in_threads(n_threads, read_each, self.access, self.keys)


class BatchFromThreads_65536(Tables):
    """Without the GIL: twice the work in the same time on two cores."""

    params = [1, 2]
    param_names = ["threads"]
    version = "1"

    def setup(self, base, n_threads):
        if n_threads > N_CPUS:
            raise NotImplementedError(f"{n_threads} threads on {N_CPUS} CPU")
        self.manager = kept(open_store, base, (FIRST_FULL,))
        skip_unless(self.manager, "locate_many")
        compile_kernels()
        layer_ids = kept(ids_of, (FIRST_FULL,), FULL_LAYERS)
        self.layer_ids = np.tile(layer_ids, geometry(16, 1))
        self.time_locate_many(base, n_threads)

    @named("locate_many of 1,048,576 ids in each thread")
    def time_locate_many(self, base, n_threads):
        in_threads(n_threads, self.manager.locate_many, self.layer_ids)


class PairsFromThreads_4KiB:
    """On one pool, whose counters both change; on a pool each, which share the budget's."""

    params = [[1, 2], ["one pool", "a pool each"]]
    param_names = ["threads", "pools"]
    version = "1"

    def setup(self, n_threads, pools):
        if n_threads > N_CPUS:
            raise NotImplementedError(f"{n_threads} threads on {N_CPUS} CPU")
        with skipping():
            self.pairs = module("bench.loops").pairs()
        self.allocator = module("pools.allocator").PoolAllocator(
            [(32, 4_096), (32, 8_192)], limit_mb=128, zero_on_reuse=False
        )
        self.sizes = [4_096, 4_096 if pools == "one pool" else 8_192][:n_threads]
        for n_bytes in self.sizes:
            self.pairs(self.allocator.words, n_bytes, 10)

    def teardown(self, n_threads, pools):
        self.allocator.close()

    @named("200,000 compiled pairs in each thread")
    def time_pairs(self, n_threads, pools):
        words, n_pairs = self.allocator.words, geometry(200_000, 10)
        threads = [
            threading.Thread(target=self.pairs, args=(words, n_bytes, n_pairs))
            for n_bytes in self.sizes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class ReadWhileWriting_8KiB(Contents):
    """Readers wait for no writer; what they lose is the writer's share of the GIL and of a core."""

    params = ["nothing", "load and unload", "create and discard"]
    param_names = ["meanwhile"]
    version = "1"

    def setup(self, base, meanwhile):
        self.manager = kept(open_store, base, (READ,))
        self.access = self.manager.access_layer
        self.keys = [LayerId(READ, number % READ_LAYERS) for number in range(N_READS // 5)]
        path = kept(other_file, base)
        self.manager.discard_proto_dimension(self.manager.create_proto_dimension(60, b"x"))
        self.stop = threading.Event()
        self.writer = None
        if meanwhile != "nothing":
            write = self.load if meanwhile == "load and unload" else self.learn
            self.writer = threading.Thread(target=write, args=(path,))
            self.writer.start()

    def load(self, path):
        while not self.stop.is_set():
            self.manager.load_dimension(61, path)
            self.manager.unload_dimension(61)

    def learn(self, path):
        while not self.stop.is_set():
            self.manager.discard_proto_dimension(self.manager.create_proto_dimension(60, b"x"))

    def teardown(self, base, meanwhile):
        self.stop.set()
        if self.writer is not None:
            self.writer.join()

    @named("20,000 single reads while another thread writes")
    def time_access_layer(self, base, meanwhile):
        read_each(self.access, self.keys)


def other_file(base):
    """What is loaded meanwhile; for `kept`."""
    return module("bench.data").build(Path(base) / "other", 61, [b"x" * 100] * 100)
