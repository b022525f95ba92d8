"""What a file that replaces another takes over from it: owner, group, attributes and mode."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from jessymem.descriptors import Descriptor
from jessymem.short_calls import PlainCalls

ACCESS_LIST: Final = "system.posix_acl_access"
#: Others are the system's own, and some of those vouch for the bytes of the file that is replaced.
_KEPT: Final = ("user.", "trusted.", "security.selinux", ACCESS_LIST)
_NONE_THERE: Final = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES)
_RIGHTS: Final = 0o777

Attempt = Callable[[str, Path, Callable[[], Any], Path], bool]


def keep(source: Path, file: Descriptor, attempt: Attempt, calls: PlainCalls) -> None:
    """Give a new file what `source` has, if that is there, as far as it is allowed.

    Nobody gets rights by it that he did not have: a group that cannot be kept leaves the file's own
    group no more than everybody has.

    Parameters
    ----------
    source : pathlib.Path
    file : Descriptor
        Open for writing.
    attempt : callable
        ``attempt(operation, path, do, directory)`` makes a system call; returns whether it
        was done, if the work can go on without.
    calls : PlainCalls
        How those are made that wait for nothing.

    Raises
    ------
    OSError
        What is not optional.
    """
    if not hasattr(os, "fchmod"):
        return
    try:
        old = calls.stat(source)
    except FileNotFoundError:
        return
    directory, n_tried = source.parent, 0

    def try_to(operation: str, do: Callable[[], Any]) -> bool:
        nonlocal n_tried
        n_tried += 1
        return attempt(operation, source, do, directory)

    new = calls.fstat(file)
    mode = stat.S_IMODE(old.st_mode)
    has_group = old.st_gid == new.st_gid
    if old.st_uid != new.st_uid:
        change = partial(os.fchown, file, old.st_uid, old.st_gid)
        if try_to("set owner", change):
            has_group = True
        else:
            mode &= _RIGHTS
    if not has_group:
        change = partial(os.fchown, file, -1, old.st_gid)
        has_group = try_to("set owner", change)
    if not _keep_attributes(source, file, try_to, calls, has_group):
        has_group = False  # the mode of a file with an access list has what any of it allows
    if not has_group:
        mode = mode & 0o707 | (mode & 0o007) << 3
    # What was changed may have changed the mode.
    if stat.S_IMODE((calls.fstat(file) if n_tried else new).st_mode) != mode:
        try_to("set mode", partial(calls.set_mode, file, mode))


def _keep_attributes(
    source: Path,
    file: Descriptor,
    try_to: Callable[[str, Callable[[], Any]], bool],
    calls: PlainCalls,
    has_group: bool,
) -> bool:
    """Copy extended attributes; return whether the access list is the same.

    One that the directory gave the new file goes, where the old one had none.
    """
    wanted = _names_of(source, calls)
    is_same = has_group or ACCESS_LIST not in wanted
    if not has_group:
        wanted.discard(ACCESS_LIST)
    if ACCESS_LIST in _names_of(file, calls) - wanted:
        remove = partial(os.removexattr, file, ACCESS_LIST)
        is_same &= try_to("set attribute", remove)
    for name in sorted(wanted):
        is_kept = try_to("set attribute", partial(_copy, source, file, name))
        is_same &= is_kept or name != ACCESS_LIST
    return is_same


def _copy(source: Path, descriptor: int, name: str) -> None:
    os.setxattr(descriptor, name, os.getxattr(source, name))


def _names_of(file: Path | int, calls: PlainCalls) -> set[str]:
    """Return which attributes a file has that a new one is to have."""
    try:
        names = calls.list_attributes(file)
    except OSError as error:
        if error.errno not in _NONE_THERE:
            raise
        return set()
    return {name for name in names if name.startswith(_KEPT)}
