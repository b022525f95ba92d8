"""The commands: each parses, calls one part of the package, and shows what came of it."""

from __future__ import annotations

from typing import Final

import click

from jessymem._version import __version__
from jessymem.terminal import building, exporting, files, measuring, reading, searching
from jessymem.terminal.shell import Commands


@click.group(
    cls=Commands,
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


_COMMANDS: Final = (
    building.build,
    exporting.export,
    files.discover,
    files.inspect,
    files.verify,
    reading.cat,
    files.fold,
    files.rm,
    reading.contexts,
    searching.find,
    measuring.warmup,
    measuring.demo,
    measuring.bench,
)

for _command in _COMMANDS:
    main.add_command(_command)
