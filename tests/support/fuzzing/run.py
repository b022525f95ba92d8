"""Runs mutations: a few in this process, or as many as one likes in processes of their own.

Each of those tries some thousands under a bound on its memory, and notes which one it is about to
try, so that the input is known that crashed it or hung. Half of them compile the kernels.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jessymem import JessyWarning
from jessymem.kernels import _jit
from support.fuzzing import checks, targets
from support.processes import with_support

CORPUS = Path(__file__).parent.parent.parent / "corpus"

#: Mutations that one process tries, and seconds for a hundred of them before it counts as hanging.
CHUNK = 12_500
PATIENCE = 120
#: Address space that a process may ask for on top of what it has when it begins.
MEMORY = 2**29

Outcomes = collections.Counter[str]


def keep(made: Any, target: targets.Target) -> Path:
    """Keep a finding; return where. What is no bytes is kept as it is written in Python."""
    raw = made if isinstance(made, bytes) else repr(made).encode()
    path = CORPUS / f"{hashlib.sha256(raw).hexdigest()[:16]}.{target.suffix}"
    path.write_bytes(raw)
    return path


def try_one(seed: int, index: int, path: Path, guarded: checks.Guarded | None = None) -> str:
    """Try one mutation; return its target and outcome; keep a finding before its error goes on.

    Region files are parsed in guarded memory too, where there is any.
    """
    target, made = targets.target_of(index), targets.make(seed, index)
    try:
        if guarded is not None and target.name == "region":
            guarded.parse(made)
        return f"{target.name} {target.check(made, path)}"
    except Exception as error:
        error.add_note(f"{target.name} {index} of seed {seed}, kept as {keep(made, target)}")
        raise


def run_many(n: int, seed: int, folder: Path, processes: int | None = None) -> tuple[Outcomes, Any]:
    """Try `n` mutations of a seed; return the outcomes, and what was found, each as a text."""
    outcomes: Outcomes = collections.Counter()
    findings: list[str] = []
    with ThreadPoolExecutor(processes or os.cpu_count()) as pool:
        parts = [(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
        for told in pool.map(lambda part: run_worker(seed, *part, folder), parts):
            outcomes.update(told["outcomes"])
            findings += told["findings"]
    return outcomes, findings


def run_worker(seed: int, start: int, stop: int, folder: Path) -> dict[str, Any]:
    """Try one part in a process of its own; return its outcomes and what was found."""
    own = folder / f"{start}"
    own.mkdir()
    progress = own / "index"
    progress.write_bytes(start.to_bytes(8, "little"))
    arguments = [str(each) for each in (seed, start, stop, progress)]
    code = "import sys; from support.fuzzing import run; run.work(*sys.argv[1:])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=with_support({}),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 0:
        told: dict[str, Any] = json.loads(result.stdout)
        return told
    index = int.from_bytes(progress.read_bytes(), "little")
    kept = keep(targets.make(seed, index), targets.target_of(index))
    end = f"exit code {result.returncode} at {index} of seed {seed}, kept as {kept}"
    return {"outcomes": {}, "findings": [f"{end}\n{result.stderr[-4_000:]}"]}


def work(seed_text: str, start_text: str, stop_text: str, progress_text: str) -> None:
    """Be that process: note each index before it is tried."""
    seed, start, stop, progress = (
        int(seed_text),
        int(start_text),
        int(stop_text),
        Path(progress_text),
    )
    if start // CHUNK % 2:
        _jit.promote(_jit.PARSING)
        _jit.promote(_jit.READING)
    warnings.simplefilter("ignore", JessyWarning)  # of what is ignored in a hostile file
    guarded = checks.Guarded(2**16)
    outcomes: Outcomes = collections.Counter()
    findings = []
    path = progress.with_name("region.mmap")
    with progress.open("r+b") as file, mmap.mmap(file.fileno(), 8) as index_now:
        limit_memory()
        for index in range(start, stop):
            if index % 100 == 0:
                faulthandler.dump_traceback_later(PATIENCE, exit=True)
            index_now[:] = index.to_bytes(8, "little")
            try:
                outcomes[try_one(seed, index, path, guarded)] += 1
            except Exception:
                findings.append(traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(json.dumps({"outcomes": outcomes, "findings": findings}))


def limit_memory() -> None:
    """Refuse this process more than MEMORY on top of what it holds, where the system can."""
    if sys.platform != "linux":
        return
    import resource

    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (n_pages * mmap.PAGESIZE + MEMORY, hard))


def main() -> int:
    """Run what the command line says; return 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python tests/support/fuzzing", description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000, help="mutations, a million by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, help="one for each core by default")
    parser.add_argument("--one", type=int, metavar="INDEX", help="try this one alone, here")
    parser.add_argument(
        "--guided", type=float, metavar="SECONDS", help="let atheris look for new paths so long"
    )
    options = parser.parse_args()
    if options.guided is not None:
        from support.fuzzing import guided

        return guided.run(options.guided, options.seed)
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as name:
        if options.one is not None:
            say(try_one(options.seed, options.one, Path(name) / "region.mmap"))
            return 0
        start = time.perf_counter()
        outcomes, findings = run_many(options.n, options.seed, Path(name), options.processes)
    for outcome, n_times in sorted(outcomes.items()):
        say(f"{outcome:24}{n_times:>12,}")
    say(f"{outcomes.total():,} tried in {time.perf_counter() - start:.0f} s")
    say("\n\n".join(findings) or "nothing was found")
    return bool(findings)


def say(text: str) -> None:
    """Write a line for whoever has called the command."""
    sys.stdout.write(f"{text}\n")


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
