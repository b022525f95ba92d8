"""Single keys from a terminal, without waiting for a line; where there is none, there are none."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Keys:
    """Hands out keys that were pressed.

    Parameters
    ----------
    descriptor : int or None
        Of the terminal; None: no key is ever pressed.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def wait(self, seconds: float) -> str | None:
        """Return the next key, or None where none is pressed for so long."""
        if self._descriptor is None:
            time.sleep(seconds)
            return None
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return None
        found = os.read(self._descriptor, 16)
        return found.decode("ascii", "ignore")[:1] or "q"  # the terminal is gone


@contextmanager
def pressed_keys() -> Iterator[Keys]:
    """Let the terminal hand over single keys within, and be as it was afterwards."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError):  # no such system, or no terminal
        yield Keys(None)
        return
    except termios.error:
        yield Keys(None)
        return
    try:
        tty.setcbreak(descriptor)
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
