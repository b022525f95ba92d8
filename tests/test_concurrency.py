"""Many threads at once: readers under writers, loads against loads, and what is left afterwards."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import xxhash
from support.regions import build_region, region_file, write_sparse
from support.system import mappings_of, open_files

from jessymem import (
    DimensionId,
    DuplicateDimension,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MmapManager,
    RegionBuilder,
)
from jessymem.config import MIB

N_READERS = 100


@pytest.fixture(autouse=True)
def _switch_often():
    """Let threads take turns more often than usual: more interleavings, and writers get theirs."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(usual)


def run_together(functions):
    """Run all at once, from a barrier; raise the first error of any."""
    barrier = threading.Barrier(len(functions))
    errors = []

    def enter(function):
        barrier.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=enter, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def write_generation(base: Path, dimension: int, generation: int) -> None:
    """Eight layers whose content ends in the checksum of what precedes it, and says its origin."""
    builder = RegionBuilder(dimension, f"generation {generation}")
    for number in range(8):
        origin = f"{dimension} {number} {generation} ".encode()
        body = origin * random.Random(number).randrange(1, 400)
        builder.add_layer(number, body + xxhash.xxh3_64_digest(body))
    builder.build_to_file(region_file(base, f"D{dimension:02d}"))


def prepare_generations(base: Path, dimensions: list[int], n_rounds: int) -> dict[int, Path]:
    """Write what other processes will publish: among so many readers a write takes half a minute.

    Its system calls each wait for the GIL behind all of them.
    """
    for i in range(1, n_rounds + 1):
        write_generation(base / str(i), dimensions[i % len(dimensions)], i)
    return {
        i: region_file(base / str(i), f"D{dimensions[i % len(dimensions)]:02d}")
        for i in range(1, n_rounds + 1)
    }


def read_and_check(manager: MmapManager, layer: LayerId, seen: Counter[str]) -> None:
    try:
        view = manager.access_layer(layer)
    except LayerNotFound:
        seen["absent"] += 1
        return
    body, digest = view[:-8], bytes(view[-8:])
    assert xxhash.xxh3_64_digest(body) == digest
    dimension, number, generation, _ = bytes(body[:40]).split(b" ", 3)
    assert LayerId(int(dimension), int(number)) == layer
    seen[generation.decode()] += 1


def readers_under_writers(base: Path, n_rounds: int) -> Counter[str]:
    """Let 100 threads read while dimensions load, unload and are replaced; return what was seen."""
    dimensions = [20, 21, 22, 40_000]
    for dimension in dimensions:
        write_generation(base, dimension, 0)
    prepared = prepare_generations(base / "prepared", dimensions, n_rounds)
    manager = MmapManager(base_path=base)
    manager.load_all()
    done = threading.Event()
    results: list[Counter[str]] = []

    def read(seed):
        rng, seen = random.Random(seed), Counter()
        results.append(seen)
        layers = [LayerId(d, n) for d in dimensions for n in range(8)]
        while not done.is_set():
            for _ in range(20):
                read_and_check(manager, rng.choice(layers), seen)
            contexts = manager.load_contexts(rng.sample(layers, 4), missing="skip")
            assert all(xxhash.xxh3_64_digest(c.content[:-8]) == c.content[-8:] for c in contexts)
            for context in contexts:  # content and description are of one generation
                assert bytes(context.content).split(b" ")[2].decode() in context.dimension_name

    def write():
        try:
            for i in range(1, n_rounds + 1):
                dimension = dimensions[i % len(dimensions)]
                if i % 3:
                    prepared[i].replace(region_file(base, f"D{dimension:02d}"))
                    manager.refresh(dimension)
                else:
                    manager.unload_dimension(dimension)
                    manager.load_dimension(dimension)
        finally:
            done.set()

    run_together([write, *(lambda seed=seed: read(seed) for seed in range(N_READERS))])
    manager.close()
    assert manager.get_stats().total_allocated_bytes == 0
    return sum(results, Counter())


def check_nothing_left(base: Path) -> None:
    gc.collect()
    assert mappings_of(base) == []
    assert not [name for name in open_files() if name.startswith(str(base))]


def test_readers_under_writers(tmp_path):
    seen = readers_under_writers(tmp_path, n_rounds=5)
    assert seen["0"] > 0 and len(seen) > 3, "old and new states were both read"
    check_nothing_left(tmp_path)


@pytest.mark.slow
def test_readers_under_writers_for_long(tmp_path):
    n_rounds = int(os.environ.get("JESSYMEM_STRESS_ROUNDS", "60"))
    seen = readers_under_writers(tmp_path, n_rounds)
    assert len(seen) > n_rounds // 10
    check_nothing_left(tmp_path)


def test_of_many_threads_that_load_one_dimension_one_does(store):
    manager = MmapManager(base_path=store)
    outcomes = []

    def load():
        try:
            outcomes.append(manager.load_dimension("D01"))
        except DuplicateDimension:
            outcomes.append("duplicate")

    run_together([load] * 16)
    assert outcomes.count("duplicate") == 15
    assert manager.get_stats().dimensions_loaded == 1


def test_many_threads_load_different_dimensions(tmp_path):
    for number in range(15, 47):
        build_region(tmp_path, f"D{number}", f"content of {number}", layers=3)
    manager = MmapManager(base_path=tmp_path)
    run_together([lambda number=number: manager.load_dimension(number) for number in range(15, 47)])
    assert len(manager) == 32 * 3
    for number in range(15, 47):
        assert bytes(manager.access_layer(LayerId(number, 2))) == b"content of %d" % number
    file_bytes = sum(region_file(tmp_path, f"D{n}").stat().st_size for n in range(15, 47))
    assert manager.get_stats().total_used_bytes == file_bytes


def test_two_loads_never_both_get_the_last_headroom(tmp_path):
    write_sparse(tmp_path, 4, (8 + 11) * MIB)
    write_sparse(tmp_path, 5, (8 + 11) * MIB)
    for _ in range(20):
        manager = MmapManager(base_path=tmp_path)
        outcomes = []

        def load(number, manager=manager, outcomes=outcomes):
            try:
                manager.load_dimension(number)
                outcomes.append("loaded")
            except LimitExceeded:
                outcomes.append("refused")

        run_together([lambda: load(4), lambda: load(5)])
        assert sorted(outcomes) == ["loaded", "refused"]
        assert manager.get_stats().per_class["core_headroom"].allocated_bytes == 11 * MIB
        manager.close()


def test_the_budget_is_never_above_its_limit(tmp_path):
    for number in range(20, 28):
        write_sparse(tmp_path, number, 2 * MIB)
    manager = MmapManager(5, base_path=tmp_path)
    done = threading.Event()
    samples = []

    def sample():
        is_last = False
        while not is_last:
            is_last = done.is_set()
            samples.append(manager.get_stats().total_allocated_bytes)

    def load_and_unload(number):
        for _ in range(20):
            try:
                manager.load_dimension(number)
            except LimitExceeded:
                continue
            manager.unload_dimension(number)

    sampler = threading.Thread(target=sample)
    sampler.start()
    run_together([lambda number=number: load_and_unload(number) for number in range(20, 28)])
    done.set()
    sampler.join()
    assert max(samples) <= 5 * MIB
    assert manager.get_stats().peak_usage_bytes == 4 * MIB
    assert manager.get_stats().total_allocated_bytes == 0


def test_readers_go_on_while_a_writer_is_in_a_system_call(store, intercept):
    manager = MmapManager(base_path=store)
    manager.load_dimension("D01")
    inside, go_on = threading.Event(), threading.Event()

    def wait(operation, path, *details):
        if operation == "map" and "D20" in path:
            inside.set()
            assert go_on.wait(30)

    intercept(wait)
    writer = threading.Thread(target=manager.load_dimension, args=("D20",))
    writer.start()
    assert inside.wait(30)
    assert bytes(manager.access_layer("L01-00")) == b"layer 0 of emotion\n"
    assert len(manager.load_contexts(["L01-00", "L20-00"], missing="skip")) == 1
    assert manager.list_dimensions() == [1]
    assert manager.get_stats().dimensions_loaded == 1
    assert manager.select(keywords=["joy"]) and manager.dump_state()
    go_on.set()
    writer.join()
    assert manager.list_dimensions() == [DimensionId(1), DimensionId(20)]


def test_a_finalizer_may_ask_for_stats_wherever_it_runs(manager):
    class Session:
        def __init__(self):
            self.itself = self

        def __del__(self):
            asked.append(manager.get_stats().dimensions_loaded)

    asked = []
    usual = gc.get_threshold()
    gc.set_threshold(20)  # so that one runs while the budget's lock is held
    try:
        for _ in range(500):
            Session()
            manager.get_stats()
    finally:
        gc.set_threshold(*usual)
        gc.collect()
    assert asked == [2] * 500
