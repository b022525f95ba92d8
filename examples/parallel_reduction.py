"""Sum every 32-bit word of every layer on all cores, in compiled code of one's own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numba
import numpy as np

from jessymem import MmapManager, RegionBuilder
from jessymem.kernels import layer_array


@numba.njit(parallel=True)
def add_up(store, ids):
    """Add up the words of some layers; each core takes a share of the ids."""
    total = np.uint64(0)
    for i in numba.prange(ids.shape[0]):
        words = layer_array(store, ids[i], np.uint32)  # no copy, no lock, no GIL
        subtotal = np.uint64(0)
        for word in words:
            subtotal += np.uint64(word)
        total += subtotal
    return total


def main(base: Path) -> None:
    """Write two dimensions below `base` and reduce them."""
    expected = 0
    random = np.random.default_rng(1)
    for dimension in ("D15", "D16"):
        builder = RegionBuilder(dimension, "Random words")
        for layer in range(200):
            words = random.integers(0, 2**32, 4096, np.uint32)
            builder.add_layer(layer, words.tobytes())
            expected += int(words.sum(dtype=np.uint64))
        builder.build_to_file(base / dimension / "region.mmap")

    with MmapManager(base_path=base) as manager:
        for dimension in ("D15", "D16"):
            manager.load_dimension(dimension)
        store = manager.store()  # passed as an argument, never as a global
        ids = store.layer_ids()
        total = int(add_up(store, ids))
        sys.stdout.write(f"{len(ids)} layers: {total}, expected {expected}\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
