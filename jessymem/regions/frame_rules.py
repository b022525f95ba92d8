"""What must hold of the frames of compressed layers, checked before any of them is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jessymem.kernels import schema as s
from jessymem.regions import faults
from jessymem.regions.faults import Source
from jessymem.regions.owners import is_compressed

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Parts(NamedTuple):
    """What a layout says of compressed layers.

    Attributes
    ----------
    rows : ndarray of LAYER, shape (n,)
    frames : ndarray of FRAME
    offset : int
        Where they are in the file.
    has_dictionary : bool
    total_size : int
        Of the file.
    """

    rows: NDArray[Any]
    frames: NDArray[Any]
    offset: int
    has_dictionary: bool
    total_size: int


def stored_rows(parts: Parts, source: Source) -> NDArray[np.void]:
    """Check a region's frames; return a copy of its rows that lead to what is stored.

    Raises
    ------
    RegionFormatError
        At the first frame that breaks a rule.
    """
    rows, frames = parts.rows.copy(), parts.frames
    at = np.flatnonzero(is_compressed(rows))
    for field, wrong, expected in _rules(parts, rows, at):
        if wrong.any():
            which = int(wrong.argmax())
            place = parts.offset + which * s.FRAME.itemsize
            offset = place + int(s.FRAME.fields[field][1])  # type: ignore[index]
            got = frames[which][field].item()
            raise faults.broken(source, f"frame {which} {field}", offset, expected, got)
    rows["content_offset"][at] = frames["stored_offset"]
    rows["content_end"][at] = frames["stored_offset"] + frames["stored_size"]
    return rows


def _rules(
    parts: Parts, rows: NDArray[Any], at: NDArray[np.intp]
) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
    """Yield (field, where it is wrong, what is expected); each relies on those before it."""
    frames = parts.frames
    numbers = rows["layer_num"][at]
    unlike = np.ones(len(frames), bool)
    n_both = min(len(frames), len(numbers))
    unlike[:n_both] = frames["layer_num"][:n_both] != numbers[:n_both]
    if len(numbers) > len(frames) and not unlike.any():
        unlike[-1] = True
    yield "layer_num", unlike, "one frame for each compressed layer, in their order"
    codecs = np.array(list(s.CODECS), np.uint8)
    yield "codec", ~np.isin(frames["codec"], codecs), "1: zstd"
    most = int(parts.has_dictionary)
    yield "uses_dictionary", frames["uses_dictionary"] > most, f"<= {most}"
    total = parts.total_size
    yield "stored_offset", frames["stored_offset"] > total, f"<= {total}, the file's length"
    ends = rows["content_end"][at]
    lengths = ends - np.uint64(s.COMPRESSED_AT)
    wrong = (ends <= s.COMPRESSED_AT) | (lengths > s.MAX_CONTENT_BYTES)
    wrong |= lengths > frames["stored_size"].astype(np.uint64) * np.uint64(s.MAX_EXPANSION)
    yield "stored_size", wrong, f"1 to {s.MAX_EXPANSION:,} bytes of content for each byte"
