"""Prepares a tree for an index: where it comes from, and links that lead there.

    python .ci/publishable.py https://example.org/owner/name v1.2.3

Links of README.md that are relative become those of that tag, and pyproject.toml gets the project's
URLs. The tree itself names no address: it is the same wherever it is kept. Prints the notes of the
release: the section of CHANGELOG.md for the version, or what is unreleased.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def with_absolute_links(page: str, url: str, tag: str) -> str:
    """Return a page of the top folder whose links and images do not depend on where it is shown."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({url}/{kind}/{tag}/{match[2]})"

    return re.sub(r"(!?\[[^\]\n]*\])\((?![a-z]+:|#)([^)\s]+)\)", absolute, page)


def with_urls(project: str, url: str) -> str:
    """Return a pyproject.toml with the project's URLs."""
    pages = {"Source": "", "Changelog": "/blob/main/CHANGELOG.md", "Issues": "/issues"}
    pages["Documentation"] = "/tree/main/docs"
    lines = [f'{name} = "{url}{page}"' for name, page in pages.items()]
    heading = "[project.optional-dependencies]"
    return project.replace(heading, "\n".join(["[project.urls]", *lines, "", heading]), 1)


def notes(changelog: str, version: str) -> str:
    """Return a changelog's section for a version; where there is none, for what is unreleased."""
    sections = dict(re.findall(r"^## \[(.+?)\].*?\n(.*?)(?=^## \[|\Z)", changelog, re.M | re.S))
    return sections.get(version, sections.get("Unreleased", "")).strip()


def main(url: str, tag: str) -> None:
    """Change both files, and print the notes."""
    root = Path(__file__).resolve().parent.parent
    for name, change in (
        ("README.md", lambda text: with_absolute_links(text, url, tag)),
        ("pyproject.toml", lambda text: with_urls(text, url)),
    ):
        path = root / name
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sys.stdout.write(notes(changelog, tag.removeprefix("v")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
