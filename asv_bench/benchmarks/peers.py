"""The same work on jessymem and on what people would use instead: a line of each in one plot."""

import random
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from .common import READ_BYTES, geometry, kept, module, named, skipping
from .read import read_each

N_CONTENTS = geometry(10_000, 100)

#: As `jessymem.bench.peers.SYSTEMS`, which an older commit may not have.
SYSTEMS = [
    "jessymem",
    "lmdb",
    "dict + slice",
    "np.memmap",
    "shared_memory",
    "pyarrow",
    "safetensors",
    "sqlite",
]


def contents():
    """For `kept`."""
    return list(module("bench.data").numbered(N_CONTENTS, READ_BYTES))


class OnEachSystem:
    """A folder in which a system has built its store, once for all that read it."""

    def setup_cache(self):
        base = Path("peers").absolute()
        systems = module("bench.peers").SYSTEMS
        for name in SYSTEMS:
            folder = base / name
            folder.mkdir(parents=True)
            try:
                systems[name].build(folder, kept(contents))
            except RuntimeError:  # not installed: its own setup says so
                continue
        return str(base)

    setup_cache.timeout = 600

    params = SYSTEMS
    param_names = ["system"]

    def open(self, base, system):
        opener = module("bench.peers").SYSTEMS[system].open
        with skipping():
            return kept(opener, Path(base) / system, N_CONTENTS)


class Read_8KiB(OnEachSystem):
    """10,000 contents of 8 KiB, 80 MB: a view of each, or what comes closest."""

    version = "1"
    timeout = 300

    def setup(self, base, system):
        opened = self.open(base, system)
        self.get = opened.get
        self.keys = [
            opened.key_of(i) for i in random.Random(1).sample(range(N_CONTENTS), N_CONTENTS)
        ]
        self.hot = [self.keys[0]] * N_CONTENTS
        read_each(self.get, self.keys)

    @named("10,000 reads in random order")
    def time_random(self, base, system):
        read_each(self.get, self.keys)

    @named("10,000 reads of one content")
    def time_hot(self, base, system):
        read_each(self.get, self.hot)

    @named("10,000 reads in random order, every byte summed")
    def time_summed(self, base, system):
        for key in self.keys:
            np.frombuffer(self.get(key), np.uint64).sum()


class Open_10000(OnEachSystem):
    """From a path to the first content; the index where there is none is part of it."""

    version = "1"

    def setup(self, base, system):
        self.opener = module("bench.peers").SYSTEMS[system].open
        with skipping():
            self.time_open(base, system)

    @named("open, read one, close")
    def time_open(self, base, system):
        with self.opener(Path(base) / system, N_CONTENTS) as opened:
            bytes(opened.get(opened.key_of(0)))


class Build_10000:
    """Contents to disk: durably where the system can (jessymem, lmdb, sqlite), else as it comes."""

    params = [name for name in SYSTEMS if name not in ("np.memmap", "shared_memory")]
    param_names = ["system"]
    version = "1"
    number = 1
    warmup_time = 0
    repeat = geometry((2, 3, 20.0), 1)
    timeout = 300

    def setup(self, system):
        with skipping():
            if system not in ("jessymem", "dict + slice", "sqlite"):
                module("bench.peers").require(system)
        self.contents = kept(contents)
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=".")))

    def teardown(self, system):
        self.stack.close()

    @named("80 MB in 10,000 contents to disk")
    def time_build(self, system):
        module("bench.peers").SYSTEMS[system].build(self.folder, self.contents)


class Locate_10000:
    """Where 10,000 contents lie, in one call: a table in NumPy, and lmdb one by one."""

    params = ["jessymem locate_many", "NumPy table[ids]", "lmdb get"]
    param_names = ["system"]
    version = "1"

    setup_cache = OnEachSystem.setup_cache

    def setup(self, base, system):
        works = {
            "jessymem locate_many": self.jessymem,
            "NumPy table[ids]": self.numpy,
            "lmdb get": self.lmdb,
        }
        self.work = works[system](Path(base))
        self.work()

    def jessymem(self, base):
        manager = kept(module("bench.data").open_manager, base / "jessymem")
        if not hasattr(manager, "locate_many"):
            raise NotImplementedError("this commit has no locate_many")
        peers = module("bench.peers")
        module("warming").warmup()
        if not manager.is_loaded(peers.DIMENSION):
            manager.load_dimension(peers.DIMENSION)
        layer_ids = module("bench.data").all_layers([peers.DIMENSION], N_CONTENTS)
        return partial(manager.locate_many, layer_ids)

    def numpy(self, base):
        table = np.zeros(N_CONTENTS, module("kernels.schema").LAYER)
        rows = np.random.default_rng(1).permutation(N_CONTENTS)
        return lambda: table[rows]

    def lmdb(self, base):
        opener = module("bench.peers").SYSTEMS["lmdb"].open
        with skipping():
            opened = kept(opener, base / "lmdb", N_CONTENTS)
        keys = [opened.key_of(i) for i in random.Random(1).sample(range(N_CONTENTS), N_CONTENTS)]
        return partial(read_each, opened.get, keys)

    @named("10,000 look-ups")
    def time_locate(self, base, system):
        self.work()


class Allocate_4KiB:
    """4 KiB allocated and freed from Python, 1,000 times."""

    params = ["jessymem", "np.empty", "bytearray", "pyarrow", "mmap", "shared_memory"]
    param_names = ["system"]
    version = "1"

    def setup(self, system):
        import mmap
        from multiprocessing.shared_memory import SharedMemory

        def segment():
            memory = SharedMemory(create=True, size=4_096)
            memory.close()
            memory.unlink()

        if system == "jessymem":
            from .alloc import make_manager

            manager = kept(make_manager, True)
            self.once = lambda: manager.deallocate(manager.allocate(4_096))
        elif system == "pyarrow":
            with skipping():
                allocate_buffer = module("bench.peers").require("pyarrow").allocate_buffer
            self.once = lambda: allocate_buffer(4_096)
        else:
            self.once = {
                "np.empty": lambda: np.empty(4_096, np.uint8),
                "bytearray": lambda: bytearray(4_096),
                "mmap": lambda: mmap.mmap(-1, 4_096),
                "shared_memory": segment,
            }[system]
        self.once()

    @named("4 KiB allocated and freed, 1,000 times")
    def time_pair(self, system):
        for _ in range(geometry(1_000, 3)):
            self.once()


COLD = {
    "jessymem": """
        from jessymem import MmapManager
        with MmapManager(280, base_path={folder!r}) as manager:
            manager.load_dimension(20)
            bytes(manager.access_layer("L20-00"))
    """,
    "lmdb": """
        import lmdb
        with lmdb.open({folder!r}, readonly=True, lock=False) as environment:
            with environment.begin(buffers=True) as transaction:
                bytes(transaction.get(b"\\\\0\\\\0\\\\0\\\\0"))
    """,
    "np.memmap": """
        import numpy as np
        bytes(np.memmap({folder!r} + "/contents.bin", np.uint8, "r")[:8192])
    """,
    "pyarrow": """
        import pyarrow as pa
        with pa.memory_map({folder!r} + "/contents.arrow") as source:
            bytes(pa.ipc.open_file(source).read_all()["content"][0].as_buffer())
    """,
    "safetensors": """
        from safetensors import safe_open
        with safe_open({folder!r} + "/contents.safetensors", framework="numpy") as opened:
            bytes(opened.get_tensor("0"))
    """,
    "sqlite": """
        import sqlite3
        connection = sqlite3.connect({folder!r} + "/contents.sqlite")
        connection.execute("select content from layers where number = 0").fetchone()
    """,
}


class Cold_10000(OnEachSystem):
    """A new process, once Python has started: import, open, first content."""

    params = list(COLD)
    param_names = ["system"]
    version = "1"
    number = 1
    repeat = geometry((3, 10, 10.0), 1)

    def setup(self, base, system):
        with skipping():
            if system in ("lmdb", "pyarrow", "safetensors"):
                module("bench.peers").require(system)

    def timeraw_first_content(self, base, system):
        return COLD[system].format(folder=str(Path(base) / system))

    timeraw_first_content.pretty_name = "import, open, first content"
