"""`FileCache`: whole files of stores in a directory, bounded in bytes, shared by processes.

An entry is one edition of one file. It is fetched under a name of its own, checked, and only then
renamed to the name under which it is looked for, so nothing half-fetched is ever found. Whoever
uses an entry holds a shared lock on it; what nobody uses goes, the longest unused first, where room
is needed. A process that is killed leaves its locks to nobody and at most one partial file, which
the next fetch of the same edition overwrites and any other one sweeps.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

from jessymem import osmem
from jessymem.descriptors import Descriptor, open_descriptor
from jessymem.errors import RegionIOError
from jessymem.logger import logger
from jessymem.remote.files import RemoteFile

if os.name != "nt":
    import fcntl

#: Asked for at once.
CHUNK_BYTES: Final = 8 * 2**20
DEFAULT_BYTES: Final = 4 * 2**30

_N_LOOKS: Final = 100
_SUFFIX: Final = ".mmap"
_PARTIAL: Final = ".part"
_LOCK: Final = ".lock"
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


class CachedFile:
    """One entry in use: it stays where it is for as long as this is held.

    Attributes
    ----------
    path : pathlib.Path
    file : RemoteFile
        Which file, and which edition of it.
    """

    __slots__ = ("_lock", "file", "path")

    def __init__(self, path: Path, file: RemoteFile, lock: Descriptor) -> None:
        self.path = path
        self.file = file
        self._lock = lock


class FileCache:
    """Whole files of stores, each by its edition, in a directory that processes share.

    Parameters
    ----------
    directory : path-like, optional
        It is made if need be, for the user alone. By default ``jessymem`` in the user's cache
        folder, or what ``JESSYMEM_CACHE_DIR`` says.
    max_bytes : int, optional
        What all entries together may take, those that other processes use too. What is used never
        goes, so a file that does not fit beside that is an error.

    Examples
    --------
    >>> import fsspec
    >>> files = fsspec.filesystem("memory")
    >>> files.pipe("/stories/D16/region.mmap", (folder / "data/D16/region.mmap").read_bytes())
    >>> cache = FileCache("cache", max_bytes=2**20)
    >>> MmapRegion.from_url("memory://stories/D16/region.mmap", cache=cache).n_layers
    2
    >>> sorted(path.suffix for path in folder.glob("cache/*"))
    ['.mmap']
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, max_bytes: int = DEFAULT_BYTES
    ) -> None:
        self.directory = default_directory() if directory is None else Path(directory).absolute()
        self.max_bytes = max_bytes

    def __repr__(self) -> str:
        """Show where it is."""
        return f"<FileCache {self.directory}, at most {self.max_bytes:,} bytes>"

    def fetch(self, file: RemoteFile, check: Callable[[Path], object]) -> CachedFile:
        """Return an entry with a file's bytes: one that is there, or it is fetched.

        Parameters
        ----------
        file : RemoteFile
            As the store has told of it. Where it told of no edition it is fetched each time.
        check : callable
            Called with the path of what was fetched before it is found by anybody; what it raises
            ends the fetch.

        Raises
        ------
        RemoteError
            If the store does not give all of the file; or gives one edition after another.
        RegionIOError
            If the cache cannot be written, or there is no room.
        Exception
            What `check` raises.

        Examples
        --------
        >>> import fsspec
        >>> from jessymem.remote.files import RemoteFile
        >>> fsspec.filesystem("memory").pipe("/stories/a.txt", b"Once upon a time")
        >>> file = RemoteFile.of("memory://stories/a.txt")
        >>> FileCache("cache").fetch(file, check=lambda path: None).path.read_bytes()
        b'Once upon a time'
        """
        self._make_directory()
        for _ in range(_N_LOOKS):
            found = self._use(file) if file.edition is not None else None
            if found is not None:
                return found
            with self._locked(file.key()):
                found = self._use(file) if file.edition is not None else None
                if found is not None:
                    return found
                self._fill(file, check)
                found = self._use(file)
                if found is not None:
                    return found
        raise RegionIOError(
            f"{self.directory}: what was fetched of {file.url} is taken away again and again",
            operation="fetch",
            path=str(self.directory),
            errno=0,
            dimension=None,
        )

    def _fill(self, file: RemoteFile, check: Callable[[Path], object]) -> None:
        """Fetch a file into the directory, under the lock of its entry."""
        where = self.directory / f"{file.key()}{_SUFFIX}"
        partial = where.with_suffix(_PARTIAL)
        try:
            partial.unlink(missing_ok=True)  # of a fetch that was killed
            self._make_room(file, partial)
            with _cannot("write", partial), partial.open("r+b") as out:
                for start in range(0, file.n_bytes, CHUNK_BYTES):
                    out.write(file.read(start, min(start + CHUNK_BYTES, file.n_bytes)))
                out.flush()
                os.fsync(out.fileno())
            file.check_same()
            check(partial)
            with _cannot("write", where):
                os.utime(partial, ns=(time.time_ns(), file.modified_ns))
                os.replace(partial, where)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def _use(self, file: RemoteFile) -> CachedFile | None:
        """Return the entry of a file, held; None: it is not there."""
        path = self.directory / f"{file.key()}{_SUFFIX}"
        with _cannot("open", path):
            lock = _hold(path)
        if lock is None or os.fstat(lock).st_size != file.n_bytes:
            return None
        with suppress(OSError):  # of another user: read all the same
            os.utime(path, ns=(time.time_ns(), file.modified_ns))
        return CachedFile(path, file, lock)

    def _make_room(self, file: RemoteFile, partial: Path) -> None:
        """Remove what is longest unused until a file fits, and make it, as long as it will be."""
        with self._locked("room"):
            entries, n_used = self._look()
            for _, n_bytes, path in sorted(entries):
                if n_used + file.n_bytes <= self.max_bytes:
                    break
                if _remove_unused(path):
                    n_used -= n_bytes
                    extra = {"event": "cache_removed", "path": str(path), "n_bytes": n_bytes}
                    logger.debug("removed %s from the cache: %d bytes", path, n_bytes, extra=extra)
            if n_used + file.n_bytes <= self.max_bytes:
                with _cannot("write", partial), partial.open("wb") as out:
                    out.truncate(file.n_bytes)  # so that others count it
                return
        raise RegionIOError(
            f"{file.url} has {file.n_bytes:,} bytes; the cache in {self.directory} may take "
            f"{self.max_bytes:,}, of which {n_used:,} are in use",
            operation="fetch",
            path=str(self.directory),
            errno=errno.ENOSPC,
            dimension=None,
        )

    def _look(self) -> tuple[list[tuple[int, int, Path]], int]:
        """Return when each entry was used, how long it is and where; and their bytes together.

        Partial files that nobody is writing are removed.
        """
        entries = []
        n_used = 0
        for each in os.scandir(self.directory):
            with suppress(FileNotFoundError):
                found = each.stat(follow_symlinks=False)
                if each.name.endswith(_SUFFIX):
                    entries.append((found.st_atime_ns, found.st_size, Path(each.path)))
                    n_used += found.st_size
                elif each.name.endswith(_PARTIAL) and not self._was_left(Path(each.path)):
                    n_used += found.st_size
        return entries, n_used

    def _was_left(self, partial: Path) -> bool:
        """Remove a partial file that nobody is writing; tell whether that was done."""
        try:
            with osmem.locked(partial.with_suffix(_LOCK), timeout=0):
                partial.unlink()
        except OSError:
            return False
        return True

    def _make_directory(self) -> None:
        with _cannot("make", self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _locked(self, name: str) -> AbstractContextManager[object]:
        """Keep out others who want the same, however long that takes."""
        return osmem.locked(self.directory / f"{name}{_LOCK}", math.inf)


def _hold(path: Path) -> Descriptor | None:
    """Hold an entry, until the end of what is returned; None where it is not there."""
    try:
        file = open_descriptor(path, _FLAGS)
    except FileNotFoundError:
        return None
    return file if _has_locked(file, path, is_shared=True) else None


def _remove_unused(path: Path) -> bool:
    """Remove an entry that nobody uses; tell whether that was done."""
    try:
        with open_descriptor(path, _FLAGS) as file:
            if not _has_locked(file, path, is_shared=False):
                return False
            if os.name != "nt":  # there nothing that is open can be removed
                path.unlink()
                return True
        path.unlink()
    except OSError:  # somebody uses it, or was quicker
        return False
    return True


def _has_locked(file: Descriptor, path: Path, *, is_shared: bool) -> bool:
    """Lock an entry, if it still has its name; tell whether it has. Raises OSError."""
    if os.name == "nt":
        return True
    fcntl.flock(file, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    found = osmem.identity_named(path)
    return found is not None and found == osmem.identity_of(file, path)


@contextmanager
def _cannot(operation: str, path: Path) -> Iterator[None]:
    """Make a system's error one that says what could not be done to which file."""
    try:
        yield
    except RegionIOError:
        raise
    except OSError as error:
        raise RegionIOError.from_os_error(error, operation, path) from error


def default_directory() -> Path:
    """Return where the user's cache is."""
    named = os.environ.get("JESSYMEM_CACHE_DIR")
    if named:
        return Path(named).absolute()
    if os.name == "nt":
        root = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        root = os.path.expanduser("~/Library/Caches")
    else:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not root or root.startswith("~"):
        user = os.getuid() if os.name != "nt" else "user"
        root = os.path.join(tempfile.gettempdir(), f"jessymem-{user}")
    return Path(root, "jessymem", "files").absolute()
