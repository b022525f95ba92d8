"""Every byte of many layers: where a needle is, and what a user's own kernel makes of them."""

import re

import numpy as np

from .common import (
    N_CPUS,
    STORE_MB,
    Texts,
    kept,
    module,
    named,
    open_store,
    skip_unless,
    skipping,
    text_dimensions,
)

WORKERS = [1, 2]


def compile_searches():
    """Compile what searches, which else waits until there has been enough to search."""
    jit = module("kernels._jit")
    jit.promote(jit.SEARCHING)


def skip_beyond_cpus(n_threads):
    if n_threads > N_CPUS:
        raise NotImplementedError(f"{n_threads} threads on {N_CPUS} CPU")


class Find_TextOfNMB(Texts):
    """A needle that is nowhere, so that every byte is looked at; rare bytes in it, or none."""

    params = [STORE_MB, ["rare", "long", "common"], WORKERS]
    param_names = ["MB", "needle", "workers"]
    version = "1"
    timeout = 300

    def setup(self, base, n_mb, needle, n_threads):
        skip_beyond_cpus(n_threads)
        self.manager = kept(open_store, base, text_dimensions(n_mb))
        skip_unless(self.manager, "count")
        compile_searches()
        self.needle = module("bench.data").NEEDLES[needle][0]
        if self.time_count(base, n_mb, needle, n_threads):
            raise AssertionError(f"{self.needle!r} is in the text")

    @named("count a needle that is nowhere")
    def time_count(self, base, n_mb, needle, n_threads):
        return self.manager.count(self.needle, workers=n_threads)


class FindFrequent_TextOf16MB(Texts):
    """Each hit is reported: from none to one in every line."""

    params = [b"zeugma~", b"raise NotImplementedError", b"self."]
    param_names = ["needle"]
    version = "1"

    def setup(self, base, needle):
        self.manager = kept(open_store, base, text_dimensions(16))
        skip_unless(self.manager, "find")
        compile_searches()
        self.time_find(base, needle)

    @named("find in 16 MiB")
    def time_find(self, base, needle):
        self.manager.find(needle)


class FindAnyCase_TextOfNMB(Texts):
    """Letters of either case, beside the same bytes in small letters; and a regular expression."""

    params = STORE_MB
    param_names = ["MB"]
    version = "1"
    timeout = 300

    def setup(self, base, n_mb):
        self.manager = kept(open_store, base, text_dimensions(n_mb))
        skip_unless(self.manager, "find_batches")
        compile_searches()
        self.pattern = re.compile(rb"(?i)raise \w+error")
        self.time_count(base, n_mb)

    @named("count a word in either case")
    def time_count(self, base, n_mb):
        self.manager.count(b"NotImplemented", ignore_case=True)

    @named("count a word in either case, whole words only")
    def time_count_words(self, base, n_mb):
        self.manager.count(b"NotImplemented", ignore_case=True, word=True)

    @named("count a regular expression")
    def time_count_pattern(self, base, n_mb):
        self.manager.count(self.pattern)


class FindLines_TextOf16MB(Texts):
    """Each find as a line of text, as the command writes it where nothing is coloured."""

    version = "2"

    def setup(self, base):
        self.manager = kept(open_store, base, text_dimensions(16))
        skip_unless(self.manager, "find_batches")
        compile_searches()
        self.hit_lines = module("terminal.hit_lines").hit_lines
        self.time_lines(base)

    @named("lines of finds in 16 MiB")
    def time_lines(self, base):
        for batch in self.manager.find_batches(b"self."):
            self.hit_lines(batch, is_coloured=False)


class Sum_TextOfNMB(Texts):
    """A user's own kernel over every byte, beside NumPy's sum of the same words."""

    params = [STORE_MB, WORKERS]
    param_names = ["MB", "workers"]
    version = "1"
    timeout = 300

    def setup(self, base, n_mb, n_threads):
        skip_beyond_cpus(n_threads)
        self.manager = kept(open_store, base, text_dimensions(n_mb))
        skip_unless(self.manager, "scan")
        with skipping():
            self.sum_words = module("bench.loops").sum_words()
        self.time_scan(base, n_mb, n_threads)

    @named("scan with a sum of words")
    def time_scan(self, base, n_mb, n_threads):
        self.manager.scan(self.sum_words, np.uint64, workers=n_threads)


class SumNumPy_TextOfNMB(Texts):
    """The yardstick: NumPy over the same layers, one by one."""

    params = STORE_MB
    param_names = ["MB"]
    version = "1"

    def setup(self, base, n_mb):
        manager = kept(open_store, base, text_dimensions(n_mb))
        self.arrays = [
            np.frombuffer(manager.access_layer(layer), np.uint64) for layer in manager.list_layers()
        ]
        self.time_sum(base, n_mb)

    @named("NumPy's sum of words, layer by layer")
    def time_sum(self, base, n_mb):
        for array in self.arrays:
            array.sum()
