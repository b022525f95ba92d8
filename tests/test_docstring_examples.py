"""Every public class, function, method and property has an example, and it runs."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
from pathlib import Path

import pytest
from support.public_members import public_members

#: What the package itself calls, with what only it has.
EXCEPTIONS = {
    "MmapRegion.admitted",  # counts bytes before they are mapped
    "PoolAllocator.after_fork",
    "PoolAllocator.blocks",  # for what the manager shows
    "PoolAllocator.look",  # for what the manager shows
    "PoolAllocator.occupancies",  # for what the manager shows
    "PoolAllocator.recount",  # after a fork
    "PoolAllocator.survey",  # for what the manager shows
    "PoolAllocator.within",  # a manager's budget
    "RegionBuilder.add_encoded",  # a build's contents
}

#: Examples that need an extra.
NEEDED = {"FileCache": "fsspec", "MmapRegion.from_url": "fsspec", "RemoteError": "fsspec"}

PAGE = Path(__file__).parent.parent / "docs" / "docstring_examples.md"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = dict(public_members())


def examples_in(name):
    """Return the section of a docstring that has its examples; empty: there is none."""
    text = inspect.cleandoc(PUBLIC[name].__doc__ or "")
    return text.partition("\nExamples\n--------\n")[2]


def needed_by(name):
    return NEEDED.get(name) or NEEDED.get(name.partition(".")[0])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A folder with the files that the page makes, the names it has by then, and its second block.

    What is made once is copied for each example.
    """
    folder = tmp_path_factory.mktemp("page")
    files, names = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(files, scope)
    return folder, scope, names


@pytest.fixture
def scope(page, tmp_path, monkeypatch):
    """The names that the page tells of, in a directory of their own."""
    folder, made, names = page
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESSYMEM_CACHE_DIR", str(tmp_path / "cache"))
    scope = dict(made)
    exec(names, scope)
    manager, allocator = scope["manager"], scope["allocator"]
    yield scope
    scope.clear()
    manager.close()
    assert allocator.validate() == []
    allocator.close()


@pytest.mark.parametrize("name", PUBLIC)
def test_there_is_an_example(name):
    assert bool(examples_in(name)) != (name in EXCEPTIONS)


@pytest.mark.parametrize("name", [name for name in PUBLIC if examples_in(name)])
def test_the_example_does_what_it_shows(name, scope):
    if needed := needed_by(name):
        pytest.importorskip(needed)
    test = doctest.DocTestParser().get_doctest(examples_in(name), scope, name, None, None)
    assert any(example.want for example in test.examples)
    said = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


def test_exceptions_are_public():
    assert PUBLIC.keys() >= EXCEPTIONS
