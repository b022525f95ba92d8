"""`.npy` files, NumPy's own, to what an array's layer holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jessymem import osmem
from jessymem.errors import RegionIOError
from jessymem.ids import LayerId
from jessymem.regions.arrays import NoDescription, measure_description, read_description
from jessymem.regions.drafts import EncodedContent, as_array

# The magic, the version, and the longest form in which the header's length is told.
_START_BYTES = 12


def is_npy(name: str) -> bool:
    """Tell by its name whether a file is to be an array."""
    return name.lower().endswith(".npy")


def read_npy(
    path: Path, layer_id: LayerId, take: Callable[[Path], osmem.FileBytes] = osmem.read_file
) -> EncodedContent:
    """Read a `.npy` file; its elements are not copied again.

    Parameters
    ----------
    path : pathlib.Path
    layer_id : LayerId
        For messages.
    take : callable
        With `osmem.map_file` nothing but the header is read.

    Raises
    ------
    RegionIOError
        If it cannot be read or is not a regular file.
    NoDescription
        If it is not a `.npy` file, holds objects, or is longer or shorter than it says.
    TypeError, ValueError
        As `RegionBuilder.add_array`.
    """
    try:
        view = memoryview(take(path).data)
    except OSError as error:
        raise RegionIOError.from_os_error(error, "read", path) from error
    return parse_npy(view, layer_id)


def parse_npy(view: memoryview, layer_id: LayerId) -> EncodedContent:
    """Take the bytes of a `.npy` file; raise as `read_npy` where they are none."""
    n_header = measure_description(bytes(view[:_START_BYTES]))
    form = read_description(bytes(view[:n_header]))
    content = view[n_header:]
    if form.n_bytes != len(content):
        raise NoDescription(f"{form.n_bytes:,} bytes behind the header", len(content))
    return as_array(form.make_array(content), layer_id, is_copied=False)
