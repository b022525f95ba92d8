"""One dimension changed beside few others and beside many: the groups' figures are to be alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jessymem import MmapManager
from jessymem.bench import data

FIRST = 100


@pytest.fixture(params=[10, 600], ids="{} others".format, scope="module")
def crowd(request: Any, tmp_path_factory: Any) -> Iterator[tuple[MmapManager, int]]:
    """A manager of so many dimensions, and one more that is not loaded."""
    base = tmp_path_factory.mktemp("crowd")
    *others, extra = data.build_many(base, FIRST, request.param + 1)
    with data.open_manager(base) as manager:
        for dimension in others:
            manager.load_dimension(dimension)
        yield manager, int(extra)


@pytest.mark.benchmark(group="load and unload one dimension")
def test_load(crowd: tuple[MmapManager, int], benchmark: Any) -> None:
    manager, extra = crowd

    def load() -> None:
        manager.load_dimension(extra)
        manager.unload_dimension(extra)

    benchmark(load)


@pytest.mark.benchmark(group="learn a layer and discard it")
def test_learn(crowd: tuple[MmapManager, int], benchmark: Any) -> None:
    manager, _ = crowd

    def learn() -> None:
        manager.discard_proto_dimension(manager.create_proto_dimension(60, b"learned"))

    benchmark(learn)


@pytest.mark.benchmark(group="get_stats")
def test_stats(crowd: tuple[MmapManager, int], benchmark: Any) -> None:
    manager, _ = crowd
    assert benchmark(manager.get_stats).dimensions_loaded >= 10
