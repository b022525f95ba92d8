"""Docstrings say in whole words what an argument is not: nothing "is none" that may not be None."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import jessymem

PACKAGE = Path(jessymem.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

#: "If `path` is none", "If it is none", "a `.npy` file is none".
UNCLEAR = re.compile(r"\bIf (?!there\b)`?\w+`?( or `\w+`)? is none\b|` (file )?is none\b")


def docstrings_of(path):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, kinds):
            yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_none_that_is_not_none(name):
    found = [text for text in docstrings_of(PACKAGE / name) if UNCLEAR.search(text)]
    assert found == []
