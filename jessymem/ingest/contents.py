"""What a file holds: text where it is valid UTF-8, an array where it is a `.npy` file, or bytes."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Final

from jessymem import osmem
from jessymem.errors import RegionIOError
from jessymem.ids import LayerId
from jessymem.ingest.npy import parse_npy, read_npy
from jessymem.kernels.schema import ENCODING_TEXT, MAX_CONTENT_BYTES
from jessymem.regions.drafts import EncodedContent, as_content

#: What is decoded at a time, to find out whether a file is text.
_PIECE_BYTES: Final = 2**18


def read_content(path: Path, layer_id: LayerId) -> EncodedContent:
    """Read a file once, into memory of its own: text where it is valid UTF-8, otherwise bytes.

    Raises
    ------
    RegionIOError
        If it cannot be read or is not a regular file.
    ValueError
        If it is longer than the format allows.
    """
    return encode(_read(path), layer_id, None)


def read_as(path: Path, layer_id: LayerId, encoding: str | None) -> EncodedContent:
    """Read a file as what it is said to be; None: as text where it is UTF-8, otherwise bytes.

    Raises
    ------
    RegionIOError, ValueError, TypeError
        As `read_content` and `read_npy`; or if it is not what it is said to be.
    """
    if encoding == "npy":
        return read_npy(path, layer_id)
    return encode(_read(path), layer_id, encoding)


def check_file(path: Path, n_bytes: int, layer_id: LayerId, encoding: str | None) -> EncodedContent:
    """Return a file's content without its bytes, looking at no more than a header.

    Raises
    ------
    RegionIOError, ValueError, TypeError
        As `read_as`, as far as it can be told.
    """
    if encoding == "npy":
        return read_npy(path, layer_id, osmem.map_file)._replace(data=b"")
    check_length(n_bytes)
    return as_content(b"", layer_id, is_copied=False)


def check_length(n_bytes: int) -> None:
    """Raise ValueError where a content is longer than the format allows."""
    if n_bytes > MAX_CONTENT_BYTES:
        raise ValueError(f"{n_bytes:,} bytes; at most {MAX_CONTENT_BYTES:,}")


def encode(view: memoryview | bytes, layer_id: LayerId, encoding: str | None) -> EncodedContent:
    """Take bytes as what they are said to be; None: as text where they are UTF-8.

    Raises
    ------
    ValueError, TypeError
        If they are not what they are said to be, or too many.
    """
    view = memoryview(view)
    if encoding == "npy":
        return parse_npy(view, layer_id)
    encoded = as_content(view, layer_id, is_copied=False)
    if encoding == "bytes" or not (encoding == "text" or is_text(view)):
        return encoded
    if encoding == "text" and not is_text(view):
        raise ValueError("said to be text, and no UTF-8")
    return encoded._replace(encoding=ENCODING_TEXT)


def is_text(content: memoryview) -> bool:
    """Tell whether bytes are valid UTF-8, decoding no more than a piece of them at a time."""
    at = 0
    while at < len(content):
        piece = content[at : at + _PIECE_BYTES]
        is_last = at + len(piece) == len(content)
        try:
            _, n_decoded = codecs.utf_8_decode(piece, "strict", is_last)
        except UnicodeDecodeError:
            return False
        at += n_decoded
    return True


def _read(path: Path) -> memoryview:
    try:
        return memoryview(osmem.read_file(path).data)
    except OSError as error:
        raise RegionIOError.from_os_error(error, "read", path) from error
