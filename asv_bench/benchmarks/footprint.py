"""Memory: what opening costs, what processes share, what blocks leave unused."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from .common import (
    FIRST_TABLE,
    MIB,
    N_LAYERS,
    STORE_MB,
    Tables,
    Texts,
    geometry,
    kept,
    module,
    named,
    open_store,
    text_dimensions,
)


class Open_TextOfNMB(Texts):
    """Mapped is not resident: flat, however much is opened. Read it, and its pages are there."""

    params = STORE_MB
    param_names = ["MB"]
    version = "1"

    def setup(self, base, n_mb):
        self.footprint = module("bench.footprint")

    @named("resident after opening, beyond the imports")
    def track_resident(self, base, n_mb):
        return self.footprint.resident_after_opening(base, text_dimensions(n_mb))

    track_resident.unit = "bytes"

    @named("peak of a process that opens and reads all")
    def peakmem_read_all(self, base, n_mb):
        manager = open_store(base, text_dimensions(n_mb))
        for layer in manager.list_layers():
            np.frombuffer(manager.access_layer(layer), np.uint64).sum()
        manager.close()


class Shared_TextOfNMB(Texts):
    """Processes that all read all of it: one copy, however many."""

    params = [geometry([64, 272], [16]), geometry([1, 8], [2])]
    param_names = ["MB", "processes"]
    version = "1"
    timeout = 300

    def setup(self, base, n_mb, n_processes):
        self.footprint = module("bench.footprint")

    @named("proportional set size of all processes, as a share of the store")
    def track_shared(self, base, n_mb, n_processes):
        total = self.footprint.shared_by_processes(base, text_dimensions(n_mb), n_processes)
        return 100 * total / (n_mb * MIB)

    track_shared.unit = "%"


class Tables_NLayers(Tables):
    """What a layer costs beside its content: on disk, and in memory of one's own."""

    params = N_LAYERS
    param_names = ["layers"]
    version = "1"

    @named("bytes in the file for each layer of 8 bytes")
    def track_file_bytes_per_layer(self, base, n_layers):
        path = os.path.join(base, f"D{FIRST_TABLE + N_LAYERS.index(n_layers)}", "region.mmap")
        return os.path.getsize(path) / n_layers

    track_file_bytes_per_layer.unit = "bytes"

    @named("memory allocated by a load, for each layer")
    def track_loaded_bytes_per_layer(self, base, n_layers):
        import tracemalloc

        manager = kept(open_store, base, ())
        dimension = FIRST_TABLE + N_LAYERS.index(n_layers)
        manager.load_dimension(dimension)
        manager.unload_dimension(dimension)
        tracemalloc.start()
        manager.load_dimension(dimension)
        n_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        manager.unload_dimension(dimension)
        return n_bytes / n_layers

    track_loaded_bytes_per_layer.unit = "bytes"


class Charged_SmallLayers:
    """What many small layers that are learned count beside their bytes: the blocks they share."""

    params = geometry([33, 100, 1_000], [100])
    param_names = ["bytes a layer"]
    version = "1"

    @named("what 5,000 learned layers are charged, as a multiple of their bytes")
    def track_charged(self, n_bytes):
        n_layers = geometry(5_000, 200)
        with module("bench.data").open_manager(Path(tempfile.mkdtemp(dir="."))) as manager:
            before = manager.get_stats().total_allocated_bytes
            manager.create_proto_layers([(20, bytes([n % 256]) * n_bytes) for n in range(n_layers)])
            return (manager.get_stats().total_allocated_bytes - before) / (n_layers * n_bytes)

    track_charged.unit = "x"


class Fragmentation_MixedSizes:
    """Blocks of default pools under requests of every size: what of them nobody asked for."""

    version = "1"

    @named("unused share of the blocks handed out")
    def track_fragmentation(self):
        from jessymem import MmapManager

        generator = np.random.default_rng(1)
        n_requests = geometry(2_000, 20)
        sizes = np.exp(generator.uniform(np.log(64), np.log(256 * 1024), n_requests)).astype(int)
        with MmapManager(1_024) as manager:
            offsets = manager.allocate_many(sizes)
            manager.deallocate_many(offsets[::2])
            ratio = manager.get_stats().fragmentation_ratio
            manager.deallocate_many(offsets[1::2])
        return 100 * ratio

    track_fragmentation.unit = "%"


class Import:
    """A process that has imported, and one that has done nothing."""

    params = ["pass", "import numpy", "import jessymem; jessymem.MmapManager"]
    param_names = ["statement"]
    version = "1"

    @named("resident after a statement")
    def track_resident(self, statement):
        code = f"{statement}\nimport jessymem.bench.footprint as f; print(f.resident_bytes())"
        module("bench.footprint")
        return int(subprocess.check_output([sys.executable, "-c", code]))

    track_resident.unit = "bytes"
