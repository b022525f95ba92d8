"""Zstandard, as Python 3.14 has it and the extra ``zstd`` brings it to older ones.

One frame of RFC 8878 at a time: deflated from a content, and inflated in parts, so that no more
memory is taken than what the content is for.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from jessymem import extras
from jessymem.errors import ConfigError, shown
from jessymem.locks import is_imported, outside

#: So much is inflated at a time, and so much read.
PART_BYTES: Final = 2**20

DEFAULT_LEVEL: Final = 3
MAX_LEVEL: Final = 22

#: How far back a frame may refer, as a power of two: so much memory inflating takes beside the
#: content. The highest levels would take more by themselves.
WINDOW_LOG: Final = 23
_LAST_LEVEL_IN_WINDOW: Final = 19

_MODULE: Final = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


class Compression(NamedTuple):
    """How layers are to be written.

    Attributes
    ----------
    level : int or None
        Of Zstandard; None: all of them plain.
    """

    level: int | None = DEFAULT_LEVEL


def as_compression(value: Any, field: str = "compress") -> Compression | None:
    """Read ``"zstd"``, ``"zstd:<level>"``, ``"none"``; nothing stands for each layer as it is.

    Raises
    ------
    ConfigError
        If it is anything else, or the extra ``zstd`` is missing.
    """
    if value is None:
        return None
    codec, _, level = value.partition(":") if isinstance(value, str) else ("", "", "")
    if value == "none":
        return Compression(None)
    is_level = level.isascii() and level.isdigit() and 1 <= int(level[:3]) <= MAX_LEVEL
    if codec != "zstd" or not (value == "zstd" or is_level):
        raise ConfigError(
            f"{field} must be 'zstd', 'zstd:1' to 'zstd:{MAX_LEVEL}' or 'none', not {shown(value)}",
            field=field,
            value=value,
        )
    library(f"{field}={value!r}")
    return Compression(int(level) if level else DEFAULT_LEVEL)


class BadFrame(Exception):
    """Stored bytes are not the frame that they should be; the message says in what."""


def library(what: object) -> Any:
    """Return the library; where it is not, raise ConfigError that says `what` it is needed for."""
    if not is_imported(_MODULE):
        outside(partial(extras.load, _MODULE, "zstd", what))
        return extras.load(_MODULE, "zstd", what)
    return sys.modules[_MODULE]


def read_dictionary(raw: bytes, what: object) -> Any:
    """Return a dictionary as the library takes it.

    Raises
    ------
    BadFrame
        If the bytes make no dictionary.
    """
    zstd = library(what)
    try:
        return zstd.ZstdDict(raw)
    except (ValueError, zstd.ZstdError) as error:
        raise BadFrame(f"no dictionary: {error}") from None


class Deflater:
    """Makes contents frames, one after the other: each by itself would take a millisecond more.

    Parameters
    ----------
    level : int
    dictionary : object or None
        As `read_dictionary` returns it.
    what : object
        What it is needed for, for the message where the library is missing.
    """

    def __init__(self, level: int, dictionary: Any, what: object) -> None:
        zstd = library(what)
        parameter = zstd.CompressionParameter
        options = {parameter.compression_level: level}
        if level > _LAST_LEVEL_IN_WINDOW:
            options[parameter.window_log] = WINDOW_LOG
        self._compressor = zstd.ZstdCompressor(options=options, zstd_dict=dictionary)

    def deflate(self, content: Any) -> bytes:
        """Return a content as one frame that says how long it is."""
        self._compressor.set_pledged_input_size(len(content))
        frame: bytes = self._compressor.compress(content, self._compressor.FLUSH_FRAME)
        return frame


def inflate(
    stored: Iterator[bytes], n_bytes: int, dictionary: Any, what: object
) -> Iterator[bytes]:
    """Yield the content of a frame, in parts; it has to be of so many bytes.

    Parameters
    ----------
    stored : iterator of bytes
        The frame, in parts that nobody changes.

    Raises
    ------
    BadFrame
        If the frame says another length, ends early or goes on; or there is no frame.
    """
    zstd = library(what)
    limits = _limits(zstd)
    n_left = n_bytes
    try:
        given = next(stored, b"")
        told = zstd.get_frame_info(given).decompressed_size
        if told != n_bytes:
            raise BadFrame(f"a frame of {n_bytes:,} bytes, got one of {told}")
        inflater = zstd.ZstdDecompressor(dictionary, limits)
        while not inflater.eof:
            # One byte more than there may be: so that the end of the frame is seen.
            part = inflater.decompress(given, min(PART_BYTES, n_left + 1))
            n_left -= len(part)
            if n_left < 0:
                raise BadFrame(f"a frame of {n_bytes:,} bytes, got a longer one")
            if part:
                yield part
            given = next(stored, b"") if inflater.needs_input and not inflater.eof else b""
            if not (given or part or inflater.eof):
                raise BadFrame(f"a frame of {n_bytes:,} bytes, got one that ends early")
        if n_left or inflater.unused_data or next(stored, b""):
            raise BadFrame(f"one frame of {n_bytes:,} bytes, got another length")
    except (zstd.ZstdError, EOFError) as error:
        raise BadFrame(f"a frame of Zstandard: {error}") from None


@functools.cache
def _limits(zstd: Any) -> dict[Any, int]:
    """Return what a frame may ask for."""
    return {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}


def train(samples: Sequence[bytes], n_bytes: int, what: object) -> bytes:
    """Return a dictionary of at most so many bytes; empty where samples make none."""
    zstd = library(what)
    try:
        raw: bytes = zstd.train_dict(samples, n_bytes).dict_content
    except (ValueError, zstd.ZstdError):  # too few, or too much alike
        return b""
    return raw
