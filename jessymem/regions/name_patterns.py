"""`NamePattern`: a pattern of layers' names, as a shell takes it, tried on whole tables."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.regions.layout import Layout

#: Where a pattern stops being plain text. U+FFFD may stand for any byte that is no UTF-8.
_SPECIAL: Final = re.compile("[*?[\ufffd]")


class NamePattern:
    """A pattern: ``*`` any characters, ``?`` one, ``[abc]`` one of these; case matters.

    Parameters
    ----------
    text : str

    Attributes
    ----------
    text : str
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._match = re.compile(translate(text)).match
        first = _SPECIAL.search(text)
        plain, rest = (
            (text, "") if first is None else (text[: first.start()], text[first.start() :])
        )
        tail = rest.rpartition("*")[2] if "*" in rest else ""
        if _SPECIAL.search(tail) is not None or "]" in tail:
            tail = ""
        self._is_exact = first is None
        self._is_decided = first is None or rest == f"*{tail}"
        try:
            self._prefix, self._suffix = plain.encode(), tail.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which is in no name
            self._prefix = self._suffix = b""
            self._is_decided = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the text."""
        return NamePattern, (self.text,)

    def matches(self, name: str) -> bool:
        """Tell whether a name matches."""
        return self._match(name) is not None

    def matches_in(self, layout: Layout) -> NDArray[np.bool_]:
        """Tell of each row of a file whether the layer's name matches.

        What the pattern begins and ends with is compared byte by byte in all names at once; what is
        left, where that does not decide it, one name after the other.
        """
        rows, heap = layout.rows, layout.heap
        starts, sizes = rows["name_offset"].astype(np.int64), rows["name_size"].astype(np.int64)
        # Rows may be rewritten by others while they are mapped.
        is_inside = starts + sizes <= len(heap)
        n_literal = len(self._prefix) + len(self._suffix)
        fits = sizes == n_literal if self._is_exact else sizes >= n_literal
        left = np.flatnonzero(is_inside & fits)
        for at, byte in enumerate(self._prefix):
            left = left[heap[starts[left] + at] == byte]
        ends = starts + sizes
        for at, byte in enumerate(reversed(self._suffix), 1):
            left = left[heap[ends[left] - at] == byte]
        if not self._is_decided:
            raw, match = memoryview(heap), self._match
            left = np.array(
                [
                    row
                    for row, start, end in zip(
                        left.tolist(), starts[left].tolist(), ends[left].tolist(), strict=True
                    )
                    if match(str(raw[start:end], "utf-8", "replace")) is not None
                ],
                np.intp,
            )
        found = np.zeros(len(rows), bool)
        found[left] = True
        return found
