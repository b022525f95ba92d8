"""The benchmarks of the dashboards, one module per concept.

asv repeats `setup` before each sample, so what is costly to make is kept for the whole process
(`common.kept`), and a body does enough work to stand out from the clock. `tests/test_asv.py` runs
each once in the ordinary suite.
"""

import os
import tempfile
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path


def _pin_kernel_cache() -> None:
    """Keep compiled kernels in a folder named by the sources of this commit's kernels.

    Inherited by every process that a benchmark starts; set before anything imports numba.
    """
    found = find_spec("jessymem.kernels")
    digest = sha256(os.environ.get("ASV_COMMIT", "").encode())
    for folder in found.submodule_search_locations if found else ():
        for path in sorted(Path(folder).glob("*.py")):
            digest.update(path.read_bytes())
    name = f"jessymem-asv-{digest.hexdigest()[:16]}"
    os.environ["NUMBA_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), name)


if "ASV_PROJECT" in os.environ:
    _pin_kernel_cache()
