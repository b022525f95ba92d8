"""Layers by name: how it grows with the layers of a dimension, and with the dimensions."""

from pathlib import Path

from jessymem import LayerId, RegionBuilder

from .common import N_LAYERS, geometry, kept, module, named, open_store, skip_unless

N_LOOK_UPS = geometry(1_000, 20)
FIRST = 30
MANY_FIRST, MANY_LAYERS = 1_000, 6

# Each 64 dimensions are searched together: one of them, a few, most of a store of real folders.
N_DIMENSIONS = geometry([16, 256, 1_024], [4, 70])


class Named:
    """D30 and on with as many layers as `N_LAYERS` says; D1000 and on with six each."""

    def setup_cache(self):
        base = Path("names").absolute()
        shapes = {FIRST + i: n_layers for i, n_layers in enumerate(N_LAYERS)}
        shapes |= {MANY_FIRST + i: MANY_LAYERS for i in range(max(N_DIMENSIONS))}
        for dimension, n_layers in shapes.items():
            builder = RegionBuilder(dimension, f"folder {dimension}")
            for number in range(n_layers):
                builder.add_layer(number, b"12345678", name=name_of(dimension, number))
            builder.build_to_file(base / str(LayerId(dimension, 0).dimension) / "region.mmap")
        return str(base)

    setup_cache.timeout = 600


def name_of(dimension, number):
    return f"usr/share/doc/package-{number % 700}/file-{dimension}-{number}.txt"


class IdOf_OneOfNLayers(Named):
    """A binary search in a table of ten bytes a layer, told the dimension."""

    params = N_LAYERS
    param_names = ["layers"]
    version = "1"

    def setup(self, base, n_layers):
        self.dimension = FIRST + N_LAYERS.index(n_layers)
        self.manager = kept(open_store, base, (self.dimension,))
        skip_unless(self.manager, "id_of")
        numbers = range(0, n_layers, max(n_layers // N_LOOK_UPS, 1))
        self.names = [name_of(self.dimension, number) for number in numbers][:N_LOOK_UPS]
        self.names *= N_LOOK_UPS // len(self.names)
        self.manager.id_of(self.names[0], self.dimension)  # which makes the table

    @named("1,000 layers by name, in one dimension")
    def time_id_of(self, base, n_layers):
        for name in self.names:
            self.manager.id_of(name, self.dimension)

    @named("all layers of a prefix")
    def time_select(self, base, n_layers):
        self.manager.select(name="usr/share/doc/package-3/*", dimensions=[self.dimension])

    @named("all layers with something in the middle of their names")
    def time_select_middle(self, base, n_layers):
        self.manager.select(name="usr/*-30?/*.txt", dimensions=[self.dimension])


class IdOf_OneOfNDimensions(Named):
    """Not told the dimension: a search for each 64 of them."""

    params = N_DIMENSIONS
    param_names = ["dimensions"]
    version = "1"

    def setup(self, base, n_dimensions):
        dimensions = tuple(range(MANY_FIRST, MANY_FIRST + n_dimensions))
        self.manager = kept(open_store, base, dimensions)
        skip_unless(self.manager, "id_of")
        chosen = [dimensions[i % n_dimensions] for i in range(0, 7 * N_LOOK_UPS, 7)]
        self.names = [name_of(dimension, 3) for dimension in chosen]
        self.manager.id_of(self.names[0])

    @named("1,000 layers by name, in all dimensions")
    def time_id_of(self, base, n_dimensions):
        for name in self.names:
            self.manager.id_of(name)


class FirstIdOf_65536Layers(Named):
    """What a dimension's first look-up costs: its table is made."""

    version = "1"
    number = 1
    warmup_time = 0

    def setup(self, base):
        self.dimension = FIRST + len(N_LAYERS) - 1
        self.manager = module("bench.data").open_manager(Path(base))
        skip_unless(self.manager, "id_of")
        self.manager.load_dimension(self.dimension)

    def teardown(self, base):
        self.manager.close()

    @named("the first layer by name of a dimension of 65,536")
    def time_id_of(self, base):
        self.manager.id_of(name_of(self.dimension, 3), self.dimension)
