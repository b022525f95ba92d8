"""The eviction policies side by side, on recorded and on made-up traces.

``python tests/benchmarks/eviction_policies.py`` builds the demo's store, records what its readers
read, and replays every trace against every policy in a memory that holds only a share of the store.
The policies are those of `jessymem.engine.policies` themselves, driven as a manager drives them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count, cycle, groupby, islice, product, repeat, zip_longest
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar
from unittest import mock

from jessymem import ContextCollection, LayerId, MmapManager, NavigationPath, osmem
from jessymem.demo import run as demo
from jessymem.engine.policies import Lfu, Mark, Policy, make_policy
from jessymem.engine.sampling import PERIOD
from jessymem.inspection import find_regions

SHARES = (0.25, 0.5, 0.75)
Trace = Sequence[int]  # the dimensions that were read, in order

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

# -- yardsticks ------------------------------------------------------------------------------------


class Fifo(Policy):
    """The one that was loaded first."""

    name: ClassVar[str] = "fifo"

    def gate(self, n: int) -> Iterator[None]:
        return repeat(None, n)

    def touch(self, dimension: int, n_reads: int = 1) -> None:
        pass

    def _first_mark(self, dimension: int) -> Mark:
        return [0]

    def choose(self, may_go: Callable[[int], bool]) -> int | None:
        return next(filter(may_go, self._marks), None)


class RandomChoice(Fifo):
    """Any, with equal chances."""

    name = "random"

    def __init__(self) -> None:
        super().__init__()
        self._random = random.Random(1)

    def choose(self, may_go: Callable[[int], bool]) -> int | None:
        return self._random.choice(list(filter(may_go, self._marks)))


class InCacheLfu(Lfu):
    """`Lfu` whose counts end with an eviction."""

    name = "lfu, in cache"

    def forget(self, dimension: int) -> None:
        super().forget(dimension)
        self._counts.pop(dimension, None)


class UnagedLfu(Lfu):
    """`Lfu` whose counts are never halved."""

    name = "lfu, unaged"

    def _halve_counts(self) -> None:
        pass


class _NextUse:
    """A mark that knows when its dimension is read again: each write is one step of the trace."""

    def __init__(self, at: int, next_uses: Sequence[int], steps: Iterator[int]) -> None:
        self._at, self._next_uses, self._steps = at, next_uses, steps

    def __setitem__(self, at: Any, value: Any, /) -> None:
        self._at = self._next_uses[next(self._steps)]

    def __getitem__(self, at: Any, /) -> int:
        return -self._at


class Belady(Policy):
    """The one that is read again last, which only who knows the whole trace can tell.

    Optimal where all are of one size (Belady, "A study of replacement algorithms for a
    virtual-storage computer", IBM Systems Journal 5(2), 1966); here it takes no account of sizes,
    so a policy may, rarely, do better.
    """

    name = "belady"

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._next_uses = [0] * len(trace)
        upcoming: dict[int, int] = {}
        for i in reversed(range(len(trace))):
            self._next_uses[i] = upcoming.get(trace[i], len(trace))
            upcoming[trace[i]] = i
        self._steps = count()

    def gate(self, n: int) -> Iterator[None]:
        return repeat(None, n)

    def touch(self, dimension: int, n_reads: int = 1) -> None:
        self._marks[dimension][0] = None

    def choose(self, may_go: Callable[[int], bool]) -> int | None:
        marks = self._marks
        return min(filter(may_go, marks), key=lambda each: marks[each][0], default=None)

    def _first_mark(self, dimension: int) -> Mark:
        return _NextUse(self._next_uses[next(self._steps)], self._next_uses, self._steps)


POLICIES: dict[str, Callable[[Trace], Policy]] = {
    "lru": lambda trace: make_policy("lru"),
    "lfu": lambda trace: make_policy("lfu"),
    "sieve": lambda trace: make_policy("sieve"),
    UnagedLfu.name: lambda trace: UnagedLfu(),
    InCacheLfu.name: lambda trace: InCacheLfu(),
    Fifo.name: lambda trace: Fifo(),
    RandomChoice.name: lambda trace: RandomChoice(),
    Belady.name: Belady,
}

# -- replay ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a policy made of a trace.

    `reloads` is a share of the accesses, `reloaded` of the bytes of the store. First loads, which
    nobody can avoid, are in neither. Means over the traces of that name.
    """

    trace: str
    share: float
    policy: str
    n_accesses: int
    reloads: float
    reloaded: float


def replay(trace: Trace, sizes: dict[int, int], capacity: int, policy: Policy) -> tuple[int, int]:
    """Return how often dimensions were loaded again, and how many bytes that came to."""
    marks: dict[int, Mark] = {}
    known: set[int] = set()
    used = n_reloads = n_bytes = 0
    gate = policy.gate(PERIOD - 1)
    for dimension in trace:
        if dimension in marks:
            try:
                marks[dimension][0] = next(gate)
            except StopIteration:
                policy.touch(dimension)
                gate = policy.gate(PERIOD - 1)
            continue
        used += sizes[dimension]
        while used > capacity:
            coldest = policy.choose(marks.__contains__)
            assert coldest is not None
            policy.forget(coldest)
            del marks[coldest]
            used -= sizes[coldest]
        marks[dimension] = policy.admit(dimension)
        if dimension in known:
            n_reloads += 1
            n_bytes += sizes[dimension]
        known.add(dimension)
    return n_reloads, n_bytes


def compare(
    traces: dict[str, list[Trace]], sizes: dict[int, int], shares: Iterable[float] = SHARES
) -> list[Outcome]:
    """Replay every trace with every policy; what is larger than the memory is left out."""
    total = sum(sizes.values())
    outcomes = []
    for (name, alike), share in product(traces.items(), shares):
        capacity = int(share * total)
        fitting = [[each for each in trace if sizes[each] <= capacity] for trace in alike]
        n_accesses = sum(map(len, fitting))
        for policy, make in POLICIES.items():
            found = [replay(trace, sizes, capacity, make(trace)) for trace in fitting]
            n_reloads = sum(n for n, _ in found)
            n_bytes = sum(n for _, n in found) / len(found)
            outcomes.append(
                Outcome(name, share, policy, n_accesses, n_reloads / n_accesses, n_bytes / total)
            )
    return outcomes


# -- recorded traces -------------------------------------------------------------------------------


class Recorder:
    """Which dimensions the threads read, each thread's reads in order."""

    def __init__(self) -> None:
        self._reads: defaultdict[threading.Thread, list[int]] = defaultdict(list)

    def manager_class(self) -> type[MmapManager]:
        """Return a manager that tells of every layer whose content it hands out."""
        reads = self._reads

        class RecordingManager(MmapManager):
            def access_layer(self, layer_id: Any) -> memoryview:
                reads[threading.current_thread()].append(layer_id >> 16)
                return super().access_layer(layer_id)

            def load_contexts(self, paths: Any, missing: str = "raise") -> ContextCollection:
                contexts = super().load_contexts(paths, missing)
                reads[threading.current_thread()] += [
                    int(context.layer_id.dimension) for context in contexts
                ]
                return contexts

        return RecordingManager

    @property
    def main(self) -> list[int]:
        """What this thread read."""
        return self._reads[threading.current_thread()]

    def crowd(self, n_threads: int) -> Iterator[int]:
        """Yield what the rounds of a crowd read: one thread alone, then all of them, and so on.

        Those that read together take turns, one read each, since how the threads were really
        interleaved differs from run to run.
        """
        others = [thread for thread in self._reads if thread is not threading.current_thread()]
        others.sort(key=lambda thread: int(re.findall(r"\d+", thread.name)[0]))  # as they were made
        threads = iter([self._reads[thread] for thread in others])
        for n_together in cycle((1, n_threads)):
            group = list(islice(threads, n_together))
            if not group:
                return
            turns = chain.from_iterable(zip_longest(*group))
            yield from (dimension for dimension in turns if dimension is not None)


def record_demo(
    base: Path, n_threads: int, library: Path | None = None, packages: Iterable[str] | None = None
) -> dict[str, list[Trace]]:
    """Run the demo, which leaves its store under `base`; a window of no time makes one pass."""
    recorder = Recorder()
    with mock.patch.object(demo, "MmapManager", recorder.manager_class()):
        demo.run_demo(
            base, packages=packages, library=library, n_threads=n_threads, window_seconds=0
        )
    return {
        "demo": [recorder.main],
        f"demo, {n_threads} threads": [list(recorder.crowd(n_threads))],
    }


#: What people look for in a library, as keywords and a range of depths; the most frequent first.
QUERIES: tuple[tuple[tuple[str, ...] | None, tuple[int, int] | None], ...] = (
    (("json",), None),
    (("asyncio",), None),
    (("parser",), None),
    (("http",), None),
    (("client", "server"), None),
    (("queue", "queues"), None),
    (("logging",), None),
    (("email",), (1, 1)),
    (("decoder", "encoder"), None),
    (("utils", "util"), None),
    (("re",), None),
    (("typing",), None),
    (("collections",), None),
    (("thread", "threading"), None),
    (("subprocess",), None),
    (("xml",), (2, 2)),
    (("sqlite3",), None),
    (("urllib",), None),
    (("events", "base_events"), None),
    (("dataclasses",), None),
    (("multiprocessing",), None),
    (("utf_8", "utf_16", "ascii"), None),
    (("pathlib", "os", "shutil"), None),
    (("unittest", "mock"), None),
    (("importlib",), None),
    (("handlers",), None),
    (("message",), None),
    (("connection",), None),
    (("tkinter",), None),
    (("zoneinfo", "datetime"), None),
    (("__main__",), None),
    (("ctypes",), None),
    (("command",), (2, 2)),
    (("pgen2",), None),
    (("topics",), None),
    (("html",), None),
    (("__init__",), (1, 1)),
    (None, (2, 2)),
    (("joy", "trust", "values"), None),
    (None, (0, 0)),
)


def record_searches(base: Path, n_searches: int, seed: int) -> Trace:
    """Search as people do: few questions often, many rarely; read the first hits of each."""
    recorder = Recorder()
    chooser = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(QUERIES) + 1)]
    with recorder.manager_class()(base_path=base) as manager:
        manager.load_all()
        for keywords, depth in chooser.choices(QUERIES, weights, k=n_searches):
            for layer in manager.select(keywords, depth)[:12]:
                manager.access_layer(layer)
    return recorder.main


def record_contexts(base: Path, n_prompts: int, seed: int) -> Trace:
    """Assemble prompts on topics whose popularity is skewed, and drifts."""
    recorder = Recorder()
    chooser = random.Random(seed)
    with recorder.manager_class()(base_path=base) as manager:
        manager.load_all()
        topics = sorted(
            {
                keyword
                for layer in manager.list_layers()
                for keyword in manager.get_layer_info(layer).keywords
            }
        )
        chooser.shuffle(topics)
        weights = [1 / rank for rank in range(1, len(topics) + 1)]
        for i in range(n_prompts):
            if i % 10 == 9:  # one topic comes into fashion; the others move down
                topics.insert(0, topics.pop(chooser.randrange(len(topics))))
            (topic,) = chooser.choices(topics, weights)
            manager.load_contexts(paths_through(manager, topic)).format_for_llm(max_chars=20_000)
    return recorder.main


def paths_through(manager: MmapManager, topic: str) -> Iterator[NavigationPath]:
    """Yield a path per layer found: its parents, itself, children, and who shares its keyword."""
    for start in manager.select([topic])[:3]:
        info = manager.get_layer_info(start)
        above: list[LayerId] = []
        parent = info.parent
        while parent is not None:
            above.insert(0, parent)
            parent = manager.get_layer_info(parent).parent
        neighbours = manager.select(info.keywords[-1:])
        yield NavigationPath([*above, start, *info.children[:4], *neighbours[:4]])


# -- made-up traces --------------------------------------------------------------------------------


def synthesize(sizes: dict[int, int], n_accesses: int, seed: int) -> dict[str, Trace]:
    """Make the traces on which policies are known to differ, over dimensions of these sizes."""
    chooser = random.Random(seed)
    dimensions = list(sizes)
    chooser.shuffle(dimensions)
    n_hot = len(dimensions) // 4
    weights = [1 / rank for rank in range(1, len(dimensions) + 1)]
    return {
        "zipf": chooser.choices(dimensions, weights, k=n_accesses),
        "zipf, 5 reads each": [
            each
            for dimension in chooser.choices(dimensions, weights, k=n_accesses // 5)
            for each in repeat(dimension, 5)
        ],
        "hot set and scans": list(hot_set_and_scans(dimensions, sizes, n_accesses, chooser)),
        "loop": list(islice(cycle(dimensions), n_accesses)),
        "shifting set": [
            dimensions[
                (i * 2 * len(dimensions) // n_accesses + chooser.randrange(n_hot)) % len(dimensions)
            ]
            for i in range(n_accesses)
        ],
    }


def hot_set_and_scans(
    dimensions: Sequence[int], sizes: dict[int, int], n_accesses: int, chooser: random.Random
) -> Iterator[int]:
    """Read a hot set of a fifth of the bytes; now and then scan the store, going on meanwhile."""
    hot: list[int] = []
    for dimension in dimensions:
        if sum(sizes[each] for each in [*hot, dimension]) <= sum(sizes.values()) / 5:
            hot.append(dimension)
    n_scans = max(n_accesses // (20 * len(dimensions)), 1)
    for _ in range(n_scans):
        yield from chooser.choices(hot, k=16 * len(dimensions))
        for dimension in dimensions:
            yield from (dimension, dimension, chooser.choice(hot), chooser.choice(hot))


# -- all of it -------------------------------------------------------------------------------------


def region_sizes(base: Path) -> dict[int, int]:
    """Return what each region charges to a budget."""
    return {
        int(dimension): osmem.round_to_pages(path.stat().st_size)
        for dimension, path, _ in find_regions(base)
    }


def run(
    base: Path,
    *,
    n_threads: int = 8,
    n_rounds: int = 1_000,
    n_seeds: int = 5,
    library: Path | None = None,
    packages: Iterable[str] | None = None,
    shares: Iterable[float] = SHARES,
) -> tuple[dict[int, int], list[Outcome], list[Outcome]]:
    """Build the store under `base`, make the traces, and replay them.

    Returns
    -------
    The regions' sizes, the outcomes, and the outcomes as if all regions were of one size.
    """
    traces = record_demo(base, n_threads, library, packages)
    sizes = region_sizes(base)
    for seed in range(n_seeds):
        contexts = record_contexts(base, n_rounds, seed)
        made = {
            "search": record_searches(base, n_rounds, seed),
            "contexts": contexts,
            "contexts, no bursts": [dimension for dimension, _ in groupby(contexts)],
            **synthesize(sizes, 20 * n_rounds, seed),
        }
        for name, trace in made.items():
            traces.setdefault(name, []).append(trace)
    even = dict.fromkeys(sizes, 1)
    return sizes, compare(traces, sizes, shares), compare(traces, even, shares)


def mean_over_shares(outcomes: Iterable[Outcome], field: str) -> dict[str, list[str]]:
    """Return the rows of a table: per trace, one cell for each policy."""
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for each in outcomes:
        values[each.trace, each.policy].append(getattr(each, field))
    scale = 100 if field == "reloads" else 1
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for (trace, _), found in values.items():
        rows[trace].append(f"{scale * mean(found):.1f}")
    return rows


def both_by_share(outcomes: Iterable[Outcome]) -> dict[str, list[str]]:
    """Return the rows of a table: per trace and share of memory, both figures for each policy."""
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for each in outcomes:
        cell = f"{100 * each.reloads:.1f} / {each.reloaded:.4g}"
        rows[f"{each.trace}, {each.share:.0%}"].append(cell)
    return rows


def as_table(rows: dict[str, list[str]]) -> str:
    """Write a Markdown table with a column for each policy."""
    lines = [
        ["trace", *POLICIES],
        ["---", *["---:"] * len(POLICIES)],
        *([title, *cells] for title, cells in rows.items()),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def describe(
    sizes: dict[int, int], outcomes: Sequence[Outcome], outcomes_of_even: Sequence[Outcome]
) -> str:
    total = sum(sizes.values())
    largest = max(sizes.values()) / total
    shares = ", ".join(f"{share:.0%}" for share in dict.fromkeys(each.share for each in outcomes))
    return f"""\
{len(sizes)} dimensions of {total:,} bytes in all, the largest {largest:.0%} of it.

Accesses that reload, in %, mean over the sizes of memory ({shares} of all regions):

{as_table(mean_over_shares(outcomes, "reloads"))}
The same, if all dimensions were of one size:

{as_table(mean_over_shares(outcomes_of_even, "reloads"))}
Bytes reloaded per byte of the store, mean over the sizes of memory:

{as_table(mean_over_shares(outcomes, "reloaded"))}
By the size of memory, accesses that reload in % / bytes reloaded per byte of the store:

{as_table(both_by_share(outcomes))}"""


def main(arguments: Sequence[str] | None = None, **parameters: Any) -> None:
    """Run; `parameters` are those of `run`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.add_argument("--write", type=Path, help="put the tables into this page, too")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as base:
        sizes, outcomes, outcomes_of_even = run(Path(base), **parameters)
    text = describe(sizes, outcomes, outcomes_of_even)
    if chosen.write:
        write_into(chosen.write, text)
    if chosen.json:
        found = {"sizes": sizes, "outcomes": outcomes, "outcomes_of_even": outcomes_of_even}
        text = json.dumps(found, default=asdict, indent=1) + "\n"
    sys.stdout.write(text)


def write_into(path: Path, text: str) -> None:
    """Replace what a page holds between its two markers."""
    page = path.read_text(encoding="utf-8")
    (head, rest) = page.split(BEGIN)
    (_, tail) = rest.split(END)
    path.write_text(f"{head}{BEGIN}\n{text}{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
