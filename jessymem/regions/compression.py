"""`settle`: which of the layers that are written are compressed, and how.

A layer is compressed by itself, so that one is read without the others. Of many small ones a
dictionary tells what they have in common: trained on a part of them, kept where it pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import xxhash

from jessymem import zstd
from jessymem.ids import DimensionId
from jessymem.regions.frames import Frame
from jessymem.regions.spool import SpooledContent
from jessymem.zstd import DEFAULT_LEVEL, Compression

if TYPE_CHECKING:
    from jessymem.regions.drafts import LayerDraft
    from jessymem.regions.spool import Spool

#: What is shorter stays plain, and so does what would not become an eighth shorter.
MIN_BYTES: Final = 64
MIN_SAVING: Final = 8

#: A dictionary is for layers up to such a length, is so long itself, and is trained on at most so
#: many times as much; of fewer layers none is made. It is kept where it makes a sample of others,
#: so many layers, a twentieth shorter, with the share of it that falls to them.
DICTIONARY_LAYER_BYTES: Final = 2**13
DICTIONARY_BYTES: Final = 2**16
_TRAINING_SHARE: Final = 100
_MIN_LAYERS: Final = 64
_N_TRIED: Final = 256
_MIN_GAIN: Final = 20


class Settled(NamedTuple):
    """Layers as they are to be written.

    Attributes
    ----------
    drafts : list of LayerDraft
    dictionary : bytes
        That their frames share; empty: none does.
    n_changed : int
        How many are stored in another way than before.
    """

    drafts: list[LayerDraft]
    dictionary: bytes
    n_changed: int


def settle(
    drafts: Sequence[LayerDraft],
    compression: Compression | None,
    dimension: DimensionId,
    spool: Spool | None = None,
    *,
    trains: bool = True,
) -> Settled:
    """Compress layers that are not, or inflate those that are; all for one file.

    Parameters
    ----------
    drafts : sequence of LayerDraft
    compression : Compression or None
        None: each layer stays as it is.
    dimension : DimensionId
    spool : Spool, optional
        Where frames wait until they are written; by default in memory.
    trains : bool
        Whether a dictionary may be made.

    Notes
    -----
    Frames that come from files with dictionaries of their own keep the first of these; those with
    another one are made anew.
    """
    who = f"{dimension} is to be compressed"
    present = (each.frame.dictionary for each in drafts if each.frame is not None)
    dictionary = next(filter(None, present), b"")
    is_wanted = compression is not None and compression.level is not None
    if is_wanted and trains and not dictionary:
        dictionary = _trained(drafts, _level_of(compression), who)
    press: _Press | None = None  # the library may be missing where frames are only passed on
    found, n_changed = [], 0
    for draft in drafts:
        frame = draft.frame
        is_foreign = frame is not None and frame.dictionary not in (b"", dictionary)
        if press is None and (is_wanted or is_foreign):
            press = _Press(_level_of(compression), dictionary, spool, who)
        if frame is None:
            settled = press.compressed(draft) if is_wanted and press is not None else draft
        elif compression is not None and not is_wanted:
            settled = inflated(draft, spool)
        elif is_foreign and press is not None:
            settled = press.compressed(inflated(draft))
        else:
            settled = draft
        n_changed += settled is not draft
        found.append(settled)
    if not any(_has_dictionary(draft) for draft in found):
        dictionary = b""
    return Settled(found, dictionary, n_changed)


def inflated(draft: LayerDraft, spool: Spool | None = None) -> LayerDraft:
    """Return a compressed layer as a plain one, with its content in a spool, or in memory."""
    assert draft.frame is not None and draft.frame.parts is not None
    parts = draft.frame.parts()
    content = b"".join(parts) if spool is None else spool.append_parts(parts)
    return replace(draft, content=content, frame=None)


class _Press:
    """Compresses layer after layer."""

    def __init__(self, level: int, dictionary: bytes, spool: Spool | None, who: str) -> None:
        self._raw = dictionary
        self._spool = spool
        self._alone = zstd.Deflater(level, None, who)
        self._shared: zstd.Deflater | None = None
        if dictionary:
            self._shared = zstd.Deflater(level, zstd.read_dictionary(dictionary, who), who)

    def compressed(self, draft: LayerDraft) -> LayerDraft:
        """Return a plain layer compressed; as it is, where that saves too little."""
        n_bytes = len(draft.content)
        if n_bytes < MIN_BYTES:
            return draft
        content = whole(draft.content)
        shared = self._shared if n_bytes <= DICTIONARY_LAYER_BYTES else None
        stored = (shared or self._alone).deflate(content)
        if len(stored) > n_bytes - n_bytes // MIN_SAVING:
            return draft
        checksum = draft.content_xxh3
        frame = Frame(n_bytes, xxhash.xxh3_64_intdigest(stored), self._raw if shared else b"")
        return replace(
            draft,
            content=stored if self._spool is None else self._spool.append(stored),
            content_xxh3=xxhash.xxh3_64_intdigest(content) if checksum is None else checksum,
            frame=frame,
        )


def _trained(drafts: Sequence[LayerDraft], level: int, who: str) -> bytes:
    """Return a dictionary for small layers; empty, where it does not pay."""
    small = [
        draft
        for draft in drafts
        if draft.frame is None and MIN_BYTES <= len(draft.content) <= DICTIONARY_LAYER_BYTES
    ]
    if len(small) < _MIN_LAYERS:
        return b""
    n_tried = min(len(small) // 4, _N_TRIED)
    step = len(small) // n_tried
    tried = small[::step][:n_tried]
    chosen = {id(draft) for draft in tried}
    rest = [draft for draft in small if id(draft) not in chosen]
    n_bytes = sum(len(draft.content) for draft in rest)
    n_wanted = min(DICTIONARY_BYTES, max(n_bytes // 10, 256))
    every = max(1, n_bytes // (n_wanted * _TRAINING_SHARE))
    raw = zstd.train([bytes(whole(draft.content)) for draft in rest[::every]], n_wanted, who)
    if not raw:
        return b""
    dictionary = zstd.read_dictionary(raw, who)
    contents = [whole(draft.content) for draft in tried]
    presses = [zstd.Deflater(level, known, who) for known in (None, dictionary)]
    alone, shared = (
        sum(min(len(each), len(press.deflate(each))) for each in contents) for press in presses
    )
    cost = len(raw) * len(tried) / len(small)
    return raw if shared + cost < alone * (1 - 1 / _MIN_GAIN) else b""


def whole(content: Any) -> Any:
    """Return a content as what lends its bytes."""
    if isinstance(content, SpooledContent):
        return b"".join(content.chunks())
    return content


def _has_dictionary(draft: LayerDraft) -> bool:
    return draft.frame is not None and bool(draft.frame.dictionary)


def _level_of(compression: Compression | None) -> int:
    level = None if compression is None else compression.level
    return DEFAULT_LEVEL if level is None else level
