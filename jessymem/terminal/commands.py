"""The commands: each parses, calls one part of the package, and shows what came of it."""

from __future__ import annotations

from typing import Final

import click

from jessymem._version import __version__
from jessymem.terminal.shell import Commands

#: Where each command is.
_HOMES: Final = {
    "bench": "measuring",
    "build": "building",
    "cat": "reading",
    "contexts": "reading",
    "demo": "measuring",
    "discover": "files",
    "export": "exporting",
    "find": "searching",
    "fold": "files",
    "inspect": "files",
    "ps": "watching",
    "rm": "files",
    "top": "watching",
    "verify": "files",
    "warmup": "measuring",
}


@click.group(
    cls=Commands,
    homes=_HOMES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="jessymem")
def main() -> None:
    """Build, look at and read region files: layers that are mapped, not copied.

    Completion of commands, dimensions and layers, in bash (and zsh, fish alike):

    \b
        eval "$(_JESSYMEM_COMPLETE=bash_source jessymem)"

    \b
    Exit codes:  0  fine
                 1  something is wrong with the data
                 2  the command was not understood
               130  it was interrupted
    """  # noqa: D301 - the mark with which click keeps lines as they are
