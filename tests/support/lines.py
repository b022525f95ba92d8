"""`at_line`: another thing in the middle of a call, at a line of this package that is chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jessymem
from jessymem.kernels import _jit

PACKAGE = str(Path(jessymem.__file__).parent)
KERNELS = str(Path(_jit.__file__).parent)


def at_line(
    n_th: int,
    call: Callable[[], Any],
    act: Callable[[FrameType], Any],
    *,
    folders: tuple[str, ...] = (PACKAGE,),
    without: tuple[str, ...] = (),
) -> int:
    """Make a call, and another thing at its n-th line; return how many lines were seen up to there.

    In C there are no lines: a kernel, or taking a reference, is not interrupted, as by signals.

    Parameters
    ----------
    n_th : int
        Counted from 1.
    call : callable
    act : callable
        Is given the frame of the line. What it raises comes out of that line.
    folders : tuple of str
        Lines of files below these count.
    without : tuple of str
        Names of functions whose lines do not.
    """
    n_seen = 0

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        is_counted = code.co_filename.startswith(folders) and code.co_name not in without
        return count if is_counted else None

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal n_seen
        if event == "line":
            n_seen += 1
            if n_seen == n_th:
                sys.settrace(None)
                act(frame)
        return count

    before = sys.gettrace()  # coverage's
    sys.settrace(watch)
    try:
        call()
    finally:
        sys.settrace(before)
    return n_seen
