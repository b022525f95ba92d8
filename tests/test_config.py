"""`MemoryConfig`: defaults, refusals that name the field, and being a value."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from jessymem import ConfigError, DimensionId, MemoryConfig, MmapManager, PoolConfig
from jessymem.config import CORE_HEADROOM_MB, part_of
from jessymem.core_dimensions import slots_of

MIB = 2**20
KIB = 2**10

DEFAULT_POOLS = ((32, 4 * KIB), (128, 16 * KIB), (80, 64 * KIB), (40, 256 * KIB))


def test_defaults():
    config = MemoryConfig()
    pools = config.pool_configs
    assert dataclasses.asdict(config) == {
        "total_memory_mb": 280,
        "base_path": Path("data/consciousness"),
        "pool_configs": tuple({"size_mb": mb, "block_size": size} for mb, size in DEFAULT_POOLS),
        "warning_threshold": 0.75,
        "eviction_threshold": 0.85,
        "critical_threshold": 0.95,
        "eviction_policy": config.eviction_policy,
        "simulation": "auto",
        "advice": "willneed",
        "load_mode": "map",
        "guard": "none",
        "zero_on_reuse": True,
        "read_only": False,
        "status": "off",
        "compress_cold": "none",
        "huge_pages": "never",
        "numa": "none",
        "core_slots": (),
    }
    assert sum(pool.size_mb for pool in pools) == config.total_memory_mb
    assert config.limit_bytes == 280 * MIB


REFUSED = [
    ("total_memory_mb", [0, -1, 1.5, "280", None, True]),
    ("base_path", [None, 5, b"bytes", "null\0character", "\ud800x", Path("\ud800x"), ["a"]]),
    ("pool_configs", [None, 5, "32x4096", b"", [5], [(32,)], [(32, 4096, 1)], [None], ["ab"]]),
    ("warning_threshold", [0, 0.0, -0.1, 1.1, "0.75", None, True, float("nan"), float("inf")]),
    ("eviction_threshold", [0.75, 0.7, 1.01, None, float("nan")]),
    ("critical_threshold", [0.85, 0.8, 0, 1.01, "x", float("inf")]),
    ("eviction_policy", ["", "LRU", "random", None, 1, ["lru"]]),
    ("simulation", ["on", "", True, None, "Auto"]),
    ("advice", ["MADV_RANDOM", "", None, 3]),
    ("load_mode", ["mmap", "", None, 0]),
    ("guard", ["sigbus", "Lease", "", None, True]),
    ("zero_on_reuse", [1, 0, None, "yes"]),
    ("read_only", [1, 0, None, "no"]),
    ("status", [None, 3, b"x", "a\0b", True]),
    ("compress_cold", [None, 3, "", "gzip", "zstd:", "zstd:0", "zstd:23", "zstd:x", True]),
    ("huge_pages", ["", "always", "4KB", "2mb", None, 2, True]),
    ("numa", ["", "bind", "Local", None, 0, True]),
    (
        "core_slots",
        [
            None,
            5,
            "D14",
            [14],
            [(14, 1), ("D14", 2)],
            {15: 1},
            {0: 1},
            {"L14-00": 1},
            {14: 0},
            {14: 1.5},
            {14: "4"},
            {True: 4},
            {14: 2**41 + 1},
        ],
    ),
]


def test_every_field_has_refusals():
    assert [field for field, _ in REFUSED] == [x.name for x in dataclasses.fields(MemoryConfig)]


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in REFUSED for value in values]
)
def test_refusals_name_the_field(field, value):
    with pytest.raises(ConfigError) as caught:
        MemoryConfig(**{field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} must be ")
    offender = value[0] if field == "pool_configs" and isinstance(value, list) else value
    assert caught.value.value is offender
    assert repr(offender) in str(caught.value)


@pytest.mark.parametrize(
    ("thresholds", "field"),
    [
        ((0.5, 0.5, 0.9), "eviction_threshold"),
        ((0.9, 0.5, 0.95), "eviction_threshold"),
        ((0.5, 0.9, 0.9), "critical_threshold"),
        ((0.5, 0.9, 0.6), "critical_threshold"),
        ((1.0, 1.0, 1.0), "eviction_threshold"),
    ],
)
def test_thresholds_must_rise(thresholds, field):
    with pytest.raises(ConfigError) as caught:
        MemoryConfig(280, "x", DEFAULT_POOLS, *thresholds)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"warning_threshold": 0.9}, "warning_threshold"),
        ({"eviction_threshold": 0.97}, "eviction_threshold"),
        ({"eviction_threshold": 0.7}, "eviction_threshold"),
        ({"critical_threshold": 0.5}, "critical_threshold"),
    ],
)
def test_of_thresholds_the_one_that_was_given_is_named(given, field):
    with pytest.raises(ConfigError, match=f"^{field} must be (below|above)") as caught:
        MemoryConfig(**given)
    assert (caught.value.field, caught.value.value) == (field, given[field])


@pytest.mark.parametrize("thresholds", [(0.1, 0.2, 0.3), (0.98, 0.99, 1.0), (0.5, 0.75, 1)])
def test_thresholds_that_rise_are_kept(thresholds):
    config = MemoryConfig(280, "x", DEFAULT_POOLS, *thresholds)
    got = (config.warning_threshold, config.eviction_threshold, config.critical_threshold)
    assert got == thresholds


@pytest.mark.parametrize(
    ("field", "accepted"),
    [
        ("eviction_policy", ["lru", "lfu", "sieve"]),
        ("simulation", ["auto", "never", "always"]),
        ("advice", ["willneed", "random", "sequential", "none"]),
        ("load_mode", ["map", "copy"]),
        ("huge_pages", ["never", "thp", "2MB", "1GB"]),
        ("numa", ["none", "interleave", "local"]),
        ("read_only", [True, False]),
        ("zero_on_reuse", [True, False]),
        ("total_memory_mb", [1, 10, 2**40]),
    ],
)
def test_what_is_accepted_is_kept(field, accepted):
    for value in accepted:
        assert getattr(MemoryConfig(**{field: value}), field) == value


@pytest.mark.parametrize(
    "pools",
    [
        (PoolConfig(1, 4096), PoolConfig(2, 64)),
        [(1, 4096), (2, 64)],
        [[1, 4096], PoolConfig(2, 64)],
        iter([(1, 4096), (2, 64)]),
    ],
)
def test_pools_come_in_either_form(pools):
    config = MemoryConfig(pool_configs=pools)
    assert config.pool_configs == (PoolConfig(1, 4096), PoolConfig(2, 64))
    assert type(config.pool_configs) is tuple


def test_no_pools_are_pools():
    assert MemoryConfig(pool_configs=()).pool_configs == ()


@pytest.mark.parametrize(
    ("size_mb", "block_size", "field"),
    [
        (0, 4096, "size_mb"),
        (-1, 4096, "size_mb"),
        (1.0, 4096, "size_mb"),
        (True, 4096, "size_mb"),
        ("1", 4096, "size_mb"),
        (1, 0, "block_size"),
        (1, 32, "block_size"),
        (1, 63, "block_size"),
        (1, 65, "block_size"),
        (1, 4095, "block_size"),
        (1, 4096.0, "block_size"),
        (1, None, "block_size"),
        (1, 2 * MIB, "block_size"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(size_mb, block_size, field):
    with pytest.raises(ConfigError) as caught:
        PoolConfig(size_mb, block_size)
    assert caught.value.field == field
    with pytest.raises(ConfigError, match=field):
        MemoryConfig(pool_configs=[(size_mb, block_size)])


@pytest.mark.parametrize(("size_mb", "block_size"), [(1, 64), (1, MIB), (2, 2 * MIB), (280, 4096)])
def test_pools_from_one_cache_line_to_one_block(size_mb, block_size):
    assert PoolConfig(size_mb, block_size) == PoolConfig(size_mb=size_mb, block_size=block_size)


def test_slots_may_be_named_in_any_way():
    given = {"D14": 25, 3: 1, DimensionId(9): np.int64(30)}
    config = MemoryConfig(core_slots=given)
    assert config.core_slots == ((3, 1), (9, 30), (14, 25))
    assert [str(dimension) for dimension, _ in config.core_slots] == ["D03", "D09", "D14"]
    assert all(type(n_mb) is int for _, n_mb in config.core_slots)
    assert MemoryConfig(core_slots=list(given.items())) == config
    assert pickle.loads(pickle.dumps(config)) == dataclasses.replace(config)
    assert hash(config) == hash(MemoryConfig(core_slots=config.core_slots))


@pytest.mark.parametrize(
    ("total_mb", "d14", "d01", "headroom"),
    [
        (1, 4, 16, 20),
        (279, 4, 16, 20),
        (280, 4, 16, 20),
        (349, 4, 19, 24),
        (350, 5, 20, 25),
        (1024, 14, 58, 73),
        (2**41, 2**43 // 280, 2**45 // 280, 20 * 2**41 // 280),
    ],
)
def test_slots_and_headroom_grow_with_larger_budgets_only(total_mb, d14, d01, headroom):
    slots = slots_of(MemoryConfig(total_mb))
    assert (slots[DimensionId(14)], slots[DimensionId(1)]) == (d14 * MIB, d01 * MIB)
    assert part_of(total_mb, CORE_HEADROOM_MB) == headroom
    given = slots_of(MemoryConfig(total_mb, core_slots={14: 3}))
    assert given == slots | {DimensionId(14): 3 * MIB}


def test_configurations_are_values():
    config = MemoryConfig(64, base_path="somewhere")
    same = MemoryConfig(total_memory_mb=64, base_path=Path("somewhere"))
    assert config == same
    assert hash(config) == hash(same)
    assert config != MemoryConfig(65, base_path="somewhere")
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, total_memory_mb=65).limit_bytes == 65 * MIB


@pytest.mark.parametrize("field", [x.name for x in dataclasses.fields(MemoryConfig)])
def test_configurations_are_immutable(field):
    config = MemoryConfig()
    before = getattr(config, field)
    with pytest.raises(AttributeError):
        setattr(config, field, before)
    with pytest.raises(AttributeError):
        delattr(config, field)
    assert getattr(config, field) == before


def test_a_replaced_field_is_checked_with_the_others():
    with pytest.raises(ConfigError, match="critical_threshold"):
        dataclasses.replace(MemoryConfig(), critical_threshold=0.8)


# -- given to a manager ----------------------------------------------------------------------------


def test_a_limit_below_the_pools_is_fine(tmp_path):
    with MmapManager(10, base_path=tmp_path) as manager:
        assert manager.config == MemoryConfig(10, base_path=tmp_path)
        assert manager.get_stats().total_limit_bytes == 10 * MIB


@pytest.mark.parametrize("wrong", ["x", "280", None, 0, -5, 2.5, True])
def test_a_manager_refuses_what_is_no_limit(wrong):
    with pytest.raises(ConfigError) as caught:
        MmapManager(wrong)
    assert caught.value.field == "total_memory_mb"


def test_a_manager_takes_the_defaults():
    with MmapManager() as manager:
        assert manager.config == MemoryConfig()


def test_base_path_beside_a_configuration_wins(tmp_path):
    config = MemoryConfig(20, base_path="elsewhere", read_only=True)
    with MmapManager(config, base_path=str(tmp_path)) as manager:
        assert manager.config == dataclasses.replace(config, base_path=tmp_path)
    with MmapManager(config) as manager:
        assert manager.config is config


def test_a_base_path_that_makes_no_sense_is_refused():
    with pytest.raises(ConfigError) as caught:
        MmapManager(base_path=5)
    assert caught.value.field == "base_path"
