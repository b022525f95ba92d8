"""Finds as the lines that they are in, each once, with lines before and behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from jessymem.scanning.batches import HitBatch
from jessymem.terminal.hit_lines import (
    FOUND_COLOUR,
    NO_COLOUR,
    OFFSET_COLOUR,
    is_printable,
    title_of,
)
from jessymem.terminal.wording import visible

#: A line that is longer is no text that anybody would read to its end; it is cut.
_MAX_LINE_BYTES: Final = 4_096

_NEWLINE: Final = ord("\n")
_BETWEEN: Final = b"--\n"

#: Layers are cut into lines together, of so many bytes; and so many lines are written together.
_BYTES_TOGETHER: Final = 2**20
_N_TOGETHER: Final = 4_096

_TAB: Final = ord("\t")


class LayerFinds(NamedTuple):
    """The finds in one layer, ascending."""

    layer: int
    name: str
    content: memoryview
    starts: Any  # ndarray of int64
    ends: Any


def by_layer(batches: Iterable[HitBatch]) -> Iterator[list[LayerFinds]]:
    """Yield the finds of each layer together, of as many layers as a batch is through with."""
    pieces: list[LayerFinds] = []  # of one layer: more may come
    for batch in batches:
        ready = []
        for piece in _cut(batch):
            if pieces and piece.layer != pieces[0].layer:
                ready.append(_joined(pieces))
                pieces = []
            pieces.append(piece)
        yield ready
    if pieces:
        yield [_joined(pieces)]


def _cut(batch: HitBatch) -> Iterator[LayerFinds]:
    array, starts = batch.array, batch.array["offset"]
    ends = starts + batch.lengths
    layers, firsts = np.unique(array["layer"], return_index=True)
    bounds = [*firsts.tolist(), len(array)]
    for layer, first, last in zip(layers.tolist(), bounds, bounds[1:], strict=False):
        found = starts[first:last], ends[first:last]
        yield LayerFinds(layer, batch.name(layer), batch.content(layer), *found)


def _joined(pieces: list[LayerFinds]) -> LayerFinds:
    if len(pieces) == 1:
        return pieces[0]
    starts, ends = (np.concatenate(column) for column in list(zip(*pieces, strict=True))[3:])
    return pieces[0]._replace(starts=starts, ends=ends)


def context_lines(
    batches: Iterable[HitBatch], n_before: int, n_after: int, *, is_coloured: bool
) -> Iterator[bytes]:
    """Yield the lines with finds, each once, and those around them, as `grep` shows them.

    Layer, name, number of the line from 1 and the line; with hyphens where it has no find, and a
    line between what does not follow each other where there are such lines.
    """
    is_first = True
    for found in by_layer(batches):
        for together in _few_bytes(found):
            yield from _Lines(together, is_coloured).shown(n_before, n_after, is_first)
            is_first = False


def _few_bytes(found: list[LayerFinds]) -> Iterator[list[LayerFinds]]:
    """Yield layers in groups of not many more bytes than `_BYTES_TOGETHER`."""
    group, n_bytes = [], 0
    for layer in found:
        group.append(layer)
        n_bytes += len(layer.content)
        if n_bytes >= _BYTES_TOGETHER:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _with_newline(content: memoryview) -> Any:
    """Return a layer's content with a newline at its end."""
    return content if content[-1] == _NEWLINE else b"".join((content, b"\n"))


def _have_odd(texts: list[Any], lengths: Any) -> Any:
    """Tell of each line whether it has anything but printable ASCII, and tabs."""
    values = np.frombuffer(b"".join(texts), np.uint8)
    odd = np.flatnonzero(~is_printable(values) & (values != _TAB))
    stops = np.cumsum(lengths)
    return odd.searchsorted(stops - lengths) < odd.searchsorted(stops)


class _Shown(NamedTuple):
    """Lines that are shown, a column each."""

    titles: Any  # which of the layers it is in
    numbers: Any  # from 1, in its layer
    starts: Any
    ends: Any  # where it is cut off, or its newline
    is_cut: Any
    is_found: Any  # whether any part of a find is in it
    is_apart: Any  # whether a line is to be between it and what was shown before


class _Lines:
    """The lines of some layers, one layer behind the other."""

    def __init__(self, layers: list[LayerFinds], is_coloured: bool) -> None:
        self._is_coloured = is_coloured
        self._titles = [
            title_of(each.layer, each.name, is_coloured=is_coloured).encode("utf-8", "replace")
            for each in layers
        ]
        contents = [each.content for each in layers]
        if len(contents) > 1:
            contents = [_with_newline(each) for each in contents]
            self._text: Any = b"".join(contents)
        else:  # it may be long, and is not copied
            (self._text,) = contents
        content = np.frombuffer(self._text, np.uint8)
        self._newlines = np.flatnonzero(content == _NEWLINE)
        ends = np.cumsum(list(map(len, contents)))
        if content[-1] != _NEWLINE:  # as if one were behind it
            self._newlines = np.append(self._newlines, len(content))
            ends[-1] += 1
        begins = np.append(0, ends[:-1])
        #: Per layer, its first line and the one behind its last.
        self._heads = self._newlines.searchsorted(begins)
        self._tails = self._newlines.searchsorted(ends)
        #: Per find, which layer it is in, where it is, and in which lines.
        self._layers = np.repeat(np.arange(len(layers)), [len(each.starts) for each in layers])
        moved = begins[self._layers]
        self._starts = np.concatenate([each.starts for each in layers]) + moved
        self._ends = np.concatenate([each.ends for each in layers]) + moved
        self._firsts = self._newlines.searchsorted(self._starts)
        self._lasts = np.maximum.accumulate(self._newlines.searchsorted(self._ends - 1))

    def shown(self, n_before: int, n_after: int, is_first: bool) -> Iterator[bytes]:
        """Yield what is shown, some thousand lines at a time.

        With `is_first` nothing was shown before.
        """
        firsts, lasts, layers = self._groups(n_before, n_after)
        counts = lasts - firsts + 1
        n_lines = int(counts.sum())
        begins = np.cumsum(counts) - counts
        has_context = n_before > 0 or n_after > 0
        newlines = self._newlines
        for at in range(0, n_lines, _N_TOGETHER):
            places = np.arange(at, min(at + _N_TOGETHER, n_lines))
            group = begins.searchsorted(places, side="right") - 1
            lines = firsts[group] + (places - begins[group])
            titles = layers[group]
            starts = np.where(lines > 0, newlines[lines - 1] + 1, 0)
            ends = np.minimum(newlines[lines], starts + _MAX_LINE_BYTES)
            is_apart = (places == begins[group]) & has_context
            if is_first and not at:
                is_apart[0] = False
            numbers, is_cut = lines - self._heads[titles] + 1, ends < newlines[lines]
            found = self._has_find(lines)
            yield self._written(_Shown(titles, numbers, starts, ends, is_cut, found, is_apart))

    def _groups(self, n_before: int, n_after: int) -> tuple[Any, Any, Any]:
        """Return the first and the last line of what is shown together, and the layer."""
        firsts = np.maximum(self._firsts - n_before, self._heads[self._layers])
        lasts = np.minimum(self._lasts + n_after, self._tails[self._layers] - 1)
        is_between = firsts[1:] > lasts[:-1] + 1
        is_between |= self._layers[1:] > self._layers[:-1]
        is_begin = np.concatenate(([True], is_between))
        is_end = np.concatenate((is_between, [True]))
        return firsts[is_begin], lasts[is_end], self._layers[is_begin]

    def _has_find(self, lines: Any) -> Any:
        """Tell of each line whether any part of a find is in it."""
        at = self._firsts.searchsorted(lines, side="right") - 1
        return (at >= 0) & (self._lasts[at] >= lines)

    def _written(self, shown: _Shown) -> bytes:
        """Return lines as they are written."""
        spans = zip(shown.starts.tolist(), shown.ends.tolist(), strict=True)
        texts = [self._text[start:end] for start, end in spans]
        is_odd = _have_odd(texts, shown.ends - shown.starts) | shown.is_cut
        if self._is_coloured:
            is_odd |= shown.is_found
        for i in np.flatnonzero(is_odd).tolist():
            texts[i] = self._closer(shown, i)
        titles = map(self._titles.__getitem__, shown.titles.tolist())
        marks = [b":" if is_found else b"-" for is_found in shown.is_found.tolist()]
        form = _COLOURED_LINE if self._is_coloured else _LINE
        columns = titles, marks, shown.numbers.tolist(), marks, texts
        written = list(map(form.__mod__, zip(*columns, strict=True)))
        for i in np.flatnonzero(shown.is_apart).tolist():
            written[i] = _BETWEEN + written[i]
        return b"".join(written)

    def _closer(self, shown: _Shown, i: int) -> bytes:
        """Return what is shown of one line, of which not all is as it stands there."""
        start, end = int(shown.starts[i]), int(shown.ends[i])
        if self._is_coloured and shown.is_found[i]:
            text = self._coloured(start, end)
        else:
            text = self._shown_between(start, end)
        return f"{text} ...".encode() if shown.is_cut[i] else text.encode()

    def _shown_between(self, start: int, end: int) -> str:
        text = str(self._text[start:end], "utf-8", "replace")
        return text if text.isprintable() else visible(text, keep="\t")

    def _coloured(self, start: int, end: int) -> str:
        """Return a line with what was found in it in another colour."""
        first = int(self._ends.searchsorted(start, side="right"))
        parts, done = [], start
        for i in range(first, len(self._starts)):
            if self._starts[i] >= end:
                break
            found_start = max(int(self._starts[i]), done)
            found_end = min(int(self._ends[i]), end)
            if found_end > found_start:
                found = self._shown_between(found_start, found_end)
                parts += [self._shown_between(done, found_start), FOUND_COLOUR, found, NO_COLOUR]
                done = found_end
        return "".join([*parts, self._shown_between(done, end)])


_LINE: Final = b"%b%b%d%b%b\n"
_COLOURED_LINE: Final = f"%b%b{OFFSET_COLOUR}%d{NO_COLOUR}%b%b\n".encode()
