"""What opening costs in memory, and what processes share: measured in processes of their own.

A child is asked over its standard input, one JSON line a question, and answers with one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

_STATM: Final = Path("/proc/self/statm")
_ROLLUP: Final = Path("/proc/self/smaps_rollup")


class NotMeasurable(RuntimeError):
    """What is to be measured is nothing that this system tells."""


def resident_bytes() -> int:
    """Return how much of this process is in memory; raise NotMeasurable."""
    if not _STATM.exists():
        raise NotMeasurable("this system has no /proc that tells what is resident")
    n_pages: int = int(_STATM.read_text().split()[1])
    return n_pages * os.sysconf("SC_PAGE_SIZE")


def proportional_bytes() -> int:
    """Return this process' proportional set size: shared pages divided among those that map them.

    Raises NotMeasurable.
    """
    if not _ROLLUP.exists():
        raise NotMeasurable("this system has no /proc that tells what is shared")
    lines = _ROLLUP.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def resident_after_opening(base: str | os.PathLike[str], dimensions: Iterable[int]) -> int:
    """Return what a process holds more once it has opened dimensions; its imports do not count."""
    with Child() as child:
        before = child.ask("resident")
        child.ask("open", os.fspath(base), list(map(int, dimensions)))
        return int(child.ask("resident")) - int(before)


def shared_by_processes(
    base: str | os.PathLike[str], dimensions: Iterable[int], n_processes: int
) -> int:
    """Return what processes hold more, all together, once each has opened and read dimensions."""
    arguments = os.fspath(base), list(map(int, dimensions))
    with ExitStack() as stack:
        children = [stack.enter_context(Child()) for _ in range(n_processes)]
        before = sum(_ask_all(children, "proportional"))
        _ask_all(children, "open", *arguments)
        _ask_all(children, "read")
        return sum(_ask_all(children, "proportional")) - before


class Child:
    """A process that has imported jessymem, and does what it is asked to."""

    def __init__(self) -> None:
        code = "from jessymem.bench.footprint import answer_all; answer_all()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def say(self, what: str, *arguments: Any) -> None:
        """Ask without waiting for the answer."""
        if self._process.stdin is None:
            raise AssertionError("a child has pipes")
        self._process.stdin.write(json.dumps([what, *arguments]) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Wait for an answer; raise NotMeasurable where the child says so."""
        if self._process.stdout is None:
            raise AssertionError("a child has pipes")
        answer, problem = json.loads(self._process.stdout.readline())
        if problem:
            raise NotMeasurable(problem)
        return answer

    def ask(self, what: str, *arguments: Any) -> Any:
        """Ask, and wait for the answer."""
        self.say(what, *arguments)
        return self.hear()


def _ask_all(children: Sequence[Child], what: str, *arguments: Any) -> list[int]:
    for child in children:
        child.say(what, *arguments)
    return [child.hear() for child in children]


def answer_all() -> None:
    """Answer until there is no question any more; what a `Child` runs."""
    from jessymem.bench import data

    manager = None
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        answer, problem = 0, ""
        try:
            if what == "resident":
                answer = resident_bytes()
            elif what == "proportional":
                answer = proportional_bytes()
            elif what == "open":
                manager = data.open_manager(Path(arguments[0]))
                for dimension in arguments[1]:
                    manager.load_dimension(dimension)
            elif manager is not None:
                for layer in manager.list_layers():
                    answer += int(np.frombuffer(manager.access_layer(layer), np.uint8).max())
        except NotMeasurable as error:
            problem = str(error)
        sys.stdout.write(json.dumps([answer, problem]) + "\n")
        sys.stdout.flush()
