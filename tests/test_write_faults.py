"""Every system call of a write failed in turn: an error or none, the old or the new, no remains.

The calls that the system refuses come once, or from one on for good, as on a disk that is full.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from naive import open_files, opened_since
from scenario import BASE, DIMENSION, Scenario, act, files_in, target_in
from write_scenarios import SCENARIOS

from jessymem import JessyMemoryError, osmem

each_scenario = pytest.mark.parametrize("name", SCENARIOS)
each_fault = pytest.mark.parametrize(
    ("number", "for_good"),
    [
        (errno.EIO, False),
        (errno.EACCES, False),  # which also means that a file cannot be replaced
        (errno.ENOSPC, True),
        *(
            pytest.param(number, for_good, marks=pytest.mark.slow)
            for number, for_good in [
                (errno.ENOSPC, False),
                (errno.EMFILE, False),
                (errno.ENOMEM, False),
                (errno.EMFILE, True),
                (errno.EACCES, True),
            ]
        ),
    ],
    ids=lambda value: errno.errorcode[value] if value > 1 else ("once", "for good")[value],
)


class Failing:
    """Stands at the seam and fails one call, or all from that one on."""

    def __init__(self, n_calls: int, number: int, for_good: bool) -> None:
        self.n_calls = n_calls
        self.number = number
        self.for_good = for_good
        self.made: list[str] = []
        self.failed: list[str] = []

    def __call__(self, operation: str, path: str, *details: Any) -> None:
        self.made.append(operation)
        n_made = len(self.made) - 1
        if n_made == self.n_calls or (self.for_good and n_made > self.n_calls):
            self.failed.append(operation)
            raise OSError(self.number, os.strerror(self.number))


def attempt(scenario: Scenario, folder: Path, failing: Failing) -> str | None:
    """Act under faults; return the class of the error that came out, None where none did."""
    try:
        act(scenario, folder, failing)
    except JessyMemoryError as error:
        assert isinstance(error, OSError | MemoryError)
        if isinstance(error, OSError):
            # What cannot be replaced and not be put beside either tells of the first refusal.
            assert error.errno == failing.number or (
                scenario.refuse and error.errno == errno.EACCES
            )
            assert Path(error.filename).parent == target_in(folder).parent
            assert str(DIMENSION) in str(error)
        return type(error).__name__
    return None


@each_scenario
@each_fault
def test_every_call_of_a_write_failed_in_turn(name, number, for_good, memory_path):
    scenario = SCENARIOS[name]
    outcomes = []
    n_calls = 0
    prepared = memory_path / "prepared"
    prepared.mkdir()
    scenario.prepare(prepared)
    while True:
        folder = memory_path / str(n_calls)
        shutil.copytree(prepared, folder)
        before, descriptors = files_in(folder), open_files()
        failing = Failing(n_calls, number, for_good)
        error = attempt(scenario, folder, failing)
        if not failing.failed:
            break
        n_calls += 1
        assert not opened_since(descriptors)
        assert osmem.intercept is None
        left = {path.name for path in files_in(folder) - before}
        if "remove" not in failing.failed:
            assert not [found for found in left if found.startswith(".")], (failing.failed, left)
        state = scenario.check(folder)
        assert state == "new" or error is not None or not scenario.is_promised
        outcomes.append((error, state))
        act(scenario, folder)
        assert scenario.check(folder) == "new"
        assert files_in(folder) == {target_in(folder)}
    assert scenario.check(folder) == "new"
    assert n_calls > 4
    if scenario.is_promised and name != "fold back":
        assert ("RegionIOError", "old") in outcomes


@each_fault
def test_directories_that_were_made_for_nothing_go_again(number, for_good, memory_path):
    scenario = SCENARIOS["build"]
    error, n_calls = "", 0
    while error is not None:
        folder = memory_path / str(n_calls)
        folder.mkdir()
        error = attempt(scenario, folder, Failing(n_calls, number, for_good))
        if not files_in(folder):
            assert not (folder / BASE).exists()
        n_calls += 1
