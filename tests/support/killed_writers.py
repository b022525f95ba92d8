"""Writers that are killed: at each of their system calls in turn, or whenever somebody does it.

`write_until_killed` performs a write case in one subfolder after the other, and says where it is.
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

from support.write_cases import WRITE_CASES
from support.writes import WriteCase, act


def kill_at_each_call(case: WriteCase, base: Path, step: int = 1) -> Iterator[tuple[str, Path]]:
    """Fork a writer that is killed at its first system call, one `step` calls later, and so on.

    Yields the call, or "" when the writer came through, and the folder that it left.
    """
    for n_calls in itertools.count(step=step):
        folder = base / str(n_calls)
        folder.mkdir()
        case.prepare(folder)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _act_and_exit(case, folder, n_calls, writing)
        os.close(writing)
        with open(reading, encoding="utf-8") as pipe:
            call = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == (-signal.SIGKILL if call else 0), (code, call)
        yield call, folder
        if not call:
            return


def _act_and_exit(case: WriteCase, folder: Path, n_calls: int, writing: int) -> None:
    made = 0

    def kill(operation: str, path: str, *details: Any) -> None:
        nonlocal made
        if made == n_calls:
            os.write(writing, operation.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1

    code = 1
    try:
        act(case, folder, kill)
        code = 0
    finally:
        os._exit(code)


def write_until_killed(name: str, base: Path, tell: Connection) -> None:
    """Perform a write case again and again; tell ("acting", 0), ("done", 0), ("acting", 1) ..."""
    case = WRITE_CASES[name]
    prepared = base / "prepared"
    prepared.mkdir()
    case.prepare(prepared)
    for number in itertools.count():
        folder = base / str(number)
        shutil.copytree(prepared, folder)
        tell.send(("acting", number))
        act(case, folder)
        tell.send(("done", number))
