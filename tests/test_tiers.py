"""Both tiers answer alike: plain Python in a fresh process, compiled kernels, and on the way.

The questions and the program that answers them are in `support.tiers`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiers import build, check_same

from jessymem.kernels import _jit

COMPILED_TIERS = ["compiled", "switched", "grown"]


def answers_of(base, tier, **environment):
    """Return what a fresh process answers, and how often it said that the cache has failed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "support.tiers", base, tier],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers, n_warnings = json.loads(result.stdout)
    return answers, n_warnings


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiers")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def plain(base):
    """What a process answers that has not compiled anything."""
    answers, _ = answers_of(base, "plain")
    return answers


def test_the_questions_lead_everywhere(plain):
    """The comparison is worth something: everything that can go wrong does."""
    errors = {answer["error"] for answer in plain.values() if isinstance(answer, dict)}
    assert errors >= {
        "DimensionNotFound",
        "InvalidAccess",
        "LayerNotFound",
        "LimitExceeded",
        "OutOfBounds",
        "TypeError",
        "ValueError",
    }
    n_evictions, n_reloads = map(int, plain["evictions"])
    assert n_evictions >= n_reloads >= 2


def test_disabled_compilation_answers_the_same(base, plain):
    answers, _ = answers_of(base, "disabled", NUMBA_DISABLE_JIT="1")
    check_same(answers, plain)


@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
@pytest.mark.parametrize("tier", COMPILED_TIERS)
def test_compiled_kernels_answer_the_same(base, plain, tier):
    answers, n_warnings = answers_of(base, tier)
    check_same(answers, plain)
    assert n_warnings == 0


@pytest.mark.processes
@pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")
def test_a_cache_that_cannot_be_made_costs_one_warning(base, plain, tmp_path):
    (tmp_path / "file").touch()  # below which no folder can be made, whoever asks
    cache = str(tmp_path / "file" / "cache")
    answers, n_warnings = answers_of(base, "uncached", NUMBA_CACHE_DIR=cache)
    check_same(answers, plain)
    assert n_warnings == 1
