"""The cache of compiled kernels: which sources it is for, what is damaged, who may only read it."""

from __future__ import annotations

import compileall
import itertools
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from support import samples

import jessymem
from jessymem import kernels
from jessymem.kernels import _jit
from jessymem.kernels import schema as s

pytestmark = pytest.mark.skipif(_jit.is_disabled(), reason="compilation is disabled")

TOLD = """
    import logging, sys
    from jessymem.kernels import _jit, parse

    class Told(logging.Handler):
        def emit(self, record):
            print(record.event, record.is_mended, record.path, record.error, sep="|")

    logging.getLogger("jessymem").addHandler(Told())
"""

PROMOTE = """
    assert _jit.promote(_jit.PARSING)
    parsers = parse.parse_entries, parse.parse_entry, parse.skip_keywords
    n_cached = sum(sum(each.stats.cache_hits.values()) for each in parsers)
    n_compiled = sum(sum(each.stats.cache_misses.values()) for each in parsers)
    print(n_cached, n_compiled, _jit.is_cached(_jit.PARSING))
"""

READ_ONLY = """
    import builtins, errno, os
    plain_open = builtins.open

    def open_to_read(path, mode="r", *arguments, **options):
        if "w" in mode and "jessymem-" in str(path):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return plain_open(path, mode, *arguments, **options)

    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", path)

    builtins.open, os.unlink = open_to_read, refuse
"""


def run(*code, path=None, **environment):
    """Run pieces of code in a fresh interpreter; return the lines that it prints."""
    result = subprocess.run(
        [sys.executable, "-c", "".join(map(textwrap.dedent, code))],
        env={**os.environ, **environment} | ({"PYTHONPATH": str(path)} if path else {}),
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parent if path else None,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def warmed(tmp_path_factory):
    """A folder with a full cache, to be copied."""
    folder = tmp_path_factory.mktemp("warmed")
    lines = run(TOLD, PROMOTE, NUMBA_CACHE_DIR=str(folder))
    assert lines == ["0 3 True"]
    return folder


@pytest.fixture
def cache(warmed, tmp_path):
    """A copy of the full cache, of a test's own."""
    return Path(shutil.copytree(warmed, tmp_path / "cache"))


DAMAGED = list(itertools.product(("nbi", "nbc"), ("truncated", "empty", "other")))


def damage(path, how):
    """Damage a file; return its name."""
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "other": b"?" * 99}[how])
    return str(path)


# The quick run has a truncated index below, where it cannot be removed.
@pytest.mark.parametrize("damaged", samples.some(DAMAGED, ("nbi", "other")), ids=" ".join)
def test_a_damaged_file_is_named_and_mended_once(cache, damaged):
    kind, how = damaged
    (path,) = cache.rglob(f"parse.parse_entries.*.{kind}")
    name = damage(path, how)
    (told, count) = run(TOLD, PROMOTE, NUMBA_CACHE_DIR=str(cache))
    assert told.split("|")[:3] == ["kernel_cache_failed", "True", name]
    assert count == "1 1 True"
    assert run(TOLD, PROMOTE, NUMBA_CACHE_DIR=str(cache)) == ["1 0 True"]


NO_FILES = list(itertools.product(("nbi", "nbc"), ("pipe", "device")))


def link_to_zeros(path):
    os.symlink("/dev/zero", path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize("what", samples.some(NO_FILES, ("nbi", "pipe")), ids=" ".join)
def test_what_is_no_file_is_not_waited_for(cache, what):
    kind, make = what[0], {"pipe": os.mkfifo, "device": link_to_zeros}[what[1]]
    (path,) = cache.rglob(f"parse.parse_entries.*.{kind}")
    path.unlink()
    make(path)
    (told, count) = run(TOLD, PROMOTE, NUMBA_CACHE_DIR=str(cache))
    assert told.split("|")[:3] == ["kernel_cache_failed", "True", str(path)]
    assert count == "1 1 True"
    assert run(TOLD, PROMOTE, NUMBA_CACHE_DIR=str(cache)) == ["1 0 True"]


def test_a_file_of_another_kernel_is_not_run(cache):
    (path,) = cache.rglob("parse.parse_entries.*.nbc")
    (other,) = cache.rglob("parse.parse_entry.*.nbc")
    shutil.copy(other, path)
    (told, count) = run(TOLD, PROMOTE, NUMBA_CACHE_DIR=str(cache))
    assert told.split("|")[:3] == ["kernel_cache_failed", "True", str(path)]
    assert count == "1 1 True"


def test_a_damaged_file_that_cannot_be_removed_is_told_of(cache):
    (path,) = cache.rglob("parse.parse_entries.*.nbi")
    name = damage(path, "truncated")
    for _ in range(2):
        first, second, count = run(READ_ONLY, TOLD, PROMOTE, NUMBA_CACHE_DIR=str(cache))
        assert first.split("|")[:3] == ["kernel_cache_failed", "False", name]
        assert second.startswith("kernel_cache_failed|False|")
        assert count == "1 1 True"


def test_a_cache_that_is_read_only_is_read(cache):
    assert run(READ_ONLY, TOLD, PROMOTE, NUMBA_CACHE_DIR=str(cache)) == ["1 0 True"]


def test_an_empty_cache_that_is_read_only_costs_one_warning(tmp_path):
    (told, count) = run(READ_ONLY, TOLD, PROMOTE, NUMBA_CACHE_DIR=str(tmp_path))
    assert told.startswith(f"kernel_cache_failed|False|{tmp_path}")
    assert count == "0 3 False"


def test_without_a_cache_nothing_is_read_or_written(cache, tmp_path):
    environment = {"NUMBA_CACHE_DIR": str(cache), "JESSYMEM_KERNEL_CACHE": "0"}
    before = sorted(cache.rglob("*"))
    assert run(TOLD, PROMOTE, **environment) == ["0 3 False"]
    assert sorted(cache.rglob("*")) == before


# -- how the package is installed ------------------------------------------------------------------

N_SPARE = s.REGION["spare"].shape[0]


def install(folder, way, change=lambda text: text):
    """Put the package into a folder, or an archive; return what leads Python to it."""
    tree = folder / "tree"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(jessymem.__file__).parent, tree / "jessymem", ignore=ignored)
    shutil.rmtree(tree / "jessymem" / "kernels", ignore_errors=True)
    into = tree / "jessymem" / "kernels"
    shutil.copytree(Path(kernels.__file__).parent, into, ignore=ignored)
    schema = into / "schema.py"
    schema.write_text(change(schema.read_text(encoding="utf-8")), encoding="utf-8")
    if way in ("bytecode", "archived bytecode"):
        assert compileall.compile_dir(tree, quiet=1, legacy=True)
        for path in tree.rglob("*.py"):
            path.unlink()
    if way in ("sources", "bytecode"):
        return tree
    archive = folder / "jessymem.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(tree.rglob("*")):
            file.write(path, path.relative_to(tree))
    shutil.rmtree(tree)
    return archive


SLOW_ARCHIVE = pytest.param("archive", marks=pytest.mark.slow)

WAYS = ["sources", "bytecode", "archive", "archived bytecode"]

DIGEST = "from jessymem.kernels import _jit; print(_jit.digest_of_sources())"


def with_wider_rows(text):
    """Change REGION as a next release might: every address lies elsewhere in its row."""
    first = '("table_address", "i8"),  # LAYER[n_layers]'
    assert first in text and f'("spare", "u1", ({N_SPARE},))' in text
    text = text.replace(first, f'("new", "i8"), {first}')
    return text.replace(f'"u1", ({N_SPARE},)', f'"u1", ({N_SPARE - 8},)')


@pytest.mark.parametrize("way", samples.some(WAYS, "archive", "archived bytecode"))
def test_releases_are_told_apart_however_they_are_installed(way, tmp_path):
    one = install(tmp_path / "one", way)
    other = install(tmp_path / "other", way, with_wider_rows)
    digests = [run(DIGEST, path=path) for path in (one, one, other)]
    assert digests[0] == digests[1] != digests[2]


USER = """
    import numba
    from jessymem.kernels import layer_bytes

    @numba.njit(cache=True)
    def first(store, layer_id):
        return layer_bytes(store, layer_id)[0]
"""

USE = """
    import os, sys
    sys.path.insert(0, os.environ["USER_FOLDER"])
    import jessymem
    from user import first
    assert jessymem.__file__.startswith(os.environ["PYTHONPATH"]), jessymem.__file__
    builder = jessymem.RegionBuilder("D20", "Name")
    builder.add_layer(3, b"content")
    os.makedirs("base/D20", exist_ok=True)
    builder.build_to_file("base/D20/region.mmap")
    with jessymem.MmapManager(base_path="base") as manager:
        manager.load_dimension("D20")
        print(chr(first(manager.store(), jessymem.LayerId("D20", 3))))
        print(sum(first.stats.cache_hits.values()))
"""


@pytest.mark.parametrize("way", ["bytecode", SLOW_ARCHIVE])
def test_a_users_cached_code_is_not_run_with_the_tables_of_another_release(way, tmp_path):
    (tmp_path / "user.py").write_text(textwrap.dedent(USER))
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "USER_FOLDER": str(tmp_path)}
    one = install(tmp_path / "one", way)
    other = install(tmp_path / "other", way, with_wider_rows)
    assert [run(USE, path=path, **environment) for path in (one, one, other)] == [
        ["c", "0"],
        ["c", "1"],
        ["c", "0"],
    ]


@pytest.mark.parametrize("way", [SLOW_ARCHIVE, "bytecode"])
def test_kernels_are_cached_without_files_of_sources(way, tmp_path):
    path = install(tmp_path / "one", way)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    lines = [run(TOLD, PROMOTE, path=path, **environment) for _ in range(2)]
    assert lines == [["0 3 True"], ["1 0 True"]]


def test_where_no_source_can_be_read_the_release_tells(monkeypatch):
    of_files = _jit.digest_of_sources()
    _jit.digest_of_sources.cache_clear()
    monkeypatch.setattr(_jit, "_read_sources", list)
    try:
        told = dict(_jit._describe_release())
        assert re.match(rb"\d", told["version"])
        assert b"table_address" in told["REGION"] and told["LAYER_BITS"] == b"16"
        of_release = _jit.digest_of_sources()
        assert of_release != of_files
        _jit.digest_of_sources.cache_clear()
        monkeypatch.setattr(s, "LAYER_BITS", 17)
        assert _jit.digest_of_sources() not in (of_files, of_release)
        monkeypatch.setattr("importlib.metadata.version", refuse)
        _jit.digest_of_sources.cache_clear()
        with pytest.raises(RuntimeError, match="neither the sources nor the version"):
            _jit.digest_of_sources()
    finally:
        _jit.digest_of_sources.cache_clear()


def refuse(name):
    """Take the place of metadata that are not there."""
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)
