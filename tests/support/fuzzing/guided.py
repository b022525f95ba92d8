"""Looks for inputs that lead along new paths through the code: atheris, where it is installed.

It begins with the corpus and with valid inputs, and keeps what leads somewhere new. Half of its
changes are its own; the others are those of `files` and `texts`, after which lengths and checksums
are put right. The first byte of an input says what it is for.
"""

from __future__ import annotations

import importlib.util
import mmap
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from support.fuzzing import files, targets, texts
from support.processes import with_support

TARGETS = [
    target for target in targets.TARGETS if target.name not in ("reference", "beside", "chain")
]
_MAX_BYTES = 8_192

#: Where each input is noted before it is tried.
NOTED = "tried"

#: What is imported within is watched; this module imports the package, too.
_PROGRAM = """
import atheris
with atheris.instrument_imports(include=["jessymem"]):
    from support.fuzzing import guided
    import jessymem.kernels.parse, jessymem.regions.entries, jessymem.regions.verification
    import jessymem.regions.drafts, jessymem.regions.metadata
guided.work()
"""


def run(seconds: float, seed: int) -> int:
    """Look for so long, in a process of its own; return 1 where anything was found."""
    from support.fuzzing.run import keep, say

    if importlib.util.find_spec("atheris") is None:
        say("atheris is not installed: python -m pip install 'atheris>=3'")
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_seeds = write_seeds(folder / "inputs")
        options = [
            f"-max_total_time={seconds:g}",
            f"-max_len={_MAX_BYTES}",
            f"-seed={seed}",
            f"-artifact_prefix={folder}/",
            "-timeout=60",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            str(folder / "inputs"),
        ]
        result = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *options],
            env=with_support({"NUMBA_DISABLE_JIT": "1"}),
            stdout=sys.stdout,
            stderr=sys.stderr,
            check=False,
        )
        found = [path.read_bytes() for path in folder.glob("found-*")]
        if result.returncode:  # it crashed, or hung
            found.append(read_noted(folder / NOTED))
        n_inputs = len(list((folder / "inputs").iterdir()))
    for raw in found:
        target, made = split(raw)
        say(f"{target.name} found, kept as {keep(made, target)}")
    say(f"{n_seeds} inputs to begin with, {n_inputs} that lead along paths of their own in the end")
    return int(bool(found) or result.returncode != 0)


def write_seeds(folder: Path) -> int:
    """Write what to begin with; return how many inputs."""
    from support.fuzzing.run import CORPUS

    folder.mkdir()
    valid = (files.bases(), texts.descriptions(), texts.MANIFESTS, texts.RECORDS)
    seeds = [bytes([i]) + raw for i, raws in enumerate(valid) for raw in raws]
    for i, target in enumerate(TARGETS):
        found = sorted(CORPUS.glob(f"*.{target.suffix}"))
        seeds += [bytes([i]) + path.read_bytes() for path in found]
    for i, seed in enumerate(each for each in seeds if len(each) <= _MAX_BYTES):
        (folder / f"{i:04}").write_bytes(seed)
    return len(seeds)


def split(raw: bytes) -> tuple[targets.Target, bytes]:
    """Return what an input is for, and the input."""
    return TARGETS[(raw[0] if raw else 0) % len(TARGETS)], raw[1:]


def change(raw: bytes, limit: int, seed: int) -> bytes:
    """Change an input, as atheris does or as its kind asks for."""
    rng = random.Random(seed)
    target, made = split(raw)
    first = raw[:1] or b"\0"
    if rng.random() < 0.5:
        changed = mutate_bytes(made, limit - 1) if made else made
    elif target.name == "region":
        piece = bytearray(made)
        rng.choice(files.MUTATIONS)(piece or bytearray(1), rng, rng.choice(files.bases()))
        changed = bytes(piece)
    else:
        changed = target.make(rng)
    if target.name == "region":
        changed = files.repair(changed, rng)
    return first + changed[: limit - 1]


def mutate_bytes(raw: bytes, limit: int) -> bytes:
    """Change bytes as atheris does."""
    import atheris

    return bytes(atheris.Mutate(raw, limit))


def work() -> None:
    """Be the process that looks; ends with it."""
    import atheris

    folder = Path(sys.argv[-1]).parent
    (folder / NOTED).write_bytes(bytes(8 + _MAX_BYTES))
    file = (folder / NOTED).open("r+b")
    noted = mmap.mmap(file.fileno(), 0)
    known: set[str] = set()

    def try_input(raw: bytes) -> None:
        noted[: 8 + len(raw)] = len(raw).to_bytes(8, "little") + raw
        target, made = split(raw)
        try:
            target.check(made, folder / "region.mmap")
        except Exception as error:
            where = repr(traceback.extract_tb(error.__traceback__)[-1])
            if where not in known:  # each once, and on
                known.add(where)
                (folder / f"found-{len(known)}").write_bytes(raw)
                traceback.print_exc()

    setup: Any = atheris.Setup
    setup([sys.argv[0], *sys.argv[1:]], try_input, custom_mutator=change)
    atheris.Fuzz()


def read_noted(path: Path) -> bytes:
    """Return the input that was tried last."""
    raw = path.read_bytes()
    return raw[8:][: int.from_bytes(raw[:8], "little")]
