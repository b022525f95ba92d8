"""Contexts as HTML: what describes each, and how its text begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jessymem import osmem
from jessymem.notebooks.markup import (
    N_ROWS,
    NOTHING,
    Html,
    begin_of,
    escape,
    facts,
    foreign,
    heading,
    joined,
    listed,
    more,
    note,
    span,
)
from jessymem.regions.metadata import shortest
from jessymem.units import count, show_bytes

if TYPE_CHECKING:
    from jessymem.contexts import ContextCollection, LoadedContext

#: How much of a text is shown.
_N_CHARS: Final = 600

#: Of how many contexts the sizes are added up: of more it takes longer than all the rest.
_MAX_ADDED_UP: Final = 10_000


def view(contexts: ContextCollection) -> Html:
    """Show the first contexts, and how many there are."""
    n_all = len(contexts)
    about = count(n_all, "context")
    if n_all <= _MAX_ADDED_UP:
        about += f", {show_bytes(contexts.total_size)}"
    shown = joined(map(_context, contexts[:N_ROWS]))
    rest = more(n_all, N_ROWS, "contexts")
    return joined([heading("ContextCollection", NOTHING, about), shown, rest])


def text_of(contexts: ContextCollection) -> str:
    """Return what stands for the view where styles are not applied."""
    if len(contexts) <= _MAX_ADDED_UP:
        return repr(contexts)
    return f"<ContextCollection {len(contexts):,} contexts>"


def _context(context: LoadedContext) -> Html:
    size = context.content.nbytes
    about = f"{show_bytes(size)}, frequency {shortest(context.frequency)}"
    title = joined([escape(f"{context.layer_id} "), foreign(context.name)])
    known = [
        ("dimension", foreign(context.dimension_name)),
        ("depth", escape(str(context.depth))),
        ("parent", escape("none" if context.parent is None else str(context.parent))),
    ]
    keywords = listed(context.keywords, len(context.keywords), "keywords", 20)
    return Html(
        f"<details><summary>{title} {span('jm-about', escape(about))}</summary>"
        f"{facts(known)}{keywords}{_text(context)}</details>"
    )


def _text(context: LoadedContext) -> Html:
    if osmem.is_cut(context.content.obj):
        return note("its file was cut since it was mapped")
    if context.is_binary:
        return note(f"{context.content.nbytes:,} bytes that are not text")
    begin = context.text_prefix(_N_CHARS)
    n_more = context.content.nbytes - len(begin.encode("utf-8", "replace"))
    rest = note(f"and {show_bytes(n_more)} more") if n_more > 0 else NOTHING
    return joined([begin_of(begin), rest])
