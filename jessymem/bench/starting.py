"""Managers, loads, and a process from its first statement to its first read, layer or block."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path
from typing import Any, Final

from jessymem.bench import data, peers
from jessymem.bench.peers import NotInstalled
from jessymem.bench.setting import Setting
from jessymem.bench.table import NotRun, Outcome
from jessymem.bench.timing import Race, race_once
from jessymem.kernels.schema import MAX_LAYERS, N_CORE_DIMENSIONS
from jessymem.manager import MmapManager
from jessymem.warming import warmup

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
    yield from _cold(setting, base)


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
