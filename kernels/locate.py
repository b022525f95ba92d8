"""Layer ids to places: two direct look-ups and one bounds check each.

Reads the published snapshot: DIRECTORY[dimension] -> row of REGION[] -> LAYER[] behind its address,
through a LAYER_INDEX where the layer numbers have gaps. Called by `MmapManager.load_contexts`, and
by anyone who has a snapshot's arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import memory
from jessymem.kernels._jit import READING, Int, kernel, on_promotion
from jessymem.kernels.schema import (
    ABSENT,
    DIRECTORY,
    EVICTED,
    LAYER,
    LAYER_BITS,
    LAYER_BYTES,
    LAYER_INDEX,
    LOCATION,
    MAX_LAYER,
    NO_DIMENSION,
    NO_SUCH_LAYER,
    OK,
    OUT_OF_BOUNDS,
    REGION,
    REGION_EVICTED,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OFFSET_FIELD = LAYER.fields["content_offset"][1]  # type: ignore[index]
_END_FIELD = LAYER.fields["content_end"][1]  # type: ignore[index]
_INDEX_BYTES = LAYER_INDEX.itemsize


@kernel
def find_layer_row(regions: NDArray[Any], region_row: Int, layer: Int) -> Int:
    """Find layer number `layer` in one region; return its row, or NO_SUCH_LAYER."""
    layer_row = np.int64(layer)
    if regions[region_row]["index_address"] != 0:
        if layer >= regions[region_row]["n_index"]:
            return NO_SUCH_LAYER
        address = regions[region_row]["index_address"] + layer * _INDEX_BYTES
        layer_row = np.int64(memory.load_u16(address))
    if layer_row >= regions[region_row]["n_layers"]:
        return NO_SUCH_LAYER
    return layer_row


@kernel
def locate(
    directory: NDArray[Any], regions: NDArray[Any], layer_id: Int, out: NDArray[Any], i: Int
) -> Int:
    """Write where `layer_id` lies into ``out[i]``; return OK or the code that says why not.

    Each word of the layer's row is read once, checked, then used: the row may lie in a file that
    someone else rewrites.
    """
    dimension = layer_id >> LAYER_BITS
    out[i]["region_row"] = ABSENT
    out[i]["layer_row"] = ABSENT
    out[i]["content_offset"] = 0
    out[i]["content_end"] = 0
    if dimension < 0 or dimension >= directory.shape[0]:
        return NO_DIMENSION
    region_row = directory[dimension]
    if region_row == ABSENT:
        return NO_DIMENSION
    layer_row = find_layer_row(regions, region_row, layer_id & MAX_LAYER)
    if layer_row < 0:
        if regions[region_row]["state"] == REGION_EVICTED:
            return EVICTED
        return layer_row
    row_address = regions[region_row]["table_address"] + layer_row * LAYER_BYTES
    start = memory.load_i64(row_address + _OFFSET_FIELD)
    end = memory.load_i64(row_address + _END_FIELD)
    if start < 0 or end < start or end > regions[region_row]["n_bytes"]:
        # Content in memory lies where its offset leads, on either side of the region; such a table
        # is private and was checked when it was made.
        if regions[region_row]["n_in_memory"] == 0 or end < start:
            return OUT_OF_BOUNDS
    out[i]["region_row"] = region_row
    out[i]["layer_row"] = layer_row
    out[i]["content_offset"] = start
    out[i]["content_end"] = end
    return OK


@kernel
def locate_many(
    directory: NDArray[Any], regions: NDArray[Any], layer_ids: NDArray[Any], out: NDArray[Any]
) -> Int:
    """Write where each of `layer_ids` (int64) lies into `out`; return how many were not found."""
    n_missing = 0
    for i in range(layer_ids.shape[0]):
        code = locate(directory, regions, layer_ids[i], out, i)
        out[i]["code"] = code
        if code != OK:
            n_missing += 1
    return n_missing


@on_promotion(READING)
def _call_first() -> None:
    directory, regions = np.full(1, ABSENT, DIRECTORY), np.zeros(1, REGION)
    directory.flags.writeable = regions.flags.writeable = False  # as they are published
    locate_many(directory, regions, np.zeros(1, np.int64), np.zeros(1, LOCATION))
