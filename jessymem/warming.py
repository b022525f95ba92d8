"""Compiling ahead of time, so that later processes start from the disk cache."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from jessymem.errors import clears_frames
from jessymem.kernels import _jit


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

    Examples
    --------
    >>> warmup()
    WarmupReport(is_disabled=..., n_compiled=..., n_cached=..., cache=..., seconds=...)
    """

    is_disabled: bool
    n_compiled: int
    n_cached: int
    cache: Path | None
    seconds: float


@clears_frames
def warmup() -> WarmupReport:
    """Compile every kernel, or load it from the cache, so that no later call has to.

    A process need not: its first reads and blocks are served in plain Python, and kernels are
    loaded when there is enough work for them. Warm up once after an installation, so that later
    processes find them in the cache; or where none of a process's calls may take longer than the
    rest. No file is touched but those of the cache.

    Returns
    -------
    WarmupReport

    Notes
    -----
    Threads may call it at once, and beside any other work. A cache that cannot be written costs one
    warning record, and later processes compile again.

    Examples
    --------
    >>> first, second = warmup(), warmup()
    >>> second.n_compiled - first.n_compiled, second.n_cached - first.n_cached
    (0, 0)
    """
    start = perf_counter()
    is_compiled = all(map(_jit.promote, _jit.MODULES))
    compiled = [_dispatcher(function) for function in _jit._kernels] if is_compiled else []
    caches = [kernel.stats.cache_path for kernel in compiled if kernel.stats.cache_path]
    return WarmupReport(
        is_disabled=_jit.is_disabled(),
        n_compiled=sum(sum(kernel.stats.cache_misses.values()) for kernel in compiled),
        n_cached=sum(sum(kernel.stats.cache_hits.values()) for kernel in compiled),
        cache=Path(caches[0]) if caches else None,
        seconds=perf_counter() - start,
    )


def _dispatcher(function: Callable[..., Any]) -> Any:
    return getattr(sys.modules[function.__module__], function.__name__)
