"""Overlays: a file's layer and what was learned on top of it, put together in one block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash

from jessymem.engine.naming import naming
from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.learning.layers import LearnedLayer
from jessymem.pools import stored
from jessymem.regions.drafts import Content, as_content
from jessymem.regions.table import LayerTable

if TYPE_CHECKING:
    from jessymem.pools.allocator import PoolAllocator
    from jessymem.regions.drafts import LayerDraft


class Addition(NamedTuple):
    """What is to be appended."""

    separator: Any
    content: Any
    is_text: bool


def as_addition(layer_id: LayerId, content: Content, separator: str | bytes) -> Addition:
    """Check what is to be laid over a layer.

    Bytes that separate are taken for text where they are UTF-8.
    """
    data, encoding, _ = as_content(content, layer_id, is_copied=False)
    if not isinstance(separator, str | bytes):
        raise TypeError(
            f"{layer_id}: the separator is text or bytes, not {type(separator).__name__}"
        )
    between, *_ = as_content(separator, layer_id, is_copied=False)
    try:
        bytes(between).decode()
    except UnicodeDecodeError:
        encoding = s.ENCODING_BYTES
    return Addition(between, data, encoding == s.ENCODING_TEXT)


def lay_over(
    blocks: Callable[[], PoolAllocator],
    table: LayerTable,
    layer_id: LayerId,
    old: LearnedLayer | None,
    addition: Addition,
) -> LearnedLayer:
    """Put a layer, or its overlay `old`, and an addition together in a new block."""
    table.find_row(layer_id)
    if old is not None:
        draft, n_base = old.draft, old.n_base
    else:
        base = table.base
        draft = replace(base.draft_of(base.find_row(layer_id)), content_xxh3=None)
        n_base = len(draft.content)
    if draft.encoding == s.ENCODING_ARRAY:
        raise TypeError(f"{layer_id} is an array: nothing can be laid over it")
    pieces = [draft.content, addition.separator, addition.content]
    with naming(layer_id):
        fresh = _store(blocks(), draft, pieces, n_base, addition.is_text)
    is_simulated = table.is_simulated(layer_id.layer)
    fresh.is_over_simulation = is_simulated if old is None else old.is_over_simulation
    return fresh


def lay_again(
    blocks: Callable[[], PoolAllocator], base: Any, learned: Iterable[LearnedLayer]
) -> dict[int, LearnedLayer]:
    """Return, by number, new overlays for those whose layer is another in a base.

    Those that a thread is writing stay: it merges them itself.
    """
    fresh: dict[int, LearnedLayer] = {}
    for layer in learned:
        is_written_now = layer.is_crystallizing
        if not layer.is_overlay or is_written_now or not base.has_layer(layer.number):
            continue
        row = base.find_row(LayerId(base.dimension_id, layer.number))
        is_simulated = base.is_simulated(layer.number)
        member, there = base.origin_of(row)
        (stored,) = member.drafts_of(np.array([there]))  # not inflated, if it is compressed
        if layer.is_over_simulation != is_simulated or not _is_unchanged(stored, layer):
            under = base.draft_of(row)
            pieces = [under.content, layer.tail]
            is_text = layer.draft.encoding == s.ENCODING_TEXT
            draft = replace(under, content_xxh3=None)
            with naming(LayerId(base.dimension_id, layer.number)):
                relaid = _store(blocks(), draft, pieces, len(under.content), is_text)
            relaid.is_over_simulation = is_simulated
            fresh[layer.number] = relaid
    return fresh


def _is_unchanged(under: LayerDraft, layer: LearnedLayer) -> bool:
    """Tell whether an overlay has what is to lie under it now, and its description."""
    described = replace(
        layer.draft,
        content=under.content,
        content_xxh3=under.content_xxh3,
        encoding=under.encoding,
        array_header=under.array_header,
        frame=under.frame,
    )
    if described != under:
        return False
    mine = layer.content[: layer.n_base]
    if under.frame is None:
        return is_same(under.content, mine)
    is_as_long = under.frame.n_bytes == len(mine)
    return is_as_long and under.content_xxh3 == xxhash.xxh3_64_intdigest(mine)


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two contents are equal, at memory speed."""
    if len(one) != len(other):
        return False
    return xxhash.xxh3_128_digest(one) == xxhash.xxh3_128_digest(other)


def _store(
    blocks: PoolAllocator, draft: LayerDraft, pieces: list[Any], n_base: int | None, is_text: bool
) -> LearnedLayer:
    n_bytes = sum(map(len, pieces))
    if n_bytes > s.MAX_CONTENT_BYTES:
        raise ValueError(f"{n_bytes:,} bytes together; the format allows {s.MAX_CONTENT_BYTES:,}")
    is_text = is_text and draft.encoding == s.ENCODING_TEXT
    encoding = s.ENCODING_TEXT if is_text else s.ENCODING_BYTES
    block = stored.store(blocks, [pieces])[0] if n_bytes else None
    # What is laid over an array that another writer has put there makes it bytes.
    return LearnedLayer.keeping(draft, block, n_base, encoding=encoding, array_header=b"")
