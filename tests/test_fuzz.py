"""Region files that were damaged, by chance and by intent, thousands of times over.

Each mutation is known by a seed and an index, so that any of them can be made again. A mutated file
loads, and then everything that can be asked of it is answered within its bytes or with a
`RegionFormatError`; or it is refused with one. What else happens is a finding: its bytes are kept
in tests/corpus, and every file there is tried again in each run.

    python -m pytest tests/test_fuzz.py -m slow

runs many more, in processes of their own with a bound on memory, so that a crash, a hang or a large
allocation is seen and its input kept. Half of the processes compile the kernels, which then read
bytes that end where the address space does. The environment says how many and which:

    JESSYMEM_FUZZ        mutations, 1,000,000 unless given: what a release runs at least
    JESSYMEM_FUZZ_SEED   of the first process, 1 unless given
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import functools
import hashlib
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import traceback
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import naive
from support.naive import Draft, resign, set_field, write_plain

from jessymem import (
    DimensionId,
    LayerId,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
    osmem,
)
from jessymem.kernels import _jit
from jessymem.kernels import schema as s
from jessymem.regions import layout

CORPUS = Path(__file__).parent / "corpus"
N_DEFAULT = 6_000
N_SLOW = int(os.environ.get("JESSYMEM_FUZZ", "1000000"))
SEED = int(os.environ.get("JESSYMEM_FUZZ_SEED", "1"))

#: Mutations that one process tries, and seconds for a hundred of them before it counts as hanging.
CHUNK = 12_500
PATIENCE = 120
#: Address space that a process may ask for on top of what it has when it begins.
MEMORY = 2**29
#: What one file may make the package allocate, in bytes per byte of the file and at least.
PER_BYTE, AT_LEAST = 64, 2**18

# -- files to begin with ---------------------------------------------------------------------------


def _built(*numbers: int, name: str = "Name") -> bytes:
    builder = RegionBuilder(1, name)
    for number in numbers:
        builder.add_layer(
            number,
            bytes([number % 251]) * (number * 13 % 150) if number % 3 else f"text {number}",
            name=f"layer {number}",
            frequency=number / 7,
            depth=number % 256,
            keywords=["word", f"k{number}", "\u5730"][: number % 4],
            parent=LayerId(1, numbers[0]) if number != numbers[0] else None,
        )
    return bytes(builder.build_to_memory().data)


def _plain(*numbers: int) -> bytes:
    return write_plain(
        [
            Draft(number, bytes([number % 251]) * (number % 40), number % 256, number / 7, words)
            for number in numbers
            for words in [[b"word", b"", "\u5730".encode()][: number % 4]]
        ],
        name=b"plain",
        tail=b"tail",
    )


def _arrays() -> bytes:
    builder = RegionBuilder(1, "arrays")
    builder.add_array(0, np.arange(6, dtype="<i2").reshape(2, 3), name="plain")
    builder.add_array(1, np.asfortranarray(np.arange(6.0).reshape(2, 3)), keywords=["k"])
    fields = np.dtype([("a", "<f8"), ("b", [("c", ">i2"), ("d", "<M8[s]")], (2,))])
    builder.add_array(4, np.zeros(3, fields))
    builder.add_layer(5, "text")
    builder.add_array(9, np.zeros((0, 2), "<U3"))
    builder.add_array(300, np.array([1.5], [("\u5730", "<f4")]))
    return bytes(builder.build_to_memory().data)


@functools.cache
def bases() -> tuple[bytes, ...]:
    """Make the valid files that mutations begin with."""
    return (
        _built(0, 1, 2, 3),
        _built(3, 9, 300, 65_535),
        _built(),
        _built(7, name="\u5730" * 21 + "x"),
        _built(*range(20)),
        _plain(5, 2, 65_535, 0),
        _plain(),
        _plain(*range(30, 10, -1)),
        _arrays(),
        _arrays(),
    )


def _walk(raw: bytes) -> Iterator[tuple[int, int]]:
    fields = {**naive.HEADER_FIELDS, **naive.EXTENSION_FIELDS}
    for at, code in fields.values():
        yield at, min(struct.calcsize(code), 8)
    n_layers = naive.get_field(raw, "layer_count")
    if naive.get_field(raw, "extension_magic") == b"JMX1":
        for row in range(n_layers):
            for field, (_, code) in naive.ROW_FIELDS.items():
                yield naive.field_offset(raw, row, field), struct.calcsize(code)
    at = naive.HEADER.size
    for layer in naive.read_plain(raw).layers:
        yield from ((at, 2), (at + 2, 1), (at + 3, 4), (at + 7, 4))
        at += naive.ENTRY.size
        for keyword in layer.keywords:
            yield at, 4
            at += 4 + len(keyword)
        yield from ((at, 8), (at + 8, 4))
        at += naive.EXTENT.size


@functools.cache
def fields_of(raw: bytes) -> list[tuple[int, int]]:
    """Return offset and width of every field of a valid file."""
    return list(_walk(raw))


# -- mutations -------------------------------------------------------------------------------------

_NUMBERS = [0, 1, 2, 3, 4, 7, 23, 63, 64, 65, 255, 256, 257, 4_095, 4_096, 4_097, 0x7F800000]
LITERALS = [b"O", b"<", b">", b"'", b"(", b")", b"[", b"{", b"-", b"-1", b"0", b"9" * 20, b"L"]
LITERALS += [b"True", b"False", b"|O", b"|V0", b"<U9", b"<M8[ns]", b"((((", b"[" * 99, b"\\", b"\n"]
INTERESTING = sorted(
    {*_NUMBERS, *(2**power + step for power in (7, 15, 16, 24, 31, 32, 63, 64) for step in (-1, 0))}
)


def _set_number(raw: bytearray, rng: random.Random, base: bytes) -> None:
    at, width = rng.choice(fields_of(base))
    held = int.from_bytes(raw[at : at + width], "little")
    other_at, other_width = rng.choice(fields_of(base))
    other = int.from_bytes(base[other_at : other_at + other_width], "little")
    number = rng.choice(
        [
            rng.choice(INTERESTING),
            rng.choice(INTERESTING),
            held + rng.choice([-64, -8, -1, 1, 8, 64]),
            len(raw) + rng.randrange(-2, 3),
            other,
            other_at,
        ]
    )
    raw[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")


def _flip_bits(raw: bytearray, rng: random.Random, base: bytes) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def _set_bytes(raw: bytearray, rng: random.Random, base: bytes) -> None:
    at, n_bytes = rng.randrange(len(raw)), rng.choice([1, 2, 4, 8, 64])
    piece = rng.choice([bytes(n_bytes), b"\xff" * n_bytes, rng.randbytes(n_bytes)])
    raw[at : at + n_bytes] = piece[: len(raw) - at]


def _splice(raw: bytearray, rng: random.Random, base: bytes) -> None:
    source = rng.choice([base, rng.choice(bases())])
    start = rng.randrange(len(source))
    piece = source[start : start + rng.choice([1, 4, 23, 64, 200])]
    at = rng.randrange(len(raw))
    raw[at : at + rng.choice([0, len(piece), len(piece)])] = piece


def _describe(raw: bytearray, rng: random.Random, base: bytes) -> None:
    """Change the text of an array's description, at its length."""
    offsets = [at for at in range(len(raw)) if raw.startswith(b"\x93NUMPY", at)]
    if not offsets:
        return _set_number(raw, rng, base)
    at = rng.choice(offsets) + rng.choice([rng.randrange(128), rng.randrange(10, 80)])
    piece = rng.choice([*LITERALS, bytes([rng.randrange(256)])])
    raw[at : at + len(piece)] = piece[: len(raw) - at]


def _cut(raw: bytearray, rng: random.Random, base: bytes) -> None:
    at = rng.randrange(len(raw))
    del raw[at : rng.choice([len(raw), at + 1, at + 4, at + 64])]


def _append(raw: bytearray, rng: random.Random, base: bytes) -> None:
    raw += rng.choice([bytes(64), rng.randbytes(30), base[rng.randrange(len(base)) :]])


MUTATIONS = [_set_number] * 5 + [_flip_bits] * 2 + [_set_bytes, _splice, _cut, _append, _describe]


def mutate(seed: int, index: int) -> bytes:
    """Make mutation `index` of `seed`: a valid file, changed, with checksums that hold or not."""
    rng = random.Random(seed << 40 | index)
    base = rng.choice(bases())
    raw = bytearray(base)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if raw:
            rng.choice(MUTATIONS)(raw, rng, base)
    return _repair(bytes(raw), rng)


def _repair(raw: bytes, rng: random.Random) -> bytes:
    if len(raw) < naive.HEADER.size:
        return raw
    if rng.random() < 0.6:
        raw = set_field(raw, "total_size", len(raw))
    if rng.random() < 0.7 and naive.get_field(raw, "extension_magic") == b"JMX1":
        start, n_layers = (naive.get_field(raw, name) for name in ("table_offset", "layer_count"))
        has_table = naive.HEADER.size <= start and start + 64 * n_layers <= len(raw)
        raw = resign(raw, contents=has_table and rng.random() < 0.4)
    return raw


# -- what must hold --------------------------------------------------------------------------------


def ask(question: Any, *arguments: Any) -> Any:
    """Return the answer, or the error where the file breaks the format."""
    try:
        return question(*arguments)
    except RegionFormatError as error:
        return error


def is_refused(answer: Any, raw: bytes) -> bool:
    """Tell whether an answer is a refusal, and check that it says why and where."""
    if not isinstance(answer, RegionFormatError):
        return False
    assert answer.field and isinstance(answer.field, str)
    assert 0 <= answer.offset <= len(raw)
    assert answer.path and str(answer.offset) in str(answer)
    return True


def load(raw: bytes) -> MmapRegion:
    data = np.frombuffer(raw, np.uint8)
    return MmapRegion(DimensionId(1), None, data, s.REGION_COPIED, None)


def check(raw: bytes) -> str:
    """Try a file in every way; return "refused", "plain" or "extended"."""
    region = ask(load, raw)
    if is_refused(region, raw):
        return "refused"
    check_layers(region, raw)
    verified = not is_refused(ask(region.verify_integrity, "full"), raw)
    if region.generation == 0 or verified:
        check_against_naive(region, raw)
    return "extended" if region.generation else "plain"


def check_layers(region: MmapRegion, raw: bytes) -> None:
    """Check that every layer lies in the file, apart from the others, and can be asked for."""
    ids = region.list_layers()
    assert ids == sorted(set(ids))
    end_of_last = region.layout.content_start
    extents = []
    for row, layer_id in enumerate(ids):
        assert region.find_row(layer_id) == row
        info = ask(region.get_layer_info, layer_id)
        start, end = (int(region.layout.rows[row][f"content_{at}"]) for at in ("offset", "end"))
        assert 0 <= start <= end <= len(raw)
        assert region.content_of(row) == raw[start:end]
        if end > start:
            extents.append((start, end))
        array = ask(is_array_of, region, layer_id, raw[start:end])
        assert is_refused(array, raw) <= is_refused(info, raw)
        if not is_refused(info, raw):
            assert (info.dtype is not None) == (array is True)
            assert (info.layer_id, info.offset, info.size) == (layer_id, start, end - start)
            assert np.isfinite(info.frequency) and 0 <= info.depth <= 255
            assert all(isinstance(text, str) for text in (info.name, *info.keywords))
    for start, end in sorted(extents):
        assert start >= end_of_last
        end_of_last = end
    for question in (lambda: region.metadata, lambda: region.rows_by_keyword):
        is_refused(ask(question), raw)
    region.describe_into(np.zeros(1, s.REGION)[0])


def is_array_of(region: MmapRegion, layer_id: LayerId, content: bytes) -> bool:
    """Tell whether a layer is an array; check that one has just the bytes of its content."""
    try:
        array = region.read_array(layer_id)
    except TypeError as error:
        assert "is no array" in str(error)
        return False
    assert not array.flags.writeable and not array.dtype.hasobject
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    assert array.tobytes(order) == content
    return True


def check_against_naive(region: MmapRegion, raw: bytes) -> None:
    """Check that the plain reader sees the same layers."""
    told = {layer.layer: layer for layer in naive.read_plain(raw).layers}
    assert [layer_id.layer for layer_id in region.list_layers()] == sorted(told)
    for row, (_, layer) in enumerate(sorted(told.items())):
        assert region.content_of(row) == layer.content
        assert region.layout.rows[row]["depth"] == layer.depth
        assert struct.pack("<f", region.layout.rows[row]["frequency"]) == struct.pack(
            "<f", layer.frequency
        )
        keywords = tuple(keyword.decode(errors="replace") for keyword in layer.keywords)
        assert region.keywords_of(row) == keywords


def check_as_file(raw: bytes, outcome: str, path: Path) -> None:
    """Check that a file on disk is judged as its bytes are, mapped and copied."""
    path.write_bytes(raw)
    for mode in ("map", "copy"):
        region = ask(lambda mode=mode: MmapRegion.from_file(1, path, load_mode=mode))
        assert is_refused(region, raw) == (outcome == "refused")
        if outcome != "refused":
            assert region.read_content(0, region.size) == raw
            verified = ask(region.verify_integrity, "full")
            assert is_refused(verified, raw) == is_refused(
                ask(load(raw).verify_integrity, "full"), raw
            )


def check_memory(raw: bytes) -> None:
    """Check that a file makes nobody allocate more than its length explains.

    The interpreter's own tables grow now and then, so a peak counts if it comes each time.
    """
    peaks = (measure_peak(raw) for _ in range(3))
    assert any(peak < PER_BYTE * len(raw) + AT_LEAST for peak in peaks)


def measure_peak(raw: bytes) -> int:
    tracemalloc.start()
    try:
        check(raw)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Guarded:
    """Memory that ends where reading on is a crash, where the system has such."""

    def __init__(self, n_bytes: int) -> None:
        page = mmap.PAGESIZE
        self.memory = mmap.mmap(-1, osmem.round_to_pages(n_bytes) + page)
        self.end = len(self.memory) - page
        if sys.platform == "linux":
            address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + self.end
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def parse(self, raw: bytes) -> None:
        """Read the plain entries of a file that ends where the memory does."""
        start = self.end - len(raw)
        self.memory[start : self.end] = raw
        data = np.frombuffer(self.memory, np.uint8, len(raw), start)
        source = layout.Source(DimensionId(1), "memory")
        header = ask(layout.read_header, data, source)
        if not is_refused(header, raw):
            is_refused(ask(layout.read_plain, data, header, source), raw)


def keep(raw: bytes) -> Path:
    """Keep a finding."""
    path = CORPUS / f"{hashlib.sha256(raw).hexdigest()[:16]}.mmap"
    path.write_bytes(raw)
    return path


# -- the default run -------------------------------------------------------------------------------


@pytest.mark.parametrize("base", range(len(bases())))
def test_files_to_begin_with_are_valid(base):
    raw = bases()[base]
    assert check(raw) == ("plain" if 5 <= base < 8 else "extended")
    assert load(raw).verify_integrity("full")
    assert {at + width <= len(raw) for at, width in fields_of(raw)} == {True}


def test_mutations_can_be_made_again():
    assert [mutate(1, i) for i in range(50)] == [mutate(1, i) for i in range(50)]
    assert len({mutate(1, i) for i in range(500)}) > 400
    assert mutate(2, 0) != mutate(1, 0)


def try_one(seed: int, index: int, path: Path) -> str:
    """Try one mutation; keep a finding before its error goes on."""
    raw = mutate(seed, index)
    try:
        outcome = check(raw)
        if index % 50 == 0:
            check_as_file(raw, outcome, path)
        if index % 50 == 25:
            check_memory(raw)
    except Exception as error:
        error.add_note(f"mutation {index} of seed {seed}, kept as {keep(raw)}")
        raise
    return outcome


def test_mutated_files_load_or_are_refused(tmp_path):
    path = tmp_path / "region.mmap"
    outcomes = collections.Counter(try_one(0, index, path) for index in range(N_DEFAULT))
    assert set(outcomes) == {"refused", "plain", "extended"}
    assert min(outcomes.values()) > N_DEFAULT // 20


def test_mutated_entries_at_the_end_of_memory():
    guarded = Guarded(2**16)
    for index in range(N_DEFAULT // 3):
        guarded.parse(mutate(3, index))


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that cannot be read")
def test_reading_past_guarded_memory_is_a_crash():
    code = (
        "from test_fuzz import Guarded; g = Guarded(10); print('made', flush=True);"
        "import ctypes; a = ctypes.addressof(ctypes.c_char.from_buffer(g.memory));"
        "print(ctypes.string_at(a + g.end - 1, 1), flush=True); ctypes.string_at(a + g.end, 1)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=False
    )
    assert result.stdout.split() == [b"made", b"b'\\x00'"]
    assert result.returncode < 0


# -- findings --------------------------------------------------------------------------------------

FINDINGS = sorted(CORPUS.glob("*.mmap"))


@pytest.mark.parametrize("path", FINDINGS, ids=[path.stem for path in FINDINGS])
def test_findings_stay_mended(path, tmp_path):
    raw = path.read_bytes()
    check_as_file(raw, check(raw), tmp_path / "region.mmap")
    check_memory(raw)
    Guarded(len(raw)).parse(raw)


def test_there_are_findings_to_try():
    assert FINDINGS


# -- the long run ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_mutated_files_load_or_are_refused(tmp_path):
    chunks = range(0, N_SLOW, CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda start: run_worker(start, tmp_path), chunks))
    findings = [finding for result in results for finding in result["findings"]]
    assert not findings, "\n\n".join(findings)
    outcomes: collections.Counter[str] = collections.Counter()
    for result in results:
        outcomes.update(result["outcomes"])
    assert outcomes.total() == N_SLOW
    assert min(outcomes[kind] for kind in ("refused", "plain", "extended")) > N_SLOW // 20


def run_worker(start: int, folder: Path) -> dict[str, Any]:
    """Try one chunk in a process of its own; return its outcomes and what was found."""
    progress = folder / f"{start}"
    progress.write_bytes(start.to_bytes(8, "little"))
    stop = min(start + CHUNK, N_SLOW)
    command = [sys.executable, "-W", "error", __file__, str(start), str(stop), str(progress)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        told: dict[str, Any] = json.loads(result.stdout)
        return told
    index = int.from_bytes(progress.read_bytes(), "little")
    kept = keep(mutate(SEED, index))
    end = f"exit code {result.returncode} at {index}, kept as {kept}"
    return {"outcomes": {}, "findings": [f"{end}\n{result.stderr[-4_000:]}"]}


def work(start: int, stop: int, progress: Path) -> None:
    """Be that process: note each index before it is tried."""
    if start // CHUNK % 2:
        _jit.promote(_jit.PARSING)
    guarded = Guarded(2**16)
    outcomes: collections.Counter[str] = collections.Counter()
    findings = []
    path = progress.with_suffix(".mmap")
    with progress.open("r+b") as file, mmap.mmap(file.fileno(), 8) as index_now:
        limit_memory()
        for index in range(start, stop):
            if index % 100 == 0:
                faulthandler.dump_traceback_later(PATIENCE, exit=True)
            index_now[:] = index.to_bytes(8, "little")
            try:
                guarded.parse(mutate(SEED, index))
                outcomes[try_one(SEED, index, path)] += 1
            except Exception:
                findings.append(traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(json.dumps({"outcomes": outcomes, "findings": findings}))


def limit_memory() -> None:
    """Refuse this process more than MEMORY on top of what it holds, where the system can."""
    if sys.platform != "linux":
        return
    import resource

    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (n_pages * mmap.PAGESIZE + MEMORY, hard))


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
