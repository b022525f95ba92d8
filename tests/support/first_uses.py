"""Every public verb, called first in a process that has no descriptor left: run as a program.

Prints a line for each verb that did not hold: what it raised, what it left, whether it works then.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jessymem import JessyMemoryError, MmapManager
from jessymem.kernels import _jit

try:
    import resource
except ImportError:  # Windows, where nothing here is run
    resource = None  # type: ignore[assignment]


def _block(manager: MmapManager) -> Any:
    return manager.allocate(100)


def _builder() -> Any:
    from jessymem import RegionBuilder

    return RegionBuilder("D40", "Name")


def _region(base: Path) -> Any:
    from jessymem import MmapRegion

    return MmapRegion.from_file("D20", base / "D20" / "region.mmap")


def _pools() -> Any:
    from jessymem import PoolAllocator

    return PoolAllocator([(1, 4096)], limit_mb=8)


def _write(manager: MmapManager) -> MmapManager:
    """Write a layer that nobody else needs."""
    manager.create_proto_dimension("D31", b"written", layer=0)
    manager.crystallize_dimension("D31")
    return manager


def _learn(manager: MmapManager) -> MmapManager:
    manager.create_proto_dimension("D30", b"learned")
    return manager


def _overlay(manager: MmapManager) -> MmapManager:
    manager.overlay_layer("L20-00", b"more")
    return manager


#: What is done while there are descriptors, and the verb. Each gets a manager and its directory.
VERBS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "discover": (lambda m, base: m, lambda m, base: m.discover()),
    "load_dimension": (lambda m, base: m, lambda m, base: m.load_dimension("D21")),
    "load_dimension plain": (lambda m, base: m, lambda m, base: m.load_dimension("D22")),
    "load_core_dimensions": (lambda m, base: m, lambda m, base: m.load_core_dimensions()),
    "load_all": (lambda m, base: m, lambda m, base: m.load_all()),
    "refresh": (lambda m, base: m, lambda m, base: m.refresh("D20")),
    "unload_dimension": (lambda m, base: m, lambda m, base: m.unload_dimension("D20")),
    "unload_dimension with blocks": (
        lambda m, base: m.allocate(10) and m,
        lambda m, base: m.unload_dimension("D20"),
    ),
    "pin": (lambda m, base: m, lambda m, base: m.pin("D20")),
    "unpin": (lambda m, base: m, lambda m, base: m.unpin("D20")),
    "is_loaded": (lambda m, base: m, lambda m, base: m.is_loaded("D20")),
    "list_dimensions": (lambda m, base: m, lambda m, base: m.list_dimensions()),
    "list_layers": (lambda m, base: m, lambda m, base: m.list_layers()),
    "access_layer": (lambda m, base: m, lambda m, base: m.access_layer("L20-00")),
    "access_layer missing": (lambda m, base: m, lambda m, base: m.access_layer("L20-99")),
    "array": (lambda m, base: m, lambda m, base: m.array("L20-01")),
    "ref": (lambda m, base: m, lambda m, base: m.ref("L20-00")),
    "ref get": (lambda m, base: m.ref("L20-00"), lambda ref, base: ref.get()),
    "ref array": (
        lambda m, base: type(ref := m.ref("L21-01") if m.load_dimension("D21") else None)(
            ref.path, ref.__reduce__()[1][1], "L21-01"
        ),
        lambda ref, base: ref.array(),
    ),
    "load_layer_context": (lambda m, base: m, lambda m, base: m.load_layer_context("L20-00")),
    "load_contexts": (lambda m, base: m, lambda m, base: m.load_contexts(["L20-00"])),
    "get_layer_info": (lambda m, base: m, lambda m, base: m.get_layer_info("L20-00")),
    "select": (lambda m, base: m, lambda m, base: m.select(keywords=["joy"])),
    "select by name": (lambda m, base: m, lambda m, base: m.select(name="a*")),
    "id_of missing": (lambda m, base: m, lambda m, base: m.id_of("no such name")),
    "by name": (lambda m, base: m, lambda m, base: m.get("no such name")),
    "locate_many": (lambda m, base: m, lambda m, base: m.locate_many(["L20-00"])),
    "locate_many of many": (
        lambda m, base: m,
        lambda m, base: m.locate_many(np.full(20_000, 20 << 16)),
    ),
    "access_many": (lambda m, base: m, lambda m, base: m.access_many(["L20-00"])),
    "gather": (lambda m, base: m, lambda m, base: m.gather(["L20-00"])),
    "store": (lambda m, base: m, lambda m, base: m.store()),
    "inflate": (lambda m, base: m, lambda m, base: m.inflate(["L20-00"])),
    "find": (lambda m, base: m, lambda m, base: m.find(b"rain", workers=2)),
    "count": (lambda m, base: m, lambda m, base: m.count(b"rain", workers=2)),
    "find_batches": (
        lambda m, base: m,
        lambda m, base: list(m.find_batches(b"rain", workers=2)),
    ),
    "scan": (lambda m, base: m, lambda m, base: m.scan(length, np.int64)),
    "create_proto_dimension": (
        lambda m, base: m,
        lambda m, base: m.create_proto_dimension("D30", b"learned"),
    ),
    "create_proto_dimension array": (
        lambda m, base: m,
        lambda m, base: m.create_proto_dimension("D30", np.zeros(3)),
    ),
    "create_proto_layers": (
        lambda m, base: m,
        lambda m, base: m.create_proto_layers([("D30", b"one"), ("D30", b"two")]),
    ),
    "update_proto_dimension": (
        lambda m, base: _learn(m),
        lambda m, base: m.update_proto_dimension("L30-00", b"other"),
    ),
    "discard_proto_dimension": (
        lambda m, base: _learn(m),
        lambda m, base: m.discard_proto_dimension("L30-00"),
    ),
    "overlay_layer": (lambda m, base: m, lambda m, base: m.overlay_layer("L20-00", b"more")),
    "drop_overlay": (lambda m, base: _overlay(m), lambda m, base: m.drop_overlay("L20-00")),
    "crystallize_proto_dimension": (
        lambda m, base: _learn(m),
        lambda m, base: m.crystallize_proto_dimension("L30-00"),
    ),
    "crystallize_dimension": (
        lambda m, base: _learn(m),
        lambda m, base: m.crystallize_dimension("D30"),
    ),
    "keys": (lambda m, base: m, lambda m, base: list(m.keys())),
    "values": (lambda m, base: m, lambda m, base: list(m.values())),
    "items": (lambda m, base: m, lambda m, base: dict(m.items())),
    "delete_layer": (lambda m, base: _write(m), lambda m, base: m.delete_layer("L31-00")),
    "delete_layer in memory": (lambda m, base: _learn(m), lambda m, base: m.delete_layer("L30-00")),
    "fold": (lambda m, base: m, lambda m, base: m.fold("D20")),
    "allocate": (lambda m, base: m, lambda m, base: m.allocate(100)),
    "allocate_many": (lambda m, base: m, lambda m, base: m.allocate_many([100, 200])),
    "allocate_array": (lambda m, base: m, lambda m, base: m.allocate_array(3)),
    "deallocate": (
        lambda m, base: (m, _block(m)),
        lambda found, base: found[0].deallocate(found[1]),
    ),
    "deallocate_many": (
        lambda m, base: (m, [_block(m)]),
        lambda found, base: found[0].deallocate_many(found[1]),
    ),
    "view": (
        lambda m, base: (m, _block(m)),
        lambda found, base: found[0].view(found[1], 10),
    ),
    "trim": (lambda m, base: m, lambda m, base: m.trim()),
    "resize": (lambda m, base: m, lambda m, base: m.resize(32)),
    "get_stats": (lambda m, base: m, lambda m, base: m.get_stats()),
    "get_stats with blocks": (
        lambda m, base: m.allocate(10) and m,
        lambda m, base: m.get_stats(),
    ),
    "dump_state": (lambda m, base: m, lambda m, base: m.dump_state()),
    "metrics_text": (lambda m, base: m, lambda m, base: m.metrics_text()),
    "memory_map": (lambda m, base: m, lambda m, base: m.memory_map()),
    "pickle": (lambda m, base: m, lambda m, base: pickle.dumps(m)),
    "pickle of a store": (lambda m, base: m.store(), lambda s, base: pickle.dumps(s)),
    "unpickle": (lambda m, base: pickle.dumps(m), lambda data, base: pickle.loads(data)),
    "close": (lambda m, base: m, lambda m, base: m.close()),
    "another manager": (
        lambda m, base: m,
        lambda m, base: MmapManager(8, base_path=base).load_core_dimensions(),
    ),
    "RegionBuilder": (lambda m, base: m, lambda m, base: _builder()),
    "RegionBuilder.add_layer": (
        lambda m, base: _builder(),
        lambda builder, base: builder.add_layer(0, "text", keywords=["word"]),
    ),
    "RegionBuilder.add_array": (
        lambda m, base: _builder(),
        lambda builder, base: builder.add_array(0, np.zeros(3)),
    ),
    "RegionBuilder.build_to_file": (
        lambda m, base: _builder(),
        lambda builder, base: builder.build_to_file(base / f"new-{os.getpid()}" / "region.mmap"),
    ),
    "MmapRegion.from_file": (lambda m, base: m, lambda m, base: _region(base)),
    "MmapRegion.read_content": (
        lambda m, base: _region(base),
        lambda region, base: region.read_content(0, 10),
    ),
    "MmapRegion.read_string": (
        lambda m, base: _region(base),
        lambda region, base: region.read_string(0, 10),
    ),
    "MmapRegion.read_array": (
        lambda m, base: _region(base),
        lambda region, base: region.read_array("L20-01"),
    ),
    "MmapRegion.get_layer_info": (
        lambda m, base: _region(base),
        lambda region, base: region.get_layer_info("L20-00"),
    ),
    "MmapRegion.list_layers": (
        lambda m, base: _region(base),
        lambda region, base: region.list_layers(),
    ),
    "MmapRegion.verify_integrity": (
        lambda m, base: _region(base),
        lambda region, base: region.verify_integrity(),
    ),
    "MmapRegion.metadata": (
        lambda m, base: _region(base),
        lambda region, base: region.metadata,
    ),
    "PoolAllocator": (lambda m, base: m, lambda m, base: _pools()),
    "PoolAllocator.allocate": (lambda m, base: _pools(), lambda p, base: p.allocate(10)),
    "PoolAllocator.allocate_many": (
        lambda m, base: _pools(),
        lambda p, base: p.allocate_many([10]),
    ),
    "PoolAllocator.allocate_array": (lambda m, base: _pools(), lambda p, base: p.allocate_array(3)),
    "PoolAllocator.add_pool": (lambda m, base: _pools(), lambda p, base: p.add_pool(1, 4096)),
    "PoolAllocator.trim": (lambda m, base: _pools(), lambda p, base: p.trim()),
    "PoolAllocator.validate": (lambda m, base: _pools(), lambda p, base: p.validate()),
    "PoolAllocator.survey": (lambda m, base: _pools(), lambda p, base: p.survey()),
    "PoolAllocator.look": (lambda m, base: _pools(), lambda p, base: p.look()),
    "PoolAllocator.blocks": (lambda m, base: _pools(), lambda p, base: p.blocks()),
    "PoolAllocator.usage": (lambda m, base: _pools(), lambda p, base: p.usage),
    "PoolAllocator.pools": (lambda m, base: _pools(), lambda p, base: p.pools),
    "PoolAllocator.words": (lambda m, base: _pools(), lambda p, base: p.words),
    "PoolAllocator.close": (lambda m, base: _pools(), lambda p, base: p.close()),
}


#: What needs blocks before it is called.
WITH_BLOCKS = frozenset(
    {
        "unload_dimension with blocks",
        "update_proto_dimension",
        "discard_proto_dimension",
        "drop_overlay",
        "crystallize_proto_dimension",
        "crystallize_dimension",
        "deallocate",
        "deallocate_many",
        "view",
        "get_stats with blocks",
        "learned over plain",
        "crystallized over plain",
        "learned in a core dimension",
        "layers one by one",
        "many sizes",
        "pressure",
        "too much",
    }
)

#: What loads kernels, for half a second, as others do: whether that works is seen at those.
ALIKE = frozenset(
    {
        "locate_many of many",
        "create_proto_dimension array",
        "create_proto_layers",
        "overlay_layer",
        "allocate_many",
        "allocate_array",
        "count",
        "find_batches",
        "PoolAllocator.allocate_many",
        "PoolAllocator.allocate_array",
        "PoolAllocator.words",
    }
)


def length(content: Any, row: Any) -> int:
    return len(content)


def _use_up_descriptors() -> Callable[[], None]:
    """Let no descriptor be had; return what ends that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _layers(manager: MmapManager) -> Any:
    try:
        return manager.list_layers()
    except JessyMemoryError as error:
        return repr(error)  # closed


def check(verb: str, manager: MmapManager, base: Path) -> list[str]:
    """Call a verb with no descriptor left, and again with some; return what is wrong."""
    prepare, call = VERBS[verb]
    subject = prepare(manager, base)
    before = _layers(manager)
    wrong = []
    error: BaseException | None = None
    give_back = _use_up_descriptors()
    try:
        call(subject, base)
    except JessyMemoryError as caught:
        error = caught
    except BaseException as caught:
        error = caught
        wrong.append(f"{verb}: {traceback.format_exc()}")
    give_back()
    if error is None or "missing" in verb:
        return wrong
    if (after := _layers(manager)) != before:
        wrong.append(f"{verb}: {error!r}, and from {before} it came to {after}")
    if verb not in ALIKE:
        call(subject, base)
    return wrong


def in_forks(verbs: Iterable[str], check: Callable[[str], list[str]]) -> list[str]:
    """Check each verb in a process of its own, forked from this one; return what they say.

    Before those that need blocks to begin with, the kernels are loaded here, once for all.
    """
    found = []
    for verb in sorted(verbs, key=WITH_BLOCKS.__contains__):
        if verb in WITH_BLOCKS:
            _jit.promote(_jit.MEMORY)
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(reading)
            wrong = [f"{verb}: no answer"]
            try:
                wrong = check(verb)
            except BaseException:
                wrong = [f"{verb}: {traceback.format_exc()}"]
            finally:
                os.write(writing, json.dumps(wrong).encode())
                os._exit(0)
        os.close(writing)
        with open(reading) as answer:
            found += json.loads(answer.read() or json.dumps([f"{verb}: died"]))
        os.wait()
    return found


def main() -> None:
    base = Path(sys.argv[1])
    manager = MmapManager(64, base_path=base)
    manager.load_dimension("D20")
    manager.access_layer("L20-00")
    wrong = in_forks(sys.argv[2:] or VERBS, lambda verb: check(verb, manager, base))
    sys.stdout.write("\n".join(wrong))


if __name__ == "__main__":
    main()
