"""Needles in all layers, and a user's own kernel over every byte."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from jessymem.bench import data, loops
from jessymem.bench.setting import NotThere, Setting, require_cpus
from jessymem.bench.table import NotRun, Outcome
from jessymem.bench.timing import Race, race
from jessymem.kernels import _jit


def measure(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Measure the family `scan`."""
    base, dimensions = setting.text
    with data.open_manager(base) as manager:
        if not hasattr(manager, "count"):
            raise NotThere("this version has no scans")
        for dimension in dimensions:
            manager.load_dimension(dimension)
        _jit.promote(_jit.SEARCHING)
        flat = b"".join(manager.access_layer(layer) for layer in manager.list_layers())
        for name, needles in data.NEEDLES.items():
            yield f"scan.{name}", _slowest(setting, manager, flat, needles)
        yield from _cores(setting, manager, len(flat))
        yield from _sums(setting, manager, np.frombuffer(flat, np.uint64))


def _slowest(setting: Setting, manager: Any, flat: bytes, needles: tuple[bytes, ...]) -> Outcome:
    """Return what came of the needle that does worst beside `bytes.find`."""
    outcomes = []
    for needle in needles:
        if flat.find(needle) >= 0:
            raise NotThere(f"{needle!r} is in this Python's sources")
        both = race(
            partial(manager.count, needle, workers=1),
            partial(flat.find, needle),
            n_rounds=setting.n_rounds(5),
        )
        outcomes.append(_speeds(both, len(flat)))
    return min(outcomes, key=lambda outcome: outcome.value)


def _cores(setting: Setting, manager: Any, n_bytes: int) -> Iterator[tuple[str, Outcome]]:
    require_cpus(2)
    count = partial(manager.count, data.NEEDLES["rare"][0])
    both = race(partial(count, workers=2), partial(count, workers=1), n_rounds=setting.n_rounds(15))
    yield "scan.cores", _speeds(both, n_bytes)


def _sums(setting: Setting, manager: Any, words: Any) -> Iterator[tuple[str, Outcome]]:
    kernel = loops.sum_words()
    scan = partial(manager.scan, kernel, np.uint64)
    if int(scan().sum(dtype=np.uint64)) != int(words.sum(dtype=np.uint64)):
        raise AssertionError("the sums differ")
    one, two = partial(scan, workers=1), partial(scan, workers=2)
    both = race(one, words.sum, n_rounds=setting.n_rounds(15))
    yield "scan.sum", _speeds(both, words.nbytes)
    require_cpus(2)
    yield "scan.sum.cores", _speeds(race(two, one, n_rounds=setting.n_rounds(15)), words.nbytes)


def _speeds(both: Race, n_bytes: int) -> Outcome:
    return Outcome(n_bytes / both.seconds(0), n_bytes / both.seconds(1), both.ratio(1, to=0))
