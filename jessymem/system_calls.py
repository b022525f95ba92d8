"""The table of system calls: which are vital, and which the work goes on without.

`jessymem.osmem` makes the calls and asks here what an answer means; docs/durability.md shows the
same table. Interrupted calls (EINTR) are made again and never get here.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from jessymem.logger import WARNING, logger
from jessymem.named_tuples import NamedTuple

#: What systems answer that have no such call, or not for this file system.
_LACKING: Final = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
#: What they answer who have it, but not for this user or this file.
_FORBIDDEN: Final = (errno.EPERM, errno.EACCES)
_NOT_FITTING: Final = (errno.ENODATA, errno.E2BIG, errno.ERANGE)


class SystemCall(NamedTuple):
    """One operation at the seam.

    Attributes
    ----------
    purpose : str
        What is asked of the system.
    without : str
        How the work goes on where that is refused; empty: it does not, the call is vital.
    optional : tuple of int
        The errors that it goes on after, with one warning a directory; every other is vital.
    is_hint : bool
        It goes on whatever the system answers, and nothing is said.
    """

    purpose: str
    without: str = ""
    optional: tuple[int, ...] = ()
    is_hint: bool = False


#: By operation, as `osmem.intercept` is told it.
CALLS: Final = {
    "open": SystemCall("open a file"),
    "stat": SystemCall("look which file it is"),
    "read": SystemCall("read a file"),
    "list": SystemCall("list a directory"),
    "map": SystemCall(
        "map a file, shared",
        "it is mapped privately, read-only all the same",
        (*_LACKING, errno.ENODEV),
    ),
    "map unshared": SystemCall(
        "map a file, privately",
        'it is read into private memory, as with `load_mode="copy"`',
        (*_LACKING, errno.ENODEV),
    ),
    "lease": SystemCall(
        "lease a file, so that who is about to change it waits",
        'it is read into private memory, as with `load_mode="copy"`',
        (*_LACKING, *_FORBIDDEN, errno.EAGAIN, errno.ENOLCK),
    ),
    "map private": SystemCall("get memory"),
    "map huge": SystemCall(
        "get memory in huge pages that the system has set aside",
        "smaller ones are asked for",
        is_hint=True,
    ),
    "advise huge": SystemCall(
        "have huge pages where the system can make them", "pages are small", is_hint=True
    ),
    "place memory": SystemCall(
        "say on which nodes memory is to be", "the system places it as it likes", is_hint=True
    ),
    "advise": SystemCall(
        "tell how pages will be read", "the system does as it likes", is_hint=True
    ),
    "return pages": SystemCall(
        "return pages to the system", "they stay counted as retained", is_hint=True
    ),
    "make directory": SystemCall("make a directory"),
    "lock": SystemCall("lock the lock file"),
    "create": SystemCall("create the temporary file"),
    "set owner": SystemCall(
        "keep a file's owner and group",
        "the file is the writer's; a group that could not be kept has no more rights than others",
        (*_LACKING, *_FORBIDDEN),
    ),
    "set attribute": SystemCall(
        "keep an extended attribute, an access list among them",
        "the file does not have it",
        (*_LACKING, *_FORBIDDEN, *_NOT_FITTING),
    ),
    "set mode": SystemCall(
        "keep a file's mode",
        "the file has the mode that the user's mask leaves",
        (*_LACKING, *_FORBIDDEN),
    ),
    "write": SystemCall("write"),
    "sync": SystemCall("sync the file"),
    "rename": SystemCall("give the file its name"),
    "rename alone": SystemCall(
        "give a file its name only where no other has it",
        "what has the name is replaced: only the lock keeps two writers apart",
        (*_LACKING, errno.EPERM),
    ),
    "sync directory": SystemCall(
        "sync a directory",
        "the name may not outlive a power failure",
        _LACKING,
    ),
    "remove": SystemCall(
        "remove a file that is left over", "the next load or write does it", is_hint=True
    ),
}

_told: Final[set[tuple[str, Path]]] = set()


def is_optional(operation: str, error: OSError) -> bool:
    """Tell whether the work goes on without an operation that failed so."""
    return error.errno in CALLS[operation].optional


def tell(operation: str, directory: Path, error: OSError) -> None:
    """Record, as a warning, what the work goes on without; once for each directory."""
    if (operation, directory) in _told or not logger.isEnabledFor(WARNING):
        return
    _told.add((operation, directory))
    call = CALLS[operation]
    logger.warning(
        "in %s the system does not %s (%s): %s",
        directory,
        call.purpose,
        error.strerror or error,
        call.without,
        extra={
            "event": "step_skipped",
            "operation": operation,
            "path": str(directory),
            "errno": error.errno,
        },
    )
