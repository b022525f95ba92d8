"""Region files for tests: built as users do, or written byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from jessymem import MmapRegion, RegionBuilder
from jessymem.kernels import schema as s


def region_file(base: Path, dimension: str) -> Path:
    return base / dimension / "region.mmap"


def build_region(
    base: Path, dimension: str, content: bytes | str = b"content", layers: int = 1
) -> Path:
    builder = RegionBuilder(dimension, f"name of {dimension}")
    for number in range(layers):
        builder.add_layer(number, content)
    builder.build_to_file(region_file(base, dimension))
    return region_file(base, dimension)


def build_one_layer(target: Path, content: bytes) -> MmapRegion:
    """Write D20 with one layer to `target`, or its next generation."""
    builder = RegionBuilder("D20", "Name")
    builder.add_layer(0, content)
    return builder.build_to_file(target)


def write_sparse(base, number, n_bytes, n_layers=0):
    """Write a plain V1 file, a hole for the most part, with layers 0, 1, ... of one byte each."""
    path = base / f"D{number:02d}" / "region.mmap"
    path.parent.mkdir(parents=True, exist_ok=True)
    magic = b"JESSY_MMAP_V1"
    with path.open("wb") as file:
        file.write(struct.pack("<II64sQI16s156x", number, 0, b"", n_bytes, n_layers, magic))
        for layer in range(n_layers):
            file.write(struct.pack("<HBfIQI", layer, 0, 1.0, 0, n_bytes - 1 - layer, 1))
        file.truncate(n_bytes)
    return path


def write_packed(path, number, layers):
    """Write a plain file whose contents follow each other without a gap."""
    entries = b"".join(
        np.array([(layer, 0, 1.0, 0)], s.LAYER_ENTRY).tobytes() + bytes(s.LAYER_EXTENT.itemsize)
        for layer in layers
    )
    at = s.HEADER_BYTES + len(entries)
    pieces, packed = [], bytearray(entries)
    for i, content in enumerate(layers.values()):
        extent_at = (i + 1) * s.MIN_ENTRY_BYTES - s.LAYER_EXTENT.itemsize
        extent = np.array([(at, len(content))], s.LAYER_EXTENT).tobytes()
        packed[extent_at : extent_at + len(extent)] = extent
        pieces.append(content)
        at += len(content)
    header = np.zeros(1, s.HEADER)
    header["dimension_id"], header["total_size"] = number, at
    header["layer_count"], header["magic"] = len(layers), s.MAGIC
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + packed + b"".join(pieces))


def make_files_of_many_kinds(base: Path) -> None:
    """Make D20 and D21, D22 as a plain file, and others: large, empty, not what they say.

    D23 and D24 fit into a MiB one at a time, D25 has an empty layer, the table of D26 is broken,
    and beside D27 lies what is no generation.
    """
    contents = {20: b"rain since Monday", 21: b"rain", 22: b"rain", 23: b"a" * 600_000}
    contents |= {24: b"a" * 600_000, 25: b"", 26: b"x", 27: b"x"}
    for dimension, content in contents.items():
        builder = RegionBuilder(dimension, "Name")
        builder.add_layer(0, content, keywords=["joy"])
        if dimension in (20, 21):
            builder.add_array(1, np.arange(5))
        path = base / f"D{dimension}" / "region.mmap"
        builder.build_to_file(path)
        found = bytearray(path.read_bytes())
        if dimension == 22:
            found[100:256] = bytes(156)
        if dimension == 26:
            found[140] ^= 255
        if found != path.read_bytes():
            path.unlink()
            path.write_bytes(found)
    (base / "D27" / "region.g2.mmap").mkdir()
