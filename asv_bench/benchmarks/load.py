"""From a file to layers that can be read: linear in the layers at memory speed, or not at all."""

import itertools
from pathlib import Path

from jessymem import LayerId, MmapManager

from .common import (
    FIRST_TABLE,
    MIB,
    N_LAYERS,
    Tables,
    Texts,
    geometry,
    kept,
    module,
    named,
    open_store,
    skip_unless,
    skipping,
    text_dimensions,
)


def region_file(base, dimension):
    return Path(base) / f"D{dimension:02d}" / "region.mmap"


def plain_file(path):
    """The same file as another writer leaves it; for `kept`."""
    return module("bench.data").make_plain(
        path, path.parent.parent / "plain" / f"{path.parent.name}.mmap"
    )


class Load_NLayers(Tables):
    """A table that is mapped and checked, beside one that is parsed: 4 layers to 65,536."""

    params = N_LAYERS
    param_names = ["layers"]
    version = "1"

    def setup(self, base, n_layers):
        self.dimension = FIRST_TABLE + N_LAYERS.index(n_layers)
        self.manager = kept(open_store, base, ())
        self.path = region_file(base, self.dimension)
        self.plain = kept(plain_file, self.path)
        self.time_extension(base, n_layers)
        self.time_plain(base, n_layers)

    def load(self, path):
        self.manager.load_dimension(self.dimension, path)
        self.manager.unload_dimension(self.dimension)

    @named("load and unload, a file with an extension")
    def time_extension(self, base, n_layers):
        self.load(self.path)

    @named("load and unload, a plain V1 file")
    def time_plain(self, base, n_layers):
        self.load(self.plain)


class LoadCompiled_NLayers(Tables):
    """Plain files again, once kernels are compiled."""

    params = N_LAYERS
    param_names = ["layers"]
    version = "1"

    def setup(self, base, n_layers):
        self.dimension = FIRST_TABLE + N_LAYERS.index(n_layers)
        self.manager = kept(open_store, base, ())
        self.plain = kept(plain_file, region_file(base, self.dimension))
        if module("warming").warmup().is_disabled:
            raise NotImplementedError("compilation is disabled")
        self.time_plain(base, n_layers)

    @named("load and unload, a plain V1 file, kernels compiled")
    def time_plain(self, base, n_layers):
        self.manager.load_dimension(self.dimension, self.plain)
        self.manager.unload_dimension(self.dimension)


class Load_NthDimension(Texts):
    """A load publishes one dimension, whatever else is loaded: 1 or 64 others, 16 MB to 1 GB."""

    params = geometry([1, 16, 63], [0])
    param_names = ["dimensions loaded"]
    version = "1"

    def setup(self, base, n_loaded):
        self.manager = kept(open_store, base, text_dimensions(16 * n_loaded))
        self.dimension = text_dimensions(16 * (n_loaded + 1))[-1]
        self.time_load(base, n_loaded)

    @named("load and unload 16 MiB beside others")
    def time_load(self, base, n_loaded):
        self.manager.load_dimension(self.dimension)
        self.manager.unload_dimension(self.dimension)


def open_crowded(base, n_dimensions, total_mb=2048):
    """A manager that has loaded so many dimensions; for `kept`."""
    starting, data = module("bench.starting"), module("bench.data")
    skip_unless(starting, "many_open_files")
    with skipping(), starting.many_open_files(n_dimensions):
        settings = {"eviction_policy": "lru", "pool_configs": ()} if total_mb < 2048 else {}
        manager = data.open_manager(Path(base), total_mb, **settings)
        for number in range(FIRST_CROWDED, FIRST_CROWDED + n_dimensions):
            manager.load_dimension(number)
        return manager


# Few, as many as the documents speak of, more than any cache of Python objects holds, and three
# times as many; each takes a descriptor, of which some systems allow 20,000: then it is a gap.
N_CROWDED = geometry([10, 1_000, 10_000, 30_000], [10])
FIRST_CROWDED = 100


class Crowd:
    """D100 and on, of four small layers each: one more than the most that are loaded."""

    def setup_cache(self):
        base = Path("crowd").absolute()
        data = module("bench.data")
        skip_unless(data, "build_many")
        data.build_many(base, FIRST_CROWDED, max(*N_CROWDED, *N_FITTING) + 1)
        return str(base)

    setup_cache.timeout = 600


class Change_AmongNDimensions(Crowd):
    """What changes one dimension publishes that one, whatever else is loaded: 10 to 30,000."""

    params = N_CROWDED
    param_names = ["dimensions loaded"]
    version = "1"

    def setup(self, base, n_loaded):
        self.manager = kept(open_crowded, base, n_loaded)
        self.dimension = FIRST_CROWDED + n_loaded
        self.time_load(base, n_loaded)
        self.time_learn(base, n_loaded)
        self.time_stats(base, n_loaded)

    @named("load and unload a dimension beside others")
    def time_load(self, base, n_loaded):
        self.manager.load_dimension(self.dimension)
        self.manager.unload_dimension(self.dimension)

    @named("learn a layer and discard it beside others")
    def time_learn(self, base, n_loaded):
        self.manager.discard_proto_dimension(self.manager.create_proto_dimension(60, b"learned"))

    @named("get_stats beside others")
    def time_stats(self, base, n_loaded):
        self.manager.get_stats()


# Of so many a page each, just as many as fit 1, 4 and 16 MiB.
N_FITTING = geometry([256, 1_024, 4_096], [256])


class Evict_AmongNDimensions(Crowd):
    """One dimension too many, read in turns: each read brings one back and evicts the coldest."""

    params = N_FITTING
    param_names = ["dimensions that fit"]
    version = "1"

    def setup(self, base, n_fitting):
        self.manager = kept(open_crowded, base, n_fitting + 1, n_fitting * 4096 // MIB)
        self.turns = itertools.cycle(range(FIRST_CROWDED, FIRST_CROWDED + n_fitting + 1))
        before = self.manager.get_stats().evictions
        self.time_read(base, n_fitting)
        self.time_read(base, n_fitting)
        if self.manager.get_stats().evictions == before:
            raise NotImplementedError("all of them fit: pages are larger here")

    @named("a read that brings one dimension back and evicts another")
    def time_read(self, base, n_fitting):
        self.manager.access_layer(LayerId(next(self.turns), 0))


class LoadAll_3000:
    """All of 3,000 small dimensions in one call, and each by a call of its own."""

    version = "1"
    number = 1
    warmup_time = 0

    def setup_cache(self):
        base = Path("all").absolute()
        data = module("bench.data")
        skip_unless(data, "build_many")
        data.build_many(base, FIRST_CROWDED, geometry(3_000, 100))
        return str(base)

    def setup(self, base):
        self.open = module("bench.data").open_manager
        self.limit = module("bench.starting").many_open_files(geometry(3_000, 100))
        self.limit.__enter__()
        self.open(Path(base)).close()  # imports

    def teardown(self, base):
        self.limit.__exit__(None, None, None)

    @named("load_all, and close")
    def time_load_all(self, base):
        with self.open(Path(base)) as manager:
            manager.load_all()

    @named("load_dimension for each that is discovered, and close")
    def time_one_by_one(self, base):
        with self.open(Path(base)) as manager:
            for dimension in manager.discover():
                manager.load_dimension(dimension)


class Start_CoreDimensions:
    """A manager with nothing, and with the 14 core dimensions of 4 layers each."""

    version = "1"

    def setup_cache(self):
        base = Path("core").absolute()
        data = module("bench.data")
        for number in range(1, 15):
            data.build(base, number, data.numbered(4, 64))
        return str(base)

    def setup(self, base):
        self.time_manager(base)
        self.time_core_dimensions(base)

    @named("a manager, opened and closed")
    def time_manager(self, base):
        MmapManager(280, base_path=base).close()

    @named("a manager with 14 core dimensions, opened and closed")
    def time_core_dimensions(self, base):
        with MmapManager(280, base_path=base) as manager:
            manager.load_core_dimensions()


class Reload_Evicted:
    """Three dimensions of 16 MiB in a budget for two: each access maps one and evicts another."""

    version = "1"

    def setup_cache(self):
        base = Path("evicted").absolute()
        data = module("bench.data")
        for dimension in range(20, 23):
            data.build(base, dimension, data.noise(16, geometry(MIB, MIB // 16)))
        return str(base)

    def setup(self, base):
        self.manager = module("bench.data").open_manager(Path(base), geometry(40, 3))
        self.layers = []
        for dimension in range(20, 23):
            self.manager.load_dimension(dimension)
            self.layers += self.manager.list_layers(dimension)[:1]
        self.time_reload(base)
        if not self.manager.get_stats().reloads:
            raise AssertionError("all three fit")

    def teardown(self, base):
        self.manager.close()

    @named("an access to each of three dimensions, of which two fit")
    def time_reload(self, base):
        for layer in self.layers:
            self.manager.access_layer(layer)
