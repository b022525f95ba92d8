"""What the benchmarks share: geometry, files, what is kept for a process, and how one is skipped.

A benchmark that this commit or this machine cannot run raises NotImplementedError in `setup`, which
asv shows as a gap and not as a failure: so the same suite runs on older commits.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

#: The ordinary test suite runs every benchmark once, on small stores.
IS_SMALL = os.environ.get("JESSYMEM_BENCHMARKS") == "small"

MIB = 2**20
N_CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_kept: dict[Any, Any] = {}
_stack = ExitStack()


def geometry(full: Any, small: Any) -> Any:
    """Return a number, or a list of parameters: the full one, but in the test suite a small one."""
    return small if IS_SMALL else full


def kept(make: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `make` made of these arguments in this process; a context is entered."""
    key = (make, *arguments)
    if key not in _kept:
        value = make(*arguments)
        is_context = hasattr(value, "__exit__") and not isinstance(value, Path)
        _kept[key] = _stack.enter_context(value) if is_context else value
    return _kept[key]


def drop_kept() -> None:
    """Close all that is kept."""
    _kept.clear()
    _stack.close()


def skip_unless(thing: Any, *names: str) -> None:
    """Skip a benchmark of what this commit does not have."""
    for name in names:
        if not hasattr(thing, name):
            raise NotImplementedError(f"this commit has no {name}")


def module(name: str) -> Any:
    """Import a module of the package; skip where this commit, or a peer's package, is missing."""
    try:
        return import_module(f"jessymem.{name}")
    except ImportError as error:
        raise NotImplementedError(f"this commit has no jessymem.{name}") from error


@contextmanager
def skipping() -> Iterator[None]:
    """Skip where a peer is not installed, code cannot be compiled, or the machine is too small."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ not in ("NotInstalled", "NotCompiled", "NotThere"):
            raise
        raise NotImplementedError(str(error)) from error


def open_store(base: str, dimensions: tuple[int, ...]) -> Any:
    """Open a manager with these dimensions loaded; for `kept`."""
    manager = module("bench.data").open_manager(Path(base))
    for dimension in dimensions:
        manager.load_dimension(dimension)
    return manager


# -- files: built once for all benchmarks that inherit the same `setup_cache` ----------------------

# How many layers a dimension has. Its table takes 64 bytes a layer: 4 are one or two lines, 512
# fill a first-level cache of 32 KiB, 16,384 a second level of 1 MiB, 65,536 are all there can be.
N_LAYERS = geometry([4, 512, 16_384, 65_536], [4, 128])

# 16 dimensions of 65,536: a million layers, 64 MiB of tables, more than a last-level cache of 32.
N_FULL = geometry(16, 2)
FULL_LAYERS = geometry(65_536, 256)

# Stores of text, in MiB: below and above a last-level cache of 32 MiB, the default budget of 280,
# and 1 GiB, which no cache and no first-touch effect can hide.
STORE_MB = geometry([16, 64, 272, 1024], [16])

FIRST_TABLE, FIRST_FULL, READ, FIRST_TEXT = 30, 40, 20, 100
READ_LAYERS = geometry(10_000, 200)
READ_BYTES = 8_192


class Tables:
    """D30 and on with as many layers as `N_LAYERS` says, D40 and on full; each layer 8 bytes."""

    def setup_cache(self) -> str:
        base = Path("tables").absolute()
        data = module("bench.data")
        for i, n_layers in enumerate(N_LAYERS):
            data.build(base, FIRST_TABLE + i, data.numbered(n_layers, 8))
        for i in range(N_FULL):
            data.build(base, FIRST_FULL + i, data.numbered(FULL_LAYERS, 8))
        return str(base)

    setup_cache.timeout = 600


class Contents:
    """D20: 10,000 layers of 8 KiB, 80 MB."""

    def setup_cache(self) -> str:
        base = Path("contents").absolute()
        data = module("bench.data")
        data.build(base, READ, data.numbered(READ_LAYERS, READ_BYTES))
        return str(base)

    setup_cache.timeout = 600


class Texts:
    """D100 and on: 16 MiB of real text each, in layers of 16 KiB, as many as the largest store."""

    def setup_cache(self) -> str:
        base = Path("texts").absolute()
        module("bench.data").build_text(base, max(STORE_MB))
        return str(base)

    setup_cache.timeout = 600


def text_dimensions(n_mb: int) -> tuple[int, ...]:
    """Return the dimensions of a store of text of so many MiB."""
    return tuple(range(FIRST_TEXT, FIRST_TEXT + n_mb // 16))


def named(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a benchmark the name that the dashboard shows."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.pretty_name = name
        return function

    return mark
