"""`Html`: pieces of a page, which only functions of this module make out of text.

Text from files and callers is escaped here, and nowhere else: what is invisible is written as an
escape, the rest stands in a `bdi` of its own, and what is long is cut, with more of it as a
tooltip.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, NewType

from jessymem.errors import shown
from jessymem.notebooks.style import STYLE
from jessymem.visible_text import visible

#: Text that is markup already.
Html = NewType("Html", str)

NOTHING: Final = Html("")

#: How many characters of a text are shown, and how many as its tooltip.
N_SHOWN: Final = 48
N_TOOLTIP: Final = 1_000

#: How many rows of a table are shown, and how many ids of a list.
N_ROWS: Final = 25
N_IDS: Final = 60


class Column(NamedTuple):
    """One column of a table."""

    name: str
    is_number: bool = False


def escape(text: str) -> Html:
    """Make text markup: invisible characters as escapes, the special ones as entities."""
    return Html(html.escape(visible(text), quote=True))


def cut(text: str, n_chars: int = N_SHOWN) -> str:
    """Shorten a text to `n_chars`, the last one an ellipsis."""
    return text if len(text) <= n_chars else text[: n_chars - 1] + "\u2026"


def foreign(text: str, n_chars: int = N_SHOWN) -> Html:
    """Show a text that somebody else wrote."""
    if len(text) <= n_chars:
        return Html(f"<bdi>{escape(text)}</bdi>")
    whole = cut(text, N_TOOLTIP)
    return Html(f'<bdi title="{escape(whole)}">{escape(cut(text, n_chars))}</bdi>')


def begin_of(text: str) -> Html:
    """Show how a text begins, with its lines."""
    return Html(f'<pre dir="auto">{html.escape(visible(text, keep=chr(10) + chr(9)))}</pre>')


def joined(pieces: Iterable[Html]) -> Html:
    """Return pieces one after the other."""
    return Html("".join(pieces))


def span(style: str, content: Html) -> Html:
    """Return a piece in a style of `STYLE`."""
    return Html(f'<span class="{style}">{content}</span>')


def note(text: str) -> Html:
    """Return a remark."""
    return Html(f'<p class="jm-note">{escape(text)}</p>')


def heading(kind: str, name: Html, about: str) -> Html:
    """Say what an object is, and in a few words how much."""
    kind_and_name = span("jm-kind", escape(kind)) + (f" {name}" if name else "")
    return Html(f'<div class="jm-head">{kind_and_name} {span("jm-about", escape(about))}</div>')


def section(title: str, about: str, content: Html, *, is_open: bool = False) -> Html:
    """Return what can be folded away, under a title that says how much it is."""
    opened = " open" if is_open else ""
    summary = f"{escape(title)} {span('jm-about', escape(about))}"
    return Html(f"<details{opened}><summary>{summary}</summary>{content}</details>")


def facts(pairs: Iterable[tuple[str, Html]]) -> Html:
    """Return names and values."""
    lines = (f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in pairs)
    return Html(f'<dl class="jm-facts">{"".join(lines)}</dl>')


def table(columns: Sequence[Column], rows: Iterable[Sequence[Html]]) -> Html:
    """Return a table; wide ones are scrolled in their own frame."""
    head = "".join(
        f'<th scope="col"{_number(column)}>{escape(column.name)}</th>' for column in columns
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_number(column)}>{cell}</td>" for column, cell in zip(columns, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    rows_of_cells = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return scrolled(Html(f"<table>{rows_of_cells}</table>"))


def scrolled(content: Html) -> Html:
    """Return what is scrolled in its own frame where it is wide, from the keyboard too."""
    return Html(f'<div class="jm-scroll" tabindex="0">{content}</div>')


def _number(column: Column) -> str:
    return ' class="jm-n"' if column.is_number else ""


def more(n_all: int, n_shown: int, noun: str) -> Html:
    """Say how many are not shown; nothing where all are."""
    n_left = n_all - n_shown
    return note(f"and {n_left:,} more {noun}") if n_left > 0 else NOTHING


def listed(items: Iterable[object], n_all: int, noun: str, n_shown: int = N_IDS) -> Html:
    """Show the first items of a list one beside the other, and how many more there are."""
    found = joined(span("jm-chip", foreign(str(item))) for item in islice(items, n_shown))
    return Html(f'<div class="jm-chips">{found}</div>{more(n_all, n_shown, noun)}')


def unreadable(error: Exception) -> Html:
    """Say that what should be here is malformed, and how as a tooltip."""
    return Html(f'<span class="jm-bad" title="{escape(cut(str(error), 300))}">unreadable</span>')


def page(view: Html, text: str) -> str:
    """Return what a cell shows: the view, and the text where styles are not applied."""
    return (
        f"<style>{STYLE}</style>"
        f'<pre class="jm-text">{html.escape(visible(cut(text, N_TOOLTIP), keep=chr(10)))}</pre>'
        f'<div class="jm-view" style="display:none">{view}</div>'
    )


def text_alone(thing: object) -> str:
    """Return an object's plain text as markup."""
    return f"<pre>{html.escape(visible(shown(thing), keep=chr(10)))}</pre>"
