"""Where a call gives up the GIL: counted by a thread that takes it whenever it is to be had.

Both threads run on one core, and the one that is watched runs only when nothing else on it has
anything to do, while the other one, where the system allows that, goes before everything; so the
other, once woken, runs at once. And the interpreter is told to wait for ever before it makes a
thread let go: it lets go only of its own accord. The counting thread then keeps the GIL, in one
call of C, until the other one has come to wait for it, which is told to be impatient; and so gets
it back. Who may not go first misses a call that comes back before the counting thread is awake:
there may be more than are counted, and never fewer.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from operator import call
from pathlib import Path
from threading import Thread
from types import CodeType, FrameType

import pytest

_IMPATIENT_SECONDS, _PATIENT_SECONDS = 1e-4, 1000.0
_HELD_MICROSECONDS = 300
_N_ROUNDS = 100
_N_BEFORE = 5  # hand-overs until both threads are in step

needs_one_core = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="threads cannot be kept on one core",
)

Place = tuple[tuple[CodeType, int], ...]


def places_of_handovers(
    action: Callable[[], object], is_counted: Callable[[], bool] = lambda: True
) -> list[str]:
    """Run `action` in a thread; return where it gave up the GIL while `is_counted`."""
    running: list[bool] = []
    errors: list[BaseException] = []
    places: list[str] = []
    last: Place | None = None

    def run() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # of this thread
        for _ in range(_N_BEFORE):
            os.stat("/")
        running.append(True)
        try:
            action()
        except BaseException as error:
            errors.append(error)
        finally:
            running.clear()

    def note() -> None:
        nonlocal last
        frame = sys._current_frames().get(thread.ident or 0)
        if not running or frame is None or frame.f_code is run.__code__:
            return
        place, text = _place_of(frame, run.__code__)
        if place != last and is_counted():
            places.append(text)
        last = place

    hold = [
        partial(sys.setswitchinterval, _IMPATIENT_SECONDS),
        partial(ctypes.PyDLL(None).usleep, _HELD_MICROSECONDS),
        partial(sys.setswitchinterval, _PATIENT_SECONDS),
    ]
    thread = Thread(target=run)
    cores, interval = os.sched_getaffinity(0), sys.getswitchinterval()
    os.sched_setaffinity(0, {min(cores)})  # of this thread, and of those that it starts
    goes_first = _go_first()
    try:
        thread.start()
        for n_rounds in count(1):
            note()
            deque(map(call, hold), maxlen=0)
            if not thread.is_alive():
                break
            if n_rounds % _N_ROUNDS == 0:  # should it wait patiently, it would wait for ever
                note()
                time.sleep(0)
    finally:
        if goes_first:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        sys.setswitchinterval(interval)
        os.sched_setaffinity(0, cores)
    thread.join()
    if errors:
        raise errors[0]
    return places


def _go_first() -> bool:
    """Have this thread, and none that it starts, run before all others; return whether it may."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        return False
    return True


def _place_of(frame: FrameType, last: CodeType) -> tuple[Place, str]:
    """Return where a thread is, for comparison and for people."""
    place, names = [], []
    step: FrameType | None = frame
    while step is not None and step.f_code is not last:
        place.append((step.f_code, step.f_lasti))
        names.append(f"{Path(step.f_code.co_filename).name}:{step.f_lineno}")
        step = step.f_back
    return tuple(place), " < ".join(names[:8])
