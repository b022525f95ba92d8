"""Literals of Python, as headers of .npy files are written in, read without Python's own parser.

That one recurses in C as deeply as the text says, which ends a thread with a small stack. Here
nothing recurses: the text is cut into tokens, and brackets that are open are kept in a list. Known
are strings, whole numbers from 0 on, True and False, tuples, lists and dictionaries of them, which
is what NumPy writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

#: Brackets within brackets: as many as Python's own parser takes.
MAX_DEPTH: Final = 200

_TOKEN: Final = re.compile(
    r"""[ \t\r\n\f]*+(?:
      (?P<string>'(?:[^'\\\n\r\0]|\\.)*+'|"(?:[^"\\\n\r\0]|\\.)*+")
    | (?P<number>(?:0|[1-9][0-9]{0,18})(?![0-9A-Za-z_.]))
    | (?P<word>True|False)(?![0-9A-Za-z_])
    | (?P<mark>[\[\](){},:])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)

_ESCAPE: Final = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([\\'\"nrtabfv])|(?s:.))"
)
_ESCAPED: Final = dict(zip("\\'\"nrtabfv", "\\'\"\n\r\t\a\b\f\v", strict=True))

_CLOSING: Final = {"(": ")", "[": "]", "{": "}"}


def read_literal(text: str) -> Any:
    """Return the value of a literal; raise ValueError for other text, and for deep nesting."""
    outermost = _Bracket("", "end")  # of one value, closed by the text's end
    open_brackets = [outermost]
    for kind, token in _split(text):
        bracket = open_brackets[-1]
        if token in _CLOSING and kind == "mark":
            if len(open_brackets) > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} brackets within one another")
            bracket.expect("value", token)
            open_brackets.append(_Bracket(token, _CLOSING[token]))
        elif token in (",", ":") and kind == "mark":
            bracket.separate(token)
        elif kind in ("mark", "end"):
            value = bracket.close(token or kind)
            open_brackets.pop()
            if open_brackets:
                open_brackets[-1].add(value, token)
        else:
            bracket.add(_value_of(kind, token), token)
    if len(outermost.items) != 1 or outermost.has_comma:
        raise ValueError("no literal, or more than one")
    return outermost.items[0]


class _Bracket:
    """A bracket that is open: what was read in it so far, and whether a value may come next."""

    def __init__(self, opening: str, closing: str) -> None:
        self.opening = opening
        self.closing = closing
        self.items: list[Any] = []
        self.keys: list[Any] = []  # of a dictionary, one more than items once a colon is read
        self.next = "value"
        self.has_comma = False  # behind the last value

    def expect(self, what: str, token: str) -> None:
        """Refuse the token that is read unless something of this kind may come next."""
        if self.next != what:
            raise ValueError(f"{token or 'the end'!r} is not expected here")

    def add(self, value: Any, token: str) -> None:
        """Take a value."""
        self.expect("value", token)
        self.items.append(value)
        self.next, self.has_comma = "separator", False

    def separate(self, mark: str) -> None:
        """Take a comma, or a colon, before which the last value was a key."""
        self.expect("separator", mark)
        is_key = self.opening == "{" and len(self.items) > len(self.keys)
        if is_key != (mark == ":"):
            raise ValueError(f"{mark!r} is not expected here")
        if is_key:
            if type(self.items[-1]) is not str:
                raise ValueError(f"a key is a string, not {self.items[-1]!r}")
            self.keys.append(self.items.pop())
        self.next, self.has_comma = "value", mark == ","

    def close(self, mark: str) -> Any:
        """Return what the bracket holds, where `mark` closes it."""
        is_complete = self.next == "separator" or self.has_comma or not self.items
        if mark != self.closing or not is_complete:
            raise ValueError(f"{mark!r} is not expected here")
        if self.opening == "{":
            return dict(zip(self.keys, self.items, strict=True))
        if self.opening == "[":
            return self.items
        is_bare = len(self.items) == 1 and not self.has_comma
        return self.items[0] if is_bare else tuple(self.items)


def _value_of(kind: str, token: str) -> Any:
    if kind == "string":
        return _unescape(token[1:-1])
    return int(token) if kind == "number" else token == "True"


def _split(text: str) -> Iterator[tuple[str, str]]:
    """Cut a text into tokens, each with its kind; the last one is its end."""
    at = 0
    while True:
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise ValueError(f"no literal from character {at} on")
        yield found.lastgroup, found[found.lastgroup]
        if found.lastgroup == "end":
            return
        at = found.end()


def _unescape(text: str) -> str:
    """Return what a string's text means; raise ValueError at an escape that `repr` has not."""
    return _ESCAPE.sub(_escaped, text) if "\\" in text else text


def _escaped(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3]
    if digits is not None:
        return chr(int(digits, 16))
    if found[4] is None:
        raise ValueError(f"{found[0]!r} is no escape")
    return _ESCAPED[found[4]]
