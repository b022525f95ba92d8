"""Child processes: forked from this one, or a fresh interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

#: A child that hangs is ended.
PATIENCE_SECONDS = 60


def in_child(function) -> int:
    """Fork, run `function` in the child, and return the child's exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def checked_in_child(function):
    """Fork, run `function` in the child within a time, and check that it ended well."""

    def child():
        signal.alarm(PATIENCE_SECONDS)
        try:
            function()
        except BaseException:
            traceback.print_exc()
            raise

    assert in_child(child) == 0


def with_support(environment):
    """Return this environment and what is given; programs can import `support` in it."""
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment


def run_python(code, *arguments, **environment):
    """Run `code` in a fresh interpreter; return what it prints."""
    return _run(["-c", code, *arguments], environment)


def run_module(name, *arguments, **environment):
    """Run a module in a fresh interpreter, without coverage; return what it prints."""
    return _run(["-m", name, *arguments], {"COVERAGE_PROCESS_CONFIG": ""} | environment)


def _run(arguments, environment):
    result = subprocess.run(
        [sys.executable, *arguments],
        env=with_support(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
