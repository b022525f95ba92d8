"""What the documents say is what happens: examples run, and every public name is described."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import jessymem
from jessymem import MemoryConfig
from jessymem.config import EVICTION_POLICIES

ROOT = Path(__file__).parent.parent


def test_the_readme_example_runs(tmp_path):
    code, learning = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
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
    # One below the other, as somebody copies them.
    closing = "with MmapManager(280, base_path='data') as manager:\n"
    closing += "    manager.load_dimension(15)\n"
    closing += "    print(bytes(manager.access_layer('L15-00')), layer in manager)\n"
    result = subprocess.run(
        [sys.executable, "-c", code + learning + closing],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.endswith("b'Rain since Monday.\\nStill raining.' True\n")


@pytest.mark.parametrize(
    ("page", "n_examples"),
    [
        ("building.md", 2),
        ("memory.md", 2),
        ("learning.md", 1),
        ("names.md", 1),
        ("arrays.md", 2),
        ("scanning.md", 3),
        ("compiled.md", 3),
        ("how_to.md", 6),
        ("capacity.md", 2),
        ("errors.md", 1),
        ("index.md", 1),
        ("pictures.md", 1),
    ],
)
def test_the_examples_of_a_page_run(page, n_examples, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert len(blocks) == n_examples
    script = tmp_path / "example.py"  # a file: workers that are spawned import it
    for code in blocks:
        script.write_text(code, encoding="utf-8")
        subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, timeout=120)


def test_the_eviction_page_tells_the_default_and_every_policy():
    page = (ROOT / "docs" / "eviction.md").read_text()
    assert re.findall(r'\*\*`"(\w+)"` is the default', page) == [MemoryConfig().eviction_policy]
    assert sorted(re.findall(r'^\| `"(\w+)"`', page, re.MULTILINE)) == sorted(EVICTION_POLICIES)
    (table,) = re.findall(r"<!-- table: begin -->\n(.+)<!-- table: end -->", page, re.DOTALL)
    for head in re.findall(r"^\| trace .*", table, re.MULTILINE):
        assert {name.strip() for name in head.split("|")} >= {*EVICTION_POLICIES, "belady"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


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


def sections(thing):
    """Return a docstring's numpydoc sections: title to the unindented lines in it."""
    found = {}
    lines = (inspect.getdoc(thing) or "").splitlines()
    title = ""
    for line, rule in zip(lines, [*lines[1:], ""], strict=True):
        if rule and set(rule) == {"-"} and len(rule) == len(line):
            title = line
            found[title] = []
        elif title and line and not line[0].isspace() and set(line) != {"-"}:
            found[title].append(line)
    return found


def announced(thing, section):
    """Return the names that a section announces, of parameters, attributes or errors."""
    lines = [line.split(" : ")[0] for line in sections(thing).get(section, [])]
    return {name.strip() for line in lines for name in line.split(",")}


def parameters(thing):
    return {name for name in inspect.signature(thing).parameters if name not in ("self", "cls")}


PUBLIC = dict(public_callables())
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}
VALUES = {name: thing for name, thing in PUBLIC.items() if dataclasses.is_dataclass(thing)}


@pytest.mark.parametrize("name", [name for name in PUBLIC if sections(PUBLIC[name])])
def test_sections_are_those_of_numpydoc(name):
    known = ["Parameters", "Attributes", "Returns", "Raises", "Notes", "Examples"]
    titles = list(sections(PUBLIC[name]))
    assert titles == sorted(titles, key=known.index)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if announced(FUNCTIONS[n], "Parameters")])
def test_parameters_are_described_all_or_none(name):
    assert announced(FUNCTIONS[name], "Parameters") == parameters(FUNCTIONS[name])


@pytest.mark.parametrize("name", VALUES)
def test_every_field_of_a_value_is_described(name):
    fields = {field.name for field in dataclasses.fields(VALUES[name])}
    described = announced(VALUES[name], "Attributes") | announced(VALUES[name], "Parameters")
    assert described == fields


@pytest.mark.parametrize("name", [name for name in PUBLIC if announced(PUBLIC[name], "Raises")])
def test_errors_that_are_announced_exist(name):
    for error in announced(PUBLIC[name], "Raises"):
        cls = getattr(jessymem, error, None) or getattr(builtins, error)
        assert issubclass(cls, Exception), error


TAKES_USER_WORDS = re.compile(r"DimensionLike|LayerLike|PathLike")
#: Those that only hand on what was checked.
HANDS_ON = {"RegionIOError.from_os_error", "MemoryConfig.of"}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, thing in FUNCTIONS.items()
        if TAKES_USER_WORDS.search(str(inspect.signature(thing))) and name not in HANDS_ON
    ],
)
def test_what_takes_ids_or_paths_says_what_wrong_ones_raise(name):
    said = announced(FUNCTIONS[name], "Raises")
    home = PUBLIC.get(name.partition(".")[0])
    if said_once_for_all := re.search(
        r"does not list again:(.*?)\n\n", inspect.getdoc(home) or "", re.S
    ):
        said |= set(re.findall(r"[A-Z]\w+", said_once_for_all[1]))
    assert said >= {"ValueError", "TypeError"}


def test_public_names_are_just_those_announced():
    assert sorted(jessymem.__all__) == dir(jessymem)
    for name in jessymem.__all__:
        assert getattr(jessymem, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jessymem.no_such_name
