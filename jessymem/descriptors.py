"""Open files that are held by objects, so that an exception at any instant leaves none open."""

from __future__ import annotations

import os
from _io import FileIO
from contextlib import suppress


class Descriptor(int):
    """An open descriptor that is closed when nobody holds this any more."""

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self)


class File(FileIO):
    """An open file that is closed, without a warning, when nobody holds it any more."""

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> File:
    """Open a file with `os.open`; raise OSError, also where it is a directory."""
    # One step for the interpreter: no interrupt finds a descriptor that nobody holds.
    return next(map(File, map(os.open, (path,), (flags,), (mode,))))


def open_descriptor(path: str | os.PathLike[str], flags: int) -> Descriptor:
    """Open what may be a directory with `os.open`; raise OSError."""
    return next(map(Descriptor, map(os.open, (path,), (flags,))))
