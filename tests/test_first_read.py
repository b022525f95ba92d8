"""A fresh process comes to its first read without what that read does not need.

Each of these imports was measured and put off: one of them takes up to a tenth of the time that
this package may add to `import numpy`, numba four times all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.processes import run_python

FIRST_READ = """
import sys
import numpy
import inspect  # by NumPy 2.4, and else by dataclasses
before = set(sys.modules)
from jessymem import MmapManager
manager = MmapManager(280, base_path=sys.argv[1])
manager.load_dimension("D01")
assert manager.access_layer("L01-01")
print(*sorted(set(sys.modules) - before))
"""

#: Of other packages and the standard library, beyond what NumPy has imported.
NOT_NEEDED = [
    "ctypes",
    "filelock",
    "hashlib",
    "inspect",
    "json",
    "llvmlite",
    "logging",
    "numba",
    "platform",
    "queue",
    "tempfile",
    "threading",
    "traceback",
    "unittest",
]

#: Of this package: folders of which a reader imports nothing, and the values that describe layers.
NOT_ENTERED = [
    "jessymem._version",
    "jessymem.contexts",
    "jessymem.diagnostics",
    "jessymem.ingest",
    "jessymem.inspection",
    "jessymem.kernels._jit",
    "jessymem.kernels._numba",
    "jessymem.kernels.allocation",
    "jessymem.kernels.atomics",
    "jessymem.kernels.bitmap",
    "jessymem.kernels.blocks",
    "jessymem.kernels.budget",
    "jessymem.kernels.gather",
    "jessymem.kernels.lookup",
    "jessymem.kernels.memory",
    "jessymem.kernels.parse",
    "jessymem.kernels.store",
    "jessymem.kernels.transactions",
    "jessymem.learning.creation",
    "jessymem.learning.crystallization",
    "jessymem.learning.layers",
    "jessymem.learning.region",
    "jessymem.engine.locations",
    "jessymem.pools.allocator",
    "jessymem.regions.builder",
    "jessymem.regions.drafts",
    "jessymem.regions.encoding",
    "jessymem.regions.entries",
    "jessymem.regions.metadata",
    "jessymem.regions.verification",
    "jessymem.selection",
    "jessymem.simulation",
    "jessymem.stats",
    "jessymem.warming",
]


@pytest.fixture
def imported(store):
    """The modules that a first read imports beyond those of NumPy."""
    result = subprocess.run(
        [sys.executable, "-c", FIRST_READ, str(store)],
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": ""},  # it would import half of them
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_a_first_read_imports_only_what_it_needs(imported):
    assert "jessymem.regions.region" in imported
    left_out = {*NOT_NEEDED, *NOT_ENTERED}
    assert [name for name in imported if name in left_out] == []


def test_a_first_read_makes_no_class_that_takes_long(store):
    """Those of `typing.NamedTuple` are compiled, a tenth of a millisecond each."""
    made = run_python(
        """
import sys
import typing
import numpy

def refuse(cls, name, *arguments):
    raise AssertionError(name)

typing.NamedTupleMeta.__new__ = refuse
from jessymem import MmapManager
manager = MmapManager(280, base_path=sys.argv[1])
manager.load_dimension("D01")
print(len(manager.access_layer("L01-01")))
""",
        store,
        COVERAGE_PROCESS_CONFIG="",  # which makes some of its own
    )
    assert int(made) > 0


def test_modules_that_are_not_entered_exist():
    """So that the list above goes on to mean something where they are renamed."""
    from importlib.util import find_spec

    assert [name for name in NOT_ENTERED if find_spec(name) is None] == []


LISTENED_TO_LATE = """
import sys
from jessymem import MmapManager
manager = MmapManager(base_path=sys.argv[1])
manager.load_dimension("D01")
import logging
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(event)s %(module)s %(funcName)s")
manager.unload_dimension("D01")
manager.load_dimension("D01")
"""


def test_who_listens_late_hears_all_that_follows(store):
    printed = run_python(LISTENED_TO_LATE, str(store), COVERAGE_PROCESS_CONFIG="")
    assert printed.splitlines() == [
        "dimension_unloaded engine __exit__",
        "dimension_loaded engine __exit__",
    ]
