"""Finds as the lines that they are in, each once, with lines before and behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np

from jessymem.scanning.batches import HitBatch
from jessymem.terminal.hit_lines import FOUND_COLOUR, NO_COLOUR, OFFSET_COLOUR, title_of
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
    name: str
    content: memoryview
    starts: Any  # ndarray of int64
    ends: Any


def by_layer(batches: Iterable[HitBatch]) -> Iterator[LayerFinds]:
    """Yield the finds of each layer together."""
    pieces = (piece for batch in batches for piece in _cut(batch))
    for _, group in groupby(pieces, key=lambda piece: piece.layer):
        found = list(group)
        starts = np.concatenate([piece.starts for piece in found])
        ends = np.concatenate([piece.ends for piece in found])
        yield found[0]._replace(starts=starts, ends=ends)


def _cut(batch: HitBatch) -> Iterator[LayerFinds]:
    array, lengths = batch.array, batch.lengths
    layers, firsts = np.unique(array["layer"], return_index=True)
    for layer, first, last in zip(
        layers.tolist(), firsts.tolist(), [*firsts.tolist()[1:], len(array)], strict=True
    ):
        starts = array["offset"][first:last]
        ends = starts + lengths[first:last]
        yield LayerFinds(layer, batch.name(layer), batch.content(layer), starts, ends)


def context_lines(
    batches: Iterable[HitBatch], n_before: int, n_after: int, *, is_coloured: bool
) -> Iterator[bytes]:
    """Yield the lines with finds, each once, and those around them, as `grep` shows them.

    Layer, name, number of the line from 1 and the line; with hyphens where it has no find, and a
    line between what does not follow each other where there are such lines.
    """
    is_first = True
    for found in by_layer(batches):
        lines = _Lines(found, is_coloured)
        for shown in lines.shown(n_before, n_after, is_first):
            yield "".join(lines.texts(shown)).encode("utf-8", "replace")
        is_first = False


class _Lines:
    """The lines of one layer."""

    def __init__(self, found: LayerFinds, is_coloured: bool) -> None:
        self._found = found
        self._title = title_of(found.layer, found.name, is_coloured=is_coloured)
        self._is_coloured = is_coloured
        content = np.frombuffer(found.content, np.uint8)
        newlines = np.flatnonzero(content == _NEWLINE)
        self._n_lines = len(newlines) + (content[-1] != _NEWLINE)
        self._firsts = newlines.searchsorted(found.starts)
        self._lasts = newlines.searchsorted(found.ends - 1)
        #: The newlines before and behind each line, and what stands for them at both ends.
        self._bounds = np.concatenate(([-1], newlines, [len(content)]))

    def shown(
        self, n_before: int, n_after: int, is_first: bool
    ) -> Iterator[Iterable[tuple[int, int, int, bool, bool, bool]]]:
        """Yield what `texts` takes of each line to be shown, some thousand lines at a time.

        With `is_first` nothing was shown before.
        """
        firsts, lasts = self._groups(n_before, n_after)
        counts = lasts - firsts + 1
        begins = np.cumsum(counts) - counts
        numbers = np.repeat(firsts - begins, counts) + np.arange(counts.sum())
        is_apart = np.zeros(len(numbers), bool)
        if n_before or n_after:
            is_apart[begins[is_first:]] = True
        is_found = self._has_find(numbers)
        for at in range(0, len(numbers), _N_TOGETHER):
            part = slice(at, at + _N_TOGETHER)
            starts = self._bounds[numbers[part]] + 1
            ends = self._bounds[numbers[part] + 1]
            cuts = np.minimum(ends, starts + _MAX_LINE_BYTES)
            columns = (numbers[part], starts, cuts, cuts < ends, is_found[part], is_apart[part])
            yield zip(*(column.tolist() for column in columns), strict=True)

    def _groups(self, n_before: int, n_after: int) -> tuple[Any, Any]:
        """Return the first and the last line of what is shown together, numbers from 0."""
        firsts = np.maximum(self._firsts - n_before, 0)
        lasts = np.minimum(self._lasts + n_after, self._n_lines - 1)
        lasts = np.maximum.accumulate(lasts)
        is_between = firsts[1:] > lasts[:-1] + 1
        is_begin = np.concatenate(([True], is_between))
        is_end = np.concatenate((is_between, [True]))
        return firsts[is_begin], lasts[is_end]

    def _has_find(self, numbers: Any) -> Any:
        """Tell of each line whether any part of a find is in it."""
        at = self._firsts.searchsorted(numbers, side="right") - 1
        return (at >= 0) & (np.maximum.accumulate(self._lasts)[at] >= numbers)

    def texts(self, shown: Iterable[tuple[int, int, int, bool, bool, bool]]) -> Iterator[str]:
        """Yield lines as they are shown: of each its number from 0, where it begins and is cut off.

        And whether that is before its end, whether a find is in it, and whether a line is to be
        between it and what was shown before.
        """
        title, content, is_coloured = self._title, self._found.content, self._is_coloured
        for number, start, end, is_cut, is_found, is_apart in shown:
            mark = ":" if is_found else "-"
            at = f"{OFFSET_COLOUR}{number + 1}{NO_COLOUR}" if is_coloured else number + 1
            if is_coloured and is_found:
                text = self._coloured(start, end)
            else:
                text = _text(content[start:end])
            if is_cut:
                text += " ..."
            if is_apart:
                yield _BETWEEN
            yield f"{title}{mark}{at}{mark}{text}\n"

    def _coloured(self, start: int, end: int) -> str:
        """Return a line with what was found in it in another colour."""
        content = self._found.content
        first = int(self._found.ends.searchsorted(start, side="right"))
        parts, done = [], start
        for i in range(first, len(self._found.starts)):
            if self._found.starts[i] >= end:
                break
            found_start = max(int(self._found.starts[i]), done)
            found_end = min(int(self._found.ends[i]), end)
            if found_end > found_start:
                parts.append(_text(content[done:found_start]))
                parts.append(f"{FOUND_COLOUR}{_text(content[found_start:found_end])}{NO_COLOUR}")
                done = found_end
        return "".join([*parts, _text(content[done:end])])


def _text(piece: memoryview) -> str:
    text = str(piece, "utf-8", "replace")
    return text if text.isprintable() else visible(text, keep="\t")
