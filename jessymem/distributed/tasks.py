"""What a worker does: open the files of one task, and ask them, many at once.

Whatever runs at once in a process shares one budget: files wait until those that are open leave
them room.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from dask.base import normalize_token

from jessymem.config import MemoryConfig
from jessymem.distributed.open_files import BUDGET, ask, naming, unchanged
from jessymem.ids import DimensionId, LayerId
from jessymem.manager import MmapManager
from jessymem.regions.region import MmapRegion
from jessymem.regions.remote import (
    dimension_in,
    fetch,
    local_path,
    open_fetched,
    read_whole_table,
)
from jessymem.remote.cache import FileCache
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

    def __call__(self, task: tuple[int, Sequence[RemoteFile]]) -> pd.DataFrame:
        """Return the answers of all files of a task.

        Parameters
        ----------
        task : (int, sequence of RemoteFile)
            The place of the first file among all that are asked, and the files.
        """
        first, files = task
        answers = self._answers(files)
        n_rows = [len(next(iter(answer.values()))) for answer in answers]
        places = np.repeat(np.arange(first, first + len(files), dtype=np.int64), n_rows)
        index = pd.Index(places, name="file")
        made = {}
        for name, dtype in self.question.columns.items():
            if name == "url":
                urls = pa.array([file.url for file in files], pa.large_string())
                column: Any = pa.chunked_array([urls.take(pa.array(places - first))])
                made[name] = pd.Series(pd.array(column, dtype=dtype), index=index)
            else:
                column = [each for answer in answers for each in answer[name]]
                if isinstance(dtype, np.dtype):
                    parts = [np.asarray(answer[name], dtype) for answer in answers]
                    column = np.concatenate(parts)
                made[name] = pd.Series(column, index=index, dtype=dtype)
        return pd.DataFrame(made, index=index)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what the answer depends on, beside the files; and how it is come by.

        Dask takes questions with one token for one question, also where only the budget differs.
        """
        cache = None if self.cache is None else (str(self.cache.directory), self.cache.max_bytes)
        question = normalize_token(_token_of(self.question))
        settings = sorted((name, str(value)) for name, value in vars(self.config).items())
        return "jessymem", type(self.question).__name__, question, settings, cache

    def _answers(self, files: Sequence[RemoteFile]) -> list[dict[str, Any]]:
        """Return the answer of each file."""
        if not self.question.needs_contents:
            found = []
            for file in files:
                with naming(file):
                    found.append(dict(self.question.describe(table_of(file))))
            return found
        limit = limit_of(self.config)
        answers: list[dict[str, Any]] = []
        for group in _groups(files, limit):
            answers += self._answers_of(group, limit)
        return answers

    def _answers_of(self, files: Sequence[RemoteFile], limit: int) -> list[dict[str, Any]]:
        """Return the answer of each of some files; where it can be, they stay mapped."""
        key = tuple((file.url, file.edition) for file in files), self.config
        opened = BUDGET.take_kept(key)
        if opened is None:
            local = self._of_this_machine(files)
            if local is None:
                with BUDGET.taken(files, limit):
                    return self._answers_in_turns(files)
            opened = BUDGET.open(local, self.config, limit)
        with BUDGET.keeping(key, opened):
            return opened.ask(self.question)

    def _of_this_machine(
        self, files: Sequence[RemoteFile]
    ) -> dict[DimensionId, tuple[RemoteFile, Path]] | None:
        """Return files by dimension; None where some are elsewhere, or of one dimension."""
        found: dict[DimensionId, tuple[RemoteFile, Path]] = {}
        for file in files:
            path = local_path(file.url, dict(file.options))
            if path is None:
                return None
            with naming(file):
                found[dimension_in(path)] = file, path
        return found if len(found) == len(files) else None

    def _answers_in_turns(self, files: Sequence[RemoteFile]) -> list[dict[str, Any]]:
        """Return the answer of each of some files; those of one dimension one after the other."""
        answers: list[dict[str, Any]] = []
        loaded: dict[DimensionId, RemoteFile] = {}
        with ExitStack() as opened, MmapManager(self.config) as manager:
            for file in files:
                with naming(file):
                    path = opened.enter_context(self._opened(file))
                    dimension = dimension_in(path)
                    if dimension in loaded:
                        answers += self._ask(manager, loaded)
                        loaded.clear()
                    manager.load_dimension(dimension, path)
                loaded[dimension] = file
            answers += self._ask(manager, loaded)
        return answers

    def _ask(
        self, manager: MmapManager, loaded: Mapping[DimensionId, RemoteFile]
    ) -> list[dict[str, Any]]:
        """Ask all that is loaded, and unload it."""
        answers = ask(manager, loaded, self.question)
        for dimension in loaded:
            manager.unload_dimension(dimension)
        return answers

    @contextmanager
    def _opened(self, file: RemoteFile) -> Iterator[Path]:
        """Yield where a file is on this machine; meanwhile it is the edition that was planned."""
        local = local_path(file.url, dict(file.options))
        if local is None:
            held = fetch(file, self.cache)  # for as long as it is open
            yield held.path
            return
        with unchanged(file, local):
            yield local


def _groups(files: Sequence[RemoteFile], limit: int) -> Iterator[Sequence[RemoteFile]]:
    """Yield files that are open together: half of the budget, or one that is longer."""
    first, n_bytes = 0, 0
    for at, file in enumerate(files):
        if at > first and n_bytes + file.n_bytes > limit // 2:
            yield files[first:at]
            first, n_bytes = at, 0
        n_bytes += file.n_bytes
    yield files[first:]


def table_of(file: RemoteFile) -> MmapRegion:
    """Return a region whose contents need not be there: of a store, its table by ranges."""
    local = local_path(file.url, dict(file.options))
    if local is None:
        return read_whole_table(file)
    with unchanged(file, local):
        return MmapRegion.from_file(dimension_in(local), local)


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
        if local is not None:
            with unchanged(file, local):
                region = MmapRegion.from_file(dimension_in(local), local)
        else:
            region = open_fetched(file, None, "map", "none", cache)
    found = region.read_array(LayerId(region.dimension_id, number))
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
