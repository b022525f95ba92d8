"""Layer ids to locations: two direct look-ups and one bounds check each.

Reads the published snapshot: DIRECTORY[dimension >> 6] -> REGION[dimension & 63] -> LAYER[] behind
its address, through a LAYER_INDEX where the layer numbers have gaps. Called by the manager's
batches, by `jessymem.kernels.store` inside a user's own compiled code, and by anyone who has a
snapshot's directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import atomics, memory
from jessymem.kernels._jit import READING, Int, kernel, on_promotion
from jessymem.kernels.schema import (
    ABSENT,
    CHUNK_BITS,
    CHUNK_ROWS,
    COMPRESSED,
    COMPRESSED_AT,
    DIRECTORY,
    DIRECTORY_BYTES,
    EVICTED,
    LAYER,
    LAYER_BITS,
    LAYER_BYTES,
    LAYER_INDEX,
    LOCATION,
    MAX_CONTENT_BYTES,
    MAX_LAYER,
    NO_DIMENSION,
    NO_SUCH_LAYER,
    OK,
    OUT_OF_BOUNDS,
    REGION,
    REGION_BYTES,
    REGION_EMPTY,
    REGION_EVICTED,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Rows on their way to the cache together: one by one, each of a million costs 2.5 times as much.
_N_TOGETHER = 32
#: What makes the slot of a negative id one that is too large.
_NOT_NEGATIVE = 2**48 - 1
_INDEX_BYTES = LAYER_INDEX.itemsize
_CONTENT_OFFSET = LAYER.fields["content_offset"][1]  # type: ignore[index]
_CONTENT_END = LAYER.fields["content_end"][1]  # type: ignore[index]


def _field(name: str) -> int:
    return int(REGION.fields[name][1])  # type: ignore[index]


TABLE_ADDRESS = _field("table_address")
N_LAYERS = _field("n_layers")
INDEX_ADDRESS = _field("index_address")
N_INDEX = _field("n_index")
CONTENT_ADDRESS = _field("content_address")
N_BYTES = _field("n_bytes")
LEADS_OUTSIDE = _field("leads_outside")
REGION_ID = _field("region_id")
STATE = _field("state")


@kernel(inline=True)
def find_region(directory: Int, slot: Int) -> Int:
    """Return the address of a slot's REGION row; the directory, at an address, has its chunk."""
    chunk = memory.load_i64(directory + (slot >> CHUNK_BITS) * DIRECTORY_BYTES)
    return chunk + (slot & (CHUNK_ROWS - 1)) * REGION_BYTES


@kernel(inline=True)
def find_row(region: Int, layer: Int) -> Int:
    """Find layer number `layer` in the region whose REGION row is at an address.

    Return its row in the layer table, NO_SUCH_LAYER, NO_DIMENSION or EVICTED.
    """
    row = np.int64(layer)
    index = memory.load_i64(region + INDEX_ADDRESS)
    if index != 0:
        if layer >= memory.load_i64(region + N_INDEX):
            return np.int64(NO_SUCH_LAYER)
        row = np.int64(memory.load_u16(index + layer * _INDEX_BYTES))
    if row >= memory.load_i64(region + N_LAYERS):
        state = memory.load_i32(region + STATE)
        if state == REGION_EVICTED:
            return np.int64(EVICTED)
        if state == REGION_EMPTY:
            return np.int64(NO_DIMENSION)
        return np.int64(NO_SUCH_LAYER)
    return row


@kernel(inline=True)
def find_extent(region: Int, row: Int) -> tuple[Int, Int]:
    """Return where a row's content begins, in bytes from its region's first, and its size.

    The size is a code where they lie elsewhere: COMPRESSED, and where the content would begin is
    its size then; or OUT_OF_BOUNDS. Each word of the row is read once,
    checked, then used: the row may lie in a file that someone else rewrites.
    """
    address = memory.load_i64(region + TABLE_ADDRESS) + row * LAYER_BYTES
    start = memory.load_i64(address + _CONTENT_OFFSET)
    end = memory.load_i64(address + _CONTENT_END)
    if start < 0 or end < start or end > memory.load_i64(region + N_BYTES):
        if start == COMPRESSED_AT and start < end <= start + MAX_CONTENT_BYTES:
            return end - start, np.int64(COMPRESSED)
        # Content elsewhere in memory lies where its offset leads, on either side of the region;
        # such a table is private and was checked when it was made.
        if memory.load_i64(region + LEADS_OUTSIDE) == 0 or end < start:
            return np.int64(0), np.int64(OUT_OF_BOUNDS)
    return start, end - start


@kernel(inline=True)
def find_layer(region: Int, layer: Int) -> tuple[Int, Int, Int]:
    """Return row, offset and size of a layer; row is negative, a code, where there is none.

    Of one that is COMPRESSED the size is told.
    """
    row = find_row(region, layer)
    if row < 0:
        return row, np.int64(0), np.int64(0)
    offset, n_bytes = find_extent(region, row)
    if n_bytes < 0:
        return n_bytes, np.int64(0), offset
    return row, offset, n_bytes


@kernel
def locate_many(
    directory: NDArray[Any],
    layer_ids: NDArray[Any],
    out: NDArray[Any],
    touched: NDArray[Any],
) -> Int:
    """Write where each of `layer_ids` (int64) lies into `out`; return how many are not at hand.

    ``touched[slot]`` (uint8) becomes 1 for the region of each that was found. What is compressed
    was, and has its size and its row; the rest has not.
    """
    # Rows by their addresses: arrays that pass from call to call have their references counted.
    first = directory.ctypes.data
    n_slots = directory.shape[0] << CHUNK_BITS
    n_missing = 0
    for start in range(0, layer_ids.shape[0], _N_TOGETHER):
        end = min(start + _N_TOGETHER, layer_ids.shape[0])
        for i in range(start, end):
            slot = (layer_ids[i] >> LAYER_BITS) & _NOT_NEGATIVE  # one comparison tells both ends
            row: Int = np.int64(NO_DIMENSION)
            region: Int = first
            if slot < n_slots:
                region = find_region(first, slot)
                row = find_row(region, layer_ids[i] & MAX_LAYER)
                table = memory.load_i64(region + TABLE_ADDRESS)
                atomics.prefetch_to_read(table + row * LAYER_BYTES, 0)
            out[i]["offset"] = region  # until it is known
            out[i]["row"] = row
        for i in range(start, end):
            row, region = np.int64(out[i]["row"]), out[i]["offset"]
            offset: Int = np.int64(0)
            n_bytes: Int = row
            if row >= 0:
                offset, n_bytes = find_extent(region, row)
            if n_bytes >= 0:
                slot = layer_ids[i] >> LAYER_BITS
                out[i]["offset"] = offset
                out[i]["size"] = n_bytes
                out[i]["region"] = memory.load_i32(region + REGION_ID)
                out[i]["status"] = OK
                out[i]["slot"] = slot
                touched[slot] = 1
            elif n_bytes == COMPRESSED:
                out[i]["offset"] = 0
                out[i]["size"] = offset
                out[i]["region"] = memory.load_i32(region + REGION_ID)
                out[i]["status"] = COMPRESSED
                out[i]["slot"] = layer_ids[i] >> LAYER_BITS
                touched[layer_ids[i] >> LAYER_BITS] = 1
                n_missing += 1
            else:
                out[i]["offset"] = 0
                out[i]["size"] = 0
                out[i]["region"] = ABSENT
                out[i]["status"] = n_bytes
                out[i]["slot"] = ABSENT
                out[i]["row"] = ABSENT
                n_missing += 1
    return n_missing


@on_promotion(READING)
def _call_first() -> None:
    directory = np.zeros(0, DIRECTORY)
    directory.flags.writeable = False  # as it is published
    touched = np.zeros(0, np.uint8)
    locate_many(directory, np.zeros(0, np.int64), np.zeros(0, LOCATION), touched)
