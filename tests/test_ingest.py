"""A folder to region files: what becomes which dimension and layer, what is left out or refused."""

import os
import random
import sys
from pathlib import Path

import pytest

from jessymem import (
    ConfigError,
    DimensionId,
    DuplicateDimension,
    DuplicateLayer,
    LayerId,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionIOError,
    osmem,
)
from jessymem.ingest import contents
from jessymem.ingest.building import plan_build
from jessymem.ingest.contents import read_content
from jessymem.ingest.folders import SourceFolder, natural_key
from jessymem.ingest.manifest import MAX_BYTES, Manifest, read_manifest
from jessymem.ingest.numbering import number_folders
from jessymem.kernels import schema as s
from jessymem.regions.paths import region_path

UNIX_NAMES = sys.platform == "linux"  # any bytes but / and NUL


@pytest.fixture
def make(tmp_path):
    """Write files into tmp_path/src; a name that ends with / is an empty folder."""

    def make(tree):
        root = tmp_path / "src"
        root.mkdir(exist_ok=True)
        for name, content in tree.items():
            path = root / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return make


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def plan(make, data):
    """Plan a build of a tree."""

    def plan(tree, *, force=False):
        return plan_build(make(tree), data, force=force)

    return plan


@pytest.fixture
def link(make, tmp_path):
    """Put a symbolic link into the source."""

    def link(name, target):
        path = make({}) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.symlink_to(target)
        except OSError:
            pytest.skip("no symbolic links here")

    return link


def build_region(data, dimension, name, content="old"):
    builder = RegionBuilder(dimension, name)
    builder.add_layer(0, content)
    path = region_path(data, builder.dimension_id)
    builder.build_to_file(path)
    return path


def numbers(plan):
    return {planned.folder: str(planned.dimension_id) for planned in plan.dimensions}


def names(plan):
    return {str(planned.dimension_id): planned.name for planned in plan.dimensions}


def layers(plan):
    """Of the only dimension: number to name."""
    (planned,) = plan.dimensions
    return {layer.layer_id.layer: layer.name for layer in planned.layers}


def skipped(plan):
    return dict(plan.skipped)


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- which dimension -------------------------------------------------------------------------------


def test_folder_with_a_number_takes_it(plan):
    planned = plan({"D07-Tools/a": "", "D02/a": "", "D300/a": "", "d9/a": ""})
    assert numbers(planned) == {"D02": "D02", "D07-Tools": "D07", "d9": "D09", "D300": "D300"}
    assert [planned.dimension_id for planned in planned.dimensions] == [2, 7, 9, 300]


def test_name_follows_the_dash_or_is_the_core_name_or_the_folders(plan):
    planned = plan({"D07-My-tools/a": "", "D01/a": "", "D20/a": "", "D03-/a": "", "notes/a": ""})
    expected = {"D01": "Emotion", "D03": "Intention", "D07": "My-tools", "D15": "notes"}
    assert names(planned) == expected | {"D20": "D20"}


def test_manifest_names_the_dimension(plan):
    tree = {"D01-x/a": "", "D01-x/dimension.toml": 'name = "Said"', "n/a": ""}
    assert names(plan(tree)) == {"D01": "Said", "D15": "n"}
    assert names(plan({"n/dimension.toml": 'name = ""'}))["D15"] == ""


def test_other_folders_take_the_next_free_number_in_natural_order(plan):
    planned = plan({"part10/a": "", "part2/a": "", "D16-fixed/a": "", "Zeta/a": "", "D7x/a": ""})
    expected = {"D7x": "D15", "D16-fixed": "D16", "Zeta": "D17", "part2": "D18", "part10": "D19"}
    assert numbers(planned) == expected


def test_numbers_on_disk_are_not_free(plan, data):
    build_region(data, "D15", "else")
    build_region(data, "D01", "notes")  # a core dimension is never found by its name
    assert numbers(plan({"notes/a": ""})) == {"notes": "D16"}


def test_unreadable_file_on_disk_keeps_its_number(plan, data):
    build_region(data, "D15", "notes").write_bytes(b"no region file")
    assert numbers(plan({"notes/a": ""})) == {"notes": "D16"}


def test_grown_dimension_of_the_same_name_is_rebuilt_by_force_only(plan, data):
    build_region(data, "D15", "else")
    path = build_region(data, "D16", "notes")
    before = path.read_bytes()
    tree = {"notes/a": "new", "aaa/a": "", "D17/a": ""}
    with pytest.raises(
        DuplicateDimension, match=r"D16: on disk under .* force is not set"
    ) as caught:
        plan(tree)
    assert caught.value.dimension == 16
    assert path.read_bytes() == before
    forced = plan(tree, force=True)
    assert numbers(forced) == {"notes": "D16", "D17": "D17", "aaa": "D18"}
    built = forced.write()
    assert [(each.generation, each.is_replaced) for each in built] == [
        (2, True),
        (1, False),
        (1, False),
    ]
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D16")
        assert manager.access_layer("L16-00") == b"new"


def test_name_in_the_manifest_finds_the_dimension(plan, data):
    build_region(data, "D20", "Field notes")
    tree = {"f/dimension.toml": 'name = "Field notes"', "f/a": ""}
    assert numbers(plan(tree, force=True)) == {"f": "D20"}


def test_number_claimed_in_the_source_beats_the_name_on_disk(plan, data):
    build_region(data, "D15", "notes")
    tree = {"notes/a": "", "D15-other/a": ""}
    assert numbers(plan(tree, force=True)) == {"D15-other": "D15", "notes": "D16"}


def test_folders_of_one_name_keep_their_order(plan):
    tree = {f"{folder}/{file}": 'name = "x"' for folder in "ab" for file in ("dimension.toml", "f")}
    plan(tree).write()
    assert numbers(plan(tree, force=True)) == {"a": "D15", "b": "D16"}


def test_two_folders_with_one_number_are_refused(plan):
    with pytest.raises(DuplicateDimension, match=r"D07 is claimed by both .*D07-a and .*D7-b"):
        plan({"D07-a/x": "", "D7-b/x": ""})


@pytest.mark.parametrize("folder", ["D0", "D65536-x", "D99999999999"])
def test_number_that_no_dimension_has(plan, folder):
    with pytest.raises(ConfigError, match=f"{folder}: a dimension number is 1 to 65535"):
        plan({f"{folder}/x": ""})


def test_every_number_may_be_given_and_no_more():
    manifest = Manifest(Path("dimension.toml"))
    folders = [SourceFolder(f"f{i}", Path(f"f{i}"), (), manifest) for i in range(65_535 - 14)]
    assert number_folders(folders, {}) == [DimensionId(number) for number in range(15, 65_536)]
    with pytest.raises(ConfigError, match="no dimension number is free"):
        number_folders(folders, {DimensionId(40_000): None})


# -- which layer -----------------------------------------------------------------------------------


def test_layers_in_natural_order(plan):
    planned = plan({f"n/{name}": "" for name in ("f10", "f2", "f02", "B", "a", "f")})
    assert list(layers(planned).values()) == ["B", "a", "f", "f02", "f2", "f10"]


def test_natural_order_does_not_depend_on_the_order_before():
    expected = ["", "01", "1", "a", "a.b", "a001", "a01", "a1", "a2", "a10b2", "a10b10", "ab"]
    for seed in range(20):
        shuffled = random.Random(seed).sample(expected, len(expected))
        assert sorted(shuffled, key=natural_key) == expected


def test_leading_numbers_first_the_others_fill_the_gaps(plan):
    tree = {f"n/{name}": "" for name in ("00-first", "2-third", "x", "y", "z", "0007-far")}
    expected = {0: "first", 1: "x", 2: "third", 3: "y", 4: "z", 7: "far"}
    assert layers(plan(tree)) == expected


def test_only_a_number_and_a_dash_number_a_file(plan):
    tree = {f"n/{name}": "" for name in ("3d", "-4-x", "5-", "123456-x", "65535-last")}
    expected = {0: "-4-x", 1: "3d", 2: "5-", 3: "123456-x", 65_535: "last"}
    assert layers(plan(tree)) == expected


def test_two_files_with_one_number_are_refused_by_name(plan, data):
    with pytest.raises(DuplicateLayer, match=r"L16-02 .*n.02-a and .*n.2-b") as caught:
        plan({"n/02-a": "", "n/2-b": "", "m/a": ""})
    assert caught.value.layer == LayerId(16, 2)
    assert not data.exists()


def test_number_that_no_layer_has(plan):
    with pytest.raises(ConfigError, match=r"65536-x: a layer number is 0 to 65535, not 65536"):
        plan({"n/65536-x": ""})


def test_deeper_folders_are_walked_and_their_files_not_numbered(plan):
    tree = {"n/7-a/9-x": "", "n/7-a/b/y": "", "n/a.txt": "", "n/z": "", "n/01-one": ""}
    assert layers(plan(tree)) == {0: "7-a/9-x", 1: "one", 2: "7-a/b/y", 3: "a.txt", 4: "z"}


def test_more_files_than_layers(plan, monkeypatch):
    monkeypatch.setattr("jessymem.ingest.numbering.MAX_LAYERS", 2)
    with pytest.raises(ConfigError, match="3 files; a dimension has at most 2 layers"):
        plan({"n/a": "", "n/b": "", "n/c": ""})


# -- dimension.toml --------------------------------------------------------------------------------

MANIFEST = """
[layers."00-tools.md"]
name = "Tools"
layer = 3
frequency = 2
depth = 1
keywords = ["hammer", "Webstuhl", "\u6a5f"]
parent = "L09-65535"
[layers."sub/deep.txt"]
parent = 3
frequency = 0.5
"""


def test_manifest_describes_layers(plan, data):
    tree = {"n/00-tools.md": "t", "n/sub/deep.txt": "d", "n/dimension.toml": MANIFEST, "n/3-x": ""}
    with pytest.raises(DuplicateLayer, match="L15-03"):
        plan(tree)
    tree["n/dimension.toml"] = MANIFEST.replace("layer = 3", "layer = 7")
    plan(tree).write()
    region = MmapRegion.from_file("D15", region_path(data, DimensionId(15)))
    deep, _, tools = region.metadata.layers
    assert (tools.layer_id, tools.name) == (LayerId(15, 7), "Tools")
    assert (tools.frequency, tools.depth, tools.parent) == (2.0, 1, LayerId(9, 65_535))
    assert tools.keywords == ("hammer", "Webstuhl", "\u6a5f")
    assert (deep.layer_id, deep.name) == (LayerId(15, 0), "sub/deep.txt")
    assert (deep.frequency, deep.depth, deep.parent) == (0.5, 0, LayerId(15, 3))
    assert deep.keywords == ()


def test_number_in_the_manifest_beats_the_prefix_and_the_name_stays_without_it(plan):
    tree = {"n/00-a": "", "n/00-b": "", "n/dimension.toml": '[layers."00-a"]\nlayer = 5'}
    assert layers(plan(tree)) == {0: "b", 5: "a"}


def test_manifest_deeper_down_is_a_layer(plan):
    assert layers(plan({"n/sub/dimension.toml": "no = toml"})) == {0: "sub/dimension.toml"}


def test_manifest_with_other_line_ends(plan):
    tree = {"n/a": "", "n/dimension.toml": 'name = "N"\r\n[layers.a]\r\nname = "A"\r\n'}
    planned = plan(tree)
    assert (names(planned), layers(planned)) == ({"D15": "N"}, {0: "A"})


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("title = 1", "title", "no such key"),
        ("name = 1", "name", "expected a string, got 1"),
        ("layers = []", "layers", "expected a table"),
        ("layers.a = 1", 'layers."a"', "expected a table, got 1"),
        ("[layers.a]\nlabel = 'x'", 'layers."a".label', "no such key"),
        ("[layers.a]\nname = 7", 'layers."a".name', "expected a string"),
        ("[layers.a]\nlayer = '7'", 'layers."a".layer', "expected an integer"),
        ("[layers.a]\nlayer = true", 'layers."a".layer', "expected an integer, got True"),
        ("[layers.a]\nlayer = 65536", 'layers."a".layer', "expected 0 to 65535, got 65536"),
        ("[layers.a]\nlayer = -1", 'layers."a".layer', "expected 0 to 65535, got -1"),
        ("[layers.a]\nfrequency = 'x'", 'layers."a".frequency', "expected a number"),
        ("[layers.a]\nfrequency = false", 'layers."a".frequency', "expected a number"),
        ("[layers.a]\ndepth = 1.0", 'layers."a".depth', "expected an integer"),
        ("[layers.a]\nkeywords = 'x'", 'layers."a".keywords', "expected a list of strings"),
        ("[layers.a]\nkeywords = [1]", 'layers."a".keywords', "expected a list of strings"),
        ("[layers.a]\nparent = 1.5", 'layers."a".parent', "expected a layer"),
        ("[layers.a]\nparent = 'D01'", 'layers."a".parent', "not a layer: 'D01'"),
        ("[layers.b]", 'layers."b"', "there is no such file"),
    ],
)
def test_manifest_that_does_not_fit(plan, data, text, key, problem):
    with pytest.raises(ConfigError) as caught:
        plan({"n/a": "", "n/dimension.toml": text})
    assert caught.value.field == key
    assert f"dimension.toml: {key}: {problem}" in str(caught.value)
    assert not data.exists()


@pytest.mark.parametrize("text", [b"name =", b'name = "\xff"', b"x = " + b"[" * 5000])
def test_manifest_that_is_no_toml(plan, text):
    with pytest.raises(ConfigError, match=r"dimension\.toml: not TOML"):
        plan({"n/a": "", "n/dimension.toml": text})


def test_manifest_that_cannot_be_read(plan, intercept):
    def fail(operation, path, *details):
        if operation == "open" and path.endswith("dimension.toml"):
            raise OSError(5, "Input/output error")

    intercept(fail)
    with pytest.raises(RegionIOError, match=r"cannot read .*dimension\.toml: Input/output error"):
        plan({"n/a": "", "n/dimension.toml": ""})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("depth = 256", "depth is 0 to 255"),
        ("frequency = inf", "frequency"),
        ("parent = 0", "not its own parent"),
        ("parent = 65536", "a layer number is 0 to 65535"),
    ],
)
def test_value_beyond_the_format_names_folder_and_file(plan, data, line, problem):
    with pytest.raises(ConfigError, match=rf"n: a: .*{problem}"):
        plan({"n/a": "", "n/dimension.toml": f"[layers.a]\n{line}"})
    assert not data.exists()


def test_name_beyond_the_format(plan):
    with pytest.raises(ConfigError, match="65 bytes as UTF-8"):
        plan({"n/a": "", "n/dimension.toml": f'name = "{"x" * 65}"'})


def test_metadata_beyond_the_format_are_found_before_anything_is_written(plan, data, monkeypatch):
    monkeypatch.setattr(s, "MAX_METADATA_BYTES", 4096)
    with pytest.raises(ConfigError, match="the format allows 4,096"):
        plan({"a/f": "", "n/f": "", "n/dimension.toml": f'[layers.f]\nname = "{"x" * 5000}"'})
    assert not data.exists()


def test_content_beyond_the_format(plan, monkeypatch):
    monkeypatch.setattr(contents, "MAX_CONTENT_BYTES", 3)
    with pytest.raises(ConfigError, match="n: b: 4 bytes; at most 3"):
        plan({"n/a": "123", "n/b": "1234"})


# -- contents --------------------------------------------------------------------------------------

CONTENTS = {
    "empty": (b"", "text"),
    "ascii": (b"plain\r\n", "text"),
    "bom": (b"\xef\xbb\xbfmarked", "text"),
    "greek": ("\u03b1\u03b2".encode(), "text"),
    "nul": (b"a\0b", "text"),
    "latin": (b"gr\xfcn", "bytes"),
    "overlong": (b"\xc0\x80", "bytes"),
    "surrogate": (b"\xed\xa0\x80", "bytes"),
    "large": (bytes(range(256)) * 5000, "bytes"),
}


def test_contents_are_kept_byte_for_byte_with_their_kind(plan, data):
    steps = []
    planned = plan({f"n/{name}": content for name, (content, _) in CONTENTS.items()})
    (built,) = planned.write(steps.append)
    assert sum(steps) == planned.n_bytes == sum(len(content) for content, _ in CONTENTS.values())
    assert (built.n_layers, built.n_bytes) == (len(CONTENTS), built.path.stat().st_size)
    region = MmapRegion.from_file("D15", built.path)
    assert region.verify_integrity("full")
    kinds = {s.ENCODING_TEXT: "text", s.ENCODING_BYTES: "bytes"}
    found = {
        layer.name: (region.read_content(layer.offset, layer.size), kinds[encoding])
        for layer, encoding in zip(
            region.metadata.layers, region.layout.rows["encoding"].tolist(), strict=True
        )
    }
    assert found == CONTENTS


def test_each_file_is_opened_once(plan, intercept):
    planned = plan({"n/a": "x", "n/b": b"\xff"})
    opened = []
    intercept(
        lambda operation, path, *details: opened.append(path) if operation == "open" else None
    )
    planned.write()
    assert [os.path.basename(path) for path in opened if "src" in Path(path).parts] == ["a", "b"]


def test_content_that_cannot_be_read_is_an_error_with_its_path(tmp_path):
    with pytest.raises(RegionIOError, match=r"cannot read .*gone"):
        read_content(tmp_path / "gone", LayerId(15, 0))
    with pytest.raises(RegionIOError, match="cannot read"):
        read_content(tmp_path, LayerId(15, 0))


def test_file_that_is_gone_between_plan_and_write_leaves_the_old_region(plan, make, data):
    tree = {"a/x": "1", "b/y": "1"}
    plan(tree).write()
    planned = plan({"a/x": "2", "b/y": "2"}, force=True)
    (make({}) / "b" / "y").unlink()
    with pytest.raises(RegionIOError, match="cannot read"):
        planned.write()
    regions = [MmapRegion.from_file(d, region_path(data, DimensionId(d))) for d in (15, 16)]
    assert [region.generation for region in regions] == [2, 1]
    there = [f"{d}{file}" for d in ("D15", "D16") for file in ("", "/build.json", "/region.mmap")]
    assert files_under(data) == there


# -- what is left out ------------------------------------------------------------------------------


def test_hidden_files_are_left_out_and_said(plan):
    planned = plan({"n/a": "", "n/.b": "", "n/sub/.c": "", ".git/config": "", "n/.d/e": ""})
    assert layers(planned) == {0: "a"}
    expected = dict.fromkeys((".git", "n/.b", "n/.d", "n/sub/.c"), "hidden")
    assert skipped(planned) == expected


def test_empty_folders_are_said(plan):
    planned = plan({"n/a": "", "void/": "", "D01/dimension.toml": "", "m/.x": ""})
    assert numbers(planned) == {"n": "D15"}
    assert skipped(planned) == {
        "void": "a folder without files",
        "D01": "a folder without files",
        "m": "a folder without files",
        "m/.x": "hidden",
    }


def test_nothing_to_build(plan, data):
    with pytest.raises(ConfigError, match="src: nothing to build; there is no file in it"):
        plan({"void/": "", ".hidden": ""})
    assert not data.exists()


def test_files_directly_in_the_source_are_one_dimension(plan, data):
    planned = plan({"b.txt": "B", "07-a.txt": "A", "c.npy.txt": "C"})
    assert (numbers(planned), names(planned)) == ({"src": "D15"}, {"D15": "src"})
    assert layers(planned) == {0: "b.txt", 1: "c.npy.txt", 7: "a.txt"}
    planned.write()
    with MmapManager(base_path=data) as manager:
        manager.load_dimension("D15")
        assert bytes(manager.access_layer("L15-07")) == b"A"


def test_files_beside_folders_are_one_more_dimension(plan):
    planned = plan({"top.txt": "", "n/a": "", "z/a": ""})
    assert numbers(planned) == {"n": "D15", "z": "D16", "src": "D17"}
    assert names(planned) == {"D15": "n", "D16": "z", "D17": "src"}
    assert skipped(planned) == {}


def test_a_source_that_has_a_number_or_a_manifest_is_one_dimension(plan, make, data):
    make({"D07-Tools/hammer": "h", "D07-Tools/deep/saw": "s", "D07-Tools/.hidden": ""})
    planned = plan_build(make({}) / "D07-Tools", data)
    assert (numbers(planned), names(planned)) == ({"D07-Tools": "D07"}, {"D07": "Tools"})
    assert layers(planned) == {0: "deep/saw", 1: "hammer"}
    assert skipped(planned) == {".hidden": "hidden"}
    planned = plan({"top.txt": "", "n/a": "", "dimension.toml": 'name = "Top"'})
    assert names(planned) == {"D15": "Top"}
    found = list(layers(planned).values())
    assert found == ["D07-Tools/deep/saw", "D07-Tools/hammer", "n/a", "top.txt"]


def test_the_folder_that_one_is_in_is_called_as_it_is(plan, make, data, monkeypatch):
    monkeypatch.chdir(make({"a": "1"}))
    assert names(plan_build(".", data)) == {"D15": "src"}
    assert names(plan_build("../src/.", data)) == {"D15": "src"}


def test_links_inside_the_source_are_followed_others_said(plan, link, tmp_path):
    (tmp_path / "secret").write_text("s")
    (tmp_path / "src2").mkdir()  # begins with the source's own name
    link("n/leaves", tmp_path / "secret")
    link("n/leaves2", tmp_path / "src2")
    link("n/relative", Path("../../secret"))
    link("n/broken", "nowhere")
    link("n/itself", "itself")
    link("n/fine", "../m/real")
    link("whole", "m")
    planned = plan({"m/real": "r", "n/a": ""})
    assert numbers(planned) == {"m": "D15", "n": "D16", "whole": "D17"}
    _, n, whole = planned.dimensions
    assert [layer.name for layer in n.layers] == ["a", "fine"]
    assert [layer.name for layer in whole.layers] == ["real"]
    assert skipped(planned) == {
        "n/leaves": "a link that leads out of the source",
        "n/leaves2": "a link that leads out of the source",
        "n/relative": "a link that leads out of the source",
        "n/broken": "a link to nothing",
        "n/itself": "a link to nothing",
    }
    planned.write()


def test_links_that_go_round_are_said(plan, link):
    link("n/up", "../n")
    link("n/top", "..")
    link("n/sub/back", "../../n")
    link("n/cousin", "../m")
    link("m/cousin", "../n")
    planned = plan({"n/a": "", "m/b": ""})
    m, n = planned.dimensions
    assert [layer.name for layer in n.layers] == ["a", "cousin/b"]
    assert [layer.name for layer in m.layers] == ["b", "cousin/a"]
    assert set(skipped(planned).values()) == {"a link back to a folder that it lies in"}
    assert {"n/up", "n/top", "n/sub/back", "n/cousin/cousin"} <= skipped(planned).keys()


def test_source_may_be_a_link(make, data, tmp_path):
    make({"n/a": ""})
    try:
        (tmp_path / "link").symlink_to(tmp_path / "src")
    except OSError:
        pytest.skip("no symbolic links here")
    assert layers(plan_build(tmp_path / "link", data)) == {0: "a"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_is_no_regular_file_is_said_and_not_waited_for(plan, make):
    root = make({"n/a": ""})
    os.mkfifo(root / "n" / "pipe")
    os.mkfifo(root / "n" / "dimension.toml")
    os.mkfifo(root / "pipe")
    planned = plan({})
    assert layers(planned) == {0: "a"}
    expected = dict.fromkeys(("n/pipe", "n/dimension.toml", "pipe"), "no regular file")
    assert skipped(planned) == expected


def test_data_inside_the_source_is_no_input(make):
    root = make({"n/a": "1"})
    data = root / "out" / "deep"
    plan_build(root, data).write()
    again = plan_build(root, data, force=True)
    assert numbers(again) == {"n": "D15"}
    assert skipped(again) == {
        "out/deep": "where the region files go",
        "out": "a folder without files",
    }


def test_data_is_not_the_source(make):
    root = make({"n/a": ""})
    with pytest.raises(ConfigError, match="the same folder"):
        plan_build(root, root / "n" / "..")


@pytest.mark.skipif(not UNIX_NAMES, reason="names are Unicode here")
def test_name_that_is_no_utf8_is_shown_replaced(plan, make, data):
    root = make({"n/a": ""})
    (root / os.fsdecode(b"\xff")).mkdir()
    (root / os.fsdecode(b"\xff") / os.fsdecode(b"01-\xfe.txt")).write_text("content")
    planned = plan({})
    assert names(planned) == {"D15": "n", "D16": "\ufffd"}
    planned.write()
    region = MmapRegion.from_file("D16", region_path(data, DimensionId(16)))
    (layer,) = region.metadata.layers
    assert (layer.name, layer.layer_id) == ("\ufffd.txt", LayerId(16, 1))
    assert region.read_string(layer.offset, layer.size) == "content"


# -- nothing is written before all of it is checked ------------------------------------------------


def test_existing_files_are_named_and_left(plan, data):
    paths = [build_region(data, number, f"old {number}") for number in range(20, 27)]
    before = [path.read_bytes() for path in paths]
    with pytest.raises(DuplicateDimension, match="D20, D21, D22, D23, D24 and 2 more: on disk"):
        plan({"new/a": ""} | {f"D{number}/a": "" for number in range(20, 27)})
    assert [path.read_bytes() for path in paths] == before
    assert not (data / "D15").exists()


def test_plan_writes_nothing(plan, data):
    plan({"n/a": ""})
    assert not data.exists()


def test_file_that_appears_after_the_plan_is_not_replaced(plan, data):
    planned = plan({"n/a": "new"})
    path = build_region(data, "D15", "other")
    before = path.read_bytes()
    with pytest.raises(DuplicateDimension, match="D15"):
        planned.write()
    assert path.read_bytes() == before


def test_directory_in_a_region_files_place(plan, data):
    region_path(data, DimensionId(15)).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"D15: .*region\.mmap is no regular file"):
        plan({"n/a": ""}, force=True)


def test_source_that_is_missing(tmp_path, data):
    with pytest.raises(RegionIOError, match="cannot list") as caught:
        plan_build(tmp_path / "gone", data)
    assert caught.value.path == str(tmp_path / "gone")


def test_file_that_may_not_be_read_is_found_by_the_plan(plan, data, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "b")
    with pytest.raises(RegionIOError, match=r"cannot read .*b: "):
        plan({"m/a": "", "n/b": ""})
    assert not data.exists()


def test_folder_that_may_not_be_listed(plan, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(RegionIOError, match=r"cannot list .*sub: Permission denied"):
        plan({"n/sub/a": ""})


def test_file_that_is_gone_while_it_is_looked_at(plan, monkeypatch):
    stat = Path.stat

    def refuse(path, **options):
        if path.name == "a":
            raise FileNotFoundError(2, "No such file or directory")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(RegionIOError, match=r"cannot read .*a: No such file"):
        plan({"n/a": ""})


def test_failing_write_is_an_error_and_leaves_nothing(plan, data, intercept):
    planned = plan({"n/a": "x"})

    def fail(operation, path, *details):
        if operation == "sync":
            raise OSError(28, "No space left on device")

    intercept(fail)
    with pytest.raises(RegionIOError, match="No space left"):
        planned.write()
    assert osmem.intercept is fail
    assert not data.exists() or files_under(data) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a." * 50_000 + "b = 1", "dots"),
        ("[" + "a ." * 20_000 + "b]", "dots"),
        ("x = {" + "\"a\" . 'b' ." * 10_000 + "b = 1}", "dots"),
    ],
    ids=["key", "table", "inline"],
)
def test_a_manifest_that_would_take_long_to_read(tmp_path, text, fault):
    (tmp_path / "dimension.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"dimension\.toml: not TOML: .*{fault}"):
        read_manifest(tmp_path / "dimension.toml")


def test_a_manifest_that_is_too_long(tmp_path):
    with (tmp_path / "dimension.toml").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ConfigError, match=r"dimension\.toml: not TOML: .* are more than"):
        read_manifest(tmp_path / "dimension.toml")


def test_a_manifest_may_have_many_dots(tmp_path):
    lines = ['name = "' + "One of two. " * 5_000 + '"']
    lines += [f'[layers."a.b.{number}.md"]' for number in range(500)]
    (tmp_path / "dimension.toml").write_text("\n".join(lines))
    assert len(read_manifest(tmp_path / "dimension.toml").layers) == 500
