"""Libraries that own a format, and come with an extra of this package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from jessymem.errors import ConfigError


def load(module: str, extra: str, what: object) -> Any:
    """Import a library.

    Parameters
    ----------
    module : str
    extra : str
        The extra of this package that brings it.
    what : object
        What it is needed for, for the message.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != library:
            raise
        raise ConfigError(
            f"{what}: {library} is not installed; python -m pip install 'jessymem[{extra}]'",
            field=extra,
            value=library,
        ) from None
