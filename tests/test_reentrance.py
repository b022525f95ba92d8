"""Every verb that writes, called in the middle of every other: by a handler, a finalizer, a record.

The inner call comes at a chosen line, system call or record of the outer one, so nothing depends on
time. Afterwards all is as if one had come after the other, or had not come at all where it was
refused; no lock is held, and the budget is exact.
"""

from __future__ import annotations

import gc
import logging
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.internals import (
    allocator_of,
    handles_of_learned,
    has_allocator,
    pinned_of,
    wants_a_lock,
)
from support.lines import at_line
from support.system_calls import intercepted

from jessymem import (
    InvalidAccess,
    JessyMemoryError,
    JessyWarning,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
)

PATIENCE_SECONDS = 60
DIMENSIONS = (20, 21, 22, 25, 26)


class World:
    """A manager in a folder of its own, with something for each verb to work on."""

    def __init__(self, template: Path, folder: Path) -> None:
        shutil.copytree(template, folder)
        self.folder = folder
        pools = [(1, 4096), (1, 65536)]  # few blocks, which are looked through often
        config = MemoryConfig(total_memory_mb=8, pool_configs=pools, base_path=folder)
        self.manager = manager = MmapManager(config)
        manager.load_dimension("D20")
        manager.load_dimension("D22")
        (folder / "D22" / "newer.mmap").replace(folder / "D22" / "region.mmap")
        manager.create_proto_layers([("D25", b"proto 0"), ("D25", b"proto 1")])
        manager.overlay_layer("L20-01", b"laid over")
        manager.pin("D20")
        self.block = manager.allocate(5_000)

    def state(self) -> Any:
        """Return what users see, in memory and on disk."""
        seen: dict[str, Any] = {}
        try:
            for layer in self.manager.list_layers():
                state = self.manager.get_layer_info(layer).state.name
                seen[str(layer)] = bytes(self.manager.access_layer(layer)), state
        except InvalidAccess:
            seen["closed"] = True
        seen["pinned"] = sorted(pinned_of(self.manager))
        pools = self.manager.get_stats().per_pool.values()
        n_learned = len(handles_of_learned(self.manager))  # of two calls at once, a block each
        seen["others used"] = sum(pool.used_blocks for pool in pools) - n_learned
        for number in DIMENSIONS:
            path = self.folder / f"D{number}" / "region.mmap"
            if path.exists():
                region = MmapRegion.from_file(number, path)
                drafts = [(draft.layer, bytes(draft.content)) for draft in region.drafts()]
                seen[f"disk {number}"] = drafts, region.generation
        return seen

    def end(self) -> None:
        self.manager.close()
        shutil.rmtree(self.folder)


VERBS: dict[str, Callable[[World], Any]] = {
    "load": lambda world: world.manager.load_dimension("D21"),
    "unload": lambda world: world.manager.unload_dimension("D22"),
    "refresh": lambda world: world.manager.refresh("D22"),
    "create": lambda world: world.manager.create_proto_dimension("D25", b"one more"),
    "create many": lambda world: world.manager.create_proto_layers(
        [("D25", b"of many"), ("D26", b"of many")]
    ),
    "update": lambda world: world.manager.update_proto_dimension("L25-00", b"updated"),
    "discard": lambda world: world.manager.discard_proto_dimension("L25-00"),
    "overlay": lambda world: world.manager.overlay_layer("L20-00", b"laid over"),
    "overlay again": lambda world: world.manager.overlay_layer("L20-01", b"again"),
    "drop overlay": lambda world: world.manager.drop_overlay("L20-01"),
    "crystallize one": lambda world: world.manager.crystallize_proto_dimension("L25-01"),
    "crystallize all": lambda world: world.manager.crystallize_dimension("D25"),
    "crystallize overlays": lambda world: world.manager.crystallize_dimension("D20"),
    "delete": lambda world: world.manager.delete_layer("L20-00"),
    "look up": lambda world: world.manager.get("no such name"),
    "allocate": lambda world: world.manager.allocate(10_000),
    "deallocate": lambda world: world.manager.deallocate(world.block),
    "view": lambda world: bytes(world.manager.view(world.block, 10)),
    "trim": lambda world: world.manager.trim(),
    "resize": lambda world: world.manager.resize(48),
    "pin": lambda world: world.manager.pin("D22"),
    "unpin": lambda world: world.manager.unpin("D20"),
    "close": lambda world: world.manager.close(),
}


def outcome(call: Callable[[World], Any], world: World) -> type[JessyMemoryError] | None:
    """Make a call; return the class of its error."""
    try:
        call(world)
    except JessyMemoryError as error:
        return type(error)
    return None


class Interruption:
    """Calls something once, in the middle of something else."""

    def __init__(self, world: World, inner: Callable[[World], Any]) -> None:
        self._world = world
        self._inner = inner
        self.is_done = False
        self.error: type[JessyMemoryError] | None = None
        self.other: BaseException | None = None
        self.where = ""

    def come(self) -> None:
        if self.is_done:
            return
        self.is_done = True
        try:
            self.error = outcome(self._inner, self._world)
        except BaseException as error:  # a finalizer would swallow it
            self.other = error


class InCycle:
    """Garbage whose finalizer does something."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self._itself = self

    def __del__(self) -> None:
        self._do()


def by_signal(n_th: int, outer: Callable[[], Any], interruption: Interruption) -> int:
    return at_line(n_th, outer, lambda _: interruption.come())


def by_finalizer(n_th: int, outer: Callable[[], Any], interruption: Interruption) -> int:
    InCycle(interruption.come)
    return at_line(n_th, outer, lambda _: gc.collect(0))


def by_system_call(n_th: int, outer: Callable[[], Any], interruption: Interruption) -> int:
    n_seen = 0

    def intercept(operation: str, path: str, *details: Any) -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen == n_th:
            interruption.come()

    with intercepted(intercept):
        outer()
    return n_seen


def by_record(n_th: int, outer: Callable[[], Any], interruption: Interruption) -> int:
    n_seen = 0

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal n_seen
            n_seen += 1
            if n_seen == n_th:
                interruption.come()

    logger, handler = logging.getLogger("jessymem"), Handler()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        outer()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return n_seen


def by_warning(n_th: int, outer: Callable[[], Any], interruption: Interruption) -> int:
    n_seen = 0

    def show(*message: Any, **options: Any) -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen == n_th:
            interruption.come()

    with warnings.catch_warnings():
        warnings.simplefilter("always", JessyWarning)
        warnings.showwarning = show
        outer()
    return n_seen


WAYS = {
    "signal": by_signal,
    "finalizer": by_finalizer,
    "system call": by_system_call,
    "record": by_record,
    "warning": by_warning,
}


class Worlds:
    """Makes worlds that are alike, and knows what two calls one after the other lead to."""

    def __init__(self, folder: Path) -> None:
        self._template = folder / "template"
        self._folder = folder
        self._n_made = 0
        self._known: dict[tuple[str, ...], tuple[Any, list[Any]]] = {}
        for number in (20, 21, 22):
            builder = RegionBuilder(number, "Name")
            for layer in range(2):
                builder.add_layer(layer, b"layer %d" % layer)
            builder.build_to_file(self._template / f"D{number}" / "region.mmap")
        other = RegionBuilder(22, "Name")
        other.add_layer(0, b"newer")
        other.build_to_file(self._template / "D22" / "newer.mmap")
        # What is ignored, and warned of.
        (self._template / "D21" / "region.d9.mmap").write_bytes(b"no delta")

    def make(self) -> World:
        self._n_made += 1
        return World(self._template, self._folder / str(self._n_made))

    def after(self, *verbs: str) -> tuple[Any, list[Any]]:
        """Return the state after calls, one after the other, and their errors."""
        if verbs not in self._known:
            world = self.make()
            errors = [outcome(VERBS[verb], world) for verb in verbs]
            self._known[verbs] = world.state(), errors
            world.end()
        return self._known[verbs]


@pytest.fixture
def worlds(memory_path: Path) -> Worlds:
    return Worlds(memory_path)


def check(worlds: Worlds, way: str, n_th: int, outer: str, inner: str) -> int:
    """Interrupt one call by another; return how many places there are for that."""
    world = worlds.make()
    interruption = Interruption(world, VERBS[inner])
    found: list[Any] = []

    def run() -> None:
        try:
            error = None
            try:
                n_places = WAYS[way](n_th, lambda: VERBS[outer](world), interruption)
            except JessyMemoryError as caught:
                error, n_places = type(caught), 0
            found.extend((n_places, error, wants_a_lock(world.manager)))
        except BaseException as caught:
            found.append(caught)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    what = f"{inner} in the {n_th}. place of {outer}, by {way}"
    assert found, f"{what}: it waits for ever"
    if isinstance(found[0], BaseException):
        raise AssertionError(what) from found[0]
    if interruption.other is not None:
        raise AssertionError(what) from interruption.other
    n_places, error, is_locked = found
    assert not is_locked, what
    if interruption.is_done:
        first, (outer_first, inner_second) = worlds.after(outer, inner)
        last, (inner_first, outer_second) = worlds.after(inner, outer)
        state = world.state()
        fits = [first, last]
        if interruption.error is not None or inner in GIVE_UP:
            fits.append(worlds.after(outer)[0])  # refused; or postponed, and could not be done
        if error is not None:
            fits.append(worlds.after(inner)[0])
        if error is not None and interruption.error is not None:
            fits.append(worlds.after()[0])
        assert state in fits, what
        assert interruption.error in (inner_second, inner_first, InvalidAccess, None), what
        assert error in (outer_first, outer_second, InvalidAccess, None), what
    if has_allocator(world.manager):
        assert allocator_of(world.manager).validate() == [], what
    world.end()
    return n_places


#: What is done afterwards where it cannot be done at once.
GIVE_UP = ("discard", "drop overlay", "unload", "unpin", "close")


@pytest.mark.parametrize("way", WAYS)
def test_a_verb_in_the_middle_of_another(way, worlds):
    """Each pair once, in one of the ways, at a place that differs from pair to pair."""
    for i, outer in enumerate(VERBS):
        n_places = check(worlds, way, 0, outer, "pin")
        for j, inner in enumerate(VERBS):
            if n_places and (i + j) % len(WAYS) == list(WAYS).index(way):
                check(worlds, way, 1 + (7 * i + 13 * j) * n_places // 23 % n_places, outer, inner)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("outer", VERBS)
def test_a_verb_at_any_place_of_another(outer, way, worlds):
    n_places = check(worlds, way, 0, outer, "pin")
    for inner in VERBS:
        for at in range(n_places):
            check(worlds, way, 1 + at, outer, inner)
