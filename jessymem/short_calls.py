"""System calls that wait for no medium, and how they are made: with the GIL, or without it.

Python gives up the GIL around every system call, and a thread that gave it up gets it back when all
others that run have had their turn, 5 ms each. So where many threads read, what a write costs is
how often it lets go, and most of its calls take microseconds. `HeldCalls` keeps the GIL: on Linux,
on file systems that lie on a medium of this machine. Anywhere else `PlainCalls` are made. What
waits for the medium (syncs, large writes) is made without the GIL everywhere.
"""

from __future__ import annotations

import errno
import os
import sys
from _io import FileIO
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, Final, TypeAlias

from jessymem.descriptors import Descriptor, open_descriptor
from jessymem.named_tuples import NamedTuple

try:
    import fcntl
except ImportError:  # Windows, where nobody locks so
    fcntl = None  # type: ignore[assignment]

#: More bytes than that are written without the GIL: they may have to wait for others' to get out.
MAX_HELD_BYTES: Final = 2**18

#: Where 64-bit arguments and those of variadic functions travel as any other does.
_MACHINES: Final = ("x86_64", "aarch64")

_LIST_DIRECTORY: Final = {"x86_64": 217, "aarch64": 61}  # the number of getdents64(2)
_DIRECTORY_BYTES: Final = 2**15
_RENAME: Final = {"x86_64": 316, "aarch64": 276}  # of renameat2(2)

#: File systems whose answers come out of this machine's memory, by their number in statfs(2): ext2
#: to ext4, XFS, Btrfs, bcachefs, F2FS, ZFS, tmpfs, ramfs, and overlays, as in containers.
_LOCAL: Final = (
    *(0xEF53, 0x5846_5342, 0x9123_683E, 0xCA45_1A4E, 0xF2F5_2010),
    *(0x2FC1_2FC1, 0x0102_1994, 0x8584_58F6, 0x794C_7630),
)


_Which: TypeAlias = str | os.PathLike[str] | int | None


class Status(NamedTuple):
    """What stat(2) tells, as far as it is asked for; named as in `os.stat_result`."""

    st_uid: int
    st_gid: int
    st_mode: int
    st_ino: int
    st_size: int
    st_mtime_ns: int
    st_dev: int


class PlainCalls:
    """System calls as Python makes them: others run meanwhile.

    Each raises OSError.
    """

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> Descriptor:
        """Open a file or a directory."""
        return open_descriptor(path, flags, mode)

    def stat(self, path: str | os.PathLike[str]) -> Status | os.stat_result:
        """Look which file a path leads to."""
        return os.stat(path)

    def lstat(self, path: str | os.PathLike[str]) -> Status | os.stat_result:
        """Look which file lies there, be it a link."""
        return os.lstat(path)

    def look_at(
        self, paths: Sequence[str], *, follows: bool = True
    ) -> list[Status | os.stat_result | None]:
        """Look which file each path leads to, or lies there; None where nothing is."""
        look = self.stat if follows else self.lstat
        found: list[Status | os.stat_result | None] = []
        for path in paths:
            try:
                found.append(look(path))
            except FileNotFoundError:
                found.append(None)
        return found

    def fstat(self, descriptor: int) -> Status | os.stat_result:
        """Look which file is open."""
        return os.fstat(descriptor)

    def birth_of(self, path: str | os.PathLike[str]) -> tuple[int, ...] | None:
        """Tell a file from all others that there ever were at a path; None: that is not known."""
        return None

    def read_link(self, path: str | os.PathLike[str]) -> str:
        """Return where a link leads."""
        return os.readlink(path)

    def list_names(self, path: str | os.PathLike[str]) -> list[str]:
        """Return the names in a directory."""
        return os.listdir(path)

    def list_attributes(self, file: str | os.PathLike[str] | int) -> list[str]:
        """Return the names of a file's extended attributes."""
        return os.listxattr(file) if hasattr(os, "listxattr") else []

    def read(self, descriptor: int, buffer: Any) -> int:
        """Read into a buffer; return how many bytes."""
        if hasattr(os, "readv"):
            return os.readv(descriptor, [buffer])
        return FileIO(descriptor, closefd=False).readinto(buffer) or 0

    def write(self, descriptor: int, buffers: Sequence[memoryview]) -> int:
        """Write some of `buffers`, in order; return how many bytes."""
        if hasattr(os, "writev"):
            return os.writev(descriptor, buffers)
        return os.write(descriptor, buffers[0])

    def replace(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Rename a file over another."""
        os.replace(source, target)

    def rename_new(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Rename a file to a name that nobody has; FileExistsError where one has.

        Who is stopped in between leaves it under both names.
        """
        if os.name == "nt":
            os.rename(source, target)
            return
        os.link(source, target, follow_symlinks=False)
        with suppress(OSError):
            os.unlink(source)

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Remove a file."""
        os.unlink(path)

    def make_directory(self, path: str | os.PathLike[str]) -> None:
        """Make a directory."""
        os.mkdir(path)

    def set_mode(self, descriptor: int, mode: int) -> None:
        """Set the mode of an open file."""
        os.fchmod(descriptor, mode)

    def lock(self, descriptor: int, operation: int) -> None:
        """Lock an open file, or unlock it."""
        fcntl.flock(descriptor, operation)


class HeldDescriptor(Descriptor):
    """An open file that is closed with the GIL held."""

    def close(self) -> None:
        """Close it, once; raise OSError where the system could not keep what was written."""
        if self._close() == -1:
            import ctypes

            raise _error(ctypes.get_errno())


class HeldCalls(PlainCalls):
    """The same, with the GIL held."""

    def __init__(self) -> None:
        """Find them in the system's library.

        Raises
        ------
        AttributeError, ImportError, OSError
            If they are not there, or do not answer as they should.
        """
        import ctypes
        from ctypes import c_char_p, c_int, c_long, c_size_t, c_ssize_t, c_uint, c_void_p
        from struct import Struct

        library = ctypes.PyDLL(None, use_errno=True)

        def find(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            return function  # type: ignore[no-any-return]

        self._errno = ctypes.get_errno
        self._buffer = ctypes.create_string_buffer
        self._bytes = ctypes.c_char
        self._pointer = ctypes.byref
        self._status_buffer = ctypes.c_char * 256
        HeldDescriptor._end = find("close", c_int, c_int)
        # The result becomes a `HeldDescriptor` before the interpreter goes on.
        self._open = find("open", HeldDescriptor, c_char_p, c_int, c_uint)
        self._statx = find("statx", c_int, c_int, c_char_p, c_int, c_uint, c_void_p)
        self._readlink = find("readlink", c_ssize_t, c_char_p, c_void_p, c_size_t)
        self._syscall = find("syscall", c_long, c_long, c_int, c_void_p, c_size_t)
        self._listxattr = find("listxattr", c_ssize_t, c_char_p, c_void_p, c_size_t)
        self._flistxattr = find("flistxattr", c_ssize_t, c_int, c_void_p, c_size_t)
        self._read = find("read", c_ssize_t, c_int, c_void_p, c_size_t)
        self._write = find("write", c_ssize_t, c_int, c_char_p, c_size_t)
        self._rename = find("rename", c_int, c_char_p, c_char_p)
        # Of its own: the C library has a name for it only since 2018.
        self._renameat2 = library["syscall"]
        self._renameat2.restype = c_long
        self._renameat2.argtypes = c_long, c_int, c_char_p, c_int, c_char_p, c_uint
        self._unlink = find("unlink", c_int, c_char_p)
        self._mkdir = find("mkdir", c_int, c_char_p, c_uint)
        self._fchmod = find("fchmod", c_int, c_int, c_uint)
        self._flock = find("flock", c_int, c_int, c_int)
        # Of struct statx: uid, gid, mode, ino, size; mtime; dev.
        self._status = Struct("<20xIIH2xQQ64xqI4x8xII").unpack_from
        # Of the same: mask, ino, btime, dev.
        self._birth = Struct("<I28xQ40xqI44xII").unpack_from
        # The one call that may have to wait for another machine.
        self._statfs = ctypes.CDLL(None, use_errno=True).statfs
        self._statfs.argtypes = c_char_p, c_void_p
        self._listing = _LIST_DIRECTORY[os.uname().machine]
        self._renaming = _RENAME[os.uname().machine]
        here = os.stat("/")
        if self.stat("/")[:4] != (here.st_uid, here.st_gid, here.st_mode, here.st_ino):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> Descriptor:
        """Open a file or a directory."""
        arguments = os.fsencode(path), flags | os.O_CLOEXEC, mode
        descriptor: Descriptor = self._do(path, self._open, *arguments)
        return descriptor.secured()

    def stat(self, path: str | os.PathLike[str]) -> Status:
        """Look which file a path leads to."""
        return self._look(path, 0)

    def lstat(self, path: str | os.PathLike[str]) -> Status:
        """Look which file lies there, be it a link."""
        return self._look(path, _NO_LINK)

    def look_at(
        self, paths: Sequence[str], *, follows: bool = True
    ) -> list[Status | os.stat_result | None]:
        """Look which file each path leads to, or lies there; None where nothing is."""
        flags = 0 if follows else _NO_LINK
        buffers = [self._status_buffer() for _ in paths]
        names = map(os.fsencode, paths)
        asked = repeat(_HERE), names, repeat(flags), repeat(_BASIC_STATUS), buffers
        if any(list(map(self._statx, *asked))):
            return super().look_at(paths, follows=follows)  # which tells what is wrong with which
        return list(map(self._read_status, buffers))

    def fstat(self, descriptor: int) -> Status:
        """Look which file is open."""
        buffer = self._status_buffer()
        self._do(None, self._statx, descriptor, b"", _OPEN_FILE, _BASIC_STATUS, buffer)
        return self._read_status(buffer)

    def birth_of(self, path: str | os.PathLike[str]) -> tuple[int, ...] | None:
        """Return device, inode and time of birth of what lies at a path, if all are known."""
        buffer = self._status_buffer()
        asked = _HERE, os.fsencode(path), _NO_LINK, _BIRTH | _BASIC_STATUS, buffer
        self._do(path, self._statx, *asked)
        known, inode, seconds, rest_ns, major, minor = self._birth(buffer)
        is_known = known & _BIRTH and seconds  # a file system that was made from an image tells 0
        return (major, minor, inode, seconds, rest_ns) if is_known else None

    def kind_of(self, path: str | os.PathLike[str]) -> int | None:
        """Return the number of a path's file system, without the GIL; None where nothing is there.

        -1 where it cannot be looked at.
        """
        buffer = self._buffer(256)
        try:
            self._do(path, self._statfs, os.fsencode(path), buffer)
        except (FileNotFoundError, NotADirectoryError):
            return None if path not in ("/", ".") else -1
        except OSError:
            return -1
        return int.from_bytes(buffer.raw[:4], sys.byteorder)

    def _look(self, path: str | os.PathLike[str], flags: int) -> Status:
        # As short as it can be: a write looks thirty times.
        name, buffer = os.fsencode(path), self._status_buffer()
        while self._statx(_HERE, name, flags, _BASIC_STATUS, buffer) < 0:
            self._check(path)
        return self._read_status(buffer)

    def _read_status(self, buffer: Any) -> Status:
        *same, seconds, rest_ns, major, minor = self._status(buffer)
        return tuple.__new__(Status, (*same, seconds * 10**9 + rest_ns, os.makedev(major, minor)))

    def read_link(self, path: str | os.PathLike[str]) -> str:
        """Return where a link leads."""
        buffer = self._buffer(2**12)
        n_bytes = self._do(path, self._readlink, os.fsencode(path), buffer, len(buffer))
        return os.fsdecode(buffer.raw[:n_bytes])

    def list_names(self, path: str | os.PathLike[str]) -> list[str]:
        """Return the names in a directory."""
        buffer, names = self._buffer(_DIRECTORY_BYTES), []
        with self.open(path, os.O_RDONLY | os.O_DIRECTORY) as directory:
            arguments = self._listing, directory, buffer, _DIRECTORY_BYTES
            while n_bytes := self._do(path, self._syscall, *arguments):
                found, at = memoryview(buffer)[:n_bytes].tobytes(), 0
                while at < n_bytes:  # struct linux_dirent64: inode, offset, length, kind, name
                    length = found[at + 16] + (found[at + 17] << 8)
                    names.append(os.fsdecode(found[at + 19 : found.index(0, at + 19)]))
                    at += length
        return [name for name in names if name not in (".", "..")]

    def list_attributes(self, file: str | os.PathLike[str] | int) -> list[str]:
        """Return the names of a file's extended attributes."""
        if isinstance(file, int):
            function, target = self._flistxattr, file
        else:
            function, target = self._listxattr, os.fsencode(file)  # type: ignore[assignment]
        if not self._do(file, function, target, None, 0):
            return []
        return os.listxattr(file)

    def read(self, descriptor: int, buffer: Any) -> int:
        """Read into a buffer; return how many bytes."""
        first = self._bytes.from_buffer(buffer)  # a type for each length takes longer than the call
        return self._do(None, self._read, descriptor, self._pointer(first), len(buffer))  # type: ignore[no-any-return]

    def write(self, descriptor: int, buffers: Sequence[memoryview]) -> int:
        """Write some of `buffers`, in order; return how many bytes."""
        if sum(map(len, buffers)) > MAX_HELD_BYTES:
            return super().write(descriptor, buffers)
        content = b"".join(buffers)
        return self._do(None, self._write, descriptor, content, len(content))  # type: ignore[no-any-return]

    def replace(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Rename a file over another."""
        self._do(source, self._rename, os.fsencode(source), os.fsencode(target))

    def rename_new(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Rename a file to a name that nobody has, in one step where the system can."""
        names = _HERE, os.fsencode(source), _HERE, os.fsencode(target)
        try:
            self._do(target, self._renameat2, self._renaming, *names, _NOT_OVER_ANOTHER)
        except FileExistsError:
            raise
        except OSError:
            super().rename_new(source, target)

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Remove a file."""
        self._do(path, self._unlink, os.fsencode(path))

    def make_directory(self, path: str | os.PathLike[str]) -> None:
        """Make a directory."""
        self._do(path, self._mkdir, os.fsencode(path), 0o777)

    def set_mode(self, descriptor: int, mode: int) -> None:
        """Set the mode of an open file."""
        self._do(None, self._fchmod, descriptor, mode)

    def lock(self, descriptor: int, operation: int) -> None:
        """Lock an open file, or unlock it."""
        self._do(None, self._flock, descriptor, operation)

    def _do(self, path: _Which, function: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call, again where a signal interrupts it; its handler runs in between."""
        while (result := function(*arguments)) < 0:
            self._check(path)
        return result

    def _check(self, path: _Which) -> None:
        """Raise the error of the last call, unless it is to be made again."""
        number = self._errno()
        if number != errno.EINTR:
            raise _error(number, path)


def _error(number: int, path: _Which = None) -> OSError:
    """Return the error that Python would raise."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    return OSError(number, os.strerror(number), name)


_HERE: Final = -100  # AT_FDCWD
_NO_LINK: Final = 0x100  # AT_SYMLINK_NOFOLLOW
_NOT_OVER_ANOTHER: Final = 1  # RENAME_NOREPLACE
_OPEN_FILE: Final = 0x1000  # AT_EMPTY_PATH
_BASIC_STATUS: Final = 0x7FF
_BIRTH: Final = 0x800  # STATX_BTIME

PLAIN: Final = PlainCalls()

#: How calls in a directory are made that was looked at.
_by_directory: Final[dict[str, PlainCalls]] = {}
_held: HeldCalls | None = None
_is_ready = False


def calls_in(directory: str | os.PathLike[str]) -> PlainCalls:
    """Return how calls in a directory are made; `PLAIN` where `prepare` did not look at it."""
    return _by_directory.get(os.fspath(directory), PLAIN)


def make_ready() -> None:
    """Find what `prepare` needs, before anything is locked; that takes some milliseconds, once."""
    global _held, _is_ready
    if _is_ready:
        return
    if sys.platform == "linux" and os.uname().machine in _MACHINES and sys.maxsize > 2**32:
        try:
            _held = HeldCalls()
        except (AttributeError, ImportError, OSError):
            _held = None
    _is_ready = True


def prepare(directory: str | os.PathLike[str]) -> None:
    """Look, once, how calls in a directory are made, be it that it is to be made yet.

    Also in those above it of which one is to be made, and in the one above them, where its name is.
    That asks for nothing which could be answered late, but without the GIL, since the directory
    may lie on another machine.
    """
    level = os.fspath(directory)
    if level in _by_directory:
        return
    make_ready()
    missing = []
    if _held is not None:
        while (kind := _held.kind_of(level)) is None:
            missing.append(level)
            level = os.path.dirname(level) or "."
        above = os.path.dirname(os.path.abspath(level))
        found = {level: kind, above: kind if above == level else _held.kind_of(above)}
        for each, number in (*found.items(), *((each, kind) for each in missing)):
            _by_directory.setdefault(each, _held if number in _LOCAL else PLAIN)
    _by_directory.setdefault(os.fspath(directory), PLAIN)
