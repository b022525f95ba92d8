"""Words: whether finds begin and end where words do.

A word consists of ASCII letters, digits and underscores, and of whatever other characters in UTF-8
are letters or digits; what is no UTF-8 is in no word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jessymem.kernels import memory
from jessymem.scanning.spans import Spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IN_NO_WORD: Final = 0
_IN_A_WORD: Final = 1
_PART_OF_MANY: Final = 2  # bytes, and only together they are a character

_MAX_CHARACTER_BYTES: Final = 4


def _kinds() -> NDArray[np.uint8]:
    kinds = np.full(256, _PART_OF_MANY, np.uint8)
    kinds[:128] = [chr(i).isalnum() or i == ord("_") for i in range(128)]
    return kinds


_KINDS: Final = _kinds()
_KIND_OF: Final = _KINDS.tolist()


def are_words(spans: Spans, hits: NDArray[Any], n_bytes: int) -> NDArray[np.bool_]:
    """Tell of each find of so many bytes whether it begins and ends where words do."""
    at = spans.rows["layer"].searchsorted(hits["layer"])
    rows = spans.rows[at]
    starts, ends = rows["address"] + hits["offset"], rows["address"] + hits["offset"] + n_bytes
    is_first, is_last = hits["offset"] == 0, hits["offset"] + n_bytes == rows["n_bytes"]
    first = int(starts.min()) - 1
    bytes_there = memory.array_at(None, first, int(ends.max()) + 1 - first, np.uint8)
    before = _KINDS[bytes_there[starts - ~is_first - first]]
    after = _KINDS[bytes_there[ends - is_last - first]]
    before[is_first] = after[is_last] = _IN_NO_WORD
    found: NDArray[np.bool_] = (before != _IN_A_WORD) & (after != _IN_A_WORD)
    doubtful = found & ((before == _PART_OF_MANY) | (after == _PART_OF_MANY))
    for i in np.flatnonzero(doubtful).tolist():
        start = int(hits["offset"][i])
        found[i] = is_word(spans.view(int(at[i])), start, start + n_bytes)
    return found


def is_word(content: memoryview, start: int, end: int) -> bool:
    """Tell whether a piece of some content begins and ends where words do."""
    before = bytes(content[max(start - _MAX_CHARACTER_BYTES, 0) : start])
    after = bytes(content[end : end + _MAX_CHARACTER_BYTES])
    return not (_ends_in_word(before) or _begins_in_word(after))


def _begins_in_word(piece: bytes) -> bool:
    kind = _KIND_OF[piece[0]] if piece else _IN_NO_WORD
    if kind != _PART_OF_MANY:
        return bool(kind == _IN_A_WORD)
    n_bytes = 2 if piece[0] < 0xE0 else 3 if piece[0] < 0xF0 else 4
    return _is_letter(piece[:n_bytes])


def _ends_in_word(piece: bytes) -> bool:
    kind = _KIND_OF[piece[-1]] if piece else _IN_NO_WORD
    if kind != _PART_OF_MANY:
        return bool(kind == _IN_A_WORD)
    at = len(piece) - 1
    while at > 0 and piece[at] & 0xC0 == 0x80:
        at -= 1
    return _is_letter(piece[at:])


def _is_letter(encoded: bytes) -> bool:
    try:
        return encoded.decode().isalnum()
    except UnicodeDecodeError:
        return False
