"""`logger`: records for whoever listens, without an import of `logging` before somebody does.

That import costs a tenth of what this package adds to a cold start. Who listens has imported it;
before, there is no handler that a record could reach. Handlers do what they like, so a record that
is made under a lock waits until its thread has released it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from jessymem.locks import is_any_mine

if TYPE_CHECKING:
    import logging

# As in `logging`.
DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40


class _Logger:
    """What this package uses of the logger called "jessymem"."""

    _made: logging.Logger | None = None

    def __init__(self) -> None:
        # By thread. Not a `threading.local`: a call that interrupts its making finds it bare.
        self._waiting: dict[int, deque[Callable[[], None]]] = {}

    def write_waiting(self) -> None:
        """Write what had to wait, now that a lock was released; not while there is another."""
        waiting = self._waiting.get(get_ident())
        while waiting and not is_any_mine():
            waiting.popleft()()

    def isEnabledFor(self, severity: int) -> bool:
        """Tell whether a record of this severity may reach anybody."""
        made = self._listened_to()
        return made is not None and made.isEnabledFor(severity)

    def log(self, severity: int, message: str, *values: object, extra: dict[str, Any]) -> None:
        """Make a record with `extra` as its attributes."""
        self._record(severity, message, values, extra)

    def debug(self, message: str, *values: object, extra: dict[str, Any]) -> None:
        """Make a record at debug."""
        self._record(DEBUG, message, values, extra)

    def info(self, message: str, *values: object, extra: dict[str, Any]) -> None:
        """Make a record at info."""
        self._record(INFO, message, values, extra)

    def warning(self, message: str, *values: object, extra: dict[str, Any]) -> None:
        """Make a record at warning."""
        self._record(WARNING, message, values, extra)

    def _record(
        self, severity: int, message: str, values: tuple[object, ...], extra: dict[str, Any]
    ) -> None:
        made = self._listened_to()
        if made is None:
            return
        if is_any_mine():
            late = partial(made.log, severity, message, *values, extra=extra, stacklevel=2)
            self._waiting.setdefault(get_ident(), deque()).append(late)
        else:
            made.log(severity, message, *values, extra=extra, stacklevel=3)  # whose record it is

    def _listened_to(self) -> logging.Logger | None:
        if self._made is None and "logging" in sys.modules:
            import logging  # again: another thread may be in the middle of it

            made = logging.getLogger("jessymem")
            made.addHandler(logging.NullHandler())  # no word on stderr where nothing is set up
            self._made = made
        return self._made


logger: Final = _Logger()
