"""`ReadAhead`: dimensions in order, their files asked for before, and no trace of it."""

from __future__ import annotations

import threading
import time

import pytest

from jessymem import DimensionId, osmem
from jessymem.engine.ahead import ReadAhead

DIMENSIONS = [DimensionId(number) for number in range(15, 215)]


def threads():
    return [each for each in threading.enumerate() if each.name == "jessymem-ahead"]


def wait_until_gone():
    deadline = time.monotonic() + 30
    while threads() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not threads()


@pytest.mark.skipif(not osmem.CAN_READ_AHEAD, reason="the system takes no such hint")
def test_each_file_is_asked_for_before_its_turn(tmp_path, monkeypatch):
    asked = []
    is_asked = threading.Semaphore(0)

    def note(path, n_bytes):
        asked.append(path)
        is_asked.release()

    monkeypatch.setattr(osmem, "read_ahead", note)
    passed = []
    with ReadAhead(DIMENSIONS, lambda dimension: tmp_path / str(dimension)) as following:
        for dimension in following:
            assert is_asked.acquire(timeout=30)
            passed.append(dimension)
            assert tmp_path / str(dimension) in asked
    assert passed == DIMENSIONS
    assert asked == [tmp_path / str(each) for each in DIMENSIONS]
    wait_until_gone()


def test_few_are_passed_on_without_a_thread(tmp_path):
    with ReadAhead(DIMENSIONS[:14], lambda dimension: tmp_path / "x") as following:
        assert list(following) == DIMENSIONS[:14]
        assert not threads()


def test_the_thread_ends_with_the_loads_whatever_ends_them(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        ReadAhead(DIMENSIONS, lambda dimension: tmp_path / str(dimension)) as following,
    ):
        next(following)
        raise KeyboardInterrupt
    wait_until_gone()


def test_a_hint_fails_for_nobody(tmp_path):
    osmem.read_ahead(tmp_path / "missing", 4096)
    osmem.read_ahead(tmp_path, 4096)
    (tmp_path / "empty").touch()
    osmem.read_ahead(tmp_path / "empty", 4096)
