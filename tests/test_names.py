"""Layers by name: the one that is wanted, and all that match a pattern."""

from __future__ import annotations

import os
import pickle
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import naive
from support.internals import budget_of, evict, mapping_of, region_of, snapshot_of
from support.processes import checked_in_child, needs_fork
from support.regions import region_file, write_packed

from jessymem import (
    AmbiguousName,
    DimensionNotFound,
    InvalidAccess,
    JessyMemoryError,
    LayerId,
    LayerNotFound,
    MemoryConfig,
    MmapManager,
    RegionBuilder,
    names,
    osmem,
)
from jessymem.regions import name_table
from jessymem.regions.name_patterns import NamePattern

SHELL = {0: "bash/README", 3: "zsh/README", 4: "", 9: "zsh/README"}


def build(base: Path, dimension: str, names: dict[int, str], name: str = "shell") -> None:
    builder = RegionBuilder(dimension, name)
    for number, each in names.items():
        builder.add_layer(number, f"{dimension} {number}", name=each)
    builder.build_to_file(region_file(base, dimension))


def load(base: Path, **settings) -> MmapManager:
    manager = MmapManager(MemoryConfig(64, base, simulation="never", **settings))
    for dimension in manager.discover():
        manager.load_dimension(dimension)
    return manager


@pytest.fixture
def manager(tmp_path):
    build(tmp_path, "D18", SHELL)
    build(tmp_path, "D19", {0: "README", 7: "gr\u00fcn"}, name="bash")
    build(tmp_path, "D20", {5: "only/here", 6: "D18/zsh"}, name="other/shell")
    with load(tmp_path) as made:
        yield made


# -- one layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("only/here",), "L20-05"),
        (("gr\u00fcn",), "L19-07"),
        (("D18/bash/README",), "L18-00"),
        (("d018/bash/README",), "L18-00"),
        (("shell/bash/README",), "L18-00"),
        (("other/shell/only/here",), "L20-05"),
        (("bash/README", 18), "L18-00"),
        (("bash/README", "shell"), "L18-00"),
        (("README", "bash"), "L19-00"),
        (("README",), "L19-00"),
        (("D18/zsh", "D20"), "L20-06"),  # where the dimension is given, all of it is the name
        (("L19-07",), "L19-07"),
        (("l19-7", "D19"), "L19-07"),
        (("L19-07", "bash"), "L19-07"),
    ],
)
def test_a_layer_is_found_by_its_name(manager, arguments, found):
    assert manager.id_of(*arguments) == LayerId(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "no layer is called 'nothing'"),
        (("",), "is called ''"),
        (("D18/",), "is called 'D18/'"),
        (("README", 18), "no layer in 18 is called"),
        (("D18/README",), "is called 'D18/README'"),
        (("D18/zsh",), "is called 'D18/zsh'"),  # a layer of D18: ids come first
        (("D21/x",), "dimension D21 is not loaded"),
        (("D70000/x",), "dimension D70000 is not loaded"),
        (("x", "D21"), "no layer in D21"),
        (("L18-01",), "L18-01 is not loaded"),
        (("L18-65536",), "L18-65536 is not loaded"),
        (("L18-00", "D19"), "L18-00 is not loaded in D19"),
        (("\ud800",), "is called"),
        (("bash/readme", 18), "is called"),
    ],
)
def test_what_no_layer_is_called(manager, arguments, message):
    with pytest.raises(LayerNotFound, match=message) as caught:
        manager.id_of(*arguments)
    assert (caught.value.layer, caught.value.layers) == (None, ())


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("zsh/README",), ["L18-03", "L18-09"]),
        (("D18/zsh/README",), ["L18-03", "L18-09"]),
        (("zsh/README", "D18"), ["L18-03", "L18-09"]),
        (("bash/README",), ["L18-00", "L19-00"]),  # and README in the dimension called bash
    ],
)
def test_a_name_of_several_layers_tells_none(manager, arguments, found):
    with pytest.raises(AmbiguousName, match=f"2 layers.*: {', '.join(found)}") as caught:
        manager.id_of(*arguments)
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, KeyError) and isinstance(error, JessyMemoryError)
    assert (error.name, list(error.layers)) == (arguments[0], [LayerId(each) for each in found])


def test_many_layers_of_one_name_are_not_all_shown(tmp_path):
    build(tmp_path, "D18", dict.fromkeys(range(1_000), "same"))
    with load(tmp_path) as manager:
        with pytest.raises(
            AmbiguousName, match=r"1000 layers: L18-00, .*L18-04, \.\.\.$"
        ) as caught:
            manager.id_of("same")
        assert len(caught.value.layers) == 1_000


def test_a_dimension_of_no_such_name(manager):
    with pytest.raises(DimensionNotFound, match="no loaded dimension is called 'fish'"):
        manager.id_of("README", "fish")


def test_wrong_arguments(manager):
    for wrong in (None, 5, b"README", LayerId(18, 0), ["README"]):
        with pytest.raises(TypeError, match="a name is text"):
            manager.id_of(wrong)
    with pytest.raises(TypeError, match="a dimension number"):
        manager.id_of("README", 1.5)


def test_a_closed_manager(tmp_path):
    build(tmp_path, "D18", SHELL)
    with load(tmp_path) as manager:
        pass
    for ask in (lambda: manager.id_of("zsh/README"), lambda: manager.select(name="*")):
        with pytest.raises(InvalidAccess, match="closed"):
            ask()


def test_layers_that_have_no_names(tmp_path):
    region_file(tmp_path, "D18").parent.mkdir()
    write_packed(region_file(tmp_path, "D18"), 18, {0: b"plain", 3: b"file"})
    with load(tmp_path) as manager:
        assert manager.select(name="*") == manager.select(name="") == manager.list_layers()
        assert manager.select(name="?*") == []
        with pytest.raises(LayerNotFound):
            manager.id_of("plain")


def test_names_that_are_no_text(tmp_path):
    build(tmp_path, "D18", {0: "aXb", 1: "aYb", 2: "a\ufffdb"})
    path = region_file(tmp_path, "D18")
    raw = path.read_bytes().replace(b"aXb", b"a\xffb")
    path.write_bytes(naive.resign(raw))
    with load(tmp_path) as manager:
        assert manager.id_of(os.fsdecode(b"a\xffb")) == LayerId("L18-00")  # as a shell hands it on
        assert manager.id_of("a\ufffdb") == LayerId("L18-02")
        assert manager.select(name="a\ufffdb") == [LayerId("L18-00"), LayerId("L18-02")]
        assert manager.select(name="a?b") == manager.list_layers()


def test_names_of_one_digest_are_told_apart(manager, monkeypatch):
    monkeypatch.setattr(name_table, "digest_of", lambda name: 2**64 - 1)
    monkeypatch.setattr(names, "digest_of", lambda name: 2**64 - 1)
    assert manager.id_of("only/here") == LayerId("L20-05")
    assert manager.id_of("D18/bash/README") == LayerId("L18-00")
    assert "zsh" not in manager and "only/hera" not in manager


# -- what a dimension is made of -------------------------------------------------------------------


def test_learned_layers_are_found(manager):
    made = manager.create_proto_dimension(18, b"new", name="new")
    assert manager.id_of("new") == made  # the first look-up
    more = manager.create_proto_dimension(18, b"more", name="more")
    low = manager.create_proto_dimension(18, b"low", name="low", layer=1)
    unnamed = manager.create_proto_dimension(18, b"", layer=2)
    assert [manager.id_of(each) for each in ("new", "more", "low")] == [made, more, low]
    assert manager.id_of("D18/bash/README") == LayerId("L18-00")
    with pytest.raises(AmbiguousName):
        manager.id_of("zsh/README")
    manager.discard_proto_dimension(more)
    manager.discard_proto_dimension(unnamed)
    again = manager.create_proto_dimension(18, b"again", name="again")
    assert again == more
    assert manager.get("more") is None
    assert manager.id_of("again") == again
    first = manager.create_proto_dimension(77, b"first", name="first")
    assert manager.id_of("first") == manager.id_of("D77/first") == first


def test_an_overlay_keeps_the_name(manager):
    manager.overlay_layer("L18-00", b"over")
    assert manager.id_of("D18/bash/README") == LayerId("L18-00")
    assert manager.select(name="bash/*") == [LayerId("L18-00")]
    assert region_of(manager, 18).numbers_named(b"bash/README") == [0]
    manager.drop_overlay("L18-00")
    assert manager.id_of("D18/bash/README") == LayerId("L18-00")


def test_what_was_crystallized_is_found_in_deltas(tmp_path):
    builder = RegionBuilder("D18", "shell")
    builder.add_layer(0, bytes(100_000), name="bash/README")
    builder.add_layer(3, b"3", name="zsh/README")
    builder.build_to_file(region_file(tmp_path, "D18"))
    with load(tmp_path) as manager:
        base_table = None
        for number in range(4, 8):
            manager.create_proto_dimension(18, b"new", name=f"new {number}", layer=number)
            manager.overlay_layer("L18-03", b"over")
            manager.crystallize_dimension(18)
            assert manager.id_of(f"new {number}") == LayerId(18, number)
            assert manager.id_of("zsh/README") == LayerId("L18-03")
            table = region_of(manager, 18).members[0].name_table
            assert table is (base_table or table)  # that of the region file is made once
            base_table = table
        assert len(region_of(manager, 18).members) == 5
        assert manager.select(name="new ?") == [LayerId(18, number) for number in range(4, 8)]
        assert region_of(manager, 18).numbers_named(b"zsh/README") == [3]
        manager.delete_layer("L18-03")
        manager.create_proto_dimension(18, b"", layer=3, name="another")
        manager.crystallize_dimension(18)
        assert manager.id_of("another") == LayerId("L18-03")
        assert manager.get("zsh/README") is None and manager.select(name="zsh*") == []
        manager.fold(18)
        assert manager.id_of("new 5") == LayerId("L18-05")
    with load(tmp_path) as manager:
        assert manager.id_of("new 5") == LayerId("L18-05")
        assert manager.select(name="*README") == [LayerId("L18-00")]


def test_simulated_layers_have_names(tmp_path):
    with MmapManager(base_path=tmp_path / "none") as manager:
        manager.load_core_dimensions()
        for layer in manager.list_layers()[:5]:
            info = manager.get_layer_info(layer)
            assert manager.id_of(info.name, layer.dimension) == layer
            assert layer in manager.select(name=info.name)


def test_evicted_dimensions_are_mapped_once_to_know_their_names(manager):
    for dimension in (18, 19, 20):
        evict(manager, dimension)
    assert manager.id_of("only/here") == LayerId("L20-05")
    assert manager.get_stats().reloads == 3
    for dimension in (18, 19, 20):
        evict(manager, dimension)
    assert manager.get("nothing") is None
    assert manager.get_stats().reloads == 3
    assert manager.id_of("only/here") == LayerId("L20-05")
    assert manager.get_stats().reloads == 4
    assert [number for number in (18, 19, 20) if region_of(manager, number).resident] == [20]
    assert manager.select(name="gr\u00fcn") == [LayerId("L19-07")]


# -- what it costs ---------------------------------------------------------------------------------

N_MANY = 5_000


@pytest.fixture
def many(tmp_path):
    build(tmp_path, "D18", {number: f"name {number}" for number in range(N_MANY)})
    with load(tmp_path) as made:
        yield made


def test_a_long_table_of_names_is_charged_while_it_is_kept(many):
    before = many.get_stats().total_allocated_bytes
    assert many.id_of("name 4321") == LayerId(18, 4_321)
    charged = many.get_stats().total_allocated_bytes - before
    assert charged == 10 * N_MANY // osmem.page_size() * osmem.page_size() > 0
    assert many.id_of("D18/name 4") == LayerId(18, 4)
    assert many.get_stats().total_allocated_bytes == before + charged
    evict(many, 18)
    assert many.get_stats().total_allocated_bytes == charged  # it knows what is not there
    assert many.get("nothing") is None
    many.unload_dimension(18)
    assert many.get_stats().total_allocated_bytes == 0


def test_where_there_is_no_room_names_are_found_all_the_same(tmp_path):
    build(tmp_path, "D18", {number: f"name {number}" for number in range(N_MANY)})
    n_file = osmem.round_to_pages(region_file(tmp_path, "D18").stat().st_size)
    n_mb = -(-n_file // 2**20)
    filler = RegionBuilder("D19", "filler")
    filler.add_layer(0, bytes(n_mb * 2**20 - n_file - 8_192))
    filler.build_to_file(region_file(tmp_path, "D19"))
    with MmapManager(MemoryConfig(n_mb, tmp_path, simulation="never")) as manager:
        for dimension in (18, 19):
            manager.load_dimension(dimension)
            manager.pin(dimension)
        before = manager.get_stats()
        for number in (0, 4_321):
            assert manager.id_of(f"name {number}", 18) == LayerId(18, number)
        assert manager.get_stats().total_allocated_bytes == before.total_allocated_bytes
        assert region_of(manager, 18).name_table is None


@needs_fork
def test_a_forked_child_counts_the_same(many):
    many.id_of("name 7")
    evict(many, 18)
    expected = budget_of(many).total

    @checked_in_child
    def _() -> None:
        assert budget_of(many).total == expected > 0
        assert many.id_of("name 8") == LayerId(18, 8)


def test_a_look_up_keeps_no_state(many):
    many.id_of("name 7")
    state = mapping_of(many, 18)
    many.unload_dimension(18)
    assert state() is None
    assert many.get("name 7") is None


def test_all_dimensions_are_searched_together(tmp_path):
    """Over several chunks, with short tables and long ones, before and after changes."""
    for number in (15, 16, 64, 65, 200):
        build(tmp_path, f"D{number}", {0: f"own {number}", 1: "shared", 5: "x"}, name=f"n{number}")
    build(tmp_path, "D300", {each: f"name {each}" for each in range(N_MANY)}, name="n300")
    with load(tmp_path) as manager:
        for _ in range(2):
            for number in (15, 16, 64, 65, 200):
                assert manager.id_of(f"own {number}") == LayerId(number, 0)
                assert manager.id_of(f"n{number}/x") == LayerId(number, 5)
            assert manager.id_of("name 4000") == LayerId(300, 4_000)
            with pytest.raises(AmbiguousName) as caught:
                manager.id_of("shared")
            assert [each.dimension for each in caught.value.layers] == [15, 16, 64, 65, 200]
        assert {chunk.names is not None for chunk in snapshot_of(manager).chunks} == {True}
        unknown = [each for c in snapshot_of(manager).chunks for each in c.names.unknown]
        assert [each.dimension_id for each in unknown] == [300]
        made = manager.create_proto_dimension(65, b"", name="own 15")
        with pytest.raises(AmbiguousName):
            manager.id_of("own 15")
        manager.delete_layer("L15-00")
        assert manager.id_of("own 15") == made
        evict(manager, 16)
        assert manager.id_of("own 200") == LayerId(200, 0)
        assert manager.id_of("own 16") == LayerId(16, 0)
        manager.unload_dimension(64)
        assert "own 64" not in manager and "n64/x" not in manager


# -- patterns --------------------------------------------------------------------------------------

alphabet = st.sampled_from(["a", "b", "/", ".", "*", "?", "[", "]", "!", "\n", "\u00e9", "\ufffd"])
texts = st.text(alphabet, max_size=6)


@given(st.lists(texts, max_size=12), texts)
def test_patterns_match_as_those_of_a_shell(names, pattern):
    builder = RegionBuilder(7, "any")
    for number, name in enumerate(names):
        builder.add_layer(number, b"", name=name, keywords=["a"])
    region = builder.build_to_memory()
    made = NamePattern(pattern)
    expected = [fnmatchcase(name, pattern) for name in names]
    assert region.rows_matching(made).tolist() == expected
    assert [made.matches(name) for name in names] == expected


def test_select_by_name(manager):
    def chosen(name, **others):
        return " ".join(map(str, manager.select(name=name, **others)))

    assert chosen("bash/*") == "L18-00"
    assert chosen("*README") == "L18-00 L18-03 L18-09 L19-00"
    assert chosen("*README", dimensions="D18", depth=(0, 0)) == "L18-00 L18-03 L18-09"
    assert chosen("*README", dimensions=["D19"]) == "L19-00"
    assert chosen("*readme") == chosen("\ud800*") == chosen("L18-00") == ""
    assert chosen("[bz]*sh/????ME") == "L18-00 L18-03 L18-09"
    assert chosen("", dimensions=18) == "L18-04"
    assert chosen("README", keywords=["none"]) == ""
    made = manager.create_proto_dimension(18, b"", name="fish/README", layer=6)
    assert chosen("*/README") == "L18-00 L18-03 L18-06 L18-09"
    assert made == LayerId("L18-06")
    for wrong in (5, b"README", ["README"]):
        with pytest.raises(TypeError, match="name is a pattern"):
            manager.select(name=wrong)


def test_names_agree_with_a_naive_model(manager):
    """Over every kind of dimension at once: a file, deltas, what is learned."""
    for step in range(3):
        manager.create_proto_dimension(18, b"x", name="zsh/README" if step else "x")
        manager.create_proto_dimension(19, b"x", name=f"{step}")
        if step == 1:
            manager.crystallize_dimension(18)
        names = {layer: manager.get_layer_info(layer).name for layer in manager.list_layers()}
        for name in {*names.values()} - {""}:
            owners = [layer for layer, each in names.items() if each == name]
            assert manager.select(name=name) == owners
            for dimension in snapshot_of(manager).loaded:
                mine = [each for each in owners if each.dimension == dimension.dimension_id]
                assert dimension.numbers_named(name.encode()) == [each.layer for each in mine], (
                    dimension
                )
