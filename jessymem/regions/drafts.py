"""`LayerDraft`: one layer that is to be, its arguments checked once for whoever makes layers."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from jessymem.ids import LayerId, LayerLike, as_layer_id
from jessymem.kernels import schema as s

_MAX_FREQUENCY: Final = float(np.finfo(np.float32).max)

Content = str | bytes | bytearray | memoryview


@dataclass(frozen=True)
class LayerDraft:
    """One layer with its content, which is anything that has a length and a buffer.

    Attributes
    ----------
    name, keywords
        As they stand in a file.
    content_xxh3 : int or None
        The checksum that came with the content; None: it is to be computed.
    """

    layer: int
    content: Any
    name: bytes = b""
    frequency: float = 1.0
    depth: int = 0
    keywords: tuple[bytes, ...] = ()
    parent: LayerId | None = None
    encoding: int = s.ENCODING_BYTES
    content_xxh3: int | None = None


def make_draft(
    layer_id: LayerId,
    content: Content,
    *,
    name: str = "",
    frequency: float = 1.0,
    depth: int = 0,
    keywords: Iterable[str] = (),
    parent: LayerLike | None = None,
) -> LayerDraft:
    """Check what a user says of a layer; `RegionBuilder.add_layer` describes it.

    Raises
    ------
    ValueError, TypeError
        If an argument is not of that form.
    """
    data, encoding = as_content(content, layer_id)
    return LayerDraft(
        layer=layer_id.layer,
        content=data,
        name=encode_text(name, f"{layer_id}: the name"),
        frequency=_as_frequency(frequency, layer_id),
        depth=_as_depth(depth, layer_id),
        keywords=_as_keywords(keywords, layer_id),
        parent=_as_parent(parent, layer_id),
        encoding=encoding,
    )


def encode_text(text: object, what: str) -> bytes:
    """Return text as UTF-8; `what` names it in the error."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} cannot be written as UTF-8: {error}") from None


def as_content(content: object, layer_id: LayerId) -> tuple[bytes, int]:
    """Return a content's bytes and their ENCODING_*; what is mutable is copied."""
    if isinstance(content, str):
        data, encoding = encode_text(content, f"{layer_id}: the content"), s.ENCODING_TEXT
    elif isinstance(content, bytes | bytearray | memoryview):
        data, encoding = bytes(content), s.ENCODING_BYTES
    else:
        raise TypeError(f"{layer_id}: content is text or bytes, not {type(content).__name__}")
    if len(data) > s.MAX_CONTENT_BYTES:
        raise ValueError(
            f"{layer_id}: content of {len(data):,} bytes; the format allows {s.MAX_CONTENT_BYTES:,}"
        )
    return data, encoding


def _as_frequency(value: object, layer_id: LayerId) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{layer_id}: the frequency is a number, not {type(value).__name__}")
    try:
        frequency = float(value)
    except OverflowError:  # an integer beyond every float
        frequency = math.inf
    if not abs(frequency) <= _MAX_FREQUENCY:  # NaN included
        raise ValueError(f"{layer_id}: the frequency is finite as a 32-bit float, not {value}")
    return frequency


def _as_depth(value: Any, layer_id: LayerId) -> int:
    try:
        depth = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        raise TypeError(
            f"{layer_id}: the depth is an integer, not {type(value).__name__}"
        ) from None
    if not 0 <= depth <= 255:
        raise ValueError(f"{layer_id}: the depth is 0 to 255, not {value}")
    return depth


def _as_keywords(value: Iterable[str], layer_id: LayerId) -> tuple[bytes, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{layer_id}: keywords are a sequence of strings, not {value!r}")
    keywords = tuple(encode_text(keyword, f"{layer_id}: a keyword") for keyword in value)
    if len(keywords) > s.MAX_KEYWORDS:
        raise ValueError(
            f"{layer_id}: {len(keywords):,} keywords; the format allows {s.MAX_KEYWORDS:,}"
        )
    return keywords


def _as_parent(value: LayerLike | None, layer_id: LayerId) -> LayerId | None:
    parent = None if value is None else as_layer_id(value)
    if parent == layer_id:
        raise ValueError(f"{layer_id}: a layer is not its own parent")
    return parent
