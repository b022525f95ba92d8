"""Every system call of a write failed in turn: an error or none, the old or the new, no remains.

The calls that the system refuses come once, or from one on for good, as on a disk that is full.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from support import samples
from support.samples import sampled
from support.system import open_files, opened_since
from support.system_calls import Failing, each_fault
from support.write_cases import WRITE_CASES
from support.writes import BASE, DIMENSION, WriteCase, act, files_in, target_in

from jessymem import JessyMemoryError, osmem

each_case = pytest.mark.parametrize("name", WRITE_CASES)


def attempt(case: WriteCase, folder: Path, failing: Failing) -> str | None:
    """Act under faults; return the class of the error that came out, None where none did."""
    try:
        act(case, folder, failing)
    except JessyMemoryError as error:
        assert isinstance(error, OSError | MemoryError)
        if isinstance(error, OSError):
            # What cannot be replaced and not be put beside either tells of the first refusal.
            assert error.errno == failing.number or (case.refuse and error.errno == errno.EACCES)
            assert Path(error.filename).parent == target_in(folder).parent
            assert str(DIMENSION) in str(error)
        return type(error).__name__
    return None


@each_case
@each_fault
@sampled
def test_every_call_of_a_write_failed_in_turn(name, number, for_good, memory_path):
    step = samples.number(5, of=1)
    case = WRITE_CASES[name]
    outcomes = []
    n_calls = 0
    prepared = memory_path / "prepared"
    prepared.mkdir()
    case.prepare(prepared)
    while True:
        folder = memory_path / str(n_calls)
        shutil.copytree(prepared, folder)
        before, descriptors = files_in(folder), open_files()
        failing = Failing(n_calls, number, for_good)
        error = attempt(case, folder, failing)
        if not failing.failed:
            break
        n_calls += step
        assert not opened_since(descriptors)
        assert osmem.intercept is None
        left = {path.name for path in files_in(folder) - before}
        if "remove" not in failing.failed:
            assert not [found for found in left if found.startswith(".")], (failing.failed, left)
        state = case.check(folder)
        assert state == "new" or error is not None or not case.is_promised
        outcomes.append((error, state))
        act(case, folder)
        assert case.check(folder) == "new"
        deltas = set(target_in(folder).parent.glob("region.d*.mmap"))
        assert files_in(folder) - deltas == {target_in(folder)}
    assert case.check(folder) == "new"
    assert n_calls > 4
    if case.is_promised and name not in ("fold back", "fold"):
        assert ("RegionIOError", "old") in outcomes


@each_fault
def test_directories_that_were_made_for_nothing_go_again(number, for_good, memory_path):
    case = WRITE_CASES["build"]
    error, n_calls = "", 0
    while error is not None:
        folder = memory_path / str(n_calls)
        folder.mkdir()
        error = attempt(case, folder, Failing(n_calls, number, for_good))
        if not files_in(folder):
            assert not (folder / BASE).exists()
        n_calls += 1
