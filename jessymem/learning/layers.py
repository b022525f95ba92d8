"""`LearnedLayer`: one layer whose content lies in a block of memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import ref

import numpy as np
import xxhash

from jessymem.engine.crystallizing import Crystallizing
from jessymem.ids import LayerId
from jessymem.pools.stored import StoredBlock
from jessymem.regions.drafts import LayerDraft
from jessymem.regions.metadata import ContentLocation, LayerState


class LearnedLayer:
    """A proto layer, or a file's layer with content laid over it; immutable but for its progress.

    Parameters
    ----------
    draft : LayerDraft
        What describes it, with a read-only view of the block as its content.
    block : StoredBlock or None
        Where its content lies; None: it is empty.
    n_base : int or None
        Of an overlay: how many bytes at its beginning are the layer's that it lies over.

    Attributes
    ----------
    writer : weak reference to Crystallizing, or None
        Who writes it to disk; that is over when there is none. Changed under the writer lock.
    attempt : (int, int) or None
        Generation and creation time of the file that was last written with it.
    written_generation : int or None
        Of the file with which it came to disk; None: it did not, as far as its writer was told.
    is_over_simulation : bool
        Whether a simulated layer lies under it: that is never written.
    """

    __slots__ = (
        "attempt",
        "block",
        "draft",
        "is_over_simulation",
        "n_base",
        "writer",
        "written_generation",
    )

    def __init__(
        self, draft: LayerDraft, block: StoredBlock | None, n_base: int | None = None
    ) -> None:
        self.draft = draft
        self.block = block
        self.n_base = n_base
        self.writer: ref[Crystallizing] | None = None
        self.attempt: tuple[int, int] | None = None
        self.written_generation: int | None = None
        self.is_over_simulation = False

    @classmethod
    def keeping(
        cls, draft: LayerDraft, block: StoredBlock | None, n_base: int | None = None, **changes: Any
    ) -> LearnedLayer:
        """Make a layer of a draft, with a block's view as its content and further changes."""
        content = block.view if block is not None else memoryview(b"")
        return cls(replace(draft, content=content, **changes), block, n_base)

    @property
    def number(self) -> int:
        """Its layer number."""
        return self.draft.layer

    @property
    def content(self) -> memoryview:
        """Its bytes."""
        view: memoryview = self.draft.content
        return view

    @property
    def is_overlay(self) -> bool:
        """Whether a file's layer lies under it."""
        return self.n_base is not None

    @property
    def state(self) -> LayerState:
        """How far it has come: created, active once it has content, on its way to disk, there.

        It follows from other things, so that no interrupt leaves it behind them.
        """
        if self.is_crystallizing:
            return LayerState.CRYSTALLIZING
        if self.written_generation is not None:
            return LayerState.CRYSTALLIZED
        return LayerState.ACTIVE if len(self.draft.content) else LayerState.CREATED

    @property
    def is_crystallizing(self) -> bool:
        """Whether it is being written to disk."""
        writer = None if self.writer is None else self.writer()
        return writer is not None and not writer.is_over

    @property
    def is_crystallized(self) -> bool:
        """Whether it is on disk already."""
        return self.state is LayerState.CRYSTALLIZED

    def note_written(self, generation: int | None) -> None:
        """Note that the region file has it from a generation on; None: it has not.

        The first that was told counts: later ones may be without it.
        """
        if generation is not None and self.written_generation is None:
            self.written_generation = generation

    def is_in(self, files: Any) -> bool:
        """Tell whether region files hold it, as they were written with it or later.

        Others may have changed it since.

        Parameters
        ----------
        files : MmapRegion or RegionChain
        """
        if not files.has_layer(self.number):
            return False
        file = files.member_with(self.number)
        if self.attempt == (file.generation, file.created_at):
            return True
        if self.written_generation is not None:
            return bool(file.generation >= self.written_generation)
        if self.attempt is None or file.generation <= self.attempt[0]:
            return False
        # The attempt may have been done after all, and then have been written again by others.
        row = file.rows[file.find_row(LayerId(file.dimension_id, self.number))]
        n_bytes = int(row["content_end"]) - int(row["content_offset"])
        return n_bytes == len(self.content) and int(row["content_xxh3"]) == self.checksum()

    def is_gone_from(self, files: Any) -> bool:
        """Tell whether it came to disk, and later files have it no longer: it was deleted.

        Parameters
        ----------
        files : MmapRegion or RegionChain
        """
        written = self.written_generation
        if written is None or files.has_layer(self.number):
            return False
        return bool(files.generation > written)

    @property
    def location(self) -> ContentLocation:
        """Where its content is."""
        return ContentLocation.HYBRID if self.is_overlay else ContentLocation.HEAP

    @property
    def tail(self) -> memoryview:
        """What was laid over, with the separators before it."""
        return self.content[self.n_base or 0 :]

    def checksum(self) -> int:
        """Return the XXH3-64 of its content."""
        return xxhash.xxh3_64_intdigest(self.content)

    def fill_row(self, row: Any, content_address: int) -> None:
        """Describe it in a LAYER row of a region whose bytes begin at `content_address`.

        The offset leads to the block, on whichever side of the region that lies; it wraps around.
        """
        draft = self.draft
        start = 0 if self.block is None else self.block.address - content_address
        end = start + len(draft.content)
        row["content_offset"] = np.uint64(start % 2**64)
        row["content_end"] = np.uint64(end % 2**64)
        row["layer_num"] = draft.layer
        row["depth"] = draft.depth
        row["frequency"] = draft.frequency
        row["parent"] = int(draft.parent or 0)
        row["encoding"] = draft.encoding
        row["keyword_count"] = len(draft.keywords)
