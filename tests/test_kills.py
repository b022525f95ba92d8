"""Writers that are killed leave the old or the new, and nothing that hinders the next one.

What a kill proves nothing about, the page cache outliving it, is tested in `test_write_order`.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support import killed_writers, samples
from support.disk_model import as_state, tree_of
from support.processes import needs_fork
from support.samples import sampled
from support.write_cases import WRITE_CASES
from support.writes import WriteCase, act, files_in, target_in

from jessymem import osmem

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

each_case = pytest.mark.parametrize("name", WRITE_CASES)

#: So long after its first writes a writer is killed at the latest; one write takes some ms.
LATEST_SECONDS = 0.03


def check_and_write_again(case: WriteCase, folder: Path) -> str:
    """Check what a killed writer left, also as the next writer finds it; return which state."""
    untidied = folder.with_name(f"{folder.name}-untidied")
    shutil.copytree(folder, untidied)
    state = case.check(folder)
    assert case.check(folder) == state
    for each in (folder, untidied):
        target = target_in(each)
        if target.parent.exists():  # the lock is free at once
            with osmem.locked(target.with_name(f".{target.name}.lock"), timeout=0):
                pass
        act(case, each)
        assert case.check(each) == "new"
        deltas = set(target.parent.glob("region.d*.mmap"))
        assert files_in(each) - deltas == {target}
    return state


@needs_fork
@each_case
@sampled
def test_a_writer_that_is_killed_at_any_system_call(name, memory_path, monkeypatch):
    step = samples.number(8, of=1)
    # So that what is written again is the same; what is left alike is looked at once.
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    case = WRITE_CASES[name]
    states, verdicts = [], {}
    for _, folder in killed_writers.kill_at_each_call(case, memory_path, step):
        left = as_state(tree_of(folder))
        if left not in verdicts:
            verdicts[left] = check_and_write_again(case, folder)
        states.append(verdicts[left])
        shutil.rmtree(folder)
    assert states[-1] == "new"
    # Once it is new it stays new.
    assert states == sorted(states, reverse=True)
    assert len(states) > 4 / step
    assert len(verdicts) > 1


def kill_at_random(name: str, base: Path) -> str | None:
    """Let writers write, kill them; return the state, or None where that was between two writes."""
    base.mkdir()
    case = WRITE_CASES[name]
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    hear, tell = context.Pipe(duplex=False)
    writer = context.Process(target=killed_writers.write_until_killed, args=(name, base, tell))
    writer.start()
    tell.close()
    with hear:
        heard = [hear.recv(), hear.recv()]  # the first write imports what the others use
        time.sleep(random.uniform(0, LATEST_SECONDS))
        writer.kill()
        with suppress(EOFError):
            while True:
                heard.append(hear.recv())
    writer.join()
    writer.close()
    doing, number = heard[-1]
    folder = base / str(number)
    if doing == "done":
        assert case.check(folder) == "new" or not case.is_promised
        state = None
    else:
        state = check_and_write_again(case, folder)
    shutil.rmtree(base)
    return state


def kill_many_at_random(name: str, n_kills: int, memory_path: Path) -> list[str]:
    states: list[str] = []
    for n_tries in range(10 * n_kills):
        state = kill_at_random(name, memory_path / str(n_tries))
        if state is not None:
            states.append(state)
        if len(states) == n_kills:
            return states
    raise AssertionError(f"only {len(states)} of {10 * n_kills} kills hit a write")


@each_case
def test_a_writer_that_is_killed_at_random(name, memory_path):
    kill_many_at_random(name, 1, memory_path)


@pytest.mark.slow
@each_case
def test_a_hundred_writers_that_are_killed_at_random(name, memory_path):
    states = kill_many_at_random(name, 100, memory_path)
    assert name == "fold back" or set(states) == {"old", "new"}
