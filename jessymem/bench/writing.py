"""Crystallizing beside a plain durable write of the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

from jessymem.bench import data
from jessymem.bench.setting import Setting
from jessymem.bench.table import NotRun, Outcome
from jessymem.bench.timing import Work, race_once
from jessymem.ids import DimensionId
from jessymem.ingest.building import region_path

SIZES_MB: Final = (1, 10, 100)
N_LAYERS: Final = 40


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


def measure(setting: Setting) -> Iterator[tuple[str, Outcome | NotRun]]:
    """Measure the family `write`."""
    for n_mb in SIZES_MB:
        yield f"write.{n_mb}", _crystallize(setting, n_mb)


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
