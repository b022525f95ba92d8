"""The command line as a process of its own: ``python -m jessymem``, and the program `jessymem`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: How many threads OpenBLAS starts when NumPy is imported: one each core, if nothing says so.
_BLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"


@contextmanager
def starting() -> Iterator[None]:
    """Import within what a process begins with: with a third of the CPU time less.

    No command multiplies matrices, and threads for it wait for work at full speed. What is imported
    is not garbage, so nobody looks for that in it, neither now nor later. Not for a process that
    does other things too: such a one takes the commands from `jessymem.cli`.
    """
    is_free, collects = _BLAS_THREADS not in os.environ, gc.isenabled()
    if is_free:
        os.environ[_BLAS_THREADS] = "1"
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
        if is_free:  # it is not for processes that this one starts
            del os.environ[_BLAS_THREADS]


def run() -> None:
    """Run the command that the process was started with, and end the process."""
    if "numpy" in sys.modules:  # by a site that imports it everywhere
        from jessymem.cli import main
    else:
        with starting():
            from jessymem.cli import main
    main()


if __name__ == "__main__":
    run()
