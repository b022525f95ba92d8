"""Where the system has no addresses left, errors are ours and say for what; nothing stays."""

from __future__ import annotations

import errno
import json
import os

import pytest
from support.processes import needs_fork, run_python
from support.regions import build_region
from support.system import HAS_PROC
from support.system_calls import intercepted

from jessymem import MemoryConfig, MmapManager

MIB = 2**20

PROGRAM = """
import json, os, resource, sys
from jessymem import *

base, n_left = sys.argv[1], int(sys.argv[2])
everywhere = MemoryConfig(total_memory_mb=64, base_path=base)
copying = MemoryConfig(total_memory_mb=64, base_path=base, load_mode="copy")


def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


calls = {
    "map": (everywhere, lambda manager: manager.load_dimension("D50")),
    "copy": (copying, lambda manager: manager.load_dimension("D50")),
    "allocate": (everywhere, lambda manager: manager.allocate(100)),
    "pools": (everywhere, lambda manager: PoolAllocator(limit_mb=64)),
    "learn": (everywhere, lambda manager: manager.create_proto_dimension("D51", b"x")),
    "overlay": (everywhere, lambda manager: manager.overlay_layer("L52-00", b"x")),
}
found = {}
for config, call in calls.values():  # what they need is imported
    with MmapManager(8, base_path=base) as manager:
        manager.load_core_dimensions()
import jessymem.learning.creation, jessymem.learning.writer, jessymem.pools.allocator
for name, (config, call) in calls.items():
    with MmapManager(config) as manager:
        if name == "overlay":
            manager.load_dimension("D52")
        before = manager.get_stats().total_allocated_bytes
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size() + n_left, limits[1]))
        try:
            call(manager)
            answer = "done"
        except MemoryError as error:
            answer = ["MemoryError", getattr(error, "reason", None), str(error)]
        except RegionIOError as error:
            answer = ["RegionIOError", error.errno, str(error)]
        resource.setrlimit(resource.RLIMIT_AS, limits)
        left = manager.get_stats().total_allocated_bytes - before
        found[name] = [answer, left]
print(json.dumps(found))
"""


@pytest.mark.skipif(not HAS_PROC, reason="needs a limit for addresses")
@needs_fork
def test_each_call_that_needs_addresses_says_so_and_for_what(tmp_path):
    build_region(tmp_path, "D50", bytes(30 * MIB))
    build_region(tmp_path, "D52", b"base")
    found = json.loads(run_python(PROGRAM, str(tmp_path), str(MIB)))
    assert {name: left for name, (_, left) in found.items()} == dict.fromkeys(found, 0)
    answers = {name: answer for name, (answer, _) in found.items()}
    kind, number, text = answers.pop("map")
    assert (kind, number) == ("RegionIOError", 12)
    assert text.startswith("D50: cannot map ")
    who = {"copy": "D50", "learn": "D51", "overlay": "L52-00"}
    for name, (kind, reason, text) in answers.items():
        assert (kind, reason) == ("MemoryError", "os_refused"), name
        assert "the system refused" in text
        assert text.startswith(f"{who[name]}: " if name in who else "no addresses for pools of "), (
            text
        )


def test_a_dimension_that_cannot_be_simulated_is_named(tmp_path):
    def refuse(operation: str, path: str, *details: object) -> None:
        if operation == "map private":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    config = MemoryConfig(base_path=tmp_path, simulation="always")
    with MmapManager(config) as manager, intercepted(refuse):
        skipped = manager.load_core_dimensions().skipped
        assert len(skipped) == 14
        for dimension, reason in skipped:
            assert reason.startswith(f"{dimension}: the system refused ")
        assert manager.get_stats().total_allocated_bytes == 0
