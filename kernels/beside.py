"""Kernels compiled in a thread, beside the work that plain Python goes on doing meanwhile.

Called by `transactions` once for each call of a plain kernel. Nobody waits for the thread but the
end of the interpreter, until it has come to the end of one kernel: what LLVM works with goes then.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
from importlib import import_module
from threading import get_ident

from jessymem.kernels import _jit

_next_look: dict[str, int] = {}  # from so many items on, by group
_running = _thread.allocate_lock()  # held by the one thread
_thread_id = 0
_is_exiting = False


def promote_beside(n_items: int, group: str) -> None:
    """Have a thread compile once `n_items`, with those before them, are worth it; never wait.

    Kernels that are not cached have to be worth more. May be called by a finalizer.
    """
    n_counted = _jit.count_items(n_items, group)
    if n_counted >= _next_look.get(group, _jit.WORTH_COMPILING) and not _jit.is_promoted(group):
        _start(group, n_counted)


def _start(group: str, n_counted: int) -> None:
    """Start the thread, if none is running; for each of the two occasions once."""
    if _jit.is_disabled():
        _next_look[group] = sys.maxsize
    if _is_exiting or _jit.is_disabled() or not _running.acquire(blocking=False):
        return
    is_last = n_counted >= _jit.WORTH_WAITING
    _next_look[group] = sys.maxsize if is_last else _jit.WORTH_WAITING
    try:
        # Not by `threading`: a finalizer may come where that holds a lock of its own.
        _thread.start_new_thread(_run, (group, is_last))
    except RuntimeError:  # there is no thread to be had
        _running.release()


def _run(group: str, compiles: bool) -> None:
    global _thread_id
    _thread_id = get_ident()
    try:
        import_module("numba")
        if not _is_exiting:
            atexit.register(_wait_at_exit)  # again, to come before what numba has registered
        if compiles or _jit.is_cached(group):
            _jit.promote(group)
    except _jit.Left:
        pass
    except Exception as error:
        _jit.warn(
            "kernels stay plain Python: %s: %s",
            type(error).__name__,
            error,
            extra={"event": "kernels_not_compiled", "error": type(error).__name__},
        )
    finally:
        _thread_id = 0
        _running.release()


@atexit.register
def _wait_at_exit() -> None:
    """Let the thread leave what it compiles, and wait until it has."""
    global _is_exiting
    _is_exiting = True
    if _thread_id:
        _jit.leave_compilation(_thread_id)
    _running.acquire()
    _running.release()


def _after_fork_in_child() -> None:
    """Forget the parent's thread; the child may start one of its own."""
    global _running, _thread_id
    if _thread_id != get_ident():
        _running, _thread_id = _thread.allocate_lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
