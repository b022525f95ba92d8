"""Layers by number, read as views: in jessymem and in what people would use instead.

Each system is built in a folder from contents of equal length, opened, and asked for contents by
its own key. A `System` of a package that is not installed raises `NotInstalled`.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from jessymem.bench import data
from jessymem.ids import LayerId

#: The dimension that a store of layers by number is in jessymem.
DIMENSION: Final = 20


class NotInstalled(RuntimeError):
    """A peer's package is not there."""


class Opened(NamedTuple):
    """A store that is open.

    Attributes
    ----------
    get : callable
        From a key to the content, by the quickest way that copies nothing if it has one.
    key_of : callable
        From a content's number to its key.
    """

    get: Callable[[Any], Any]
    key_of: Callable[[int], Any]


def require(package: str) -> Any:
    """Import a peer; raise NotInstalled."""
    try:
        return import_module(package)
    except ImportError as error:
        raise NotInstalled(f"{package} is not installed") from error


class System(NamedTuple):
    """One of those that are compared.

    Attributes
    ----------
    build : callable
        Writes contents into a folder.
    open : callable
        A context manager: an `Opened` of a folder and the number of contents.
    """

    build: Callable[[Path, list[bytes]], None]
    open: Callable[[Path, int], Any]


# -- jessymem --------------------------------------------------------------------------------------


def _build_jessymem(folder: Path, contents: list[bytes]) -> None:
    data.build(folder, DIMENSION, contents)


@contextmanager
def _open_jessymem(folder: Path, n_contents: int) -> Iterator[Opened]:
    with data.open_manager(folder) as manager:
        manager.load_dimension(DIMENSION)
        yield Opened(manager.access_layer, lambda number: LayerId(DIMENSION, number))


# -- lmdb ------------------------------------------------------------------------------------------


def lmdb_environment(folder: Path, **settings: Any) -> Any:
    """Open an lmdb environment as it is recommended for reading from many threads."""
    lmdb = require("lmdb")
    return lmdb.open(str(folder), map_size=2**34, max_readers=256, **settings)


def lmdb_key(number: int) -> bytes:
    """Return the key of a content in lmdb."""
    return struct.pack(">I", number)


def _build_lmdb(folder: Path, contents: list[bytes]) -> None:
    with lmdb_environment(folder) as environment, environment.begin(write=True) as transaction:
        for number, content in enumerate(contents):
            transaction.put(lmdb_key(number), content, append=True)


@contextmanager
def _open_lmdb(folder: Path, n_contents: int) -> Iterator[Opened]:
    with (
        lmdb_environment(folder, readonly=True, lock=False) as environment,
        environment.begin(buffers=True) as transaction,
    ):
        yield Opened(transaction.get, lmdb_key)


# -- pyarrow ---------------------------------------------------------------------------------------


def _build_pyarrow(folder: Path, contents: list[bytes]) -> None:
    pa = require("pyarrow")
    table = pa.table({"content": pa.array(contents, pa.large_binary())})
    with (
        pa.OSFile(str(folder / "contents.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


@contextmanager
def _open_pyarrow(folder: Path, n_contents: int) -> Iterator[Opened]:
    pa = require("pyarrow")
    with pa.memory_map(str(folder / "contents.arrow")) as source:
        column = pa.ipc.open_file(source).read_all()["content"].combine_chunks()
        yield Opened(lambda number: column[number].as_buffer(), int)


# -- safetensors -----------------------------------------------------------------------------------


def _build_safetensors(folder: Path, contents: list[bytes]) -> None:
    save_file = require("safetensors.numpy").save_file
    arrays = {str(i): np.frombuffer(content, np.uint8) for i, content in enumerate(contents)}
    save_file(arrays, folder / "contents.safetensors")


@contextmanager
def _open_safetensors(folder: Path, n_contents: int) -> Iterator[Opened]:
    safe_open = require("safetensors").safe_open
    with safe_open(folder / "contents.safetensors", framework="numpy") as opened:
        yield Opened(opened.get_tensor, str)


# -- np.memmap, shared_memory, and a dictionary of spans over each ---------------------------------


def _build_flat(folder: Path, contents: list[bytes]) -> None:
    (folder / "contents.bin").write_bytes(b"".join(contents))


def _spans(n_bytes: int, n_contents: int) -> dict[int, tuple[int, int]]:
    each = n_bytes // max(n_contents, 1)
    return {number: (number * each, (number + 1) * each) for number in range(n_contents)}


def _slicer(whole: Any, n_contents: int) -> Opened:
    spans = _spans(len(whole), n_contents)

    def get(number: int) -> Any:
        start, end = spans[number]
        return whole[start:end]

    return Opened(get, int)


@contextmanager
def _open_memmap(folder: Path, n_contents: int) -> Iterator[Opened]:
    yield _slicer(np.memmap(folder / "contents.bin", np.uint8, "r"), n_contents)


@contextmanager
def _open_slices(folder: Path, n_contents: int) -> Iterator[Opened]:
    yield _slicer(memoryview(np.memmap(folder / "contents.bin", np.uint8, "r")), n_contents)


@contextmanager
def _open_shared_memory(folder: Path, n_contents: int) -> Iterator[Opened]:
    content = (folder / "contents.bin").read_bytes()
    segment = shared_memory.SharedMemory(create=True, size=len(content))
    try:
        memory: Any = segment.buf
        memory[: len(content)] = content
        whole = memory.toreadonly()[: len(content)]
        try:
            yield _slicer(whole, n_contents)
        finally:
            whole.release()
    finally:
        segment.close()
        segment.unlink()


# -- sqlite ----------------------------------------------------------------------------------------


def _build_sqlite(folder: Path, contents: list[bytes]) -> None:
    connection = sqlite3.connect(folder / "contents.sqlite")
    with connection:
        connection.execute("create table layers (number integer primary key, content blob)")
        connection.executemany("insert into layers values (?, ?)", enumerate(contents))
    connection.close()


@contextmanager
def _open_sqlite(folder: Path, n_contents: int) -> Iterator[Opened]:
    connection = sqlite3.connect(folder / "contents.sqlite")
    connection.execute(f"pragma mmap_size = {2**32}")
    select = "select content from layers where number = ?"

    def get(number: int) -> Any:
        return connection.execute(select, (number,)).fetchone()[0]

    try:
        yield Opened(get, int)
    finally:
        connection.close()


SYSTEMS: Final[dict[str, System]] = {
    "jessymem": System(_build_jessymem, _open_jessymem),
    "lmdb": System(_build_lmdb, _open_lmdb),
    "dict + slice": System(_build_flat, _open_slices),
    "np.memmap": System(_build_flat, _open_memmap),
    "shared_memory": System(_build_flat, _open_shared_memory),
    "pyarrow": System(_build_pyarrow, _open_pyarrow),
    "safetensors": System(_build_safetensors, _open_safetensors),
    "sqlite": System(_build_sqlite, _open_sqlite),
}
