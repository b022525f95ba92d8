"""Learning: one small durable layer beside a large file, and reads through the deltas it leaves."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from jessymem.bench import data
from jessymem.bench.peers import NotInstalled, require
from jessymem.bench.setting import Setting
from jessymem.bench.table import NotRun, Outcome
from jessymem.bench.timing import Race, Work, race, race_once
from jessymem.bench.writing import write_durably
from jessymem.config import MIB
from jessymem.kernels import schema as s
from jessymem.manager import MmapManager
from jessymem.regions.builder import RegionBuilder
from jessymem.regions.paths import region_path

DIMENSION: Final = 20
#: The file that is learned into: so many layers of so many bytes, 131 MB.
N_LAYERS: Final = 1_310
N_BYTES: Final = 100_000
#: What is learned at a time.
N_NEW_BYTES: Final = 1_024
#: The later ones are compared with the first ones.
N_FIRST: Final = 12
#: Through a chain as many layers are read from the region file as from its deltas.
N_READ: Final = 2_000
N_READ_BYTES: Final = 8_192


def measure(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Measure the family `learn`."""
    folder = setting.home("learn")
    n_layers = max(N_LAYERS * setting.mb // MIB, 40)
    build(folder, n_layers)
    with data.open_manager(folder) as manager:
        manager.load_dimension(DIMENSION)
        yield "learn.plain", _beside_a_plain_write(setting, folder, manager)
        try:
            yield "learn.lmdb", _beside_lmdb(setting, folder, manager, n_layers)
        except NotInstalled as error:
            yield "learn.lmdb", NotRun(str(error))
        yield "learn.hundredth", _hundredth(setting, manager)
    yield from _reads(setting)


def build(folder: Path, n_layers: int = N_LAYERS, n_bytes: int = N_BYTES, seed: int = 1) -> None:
    """Build the file that is learned into."""
    builder = RegionBuilder(DIMENSION, "learned into")
    for number, content in enumerate(data.noise(n_layers, n_bytes, seed=seed)):
        builder.add_layer(number, content)
    builder.build_to_file(region_path(folder, builder.dimension_id))


def build_chain(chain: Path, folded: Path, n_layers: int = N_READ) -> None:
    """Build a file with as many deltas as there may be, and one file that has the same layers.

    A layer is of the file or of a delta as often.
    """
    build(chain, n_layers, N_READ_BYTES, seed=3)
    with data.open_manager(chain) as manager:
        manager.load_dimension(DIMENSION)
        for _ in range(s.MAX_DELTAS):
            new = [(DIMENSION, os.urandom(N_NEW_BYTES)) for _ in range(n_layers // s.MAX_DELTAS)]
            manager.create_proto_layers(new)
            manager.crystallize_dimension(DIMENSION)
    shutil.copytree(chain, folded, dirs_exist_ok=True)
    with data.open_manager(folded) as whole:
        whole.fold(DIMENSION)


def learner(manager: MmapManager) -> tuple[Work, Work]:
    """Make a layer; return what makes it durable."""
    layer = manager.create_proto_dimension(DIMENSION, os.urandom(N_NEW_BYTES))
    return partial(manager.crystallize_proto_dimension, layer), _nothing


def _beside_a_plain_write(setting: Setting, folder: Path, manager: MmapManager) -> Outcome:
    def plain() -> tuple[Work, Work]:
        target = folder / "plain"
        write = partial(write_durably, target, [os.urandom(N_NEW_BYTES)])
        return write, partial(shutil.rmtree, target)

    both = race_once(partial(learner, manager), plain, n_rounds=setting.n_rounds(30))
    return _outcome(both)


@contextmanager
def committing(folder: Path, n_layers: int = N_LAYERS) -> Iterator[Callable[[bytes], None]]:
    """Yield what commits bytes to an LMDB that holds as much as the file that is learned into.

    Raises
    ------
    NotInstalled
        If there is no lmdb.
    """
    lmdb, numbers = require("lmdb"), count()
    n_bytes = 4 * n_layers * N_BYTES
    with lmdb.open(str(folder), map_size=n_bytes) as environment:
        with environment.begin(write=True) as transaction:
            for content in data.noise(n_layers, N_BYTES, seed=2):
                transaction.put(b"%d" % next(numbers), content)

        def commit(content: bytes) -> None:
            with environment.begin(write=True) as transaction:
                transaction.put(b"%d" % next(numbers), content)

        yield commit


def _beside_lmdb(setting: Setting, folder: Path, manager: MmapManager, n_layers: int) -> Outcome:
    with committing(folder / "lmdb", n_layers) as commit:

        def put() -> tuple[Work, Work]:
            return partial(commit, os.urandom(N_NEW_BYTES)), _nothing

        return _outcome(race_once(partial(learner, manager), put, n_rounds=setting.n_rounds(30)))


def _hundredth(setting: Setting, manager: MmapManager) -> Outcome:
    """Compare the layers about the hundredth with the first ones into a folded file."""
    manager.fold(DIMENSION)
    seconds: list[float] = []
    for _ in range(100 if setting.mb == MIB else 2 * N_FIRST):
        learn, _ = learner(manager)
        start = perf_counter()
        learn()
        seconds.append(perf_counter() - start)
    first, last = median(seconds[:N_FIRST]), median(seconds[-N_FIRST:])
    return Outcome(last, first, last / first)


def _reads(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Compare reads through a full chain with those of one file that has the same layers."""
    chain, folded = setting.home("learn chain"), setting.home("learn folded")
    build_chain(chain, folded)
    with data.open_manager(chain) as through, data.open_manager(folded) as whole:
        ids = []
        for manager in (through, whole):
            manager.load_dimension(DIMENSION)
            ids = manager.list_layers()
        random.Random(4).shuffle(ids)

        def read_all(manager: MmapManager) -> None:
            for layer_id in ids:
                manager.access_layer(layer_id)

        singles = (partial(read_all, each) for each in (through, whole))
        n_rounds = setting.n_rounds(30)
        yield "learn.read", _outcome(race(*singles, n_rounds=n_rounds), len(ids))
        batches = (partial(each.access_many, ids) for each in (through, whole))
        yield "learn.batch", _outcome(race(*batches, n_rounds=n_rounds), len(ids))


def _outcome(both: Race, n_items: int = 1) -> Outcome:
    return Outcome(both.seconds(0) / n_items, both.seconds(1) / n_items, both.ratio(0, to=1))


def _nothing() -> None:
    """Leave everything as it is."""
