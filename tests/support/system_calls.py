"""System calls, seen one by one as the package makes them: recorded, refused or made to fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jessymem import osmem, short_calls
from support.internals import set_write_chunk_bytes, write_chunk_bytes

Intercept = Callable[..., None]
#: From so many bytes on a piece is written by a call of its own: small files take several.
WRITE_CHUNK_BYTES = 4096
each_fault = pytest.mark.parametrize(
    ("number", "for_good"),
    [
        (errno.EIO, False),
        (errno.EACCES, False),  # which also means that a file cannot be replaced
        (errno.ENOSPC, True),
        *(
            pytest.param(number, for_good, marks=pytest.mark.slow)
            for number, for_good in [
                (errno.ENOSPC, False),
                (errno.EMFILE, False),
                (errno.ENOMEM, False),
                (errno.EMFILE, True),
                (errno.EACCES, True),
            ]
        ),
    ],
    ids=lambda value: errno.errorcode[value] if value > 1 else ("once", "for good")[value],
)


@contextmanager
def intercepted(*intercepts: Intercept | None) -> Iterator[None]:
    """Let each of `intercepts` see every system call, in this order, until one of them raises."""
    before = osmem.intercept

    def intercept(operation: str, path: str, *details: Any) -> None:
        for one in (*intercepts, before):
            if one is not None:
                one(operation, path, *details)

    osmem.intercept = intercept
    try:
        yield
    finally:
        osmem.intercept = before


@contextmanager
def writing_in_chunks() -> Iterator[None]:
    before = write_chunk_bytes()
    set_write_chunk_bytes(WRITE_CHUNK_BYTES)
    try:
        yield
    finally:
        set_write_chunk_bytes(before)


def make_calls_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call be made as Python makes it: what is put in the place of `os.` is called."""
    monkeypatch.setattr(osmem, "calls_in", lambda directory: short_calls.PLAIN)


class Calls:
    """Records each system call, and fails the one that it is told to.

    Hints, whose failure is no error, are let through unless they are asked for.
    """

    def __init__(
        self, fail_at: int | None = None, number: int = errno.EIO, *, hints: bool = False
    ) -> None:
        self.made: list[tuple[str, str]] = []
        self.fail_at = fail_at
        self.number = number
        self.hints = hints

    def __call__(self, operation: str, path: str, *details: object) -> None:
        if operation == "advise" and not self.hints:
            return
        self.made.append((operation, path))
        if len(self.made) - 1 == self.fail_at:
            raise OSError(self.number, os.strerror(self.number))

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.made]


class Failing:
    """Fails one system call, or all from that one on."""

    def __init__(self, n_calls: int, number: int, for_good: bool) -> None:
        self.n_calls = n_calls
        self.number = number
        self.for_good = for_good
        self.made: list[str] = []
        self.failed: list[str] = []

    def __call__(self, operation: str, path: str, *details: Any) -> None:
        self.made.append(operation)
        n_made = len(self.made) - 1
        if n_made == self.n_calls or (self.for_good and n_made > self.n_calls):
            self.failed.append(operation)
            raise OSError(self.number, os.strerror(self.number))


def refuse_to_replace(operation: str, path: str, *details: Any) -> None:
    """Refuse what Windows refuses while a file is mapped."""
    if operation == "rename" and os.path.basename(path) == "region.mmap":
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def refuse_to_remove(operation: str, path: str, *details: Any) -> None:
    if operation == "remove":
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def refuse_to_sync_directories(operation: str, path: str, *details: Any) -> None:
    if operation == "sync directory":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
