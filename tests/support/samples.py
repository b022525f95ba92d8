"""How much of many alike a run takes: the quick one a part, `-m slow` all.

A test that asks is marked with `sampled`, so that `-m slow` runs it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

sampled = pytest.mark.sampled

#: Whether this run takes all; `tests/conftest.py` says so before any test is imported.
_is_whole = False


def begin(markers: str) -> None:
    """Begin a run of what these markers select: it takes all where slow tests are asked for."""
    global _is_whole
    _is_whole = re.search(r"(?<!\bnot )\bslow\b", markers) is not None


def is_whole() -> bool:
    """Return whether this run takes all."""
    return _is_whole


def number(quick: int, *, of: int) -> int:
    """Return how many of these the run takes; as a step it is from one to the next."""
    return of if _is_whole else quick


def some(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Return values of a parameter, all but the quick ones for `-m slow` alone."""
    slow = pytest.mark.slow
    return [each if each in quick else pytest.param(each, marks=slow) for each in values]
