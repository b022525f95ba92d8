"""`MmapRegion`: what cannot be opened or read, what verification finds, what is left behind."""

import errno
import gc
import os
import stat
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import naive
from support.naive import Draft, write_plain
from support.system import HAS_PROC, mapped_bytes, mappings_of, open_files, opened_since
from support.system_calls import Calls

from jessymem import (
    AllocationFailed,
    ContentLocation,
    DimensionId,
    DimensionNotFound,
    LayerId,
    LayerNotFound,
    LayerState,
    MmapRegion,
    OutOfBounds,
    RegionBuilder,
    RegionFormatError,
    RegionIOError,
    osmem,
)
from jessymem.kernels import schema as s

POSIX = os.name == "posix"
posix_only = pytest.mark.skipif(not POSIX, reason="needs a POSIX system")
proc_only = pytest.mark.skipif(not HAS_PROC, reason="needs /proc")
both_modes = pytest.mark.parametrize("mode", ["map", "copy"])

LAYERS = {0: b"first", 2: b"", 5: b"third" * 30}


def make_builder():
    builder = RegionBuilder(7, "Technical")
    for number, content in LAYERS.items():
        builder.add_layer(
            number, content, name=f"layer {number}", keywords=["word", f"k{number}"], depth=number
        )
    return builder


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "region.mmap"
    make_builder().build_to_file(path)
    return path


@pytest.fixture(params=["map", "copy", "memory"])
def region(request, path):
    if request.param == "memory":
        return make_builder().build_to_memory()
    return MmapRegion.from_file(7, path, load_mode=request.param)


# -- what it tells ---------------------------------------------------------------------------------


def test_it_tells_what_it_is(region, path):
    assert region.dimension_id == DimensionId(7)
    assert region.size == path.stat().st_size
    assert region.list_layers() == [LayerId(7, number) for number in LAYERS]
    assert repr(region) == f"<MmapRegion D07 3 layers {region.size:,} bytes {region.path}>"
    metadata = region.metadata
    assert metadata is region.metadata
    assert (metadata.version, metadata.generation) == (1, 1)
    assert (metadata.dimension_name, metadata.total_size) == ("Technical", region.size)
    for info in metadata.layers:
        number = info.layer_id.layer
        assert info == region.get_layer_info(info.layer_id)
        assert region.read_content(info.offset, info.size) == LAYERS[number]
        assert bytes(region.content_of(region.find_row(info.layer_id))) == LAYERS[number]
        assert info.name == f"layer {number}"
        assert (info.depth, info.keywords) == (number, ("word", f"k{number}"))
    found = {word: list(region.rows_with_keyword(word)) for word in ("word", "k0", "k2", "k5", "k")}
    assert found == {"word": [0, 1, 2], "k0": [0], "k2": [1], "k5": [2], "k": []}


def test_what_is_looked_up_by_takes_a_few_bytes_for_each():
    builder = RegionBuilder("D07", "Technical")
    for number in range(300):
        words = [f"{word} of {number}" for word in range(20)]
        builder.add_layer(number, b"", keywords=words, parent=LayerId(6, number // 2))
    region = builder.build_to_memory()
    assert region.keyword_index.n_bytes == 300 * 20 * 10
    assert region.children_by_parent.n_bytes == 300 * 6
    assert list(region.rows_with_keyword("3 of 217")) == [217]
    assert region.children_of(LayerId(6, 100)) == (LayerId(7, 200), LayerId(7, 201))
    assert region.children_of(LayerId(8, 100)) == ()


@pytest.mark.parametrize("name", ["keyword_index", "metadata", "children_by_parent"])
def test_no_region_waits_for_what_another_computes(name, monkeypatch):
    busy, free = make_builder().build_to_memory(), make_builder().build_to_memory()
    inside, go_on = threading.Event(), threading.Event()

    def slow_rows(region):
        if not inside.is_set():
            inside.set()
            assert go_on.wait(60)
        return free.rows

    busy.__class__ = type("Slow", (MmapRegion,), {"rows": property(slow_rows)})
    threads = [threading.Thread(target=getattr, args=(each, name)) for each in (busy, free)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    threads[1].join(10)
    waited = threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join()
    assert not waited


def test_where_its_bytes_are(path):
    mapped = MmapRegion.from_file(7, path)
    copied = MmapRegion.from_file(7, path, load_mode="copy")
    memory = make_builder().build_to_memory()
    told = [(r.location_of(0), r.state_of(0), r.state, r.path) for r in (mapped, copied, memory)]
    assert told == [
        (ContentLocation.MMAP, LayerState.PERMANENT, s.REGION_MAPPED, path),
        (ContentLocation.HEAP, LayerState.PERMANENT, s.REGION_COPIED, path),
        (ContentLocation.HEAP, LayerState.ACTIVE, s.REGION_SIMULATED, None),
    ]
    assert mapped.identity == copied.identity == osmem.identify(path)
    assert memory.identity is None


@pytest.mark.parametrize("wanted", ["L07-01", "L07-06", "L07-65535", "L08-00", 8 << 16 | 2])
def test_layers_that_are_not_there(region, wanted):
    with pytest.raises(LayerNotFound, match="is not in") as caught:
        region.get_layer_info(wanted)
    assert isinstance(caught.value, KeyError)
    assert caught.value.layer in (
        LayerId(7, 1),
        LayerId(7, 6),
        LayerId(7, 65_535),
        8 << 16,
        8 << 16 | 2,
    )


def test_layers_that_are_not_there_where_numbers_have_no_gaps():
    region = RegionBuilder(7, "")
    region.add_layer(0, b"")
    region = region.build_to_memory()
    assert region.index is None
    for wanted in ("L07-01", "L07-65535", "L06-00"):
        with pytest.raises(LayerNotFound):
            region.get_layer_info(wanted)
    with pytest.raises(LayerNotFound):
        RegionBuilder(7, "").build_to_memory().get_layer_info("L07-00")


@pytest.mark.parametrize(
    ("wanted", "error"), [("D07", ValueError), (7, ValueError), (1.5, TypeError)]
)
def test_what_is_no_layer_id(region, wanted, error):
    with pytest.raises(error):
        region.get_layer_info(wanted)


def test_a_row_of_the_region_table(region):
    slot = np.zeros(1, s.REGION)[0]
    region.describe_into(slot)
    assert (slot["n_layers"], slot["n_index"]) == (3, 6)
    assert (slot["n_bytes"], slot["dimension"], slot["generation"]) == (region.size, 7, 1)
    assert slot["n_charged"] == osmem.round_to_pages(region.size)
    assert slot["state"] == region.state
    start = slot["content_address"]
    assert start <= slot["table_address"] < start + slot["n_bytes"]


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_and_size", [(0, 0), (0, 1), (0, "all"), ("end", 0), ("last", 1)])
def test_reads_within_bounds(region, offset_and_size):
    named = {"all": region.size, "end": region.size, "last": region.size - 1}
    offset, size = (named.get(value, value) for value in offset_and_size)
    view = region.read_content(offset, size)
    assert (len(view), view.readonly, view.format, view.shape) == (size, True, "B", (size,))
    everything = bytes(region.read_content(0, region.size))
    assert view == everything[offset : offset + size]
    assert region.read_content(np.int64(offset), np.uint16(size)) == view


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (-1, 1),
        (0, -1),
        (-1, 0),
        (5, -5),
        ("end", 1),
        ("past", 0),
        (0, "past"),
        (1, "end"),
        (2**63, 1),
        (2**64 - 1, 2),
        (0, 2**64),
        (-(2**64), 2**64),
    ],
)
def test_reads_out_of_bounds(region, offset, size):
    named = {"end": region.size, "past": region.size + 1}
    offset, size = named.get(offset, offset), named.get(size, size)
    for read in (region.read_content, region.read_string):
        with pytest.raises(OutOfBounds, match="D07") as caught:
            read(offset, size)
        assert isinstance(caught.value, IndexError)
        told = caught.value.offset, caught.value.size, caught.value.region_size
        assert told == (offset, size, region.size)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_reads_out_of_bounds_whose_end_wraps(region):
    with pytest.raises(OutOfBounds):
        region.read_content(np.int64(2**63 - 1), np.int64(5))


@pytest.mark.parametrize(("offset", "size"), [(1.0, 1), (0, 1.0), ("0", 1), (None, 1)])
def test_reads_take_integers(region, offset, size):
    with pytest.raises(TypeError):
        region.read_content(offset, size)


def test_strings_show_what_does_not_decode(tmp_path):
    content = "t\u00e9xt \U0001f30d".encode()
    raw = write_plain([Draft(0, content + b"\xff\xc3")], dimension=7)
    (tmp_path / "region").write_bytes(raw)
    region = MmapRegion.from_file(7, tmp_path / "region")
    at = len(raw) - len(content) - 2
    assert region.read_string(at, len(content)) == "t\u00e9xt \U0001f30d"
    assert region.read_string(at, len(content) + 2) == "t\u00e9xt \U0001f30d\ufffd\ufffd"
    assert region.read_string(at + 2, 1) == "\ufffd"
    assert region.read_string(0, 0) == ""


def test_views_cannot_be_written(region):
    view = region.read_content(0, 10)
    with pytest.raises(TypeError):
        view[0] = 1
    assert not np.frombuffer(view, "u1").flags.writeable


@both_modes
def test_a_view_outlives_its_region_and_its_file(path, mode):
    view = MmapRegion.from_file(7, path, load_mode=mode).read_content(0, 256)
    before = bytes(view)
    if POSIX:
        path.unlink()
    assert bytes(view) == before == bytes(view)


# -- opening ---------------------------------------------------------------------------------------


@both_modes
def test_nothing_there(tmp_path, path, mode):
    for missing in (tmp_path / "missing", tmp_path / "a" / "b", path / "below"):
        with pytest.raises(DimensionNotFound, match="D07") as caught:
            MmapRegion.from_file("D07", missing, load_mode=mode)
        assert caught.value.path == str(missing) and str(missing) in str(caught.value)
        assert caught.value.dimension == DimensionId(7)
        assert isinstance(caught.value, KeyError)


@both_modes
def test_a_file_without_bytes(tmp_path, mode):
    (tmp_path / "region").touch()
    with pytest.raises(RegionFormatError) as caught:
        MmapRegion.from_file(7, tmp_path / "region", load_mode=mode)
    assert (caught.value.field, caught.value.offset) == ("header", 0)
    assert (caught.value.expected, caught.value.got) == ("256 bytes", "0 bytes")


def check_refused_by_the_system(path, mode, number):
    with pytest.raises(RegionIOError) as caught:
        MmapRegion.from_file(7, path, load_mode=mode)
    error = caught.value
    assert (error.errno, error.path, error.filename) == (number, str(path), str(path))
    assert error.operation == ("read" if mode == "copy" else "map")
    assert error.dimension == DimensionId(7)
    assert "D07" in str(error) and str(path) in str(error) and f"errno {number}" in str(error)
    return error


@posix_only
@both_modes
def test_a_directory_in_its_place(tmp_path, mode):
    check_refused_by_the_system(tmp_path, mode, errno.EISDIR)


@posix_only
@both_modes
def test_a_pipe_in_its_place_is_refused_and_not_waited_for(tmp_path, mode):
    os.mkfifo(tmp_path / "pipe")
    error = check_refused_by_the_system(tmp_path / "pipe", mode, errno.EINVAL)
    assert "not a regular file" in str(error)


@posix_only
@both_modes
def test_a_device_in_its_place(mode):
    check_refused_by_the_system(Path(os.devnull), mode, errno.EINVAL)


@posix_only
@both_modes
def test_links(tmp_path, path, mode):
    link = tmp_path / "link"
    link.symlink_to(path)
    region = MmapRegion.from_file(7, link, load_mode=mode)
    assert region.path == link
    assert region.identity == osmem.identify(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    with pytest.raises(DimensionNotFound):
        MmapRegion.from_file(7, tmp_path / "dangling", load_mode=mode)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    check_refused_by_the_system(tmp_path / "circle", mode, errno.ELOOP)


@contextmanager
def without_privileges():
    """Be somebody else for a while, where root could read everything."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65_534)
    except OSError:
        pytest.skip("cannot drop privileges")
    try:
        yield
    finally:
        os.seteuid(0)


@posix_only
@both_modes
def test_no_permission(mode):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "region.mmap"
        make_builder().build_to_file(path)
        path.chmod(0)
        with without_privileges():
            check_refused_by_the_system(path, mode, errno.EACCES)
        path.chmod(stat.S_IRUSR)
        assert MmapRegion.from_file(7, path, load_mode=mode)


@posix_only
@both_modes
def test_no_descriptor_left_in_the_system(path, mode):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        check_refused_by_the_system(path, mode, errno.EMFILE)
        if mode == "map":  # the mapping needs a second one
            resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + 1, hard))
            if sys.version_info < (3, 13):
                check_refused_by_the_system(path, mode, errno.EMFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert MmapRegion.from_file(7, path, load_mode=mode)


@both_modes
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOMEM])
def test_every_call_failed_in_turn(path, mode, number, monkeypatch):
    calls = Calls()
    monkeypatch.setattr(osmem, "intercept", calls)
    MmapRegion.from_file(7, path, load_mode=mode)
    wanted = ["open", "stat", "map"] if mode == "map" else ["open", "stat", "map private", "read"]
    assert calls.operations == wanted
    for index, operation in enumerate(wanted):
        descriptors = open_files()
        monkeypatch.setattr(osmem, "intercept", Calls(fail_at=index, number=number))
        if operation == "map private":
            with pytest.raises(AllocationFailed) as caught:
                MmapRegion.from_file(7, path, load_mode=mode)
            assert caught.value.reason == "os_refused"
        else:
            check_refused_by_the_system(path, mode, number)
        assert not opened_since(descriptors)
        assert not mappings_of(path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EBADF])
def test_a_hint_that_is_refused_is_no_error(path, number, monkeypatch):
    def refuse_hints(operation, where):
        if operation == "advise":
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(osmem, "intercept", refuse_hints)
    assert MmapRegion.from_file(7, path, advice="random").verify_integrity()


@pytest.mark.parametrize("advice", ["willneed", "random", "sequential", "none"])
@both_modes
def test_every_advice(path, mode, advice):
    assert MmapRegion.from_file(7, path, load_mode=mode, advice=advice).verify_integrity()


@pytest.mark.parametrize("dimension", [0, 65_536, "L07-00", ""])
def test_what_is_no_dimension(path, dimension):
    with pytest.raises(ValueError):
        MmapRegion.from_file(dimension, path)


@pytest.mark.parametrize("wrong", [{"load_mode": "mmap"}, {"advice": "dontneed"}])
def test_words_that_are_no_mode_and_no_advice(path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        MmapRegion.from_file(7, path, **wrong)


@posix_only
def test_a_file_that_shrinks_while_it_is_read(path, monkeypatch):
    def truncate(operation, where):
        if operation == "read":
            os.truncate(path, 300)

    monkeypatch.setattr(osmem, "intercept", truncate)
    error = check_refused_by_the_system(path, "copy", errno.EIO)
    assert "shorter" in str(error)


@posix_only
def test_a_file_that_shrinks_before_it_is_mapped(path, monkeypatch):
    def truncate(operation, where):
        if operation == "map":
            os.truncate(path, 300)

    monkeypatch.setattr(osmem, "intercept", truncate)
    check_refused_by_the_system(path, "map", errno.EIO)


@posix_only
@both_modes
def test_a_file_that_grows_meanwhile_is_as_long_as_it_was(path, mode, monkeypatch):
    size = path.stat().st_size

    def grow(operation, where):
        if operation in ("map", "read"):
            with path.open("ab") as file:
                file.write(bytes(10_000))

    monkeypatch.setattr(osmem, "intercept", grow)
    region = MmapRegion.from_file(7, path, load_mode=mode)
    monkeypatch.setattr(osmem, "intercept", None)
    assert region.size == size
    if mode == "map":
        with pytest.raises(RegionFormatError, match=f"{size + 10_000} bytes now"):
            region.verify_integrity("header")


# -- verifying -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["header", "metadata", "stored", "full"])
def test_an_intact_region_verifies(region, level):
    assert region.verify_integrity(level) is True


@pytest.mark.parametrize("level", ["", "FULL", "content", None])
def test_levels_that_are_none(region, level):
    with pytest.raises(ValueError, match="level is one of header, metadata, stored, full"):
        region.verify_integrity(level)


@pytest.mark.parametrize("level", ["header", "metadata", "stored", "full"])
def test_a_plain_file_verifies(level):
    raw = write_plain([Draft(3, b"abc", keywords=[b"word"]), Draft(1)])
    assert of_bytes(raw, 1).verify_integrity(level) is True


def of_bytes(raw, dimension=7):
    data = np.frombuffer(raw, np.uint8)
    return MmapRegion(DimensionId(dimension), None, data, s.REGION_COPIED, None)


SMALL = bytes(make_builder().build_to_memory().data)
START = naive.get_field(SMALL, "content_start")


def find(data, at, bit):
    """Flip one bit under a region that is loaded, and say what verification finds."""
    region = MmapRegion(DimensionId(7), None, data, s.REGION_COPIED, None)
    data[at] ^= 1 << bit
    try:
        region.verify_integrity("full")
    except RegionFormatError as error:
        return error
    finally:
        data[at] ^= 1 << bit
    return None


@pytest.mark.parametrize("start", range(0, len(SMALL), s.LAYER_BYTES))
def test_every_flipped_byte_is_found(start):
    data = np.frombuffer(SMALL, np.uint8).copy()
    for at in range(start, min(start + s.LAYER_BYTES, len(SMALL))):
        for bit in range(8):
            error = find(data, at, bit)
            assert error is not None, (at, bit)
            assert error.field and 0 <= error.offset < len(SMALL), (at, bit)
            assert data.tobytes() == SMALL, (at, bit)


@pytest.mark.parametrize(
    ("at", "level"),
    [
        (10, "header"),
        (180, "header"),
        (260, "metadata"),
        (START - 1, "metadata"),
        (START, "stored"),
    ],
)
def test_each_level_looks_as_far_as_it_says(at, level):
    data = np.frombuffer(SMALL, np.uint8).copy()
    region = MmapRegion(DimensionId(7), None, data, s.REGION_COPIED, None)
    data[at] ^= 1
    levels = ["header", "metadata", "stored", "full"]
    for one in levels[: levels.index(level)]:
        assert region.verify_integrity(one)
    for one in levels[levels.index(level) :]:
        with pytest.raises(RegionFormatError):
            region.verify_integrity(one)


@posix_only
@pytest.mark.parametrize("n_bytes", [0, 1, 255, 256, 300, -1])
def test_a_file_truncated_after_mapping_is_found_without_a_crash(path, n_bytes):
    region = MmapRegion.from_file(7, path)
    size = region.size
    os.truncate(path, n_bytes % size)
    for level in ("header", "metadata", "stored", "full"):
        with pytest.raises(RegionFormatError) as caught:
            region.verify_integrity(level)
        assert (caught.value.field, caught.value.offset) == ("total_size", 72)
        assert (caught.value.expected, caught.value.got) == (size, n_bytes % size)
        assert caught.value.path == str(path)


@posix_only
def test_a_large_file_truncated_after_mapping_is_found_without_a_crash(tmp_path):
    builder = RegionBuilder(7, "")
    builder.add_layer(0, bytes(2**20))
    region = builder.build_to_file(tmp_path / "region.mmap")
    os.truncate(tmp_path / "region.mmap", 4_096)
    with pytest.raises(RegionFormatError, match="4096 bytes now"):
        region.verify_integrity("full")


@posix_only
def test_a_copy_is_immune_to_what_happens_to_the_file(path):
    region = MmapRegion.from_file(7, path, load_mode="copy")
    before = bytes(region.read_content(0, region.size))
    os.truncate(path, 0)
    assert bytes(region.read_content(0, region.size)) == before
    assert region.verify_integrity("full")
    path.write_bytes(b"\xff" * len(before))
    assert bytes(region.read_content(0, region.size)) == before
    path.unlink()
    assert region.verify_integrity("full")


@posix_only
def test_bytes_changed_under_a_mapping_are_found(path):
    region = MmapRegion.from_file(7, path)
    with path.open("r+b") as file:
        file.seek(region.get_layer_info("L07-05").offset)
        file.write(b"X")
    with pytest.raises(RegionFormatError, match="layer 5 content_xxh3"):
        region.verify_integrity("full")


@posix_only
def test_a_row_changed_under_a_mapping_reads_nothing_outside(path):
    region = MmapRegion.from_file(7, path)
    offset = naive.field_offset(path.read_bytes(), 2, "content_end")
    for end in (region.size + 1, 2**64 - 1, 0):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(end.to_bytes(8, "little"))
        with pytest.raises(OutOfBounds, match="layer 5 of D07"):
            region.content_of(2)
        with pytest.raises(RegionFormatError):
            region.verify_integrity("metadata")


@posix_only
def test_a_file_that_was_replaced_is_still_the_one_that_was_mapped(path):
    region = MmapRegion.from_file(7, path)
    RegionBuilder(7, "other").build_to_file(path)
    assert region.verify_integrity("full")
    assert region.identity != osmem.identify(path)


def test_an_extension_that_fails_its_checksum_loads_and_does_not_verify(tmp_path, caplog):
    path = tmp_path / "region.mmap"
    path.write_bytes(naive.set_field(SMALL, "generation", 9))
    region = MmapRegion.from_file(7, path)
    assert [record.event for record in caplog.records] == ["extension_ignored"]
    assert region.generation == 0 and region.list_layers()
    with pytest.raises(RegionFormatError, match="header_xxh3"):
        region.verify_integrity("header")


# -- what is left ----------------------------------------------------------------------------------

N_LARGE = 2**25


_GROWN = naive.set_field(SMALL, "total_size", N_LARGE)

#: Files that fail at each stage of loading.
BROKEN = {
    "magic": naive.set_field(_GROWN, "magic", bytes(16)),
    "name length": naive.set_field(_GROWN, "dimension_name_len", 2),
    "name": naive.set_field(_GROWN, "dimension_name", b"\xff" * 9),
    "extension": naive.resign(naive.set_field(_GROWN, "heap_size", 2**40)),
    "row": naive.resign(naive.set_row_field(_GROWN, 1, "encoding", 9)),
    "blocks": naive.resign(naive.set_row_field(_GROWN, 0, "content_end", START + 65)),
    "entries": naive.put(_GROWN, 256 + 7, b"\xff\xff"),
}


def write_large(path, raw):
    """Write a file that is sparse to N_LARGE bytes, so that what it leaves in memory shows."""
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(N_LARGE)


@proc_only
@both_modes
@pytest.mark.parametrize("case", BROKEN)
def test_no_descriptor_and_no_mapping_is_left_while_the_error_is_held(case, tmp_path, mode):
    path = tmp_path / "region.mmap"
    write_large(path, BROKEN[case])
    gc.collect()
    gc.disable()
    try:
        descriptors, before = open_files(), mapped_bytes()
        with pytest.raises(RegionFormatError) as caught:
            MmapRegion.from_file(7, path, load_mode=mode)
        assert not opened_since(descriptors)
        assert not mappings_of(path)
        assert mapped_bytes() - before < N_LARGE // 2
        assert caught.value.path == str(path)
    finally:
        gc.enable()


@proc_only
def test_no_memory_is_left_while_the_error_of_a_read_is_held(tmp_path, monkeypatch):
    path = tmp_path / "region.mmap"
    write_large(path, _GROWN)
    monkeypatch.setattr(osmem, "intercept", Calls(fail_at=3))
    before = mapped_bytes()
    with pytest.raises(RegionIOError) as caught:
        MmapRegion.from_file(7, path, load_mode="copy")
    assert caught.value.errno == errno.EIO
    assert mapped_bytes() - before < N_LARGE // 2


@proc_only
@both_modes
def test_nothing_is_left_behind_the_last_view(path, mode):
    descriptors = open_files()
    region = MmapRegion.from_file(7, path, load_mode=mode)
    assert bool(mappings_of(path)) == (mode == "map")
    view = region.read_content(0, 5)
    rows = region.layout.rows
    del region
    assert bool(mappings_of(path)) == (mode == "map")
    del view
    assert bool(mappings_of(path)) == (mode == "map")
    del rows
    assert not mappings_of(path)
    assert not opened_since(descriptors)


@proc_only
@both_modes
def test_a_thousand_loads_leave_nothing(path, mode):
    descriptors, before = open_files(), mapped_bytes()
    for _ in range(1_000):
        MmapRegion.from_file(7, path, load_mode=mode)
    assert not opened_since(descriptors)
    assert not mappings_of(path)
    assert mapped_bytes() - before < 2**20
