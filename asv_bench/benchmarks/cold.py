"""From a new process to its first result, and what compilation takes: each in a process of its own.

Statements are timed by that process itself, once Python has started.
"""

import os
from pathlib import Path

from .common import READ, geometry, kept, module

READ_ONE = """
from jessymem import MmapManager
with MmapManager(280, base_path={base!r}) as manager:
    manager.load_dimension({dimension})
    manager.access_layer("L{dimension}-01")[0]
"""

PREPARED = "import jessymem"


class Small:
    """One dimension of four layers."""

    repeat = geometry((3, 10, 10.0), 1)
    number = 1
    warmup_time = 0

    def setup_cache(self):
        base = Path("cold").absolute()
        data = module("bench.data")
        data.build(base, READ, data.numbered(4, 64))
        return str(base)


class FirstResult(Small):
    """What a script waits for, beside what it would wait for anyway."""

    version = "1"

    def setup(self, base):
        kept(warm_cache)

    def timeraw_import_numpy(self, base):
        return "import numpy"

    timeraw_import_numpy.pretty_name = "import numpy (the yardstick)"

    def timeraw_import_numba(self, base):
        return "import numba"

    timeraw_import_numba.pretty_name = "import numba (the yardstick)"

    def timeraw_import_jessymem(self, base):
        return "import jessymem"

    timeraw_import_jessymem.pretty_name = "import jessymem"

    def timeraw_first_read(self, base):
        return READ_ONE.format(base=base, dimension=READ)

    timeraw_first_read.pretty_name = "import, load, first read"

    def timeraw_first_block(self, base):
        return """
        from jessymem import MmapManager
        with MmapManager(280) as manager:
            manager.deallocate(manager.allocate(4096))
        """

    timeraw_first_block.pretty_name = "import, first block"

    def timeraw_first_layer(self, base):
        return """
        from jessymem import MmapManager
        with MmapManager(280) as manager:
            manager.create_proto_dimension("D30", b"learned")
        """

    timeraw_first_layer.pretty_name = "import, first learned layer"

    def timeraw_first_batch(self, base):
        return """
        from jessymem import MmapManager
        from jessymem.kernels import _jit
        with MmapManager(280) as manager:
            _jit.promote()
            manager.locate_many([], missing="mark")
        """

    timeraw_first_batch.pretty_name = "import, first compiled batch, kernels cached"


class FirstResult_NothingCached(Small):
    """As in a fresh container: the cache of kernels is an empty folder."""

    version = "1"
    env = {"NUMBA_CACHE_DIR": "no kernels"}

    timeraw_import_numpy = FirstResult.timeraw_import_numpy
    timeraw_first_block = FirstResult.timeraw_first_block
    timeraw_first_layer = FirstResult.timeraw_first_layer


def warm_cache():
    """Have every kernel in the cache on disk; for `kept`."""
    return module("warming").warmup()


class Compile(Small):
    """Kernels compiled anew, without the cache: no other benchmark has compilation in it."""

    params = ["reading", "parsing", "memory", "searching"]
    param_names = ["kernels"]
    version = "1"
    timeout = 300
    repeat = geometry((2, 3, 60.0), 1)
    env = {"JESSYMEM_KERNEL_CACHE": "0"}

    def setup(self, base, kernels):
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            raise NotImplementedError("compilation is disabled")
        if kernels not in module("kernels._jit").MODULES:
            raise NotImplementedError(f"this commit has no kernels for {kernels}")

    def timeraw_compile(self, base, kernels):
        return (
            f"_jit.promote({kernels!r})",
            "import numba; from jessymem.kernels import _jit",
        )

    timeraw_compile.pretty_name = "kernels compiled, nothing cached"
