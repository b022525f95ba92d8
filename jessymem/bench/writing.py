"""Crystallizing, and a plain durable write of the same bytes; alone, and while others read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Final

from jessymem.bench import data
from jessymem.bench.setting import Setting
from jessymem.bench.table import NotRun, Outcome
from jessymem.bench.timing import Race, Work, race_once
from jessymem.ids import DimensionId
from jessymem.regions.builder import RegionBuilder
from jessymem.regions.paths import region_path

SIZES_MB: Final = (1, 10, 100)
N_LAYERS: Final = 40

#: Threads of Python that do nothing but read, and what is written beside them.
N_READERS: Final = 30
SMALL_BYTES: Final = 1_000

#: Times the first crystallization of a process beside readers, and then a plain write beside them.
_FIRST: Final = """
import sys
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep
from jessymem import MmapManager

base, is_new = Path(sys.argv[1]), sys.argv[2] == "new"
n_readers, content = int(sys.argv[3]), bytes(int(sys.argv[4]))
with MmapManager(280, base_path=base / "first") as manager:
    if not is_new:
        manager.load_dimension("D20")
    layer = manager.create_proto_dimension("D20", content)

    def seconds_beside_readers(write):
        is_over = []

        def read():
            while not is_over:
                manager.access_layer(layer)

        readers = [Thread(target=read) for _ in range(n_readers)]
        for reader in readers:
            reader.start()
        sleep(0.1)
        begin = perf_counter()
        write()
        seconds = perf_counter() - begin
        is_over.append(True)
        for reader in readers:
            reader.join()
        return seconds

    ours = seconds_beside_readers(lambda: manager.crystallize_proto_dimension(layer))
    from jessymem.bench import writing  # which imports more than ours may

    def write_plainly():
        if is_new:
            writing.write_durably(base / "plain" / "new", [content])
        else:
            writing.replace_durably(base / "plain", content)

    print(ours, seconds_beside_readers(write_plainly))
"""


def write_durably(folder: Path, contents: Iterable[bytes]) -> Path:
    """Write contents into one new file of a new folder: write, sync, rename, sync the folders."""
    folder.mkdir()
    temporary = folder / "temporary"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for content in contents:
        os.write(descriptor, content)
    os.fsync(descriptor)
    os.close(descriptor)
    target = temporary.rename(folder / "file")
    for directory in (folder, folder.parent):
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return target


def replace_durably(folder: Path, content: bytes) -> None:
    """Write a file that takes another's place: open, write, fsync, rename, fsync the folder."""
    temporary = folder / "temporary"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(descriptor, content)
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(temporary, folder / "file")
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def readers(n_readers: int, read: Callable[[], Any]) -> Iterator[None]:
    """Let so many threads read, one time after the other, until this is left."""
    is_over: list[bool] = []

    def read_on() -> None:
        while not is_over:
            read()

    threads = [Thread(target=read_on) for _ in range(n_readers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.append(True)
        for thread in threads:
            thread.join()


def measure(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Measure the family `write`."""
    for n_mb in SIZES_MB:
        yield f"write.{n_mb}", _crystallize(setting, n_mb)
    yield "write.beside", _beside_readers(setting)
    yield "write.first", _first_of_a_process(setting, "known")
    yield "write.first.new", _first_of_a_process(setting, "new")


def _crystallize(setting: Setting, n_mb: int) -> Outcome:
    contents = data.noise(N_LAYERS, n_mb * setting.mb // N_LAYERS, seed=n_mb)
    folder, numbers = setting.home(f"write {n_mb}"), count(20)
    with data.open_manager(folder) as manager:

        def learn() -> tuple[Work, Work]:
            dimension = next(numbers)
            manager.create_proto_layers([(dimension, content) for content in contents])

            def forget() -> None:
                manager.unload_dimension(dimension)
                shutil.rmtree(region_path(folder, DimensionId(dimension)).parent)

            return partial(manager.crystallize_dimension, dimension), forget

        def plain() -> tuple[Work, Work]:
            target = folder / "plain"
            return partial(write_durably, target, contents), partial(shutil.rmtree, target)

        both = race_once(learn, plain, n_rounds=setting.n_rounds(15))
    return Outcome(both.seconds(0), both.seconds(1), both.ratio(0, to=1))


def _beside_readers(setting: Setting) -> Outcome:
    folder, content = setting.home("write beside"), bytes(SMALL_BYTES)
    plain_folder = setting.home("write beside plainly")
    with data.open_manager(folder) as manager:
        read = manager.create_proto_dimension(20, content)
        manager.crystallize_proto_dimension(read)

        def learn() -> tuple[Work, Work]:
            layer = manager.create_proto_dimension(20, content)
            return partial(manager.crystallize_proto_dimension, layer), _nothing

        def plain() -> tuple[Work, Work]:
            return partial(replace_durably, plain_folder, content), _nothing

        n_readers = min(N_READERS, setting.n_threads)
        with readers(n_readers, partial(manager.access_layer, read)):
            both = race_once(learn, plain, n_rounds=setting.n_rounds(31))
    return _of_medians(both)


def _nothing() -> None:
    """Clean up after what leaves nothing behind."""


def _first_of_a_process(setting: Setting, kind: str) -> Outcome:
    """Write into a dimension that is `known`, beside a file that is replaced; or into new ones."""
    n_readers = min(N_READERS, setting.n_threads)
    rounds = []
    for i in range(setting.n_rounds(9)):
        base = setting.home(f"write first {kind} {i}")
        (base / "plain").mkdir()
        if kind == "known":
            builder = RegionBuilder(20, "known")
            builder.add_layer(0, bytes(SMALL_BYTES))
            builder.build_to_file(region_path(base / "first", builder.dimension_id))
        arguments = [str(base), kind, str(n_readers), str(SMALL_BYTES)]
        done = subprocess.run(
            [sys.executable, "-c", _FIRST, *arguments], capture_output=True, text=True, check=True
        )
        rounds.append(tuple(map(float, done.stdout.split())))
    return _of_medians(Race(tuple(rounds)))


def _of_medians(both: Race) -> Outcome:
    """Compare medians: which of two turns meets more of the readers is chance."""
    ours, theirs = both.seconds(0), both.seconds(1)
    return Outcome(ours, theirs, ours / theirs)
