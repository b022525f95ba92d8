"""Files that somebody rewrites under their mapping: errors of ours or other bytes, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import samples
from support.lines import KERNELS, PACKAGE, at_line
from support.samples import sampled

from jessymem import LayerId, MmapManager, MmapRegion, OutOfBounds, RegionBuilder, RegionFormatError
from jessymem.errors import JessyMemoryError
from jessymem.kernels import schema as s

NUMBERS = (0, 2, 5, 6)
IDS = [LayerId(15, number) for number in NUMBERS]


@pytest.fixture(params=["extended", "plain"])
def file(request, memory_path):
    """A region file with text, keywords, an array and gaps between its numbers; or a plain one."""
    path = memory_path / "D15" / "region.mmap"
    builder = RegionBuilder("D15", "Name")
    builder.add_layer(0, b"bytes of it", name="one", keywords=["a", "bb"], frequency=1.5, depth=2)
    builder.add_layer(2, "text of it", name="two", keywords=["ccc"], parent="L15-00")
    builder.add_array(5, np.arange(6, dtype="<i4").reshape(2, 3), name="three", keywords=["k"])
    builder.add_layer(6, b"")
    builder.build_to_file(path)
    if request.param == "plain":
        raw = bytearray(path.read_bytes())
        raw[s.RESERVED_OFFSET : s.HEADER_BYTES] = bytes(s.HEADER_BYTES - s.RESERVED_OFFSET)
        path.write_bytes(raw)
    return path


def write(path: Path, at: int, piece: bytes) -> None:
    """Rewrite bytes of a file where it lies, as nobody should."""
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        file.write(piece)


def questions_to(region: MmapRegion) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield all that can be asked of a region that is mapped."""
    yield "list_layers", region.list_layers
    yield "metadata", lambda: region.metadata
    yield "keyword_index", lambda: region.keyword_index
    yield "children_by_parent", lambda: region.children_by_parent
    yield "drafts", region.drafts
    yield "repr", lambda: repr(region)
    yield "describe_into", lambda: region.describe_into(np.zeros(1, s.REGION)[0])
    for level in ("header", "metadata", "stored", "full"):
        yield f"verify_integrity {level}", lambda level=level: region.verify_integrity(level)
    for row, layer_id in enumerate(IDS):
        for verb in (region.get_layer_info, region.read_array):
            yield f"{verb.__name__} {layer_id}", lambda v=verb, i=layer_id: v(i)
        for verb in (region.content_of, region.draft_of, region.name_of, region.keywords_of):
            yield f"{verb.__name__} {row}", lambda v=verb, r=row: v(r)


def ask(question: Callable[[], Any]) -> None:
    """Ask; only errors that tell what is wrong may come."""
    try:
        question()
    except (RegionFormatError, OutOfBounds):
        pass
    except TypeError as error:
        assert "is no array" in str(error), error


@sampled
@pytest.mark.parametrize("piece", [b"\xff", b"\xff" * 8, b"\0" * 8])
def test_every_byte_of_the_metadata_may_be_rewritten(file, piece):
    raw = file.read_bytes()
    region = MmapRegion.from_file("D15", file)
    end = region.layout.content_start
    for at in range(0, end, samples.number(3, of=1)):
        region = MmapRegion.from_file("D15", file)  # which remembers nothing yet
        write(file, at, piece[: end - at])
        for _, question in questions_to(region):
            ask(question)
        write(file, at, raw[at : at + len(piece)])


def rewritten_tables(path: Path) -> tuple[int, list[bytes]]:
    """Return where a file's tables begin, and other bytes for all of them."""
    region = MmapRegion.from_file("D15", path)
    start, end = region.layout.table_offset or s.HEADER_BYTES, region.layout.content_start
    raw = path.read_bytes()[start:end]
    tables = [b"\xff" * len(raw), bytes(len(raw)), b"\7" * len(raw)]
    if region.layout.is_extended:
        tables.append(raw[3 * s.LAYER_BYTES :][: s.LAYER_BYTES] + raw[s.LAYER_BYTES :])
        for field in ("layer_num", "content_end", "keywords_size", "array_size", "encoding"):
            for value in (0, 3, 2**64 - 1):
                rows = np.frombuffer(raw[: len(IDS) * s.LAYER_BYTES], s.LAYER).copy()
                rows[field] = value & (2 ** (8 * s.LAYER[field].itemsize) - 1)
                tables.append(rows.tobytes() + raw[rows.nbytes :])
    return start, tables


def interrupt(n_lines: int, act: Callable[[], None], question: Callable[[], Any]) -> bool:
    """Ask, and act when so many lines of the package have run; tell whether there were so many."""
    folders = (PACKAGE, KERNELS)
    return at_line(n_lines, lambda: ask(question), lambda _: act(), folders=folders) >= n_lines


@sampled
def test_a_file_may_be_rewritten_between_any_two_lines_of_a_load(file):
    start, tables = rewritten_tables(file)
    raw = file.read_bytes()
    for table in tables:
        n_lines = 1
        while interrupt(
            n_lines,
            lambda table=table: write(file, start, table),
            lambda: MmapRegion.from_file("D15", file),
        ):
            write(file, start, raw[start:])
            n_lines += samples.number(5, of=1)
        write(file, start, raw[start:])


QUESTIONS = [
    "list_layers",
    "drafts",
    "keyword_index",
    "verify_integrity full",
    "get_layer_info L15-05",
    "read_array L15-05",
]


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_file_may_be_rewritten_between_any_two_lines_of_a_read(file, name):
    start, tables = rewritten_tables(file)
    raw = file.read_bytes()
    for table in tables[:3]:
        n_lines, goes_on = 1, True
        while goes_on:
            question = dict(questions_to(MmapRegion.from_file("D15", file)))[name]
            act = lambda table=table: write(file, start, table)  # noqa: E731
            goes_on = interrupt(n_lines, act, question)
            write(file, start, raw[start:])
            n_lines += 1 + n_lines // 20  # verifying runs thousands


VERBS = {
    "access_layer": lambda m: [m.access_layer(each) for each in IDS],
    "access_many": lambda m: m.access_many(IDS),
    "locate_many": lambda m: m.locate_many(IDS),
    "gather": lambda m: m.gather(IDS),
    "get_layer_info": lambda m: [m.get_layer_info(each) for each in IDS],
    "array": lambda m: m.array(IDS[2]),
    "load_layer_context": lambda m: m.load_layer_context(IDS[2]),
    "format_for_llm": lambda m: m.load_contexts(IDS).format_for_llm(),
    "format_with_metadata": lambda m: m.load_contexts(IDS).format_with_metadata(),
    "select": lambda m: m.select(keywords=["a"]),
    "find": lambda m: m.find(b"t", limit=9),
    "count": lambda m: m.count(b"t"),
    "list_layers": lambda m: m.list_layers(),
    "get_stats": lambda m: m.get_stats(),
    "dump_state": lambda m: m.dump_state(),
    "refresh": lambda m: m.refresh("D15"),
    "ref": lambda m: [m.ref(each) for each in IDS],
    "crystallize_a_new_layer": lambda m: (
        m.create_proto_dimension("D15", b"new"),
        m.crystallize_dimension("D15"),
    ),
    "crystallize_an_overlay": lambda m: (
        m.overlay_layer(IDS[0], b"new"),
        m.crystallize_dimension("D15"),
    ),
}


@pytest.mark.parametrize("name", VERBS)
def test_verbs_of_a_manager_meet_tables_that_were_rewritten(file, name):
    start, tables = rewritten_tables(file)
    raw = file.read_bytes()
    for table in tables:
        file.write_bytes(raw)
        with MmapManager(64, base_path=file.parent.parent) as manager:
            manager.load_dimension("D15")
            write(file, start, table)
            try:
                VERBS[name](manager)
            except JessyMemoryError:
                pass
            except TypeError as error:
                assert "is no array" in str(error), error
