"""Single keys from a terminal, without waiting for a line; where there is none, there are none."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: What arrows, and other keys that have no character, send.
_SEQUENCE: Final = re.compile(rb"\x1b(?:\[[0-9;]*[A-Za-z~]|O.)")


class Keys:
    """Hands out keys that were pressed.

    Parameters
    ----------
    descriptor : int or None
        Of the terminal; None: no key is ever pressed.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._pressed: deque[str] = deque()

    def wait(self, seconds: float) -> str | None:
        """Return the next key, or None where none is pressed for so long.

        A key that sends several bytes, as an arrow does, is none.
        """
        if self._descriptor is None:
            time.sleep(seconds)
            return None
        if not self._pressed:
            ready, _, _ = select.select([self._descriptor], [], [], seconds)
            if not ready:
                return None
            found = os.read(self._descriptor, 1_024)
            if not found:
                return "q"  # the terminal is gone
            self._pressed.extend(_SEQUENCE.sub(b"", found).decode("ascii", "ignore"))
        return self._pressed.popleft() if self._pressed else None


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
        now = termios.tcgetattr(descriptor)
        # Who is stopped in the middle would leave the terminal as it is then.
        now[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(descriptor, termios.TCSADRAIN, now)
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
