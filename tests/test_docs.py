"""What the documents say is what happens: examples run, and every public name is described."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import jessymem

ROOT = Path(__file__).parent.parent


def test_the_readme_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line and not line.startswith("from")]) <= 10
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout == (
        "21 [L15-00]\n"
        "[L15-00 Field notes | frequency 1.00 | weather]\n"
        "Rain since Monday.\n\n"
        "[L15-01 Field notes | frequency 1.00 | river]\n"
        "The river rose twice.\n\n"
    )


def test_the_examples_of_the_memory_page_run():
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "memory.md").read_text(), re.DOTALL
    )
    assert len(blocks) == 2
    for code in blocks:
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "module", ["ids", "regions.builder", "manager", "pools.allocator", "pools.offsets"]
)
def test_doctests(module):
    failures, tried = doctest.testmod(importlib.import_module(f"jessymem.{module}"))
    assert tried > 0 and failures == 0


def public_callables():
    for name in jessymem.__all__:
        thing = getattr(jessymem, name)
        if not inspect.isclass(thing):
            continue
        yield name, thing
        for attribute, member in vars(thing).items():
            if attribute.startswith("_"):
                continue
            member = inspect.unwrap(getattr(member, "__func__", member))
            if inspect.isfunction(member) or isinstance(member, property):
                yield f"{name}.{attribute}", member


@pytest.mark.parametrize(("name", "thing"), list(public_callables()))
def test_every_public_name_is_described(name, thing):
    doc = inspect.getdoc(thing)
    assert doc and doc.splitlines()[0].endswith((".", ":")), name
    if inspect.isfunction(thing) and re.search(r"\braise \w+", inspect.getsource(thing)):
        assert "Raises" in doc or "raise" in doc or "As `" in doc, f"{name} names no error"


def test_every_link_in_the_documents_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_public_names_are_just_those_announced():
    assert sorted(jessymem.__all__) == dir(jessymem)
    for name in jessymem.__all__:
        assert getattr(jessymem, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jessymem.no_such_name
