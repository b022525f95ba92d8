"""Instructions that kernels execute, counted by valgrind: the same number in every run.

Seconds on a shared machine move by more than a small slow-down costs; these do not. A process under
callgrind runs each loop with counting switched on around it. Code is compiled for a plain x86-64,
so that the numbers are those of every machine that has the same numba.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .common import IS_SMALL, geometry, named

N_TIMES = geometry(20_000, 100)

LOOPS = ["locate_many", "locate_compiled", "gather", "pairs", "allocate_many", "load_plain"]


class PerItem_Kernels:
    """One item: an id, a pair of blocks, an entry that is parsed; the call's own share is in it."""

    params = LOOPS
    param_names = ["kernel"]
    version = "1"
    timeout = 600

    def setup_cache(self):
        is_disabled = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
        if sys.platform != "linux" or platform.machine() != "x86_64" or is_disabled:
            return {}
        script = Path(__file__).parent.parent / "counted.py"
        command = [sys.executable, str(script), str(N_TIMES)]
        if IS_SMALL:  # a minute under valgrind: the suite only sees that the loops run
            subprocess.run(command, check=True)
            return {}
        if shutil.which("valgrind") is None:
            return {}
        environment = os.environ | {
            "NUMBA_CPU_NAME": "x86-64-v2",
            "NUMBA_CPU_FEATURES": "",
            "PYTHONHASHSEED": "0",
        }
        subprocess.run(command, env=environment, check=True)  # compiles, at full speed
        folder = Path("callgrind").absolute()
        folder.mkdir()
        callgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
        callgrind.append(f"--callgrind-out-file={folder / 'out'}")
        subprocess.run([*callgrind, *command], env=environment, check=True, capture_output=True)
        return read_counts(folder)

    setup_cache.timeout = 600

    def setup(self, counts, kernel):
        if kernel not in counts:
            raise NotImplementedError(
                "no valgrind, no Linux on x86-64, or this commit has no such kernel"
            )

    @named("instructions for each item")
    def track_instructions(self, counts, kernel):
        return counts[kernel]

    track_instructions.unit = "instructions"


def read_counts(folder):
    """Return instructions per item by name, from what callgrind wrote at each request."""
    counts = {}
    for path in folder.glob("out.*"):
        text = path.read_text()
        name = re.search(r"^desc: Trigger: Client Request: (\w+)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)", text, re.MULTILINE)
        if name and total:
            counts[name[1]] = int(total[1]) / N_TIMES
    return counts
