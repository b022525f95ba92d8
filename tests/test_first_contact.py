"""What a newcomer sees: objects in one line, errors that name what was done."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from support.regions import region_file

from jessymem import (
    ContextCollection,
    LayerInfo,
    LoadReport,
    MmapManager,
    RegionBuilder,
    RegionIOError,
    RegionNotFound,
)
from jessymem.units import show_bytes


@pytest.fixture
def kinds(tmp_path):
    """A store with a text, an array, bytes that are text, and bytes that are not."""
    builder = RegionBuilder("D15", "Kinds")
    builder.add_layer(0, "Rain.", name="text", frequency=1.2, keywords=["weather"])
    builder.add_array(1, np.arange(12.0).reshape(3, 4), name="array")
    builder.add_layer(2, b"bytes of text", parent="L15-00", depth=1)
    builder.add_layer(3, bytes(range(256)) * 5, name="binary")
    builder.add_layer(4, "a\0b")
    builder.build_to_file(region_file(tmp_path, "D15"))
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension("D15")
        yield manager


# -- objects in one line ---------------------------------------------------------------------------


def test_a_layer_says_what_it_is(kinds):
    shown = [repr(kinds.get_layer_info(layer)) for layer in kinds.list_layers()]
    assert shown[:3] == [
        "<LayerInfo L15-00 'text', 5 bytes, text, frequency=1.2, depth=0, keywords=('weather',),"
        " children=1, MMAP, PERMANENT>",
        "<LayerInfo L15-01 'array', 96 bytes, array float64 3x4, frequency=1.0, depth=0, MMAP,"
        " PERMANENT>",
        "<LayerInfo L15-02, 13 bytes, bytes, frequency=1.0, depth=1, parent=L15-00, MMAP,"
        " PERMANENT>",
    ]
    assert kinds.get_layer_info("L15-00").frequency == np.float32(1.2)  # the value is what it was


def test_a_layer_tells_its_encoding(kinds):
    infos = [kinds.get_layer_info(layer) for layer in kinds.list_layers()]
    assert [info.encoding for info in infos] == ["text", "array", "bytes", "bytes", "text"]
    learned = kinds.create_proto_dimension("D15", "learned")
    assert kinds.get_layer_info(learned).encoding == "text"
    assert kinds.load_layer_context(learned).encoding == "text"
    assert LayerInfo.__dataclass_fields__["encoding"].default == "bytes"


def test_a_context_says_what_it_is(kinds):
    shown = [repr(kinds.load_layer_context(f"L15-{number:02}")) for number in (0, 1, 2)]
    assert shown == [
        "<LoadedContext L15-00 'text', 5 bytes: 'Rain.'>",
        "<LoadedContext L15-01 'array', 96 bytes>",
        "<LoadedContext L15-02, 13 bytes: 'bytes of text'>",
    ]


def test_statistics_are_a_line_and_a_table(kinds):
    stats = kinds.get_stats()
    line, table = repr(stats), str(stats).splitlines()
    limit = show_bytes(stats.total_limit_bytes)
    assert line == (
        f"<MemoryStats {show_bytes(stats.total_allocated_bytes)} of {limit}"
        f" ({stats.utilization:.1%}), 1 dimensions, 5 layers>"
    )
    found = dict(row.split("  ", 1) for row in table)
    assert found["allocated"].strip().startswith(show_bytes(stats.total_allocated_bytes))
    assert found["thresholds"].strip() == "below all"
    assert found["core slots"].strip() == "0 B of 148.0 MB"
    assert len({len(row) - len(row.split("  ", 1)[1].lstrip()) for row in table}) == 1
    kinds.allocate(100)
    assert "1 of 8,192 blocks of 4,096 bytes" in str(kinds.get_stats())


def test_a_report_of_loads_is_a_line():
    assert repr(LoadReport((), (), 0.0012)) == "<LoadReport 0 loaded, 0 skipped, 1.2 ms>"
    skipped = ((1, "is loaded"), (2, "is loaded"))
    assert "2 skipped (1: is loaded, ...)" in repr(LoadReport((), skipped, 0))


# -- prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["format_for_llm", "format_with_metadata"])
def test_prompts_leave_out_what_is_no_text_and_say_so(kinds, form):
    contexts = kinds.load_contexts(kinds.list_layers())
    assert [context.is_binary for context in contexts] == [False, True, False, True, False]
    written = getattr(contexts, form)()
    assert "Rain." in written
    assert "bytes of text" in written
    assert "a\0b" in written  # its writer says that it is text
    assert "[left out: 96 bytes that are not text]\n" in written
    assert "[left out: 1,280 bytes that are not text]\n" in written
    assert "\ufffd" not in written
    cut = getattr(contexts, form)(len(written) - 10)
    assert len(cut) == len(written) - 10
    assert getattr(ContextCollection(list(contexts)[1:2]), form)(10_000).count("left out") == 1


# -- errors that name what was done ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "what"),
    [(".", "is a folder"), ("..", "is a folder"), ("/", "is a folder"), ("", "names no file")],
)
def test_a_region_file_is_not_written_to_a_folder(path, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    builder = RegionBuilder("D15", "Name")
    with pytest.raises(RegionIOError) as caught:
        builder.build_to_file(path)
    assert what in str(caught.value)
    assert str(Path(path) / "D15" / "region.mmap") in str(caught.value)
    assert (caught.value.path, caught.value.dimension) == (path, 15)
    assert os.listdir(tmp_path) == []


def test_a_base_path_that_is_a_file_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with MmapManager(base_path=path) as manager:
        for list_all in (manager.discover, manager.load_all):
            with pytest.raises(RegionIOError, match=r"cannot list .*file: Not a directory"):
                list_all()


@pytest.mark.parametrize("kernel", [len, int, np.sqrt])
def test_a_scan_with_what_cannot_be_compiled_says_what_to_do(kinds, kernel):
    with pytest.raises(TypeError, match=r"written in Python.*def kernel\(content, row\)"):
        kinds.scan(kernel, "f8")


def test_a_stale_reference_names_both_files(kinds, tmp_path):
    stale = pickle.dumps(kinds.ref("L15-01"))
    kinds.close()
    builder = RegionBuilder("D15", "Newer")
    builder.add_layer(1, b"newer")
    path = region_file(tmp_path, "D15")
    builder.build_to_file(path)
    with pytest.raises(RegionNotFound) as caught:
        pickle.loads(stale).array()
    size = path.stat().st_size
    assert str(path) in str(caught.value)
    assert "generation 1 (" in str(caught.value)
    assert f"UTC, {size:,} bytes) is there" in str(caught.value)
