"""Keep arrays as layers, read them with no copy, and send references in their place."""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np

from jessymem import MmapManager, RegionBuilder


def main(base: Path) -> None:
    """Write D15 below `base`, add what is computed from it, and show a few numbers."""
    rain = np.random.default_rng(1).gamma(2.0, size=(365, 24)).astype("f4")
    stations = np.array([("north", 51.5), ("south", 48.1)], [("name", "U8"), ("latitude", "f8")])
    builder = RegionBuilder("D15", "Weather")
    builder.add_array(0, rain, name="rain", keywords=["hourly"])
    builder.add_array(1, stations, name="stations")
    builder.build_to_file(base / "D15" / "region.mmap")

    with MmapManager(base_path=base) as manager:
        manager.load_dimension("D15")
        found = manager.array("L15-00")  # a read-only view of the file's pages
        sys.stdout.write(f"{found.dtype} {found.shape}: {found.mean():.2f} mm an hour\n")
        sys.stdout.write(f"{manager.array('L15-01')['name'].tolist()}\n")

        daily = manager.create_proto_dimension("D15", found.sum(axis=1), name="daily")
        manager.crystallize_proto_dimension(daily)
        sent = pickle.dumps(manager.ref(daily))  # what another process gets in place of the array
    there = pickle.loads(sent)
    sys.stdout.write(f"{there.layer_id}: {np.max(there):.1f} mm on the wettest day\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
