"""`RemoteFile`: one file of a store, by its URL; what it is, and ranges of its bytes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import xxhash

from jessymem.errors import RemoteError

T = TypeVar("T")

MISSING: Final = 'files behind URLs need fsspec: pip install "jessymem[remote]"'

#: How often a store is asked for the same thing, and how long it is left alone in between.
N_TRIES: Final = 5
FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 5.0

#: What stores call what changes with a file's bytes, the surest first. The first that is told
#: counts: a listing tells less than a question for the one file does.
_EDITION_FIELDS: Final = (
    ("ETag",),
    ("etag",),
    ("md5Hash",),
    ("Content-MD5",),
    ("content_md5",),
    ("Digest",),
    ("generation",),
    ("mtime", "ino"),
    ("LastModified",),
    ("last_modified",),
    ("Last-Modified",),
    ("updated",),
    ("modified",),
    ("mtime",),
    ("created",),
)

#: Asking again does not change these.
_FINAL: Final = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NotImplementedError,
    ImportError,
    TypeError,
    ValueError,
)

#: Statuses of HTTP that may be others a moment later.
_PASSING_STATUSES: Final = (408, 425, 429)


class RemoteFile(NamedTuple):
    """One file of a store as it was when the store was asked.

    Attributes
    ----------
    url : str
    n_bytes : int
    edition : str or None
        Changes with the file's bytes; None: the store tells nothing that does.
    modified_ns : int
        When it was modified, in ns since 1970-01-01 UTC, where the store says so; else a number
        that is the same for the same edition.
    options : tuple of (str, object)
        What the file system is made with.
    """

    url: str
    n_bytes: int
    edition: str | None
    modified_ns: int = 0
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, url: str, options: Mapping[str, Any] | None = None) -> RemoteFile:
        """Ask a store what a file is.

        Raises
        ------
        RemoteError
            If the store does not say, or there is no such file.
        ImportError
            If fsspec, or what it needs for the protocol, is missing.
        """
        system, path = open_file_system(url, options)

        def look() -> Mapping[str, Any]:
            system.invalidate_cache()
            found: Mapping[str, Any] = system.info(path)
            if found.get("type") == "directory":
                raise IsADirectoryError(f"{url} is a directory")
            return found

        return cls.from_info(url, ask(look, "look at", url), options)

    @classmethod
    def from_info(
        cls, url: str, info: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> RemoteFile:
        """Take what a store has said of a file.

        Raises
        ------
        RemoteError
            If it does not say how long the file is.
        """
        n_bytes = info.get("size")
        if not isinstance(n_bytes, int) or n_bytes < 0:
            raise RemoteError.of(
                "look at", url, ValueError(f"the store says a length of {n_bytes}")
            )
        told = next((each for each in _EDITION_FIELDS if all(info.get(name) for name in each)), ())
        said = " ".join(f"{name} {_plain(info[name])}" for name in told)
        edition = f"{said} size {n_bytes}" if said else None
        kept = tuple(sorted((options or {}).items()))
        return cls(url, n_bytes, edition, _modified_ns(info, edition or url), kept)

    def key(self) -> str:
        """Return a name for this edition of the file that no other one has."""
        options = "" if not self.options else repr(self.options)
        text = f"{self.url}\0{options}\0{self.edition}"
        return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogateescape"))

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, all of them.

        Raises
        ------
        RemoteError
            If they cannot be had, also when asked for again: URL, range and cause.
        """
        if not 0 <= start <= stop <= self.n_bytes:
            raise ValueError(
                f"bytes {start} to {stop} lie outside the {self.n_bytes} of {self.url}"
            )
        if start == stop:
            return b""
        system, path = open_file_system(self.url, dict(self.options))

        def fetch() -> bytes:
            found = bytes(system.cat_file(path, start=start, end=stop))
            if len(found) > stop - start:
                raise ValueError(f"the store answers with {len(found):,} bytes: it does no ranges")
            if len(found) < stop - start:
                raise EOFError(f"the store ends after {len(found):,} bytes")
            return found

        return ask(fetch, "read", self.url, start, stop)

    def check_same(self) -> None:
        """Ask again; raise RemoteError, naming both editions, if it is another file by now."""
        now = RemoteFile.of(self.url, dict(self.options))
        if (now.edition, now.n_bytes) != (self.edition, self.n_bytes):
            cause = ValueError(f"it was {self._edition_text}, and is {now._edition_text} by now")
            raise RemoteError.of("read", self.url, cause)

    @property
    def _edition_text(self) -> str:
        return self.edition or f"of {self.n_bytes:,} bytes"


def open_file_system(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and what it calls the file.

    Raises
    ------
    ImportError
        If fsspec, or what it needs for the protocol, is missing.
    ValueError
        If there is no such protocol.
    """
    try:
        import fsspec
    except ModuleNotFoundError as error:
        if error.name != "fsspec":
            raise
        raise ImportError(MISSING, name="fsspec") from None
    return fsspec.core.url_to_fs(url, **(options or {}))  # type: ignore[no-any-return]


def ask(
    question: Callable[[], T],
    operation: str,
    url: str,
    start: int | None = None,
    stop: int | None = None,
) -> T:
    """Return what a store answers; ask again where the trouble may pass.

    The waits grow, and differ between those who ask at once.

    Raises
    ------
    RemoteError
        If it is of no use to go on asking.
    ImportError
        If what the protocol needs is missing.
    """
    wait = FIRST_WAIT_SECONDS
    for n_tried in range(1, N_TRIES + 1):
        try:
            return question()
        except ImportError:
            raise
        except Exception as error:
            if n_tried == N_TRIES or _is_final(error):
                raise RemoteError.of(operation, url, error, start, stop, n_tried) from error
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)
    raise AssertionError("the last try returns or raises")


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING_STATUSES
    return isinstance(error, _FINAL)


def _plain(value: Any) -> Any:
    """Return what a store has said in the form in which its listings say it too."""
    return value.timestamp() if hasattr(value, "timestamp") else value


def _modified_ns(info: Mapping[str, Any], otherwise: str) -> int:
    for field in ("LastModified", "last_modified", "mtime", "created"):
        moment = _plain(info.get(field))
        if isinstance(moment, int | float) and moment > 0:
            return int(moment) * 1_000_000_000
    seconds = xxhash.xxh3_64_intdigest(otherwise.encode("utf-8", "surrogateescape")) >> 33
    return seconds * 1_000_000_000
