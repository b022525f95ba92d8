r"""Draw the diagrams of docs/flows.md and docs/states.md: each `.txt` here is one, as SVG.

``python docs/diagrams/draw.py`` writes them into docs/images; a test compares. They are files,
so that a checkout, the site, and a reader without a network show the same.

A sequence has a line ``actors: A | B`` and then, downwards, ``A -> B: text`` (a call),
``A --> B: text`` (what comes back), ``A: text`` (what A does by itself) and ``== text`` (a rule).
A state machine has lines ``state name column row: caption`` and ``name -> name: text``; ``(start)``
and ``(end)`` are states too. ``\n`` breaks a text. The first line of each is its title.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parent / "images"

CHARACTER, LINE = 5.9, 16  # of the text, in pixels
MARGIN, GAP = 20, 18
BOX_WIDTH, BOX_HEIGHT = 158, 50  # of a state
COLUMN, ROW = 300, 128

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
     width="{width}" height="{height}"
     font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#1f2933" role="img">
  <title>{title}</title>
  <style>
    .box {{ fill: #dbeafe; stroke: #2563eb; stroke-width: 1.5 }}
    .own {{ fill: #ffffff; stroke: #9aa5b1 }}
    .life {{ stroke: #9aa5b1; stroke-dasharray: 3 4 }}
    .call {{ fill: none; stroke: #334e68; stroke-width: 1.5; marker-end: url(#tip) }}
    .back {{ fill: none; stroke: #334e68; stroke-dasharray: 6 4; marker-end: url(#tip) }}
    .rule {{ stroke: #b45309 }}
    .said {{ fill: #b45309; font-weight: bold }}
    .head {{ font-weight: bold; font-size: 13px }}
    .middle {{ text-anchor: middle }}
    .left {{ text-anchor: end }}
    .halo {{ paint-order: stroke; stroke: #f8fafc; stroke-width: 4px }}
  </style>
  <defs>
    <marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"
            orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="#334e68"/></marker>
  </defs>
  <rect width="{width}" height="{height}" fill="#f8fafc"/>
"""


def width_of(text: str) -> float:
    """Return about how wide a text is, in pixels."""
    return CHARACTER * max(map(len, text.split("\\n")))


def write_text(x: float, y: float, text: str, style: str = "middle halo") -> Iterator[str]:
    """Yield a text, its first line at `y`."""
    for i, line in enumerate(text.split("\\n")):
        yield f'  <text x="{x:g}" y="{y + i * LINE:g}" class="{style}">{escape(line)}</text>'


def draw_box(x: float, y: float, width: float, height: float, style: str) -> str:
    """Return a box around a point."""
    left, top = x - width / 2, y - height / 2
    size = f'width="{width:g}" height="{height:g}"'
    return f'  <rect x="{left:g}" y="{top:g}" {size} rx="4" class="{style}"/>'


def document(title: str, width: float, height: float, body: Iterable[str]) -> str:
    """Return a whole picture."""
    head = HEAD.format(width=round(width), height=round(height), title=escape(title))
    return head + "\n".join(body) + "\n</svg>\n"


class Step(NamedTuple):
    """One line of a sequence; with no `other` something that `actor` does by itself."""

    actor: str
    arrow: str
    other: str
    text: str


def read_steps(lines: Iterable[str]) -> Iterator[Step]:
    """Yield the steps of a sequence."""
    for line in lines:
        if line.startswith("== "):
            yield Step("", "==", "", line[3:])
        elif match := re.fullmatch(r"(.+?) (-->|->) (.+?): (.+)", line):
            yield Step(match[1], match[2], match[3], match[4])
        else:
            actor, text = line.split(": ", 1)
            yield Step(actor, "", "", text)


def place_actors(actors: list[str], steps: list[Step]) -> dict[str, float]:
    """Return where each lifeline is, as far apart as what is written between them needs."""
    at = {name: i for i, name in enumerate(actors)}
    gaps = [(width_of(a) + width_of(b)) / 2 + 48 for a, b in pairwise(actors)]
    for step in steps:
        if step.other:
            first, last = sorted((at[step.actor], at[step.other]))
            missing = width_of(step.text) + 22 - sum(gaps[first:last])
            gaps[last - 1] += max(missing, 0)
        elif step.actor:
            half = width_of(step.text) / 2 + 20
            for i in (at[step.actor] - 1, at[step.actor]):
                if 0 <= i < len(gaps):
                    gaps[i] = max(gaps[i], half + 12)
    ends = [width_of(actors[i]) / 2 + 14 for i in (0, -1)]
    for step in steps:
        for i, name in enumerate((actors[0], actors[-1])):
            if step.actor == name and not step.arrow:
                ends[i] = max(ends[i], width_of(step.text) / 2 + 14)
    x = MARGIN + ends[0]
    places = {}
    for name, gap in zip(actors, [*gaps, 0], strict=True):
        places[name] = x
        x += gap
    places[""] = x + ends[1] + MARGIN  # the picture's width
    return places


def draw_sequence(title: str, lines: list[str]) -> str:
    """Return a sequence as SVG."""
    actors = lines[0].removeprefix("actors: ").split(" | ")
    steps = list(read_steps(lines[1:]))
    places = place_actors(actors, steps)
    width = places.pop("")
    body: list[str] = []
    y = MARGIN + 50.0
    for step in steps:
        n_lines = step.text.count("\\n") + 1
        if step.arrow == "==":
            y += 8
            body += write_text(MARGIN, y + 4, step.text, "said halo")
            left = MARGIN + width_of(step.text) + 8
            body.append(f'  <path d="M{left:g} {y:g} H{width - MARGIN:g}" class="rule"/>')
            y += GAP + 8
        elif step.arrow:
            start, end = places[step.actor], places[step.other]
            body += write_text((start + end) / 2, y, step.text)
            y += (n_lines - 1) * LINE + 6
            style = "call" if step.arrow == "->" else "back"
            body.append(f'  <path d="M{start:g} {y:g} H{end:g}" class="{style}"/>')
            y += GAP + 6
        else:
            height = n_lines * LINE + 8
            x, box_width = places[step.actor], width_of(step.text) + 20
            body.append(draw_box(x, y - 12 + height / 2, box_width, height, "own"))
            body += write_text(x, y + 4, step.text, "middle")
            y += height + 10
    top: list[str] = []
    for name, x in places.items():
        top.append(f'  <path d="M{x:g} {MARGIN + 28} V{y:g}" class="life"/>')
        top.append(draw_box(x, MARGIN + 14, width_of(name) * 1.2 + 20, 28, "box"))
        top += write_text(x, MARGIN + 18.5, name, "middle head")
    return document(title, width, y + MARGIN, top + body)


class State(NamedTuple):
    """A state, and its centre."""

    x: float
    y: float
    caption: str


def border(of: State, name: str, towards: State) -> tuple[float, float]:
    """Return where a line from the centre of a state towards another one leaves its box."""
    dx, dy = towards.x - of.x, towards.y - of.y
    half = (10, 10) if name.startswith("(") else (BOX_WIDTH / 2 + 2, BOX_HEIGHT / 2 + 2)
    scale = min(half[0] / abs(dx) if dx else 1e9, half[1] / abs(dy) if dy else 1e9)
    return of.x + dx * scale, of.y + dy * scale


def offset_of(first: State, last: State) -> tuple[float, float]:
    """Return how far to one side a line is that has one back beside it: both within the boxes."""
    dx, dy = last.x - first.x, last.y - first.y
    length = (dx**2 + dy**2) ** 0.5
    across, along = BOX_WIDTH / 2 - 8, BOX_HEIGHT / 2 - 8
    x, y = -dy / length * 26, dx / length * 26
    return max(-across, min(across, x)), max(-along, min(along, y))


def label(
    text: str, start: tuple[float, float], end: tuple[float, float], aside: tuple[float, float]
) -> Iterator[str]:
    """Yield what is written at a line: beside it where it is level or upright, else on it."""
    n_more = text.count("\\n")
    (x0, y0), (x1, y1) = start, end
    x, y = (x0 + x1) / 2, (y0 + y1) / 2 + 4 - n_more * LINE / 2
    style = "middle halo"
    if abs(y1 - y0) < 1:
        y += 11 if aside[1] > 0 else -11 - n_more * LINE / 2
        y += n_more * LINE / 2 if aside[1] > 0 else 0
    elif abs(x1 - x0) < 1:
        is_left = aside[0] < 0
        x, style = (x - 7, "left halo") if is_left else (x + 7, "halo")
    else:  # nearer to its end: two that cross do not meet there
        x, y = x + (x1 - x0) * 0.16, y + (y1 - y0) * 0.16
    return write_text(x, y, text, style)


def draw_states(title: str, lines: list[str]) -> str:
    """Return a state machine as SVG."""
    states: dict[str, State] = {}
    edges: list[tuple[str, str, str]] = []
    for line in lines:
        if match := re.fullmatch(r"state (\S+) ([\d.]+) ([\d.]+): (.*)", line):
            x = MARGIN + BOX_WIDTH / 2 + float(match[2]) * COLUMN
            y = MARGIN + BOX_HEIGHT / 2 + float(match[3]) * ROW
            states[match[1]] = State(x, y, match[4])
        else:
            match = re.fullmatch(r"(\S+) -> (\S+): (.*)", line)
            assert match, line
            edges.append((match[1], match[2], match[3]))
    body: list[str] = []
    said: list[str] = []
    pairs = {(a, b) for a, b, _ in edges}
    for a, b, text in edges:
        aside = offset_of(states[a], states[b]) if (b, a) in pairs else (0, 0)
        (x0, y0), (x1, y1) = border(states[a], a, states[b]), border(states[b], b, states[a])
        x0, x1, y0, y1 = x0 + aside[0], x1 + aside[0], y0 + aside[1], y1 + aside[1]
        body.append(f'  <path d="M{x0:.1f} {y0:.1f} L{x1:.1f} {y1:.1f}" class="call"/>')
        said += label(text, (x0, y0), (x1, y1), aside)
    for name, state in states.items():
        if name.startswith("("):
            fill = "#334e68" if name == "(start)" else "#ffffff"
            mark = f'cx="{state.x:g}" cy="{state.y:g}" r="8" fill="{fill}" stroke="#334e68"'
            body.append(f"  <circle {mark}/>")
            continue
        body.append(draw_box(state.x, state.y, BOX_WIDTH, BOX_HEIGHT, "box"))
        body += write_text(state.x, state.y - 4, name.replace("_", " "), "middle head")
        body += write_text(state.x, state.y + 13, state.caption, "middle")
    body += said
    width = max(state.x for state in states.values()) + BOX_WIDTH / 2 + 2 * MARGIN
    height = max(state.y for state in states.values()) + BOX_HEIGHT / 2 + MARGIN
    return document(title, width, height, body)


def draw(text: str) -> str:
    """Return the SVG of a description."""
    title, *lines = [line for line in text.splitlines() if line]
    return (draw_sequence if lines[0].startswith("actors: ") else draw_states)(title, lines)


def pictures() -> Iterator[tuple[Path, str]]:
    """Yield where each picture belongs, and what it is."""
    for path in sorted(HERE.glob("*.txt")):
        yield IMAGES / f"{path.stem}.svg", draw(path.read_text("utf-8"))


if __name__ == "__main__":
    for path, picture in pictures():
        path.write_text(picture, "utf-8")
        sys.stdout.write(f"{path}\n")
