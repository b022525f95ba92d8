"""Learn layers in memory while others read, and make them part of a region file."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from jessymem import MmapManager, RegionBuilder


def main(base: Path) -> None:
    """Write D15 below `base`, learn in it, crystallize, and read it anew."""
    builder = RegionBuilder("D15", "Field notes")
    builder.add_layer(0, "Rain since Monday.", keywords=["weather"])
    builder.build_to_file(base / "D15" / "region.mmap")

    with MmapManager(base_path=base) as manager:
        manager.load_dimension("D15")
        layer = manager.create_proto_dimension("D15", "The bridge held.", keywords=["river"])
        manager.overlay_layer("L15-00", "Still raining.")
        view = manager.access_layer(layer)  # valid for as long as it is held
        manager.update_proto_dimension(layer, "The bridge is closed.")
        waiting = manager.get_stats().waiting_bytes
        sys.stdout.write(f"{bytes(view).decode()} {waiting} bytes wait for this view\n")
        written = manager.crystallize_dimension("D15")  # durable when this returns
        sys.stdout.write(f"crystallized {written}: {manager.get_layer_info(layer).state.value}\n")

    with MmapManager(base_path=base) as manager:  # as after a restart
        manager.load_dimension("D15")
        sys.stdout.write(manager.load_contexts(["L15-00", layer]).format_for_llm())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
