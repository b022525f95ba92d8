"""A manager with every kind of layer, and what each of them holds."""

from __future__ import annotations

from jessymem import LayerId, MemoryConfig, MmapManager, RegionBuilder
from support.regions import region_file, write_packed

POOLS = [(1, 4096), (8, 65_536)]
NOT_THERE = [int(LayerId(15, 8)), int(LayerId(16, 1)), int(LayerId(2, 0)), 0, -1, 5, 2**62]


def mixed_store(base, **settings):
    """Return a manager and what each of its layers holds, by id.

    D15 is dense, D16 has gaps and empty layers, D17 is a plain file with contents at odd offsets,
    D18 is a file with proto layers and overlays, D19 is in memory only.
    """
    contents = {}

    def build(number, layers):
        builder = RegionBuilder(number, f"dimension {number}")
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
