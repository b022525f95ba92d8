"""The project's own promises: what it depends on, what it ships, what may import what."""

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

# Package folders and the names under which they are imported.
SOURCES = {ROOT / "jessymem": "jessymem", ROOT / "kernels": "jessymem.kernels"}

# What conda-forge calls them, by their name on PyPI.
CONDA_NAMES = {
    "lmdb": "python-lmdb",
    "prometheus-client": "prometheus_client",
    "xxhash": "python-xxhash",
}

MACHINE_PATH = re.compile(r"(?<![\w.])(?:/(?:home|root|Users|work)/|[A-Za-z]:\\+Users\\)")


def split_requirement(requirement):
    """'numpy>=2.0' as ('numpy', '>=2.0'); without the Python that it is for."""
    return re.fullmatch(r"([\w.-]+?)((?:[<>=].*?)?)(?:; .*)?", requirement).groups()


def requirements_of(extra):
    """The requirements of an extra, with those of the extras that it names."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if named := re.fullmatch(r"jessymem\[([\w,]+)\]", requirement):
            for other in named[1].split(","):
                found |= requirements_of(other)
        else:
            found.add(split_requirement(requirement))
    return found


def conda_requirements():
    """The entries of `dependencies:` in environment.yml."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    entries = text.split("\ndependencies:\n")[1].splitlines()
    return {split_requirement(entry[4:]) for entry in entries if entry.startswith("  - ")}


def package_files():
    """Every file of the packages with the name of the package that its folder is."""
    for folder, name in SOURCES.items():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, ".".join([name, *path.parent.relative_to(folder).parts])


def imported_names(path, package=None):
    """What a file imports, as (line, dotted name); relative imports only given its `package`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level and not package:
                continue
            parents = package.split(".") if node.level else []
            above = parents[: len(parents) - node.level + 1]
            for alias in node.names:
                yield node.lineno, ".".join([*above, *filter(None, [node.module]), alias.name])


def is_within(name, package):
    return f"{name}.".startswith(f"{package}.")


@pytest.fixture(scope="module")
def tracked_files():
    """Files of the repository, those included that are about to be added."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    ).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def test_core_dependencies_are_four():
    names = {split_requirement(requirement)[0] for requirement in PROJECT["dependencies"]}
    assert names == {"numpy", "numba", "xxhash", "filelock"}


def test_extra_all_holds_every_extra():
    extras = PROJECT["optional-dependencies"]
    assert requirements_of("all") == set().union(*map(requirements_of, extras))


def test_extra_docs_brings_what_the_site_imports_and_draws_with():
    assert requirements_of("docs") > requirements_of("metrics") | requirements_of("plot")


def test_conda_environment_mirrors_pyproject():
    wanted = {split_requirement(requirement) for requirement in PROJECT["dependencies"]}
    wanted |= requirements_of("all")
    wanted = {(CONDA_NAMES.get(name, name), bounds) for name, bounds in wanted}
    wanted |= {("python", PROJECT["requires-python"]), ("pip", "")}
    assert conda_requirements() == wanted


def test_conda_recipe_mirrors_pyproject():
    text = (ROOT / ".ci" / "recipe" / "recipe.yaml").read_text(encoding="utf-8")
    source = (ROOT / "jessymem" / "_version.py").read_text(encoding="utf-8")
    assert re.findall(r' version: "(.+)"', text) == re.findall(r'__version__ = "(.+)"', source)
    [lowest] = re.findall(r' python_min: "(.+)"', text)
    text = text.replace("${{ python_min }}", lowest)
    built_with = [line.replace(" ", "") for line in re.findall(r"- (setuptools .+)", text)]
    assert built_with == PYPROJECT["build-system"]["requires"]
    entries = re.search(r"\n  run:\n(.*?)\n\n", text, re.S)[1].splitlines()
    found = {split_requirement(line[6:].replace(" ", "")) for line in entries if " - " in line}
    wanted = {split_requirement(requirement) for requirement in PROJECT["dependencies"]}
    wanted |= requirements_of("cli")
    wanted = {(CONDA_NAMES.get(name, name), bounds) for name, bounds in wanted}
    assert found == wanted | {("python", PROJECT["requires-python"])}


def load_script(name):
    """A script of .ci, as a module."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / f"{name}.py")))


def test_lowest_versions_are_those_of_every_bound():
    script = load_script("lowest")
    found = dict(line.split("==") for line in script.lowest(PROJECT))
    bounds = {split_requirement(requirement) for requirement in PROJECT["dependencies"]}
    bounds |= requirements_of("all")
    assert found == {name: bound.removeprefix(">=").split(",")[0] for name, bound in bounds}


def test_what_is_published_has_links_that_lead_to_its_source():
    script = load_script("publishable")
    url = "https://example.org/them/it"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = script.with_absolute_links(readme, url, "v1.2.3")
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert len(targets) == len(re.findall(r"\]\(", readme)) > 10
    assert all(target.startswith(url) for target in targets)
    assert f"]({url}/raw/v1.2.3/docs/images/overview.svg)" in page
    assert f"]({url}/blob/v1.2.3/docs/performance.md#beside-its-peers)" in page
    project = script.with_urls((ROOT / "pyproject.toml").read_text(encoding="utf-8"), url)
    assert tomllib.loads(project)["project"]["urls"]["Source"] == url
    changelog = "# Changelog\n\n## [Unreleased]\n\n- new\n\n## [1.2.3] - today\n\n- old\n"
    assert script.notes(changelog, "1.2.3") == "- old"
    assert script.notes(changelog, "9.9.9") == "- new"


def test_version_is_one():
    source = (ROOT / "jessymem" / "_version.py").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    declared = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert "version" not in PROJECT
    assert declared == [version("jessymem")], "install again where the version has changed since"
    assert declared == re.findall(r"^version: (.+)$", citation, re.MULTILINE)


def test_every_package_folder_is_shipped():
    packages = PYPROJECT["tool"]["setuptools"]["packages"]
    assert {package for _, package in package_files()} == set(packages)


def test_every_tracked_file_is_in_the_archive_of_sources(tracked_files):
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    lines = [line.split() for line in manifest.splitlines() if line and line[0] != "#"]
    whole = {name for command, *names in lines if command == "graft" for name in names}
    single = {name for command, *names in lines if command == "include" for name in names}
    by_itself = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "jessymem", "kernels"}
    tops = {path.relative_to(ROOT).parts[0] for path in tracked_files}
    assert tops == whole | single | by_itself


def test_kernels_are_found_through_a_link_and_without_one(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(ROOT / "jessymem", tmp_path / "jessymem", ignore=ignored)
    if (ROOT / "jessymem" / "kernels").exists():  # not in an archive of sources
        assert (ROOT / "jessymem" / "kernels").resolve() == (ROOT / "kernels").resolve()
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=ignored)
    code = "import jessymem.kernels as k; print(k.__name__, k.__file__)"
    for folder in (tmp_path, ROOT):
        shown = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.split(" ", 1)
        assert shown[0] == "jessymem.kernels"
        assert Path(shown[1].strip()).resolve() == (folder / "kernels" / "__init__.py").resolve()


def test_every_data_file_is_shipped():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    missed = [
        str(path.relative_to(ROOT))
        for path, package in package_files()
        if path.suffix != ".py"
        and not any(fnmatch(path.name, pattern) for pattern in patterns.get(package, ()))
    ]
    assert not missed


def test_kernels_import_nothing_above_them():
    above = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, package in package_files()
        if path.suffix == ".py" and is_within(package, "jessymem.kernels")
        for line, name in imported_names(path, package)
        if is_within(name, "jessymem") and not is_within(name, "jessymem.kernels")
    ]
    assert not above


def test_nobody_imports_bare_kernels(tracked_files):
    bare = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in tracked_files
        if path.suffix == ".py"
        for line, name in imported_names(path)
        if is_within(name, "kernels")
    ]
    assert not bare


def test_source_is_ascii(tracked_files):
    suffixes = {".py", ".toml", ".yml", ".yaml", ".cff", ""}
    strange = [
        str(path.relative_to(ROOT))
        for path in tracked_files
        if path.suffix in suffixes and not path.read_bytes().isascii()
    ]
    assert not strange


def test_no_line_names_a_machine(tracked_files):
    named = []
    for path in tracked_files:
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line):
                named.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not named
