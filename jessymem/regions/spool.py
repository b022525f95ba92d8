"""`Spool`: contents that wait on disk, not in memory, until the region file is written.

One file without a name, which nobody else sees and which is gone when the last content of it is,
also where the process is killed. What is short is put together first; as long as all of it is,
there is no file at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from jessymem import osmem
from jessymem.descriptors import Descriptor
from jessymem.errors import RegionIOError

#: So much waits in memory before it is written; what is as long by itself goes past that.
HELD_BYTES: Final = 2**23
#: So much is read at a time: of what is long, and of what is short, with what follows it.
_CHUNK_BYTES: Final = 2**22
_WINDOW_BYTES: Final = 2**16


class SpooledContent:
    """A content in a `Spool`: it has a length, and is read in chunks."""

    __slots__ = ("_n_bytes", "_spool", "_start")

    def __init__(self, spool: Spool, start: int, n_bytes: int) -> None:
        self._spool = spool
        self._start = start
        self._n_bytes = n_bytes

    def __len__(self) -> int:
        """Return how many bytes it is."""
        return self._n_bytes

    def chunks(self) -> Iterator[bytearray]:
        """Yield its bytes, each time anew; raise RegionIOError where they cannot be read."""
        end = self._start + self._n_bytes
        for start in range(self._start, end, _CHUNK_BYTES):
            yield self._spool.read(start, min(_CHUNK_BYTES, end - start))


class SpooledPieces:
    """The bytes of a file in pieces, as often as they are asked for; of long ones a part at a time.

    What is read here are bytearrays: of those little is gathered before it is written.
    """

    def __init__(self, pieces: Iterable[Any]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        """Yield what lends its bytes."""
        for piece in self._pieces:
            if isinstance(piece, SpooledContent):
                yield from piece.chunks()
            else:
                yield piece


class Spool:
    """Takes contents, one behind the other.

    Parameters
    ----------
    folder : pathlib.Path
        On whose disk they wait; it has to exist when the file is made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Descriptor | None = None
        self._n_written = 0
        self._held = bytearray()
        self._window, self._window_start = bytearray(), 0

    @property
    def folder(self) -> Path:
        """On whose disk they wait."""
        return self._folder

    @property
    def n_bytes(self) -> int:
        """How many bytes were taken."""
        return self._n_written + len(self._held)

    def append(self, content: memoryview | bytes) -> SpooledContent:
        """Take a copy of a content.

        Raises
        ------
        RegionIOError
            If it cannot be written. What was taken before is as it was.
        """
        start = self.n_bytes
        if len(content) >= HELD_BYTES:
            self._flush()
            self._write(memoryview(content))
        else:
            self._held += content
            if len(self._held) >= HELD_BYTES:
                self._flush()
        return SpooledContent(self, start, len(content))

    def append_parts(self, parts: Iterable[bytes]) -> SpooledContent:
        """Take a copy of a content that comes in parts; raises as `append`, and as they do."""
        start = self.n_bytes
        for part in parts:
            self.append(part)
        if start < self._n_written < self.n_bytes:  # one content is read from one place
            self._flush()
        return SpooledContent(self, start, self.n_bytes - start)

    def read(self, start: int, n_bytes: int) -> bytearray:
        """Return bytes that were taken by one `append`."""
        if start >= self._n_written:
            at = start - self._n_written
            return self._held[at : at + n_bytes]
        if n_bytes > _WINDOW_BYTES // 2:
            return self._read(start, n_bytes)
        at = start - self._window_start
        if at < 0 or at + n_bytes > len(self._window):
            self._window = self._read(start, min(_WINDOW_BYTES, self._n_written - start))
            self._window_start, at = start, 0
        return self._window[at : at + n_bytes]

    def _flush(self) -> None:
        held = self._held
        with memoryview(held) as view:
            self._write(view)
        self._held = bytearray()

    def _write(self, view: memoryview) -> None:
        try:
            if self._file is None:
                self._file = osmem.call(
                    "create", self._folder, partial(_open_unnamed, self._folder)
                )
            os.lseek(self._file, self._n_written, os.SEEK_SET)
            n_written = 0
            while n_written < len(view):
                part = view[n_written : n_written + 2**30]
                n_written += osmem.call("write", self._folder, partial(os.write, self._file, part))
        except OSError as error:
            raise RegionIOError.from_os_error(error, "spool contents in", self._folder) from error
        self._n_written += len(view)

    def _read(self, start: int, n_bytes: int) -> bytearray:
        found = bytearray(n_bytes)
        try:
            assert self._file is not None
            os.lseek(self._file, start, os.SEEK_SET)
            with memoryview(found) as view:
                n_read = 0
                while n_read < n_bytes:
                    read = partial(_read_into, self._file, view[n_read:])
                    step = osmem.call("read", self._folder, read)
                    if not step:
                        raise OSError("the file is shorter than what was written to it")
                    n_read += step
        except OSError as error:
            raise RegionIOError.from_os_error(error, "read spooled", self._folder) from error
        return found


def _read_into(file: int, view: memoryview) -> int:
    """Read into a buffer; return how many bytes."""
    if hasattr(os, "readv"):
        return os.readv(file, [view])
    part = os.read(file, len(view))
    view[: len(part)] = part
    return len(part)


def _open_unnamed(folder: Path) -> Descriptor:
    import tempfile

    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return Descriptor(os.dup(file.fileno()))
