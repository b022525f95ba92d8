"""A build goes on where it was: what has not changed is left alone, and nothing is half written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from support.processes import with_support

import jessymem
from jessymem import (
    ConfigError,
    DuplicateDimension,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    osmem,
)
from jessymem.ingest import receipts

LONG_AGO = 1_000_000_000 * 10**9


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "src"
    for folder, files in {"a": "xy", "b": "z"}.items():
        (root / folder).mkdir(parents=True)
        for name in files:
            (root / folder / name).write_text(f"{folder}/{name}")
    return root


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def sure(monkeypatch):
    """Take the present for long after the files were written, so that times are believed."""
    monkeypatch.setattr(receipts, "_UNSURE_NS", 0)


@pytest.fixture
def opened(intercept):
    """Which files of the source are read."""
    paths = []

    def note(call, path, *rest):
        if call == "open" and "src" in str(path).split(os.sep) and not str(path).endswith("src"):
            paths.append("/".join(str(path).split(os.sep)[-2:]))

    intercept(note)
    return paths


def outcomes(report):
    kinds = {(True, False): "replaced", (False, True): "unchanged", (False, False): "new"}
    return {
        str(each.dimension_id): kinds[each.is_replaced, each.is_unchanged]
        for each in report.dimensions
    }


def marks(data):
    """What tells whether a region file was written again."""
    paths = sorted(data.glob("D*/region.mmap"))
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def contents(data, dimension="D15"):
    with MmapManager(base_path=data) as manager:
        manager.load_dimension(dimension)
        return [bytes(manager.access_layer(layer)).decode() for layer in manager.list_layers()]


# -- a rerun ---------------------------------------------------------------------------------------


def test_what_has_not_changed_is_neither_read_nor_written(source, data, opened):
    first = jessymem.build(source, data)
    assert outcomes(first) == {"D15": "new", "D16": "new"}
    before = marks(data)
    opened.clear()
    again = jessymem.build(source, data)
    assert outcomes(again) == {"D15": "unchanged", "D16": "unchanged"}
    assert opened == []
    assert marks(data) == before
    assert (again.n_layers, again.n_bytes) == (first.n_layers, first.n_bytes)
    assert [each.generation for each in again.dimensions] == [1, 1]


CHANGES = {
    "other content": lambda folder: (folder / "x").write_text("other content"),
    "content of one length": lambda folder: (folder / "x").write_text("a/X"),
    "one more": lambda folder: (folder / "new").write_text("n"),
    "one less": lambda folder: (folder / "y").unlink(),
    "another name": lambda folder: (folder / "x").rename(folder / "w"),
    "a manifest": lambda folder: (folder / "dimension.toml").write_text(
        "[layers.x]\nfrequency = 2\n"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_changed_is_written_again(change, source, data):
    jessymem.build(source, data)
    before = marks(data)
    CHANGES[change](source / "a")
    report = jessymem.build(source, data)
    assert outcomes(report) == {"D15": "replaced", "D16": "unchanged"}
    after = marks(data)
    assert after["D16"] == before["D16"] and after["D15"] != before["D15"]
    fresh = data.parent / "fresh"
    jessymem.build(source, fresh)
    assert contents(data) == contents(fresh)
    again = jessymem.build(source, data)
    assert outcomes(again) == {"D15": "unchanged", "D16": "unchanged"}


def test_a_manifest_that_changes_or_goes_is_noticed(source, data):
    told = source / "a" / "dimension.toml"
    told.write_text("[layers.x]\ndepth = 1\n")
    jessymem.build(source, data)
    told.write_text("[layers.x]\ndepth = 2\n")
    assert outcomes(jessymem.build(source, data))["D15"] == "replaced"
    told.unlink()
    assert outcomes(jessymem.build(source, data))["D15"] == "replaced"


def test_what_was_only_touched_is_read_and_not_written(source, data, opened):
    jessymem.build(source, data)
    before = marks(data)
    (source / "a" / "x").touch()
    opened.clear()
    assert outcomes(jessymem.build(source, data)) == {"D15": "unchanged", "D16": "unchanged"}
    assert sorted(opened) == ["a/x", "a/y"]
    assert marks(data) == before
    opened.clear()
    jessymem.build(source, data)  # that was noted
    assert opened == []


def test_content_that_changed_under_the_old_time_is_noticed(source, data):
    path = source / "a" / "x"
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    jessymem.build(source, data)
    path.write_text("a/X")
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    if path.stat().st_ctime_ns < LONG_AGO + 1:
        pytest.skip("no time but that one")
    assert outcomes(jessymem.build(source, data))["D15"] == "replaced"
    assert contents(data)[0] == "a/X"


def test_times_that_are_too_near_are_not_believed(source, data, opened, monkeypatch):
    monkeypatch.setattr(receipts, "_UNSURE_NS", 3600 * 10**9)
    jessymem.build(source, data)
    first = receipts.read_receipt(data / "D15").looked_ns
    opened.clear()
    assert outcomes(jessymem.build(source, data)) == {"D15": "unchanged", "D16": "unchanged"}
    assert sorted(opened) == ["a/x", "a/y", "b/z"]
    later = receipts.read_receipt(data / "D15").looked_ns
    monkeypatch.setattr(receipts, "_UNSURE_NS", later - first)
    opened.clear()
    jessymem.build(source, data)  # what was read then is sure now
    assert opened == []


def test_other_options_are_another_build(source, data):
    jessymem.build(source, data)
    (source / "a" / "x").rename(source / "a" / "x.txt")
    jessymem.build(source, data)
    assert outcomes(jessymem.build(source, data, names="stem"))["D15"] == "replaced"
    named = jessymem.build(source, data, names=lambda path: path.removesuffix(".txt"))
    assert outcomes(named)["D15"] == "unchanged"  # by content: a function has no name
    noted = receipts.read_receipt(data / "D15").built
    assert "files" not in noted and noted["source"] == str(source / "a")


# -- what is in the way ----------------------------------------------------------------------------


def test_what_was_learned_since_is_not_replaced(source, data):
    jessymem.build(source, data)
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        layer = manager.create_proto_dimension("D15", "learned")
        manager.crystallize_proto_dimension(layer)
    before = marks(data)
    with pytest.raises(DuplicateDimension, match=r"D15: on disk under .* force is not set"):
        jessymem.build(source, data)
    assert marks(data) == before and "learned" in contents(data)
    report = jessymem.build(source, data, force=True)
    assert outcomes(report) == {"D15": "replaced", "D16": "replaced"}
    assert contents(data) == ["a/x", "a/y"]


def test_a_region_file_of_others_is_left_alone_unless_it_is_the_same(source, data):
    builder = RegionBuilder("D15", "a")
    builder.append_layer("a/x", name="x")
    path = data / "D15" / "region.mmap"
    builder.build_to_file(path)
    with pytest.raises(DuplicateDimension, match="D15"):
        jessymem.build(source, data)
    assert not (data / "D16").exists()
    builder.append_layer("a/y", name="y")
    builder.build_to_file(path)
    before = marks(data)
    assert outcomes(jessymem.build(source, data)) == {"D15": "unchanged", "D16": "new"}
    assert marks(data)["D15"] == before["D15"]


def test_without_resuming_everything_is_in_the_way(source, data):
    jessymem.build(source, data)
    with pytest.raises(DuplicateDimension, match="D15, D16: on disk"):
        jessymem.build(source, data, resume=False)
    report = jessymem.build(source, data, resume=False, force=True)
    assert outcomes(report) == {"D15": "replaced", "D16": "replaced"}


def test_an_immutable_dimension_is_replaced_by_force_only(source, data):
    (source / "a").rename(source / "D09-a")
    jessymem.build(source, data)
    assert outcomes(jessymem.build(source, data))["D09"] == "unchanged"
    (source / "D09-a" / "x").write_text("other")
    with pytest.raises(DuplicateDimension, match="D09"):
        jessymem.build(source, data)
    assert outcomes(jessymem.build(source, data, force=True))["D09"] == "replaced"


def test_a_damaged_region_file_is_in_the_way(source, data):
    jessymem.build(source, data)
    (data / "D16" / "region.mmap").write_bytes(b"damaged")
    (source / "b").rename(source / "D16-b")
    with pytest.raises(DuplicateDimension, match="D16"):
        jessymem.build(source, data)


# -- receipts that say something else --------------------------------------------------------------


def rewrite(data, change):
    """Change a receipt as somebody would who knows how it is made."""
    path = data / "D15" / "build.json"
    record = json.loads(path.read_text())
    record.pop("xxh3")
    change(record)
    record["xxh3"] = receipts._checksum(record) if isinstance(record, dict) else ""
    path.write_text(json.dumps(record))


HOSTILE = {
    "none": None,
    "empty": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "a number": b"1" * 5_000,
    "null": b"null",
    "no checksum": lambda text: text.replace('"xxh3"', '"xxh4"'),
    "another checksum": lambda text: text.replace('"name": "a"', '"name": "b"'),
    "cut": lambda text: text[:-20],
    "longer than any": lambda text: text + " " * 2**26,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_receipt_that_is_none_costs_time_and_nothing_else(kind, source, data, opened):
    jessymem.build(source, data)
    path, hostile = data / "D15" / "build.json", HOSTILE[kind]
    if hostile is None:
        path.unlink()
    elif isinstance(hostile, bytes):
        path.write_bytes(hostile)
    else:
        path.write_text(hostile(path.read_text()))
    before = marks(data)
    opened.clear()
    assert outcomes(jessymem.build(source, data)) == {"D15": "unchanged", "D16": "unchanged"}
    assert sorted(opened) == ["a/x", "a/y"]
    assert marks(data) == before
    (source / "a" / "x").write_text("changed")
    assert outcomes(jessymem.build(source, data))["D15"] == "replaced"  # there is one again


TYPES = {
    "edition": lambda record: record.update(edition=[1, 2]),
    "edition of texts": lambda record: record.update(edition=["x", 0, 0]),
    "infinite": lambda record: record.update(edition=[float("inf"), 0, 0]),
    "built": lambda record: record.update(built=[]),
    "no time": lambda record: record.update(looked_ns="now"),
    "missing": lambda record: record.pop("built"),
    "another edition": lambda record: record.update(edition=[1, 1, 1]),
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_receipt_of_other_types_is_not_believed(kind, source, data):
    jessymem.build(source, data)
    rewrite(data, TYPES[kind])
    (source / "a" / "x").write_text("changed")
    with pytest.raises(DuplicateDimension, match="D15"):
        jessymem.build(source, data)


def test_a_receipt_of_an_older_file_is_not_believed(source, data):
    jessymem.build(source, data)
    old = (data / "D15" / "build.json").read_text()
    (source / "a" / "x").write_text("changed")
    jessymem.build(source, data)
    (source / "a" / "x").write_text("a/x")
    (data / "D15" / "build.json").write_text(old)
    with pytest.raises(DuplicateDimension, match="D15"):
        jessymem.build(source, data)


def test_a_receipt_that_cannot_be_written_is_said_and_no_error(source, data, intercept, caplog):
    def refuse(call, path, *rest):
        if call == "rename" and str(path).endswith("build.json"):
            raise OSError(28, "No space left on device")

    intercept(refuse)
    jessymem.build(source, data)
    assert "cannot write" in caplog.text and "build.json" in caplog.text
    assert osmem.list_directory(data / "D15") == ["region.mmap"]
    intercept(None)
    assert outcomes(jessymem.build(source, data)) == {"D15": "unchanged", "D16": "unchanged"}


# -- killed ----------------------------------------------------------------------------------------

KILLED = """
import os, shutil, sys
from pathlib import Path
import jessymem
from jessymem import MmapRegion, osmem

source, data = map(Path, sys.argv[1:])

def run(n_calls):
    left = iter(range(n_calls))
    def intercept(*call):
        if next(left, None) is None:
            os._exit(9)
    osmem.intercept = intercept
    jessymem.build(source, data)
    os._exit(0)

jessymem.build(source, data)  # whatever is imported late
n_killed, done = 0, {1: 0, 2: 0}
while True:
    if n_killed % 2:
        shutil.rmtree(data)
    else:  # as after a change
        for name in ("a/x", "b/z"):
            (source / name).write_text(f"{name} {n_killed}")
    pid = os.fork() or run(n_killed)
    if not os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        break
    n_killed += 1
    for path in data.glob("D*/region.mmap"):
        assert MmapRegion.from_file(path.parent.name, path).verify_integrity()
    report = jessymem.build(source, data)
    done[len(report.written)] = done.get(len(report.written), 0) + 1
    for path in data.glob("D*/region.mmap"):
        assert MmapRegion.from_file(path.parent.name, path).verify_integrity()
    names = ["build.json", "region.mmap"]
    found = {path.name: sorted(each.name for each in path.iterdir()) for path in data.iterdir()}
    for there in found.values():  # a lock that nobody holds may be left
        there[:] = [name for name in there if not name.endswith(".lock")]
    assert found == {"D15": names, "D16": names}, (n_killed, found)
    assert not jessymem.build(source, data).written
print(n_killed, done)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_build_that_is_killed_at_any_call_goes_on(source, data):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(data)]
    environment = with_support({"COVERAGE_PROCESS_CONFIG": ""})
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    n_killed, done = result.stdout.split(maxsplit=1)
    assert int(n_killed) > 30
    assert "1: 0" not in done  # now and then one of the two was done


def test_an_interrupted_build_keeps_what_it_has_written(source, data):
    def stop(n_done, n_all):
        if n_done == n_all:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jessymem.build(source, data, progress=stop)
    assert sorted(path.name for path in data.iterdir()) == ["D15"]
    before = marks(data)
    assert outcomes(jessymem.build(source, data)) == {"D15": "unchanged", "D16": "new"}
    assert marks(data)["D15"] == before["D15"]


# -- a dry run -------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_and_writes_nothing(source, data):
    report = jessymem.build(source, data, dry_run=True)
    assert report.is_dry_run and outcomes(report) == {"D15": "new", "D16": "new"}
    assert (report.n_layers, report.n_bytes) == (3, 9)
    assert not data.exists()
    jessymem.build(source, data)
    (source / "a" / "x").write_text("changed")
    (source / "b" / "z").touch()
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    report = jessymem.build(source, data, dry_run=True)
    assert outcomes(report) == {"D15": "replaced", "D16": "unchanged"}
    assert [str(each.dimension_id) for each in report.written] == ["D15"]
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_a_dry_run_finds_what_a_build_would_refuse(source, data):
    (source / "a" / "bad.npy").write_bytes(b"bad")
    with pytest.raises(ConfigError, match=r"bad\.npy"):
        jessymem.build(source, data, dry_run=True)


def test_progress_ends_with_all_of_it(source, data):
    seen = []
    jessymem.build(source, data, progress=lambda *step: seen.append(step))
    assert seen == [(3, 9), (6, 9), (9, 9)]
    seen.clear()
    jessymem.build(source, data, progress=lambda *step: seen.append(step))
    assert seen == [(6, 9), (9, 9)]
    assert MmapRegion.from_file("D15", data / "D15" / "region.mmap").generation == 1


def test_another_source_of_the_same_name_is_in_the_way(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "notes").mkdir(parents=True)
        (tmp_path / place / "notes" / "a.md").write_text(place)
    out = tmp_path / "out"
    jessymem.build(tmp_path / "one" / "notes", out)
    before = (out / "D15" / "region.mmap").read_bytes()
    with pytest.raises(DuplicateDimension, match="not as a build of this source left it"):
        jessymem.build(tmp_path / "two" / "notes", out)
    assert (out / "D15" / "region.mmap").read_bytes() == before
    (tmp_path / "one" / "notes" / "a.md").write_text("changed")
    assert len(jessymem.build(tmp_path / "one" / "notes", out).written) == 1


def test_names_by_a_function_are_built_again_too(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("one")
    for text in ("one", "two"):
        (tmp_path / "notes" / "a.md").write_text(text)
        report = jessymem.build(tmp_path / "notes", tmp_path / "out", names=str.upper)
        assert len(report.written) == 1


@pytest.mark.parametrize("is_there", [False, True])
def test_what_was_written_since_the_plan_is_not_replaced(tmp_path, is_there):
    (tmp_path / "notes").mkdir()
    source = tmp_path / "notes" / "a.md"
    source.write_text("one")
    out = tmp_path / "out"
    if is_there:
        jessymem.build(tmp_path / "notes", out)
        source.write_text("two")

    def learn(n_done, n_all):
        with MmapManager(MemoryConfig(base_path=out, simulation="never")) as manager:
            if is_there:
                manager.load_dimension("D15")
            manager.create_proto_dimension("D15", b"learned meanwhile", layer=9)
            manager.crystallize_dimension("D15")

    with pytest.raises(DuplicateDimension):
        jessymem.build(tmp_path / "notes", out, progress=learn)
    with MmapManager(base_path=out) as manager:
        manager.load_dimension("D15")
        assert bytes(manager.access_layer("L15-09")) == b"learned meanwhile"
