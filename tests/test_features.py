"""The scenarios of `features/`, in the users' words, against real files and managers."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_bdd import given, parsers, scenarios, then, when
from support.eviction import MIB, content_of, evicted, path_of, write_dimension
from support.regions import write_sparse
from support.threads import run_together

from jessymem import (
    ContentLocation,
    DimensionId,
    DimensionNotFound,
    DuplicateDimension,
    ImmutableDimension,
    InvalidAccess,
    JessyMemoryError,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    RegionFormatError,
)

scenarios("features")

POOLS = [(1, 4096), (8, 65_536)]
REASONS = {
    "because the dimension is not there": DimensionNotFound,
    "because the layer is not there": LayerNotFound,
    "because the file breaks the format": RegionFormatError,
    "because the store is closed": InvalidAccess,
    "because what is written stays": ImmutableDimension,
    "because the limit would be passed": LimitExceeded,
    "as a duplicate": DuplicateDimension,
}


@dataclass
class World:
    """What a scenario has come to."""

    base: Path
    limit_mb: int = 40
    dimensions: set[int] = field(default_factory=set)
    error: JessyMemoryError | None = None
    report: Any = None
    layer: LayerId | None = None  # that was learned
    content: bytes = b""
    found: list[Any] = field(default_factory=list)
    view: memoryview | None = None
    viewed: LayerId | None = None
    n_before: int = 0
    file_before: bytes = b""
    opened: MmapManager | None = None

    @property
    def manager(self) -> MmapManager:
        if self.opened is None:
            self.opened = MmapManager(
                MemoryConfig(self.limit_mb, self.base, POOLS, eviction_policy="lru")
            )
        return self.opened

    def attempt(self, call, *arguments):
        """Remember what was returned, or why it was refused."""
        self.error = None
        try:
            self.found.append(call(*arguments))
        except JessyMemoryError as error:
            self.error = error

    def check_contents(self, dimensions):
        for number in dimensions:
            for layer in range(3):
                view = self.manager.access_layer(LayerId(number, layer))
                assert view == content_of(int(number), layer)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    if world.opened is not None:
        world.opened.close()


def dimensions_in(text):
    return [int(number) for number in re.findall(r"D(\d+)", text)]


def layers_in(text):
    return [LayerId.parse(each) for each in re.findall(r"L\d+-\d+", text)]


# -- given -----------------------------------------------------------------------------------------


@given(parsers.re(r"(?:files of the dimensions|a file of the dimension) (?P<names>.+)"))
@given(parsers.re(r"dimensions of a megabyte: (?P<names>.+)"))
def write_files(world, names):
    for number in dimensions_in(names):
        write_dimension(world.base, number)
        world.dimensions.add(number)


@given(parsers.parse("the file of {name} is broken"))
def break_file(world, name):
    with path_of(world.base, dimensions_in(name)[0]).open("r+b") as file:
        file.seek(84)
        file.write(b"not the magic")


@given(parsers.parse("a budget of {n_mb:d} MB"))
def set_budget(world, n_mb):
    world.limit_mb = n_mb


@given("everything is loaded")
def load_everything(world):
    for number in sorted(world.dimensions):
        world.manager.load_dimension(number)


@given(parsers.parse('"{text}" was learned in {name}'))
@when(parsers.parse('"{text}" is learned in {name}'))
def learn(world, text, name):
    world.content = text.encode()
    world.layer = world.manager.create_proto_dimension(name, text)


@given(parsers.parse("someone holds a view of {name}"))
def hold_view(world, name):
    world.viewed = LayerId.parse(name)
    world.n_before = world.manager.get_stats().total_allocated_bytes
    world.view = world.manager.access_layer(name)


@given(parsers.parse("{name} was read"))
def was_read(world, name):
    world.manager.access_layer(name)


@given(parsers.parse("{name} is pinned"))
def pin(world, name):
    world.manager.pin(name)


@given(parsers.parse("{name} had to go"))
def had_to_go(world, name):
    for number in world.dimensions - set(dimensions_in(name)):
        world.manager.access_layer(LayerId(number, 0))
    write_dimension(world.base, 30)
    world.manager.load_dimension(30)
    assert evicted(world.manager) == dimensions_in(name)


# -- when ------------------------------------------------------------------------------------------


@given(parsers.re(r"(?P<name>D\d+) is loaded"), target_fixture="name")
@when(parsers.re(r"(?P<name>D\d+) is loaded"))
def load(world, name):
    world.attempt(world.manager.load_dimension, name)


@when("all core dimensions are loaded")
def load_core(world):
    world.report = world.manager.load_core_dimensions()


@when(parsers.re(r"(?P<name>D\d+) is unloaded"))
def unload(world, name):
    world.manager.unload_dimension(name)


@when("everything is unloaded")
def unload_everything(world):
    for dimension in world.manager.list_dimensions():
        world.manager.unload_dimension(dimension)


@when(parsers.re(r"layer (?P<name>L\d+-\d+) is read"))
def read(world, name):
    world.attempt(world.manager.access_layer, name)


@when(parsers.re(r"layer (?P<name>L\d+-\d+) is read twice"))
def read_twice(world, name):
    world.found = [world.manager.access_layer(name), world.manager.access_layer(name)]


@when(parsers.re(r"the layers (?P<names>.+) are read together"))
def read_together(world, names):
    world.found = [layers_in(names), world.manager.load_contexts(layers_in(names))]


@when(parsers.parse("{n_readers:d} readers read every layer"))
def read_by_many(world, n_readers):
    layers = world.manager.list_layers()

    def read_all():
        return all(
            world.manager.access_layer(each) == content_of(int(each.dimension), each.layer)
            for each in layers[1::3]
        )

    world.found = run_together([read_all] * n_readers)


@when("the view is dropped")
def drop_view(world):
    world.view = None


@when("the store is closed")
def close(world):
    world.manager.close()


@when("the store is closed and opened again")
def restart(world):
    world.manager.close()
    world.opened = None
    world.manager.load_all()


@when("it is crystallized")
def crystallize(world):
    world.manager.crystallize_proto_dimension(world.layer)


@when(parsers.parse("it is crystallized while {n_readers:d} readers read it"))
def crystallize_under_readers(world, n_readers, intercept):
    manager, layer = world.manager, world.layer
    is_over, turns = threading.Event(), threading.Semaphore(0)
    seen = [[] for _ in range(n_readers)]

    def read_on(i):
        while not is_over.is_set():
            is_right = manager.access_layer(layer) == world.content
            seen[i].append((is_right, manager.get_layer_info(layer).location))
            turns.release()
        location = manager.get_layer_info(layer).location
        seen[i].append((manager.access_layer(layer) == world.content, location))

    def hold_open(operation, path, *details):
        if operation == "sync":
            for _ in range(100):
                assert turns.acquire(timeout=30)

    def write():
        intercept(hold_open)
        try:
            manager.crystallize_proto_dimension(layer)
        finally:
            is_over.set()

    run_together([write, *(lambda i=i: read_on(i) for i in range(n_readers))])
    world.found = [is_right for each in seen for is_right, _ in each]
    world.report = [[location for _, location in each] for each in seen]


@when(parsers.parse('"{text}" is laid over {name}'))
def lay_over(world, text, name):
    dimension = LayerId.parse(name).dimension
    world.file_before = path_of(world.base, int(dimension)).read_bytes()
    world.manager.overlay_layer(name, text)


@when(parsers.parse("what lies over {name} is dropped"))
def drop(world, name):
    world.manager.drop_overlay(name)


@when(parsers.parse("someone wants to change {name}"))
def change(world, name):
    world.attempt(world.manager.update_proto_dimension, name, b"something else")


@when(parsers.parse("someone wants to learn in {name}"))
def want_to_learn(world, name):
    world.attempt(world.manager.create_proto_dimension, name, b"something new")


@when("another megabyte is loaded")
def load_another(world):
    write_dimension(world.base, 31)
    world.manager.load_dimension(31)


@when(parsers.parse("{n_mb:d} more megabytes are loaded at once"))
def load_much(world, n_mb):
    write_sparse(world.base, 32, n_mb * MIB)
    world.attempt(world.manager.load_dimension, 32)


@when("a megabyte is learned")
def learn_much(world):
    world.manager.create_proto_dimension(40, bytes(MIB))


# -- then ------------------------------------------------------------------------------------------


@then(parsers.re(r"(?P<names>D\d+(?: and D\d+)*) (?:is|are) loaded"))
def are_loaded(world, names):
    assert all(world.manager.is_loaded(number) for number in dimensions_in(names))


@then(parsers.re(r"(?P<name>D\d+) is not loaded"))
def is_not_loaded(world, name):
    assert not world.manager.is_loaded(name)
    assert DimensionId.parse(name) not in world.manager.list_dimensions()


@then("its layers can be read")
def can_be_read(world):
    world.check_contents(world.manager.list_dimensions())


@then("the layers that were there before can be read")
def can_still_be_read(world):
    world.check_contents(world.dimensions)


@then(parsers.parse("the other {n:d} are reported as skipped, each with the reason"))
def are_skipped(world, n):
    assert len(world.report.skipped) == n
    assert all(str(dimension) in reason for dimension, reason in world.report.skipped)


@then(parsers.re(r"it is refused (?P<reason>.+)"))
def is_refused(world, reason):
    assert type(world.error) is REASONS[reason]


@then(parsers.re(r"the refusal names (?P<name>[DL]\S+)"))
def names_it(world, name):
    assert name in str(world.error)


@then("the refusal tells use and limit")
def tells_use(world):
    assert world.error.limit == world.limit_mb * MIB
    assert world.error.current == world.manager.get_stats().total_allocated_bytes


@then("no memory is in use")
def no_memory(world):
    assert world.manager.get_stats().total_allocated_bytes == 0


@then("the bundled layers are readable")
def bundled(world):
    layers = world.manager.list_layers()
    assert world.manager.get_stats().simulation_mode and len(layers) >= 14
    assert all(len(world.manager.access_layer(each)) for each in layers)


@then("both times it is the same memory")
def same_memory(world):
    addresses = {np.frombuffer(each, np.uint8).ctypes.data for each in world.found}
    assert len(addresses) == 1


@then("nobody can write to it")
def read_only(world):
    with pytest.raises(TypeError):
        world.found[0][0] = 1


@then("they come in that order with their descriptions")
def in_order(world):
    wanted, contexts = world.found
    assert [each.layer_id for each in contexts] == wanted
    for each in contexts:
        number, layer = int(each.layer_id.dimension), each.layer_id.layer
        assert each.content == content_of(number, layer)
        assert (each.name, each.keywords) == (f"layer {layer}", ("every", f"only{number}"))


@then("each of them reads what was written")
def all_right(world):
    assert world.found and all(world.found)


@then("they read it from memory before and from the file after")
def from_both(world):
    assert any(each[0] is ContentLocation.HEAP for each in world.report)
    assert all(each[-1] is ContentLocation.MMAP for each in world.report)


@then("the view is unchanged")
def view_unchanged(world):
    assert world.view == content_of(int(world.viewed.dimension), world.viewed.layer)


@then("its memory is still counted")
def still_counted(world):
    stats = world.manager.get_stats()
    assert stats.total_allocated_bytes == world.n_before and stats.waiting_bytes > 0


@then("its memory is not counted any more")
def not_counted(world):
    stats = world.manager.get_stats()
    assert stats.total_allocated_bytes < world.n_before and stats.waiting_bytes == 0


@then("it can be read")
def learned_readable(world):
    assert world.manager.access_layer(world.layer) == world.content


@then("it is in memory")
def in_memory(world):
    assert world.manager.get_layer_info(world.layer).location is ContentLocation.HEAP


@then("it is in the file")
def in_file(world):
    assert world.manager.get_layer_info(world.layer).location is ContentLocation.MMAP
    home = path_of(world.base, int(world.layer.dimension))
    assert any(world.content in path.read_bytes() for path in home.parent.glob("*.mmap"))


@then("it is not there")
def not_there(world):
    assert world.layer not in world.manager


@then(parsers.parse('{name} ends in "{text}"'))
def ends_in(world, name, text):
    layer = LayerId.parse(name)
    base = content_of(int(layer.dimension), layer.layer)
    assert world.manager.access_layer(name) == base + b"\n" + text.encode()


@then(parsers.parse("the file of {name} is unchanged"))
def file_unchanged(world, name):
    assert path_of(world.base, dimensions_in(name)[0]).read_bytes() == world.file_before


@then("it is what was written")
def is_written(world):
    assert world.found[-1] == content_of(20, 0)


@then(parsers.parse("only {name} is out of memory"))
def only_out(world, name):
    assert evicted(world.manager) == dimensions_in(name)


@then("nothing is out of memory")
def nothing_out(world):
    assert evicted(world.manager) == []
    assert world.manager.get_stats().evictions == 0


@then(parsers.parse("{name} is in memory again"))
def again_in_memory(world, name):
    assert dimensions_in(name)[0] not in evicted(world.manager)


@then(parsers.re(r"(?P<n>one|no) reload is counted"))
def reloads(world, n):
    assert world.manager.get_stats().reloads == {"one": 1, "no": 0}[n]


@then("its layers are listed as before")
def listed(world):
    assert world.manager.list_layers(20) == [LayerId(20, layer) for layer in range(3)]


@then("use is at most 75 percent of the budget")
def quiet(world):
    stats = world.manager.get_stats()
    assert stats.total_allocated_bytes <= 0.75 * stats.total_limit_bytes
    assert stats.evictions > 0
