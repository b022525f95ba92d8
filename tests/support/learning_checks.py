"""What always holds of a manager that learns, told from its model."""

from __future__ import annotations

from jessymem import AllocationFailed, DimensionId, LayerId, LimitExceeded
from support.internals import allocator_of, handles_of_learned

DIMENSIONS = (1, 9, 20, 21, 22, 2, 14, 30, 40_000)
IMMUTABLE = (9, 14)
NUMBERS = (0, 1, 2, 3, 7, 65_535)
WORDS = ("joy", "Gr\u00fc\u00dfe", "\u65e5\u672c", "")
NO_MEMORY = (LimitExceeded, AllocationFailed)


class Checks:
    """The part of the state machine that looks; it has a manager, a model and views."""

    def is_tight(self, n_bytes, *wanted):
        """Whether so many bytes may be refused for a call that needs dimensions in memory."""
        stats = self.manager.get_stats()
        movable = sum(
            region["n_charged"]
            for number, region in self.regions.items()
            if number not in {*wanted, *IMMUTABLE, *(of for of, _, _ in self.views)}
            and not self.model[number].learned
            and not self.model[number].is_pinned
        )
        least = stats.total_allocated_bytes - movable + n_bytes + 2**18  # whole blocks
        return least > 0.95 * stats.total_limit_bytes

    def refused(self, result, *wanted):
        """Tell whether there was no memory, which is right only where it is short."""
        if not isinstance(result, NO_MEMORY):
            return False
        assert self.is_tight(result.requested, *wanted), result
        return True

    def check_lists(self):
        manager, model = self.manager, self.model
        expected = [
            LayerId(number, layer)
            for number in sorted(model)
            for layer in sorted(model[number].layers)
        ]
        loaded = sorted(number for number, each in model.items() if each.is_loaded)
        assert manager.list_layers() == expected
        assert manager.list_dimensions() == loaded == sorted(self.regions)
        for number, region in self.regions.items():
            assert region["generation"] == (model[number].loaded or 0)
        assert len(manager) == len(expected) == manager.get_stats().layers_loaded
        for number in DIMENSIONS:
            assert (DimensionId(number) in manager) is (number in loaded)
            for layer in NUMBERS:
                assert (LayerId(number, layer) in manager) is (layer in model[number].layers)
        self.dump = manager.dump_state()
        assert [each["layer"] for each in self.dump["layers"]] == list(map(str, expected))

    def check_dimension(self, number):
        """Read every layer in three ways, and all that is told of it."""
        result = self.call("load_contexts", self.manager.list_layers(number), missing="skip")
        if self.refused(result, number):
            return
        self.seen["read"] += 1
        layers = self.model[number].layers
        found = {context.layer_id.layer: context for context in result}
        stale = self.model[number].loaded != self.model[number].newest
        assert found.keys() <= layers.keys() and (stale or found.keys() <= layers.keys())
        del result
        for layer, expected in layers.items():
            layer_id = LayerId(number, layer)
            context, view = (
                self.manager.load_layer_context(layer_id),
                self.manager.access_layer(layer_id),
            )
            assert bytes(context.content) == bytes(view) == expected.content, layer_id
            assert layer not in found or bytes(found[layer].content) == expected.content
            info = self.manager.get_layer_info(layer_id)
            for name, value in expected.description.items():
                assert getattr(info, name) == value == getattr(context, name)
            assert str(info.frequency) == str(expected.frequency)  # of -0.0 too
            assert info.size == len(expected.content)
            self.check_state(layer_id, info)

    def check_state(self, layer_id, info):
        each = self.model[layer_id.dimension].learned.get(layer_id.layer)
        if each is None:
            location = "mmap" if self.config.load_mode == "map" else "heap"
            assert (info.state.value, info.location.value) == ("permanent", location)
        else:
            state = each.state
            if state == "active" and not each.layer.content:
                state = "created"
            location = "hybrid" if each.is_overlay else "heap"
            assert (info.state.value, info.location.value) == (state, location)
        assert info.children == tuple(
            LayerId(number, layer)
            for number in sorted(self.model)
            for layer, child in sorted(self.model[number].layers.items())
            if child.parent == layer_id
        )

    def check_selection(self):
        for asked, meets in (
            ({"keywords": ["joy", WORDS[1]]}, lambda each: {"joy", WORDS[1]} & set(each.keywords)),
            (
                {"depth": (1, 2), "frequency": (0, 9)},
                lambda each: each.depth in (1, 2) and each.frequency >= 0,
            ),
        ):
            result = self.call("select", **asked)
            if self.refused(result):
                continue
            assert result == [
                LayerId(number, layer)
                for number in sorted(self.model)
                for layer, each in sorted(self.model[number].layers.items())
                if meets(each)
            ]

    def check_memory(self):
        """Nothing is charged but what is there, and nothing waits but for the views held."""
        allocator, stats = allocator_of(self.manager), self.manager.get_stats()
        if allocator is not None:
            assert allocator.validate() == []
        blocks = sum(pool.used_blocks * pool.block_size for pool in stats.per_pool.values())
        regions = sum(region["n_charged"] for region in self.regions.values())
        dump = self.manager.dump_state()["waiting"]
        waiting = sum(each["n_bytes"] for each in dump if "region_id" in each)
        assert stats.total_allocated_bytes == blocks + regions + waiting
        assert stats.total_allocated_bytes <= stats.peak_usage_bytes <= stats.total_limit_bytes
        assert stats.utilization == stats.total_allocated_bytes / stats.total_limit_bytes
        if not self.views:
            assert stats.waiting_bytes == 0
        learned = [each for dimension in self.model.values() for each in dimension.learned.values()]
        n_filled = sum(bool(each.layer.content) for each in learned)
        handles = handles_of_learned(self.manager)
        assert stats.total_allocations - stats.total_deallocations == len(handles) <= n_filled
        assert bool(handles) == bool(n_filled)
