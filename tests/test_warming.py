"""`warmup`: everything is compiled afterwards, and what it came to is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jessymem import WarmupReport, warmup
from jessymem.kernels import _jit

compiles = pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")

WARM_UP = """
import dataclasses, json, sys
import jessymem
from jessymem.kernels import _jit
for group in sys.argv[1:]:
    del _jit.MODULES[group]
assert "numba" not in sys.modules
reports = [dataclasses.asdict(jessymem.warmup()) for _ in range(2)]
print(json.dumps(reports, default=str))
"""


def warm_up(*left_out, **environment):
    """Return what a fresh process is told when it warms up twice, but for some groups."""
    result = subprocess.run(
        [sys.executable, "-c", WARM_UP, *left_out],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return [WarmupReport(**report) for report in json.loads(result.stdout)]


@compiles
def test_afterwards_every_group_is_compiled():
    report = warmup()
    assert all(map(_jit.is_promoted, _jit.MODULES))
    assert report.n_compiled + report.n_cached >= len(_jit.MODULES)


@compiles
def test_a_second_call_finds_nothing_to_do():
    first, second = warm_up()
    assert (second.n_compiled, second.n_cached) == (first.n_compiled, first.n_cached)
    assert Path(first.cache).is_dir()


@compiles
def test_a_cache_that_cannot_be_written_is_told_of_and_nothing_is_printed(tmp_path):
    (tmp_path / "file").touch()
    first, _ = warm_up(
        _jit.MEMORY, _jit.SEARCHING, NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache")
    )
    assert first.n_compiled > 0
    assert (first.n_cached, first.cache) == (0, None)


def test_disabled_compilation_leaves_nothing_to_warm():
    for report in warm_up(NUMBA_DISABLE_JIT="1"):
        assert report.is_disabled
        assert (report.n_compiled, report.n_cached, report.cache) == (0, 0, None)
