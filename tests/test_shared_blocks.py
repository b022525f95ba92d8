"""Small learned layers share blocks: what they cost, and that nothing else of them changes."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from contextlib import suppress
from itertools import pairwise

import pytest
from support.internals import PlainTier, allocator_of, handles_of_learned
from support.lines import at_line
from support.processes import checked_in_child

from jessymem import LimitExceeded, MmapManager, PoolAllocator, RegionBuilder, warmup
from jessymem.kernels import _jit
from jessymem.pools.stored import free, store

BLOCK = 4_096
N_LAYERS, N_BYTES = 2_000, 100
#: Every so manieth line.
STRIDE = 2


class Struck(BaseException):
    """What comes from outside."""


@pytest.fixture(params=["plain", "compiled"])
def tier(request, monkeypatch):
    if request.param == "plain":
        PlainTier(monkeypatch)
    elif _jit.is_disabled():
        pytest.skip("compilation is disabled")
    else:
        warmup()


@pytest.fixture
def manager(tmp_path, tier):
    with MmapManager(64, base_path=tmp_path) as made:
        yield made
        assert allocator_of(made).validate() == []


@pytest.fixture
def allocator(tier):
    with_pools = PoolAllocator([(1, BLOCK), (1, 65_536)], limit_mb=8)
    yield with_pools
    assert with_pools.validate() == []
    with_pools.close()


def charged(manager):
    return manager.get_stats().total_allocated_bytes


def content(number):
    return b"%0*d" % (N_BYTES, number)


def check_contents(manager, layers):
    for number, layer in enumerate(layers):
        assert bytes(manager.access_layer(layer)) == content(number)


# -- what they cost --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_batch", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_small_layers_are_charged_at_most_twice_their_bytes(manager, is_batch):
    contents = [content(number) for number in range(N_LAYERS)]
    if is_batch:
        made = manager.create_proto_layers([("D20", each) for each in contents])
    else:
        made = [manager.create_proto_dimension("D20", each) for each in contents]
    assert charged(manager) <= 2 * N_LAYERS * N_BYTES + BLOCK
    check_contents(manager, made)
    for layer in made:
        manager.discard_proto_dimension(layer)
    assert charged(manager) == 0


def test_contents_of_any_size_are_charged_at_most_twice_what_they_are_rounded_to(allocator):
    draw = random.Random(1)
    sizes = [draw.choice([1, 64, 65, 700, 1_400, 2_047, 2_048, 2_049, BLOCK]) for _ in range(300)]
    contents = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    stored = store(allocator, [[each[:1], each[1:]] for each in contents[:150]])
    for each in contents[150:]:
        stored += store(allocator, [[memoryview(each)]])
    assert [bytes(each.view) for each in stored] == contents
    rounded = sum(-(-size // 64) * 64 for size in sizes)
    assert allocator.usage[0] <= 2 * rounded + 2 * BLOCK
    for each in stored:
        assert each.address % 64 == 0 and each.view.readonly and each.view.format == "B"
    starts = sorted((each.address, len(each.view)) for each in stored)
    assert all(at + n <= after for (at, n), (after, _) in pairwise(starts))
    draw.shuffle(stored)
    del each
    while stored:
        free(allocator, [stored.pop()])
    assert allocator.usage[0] == 0


def test_what_is_larger_than_half_a_block_has_its_own(allocator):
    small, large = store(allocator, [[b"s" * (BLOCK // 2)], [b"l" * (BLOCK // 2 + 1)]])
    (other,) = store(allocator, [[b"o" * (BLOCK // 2)]])
    assert small.handle == other.handle != large.handle
    free(allocator, [small, large])
    del small, large
    assert allocator.usage[0] == BLOCK


def test_pools_whose_blocks_hold_one_content_only_share_none(tier):
    allocator = PoolAllocator([(1, 64)], limit_mb=8)
    stored = store(allocator, [[b"a"], [b"b" * 32], [b"c" * 64]])
    assert len({each.handle for each in stored}) == 3
    allocator.close()


def test_without_pools_they_share_blocks_of_one_that_is_made(tier):
    allocator = PoolAllocator([], limit_mb=8)
    stored = store(allocator, [[b"a"], [b"b"]])
    assert stored[0].handle == stored[1].handle
    free(allocator, stored)
    del stored
    assert allocator.usage[0] == 0
    allocator.close()


# -- when they are freed ---------------------------------------------------------------------------


def test_a_block_goes_with_the_last_of_its_layers_and_waits_for_its_last_view(manager):
    one, two, three = manager.create_proto_layers([("D20", b"one"), ("D20", b"2"), ("D21", b"3")])
    view = manager.access_layer(one)
    part = view[1:]
    for layer in (one, two):
        manager.discard_proto_dimension(layer)
        stats = manager.get_stats()
        assert (stats.total_allocated_bytes, stats.waiting_bytes) == (BLOCK, 0)
    manager.discard_proto_dimension(three)
    stats = manager.get_stats()
    assert (stats.total_allocated_bytes, stats.waiting_bytes) == (BLOCK, BLOCK)
    made = manager.create_proto_dimension("D20", b"new")  # not in a block that waits
    assert (charged(manager), manager.get_stats().waiting_bytes) == (2 * BLOCK, BLOCK)
    view.release()
    assert (bytes(part), bytes(manager.access_layer(made))) == (b"ne", b"new")
    del view, part
    stats = manager.get_stats()
    assert (stats.total_allocated_bytes, stats.waiting_bytes) == (BLOCK, 0)


def test_freeing_a_content_twice_frees_no_other(allocator):
    one, two = store(allocator, [[b"one"], [b"two"]])
    free(allocator, [one, None, one])
    free(allocator, [one])
    assert (allocator.usage[0], bytes(two.view)) == (BLOCK, b"two")
    free(allocator, [two])
    free(allocator, [two])
    assert any(each.is_waiting for each in allocator.blocks())  # for these very views
    del one, two
    assert allocator.usage[0] == 0


def test_what_is_dropped_and_not_freed_goes_too(allocator):
    stored = store(allocator, [[b"one"], [b"two"]])
    del stored[0]
    assert allocator.usage[0] == BLOCK
    del stored[0]
    assert allocator.usage[0] == 0


def test_views_outlive_the_manager(tmp_path, tier):
    manager = MmapManager(8, base_path=tmp_path)
    layers = [manager.create_proto_dimension("D20", content(number)) for number in range(3)]
    views = [manager.access_layer(layer) for layer in layers]
    manager.close()
    assert charged(manager) == BLOCK
    assert [bytes(view) for view in views] == [content(number) for number in range(3)]
    del views
    assert charged(manager) == 0


# -- what is done with them ------------------------------------------------------------------------


def test_layers_of_one_block_are_changed_each_for_itself(tmp_path, manager):
    builder = RegionBuilder(20, "Name")
    builder.add_layer(0, b"base")
    builder.build_to_file(tmp_path / "D20" / "region.mmap")
    manager.load_dimension("D20")
    on_file = charged(manager)
    made = manager.create_proto_layers([("D20", b"one"), ("D20", b"two"), ("D21", b"three")])
    manager.overlay_layer("L20-00", b"over")
    assert len(handles_of_learned(manager)) == 1
    before = [manager.access_layer(layer) for layer in ("L20-00", *made)]
    manager.update_proto_dimension(made[0], b"ONE")
    manager.overlay_layer("L20-00", b"more")
    found = [bytes(manager.access_layer(layer)) for layer in ("L20-00", *made)]
    assert found == [b"base\nover\nmore", b"ONE", b"two", b"three"]
    assert [bytes(view) for view in before] == [b"base\nover", b"one", b"two", b"three"]
    offsets = {each["offset"] for each in manager.dump_state()["layers"]}
    assert len(offsets) == 4 and len({offset // BLOCK for offset in offsets}) == 1
    manager.crystallize_dimension("D20")
    assert [bytes(manager.access_layer(layer)) for layer in ("L20-00", *made)] == found
    del before
    stats = manager.get_stats()
    assert (sum(pool.used_blocks for pool in stats.per_pool.values()), stats.waiting_bytes) == (
        1,
        0,
    )
    manager.crystallize_dimension("D21")
    assert bytes(manager.access_layer(made[2])) == b"three"
    stats = manager.get_stats()
    assert not any(pool.used_blocks for pool in stats.per_pool.values())
    assert stats.total_allocated_bytes > on_file


def test_updates_over_and_over_keep_few_blocks(manager):
    layers = manager.create_proto_layers([("D20", content(number)) for number in range(10)])
    for number in range(500):
        manager.update_proto_dimension(layers[number % 10], content(number % 10))
    assert charged(manager) <= 3 * BLOCK
    check_contents(manager, layers)


def test_all_are_stored_or_none(allocator):
    (kept,) = store(allocator, [[b"kept"]])
    with pytest.raises(LimitExceeded):
        store(allocator, [[b"small"] * 300, [b"another"], [bytes(16 * 2**20)]])
    assert allocator.usage[0] == BLOCK
    (next_one,) = store(allocator, [[b"next"]])
    assert next_one.handle == kept.handle
    assert next_one.start == 64  # nothing was written between


def test_a_full_budget_has_space_for_what_fits_an_open_block(tmp_path, tier):
    with MmapManager(1, base_path=tmp_path) as manager:
        with pytest.raises(LimitExceeded):
            for _ in range(1_000):
                manager.create_proto_dimension("D20", b"x" * 3_000)
        full = charged(manager)
        manager.discard_proto_dimension("L20-00")
        for number in range(BLOCK // 64):
            manager.create_proto_dimension("D21", b"%d" % number)
        assert charged(manager) == full
        with pytest.raises(LimitExceeded):
            manager.create_proto_dimension("D21", b"one too many")


def test_a_block_that_is_used_again_shows_nothing_of_its_last_layers(allocator):
    free(allocator, store(allocator, [[b"s" * 2_000], [b"t" * 2_000]]))
    (fresh,) = store(allocator, [[b"f"]])
    whole = allocator.view(fresh.handle, BLOCK)
    assert bytes(whole) == b"f" + bytes(BLOCK - 1)


# -- threads, forks, interrupts --------------------------------------------------------------------


def test_threads_never_fill_the_same_place(manager):
    errors = []

    def work(number):
        try:
            mine = {}
            for n_th in range(60):
                text = b"%d of %d " % (n_th, number) * 5
                mine[manager.create_proto_dimension(20 + number % 2, text)] = text
                if n_th % 3 == 2:
                    layer = next(iter(mine))
                    view, text = manager.access_layer(layer), mine.pop(layer)
                    manager.discard_proto_dimension(layer)
                    assert bytes(view) == text
                    del view
                for layer, text in mine.items():
                    assert bytes(manager.access_layer(layer)) == text
            for layer in mine:
                manager.discard_proto_dimension(layer)
        except BaseException as error:
            errors.append(error)
            raise

    interval = sys.getswitchinterval()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    try:
        sys.setswitchinterval(1e-5)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert charged(manager) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_goes_on_in_its_copy_of_a_block(manager):
    kept = manager.create_proto_dimension("D20", b"kept")

    def child():
        made = manager.create_proto_dimension("D20", b"child's")
        assert charged(manager) == BLOCK
        manager.discard_proto_dimension(kept)
        assert bytes(manager.access_layer(made)) == b"child's"
        manager.discard_proto_dimension(made)
        assert charged(manager) == 0
        assert allocator_of(manager).validate() == []

    checked_in_child(child)
    made = manager.create_proto_dimension("D20", b"parent's")
    found = [bytes(manager.access_layer(layer)) for layer in (kept, made)]
    assert (found, charged(manager)) == ([b"kept", b"parent's"], BLOCK)


def struck_at(n_th, call):
    """Make a call and raise at its n-th line; return whether there are so many."""

    def strike(_):
        raise Struck

    try:
        return at_line(n_th, call, strike) >= n_th
    except Struck:
        return True


@pytest.mark.parametrize("sizes", [(10,), (2_000, 2_000, 100, 3_000)], ids=["one", "many"])
@pytest.mark.usefixtures("frozen")
def test_an_interrupt_costs_no_block_and_harms_no_other(allocator, sizes, monkeypatch):
    # In a finalizer it is swallowed; who shows it would keep the frames.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    (kept,) = store(allocator, [[b"kept"]])
    n_th, is_there = 1, True
    while is_there:
        stored = []

        def call(stored=stored):
            stored += store(allocator, [[b"x" * size] for size in sizes])

        is_there = struck_at(n_th, call)
        assert [len(each.view) for each in stored] in ([], list(sizes))
        assert all(set(bytes(each.view)) == {ord("x")} for each in stored)
        with suppress(Struck):
            struck_at(n_th, lambda stored=stored: free(allocator, stored))
        del stored, call
        gc.collect()
        assert bytes(kept.view) == b"kept"
        assert allocator.usage[0] == BLOCK, n_th
        (after,) = store(allocator, [[b"after"]])
        assert bytes(after.view) == b"after"
        del after
        n_th += STRIDE
    assert n_th > 5 * STRIDE
