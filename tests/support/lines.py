"""`at_line`: another thing in the middle of a call, at a line or a bytecode that is chosen."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections.abc import Callable, Iterator
from functools import cache
from inspect import CO_GENERATOR
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import jessymem
from jessymem.kernels import _jit

PACKAGE = str(Path(jessymem.__file__).parent)
KERNELS = str(Path(_jit.__file__).parent)
#: What the package's own `with` blocks run through.
CONTEXTS = contextlib.__file__


def at_line(
    n_th: int,
    call: Callable[[], Any],
    act: Callable[[FrameType], Any],
    *,
    folders: tuple[str, ...] = (PACKAGE,),
    without: tuple[str, ...] = (),
    of: str = "line",
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
    of : str
        "opcode": bytecodes count, instead of lines. Not those between a function's last step and
        the caller's first one with what it returns, nor those that follow an index: the interpreter
        looks for no interrupt there.
    """
    n_seen = 0
    has_returned = False

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal has_returned
        has_returned = False
        code = frame.f_code
        is_counted = code.co_filename.startswith(folders) and code.co_name not in without
        if is_counted and of == "opcode":
            frame.f_trace_opcodes = True
        return count if is_counted else None

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal n_seen, has_returned
        if event == "return":
            has_returned = not frame.f_code.co_flags & CO_GENERATOR
        elif event == of:
            is_left_out = False
            if of == "opcode":
                uninterrupted, receiving = _left_out(frame.f_code)
                at = frame.f_lasti
                is_left_out = at in uninterrupted or (has_returned and at in receiving)
                has_returned = False
            n_seen += not is_left_out
            if n_seen == n_th and not is_left_out:
                sys.settrace(None)
                act(frame)
        return count

    before = sys.gettrace()  # coverage's
    sys.settrace(watch)
    try:
        next(_apart(call))
    finally:
        sys.settrace(before)
    return n_seen


def _apart(call: Callable[[], Any]) -> Iterator[Any]:
    """Make a call where what it leaves as the exception being handled is a generator's own.

    What is raised by a trace function may leave one, where the interpreter itself raises none.
    """
    yield call()


@cache
def _left_out(code: CodeType) -> tuple[frozenset[int], frozenset[int]]:
    """Return at which bytecodes there is no interrupt, and at which none after a function's end."""
    steps = list(dis.get_instructions(code))
    uninterrupted = {step.offset for step in steps if step.opname.startswith("RETURN_")}
    receiving = set()
    for before, step in pairwise(steps):
        if before.opname == "BINARY_SUBSCR" or before.argrepr == "[]":
            uninterrupted.add(step.offset)
        elif before.opname.startswith("CALL") and before.opname != "CALL_FUNCTION_EX":
            receiving.add(step.offset)
    return frozenset(uninterrupted), frozenset(receiving)
