"""A region file and the deltas that follow it: what is written, what counts, what readers see."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
from support import naive
from support.chains import (
    BLOCK,
    D20,
    N_FIRST,
    build,
    check,
    content_of,
    delta,
    ignored,
    learn,
    load,
    names_in,
    resigned,
    three_deltas,
)
from support.command_line import run
from support.internals import region_of
from support.regions import region_file, write_packed

from jessymem import (
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LayerState,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
    RegionIOError,
    osmem,
)
from jessymem.kernels import schema as s
from jessymem.regions.files import RegionFiles

# -- what is written -------------------------------------------------------------------------------


def test_little_that_is_new_goes_beside_the_file(tmp_path):
    with build(tmp_path) as manager:
        before = region_file(tmp_path, "D20").read_bytes()
        learn(manager, 8)
        learn(manager, 9, 10)
        assert names_in(tmp_path) == ["region.d2.mmap", "region.d3.mmap", "region.mmap"]
        assert region_file(tmp_path, "D20").read_bytes() == before
        check(manager, range(11))
        assert manager.get_layer_info("L20-09").state is LayerState.PERMANENT
        with load(tmp_path) as other:
            check(other, range(11))
    alone = MmapRegion.from_file(D20, delta(tmp_path, 3))
    assert [each.layer for each in alone.list_layers()] == [9, 10]
    assert [
        layer.content for layer in naive.read_plain(delta(tmp_path, 3).read_bytes()).layers
    ] == [
        content_of(9),
        content_of(10),
    ]


def test_a_delta_says_what_it_follows(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
        learn(manager, 9)
    files = [region_file(tmp_path, "D20"), delta(tmp_path, 2), delta(tmp_path, 3)]
    raws = [path.read_bytes() for path in files]
    for raw, before in zip(raws[1:], raws, strict=False):
        told = [naive.get_field(raw, f"follows_{each}") for each in ("generation", "created_at")]
        assert told == [naive.get_field(before, each) for each in ("generation", "created_at")]
        assert naive.get_field(raw, "follows_size") == len(before)
    assert naive.get_field(raws[0], "follows_generation") == 0


def test_much_that_is_new_makes_one_file(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
        learn(manager, 9, content=bytes(N_FIRST * BLOCK // 4))
        assert names_in(tmp_path) == ["region.mmap"]
        assert len(manager.access_layer("L20-09")) == N_FIRST * BLOCK // 4
        assert manager.list_layers(D20) == [LayerId(D20, number) for number in range(10)]


def test_what_was_learned_before_counts_too(tmp_path):
    n_bytes = N_FIRST * BLOCK // 10
    with build(tmp_path) as manager:
        learn(manager, 8, content=bytes(n_bytes))
        learn(manager, 9, content=bytes(n_bytes))
        assert len(names_in(tmp_path)) == 3
        learn(manager, 10, content=bytes(n_bytes))  # three tenths: more than a quarter
        assert names_in(tmp_path) == ["region.mmap"]


def test_a_plain_file_is_written_anew(tmp_path):
    path = region_file(tmp_path, "D20")
    path.parent.mkdir(parents=True)
    write_packed(path, 20, {0: bytes(100_000)})
    with load(tmp_path) as manager:
        learn(manager, 1)
        assert names_in(tmp_path) == ["region.mmap"]


def test_an_overlay_in_a_delta_counts_instead_of_the_layer(tmp_path):
    with build(tmp_path) as manager:
        view = manager.access_layer("L20-03")
        manager.overlay_layer("L20-03", b"over", separator=b"|")
        manager.crystallize_dimension(D20)
        assert names_in(tmp_path) == ["region.d2.mmap", "region.mmap"]
        assert view == content_of(3)
    with load(tmp_path) as manager:
        assert manager.access_layer("L20-03") == content_of(3) + b"|over"
        manager.overlay_layer("L20-03", b"again", separator=b"|")
        manager.crystallize_dimension(D20)
        assert manager.access_layer("L20-03") == content_of(3) + b"|over|again"


def test_a_full_chain_gathers_its_newest_deltas(tmp_path):
    lengths = []
    with build(tmp_path) as manager:
        for number in range(N_FIRST, N_FIRST + 40):
            learn(manager, number)
            lengths.append(len(names_in(tmp_path)) - 1)
        check(manager, range(N_FIRST + 40))
        base = region_of(manager, D20)
        assert base.members[0].generation == 1
        assert max(lengths) == s.MAX_DELTAS
        assert lengths[:17] == [*range(1, 17), 1]
    with load(tmp_path) as manager:
        check(manager, range(N_FIRST + 40))


def test_folding(tmp_path):
    with build(tmp_path) as manager:
        assert not manager.fold(D20)
        learn(manager, 8)
        learn(manager, 9)
        view = manager.access_layer("L20-08")
        assert manager.fold(D20)
        assert not manager.fold(D20)
        assert names_in(tmp_path) == ["region.mmap"]
        check(manager, range(10))
        assert view == content_of(8)
    raw = region_file(tmp_path, "D20").read_bytes()
    assert len(naive.read_plain(raw).layers) == 10
    with MmapManager(base_path=tmp_path) as manager:
        assert not manager.fold(D20)  # nothing is loaded for it
        assert manager.list_dimensions() == []


def test_folding_keeps_what_is_being_learned(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
        made = manager.create_proto_dimension(D20, b"not yet", layer=30)
        assert manager.fold(D20)
        assert manager.access_layer(made) == b"not yet"
        assert manager.get_layer_info(made).state is LayerState.ACTIVE
        assert len(naive.read_plain(region_file(tmp_path, "D20").read_bytes()).layers) == 9


def test_building_anew_takes_the_deltas_away(tmp_path):
    with build(tmp_path) as manager:
        learn(manager, 8)
    builder = RegionBuilder(D20, "anew")
    builder.add_layer(0, b"anew")
    assert builder.build_to_file(region_file(tmp_path, "D20")).generation == 3
    assert names_in(tmp_path) == ["region.mmap"]


def test_another_users_file_is_written_whole(tmp_path):
    # A delta of ours beside it would be ignored by all others.
    with build(tmp_path) as manager, patch.object(RegionFiles, "is_owned", return_value=False):
        learn(manager, 8)
        assert names_in(tmp_path) == ["region.mmap"]


# -- which deltas count ----------------------------------------------------------------------------


def test_a_gap_ends_the_chain(tmp_path, caplog):
    three_deltas(tmp_path)
    delta(tmp_path, 3).unlink()
    with load(tmp_path) as manager:
        check(manager, range(9))
    assert ignored(caplog) == {"region.d4.mmap": "what it follows is not there"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"follows_created_at": 7}, "what it follows is not there"),
        ({"follows_size": 4_096}, "what it follows is not there"),
        ({"follows_generation": 2**62, "generation": 2**63 - 1}, "its generation is"),
        ({"follows_generation": 2}, "follows_generation"),  # itself
        ({"follows_generation": 5}, "follows_generation"),  # one that comes after it
        ({"generation": 9}, "its generation is 9"),
        ({"dimension_id": 21}, "it is of D21"),
        ({"flags": 4}, "flags"),
        ({"replaces": 2}, "replaces"),
        ({"follows_generation": 0, "follows_created_at": 0, "follows_size": 0}, "no other file"),
    ],
)
def test_a_delta_that_cannot_be_one(tmp_path, caplog, fields, why):
    three_deltas(tmp_path)
    resigned(delta(tmp_path, 2), **fields)
    with load(tmp_path) as manager:
        check(manager, range(8))
        assert why in ignored(caplog)["region.d2.mmap"]
        learn(manager, 12)
        check(manager, [*range(8), 12])
    with load(tmp_path) as manager:
        check(manager, [*range(8), 12])


@pytest.mark.parametrize("at", [0, 84, 101, 130, 260, 330])
def test_a_damaged_delta_is_ignored_and_stays_with_what_may_follow_it(tmp_path, caplog, at):
    three_deltas(tmp_path)
    raw = bytearray(delta(tmp_path, 3).read_bytes())
    raw[at] ^= 0xFF
    delta(tmp_path, 3).write_bytes(raw)
    with load(tmp_path) as manager:
        check(manager, range(9))
        assert ignored(caplog).keys() == {"region.d3.mmap", "region.d4.mmap"}
        made = manager.create_proto_dimension(D20, b"new", layer=12)
        for write in (manager.crystallize_dimension, manager.fold):
            with pytest.raises(RegionFormatError, match=r"region\.d3\.mmap is damaged"):
                write(D20)
        assert manager.access_layer(made) == b"new"
        assert {"region.d3.mmap", "region.d4.mmap"} < set(names_in(tmp_path))


def loaded_and_then(base: Path, harm) -> MmapManager:
    """Return a manager of a region file and three deltas, one of which was then harmed."""
    three_deltas(base)
    manager = load(base)
    harm(delta(base, 3))
    return manager


def damage(path: Path) -> None:
    """Put a damaged file in the place of one that may be mapped."""
    raw = bytearray(path.read_bytes())
    raw[130] ^= 0xFF
    path.unlink()
    path.write_bytes(raw)


@pytest.mark.parametrize("harm", [Path.unlink, damage])
@pytest.mark.parametrize("verb", ["crystallize", "fold"])
def test_what_is_mapped_of_a_chain_that_was_harmed_is_written_again(tmp_path, harm, verb):
    with loaded_and_then(tmp_path, harm) as manager:
        if verb == "fold":
            assert manager.fold(D20)
        else:
            learn(manager, 11)
        numbers = range(12 if verb == "crystallize" else 11)
        check(manager, numbers)
        with load(tmp_path) as other:
            check(other, numbers)


def test_a_writer_finds_again_what_somebody_takes_away_meanwhile(tmp_path):
    three_deltas(tmp_path)
    files = RegionFiles(D20, tmp_path / "D20" / "region.mmap")
    with files.writing(adds=True):
        assert files.open_newest().generation == 4
        delta(tmp_path, 4).unlink()
        assert files.open_newest().generation == 3


def restore(base: Path) -> None:
    """Put another region file in the place of D20's, as who goes back to a backup does."""
    builder = RegionBuilder(D20, "twenty")
    builder.add_layer(0, content_of(0), name="layer 0")
    builder.build_to_file(base / "backup")
    (base / "backup").replace(region_file(base, "D20"))


def take_away(base: Path) -> None:
    region_file(base, "D20").unlink()


@pytest.mark.parametrize("step", ["create", "sync", "rename", "sync directory"])
@pytest.mark.parametrize(("harm", "kept"), [(restore, [0]), (take_away, range(N_FIRST))])
def test_what_a_delta_follows_is_replaced_while_it_is_written(tmp_path, step, harm, kept):
    with build(tmp_path) as manager:

        def act(operation: str, path: str, *details: object) -> None:
            if operation == step:
                osmem.intercept = None
                harm(tmp_path)

        osmem.intercept = act
        try:
            learn(manager, 11)
        finally:
            osmem.intercept = None
    with load(tmp_path) as other:
        check(other, [*kept, 11])
        learn(other, 12)
    with load(tmp_path) as other:
        check(other, [*kept, 11, 12])


def become_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [become_a_loop, become_a_directory, Path.unlink, damage])
def test_a_delta_between_is_no_file_any_more_when_the_next_is_written(tmp_path, harm):
    """Nothing may lead back to the region file through it: what is mapped is written again."""
    three_deltas(tmp_path)
    with load(tmp_path) as manager:

        def act(operation: str, path: str, *details: object) -> None:
            if operation == "sync directory":
                osmem.intercept = None
                harm(delta(tmp_path, 3))

        osmem.intercept = act
        try:
            learn(manager, 11)
        finally:
            osmem.intercept = None
        check(manager, range(12))
        with load(tmp_path) as other:
            check(other, range(12))


def test_who_replaces_it_again_and_again_gets_an_error_and_nothing_is_lost(tmp_path):
    with build(tmp_path) as manager:
        made = manager.create_proto_dimension(D20, b"new", layer=11)

        def act(operation: str, path: str, *details: object) -> None:
            if operation == "rename" and "backup" not in str(details):
                osmem.intercept = None
                restore(tmp_path)
                osmem.intercept = act

        osmem.intercept = act
        try:
            with pytest.raises(RegionIOError, match="others replace it"):
                manager.crystallize_dimension(D20)
        finally:
            osmem.intercept = None
        assert names_in(tmp_path) == ["region.mmap"]
        assert manager.get_layer_info(made).state is LayerState.ACTIVE
        assert manager.crystallize_dimension(D20) == [made]


@pytest.mark.parametrize("step", ["create", "sync", "read", "rename", "sync directory"])
@pytest.mark.parametrize("is_new", [False, True])
def test_a_writer_without_its_lock_file_replaces_nothing(tmp_path, step, is_new):
    """Somebody removes the lock file, and another writer comes in the middle of a write."""
    if not is_new:
        build(tmp_path).close()
    with MmapManager(8, base_path=tmp_path) as mine, MmapManager(8, base_path=tmp_path) as other:
        if not is_new:
            mine.load_dimension(D20)
            other.load_dimension(D20)
        mine.create_proto_dimension(D20, b"mine", layer=11)
        other.create_proto_dimension(D20, b"other", layer=12)
        told = []

        def act(operation: str, path: str, *details: object) -> None:
            if operation == step and path.startswith(str(tmp_path / "D20")):
                osmem.intercept = None
                (tmp_path / "D20" / ".region.mmap.lock").unlink()
                told.extend(other.crystallize_dimension(D20))

        osmem.intercept = act
        try:
            told.extend(mine.crystallize_dimension(D20))
        except RegionIOError:  # the other has removed what was being written
            assert mine.get_layer_info(LayerId(D20, 11)).state is LayerState.ACTIVE
            told.extend(mine.crystallize_dimension(D20))
        finally:
            osmem.intercept = None
        assert told == [LayerId(D20, 12), LayerId(D20, 11)]
    with load(tmp_path) as manager:
        assert bytes(manager.access_layer(LayerId(D20, 11))) == b"mine"
        assert bytes(manager.access_layer(LayerId(D20, 12))) == b"other"


def test_a_system_that_renames_over_anything_is_told_of_once(tmp_path, caplog):
    def refuse(operation: str, path: str, *details: object) -> None:
        if operation == "rename alone":
            raise OSError(errno.ENOSYS, "no such call")

    with build(tmp_path) as manager:
        osmem.intercept = refuse
        try:
            learn(manager, 11)
            learn(manager, 12)
        finally:
            osmem.intercept = None
    assert [each.operation for each in caplog.records if each.event == "step_skipped"] == [
        "rename alone"
    ]
    with load(tmp_path) as other:
        check(other, [*range(N_FIRST), 11, 12])


def test_deltas_that_were_followed_stay_whatever_name_they_were_opened_under(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    with build(tmp_path) as manager:
        learn(manager, 8)
        (tmp_path / "D20").rename(first)
        (tmp_path / "D20").mkdir()
        region_file(tmp_path, "D20").symlink_to(first / "region.mmap")
        assert manager.refresh(D20) in (True, False)
        learn(manager, 9)
        shutil.copytree(first, second, copy_function=os.link)
        region_file(tmp_path, "D20").unlink()
        region_file(tmp_path, "D20").symlink_to(second / "region.mmap")
        learn(manager, 10)
        check(manager, range(11))
    assert {path.name for path in second.iterdir()} == {
        "region.mmap",
        "region.d2.mmap",
        "region.d3.mmap",
        "region.d4.mmap",
    }
    with load(tmp_path) as other:
        check(other, range(11))


def test_nothing_is_added_to_a_delta_in_the_place_of_a_region_file(tmp_path):
    three_deltas(tmp_path)
    shutil.copy(delta(tmp_path, 4), region_file(tmp_path, "D20"))
    before = names_in(tmp_path)
    with load(tmp_path) as manager:
        manager.create_proto_dimension(D20, b"new", layer=30)
        with pytest.raises(InvalidAccess, match="is a delta, whatever its name"):
            manager.crystallize_dimension(D20)
    assert names_in(tmp_path) == before


def test_two_writers_who_did_not_see_each_other(tmp_path):
    with loaded_and_then(tmp_path, Path.unlink) as manager, load(tmp_path) as other:
        check(other, range(9))
        learn(other, 12)
        made = manager.create_proto_dimension(D20, b"new", layer=30)
        with pytest.raises(RegionIOError, match="others written"):
            manager.crystallize_proto_dimension(made)
        assert manager.refresh(D20)
        manager.crystallize_proto_dimension(made)
        assert manager.list_layers(D20) == [LayerId(D20, n) for n in [*range(9), 12, 30]]


def test_a_stale_delta_is_removed_by_the_next_writer_not_by_readers(tmp_path, caplog):
    three_deltas(tmp_path)
    kept = {path: path.read_bytes() for path in (tmp_path / "D20").iterdir()}
    builder = RegionBuilder(D20, "another")
    builder.add_layer(0, bytes(100_000))
    builder.build_to_file(region_file(tmp_path, "D20"))
    for path, raw in kept.items():
        if path.name != "region.mmap":
            path.write_bytes(raw)
    with load(tmp_path) as manager:
        assert manager.list_layers(D20) == [LayerId(D20, 0)]
        assert len(names_in(tmp_path)) == 4
        assert ignored(caplog).keys() == {f"region.d{each}.mmap" for each in (2, 3, 4)}
        manager.create_proto_dimension(D20, b"new")
        manager.crystallize_dimension(D20)
        assert names_in(tmp_path) == ["region.d6.mmap", "region.mmap"]


def test_a_fork_of_the_chain_is_kept(tmp_path, caplog):
    three_deltas(tmp_path)
    hidden = delta(tmp_path, 3).rename(tmp_path / "hidden")
    with load(tmp_path) as manager:
        learn(manager, 12)  # follows the second, as the hidden one does
    hidden.rename(delta(tmp_path, 3))
    with load(tmp_path) as manager:
        check(manager, [*range(9), 12])
        learn(manager, 13)
    assert ignored(caplog)["region.d3.mmap"] == "others lead further"
    assert delta(tmp_path, 3).exists()


def test_what_was_replaced_is_passed_over_in_silence(tmp_path, caplog):
    # Whoever gathered deltas was killed before he removed them.
    with patch.object(s, "MAX_DELTAS", 2), build(tmp_path) as manager:
        learn(manager, 8)
        learn(manager, 9)
        kept = [(path, path.read_bytes()) for path in (delta(tmp_path, 2), delta(tmp_path, 3))]
        learn(manager, 10)
        assert names_in(tmp_path) == ["region.d4.mmap", "region.mmap"]
    for path, raw in kept:
        path.write_bytes(raw)
    with load(tmp_path) as manager:
        check(manager, range(11))
        assert ignored(caplog) == {}
        learn(manager, 11)
        assert names_in(tmp_path) == ["region.d4.mmap", "region.d5.mmap", "region.mmap"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_no_delta(tmp_path, caplog, make):
    with build(tmp_path):
        pass
    make(delta(tmp_path, 2))
    with load(tmp_path) as manager:
        check(manager, range(8))
        assert ignored(caplog) == {"region.d2.mmap": "it is no regular file"}
        learn(manager, 8)
        assert delta(tmp_path, 3).is_file()


def test_an_immutable_dimension_is_its_file_alone(tmp_path, caplog):
    for name, layers in (("region.mmap", 2), ("region.d2.mmap", 1)):
        builder = RegionBuilder("D09", "Ethical")
        for number in range(layers):
            builder.add_layer(number, content_of(number))
        builder.build_to_file(tmp_path / "D09" / name, replace_immutable=True)
    base = (tmp_path / "D09" / "region.mmap").read_bytes()
    resigned(
        tmp_path / "D09" / "region.d2.mmap",
        generation=2,
        follows_generation=1,
        follows_created_at=naive.get_field(base, "created_at"),
        follows_size=len(base),
    )
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D09")
        assert len(manager) == 2
    assert ignored(caplog) == {"region.d2.mmap": "D09 never changes"}


def test_a_delta_is_not_written_as_a_region_file(tmp_path):
    three_deltas(tmp_path)
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension(D20, delta(tmp_path, 3))
        assert manager.list_layers() == [LayerId(D20, 9)]
        made = manager.create_proto_dimension(D20, b"new", layer=40)
        with pytest.raises(InvalidAccess, match="is a delta"):
            manager.crystallize_proto_dimension(made)
    builder = RegionBuilder(D20, "anew")
    with pytest.raises(InvalidAccess, match="is a delta"):
        builder.build_to_file(delta(tmp_path, 3))


def test_a_chain_that_is_too_long_ends_in_time(tmp_path, caplog):
    three_deltas(tmp_path)
    with patch.object(s, "MAX_DELTAS", 2), load(tmp_path) as manager:
        check(manager, range(10))
    assert ignored(caplog).keys() == {"region.d4.mmap"}


# -- the command line ------------------------------------------------------------------------------


def test_the_command_line_knows_deltas(tmp_path):
    three_deltas(tmp_path)
    assert run("cat", "L20-09", "--data", tmp_path).stdout_bytes == content_of(9)
    shown = run("inspect", "D20", "--data", tmp_path).stdout
    assert "region.d2.mmap" in shown and "L20-10" in shown
    assert "4 of 4 region files intact" in run("verify", "--data", tmp_path).stdout
    assert "11" in run("discover", "--data", tmp_path).stdout
    raw = bytearray(delta(tmp_path, 4).read_bytes())
    raw[-1] ^= 1
    delta(tmp_path, 4).write_bytes(raw)
    assert "region.d4.mmap" in run("verify", "--data", tmp_path, exit_code=1).stderr
    raw[-1] ^= 1
    delta(tmp_path, 4).write_bytes(raw)
    assert "1 of 1 dimension folded" in run("fold", "--data", tmp_path).stdout
    assert "0 of 1 dimension folded" in run("fold", "D20", "--data", tmp_path).stdout
    assert names_in(tmp_path) == ["region.mmap"]
    run("fold", "D33", "--data", tmp_path, exit_code=1)


def test_verify_names_what_does_not_count(tmp_path):
    three_deltas(tmp_path)
    delta(tmp_path, 3).unlink()
    result = run("verify", "D20", "--data", tmp_path, exit_code=1)
    assert "what it follows is not there" in result.stderr


def test_a_layer_that_is_not_there(tmp_path):
    three_deltas(tmp_path)
    with load(tmp_path) as manager:
        with pytest.raises(LayerNotFound):
            manager.access_layer("L20-40")
        with pytest.raises(LayerNotFound):
            manager.access_many(["L20-09", "L20-40"])
