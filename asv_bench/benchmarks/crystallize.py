"""Learning: layers in memory, and their way to disk."""

import os
import random
import shutil
import tempfile
from functools import partial
from pathlib import Path

from jessymem import LayerId

from .common import MIB, geometry, kept, module, named, skip_unless, skipping

N_LAYERS = 40
DIMENSION = 20


def contents_of(n_mb):
    """For `kept`."""
    return module("bench.data").noise(N_LAYERS, n_mb * MIB // N_LAYERS, seed=n_mb)


class Crystallize_NMB:
    """40 layers to one file, durably; from where fixed costs rule to where the disk does."""

    params = geometry([1, 10, 100], [1])
    param_names = ["MB"]
    version = "1"
    # What is on disk cannot be crystallized again: a fresh dimension before each sample.
    number = 1
    warmup_time = 0
    repeat = geometry((3, 7, 20.0), 1)
    timeout = 300

    def setup(self, n_mb):
        self.base = Path(tempfile.mkdtemp(dir="."))
        self.manager = module("bench.data").open_manager(self.base)
        items = [(DIMENSION, content) for content in kept(contents_of, n_mb)]
        self.manager.create_proto_layers(items)

    def teardown(self, n_mb):
        self.manager.close()
        shutil.rmtree(self.base)

    @named("crystallize_dimension, 40 layers")
    def time_crystallize(self, n_mb):
        self.manager.crystallize_dimension(DIMENSION)

    @named("write, fsync and rename of the same bytes")
    def time_plain_write(self, n_mb):
        module("bench.writing").write_durably(self.base / "plain", kept(contents_of, n_mb))


class Crystallize_BesideReaders:
    """1 KB while threads read without a pause: each time that a write lets go of the GIL costs."""

    params = geometry([1, 30], [2])
    param_names = ["readers"]
    version = "1"
    number = 1
    warmup_time = 0
    repeat = geometry((5, 20, 20.0), 1)
    timeout = 300

    def setup(self, n_readers):
        writing = module("bench.writing")
        self.base = Path(tempfile.mkdtemp(dir="."))
        (self.base / "plain").mkdir()
        self.content = bytes(writing.SMALL_BYTES)
        self.manager = module("bench.data").open_manager(self.base)
        read = self.manager.create_proto_dimension(DIMENSION, self.content)
        self.manager.crystallize_proto_dimension(read)
        self.layer = self.manager.create_proto_dimension(DIMENSION, self.content)
        self.readers = writing.readers(n_readers, partial(self.manager.access_layer, read))
        self.readers.__enter__()

    def teardown(self, n_readers):
        self.readers.__exit__(None, None, None)
        self.manager.close()
        shutil.rmtree(self.base)

    @named("crystallize_proto_dimension, 1 KB, beside readers")
    def time_crystallize(self, n_readers):
        self.manager.crystallize_proto_dimension(self.layer)

    @named("write, fsync and rename of the same bytes beside readers")
    def time_plain_write(self, n_readers):
        module("bench.writing").replace_durably(self.base / "plain", self.content)


class LearnInto_131MB:
    """1 KB that is durable beside 131 MB: the first delta, the hundredth, and what a peer takes."""

    params = ["jessymem", "jessymem, after 100", "a plain durable write", "lmdb"]
    param_names = ["into"]
    version = "1"
    number = 1
    warmup_time = 0
    repeat = geometry((5, 20, 20.0), 1)
    timeout = 300

    def setup_cache(self):
        base = Path("learned").absolute()
        learning = module("bench.learning")
        skip_unless(learning, "build")
        learning.build(base, N_LARGE)
        return str(base)

    setup_cache.timeout = 600

    def setup(self, base, into):
        self.work = kept(make_learning, base, into)()

    @named("1 KB made durable beside 131 MB")
    def time_learn(self, base, into):
        self.work()


N_LARGE = geometry(1_310, 40)


def make_learning(base, into):
    """Return what prepares one write and returns what does it; for `kept`."""
    learning, folder = module("bench.learning"), Path(tempfile.mkdtemp(dir="."))
    content = os.urandom(learning.N_NEW_BYTES)
    if into == "a plain durable write":
        return lambda: partial(module("bench.writing").replace_durably, folder, content)
    if into == "lmdb":
        with skipping():
            commit = kept(learning.committing, folder, N_LARGE)
        return lambda: partial(commit, content)
    shutil.copytree(base, folder, dirs_exist_ok=True)
    manager = module("bench.data").open_manager(folder)
    manager.load_dimension(learning.DIMENSION)

    def prepare():
        learn, _ = learning.learner(manager)
        return learn

    for _ in range(geometry(100, 20) if into != "jessymem" else 0):
        prepare()()
    return prepare


class ReadThrough_16Deltas:
    """Half of the layers are of a file, half of its 16 deltas; beside one file with all of them."""

    params = ["16 deltas", "one file"]
    param_names = ["from"]
    version = "1"

    def setup_cache(self):
        base = Path("through").absolute()
        learning = module("bench.learning")
        skip_unless(learning, "build_chain")
        learning.build_chain(base / "16 deltas", base / "one file", geometry(2_000, 32))
        return str(base)

    setup_cache.timeout = 600

    def setup(self, base, kind):
        self.manager = kept(module("bench.data").open_manager, Path(base) / kind)
        if DIMENSION not in self.manager.list_dimensions():
            self.manager.load_dimension(DIMENSION)
        self.ids = self.manager.list_layers()
        random.Random(4).shuffle(self.ids)
        self.time_access_layer(base, kind)
        self.time_access_many(base, kind)

    @named("4,000 single reads")
    def time_access_layer(self, base, kind):
        access = self.manager.access_layer
        for layer_id in self.ids:
            access(layer_id)

    @named("access_many of 4,000 layers")
    def time_access_many(self, base, kind):
        self.manager.access_many(self.ids)


class Learn_BesideNLayers:
    """One more layer is one publication: linear in the layers of its dimension, at memory speed."""

    params = geometry([1, 1_000, 65_535], [1, 100])
    param_names = ["layers there"]
    version = "1"
    number = 1
    warmup_time = 0
    repeat = geometry((5, 20, 10.0), 1)
    timeout = 300

    def setup(self, n_held):
        self.manager = kept(make_learner, n_held)

    def teardown(self, n_held):
        self.manager.discard_proto_dimension(LayerId(DIMENSION, n_held))

    @named("create_proto_dimension, one more layer")
    def time_create(self, n_held):
        self.manager.create_proto_dimension(DIMENSION, b"one more")


def make_learner(n_held):
    """A manager with so many layers in memory, by compiled kernels; for `kept`."""
    module("kernels._jit").promote("memory")
    manager = module("bench.data").open_manager(Path(tempfile.mkdtemp(dir=".")))
    manager.create_proto_layers([(DIMENSION, b"x")] * n_held)
    return manager


class Learn_NAtOnce:
    """Many layers, one publication."""

    params = geometry([1, 100, 10_000], [10])
    param_names = ["layers"]
    version = "1"
    number = 1
    warmup_time = 0
    repeat = geometry((3, 7, 10.0), 1)

    def setup(self, n_layers):
        kept(make_learner, 1)  # compiles
        self.manager = module("bench.data").open_manager(Path(tempfile.mkdtemp(dir=".")))
        self.manager.deallocate(self.manager.allocate(1))
        self.items = [(DIMENSION, b"x" * 100)] * n_layers

    def teardown(self, n_layers):
        self.manager.close()

    @named("create_proto_layers")
    def time_create(self, n_layers):
        self.manager.create_proto_layers(self.items)


class Change_8KiB:
    """A layer in memory is replaced; a file's layer is read as one with what lies over it."""

    version = "1"

    def setup(self):
        self.manager = kept(make_changing)
        self.layer, self.filed = LayerId(DIMENSION, 0), LayerId(DIMENSION + 1, 0)
        self.time_update()
        self.time_overlay_and_drop()

    @named("update_proto_dimension, 8 KiB")
    def time_update(self):
        self.manager.update_proto_dimension(self.layer, bytes(8_192))

    @named("overlay_layer and drop_overlay, 8 KiB over 8 KiB")
    def time_overlay_and_drop(self):
        self.manager.overlay_layer(self.filed, bytes(8_192))
        self.manager.drop_overlay(self.filed)


def make_changing():
    """A manager with one layer in memory and one in a file; for `kept`."""
    base = Path(tempfile.mkdtemp(dir="."))
    module("bench.data").build(base, DIMENSION + 1, [bytes(8_192)])
    manager = module("bench.data").open_manager(base)
    manager.load_dimension(DIMENSION + 1)
    manager.create_proto_dimension(DIMENSION, bytes(8_192))
    return manager
