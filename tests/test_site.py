"""The documentation site, as far as it can be looked at without building it."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

import jessymem
from jessymem import errors

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *NOTEBOOKS])
ERRORS = [
    name
    for name, thing in inspect.getmembers(errors, inspect.isclass)
    if thing.__module__ == errors.__name__
]


def text_of(page: Path) -> str:
    """Return a page's Markdown: of a notebook that of its cells."""
    text = page.read_text("utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def prose_of(page: Path) -> str:
    """Return what is no code."""
    without_blocks = re.sub(r"^( *)(```+).*?^\1\2$", "", text_of(page), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "`code`", without_blocks)


def anchors_of(page: Path) -> set[str]:
    """Return what a link's fragment may be: headings as GitHub, and MyST, spell them."""
    without_blocks = re.sub(r"^( *)(```+).*?^\1\2$", "", text_of(page), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks, re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(next(s for n in count() if (s := f"{slug}-{n}" if n else slug) not in found))
    return found


def toctrees_of(page: Path) -> list[Path]:
    """Return the pages that a page's toctrees name."""
    found = []
    for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text("utf-8"), re.S):
        entries = [line for line in block.splitlines() if line and not line.startswith(":")]
        for entry in entries:
            target = re.sub(r".*<(.+)>", r"\1", entry)
            (path,) = {
                path
                for suffix in (".md", ".ipynb")
                if (path := (page.parent / f"{target}{suffix}").resolve()).exists()
            }
            found.append(path)
    return found


def test_every_page_is_in_one_toctree():
    seen: list[Path] = []
    waiting = [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        seen.append(page)
        if page.suffix == ".md":
            waiting += toctrees_of(page)
    assert sorted(seen) == sorted({*DOCS.rglob("*.md"), *NOTEBOOKS, *ROOT.glob("*.md")})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors_of(there), target


def test_the_way_to_replacing_a_file_is_short():
    first = prose_of(DOCS / "index.md")
    assert re.search(r"\[replace a file under readers\?\]\((how_to\.md#[\w-]+)\)", first)


def test_every_error_has_a_section_and_no_other_has():
    sections = re.findall(r"^## (\w+)$", (DOCS / "errors.md").read_text("utf-8"), re.M)
    assert sorted(sections) == sorted(ERRORS)
    assert set(ERRORS) <= set(jessymem.__all__)


@pytest.mark.parametrize("name", ERRORS)
def test_the_section_of_an_error_says_when_what_it_carries_and_what_to_do(name):
    page = (DOCS / "errors.md").read_text("utf-8")
    section = re.split(rf"^## {name}$", page, flags=re.M)[1].split("\n## ")[0]
    assert "**When**" in section and "**Carries**" in section
    assert "what to do" in section.lower() or name == "JessyMemoryError"
    missing = [each for each in vars(errors)[name].__annotations__ if f"`{each}`" not in section]
    assert not missing


def test_every_public_name_is_in_the_reference():
    directives = re.compile(r"^\.\. auto(?:class|function|exception):: ([\w.]+)$", re.M)
    pages = [page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md")]
    found = [name for page in pages for name in directives.findall(page)]
    wanted = {f"jessymem.{name}" for name in jessymem.__all__ if name != "__version__"}
    kernels = (ROOT / "kernels" / "__init__.py").read_text("utf-8")
    exported = re.search(r"__all__ = \[(.*?)\]", kernels, re.S)[1]
    wanted |= {f"jessymem.kernels.{name}" for name in re.findall(r'"(\w+)"', exported)}
    assert wanted <= set(found)
    assert len(found) == len(set(found))


def test_every_verb_of_a_manager_is_in_one_table_of_the_reference():
    page = (DOCS / "reference" / "manager.md").read_text("utf-8")
    listed = re.findall(r"^   MmapManager\.(\w+)$", page, re.M)
    assert sorted(listed) == [name for name in dir(jessymem.MmapManager) if name[0] != "_"]


@pytest.mark.parametrize(
    "notebook",
    [
        # `test_notebooks.py` runs that one; the one that watches for seconds the site's build runs.
        pytest.param(each, marks=[pytest.mark.slow] if each.stem == "watching" else [])
        for each in NOTEBOOKS
        if each.stem != "many_files"
    ],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(notebook, tmp_path):
    content = json.loads(notebook.read_text("utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells), "kept without outputs: the site runs it"
    if any("import plot" in "".join(cell["source"]) for cell in cells):
        pytest.importorskip("matplotlib")
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        check=True,
        capture_output=True,
        timeout=120,
    )


def test_what_one_comes_from_and_goes_to_runs(tmp_path):
    page = (DOCS / "coming_from.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 8
    for number, code in enumerate(blocks):
        imported = re.findall(r"^(?:import|from) (\w+)", code, re.M)
        needs = [*imported, "safetensors"] if "safetensors" in code else imported
        if all(importlib.util.find_spec(name) for name in needs):
            script = tmp_path / f"example_{number}.py"
            script.write_text(code, encoding="utf-8")
            subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, timeout=120)


def test_diagrams_are_as_they_are_drawn():
    drawing = runpy.run_path(str(DOCS / "diagrams" / "draw.py"))
    pictures = dict(drawing["pictures"]())
    assert len(pictures) == 8
    for path, picture in pictures.items():
        assert path.read_text("utf-8") == picture, f"python docs/diagrams/draw.py ({path.name})"


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(os.name == "nt" or shutil.which("git") is None, reason="a shell and git")
def test_site_and_dashboards_leave_each_other_alone(tmp_path):
    here, origin = tmp_path / "here", tmp_path / "origin"
    for folder in (here, origin):
        folder.mkdir()
    git(origin, "init", "--quiet", "--bare")
    git(here, "init", "--quiet")
    git(here, "config", "user.name", "x")
    git(here, "config", "user.email", "x@y")
    git(here, "commit", "--quiet", "--allow-empty", "-m", "first")
    git(here, "remote", "add", "origin", str(origin))

    def publish(place: str, **files: str) -> list[str]:
        built = tmp_path / "built"
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir()
        for name, content in files.items():
            (built / name).write_text(content)
        subprocess.run([str(ROOT / ".ci" / "pages"), str(built), place], cwd=here, check=True)
        return git(origin, "ls-tree", "-r", "--name-only", "gh-pages").split()

    assert publish("site", index="1", old="1") == [".nojekyll", "site/index", "site/old"]
    assert publish(".", index="2", graph="2") == [
        *(".nojekyll", "graph", "index"),
        *("site/index", "site/old"),
    ]
    assert publish("site", index="3") == [".nojekyll", "graph", "index", "site/index"]
    assert publish(".", index="4") == [".nojekyll", "index", "site/index"]
    assert git(origin, "show", "gh-pages:site/index") == "3"
    n_commits = git(origin, "rev-list", "--count", "gh-pages")
    publish(".", index="4")  # nothing is new: nothing is pushed
    assert git(origin, "rev-list", "--count", "gh-pages") == n_commits
