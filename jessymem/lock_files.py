"""Locks between writers: a file that is there, and locked, while somebody writes.

It is `flock` on POSIX systems, which other programs reach through `filelock`; on Windows it is
`filelock`. `jessymem.osmem` passes in how a system call is made.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from jessymem import forks
from jessymem.descriptors import Descriptor
from jessymem.named_tuples import NamedTuple
from jessymem.short_calls import PlainCalls, Status

if os.name != "nt":
    import fcntl

_POLL_SECONDS: Final = 0.01
#: Who waits no longer for what this thread itself holds just gets no lock.
_BRIEF_SECONDS: Final = 1.0
_N_OPENINGS: Final = 1_000  # others may make and remove the file in turns
_FLAGS: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)
_HELD: Final = (errno.EAGAIN, errno.EWOULDBLOCK)
#: These leave a lock file that may be another's by now.
_NOT_MINE: Final = (*_HELD, errno.ETIMEDOUT, errno.EDEADLK)


class Seam(NamedTuple):
    """How system calls are made: ``call(operation, path, do)``, raising what `do` raises.

    `attempt` does the same and returns whether that was done, if the work can go on without;
    `calls` are those of the lock file's directory.
    """

    call: Callable[[str, Path, Callable[[], Any]], Any]
    attempt: Callable[[str, Path, Callable[[], Any], Path], bool]
    calls: PlainCalls


class LockFile:
    """An open lock file.

    Its lock is of the open file, which a forked child shares. A child closes its own, or it would
    hold for as long as it lives what its parent held when it was killed; and it never ends the
    lock, which would be the parent's.

    Attributes
    ----------
    descriptor : Descriptor
    process : int
        Which opened it.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.process = os.getpid()
        forks.renew_in_forked_children(self)

    @property
    def is_mine(self) -> bool:
        """Whether this process opened it, and not the one that this is forked from."""
        return self.process == os.getpid()

    def after_fork(self) -> None:
        """Close it, in a child."""
        with suppress(OSError):
            self.descriptor.close()


class Lock:
    """A lock that is held for as long as this is, or until `file` is closed.

    Attributes
    ----------
    file : LockFile
    inode : (int, int)
        Which file that is: device and number.
    thread : (int, int)
        Whose it is: process and thread.
    """

    def __init__(self, file: LockFile, inode: tuple[int, int]) -> None:
        self.file = file
        self.inode = inode
        self.thread = (file.process, get_ident())

    def is_kept(self, path: Path, calls: PlainCalls) -> bool:
        """Tell whether it still keeps others out: once its file is gone, they make another."""
        return _inode_at(path, calls) == self.inode


#: What threads of this process hold, by the lock file's inode.
_held: Final[WeakValueDictionary[tuple[int, int], Lock]] = WeakValueDictionary()


@contextmanager
def hold(path: Path, timeout: float, seam: Seam) -> Iterator[Callable[[], bool]]:
    """Keep out every other thread and process that asks for the same lock.

    Its file is removed while it is held; who waits on the removed one notices and starts over. So
    nothing stays behind but after a kill, and what stays then, the next one takes over. Whoever may
    write to the directory may open the file.

    Parameters
    ----------
    path : pathlib.Path
        Of the lock file.
    timeout : float
        In seconds.
    seam : Seam

    Yields
    ------
    callable
        It tells whether others are still kept out: who removes the lock file lets them in.

    Raises
    ------
    OSError
        ETIMEDOUT if others hold it for longer, EDEADLK if this thread does and would wait for
        itself; or why there can be no lock.
    """
    if os.name == "nt":
        with _hold_by_filelock(path, timeout, seam):
            yield lambda: True  # there an open file cannot be removed
        return
    lock = _acquire_or_tell(path, timeout, seam)
    try:
        yield partial(lock.is_kept, path, seam.calls)
    finally:
        if lock.file.is_mine:  # in a child that was forked meanwhile it is the parent's
            _held.pop(lock.inode, None)  # the next file may have the same number
            _remove(path, lock.inode, seam.calls)
            _unlock(lock.file, seam.calls)


def _unlock(file: LockFile, calls: PlainCalls) -> None:
    """Close a lock file, and end its lock also for children that were forked meanwhile."""
    if file.is_mine:
        with suppress(OSError):
            calls.lock(file.descriptor, fcntl.LOCK_UN)
    file.descriptor.close()


def _acquire_or_tell(path: Path, timeout: float, seam: Seam) -> Lock:
    """Return the lock; the error that there is none names its file, which may be in the way."""
    try:
        return _acquire(path, timeout, seam)
    except OSError as error:
        number, reason = error.errno or 0, error.strerror or str(error)
    raise OSError(number, f"{reason}: {path.name}")


def _acquire(path: Path, timeout: float, seam: Seam) -> Lock:
    while True:
        file, inode, is_new = _open(path, seam)
        try:
            _wait_for(file, path, inode, timeout, seam)
            lock = Lock(file, inode)
            if lock.is_kept(path, seam.calls):  # not removed while this waited for it
                _held[inode] = lock
                return lock
        except BaseException as error:
            is_others = isinstance(error, OSError) and error.errno in _NOT_MINE
            if is_new and file.is_mine and not is_others:
                _remove(path, inode, seam.calls)
            _unlock(file, seam.calls)
            raise
        _unlock(file, seam.calls)


def _wait_for(
    file: LockFile, path: Path, inode: tuple[int, int], timeout: float, seam: Seam
) -> None:
    deadline = time.monotonic() + timeout
    take = partial(seam.calls.lock, file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    while True:
        try:
            seam.call("lock", path, take)
            return
        except OSError as error:
            if error.errno not in _HELD:
                raise
        holder = _held.get(inode) if timeout > _BRIEF_SECONDS else None
        if holder is not None and holder.thread == (os.getpid(), get_ident()):
            raise OSError(errno.EDEADLK, "this thread is writing there")
        if time.monotonic() >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, "others are writing there")
        if _inode_at(path, seam.calls) != inode:
            return  # it was removed: what is waited for there concerns nobody
        time.sleep(_POLL_SECONDS)


def _open(path: Path, seam: Seam) -> tuple[LockFile, tuple[int, int], bool]:
    """Open the lock file, which is made if need be; return which it is, and whether it is new."""
    for _ in range(_N_OPENINGS):
        is_new = True
        try:
            file = LockFile(seam.calls.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS))
        except FileExistsError:
            is_new = False
            try:
                file = LockFile(_open_existing(path, seam.calls))
            except FileNotFoundError:  # removed meanwhile
                continue
        try:
            found = seam.calls.fstat(file.descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "the lock is no regular file")
            inode = found.st_dev, found.st_ino
            if is_new:
                _share(path, file.descriptor, found, seam)
        except BaseException:
            file.descriptor.close()
            raise
        return file, inode, is_new
    raise TimeoutError(errno.ETIMEDOUT, "others are writing there")


def _open_existing(path: Path, calls: PlainCalls) -> Descriptor:
    try:
        return calls.open(path, os.O_RDWR | _FLAGS)
    except PermissionError:  # of a writer who let nobody write to it: locking takes less
        return calls.open(path, os.O_RDONLY | _FLAGS)


def _share(path: Path, file: Descriptor, found: Status | os.stat_result, seam: Seam) -> None:
    """Let everybody open a new lock file who may make one in its directory."""
    directory = seam.calls.stat(path.parent)
    wanted = 0
    if directory.st_mode & stat.S_IWGRP:
        wanted |= stat.S_IRGRP | stat.S_IWGRP
        if found.st_gid != directory.st_gid:
            change = partial(os.fchown, file, -1, directory.st_gid)
            seam.attempt("set owner", path, change, path.parent)
    if directory.st_mode & stat.S_IWOTH:
        wanted |= stat.S_IROTH | stat.S_IWOTH
    mode = stat.S_IMODE(found.st_mode)
    if wanted & ~mode:
        change = partial(seam.calls.set_mode, file, mode | wanted)
        seam.attempt("set mode", path, change, path.parent)


def _inode_at(path: Path, calls: PlainCalls) -> tuple[int, int] | None:
    """Return which file a path leads to; a network file system may have renamed the lock file."""
    try:
        found = calls.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _remove(path: Path, inode: tuple[int, int], calls: PlainCalls) -> None:
    """Remove a lock file, not the one that another has in its place."""
    with suppress(OSError):
        if _inode_at(path, calls) == inode:
            calls.remove(path)


@contextmanager
def _hold_by_filelock(path: Path, timeout: float, seam: Seam) -> Iterator[None]:
    from filelock import FileLock, Timeout

    if not path.parent.exists():  # it would make the directory
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    lock = FileLock(path, timeout=timeout, poll_interval=_POLL_SECONDS)
    try:
        seam.call("lock", path, lock.acquire)
    except Timeout:
        reason = f"others are writing there: {path.name}"
        raise TimeoutError(errno.ETIMEDOUT, reason) from None
    try:
        yield
    finally:
        lock.release()
