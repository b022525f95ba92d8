"""Scans beside their peers, in one run: ``pytest tests/benchmarks --benchmark-enable -k scan``.

280 MB of real text: the source files of Python's standard library again and again, each a layer.
The peers have the same text as one piece: `bytes` and `re` in memory, `mmap` as a file, NumPy the
mapped region files themselves. Each benchmark says how many GB/s it came to.
"""

from __future__ import annotations

import mmap
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from jessymem import LayerId, MmapManager, RegionBuilder
from jessymem.demo.library import library_folder, library_sources
from jessymem.kernels import _jit
from jessymem.terminal.hit_lines import hit_lines

MIB = 2**20
N_DIMENSIONS = 4
N_WORKERS = (1, 2)

RARE = b"zq\xffjessy"
#: Bytes that are everywhere, in an order in which they are nowhere; the last two are, and often.
COMMON = (b"eateteatea", b" e e e e", b"in the the", b"self.self.self", b"        eeee")
FREQUENT = (b" self", b"the ", b"        ")


class Text(NamedTuple):
    """The same text in all forms."""

    base: Path
    manager: MmapManager
    whole: bytes
    mapped: mmap.mmap
    words: list[np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def text(request, tmp_path_factory) -> Iterator[Text]:
    n_bytes = 280 * MIB if request.config.getoption("benchmark_enable") else 2 * MIB
    if _jit.is_disabled():
        n_bytes = 2**16
    sources = [path for each in library_sources(library_folder()).values() for path in each]
    if not sources:
        pytest.skip("this Python comes without sources")
    base = tmp_path_factory.mktemp("scan")
    pieces, left = [], n_bytes
    for path in cycle(sources):
        pieces.append(path.read_bytes()[:left])
        left -= len(pieces[-1])
        if not left:
            break
    words = []
    for i in range(N_DIMENSIONS):
        builder = RegionBuilder(20 + i, "library")
        for layer, piece in enumerate(pieces[i::N_DIMENSIONS]):
            builder.add_layer(layer, piece)
        path = region_path(base, 20 + i)
        builder.build_to_file(path)
        raw = np.memmap(path, np.uint8, "r")
        words.append(np.asarray(raw)[: len(raw) // 8 * 8].view(np.uint64))
    whole = b"\n".join(pieces)
    (base / "whole").write_bytes(whole)
    with (base / "whole").open("rb") as file, MmapManager(512, base_path=base) as manager:
        for i in range(N_DIMENSIONS):
            manager.load_dimension(20 + i)
        _jit.promote(_jit.SEARCHING)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        yield Text(base, manager, whole, mapped, words)


def region_path(base: Path, number: int) -> Path:
    return base / f"D{number}" / "region.mmap"


def run(benchmark, text, function):
    """Time a function; return what it returns."""
    rounds = 1 if benchmark.disabled else 9
    found = benchmark.pedantic(function, rounds=rounds, warmup_rounds=rounds > 1)
    if not benchmark.disabled:
        gigabytes = len(text.whole) / benchmark.stats.stats.median / 1e9
        benchmark.extra_info["GB/s"] = round(gigabytes, 2)
    return found


# -- absent, with a rare byte ----------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", N_WORKERS)
@pytest.mark.benchmark(group="scan: find an absent needle with a rare byte")
def test_find_rare(benchmark, text, n_workers):
    hits = run(benchmark, text, lambda: text.manager.find(RARE, workers=n_workers))
    assert len(hits) == 0


@pytest.mark.benchmark(group="scan: find an absent needle with a rare byte")
def test_bytes_find_rare(benchmark, text):
    assert run(benchmark, text, lambda: text.whole.find(RARE)) == -1


@pytest.mark.benchmark(group="scan: find an absent needle with a rare byte")
def test_mmap_find_rare(benchmark, text):
    assert run(benchmark, text, lambda: text.mapped.find(RARE)) == -1


@pytest.mark.benchmark(group="scan: find an absent needle with a rare byte")
def test_re_search_rare(benchmark, text):
    pattern = re.compile(re.escape(RARE))
    assert run(benchmark, text, lambda: pattern.search(text.whole)) is None


# -- absent, of common bytes -----------------------------------------------------------------------


def mark_needle(benchmark, needle, what):
    benchmark.group = f"scan: {what} {needle!r}"


@pytest.mark.parametrize("n_workers", N_WORKERS)
@pytest.mark.parametrize("needle", COMMON)
def test_find_common(benchmark, text, needle, n_workers):
    mark_needle(benchmark, needle, "find")
    hits = run(benchmark, text, lambda: text.manager.find(needle, workers=n_workers))
    assert len(hits) == 0


@pytest.mark.parametrize("needle", COMMON)
def test_bytes_find_common(benchmark, text, needle):
    mark_needle(benchmark, needle, "find")
    assert run(benchmark, text, lambda: text.whole.find(needle)) == -1


# -- often there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", N_WORKERS)
@pytest.mark.parametrize("needle", FREQUENT)
def test_count_frequent(benchmark, text, needle, n_workers):
    mark_needle(benchmark, needle, "count")
    n_found = run(benchmark, text, lambda: text.manager.count(needle, workers=n_workers))
    assert n_found >= text.whole.count(needle) > 0  # overlapping ones count here


@pytest.mark.parametrize("needle", FREQUENT)
def test_bytes_count_frequent(benchmark, text, needle):
    mark_needle(benchmark, needle, "count")
    assert run(benchmark, text, lambda: text.whole.count(needle)) > 0


@pytest.mark.parametrize("n_workers", N_WORKERS)
@pytest.mark.benchmark(group="scan: count one byte")
def test_count_one_byte(benchmark, text, n_workers):
    n_found = run(benchmark, text, lambda: text.manager.count(b"e", workers=n_workers))
    assert n_found == text.whole.count(b"e")


@pytest.mark.benchmark(group="scan: count one byte")
def test_bytes_count_one_byte(benchmark, text):
    assert run(benchmark, text, lambda: text.whole.count(b"e")) > 0


# -- as people search ------------------------------------------------------------------------------

WORD = b"NotImplemented"
EXPRESSIONS = (rb"self\.\w+ = None", rb"(?i)raise \w+error", rb"[A-Z]{3}_[A-Z]{3}_\w+")


@pytest.mark.parametrize("n_workers", N_WORKERS)
@pytest.mark.benchmark(group="scan: count a word in either case")
def test_count_in_either_case(benchmark, text, n_workers):
    count = text.manager.count
    n_found = run(benchmark, text, lambda: count(WORD, ignore_case=True, workers=n_workers))
    assert n_found == text.whole.lower().count(WORD.lower())


@pytest.mark.benchmark(group="scan: count a word in either case")
def test_bytes_count_in_small_letters(benchmark, text):
    wanted = WORD.lower()
    assert run(benchmark, text, lambda: text.whole.lower().count(wanted)) > 0


@pytest.mark.benchmark(group="scan: count a word in either case")
def test_re_findall_in_either_case(benchmark, text):
    pattern = re.compile(WORD, re.IGNORECASE)
    assert run(benchmark, text, lambda: len(pattern.findall(text.whole))) > 0


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_count_an_expression(benchmark, text, expression):
    mark_needle(benchmark, expression, "count")
    pattern = re.compile(expression)
    n_found = run(benchmark, text, lambda: text.manager.count(pattern))
    assert n_found == len(pattern.findall(text.whole))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_re_findall_an_expression(benchmark, text, expression):
    mark_needle(benchmark, expression, "count")
    pattern = re.compile(expression)
    run(benchmark, text, lambda: len(pattern.findall(text.whole)))


@pytest.mark.benchmark(group="scan: finds as lines in a file")
def test_lines_in_a_file(benchmark, text, tmp_path):
    def write():
        with (tmp_path / "lines").open("wb") as file:
            n_lines = 0
            for batch in text.manager.find_batches(b"self."):
                file.write(hit_lines(batch, is_coloured=False))
                n_lines += len(batch)
        return n_lines

    n_lines = run(benchmark, text, write)
    assert (tmp_path / "lines").read_bytes().count(b"\n") == n_lines
    if not benchmark.disabled:
        millions = n_lines / benchmark.stats.stats.median / 1e6
        benchmark.extra_info["million lines/s"] = round(millions, 2)


#: Each counts the same: lines with what is wanted, of which no line has two.
COMMANDS = {
    "jessymem": [sys.executable, "-m", "jessymem", "find", "-c", "raise NotImpl", "--data"],
    "grep": ["grep", "-rc", "--include=*.txt", "raise NotImpl"],
    "rg": ["rg", "-c", "--no-ignore", "raise NotImpl"],
}


@pytest.fixture(scope="module")
def tree(text, tmp_path_factory) -> Path:
    """The same layers as files."""
    folder = tmp_path_factory.mktemp("tree")
    for layer in text.manager.list_layers():
        path = folder / str(layer.dimension) / f"{layer}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.manager.access_layer(layer))
    return folder


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.benchmark(group="scan: a command that counts")
def test_count_by_a_command(benchmark, text, tree, name):
    if shutil.which(COMMANDS[name][0]) is None:
        pytest.skip(f"there is no {name}")
    where = text.base if name == "jessymem" else tree
    command = [*COMMANDS[name], str(where)]
    run(benchmark, text, lambda: subprocess.run(command, capture_output=True, check=False))


@pytest.mark.parametrize("n_workers", N_WORKERS)
@pytest.mark.benchmark(group="scan: find every position of a word")
def test_find_a_word(benchmark, text, n_workers):
    hits = run(benchmark, text, lambda: text.manager.find(b"return self.", workers=n_workers))
    assert len(hits) == text.whole.count(b"return self.")


@pytest.mark.benchmark(group="scan: find every position of a word")
def test_re_finditer_a_word(benchmark, text):
    pattern = re.compile(re.escape(b"return self."))
    positions = run(
        benchmark, text, lambda: [each.start() for each in pattern.finditer(text.whole)]
    )
    assert len(positions) == text.whole.count(b"return self.")


# -- a user's own kernel ---------------------------------------------------------------------------


def sum_bytes(content, row):
    """The sum of all bytes."""
    found = np.uint64(0)
    for i in range(content.size):  # `for byte in content` would load them one by one
        found += np.uint64(content[i])
    return found


def sum_words(content, row):
    """The sum of the whole words."""
    words, found = content[: content.size // 8 * 8].view(np.uint64), np.uint64(0)
    for i in range(words.size):
        found += words[i]
    return found


@pytest.mark.parametrize("n_workers", N_WORKERS)
@pytest.mark.parametrize("kernel", [sum_bytes, sum_words], ids=["bytes", "words"])
@pytest.mark.benchmark(group="scan: a user's sum")
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # where it is plain Python
def test_users_sum(benchmark, text, kernel, n_workers):
    scan = text.manager.scan
    values = run(benchmark, text, lambda: scan(kernel, np.uint64, workers=n_workers))
    assert len(values) == len(text.manager)
    assert kernel is sum_words or values[0] == sum(text.manager.access_layer(LayerId(20, 0)))


@pytest.mark.parametrize("n_threads", N_WORKERS)
@pytest.mark.benchmark(group="scan: a user's sum")
def test_numpy_sum(benchmark, text, n_threads):
    halves = [half for words in text.words for half in np.array_split(words, 2)]

    def total():
        if n_threads == 1:
            return [words.sum() for words in text.words]
        with ThreadPoolExecutor(n_threads) as threads:
            return list(threads.map(np.sum, halves))

    assert sum(map(int, run(benchmark, text, total))) > 0
