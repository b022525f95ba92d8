"""The way in to the command line: its commands, or a line that says how to get what they need."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from signal import SIGINT
from typing import Any, Final, NoReturn

MISSING: Final = 'jessymem: the command line needs click and rich: pip install "jessymem[cli]"'


def load_main() -> Callable[..., Any]:
    """Return the commands, or, where click or rich is missing, a function that says so.

    Returns
    -------
    callable
        A `click.Group`, or a function that ends the process with exit code 1.

    Raises
    ------
    SystemExit
        With exit code 130, on Ctrl-C meanwhile.
    """
    try:
        if find_spec("rich") is None:  # which most commands import, and only when they run
            return refuse
        with starting():
            from jessymem.terminal.commands import main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "click":
            raise
        return refuse
    except KeyboardInterrupt:
        sys.exit(128 + SIGINT)  # as a shell has it
    return main


#: How many threads OpenBLAS starts when NumPy is imported: one each core, if nothing says so.
_BLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"


@contextmanager
def starting() -> Iterator[None]:
    """Import within what a process begins with: with a third of the CPU time less.

    No command multiplies matrices, and threads for it wait for work at full speed. What is imported
    is not garbage, so nobody looks for that in it, neither now nor later. Where NumPy is imported
    already, the process is not this one's, and nothing is done.
    """
    if "numpy" in sys.modules:
        yield
        return
    is_free = _BLAS_THREADS not in os.environ
    if is_free:
        os.environ[_BLAS_THREADS] = "1"
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        if is_free:  # it is not for processes that this one starts
            del os.environ[_BLAS_THREADS]


def refuse(*arguments: object, **options: object) -> NoReturn:
    """Say on stderr what is missing, and end with exit code 1."""
    sys.exit(MISSING)


main: Final = load_main()
