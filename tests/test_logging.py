"""Log records: what is said, how loudly, with which facts; and that nothing else is."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from support.logs import facts
from support.regions import region_file

from jessymem import (
    DimensionId,
    DimensionNotFound,
    DuplicateDimension,
    DuplicateLayer,
    ImmutableDimension,
    InvalidAccess,
    LayerId,
    LayerNotFound,
    LimitExceeded,
    MemoryConfig,
    MmapManager,
    MmapOffset,
    RegionBuilder,
    RegionFormatError,
    RegionIOError,
)
from jessymem.logger import logger

MIB = 2**20


@pytest.fixture
def log(caplog):
    """The records of jessymem since the last call."""
    caplog.set_level(logging.DEBUG, logger="jessymem")

    def take():
        records = [record for record in caplog.records if record.name.startswith("jessymem")]
        caplog.clear()
        return records

    return take


def rebuild(base, dimension="D01", content=b"newer"):
    builder = RegionBuilder(dimension, "Emotion")
    builder.add_layer(0, content)
    return builder.build_to_file(region_file(base, dimension))


# -- what goes well --------------------------------------------------------------------------------


def test_a_load_is_said(store, log):
    path = region_file(store, "D01")
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D01")
        (record,) = log()
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"loaded D01: 4 layers, {path.stat().st_size} bytes, {path}"
    said = facts(record)
    assert said.pop("seconds") > 0
    assert said == {
        "event": "dimension_loaded",
        "dimension": "D01",
        "path": str(path),
        "n_layers": 4,
        "n_bytes": path.stat().st_size,
        "generation": 1,
    }


def test_a_load_from_elsewhere_names_that_file(store, log):
    with MmapManager(base_path="nowhere") as manager:
        manager.load_dimension("D20", region_file(store, "D20"))
        (record,) = log()
    assert record.path == str(region_file(store, "D20"))


def test_an_unload_is_said(manager, store, log):
    log()
    manager.unload_dimension("D20")
    (record,) = log()
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("unloaded D20: 4 layers, ")
    assert facts(record) == {
        "event": "dimension_unloaded",
        "dimension": "D20",
        "path": str(region_file(store, "D20")),
        "n_layers": 4,
        "n_bytes": region_file(store, "D20").stat().st_size,
        "generation": 1,
    }


def test_a_refresh_is_said_if_it_adopts_something(manager, store, log):
    log()
    assert not manager.refresh("D01")
    assert log() == []
    rebuild(store)
    assert manager.refresh("D01")
    (record,) = log()
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("refreshed D01: 1 layers, ")
    assert facts(record) == {
        "event": "dimension_refreshed",
        "dimension": "D01",
        "path": str(region_file(store, "D01")),
        "n_layers": 1,
        "n_bytes": region_file(store, "D01").stat().st_size,
        "generation": 2,
    }


def test_a_close_is_said_once(manager, store, log):
    log()
    manager.close()
    manager.close()
    (record,) = log()
    assert record.levelno == logging.INFO
    assert record.getMessage() == "closed"
    assert facts(record) == {"event": "closed", "base_path": str(store)}


def test_simulation_is_said(tmp_path, log):
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_core_dimensions()
        (record,) = log()
        assert record.levelno == logging.WARNING
        assert facts(record) == {
            "event": "simulation",
            "dimensions": [f"D{number:02d}" for number in range(1, 15)],
            "base_path": str(tmp_path),
        }
        manager.unload_dimension("D03")
        (record,) = log()
        assert (record.event, record.dimension, record.path) == ("dimension_unloaded", "D03", None)


def test_reading_says_nothing(manager, log):
    log()
    manager.access_layer("L01-00")
    manager.load_contexts(["L01-00", "L01-09"], missing="skip")
    manager.select(keywords=["joy"])
    manager.get_stats()
    manager.dump_state()
    with pytest.raises(LayerNotFound):
        manager.access_layer("L01-09")
    assert log() == []


# -- what goes wrong -------------------------------------------------------------------------------


def break_file(base):
    region_file(base, "D01").write_bytes(b"\xff" * 300)


def remove_file(base):
    region_file(base, "D01").unlink()


def enlarge_file(base):
    rebuild(base, content=bytes(2 * MIB))


def replace_file_by_directory(base):
    region_file(base, "D01").unlink()
    region_file(base, "D01").mkdir()


FAILURES = [
    (remove_file, DimensionNotFound, {"dimension", "path"}),
    (break_file, RegionFormatError, {"field", "offset", "expected", "got", "dimension", "path"}),
    (enlarge_file, LimitExceeded, {"bound", "current", "limit", "requested", "waiting"}),
    (
        replace_file_by_directory,
        RegionIOError,
        {"operation", "path", "errno", "strerror", "filename", "dimension"},
    ),
]
each_failure = pytest.mark.parametrize(("spoil", "error", "details"), FAILURES)


@each_failure
def test_a_load_that_fails_is_said_with_all_that_is_known(store, log, spoil, error, details):
    spoil(store)
    with MmapManager(1, base_path=store) as manager:
        with pytest.raises(error) as caught:
            manager.load_dimension("D01")
        (record,) = log()
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"not loaded: {caught.value}"
    said = facts(record)
    assert {name: value for name, value in said.items() if name != "details"} == {
        "event": "load_failed",
        "dimension": "D01",
        "path": str(region_file(store, "D01")),
        "error": error.__name__,
    }
    assert said["details"] == {
        name: str(getattr(caught.value, name)) for name in caught.value.details
    }
    assert set(said["details"]) == details
    json.dumps(said)


@each_failure
def test_what_is_skipped_is_said_and_the_rest_loaded(store, log, spoil, error, details):
    spoil(store)
    rebuild(store, "D02")
    with MmapManager(1, base_path=store) as manager:
        report = manager.load_core_dimensions()
        records = log()
    assert report.loaded == (2,)
    levels = {record.dimension: record.levelno for record in records}
    assert levels.pop("D02") == logging.INFO
    assert levels == {str(number): logging.WARNING for number, _ in report.skipped}
    assert {record.event for record in records} == {"load_failed", "dimension_loaded"}
    said = {record.dimension: record.getMessage() for record in records}
    for dimension, reason in report.skipped:
        assert said[str(dimension)] == f"not loaded: {reason}"


@each_failure
def test_a_refresh_that_fails_is_said(store, log, spoil, error, details):
    with MmapManager(1, base_path=store) as manager:
        manager.load_dimension("D01")
        log()
        spoil(store)
        with pytest.raises(error):
            manager.refresh("D01")
        (record,) = log()
    assert record.levelno == logging.WARNING
    assert (record.dimension, record.error) == ("D01", error.__name__)


def test_a_simulation_that_fails_is_said(store, log):
    rebuild(store, "D20", bytes(MIB - 8_192))
    with MmapManager(MemoryConfig(1, base_path=store, simulation="always")) as manager:
        manager.load_dimension("D20")
        log()
        report = manager.load_core_dimensions()
        failed = {str(number) for number, reason in report.skipped if reason != "simulated"}
        said = {record.dimension for record in log() if hasattr(record, "dimension")}
    assert failed
    assert failed <= said


def spoil_byte(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("at", "field"),
    [
        (120, "header_xxh3"),  # in the extension
        (250, "header_xxh3"),  # the checksum itself
        (8, "header_xxh3"),  # the dimension's name
        (259, "metadata_xxh3"),  # a frequency
    ],
)
def test_an_extension_that_is_ignored_is_said(store, log, at, field):
    path = region_file(store, "D01")
    spoil_byte(path, at)
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D01")
        ignored, loaded = log()
        assert bytes(manager.access_layer("L01-00")) == b"layer 0 of emotion\n"
    assert ignored.levelno == logging.WARNING
    assert ignored.getMessage().startswith(f"D01: {field} does not hold in {path}")
    assert facts(ignored) == {
        "event": "extension_ignored",
        "dimension": "D01",
        "path": str(path),
        "field": field,
    }
    assert (loaded.event, loaded.generation) == ("dimension_loaded", 0)


# -- and nothing else ------------------------------------------------------------------------------


def test_no_record_is_made_that_nobody_hears(store, monkeypatch):
    made = []
    monkeypatch.setattr(logging.getLogger("jessymem"), "handle", made.append)
    logging.getLogger("jessymem").setLevel(logging.ERROR)
    try:
        with MmapManager(base_path=store) as manager:
            manager.load_all()
    finally:
        logging.getLogger("jessymem").setLevel(logging.NOTSET)
    assert made == []


LOUD = """
import logging, sys
from jessymem import DimensionNotFound, MmapManager
with MmapManager(base_path=sys.argv[1]) as manager:
    manager.load_core_dimensions()
    assert manager.get_stats().simulation_mode
    manager.unload_dimension("D01")
    try:
        manager.load_dimension("D44")
    except DimensionNotFound:
        pass
handlers = logging.getLogger("jessymem").handlers
assert [type(handler) for handler in handlers] == [logging.NullHandler], handlers
assert logging.getLogger("jessymem").level == logging.NOTSET
assert logging.getLogger("jessymem").propagate
assert logging.getLogger().handlers == []
names = [name for name in logging.root.manager.loggerDict if name.startswith("jessymem")]
assert names == ["jessymem"], names
"""


def test_nothing_is_printed_and_no_handler_is_ours(tmp_path):
    (tmp_path / "D20").mkdir()
    region_file(tmp_path, "D20").write_bytes(b"broken")
    done = subprocess.run(
        [sys.executable, "-c", LOUD, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("<string>:5: JessyWarning: core dimensions have no file under ")
    said = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert len(said) == 1  # an alert, and no record; Python 3.13 shows the line of source below it


# -- what fails changes nothing, and is said once --------------------------------------------------


def free_twice(manager):
    offset = manager.allocate(10)
    manager.deallocate(offset)
    manager.deallocate(offset)


def free_twice_without_generation(manager):
    offset = MmapOffset(*manager.allocate(10).__reduce__()[1][:2])
    manager.deallocate(offset)
    manager.deallocate(offset)


def free_many_twice(manager):
    offsets = manager.allocate_many([10, 20])
    manager.deallocate_many([*offsets, offsets[0]])


def build_over_immutable(manager):
    builder = RegionBuilder("D09", "new")
    path = region_file(manager.config.base_path, "D09")
    builder.build_to_file(path)
    builder.build_to_file(path)


FAILED_CALLS = [
    ("create_failed", ImmutableDimension, lambda m: m.create_proto_dimension(14, b"x")),
    ("create_failed", DuplicateLayer, lambda m: m.create_proto_dimension(1, b"x", layer=0)),
    ("create_failed", ImmutableDimension, lambda m: m.create_proto_layers([(9, b"x")])),
    ("update_failed", ImmutableDimension, lambda m: m.update_proto_dimension("L01-00", b"x")),
    ("discard_failed", LayerNotFound, lambda m: m.discard_proto_dimension("L01-99")),
    ("overlay_failed", LayerNotFound, lambda m: m.overlay_layer("L33-00", b"x")),
    ("drop_failed", InvalidAccess, lambda m: m.drop_overlay("L01-00")),
    ("crystallize_failed", InvalidAccess, lambda m: m.crystallize_proto_dimension("L01-00")),
    ("crystallize_failed", DimensionNotFound, lambda m: m.crystallize_dimension(33)),
    ("delete_failed", LayerNotFound, lambda m: m.delete_layer("L01-99")),
    ("fold_failed", DimensionNotFound, lambda m: m.fold(33)),
    ("unload_failed", DimensionNotFound, lambda m: m.unload_dimension(33)),
    ("load_failed", DimensionNotFound, lambda m: m.load_dimension(33)),
    ("load_failed", DuplicateDimension, lambda m: m.load_dimension("D01")),
    ("load_failed", DimensionNotFound, lambda m: m.refresh(33)),
    ("pin_failed", DimensionNotFound, lambda m: m.pin(33)),
    ("build_failed", ImmutableDimension, build_over_immutable),
    ("deallocation_failed", InvalidAccess, free_twice),
    ("deallocation_failed", InvalidAccess, free_twice_without_generation),
    ("deallocation_failed", InvalidAccess, free_many_twice),
]


@pytest.mark.parametrize(("event", "error", "do"), FAILED_CALLS)
def test_what_fails_is_said_once(manager, log, event, error, do):
    log()
    with pytest.raises(error) as caught:
        do(manager)
    (record,) = [each for each in log() if each.levelno >= logging.WARNING]
    assert (record.levelno, record.event, record.error) == (logging.WARNING, event, error.__name__)
    assert record.getMessage().startswith("not ")
    assert record.getMessage().endswith(str(caught.value))
    named = {name for name in ("dimension", "layer") if name in caught.value.details}
    assert all(getattr(record, name) == str(caught.value.details[name]) for name in named)
    json.dumps(facts(record))


def test_what_fails_unheard_makes_no_record(manager, monkeypatch):
    """An error costs what it did, where nobody listens."""
    monkeypatch.setattr(logger, "warning", None)
    monkeypatch.setattr(logger, "isEnabledFor", lambda severity: False)
    with pytest.raises(LayerNotFound):
        manager.discard_proto_dimension("L01-99")


def test_blocks_are_said_with_their_sizes(manager, log):
    offset = manager.allocate(10)
    several = manager.allocate_many([20, 30])
    log()
    manager.deallocate(offset)
    manager.deallocate_many(several)
    assert [(each.event, each.n_bytes) for each in log()] == [
        ("deallocated", 10),
        ("deallocated", 20),
        ("deallocated", 30),
    ]
    with pytest.raises(InvalidAccess):
        manager.deallocate(offset)
    assert [each.event for each in log()] == ["deallocation_failed"]


@pytest.mark.parametrize(
    ("do", "about"),
    [
        (lambda m: m.access_layer("L01-00"), {"layer": LayerId(1, 0)}),
        (lambda m: m.array("L01-00"), {"layer": LayerId(1, 0)}),
        (lambda m: m.load_layer_context("L01-00"), {"layer": LayerId(1, 0)}),
        (lambda m: m.load_contexts(["L01-01", "L01-00"]), {"layer": LayerId(1, 1)}),
        (lambda m: m.get_layer_info("L01-00"), {"layer": LayerId(1, 0)}),
        (lambda m: m.ref("L01-00"), {"layer": LayerId(1, 0)}),
        (lambda m: m.update_proto_dimension("L01-00", b""), {"layer": LayerId(1, 0)}),
        (lambda m: m.discard_proto_dimension("L01-00"), {"layer": LayerId(1, 0)}),
        (lambda m: m.overlay_layer("L01-00", b"x"), {"layer": LayerId(1, 0)}),
        (lambda m: m.delete_layer("L01-00"), {"layer": LayerId(1, 0)}),
        (lambda m: m.create_proto_dimension(20, b""), {"dimension": DimensionId(20)}),
        (lambda m: m.crystallize_dimension(20), {"dimension": DimensionId(20)}),
        (lambda m: m.load_dimension(20), {"dimension": DimensionId(20)}),
        (lambda m: m.list_layers(20), {"dimension": DimensionId(20)}),
    ],
)
def test_a_closed_manager_says_what_was_asked_of_it(manager, store, do, about):
    manager.close()
    with pytest.raises(InvalidAccess, match=f"{store} is closed") as caught:
        do(manager)
    assert caught.value.details == about
    (what,) = about.values()
    assert str(caught.value).startswith(f"{what}: ")
