"""The files that are measured: the same bytes in every run, built as a user would build them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from xxhash import xxh3_64_intdigest

from jessymem.config import MIB, MemoryConfig
from jessymem.demo.library import library_folder, library_sources
from jessymem.ids import DimensionId, LayerId
from jessymem.kernels.schema import (
    CHECKED_HEADER_BYTES,
    HEADER_BYTES,
    MAX_LAYERS,
    RESERVED_OFFSET,
)
from jessymem.manager import MmapManager
from jessymem.regions.builder import RegionBuilder
from jessymem.regions.paths import region_path

#: One dimension of real text, and a layer of it.
TEXT_MB: Final = 16
TEXT_LAYER_BYTES: Final = 16 * 1024

#: The first of the dimensions that hold text.
FIRST_TEXT: Final = 100


def open_manager(base: Path, total_mb: int = 2048, **settings: object) -> MmapManager:
    """Open a manager that has memory for whatever is measured, and makes nothing up."""
    config = {"total_memory_mb": total_mb, "base_path": base, "simulation": "never", **settings}
    return MmapManager(MemoryConfig(**config))  # type: ignore[arg-type]


def build(
    base: Path,
    dimension: int,
    contents: Iterable[bytes],
    compress: str | None = None,
    **properties: object,
) -> Path:
    """Write one dimension with these layers; return the path of its file."""
    builder = RegionBuilder(dimension, f"Measured {dimension}")
    for number, content in enumerate(contents):
        builder.add_layer(number, content, **properties)  # type: ignore[arg-type]
    path = region_path(base, DimensionId(dimension))
    builder.build_to_file(path, compress=compress)
    return path


def numbered(n_layers: int, n_bytes: int) -> Iterator[bytes]:
    """Yield contents of equal length, each its own number again and again."""
    for number in range(n_layers):
        yield number.to_bytes(4, "little") * (n_bytes // 4)


def noise(n_layers: int, n_bytes: int, seed: int = 1) -> list[bytes]:
    """Return contents that no file system stores in fewer bytes."""
    generator = np.random.default_rng(seed)
    return [generator.bytes(n_bytes) for _ in range(n_layers)]


def make_plain(path: Path, target: Path) -> Path:
    """Copy a region file as another writer leaves it: without an extension."""
    raw = bytearray(path.read_bytes())
    raw[RESERVED_OFFSET:HEADER_BYTES] = bytes(HEADER_BYTES - RESERVED_OFFSET)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(raw)
    return target


def build_tables(base: Path, first: int, n_dimensions: int) -> list[DimensionId]:
    """Write dimensions of 65,536 small layers each: their tables are 4 MiB a dimension.

    The first as a user would; the others are plain V1 copies of it, which is ten times as quick.
    """
    dimensions = [DimensionId(first + i) for i in range(n_dimensions)]
    source = build(base, first, numbered(MAX_LAYERS, 8))
    for dimension in dimensions[1:]:
        path = make_plain(source, region_path(base, dimension))
        with path.open("r+b") as file:
            file.write(int(dimension).to_bytes(4, "little"))
    return dimensions


def build_many(base: Path, first: int, n_dimensions: int) -> list[DimensionId]:
    """Write dimensions of four small layers each: the first as a user would, then copies of it.

    A copy has its own number in its header, and the header's checksum is made anew.
    """
    dimensions = [DimensionId(first + i) for i in range(n_dimensions)]
    raw = bytearray(build(base, first, numbered(4, 64), keywords=["many"]).read_bytes())
    for dimension in dimensions[1:]:
        raw[:4] = int(dimension).to_bytes(4, "little")
        checksum = xxh3_64_intdigest(raw[:CHECKED_HEADER_BYTES])
        raw[CHECKED_HEADER_BYTES:HEADER_BYTES] = checksum.to_bytes(8, "little")
        path = region_path(base, dimension)
        path.parent.mkdir(parents=True)
        path.write_bytes(raw)
    return dimensions


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Have the system forget what it has of files in memory, as after a start of the machine."""
    os.sync()  # what is not written yet stays
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def all_layers(
    dimensions: Iterable[int], n_layers: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the packed ids of the first layers of dimensions, in random order."""
    first = np.array([int(LayerId(int(each), 0)) for each in dimensions], np.int64)
    layer_ids = (first[:, None] + np.arange(n_layers)).ravel()
    return np.random.default_rng(1).permutation(layer_ids)


# -- real text -------------------------------------------------------------------------------------


def real_text() -> bytes:
    """Return the source files of Python's standard library, one behind the other.

    Where this Python comes without them: words at random.
    """
    found = library_sources(library_folder()).values()
    text = b"".join(path.read_bytes() for paths in found for path in paths)
    if len(text) >= MIB:
        return text
    words = "the of and to in is that for it as was with be by on not he his but at are".split()
    return " ".join(random.Random(1).choices(words, k=2 * MIB)).encode()


def build_text(
    base: Path, n_mb: int, layer_bytes: int = TEXT_LAYER_BYTES, compress: str | None = None
) -> list[DimensionId]:
    """Write dimensions of real text, 16 MiB each; a text that is shorter is repeated.

    Parameters
    ----------
    base : pathlib.Path
    n_mb : int
        Of all contents together, rounded up to whole dimensions.
    layer_bytes : int
    compress : str, optional
        As `RegionBuilder.build_to_file` takes it.

    Returns
    -------
    list of DimensionId
    """
    text = real_text()
    text *= -(-2 * TEXT_MB * MIB // len(text))  # so that any part of 16 MiB can be cut from it
    dimensions = [DimensionId(FIRST_TEXT + i) for i in range(-(-n_mb // TEXT_MB))]
    for i, dimension in enumerate(dimensions):
        begin = i * 1_000_003 % (TEXT_MB * MIB)  # no two dimensions are alike
        end = begin + TEXT_MB * MIB
        contents = (text[at : at + layer_bytes] for at in range(begin, end, layer_bytes))
        build(base, dimension, contents, compress)
    return dimensions


#: Needles that are not in the text. One with a byte that is hardly anywhere; a long one, with which
#: a search that skips by what cannot be can skip far; and some of bytes that are everywhere.
NEEDLES: Final = {
    "rare": (b"zq\xffjessy",),
    "long": (b"Zanzibar#Xylophone^quokka",),
    "common": (b"eateteatea", b" e e e e", b"in the the", b"self.self.self", b"        eeee"),
}
