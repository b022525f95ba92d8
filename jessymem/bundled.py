"""`read_bundled`: the data that are shipped with the package, wherever it was imported from."""

from __future__ import annotations

from jessymem.errors import RegionIOError


def read_bundled(name: str) -> str:
    """Return the text of a file of ``jessymem/data``, also out of an archive.

    Raises
    ------
    RegionIOError
        If the package was installed or frozen without its data.
    """
    from importlib.resources import files

    # Not of `jessymem.data`: few archives have entries for folders, which would make it a package.
    file = files("jessymem").joinpath("data").joinpath(name)
    try:
        return file.read_text("utf-8")
    except (OSError, KeyError) as error:  # an archive has no such key
        refused = error if isinstance(error, OSError) else FileNotFoundError(f"no {name} in it")
        raise RegionIOError.from_os_error(
            refused, "read what should be shipped with jessymem,", str(file)
        ) from error
