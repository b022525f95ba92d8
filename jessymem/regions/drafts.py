"""`LayerDraft`: a layer to be made, its arguments checked; `EncodedContent`: its content."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jessymem.errors import shown
from jessymem.ids import DimensionId, LayerId, LayerLike, as_layer_id, is_bool, items_of
from jessymem.kernels import schema as s
from jessymem.regions.arrays import describe_array

_MAX_FREQUENCY: Final = float(np.finfo(np.float32).max)

# Text, or whatever lends its bytes: also an mmap, an array.array, a pyarrow.Buffer.
if TYPE_CHECKING:
    import jessymem
    from jessymem.regions.frames import Frame

    Content: TypeAlias = str | jessymem.hints.Buffer
else:
    Content: TypeAlias = str | bytes | bytearray | memoryview
ContentOrArray: TypeAlias = Content | NDArray[Any]


@dataclass(frozen=True)
class LayerDraft:
    """One layer with its content, which is anything that has a length and a buffer.

    Attributes
    ----------
    name, keywords
        As they are in a file.
    array_header
        What makes the content an array; empty where it is not an array.
    content_xxh3 : int or None
        The checksum that came with the content; None: it is to be computed.
    frame : Frame or None
        What is known of a compressed layer, of which `content` is what is stored.
    """

    layer: int
    content: Any
    name: bytes = b""
    frequency: float = 1.0
    depth: int = 0
    keywords: tuple[bytes, ...] = ()
    parent: LayerId | None = None
    encoding: int = s.ENCODING_BYTES
    array_header: bytes = b""
    content_xxh3: int | None = None
    frame: Frame | None = None


class EncodedContent(NamedTuple):
    """The content of a layer, checked: its bytes and how they are to be read."""

    data: Any
    encoding: int  # ENCODING_*
    array_header: bytes = b""


def make_draft(
    who: LayerId | DimensionId,
    encoded: EncodedContent,
    *,
    name: str = "",
    frequency: float = 1.0,
    depth: int = 0,
    keywords: Iterable[str] = (),
    parent: LayerLike | None = None,
) -> LayerDraft:
    """Check what a user says of a layer; `RegionBuilder.add_layer` describes it.

    Parameters
    ----------
    who : LayerId or DimensionId
        A dimension, while it is open which number the layer will have.
    encoded : EncodedContent
        From `as_content`, `as_array` or `as_content_or_array`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not of that form.
    """
    draft = LayerDraft(
        layer=who.layer if isinstance(who, LayerId) else 0,
        content=encoded.data,
        name=encode_text(name, f"{who}: the name"),
        frequency=_as_frequency(frequency, who),
        depth=_as_depth(depth, who),
        keywords=_as_keywords(keywords, who),
        parent=_as_parent(parent, who),
        encoding=encoded.encoding,
        array_header=encoded.array_header,
    )
    n_described = len(draft.name) + sum(map(len, draft.keywords)) + len(draft.array_header)
    if n_described > s.MAX_METADATA_BYTES:
        raise ValueError(
            f"{who}: name and keywords are {n_described:,} bytes; the format allows "
            f"{s.MAX_METADATA_BYTES:,} for all of a dimension"
        )
    return draft


def encode_text(text: object, what: str) -> bytes:
    """Return text as UTF-8; `what` names it in the error."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string, not {type(text).__name__}")
    if len(text) > s.MAX_CONTENT_BYTES:  # no text is shorter as UTF-8
        raise ValueError(
            f"{what} is {len(text):,} characters; the format allows no text of more than "
            f"{s.MAX_CONTENT_BYTES:,} bytes"
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} cannot be written as UTF-8: {error}") from None


def as_content(content: object, who: LayerId | DimensionId, *, is_copied: bool) -> EncodedContent:
    """Take text or bytes as they are; with `is_copied`, what could change is copied."""
    _check_length(content, who)
    if isinstance(content, str):
        data, encoding = encode_text(content, f"{who}: the content"), s.ENCODING_TEXT
    elif isinstance(content, bytes):
        data, encoding = content, s.ENCODING_BYTES
    else:
        view = _as_view(content, who)
        _check_length(view, who)
        data, encoding = _as_bytes(view, is_copied), s.ENCODING_BYTES
    _check_length(data, who)
    return EncodedContent(data, encoding)


def as_array(array: object, who: LayerId | DimensionId, *, is_copied: bool) -> EncodedContent:
    """Take an array's bytes with what makes them one; any array could change."""
    header, data = describe_array(array, who)
    return EncodedContent(bytes(data) if is_copied else data, s.ENCODING_ARRAY, header)


def as_content_or_array(
    content: object, who: LayerId | DimensionId, *, is_copied: bool
) -> EncodedContent:
    """Take an array as an array, and anything else as text or bytes."""
    take = as_array if isinstance(content, np.ndarray) else as_content
    return take(content, who, is_copied=is_copied)


def _check_length(content: Any, who: LayerId | DimensionId) -> None:
    """Refuse what is too long before it is copied; no text is shorter as UTF-8."""
    try:
        n_bytes = content.nbytes if isinstance(content, memoryview) else len(content)
    except (TypeError, ValueError):
        return  # no content at all, or a view that was released
    if n_bytes > s.MAX_CONTENT_BYTES:
        raise ValueError(
            f"{who}: content of {n_bytes:,} bytes; the format allows {s.MAX_CONTENT_BYTES:,}"
        )


def _as_view(content: Any, who: LayerId | DimensionId) -> memoryview:
    """Return a view of what lends its bytes."""
    if isinstance(content, np.generic | np.ndarray):  # a number, or what `as_array` takes
        raise TypeError(f"{who}: content is text or bytes, not {type(content).__name__}")
    try:
        return memoryview(content)
    except TypeError:
        raise TypeError(f"{who}: content is text or bytes, not {type(content).__name__}") from None
    except (ValueError, BufferError) as error:  # it was released, or closed
        raise ValueError(f"{who}: the content cannot be read: {error}") from None


def _as_bytes(view: memoryview, is_copied: bool) -> Any:
    if is_copied or not view.c_contiguous or not view.nbytes:
        return view.tobytes()
    return view.cast("B")


def _as_frequency(value: object, who: LayerId | DimensionId) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{who}: the frequency is a number, not {type(value).__name__}")
    try:
        frequency = float(value)
    except OverflowError:  # an integer beyond every float
        frequency = math.inf
    if not abs(frequency) <= _MAX_FREQUENCY:  # NaN included
        raise ValueError(f"{who}: the frequency is finite as a 32-bit float, not {shown(value)}")
    return frequency


def _as_depth(value: Any, who: LayerId | DimensionId) -> int:
    try:
        depth = -1 if is_bool(value) else operator.index(value)
    except TypeError:
        raise TypeError(f"{who}: the depth is an integer, not {type(value).__name__}") from None
    if not 0 <= depth <= 255:
        raise ValueError(f"{who}: the depth is 0 to 255, not {shown(value)}")
    return depth


def _as_keywords(value: Iterable[str], who: LayerId | DimensionId) -> tuple[bytes, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{who}: keywords are a sequence of strings, not {shown(value)}")
    words = items_of(value, f"{who}: keywords")
    keywords = tuple(encode_text(keyword, f"{who}: a keyword") for keyword in words)
    if len(keywords) > s.MAX_KEYWORDS:
        raise ValueError(f"{who}: {len(keywords):,} keywords; the format allows {s.MAX_KEYWORDS:,}")
    return keywords


def _as_parent(value: LayerLike | None, who: LayerId | DimensionId) -> LayerId | None:
    parent = None if value is None else as_layer_id(value)
    if parent == who:
        raise ValueError(f"{who}: a layer is not its own parent")
    return parent
