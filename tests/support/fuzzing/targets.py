"""Everything that others may write and this package reads: how it is made, what must hold of it.

A target makes its input from a generator of random numbers, so that seed and index name it, and
checks it; what the check raises is a finding. What is to be read next becomes one more line of
`TARGETS`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import os
import pickle
import random
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from jessymem import (
    DimensionId,
    JessyMemoryError,
    LayerId,
    LayerRef,
    MemoryConfig,
    MmapManager,
    PoolConfig,
    RegionBuilder,
    RegionFormatError,
)
from jessymem.ingest.columns import Columns
from jessymem.ingest.folders import SourceFile
from jessymem.ingest.manifest import parse_record, read_manifest
from jessymem.ingest.receipts import read_receipt
from jessymem.ingest.tables import JsonLines, SeparatedValues
from jessymem.kernels import schema as s
from jessymem.regions import arrays
from jessymem.regions.files import RegionFiles
from jessymem.regions.literals import read_literal
from support import naive
from support.fuzzing import checks, files, texts


class Target(NamedTuple):
    """One kind of input.

    Attributes
    ----------
    name : str
    suffix : str
        Of a finding's name in the corpus.
    share : int
        Of a hundred mutations, how many are of this kind.
    make : callable
        Makes an input; equal random numbers, equal inputs.
    check : callable
        Takes the input and an empty place for a file; returns what came of it, or raises.
    """

    name: str
    suffix: str
    share: int
    make: Callable[[random.Random], Any]
    check: Callable[[Any, Path], str]


# -- region files ----------------------------------------------------------------------------------


def check_region(raw: bytes, path: Path) -> str:
    outcome = checks.check(raw)
    turn = zlib.crc32(raw) % 100  # of these, some are looked at closer
    if turn < 2:
        checks.check_as_file(raw, outcome, path)
    if turn == 2:
        checks.check_memory(raw)
    return outcome


# -- descriptions of arrays ------------------------------------------------------------------------


def check_description(raw: bytes, path: Path) -> str:
    """Check that a description is refused, or read as NumPy and Python themselves read it."""
    try:
        form = arrays.read_description(raw)
    except arrays.NoDescription:
        return "refused"
    assert not form.dtype.hasobject
    n_items = int(np.prod(np.array(form.shape, object))) if form.shape else 1
    assert form.n_bytes == n_items * form.dtype.itemsize < 2**63
    start = 10 if raw[6] == 1 else 12
    text = raw[start:].decode("utf-8" if raw[6] == 3 else "latin-1")
    assert ast.literal_eval(text.strip()) == read_literal(text)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if raw[6] in read:
        with contextlib.suppress(ValueError, UserWarning):  # NumPy minds white space at the start
            told = read[raw[6]](io.BytesIO(raw[8:]))
            assert told == (form.shape, form.order == "F", form.dtype)
    if form.n_bytes < 2**16:
        array = form.make_array(memoryview(bytes(form.n_bytes)))
        assert (array.shape, array.dtype, array.nbytes) == (form.shape, form.dtype, form.n_bytes)
    return "read"


# -- manifests -------------------------------------------------------------------------------------


def check_manifest(raw: bytes, path: Path) -> str:
    path.write_bytes(raw)
    try:
        manifest = read_manifest(path)
    except JessyMemoryError as error:
        assert str(path) in str(error)
        return "refused"
    assert manifest.name is None or isinstance(manifest.name, str)
    for name, entry in manifest.layers.items():
        assert isinstance(name, str) and all(isinstance(word, str) for word in entry.keywords)
        assert entry.layer is None or 0 <= entry.layer <= 65_535
    return "read"


# -- records and rows ------------------------------------------------------------------------------


def check_record(raw: bytes, path: Path) -> str:
    """Check what is read of a file, whichever kind it is taken for."""
    path.with_name("build.json").write_bytes(raw)
    assert read_receipt(path.parent) is None  # its checksum was never right
    n_read = 0
    for ending in ("json", "jsonl", "csv"):
        file = path.with_suffix(f".{ending}")
        file.write_bytes(raw)
        try:
            if ending == "json":
                parse_record(file, raw, "array")
            else:
                found = SourceFile.of(file.name, file, file.stat())
                make = (
                    JsonLines
                    if ending == "jsonl"
                    else functools.partial(SeparatedValues, delimiter=",")
                )
                for layer in make(found, Columns()).plan(DimensionId(15)):
                    assert layer.layer_id.dimension == 15 and isinstance(layer.name, str)
                    layer.draft(layer.form)
            n_read += 1
        except JessyMemoryError as error:
            assert str(file) in str(error) and len(str(error)) < 20_000
        except ValueError as error:  # what `draft` says of a name, as a plan would
            assert "UTF-8" in str(error) or "keywords" in str(error)
        finally:
            file.unlink()
    path.with_name("build.json").unlink()
    return "read" if n_read else "refused"


# -- references ------------------------------------------------------------------------------------


def make_reference(rng: random.Random) -> list[Any]:
    """Make what a reference is pickled as; "here" stands for the file that there is."""
    pieces: list[Any] = ["here", [1, 0, 0], 65_536]
    for _ in range(rng.choice([0, 1, 1, 2])):
        at = rng.randrange(5)
        if at < 3:
            pieces[at] = rng.choice(texts.HOSTILE)
        elif isinstance(pieces[1], list):
            pieces[1][at - 2 : at - 1] = [rng.choice(texts.HOSTILE)]
    if rng.random() < 0.3:
        pieces[1] = None  # the edition that there is
    return pieces


def check_reference(pieces: list[Any], path: Path) -> str:
    """Check that a reference is refused when it is made, or leads to its layer or to an error."""
    if not path.exists():
        path.write_bytes(files.bases()[0])
    where, edition, layer = pieces
    region = checks.load(files.bases()[0])
    try:
        ref = LayerRef(
            path if isinstance(where, str) and where == "here" else where,
            tuple(region.edition) if edition is None else edition,
            layer,
        )
    except (ValueError, TypeError, JessyMemoryError):
        return "refused"
    assert ref == ref and hash(ref) == hash(ref) and repr(ref)
    assert pickle.loads(pickle.dumps(ref)) == ref
    try:
        content = ref.get()
    except JessyMemoryError:
        return "nowhere"
    assert content == region.content_of(region.find_row(ref.layer_id))
    return "read"


# -- files beside one another ----------------------------------------------------------------------

NAMES = (
    "region.mmap", "region.g{}.mmap", "region.g0{}.mmap", "region.g-{}.mmap", "region.g{}.mmap ",
    "region.g{}.mmap\n", "region.G{}.mmap", "region.g{}", ".region.mmap.{}-0123abcd.tmp",
    ".region.mmap.lock", "region.g{}.mmap.tmp", "Region.g{}.mmap", "region.g\u0661.mmap",
    "region.d{}.mmap",
)  # fmt: skip
GENERATIONS = (0, 1, 2, 3, 9, 10, 2**31, 2**63 - 1, 2**63, 2**64, 10**19, 10**40)


def make_beside(rng: random.Random) -> list[tuple[str, str, bytes]]:
    """Make names, what each is, and bytes."""
    made = [("region.mmap", "file", files.bases()[0])] * (rng.random() < 0.6)
    for _ in range(rng.randrange(1, 5)):
        name = rng.choice(NAMES[:2] + NAMES).format(rng.choice(GENERATIONS))
        kind = rng.choice(["file"] * 6 + ["directory", "link", "loop", "pipe"])
        raw = files.bases()[0]
        if rng.random() < 0.6:
            raw = naive.resign(
                naive.set_field(raw, "generation", rng.choice(GENERATIONS[:8])), contents=False
            )
        elif rng.random() < 0.5:
            raw = files.mutate(rng)
        made.append((name, kind, raw))
    return made


def check_beside(made: list[tuple[str, str, bytes]], path: Path) -> str:
    """Check that the valid file of the highest generation is read, or an error says why not.

    What is not ours to remove stays.
    """
    folder = path.parent / "beside" / "D01"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, kind, raw in made:
        place = folder / name
        if os.path.lexists(place):
            continue
        if kind == "file":
            place.write_bytes(raw)
        elif kind == "directory":
            place.mkdir()
        elif kind == "pipe":
            os.mkfifo(place)
        else:
            place.symlink_to(name if kind == "loop" else "region.mmap")
    target = folder / "region.mmap"
    told = [generation_in(each) for each in folder.iterdir()]
    wanted = max((generation for generation in told if generation is not None), default=-1)
    before = set(os.listdir(folder))
    regions = RegionFiles(DimensionId(1), target)
    outcome = "nothing"
    try:
        with MmapManager(1, base_path=folder.parent) as manager:
            manager.load_dimension(1)
            outcome = "read"
            layers = manager.list_layers(1)
            if layers and None not in told:
                assert manager.ref(layers[0]).generation == wanted
            manager.refresh(1)
    except JessyMemoryError:
        pass
    else:
        assert regions.exists() and target in regions
    kept = {name for name in before if not may_go(name)}
    assert kept <= set(os.listdir(folder))
    try:
        with regions.writing(timeout=0):
            assert regions.next_generation() > max(wanted, 0) or None in told
    except JessyMemoryError:
        pass
    return outcome


def generation_in(path: Path) -> int | None:
    """Return the generation of a file that counts, -1 where it does not; None: its name lies."""
    is_beside = path.name.startswith("region.g") and path.name.endswith(".mmap")
    number = path.name[8:-5]
    if is_beside:
        is_plain = number.isascii() and number.isdigit() and not number.startswith("0")
        if not is_plain or len(number) > 19 or path.is_symlink():
            return -1
    elif path.name != "region.mmap":
        return -1
    if not path.is_file():
        return -1
    try:
        generation = checks.load(path.read_bytes()).generation
    except RegionFormatError:
        return -1
    return None if is_beside and int(number) != generation else generation


def may_go(name: str) -> bool:
    """Tell whether a name may be removed by who loads: leftovers, and generations folded back."""
    return name.startswith((".region.mmap.", "region.g"))


# -- a region file and its deltas ------------------------------------------------------------------

CHAIN_FIELDS = (
    "generation", "created_at", "total_size", "layer_count", "dimension_id",
    "follows_generation", "follows_created_at", "follows_size", "flags", "replaces",
    "deleted_offset", "n_deleted",
)  # fmt: skip


@functools.cache
def chain() -> tuple[bytes, ...]:
    """Write a region file and deltas: some in the place of others, some with deleted layers."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "D01", "region.mmap")
        builder = RegionBuilder(1, "chained")
        for number in range(6):
            builder.add_layer(number, bytes([number]) * 3_000)
        builder.build_to_file(target)
        with MmapManager(8, base_path=folder) as manager, patch.object(s, "MAX_DELTAS", 3):
            manager.load_dimension(1)
            raws = {target.name: target.read_bytes()}
            for number in range(4):
                manager.create_proto_dimension(1, b"learned %d" % number)
                manager.crystallize_dimension(1)
                raws |= {path.name: path.read_bytes() for path in target.parent.glob("*.mmap")}
            for number in (2, 7, 3):
                manager.delete_layer(LayerId(1, number))
                raws |= {path.name: path.read_bytes() for path in target.parent.glob("*.mmap")}
    return tuple(raws[name] for name in sorted(raws, key=lambda name: (len(name), name)))


def make_chain(rng: random.Random) -> list[tuple[str, bytes]]:
    """Make files of a chain under their names or others', some changed, some left out."""
    made = []
    for raw in chain():
        number = naive.get_field(raw, "generation")
        if rng.random() < 0.1:
            continue
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            field = rng.choice(CHAIN_FIELDS)
            values = [naive.get_field(each, field) for each in chain()]
            value = rng.choice([*values, 0, 1, 7, 2**31, 2**32 - 1])
            raw = naive.set_field(raw, field, value)
        if naive.get_field(raw, "n_deleted") and rng.random() < 0.3:
            at = min(naive.get_field(raw, "deleted_offset"), len(raw) - 2)
            raw = naive.put(raw, at, bytes([rng.randrange(9), rng.choice([0, 0, 255])]))
        if rng.random() < 0.9:
            raw = naive.resign(raw)
        if rng.random() < 0.1:
            at = rng.randrange(len(raw))
            raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
        if rng.random() < 0.05:
            raw = raw[: rng.randrange(len(raw))]
        if rng.random() < 0.1:
            number = rng.randrange(1, 9)
        made.append(("region.mmap" if number == 1 else f"region.d{number}.mmap", raw))
    return made


def check_chain(made: list[tuple[str, bytes]], path: Path) -> str:
    """Check that what is read was written somewhere; learning goes on and loses nothing."""
    folder = path.parent / "chain" / "D01"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, raw in made:
        (folder / name).write_bytes(raw)
    written = b"\0".join(raw for _, raw in made)
    before = set(os.listdir(folder))
    # Of larger pools plain kernels look at each block, to tell which pages can be returned.
    config = MemoryConfig(8, folder.parent, [PoolConfig(1, 4096)], simulation="never")
    try:
        with MmapManager(config) as manager:
            manager.load_dimension(1)
            seen = {layer: bytes(manager.access_layer(layer)) for layer in manager.list_layers()}
            assert all(content in written for content in seen.values())
            assert before <= set(os.listdir(folder))  # who only reads removes none
            assert manager.refresh(1) is False
            new = manager.create_proto_dimension(1, b"after all")
            manager.crystallize_dimension(1)
            seen[new] = b"after all"
            if len(seen) % 2:
                gone = min(seen)
                manager.delete_layer(gone)
                del seen[gone]
            assert {each: manager.access_layer(each) for each in manager.list_layers()} == seen
    except JessyMemoryError:
        return "refused"
    with MmapManager(config) as manager:
        manager.load_dimension(1)
        assert {each: manager.access_layer(each) for each in manager.list_layers()} == seen
        manager.fold(1)
        assert {each: manager.access_layer(each) for each in manager.list_layers()} == seen
    return "read"


TARGETS = (
    Target("region", "mmap", 75, files.mutate, check_region),
    Target("description", "description", 15, texts.mutate_description, check_description),
    Target("manifest", "toml", 3, texts.mutate_manifest, check_manifest),
    Target("record", "record", 2, texts.mutate_record, check_record),
    Target("reference", "reference", 2, make_reference, check_reference),
    Target("beside", "beside", 1, make_beside, check_beside),
    Target("chain", "chain", 2, make_chain, check_chain),
)
_OF_A_HUNDRED = [target for target in TARGETS for _ in range(target.share)]
assert len(_OF_A_HUNDRED) == 100


def target_of(index: int) -> Target:
    """Return the target of a mutation."""
    return _OF_A_HUNDRED[index % 100]


def make(seed: int, index: int) -> Any:
    """Make mutation `index` of `seed`."""
    return target_of(index).make(random.Random(seed << 40 | index))
