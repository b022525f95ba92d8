"""`.npy` files to arrays: what NumPy wrote comes back, and what it did not is named before all."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from support.arrays import HOSTILE, KINDS, check_same, telling

from jessymem import ConfigError, MmapManager, MmapRegion, RegionIOError, osmem
from jessymem.ingest.building import plan_build
from jessymem.kernels import schema as s

GRID = np.asfortranarray(np.arange(12.0).reshape(3, 4))


def npy(array, **how):
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


@pytest.fixture
def plan(tmp_path):
    """Plan a build of a tree: file names to bytes, or to arrays that NumPy saves."""

    def plan(tree, *, force=False):
        for name, content in tree.items():
            path = tmp_path / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, np.ndarray):
                with path.open("wb") as file:
                    np.save(file, content)
            else:
                path.write_bytes(content)
        return plan_build(tmp_path / "src", tmp_path / "data", force=force)

    return plan


SAVED = {name: each for name, each in KINDS.items() if name != "a name that is no text"}


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0:UserWarning")
def test_files_of_numpy_come_back_as_the_arrays_that_were_saved(plan, tmp_path):
    names = [f"D15-numbers/{number:02d}-{name}.npy" for number, name in enumerate(SAVED)]
    tree = dict(zip(names, SAVED.values(), strict=True))
    (built,) = plan(tree).write()
    assert built.n_layers == len(SAVED)
    with MmapManager(base_path=tmp_path / "data") as manager:
        manager.load_dimension("D15")
        for layer, (name, array) in zip(manager.list_layers(), SAVED.items(), strict=True):
            found = manager.array(layer)
            if array.dtype.names is None:
                check_same(found, array)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert repr(found.tolist()) == repr(array.tolist())  # what pads fields NumPy drops
            assert manager.get_layer_info(layer).name == f"{name}.npy"
            if array.nbytes:
                assert found.ctypes.data % 64 == 0
    assert MmapRegion.from_file("D15", built.path).verify_integrity("full")


def test_arrays_beside_text_and_bytes(plan):
    (built,) = plan(
        {
            "n/a.txt": b"text",
            "n/b.NPY": GRID,
            "n/deep/c.npy": np.arange(3),
            "n/d.npz": b"\xff\0",
            "n/npy": b"text too",
            "n/dimension.toml": b'[layers."deep/c.npy"]\nkeywords = ["k"]\nlayer = 9\n',
        }
    ).write()
    region = MmapRegion.from_file("D15", built.path)
    kinds = {
        layer.name: s.ENCODINGS[encoding]
        for layer, encoding in zip(
            region.metadata.layers, region.rows["encoding"].tolist(), strict=True
        )
    }
    assert kinds == {
        "a.txt": "text",
        "b.NPY": "array",
        "deep/c.npy": "array",
        "d.npz": "bytes",
        "npy": "text",
    }
    check_same(region.read_array("L15-01"), GRID)
    check_same(region.read_array("L15-09"), np.arange(3))
    assert region.get_layer_info("L15-09").keywords == ("k",)


def test_headers_of_every_version_and_spacing(plan, tmp_path):
    content = GRID.tobytes("F")
    text = telling(order="True", shape="(3, 4)").encode()
    tree = {
        f"n/{n}.npy": start + struct.pack(length, len(text)) + text + content
        for n, (start, length) in enumerate(
            [(b"\x93NUMPY\1\0", "<H"), (b"\x93NUMPY\2\0", "<I"), (b"\x93NUMPY\3\0", "<I")]
        )
    }
    (built,) = plan(tree).write()
    region = MmapRegion.from_file("D15", built.path)
    for number in range(3):
        check_same(region.read_array(15 << 16 | number), GRID)
    assert len({row["array_size"] for row in region.rows}) == 1


REAL = npy(np.arange(8.0))

BAD = {
    "an empty file": b"",
    "half a magic": REAL[:4],
    "half a header": REAL[:60],
    "a header alone": REAL[:128],
    "an element too few": REAL[:-8],
    "a byte too many": REAL + b"\0",
    "two arrays": REAL + REAL,
    "text": b"not an array",
    "objects": npy(np.array([None, 1]), allow_pickle=True),
    "objects in a field": npy(np.zeros(2, [("a", "O")]), allow_pickle=True),
    "a pickle": pickle.dumps([1, 2]),
    "an archive": b"PK\3\4" + bytes(100),
    "Python 2": REAL.replace(b"(8,), } ", b"(8L,), }"),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_array_is_named_before_anything_is_written(content, plan, tmp_path):
    with pytest.raises(ConfigError, match=r"01-bad\.npy: ") as caught:
        plan({"D15/00-good.npy": GRID, "D16/01-bad.npy": content, "D17/0-text": b"text"})
    assert "D16" in str(caught.value) and caught.value.field == "D16"
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["minus signs", "parentheses", "a void of 2**31 - 1"])
def test_hostile_headers(kind, plan):
    raw = HOSTILE[kind]
    start = raw.index(b"\x93NUMPY")
    with pytest.raises(ConfigError, match=r"bad\.npy: "):
        plan({"n/bad.npy": raw[start:]})


def test_only_the_header_is_read_to_plan(plan, tmp_path, intercept):
    calls = []
    plan({"n/a.npy": np.zeros(100_000)})
    intercept(lambda operation, path, *details: calls.append((operation, os.path.basename(path))))
    planned = plan_build(tmp_path / "src", tmp_path / "data")
    assert ("map", "a.npy") in calls and ("read", "a.npy") not in calls
    calls.clear()
    planned.write()
    assert calls.count(("open", "a.npy")) == calls.count(("read", "a.npy")) == 1


def test_a_file_that_changes_after_the_plan(plan, tmp_path):
    planned = plan({"D15/a.npy": GRID, "D16/b.npy": GRID})
    (tmp_path / "src" / "D16" / "b.npy").write_bytes(b"gone")
    with pytest.raises(ConfigError, match=r"b\.npy: expected the header of a \.npy file"):
        planned.write()
    assert (tmp_path / "data" / "D15" / "region.mmap").exists()
    assert not (tmp_path / "data" / "D16").exists()


def test_a_file_that_cannot_be_read(plan, intercept):
    plan({"n/a.npy": GRID})

    def refuse(operation, path, *details):
        if operation == "map" and path.endswith("a.npy"):
            raise OSError(5, "Input/output error")

    intercept(refuse)
    with pytest.raises(RegionIOError, match=r"cannot read .*a\.npy"):
        plan({"n/a.npy": GRID})


def test_too_many_fields(plan):
    wide = np.zeros(1, [(f"field{i}", "<f8") for i in range(499)])
    with pytest.raises(ConfigError, match=r"wide\.npy: expected a header of at most 10,000 bytes"):
        plan({"n/wide.npy": wide})


def test_the_command_line_builds_arrays(tmp_path):
    pytest.importorskip("click")
    (tmp_path / "src" / "n").mkdir(parents=True)
    np.save(tmp_path / "src" / "n" / "grid.npy", GRID)
    command = [sys.executable, "-m", "jessymem"]
    build = [*command, "build", "src", "--data", "data", "--json"]
    result = subprocess.run(build, cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(result.stdout)["dimensions"][0]["n_layers"] == 1
    inspect = [*command, "inspect", "D15", "--data", "data", "--json"]
    result = subprocess.run(inspect, cwd=tmp_path, capture_output=True, check=True)
    (layer,) = json.loads(result.stdout)["layers"]
    assert (layer["encoding"], layer["dtype"], layer["shape"]) == ("array", "<f8", [3, 4])
    cat = [*command, "cat", "L15-00", "--data", "data"]
    result = subprocess.run(cat, cwd=tmp_path, capture_output=True, check=True)
    assert result.stdout == GRID.tobytes("F")
    (tmp_path / "src" / "n" / "bad.npy").write_bytes(b"bad")
    result = subprocess.run([*build, "--force"], cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 1 and b"bad.npy" in result.stderr
    assert sorted(osmem.list_directory(tmp_path / "data" / "D15")) == ["build.json", "region.mmap"]
