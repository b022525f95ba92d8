"""Finds as lines: where each is, and what is around it in its line.

Many are made together: what is around each is a row of one array of bytes, what is not to be shown
is masked, and the rest is written as it is. What needs to be looked at closer, since it may act on
a terminal or is no ASCII, is made one by one; so is all that is coloured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from jessymem.ids import LayerId
from jessymem.scanning.batches import HitBatch
from jessymem.terminal.wording import CONTEXT_BYTES, MAX_FOUND_CHARS, excerpt, visible

#: What ends the line of a find in its content.
_NEWLINE: Final = ord("\n")
_PRINTABLE: Final = ord(" "), ord("~")

_LAYER_COLOUR: Final = "\x1b[36m"
OFFSET_COLOUR: Final = "\x1b[32m"
FOUND_COLOUR: Final = "\x1b[1;31m"
NO_COLOUR: Final = "\x1b[0m"


def title_of(layer: int, name: str, *, is_coloured: bool = False) -> str:
    """Return what stands before the finds of a layer: its id, and its name if it has one."""
    layer_id = str(LayerId.from_packed(layer))
    if is_coloured:
        layer_id = f"{_LAYER_COLOUR}{layer_id}{NO_COLOUR}"
    return f"{layer_id} {visible(name)}" if name else layer_id


def hit_lines(batch: HitBatch, *, is_coloured: bool) -> bytes:
    """Return a line for each find of a batch: layer, name, offset, and what is around."""
    if is_coloured:
        return b"".join(_line_of(batch, i, is_coloured=True) for i in range(len(batch)))
    array, lengths = batch.array, batch.lengths
    width = CONTEXT_BYTES * 2 + min(int(lengths.max()), MAX_FOUND_CHARS)
    windows = batch.windows(CONTEXT_BYTES, width)
    shown = _shown(windows.bytes, array["offset"] - windows.starts, lengths, windows.ends)
    is_odd = (lengths > MAX_FOUND_CHARS) | _has_odd(windows.bytes, shown)
    heads, is_head = _heads(batch)
    lines = np.concatenate(
        (heads, windows.bytes, np.full((len(array), 1), _NEWLINE, np.uint8)), axis=1
    )
    is_kept = np.concatenate((is_head, shown, np.ones((len(array), 1), bool)), axis=1)
    if not is_odd.any():
        return bytes(lines[is_kept])
    is_kept[is_odd] = False
    text = bytes(lines[is_kept])
    ends = np.cumsum(is_kept.sum(axis=1))
    pieces, done = [], 0
    for i in np.flatnonzero(is_odd).tolist():
        end = int(ends[i])
        pieces += [text[done:end], _line_of(batch, i, is_coloured=False)]
        done = end
    return b"".join([*pieces, text[done:]])


def _shown(rows: Any, starts: Any, lengths: Any, ends: Any) -> Any:
    """Return which bytes of each row are shown: the find, and what is beside it in its line."""
    width = rows.shape[1]
    columns = np.arange(width, dtype=np.int16)
    starts = starts.astype(np.int16)[:, None]
    stops = np.minimum(starts + np.minimum(lengths, width)[:, None], width).astype(np.int16)
    is_newline = rows == _NEWLINE
    after = np.where(is_newline & (columns >= stops), columns, np.int16(width)).min(axis=1)
    before = np.where(is_newline & (columns < starts), columns + np.int16(1), np.int16(0))
    first = np.maximum(before.max(axis=1)[:, None], starts - np.int16(CONTEXT_BYTES))
    last = np.minimum(after, ends)[:, None]
    last = np.minimum(last, stops + np.int16(CONTEXT_BYTES)).astype(np.int16)
    return (columns >= first) & (columns < last)


def _has_odd(rows: Any, shown: Any) -> Any:
    """Tell of each row whether what is shown of it has anything but printable ASCII."""
    is_odd = rows - np.uint8(_PRINTABLE[0]) > _PRINTABLE[1] - _PRINTABLE[0]  # which wraps round
    return (is_odd & shown).any(axis=1)


def _heads(batch: HitBatch) -> tuple[Any, Any]:
    """Return what is before each excerpt, as rows of bytes, and which of them count."""
    array = batch.array
    layers, which = np.unique(array["layer"], return_inverse=True)
    names = [f"{title_of(layer, batch.name(layer))}:".encode() for layer in layers.tolist()]
    longest = max(map(len, names))
    padded = np.frombuffer(b"".join(name.ljust(longest) for name in names), np.uint8)
    padded = padded.reshape(len(names), longest)
    is_name = np.arange(longest) < np.array(list(map(len, names)))[:, None]
    offsets = array["offset"]
    n_digits = len(str(int(offsets.max())))
    powers = 10 ** np.arange(n_digits - 1, -1, -1, dtype=np.int64)
    digits = (offsets[:, None] // powers % 10 + ord("0")).astype(np.uint8)
    is_digit = offsets[:, None] >= powers
    is_digit[:, -1] = True
    colon = np.broadcast_to(np.frombuffer(b": ", np.uint8), (len(array), 2))
    heads = np.concatenate((padded[which], digits, colon), axis=1)
    is_head = np.concatenate((is_name[which], is_digit, np.ones(colon.shape, bool)), axis=1)
    return heads, is_head


def _line_of(batch: HitBatch, i: int, *, is_coloured: bool) -> bytes:
    """Return the line of one find."""
    layer, offset = batch.array[i].item()
    content, n_bytes = batch.content(layer), int(batch.lengths[i])
    before, found, after = map(visible, excerpt(content, offset, n_bytes))
    title = title_of(layer, batch.name(layer), is_coloured=is_coloured)
    if is_coloured:
        at = f"{OFFSET_COLOUR}{offset}{NO_COLOUR}"
        line = f"{title}:{at}: {before}{FOUND_COLOUR}{found}{NO_COLOUR}{after}\n"
    else:
        line = f"{title}:{offset}: {before}{found}{after}\n"
    return line.encode("utf-8", "replace")


def hit_records(batch: HitBatch) -> Iterator[dict[str, Any]]:
    """Describe each find of a batch, with what is around."""
    lengths = batch.lengths.tolist()
    last, layer_id, name, content = -1, "", "", memoryview(b"")
    for (layer, offset), n_bytes in zip(batch.array.tolist(), lengths, strict=True):
        if layer != last:
            last, content = layer, batch.content(layer)
            layer_id, name = str(LayerId.from_packed(layer)), visible(batch.name(layer))
        before, found, after = excerpt(content, offset, n_bytes)
        yield {
            "layer": layer_id,
            "name": name,
            "offset": offset,
            "n_bytes": n_bytes,
            "before": before,
            "found": found,
            "after": after,
        }
