"""Build a region file, map it, and read its layers without a copy."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from jessymem import MmapManager, RegionBuilder


def main(base: Path) -> None:
    """Write D15 below `base`, read it back, and show the numbers."""
    builder = RegionBuilder("D15", "Field notes")
    builder.add_layer(0, "Rain since Monday.", keywords=["weather"], depth=0)
    builder.add_layer(1, "The river rose twice.", keywords=["river"], depth=1, parent="L15-00")
    builder.build_to_file(base / "D15" / "region.mmap")

    with MmapManager(base_path=base) as manager:
        manager.load_dimension("D15")
        for layer in manager.select(keywords=["river", "weather"]):
            view = manager.access_layer(layer)  # a read-only memoryview of the file's pages
            sys.stdout.write(f"{layer}: {len(view)} bytes\n")
        contexts = manager.load_contexts(["L15-01", "L15-00"])
        sys.stdout.write(contexts.format_for_llm(max_chars=400))
        stats = manager.get_stats()
        sys.stdout.write(f"{stats.total_allocated_bytes} bytes of {stats.total_limit_bytes}\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
