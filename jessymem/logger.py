"""`logger`: records for whoever listens, and alerts for who does not.

Records need no import of `logging` before somebody listens: it costs a tenth of what this package
adds to a cold start. Who listens has imported it; before, there is no handler that a record could
reach. An alert is a `JessyWarning`, which goes through `warnings`. Handlers and filters do what
they like, so what is made under a lock waits until its thread has released it.
"""

from __future__ import annotations

import os
import sys
import warnings
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from jessymem.errors import JessyWarning
from jessymem.locks import is_any_mine

if TYPE_CHECKING:
    import logging
    from types import FrameType

# As in `logging`.
DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40

#: How many alerts are remembered, so that each comes once.
_N_REMEMBERED: Final = 4_096
#: Frames of these packages are not the caller's.
_OURS: Final = ("jessymem", "contextlib")


class _Logger:
    """What this package uses of the logger called "jessymem"."""

    _made: logging.Logger | None = None

    def __init__(self) -> None:
        # By thread. Not a `threading.local`: a call that interrupts its making finds it bare.
        self._waiting: dict[int, deque[Callable[[], None]]] = {}
        self._alerted: dict[tuple[str, str], None] = {}  # the oldest first

    def write_waiting(self, failing: object = None) -> None:
        """Write what had to wait, now that a lock was released; not while there is another.

        Parameters
        ----------
        failing : exception or None
            What is on its way: no alert that a filter makes an error takes its place.

        Raises
        ------
        JessyWarning
            The first that a filter makes an error, after all are written.
        """
        waiting = self._waiting.get(get_ident())
        raised: JessyWarning | None = None
        while waiting and not is_any_mine():
            try:
                write = waiting.popleft()
            except IndexError:  # a call that interrupts this one was quicker
                break
            try:
                write()
            except JessyWarning as error:
                raised = raised or error
        if raised is not None and failing is None:
            raise raised

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

    def alert(self, event: str, place: str | os.PathLike[str], message: str) -> None:
        """Issue a `JessyWarning`, the first time for this event and place.

        A record of the same is made beside it. Where a filter makes it an error, that is raised
        here, or once no lock is held (`write_waiting`).
        """
        warning = JessyWarning(message)
        warning.event, warning.place = event, os.fspath(place)
        key = warning.event, warning.place
        if key in self._alerted:
            return
        self._alerted[key] = None
        while len(self._alerted) > _N_REMEMBERED:
            self._alerted.pop(next(iter(self._alerted), key), None)
        if is_any_mine():
            self._waiting.setdefault(get_ident(), deque()).append(partial(_issue, warning))
        else:
            _issue(warning)

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


def _issue(warning: JessyWarning) -> None:
    """Warn at the line of the caller's that led here."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and _package_of(frame) in _OURS:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(warning, stacklevel=depth)


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


logger: Final = _Logger()
