"""From a file to layers that can be read: linear in the layers at memory speed, or not at all."""

from pathlib import Path

from jessymem import MmapManager

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
