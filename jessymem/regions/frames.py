"""`Frames`: a region's compressed layers: where they are stored, and how they are inflated.

The table of frames is a private copy, checked when the region is: no change of the file leads
outside of it. What stored bytes hold is believed once its checksum holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

import numpy as np
import xxhash

from jessymem.aligned import aligned_zeros
from jessymem.errors import AllocationFailed, OutOfBounds
from jessymem.ids import LayerId
from jessymem.kernels import schema as s
from jessymem.regions import faults
from jessymem.regions.faults import Source
from jessymem.regions.owners import is_compressed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jessymem.regions.layout import Layout

_BOUNDS: Final = ("content_offset", "content_end")


class Frame(NamedTuple):
    """One compressed layer as it is stored.

    Attributes
    ----------
    n_bytes : int
        Of the content.
    stored_xxh3 : int
    dictionary : bytes
        With which it was made; empty: with none.
    codec : int
        CODEC_*.
    parts : callable or None
        Returns an iterator over the content, inflated; None: it was just compressed.
    """

    n_bytes: int
    stored_xxh3: int
    dictionary: bytes = b""
    codec: int = s.CODEC_ZSTD
    parts: Callable[[], Iterator[bytes]] | None = None


class Inflater(Protocol):
    """Where inflated layers are kept for all readers of a manager."""

    def view(self, frames: Frames, row: int) -> tuple[memoryview, Any]:
        """Return a layer's content, and what holds it; None: nobody else may."""
        ...


class Frames:
    """The compressed layers of one region.

    Parameters
    ----------
    layout : Layout
        Checked, with frames.
    data : memoryview
        The region's bytes, as far as they are there.
    source : Source

    Attributes
    ----------
    supply : Inflater or None
        None: there is no manager, and contents are inflated into private memory.
    inflated : dict of int to object
        By row what `supply` keeps for this region; it goes with the region.
    is_stored : ndarray of bool
        Per row, whether the layer is compressed.
    """

    __slots__ = (
        "__weakref__",
        "_columns",
        "_data",
        "_dictionary",
        "_frame_at",
        "_layout",
        "_lengths",
        "_private",
        "_source",
        "inflated",
        "is_stored",
        "supply",
    )

    def __init__(self, layout: Layout, data: memoryview, source: Source) -> None:
        assert layout.frames is not None
        self._layout = layout
        self._data = data
        self._source = source
        self._dictionary: Any = None
        self._private: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self.supply: Inflater | None = None
        self.inflated: dict[int, Any] = {}
        self.is_stored = is_compressed(layout.rows)
        self._frame_at = memoryview(np.cumsum(self.is_stored, dtype=np.int32) - 1)
        # A number of a record takes ten times as long to read as one of a column.
        self._columns = {
            name: memoryview(np.array(layout.frames[name])) for name in s.FRAME.names or ()
        }
        # Of the checked table, before anybody can change it.
        self._lengths = np.array(layout.rows["content_end"]) - np.uint64(s.COMPRESSED_AT)

    @property
    def n_bytes(self) -> int:
        """How long what was made for it is, with the rows' starts and owners."""
        n_rows, n_frames = len(self.is_stored), len(self._columns["codec"])
        of_rows = (self.is_stored, self._frame_at, self._lengths)
        # And where it begins and ends, with who owns it, in the region's reader.
        n_bytes = sum(each.nbytes for each in of_rows) + n_rows * 3 * np.dtype(np.uint64).itemsize
        return n_bytes + n_frames * 2 * s.FRAME.itemsize + len(self._layout.dictionary)

    @property
    def dictionary(self) -> bytes:
        """The dictionary that frames share; empty: there is none."""
        return self._layout.dictionary

    def layer_id(self, row: int) -> LayerId:
        """Return the id of the layer in a row, whose layer is compressed."""
        return LayerId(self._layout.header.dimension, self._number(row))

    def has(self, row: int) -> bool:
        """Tell whether the layer in a row is compressed."""
        return bool(self.is_stored[row])

    @property
    def lengths(self) -> NDArray[np.uint64]:
        """Per row, how long the content of a compressed layer is, in bytes."""
        return self._lengths

    @property
    def bounds(self) -> tuple[memoryview, memoryview]:
        """Per row where its content begins and ends, of compressed ones in what is inflated.

        Those end where nothing does, so that no reader takes them for plain ones.
        """
        starts, ends = (np.array(self._layout.rows[each]) for each in _BOUNDS)
        starts[self.is_stored] = 0
        ends[self.is_stored] = s.COMPRESSED_AT + self._lengths[self.is_stored]
        return memoryview(starts), memoryview(ends)

    def totals(self) -> tuple[int, int, int]:
        """Return how many bytes are stored, of how many of contents, and of the dictionary."""
        n_bytes = int(self._lengths[self.is_stored].sum())
        return sum(self._columns["stored_size"]), n_bytes, len(self.dictionary)

    def cost_of(self, row: int) -> tuple[str, int]:
        """Return how a layer is compressed, and how many bytes it is stored in."""
        return s.CODECS[self._value(row, "codec")], self._value(row, "stored_size")

    def extent_of(self, row: int) -> tuple[int, int]:
        """Return where a layer's stored bytes begin and end in the region."""
        start = self._value(row, "stored_offset")
        return start, start + self._value(row, "stored_size")

    def size_of(self, row: int) -> int:
        """Return how long a layer's content is, in bytes."""
        return int(self._lengths[row])

    def stored_bytes(self, row: int) -> memoryview:
        """Return a layer's stored bytes without a copy."""
        start, end = self.extent_of(row)
        if end > len(self._data):
            raise OutOfBounds(
                f"{self.layer_id(row)}: its bytes {start} to {end} are not at hand",
                offset=start,
                size=end - start,
                region_size=len(self._data),
            )
        return self._data[start:end]

    def frame_of(self, row: int) -> Frame:
        """Return how a layer is stored."""
        return Frame(
            self.size_of(row),
            self._value(row, "stored_xxh3"),
            self.dictionary if self._value(row, "uses_dictionary") else b"",
            self._value(row, "codec"),
            partial(self.parts_of, row),
        )

    def view(self, row: int) -> tuple[memoryview, Any]:
        """Return a layer's content, and what holds it for others too, if anything does.

        Lifetime: valid and unchanged for as long as it is held.

        Raises
        ------
        RegionFormatError
            If stored bytes or content are not what their checksums are of, or no frame.
        LimitExceeded, AllocationFailed
            If there is no room to inflate it.
        ConfigError
            If the extra ``zstd`` is missing.
        """
        if self.supply is not None:
            return self.supply.view(self, row)
        return self.private_view(row), None

    def private_view(self, row: int) -> memoryview:
        """Return a layer's content in private memory, which whoever holds it shares."""
        owner = self._private.get(row)
        if owner is None:
            owner = self._empty(self.size_of(row))
            self.copy_into(row, memoryview(owner))
            owner.flags.writeable = False
            self._private[row] = owner
        return memoryview(owner)

    def copy_into(self, row: int, target: memoryview) -> None:
        """Inflate a layer into memory that is just as long; raises as `view`."""
        kept = self.inflated.get(row)
        if kept is not None:
            target[:] = kept.view
            return
        at = 0
        for part in self.parts_of(row):
            target[at : at + len(part)] = part
            at += len(part)

    def parts_of(self, row: int) -> Iterator[bytes]:
        """Yield a layer's content, in parts; the last only once the checksum holds."""
        from jessymem import zstd

        n_bytes, held = self.size_of(row), b""
        digest = xxhash.xxh3_64()
        told = int(self._layout.rows[row]["content_xxh3"])
        who = f"{self.layer_id(row)} of {self._source.path} is compressed"
        try:
            is_shared = self._value(row, "uses_dictionary")
            shared = self._read_dictionary(who) if is_shared else None
            for part in zstd.inflate(self._stored_parts(row), n_bytes, shared, who):
                if held:
                    yield held
                digest.update(part)
                held = part
        except zstd.BadFrame as error:
            self.verify(row, inflates=False)  # damage is told as such
            start = self.extent_of(row)[0]
            name, got = f"layer {self._number(row)} frame", "stored bytes that are none"
            raise faults.broken(self._source, name, start, str(error), got) from None
        if digest.intdigest() != told:
            self.verify(row, inflates=False)  # damage is told as such
        self._compare(row, "content_xxh3", told, digest.intdigest())
        yield held

    def verify(self, row: int, *, inflates: bool = True) -> None:
        """Compare a layer's stored bytes with their checksum; if it `inflates`, the content too."""
        digest = xxhash.xxh3_64()
        for part in self._stored_parts(row):
            digest.update(part)
        told = self._value(row, "stored_xxh3")
        self._compare(row, "stored_xxh3", told, digest.intdigest())
        if inflates:
            for _ in self.parts_of(row):
                pass

    def _stored_parts(self, row: int) -> Iterator[bytes]:
        """Yield a layer's stored bytes, copied: the file may be rewritten while they are read."""
        from jessymem.zstd import PART_BYTES

        stored = self.stored_bytes(row)
        for start in range(0, len(stored), PART_BYTES):
            yield bytes(stored[start : start + PART_BYTES])

    def _empty(self, n_bytes: int) -> NDArray[np.uint8]:
        try:
            return aligned_zeros(n_bytes, np.uint8)
        except MemoryError as error:
            raise AllocationFailed(
                f"the system refused {n_bytes:,} bytes for a layer of {self._source.path}",
                reason="os_refused",
                requested=n_bytes,
            ) from error

    def _compare(self, row: int, field: str, told: int, found: int) -> None:
        """Raise RegionFormatError where a checksum does not hold."""
        if told == found:
            return
        if field in (s.FRAME.names or ()):
            at = self._frame_offset(row, field)
        else:
            at = faults.field_offset(self._layout.table_offset or 0, row, field)
        name = f"layer {self._number(row)} {field}"
        raise faults.broken(self._source, name, at, f"{told:#018x}", f"{found:#018x}")

    def _read_dictionary(self, who: str) -> Any:
        if self._dictionary is None:
            from jessymem import zstd

            self._dictionary = zstd.read_dictionary(self.dictionary, who)
        return self._dictionary

    def _number(self, row: int) -> int:
        return self._value(row, "layer_num")

    def _value(self, row: int, field: str) -> int:
        """Return a field of a row's frame."""
        value: int = self._columns[field][self._frame_at[row]]
        return value

    def _frame_offset(self, row: int, field: str) -> int:
        at = self._layout.frames_offset + self._frame_at[row] * s.FRAME.itemsize
        return at + int(s.FRAME.fields[field][1])  # type: ignore[index]
