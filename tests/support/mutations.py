"""Breaks the source one line after the other and tells whether the tests see it.

    python tests/support/mutations.py [--list] [--only TEXT] [--from NUMBER] [--whole]

Each mutation is a text of a source file, what replaces it, and the test files that are to
see it. It is made in a copy of the tree in a temporary folder. The tests run as plain Python first,
which compiles nothing; what they do not see is tried once more with compiled kernels. With
`--whole` all tests are tried, not the files that are named. Exit code 1: a text is not found any
more, or a mutation was not seen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
COPIED = ("jessymem", "kernels", "tests", "docs", "README.md", "pyproject.toml")

#: Tests that take longer hang, which is seen too.
PATIENCE_SECONDS = 600


class Mutation(NamedTuple):
    """What is broken: the first `old` in `file` becomes `new`; `tests` are to see it."""

    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    # -- bitmaps
    Mutation("kernels/bitmap.py", "word ^ bit(lowest)", "word & bit(lowest)", "bitmap"),
    Mutation("kernels/bitmap.py", "if first >= WORD_BITS:", "if first > WORD_BITS:", "bitmap"),
    Mutation("kernels/bitmap.py", "run_start >= n_blocks", "run_start > n_blocks", "bitmap"),
    Mutation("kernels/bitmap.py", "word & bits == bits", "word & bits != 0", "bitmap"),
    Mutation(
        "kernels/bitmap.py",
        "release_run(words, first, summary, block, done)\n            return",
        "release_run(words, first, summary, block, 0)\n            return",
        "bitmap allocation",
    ),
    Mutation(
        "kernels/bitmap.py",
        "if atomics.load(words, first + word_id) != 0:",
        "if atomics.load(words, first + word_id) == 0:",
        "bitmap",
    ),
    # -- tables that grow, files that are this process's own, names that are durable
    Mutation(
        "jessymem/regions/rows.py", "fresh[0] > numbers[-1]", "fresh[0] >= numbers[-1]", "rows"
    ),
    Mutation("jessymem/regions/rows.py", "self.n_begun != n_rows or", "", "rows chain"),
    Mutation("jessymem/regions/rows.py", "< self._n_numbers", "<= self._n_numbers", "rows"),
    Mutation(
        "jessymem/regions/region.py",
        "written is not None and written == identity",
        "written is not None",
        "chain",
    ),
    Mutation(
        "jessymem/osmem.py",
        "_durable_names.get(path) == birth",
        "path in _durable_names",
        "osmem",
    ),
    # -- names and deleted layers
    Mutation(
        "jessymem/regions/name_table.py",
        "heap[start : start + size].tobytes() == name",
        "size == len(name)",
        "names",
    ),
    Mutation(
        "jessymem/regions/chain.py",
        "if (origins.which[row], origins.rows[row]) == (which, there):",
        "if True:",
        "names",
    ),
    Mutation(
        "jessymem/learning/region.py",
        "found += [each for each in under if self.learned_layer(each) is None]",
        "found += under",
        "names",
    ),
    Mutation(
        "jessymem/regions/evicted.py",
        "any(table is None or table.has(digest)",
        "any(table is not None and table.has(digest)",
        "names",
    ),
    Mutation(
        "jessymem/regions/chain.py",
        "tables = [_without(member.layout.deleted, table, members) for table in tables]",
        "pass",
        "deletion",
    ),
    Mutation("jessymem/regions/chain.py", "& is_file[which])", ")", "deletion"),
    Mutation(
        "jessymem/regions/layout.py",
        'wrong = np.isin(numbers, layout.rows["layer_num"])',
        "wrong = np.zeros(len(numbers), bool)",
        "deletion",
    ),
    Mutation(
        "jessymem/regions/layout.py",
        "s.MAX_LAYERS if follows else 0)",
        "s.MAX_LAYERS)",
        "extension",
    ),
    Mutation(
        "jessymem/learning/deltas.py",
        "gone = current.deleted_since(n_left + 1).union(deleted) - numbers",
        "gone = set(deleted)",
        "deletion",
    ),
    Mutation(
        "jessymem/learning/layers.py",
        "return bool(files.generation > written)",
        "return False",
        "deletion",
    ),
    # -- the budget
    Mutation(
        "kernels/budget.py", "while used + n_bytes <=", "while used + n_bytes <", "budget_kernels"
    ),
    Mutation(
        "kernels/budget.py", "while used > peak and", "while used < peak and", "budget_kernels"
    ),
    Mutation("kernels/budget.py", "USED, -n_bytes) - n_bytes", "USED, -n_bytes)", "budget_kernels"),
    Mutation(
        "kernels/budget.py",
        "    else:\n        dismiss(state, n_bytes)",
        "    else:\n        pass",
        "budget_kernels",
    ),
    Mutation(
        "jessymem/budget.py",
        "if total > self.limit_bytes:",
        "if total >= self.limit_bytes:",
        "manager",
    ),
    Mutation("jessymem/budget.py", "return used - held", "return used", "resizing"),
    Mutation(
        "kernels/budget.py",
        "atomics.store(state, PEAK, 0)",
        "atomics.store(state, PEAK, 2**30)",
        "resizing",
    ),
    Mutation(
        "jessymem/pressure.py", "critical.above_bytes + held", "critical.above_bytes", "resizing"
    ),
    Mutation(
        "jessymem/engine/resizing.py",
        "_check_possible(engine, bounds)",
        "pass",
        "resizing",
    ),
    Mutation("jessymem/engine/resizing.py", "all_or_none=True", "all_or_none=False", "resizing"),
    Mutation(
        "jessymem/pools/table.py",
        'if row["first_generation"]:\n            start',
        "if False:\n            start",
        "pool_supply",
    ),
    Mutation("jessymem/budget.py", "sum(self._used.values()) <= limit_bytes", "True", "resizing"),
    Mutation(
        "jessymem/budget.py",
        "in_headroom + n_headroom > headroom:",
        "in_headroom + n_headroom >= headroom:",
        "manager stats",
    ),
    Mutation(
        "jessymem/budget.py",
        "self._waiting.difference_update(charge_ids)",
        "pass",
        "stats reload references",
    ),
    # -- blocks handed out and freed
    Mutation("kernels/allocation.py", "if n_bytes < 1:", "if n_bytes < 0:", "allocation"),
    Mutation(
        "kernels/allocation.py", "min(n_bytes - done, block_bytes)", "block_bytes", "block_views"
    ),
    Mutation(
        "kernels/allocation.py",
        "GENERATION_SHIFT) + 1) & _",
        "GENERATION_SHIFT) + 0) & _",
        "allocation release",
    ),
    # -- blocks that share huge pages, and blocks of nodes
    Mutation("kernels/allocation.py", "last - last % shared + shared", "last + 1", "shared_pages"),
    Mutation(
        "kernels/allocation.py", "            n_clean -= 1", "            pass", "shared_pages"
    ),
    Mutation("kernels/near.py", "block_bytes != best", "block_bytes == best", "nodes"),
    Mutation("kernels/near.py", "here >= memory.get_word", "here > memory.get_word", "nodes"),
    Mutation(
        "jessymem/pools/trimmer.py",
        "table.arena.page_bytes_of(pool) // block_bytes",
        "1",
        "placement",
    ),
    Mutation(
        "jessymem/placement.py", "(length - n_bytes) * WASTED_PART", "length - n_bytes", "placement"
    ),
    Mutation("kernels/release.py", "n_bytes != ANY_SIZE and", "n_bytes == ANY_SIZE and", "release"),
    Mutation(
        "kernels/release.py",
        "if n_bytes > memory.get_word",
        "if n_bytes >= memory.get_word",
        "block_views",
    ),
    Mutation("kernels/release.py", "VIEWS_MASK == VIEWS_MASK", "VIEWS_MASK == 0", "block_views"),
    Mutation(
        "kernels/release.py",
        "release_marked(state, handles[j], 0)",
        "release_marked(state, handles[j], 1)",
        "release",
    ),
    # -- before kernels are compiled
    Mutation("kernels/transactions.py", "chain(check, changes)", "changes", "plain_blocks"),
    Mutation(
        "kernels/transactions.py",
        "ends.append(map(note, (result,)))",
        "note(result)",
        "plain_blocks",
    ),
    Mutation(
        "kernels/transactions.py", "if _jit.forms_of(_jit.MEMORY):", "if False:", "first_blocks"
    ),
    Mutation("kernels/_jit.py", "in _forms.keys() - _ready:", "in ():", "plain_blocks"),
    # -- looking up
    Mutation(
        "kernels/lookup.py", "end > memory.load_i64(region + N_BYTES)", "False", "batches store"
    ),
    Mutation(
        "kernels/lookup.py",
        "if row >= memory",
        "if row > memory",
        "lookup batches store answers",
    ),
    Mutation("kernels/gather.py", "offsets[locations.shape[0]] = total", "pass", "batches"),
    # -- parsing
    Mutation(
        "kernels/parse.py",
        "_EXPONENT_BITS == _EXPONENT_BITS:",
        "_EXPONENT_BITS != _EXPONENT_BITS:",
        "parse",
    ),
    Mutation(
        "kernels/parse.py",
        "if n_keywords > MAX_KEYWORDS:",
        "if n_keywords >= MAX_KEYWORDS:",
        "parse round_trips",
    ),
    Mutation(
        "kernels/parse.py",
        "content > n_bytes:",
        "content >= n_bytes:",
        "parse round_trips",
    ),
    Mutation(
        "kernels/parse.py",
        "if length > left:",
        "if length >= left:",
        "parse",
    ),
    # -- searching
    Mutation("kernels/search.py", "at += period\n", "at += period + 1\n", "search"),
    Mutation("kernels/search.py", "at += i - critical + 1", "at += i - critical + 2", "search"),
    # -- rules of the format
    Mutation(
        "jessymem/regions/layout.py",
        "numbers[1:] <= numbers[:-1]",
        "numbers[1:] < numbers[:-1]",
        "layout extension",
    ),
    Mutation("jessymem/regions/layout.py", "ends > total", "ends > total + 1", "extension layout"),
    Mutation(
        "jessymem/regions/layout.py",
        "starts[order][1:] < ends",
        "starts[order][1:] < starts",
        "layout extension",
    ),
    Mutation(
        "jessymem/regions/layout.py",
        "> heap_size\n        yield",
        "> heap_size + 1\n        yield",
        "extension",
    ),
    Mutation(
        "jessymem/regions/layout.py",
        "if total_size != n_bytes:",
        "if total_size > len(data):",
        "layout",
    ),
    Mutation(
        "jessymem/regions/frame_rules.py",
        "lengths > frames",
        "lengths < frames",
        "compression",
    ),
    Mutation("jessymem/regions/frames.py", "if told == found:", "if told:", "compression"),
    Mutation("jessymem/engine/inflated.py", "self.is_dropped = True", "pass", "compression"),
    Mutation("jessymem/regions/layout.py", "== extension.metadata_xxh3", "!= 0", "extension"),
    # -- files
    Mutation(
        "jessymem/regions/files.py",
        "if self._generation_beside(alternate) ==",
        "if self._generation_beside(alternate) !=",
        "region_files",
    ),
    Mutation(
        "jessymem/regions/files.py",
        "if generation > best:",
        "if generation < best:",
        "region_files",
    ),
    Mutation("jessymem/regions/files.py", "0, *taken) + 1", "0) + 1", "region_files"),
    Mutation(
        "jessymem/regions/files.py", "osmem.sync_file(file, temporary)", "pass", "write_order"
    ),
    Mutation(
        "jessymem/regions/files.py",
        "osmem.sync_directory(self._file.parent)",
        "pass",
        "write_order",
    ),
    Mutation(
        "jessymem/osmem.py",
        "return buffer == expected",
        "return True",
        "osmem region_files builder",
    ),
    Mutation(
        "jessymem/osmem.py",
        "is_same and not take(memoryview(bytearray(1)))",
        "is_same",
        "osmem region_files",
    ),
    Mutation("jessymem/short_calls.py", "> MAX_HELD_BYTES", "> 2**40", "short_calls"),
    Mutation(
        "jessymem/short_calls.py",
        "_held if number in _LOCAL else PLAIN",
        "_held if number else PLAIN",
        "short_calls",
    ),
    Mutation("jessymem/short_calls.py", "PyDLL(None, use", "CDLL(None, use", "short_calls"),
    Mutation(
        "jessymem/osmem.py", "-(-n_bytes // page) * page", "n_bytes // page * page", "osmem stats"
    ),
    # -- eviction, reading, references
    Mutation(
        "jessymem/engine/policies.py",
        "if mark > seen and",
        "if mark < seen and",
        "eviction_policies",
    ),
    Mutation(
        "jessymem/engine/policies.py",
        "or self._orders[dimension] != order:",
        "or self._orders[dimension] < order:",
        "eviction_policies",
    ),
    # -- the published state
    Mutation(
        "jessymem/engine/snapshot.py",
        "fresh[at] = chunks[at] = chunks[at].copy()",
        "fresh[at] = chunks[at]",
        "snapshot",
    ),
    Mutation(
        "jessymem/engine/snapshot.py",
        "slot.path is None or dimension < 0:",
        "slot.path is None:",
        "snapshot",
    ),
    Mutation(
        "jessymem/engine/engine.py",
        "        if self.gathering:\n            self.publish()",
        "        if False:\n            self.publish()",
        "snapshot",
    ),
    Mutation("jessymem/engine/policies.py", "or not mark[0]:", "or mark[0]:", "eviction_policies"),
    Mutation(
        "jessymem/engine/policies.py",
        "if self._n_loads > len",
        "if self._n_loads < len",
        "eviction_policies",
    ),
    Mutation("jessymem/engine/sampling.py", "self._readers.discard(thread)", "pass", "stats"),
    Mutation(
        "jessymem/references.py",
        "if region.edition != self",
        "if region.edition is self",
        "references",
    ),
    # -- what is imported, and when
    Mutation(
        "jessymem/locks.py",
        "    if is_any_mine():\n        raise",
        "    if 0:\n        raise",
        "lock_rules",
    ),
    Mutation(
        "jessymem/logger.py",
        "        if is_any_mine():\n            late",
        "        if 0:\n            late",
        "lock_rules",
    ),
    Mutation("jessymem/errors.py", "= _as_failed_import(error)", "= None", "descriptors"),
    Mutation(
        "jessymem/engine/engine.py",
        '        before_import("jessymem.pools.stored")\n',
        "        pass\n",
        "descriptors",
    ),
    # -- small layers in shared blocks
    Mutation(
        "jessymem/pools/shared.py", "block.n_filled + n_bytes <=", "n_bytes <=", "shared_blocks"
    ),
    Mutation("jessymem/pools/stored.py", "block.shared, is", "_, is", "shared_blocks"),
    Mutation(
        "jessymem/pools/stored.py",
        "    blocks._views.free_after(shared, handle)\n",
        "",
        "shared_blocks",
    ),
    # -- files that others change
    Mutation(
        "kernels/leases.py",
        "    if is_done:\n        _control(",
        "    if is_done or not is_done:\n        _control(",
        "leases",
    ),
    Mutation("jessymem/osmem.py", "mapping.kept = lease, kept", "mapping.kept = kept", "leases"),
    Mutation(
        "jessymem/leases.py",
        "                self._lease_again(at)",
        "                pass",
        "leases",
    ),
    Mutation(
        "jessymem/ingest/manifest.py",
        "except (ValueError, RecursionError)",
        "except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError)",
        "fuzz",
    ),
    Mutation(
        "jessymem/references.py",
        'Edition(*(as_integer(each, "edition") for each in edition))',
        "Edition(*edition)",
        "fuzz",
    ),
    # -- searches before there are kernels
    Mutation(
        "jessymem/scanning/pairs.py",
        "(gaps < 0) | (gaps > _GAP_BYTES)",
        "(gaps < 0)",
        "pairs",
    ),
    Mutation(
        "jessymem/scanning/pairs.py",
        "begins[0] < address or begins[-1] > last",
        "begins[0] < address",
        "pairs",
    ),
    Mutation("jessymem/scanning/pairs.py", "places < sought.ends[at]", "places >= 0", "pairs"),
    Mutation("jessymem/scanning/pairs.py", "places.sort()", "pass", "pairs"),
    Mutation("jessymem/engine/locations.py", "(end <= table.size)", "(end > 0)", "batches"),
]


def copy_tree(folder: Path) -> None:
    """Copy what tests need; the package leads to the copy of the kernels, as here."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)


def passes(folder: Path, tests: list[str], **environment: str) -> bool:
    """Tell whether the tests pass in a copy of the tree; a crash is seen as well as a failure."""
    known = [str(path) for path in map(Path, tests) if (folder / path).exists()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *known]
    cache = {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache")}
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | cache | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    if result.returncode > 1:
        raise RuntimeError(result.stdout + result.stderr)
    return result.returncode == 0


def is_seen(mutation: Mutation, is_whole: bool) -> str:
    """Make a mutation; return how it was seen: "plain" or "compiled"; "" if it was not."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        copy_tree(folder)
        path = folder / mutation.file
        source = path.read_text(encoding="utf-8")
        path.write_text(source.replace(mutation.old, mutation.new, 1), encoding="utf-8")
        tests = [f"tests/test_{name}.py" for name in mutation.tests.split()]
        if is_whole:
            tests = ["tests"]
        if not passes(folder, tests, NUMBA_DISABLE_JIT="1"):
            return "plain"
        return "" if passes(folder, tests, NUMBA_DISABLE_JIT="0") else "compiled"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="only look whether the texts are there")
    parser.add_argument("--only", default="", help="mutations whose file or text contains this")
    parser.add_argument("--from", type=int, default=1, dest="first", help="begin with this number")
    parser.add_argument("--whole", action="store_true", help="try all tests")
    options = parser.parse_args()
    n_bad = 0
    for number, mutation in enumerate(MUTATIONS, 1):
        if number < options.first or options.only not in f"{mutation.file} {mutation.old}":
            continue
        if mutation.old not in (ROOT / mutation.file).read_text(encoding="utf-8"):
            outcome = "NOT FOUND"
        elif options.list:
            outcome = "found"
        else:
            outcome = is_seen(mutation, options.whole) or "NOT SEEN"
        n_bad += outcome.isupper()
        sys.stdout.write(f"{number:2} {outcome:9} {mutation.file}: {mutation.old!r}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{n_bad} to be looked at\n")
    return int(n_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
