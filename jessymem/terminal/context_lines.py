"""Finds as the lines that they are in, each once, with lines before and behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np

from jessymem.scanning.batches import HitBatch
from jessymem.terminal.hit_lines import FOUND_COLOUR, NO_COLOUR, OFFSET_COLOUR, Titles
from jessymem.terminal.wording import visible

#: A line that is longer is no text that anybody would read to its end; it is cut.
_MAX_LINE_BYTES: Final = 4_096

_NEWLINE: Final = ord("\n")
_BETWEEN: Final = "--\n"

#: Lines that are written together.
_N_TOGETHER: Final = 4_096


class LayerFinds(NamedTuple):
    """The finds in one layer, ascending."""

    layer: int
    content: memoryview
    starts: Any  # ndarray of int64
    ends: Any


def by_layer(batches: Iterable[HitBatch]) -> Iterator[LayerFinds]:
    """Yield the finds of each layer together."""
    pieces = (piece for batch in batches for piece in _cut(batch))
    for layer, group in groupby(pieces, key=lambda piece: piece.layer):
        found = list(group)
        starts = np.concatenate([piece.starts for piece in found])
        ends = np.concatenate([piece.ends for piece in found])
        yield LayerFinds(layer, found[0].content, starts, ends)


def _cut(batch: HitBatch) -> Iterator[LayerFinds]:
    array, lengths = batch.array, batch.lengths
    layers, firsts = np.unique(array["layer"], return_index=True)
    for layer, first, last in zip(
        layers.tolist(), firsts.tolist(), [*firsts.tolist()[1:], len(array)], strict=True
    ):
        starts = array["offset"][first:last]
        yield LayerFinds(layer, batch.content(layer), starts, starts + lengths[first:last])


def context_lines(
    batches: Iterable[HitBatch], titles: Titles, n_before: int, n_after: int, *, is_coloured: bool
) -> Iterator[bytes]:
    """Yield the lines with finds, each once, and those around them, as `grep` shows them.

    Layer, name, number of the line from 1 and the line; with hyphens where it has no find, and a
    line between what does not follow each other where there are such lines.
    """
    lines: list[str] = []
    is_first = True
    for found in by_layer(batches):
        layer_lines = _Lines(found, titles, is_coloured)
        for first, last in layer_lines.groups(n_before, n_after):
            if (n_before or n_after) and not is_first:
                lines.append(_BETWEEN)
            is_first = False
            for number in range(first, last + 1):
                lines.append(layer_lines.line(number))
                if len(lines) >= _N_TOGETHER:
                    yield "".join(lines).encode("utf-8", "replace")
                    lines.clear()
    yield "".join(lines).encode("utf-8", "replace")


class _Lines:
    """The lines of one layer."""

    def __init__(self, found: LayerFinds, titles: Titles, is_coloured: bool) -> None:
        self._found = found
        self._title = titles.coloured(found.layer) if is_coloured else titles.plain(found.layer)
        self._is_coloured = is_coloured
        content = np.frombuffer(found.content, np.uint8)
        self._newlines = np.flatnonzero(content == _NEWLINE)
        self._n_lines = len(self._newlines) + (content[-1] != _NEWLINE)
        self._firsts = self._newlines.searchsorted(found.starts)
        self._lasts = self._newlines.searchsorted(found.ends - 1)
        self._with_finds = {
            number
            for first, last in zip(self._firsts.tolist(), self._lasts.tolist(), strict=True)
            for number in range(first, last + 1)
        }

    def groups(self, n_before: int, n_after: int) -> Iterator[tuple[int, int]]:
        """Yield the first and the last line of what is shown together, numbers from 0."""
        firsts = np.maximum(self._firsts - n_before, 0)
        lasts = np.minimum(self._lasts + n_after, self._n_lines - 1)
        lasts = np.maximum.accumulate(lasts)
        begins = np.flatnonzero(np.append(True, firsts[1:] > lasts[:-1] + 1))
        ends = np.append(begins[1:], len(lasts)) - 1
        yield from zip(firsts[begins].tolist(), lasts[ends].tolist(), strict=True)

    def line(self, number: int) -> str:
        """Return a line as it is shown."""
        newlines = self._newlines
        start = int(newlines[number - 1]) + 1 if number else 0
        end = int(newlines[number]) if number < len(newlines) else len(self._found.content)
        shown_end = min(end, start + _MAX_LINE_BYTES)
        is_found = number in self._with_finds
        mark = ":" if is_found else "-"
        more = " ..." if shown_end < end else ""
        at = f"{number + 1:d}"
        if self._is_coloured:
            at = f"{OFFSET_COLOUR}{at}{NO_COLOUR}"
            text = self._coloured(start, shown_end) if is_found else self._text(start, shown_end)
        else:
            text = self._text(start, shown_end)
        return f"{self._title}{mark}{at}{mark}{text}{more}\n"

    def _text(self, start: int, end: int) -> str:
        return visible(str(self._found.content[start:end], "utf-8", "replace"), keep="\t")

    def _coloured(self, start: int, end: int) -> str:
        """Return a line with what was found in it in another colour."""
        first = int(self._found.ends.searchsorted(start, side="right"))
        parts, done = [], start
        for i in range(first, len(self._found.starts)):
            if self._found.starts[i] >= end:
                break
            found_start = max(int(self._found.starts[i]), done)
            found_end = min(int(self._found.ends[i]), end)
            if found_end > found_start:
                parts.append(self._text(done, found_start))
                parts.append(f"{FOUND_COLOUR}{self._text(found_start, found_end)}{NO_COLOUR}")
                done = found_end
        return "".join([*parts, self._text(done, end)])
