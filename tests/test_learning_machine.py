"""Everything a manager can be told, in any order, against a slow model of dicts.

The model knows what lies on disk, generation by generation, which generation is loaded, and what is
learned over it; from that it foretells every content, description, list and error. Memory is short,
so that regions come and go meanwhile: which of them are there is the manager's choice, what is read
from them is not. Other writers change the files now and then, and file calls fail.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.internals import make_room, snapshot_of
from support.learning_checks import DIMENSIONS, IMMUTABLE, NUMBERS, WORDS, Checks
from support.learning_model import Dimension, Layer, Learned
from support.shown import check_shown

from jessymem import (
    DimensionId,
    DimensionNotFound,
    DuplicateDimension,
    DuplicateLayer,
    ImmutableDimension,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    RegionIOError,
    osmem,
)
from jessymem.kernels import _jit

MIB = 2**20
ON_DISK = (1, 9, 20, 21, 22)
FAILING = ("create", "write", "sync", "rename", "sync directory")


contents = st.one_of(
    st.binary(max_size=30),
    st.text(max_size=20),
    st.builds(lambda tag, n: bytes([tag]) * n, st.integers(0, 255), st.integers(4_000, 9_000)),
    st.builds(lambda tag, n: bytes([tag]) * n, st.integers(0, 255), st.integers(2**18, 2**20)),
)
descriptions = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["name", "\u00e4\U0001f40c"]),
        "frequency": st.sampled_from([-0.0, 0.5, -3.5]),
        "depth": st.sampled_from([1, 255]),
        "keywords": st.lists(st.sampled_from(WORDS), max_size=3).map(tuple),
        "parent": st.builds(LayerId, st.sampled_from((1, 20, 30)), st.sampled_from(NUMBERS)),
    },
)
dimensions = st.sampled_from(DIMENSIONS)
layer_ids = st.builds(LayerId, dimensions, st.sampled_from(NUMBERS))
#: One that is learned, one with something over it, one that is loaded, or any.
targets = st.tuples(st.sampled_from(["learned", "overlaid", "loaded", "any"]), layer_ids)


def as_bytes(content):
    return content.encode() if isinstance(content, str) else bytes(content)


class Learning(Checks, RuleBasedStateMachine):
    """A manager, other writers beside it, and the model of both."""

    seen: ClassVar[Counter[str]] = Counter()

    @initialize(limit_mb=st.sampled_from([9, 12, 16]), load_mode=st.sampled_from(["map", "copy"]))
    def begin(self, limit_mb, load_mode):
        self.base = Path(tempfile.mkdtemp())
        self.config = MemoryConfig(
            limit_mb, base_path=self.base, simulation="never", load_mode=load_mode
        )
        self.model = {number: Dimension() for number in DIMENSIONS}
        self.views: list[tuple[int, memoryview, bytes]] = []
        for number in ON_DISK:
            big = Layer(bytes([number]) * (number % 3 + 1) * MIB, keywords=("big",), depth=2)
            first = Layer(b"first of %d" % number, "first", 2.5, 1, ("joy",), LayerId(1, 2))
            self.rebuild(number, {0: first, 2: big, 7: Layer(b"")})
        self.open()
        for number in (1, 20, 21):
            self.load(number)

    def open(self):
        self.manager = MmapManager(self.config)
        for dimension in self.model.values():
            dimension.loaded, dimension.is_pinned = None, False
            dimension.learned.clear()

    # -- the manager, asked ------------------------------------------------------------------------

    def call(self, verb, *args, **options):
        """Call the manager; return what comes back, or the error."""
        try:
            result = getattr(self.manager, verb)(*args, **options)
        except Exception as error:
            result = error.with_traceback(None)  # its frames would hold views
        self.adopt(args[0] if verb == "refresh" else None)
        self.seen[f"{verb} {type(result).__name__}" if isinstance(result, Exception) else verb] += 1
        return result

    def adopt(self, refreshed=None):
        """See which generations are loaded: what was evicted comes back as the newest."""
        snapshot = snapshot_of(self.manager)
        loaded = snapshot.loaded
        rows = {int(each.dimension_id): snapshot.region_at(each.dimension_id) for each in loaded}
        self.regions = {
            number: {name: int(row[name]) for name in ("generation", "n_charged")}
            for number, row in rows.items()
        }
        for number, dimension in self.model.items():
            if dimension.loaded is None or number not in self.regions or number == refreshed:
                continue
            generation = self.regions[number]["generation"]
            if generation != dimension.loaded and generation in dimension.files:
                assert not dimension.learned and not dimension.is_pinned
                assert generation == dimension.newest
                dimension.loaded = generation
                self.seen["came back newer"] += 1

    def path(self, number):
        return self.base / str(DimensionId(number)) / "region.mmap"

    def choose(self, target):
        """Return the layer that is nearest to the one drawn, of those that are meant."""
        kind, drawn = target
        among = [
            LayerId(number, layer)
            for number, dimension in self.model.items()
            for layer in dimension.layers
            if kind == "loaded"
            or (layer in dimension.learned and kind == "learned")
            or (layer in dimension.learned and dimension.learned[layer].is_overlay)
        ]
        if kind == "any" or not among:
            return drawn
        return min(among, key=lambda layer: abs(layer - drawn))

    # -- loading -----------------------------------------------------------------------------------

    @rule(number=dimensions)
    def load(self, number):
        dimension = self.model[number]
        result = self.call("load_dimension", number)
        if dimension.loaded is not None:
            assert isinstance(result, DuplicateDimension)
        elif not dimension.files:
            assert isinstance(result, DimensionNotFound)
        elif not self.refused(result, number):
            assert isinstance(result, int)
            dimension.loaded = dimension.newest
            dimension.lay_again()

    @rule(number=dimensions)
    def unload(self, number):
        dimension = self.model[number]
        result = self.call("unload_dimension", number)
        lost = [n for n, each in dimension.learned.items() if each.state != "crystallized"]
        if lost:
            assert isinstance(result, InvalidAccess)
            assert str(LayerId(number, min(lost))) in str(result)
        elif not dimension.is_loaded:
            assert isinstance(result, DimensionNotFound)
        else:
            assert result is None
            dimension.loaded, dimension.is_pinned = None, False
            dimension.learned.clear()

    @rule(number=dimensions)
    def refresh(self, number):
        dimension = self.model[number]
        before = dimension.loaded
        result = self.call("refresh", number)
        if before is None:
            assert isinstance(result, DimensionNotFound)
        elif not self.refused(result, number):
            assert result is (before != dimension.newest)
            dimension.loaded = dimension.newest
            if result:
                dimension.lay_again()

    @rule(really=st.integers(0, 3))
    def reopen(self, really):
        if really:  # seldom: much is to be learned before
            return
        self.manager.close()
        assert isinstance(self.call("create_proto_dimension", 30, b"x"), InvalidAccess)
        self.open()

    @rule(number=dimensions, pins=st.booleans())
    def pin_or_unpin(self, number, pins):
        dimension = self.model[number]
        result = self.call("pin" if pins else "unpin", number)
        if pins and not dimension.is_loaded:
            assert isinstance(result, DimensionNotFound)
        elif not self.refused(result, number):
            assert result is None
            dimension.is_pinned = pins

    @rule(n_bytes=st.sampled_from([1, 4 * MIB, 64 * MIB]))
    def evict(self, n_bytes):
        held = {number for number, region in self.regions.items() if region["n_charged"]}
        make_room(self.manager, n_bytes)
        self.adopt()
        gone = {number for number in held if not self.regions[number]["n_charged"]}
        assert not any(self.model[number].learned for number in gone)
        assert not any(self.model[number].is_pinned for number in gone)
        assert not gone & set(IMMUTABLE)
        self.seen["evicted"] += len(gone)
        self.check_lists()

    # -- learning ----------------------------------------------------------------------------------

    @rule(layer_id=layer_ids, is_given=st.booleans(), content=contents, description=descriptions)
    def create(self, layer_id, is_given, content, description):
        number, wanted = layer_id.dimension, layer_id.layer if is_given else None
        dimension = self.model[number]
        result = self.call("create_proto_dimension", number, content, layer=wanted, **description)
        if number in IMMUTABLE:
            assert isinstance(result, ImmutableDimension)
        elif isinstance(result, ValueError) and not isinstance(result, DuplicateLayer):
            assert "its own parent" in str(result)
            parent = description["parent"]
            assert parent == LayerId(number, dimension.free_number() if wanted is None else wanted)
        elif is_given and (wanted in dimension.on_disk or wanted in dimension.layers):
            assert isinstance(result, DuplicateLayer) or self.refused(result, number)
        elif not self.refused(result, number):
            expected = dimension.free_number() if wanted is None else wanted
            assert result == LayerId(number, expected)
            dimension.learned[expected] = Learned(Layer(as_bytes(content), **description))

    @rule(items=st.lists(st.tuples(dimensions, st.binary(max_size=5_000)), max_size=6))
    def create_many(self, items):
        result = self.call("create_proto_layers", items)
        if any(number in IMMUTABLE for number, _ in items):
            assert isinstance(result, ImmutableDimension)
        elif not self.refused(result, *(number for number, _ in items)):
            for (number, content), layer_id in zip(items, result, strict=True):
                dimension = self.model[number]
                assert layer_id == LayerId(number, dimension.free_number())
                dimension.learned[layer_id.layer] = Learned(Layer(content))

    @rule(which=targets, content=contents)
    def update(self, which, content):
        layer_id = self.choose(which)
        result = self.call("update_proto_dimension", layer_id, content)
        each = self.changeable(layer_id, result)
        if each is not None and not self.refused(result):
            assert result is None
            each.layer = replace(each.layer, content=as_bytes(content))

    @rule(which=targets)
    def discard(self, which):
        layer_id = self.choose(which)
        result = self.call("discard_proto_dimension", layer_id)
        if self.changeable(layer_id, result) is not None:
            assert result is None
            self.forget(layer_id)

    def changeable(self, layer_id, result):
        """Return the proto layer; or None, where the right error has come back."""
        dimension = self.model[layer_id.dimension]
        each = dimension.learned.get(layer_id.layer)
        if layer_id.dimension in IMMUTABLE:
            assert isinstance(result, ImmutableDimension)
        elif layer_id.layer not in dimension.layers:
            assert isinstance(result, LayerNotFound)
        elif each is None or each.is_overlay or each.state == "crystallized":
            assert isinstance(result, ImmutableDimension)
        else:
            return each
        return None

    def forget(self, layer_id):
        dimension = self.model[layer_id.dimension]
        del dimension.learned[layer_id.layer]
        dimension.is_pinned &= dimension.is_loaded

    @rule(which=targets, content=contents, separator=st.sampled_from([b"\n", "", b"\xff"]))
    def overlay(self, which, content, separator):
        layer_id = self.choose(which)
        number, dimension = layer_id.dimension, self.model[layer_id.dimension]
        result = self.call("overlay_layer", layer_id, content, separator=separator)
        each = dimension.learned.get(layer_id.layer)
        if number in IMMUTABLE:
            assert isinstance(result, ImmutableDimension)
        elif not self.refused(result, number):
            if layer_id.layer not in dimension.layers:
                assert isinstance(result, LayerNotFound)
            elif each is not None and not each.is_overlay:
                assert isinstance(result, InvalidAccess)
            elif each is not None and each.state == "crystallized":
                assert isinstance(result, ImmutableDimension)
            else:
                assert result is None
                under = dimension.layers[layer_id.layer]
                if each is None:
                    each = Learned(under, under.content, b"")
                    dimension.learned[layer_id.layer] = each
                tail = as_bytes(separator) + as_bytes(content)
                each.tail += tail
                each.layer = replace(under, content=under.content + tail)

    @rule(which=targets)
    def drop(self, which):
        layer_id = self.choose(which)
        number, dimension = layer_id.dimension, self.model[layer_id.dimension]
        result = self.call("drop_overlay", layer_id)
        each = dimension.learned.get(layer_id.layer)
        if number in IMMUTABLE:
            assert isinstance(result, ImmutableDimension)
        elif not self.refused(result, number):
            if layer_id.layer not in dimension.layers:
                assert isinstance(result, LayerNotFound)
            elif each is None or not each.is_overlay:
                assert isinstance(result, InvalidAccess)
            elif each.state == "crystallized":
                assert isinstance(result, ImmutableDimension)
            else:
                assert result is None
                self.forget(layer_id)

    # -- crystallizing -----------------------------------------------------------------------------

    @rule(which=targets)
    def crystallize(self, which):
        layer_id = self.choose(which)
        dimension = self.model[layer_id.dimension]
        result = self.call("crystallize_proto_dimension", layer_id)
        if layer_id.dimension in IMMUTABLE:
            assert isinstance(result, ImmutableDimension)
        elif layer_id.layer not in dimension.layers:
            assert isinstance(result, LayerNotFound)
        elif layer_id.layer not in dimension.learned:
            assert isinstance(result, InvalidAccess)
        elif self.is_written(layer_id.dimension, [layer_id.layer], result):
            assert result is None

    @rule(number=dimensions)
    def crystallize_all(self, number):
        dimension = self.model[number]
        result = self.call("crystallize_dimension", number)
        if number in IMMUTABLE:
            assert isinstance(result, ImmutableDimension)
        elif not dimension.is_loaded:
            assert isinstance(result, DimensionNotFound)
        else:
            numbers = sorted(dimension.learned)
            told = [n for n in numbers if n in (dimension.merged(numbers) or ())]
            if not numbers or self.is_written(number, numbers, result):
                assert result == [LayerId(number, each) for each in told]

    def is_written(self, number, numbers, result):
        """Foretell the file and what is seen afterwards; False where a number was taken."""
        dimension = self.model[number]
        merged = dimension.merged(numbers)
        if merged is None:
            assert isinstance(result, DuplicateLayer)
            return False
        assert not isinstance(result, Exception), result
        dimension.publish(merged)
        if self.regions[number]["generation"] == dimension.newest:
            for each in numbers:
                del dimension.learned[each]
            dimension.loaded = dimension.newest
            dimension.lay_again()
        else:  # no room to map it, and others lie over the old one
            assert dimension.learned.keys() > set(numbers)
            assert self.is_tight(self.path(number).stat().st_size, number)
            dimension.mark_written([each for each in numbers if each in merged])
            self.seen["not switched"] += 1
        return True

    @rule(which=targets)
    def delete(self, which):
        layer_id = self.choose(which)
        number, dimension = layer_id.dimension, self.model[layer_id.dimension]
        each = dimension.learned.get(layer_id.layer)
        result = self.call("delete_layer", layer_id)
        if number in IMMUTABLE:
            assert isinstance(result, ImmutableDimension)
        elif each is not None and each.state != "crystallized" and each.is_overlay:
            assert isinstance(result, InvalidAccess)
        elif each is not None and each.state != "crystallized":
            assert result is None
            self.forget(layer_id)
        elif layer_id.layer not in dimension.on_disk.keys() | dimension.layers.keys():
            assert isinstance(result, LayerNotFound)
        else:
            assert result is None
            left = dimension.on_disk.items()
            dimension.publish(
                {layer: content for layer, content in left if layer != layer_id.layer}
            )
            self.seen["deleted on disk"] += 1
            if not dimension.is_loaded:
                return
            if self.regions[number]["generation"] == dimension.newest:
                dimension.loaded = dimension.newest
                dimension.lay_again()
            else:  # no room to map it
                assert self.is_tight(self.path(number).stat().st_size, number)

    @precondition(lambda self: any(each.learned for each in self.model.values()))
    @rule(data=st.data(), operation=st.sampled_from(FAILING))
    def crystallize_in_vain(self, data, operation):
        """A file call fails; after the renaming the new file is there all the same."""
        learning = [number for number, each in self.model.items() if each.learned]
        number = data.draw(st.sampled_from(learning))
        dimension = self.model[number]
        merged, numbers = dimension.merged(dimension.learned), list(dimension.learned)

        def fail(made, path, *details):
            if made == operation:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        osmem.intercept = fail
        try:
            result = self.call("crystallize_dimension", number)
        finally:
            osmem.intercept = None
        if merged is None:
            assert isinstance(result, DuplicateLayer)
            return
        assert isinstance(result, RegionIOError)
        if operation == "sync directory" and dimension.files:  # and not that of a new directory
            dimension.publish(merged)
            dimension.mark_written(numbers)

    # -- other writers -----------------------------------------------------------------------------

    @rule(which=targets, content=contents)
    def crystallize_elsewhere(self, which, content):
        number, layer = self.choose(which).dimension, self.choose(which).layer
        if number in IMMUTABLE:
            return
        dimension = self.model[number]
        layers = dict(dimension.on_disk)
        with MmapManager(64, base_path=self.base) as other:
            if dimension.files:
                other.load_dimension(number)
            if layer in layers:
                other.overlay_layer(LayerId(number, layer), content, separator="+")
                old = layers[layer]
                layers[layer] = replace(old, content=old.content + b"+" + as_bytes(content))
            else:
                other.create_proto_dimension(number, content, layer=layer, name="elsewhere")
                layers[layer] = Layer(as_bytes(content), "elsewhere")
            other.crystallize_dimension(number)
        dimension.publish(layers)

    @rule(
        number=st.sampled_from((1, 20, 30)),
        layers=st.dictionaries(
            st.sampled_from(NUMBERS), st.builds(Layer, st.binary(max_size=9), st.just("new"))
        ),
        keeps=st.booleans(),
    )
    def rebuild_elsewhere(self, number, layers, keeps):
        if keeps:
            kept = self.model[number].on_disk.items()
            layers |= {n: replace(each, name="renamed") for n, each in kept if n != 7}
        self.rebuild(number, layers)

    def rebuild(self, number, layers):
        builder = RegionBuilder(number, "rebuilt")
        for layer, each in layers.items():
            builder.add_layer(layer, each.content, **each.description)
        builder.build_to_file(self.path(number))
        self.model[number].publish(layers)

    # -- views -------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.views) < 6)
    @rule(which=targets)
    def hold(self, which):
        layer_id = self.choose(which)
        result = self.call("access_layer", layer_id)
        found = self.model[layer_id.dimension].layers.get(layer_id.layer)
        if not self.refused(result, layer_id.dimension):
            if found is None:
                assert isinstance(result, LayerNotFound)
            else:
                self.views.append((layer_id.dimension, result, found.content))

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0, 5))
    def drop_view(self, which):
        del self.views[which % len(self.views)]

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def all_agrees(self):
        if not hasattr(self, "manager"):
            return
        self.is_well = False
        for _, view, content in self.views:
            assert view.readonly and bytes(view) == content
        self.adopt()
        check_shown(self.manager)
        self.check_lists()
        for number, dimension in self.model.items():
            if dimension.is_loaded:
                self.check_dimension(number)
            else:
                assert isinstance(self.call("access_layer", LayerId(number, 0)), LayerNotFound)
        self.check_selection()
        self.check_memory()
        self.is_well = True

    def teardown(self):
        osmem.intercept = None
        if not hasattr(self, "manager"):
            return
        try:
            self.manager.close()
            self.views.clear()
            # The frames of a failure would hold something.
            assert self.manager.get_stats().total_allocated_bytes == 0 or not self.is_well
        finally:
            shutil.rmtree(self.base)


def run(n_examples, n_steps):
    """Run the machine the same way every time; return what it came across."""
    scale = 4 if _jit.is_disabled() else 1
    Learning.seen.clear()
    run_state_machine_as_test(
        Learning,
        settings=settings(
            max_examples=max(n_examples // scale, 1),
            stateful_step_count=n_steps,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
        ),
    )
    return Learning.seen


def test_a_manager_does_what_the_model_says():
    seen = run(20, 30)
    assert seen["read"] > 50
    # A quarter of the examples may not come to it.
    written = seen["crystallize_dimension"] + seen["crystallize_proto_dimension"]
    assert written or _jit.is_disabled()


@pytest.mark.slow
def test_a_manager_does_what_the_model_says_at_length():
    seen = run(600, 80)
    for each in (
        "evicted",
        "came back newer",
        "crystallize_dimension DuplicateLayer",
        "crystallize_dimension RegionIOError",
        "create_proto_dimension DuplicateLayer",
        "drop_overlay",
        "deleted on disk",
        "refresh",
    ):
        assert seen[each], each
