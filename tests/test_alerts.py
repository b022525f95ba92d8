"""`JessyWarning`: what a user sees without a log handler, once for each event and place."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import threading
import warnings

import pytest
from support.regions import region_file

from jessymem import (
    JessyWarning,
    MemoryConfig,
    MmapManager,
    MmapRegion,
    RegionBuilder,
    RegionFormatError,
)
from jessymem.locks import Lock, is_any_mine
from jessymem.logger import logger


@pytest.fixture
def alerts():
    """All that is warned of, whatever filters there are."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def said(alerts):
    return [(each.message.event, each.message.place) for each in alerts]


def spoil_extension(path):
    with path.open("r+b") as file:
        file.seek(120)
        byte = file.read(1)[0]
        file.seek(120)
        file.write(bytes([byte ^ 1]))


# -- what is said ----------------------------------------------------------------------------------


def test_layers_that_a_close_drops(store, alerts, caplog):
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D20")
        learned = manager.create_proto_dimension("D20", "learned")
        manager.overlay_layer("L20-00", "more")
        assert alerts == []
    (alert,) = alerts
    assert said(alerts) == [("layers_lost", str(store))]
    text = str(alert.message)
    assert text.startswith(f"closed without 2 learned layers of {store} that had not been")
    assert f"crystallized: L20-00, {learned};" in text
    assert alert.filename == __file__
    assert "layers_lost" in [getattr(record, "event", "") for record in caplog.records]


def test_a_close_that_drops_nothing_says_nothing(tmp_path, alerts):
    with MmapManager(base_path=tmp_path) as manager:
        layer = manager.create_proto_dimension("D20", "learned")
        manager.crystallize_proto_dimension(layer)
        manager.discard_proto_dimension(manager.create_proto_dimension("D20", "not wanted"))
    assert alerts == []


def test_files_that_are_skipped(store, alerts):
    path = region_file(store, "D01")
    path.write_bytes(b"broken")
    with MmapManager(base_path=store) as manager:
        for load in (manager.load_all, manager.load_core_dimensions):
            assert 1 in [number for number, _ in load().skipped]
    assert said(alerts) == [("load_failed", str(path))]
    assert str(alerts[0].message).startswith("skipped: D01: ")


def test_a_load_that_fails_is_an_error_and_no_alert(store, alerts):
    region_file(store, "D01").write_bytes(b"broken")
    with MmapManager(base_path=store) as manager, pytest.raises(RegionFormatError):
        manager.load_dimension("D01")
    assert alerts == []


def test_files_that_are_not_there_are_not_skipped(store, alerts):
    with MmapManager(base_path=store) as manager:
        manager.load_all()
        assert manager.load_all().loaded == ()
    assert alerts == []


@pytest.mark.parametrize("by_manager", [True, False])
def test_an_extension_that_is_ignored(store, alerts, by_manager):
    path = region_file(store, "D20")
    spoil_extension(path)
    for _ in range(2):
        if by_manager:
            with MmapManager(base_path=store) as manager:
                manager.load_dimension("D20")
        else:
            MmapRegion.from_file("D20", path)
    assert said(alerts) == [("extension_ignored", str(path))]
    assert alerts[0].filename == __file__


def test_a_generation_that_does_not_count(store, alerts):
    beside = region_file(store, "D20").with_name("region.g2.mmap")
    beside.mkdir()
    with MmapManager(base_path=store) as manager:
        manager.load_dimension("D20")
    assert said(alerts) == [("generation_ignored", str(beside))]


# -- bundled content -------------------------------------------------------------------------------


def test_bundled_content_that_nobody_has_asked_for(tmp_path, alerts):
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_all()
        assert repr(manager).endswith(" 14 dimensions, 14 of them simulated>")
    assert said(alerts) == [("simulation", str(tmp_path))]


def test_bundled_content_that_was_asked_for(tmp_path, alerts):
    with MmapManager(MemoryConfig(base_path=tmp_path, simulation="always")) as manager:
        manager.load_core_dimensions()
        assert "14 of them simulated" in repr(manager)
    assert alerts == []


@pytest.mark.parametrize("theirs", [["D15"], ["D03"], ["D03", "D400"], ["D09", "D14", "D40000"]])
def test_load_all_puts_no_bundled_content_beside_a_user_s_own(tmp_path, alerts, theirs):
    for dimension in theirs:
        builder = RegionBuilder(dimension, "Theirs")
        builder.add_layer(0, b"their own")
        builder.build_to_file(region_file(tmp_path, dimension))
    with MmapManager(base_path=tmp_path) as manager:
        for _ in range(2):
            manager.load_all()
            assert [bytes(manager.access_layer(each)) for each in manager.list_layers()] == [
                b"their own"
            ] * len(theirs)
        assert not manager.get_stats().simulation_mode
        assert repr(manager).endswith(f" {len(theirs)} dimension{'s' * (len(theirs) > 1)}>")
    assert alerts == []


# -- how -------------------------------------------------------------------------------------------


def test_each_place_is_said_for_itself(tmp_path, alerts):
    for name in ("one", "two", "one"):
        with MmapManager(base_path=tmp_path / name) as manager:
            manager.create_proto_dimension("D20", "learned")
    assert said(alerts) == [
        ("layers_lost", str(tmp_path / "one")),
        ("layers_lost", str(tmp_path / "two")),
    ]


def test_an_alert_is_issued_when_its_thread_holds_no_lock(tmp_path, alerts):
    lock = Lock()
    with lock.hold():
        logger.alert("test", tmp_path, "first")
        logger.write_waiting()
        assert alerts == []
    logger.write_waiting()
    logger.alert("test", tmp_path / "other", "second")
    assert [str(each.message) for each in alerts] == ["first", "second"]


def test_an_alert_that_is_an_error_ends_the_call_and_undoes_nothing(store):
    for dimension in ("D01", "D20"):
        spoil_extension(region_file(store, dimension))
    with warnings.catch_warnings():
        warnings.simplefilter("error", JessyWarning)
        manager = MmapManager(base_path=store)
        with pytest.raises(JessyWarning, match="D01: header_xxh3 does not hold"):
            manager.load_all()
        assert not is_any_mine()
        assert bytes(manager.access_layer("L20-00"))  # all that could be is loaded
        layer = manager.create_proto_dimension("D20", "learned")
        waiting = manager.access_layer(layer)
        with pytest.raises(JessyWarning, match="closed without 1 learned layer "):
            manager.close()
    manager.close()
    assert repr(manager).endswith(" closed>")
    assert bytes(waiting) == b"learned"
    del waiting
    stats = manager.get_stats()
    assert (stats.total_allocated_bytes, stats.waiting_bytes) == (0, 0)


def test_an_alert_that_is_an_error_leaves_an_error_that_is_on_its_way(store):
    path = region_file(store, "D20")
    path.with_name("region.g2.mmap").mkdir()
    path.write_bytes(b"broken too")
    with warnings.catch_warnings():
        warnings.simplefilter("error", JessyWarning)
        with MmapManager(base_path=store) as manager, pytest.raises(RegionFormatError):
            manager.load_dimension("D20")


def test_a_filter_by_name_and_the_log_beside_it(store, caplog):
    region_file(store, "D01").write_bytes(b"broken")
    code = (
        "import sys; from jessymem import MmapManager; m = MmapManager(base_path=sys.argv[1]);"
        "m.load_all()"
    )
    for options, is_shown in (((), True), (("-W", "ignore:skipped"), False)):
        done = subprocess.run(
            [sys.executable, *options, "-c", code, str(store)], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert ("<string>:1: JessyWarning: skipped: D01: " in done.stderr) is is_shown
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, "jessymem"):
        warnings.simplefilter("ignore")
        with MmapManager(base_path=store) as manager:
            manager.load_all()
            manager.load_all()
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events.count("load_failed") >= 2  # each time


def test_alerts_from_many_threads_come_once(tmp_path, alerts):
    barrier = threading.Barrier(8)

    def alert():
        barrier.wait()
        for number in range(100):
            logger.alert("test", tmp_path / str(number), "said")

    threads = [threading.Thread(target=alert) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said(alerts)) == sorted(set(said(alerts)))
    assert len(alerts) == 100


def test_a_warning_travels_between_processes():
    warning = JessyWarning("said")
    warning.event, warning.place = "layers_lost", "data"
    again = pickle.loads(pickle.dumps(warning))
    assert (str(again), again.event, again.place) == ("said", "layers_lost", "data")
