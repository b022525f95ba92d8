"""A user's program, for type checkers alone: what they see of an installed jessymem.

Nothing runs it. A workflow gives a copy of it, in a folder of its own, to mypy and pyright, with an
editable install and with a wheel.
"""

# pyright: strict

from __future__ import annotations

import array
import mmap
from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import jessymem
from jessymem import Hits, LayerId, LayerIds, LayerInfo, MmapManager, RegionBuilder
from jessymem.kernels import schema


def length_of(content: NDArray[np.uint8], row: Any) -> int:
    return content.size + int(row.depth)


def read(manager: MmapManager, flag: bool, how: str) -> None:
    assert_type(manager["D20/name"], memoryview)
    assert_type(manager.get("L20-01"), memoryview | None)
    assert_type(iter(manager), Iterator[LayerId])
    assert_type(manager.access_layer("L20-01"), memoryview)
    assert_type(manager.access_many([1, "L20-01"]), list[memoryview])
    assert_type(manager.access_many([1], missing="raise"), list[memoryview])
    assert_type(manager.access_many([1], missing="mark"), list[memoryview | None])
    assert_type(manager.access_many([1], how), list[memoryview | None])
    assert_type(manager.get_layer_info("L20-01"), LayerInfo)
    assert_type(manager.select(name="bash/*"), list[LayerId])
    assert_type(manager.load_all(), jessymem.LoadReport)
    assert_type(manager.get_stats(), jessymem.MemoryStats)
    assert_type(schema.LAYER_BYTES, int)


def scan(manager: MmapManager, flag: bool) -> None:
    plain = manager.scan(length_of, np.int64)
    assert_type(plain, NDArray[Any])
    ids, _ = manager.scan(length_of, np.int64, return_ids=True)
    assert_type(ids, LayerIds)
    either = manager.scan(length_of, np.int64, return_ids=flag)
    assert_type(either, NDArray[Any] | tuple[LayerIds, NDArray[Any]])


def find(manager: MmapManager, numbers: NDArray[np.uint8], text: memoryview) -> None:
    assert_type(manager.find("text"), Hits)
    manager.find(numbers)
    manager.find(text)
    manager.find(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def build(builder: RegionBuilder, numbers: NDArray[np.float32], mapped: mmap.mmap) -> None:
    assert_type(builder.add_layer(1, "text"), LayerId)
    builder.add_layer(2, b"bytes")
    builder.add_layer(3, numbers)
    builder.add_layer(4, array.array("d"))
    builder.add_layer(5, mapped)
    builder.add_layer(6, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
