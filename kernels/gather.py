"""Many layers into one contiguous buffer: their sizes summed, then their bytes copied.

Works on LOCATION rows that `lookup.locate_many` has written, which are checked and private: what
else is done to the files, no byte outside a region is read. Called by `MmapManager.gather`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jessymem.kernels import lookup, memory
from jessymem.kernels._jit import READING, Int, kernel, on_promotion
from jessymem.kernels.schema import DIRECTORY, LOCATION, OK

if TYPE_CHECKING:
    from numpy.typing import NDArray


@kernel
def sum_sizes(locations: NDArray[Any], offsets: NDArray[Any]) -> Int:
    """Write where each layer begins in a buffer of all, int64; return the length of the buffer.

    `offsets` has one item more than `locations`: the last is the length.
    """
    total = np.int64(0)
    for i in range(locations.shape[0]):
        offsets[i] = total
        total += locations[i]["size"]
    offsets[locations.shape[0]] = total
    return total


@kernel
def copy_layers(
    directory: NDArray[Any], locations: NDArray[Any], offsets: NDArray[Any], out: NDArray[Any]
) -> None:
    """Copy the bytes of each layer to its own part of `out`, uint8."""
    first, target = directory.ctypes.data, out.ctypes.data
    for i in range(locations.shape[0]):
        if locations[i]["status"] == OK:
            region = lookup.find_region(first, np.int64(locations[i]["slot"]))
            source = memory.load_i64(region + lookup.CONTENT_ADDRESS) + locations[i]["offset"]
            memory.copy_bytes(target + offsets[i], source, locations[i]["size"])


@on_promotion(READING)
def _call_first() -> None:
    directory = np.zeros(0, DIRECTORY)
    directory.flags.writeable = False  # as it is published
    locations = np.zeros(0, LOCATION)
    sum_sizes(locations, np.zeros(1, np.int64))
    copy_layers(directory, locations, np.zeros(1, np.int64), np.zeros(1, np.uint8))
