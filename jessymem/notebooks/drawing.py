"""`Drawing`: an SVG picture, made of few kinds of elements.

Colours are classes of a style sheet that follows the surroundings, light or dark; each element has
its light colour as an attribute too, for programs that know no variables in style sheets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

from jessymem.notebooks.markup import N_TOOLTIP, Html, cut, escape
from jessymem.notebooks.style import KINDS, themed

WIDTH: Final = 760

_TEXT: Final = "#1b1f24"
_GROUND: Final = "#ffffff"
_PLAIN: Final = {"ground": _GROUND, "stripe": "#eceff3", "line": "#b9c1ca", "text": _TEXT}
_FILLS: Final = {name: light for name, (light, _) in KINDS.items()} | _PLAIN

_RULES: Final = (
    ".jm-map{display:block;width:100%;max-width:900px;font-family:var(--jm-font)}"
    ".jm-map text{fill:var(--jm-text);font-family:var(--jm-font)}"
    ".jm-map .jm-faint{fill:var(--jm-faint)}"
    ".jm-map .jm-stroke{stroke:var(--jm-text)}"
    ".jm-map .jm-edge{stroke:var(--jm-line)}"
    ".jm-map .jm-weave{stroke:var(--jm-ground)}"
) + "".join(
    f".jm-map .jm-f-{name}{{fill:var(--jm-{name})}}.jm-map .jm-s-{name}{{stroke:var(--jm-{name})}}"
    for name in _FILLS
)

#: How a texture's lines run: by its name, the size of the pattern and a path in it.
_TEXTURES: Final = {
    "diagonal": (6, "M-1,7 L7,-1 M-1,1 L1,-1 M5,7 L7,5"),
    "level": (4, "M0,2 L4,2"),
}


class Drawing:
    """A picture that grows downwards.

    Attributes
    ----------
    y : float
        Down to where it is drawn, in its own units; it is `WIDTH` of them wide.
    """

    def __init__(self) -> None:
        self.y = 0.0
        self._elements: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        is_faint: bool = False,
        is_bold: bool = False,
        anchor: str = "start",
    ) -> None:
        """Write text at a base line."""
        style = ' class="jm-faint" fill="#59636e"' if is_faint else ""
        weight = ' font-weight="600"' if is_bold else ""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._add(
            f'<text x="{x:.1f}" y="{y:.1f}"{style}{weight}{where} '
            f'style="unicode-bidi:isolate">{escape(content)}</text>'
        )

    def label(
        self, x: float, y: float, width: float, content: str, about: str, *, is_faint: bool = False
    ) -> None:
        """Write text that is cut where its space ends; `about` is its tooltip."""
        self._add(f'<svg x="{x:.1f}" y="{y - 13:.1f}" width="{width:.1f}" height="19">')
        self._add(f"<title>{escape(cut(about, N_TOOLTIP))}</title>")
        self.text(0, 13, content, is_faint=is_faint)
        self._add("</svg>")

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, about: str = ""
    ) -> None:
        """Fill a rectangle; `about` is its tooltip."""
        title = f"<title>{escape(about)}</title>" if about else ""
        self._add(
            f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0):.2f}" height="{height:.1f}" '
            f'class="jm-f-{fill}" fill="{_FILLS[fill]}">{title}</rect>'
        )

    def frame(
        self, x: float, y: float, width: float, height: float, edge: str, about: str = ""
    ) -> None:
        """Draw a dashed outline around nothing."""
        title = f"<title>{escape(about)}</title>" if about else ""
        self._add(
            f'<rect x="{x + 0.5:.2f}" y="{y + 0.5:.1f}" width="{max(width - 1, 0):.2f}" '
            f'height="{height - 1:.1f}" fill="none" pointer-events="all" stroke-dasharray="3 2" '
            f'class="jm-s-{edge}" stroke="{_FILLS[edge]}">{title}</rect>'
        )

    def weave(self, x: float, y: float, width: float, height: float, texture: str) -> None:
        """Lay a texture over what is there."""
        self._add(
            f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0):.2f}" height="{height:.1f}" '
            f'fill="url(#@{texture})" pointer-events="none"/>'
        )

    def steps(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        low: Sequence[float],
        high: Sequence[float],
        fill: str,
    ) -> str:
        """Fill what lies between two rows of shares, counted from the bottom; one path for all."""
        path = _path_between(x, y + height, width, height, low, high)
        self._add(f'<path d="{path}" class="jm-f-{fill}" fill="{_FILLS[fill]}"/>')
        return path

    def weave_path(self, path: str, texture: str) -> None:
        """Lay a texture over a path."""
        self._add(f'<path d="{path}" fill="url(#@{texture})" pointer-events="none"/>')

    def mark(self, x: float, top: float, bottom: float) -> None:
        """Draw an upright line."""
        self._add(
            f'<line x1="{x:.2f}" x2="{x:.2f}" y1="{top:.1f}" y2="{bottom:.1f}" '
            f'class="jm-stroke" stroke="{_TEXT}" stroke-dasharray="3 2"/>'
        )

    def _add(self, element: str) -> None:
        self._elements.append(element)

    def finished(self, title: str, description: str) -> Html:
        """Return the whole picture; its ids are of its content, so that many stand on one page."""
        body = "".join(self._elements)
        mark = f"jm-{crc32(body.encode('utf-8')):08x}-"
        height = f"{self.y:.0f}"
        patterns = "".join(
            f'<pattern id="{mark}{name}" width="{size}" height="{size}" '
            f'patternUnits="userSpaceOnUse"><path d="{path}" class="jm-weave" stroke="{_GROUND}" '
            'stroke-width="1.6" fill="none"/></pattern>'
            for name, (size, path) in _TEXTURES.items()
        )
        return Html(
            f'<svg xmlns="http://www.w3.org/2000/svg" class="jm-map" role="img" '
            f'viewBox="0 0 {WIDTH} {height}" aria-labelledby="{mark}title {mark}desc" '
            f'font-family="system-ui,sans-serif" font-size="12" fill="{_TEXT}">'
            f'<title id="{mark}title">{escape(title)}</title>'
            f'<desc id="{mark}desc">{escape(description)}</desc>'
            f"<style>{themed('.jm-map')}{_RULES}</style><defs>{patterns}</defs>"
            f'<rect width="{WIDTH}" height="{height}" class="jm-f-ground" fill="{_GROUND}"/>'
            f"{body.replace('url(#@', f'url(#{mark}')}</svg>"
        )


def _path_between(
    left: float,
    bottom: float,
    width: float,
    height: float,
    low: Sequence[float],
    high: Sequence[float],
) -> str:
    """Write the outline of steps: to the right on top of them, and back below; none where empty."""
    step = width / len(high)
    pieces = []
    for start, end in _filled(low, high):
        corners = [
            *_corners(left, bottom, step, height, high, range(start, end)),
            *reversed(_corners(left, bottom, step, height, low, range(start, end))),
        ]
        pieces.append("M" + " L".join(f"{x:.2f},{y:.2f}" for x, y in corners) + "Z")
    return "".join(pieces) or "M0,0"


def _corners(
    left: float,
    bottom: float,
    step: float,
    height: float,
    levels: Sequence[float],
    at: range,
) -> list[tuple[float, float]]:
    return [(left + (i + side) * step, bottom - height * levels[i]) for i in at for side in (0, 1)]


def _filled(low: Sequence[float], high: Sequence[float]) -> list[tuple[int, int]]:
    """Return from where to where there is anything between `low` and `high`."""
    found: list[tuple[int, int]] = []
    for i, (bottom, top) in enumerate(zip(low, high, strict=True)):
        if top <= bottom:
            continue
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found
