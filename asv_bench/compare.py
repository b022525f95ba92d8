"""Compares two commits, and believes in a slow-down only when it shows again.

    python compare.py main HEAD
    python compare.py main HEAD --bench '^alloc' --rounds 5 --factor 1.1

First the instructions of kernels, which are the same in every run. Then seconds, with the rounds
of both commits in turns; what seems slower is measured once more, alone, with twice as many rounds
that follow each other within seconds. A benchmark is slower if it is listed both times. Ends with 1
if any is. Ratios are newer over older: above 1 is slower.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

SLOWER = re.compile(r"^\| \+ .*\| ([^|]+?) +\|$", re.MULTILINE)


def compare(older, newer, *options):
    """Let asv compare; show what it says, and return the benchmarks that it finds slower."""
    command = ["asv", "continuous", *options, older, newer]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    lines = []
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        lines.append(line)
    slower = SLOWER.findall("".join(lines))
    if process.wait() not in (0, 1) or (process.returncode == 1 and not slower):
        sys.exit(f"asv failed: {' '.join(command)}")
    return slower


def main():
    """Compare as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("older")
    parser.add_argument("newer")
    parser.add_argument("--bench", default=r"^(?!instructions|noise)", help="which: an expression")
    parser.add_argument("--factor", type=float, default=1.1, help="what is no news (1.1)")
    parser.add_argument("--rounds", type=int, default=4, help="processes for each (4)")
    arguments = parser.parse_args()
    pair = arguments.older, arguments.newer

    confirmed = compare(*pair, "--factor", "1.02", "--bench", "^instructions")
    seconds = ["--factor", str(arguments.factor), "--interleave-rounds"]
    rounds = ["--attribute", f"rounds={arguments.rounds}"]
    seeming = compare(*pair, *seconds, *rounds, "--bench", arguments.bench)
    if seeming:
        again = "|".join(f"^{re.escape(name)}$" for name in seeming)
        rounds = ["--attribute", f"rounds={2 * arguments.rounds}"]
        found = compare(*pair, *seconds, *rounds, "--bench", again)
        confirmed += [name for name in seeming if name in found]
    lines = [f"slower: {name}" for name in confirmed] or ["nothing is slower"]
    sys.stdout.write("\n".join(["", *lines, ""]))
    sys.exit(1 if confirmed else 0)


if __name__ == "__main__":
    main()
