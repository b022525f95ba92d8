"""Compiling ahead of time: every kernel once, so that later processes start from the disk cache."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from jessymem.core_dimensions import core_dimensions
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels import _jit, locate
from jessymem.kernels import schema as s
from jessymem.simulation import simulated_region
from jessymem.snapshot import Snapshot

#: Importing numba, and each call.
N_STEPS: Final = 3


@dataclass(frozen=True)
class WarmupReport:
    """What warming up came to.

    Attributes
    ----------
    is_disabled : bool
        Whether ``NUMBA_DISABLE_JIT`` keeps kernels plain Python: nothing was compiled.
    n_compiled : int
        Kernels compiled now.
    n_cached : int
        Kernels found in the disk cache.
    cache : pathlib.Path or None
        Where compiled code is kept; None: it is not.
    seconds : float
    """

    is_disabled: bool
    n_compiled: int
    n_cached: int
    cache: Path | None
    seconds: float


def warm_up(advance: Callable[[], object] = lambda: None) -> WarmupReport:
    """Compile the kernels, or load them from the cache, and call each once on tiny arrays.

    No file is touched but those of the cache.

    Parameters
    ----------
    advance : callable, optional
        Called `N_STEPS` times.

    Returns
    -------
    WarmupReport
    """
    start = perf_counter()
    is_compiled = _jit.promote()
    advance()
    if is_compiled:
        _call_parse()
        advance()
        _call_locate()
        advance()
    compiled = [_dispatcher(function) for function in _jit._kernels] if is_compiled else []
    caches = [kernel.stats.cache_path for kernel in compiled if kernel.stats.cache_path]
    return WarmupReport(
        is_disabled=_jit.is_disabled(),
        n_compiled=sum(sum(kernel.stats.cache_misses.values()) for kernel in compiled),
        n_cached=sum(sum(kernel.stats.cache_hits.values()) for kernel in compiled),
        cache=Path(caches[0]) if caches else None,
        seconds=perf_counter() - start,
    )


def _call_parse() -> None:
    """Compare a small region's plain entries with its table, which parses them."""
    simulated_region(DimensionId(1)).verify_integrity("metadata")


def _call_locate() -> None:
    """Look one layer up in a published state, whose arrays have the types of every later one."""
    capacities = {key: core.capacity_bytes for key, core in core_dimensions().items()}
    snapshot = Snapshot.empty(capacities).with_region(simulated_region(DimensionId(1)), 1)
    ids = np.array([LayerId(1, 0)], np.int64)
    places = np.zeros(1, s.LOCATION)
    locate.locate_many(snapshot.directory, snapshot.regions, ids, places)


def _dispatcher(function: Callable[..., Any]) -> Any:
    return getattr(sys.modules[function.__module__], function.__name__)
