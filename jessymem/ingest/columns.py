"""`Columns`: which column of a table is content, name and keywords; and what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

_CONTENTS: Final = ("text", "content", "body")
_NAMES: Final = ("name", "title", "id")
_KEYWORDS: Final = ("keywords", "tags")


class Columns(NamedTuple):
    """The columns that somebody has named; None: what is there decides.

    Parameters
    ----------
    content : str or None
        By default text, content or body, the first of these; or the only column.
    name : str or None
        By default name, title or id, if there is one.
    keywords : str or None
        By default keywords or tags, if there is one.
    """

    content: str | None = None
    name: str | None = None
    keywords: str | None = None

    def among(self, found: Sequence[str]) -> Columns:
        """Return the columns that a table has; `content` is one of them.

        Raises
        ------
        ValueError
            If one that was named is not there, or it cannot be told which is the content.
        """
        listed = ", ".join(found) or "none"
        for role, name in self._asdict().items():
            if name is not None and name not in found:
                raise ValueError(f"no column {name!r} for the {role}; there are: {listed}")
        content = self.content or _first(_CONTENTS, found)
        if content is None and len(found) == 1:
            content = found[0]
        if content is None:
            raise ValueError(f"which column is the content? --column names it; there are: {listed}")
        others = [name for name in found if name != content]
        name = self.name or _first(_NAMES, others)
        return Columns(content, name, self.keywords or _first(_KEYWORDS, others))

    def describe(self, row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the name and the keywords of a row."""
        name = "" if self.name is None else _as_name(row.get(self.name))
        keywords = () if self.keywords is None else _as_keywords(row.get(self.keywords))
        return name, keywords


def as_text(value: Any) -> str:
    """Return a value as text: a string as it is, nothing as none, anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _first(wanted: Sequence[str], found: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in found), None)


def _as_name(value: Any) -> str:
    return "" if value is None else str(value)


def _as_keywords(value: Any) -> tuple[str, ...]:
    """Return several, or those that commas separate."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    elif not isinstance(value, list | tuple):
        value = [value]
    return tuple(str(each) for each in value if each not in (None, ""))
