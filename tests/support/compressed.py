"""Stores with compressed layers, and the same contents in plain ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from jessymem import LayerId, MmapRegion, RegionBuilder
from support import naive
from support.layout import bytes_of
from support.regions import region_file

#: Text of words that are not the same in each layer.
WORDS = [f"{stem}{ending}" for stem in ("rain", "river", "stone") for ending in ("s", "y", "ing")]


def text_of(seed: int, n_bytes: int) -> bytes:
    """Return text that compresses, another for each seed."""
    rng = np.random.default_rng(seed)
    words = rng.choice(WORDS, n_bytes // 4 + 1)
    return " ".join(words.tolist()).encode()[:n_bytes]


def noise_of(seed: int, n_bytes: int) -> bytes:
    """Return bytes that nothing makes shorter."""
    return np.random.default_rng(seed).bytes(n_bytes)


#: Of every kind: by number, with gaps; compressed are 0, 1, 5, 6 and 9.
CONTENTS: dict[int, bytes] = {
    0: text_of(0, 3_000),
    1: text_of(1, 90_000),
    2: b"",
    3: b"short",
    4: noise_of(4, 5_000),
    5: b"a" * 100_000,
    6: np.arange(4_000, dtype="<i4").tobytes(),
    9: text_of(9, 1_200_000),  # inflated in more than one part
}
COMPRESSED = {0, 1, 5, 6, 9}


def builder_of(dimension: int, contents: dict[int, bytes] = CONTENTS) -> RegionBuilder:
    """Return a builder of these layers; number 6 is an array."""
    builder = RegionBuilder(dimension, f"dimension {dimension}")
    for number, content in contents.items():
        is_array = contents is CONTENTS and number == 6
        what = np.frombuffer(content, "<i4").reshape(-1, 8) if is_array else content
        builder.add_layer(number, what, name=f"layer {number}", keywords=["k"])
    return builder


def build(
    base: Path, dimension: int = 20, compress: str | None = "zstd", contents=CONTENTS
) -> MmapRegion:
    """Write a region file."""
    path = region_file(base, f"D{dimension}")
    return builder_of(dimension, contents).build_to_file(path, compress=compress)


def damage(base: Path, number: int, at: int) -> None:
    """Change one stored byte of a compressed layer of D20."""
    path = region_file(base, "D20")
    region = MmapRegion.from_file(20, path)
    start, _ = region.frames.extent_of(region.find_row(LayerId(20, number)))
    del region
    data = bytearray(path.read_bytes())
    data[start + at] ^= 255
    path.write_bytes(data)


def ids_of(dimension: int = 20, contents=CONTENTS) -> list[LayerId]:
    return [LayerId(dimension, number) for number in sorted(contents)]


def raw(compress: str = "zstd", contents=CONTENTS) -> bytes:
    """Return the bytes of a region of D01."""
    return bytes_of(builder_of(1, contents).build_to_memory(compress=compress))


def frame_at(data: bytes, which: int, field: str) -> int:
    """Return where in a file a field of a frame is."""
    first = naive.get_field(data, "frames_offset")
    return first + which * naive.FRAME_BYTES + naive.FRAME_FIELDS[field][0]


def get_frame(data: bytes, which: int, field: str) -> int:
    return struct.unpack_from(naive.FRAME_FIELDS[field][1], data, frame_at(data, which, field))[0]


def set_frame(data: bytes, which: int, field: str, value: int) -> bytes:
    piece = struct.pack(naive.FRAME_FIELDS[field][1], value)
    return naive.put(data, frame_at(data, which, field), piece)


def small_texts(n_layers: int = 300) -> dict[int, bytes]:
    """Return many small contents with much in common, as a dictionary is for."""
    return {
        number: json.dumps(
            {
                "identifier": number,
                "description": text_of(number, 60).decode(),
                "properties": {"created": "2026-01-01T00:00:00Z", "language": "en-GB"},
            }
        ).encode()
        for number in range(n_layers)
    }
