"""`logger`: records for whoever listens, without an import of `logging` before somebody does.

That import costs a tenth of what this package adds to a cold start. Who listens has imported it;
before, there is no handler that a record could reach.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

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
        if made is not None:
            made.log(severity, message, *values, extra=extra, stacklevel=3)  # whose record it is

    def _listened_to(self) -> logging.Logger | None:
        if self._made is None and "logging" in sys.modules:
            import logging  # again: another thread may be in the middle of it

            made = logging.getLogger("jessymem")
            made.addHandler(logging.NullHandler())  # no word on stderr where nothing is set up
            self._made = made
        return self._made


logger: Final = _Logger()
