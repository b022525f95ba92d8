"""Layers to files of other formats, and back: nothing is lost, and nothing is written outside."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import zipfile

import numpy as np
import pytest
from support.arrays import KINDS, check_same

import jessymem
from jessymem import (
    ConfigError,
    DimensionNotFound,
    LayerId,
    MmapManager,
    RegionBuilder,
    RegionIOError,
)
from jessymem.ingest.file_names import FileNames, escape

FORMATS = ["files", "npz", "safetensors", "arrow", "parquet"]
LIBRARIES = {"safetensors": "safetensors", "arrow": "pyarrow", "parquet": "pyarrow"}


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def need(format):
    if format in LIBRARIES:
        pytest.importorskip(LIBRARIES[format])


def write(data, layers, dimension="D15", name="notes"):
    """Write layers: (number, content, description)."""
    builder = RegionBuilder(dimension, name)
    for number, content, description in layers:
        builder.add_layer(number, content, **description)
    return builder.build_to_file(data / str(builder.dimension_id) / "region.mmap")


def read(data, dimension="D15"):
    """All that there is to know of a dimension's layers, by number."""
    with MmapManager(base_path=data) as manager:
        manager.load_dimension(dimension)
        found = {}
        for layer in manager.list_layers():
            info, context = manager.get_layer_info(layer), manager.load_layer_context(layer)
            order = manager.array(layer).flags.f_contiguous if info.dtype is not None else None
            found[layer.layer] = (
                *(bytes(context.content), info.name, info.encoding, info.frequency, info.depth),
                *(info.keywords, info.parent, info.dtype, info.shape, order),
                context.dimension_name,
            )
        return found


def there_and_back(data, format, dimension="D15"):
    out, again = data.parent / f"out-{format}", data.parent / f"again-{format}"
    report = jessymem.export(data, out, format)
    jessymem.build([each.path for each in report.dimensions], again)
    return read(again, dimension)


PLAIN = [
    (0, "\u00e9\u00e8", {"name": "a.txt", "keywords": ["k", "\u6a5f", ""], "frequency": 1.1}),
    (3, b"\xff\0\x01", {"name": "deep/b.bin", "depth": 255, "parent": "L15-00"}),
    (4, b"valid text, kept as bytes", {"name": "c", "parent": "L07-65535"}),
    (5, "", {"name": ""}),
    (7, b"", {"name": "a.txt", "frequency": -3.0e38}),
    (9, np.arange(6.0).reshape(2, 3), {"name": "grid", "keywords": ["x"]}),
    (10, np.array(2.5, "f4"), {"name": "scalar.npy"}),
    (11, b"bytes called so", {"name": "raw.npy"}),
    (12, "text called so", {"name": "GRID.NPY"}),
    (300, "last", {"name": "it\u2028\x7f\"'\\quoted\n\ud7ff\U0001f600", "frequency": 1e-40}),
    (65_535, np.zeros((0, 2), ">i2"), {"name": "none"}),
]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_exported_is_built_again_as_it_was(format, data):
    need(format)
    write(data, PLAIN)
    assert there_and_back(data, format) == read(data)


KEPT = {name: array for name, array in KINDS.items() if name != "a name that is no text"}


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0:UserWarning")
@pytest.mark.parametrize("format", FORMATS)
def test_arrays_of_every_kind_come_back(format, data, tmp_path):
    need(format)
    arrays = [(i, array, {"name": name}) for i, (name, array) in enumerate(KEPT.items())]
    region = write(data, arrays)
    out, again = tmp_path / "out", tmp_path / "again"
    report = jessymem.export(data, out, format)
    jessymem.build([each.path for each in report.dimensions], again)
    with MmapManager(base_path=again) as manager:
        manager.load_dimension("D15")
        for i, array, _ in arrays:
            found, expected = manager.array(LayerId(15, i)), region.read_array(LayerId(15, i))
            if format == "safetensors":  # tensors have one order
                assert (found.dtype, found.shape) == (array.dtype, array.shape)
                assert repr(found.tolist()) == repr(expected.tolist())
            elif array.dtype.names is None:
                check_same(found, expected)
            else:
                assert repr(found.tolist()) == repr(expected.tolist())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["", "x" * 64, "../../up", "a/b\\c", ".", "CON", "\u202e"])
def test_names_of_dimensions_lead_nowhere(format, name, data, tmp_path):
    need(format)
    write(data, [(0, "x", {})], "D20", name)
    report = jessymem.export(data, tmp_path / "out", format)
    (exported,) = report.dimensions
    assert exported.path.parent == tmp_path / "out"
    assert os.listdir(tmp_path / "out") == [exported.path.name]
    again = tmp_path / "again"
    assert jessymem.build(exported.path, again).dimensions[0].name == name
    assert read(again, "D20") == read(data, "D20")


HOSTILE = [
    "..",
    ".",
    "/",
    "//",
    "/etc/passwd",
    "../../../escaped",
    "a/../../../../escaped",
    "~/escaped",
    "C:\\windows",
    "\\\\server\\share",
    "nul\0l",
    "new\nline",
    "con",
    "CON.txt",
    "aux/lpt1.md",
    "trailing. ",
    "a/",
    "a",
    "A",
    "a/b",
    "a/b/c",
    "a//b",
    "\u00e9",
    "e\u0301",
    "dimension.toml",
    "Dimension.TOML",
    "jessymem.json",
    "__metadata__",
    ".hidden",
    "deep/.hidden/x",
    "00-numbered",
    "7-numbered",
    "100%",
    "%2F",
    "x" * 300,
    "\u5730" * 300,
    "x" * 299 + "y",
    "/".join("d" * 50),
    "/".join(["long" * 30] * 12),
    "-rf",
    '*?<>|:"',
    "\u202egnp.exe",
    "same",
    "same",
    "same",
    "same~L15-42",
    "00",
    "42~same",
]


@pytest.mark.parametrize("format", FORMATS)
def test_names_of_layers_lead_nowhere(format, data, tmp_path):
    need(format)
    names = [*HOSTILE, *random.Random(1).sample(HOSTILE, len(HOSTILE)), "", ""]
    write(data, [(i, f"{i}", {"name": name}) for i, name in enumerate(names)])
    base = tmp_path / "deep" / "er"
    base.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*") if base not in path.parents}
    (exported,) = jessymem.export(data, base / "out", format).dimensions
    assert {path for path in tmp_path.rglob("*") if base not in path.parents} == before
    if format == "files":
        paths = [path for path in exported.path.rglob("*") if path.is_file()]
        assert len(paths) == len(names) + 1
        folded = {str(path).casefold() for path in paths}
        assert len(folded) == len(paths)
        assert all(part[0] != "." for path in paths for part in path.relative_to(base).parts)
    if format == "npz":
        members = zipfile.ZipFile(exported.path).namelist()
        assert len(members) == len(names) + 1
        assert not any(each.startswith("/") or ".." in each.split("/") for each in members)
    jessymem.build(exported.path, tmp_path / "again")
    assert read(tmp_path / "again") == read(data)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain name.txt", "plain name.txt"),
        ("\u00e9\u00e8 \u6a5f", "\u00e9\u00e8 \u6a5f"),
        ("", "%"),
        ("..", "%2E%2E"),
        (".x", "%2Ex"),
        ("x.", "x%2E"),
        ("a/b", "a%2Fb"),
        ("50%", "50%25"),
        ("nul", "%6Eul"),
        ("COM1.tar", "%43OM1.tar"),
        ("null", "null"),
        ("\x7f\u202e", "%7F%E2%80%AE"),
    ],
)
def test_names_as_names_of_files(name, expected):
    assert escape(name) == expected


def test_long_names_are_cut_and_still_differ():
    first, second = escape("x" * 500 + "1"), escape("x" * 500 + "2")
    assert first != second and len(first) == len(second) == 150
    assert len(escape("\u5730" * 500).encode()) <= 150


def test_file_names_never_clash():
    names = FileNames(["taken"])
    given = [
        names.give(name, i, ending)
        for i, (name, ending) in enumerate(
            [
                *[("TAKEN", ""), ("a/b", ""), ("a", ""), ("A/b", ""), ("a/b/c", "")],
                *[("x", ".npy"), ("x.NPY", ".npy"), ("05~x.NPY", ""), ("", ""), ("", "")],
            ]
        )
    ]
    assert len({name.casefold() for name in given}) == len(given)
    assert given[1] == "a/b" and given[2] == "02~a" and given[5] == "x.npy"


# -- what others read ------------------------------------------------------------------------------


def test_numpy_reads_an_npz(data, tmp_path):
    write(data, PLAIN)
    jessymem.export(data, tmp_path / "out", "npz")
    with np.load(tmp_path / "out" / "D15-notes.npz") as archive:
        assert (archive["grid"] == np.arange(6.0).reshape(2, 3)).all()
        assert archive["a.txt"] == "\u00e9\u00e8".encode()
        assert archive["scalar"] == 2.5
        told = json.loads(archive["jessymem.json"])
    assert told["name"] == "notes" and told["layers"]["grid"]["layer"] == 9


def test_safetensors_reads_tensors(data, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    write(data, [*PLAIN, (20, np.asfortranarray(np.arange(6.0).reshape(2, 3)), {"name": "f"})])
    jessymem.export(data, tmp_path / "out", "safetensors")
    found = numpy.load_file(tmp_path / "out" / "D15-notes.safetensors")
    assert (found["grid"] == np.arange(6.0).reshape(2, 3)).all()
    assert (found["f"] == np.arange(6.0).reshape(2, 3)).all()
    assert bytes(found["a.txt"]) == "\u00e9\u00e8".encode()
    assert found["scalar.npy"] == 2.5 and found["scalar.npy"].shape == ()


@pytest.mark.parametrize("format", ["arrow", "parquet"])
def test_arrow_reads_rows(format, data, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    write(data, PLAIN)
    jessymem.export(data, tmp_path / "out", format)
    path = tmp_path / "out" / f"D15-notes.{format}"
    if format == "parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
    else:
        with pyarrow.OSFile(str(path)) as file:
            table = pyarrow.ipc.open_file(file).read_all()
    columns = "id name content encoding frequency depth keywords parent"
    assert table.column_names == columns.split()
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == len(PLAIN)
    assert rows["L15-03"]["parent"] == "L15-00" and rows["L15-03"]["depth"] == 255
    assert rows["L15-00"]["keywords"] == ["k", "\u6a5f", ""]
    grid = np.load(io.BytesIO(rows["L15-09"]["content"]))
    assert rows["L15-09"]["encoding"] == "npy" and (grid == PLAIN[5][1]).all()


def test_files_are_as_they_were(data, tmp_path):
    source = tmp_path / "src" / "notes"
    (source / "deep").mkdir(parents=True)
    (source / "00-first.md").write_text("first")
    (source / "deep" / "second.bin").write_bytes(b"\xff")
    np.save(source / "third.npy", np.arange(3))
    jessymem.build(tmp_path / "src", data)
    jessymem.export(data, tmp_path / "out")
    out = tmp_path / "out" / "D15-notes"
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}
    del files["dimension.toml"]
    third = (source / "third.npy").read_bytes()
    assert files == {"first.md": b"first", os.path.join("deep", "second.bin"): b"\xff"} | {
        "third.npy": third
    }


# -- from where, and to where ----------------------------------------------------------------------


def test_a_manager_writes_what_is_loaded_and_learned(data, tmp_path):
    write(data, PLAIN)
    write(data, [(0, "other", {"name": "o"})], "D16", "other")
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        manager.create_proto_dimension("D15", np.arange(3.0), layer=20, name="learned")
        manager.create_proto_dimension("D30", "proto", name="p", depth=3)
        manager.overlay_layer("L15-00", "more")
        report = jessymem.export(manager, tmp_path / "out")
        with pytest.raises(DimensionNotFound, match="D16 is not loaded"):
            jessymem.export(manager, tmp_path / "out", dimensions=["D16"])
    assert [str(each.dimension_id) for each in report.dimensions] == ["D15", "D30"]
    jessymem.build([each.path for each in report.dimensions], tmp_path / "again")
    found, before = read(tmp_path / "again"), read(data)
    assert found.pop(20)[0] == np.arange(3.0).tobytes()
    assert found.pop(0)[0] == "\u00e9\u00e8\nmore".encode() and before.pop(0)
    assert found == before
    assert read(tmp_path / "again", "D30")[0][:5] == (b"proto", "p", "text", 1.0, 3)


def test_what_was_learned_on_disk_is_written_too(data, tmp_path):
    write(data, PLAIN)
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        manager.crystallize_proto_dimension(manager.create_proto_dimension("D15", "new", layer=1))
    assert there_and_back(data, "files") == read(data)
    assert read(data)[1][0] == b"new"


def test_dimensions_that_are_asked_for(data, tmp_path):
    for number in (15, 16, 17):
        write(data, [(0, f"{number}", {})], f"D{number}")
    report = jessymem.export(data, tmp_path / "out", "npz", dimensions=["D17", 15, "D17"])
    assert [each.path.name for each in report.dimensions] == ["D15-notes.npz", "D17-notes.npz"]
    assert (report.format, report.n_layers, report.n_bytes) == ("npz", 2, 4)
    with pytest.raises(DimensionNotFound, match="D20"):
        jessymem.export(data, tmp_path / "out2", dimensions=["D15", "D20"])
    assert not (tmp_path / "out2").exists()


def test_a_file_that_no_manager_could_load_is_written_all_the_same(data, tmp_path):
    write(data, [(0, b"x" * (25 * 2**20), {"name": "large"})], "D14", "Security")
    assert there_and_back_of(data, tmp_path) == b"x" * (25 * 2**20)


def there_and_back_of(data, tmp_path):
    jessymem.export(data, tmp_path / "out")
    return (tmp_path / "out" / "D14-Security" / "large").read_bytes()


@pytest.mark.parametrize("format", ["files", "npz"])
def test_what_is_there_is_replaced_by_force_only(format, data, tmp_path):
    write(data, [(0, "old", {"name": "a"}), (1, "gone", {"name": "b"})])
    write(data, [(0, "old", {"name": "a"})], "D16")
    out = tmp_path / "out"
    (first, second) = jessymem.export(data, out, format).dimensions
    write(data, [(0, "new", {"name": "a"})])
    before = sorted(path.stat().st_mtime_ns for path in out.rglob("*"))
    with pytest.raises(ConfigError, match=r"D15-notes.*: there is something already"):
        jessymem.export(data, out, format)
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == before
    jessymem.export(data, out, format, force=True)
    assert sorted(os.listdir(out)) == sorted([first.path.name, second.path.name])
    jessymem.build(first.path, tmp_path / "again")
    assert read(tmp_path / "again")[0][0] == b"new" and len(read(tmp_path / "again")) == 1


def test_a_folder_that_no_export_wrote_is_never_replaced(data, tmp_path):
    write(data, PLAIN)
    for number, make in enumerate(
        (
            lambda path: path.mkdir(),
            lambda path: path.write_text("a file"),
            lambda path: (path.mkdir(), (path / "dimension.toml").write_text("name = 'mine'\n")),
        )
    ):
        out = tmp_path / f"out{number}"
        out.mkdir()
        make(out / "D15-notes")
        with pytest.raises(ConfigError, match="D15-notes: no export has written what is there"):
            jessymem.export(data, out, force=True)
        assert os.listdir(out) == ["D15-notes"]
    (tmp_path / "out4").mkdir()
    jessymem.export(data, tmp_path / "elsewhere")
    (tmp_path / "out4" / "D15-notes").symlink_to(tmp_path / "elsewhere" / "D15-notes")
    with pytest.raises(ConfigError, match="no export has written"):
        jessymem.export(data, tmp_path / "out4", force=True)
    (tmp_path / "out5").mkdir()
    (tmp_path / "out5" / "D15-notes.npz").mkdir()
    with pytest.raises(ConfigError, match="no export has written"):
        jessymem.export(data, tmp_path / "out5", "npz", force=True)


def test_an_export_that_fails_leaves_what_was_there(data, tmp_path):
    write(data, [(0, "old", {"name": "a"}), (1, "two", {"name": "b"})])
    out = tmp_path / "out"
    jessymem.export(data, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def stop(n_done, n_all):
        raise KeyboardInterrupt

    for format in ("files", "npz"):
        with pytest.raises(KeyboardInterrupt):
            jessymem.export(data, out, format, force=True, progress=stop)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    for left in (".D15-notes.tmp", ".D15-notes.old"):  # as one that was killed leaves them
        (out / left).mkdir()
        (out / left / "x").write_text("x")
    jessymem.export(data, out, force=True)
    assert os.listdir(out) == ["D15-notes"]


def test_sources_and_targets_that_cannot_be(data, tmp_path):
    with pytest.raises(RegionIOError, match="too long"):
        jessymem.export("x" * 5_000, tmp_path / "out")
    with pytest.raises(ConfigError, match="there is no such folder"):
        jessymem.export(data, tmp_path / "out")
    data.mkdir()
    with pytest.raises(DimensionNotFound, match="no region files under"):
        jessymem.export(data, tmp_path / "out")
    region = write(data, PLAIN)
    with pytest.raises(ConfigError, match=r"region\.mmap: is a file; it takes a folder"):
        jessymem.export(region.path, tmp_path / "out")
    with pytest.raises(ConfigError, match="source and target are the same folder"):
        jessymem.export(data, data / ".." / "data")
    with pytest.raises(ConfigError, match=r"format is one of files, npz, .*, not 'zip'"):
        jessymem.export(data, tmp_path / "out", "zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(RegionIOError, match=r"cannot write .*file"):
        jessymem.export(data, tmp_path / "file")
    assert not (tmp_path / "out").exists()
    with (
        MmapManager(base_path=tmp_path) as manager,
        pytest.raises(DimensionNotFound, match="no dim"),
    ):
        jessymem.export(manager, tmp_path / "out")


@pytest.mark.parametrize("format", LIBRARIES)
def test_a_library_that_is_missing_is_named_before_anything_is_written(
    format, data, tmp_path, monkeypatch
):
    write(data, PLAIN)
    for module in (LIBRARIES[format], "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match="is not installed; python -m pip install 'jessymem"):
        jessymem.export(data, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_progress_ends_with_all_of_it(data, tmp_path):
    write(data, [(0, "abc", {}), (1, b"de", {})])
    seen = []
    jessymem.export(data, tmp_path / "out", progress=lambda *step: seen.append(step))
    assert seen == [(3, 5), (5, 5)]


def test_an_array_and_a_text_of_one_name_come_back(tmp_path):
    builder = RegionBuilder("D15", "Names")
    builder.append_layer(np.arange(3), name="x")
    builder.append_layer("text", name="x")
    builder.append_layer(b"bytes", name="x.npy")
    builder.build_to_file(tmp_path / "data" / "D15" / "region.mmap")
    (exported,) = jessymem.export(tmp_path / "data", tmp_path / "out", "npz").dimensions
    jessymem.build(exported.path, tmp_path / "again")
    with MmapManager(base_path=tmp_path / "again") as manager:
        manager.load_dimension("D15")
        assert manager.array("L15-00").tolist() == [0, 1, 2]
        found = [bytes(manager.access_layer(layer)) for layer in ("L15-01", "L15-02")]
        assert found == [b"text", b"bytes"]
        assert [manager.get_layer_info(each).name for each in manager] == ["x", "x", "x.npy"]
