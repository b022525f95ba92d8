"""Files, tables and archives to layers: each made by the library that owns its format."""

from __future__ import annotations

import csv
import json
import os
import struct
import sys

import numpy as np
import pytest
from support import samples
from support.arrays import check_same
from support.samples import sampled

import jessymem
from jessymem import (
    ConfigError,
    DuplicateLayer,
    JessyWarning,
    LayerId,
    MmapManager,
    RegionIOError,
    extras,
)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def layers_of(data):
    """The layers of a dimension: number to name, content and keywords."""

    def layers_of(dimension="D15"):
        with MmapManager(base_path=data) as manager:
            manager.load_dimension(dimension)
            contexts = manager.load_contexts(manager.list_layers())
            return {
                each.layer_id.layer: (each.name, bytes(each.content), each.keywords)
                for each in contexts
            }

    return layers_of


def arrays_of(data, dimension="D15"):
    with MmapManager(base_path=data) as manager:
        manager.load_dimension(dimension)
        return {
            manager.get_layer_info(layer).name: manager.array(layer)
            for layer in manager.list_layers()
        }


# -- files and patterns ----------------------------------------------------------------------------


def make(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def test_single_files_are_one_dimension_for_each_folder(tmp_path, data, layers_of):
    make(tmp_path / "one", a_md="A", b_md="B", c_md="C")
    make(tmp_path / "two", d_md="D")
    given = [tmp_path / "two" / "d.md", tmp_path / "one" / "c.md", tmp_path / "one" / "a.md"]
    report = jessymem.build(given, data)
    assert [(str(d.dimension_id), d.name) for d in report.dimensions] == [
        ("D15", "two"),
        ("D16", "one"),
    ]
    assert report.n_layers == 3 and report.skipped == ()
    assert layers_of("D16") == {0: ("a.md", b"A", ()), 1: ("c.md", b"C", ())}


def test_patterns_are_matched_in_natural_order(tmp_path, data, layers_of, monkeypatch):
    make(tmp_path / "src", f10_md="10", f9_md="9", x_txt="x")
    make(tmp_path / "src" / "deep", y_md="y")
    monkeypatch.chdir(tmp_path)
    report = jessymem.build("src/**/*.md", data)
    assert [d.name for d in report.dimensions] == ["deep", "src"]
    assert [content for _, content, _ in layers_of("D16").values()] == [b"9", b"10"]
    with pytest.raises(ConfigError, match=r"src/\*\.rst: nothing matches"):
        jessymem.build("src/*.rst", data)


def test_what_looks_like_a_pattern_may_be_a_name(tmp_path, data, layers_of):
    make(tmp_path / "src", **{"[1]": "bracketed", "1": "one"})
    jessymem.build(tmp_path / "src" / "[1]", data)
    assert layers_of() == {0: ("[1]", b"bracketed", ())}


def test_what_is_given_twice_is_built_once(tmp_path, data):
    source = make(tmp_path / "src", a="A")
    report = jessymem.build([source, f"{source}/.", source / "a", source / ".." / "src"], data)
    assert report.n_layers == 2  # the folder, and the file that was named itself


def test_a_table_inside_a_folder_is_a_file_like_any_other(tmp_path, data, layers_of):
    make(tmp_path / "src", rows_jsonl='{"text": "x"}\n')
    jessymem.build(tmp_path / "src", data)
    assert layers_of() == {0: ("rows.jsonl", b'{"text": "x"}\n', ())}


def test_a_manifest_beside_files_that_are_named(tmp_path, data, layers_of):
    source = make(tmp_path / "src", a="A", b="B")
    (source / "dimension.toml").write_text(
        'name = "Said"\n[layers.a]\nlayer = 7\n[layers.b]\nname = "bee"\n'
    )
    report = jessymem.build(source / "a", data)
    assert report.dimensions[0].name == "Said"
    assert layers_of() == {7: ("a", b"A", ())}


def test_names_without_their_ending_or_as_a_function_says(tmp_path, data, layers_of):
    source = make(tmp_path / "src" / "n", **{"03-read.me.md": "x", "noending": "y"})
    (source / ".." / "n" / "deep").mkdir()
    (source / "deep" / "z.txt").write_text("z")
    jessymem.build(tmp_path / "src", data, names="stem")
    assert [name for name, _, _ in layers_of().values()] == ["deep/z", "noending", "read.me"]
    jessymem.build(tmp_path / "src", data, names=lambda path: path.upper(), force=True)
    assert [name for name, _, _ in layers_of().values()] == ["DEEP/Z.TXT", "NOENDING", "READ.ME.MD"]
    with pytest.raises(ConfigError, match="names is 'path' or 'stem'"):
        jessymem.build(tmp_path / "src", data, names="title")


def test_an_encoding_that_the_manifest_says(tmp_path, data):
    source = make(tmp_path / "src", t_txt="text", n_txt="")
    np.save(source / "a.npy", np.arange(3))
    (source / "a.npy").rename(source / "a.bin")
    np.save(source / "raw.npy", np.arange(3))
    told = {"t.txt": "bytes", "a.bin": "npy", "raw.npy": "bytes"}
    (source / "dimension.toml").write_text(
        "".join(f'[layers."{name}"]\nencoding = "{how}"\n' for name, how in told.items())
    )
    jessymem.build(source, data)
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        found = {
            info.name: info.encoding for info in map(manager.get_layer_info, manager.list_layers())
        }
        assert found == {"a.bin": "array", "n.txt": "text", "raw.npy": "bytes", "t.txt": "bytes"}
    (source / "dimension.toml").write_text('[layers."t.txt"]\nencoding = "utf-16"\n')
    with pytest.raises(ConfigError, match="expected one of text, bytes, npy, got 'utf-16'"):
        jessymem.build(source, data)
    (source / "b.bin").write_bytes(b"\xff")
    (source / "dimension.toml").write_text('[layers."b.bin"]\nencoding = "text"\n')
    with pytest.raises(ConfigError, match=r"b\.bin: said to be text, and no UTF-8"):
        jessymem.build(source, data, force=True)


def test_sources_that_cannot_be(tmp_path, data):
    with pytest.raises(RegionIOError, match=r"cannot list .*gone"):
        jessymem.build([tmp_path / "gone"], data)
    with pytest.raises(ConfigError, match="there is no source"):
        jessymem.build([], data)
    for given in (5, None, b"src", [5]):
        with pytest.raises(ConfigError, match="source must be a path, not"):
            jessymem.build(given, data)
    assert not data.exists()
    data.write_text("")
    with pytest.raises(ConfigError, match="data: is a file; it takes a folder"):
        jessymem.build(tmp_path, data)
    if os.path.exists("/dev/null"):
        with pytest.raises(ConfigError, match="/dev/null: no regular file, and no folder"):
            jessymem.build("/dev/null", tmp_path / "other")


# -- rows ------------------------------------------------------------------------------------------


def test_json_lines(tmp_path, data, layers_of):
    path = tmp_path / "D20-notes.jsonl"
    rows = [
        {"title": "first", "text": "\u00e9\u00e8", "tags": ["a", "b"]},
        {"title": None, "text": None, "tags": "x, y,, z"},
        {"text": {"nested": [1, "\u00e9"]}, "other": 1},
        {"title": 17, "text": ""},
    ]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    report = jessymem.build(path, data)
    assert (str(report.dimensions[0].dimension_id), report.dimensions[0].name) == ("D20", "notes")
    assert layers_of("D20") == {
        0: ("first", "\u00e9\u00e8".encode(), ("a", "b")),
        1: ("", b"", ("x", "y", "z")),
        2: ("", '{"nested": [1, "\u00e9"]}'.encode(), ()),
        3: ("17", b"", ()),
    }


def test_separated_values(tmp_path, data, layers_of):
    long = "long " * 50_000  # more than Python's csv takes by itself
    rows = [["id", "body", "keywords"], ["1", 'quoted "x",\nnew line', "a,b"], ["2", long, ""]]
    before = csv.field_size_limit()
    for name, delimiter in (("rows.csv", ","), ("tabs.tsv", "\t")):
        with open(tmp_path / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
    report = jessymem.build([tmp_path / "rows.csv", tmp_path / "tabs.tsv"], data)
    assert [each.name for each in report.dimensions] == ["rows", "tabs"]
    expected = {0: ("1", b'quoted "x",\nnew line', ("a", "b")), 1: ("2", long.encode(), ())}
    assert layers_of("D15") == layers_of("D16") == expected
    assert csv.field_size_limit() == before


def test_columns_that_are_asked_for(tmp_path, data, layers_of):
    (tmp_path / "r.csv").write_text("a,b,c,text\n1,2,3,4\n")
    jessymem.build(tmp_path / "r.csv", data, column="b", name_column="c", keywords_column="a")
    assert layers_of() == {0: ("3", b"2", ("1",))}
    jessymem.build(tmp_path / "r.csv", data)  # another column: what a build wrote is replaced
    assert layers_of() == {0: ("", b"4", ())}


def test_the_only_column_is_the_content(tmp_path, data, layers_of):
    (tmp_path / "r.csv").write_text("line\none\ntwo\n")
    jessymem.build(tmp_path / "r.csv", data)
    assert layers_of() == {0: ("", b"one", ()), 1: ("", b"two", ())}


MALFORMED = {
    "no JSON.jsonl": ('{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "deep.jsonl": ("[" * 100_000, "line 1: not JSON"),
    "no object.jsonl": ('{"text": "a"}\n["b"]\n', "line 2: expected an object, got list"),
    "no UTF-8.jsonl": (b'{"text": "\xff"}\n', "line 1: not JSON"),
    "surrogate.jsonl": ('{"text": "\\ud800"}\n', "line 1: .*cannot be written as UTF-8"),
    "no content.jsonl": ('{"a": 1, "b": 2}\n', "which column is the content.* there are: a, b"),
    "too many.csv": ("text,b\n1,2\n1,2,3\n", "line 3: expected 2 fields.*, got 3"),
    "too few.csv": ("text,b\n1\n", "line 2: expected 2 fields.*, got 1"),
    "twice.csv": ("text,text\n1,2\n", "line 1: two columns have one name"),
    "nothing.csv": ("", "no line that names the columns"),
    "no UTF-8.csv": (b"text\nabc\n\xff\n", "no UTF-8"),
    "open quote.csv": ('text\n"abc\n', "unexpected end of data"),
    "no content.csv": ("a,b\n1,2\n", "which column is the content.* there are: a, b"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_rows_are_named_before_anything_is_written(name, tmp_path, data):
    content, problem = MALFORMED[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "good.csv").write_text("text\ngood\n")
    with pytest.raises(ConfigError, match=problem) as caught:
        jessymem.build([tmp_path / "good.csv", tmp_path / name], data)
    assert name in str(caught.value) and len(str(caught.value)) < 700
    assert not data.exists()


def test_a_column_that_is_not_there(tmp_path, data):
    (tmp_path / "r.csv").write_text("text,b\n1,2\n")
    with pytest.raises(ConfigError, match="no column 'B' for the name; there are: text, b"):
        jessymem.build(tmp_path / "r.csv", data, name_column="B")


def test_no_rows_are_a_dimension_without_layers(tmp_path, data):
    (tmp_path / "r.csv").write_text("text\n")
    assert jessymem.build(tmp_path / "r.csv", data).dimensions[0].n_layers == 0


@sampled
def test_more_rows_than_layers_are_refused_before_anything_is_written(tmp_path, data):
    (tmp_path / "r.csv").write_text("text\n" + "x\n" * 65_537)
    with pytest.raises(ConfigError, match=r"r\.csv: more than 65,536 rows"):
        jessymem.build(tmp_path / "r.csv", data)
    assert not data.exists()
    if samples.is_whole():
        (tmp_path / "r.csv").write_text("text\n" + "x\n" * 65_536)
        assert jessymem.build(tmp_path / "r.csv", data).n_layers == 65_536


def test_a_table_that_changes_while_it_is_read(tmp_path, data, monkeypatch):
    path = tmp_path / "r.csv"
    path.write_text("text\na\n")
    from jessymem.ingest.building import plan_build

    plan = plan_build(path, data)
    path.write_text("text\na\nb\n")
    with pytest.raises(ConfigError, match=r"r\.csv: it was changed while it was read"):
        plan.write()
    assert not (data / "D15" / "region.mmap").exists()


# -- Arrow -----------------------------------------------------------------------------------------


def write_arrow(path, table):
    pyarrow = pytest.importorskip("pyarrow")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".feather":
        import pyarrow.feather

        pyarrow.feather.write_feather(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as w:
            w.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".feather"])
def test_rows_of_arrow(ending, tmp_path, data, layers_of):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table(
        {
            "name": pyarrow.array(["a", None, "c"]).dictionary_encode(),
            "text": ["\u00e9\u00e8", None, "z"],
            "raw": pyarrow.array([b"\xff\0", b"", None], pyarrow.binary()),
            "tags": [["k", "l"], None, []],
            "vector": pyarrow.array([[1.0, 2.0], [3.0], []], pyarrow.list_(pyarrow.float32())),
        }
    )
    write_arrow(tmp_path / f"rows{ending}", table)
    jessymem.build(tmp_path / f"rows{ending}", data)
    assert layers_of() == {
        0: ("a", "\u00e9\u00e8".encode(), ("k", "l")),
        1: ("", b"", ()),
        2: ("c", b"z", ()),
    }
    jessymem.build(tmp_path / f"rows{ending}", data, column="raw")
    assert [content for _, content, _ in layers_of().values()] == [b"\xff\0", b"", b""]
    jessymem.build(tmp_path / f"rows{ending}", data, column="vector")
    found = arrays_of(data)
    check_same(found["a"], np.array([1, 2], "f4"))
    assert found["c"].shape == (0,)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_file_that_is_none_of_arrows(ending, tmp_path, data):
    pytest.importorskip("pyarrow")
    (tmp_path / f"bad{ending}").write_bytes(b"not a table at all")
    with pytest.raises(ConfigError, match=rf"bad\{ending}: no .* file that pyarrow reads"):
        jessymem.build(tmp_path / f"bad{ending}", data)


def test_too_many_rows_of_parquet(tmp_path, data):
    pyarrow = pytest.importorskip("pyarrow")
    write_arrow(tmp_path / "r.parquet", pyarrow.table({"text": ["x"] * 70_000}))
    with pytest.raises(ConfigError, match="70,000 rows; a dimension has at most 65,536 layers"):
        jessymem.build(tmp_path / "r.parquet", data)
    assert not data.exists()


# -- arrays ----------------------------------------------------------------------------------------

ARRAYS = {
    "layer.10.weight": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "layer.9.weight": np.arange(5, dtype="<i2"),
    "07-scalar": np.array(1.5, "f4"),
    "empty": np.zeros((0, 3)),
}


def test_npz(tmp_path, data):
    np.savez_compressed(tmp_path / "m.npz", **ARRAYS)
    report = jessymem.build(tmp_path / "m.npz", data)
    assert report.dimensions[0].name == "m"
    found = arrays_of(data)
    assert list(found) == ["07-scalar", "empty", "layer.9.weight", "layer.10.weight"]
    for name, array in ARRAYS.items():
        check_same(found[name], array)


def test_objects_in_an_npz_are_refused(tmp_path, data):
    np.savez(tmp_path / "m.npz", fine=np.arange(3), bad=np.array([None, 1], dtype=object))
    with pytest.raises(ConfigError, match=r"m\.npz: bad: .*objects"):
        jessymem.build(tmp_path / "m.npz", data)
    (tmp_path / "m.npz").write_bytes(b"PK\3\4 torn")
    with pytest.raises(ConfigError, match=r"m\.npz: File is not a zip file"):
        jessymem.build(tmp_path / "m.npz", data)
    assert not data.exists()


def test_safetensors(tmp_path, data):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
    tensors["07-scalar"] = np.array(1.5, "f4")
    numpy.save_file(tensors, tmp_path / "m.safetensors")
    jessymem.build(tmp_path / "m.safetensors", data)
    found = arrays_of(data)
    assert list(found) == ["07-scalar", "empty", "layer.9.weight", "layer.10.weight"]
    for name, array in tensors.items():
        check_same(found[name], array)


def test_tensors_of_types_that_numpy_does_not_know(tmp_path, data):
    pytest.importorskip("safetensors")
    values = np.array([[1.0, -2.5], [3.0e38, np.inf]], "f4")
    narrow = (values.view("<u4") >> 16).astype("<u2")
    header = {
        "w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
        "q": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [8, 12]},
    }
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    content = struct.pack("<Q", len(raw)) + raw + narrow.tobytes() + b"\1\2\3\4"
    (tmp_path / "m.safetensors").write_bytes(content)
    jessymem.build(tmp_path / "m.safetensors", data)
    found = arrays_of(data)
    check_same(found["w"], (narrow.astype("<u4") << np.uint32(16)).view("<f4"))
    assert found["w"][0, 1] == -2.5 and found["w"][1, 1] == np.inf
    check_same(found["q"], np.array([[1, 2], [3, 4]], "u1"))
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        assert manager.select(keywords=["F8_E4M3"]) == [LayerId(15, 0)]


def test_a_file_that_is_no_safetensors(tmp_path, data):
    pytest.importorskip("safetensors")
    (tmp_path / "m.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match=r"m\.safetensors: .*SafetensorError"):
        jessymem.build(tmp_path / "m.safetensors", data)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(version, tmp_path, data):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "m.zarr", mode="w", zarr_format=version)
    numbers = np.arange(12.0).reshape(3, 4)
    group.create_array("b", shape=(3, 4), dtype="f8", chunks=(2, 2))[:] = numbers
    group.create_array("deep/a", shape=3, dtype="i2")[:] = np.arange(3)
    report = jessymem.build(tmp_path / "m.zarr", data)
    assert report.dimensions[0].name == "m"
    found = arrays_of(data)
    assert list(found) == ["b", "deep/a"]
    check_same(found["b"], numbers)
    check_same(found["deep/a"], np.arange(3, dtype="i2"))
    assert jessymem.build(tmp_path / "m.zarr", data).unchanged
    group["b"][0, 0] = 7
    jessymem.build(tmp_path / "m.zarr", data)
    assert arrays_of(data)["b"][0, 0] == 7


def test_a_single_array_of_zarr(tmp_path, data):
    zarr = pytest.importorskip("zarr")
    zarr.save_array(tmp_path / "D30-one.zarr", np.arange(4))
    jessymem.build(tmp_path / "D30-one.zarr", data)
    check_same(arrays_of(data, "D30")["D30-one"], np.arange(4))


@pytest.mark.parametrize(
    ("module", "extra", "name"),
    [
        ("pyarrow", "arrow", "r.parquet"),
        ("safetensors", "safetensors", "m.safetensors"),
        ("zarr", "zarr", "m.zarr"),
    ],
)
def test_a_library_that_is_missing_is_named(module, extra, name, tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    if name.endswith(".zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text("{}")
    else:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"{module} is not installed; .*jessymem\[{extra}\]"):
        jessymem.build(tmp_path / name, data)
    with pytest.raises(ConfigError, match="is not installed"):
        extras.load(f"{module}.anything", extra, "what for")


def test_rows_that_claim_one_number(tmp_path, data):
    pyarrow = pytest.importorskip("pyarrow")
    source = tmp_path / "src"
    make(source, a="A", b="B")
    jessymem.build(source, data)
    jessymem.export(data, tmp_path / "out", "arrow")
    (path,) = (tmp_path / "out").iterdir()
    with pyarrow.OSFile(str(path)) as file:
        table = pyarrow.ipc.open_file(file).read_all()
    index = table.schema.get_field_index("id")
    write_arrow(path, table.set_column(index, "id", [["L15-01", "L15-01"]]))
    with pytest.raises(DuplicateLayer, match="L15-01 is claimed by both row 0 and row 1"):
        jessymem.build(path, tmp_path / "again")


def test_lines_need_not_all_have_every_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "only"}\n{"text": "b", "name": "n", "tags": ["x"]}\n')
    jessymem.build(path, tmp_path / "out")
    with MmapManager(base_path=tmp_path / "out") as manager:
        manager.load_dimension("D15")
        found = [manager.load_layer_context(layer) for layer in manager.list_layers()]
    told = [(each.name, bytes(each.content), each.keywords) for each in found]
    assert told == [("only", b"", ()), ("n", b"b", ("x",))]


def test_what_is_left_out_is_said_aloud(tmp_path, caplog):
    source = tmp_path / "notes"
    source.mkdir()
    (source / "a.md").write_text("a")
    (source / ".hidden").write_text("h")
    with pytest.warns(JessyWarning, match=r"1 file is left out of the build of .*\.hidden"):
        report = jessymem.build(source, tmp_path / "out")
    assert [each.path for each in report.skipped] == [".hidden"]
    assert any(getattr(each, "event", "") == "file_skipped" for each in caplog.records)
