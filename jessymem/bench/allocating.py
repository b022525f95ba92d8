"""Blocks allocated and freed, in compiled code and from Python."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import nan
from typing import Final

import numpy as np

from jessymem.bench import data, loops
from jessymem.bench.setting import Setting, require_cpus
from jessymem.bench.table import NotRun, Outcome
from jessymem.bench.timing import race, run_in_threads
from jessymem.config import DEFAULT_POOLS
from jessymem.pools.allocator import PoolAllocator
from jessymem.warming import warmup

BLOCK_BYTES: Final = 4_096
_N_PAIRS: Final = 200_000
_N_FROM_PYTHON: Final = 2_000
_N_AT_ONCE: Final = 1_000


def measure(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Measure the family `allocate`: compiled kernels, but where compilation is disabled."""
    warmup()
    yield from _from_python(setting)
    pairs, empty_pairs = loops.pairs(), loops.empty_pairs()
    allocator = PoolAllocator(DEFAULT_POOLS[:1], limit_mb=280, zero_on_reuse=False)
    words = allocator.words
    pairs(words, BLOCK_BYTES, 1)
    both = race(
        partial(pairs, words, BLOCK_BYTES, _N_PAIRS),
        partial(empty_pairs, BLOCK_BYTES, _N_PAIRS),
        n_rounds=setting.n_rounds(31),
    )
    yield "allocate.compiled", _each(both.seconds(0), both.seconds(1), _N_PAIRS, both.ratio(0, 1))
    require_cpus(2)
    works = [partial(pairs, words, BLOCK_BYTES, _N_PAIRS)] * 2
    step = race(partial(run_in_threads, works), n_rounds=setting.n_rounds(15)).seconds() / _N_PAIRS
    yield "allocate.threads", Outcome(step, nan, step)
    allocator.close()


def _from_python(setting: Setting) -> Iterator[tuple[str, Outcome]]:
    with data.open_manager(setting.home("blocks"), 280) as manager:
        allocate, deallocate = manager.allocate, manager.deallocate
        sizes = np.full(_N_AT_ONCE, BLOCK_BYTES)

        def one_by_one() -> None:
            for _ in range(_N_FROM_PYTHON):
                deallocate(allocate(BLOCK_BYTES))

        def at_once() -> None:
            manager.deallocate_many(manager.allocate_many(sizes))

        def empty(n_times: int) -> None:
            for _ in range(n_times):
                np.empty(BLOCK_BYTES, np.uint8)

        for key, ours, n_each in (
            ("allocate.python", one_by_one, _N_FROM_PYTHON),
            ("allocate.many", at_once, _N_AT_ONCE),
        ):
            both = race(ours, partial(empty, n_each), n_rounds=setting.n_rounds(31))
            yield key, _each(both.seconds(0), both.seconds(1), n_each, both.ratio(0, to=1))


def _each(ours: float, theirs: float, n: int, ratio: float) -> Outcome:
    return Outcome(ours / n, theirs / n, ratio)
