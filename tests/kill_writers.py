"""Writers that are killed: at each of their system calls in turn, or whenever somebody does it.

`write_until_killed` performs a scenario in one subfolder after the other, and says where it is.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scenario import Scenario, act
from write_scenarios import SCENARIOS


def kill_at_each_call(scenario: Scenario, place: Path) -> Iterator[tuple[str, Path]]:
    """Fork a writer that is killed at its first system call, one at its second, and so on.

    Yields the call, or "" when the writer came through, and the folder that it left.
    """
    for n_calls in itertools.count():
        folder = place / str(n_calls)
        folder.mkdir()
        scenario.prepare(folder)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _act_and_exit(scenario, folder, n_calls, writing)
        os.close(writing)
        with open(reading, encoding="utf-8") as pipe:
            call = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == (-signal.SIGKILL if call else 0), (code, call)
        yield call, folder
        if not call:
            return


def _act_and_exit(scenario: Scenario, folder: Path, n_calls: int, writing: int) -> None:
    made = 0

    def kill(operation: str, path: str, *details: Any) -> None:
        nonlocal made
        if made == n_calls:
            os.write(writing, operation.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1

    code = 1
    try:
        act(scenario, folder, kill)
        code = 0
    finally:
        os._exit(code)


def write_until_killed(name: str, place: Path, tell: Connection) -> None:
    """Perform a scenario again and again; tell ("acting", 0), ("done", 0), ("acting", 1) ..."""
    scenario = SCENARIOS[name]
    prepared = place / "prepared"
    prepared.mkdir()
    scenario.prepare(prepared)
    for number in itertools.count():
        folder = place / str(number)
        shutil.copytree(prepared, folder)
        tell.send(("acting", number))
        act(scenario, folder)
        tell.send(("done", number))
