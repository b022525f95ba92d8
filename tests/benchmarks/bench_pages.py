"""Writes what ``jessymem bench --json`` found into the pages that show it.

    jessymem bench --json > bench.json
    python tests/benchmarks/bench_pages.py bench.json

Between its markers docs/performance.md gets the table, and the targets that are known to be missed,
with their evidence from `jessymem/data/accepted_misses.json`; README.md gets a few rows of that
table. Without a file the table stays as it is.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from jessymem.bench.run import accepted_misses
from jessymem.bench.table import LINES
from jessymem.terminal.wording import show_amount, show_target

ROOT = Path(__file__).parent.parent.parent
BY_KEY = {line.key: line for line in LINES}

#: The rows of README.md's table, and what they are called where "the same" would say nothing.
SHOWN = {
    "read.one": "",
    "read.batch.lmdb": "",
    "read.threads.lmdb": "",
    "start.load.full": "",
    "start.cold": "",
    "scan.rare": "",
    "allocate.python": "4 KiB block allocated and freed, from Python",
    "write.10": "",
    "learn.lmdb": "One durable layer of 1 KB into a dimension of 131 MB",
    "hold.shared": "Eight processes that read all of 288 MB, together",
}


def bench_table(record: dict[str, Any]) -> str:
    """Return the table of docs/performance.md: every row, and where it was measured."""
    ran = record["surroundings"]
    lines = [
        f"Measured by `jessymem bench` on {ran['cpu']}, {ran['cpus']} CPUs, {ran['system']}; "
        f"Python {ran['python']}, NumPy {ran['numpy']}, numba {ran['numba']}:",
        "",
        "| what | peer | jessymem | peer took | ratio | target | verdict |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in record["rows"]:
        line = BY_KEY[row["key"]]
        verdict = row["verdict"]
        if verdict == "missed" and row["evidence"]:
            verdict = "[missed](#what-is-missed)"
        cells = [
            row["what"],
            row["peer"] or "",
            amount(row["ours"], row["unit"]),
            amount(row["theirs"], row["unit"]),
            ratio(row, line.of),
            show_target(line),
            verdict,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short_table(page: str) -> str:
    """Return the table of README.md: a few rows of the one that docs/performance.md has."""
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    cells = {(row[0].strip(), row[1].strip()): [each.strip() for each in row] for row in rows}
    lines = ["| what | jessymem | beside it | took |", "|---|---:|---|---:|"]
    for key, what in SHOWN.items():
        line = BY_KEY[key]
        row = cells[line.what, line.peer or ""]
        lines.append(f"| {what or line.what} | {row[2]} | {line.peer or '-'} | {row[3] or '-'} |")
    return "\n".join(lines)


def amount(value: float | None, unit: str) -> str:
    """Return what was taken, or nothing."""
    return "" if value is None else show_amount(value, unit)


def ratio(row: dict[str, Any], of: str) -> str:
    """Return the ratio, where the row is about one."""
    return f"{row['value']:.3g} x" if of == "ratio" and row["value"] is not None else ""


def missed_list() -> str:
    """Return the section of docs/performance.md: what is known to be missed, and the evidence."""
    known = accepted_misses()
    found = [
        f"- **{line.what}** (beside {line.peer}, target {show_target(line)}): {known[line.key]}"
        for line in LINES
        if line.key in known
    ]
    return "\n".join(found) or "Nothing is listed at present."


def fill(page: str, name: str, text: str) -> str:
    """Return a page with a text between the markers of that name."""
    pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
    filled, n_found = re.subn(
        pattern, lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page, flags=re.DOTALL
    )
    if n_found != 1:
        raise ValueError(f"there is no section marked {name!r}, or several")
    return filled


def write(path: Path, name: str, text: str) -> None:
    """Put a text into a page."""
    page = path.read_text(encoding="utf-8")
    path.write_text(fill(page, name, text), encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Write both pages."""
    page = ROOT / "docs" / "performance.md"
    write(page, "misses", missed_list())
    for argument in arguments:
        record = json.loads(Path(argument).read_text(encoding="utf-8"))
        write(page, "bench", bench_table(record))
    write(ROOT / "README.md", "bench", short_table(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(sys.argv[1:])
