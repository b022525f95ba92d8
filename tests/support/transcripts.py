"""Pages with commands and what they print: run again, and compared or written anew.

PYTHONPATH=tests python -m support.transcripts docs/first_steps.md
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from support.processes import with_support

_BLOCK = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
_COMMAND = re.compile(r"^\$ (.*(?:\\\n.*)*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_MOMENT = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")


def run_again(page: str, folder: Path) -> str:
    """Return a page with what its commands print now, run in a folder one after the other."""

    def rerun(block: re.Match[str]) -> str:
        return _COMMAND.sub(lambda found: f"$ {found[1]}\n{_run(found[1], folder)}", block[0])

    return _BLOCK.sub(rerun, page)


def _run(command: str, folder: Path) -> str:
    python = f"'{sys.executable}' -m jessymem"
    script = re.sub(r"^jessymem\b|(?<=[|;&] )jessymem\b", lambda _: python, command)
    environment = with_support({"COLUMNS": "100", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"})
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={key: value for key, value in environment.items() if key != "PYTHONWARNINGS"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    ended = f"(exit code {done.returncode})\n" if done.returncode else ""
    shown = _MOMENT.sub("2026-11-29 12:00:00", done.stdout)
    lines = [line.rstrip() for line in shown.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return "".join(f"{line}\n" for line in lines) + ended


if __name__ == "__main__":
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as made:
        target.write_text(run_again(target.read_text("utf-8"), Path(made)), "utf-8")
