"""One layer from Python: what it costs, and what that depends on (nothing, it should turn out)."""

import random
from pathlib import Path

from jessymem import LayerId

from .common import (
    FIRST_TABLE,
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
)

N_READS = geometry(10_000, 50)


def read_each(get, keys):
    for key in keys:
        get(key)


class AccessLayer_RandomOfNLayers(Tables):
    """A dimension's table in the first-level cache, in the second, beyond: 64 bytes a layer."""

    params = N_LAYERS
    param_names = ["layers"]
    version = "1"

    def setup(self, base, n_layers):
        dimension = FIRST_TABLE + N_LAYERS.index(n_layers)
        self.access = kept(open_store, base, (dimension,)).access_layer
        chosen = random.Random(1).choices(range(n_layers), k=N_READS)
        self.keys = [LayerId(dimension, number) for number in chosen]
        read_each(self.access, self.keys)

    @named("10,000 single reads in random order")
    def time_access_layer(self, base, n_layers):
        read_each(self.access, self.keys)


class AccessLayer_8KiB(Contents):
    """How a layer is called: a value made beforehand, its packed number, or a text to be parsed."""

    params = ["LayerId", "int", "str"]
    param_names = ["key"]
    version = "1"

    def setup(self, base, key):
        self.access = kept(open_store, base, (READ,)).access_layer
        form = {
            "LayerId": LayerId.from_packed,
            "int": int,
            "str": lambda n: str(LayerId.from_packed(n)),
        }
        chosen = random.Random(1).choices(range(READ_LAYERS), k=N_READS)
        self.keys = [form[key](int(LayerId(READ, number))) for number in chosen]
        read_each(self.access, self.keys)

    @named("10,000 single reads, by kind of key")
    def time_access_layer(self, base, key):
        read_each(self.access, self.keys)


class AccessLayer_HotOfNBytes:
    """From a cache line to more than a second-level cache: zero copy means a flat line."""

    params = [64, 8_192, geometry(4 * 2**20, 65_536)]
    param_names = ["layer bytes"]
    version = "1"

    def setup_cache(self):
        from pathlib import Path

        base = Path("sizes").absolute()
        for i, n_bytes in enumerate(self.params):
            module("bench.data").build(base, FIRST_TABLE + i, [bytes(n_bytes)])
        return str(base)

    def setup(self, base, n_bytes):
        dimension = FIRST_TABLE + self.params.index(n_bytes)
        self.access = kept(open_store, base, (dimension,)).access_layer
        self.keys = [LayerId(dimension, 0)] * N_READS
        read_each(self.access, self.keys)

    @named("10,000 single reads of one layer, by its size")
    def time_access_layer(self, base, n_bytes):
        read_each(self.access, self.keys)


class LoadContexts_8KiB(Contents):
    """Contexts carry names and keywords, which are looked up when asked for."""

    params = geometry([10, 100, 1_000], [10])
    param_names = ["layers"]
    version = "1"

    def setup(self, base, n_layers):
        self.manager = kept(open_store, base, (READ,))
        self.path = [
            LayerId(READ, number)
            for number in random.Random(1).sample(range(READ_LAYERS), n_layers)
        ]
        self.manager.load_contexts(self.path)

    @named("load_contexts")
    def time_load_contexts(self, base, n_layers):
        self.manager.load_contexts(self.path)

    @named("load_contexts and format_for_llm")
    def time_format_for_llm(self, base, n_layers):
        self.manager.load_contexts(self.path).format_for_llm(100_000)


class Describe_8KiB(Contents):
    """What is asked less often."""

    version = "1"

    def setup(self, base):
        self.manager = kept(open_store, base, (READ,))
        self.layer = LayerId(READ, 17)
        for _ in range(3):
            self.manager.get_layer_info(self.layer)
            self.manager.select(depth=(0, 0))

    @named("get_layer_info, 1,000 times")
    def time_get_layer_info(self, base):
        for _ in range(geometry(1_000, 5)):
            self.manager.get_layer_info(self.layer)

    @named("list_layers of 10,000")
    def time_list_layers(self, base):
        self.manager.list_layers()

    @named("select by depth among 10,000")
    def time_select(self, base):
        self.manager.select(depth=(0, 0))

    @named("get_stats, 100 times")
    def time_get_stats(self, base):
        for _ in range(geometry(100, 2)):
            self.manager.get_stats()


class AccessLayer_Shown(Contents):
    """Whether a thread writes the manager's status for other processes, twice a second."""

    params = ["off", "auto"]
    param_names = ["status"]
    version = "1"

    def setup(self, base, status):
        try:
            self.manager = module("bench.data").open_manager(Path(base), status=status)
        except TypeError:
            raise NotImplementedError("this version shows no status") from None
        self.manager.load_dimension(READ)
        chosen = random.Random(1).choices(range(READ_LAYERS), k=N_READS)
        self.keys = [LayerId(READ, number) for number in chosen]
        read_each(self.manager.access_layer, self.keys)

    def teardown(self, base, status):
        if hasattr(self, "manager"):
            self.manager.close()

    @named("10,000 single reads, shown to other processes or not")
    def time_access_layer(self, base, status):
        read_each(self.manager.access_layer, self.keys)
