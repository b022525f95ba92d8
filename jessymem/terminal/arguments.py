"""Arguments that several commands take: what they are called, read from, and completed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from jessymem.terminal.completion import complete_dimension, complete_layer
from jessymem.terminal.shell import parse_dimension, parse_layer

layers_argument: Final = click.argument(
    "layers",
    metavar="LAYER...",
    nargs=-1,
    required=True,
    callback=parse_layer,
    shell_complete=complete_layer,
)


def dimensions_argument(metavar: str = "[D15]...") -> Callable[..., Any]:
    """Return the argument that names dimensions, any number of them."""
    return click.argument(
        "dimensions",
        metavar=metavar,
        nargs=-1,
        callback=parse_dimension,
        shell_complete=complete_dimension,
    )
