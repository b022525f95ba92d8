"""The machine itself: what moves here is not jessymem.

Where these lines step, the machine changed, or what else runs on it; the spread is how far one
sample lies from the next.
"""

import statistics
from time import perf_counter

import numpy as np

from .common import MIB, geometry, named


class Yardstick:
    """Work that no commit changes: Python's own loop, memory that is copied, arithmetic."""

    version = "1"

    def setup(self):
        self.source = np.ones(geometry(64 * MIB, MIB), np.uint8)
        self.target = np.empty_like(self.source)
        self.words = np.arange(1_000, dtype=np.uint64)
        self.time_copy()

    @named("100,000 turns of an empty loop")
    def time_python(self):
        for _ in range(geometry(100_000, 100)):
            pass

    @named("64 MiB copied")
    def time_copy(self):
        self.target[:] = self.source

    @named("1,000 small NumPy calls")
    def time_numpy_calls(self):
        for _ in range(geometry(1_000, 10)):
            self.words.sum()


class Spread:
    """Half of the samples lie within this share of their median."""

    version = "1"

    @named("spread of a fixed loop, interquartile range over median")
    def track_spread(self):
        samples = []
        for _ in range(geometry(200, 5)):
            begin = perf_counter()
            for _ in range(10_000):
                pass
            samples.append(perf_counter() - begin)
        low, middle, high = statistics.quantiles(samples, n=4)
        return 100 * (high - low) / middle

    track_spread.unit = "%"
