"""Text that others wrote, made safe to show: with nothing that is invisible, or turns the rest."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

_HIDDEN_CATEGORIES: Final = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))

#: Persian, Indic scripts and emoji need them; they move nothing.
_JOINERS: Final = "\u200c\u200d"


def visible(text: str, keep: str = "") -> str:
    r"""Write invisible characters as escapes such as ``\x1b``, but what is in `keep`."""
    return text if text.isprintable() else text.translate(_escapes(keep))


class _Escapes(dict[int, str | int]):
    """What stands for each character, by its number; made when it is first met."""

    def __missing__(self, code: int) -> str | int:
        character = chr(code)
        is_hidden = unicodedata.category(character) in _HIDDEN_CATEGORIES
        shown = character.encode("unicode_escape").decode("ascii") if is_hidden else code
        self[code] = shown
        return shown


@lru_cache
def _escapes(keep: str) -> _Escapes:
    return _Escapes({ord(character): ord(character) for character in keep + _JOINERS})


def fitting(text: str, n_columns: int) -> str:
    """Make a text visible, and cut it to so many columns of characters; wide ones take two."""
    shown = visible(text)
    n_taken = n_kept = 0
    for at, character in enumerate(shown):
        if n_taken < n_columns:
            n_kept = at  # up to here there is space for the ellipsis
        n_taken += _columns_of(character)
        if n_taken > n_columns:
            return shown[:n_kept] + "\u2026"
    return shown


def padded(text: str, n_columns: int) -> str:
    """Do as `fitting`, and fill what is left with spaces."""
    shown = fitting(text, n_columns)
    return shown + " " * (n_columns - sum(map(_columns_of, shown)))


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or character in _JOINERS:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
