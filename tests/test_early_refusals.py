"""What cannot be is refused before any work is done, by errors that name it."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from support.regions import write_packed

from jessymem import (
    LayerRef,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
    osmem,
)
from jessymem.kernels import schema as s
from jessymem.regions import drafts

TOO_LONG = 2**32
NO_PATHS = ["\ud800x", "a\0b", "\udfff"]


@pytest.fixture
def builder() -> RegionBuilder:
    return RegionBuilder("D20", "Name")


# -- lengths ---------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs memory that is not touched")
@pytest.mark.parametrize("kind", ["bytes", "array"])
def test_content_that_is_too_long_is_not_copied(kind, builder):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with mmap.mmap(-1, TOO_LONG, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with pytest.raises(ValueError, match=r"L20-00: .* 4,294,967,296 bytes"):
            if kind == "bytes":
                with memoryview(memory) as content:
                    builder.add_layer(0, content)
            else:
                builder.add_array(0, np.broadcast_to(np.uint8(1), TOO_LONG))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    unit = 1 if sys.platform == "darwin" else 1024
    assert used * unit < TOO_LONG / 4  # it was not copied
    assert len(builder) == 0


class Text(str):
    def encode(self, *arguments: object) -> bytes:
        raise AssertionError("it was encoded to be measured")


@pytest.mark.parametrize("field", ["content", "name", "keywords"])
def test_text_that_is_too_long_is_not_encoded(field, builder, monkeypatch):
    monkeypatch.setattr(drafts.s, "MAX_CONTENT_BYTES", 100)
    text = Text("x" * 101)
    given = {"content": b"", field: [text] if field == "keywords" else text}
    with pytest.raises(ValueError, match=r"L20-00: .* 101 "):
        builder.add_layer(0, **given)


def test_a_released_view_is_still_no_content(builder):
    view = memoryview(b"x")
    view.release()
    with pytest.raises(ValueError, match="L20-00"):
        builder.add_layer(0, view)


# -- metadata --------------------------------------------------------------------------------------

N_KEYWORDS, KEYWORD_BYTES = 4_000, 16_000


def test_metadata_that_are_too_much_are_refused_when_the_file_is_built(builder, tmp_path):
    builder.add_layer(0, b"x", keywords=["k" * KEYWORD_BYTES] * N_KEYWORDS)
    for build in (
        lambda: builder.build_to_file(tmp_path / "new" / "region.mmap"),
        builder.build_to_memory,
    ):
        with pytest.raises(RegionFormatError) as caught:
            build()
        error = caught.value
        assert isinstance(error, ValueError)
        assert (error.field, error.dimension) == ("metadata", builder.dimension_id)
        assert f"{s.MAX_METADATA_BYTES:,}" in str(error) and error.got > s.MAX_METADATA_BYTES
    assert os.listdir(tmp_path) == []


def test_a_plain_file_whose_metadata_leave_no_bytes_for_a_table_is_not_crystallized(tmp_path):
    path = tmp_path / "D20" / "region.mmap"
    write_packed(path, 20, {0: b"x"})
    raw = path.read_bytes()
    word = KEYWORD_BYTES.to_bytes(4, "little") + b"k" * KEYWORD_BYTES
    keywords = word * N_KEYWORDS
    entry = np.frombuffer(raw, s.LAYER_ENTRY, 1, s.HEADER_BYTES).copy()
    entry["keyword_count"] = N_KEYWORDS
    n_bytes = s.HEADER_BYTES + s.MIN_ENTRY_BYTES + len(keywords) + 1
    header = np.frombuffer(raw, s.HEADER, 1).copy()
    header["total_size"] = n_bytes
    extent = np.array([(n_bytes - 1, 1)], s.LAYER_EXTENT)
    path.write_bytes(b"".join(map(bytes, (header, entry, keywords, extent, b"x"))))
    before = osmem.identify(path)
    with MmapManager(280, base_path=tmp_path) as manager:
        manager.load_dimension("D20")
        layer = manager.create_proto_dimension("D20", b"learned")
        with pytest.raises(RegionFormatError) as caught:
            manager.crystallize_dimension("D20")
        assert caught.value.field == "metadata"
        assert f"{s.MAX_METADATA_BYTES:,}" in str(caught.value)
        assert bytes(manager.access_layer(layer)) == b"learned"
        assert manager.get_layer_info(layer).state.name == "ACTIVE"
    assert osmem.identify(path) == before and os.listdir(path.parent) == ["region.mmap"]


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NO_PATHS)
@pytest.mark.parametrize("kind", [str, Path])
def test_what_can_be_no_path_is_named(kind, path, builder, tmp_path):
    builder.add_layer(0, b"x")
    edition = builder.build_to_memory().edition
    with MmapManager(8, base_path=tmp_path) as manager:
        calls = [
            lambda: builder.build_to_file(kind(path)),
            lambda: MmapRegion.from_file("D20", kind(path)),
            lambda: manager.load_dimension("D20", kind(path)),
            lambda: LayerRef(kind(path), edition, "L20-00"),
            lambda: MemoryConfig(base_path=kind(path)),
            lambda: MmapManager(8, base_path=kind(path)),
        ]
        for call in calls:
            with pytest.raises(ValueError) as caught:
                call()
            assert not isinstance(caught.value, UnicodeError)
            assert repr(path)[1:-1] in str(caught.value)
            str(caught.value).encode()  # it can be shown
