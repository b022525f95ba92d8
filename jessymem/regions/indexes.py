"""`NumberIndex`: which of a table's layers have something, in a few bytes for each.

Tables keep them beside what the budget counts; dictionaries of lists would be many times the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORD: Final = 2**64 - 1


class NumberIndex:
    """Numbers below 65,536 by a key that several may have.

    Parameters
    ----------
    keys : ndarray of integers, shape (n,)
    numbers : ndarray of uint16, shape (n,)
        Ascending for each key.
    """

    __slots__ = ("_keys", "_numbers")

    def __init__(self, keys: NDArray[Any], numbers: NDArray[np.uint16]) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._numbers = keys[order], numbers[order]

    def find(self, key: int) -> NDArray[np.uint16]:
        """Return the numbers that have a key, ascending."""
        wanted = self._keys.dtype.type(key)
        start, end = (int(self._keys.searchsorted(wanted, side)) for side in ("left", "right"))
        return self._numbers[start:end]

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        return self._keys.nbytes + self._numbers.nbytes


def index_of_words(words: Iterable[Iterable[str]]) -> NumberIndex:
    """Return at which positions words are, by `key_of` each."""
    from array import array

    keys, numbers = array("Q"), array("H")
    for number, several in enumerate(words):
        for word in several:
            keys.append(key_of(word))
            numbers.append(number)
    return NumberIndex(np.frombuffer(keys, np.uint64), np.frombuffer(numbers, np.uint16))


def key_of(word: str) -> int:
    """Return the key of a word: of this process alone, and hardly ever another word's."""
    return hash(word) & _WORD
