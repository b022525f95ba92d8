"""Many readers beside writers: old or new, never a mixture, never an error that is nobody's."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections import Counter
from itertools import count
from time import monotonic

import pytest
import xxhash
from support import samples
from support.eviction import MIB, check_numbers, content_of, evicted, load_into
from support.internals import evict, region_of, writing
from support.samples import sampled
from support.system import mappings_of
from support.threads import run_together

from jessymem import (
    ContentLocation,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
)

N_READERS = 100
N_CRYSTALLIZED = 40
N_DIMENSIONS = 8
N_OVERLAPPING = samples.number(400, of=1_600)
N_RESTLESS = 3
POOLS = [(4, 4096), (16, 65_536)]


@pytest.fixture(autouse=True)
def _switch_often():
    """Let threads take turns more often than usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(usual)


def signed(layer, edition, n_bytes=600):
    """Content that says what it is, and ends in the checksum of what precedes."""
    head = f"{layer} {edition} ".encode()
    body = head + random.Random(n_bytes).randbytes(n_bytes - len(head) - 8)
    return body + xxhash.xxh3_64_digest(body)


def check_signed(layer, view):
    """Return the edition of a signed content after checking every byte of it."""
    assert xxhash.xxh3_64_digest(view[:-8]) == view[-8:]
    name, edition = bytes(view[:40]).split(b" ")[:2]
    assert name.decode() == str(layer)
    return int(edition)


# -- crystallization -------------------------------------------------------------------------------


@sampled
def test_readers_during_crystallization_see_no_corruption(tmp_path, intercept):
    """A hundred readers take turns while each file is held open before it is synced.

    Some more read all the time, whatever goes on.
    """
    manager = MmapManager(MemoryConfig(64, tmp_path, pool_configs=POOLS, simulation="never"))
    layers = [LayerId(20 + i % N_DIMENSIONS, i // N_DIMENSIONS) for i in range(N_CRYSTALLIZED)]
    manager.create_proto_layers(
        {"dimension_id": each.dimension, "layer": each.layer, "content": signed(each, 1)}
        for each in layers
    )
    turns, ends = threading.Semaphore(0), threading.Semaphore(0)
    is_over = threading.Event()
    phase = ["before"]
    counts = [Counter() for _ in range(N_READERS + N_RESTLESS)]  # each of one thread

    def read_one(rng, seen):
        began, layer = phase[0], rng.choice(layers)
        assert check_signed(layer, manager.access_layer(layer)) == 1
        (context,) = manager.load_contexts([layer])
        assert check_signed(layer, context.content) == 1
        seen[manager.get_layer_info(layer).location] += 1
        if began == phase[0]:
            seen[began] += 1

    def read_in_turn(seed):
        rng = random.Random(seed)
        while turns.acquire() and not is_over.is_set():
            try:
                read_one(rng, counts[seed])
            finally:
                ends.release()

    def read_restlessly(seed):
        rng = random.Random(seed)
        while not is_over.is_set():
            read_one(rng, counts[seed])

    def let_read(n_reads):
        turns.release(n_reads)
        for _ in range(n_reads):
            assert ends.acquire(timeout=60)

    def hold_open(operation, path, *details):
        if operation == "sync":
            let_read(N_OVERLAPPING // N_DIMENSIONS)

    def write():
        try:
            let_read(N_READERS)
            phase[0] = "during"
            intercept(hold_open)
            for number in range(20, 20 + N_DIMENSIONS):
                assert len(manager.crystallize_dimension(number)) == N_CRYSTALLIZED // N_DIMENSIONS
            intercept(None)
            phase[0] = "after"
            let_read(N_READERS)
        finally:
            is_over.set()
            turns.release(N_READERS)

    in_turn = [lambda seed=seed: read_in_turn(seed) for seed in range(N_READERS)]
    restless = [lambda i=i: read_restlessly(N_READERS + i) for i in range(N_RESTLESS)]
    run_together([write, *in_turn, *restless])
    total = sum(counts, Counter())
    assert total["before"] >= N_READERS and total["after"] >= N_READERS
    assert total["during"] >= N_OVERLAPPING
    assert total[ContentLocation.HEAP] and total[ContentLocation.MMAP]
    assert {manager.get_layer_info(each).location for each in layers} == {ContentLocation.MMAP}
    assert manager.get_stats().waiting_bytes == 0
    manager.close()
    gc.collect()
    assert mappings_of(tmp_path) == []


# -- eviction --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["lru", "lfu", "sieve"])
def test_readers_of_more_than_fits_get_every_byte(tmp_path, policy):
    """Readers copy what they read at once, so that everything may always go; nothing is refused."""
    numbers = range(20, 28)
    n_rounds = 40
    manager = load_into(tmp_path, numbers, 4, policy)
    sums = {
        LayerId(number, layer): xxhash.xxh3_64_digest(content_of(number, layer))
        for number in numbers
        for layer in range(3)
    }

    def read(seed):
        rng = random.Random(seed)
        for _ in range(n_rounds):
            layer = rng.choice(list(sums))
            how = rng.randrange(4)
            if how == 0:
                assert manager.load_layer_context(layer).layer_id == layer
            elif how == 1:
                assert manager.get_layer_info(layer).name == f"layer {layer.layer}"
            assert xxhash.xxh3_64_digest(bytes(manager.access_layer(layer))) == sums[layer]

    def look():
        stats = manager.get_stats()
        assert stats.total_allocated_bytes <= stats.peak_usage_bytes <= 4 * MIB
        assert stats.dimensions_loaded == len(numbers)
        patience.wait(0.001)

    patience = threading.Event()
    run_together([lambda seed=seed: read(seed) for seed in range(3)], look)
    stats = manager.get_stats()
    assert stats.evictions == stats.reloads + len(evicted(manager)) > 4
    assert stats.waiting_bytes == 0
    check_numbers(manager)
    manager.close()
    assert manager.get_stats().total_allocated_bytes == 0


@sampled
def test_loads_and_unloads_beside_readers_of_more_than_fits(tmp_path):
    numbers = list(range(20, 28))
    manager = load_into(tmp_path, numbers, 4)
    contents = {LayerId(n, layer): content_of(n, layer) for n in numbers for layer in range(3)}
    done = threading.Event()
    outcomes = [Counter() for _ in range(8)]

    def read(seed):
        rng, seen = random.Random(seed), outcomes[seed]
        while not done.is_set():
            layer = LayerId(rng.choice(numbers), rng.randrange(3))
            try:
                view = manager.access_layer(layer)
            except (LayerNotFound, LimitExceeded) as error:
                seen[type(error)] += 1
                continue
            assert view == contents[layer]
            seen["right"] += 1

    def write(seed):
        rng = random.Random(seed)
        for _ in range(samples.number(10, of=25)):
            number = rng.choice(numbers[seed::2])  # nobody else's
            try:
                manager.unload_dimension(number)
                manager.load_dimension(number)
            except LimitExceeded:
                continue
            except KeyError:
                manager.is_loaded(number) or try_load(number)
            assert manager.get_stats().total_allocated_bytes <= 4 * MIB

    def try_load(number):
        try:
            manager.load_dimension(number)
        except LimitExceeded:
            outcomes[0]["refused load"] += 1

    def write_both():
        try:
            run_together([lambda: write(0), lambda: write(1)])
        finally:
            done.set()

    run_together([write_both, *(lambda seed=seed: read(seed) for seed in range(8))])
    assert sum(outcomes, Counter())["right"] > 0
    assert manager.get_stats().peak_usage_bytes <= 4 * MIB
    check_numbers(manager)


# -- everything at once ----------------------------------------------------------------------------


class Store:
    """Dimensions whose layers say their edition, and writers that change them in every way."""

    OVERLAID = 3  # layers 0 to 2 are updated and crystallized, the next are laid over

    def __init__(self, base, n_bytes):
        self.numbers = list(range(20, 26))
        self.n_bytes = n_bytes
        config = MemoryConfig(24, base, pool_configs=POOLS, simulation="never")
        self.manager = MmapManager(config)
        for number in self.numbers:
            for layer in range(6):
                layer_id = LayerId(number, layer)
                content = signed(layer_id, 0, n_bytes)
                self.manager.create_proto_dimension(number, content, layer=layer)
            self.manager.crystallize_dimension(number)
        self.editions = Counter()  # per layer the highest that was begun
        self.next_free = dict.fromkeys(self.numbers, 6)

    def write(self, number, rng, seen):
        """Change one dimension in one way; errors that others may cause are no news."""
        verb = rng.choice(
            ["overlay", "drop", "create", "update", "discard", "crystallize", "reload", "evict"]
        )
        try:
            getattr(self, verb)(number, rng)
            seen[verb] += 1
        except (InvalidAccess, LimitExceeded) as error:
            seen[type(error).__name__] += 1

    def overlay(self, number, rng):
        layer = LayerId(number, rng.randrange(6))
        self.manager.overlay_layer(layer, signed(layer, 1, self.n_bytes), separator=b"")

    def drop(self, number, rng):
        self.manager.drop_overlay(LayerId(number, rng.randrange(6)))

    def create(self, number, rng):
        layer = LayerId(number, self.next_free[number])
        content = signed(layer, 0, self.n_bytes)
        self.manager.create_proto_dimension(number, content, layer=layer.layer)
        self.next_free[number] += 1

    def update(self, number, rng):
        for layer in self.proto_layers(number)[:1]:
            content = signed(layer, rng.randrange(9), self.n_bytes)
            self.manager.update_proto_dimension(layer, content)

    def discard(self, number, rng):
        for layer in self.proto_layers(number)[1:2]:
            self.manager.discard_proto_dimension(layer)

    def crystallize(self, number, rng):
        self.manager.crystallize_dimension(number)

    def reload(self, number, rng):
        self.manager.unload_dimension(number)
        self.manager.load_dimension(number)

    def evict(self, number, rng):
        with writing(self.manager):
            if self.manager.is_loaded(number):
                region = region_of(self.manager, number)
                if hasattr(region, "data"):
                    del region
                    evict(self.manager, number)

    def proto_layers(self, number):
        return [
            each
            for each in self.manager.list_layers(number)
            if self.manager.get_layer_info(each).location is ContentLocation.HEAP
        ]

    def read(self, rng, seen):
        """Read a random layer; every signed piece of it must be whole."""
        number = rng.choice(self.numbers)
        layer = LayerId(number, rng.randrange(self.next_free[number]))
        how = rng.randrange(3)
        try:
            if how == 0:
                view = self.manager.access_layer(layer)
            elif how == 1:
                view = self.manager.load_layer_context(layer).content
            else:
                (context,) = self.manager.load_contexts([layer])
                view = context.content
        except LayerNotFound:
            seen["absent"] += 1
            return
        except LimitExceeded:
            seen["refused"] += 1
            return
        assert len(view) % self.n_bytes == 0 and len(view)
        for start in range(0, len(view), self.n_bytes):
            check_signed(layer, view[start : start + self.n_bytes])
        seen["laid over" if len(view) > self.n_bytes else "plain"] += 1


def readers_under_everything(base, n_readers, n_writers, is_enough):
    store = Store(base, n_bytes=600)
    reads = [Counter() for _ in range(n_readers)]
    writes = [Counter() for _ in range(n_writers)]
    started, done = threading.Event(), threading.Event()
    n_left = [n_writers]
    lock = threading.Lock()

    def phase():
        return "after" if done.is_set() else "during" if started.is_set() else "before"

    def read(seed):
        rng, seen = random.Random(seed), reads[seed]
        while not (done.is_set() and seen["after"] > 2):
            before = phase()
            store.read(rng, seen)
            if before == phase():
                seen[before] += 1

    def write(seed):
        rng = random.Random(seed)
        patience = threading.Event()
        while not all(each["before"] for each in reads):
            patience.wait(0.001)
        started.set()
        try:
            for n_rounds in count():
                if is_enough(n_rounds):
                    return
                store.write(rng.choice(store.numbers[seed::n_writers]), rng, writes[seed])
        finally:
            with lock:
                n_left[0] -= 1
                if not n_left[0]:
                    done.set()

    functions = [lambda seed=seed: write(seed) for seed in range(n_writers)]
    run_together([*functions, *(lambda seed=seed: read(seed) for seed in range(n_readers))])
    total, changes = sum(reads, Counter()), sum(writes, Counter())
    assert all(each[name] for each in reads for name in ("before", "after"))
    assert total["during"] and total["plain"] and total["laid over"]
    assert changes["overlay"] and changes["crystallize"] and changes["create"]
    stats = store.manager.get_stats()
    assert stats.peak_usage_bytes <= 24 * MIB
    store.manager.close()
    gc.collect()
    assert store.manager.get_stats().total_allocated_bytes == 0
    assert mappings_of(base) == []
    return total, changes


def test_readers_under_every_kind_of_writer(tmp_path):
    readers_under_everything(tmp_path, 12, n_writers=3, is_enough=lambda n_rounds: n_rounds == 20)


@pytest.mark.slow
def test_readers_under_every_kind_of_writer_for_minutes(tmp_path):
    end = monotonic() + float(os.environ.get("JESSYMEM_STRESS_SECONDS", "180"))
    total, changes = readers_under_everything(
        tmp_path, N_READERS, n_writers=3, is_enough=lambda n_rounds: monotonic() > end
    )
    assert total["during"] > 1_000
    assert sum(changes.values()) > 10, changes
