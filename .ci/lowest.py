"""Prints the lowest version of everything that pyproject.toml asks for, as constraints for pip.

    python .ci/lowest.py > lowest.txt
    python -m pip install -e ".[test,distributed,arrow,safetensors,zarr,plot]" -c lowest.txt

Those are the extras of a user; the lowest versions of what developers use need not fit together.
"""

from __future__ import annotations

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path


def lowest(project: dict[str, object]) -> list[str]:
    """Return ``name==version`` for each requirement of a project and its extras."""
    extras = dict(project["optional-dependencies"])  # type: ignore[call-overload]
    wanted = [*project["dependencies"], *chain.from_iterable(extras.values())]  # type: ignore[misc]
    found = (re.match(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in wanted)
    return sorted({f"{match[1]}=={match[2]}" for match in found if match})


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    content = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    sys.stdout.write("\n".join(lowest(content["project"])) + "\n")
