"""Every call to the operating system, behind one seam.

Files are opened, mapped, advised, written, synced and renamed here and nowhere else. Each call
first passes `intercept`, which tests replace to record it or to make it fail; what a failure means
is in the table of `jessymem.system_calls`.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache, partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from jessymem import attributes, lock_files, short_calls, system_calls
from jessymem.descriptors import Descriptor, open_descriptor
from jessymem.errors import AllocationFailed, RegionIOError, shown
from jessymem.named_tuples import NamedTuple
from jessymem.pieces import batches, parts, without_first
from jessymem.short_calls import PLAIN, Status, calls_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.leases import Lease

R = TypeVar("R")
_Do = Callable[[Callable[[], int]], int]

#: Called as ``intercept(operation, path, *details)`` before each system call; may raise OSError
#: instead. Details: of a write the buffers that are left to write, of a rename its source.
intercept: Callable[..., None] | None = None

ADVICE: Final = {
    "willneed": "MADV_WILLNEED",
    "random": "MADV_RANDOM",
    "sequential": "MADV_SEQUENTIAL",
    "none": "",
}

#: Whether pages of private memory can be returned to the system. Only Linux promises that they
#: read as zeros afterwards.
CAN_RETURN_PAGES: Final = sys.platform == "linux" and hasattr(mmap, "MADV_DONTNEED")

#: Whether the system can be asked to fetch a file's pages before they are read.
CAN_READ_AHEAD: Final = hasattr(os, "posix_fadvise")
_READ_NO_WAIT: Final = getattr(os, "RWF_NOWAIT", 0)

# What network and foreign volumes say to F_FULLFSYNC.
_NO_SUCH_SYNC: Final = (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY)
_READ_CHUNK_BYTES: Final = 2**18
_N_INTERRUPTED: Final = 1_000  # times that a call is made again
_N_LINKS: Final = 40
_N_DURABLE_NAMES: Final = 4_096
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC
# A pipe or device in a file's place must be refused, not waited for.
_READ_FLAGS: Final = os.O_RDONLY | _CLOEXEC | getattr(os, "O_NONBLOCK", 0)


#: The directories whose names this process has made durable, and which ones those were.
_durable_names: Final[dict[Path, tuple[int, ...]]] = {}


class FileIdentity(NamedTuple):
    """What tells one file from the next under the same name."""

    device: int
    inode: int
    n_bytes: int
    modified_ns: int


class NotMappable(OSError):
    """A file system lets no file be mapped."""

    operation = "map unshared"


class NotLeased(NotMappable):
    """A file cannot be leased."""

    operation = "lease"


class NameNotSynced(OSError):
    """The name of a directory could not be made durable."""


class Mapping(mmap.mmap):
    """Memory, with what is to end when it does."""

    kept: object = None
    kept_too: object = None
    #: What it takes of the machine, in bytes, where that is more than its contents' whole pages.
    n_taken: int = 0


class FileMapping(Mapping):
    """A file's bytes, as the system has them."""


class FileBytes(NamedTuple):
    """A file's bytes in memory: the owner array, and which file they were."""

    data: NDArray[np.uint8]
    identity: FileIdentity


def prepare_writing(directory: Path | None = None) -> None:
    """Find what writing needs, and what kind of file system a directory is on; each once.

    So nothing of that remains to be done when a lock is held.
    """
    short_calls.make_ready()
    if directory is not None:
        short_calls.prepare(directory)


def is_url(text: object) -> bool:
    """Tell whether a text names a file by protocol: ``s3://...``, ``https://...``."""
    protocol, mark, _ = text.partition("://") if isinstance(text, str) else ("", "", "")
    return bool(mark) and len(protocol) > 1 and protocol.replace("+", "").isalnum()


def without_scheme(path: Any) -> Any:
    """Return the path of this machine that a ``file://`` URL names; anything else as it is."""
    return path.removeprefix("file://") if isinstance(path, str) else path


def as_path(value: str | os.PathLike[str]) -> Path:
    """Take a path as users write it.

    Raises
    ------
    ValueError
        If no file can have that name: it holds a null character, or what no name is encoded to.
    TypeError
        If it is not a path of text.
    """
    path = Path(os.fspath(value))
    try:
        is_name = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise ValueError(f"no file can be called {shown(os.fspath(path))}")
    return path


def absolute(path: Path) -> Path:
    """Return where a path leads from here; raise RegionIOError where "here" is gone."""
    try:
        return path.absolute()
    except OSError as error:
        raise RegionIOError.from_os_error(error, "find the working directory, for", path) from None


def page_size() -> int:
    """Return the size of a page in bytes: 4, 16 or 64 KiB on the systems of today."""
    return mmap.PAGESIZE


def round_to_pages(n_bytes: int) -> int:
    """Return the bytes of the whole pages that `n_bytes` occupy."""
    page = page_size()
    return -(-n_bytes // page) * page


def identify(path: Path) -> FileIdentity:
    """Stat `path`; raise OSError where it is missing or no regular file."""
    return call("stat", path, lambda: _identity(_calls_at(path).stat(path)))


def identity_of(file: Descriptor, path: Path) -> FileIdentity:
    """Return which file is open; part of what was done with it before, so no step of its own."""
    return _identity(_calls_at(path).fstat(file))


def identity_at(path: Path) -> FileIdentity | None:
    """Return which file a name leads to; part of giving it the name, so no step of its own."""
    try:
        return _identity(_calls_at(path).stat(path))
    except OSError:
        return None


def identities_at(paths: Sequence[Path]) -> list[FileIdentity | None]:
    """Return which files some names lead to, all in one directory; as `identity_at`."""
    try:
        found = _calls_at(paths[0]).look_at(list(map(os.fspath, paths)))
    except OSError:  # of one of them, which is not there either
        return list(map(identity_at, paths))
    return [
        _identity(each) if each is not None and stat.S_ISREG(each.st_mode) else None
        for each in found
    ]


def identity_named(path: Path) -> FileIdentity | None:
    """Return which regular file has a name itself; None for a link to it. As `identity_at`."""
    try:
        found = _calls_at(path).lstat(path)
    except OSError:
        return None
    return _identity(found) if stat.S_ISREG(found.st_mode) else None


def is_owned(path: Path) -> bool:
    """Tell whether a file is this user's; no step of its own."""
    if os.name == "nt":
        return True
    with suppress(OSError):
        return _calls_at(path).stat(path).st_uid == os.geteuid()
    return False


def may_replace(path: Path) -> bool:
    """Tell whether a refusal to replace `path` can only mean that it is mapped.

    Elsewhere than on Windows it can also mean that the file is another user's, in a directory where
    each may change only his own.
    """
    try:
        owner = os.lstat(path).st_uid
    except OSError:
        return False
    return os.name == "nt" or owner == os.geteuid()


def fault_of_substitute(path: Path, substitute: Path) -> str | None:
    """Say why `substitute` may not be read in the place of `path`; None: it may.

    It has to be a regular file, and its owner the owner of `path`, where that is there, or this
    user. Raises OSError where it cannot be looked at.
    """
    found = call("stat", substitute, partial(_calls_at(substitute).lstat, substitute))
    fault = _taken_beside(path, found)
    return fault if isinstance(fault, str) else None


def look_beside(path: Path, besides: Sequence[Path]) -> list[FileIdentity | str | None]:
    """Tell which files lie beside `path`, or why one may not count, as `fault_of_substitute`.

    None where one is gone. They are all in one directory, and each is a step.
    """
    names, calls = list(map(os.fspath, besides)), _calls_at(besides[0])
    if intercept is None:
        found = calls.look_at(names, follows=False)
    else:
        found = [_found(partial(call, "stat", name, partial(calls.lstat, name))) for name in names]
    return [None if each is None else _taken_beside(path, each) for each in found]


def _found(look: Callable[[], R]) -> R | None:
    try:
        return look()
    except FileNotFoundError:
        return None


def _taken_beside(path: Path, found: Status | os.stat_result) -> FileIdentity | str:
    """Tell which file was found, or why it may not count in the place of `path`."""
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if os.name != "nt" and found.st_uid != os.geteuid():
        with suppress(FileNotFoundError):
            if _calls_at(path).stat(path).st_uid != found.st_uid:
                return "its owner is not the region file's"
    return _identity(found)


def behind_links(path: Path) -> Path:
    """Return where a file is that `path` may be a link to; links of its directories stay.

    A link counts if it is this user's, the superuser's, or of the owner of its directory: another's
    could have a file of this user replaced wherever it is. Raises OSError where it does not count,
    or leads nowhere.
    """
    for _ in range(_N_LINKS):
        try:
            if not stat.S_ISLNK(_calls_at(path).lstat(path).st_mode):
                return path
            link = _calls_at(path).read_link(path)
        except OSError:
            return path  # opening it will say why
        if os.name != "nt":
            owner = call("stat", path, partial(_calls_at(path).lstat, path)).st_uid
            if owner not in (0, os.geteuid(), os.stat(path.parent).st_uid):
                raise PermissionError(errno.EPERM, f"{path} is another user's link")
        path = path.parent / link
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def list_directory(path: Path) -> list[str]:
    """Return the names in a directory; raise OSError where it cannot be listed."""
    return call("list", path, lambda: calls_in(path).list_names(path))


def admit_all(n_bytes: int) -> object:
    """Let a file of any length be mapped or read."""


def map_file(
    path: Path, admit: Callable[[int], object] = admit_all, *, is_leased: bool = False
) -> FileBytes:
    """Map the whole of a file read-only; the array owns the mapping.

    `admit` is called with the open file's length before anything is mapped; what it raises passes,
    and what it returns is held for as long as the memory is. A file without bytes cannot be mapped
    and comes back as an empty array. Where the file system has no shared mappings it is a private
    one, which is read-only all the same. Raises OSError, also where `path` is no regular file;
    NotMappable where there are no mappings at all.

    With `is_leased` the bytes stay as they are whatever others do to the file, at the price of a
    descriptor; see `jessymem.leases`. Raises NotLeased where the file cannot be leased.
    """
    file, identity = _open_regular(path)
    with file:
        lease = None
        if is_leased:
            lease = _lease(file, path)
            identity = identity_of(file, path)  # from here on nobody changes it
        kept = admit(identity.n_bytes)
        if identity.n_bytes == 0:
            return FileBytes(np.empty(0, np.uint8), identity)
        mapping = _map_whole(file, path, identity.n_bytes)
        mapping.kept = kept
        # A plain array, which holds the mapping's buffer: nobody can close it under a view, nor
        # make it writeable.
        data = np.frombuffer(mapping, np.uint8)
        if lease is not None:
            mapping.kept = lease, kept  # before it covers anything: it has to end before the memory
            try:
                lease.cover(data, path)
            except OSError as error:  # too many
                raise NotLeased(error.errno, error.strerror) from None
        return FileBytes(data, identity)


def read_file(
    path: Path,
    admit: Callable[[int], object] = admit_all,
    take: Callable[[int, Callable[[int], object]], FilledMemory] | None = None,
) -> FileBytes:
    """Read a whole file into private memory, which the array owns; otherwise as `map_file`.

    `take` gets that memory, as `take_memory` does: for so many bytes, once they are admitted.
    """
    file, identity = _open_regular(path)
    with file:
        memory = (take or take_memory)(identity.n_bytes, admit)
        view = memory.view
        n_read = 0
        while n_read < len(view):
            step = call("read", path, partial(PLAIN.read, file, view[n_read:]))
            if not step:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            n_read += step
        del view
        return FileBytes(memory.finished(), identity)


def take_memory(n_bytes: int, admit: Callable[[int], object]) -> FilledMemory:
    """Get memory to be filled once `n_bytes` are admitted; it holds what `admit` returns."""
    kept = admit(n_bytes)
    memory = FilledMemory(n_bytes)
    memory.mapping.kept = kept
    return memory


def n_taken(data: NDArray[np.uint8]) -> int:
    """Return what an array's memory takes of the machine: whole pages, or whole huge pages."""
    mapping = _mapping_of(data)
    return (mapping.n_taken if mapping is not None else 0) or round_to_pages(len(data))


def read_start(path: Path, n_bytes: int) -> tuple[bytes, int]:
    """Return a file's first bytes, at most `n_bytes`, and how long it is; raise OSError."""
    file, identity = _open_regular(path)
    start = bytearray(n_bytes)
    with file:
        n_read = call("read", path, partial(_calls_at(path).read, file, memoryview(start)))
    return bytes(start[:n_read]), identity.n_bytes


def keep_with(data: NDArray[np.uint8], kept: object) -> None:
    """Hold something for as long as the memory of `private_copy` is."""
    mapping = _mapping_of(data)
    if mapping is None:
        raise TypeError("only memory that was mapped keeps anything")
    mapping.kept_too = kept


class PrivateMemory(NamedTuple):
    """Writable memory that belongs to this process alone and is committed where it is touched.

    Attributes
    ----------
    mapping : mmap
    address : int
        Of its first byte.
    start : int
        Of that byte in the mapping.
    can_return : bool
        Whether pages that are returned are sure to be had again.
    pages : str
        What they are asked to be: "small", or a kind of huge ones.
    huge_bytes : int
        Of a huge one; 0: they are small.
    """

    mapping: mmap.mmap
    address: int
    start: int = 0
    can_return: bool = True
    pages: str = "small"
    huge_bytes: int = 0

    @property
    def page_bytes(self) -> int:
        """What becomes resident, and is returned, at once."""
        return self.huge_bytes or page_size()

    def return_pages(self, offset: int, n_bytes: int) -> bool:
        """Return whole pages to the system, to read as zeros; tell whether it took them."""
        if not (CAN_RETURN_PAGES and self.can_return):
            return False
        try:
            at = self.start + offset
            advise_system = partial(self.mapping.madvise, mmap.MADV_DONTNEED, at, n_bytes)
            call("return pages", "", advise_system)
        except OSError:
            return False
        return True


def private_memory(n_bytes: int) -> PrivateMemory:
    """Map page-aligned private memory of exactly `n_bytes`, rounded up to whole pages.

    It lives as long as something views it. Raises AllocationFailed, "os_refused".
    """
    mapping = private_mapping(n_bytes)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a huge page would commit 2 MiB for the first byte
            mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return PrivateMemory(mapping, address_of(mapping))


def address_of(mapping: mmap.mmap) -> int:
    """Return where a mapping's first byte is."""
    return int(np.frombuffer(mapping, np.uint8).ctypes.data)


def can_protect() -> bool:
    """Tell whether memory can be made read-only once it is filled."""
    return _find_protect() is not None


def private_mapping(n_bytes: int, *, is_read_only: bool = False) -> Mapping:
    """Map anonymous memory that a forked child does not share; at least one page.

    Raises AllocationFailed, "os_refused".
    """
    length = max(round_to_pages(n_bytes), page_size())
    flags = () if os.name == "nt" else (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,)
    if is_read_only:
        flags = (*flags, mmap.PROT_READ)
    try:
        return call("map private", "", lambda: Mapping(-1, length, *flags))
    except OSError as error:
        raise AllocationFailed(
            f"the system refused {length:,} bytes of memory: {error}",
            reason="os_refused",
            requested=length,
        ) from error


class FilledMemory:
    """Private memory that is filled once and then only read, by its owner too.

    No object that leads to the bytes can write to them, nor can anything in this process, once they
    are finished; on Windows the owner could.

    Attributes
    ----------
    mapping : Mapping
        Who owns the memory.
    address : int
        Of the first byte.
    view : memoryview
        To fill it by, until it is finished; it keeps nothing alive.
    """

    def __init__(self, n_bytes: int, mapping: Mapping | None = None, start: int = 0) -> None:
        """Get memory of `n_bytes`; or take it from `start` on of a mapping, read-only if may be."""
        self._part = slice(start, start + n_bytes)
        protect = _find_protect()
        if mapping is None:
            mapping = private_mapping(n_bytes, is_read_only=protect is not None)
        self.mapping = mapping
        self.address = address_of(mapping) + start
        if protect is None:
            self.view = memoryview(self.mapping)[self._part]
            return
        import ctypes

        self._protect = partial(protect, self.address - start, len(self.mapping))
        if self._protect(mmap.PROT_READ | mmap.PROT_WRITE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        raw = (ctypes.c_ubyte * n_bytes).from_address(self.address)
        self.view = memoryview(np.frombuffer(raw, np.uint8))

    def finished(self) -> NDArray[np.uint8]:
        """Return the bytes; the read-only array owns them."""
        self.view = memoryview(b"")
        if hasattr(self, "_protect"):
            self._protect(mmap.PROT_READ)
        return np.frombuffer(memoryview(self.mapping).toreadonly()[self._part], np.uint8)


@cache
def _find_protect() -> Callable[[int, int, int], int] | None:
    """Return mprotect(2), as Python may call it; None: there is none."""
    if os.name == "nt":
        return None
    import ctypes

    try:
        protect = ctypes.PyDLL(None, use_errno=True).mprotect
    except (AttributeError, OSError):
        return None
    protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return protect


def private_copy(pieces: Iterable[Any], n_bytes: int) -> NDArray[np.uint8]:
    """Copy `pieces` into page-aligned private memory of `n_bytes`; the read-only array owns it."""
    memory = FilledMemory(n_bytes)
    at = 0
    for piece in pieces:
        memory.view[at : at + len(piece)] = memoryview(piece).cast("B")
        at += len(piece)
    return memory.finished()


def mapped_file_bytes(data: NDArray[np.uint8]) -> int | None:
    """Return the present length of the file under a mapping, or None where `data` is not one."""
    mapping = file_mapping_of(data)
    try:
        return None if mapping is None else int(mapping.size())
    except (OSError, ValueError):
        return None  # the mapping holds no descriptor: it is of no file


def is_cut(data: object) -> bool:
    """Tell whether an array maps a file that is shorter by now: reading what is gone kills."""
    mapping = file_mapping_of(data)
    try:
        return mapping is not None and mapping.size() < len(mapping)
    except (OSError, ValueError):
        return False  # the mapping holds no descriptor: it is of no file


def advise(data: NDArray[np.uint8], advice: str) -> bool:
    """Tell the system how `data` will be read; return whether it was told.

    Skipped where `data` is no mapping, or where the system has no such hint; a hint that the system
    refuses is no error.
    """
    return bool(ADVICE[advice]) and _hint(data, ADVICE[advice])


def read_ahead(path: Path, n_bytes: int) -> bool:
    """Ask the system for a file's first bytes, and tell whether they were not in memory before.

    A hint from beside, and no step of what it is for: nothing comes of a file that cannot be
    opened, and whoever reads it will say why.
    """
    with suppress(OSError), open_descriptor(path, _READ_FLAGS) as file:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return False
        with suppress(OSError):
            if _READ_NO_WAIT and os.preadv(file, [bytearray(1)], 0, _READ_NO_WAIT):
                return False
        os.posix_fadvise(file, 0, n_bytes, os.POSIX_FADV_WILLNEED)
        return True
    return False


def drop_pages(data: NDArray[np.uint8]) -> bool:
    """Drop a mapping's pages from this process, not from the system's cache; tell whether done.

    What was touched to check a file is not resident afterwards; what is read comes back by itself.
    """
    return _hint(data, "MADV_DONTNEED")


def create_file(path: Path) -> Descriptor:
    """Create a file that must not exist, with the permissions that the user's mask leaves."""
    return call("create", path, lambda: _calls_at(path).open(path, _CREATE_FLAGS))


def write_pieces(file: Descriptor, path: Path, pieces: Iterable[Any]) -> int:
    """Write `pieces` in order, by as few calls as can be; return how many bytes."""
    calls, n_written = _calls_at(path), 0
    for buffers in batches(pieces):
        left = buffers
        while left:
            n_bytes = call("write", path, partial(calls.write, file, left), left)
            n_written += n_bytes
            left = without_first(left, n_bytes)
    return n_written


def sync_file(file: Descriptor, path: Path) -> None:
    """Wait until the file's bytes are on the medium, as far as the system can tell."""
    call("sync", path, partial(_sync, file))


def holds(path: Path, pieces: Iterable[Any]) -> bool:
    """Read a file and tell whether it holds just `pieces`; read(2), so that no page can be missing.

    Raises OSError where it cannot be read.
    """
    calls = _calls_at(path)
    file = call("open", path, partial(calls.open, path, _READ_FLAGS))
    with file:
        takes: Iterator[_Do] = chain([partial(call, "read", path)], repeat(_do))  # it is one step

        def take(buffer: memoryview) -> int:
            return next(takes)(partial(calls.read, file, buffer))

        buffer = bytearray()
        for chunk in parts(pieces, _READ_CHUNK_BYTES):
            if len(buffer) < len(chunk):
                buffer = bytearray(len(chunk))
            if not _follows(take, chunk, buffer):
                return False
        return not take(memoryview(bytearray(1)))


def _do(action: Callable[[], R]) -> R:
    return action()


def _follows(take: Callable[[memoryview], int], expected: memoryview, buffer: bytearray) -> bool:
    """Tell whether just these bytes are read next, into a buffer that is as long or longer."""
    view, n_read = memoryview(buffer)[: len(expected)], 0
    while n_read < len(view):
        step = take(view[n_read:])
        if not step:
            return False
        n_read += step
    if len(expected) == len(buffer):
        return buffer == expected
    return buffer[: len(expected)] == expected


def locked(path: Path, timeout: float) -> AbstractContextManager[Callable[[], bool]]:
    """Keep out every other thread and process that asks for the same lock; `lock_files.hold`."""
    seam = lock_files.Seam(call, attempt, _calls_at(path))
    return lock_files.hold(path, timeout, seam)


def keep_attributes(source: Path, file: Descriptor) -> None:
    """Give an open file owner, group, attributes and mode of `source`; `attributes.keep`."""
    attributes.keep(source, file, attempt, _calls_at(source))


def sync_directory(path: Path) -> bool:
    """Wait until the names in a directory are on the medium; tell whether that could be asked."""
    return os.name == "nt" or attempt("sync directory", path, partial(_sync_names, path), path)


def close_file(file: Descriptor) -> None:
    """Close a file; raise OSError where the system could not keep what was written."""
    file.close()


def replace_file(source: Path, target: Path) -> None:
    """Rename `source` over `target` in one step."""
    rename = partial(_calls_at(target).replace, source, target)
    call("rename", target, rename, os.fspath(source))


def rename_new(source: Path, target: Path) -> None:
    """Rename `source` to a name that nobody has, as far as the system can see to that.

    Raises FileExistsError where somebody has it.
    """
    calls = calls_in(target.parent)

    def rename() -> None:
        alone = partial(calls.rename_new, source, target)
        if not attempt("rename alone", target, alone, target.parent):
            calls.replace(source, target)

    call("rename", target, rename, os.fspath(source))


def remove_file(path: Path) -> None:
    """Remove a file; one that is gone already is no error."""
    with suppress(FileNotFoundError):
        call("remove", path, partial(_calls_at(path).remove, path))


def make_directory(path: Path) -> list[Path]:
    """Make `path` and its parents; return those that were new, outermost first.

    Each is on the medium before anything is made in it, also the one that was there before: who
    made that may have been killed. The caller has to `sync_name` the last. If one cannot be made or
    synced, all are removed again. Raises OSError; where it is the sync, NameNotSynced.
    """
    missing = []
    level = path
    while not _is_there(level):
        missing.append(level)
        if level == level.parent:
            break
        level = level.parent
    made: list[Path] = []
    try:
        for level in reversed(missing):
            refusal = sync_name(level.parent, made_here=bool(made))
            if refusal is not None:
                system_calls.tell("sync directory", path, refusal)
            with suppress(FileExistsError):  # another process was quicker
                call("make directory", level, partial(calls_in(level).make_directory, level))
                made.append(level)
    except BaseException:
        for level in reversed(made):
            with suppress(OSError):
                level.rmdir()
        raise
    return made


def _is_there(directory: Path) -> bool:
    """Tell whether a path leads to anything that can be looked at; no step of its own."""
    try:
        calls_in(directory).stat(directory)
    except OSError:
        return False
    return True


def sync_name(path: Path, *, made_here: bool) -> OSError | None:
    """Wait until a directory's name is on the medium; of others' as far as we may ask for that.

    A name that this process has made durable is so for as long as it is the same directory's.
    Returns what the system answers that cannot be asked for it at all; raises NameNotSynced.
    """
    path = path.absolute()
    above, birth = path.parent, None
    with suppress(OSError):
        birth = calls_in(path).birth_of(path)
    if birth is not None and _durable_names.get(path) == birth:
        return None
    try:
        if os.name != "nt":
            call("sync directory", above, partial(_sync_names, above))
            if birth is not None:
                if len(_durable_names) >= _N_DURABLE_NAMES:
                    _durable_names.clear()
                _durable_names[path] = birth
    except OSError as error:
        if system_calls.is_optional("sync directory", error):
            return error.with_traceback(None)
        if made_here or error.errno not in (errno.EACCES, errno.EPERM):
            raise NameNotSynced(error.errno, error.strerror) from error
    return None


def call(operation: str, path: str | Path, do: Callable[[], R], *details: Any) -> R:
    """Make a system call, which passes the seam first; one that a signal interrupts, again."""
    for _ in range(_N_INTERRUPTED):
        try:
            if intercept is not None:
                intercept(operation, os.fspath(path), *details)
            return do()
        except InterruptedError:
            continue
    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))


def attempt(operation: str, path: str | Path, do: Callable[[], Any], directory: Path) -> bool:
    """Make a call without which the work may go on; return whether it was done.

    If not, that is told once for each `directory`. Raises OSError where the call is vital.
    """
    try:
        call(operation, path, do)
    except OSError as error:
        if not system_calls.is_optional(operation, error):
            raise
        system_calls.tell(operation, directory, error)
        return False
    return True


def _sync_names(path: Path) -> None:
    directory = calls_in(path).open(path, os.O_RDONLY | _CLOEXEC)
    with directory:  # an error that is kept holds this frame
        _sync(directory)


def _sync(descriptor: int) -> None:
    if not _sync_medium(descriptor):
        os.fsync(descriptor)


def _sync_medium(descriptor: int) -> bool:
    """Ask macOS to empty the drive's own cache too; return False where that cannot be asked."""
    if sys.platform != "darwin":
        return False
    import fcntl

    try:
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    except OSError as error:
        if error.errno not in _NO_SUCH_SYNC:
            raise
        return False
    return True


def _hint(data: NDArray[np.uint8], name: str) -> bool:
    mapping, hint = file_mapping_of(data), getattr(mmap, name, None)
    if mapping is None or hint is None or not hasattr(mapping, "madvise"):
        return False
    try:
        call("advise", "", partial(mapping.madvise, hint))
    except OSError:
        return False
    return True


def file_mapping_of(data: object) -> FileMapping | None:
    """Return the mapping of a file that an array owns; None where it owns none."""
    mapping = _mapping_of(data)
    return mapping if isinstance(mapping, FileMapping) else None


def _mapping_of(data: object) -> Mapping | None:
    """Return the mapping that an array owns; None where it owns none."""
    owner = getattr(data, "base", None)
    mapping = owner.obj if isinstance(owner, memoryview) else owner
    return mapping if isinstance(mapping, Mapping) else None


def _calls_at(path: Path) -> short_calls.PlainCalls:
    """Return how calls on a file are made: as in its directory."""
    name = os.fspath(path)
    head = name.rpartition(os.sep)[0]  # in a tenth of the time of `path.parent`
    return calls_in(head or (os.sep if name.startswith(os.sep) else "."))


def _identity(status: Status | os.stat_result) -> FileIdentity:
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "not a regular file")
    facts = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return tuple.__new__(FileIdentity, facts)


def _open_regular(path: Path) -> tuple[Descriptor, FileIdentity]:
    calls = _calls_at(path)

    def open_checked() -> Descriptor:
        _identity(calls.stat(path))
        return calls.open(path, _READ_FLAGS)

    file = call("open", path, open_checked)
    try:
        return file, call("stat", path, lambda: _identity(calls.fstat(file)))
    except BaseException:
        file.close()
        raise


def _lease(file: Descriptor, path: Path) -> Lease:
    from jessymem import leases

    try:
        return call("lease", path, partial(leases.take, file))
    except OSError as error:
        if not system_calls.is_optional("lease", error):
            raise
        raise NotLeased(error.errno, error.strerror) from None


def _map_whole(file: Descriptor, path: Path, n_bytes: int) -> FileMapping:
    """Map a file read-only, shared if that can be; raise OSError, NotMappable if neither can."""
    share = partial(FileMapping, file, n_bytes, access=mmap.ACCESS_READ)
    try:
        try:
            return call("map", path, share)
        except OSError as error:
            if os.name == "nt" or not system_calls.is_optional("map", error):
                raise
            shared = error.with_traceback(None)  # which holds this frame
        take = partial(FileMapping, file, n_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ)
        try:
            mapping = call("map unshared", path, take)
        except OSError as error:
            if not system_calls.is_optional("map unshared", error):
                raise
            raise NotMappable(error.errno, error.strerror) from None
    except ValueError as error:  # shorter by now than when it was opened
        raise OSError(errno.EIO, str(error)) from error
    system_calls.tell("map", path.parent, shared)
    return mapping
