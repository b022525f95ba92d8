"""Which files a question is about, in which editions, and how they travel to workers."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

pytest.importorskip("distributed")
pytest.importorskip("dask.dataframe")

from support.object_stores import serving

import jessymem.distributed as jd
from jessymem import MmapManager, RegionBuilder, RemoteError
from jessymem.distributed import sources
from jessymem.distributed.groups import Group
from jessymem.distributed.open_files import BUDGET


def write(path: Path, number: int = 15, more: bytes = b"") -> Path:
    builder = RegionBuilder(number, "text")
    builder.add_layer(0, b"river %d" % number + more)
    builder.build_to_file(path)
    return path


def edition_alone(path: Path) -> str:
    """Tell the edition of one file as slowly as one likes."""
    begin = path.stem + "."
    beside = [
        each
        for each in path.parent.iterdir()
        if each.name == path.name or (each.name.startswith(begin) and each.suffix == ".mmap")
    ]
    found = sorted((each.name, each.stat()) for each in beside)
    return " / ".join(f"{name} {of.st_mtime_ns} {of.st_ino} {of.st_size}" for name, of in found)


NAMES = ["region.mmap", "region.d2.mmap", "region.dx.mmap.new", "region-2.mmap", "region-2.d1.mmap"]
OTHERS = [
    "a; b.mmap",
    "a; b.d2 9 9 9; c.mmap",
    "a.mmap",
    "a.b.mmap",
    "a.b.d2.mmap",
    "a.b.c.mmap",
    "a",
    "a.bin",
    "ab.mmap",
    ".mmap",
]


def test_editions_of_one_folder_are_those_of_each_file(tmp_path):
    for n_bytes, name in enumerate([*NAMES, *OTHERS]):
        (tmp_path / name).write_bytes(b"x" * n_bytes)
    paths = [tmp_path / name for name in [*NAMES, *OTHERS]]
    found = sources.local_editions(map(str, paths))
    assert found == {str(path): edition_alone(path) for path in paths}


@pytest.mark.skipif(os.name == "nt", reason="names are of other signs there")
@pytest.mark.parametrize("name", ["region.a; b.mmap", "region.\n 1 2; .mmap"])
def test_names_may_have_any_sign_in_them(tmp_path, name):
    path = write(tmp_path / "D15" / "region.mmap")
    (path.parent / name).write_bytes(b"")
    alone = write(tmp_path / name)
    for asked in (tmp_path, path, alone):
        counted = jd.count(asked, b"river").compute(scheduler="synchronous")
        assert counted["count"].tolist() == [1]


def test_what_is_gone_has_no_edition(tmp_path):
    gone = [str(tmp_path / "region.mmap"), str(tmp_path / "no" / "region.mmap")]
    assert sources.local_editions(gone) == dict.fromkeys(gone, "")


def counted_listings(monkeypatch) -> list[str]:
    listed = []
    scandir = os.scandir

    def counting(folder):
        listed.append(os.fspath(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counting)
    return listed


def test_a_folder_is_listed_once_however_many_files_it_has(tmp_path, monkeypatch):
    paths = [str(write(tmp_path / f"{number}.mmap", number)) for number in range(15, 45)]
    listed = counted_listings(monkeypatch)
    sources.local_editions(paths)
    assert len(listed) == 1
    listed.clear()
    assert len(sources.expand(f"{tmp_path}/*.mmap")) == 30
    assert len(listed) < 5
    listed.clear()
    assert len(jd.find(paths, b"river").compute(scheduler="synchronous")) == 30
    assert len([each for each in listed if each.rstrip("/") == str(tmp_path)]) < 5


def test_a_folder_is_walked_in_the_order_of_the_paths(tmp_path):
    for name in ("b", "a/c", "a", "a-b", "B/x/y"):
        write(tmp_path / name / "region.mmap")
    write(tmp_path / "a" / "other.mmap")
    (tmp_path / "c" / "region.mmap").mkdir(parents=True)
    write(tmp_path / "c" / "region.mmap" / "region.mmap")
    files = sources.expand(tmp_path)
    expected = sorted(str(path) for path in tmp_path.rglob("region.mmap") if path.is_file())
    assert [file.url for file in files] == [f"file://{path}" for path in expected]
    for file, name in zip(files, expected, strict=True):
        assert file == sources.expand(name)[0]


@pytest.mark.skipif(os.name == "nt", reason="links are not everybody's there")
def test_links_to_files_are_followed_and_to_folders_are_not(tmp_path):
    path = write(tmp_path / "there" / "region.mmap")
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "region.mmap").symlink_to(path)
    (tmp_path / "data" / "b").symlink_to(tmp_path / "there")
    (tmp_path / "data" / "c").mkdir()
    (tmp_path / "data" / "c" / "region.mmap").symlink_to(tmp_path / "nothing")
    (file,) = sources.expand(tmp_path / "data")
    assert file.url == f"file://{tmp_path}/data/a/region.mmap"
    assert file.n_bytes == path.stat().st_size


def learn(number: int, folder: Path, text: str) -> None:
    """Write a delta beside a region file."""
    with MmapManager(280, base_path=folder) as manager:
        manager.load_dimension(number)
        manager.create_proto_dimension(number, text)
        manager.crystallize_dimension(number)


@pytest.mark.skipif(os.name == "nt", reason="links are not everybody's there")
@pytest.mark.parametrize("name", ["region.mmap", "other.mmap"])
@pytest.mark.parametrize("is_chain", [False, True])
def test_what_lies_where_a_link_leads_is_part_of_the_edition(tmp_path, name, is_chain):
    """Deltas are read where the region file really is, under its name there."""
    there, here = tmp_path / "there" / "D15", tmp_path / "here" / "D15"
    path = write(there / "region.mmap", 15, os.urandom(200_000))
    path = path.rename(there / name)
    here.mkdir(parents=True)
    if is_chain:
        (tmp_path / "half.mmap").symlink_to(path)
        (here / "region.mmap").symlink_to("../../half.mmap")
    else:
        (here / "region.mmap").symlink_to(f"../../there/D15/{name}")

    def counts() -> list[int]:
        asked = (tmp_path / "here", here / "region.mmap", f"{tmp_path}/here/*/region.mmap")
        assert len({sources.expand(each)[0].edition for each in asked}) == 1
        counted = [jd.count(each, b"river").compute(scheduler="synchronous") for each in asked]
        assert len({found["count"].sum() for found in counted}) == 1
        return counted[0]["count"].tolist()

    assert counts() == [1]
    learn(15, tmp_path / "here", "river river")
    assert sorted(each.suffixes for each in there.glob("*.d*.mmap")) == [[".d2", ".mmap"]]
    assert counts() == [3]
    planned = jd.count(here, b"river")
    learn(15, tmp_path / "here", "river")
    while BUDGET.close_oldest():
        pass  # what is mapped is the edition that was planned
    with pytest.raises(RemoteError, match=r"it was .* and is .* by now"):
        planned.compute(scheduler="synchronous")
    assert counts() == [4]
    for each in there.glob("*.d*.mmap"):
        each.unlink()
    assert counts() == [1]
    write(tmp_path / "new.mmap", 15, b"river").replace(path)
    assert counts() == [2]


@pytest.mark.skipif(os.name == "nt", reason="links are not everybody's there")
def test_a_delta_where_a_link_leads_that_is_rewritten_in_its_place_is_found_out(tmp_path):
    path = write(tmp_path / "there" / "D15" / "region.mmap", 15, os.urandom(200_000))
    link = tmp_path / "here" / "D15" / "region.mmap"
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    learn(15, tmp_path / "here", "river")
    counted = jd.count(link, b"river")
    assert counted.compute(scheduler="synchronous")["count"].tolist() == [2]
    (delta,) = path.parent.glob("region.d*.mmap")
    delta.write_bytes(delta.read_bytes().replace(b"river", b"ocean"))
    with pytest.raises(RemoteError, match="by now"):
        counted.compute(scheduler="synchronous")


@pytest.mark.skipif(os.name == "nt", reason="links are not everybody's there")
def test_a_link_that_leads_nowhere_beside_one_file_fails_no_question(tmp_path):
    path = write(tmp_path / "D15" / "region.mmap", 15)
    write(tmp_path / "D16" / "region.mmap", 16)
    before = [file.edition for file in sources.expand(tmp_path)]
    loop = path.with_name("region.d9.mmap")
    loop.symlink_to(loop.name)
    for asked in (tmp_path, f"{tmp_path}/*/region.mmap"):
        counted = jd.count(asked, b"river").compute(scheduler="synchronous")
        assert counted["count"].tolist() == [1, 1]
        after = [file.edition for file in sources.expand(asked)]
        assert after[0] != before[0] and after[1] == before[1]


@pytest.mark.skipif(os.name == "nt", reason="links are not everybody's there")
def test_a_region_file_that_cannot_be_reached_is_an_error(tmp_path):
    """Its folder would be missing from the answer, and nobody would know."""
    write(tmp_path / "D15" / "region.mmap")
    (tmp_path / "D16").mkdir()
    (tmp_path / "D16" / "region.mmap").symlink_to("region.mmap")
    with pytest.raises(RemoteError, match="symbolic links"):
        sources.expand(tmp_path)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    """Its files would be missing from the answer, and nobody would know."""
    write(tmp_path / "a" / "region.mmap")
    write(tmp_path / "b" / "region.mmap")
    scandir = os.scandir

    def refusing(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(RemoteError, match="Permission denied"):
        sources.expand(tmp_path)


def test_groups_are_of_about_so_many_bytes_and_of_all_files(tmp_path):
    for number in range(15, 35):
        write(tmp_path / f"D{number}" / "region.mmap", number)
    files = sources.expand(tmp_path)
    n_bytes = files[0].n_bytes
    groups = Group.several(files, 3 * n_bytes)
    assert [file for group in groups for file in group.files] == files
    assert [group.first for group in groups] == list(range(0, 20, 3))
    assert all(group.n_bytes == sum(file.n_bytes for file in group.files) for group in groups)
    assert [group.n_files for group in Group.several(files, 1)] == [1] * 20


def test_a_group_travels_with_its_files_and_options():
    options = (("key", "k"), ("retries", 3))
    files = [
        sources.RemoteFile(f"s3://b/D{n}/region.mmap", n, f"ETag {n}", 0, options) for n in (1, 2)
    ]
    there = pickle.loads(pickle.dumps(Group.of(7, files)))
    assert there.files == files
    assert (there.first, there.token) == (7, Group.of(7, files).token)


def test_tokens_tell_editions_and_urls_apart():
    file = sources.RemoteFile("s3://b/D15/region.mmap", 9, "ETag a")
    tokens = {
        Group.of(0, [file]).token,
        Group.of(0, [file._replace(edition="ETag b")]).token,
        Group.of(0, [file._replace(url="s3://b/D16/region.mmap")]).token,
        Group.of(0, [file, file]).token,
    }
    assert len(tokens) == 4
    assert Group.of(0, [file]).token in tokens


def test_a_store_that_tells_no_edition_is_asked_anew_each_time():
    """Dask would take an answer that it still has for that to the same question."""
    with serving() as store:
        store.has_tags = False
        builder = RegionBuilder(15, "text")
        builder.add_layer(0, "river")
        region = builder.build_to_memory()
        store.files["region.mmap"] = region.read_content(0, region.size)
        url = store.url + "region.mmap"
        assert jd.count(url, b"river")._name != jd.count(url, b"river")._name
        store.has_tags = True
        assert jd.count(url, b"river")._name == jd.count(url, b"river")._name
