"""What tests of batches and stores share: a manager with every kind of layer, and an oracle."""

from __future__ import annotations

import numpy as np
from test_manager import region_file

from jessymem import LayerId, MemoryConfig, MmapManager, RegionBuilder
from jessymem.kernels import schema as s

POOLS = [(1, 4096), (8, 65_536)]


def write_plain(path):
    """Take the extension out of a region file, as another writer leaves it."""
    raw = bytearray(path.read_bytes())
    raw[s.RESERVED_OFFSET : s.HEADER_BYTES] = bytes(s.HEADER_BYTES - s.RESERVED_OFFSET)
    path.write_bytes(raw)


def shelve(base, **settings):
    """Return a manager and what each of its layers holds, by id.

    D15 is dense, D16 has gaps and empty layers, D17 is a plain file with contents at odd places,
    D18 is a file with proto layers and overlays, D19 is in memory only.
    """
    contents = {}

    def build(number, layers):
        builder = RegionBuilder(number, f"shelf {number}")
        for layer, content in layers.items():
            builder.add_layer(layer, content)
            contents[LayerId(number, layer)] = content
        return builder.build_to_file(region_file(base, f"D{number}"))

    build(15, {layer: bytes([layer]) * (100 * layer + 1) for layer in range(8)})
    build(16, {0: b"", 3: b"three", 700: b"", 65_535: bytes(range(256)) * 40})
    plain = {2: b"odd", 0: b"a", 9: b"twelve bytes"}
    path = region_file(base, "D17")
    write_packed(path, 17, plain)
    contents.update({LayerId(17, layer): content for layer, content in plain.items()})
    build(18, {0: b"base 0", 1: b"base 1", 4: b"base 4"})
    manager = MmapManager(
        MemoryConfig(64, base, pool_configs=POOLS, simulation="never", **settings)
    )
    for number in (15, 16, 17, 18):
        manager.load_dimension(number)
    manager.overlay_layer("L18-01", b"laid over", separator=b"|")
    contents[LayerId(18, 1)] = b"base 1|laid over"
    for number, layer, content in ((18, 2, b"learned" * 900), (19, 5, b"x" * 70_000), (19, 6, b"")):
        layer_id = manager.create_proto_dimension(number, content, layer=layer)
        contents[layer_id] = content
    return manager, contents


def write_packed(path, number, layers):
    """Write a plain file whose contents follow each other without a gap."""
    entries = b"".join(
        np.array([(layer, 0, 1.0, 0)], s.LAYER_ENTRY).tobytes() + bytes(s.LAYER_EXTENT.itemsize)
        for layer in layers
    )
    at = s.HEADER_BYTES + len(entries)
    pieces, packed = [], bytearray(entries)
    for i, content in enumerate(layers.values()):
        place = (i + 1) * s.MIN_ENTRY_BYTES - s.LAYER_EXTENT.itemsize
        extent = np.array([(at, len(content))], s.LAYER_EXTENT).tobytes()
        packed[place : place + len(extent)] = extent
        pieces.append(content)
        at += len(content)
    header = np.zeros(1, s.HEADER)
    header["dimension_id"], header["total_size"] = number, at
    header["layer_count"], header["magic"] = len(layers), s.MAGIC
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + packed + b"".join(pieces))
