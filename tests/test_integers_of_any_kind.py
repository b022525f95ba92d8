"""What has an ``__index__`` is an integer wherever one is asked for; a bool is none."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jessymem import (
    ConfigError,
    DimensionId,
    LayerId,
    MemoryConfig,
    MmapManager,
    NavigationPath,
    PoolAllocator,
    PoolConfig,
    RegionBuilder,
)
from jessymem.ids import as_dimension_id, as_layer_id


class Three:
    """An integer that is no int."""

    def __index__(self):
        return 3


KINDS = [np.int64(3), np.uint16(3), np.uint8(3), np.int32(3), np.array(3), Three()]
NO_INTEGERS = [True, np.True_, 3.0, np.float64(3), "3", None, np.array([3])]

kinds = pytest.mark.parametrize("three", KINDS, ids=lambda kind: type(kind).__name__)
no_integers = pytest.mark.parametrize("wrong", NO_INTEGERS, ids=repr)


@kinds
def test_ids_take_integers_of_any_kind(three):
    assert DimensionId(three) == as_dimension_id(three) == DimensionId(3)
    layer = LayerId(three, three)
    assert layer == LayerId(3, 3)
    assert type(layer.layer) is type(layer.dimension.number) is type(layer.dimension + 0) is int
    assert LayerId(three, three).dimension == LayerId("D03", three).dimension == DimensionId(3)


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.array])
def test_packed_ids_are_integers_of_any_kind(kind):
    packed = kind(int(LayerId(3, 5)))
    assert as_layer_id(packed) == LayerId.from_packed(packed) == LayerId(3, 5)
    assert list(NavigationPath([packed])) == [LayerId(3, 5)]


@kinds
def test_settings_take_integers_of_any_kind_and_keep_plain_ones(three):
    config = MemoryConfig(three, pool_configs=[PoolConfig(three, np.uint16(64))])
    assert config == MemoryConfig(3, pool_configs=[(3, 64)])
    assert hash(config) == hash(MemoryConfig(3, pool_configs=[(3, 64)]))
    (pool,) = config.pool_configs
    numbers = [config.total_memory_mb, pool.size_mb, pool.block_size, pool.n_blocks]
    assert {type(number) for number in numbers} == {int}
    assert pool.n_blocks == 3 * 2**14  # which does not fit the 16 bits it was given in
    assert dataclasses.replace(config, total_memory_mb=np.int8(4)).limit_bytes == 4 * 2**20


def test_a_manager_takes_a_limit_of_any_kind(tmp_path):
    with MmapManager(np.int64(64), base_path=tmp_path) as manager:
        assert manager.config == MemoryConfig(64, base_path=tmp_path)
        json.dumps(manager.dump_state())


def test_pools_come_in_an_array():
    pools = (PoolConfig(1, 4096), PoolConfig(2, 64))
    pairs = [(1, 4096), (2, 64)]
    assert MemoryConfig(pool_configs=np.array(pairs)).pool_configs == pools
    rows = np.array(pairs, [("size_mb", "u2"), ("block_size", "u4")])
    assert MemoryConfig(pool_configs=rows).pool_configs == pools
    assert (
        PoolAllocator(MemoryConfig(pool_configs=rows).pool_configs, np.int32(4)).usage[1] == 2**22
    )


def test_shares_and_switches_are_numbers_and_bools_of_any_kind():
    config = MemoryConfig(
        warning_threshold=np.float32(0.5), read_only=np.True_, zero_on_reuse=np.False_
    )
    assert config == MemoryConfig(warning_threshold=0.5, read_only=True, zero_on_reuse=False)
    assert type(config.warning_threshold) is float
    assert config.read_only is True and config.zero_on_reuse is False


@no_integers
def test_what_is_no_integer_is_refused(wrong):
    for make in (DimensionId, LayerId.from_packed, lambda number: LayerId(3, number)):
        # A text may be an id, and this one is none.
        is_text = make is DimensionId and isinstance(wrong, str)
        with pytest.raises(ValueError if is_text else TypeError):
            make(wrong)
    for field, make in (
        ("total_memory_mb", MemoryConfig),
        ("size_mb", lambda number: PoolConfig(number, 64)),
        ("block_size", lambda number: PoolConfig(1, number)),
    ):
        with pytest.raises(ConfigError) as caught:
            make(wrong)
        assert caught.value.field == field
        assert caught.value.value is wrong


@pytest.mark.parametrize("wrong", [10**400, -(10**400), np.float64("nan"), np.True_])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ConfigError, match="warning_threshold must be"):
        MemoryConfig(warning_threshold=wrong)


@pytest.mark.parametrize("wrong", [np.array(5), [np.array(5)], np.array([5, 6]), np.zeros((2, 3))])
def test_what_is_no_sequence_of_pools_is_refused(wrong):
    with pytest.raises(ConfigError, match="pool_configs must be"):
        MemoryConfig(pool_configs=wrong)


def test_a_builder_takes_integers_of_any_kind():
    builder = RegionBuilder(np.uint16(20), "Numbers")
    packed = np.int64(int(LayerId(20, 5)))
    layer = builder.add_layer(np.uint16(6), b"", depth=np.uint8(2), parent=packed)
    assert layer == LayerId(20, 6)
    info = builder.build_to_memory().get_layer_info(layer)
    assert (info.depth, info.parent) == (2, LayerId(20, 5))
