"""Writes what ``jessymem bench --json`` found into the pages that show it.

    jessymem bench --json > bench.json
    python tests/benchmarks/bench_pages.py bench.json

Between its markers README.md gets the table, and docs/performance.md the targets that are known to
be missed, with their evidence from `jessymem/data/accepted_misses.json`. Without a file only the
latter is written.
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


def bench_table(record: dict[str, Any]) -> str:
    """Return the table of README.md: every row, and where it was measured."""
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
            verdict = "[missed](docs/performance.md#what-is-missed)"
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
    write(ROOT / "docs" / "performance.md", "misses", missed_list())
    for argument in arguments:
        record = json.loads(Path(argument).read_text(encoding="utf-8"))
        write(ROOT / "README.md", "bench", bench_table(record))


if __name__ == "__main__":
    main(sys.argv[1:])
