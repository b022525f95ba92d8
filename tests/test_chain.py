"""The table of a region file with its deltas: what states share, what it costs, what is checked."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from support.chains import D20, N_FIRST, build, check, content_of, delta, learn, load
from support.internals import evict, region_of
from support.regions import region_file
from support.system_calls import intercepted

from jessymem import LayerId, LayerNotFound, RegionBuilder, osmem
from jessymem.engine.engine import Engine
from jessymem.kernels import schema as s
from jessymem.regions import layout


def test_states_to_which_layers_are_only_added_share_one_table(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
        states = [region_of(manager, 20)]
        for number in (9, 10, 11):
            learn(manager, number)
            states.append(region_of(manager, 20))
        for first, later in itertools.pairwise(states):
            assert np.shares_memory(first.rows, later.rows)
        for n_layers, state in enumerate(states, 9):
            assert [each.layer for each in state.list_layers()] == list(range(n_layers))
            assert not state.has_layer(n_layers)
            assert bytes(state.content_of(8)) == content_of(8)
            with pytest.raises(LayerNotFound):
                state.find_row(LayerId(D20, n_layers))
        learn(manager, 300)  # from here on numbers are looked up
        gapped = region_of(manager, 20)
        assert not np.shares_memory(states[-1].rows, gapped.rows)
        learn(manager, 305)
        assert np.shares_memory(gapped.rows, region_of(manager, 20).rows)
        assert gapped.has_layer(300) and not gapped.has_layer(305)
        check(manager, [*range(12), 300, 305])


def test_a_layer_that_changes_or_comes_between_makes_another_table(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 9, 12)
        old = region_of(manager, 20)
        learn(manager, 10)
        between = region_of(manager, 20)
        manager.overlay_layer("L20-09", b"more")
        manager.crystallize_dimension(D20)
        assert not np.shares_memory(old.rows, between.rows)
        assert not np.shares_memory(between.rows, region_of(manager, 20).rows)
        row = between.find_row(LayerId(D20, 9))
        assert bytes(between.content_of(row)) == content_of(9)
        assert bytes(manager.access_layer("L20-09")) == content_of(9) + b"\nmore"
        assert bytes(manager.access_layer("L20-10")) == content_of(10)
        assert bytes(manager.access_layer("L20-12")) == content_of(12)
        assert len(manager.list_layers(D20)) == N_FIRST + 3


def test_a_state_that_was_not_published_leaves_nothing_in_the_table(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
        old = region_of(manager, 20)
        manager.create_proto_dimension(D20, content_of(9), layer=9, name="layer 9")
        with patch.object(Engine, "publish", side_effect=MemoryError), pytest.raises(MemoryError):
            manager.crystallize_dimension(D20)
        assert bytes(manager.access_layer("L20-09")) == content_of(9)
        assert [each.layer for each in old.list_layers()] == list(range(9))
        manager.crystallize_dimension(D20)
        learn(manager, 10)
        check(manager, range(11))
    with load(tmp_path) as manager:
        check(manager, range(11))


def test_a_shared_table_is_counted_once_and_to_the_end(tmp_path):
    builder = RegionBuilder(D20, "twenty")
    for number in range(2_000):
        builder.add_layer(number, bytes(100))
    builder.build_to_file(region_file(tmp_path, "D20"))
    with load(tmp_path) as manager:
        learn(manager, 2_000)

        def n_table_bytes() -> int:
            paths = (tmp_path / "D20").iterdir()
            n_files = sum(osmem.round_to_pages(path.stat().st_size) for path in paths)
            return manager.get_stats().total_allocated_bytes - n_files

        n_bytes = n_table_bytes()
        assert n_bytes >= 2_000 * s.LAYER_BYTES
        held = region_of(manager, 20)
        learn(manager, 2_001)
        assert n_table_bytes() == n_bytes
        manager.overlay_layer("L20-00", b"x")
        manager.crystallize_dimension(D20)
        assert n_table_bytes() == 2 * n_bytes  # the old one is still held
        del held
        assert n_table_bytes() == n_bytes
        evict(manager, 20)
        assert manager.get_stats().total_allocated_bytes == 0


def test_what_was_read_back_is_checked_again_only_if_it_changed(tmp_path):
    with build(tmp_path) as manager:
        checked = []

        def note(found, source):
            checked.append(Path(source.path).name)

        with patch.object(layout, "check_rows", note):
            learn(manager, 8)
            assert not checked

            def touch(operation, path, *details):
                if operation == "sync directory":  # read back, and not yet mapped
                    os.utime(delta(tmp_path, 3), (1, 1))

            with intercepted(touch):
                learn(manager, 9)
        assert checked == ["region.d3.mmap"]
        check(manager, range(10))
