"""The questions as Dask collections: a data frame, or an array, that is computed when asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from jessymem.config import MemoryConfig
from jessymem.errors import shown
from jessymem.ids import as_integer
from jessymem.remote.cache import FileCache
from jessymem.scanning.searching import as_wanted

MISSING: Final = 'questions to many files need dask: pip install "jessymem[distributed]"'

try:
    import dask
    import dask.array as da
    import dask.dataframe as dd
    from dask.base import tokenize
    from dask.delayed import delayed

    from jessymem.distributed import questions, sources, tasks
    from jessymem.distributed.groups import Group
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("dask", "pandas", "pyarrow", "fsspec"):
        raise
    raise ImportError(f"{MISSING} ({error.name} is missing)", name=error.name) from None

_da: Any = da  # some of their functions have no types
_dd: Any = dd

Urls: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Options: TypeAlias = Mapping[str, Any] | None
Range: TypeAlias = tuple[float, float]

#: Files of one task together; a task costs the scheduler about a millisecond, and its client two.
TASK_BYTES: Final = 64 * 2**20
#: What they may come to where there are so many tasks anyway.
MAX_TASK_BYTES: Final = 256 * 2**20
N_TASKS: Final = 8
#: For questions that read no contents: a table costs a store's answer, however long the file is.
_FILES_PER_TASK: Final = 32


def find(
    urls: Urls,
    needle: bytes | str | re.Pattern[bytes],
    *,
    limit: int | None = None,
    ignore_case: bool = False,
    word: bool = False,
    config: MemoryConfig | int = 280,
    cache: FileCache | None = None,
    storage_options: Options = None,
    task_bytes: int | None = None,
) -> dd.DataFrame:
    """Find bytes or expressions in the contents of all layers of many region files.

    Parameters
    ----------
    urls : str, path-like, or iterable of them
        Of region files; of folders, for each ``region.mmap`` below; or globs. As fsspec takes them;
        without a protocol a path of this machine, which every worker must see.
    needle : bytes, str or re.Pattern
        A string is encoded as UTF-8; an expression is one of `re`, compiled from bytes.
    limit : int, optional
        At most so many finds of each file.
    ignore_case, word : bool
        As `MmapManager.find` takes them.
    config : MemoryConfig or int
        The budget that the tasks of one worker process share, or just its MiB.
    cache : FileCache, optional
        Where workers keep what they fetch of stores; by default each in its user's cache folder.
    storage_options : mapping, optional
        What fsspec's file systems are made with.
    task_bytes : int, optional
        Files are put together into tasks of about so many bytes; a longer one is a task by itself.
        By default 64 MiB, and up to 256 where there are eight tasks anyway; who has many workers
        gives less.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a find, in order: ``url``, ``layer`` (such as ``L15-00``) and ``offset`` in its
        content, in bytes. The index ``file`` is the place of the file among `urls`, with known
        divisions. Keys depend on the files' editions, so that a changed file is asked again.

    Raises
    ------
    DimensionNotFound
        If `urls` name no file.
    RemoteError
        If a store cannot be listed.
    ImportError
        If the extra ``distributed`` is missing.

    Notes
    -----
    Computing raises what `MmapManager.find` raises, with a note that names the file; RemoteError if
    a file is another one than when it was listed, or becomes another one meanwhile; LimitExceeded
    if one file does not fit the budget.

    Examples
    --------
    >>> from jessymem import distributed
    >>> frame = distributed.find("data", "The")  # nothing is read yet
    >>> frame.compute()[["layer", "offset"]].values.tolist()
    [['L16-07', 0]]
    """
    wanted = _as_needle(needle, ignore_case, word)
    most = None if limit is None else as_integer(limit, "limit")
    question = questions.Find(wanted, most, ignore_case, word)
    return _frame(urls, question, config, cache, storage_options, task_bytes)


def count(
    urls: Urls,
    needle: bytes | str | re.Pattern[bytes],
    *,
    ignore_case: bool = False,
    word: bool = False,
    config: MemoryConfig | int = 280,
    cache: FileCache | None = None,
    storage_options: Options = None,
    task_bytes: int | None = None,
) -> dd.DataFrame:
    """Count the positions at which bytes or an expression are, in each of many region files.

    Parameters, errors and notes are those of `find`.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a file: ``url`` and ``count``; index and keys as of `find`.

    Examples
    --------
    >>> from jessymem import distributed
    >>> counts = distributed.count("data", "s").compute()
    >>> [url.rpartition("/data/")[2] for url in counts["url"]], counts["count"].tolist()
    (['D15/region.mmap', 'D16/region.mmap'], [8, 2])
    """
    question = questions.Count(_as_needle(needle, ignore_case, word), ignore_case, word)
    return _frame(urls, question, config, cache, storage_options, task_bytes)


def scan(
    urls: Urls,
    kernel: Callable[..., Any],
    dtype: DTypeLike,
    *,
    config: MemoryConfig | int = 280,
    cache: FileCache | None = None,
    storage_options: Options = None,
    task_bytes: int | None = None,
) -> dd.DataFrame:
    """Call a compiled function for every layer of many region files.

    Parameters
    ----------
    kernel : callable
        As `MmapManager.scan` takes it. It travels to the workers, where each process compiles it
        once; what it refers to travels with it.
    dtype : data type
        Of what it returns.
    urls, config, cache, storage_options, task_bytes
        As in `find`, as are the errors.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a layer: ``url``, ``layer`` and ``value``; index and keys as of `find`.

    Examples
    --------
    >>> from jessymem import distributed
    >>> def count_spaces(content, row):
    ...     return np.sum(content == 32)
    >>> frame = distributed.scan("data/D16", count_spaces, np.int64).compute()
    >>> dict(zip(frame["layer"], frame["value"].tolist()))
    {'L16-00': 2, 'L16-07': 4}
    """
    from jessymem.scanning.applying import name_of

    if not callable(kernel):
        raise TypeError(f"a kernel is a function, not {shown(kernel)}")
    if not hasattr(kernel, "py_func"):
        from numba import njit

        try:
            kernel = njit(nogil=True)(kernel)
        except TypeError as error:
            raise TypeError(f"{name_of(kernel)} cannot be compiled: {error}") from error
    question = questions.Scan(kernel, np.dtype(dtype))
    return _frame(urls, question, config, cache, storage_options, task_bytes)


def select(
    urls: Urls,
    keywords: Iterable[str] | None = None,
    depth: Range | None = None,
    frequency: Range | None = None,
    *,
    name: str | None = None,
    storage_options: Options = None,
    config: MemoryConfig | int = 280,
    cache: FileCache | None = None,
) -> dd.DataFrame:
    """Describe the layers of many region files that meet every condition given.

    Of a file in a store only the header, the table and the names are read, by two ranges at most
    where this package wrote it; contents never.

    Parameters
    ----------
    keywords, depth, frequency, name
        As `MmapManager.select` takes them.
    urls, config, cache, storage_options
        As in `find`, as are the errors.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a layer: ``url``, ``layer``, ``name``, ``n_bytes``, ``frequency``, ``depth``,
        ``keywords``, ``parent`` and, of arrays, ``dtype``; index and keys as of `find`.

    Examples
    --------
    >>> from jessymem import distributed
    >>> frame = distributed.select("data", keywords=["shell", "search"]).compute()
    >>> frame[["layer", "name", "n_bytes"]].values.tolist()
    [['L15-00', 'bash/README', 16], ['L15-02', 'grep/README', 17]]
    """
    question = questions.Select(_query(keywords, depth, frequency, name))
    return _frame(urls, question, config, cache, storage_options, None)


def layers(
    urls: Urls,
    keywords: Iterable[str] | None = None,
    depth: Range | None = None,
    frequency: Range | None = None,
    *,
    name: str | None = None,
    config: MemoryConfig | int = 280,
    cache: FileCache | None = None,
    storage_options: Options = None,
    task_bytes: int | None = None,
) -> dd.DataFrame:
    """Describe the layers that meet every condition given, and bring their contents.

    Parameters and errors are those of `select` and `find`.

    Returns
    -------
    dask.dataframe.DataFrame
        As `select`, and ``content``, as bytes: copies, the worker's own.

    Examples
    --------
    >>> from jessymem import distributed
    >>> frame = distributed.layers("data", frequency=(2, 3)).compute()
    >>> frame[["layer", "content"]].values.tolist()
    [['L15-02', b'Grep finds lines.']]
    """
    question = questions.Layers(_query(keywords, depth, frequency, name))
    return _frame(urls, question, config, cache, storage_options, task_bytes)


def array(
    urls: Urls,
    layer: int,
    *,
    config: MemoryConfig | int = 280,
    cache: FileCache | None = None,
    storage_options: Options = None,
) -> da.Array:
    """Stack one array layer of many region files.

    Parameters
    ----------
    layer : int
        The number of the layer in each file; the arrays must be alike in dtype and shape, which
        the first file tells: its table is read at once.
    urls, config, cache, storage_options
        As in `find`, as are the errors.

    Returns
    -------
    dask.array.Array, shape (n_files, ...)
        A chunk a file, which is a view of its mapping on the worker that has it.

    Raises
    ------
    TypeError
        If the layer of the first file is no array.

    Examples
    --------
    >>> from jessymem import distributed
    >>> vectors = distributed.array("data/D15", 3)
    >>> vectors.shape, vectors.numblocks
    ((1, 3000, 4), (1, 1, 1))
    >>> vectors.mean(axis=(0, 1)).compute()
    array([0., 1., 2., 3.], dtype=float32)
    """
    number = as_integer(layer, "layer")
    budget = _config(config)
    files = sources.expand(urls, storage_options)
    dtype, shape = tasks.form_in(files[0], number)
    token = tokenize("array", number, [(file.url, file.edition) for file in files])
    read = delayed(tasks.read_array, pure=True)
    chunks = [
        _da.from_delayed(
            read(file, number, (dtype, shape), budget, cache, dask_key_name=f"array-{token}-{at}"),
            shape,
            dtype,
        )
        for at, file in enumerate(files)
    ]
    stacked: da.Array = _da.stack(chunks)
    return stacked


def _as_needle(needle: Any, ignore_case: bool, word: bool) -> bytes | str | re.Pattern[bytes]:
    """Return a needle in a form that travels; raise what `MmapManager.find` would raise."""
    as_wanted(needle, ignore_case=ignore_case, word=word)
    if isinstance(needle, re.Pattern):
        return needle
    if callable(getattr(needle, "finditer", None)):
        raise TypeError(f"expressions of `re` travel, not those of {type(needle).__module__}")
    if isinstance(needle, str):
        return needle if ignore_case else needle.encode()
    return memoryview(needle).tobytes()


def _query(
    keywords: Iterable[str] | None,
    depth: Range | None,
    frequency: Range | None,
    name: str | None,
) -> tasks.Query:
    return tasks.Query.of(keywords, depth, frequency, None, name)


def _config(config: MemoryConfig | int) -> MemoryConfig:
    return replace(MemoryConfig.of(config), simulation="never", read_only=True)


def _frame(
    urls: Urls,
    question: Any,
    config: MemoryConfig | int,
    cache: FileCache | None,
    storage_options: Options,
    task_bytes: int | None,
) -> dd.DataFrame:
    budget = _config(config)
    files = sources.expand(urls, storage_options)
    if not question.needs_contents:
        step = _FILES_PER_TASK
        groups = [Group.of(at, files[at : at + step]) for at in range(0, len(files), step)]
    else:
        if task_bytes is None:
            task_bytes = _task_bytes(sum([file.n_bytes for file in files]))
        groups = Group.several(files, as_integer(task_bytes, "task_bytes"))
    divisions = (*(group.first for group in groups), len(files) - 1)
    # Texts are Arrow's already: the conversion would make two steps of each task.
    with dask.config.set({"dataframe.convert-string": False}):
        frame: dd.DataFrame = _dd.from_map(
            tasks.Ask(question, budget, cache),
            groups,
            meta=questions.empty(question.columns),
            divisions=divisions,
            label=f"jessymem-{type(question).__name__.lower()}",
            enforce_metadata=False,  # a task makes what `meta` says
        )
    return frame


def _task_bytes(n_bytes: int) -> int:
    """Return to how much files are put together that are so many bytes in all.

    It depends on the files alone, so that the same question has the same keys everywhere.
    """
    return min(max(-(-n_bytes // N_TASKS), TASK_BYTES), MAX_TASK_BYTES)
