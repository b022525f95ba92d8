"""Screens: where rich prints, and the progress that it shows while something runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Event, Thread
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

#: The width of what is not a terminal.
_UNCUT: Final = 10_000


class Screen(Console):
    """A console that guesses at nothing, and leaves a closed pipe to the command.

    Where it is no terminal, lines are as long as they are, unless COLUMNS says otherwise.
    """

    def __init__(self, *, is_error: bool = False) -> None:
        super().__init__(stderr=is_error, highlight=False, markup=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _UNCUT

    def on_broken_pipe(self) -> None:
        """Raise, where rich would end the process with an error."""
        raise BrokenPipeError


class Refresher:
    """Refreshes a progress that is not live, from a thread, between `start` and `stop`."""

    _SECONDS = 0.1

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ended: Event | None = None

    def start(self) -> None:
        """Begin to refresh it."""
        self._ended = ended = Event()
        if not self._progress.disable:
            Thread(target=self._run, args=(ended,), daemon=True).start()

    def stop(self) -> None:
        """Leave it as it is; nothing to do where it was not begun."""
        if self._ended is not None:
            self._ended.set()

    def _run(self, ended: Event) -> None:
        while not ended.wait(self._SECONDS):
            self._progress.refresh()


@contextmanager
def show_progress(*, is_live: bool = True) -> Iterator[Progress]:
    """Show progress on stderr: gone afterwards, and silent where nobody watches.

    With `is_live` False no thread refreshes it, which would disturb what is being timed.
    """
    screen = Screen(is_error=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        auto_refresh=is_live,
        disable=not screen.is_terminal,
    )
    with progress if screen.is_terminal else nullcontext():
        yield progress
