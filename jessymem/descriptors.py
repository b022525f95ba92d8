"""Open files that are held by objects, so that an exception at any instant leaves none open."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, ClassVar


class Descriptor(int):
    """An open file, which is closed when nobody holds this any more.

    That end can be interrupted; so who has no more use for it closes it, and what is interrupted
    there is made up for by the end.
    """

    #: What closes it.
    _end: ClassVar[Any] = os.close

    def fileno(self) -> int:
        """Return the number; who asks may have to do with files of Python's."""
        return int(self)

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
        with suppress(OSError):
            self._close()

    def _close(self) -> object:
        if "closed" in self.__dict__ or self < 0:
            return None
        # One step for the interpreter: no interrupt finds it closed and not known to be.
        return next(map(self._end, map(self.__dict__.setdefault, ("closed",), (int(self),))))


def open_descriptor(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> Descriptor:
    """Open a file or a directory with `os.open`; raise OSError."""
    # One step for the interpreter: no interrupt finds a descriptor that nobody holds.
    return next(map(Descriptor, map(os.open, (path,), (flags,), (mode,))))
