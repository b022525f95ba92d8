"""`KernelCache`: compiled kernels on disk, in files of numba's form and a folder of their own.

The folder is named by a digest of these sources, so a kernel is never run with the tables of
another release; numba's own cache sees an edit in the file of a kernel alone, and needs that file.
It is read wherever one is found, also where it cannot be written. A file of it that is damaged is
removed, and what was in it compiled again. Whatever goes wrong, a kernel is compiled in memory, and
`take_problems` tells of it once. Imports numba; only `_jit` imports it.
"""

from __future__ import annotations

import os
import pickle
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from numba.core.caching import IndexDataCacheFile, _Cache
from numba.core.compiler import CompileResult
from numba.misc.appdirs import AppDirs

from jessymem.kernels import _jit

_PYTHON: Final = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"

#: The running process may be short of these; the file is not to blame.
_SHORTAGES: Final = (MemoryError, RecursionError)


class Problem(NamedTuple):
    """What was wrong with the cache: a damaged file, or folders where nothing can be written."""

    path: str
    error: Exception
    is_mended: bool  # for the processes that come later


_problems: list[Problem] = []
_is_unwritable_told = False


def take_problems() -> list[Problem]:
    """Return what went wrong since it was last asked."""
    taken = _problems[:]
    del _problems[: len(taken)]
    return taken


class KernelCache(_Cache):
    """What numba asks for a kernel before it compiles it, and gives it afterwards.

    Parameters
    ----------
    function : callable
        The plain function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}.{_PYTHON}"
        digest = _jit.digest_of_sources()
        self._files = [_File(os.path.join(root, f"jessymem-{digest}"), name) for root in _roots()]
        self._used: str | None = None
        self._damaged: list[tuple[_File, Exception]] = []

    @property
    def cache_path(self) -> str | None:
        """Where the kernel was read or written; None: nowhere."""
        return self._used

    def is_there(self) -> bool:
        """Tell whether there is a file for the kernel, without reading it."""
        return any(os.path.exists(file.index_path) for file in self._files)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for a signature, or None."""
        _jit.look_up()
        target_context.refresh()
        key = sig, target_context.codegen().magic_tuple()
        self._damaged.clear()
        for file in self._files:
            try:
                found = file.load(key)
                if found is not None:
                    made = CompileResult._rebuild(target_context, *found)  # type: ignore[no-untyped-call]
                    self._used = file.folder
                    return made
            except _SHORTAGES:
                raise
            except OSError:  # nothing can be read there: no damage, and another folder may have it
                continue
            except Exception as error:  # whatever unpickling what is no pickle leads to
                self._damaged.append((file, error))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write what was compiled for a signature where that is possible."""
        global _is_unwritable_told
        key = sig, data.codegen.magic_tuple()
        for file, error in self._damaged:
            path = file.damaged_path(key)
            _problems.append(Problem(path, error, file.remove(path)))
        if data.library.has_dynamic_globals:
            return
        content = data._reduce()
        refused: Exception | None = None
        for file in self._files:
            try:
                file.write(key, content)
            except _SHORTAGES:
                raise
            except Exception as error:  # the system's, or what a damaged index leads to
                refused = error
            else:
                self._used = file.folder
                return
        if refused is not None and not _is_unwritable_told:
            _is_unwritable_told = True
            folders = " or ".join(file.folder for file in self._files)
            _problems.append(Problem(folders, refused, False))

    def enable(self) -> None:
        """Do nothing: it is in use from the beginning."""

    def disable(self) -> None:
        """Use no files."""
        self._files = []

    def flush(self) -> None:
        """Forget what is on disk."""
        for file in self._files:
            file.flush()  # type: ignore[no-untyped-call]


class _File(IndexDataCacheFile):
    """The files of one kernel in one folder: an index of signatures, and what it leads to."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name, _jit.digest_of_sources())  # type: ignore[no-untyped-call]
        self.folder = folder
        self.index_path = os.path.join(folder, f"{name}.nbi")

    def load(self, key: Any) -> Any:
        """Return what belongs to a key, None where nothing does; raise where it is damaged."""
        found = super().load(key)  # type: ignore[no-untyped-call]
        if found is None:
            return None
        label, content = found
        if label != self._label(key):
            raise ValueError("it holds another kernel, or is for another signature")
        return content

    def write(self, key: Any, content: Any) -> None:
        """Write what belongs to a key; raise OSError where that is not possible."""
        os.makedirs(self.folder, exist_ok=True)
        self.save(key, (self._label(key), content))  # type: ignore[no-untyped-call]

    def _label(self, key: Any) -> tuple[str, str]:
        """Return what a file says of its content, which under another name would run as well."""
        return os.path.basename(self.index_path), repr(key)

    # As numba reads them; but what is no file is not waited for.

    def _load_index(self) -> Any:
        try:
            file = BytesIO(_read(self.index_path))
        except FileNotFoundError:
            return {}
        if pickle.load(file) != self._version:
            return {}
        stamp, overloads = pickle.loads(file.read())
        return overloads if stamp == self._source_stamp else {}

    def _load_data(self, name: str) -> Any:
        return pickle.loads(_read(os.path.join(self.folder, name)))

    def damaged_path(self, key: Any) -> str:
        """Return which file is damaged, where what belongs to a key could not be read."""
        try:
            name: str = self._load_index()[key]
        except Exception:
            return self.index_path
        return os.path.join(self.folder, name)

    def remove(self, path: str) -> bool:
        """Remove a damaged file, and the index that leads to it; tell whether that is done."""
        for each in {path, self.index_path}:
            with suppress(FileNotFoundError):
                try:
                    os.unlink(each)
                except OSError:
                    return False
        return True


def _read(path: str) -> bytes:
    """Return a file's bytes; ValueError where it is a pipe, a device or a directory."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        return file.read()


def _roots() -> list[str]:
    """Return where compiled code is looked for, and written: where there is space first.

    In the folder that ``NUMBA_CACHE_DIR`` names; or beside the sources, or where numba keeps a
    user's.
    """
    config: Any = import_module("numba").config
    if config.CACHE_DIR:
        return [config.CACHE_DIR]
    own = AppDirs(appname="numba", appauthor=False).user_cache_dir  # type: ignore[no-untyped-call]
    return [str(Path(__file__).with_name("__pycache__")), own]
