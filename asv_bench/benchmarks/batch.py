"""Many layers in one call, and the store inside compiled code."""

import numpy as np

from .common import (
    FIRST_FULL,
    FIRST_TABLE,
    FULL_LAYERS,
    N_LAYERS,
    READ,
    READ_LAYERS,
    Contents,
    Tables,
    geometry,
    kept,
    module,
    named,
    open_store,
    skip_unless,
    skipping,
)


def ids_of(dimensions, n_layers):
    """Packed ids of the first layers of dimensions, in random order; for `kept`."""
    return module("bench.data").all_layers(dimensions, n_layers)


def compile_kernels():
    """Batches begin as plain Python: compiled here, so that none of them is where it begins."""
    module("warming").warmup()


class LocateMany_NIds(Tables):
    """What a call costs, and what an id: below some hundred ids the call is all of it."""

    params = geometry([1, 10, 100, 1_000, 10_000], [10])
    param_names = ["ids"]
    version = "1"

    def setup(self, base, n_ids):
        dimension = FIRST_TABLE + len(N_LAYERS) - 1
        self.manager = kept(open_store, base, (dimension,))
        skip_unless(self.manager, "locate_many")
        compile_kernels()
        self.layer_ids = kept(ids_of, (dimension,), N_LAYERS[-1])[:n_ids].copy()
        self.n_calls = geometry(max(1, 10_000 // n_ids), 1)
        self.manager.locate_many(self.layer_ids)

    @named("locate_many, 10,000 ids in calls of so many")
    def time_locate_many(self, base, n_ids):
        for _ in range(self.n_calls):
            self.manager.locate_many(self.layer_ids)


class LocateMany_RandomOfNDimensions(Tables):
    """Tables of 4 MiB each: in a second-level cache no longer, in the last, in none."""

    params = geometry([1, 4, 16], [2])
    param_names = ["dimensions of 65,536"]
    version = "1"

    def setup(self, base, n_dimensions):
        dimensions = tuple(range(FIRST_FULL, FIRST_FULL + n_dimensions))
        self.manager = kept(open_store, base, dimensions)
        skip_unless(self.manager, "locate_many")
        compile_kernels()
        # As many ids in each, spread over all of the tables, so that curves compare.
        self.layer_ids = kept(ids_of, dimensions, FULL_LAYERS)[:FULL_LAYERS].copy()
        self.manager.locate_many(self.layer_ids)

    @named("locate_many, 65,536 ids at random among all layers")
    def time_locate_many(self, base, n_dimensions):
        self.manager.locate_many(self.layer_ids)


class LocateCompiled_RandomOfNDimensions(Tables):
    """The same look-ups in a user's own compiled loop, over a store."""

    params = LocateMany_RandomOfNDimensions.params
    param_names = LocateMany_RandomOfNDimensions.param_names
    version = "1"

    def setup(self, base, n_dimensions):
        dimensions = tuple(range(FIRST_FULL, FIRST_FULL + n_dimensions))
        manager = kept(open_store, base, dimensions)
        skip_unless(manager, "store")
        self.store = manager.store()
        with skipping():
            self.locate_each = module("bench.loops").locate_each()
        self.layer_ids = kept(ids_of, dimensions, FULL_LAYERS)[:FULL_LAYERS].copy()
        self.locate_each(self.store, self.layer_ids)

    @named("locate in a compiled loop, 65,536 ids at random")
    def time_locate(self, base, n_dimensions):
        self.locate_each(self.store, self.layer_ids)


class ReadMany_8KiB(Contents):
    """Views, or copies in one buffer: 10 layers are in a cache, 10,000 of 8 KiB are not."""

    params = geometry([10, 1_000, 10_000], [10])
    param_names = ["layers"]
    version = "1"

    def setup(self, base, n_layers):
        self.manager = kept(open_store, base, (READ,))
        skip_unless(self.manager, "access_many", "gather")
        compile_kernels()
        self.layer_ids = kept(ids_of, (READ,), READ_LAYERS)[:n_layers].copy()
        self.manager.access_many(self.layer_ids)
        self.manager.gather(self.layer_ids)

    @named("access_many")
    def time_access_many(self, base, n_layers):
        self.manager.access_many(self.layer_ids)

    @named("gather")
    def time_gather(self, base, n_layers):
        self.manager.gather(self.layer_ids)


class LocateMany_Missing(Contents):
    """Half of the ids lead nowhere."""

    version = "1"

    def setup(self, base):
        self.manager = kept(open_store, base, (READ,))
        skip_unless(self.manager, "locate_many")
        compile_kernels()
        self.layer_ids = kept(ids_of, (READ,), READ_LAYERS).copy()
        self.layer_ids[::2] += np.int64(READ_LAYERS)
        self.manager.locate_many(self.layer_ids, missing="mark")

    @named("locate_many, half of 10,000 ids missing")
    def time_locate_many(self, base):
        self.manager.locate_many(self.layer_ids, missing="mark")
