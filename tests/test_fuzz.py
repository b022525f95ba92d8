"""Hostile input, some thousands of mutations; `python tests/support/fuzzing` tries a million.

Each mutation is known by a seed and an index, so that any of them can be made again. It is read,
and then everything that can be asked of it is answered within its bytes or with an error of ours;
or it is refused with one. What else happens is a finding: its bytes are kept in tests/corpus,
and every file there is tried again in each run.

    python -m pytest tests/test_fuzz.py -m slow

tries as many as a release does. The environment says how many and which:

    JESSYMEM_FUZZ        mutations, 1,000,000 unless given
    JESSYMEM_FUZZ_SEED   1 unless given
"""

from __future__ import annotations

import collections
import os
import random
import subprocess
import sys

import pytest
from support.fuzzing import files, guided, run, targets
from support.fuzzing.checks import Guarded, check, check_as_file, check_memory, load
from support.processes import run_python, with_support

from jessymem.kernels import _jit

N_DEFAULT = 4_000
N_SLOW = int(os.environ.get("JESSYMEM_FUZZ", "1000000"))
SEED = int(os.environ.get("JESSYMEM_FUZZ_SEED", "1"))

# -- the default run -------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    """Let batches be found by the compiled kernels, whose bounds may be checked."""
    _jit.promote()


@pytest.mark.parametrize("base", range(len(files.bases())))
def test_files_to_begin_with_are_valid(base):
    raw = files.bases()[base]
    assert check(raw) == ("plain" if 5 <= base < 8 else "extended")
    assert load(raw).verify_integrity("full")
    assert {at + width <= len(raw) for at, width in files.fields_of(raw)} == {True}


def test_mutations_can_be_made_again():
    assert repr([targets.make(1, i) for i in range(200)]) == repr(
        [targets.make(1, i) for i in range(200)]
    )
    assert len({repr(targets.make(1, i)) for i in range(500)}) > 400
    assert targets.make(2, 0) != targets.make(1, 0)


def test_mutated_input_is_read_or_refused(memory_path):
    path = memory_path / "region.mmap"
    outcomes = collections.Counter(run.try_one(0, i, path) for i in range(N_DEFAULT))
    assert {outcome.split()[0] for outcome in outcomes} == {each.name for each in targets.TARGETS}
    check_outcomes(outcomes, N_DEFAULT)


def check_outcomes(outcomes, n):
    """Check that enough of what was tried is refused, and enough is not."""
    assert outcomes.total() == n
    for target in targets.TARGETS:
        mine = {key: times for key, times in outcomes.items() if key.split()[0] == target.name}
        assert len(mine) > 1
        assert min(mine.values()) > n * target.share // 100 // 40, mine


def test_mutated_entries_at_the_end_of_memory():
    guarded = Guarded(2**16)
    for index in range(N_DEFAULT // 3):
        guarded.parse(files.mutate(random.Random(index)))


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that cannot be read")
def test_reading_past_guarded_memory_is_a_crash():
    code = (
        "from support.fuzzing.checks import Guarded; g = Guarded(10); print('made', flush=True);"
        "import ctypes; a = ctypes.addressof(ctypes.c_char.from_buffer(g.memory));"
        "print(ctypes.string_at(a + g.end - 1, 1), flush=True); ctypes.string_at(a + g.end, 1)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=with_support({}), capture_output=True, check=False
    )
    assert result.stdout.split() == [b"made", b"b'\\x00'"]
    assert result.returncode < 0


# -- findings --------------------------------------------------------------------------------------

TARGETS = {f".{target.suffix}": target for target in targets.TARGETS}
FINDINGS = sorted(path for path in run.CORPUS.iterdir() if path.suffix in TARGETS)


@pytest.mark.parametrize("path", FINDINGS, ids=[path.name for path in FINDINGS])
def test_findings_stay_mended(path, tmp_path):
    raw = path.read_bytes()
    target = TARGETS[path.suffix]
    if target.name in ("reference", "beside"):
        raw = eval(raw)  # what `keep` has written
    target.check(raw, tmp_path / "region.mmap")
    if target.name == "region":
        check_as_file(raw, check(raw), tmp_path / "region.mmap")
        check_memory(raw)
        Guarded(len(raw)).parse(raw)


def test_there_are_findings_to_try():
    assert {path.suffix for path in FINDINGS} >= {".mmap", ".toml", ".reference"}


# -- the long run ----------------------------------------------------------------------------------


ENDLESS = """
import os, sys, time
from support.fuzzing import run, targets
run.PATIENCE = {"crash": 60.0, "hang": 1.0}[sys.argv[1]]
ends = {"crash": os.abort, "hang": lambda: time.sleep(60)}

def target_of(index):
    end = ends[sys.argv[1]] if index == 3 else lambda: None
    return targets.TARGETS[0]._replace(check=lambda made, path: str(end()))

targets.target_of = target_of
run.work(*sys.argv[2:])
"""


@pytest.mark.processes
@pytest.mark.parametrize("end", ["crash", "hang"])
def test_what_crashes_or_hangs_is_known_by_its_index(tmp_path, end):
    progress = tmp_path / "index"
    progress.write_bytes(bytes(8))
    command = [sys.executable, "-c", ENDLESS, end, "1", "0", "9", str(progress)]
    result = subprocess.run(command, env=with_support({}), capture_output=True, check=False)
    assert result.returncode != 0
    assert int.from_bytes(progress.read_bytes(), "little") == 3


@pytest.mark.processes
def test_the_command_tries_what_it_is_told():
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = str(run.CORPUS.parent / "support" / "fuzzing")
    told = subprocess.run(
        [sys.executable, "-c", code, command, "--n", "300", "--seed", "9", "--processes", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "300 tried in" in told.stdout and told.stdout.endswith("nothing was found\n")


def test_guided_changes_are_inputs_of_the_same_kind(monkeypatch):
    monkeypatch.setattr(guided, "mutate_bytes", lambda raw, limit: raw[::-1][:limit])
    for i, target in enumerate(guided.TARGETS):
        for seed in range(50):
            changed = guided.change(bytes([i]) + target.make(random.Random(seed)), 4096, seed)
            assert guided.split(changed)[0] is target
            assert len(changed) <= 4096


@pytest.mark.slow
def test_as_many_as_for_a_release(tmp_path):
    outcomes, findings = run.run_many(N_SLOW, SEED, tmp_path)
    assert not findings, "\n\n".join(findings)
    check_outcomes(outcomes, N_SLOW)


@pytest.mark.slow
def test_guided_by_paths_for_a_minute():
    pytest.importorskip("atheris")
    code = "import sys; from support.fuzzing import guided; sys.exit(guided.run(60, 1))"
    assert "lead along paths" in run_python(code)
