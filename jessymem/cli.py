"""The way in to the command line: its commands, or a line that says how to get what they need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from signal import SIGINT
from typing import Any, Final, NoReturn

MISSING: Final = 'jessymem: the command line needs click and rich: pip install "jessymem[cli]"'


def load_main() -> Callable[..., Any]:
    """Return the commands, or, where click or rich is missing, a function that says so.

    Returns
    -------
    callable
        A `click.Group`, or a function that ends the process with exit code 1.

    Raises
    ------
    SystemExit
        With exit code 130, on Ctrl-C meanwhile.
    """
    try:
        if find_spec("rich") is None:  # which most commands import, and only when they run
            return refuse
        from jessymem.terminal.commands import main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "click":
            raise
        return refuse
    except KeyboardInterrupt:
        sys.exit(128 + SIGINT)  # as a shell has it
    return main


def refuse(*arguments: object, **options: object) -> NoReturn:
    """Say on stderr what is missing, and end with exit code 1."""
    sys.exit(MISSING)


main: Final = load_main()
