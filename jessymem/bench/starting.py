"""Managers, loads, and a process from its first statement to its first read, layer or block."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import nan
from pathlib import Path
from typing import Any, Final

from jessymem import osmem
from jessymem.bench import data, peers
from jessymem.bench.peers import NotInstalled
from jessymem.bench.setting import NotThere, Setting
from jessymem.bench.table import NotRun, Outcome
from jessymem.bench.timing import Race, race_once
from jessymem.kernels.schema import MAX_LAYERS, N_CORE_DIMENSIONS
from jessymem.manager import MmapManager
from jessymem.regions.paths import region_path
from jessymem.warming import warmup

#: Descriptors that a process has beside those of what is loaded.
_N_OTHER_FILES: Final = 256

_COLD: Final = """
from time import perf_counter
begin = perf_counter()
{}
print(perf_counter() - begin)
"""

_FIRST_READ: Final = """
from jessymem import MmapManager
with MmapManager(280, base_path={base!r}) as manager:
    manager.load_dimension({dimension})
    manager.access_layer("L{dimension}-00")[0]
"""

_FIRST_LAYER: Final = """
from jessymem import MmapManager
MmapManager(280, base_path={base!r}).create_proto_dimension("D30", "learned")
"""

_FIRST_BLOCK: Final = """
from jessymem import MmapManager
MmapManager(280, base_path={base!r}).allocate(1_000)
"""


def measure(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Measure the family `start`."""
    base = setting.home("start")
    few = data.build(base, 20, data.numbered(4, 64))
    full = data.build(base, 21, data.numbered(MAX_LAYERS, 8))
    plain = data.make_plain(full, base / "plain.mmap")
    for number in range(1, N_CORE_DIMENSIONS + 1):
        data.build(base, number, data.numbered(4, 64))
    lmdb_seconds = _lmdb_open(setting)
    n_rounds = setting.n_rounds(31)

    def manager() -> tuple[Callable[[], Any], Callable[[], Any]]:
        made: list[MmapManager] = []
        return lambda: made.append(data.open_manager(base, 280)), lambda: made.pop().close()

    yield "start.manager", _took(race_once(manager, n_rounds=n_rounds), lmdb_seconds)
    with data.open_manager(base) as loader:

        def load(dimension: int, path: Path) -> Race:
            def once() -> tuple[Callable[[], Any], Callable[[], Any]]:
                return (
                    lambda: loader.load_dimension(dimension, path),
                    lambda: loader.unload_dimension(dimension),
                )

            return race_once(once, n_rounds=n_rounds)

        yield "start.load", _took(load(20, few), lmdb_seconds)
        yield "start.load.full", _took(load(21, full))
        warmup()
        yield "start.load.plain", _took(load(21, plain))

        def core() -> tuple[Callable[[], Any], Callable[[], Any]]:
            def unload() -> None:
                for number in range(1, N_CORE_DIMENSIONS + 1):
                    loader.unload_dimension(number)

            return loader.load_core_dimensions, unload

        yield "start.core", _took(race_once(core, n_rounds=n_rounds))
    try:
        with many_open_files(setting.n_many):
            yield from _many(setting)
    except NotThere as error:
        for key in ("start.nth", "start.all", "start.all.cold"):
            yield key, NotRun(str(error))
    yield from _cold(setting, base)


def _many(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Measure loads where thousands of dimensions are loaded, and of thousands at once."""
    base = setting.home("many")
    dimensions = data.build_many(base, 100, setting.n_many + 1)
    extra = dimensions.pop()
    paths = [region_path(base, dimension) for dimension in dimensions]
    extra_path = region_path(base, extra).rename(setting.home("extra") / "extra.mmap")
    with data.open_manager(base) as alone, data.open_manager(base) as crowded:
        crowded.load_all()

        def load(manager: MmapManager) -> Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]:
            return lambda: (
                lambda: manager.load_dimension(extra, extra_path),
                lambda: manager.unload_dimension(extra),
            )

        beside = race_once(load(crowded), load(alone), n_rounds=setting.n_rounds(301))
        yield "start.nth", _compared(beside)

    def all_of(is_cold: bool, verb: Callable[[MmapManager], Any]) -> Callable[[], Any]:
        def once() -> tuple[Callable[[], Any], Callable[[], Any]]:
            manager = data.open_manager(base)
            if is_cold:
                data.drop_from_cache(paths)
            return lambda: verb(manager), manager.close

        return once

    def one_by_one(manager: MmapManager) -> None:
        for dimension in manager.discover():
            manager.load_dimension(dimension)

    n_rounds = setting.n_rounds(5)
    for key, is_cold in ("start.all", False), ("start.all.cold", True):
        if is_cold and not osmem.CAN_READ_AHEAD:
            yield key, NotRun("the system has no hint that empties its cache")
            continue
        both = all_of(is_cold, MmapManager.load_all), all_of(is_cold, one_by_one)
        yield key, _compared(race_once(*both, n_rounds=n_rounds))


@contextmanager
def many_open_files(n_files: int) -> Iterator[None]:
    """Let the process have so many files open, and some beside; raise NotThere where it may not."""
    try:
        import resource
    except ImportError as error:  # Windows
        raise NotThere("the system has no limit of open files to be told of") from error
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = n_files + _N_OTHER_FILES
    if limits[1] != resource.RLIM_INFINITY and limits[1] < needed:
        raise NotThere(f"the process has no {needed:,} descriptors, but {limits[1]:,}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], needed), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _compared(both: Race) -> Outcome:
    return Outcome(both.seconds(0), both.seconds(1), both.ratio(0, to=1))


def _took(race: Race, theirs: float = nan) -> Outcome:
    return Outcome(race.seconds(), theirs, race.seconds())


def _lmdb_open(setting: Setting) -> float:
    """Return how long lmdb takes to open an environment; nan where it is not installed."""
    folder = setting.home("start lmdb")
    try:
        peers.lmdb_environment(folder).close()
    except NotInstalled:
        return nan

    def once() -> tuple[Callable[[], Any], Callable[[], Any]]:
        made: list[Any] = []
        return (
            lambda: made.append(peers.lmdb_environment(folder, readonly=True)),
            lambda: made.pop().close(),
        )

    return race_once(once, n_rounds=setting.n_rounds(15)).seconds()


def _cold(setting: Setting, base: Path) -> Iterator[tuple[str, Outcome]]:
    """Time new processes in turns; each reads the clock itself, once Python has started.

    The first of each writes the bytecode, into a folder that goes with the run: where Python is to
    write none (PYTHONDONTWRITEBYTECODE), a process would compile every module that it imports. The
    cache of kernels is an empty folder.
    """
    environment = {
        **os.environ,
        "PYTHONPYCACHEPREFIX": str(setting.home("bytecode")),
        "NUMBA_CACHE_DIR": str(setting.home("no kernels")),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    programs = {
        "start.cold": _FIRST_READ.format(base=str(base), dimension=20),
        "start.learn": _FIRST_LAYER.format(base=str(setting.home("first layer"))),
        "start.block": _FIRST_BLOCK.format(base=str(setting.home("first block"))),
        "numpy": "import numpy",
    }
    rounds = [
        tuple(_seconds_of(code, environment) for code in programs.values())
        for _ in range(1 + setting.n_rounds(21))
    ]
    all_of_them = Race(tuple(rounds[1:]))
    numpy = len(programs) - 1
    for i, key in enumerate(list(programs)[:numpy]):
        ratio = all_of_them.ratio(i, to=numpy)
        yield key, Outcome(all_of_them.seconds(i), all_of_them.seconds(numpy), ratio)


def _seconds_of(code: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", _COLD.format(code)]
    return float(subprocess.check_output(command, env=environment))
