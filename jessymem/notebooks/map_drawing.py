"""A memory map as a picture: the budget, the dimensions to scale, what lies where in the pools.

A colour is a class of the budget, a texture the state of a region.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

import jessymem
from jessymem.budget import class_of
from jessymem.notebooks.drawing import WIDTH, Drawing
from jessymem.notebooks.map_text import about_dimension, about_pool, name_of_pool
from jessymem.notebooks.markup import Html, cut, scrolled
from jessymem.notebooks.usage import BLOCKS, parts_of, share, show_usage
from jessymem.units import show_bytes
from jessymem.visible_text import fitting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.notebooks.dimensions import MappedDimension
    from jessymem.pools.occupancy import Occupancy

_MARGIN: Final = 14
_BAR: Final = 194  # from where bars are drawn
_ABOUT: Final = 500  # from where it is said what they are
_ROW: Final = 19
_HEIGHT: Final = 12

#: How many columns of characters stand before a bar, and behind one.
_N_LABEL: Final = 23
_N_ABOUT: Final = 40

#: A part that is there is this wide at least.
_MIN_WIDTH: Final = 3.0

#: What is narrower shows its colour alone.
_MIN_TEXTURED: Final = 8.0

#: Of a piece of a pool in which anything is used so much is drawn at least.
_MIN_SHARE: Final = 0.35

#: What lies over the colour of a region in each state.
_TEXTURES: Final = {"copied": "level", "simulated": "diagonal"}


def view(memory: jessymem.MemoryMap) -> Html:
    """Return the picture for a cell, where it keeps a readable size and is scrolled."""
    return scrolled(Html(f'<div style="min-width:560px">{draw(memory)}</div>'))


def draw(memory: jessymem.MemoryMap) -> Html:
    """Draw a memory map."""
    drawing = Drawing()
    stats = memory.stats
    used = show_usage(stats.total_allocated_bytes, stats.total_limit_bytes)
    _title(drawing, memory, used)
    _budget(drawing, memory)
    if memory.dimensions:
        _dimensions(drawing, memory)
    if memory.pools:
        _pools(drawing, memory)
    drawing.y += 10
    n_dimensions = len(memory.dimensions) + memory.n_others
    description = (
        f"Budget: {used}, {show_bytes(stats.waiting_bytes)} waiting. {n_dimensions:,} dimensions, "
        f"{len(stats.per_pool)} pools."
    )
    return drawing.finished(f"Memory of {cut(memory.place, 200)}", description)


def _title(drawing: Drawing, memory: jessymem.MemoryMap, used: str) -> None:
    drawing.y = 24
    closed = ", closed" if memory.is_closed else ""
    drawing.text(_MARGIN, drawing.y, f"Memory of {fitting(memory.place, 52)}{closed}", is_bold=True)
    drawing.text(WIDTH - _MARGIN, drawing.y, used, anchor="end")


def _heading(drawing: Drawing, title: str, about: str) -> None:
    drawing.y += 28
    drawing.text(_MARGIN, drawing.y, title, is_bold=True)
    drawing.text(_BAR, drawing.y, about, is_faint=True)
    drawing.y += 8


# -- the budget ------------------------------------------------------------------------------------


def _budget(drawing: Drawing, memory: jessymem.MemoryMap) -> None:
    stats = memory.stats
    limit, width, top = stats.total_limit_bytes, WIDTH - 2 * _MARGIN, drawing.y + 26
    drawing.box(_MARGIN, top, width, 22, "stripe", f"limit: {show_bytes(limit)}")
    parts = parts_of(stats.total_allocated_bytes, stats.per_class)
    x = float(_MARGIN)
    for part in parts:
        if part.n_bytes > 0:
            wide = max(width * share(part.n_bytes, limit), _MIN_WIDTH)
            drawing.box(x, top, wide, 22, part.kind, f"{part.label}: {show_bytes(part.n_bytes)}")
            x += wide
    waiting = width * share(stats.waiting_bytes, limit)
    if waiting > 0:
        about = f"waiting for views: {show_bytes(stats.waiting_bytes)}"
        drawing.box(x - waiting, top + 24, max(waiting, _MIN_WIDTH), 5, "waiting", about)
    _thresholds(drawing, memory.thresholds, width, top)
    drawing.y = top + 46
    keys = [(part.kind, f"{part.label} {show_bytes(part.n_bytes)}") for part in parts]
    keys.append(("waiting", f"waiting {show_bytes(stats.waiting_bytes)}"))
    _legend(drawing, keys)
    about = (
        f"peak {show_bytes(stats.peak_usage_bytes)}, retained {show_bytes(stats.retained_bytes)}"
    )
    drawing.text(_MARGIN, drawing.y, about, is_faint=True)


def _thresholds(drawing: Drawing, shares: tuple[float, ...], width: float, top: float) -> None:
    last = -1e9
    for at in shares:
        x = _MARGIN + width * at
        drawing.mark(x, top - 3, top + 25)
        if x - last > 40:  # where two are close the first says enough
            drawing.text(min(x, WIDTH - 36), top - 5, f"{100 * at:g} %", anchor="middle")
            last = x


def _legend(drawing: Drawing, keys: list[tuple[str, str]]) -> None:
    """Say what colours are, as many to a line as fit."""
    x = float(_MARGIN)
    for kind, text in keys:
        wide = 24 + 6.6 * len(text)
        if x + wide > WIDTH - _MARGIN:
            x, drawing.y = float(_MARGIN), drawing.y + 17
        drawing.box(x, drawing.y - 9, 10, 10, kind)
        drawing.text(x + 15, drawing.y, text)
        x += wide
    drawing.y += 17


# -- dimensions ------------------------------------------------------------------------------------


def _dimensions(drawing: Drawing, memory: jessymem.MemoryMap) -> None:
    n_all = len(memory.dimensions) + memory.n_others
    longest = max(max(dimension.n_bytes for dimension in memory.dimensions), 1)
    _heading(drawing, f"Dimensions: {n_all:,}", f"to scale; the longest is {show_bytes(longest)}")
    for dimension in memory.dimensions:
        _dimension(drawing, dimension, longest)
    if memory.n_others:
        drawing.y += _ROW
        rest = f"and {memory.n_others:,} more, {show_bytes(memory.n_other_bytes)} together"
        drawing.text(_MARGIN, drawing.y, rest, is_faint=True)
    _states(drawing)


def _dimension(drawing: Drawing, dimension: MappedDimension, longest: int) -> None:
    drawing.y += _ROW
    top, scale = drawing.y - 10, (_ABOUT - _BAR - 12) / longest
    label = f"{dimension.dimension_id} {dimension.name}"
    drawing.label(_MARGIN, drawing.y, _BAR - _MARGIN - 8, fitting(label, _N_LABEL), label)
    kind, x = class_of(dimension.dimension_id), float(_BAR)
    for i, n_bytes in enumerate(dimension.lengths):
        wide = max(n_bytes * scale, _MIN_WIDTH)
        what = "delta" if i else dimension.state
        _region(drawing, (x, top, wide), kind, dimension.state, f"{what}: {show_bytes(n_bytes)}")
        x += wide + 1
    if dimension.n_learned:
        wide = max(dimension.n_learned_bytes * scale, _MIN_WIDTH)
        about = f"{dimension.n_learned:,} learned layers: {show_bytes(dimension.n_learned_bytes)}"
        drawing.box(x, top, wide, _HEIGHT, BLOCKS, about)
    about = about_dimension(dimension)
    shown = fitting(about, _N_ABOUT)
    drawing.label(_ABOUT, drawing.y, WIDTH - _ABOUT - 6, shown, about, is_faint=True)


def _region(
    drawing: Drawing, place: tuple[float, float, float], kind: str, state: str, about: str
) -> None:
    """Draw one file's region as its state looks."""
    x, top, wide = place
    if state == "evicted":
        drawing.frame(x, top, max(wide, 3), _HEIGHT, kind, about)
        return
    drawing.box(x, top, wide, _HEIGHT, kind, about)
    if state in _TEXTURES and wide >= _MIN_TEXTURED:
        drawing.weave(x, top, wide, _HEIGHT, _TEXTURES[state])


def _states(drawing: Drawing) -> None:
    """Say what the looks of regions mean."""
    drawing.y += 22
    x, top = float(_BAR), drawing.y - 9
    for state in ("mapped", "copied", "simulated", "evicted"):
        _region(drawing, (x, top, 22), "other", state, "")
        drawing.text(x + 28, drawing.y, state)
        x += 50 + 6.6 * len(state)
    for n, wide in ((0, 14), (1, 4), (2, 3)):
        drawing.box(x + n * 7 + (8 if n else 0), top, wide, _HEIGHT, "other")
    drawing.text(x + 32, drawing.y, "deltas")
    drawing.box(x + 86, top, 22, _HEIGHT, BLOCKS)
    drawing.text(x + 114, drawing.y, "learned")


# -- pools -----------------------------------------------------------------------------------------


def _pools(drawing: Drawing, memory: jessymem.MemoryMap) -> None:
    n_all = len(memory.stats.per_pool)
    _heading(drawing, f"Pools: {n_all:,}", "from the first block to the last")
    for pool in memory.pools:
        _pool(drawing, memory, pool)
    if n_all > len(memory.pools):
        drawing.y += _ROW
        drawing.text(_MARGIN, drawing.y, f"and {n_all - len(memory.pools):,} more", is_faint=True)
    drawing.y += 22
    x = float(_BAR)
    for kind, name in ((BLOCKS, "used"), ("waiting", "waiting for views"), ("stripe", "free")):
        drawing.box(x, drawing.y - 9, 22, _HEIGHT, kind)
        if kind == "waiting":
            drawing.weave(x, drawing.y - 9, 22, _HEIGHT, "diagonal")
        drawing.text(x + 28, drawing.y, name)
        x += 50 + 6.6 * len(name)


def _pool(drawing: Drawing, memory: jessymem.MemoryMap, pool: Occupancy) -> None:
    drawing.y += _ROW
    top, width = drawing.y - 11, _ABOUT - _BAR - 12
    drawing.text(_MARGIN, drawing.y, name_of_pool(memory, pool))
    longest = f"longest free run: {pool.longest_free_run:,} blocks"
    drawing.box(_BAR, top, width, _HEIGHT + 2, "stripe", longest)
    used = _seen(pool.used)
    waiting = np.minimum(used + _seen(pool.waiting), 1)
    place = (_BAR, top, width, _HEIGHT + 2)
    drawing.steps(*place, [0.0] * len(used), used.tolist(), BLOCKS)
    if pool.waiting.any():
        path = drawing.steps(*place, used.tolist(), waiting.tolist(), "waiting")
        drawing.weave_path(path, "diagonal")
    about = about_pool(memory, pool)
    shown = fitting(about, _N_ABOUT)
    drawing.label(_ABOUT, drawing.y, WIDTH - _ABOUT - 6, shown, about, is_faint=True)


def _seen(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return shares, those above zero large enough to be seen."""
    return np.where(shares > 0, np.maximum(shares, _MIN_SHARE), 0.0)
