"""Open files that are held by objects, so that an exception at any instant leaves none open."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Final
from weakref import ref

#: What systems answer where this process, or all together, have too many files open.
OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class Descriptor(int):
    """An open file, which is closed when nobody holds this any more.

    Who has no more use for it closes it. What is interrupted there, or at its end, is made up for
    by the end of its `_Token`, of which nothing in Python hears.
    """

    #: What closes it.
    _end: ClassVar[Any] = os.close

    def fileno(self) -> int:
        """Return the number; who asks may have to do with files of Python's."""
        return int(self)

    def secured(self) -> Descriptor:
        """Return itself, to be closed whatever is interrupted from here on."""
        self._token = token = _Token()
        # `next` takes the reference for a default.
        closing = ref(token, partial(next, self._closer()))
        # One step for the interpreter, as in `jessymem.locks`.
        keys = map(ref, (token,), (_closing.pop,))
        deque(map(_closing.__setitem__, keys, (closing,)), 0)
        return self

    def __enter__(self) -> Descriptor:
        """Return itself: it is open."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close it, once; raise OSError where the system could not keep what was written."""
        self._close()

    def __del__(self) -> None:
        try:  # `suppress` may be gone when the interpreter ends
            self._close()
        except OSError:
            pass

    def _close(self) -> object:
        return None if self < 0 else next(self._closer(), None)

    def _closer(self) -> Iterator[Any]:
        """Return what closes it when it is asked for its first item, and never again."""
        closes: Iterator[Any] = map(self._end, (int(self),))
        closes = self.__dict__.setdefault("_closes", closes)
        return closes


class _Token:
    """A part of a descriptor, which ends with it."""

    __slots__ = ("__weakref__",)


#: What closes them, kept until both references are told of a token's end.
_closing: Final[dict[ref[_Token], ref[_Token]]] = {}


def are_spare(n_wanted: int) -> bool:
    """Tell whether so many more files could be opened now; if in doubt, yes."""
    held: list[Descriptor] = []
    try:
        held.append(open_descriptor(os.sep, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
        while len(held) < n_wanted:
            held.append(next(map(Descriptor, map(os.dup, (held[0],)))))
    except OSError as error:
        return error.errno not in OUT_OF_DESCRIPTORS
    finally:
        for each in held:
            each.close()
    return True


def limit() -> int:
    """Return how many files this process may have open; 0: nobody knows."""
    try:
        return max(os.sysconf("SC_OPEN_MAX"), 0)
    except (AttributeError, OSError, ValueError):
        return 0


def open_descriptor(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> Descriptor:
    """Open a file or a directory with `os.open`; raise OSError."""
    # One step for the interpreter: no interrupt finds a descriptor that nobody holds.
    return next(map(Descriptor, map(os.open, (path,), (flags,), (mode,)))).secured()
