"""What a worker does: open the files of one task, and ask them, many at once.

Whatever runs at once in a process shares one budget: files wait until those that are open leave
them room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from dask.base import normalize_token

from jessymem.config import MemoryConfig
from jessymem.distributed.groups import Group
from jessymem.distributed.open_files import BUDGET, OpenFiles, ask, explained, naming, unchanged
from jessymem.distributed.questions import Answer, describe
from jessymem.errors import RegionFormatError
from jessymem.ids import DimensionId, LayerId
from jessymem.manager import MmapManager
from jessymem.regions.chain import RegionChain
from jessymem.regions.files import RegionFiles
from jessymem.regions.region import MmapRegion
from jessymem.regions.remote import (
    dimension_in,
    fetch,
    local_path,
    open_fetched,
    read_whole_table,
)
from jessymem.remote.cache import CachedFile, FileCache
from jessymem.remote.files import RemoteFile
from jessymem.selection import Query as Query


class Ask:
    """Asks the files of a task; what Dask calls for each.

    Parameters
    ----------
    question : Find, Count, Scan, Select or Layers
    config : MemoryConfig
    cache : FileCache or None
    """

    def __init__(self, question: Any, config: MemoryConfig, cache: FileCache | None) -> None:
        self.question = question
        self.config = config
        self.cache = cache
        self._settings = repr(config)  # which is sooner compared

    def __call__(self, group: Group) -> pd.DataFrame:
        """Return the answers of all files of a task."""
        urls, answer = self._answer(group)
        return answer.frame(group.first, urls, self.question.columns)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what the answer depends on, beside the files; and how it is come by.

        Dask takes questions with one token for one question, also where only the budget differs.
        """
        cache = None if self.cache is None else (str(self.cache.directory), self.cache.max_bytes)
        question = normalize_token(_token_of(self.question))
        settings = sorted((name, str(value)) for name, value in vars(self.config).items())
        return "jessymem", type(self.question).__name__, question, settings, cache

    def _answer(self, group: Group) -> tuple[pa.Array, Answer]:
        """Return the URLs of the files of a task, and their answer."""
        if not self.question.needs_contents:
            infos = []
            for file in group.files:
                with naming(file):
                    infos.append(self.question.describe(table_of(file)))
            return _urls_of(group.files), describe(infos)
        limit = limit_of(self.config)
        if group.n_files == 1 or group.n_bytes <= limit // 2:
            return self._answer_together(group, limit)
        parts = Group.several(group.files, limit // 2)
        urls, answers = zip(*(self._answer_together(part, limit) for part in parts), strict=True)
        return pa.concat_arrays(urls), Answer.joined(answers)

    def _answer_together(self, group: Group, limit: int) -> tuple[pa.Array, Answer]:
        """Return the same of files that are open together; where it can be, they stay mapped."""
        key = group.token, self._settings
        opened = BUDGET.take_kept(key)
        if opened is None:
            opened = self._open(group.files, limit)
        if opened is None:
            with BUDGET.taken(group.files, limit):
                return _urls_of(group.files), self._answer_in_turns(group.files)
        with BUDGET.keeping(key, opened):
            return opened.urls, opened.ask(self.question)

    def _open(self, files: Sequence[RemoteFile], limit: int) -> OpenFiles | None:
        """Open files of this machine; None where some are elsewhere, or two of one dimension."""
        paths: dict[Path, RemoteFile] = {}
        for file in files:
            path = local_path(file.url, dict(file.options))
            if path is None:
                return None
            paths[path] = file
        supposed = _by_dimension(paths, _dimension_named)
        if supposed is not None:
            with suppress(RegionFormatError):  # where folders are called otherwise
                return BUDGET.open(supposed, self.config, limit)
        with explained(paths):
            found = _by_dimension(paths, dimension_in)
        return None if found is None else BUDGET.open(found, self.config, limit)

    def _answer_in_turns(self, files: Sequence[RemoteFile]) -> Answer:
        """Return the answer of some files; those of one dimension one after the other."""
        answers: list[Answer] = []
        loaded: dict[DimensionId, RemoteFile] = {}
        held: list[CachedFile] = []  # for as long as they are open
        local: dict[Path, RemoteFile] = {}
        with MmapManager(self.config) as manager, unchanged(local):
            for file in files:
                with naming(file):
                    path = local_path(file.url, dict(file.options))
                    if path is None:
                        held.append(fetch(file, self.cache))
                        path = held[-1].path
                    else:
                        local[path] = file
                    dimension = dimension_in(path)
                    if dimension in loaded:
                        answers.append(self._ask(manager, loaded))
                        loaded.clear()
                    manager.load_dimension(dimension, path)
                loaded[dimension] = file
            answers.append(self._ask(manager, loaded))
        return Answer.joined(answers)

    def _ask(self, manager: MmapManager, loaded: Mapping[DimensionId, RemoteFile]) -> Answer:
        """Ask all that is loaded, and unload it."""
        answer = ask(manager, loaded, self.question)
        for dimension in loaded:
            manager.unload_dimension(dimension)
        return answer


def _dimension_named(path: Path) -> DimensionId | None:
    """Return the dimension that a file is of by the name of its folder; None: that names none."""
    try:
        return DimensionId.parse(path.parent.name)
    except ValueError:
        return None


def _by_dimension(
    files: Mapping[Path, RemoteFile], dimension_of: Callable[[Path], DimensionId | None]
) -> dict[DimensionId, tuple[RemoteFile, Path]] | None:
    """Return files by dimension; None where two are of one, or one is of none."""
    found: dict[DimensionId, tuple[RemoteFile, Path]] = {}
    for path, file in files.items():
        with naming(file):
            dimension = dimension_of(path)
        if dimension is None or dimension in found:
            return None
        found[dimension] = file, path
    return found


def _urls_of(files: Sequence[RemoteFile]) -> pa.Array:
    return pa.array([file.url for file in files], pa.large_string())


def table_of(file: RemoteFile) -> MmapRegion | RegionChain:
    """Return a region whose contents need not be there: of a store, its table by ranges."""
    local = local_path(file.url, dict(file.options))
    return read_whole_table(file) if local is None else _open(file, local)


def _open(file: RemoteFile, path: Path) -> MmapRegion | RegionChain:
    """Map a file of this machine with the deltas beside it, as they were planned."""
    with unchanged({path: file}):
        return RegionFiles(dimension_in(path), path).open_newest()


def form_in(file: RemoteFile, number: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape of an array layer; raise TypeError where it is none."""
    table = table_of(file)
    layer_id = LayerId(table.dimension_id, number)
    form = table.read_form(table.find_row(layer_id))
    if form is None:
        raise TypeError(f"{layer_id} of {file.url} is no array")
    return form.dtype, form.shape


def read_array(
    file: RemoteFile,
    number: int,
    form: tuple[np.dtype[Any], tuple[int, ...]],
    config: MemoryConfig,
    cache: FileCache | None,
) -> np.typing.NDArray[Any]:
    """Return one layer of a file as an array, a view of the mapping, which stays while it does.

    Raises
    ------
    ValueError
        If it is not of the form that is asked for.
    """
    local = local_path(file.url, dict(file.options))
    with BUDGET.taken([file], limit_of(config)):
        table = (
            open_fetched(file, None, "map", "none", cache) if local is None else _open(file, local)
        )
    layer_id = LayerId(table.dimension_id, number)
    region, _ = table.origin_of(table.find_row(layer_id))
    found = region.read_array(layer_id)
    if (found.dtype, found.shape) != form:
        raise ValueError(
            f"layer {number} of {file.url} is {found.dtype} of {found.shape}, not "
            f"{form[0]} of {form[1]}"
        )
    return found


def limit_of(config: MemoryConfig) -> int:
    """Return how many bytes of files the tasks of a process may have open together."""
    return config.limit_bytes


def _token_of(question: Any) -> list[tuple[str, Any]]:
    """Return what a question consists of; of a compiled function what it was compiled from."""
    found: list[tuple[str, Any]] = []
    for name, value in vars(question).items():
        told: Any = getattr(value, "py_func", value)
        if isinstance(value, re.Pattern):
            told = "re", value.pattern, value.flags
        found.append((name, told))
    return found
