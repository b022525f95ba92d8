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


needs_hint = pytest.mark.skipif(not osmem.CAN_READ_AHEAD, reason="the system takes no such hint")


def asked_for(tmp_path, monkeypatch, is_in_memory):
    """Pass all dimensions on; return which were asked for, each checked to be so in time."""
    asked, in_time = [], threading.Semaphore(0)

    def note(path, n_bytes):
        asked.append(path)
        in_time.release()
        return not is_in_memory(len(asked))

    monkeypatch.setattr(osmem, "read_ahead", note)
    passed = []
    with ReadAhead(DIMENSIONS, lambda dimension: tmp_path / str(dimension)) as following:
        for dimension in following:
            if len(passed) % 64 == 0 and len(passed) + 64 < len(DIMENSIONS):
                for _ in range(8):
                    assert in_time.acquire(timeout=30), "before its turn comes"
            passed.append(dimension)
    wait_until_gone()
    assert passed == DIMENSIONS
    return asked


@needs_hint
def test_each_file_that_follows_is_asked_for(tmp_path, monkeypatch):
    asked = asked_for(tmp_path, monkeypatch, lambda n_asked: False)
    assert asked == [tmp_path / str(each) for each in DIMENSIONS[64:]]


@needs_hint
def test_where_the_first_are_in_memory_the_others_are_left_alone(tmp_path, monkeypatch):
    asked = asked_for(tmp_path, monkeypatch, lambda n_asked: n_asked != 12)
    expected = DIMENSIONS[64:72] + DIMENSIONS[128:192] + DIMENSIONS[192:]
    assert asked == [tmp_path / str(each) for each in expected]


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
    (tmp_path / "empty").touch()
    (tmp_path / "written").write_bytes(bytes(100_000))
    assert not osmem.read_ahead(tmp_path / "missing", 4096)
    assert not osmem.read_ahead(tmp_path, 4096)
    for name in ("empty", "written"):
        osmem.read_ahead(tmp_path / name, 4096)


def test_without_a_thread_they_are_passed_on_all_the_same(tmp_path, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with ReadAhead(DIMENSIONS, lambda dimension: tmp_path / str(dimension)) as following:
        assert list(following) == DIMENSIONS
