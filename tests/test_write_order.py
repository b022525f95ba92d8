"""The order of writes, syncs and renames: what is there after a power failure at any instant.

Each case is recorded as its system calls. Every prefix of the recording is replayed
on a model of a disk, and every state that the disk may be found in afterwards is opened.
"""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import samples
from support.disk_model import (
    SYNCS,
    Call,
    Disk,
    Recorder,
    State,
    Tree,
    as_state,
    materialize,
    tree_of,
)
from support.samples import sampled
from support.write_cases import WRITE_CASES
from support.writes import WriteCase, act

from jessymem import osmem

pytestmark = pytest.mark.skipif(os.name != "posix", reason="directories are not synced elsewhere")

each_case = pytest.mark.parametrize("name", WRITE_CASES)


class Recording:
    """A case's write as it was recorded, and what becomes of it if the power fails.

    `folder` holds what `disk` shows while the power lasts.
    """

    def __init__(
        self, case: WriteCase, folder: Path, disk: Disk, verdicts: dict[State, str]
    ) -> None:
        self.case = case
        self.folder = folder
        self._disk = disk
        recorder = Recorder(folder)
        act(case, folder, recorder)
        self.calls = recorder.calls
        self._crashed = folder.with_name("crashed")
        self._verdicts = verdicts

    def disk_after(self, calls: list[Call]) -> Disk:
        disk = copy.deepcopy(self._disk)
        for call in calls:
            disk.apply(call)
        return disk

    def again_after_a_kill(self, n_calls: int) -> Recording:
        """Record the same write once more, after one that was killed when it had made `n_calls`.

        The power lasts: what the first has done is there, though not all of it on the medium.
        """
        disk = self.disk_after(self.calls[:n_calls])
        folder = self.folder.with_name(f"killed-{n_calls}")
        materialize(disk.now(), folder)
        return Recording(self.case, folder, disk, self._verdicts)

    def without(self, index: int) -> list[Call]:
        return self.calls[:index] + self.calls[index + 1 :]

    def states(self, calls: list[Call]) -> Iterator[tuple[int, Tree]]:
        """Yield after how many calls the power fails, and what is found then."""
        disk = self.disk_after([])
        for n_calls in range(len(calls) + 1):
            for tree in disk.crash_states():
                yield n_calls, tree
            if n_calls < len(calls):
                disk.apply(calls[n_calls])

    def faults(self, calls: list[Call]) -> Iterator[str]:
        """Yield what breaks the promise: nothing between old and new, and new once it returned.

        Who finds that there is nothing to write has promised nothing.
        """
        is_promised = self.case.is_promised and len(calls) > 0
        for n_calls, tree in self.states(calls):
            verdict = self.verdict(tree)
            has_returned = n_calls == len(calls) and is_promised
            if verdict != "new" and (verdict != "old" or has_returned):
                yield f"after {n_calls} of {len(calls)} calls: {verdict}; {sorted(tree)}"

    def verdict(self, tree: Tree) -> str:
        key = as_state(tree)
        if key not in self._verdicts:
            materialize(tree, self._crashed)
            try:
                self._verdicts[key] = self.case.check(self._crashed)
            except Exception as error:
                self._verdicts[key] = f"{type(error).__name__}: {error}"
            shutil.rmtree(self._crashed)
        return self._verdicts[key]


@pytest.fixture
def record(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recording]:
    # So that files that are written again are the same, and need not be looked at again.
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)

    def record(name: str) -> Recording:
        folder = memory_path / "recorded"
        folder.mkdir()
        WRITE_CASES[name].prepare(folder)
        return Recording(WRITE_CASES[name], folder, Disk(tree_of(folder)), {})

    return record


@each_case
def test_the_model_ends_where_the_disk_does(name, record):
    recording = record(name)
    assert recording.disk_after(recording.calls).now() == tree_of(recording.folder)


@each_case
def test_a_power_failure_at_any_instant_leaves_the_old_or_the_new(name, record):
    recording = record(name)
    assert list(recording.faults(recording.calls)) == []
    seen = {recording.verdict(tree) for _, tree in recording.states(recording.calls)}
    assert seen == ({"new"} if name in ("fold back", "fold") else {"old", "new"})


@each_case
@sampled
def test_a_power_failure_after_a_kill_leaves_the_old_or_the_new(name, record):
    first = record(name)
    step = samples.number(max(4, len(first.calls) // 5), of=1)
    for n_calls in range(len(first.calls), -1, -step):
        again = first.again_after_a_kill(n_calls)
        assert again.disk_after(again.calls).now() == tree_of(again.folder)
        assert list(again.faults(again.calls)) == []


def test_the_name_of_a_directory_that_was_there_before_must_be_synced(record, monkeypatch):
    # Who made it may have been killed before that.
    def sync_what_was_made_here(path: Path, made_here: bool) -> None:
        if made_here:
            sync_name(path, made_here=made_here)

    sync_name = osmem.sync_name
    monkeypatch.setattr(osmem, "sync_name", sync_what_was_made_here)
    first = record("build")
    assert list(first.faults(first.calls)) == []
    made = [i for i, call in enumerate(first.calls, 1) if call.operation == "make directory"]
    assert made
    for n_calls in made:
        again = first.again_after_a_kill(n_calls)
        assert any(again.faults(again.calls))


# Folding back syncs for the sake of the other case, in which the newest has its name already.
@pytest.mark.parametrize("name", sorted(WRITE_CASES.keys() - {"fold back"}))
def test_taking_out_any_sync_breaks_the_promise(name, record):
    recording = record(name)
    syncs = [i for i, call in enumerate(recording.calls) if call.operation in SYNCS]
    assert syncs
    needless = [
        recording.calls[i] for i in syncs if not any(recording.faults(recording.without(i)))
    ]
    assert needless == []


@pytest.mark.parametrize(
    "name", ["build", "build over", "build beside", "crystallize", "crystallize all"]
)
def test_a_file_that_is_synced_only_after_it_got_its_name_breaks_the_promise(name, record):
    recording = record(name)
    operations = [call.operation for call in recording.calls]
    sync, rename = operations.index("sync"), operations.index("rename")
    file = recording.calls[rename].path
    late = Call("sync", file)
    calls = recording.calls[:sync] + recording.calls[sync + 1 : rename + 1]
    calls += [late, *recording.calls[rename + 1 :]]
    assert next(recording.faults(calls))


# -- the model -------------------------------------------------------------------------------------


def crash_states(*calls: Call, before: Tree | None = None) -> list[Tree]:
    """Return what may be there after these calls, each state once."""
    disk = Disk(before or {})
    for call in calls:
        disk.apply(call)
    states = sorted(disk.crash_states(), key=repr)
    return [state for state, _ in itertools.groupby(states)]


CREATE, WRITE, SYNC = Call("create", "f"), Call("write", "f", data=b"ab"), Call("sync", "f")
SYNC_NAMES = Call("sync directory", "")
SYNCED = [CREATE, WRITE, SYNC, SYNC_NAMES]


@pytest.mark.parametrize(
    ("calls", "states"),
    [
        ([], [{}]),
        ([CREATE], [{"f": b""}, {}]),
        ([CREATE, WRITE], [{"f": b""}, {"f": b"\0\0"}, {"f": b"a"}, {"f": b"ab"}, {}]),
        ([CREATE, WRITE, SYNC], [{"f": b"ab"}, {}]),
        ([CREATE, WRITE, SYNC_NAMES], [{"f": b""}, {"f": b"\0\0"}, {"f": b"a"}, {"f": b"ab"}]),
        (SYNCED, [{"f": b"ab"}]),
        ([*SYNCED, Call("rename", "g", source="f")], [{"f": b"ab"}, {"g": b"ab"}]),
        ([*SYNCED, Call("remove", "f")], [{"f": b"ab"}, {}]),
        ([*SYNCED, Call("remove", "f"), SYNC_NAMES], [{}]),
        ([Call("make directory", "d")], [{"d": None}, {}]),
        # Names below a directory that is lost are lost with it, synced or not.
        (
            [Call("make directory", "d"), Call("create", "d/f"), Call("sync directory", "d")],
            [{"d": None, "d/f": b""}, {}],
        ),
    ],
)
def test_what_the_model_loses(calls, states):
    assert crash_states(*calls) == states


def test_names_may_reach_the_medium_in_any_order():
    before: Tree = {"f": b"1", "g": b"2"}
    calls = [Call("remove", "f"), Call("remove", "g")]
    assert crash_states(*calls, before=before) == [
        {"f": b"1", "g": b"2"},
        {"f": b"1"},
        {"g": b"2"},
        {},
    ]
