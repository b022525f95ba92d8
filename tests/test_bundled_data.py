"""Data that are shipped with the package are found wherever it was imported from."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import jessymem
from jessymem import kernels
from jessymem.bundled import read_bundled

ROOT = Path(__file__).parent.parent
PACKAGE = Path(jessymem.__file__).parent

USE = """
    import sys
    import jessymem
    from jessymem.bench.run import accepted_misses
    from jessymem.demo.run import build_core, differing_layers
    from pathlib import Path

    assert jessymem.__file__.startswith(sys.path[1]), jessymem.__file__
    with jessymem.MmapManager(base_path="nothing") as manager:
        manager.load_core_dimensions()
        assert manager.get_stats().simulation_mode
        print(len(manager))
    sources = build_core(Path("built"))
    with jessymem.MmapManager(base_path="built") as manager:
        manager.load_all()
        print(len(sources), differing_layers(manager, sources))
    print(type(accepted_misses()).__name__)
"""

WITHOUT_DATA = """
    import jessymem
    from jessymem.core_dimensions import core_dimensions
    try:
        core_dimensions()
    except jessymem.RegionIOError as error:
        print(error)
"""


def archive(path, has_data=True, has_folders=False):
    """Put the package into an archive as it would be installed."""
    tree = path.parent / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "kernels", *([] if has_data else ["data"]))
    shutil.copytree(PACKAGE, tree / "jessymem", ignore=ignored)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(kernels.__file__).parent, tree / "jessymem" / "kernels", ignore=ignored)
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted(tree.rglob("*")):
            if has_folders or each.is_file():
                file.write(each, each.relative_to(tree))
    shutil.rmtree(tree)


def run(code, path, folder):
    """Run code in a fresh interpreter that finds the package at `path`; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(path), "COVERAGE_PROCESS_CONFIG": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("has_folders", [True, False])
def test_bundled_data_are_read_out_of_an_archive(has_folders, tmp_path):
    archive(tmp_path / "jessymem.zip", has_folders=has_folders)
    found = run(USE, tmp_path / "jessymem.zip", tmp_path)
    assert found == ["56", "56 []", "dict"]


@pytest.mark.parametrize("is_archive", [True, False])
def test_data_that_were_not_shipped_are_an_error_that_names_them(is_archive, tmp_path):
    path = tmp_path / "jessymem.zip"
    archive(path, has_data=False)
    if not is_archive:
        with zipfile.ZipFile(path) as file:
            file.extractall(tmp_path / "tree")
        path = tmp_path / "tree"
    (line,) = run(WITHOUT_DATA, path, tmp_path)
    assert line.startswith("cannot read what should be shipped with jessymem, ")
    assert "dimensions.json: " in line


def test_every_file_of_data_can_be_read():
    names = sorted(path.name for path in (PACKAGE / "data").iterdir() if path.is_file())
    assert names
    assert all(read_bundled(name) for name in names)


def test_nothing_is_looked_for_beside_a_source_file():
    """But the hooks of a freezer, which runs where the package is installed."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        names = (node for node in ast.walk(ast.parse(path.read_text())) if type(node) is ast.Name)
        if any(node.id == "__file__" for node in names):
            found.append(path.relative_to(PACKAGE).as_posix())
    assert [each for each in found if not each.startswith("kernels/")] == [
        "__pyinstaller/__init__.py"
    ]


# -- frozen programs -------------------------------------------------------------------------------


def test_a_freezer_finds_the_hook():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (told,) = project["entry-points"]["pyinstaller40"].items()
    module, _, function = told[1].partition(":")
    assert told[0] == "hook-dirs"
    code = f"from {module} import {function} as folders; print(*folders())"
    (folder,) = run(code, ROOT, ROOT)
    assert (Path(folder) / "hook-jessymem.py").is_file()
    installed = [each.value for each in entry_points(group="pyinstaller40", name="hook-dirs")]
    assert not any("jessymem" in value and value != told[1] for value in installed)


def test_the_hook_names_what_is_imported_by_name():
    utils = """
        import sys, types, runpy
        hooks = types.ModuleType("PyInstaller.utils.hooks")
        def collect_submodules(package, filter):
            names = [f"{package}.manager", f"{package}.__pyinstaller", f"{package}.bench.run"]
            return [name for name in names if filter(name)]
        hooks.collect_submodules = collect_submodules
        hooks.collect_data_files = lambda package: [("data", package)]
        hooks.copy_metadata = lambda package: [("metadata", package)]
        for name in ("PyInstaller", "PyInstaller.utils"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["PyInstaller.utils.hooks"] = hooks
        from jessymem.__pyinstaller import hook_folders
        found = runpy.run_path(hook_folders()[0] + "/hook-jessymem.py")
        print(found["hiddenimports"], found["datas"])  # codespell:ignore datas
    """
    (line,) = run(utils, ROOT, ROOT)
    assert line == (
        "['jessymem.manager', 'jessymem.bench.run'] "
        "[('data', 'jessymem'), ('metadata', 'jessymem')]"
    )
