"""Single reads, batches, and readers in threads."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from math import nan
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from jessymem.bench import data, peers
from jessymem.bench.peers import SYSTEMS, NotInstalled
from jessymem.bench.setting import NotThere, Setting, require_cpus
from jessymem.bench.table import NotRun, Outcome
from jessymem.bench.timing import race, run_in_threads
from jessymem.demo.crowd import measure_throughput
from jessymem.ids import LayerId
from jessymem.kernels.schema import LAYER, MAX_LAYERS
from jessymem.warming import warmup

LAYER_BYTES: Final = 8_192

#: Several writes of the status fall into so many windows.
_N_WINDOWS: Final = 4

#: The peers of a single read, by the last part of their line's key.
_PEERS: Final = {
    "read.one": "lmdb",
    "read.one.dict": "dict + slice",
    "read.one.shared_memory": "shared_memory",
    "read.one.memmap": "np.memmap",
    "read.one.pyarrow": "pyarrow",
    "read.one.safetensors": "safetensors",
    "read.one.sqlite": "sqlite",
}

Outcomes = Iterator[tuple[str, Outcome | NotRun]]


def measure(setting: Setting) -> Outcomes:
    """Measure the family `read`."""
    contents = list(data.numbered(setting.n_contents, LAYER_BYTES))
    built: dict[Any, Path] = {}

    def store_of(name: str) -> Path:
        """Return a system's folder; systems that build alike share it."""
        system = SYSTEMS[name]
        if system.build not in built:
            built[system.build] = setting.home(f"peer {len(built)}")
            system.build(built[system.build], contents)
        return built[system.build]

    with SYSTEMS["jessymem"].open(store_of("jessymem"), len(contents)) as ours:
        yield from _single_reads(setting, ours, store_of)
        yield from _crowd(setting, ours, store_of)
    yield _shown(setting, store_of("jessymem"))
    yield from _batches(setting, store_of)
    yield from _million(setting)


def read_each(get: Callable[[Any], Any], keys: Iterable[Any]) -> None:
    """Ask for each key's content."""
    for key in keys:
        get(key)


# -- one by one ------------------------------------------------------------------------------------


def _shuffled(n_contents: int) -> list[int]:
    return random.Random(1).sample(range(n_contents), n_contents)


def _reads(opened: peers.Opened, n_contents: int) -> Callable[[], None]:
    return partial(read_each, opened.get, [opened.key_of(i) for i in _shuffled(n_contents)])


def _single_reads(
    setting: Setting, ours: peers.Opened, store_of: Callable[[str], Path]
) -> Outcomes:
    n = setting.n_contents
    for key, name in _PEERS.items():
        n_rounds = setting.n_rounds(31 if key == "read.one" else 7)
        try:
            with SYSTEMS[name].open(store_of(name), n) as theirs:
                both = race(_reads(ours, n), _reads(theirs, n), n_rounds=n_rounds)
            yield key, Outcome(both.seconds(0) / n, both.seconds(1) / n, both.ratio(0, to=1))
        except NotInstalled as error:
            yield key, NotRun(str(error))


def _shown(setting: Setting, store: Path) -> tuple[str, Outcome]:
    """Measure reads for several writes of the status, in turns with reads without one."""
    n, path = setting.n_contents, setting.home("status") / "shown.status"
    layer_ids = [LayerId(peers.DIMENSION, number) for number in _shuffled(n)]

    def seconds_of_a_read(status: str) -> float:
        with data.open_manager(store, status=status) as manager:
            manager.load_dimension(peers.DIMENSION)
            read_each(manager.access_layer, layer_ids)
            n_reads, seconds, start = 0, 0.0, perf_counter()
            while not n_reads or seconds < _N_WINDOWS * setting.window_seconds:
                read_each(manager.access_layer, layer_ids)
                n_reads += n
                seconds = perf_counter() - start
            return seconds / n_reads

    shown, hidden = [], []
    for _ in range(setting.n_rounds(7)):
        shown.append(seconds_of_a_read(str(path)))
        hidden.append(seconds_of_a_read("off"))
    return "read.one.status", _rates(shown, hidden)


# -- from threads ----------------------------------------------------------------------------------


def _crowd(setting: Setting, ours: peers.Opened, store_of: Callable[[str], Path]) -> Outcomes:
    n_rounds, n_threads, seconds = setting.n_rounds(7), setting.n_threads, setting.window_seconds
    keys = [ours.key_of(i) for i in _shuffled(setting.n_contents)][:2_048]

    def pass_of_ours(number: int) -> Callable[[], int]:
        def read() -> int:
            read_each(ours.get, keys)
            return len(keys)

        return read

    alone, together, theirs = [], [], []
    environment: Any
    try:
        environment = peers.lmdb_environment(store_of("lmdb"), readonly=True, lock=False)
    except NotInstalled as error:
        environment = None
        not_run = NotRun(str(error))

    def pass_of_lmdb(number: int) -> Callable[[], int]:
        transaction = environment.begin(buffers=True)
        numbers = [peers.lmdb_key(i) for i in _shuffled(setting.n_contents)][:256]

        def read() -> int:
            read_each(transaction.get, numbers)
            return len(numbers)

        return read

    for _ in range(n_rounds):
        alone.append(measure_throughput(pass_of_ours, 1, seconds).per_second)
        together.append(measure_throughput(pass_of_ours, n_threads, seconds).per_second)
        if environment is not None:
            theirs.append(measure_throughput(pass_of_lmdb, n_threads, seconds).per_second)
    yield "read.threads", _rates(together, alone)
    if environment is None:
        yield "read.threads.lmdb", not_run
        return
    environment.close()
    yield "read.threads.lmdb", _rates(together, theirs)


def _rates(ours: list[float], theirs: list[float]) -> Outcome:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Outcome(statistics.median(ours), statistics.median(theirs), statistics.median(ratios))


# -- batches ---------------------------------------------------------------------------------------


def _batches(setting: Setting, store_of: Callable[[str], Path]) -> Outcomes:
    n = setting.n_contents
    with data.open_manager(store_of("jessymem")) as manager, ExitStack() as stack:
        if not hasattr(manager, "locate_many"):
            raise NotThere("this version has no locate_many")
        warmup()
        manager.load_dimension(peers.DIMENSION)
        layer_ids = data.all_layers([peers.DIMENSION], n)
        locate = partial(manager.locate_many, layer_ids)
        table, rows = np.zeros(n, LAYER), layer_ids & (MAX_LAYERS - 1)
        for key, theirs in (
            ("read.batch", lambda: table[rows]),
            ("read.batch.take", lambda: table.take(rows)),
        ):
            both = race(locate, theirs, n_rounds=setting.n_rounds(31))
            yield key, Outcome(both.seconds(0) / n, both.seconds(1) / n, both.ratio(0, to=1))
        try:
            lmdb = stack.enter_context(SYSTEMS["lmdb"].open(store_of("lmdb"), n))
        except NotInstalled as error:
            yield "read.batch.lmdb", NotRun(str(error))
            return
        both = race(locate, _reads(lmdb, n), n_rounds=setting.n_rounds(15))
        yield (
            "read.batch.lmdb",
            Outcome(n / both.seconds(0), n / both.seconds(1), both.ratio(1, to=0)),
        )


def _million(setting: Setting) -> Outcomes:
    base = setting.home("million")
    dimensions = data.build_tables(base, 40, setting.n_full)
    with data.open_manager(base) as manager:
        if not hasattr(manager, "locate_many"):
            raise NotThere("this version has no locate_many")
        warmup()
        for dimension in dimensions:
            manager.load_dimension(dimension)
        layer_ids = data.all_layers(dimensions, MAX_LAYERS)
        locate = partial(manager.locate_many, layer_ids)
        alone = race(locate, n_rounds=setting.n_rounds(9)).seconds() / len(layer_ids)
        yield "read.million", Outcome(alone, nan, alone)
        require_cpus(2)
        halves = np.array_split(layer_ids, 2)
        works = [partial(manager.locate_many, half.copy()) for half in halves]
        both = race(partial(run_in_threads, works), locate, n_rounds=setting.n_rounds(15))
        n = len(layer_ids)
        yield "read.cores", Outcome(n / both.seconds(0), n / both.seconds(1), both.ratio(1, to=0))
