"""A dimension of a region file and deltas, made and checked."""

from __future__ import annotations

from pathlib import Path

from jessymem import (
    DimensionId,
    LayerId,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
)
from support import naive
from support.regions import region_file

D20 = DimensionId(20)
N_FIRST = 8
BLOCK = 20_000


def content_of(number: int) -> bytes:
    return bytes([number % 251]) * (BLOCK if number < N_FIRST else 60 + number)


def build(base: Path, **settings) -> MmapManager:
    """Write D20 with some long layers; return a manager that has it loaded."""
    builder = RegionBuilder(D20, "twenty")
    for number in range(N_FIRST):
        builder.add_layer(number, content_of(number), name=f"layer {number}")
    builder.build_to_file(region_file(base, "D20"))
    return load(base, **settings)


def load(base: Path, **settings) -> MmapManager:
    manager = MmapManager(MemoryConfig(64, base, simulation="never", **settings))
    manager.load_dimension(D20)
    return manager


def learn(manager: MmapManager, *numbers: int, content: bytes | None = None) -> None:
    """Make layers of D20 and crystallize them, all in one write."""
    for number in numbers:
        made = content_of(number) if content is None else content
        manager.create_proto_dimension(D20, made, layer=number, name=f"layer {number}")
    manager.crystallize_dimension(D20)


def names_in(base: Path) -> list[str]:
    return sorted(path.name for path in (base / "D20").iterdir())


def delta(base: Path, generation: int) -> Path:
    return base / "D20" / f"region.d{generation}.mmap"


def check(manager: MmapManager, numbers) -> None:
    """Check that a manager has just these layers, by every way of reading."""
    ids = [LayerId(D20, number) for number in numbers]
    assert manager.list_layers(D20) == ids
    expected = [content_of(number) for number in numbers]
    assert [bytes(manager.access_layer(each)) for each in ids] == expected
    assert [bytes(each) for each in manager.access_many(ids)] == expected
    assert [bytes(each.content) for each in manager.load_contexts(ids)] == expected
    assert [manager.get_layer_info(each).name for each in ids] == [f"layer {n}" for n in numbers]
    gathered, _ = manager.gather(ids)
    assert bytes(gathered) == b"".join(expected)


def ignored(caplog) -> dict[str, str]:
    """Return what was ignored, by name, and why."""
    found = [each for each in caplog.records if getattr(each, "event", "") == "delta_ignored"]
    return {Path(each.path).name: each.error for each in found}


def three_deltas(base: Path) -> None:
    with build(base) as manager:
        for number in (8, 9, 10):
            learn(manager, number)


def resigned(path: Path, **fields: int) -> None:
    raw = path.read_bytes()
    for field, value in fields.items():
        raw = naive.set_field(raw, field, value)
    path.write_bytes(naive.resign(raw))
