"""What readers ask and what they are told, so that tiers can be compared; see `test_tiers`.

Run as a program it answers in a fresh process: ``python -m support.tiers FOLDER TIER``, in the
folder `tests`, writes JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path

import numpy as np

import jessymem.regions.entries  # noqa: F401 - loading starts over once it is there: an id more
from jessymem import LayerId, MemoryConfig, MmapManager, MmapRegion, RegionBuilder, warmup
from jessymem.kernels import _jit
from jessymem.kernels import schema as s
from support.regions import region_file, write_packed

N_THREADS = 2

DENSE = {layer: bytes([layer]) * (100 * layer + 1) for layer in range(8)}
GAPS = {0: b"", 3: b"three", 700: b"x", 65_535: bytes(range(256)) * 40}
PLAIN = {2: b"odd", 0: b"a", 9: b"twelve bytes"}
BIG = {0: bytes(600_000), 1: b"small"}  # two of them do not fit a budget of 1 MB

FOUND = [int(LayerId(15, layer)) for layer in DENSE]
FOUND += [int(LayerId(16, layer)) for layer in GAPS] + [int(LayerId(17, layer)) for layer in PLAIN]
NOT_FOUND = [int(LayerId(15, 8)), int(LayerId(16, 1)), int(LayerId(2, 0)), 0, -1, 2**62]
MIXED = [*FOUND[::-1], *NOT_FOUND, *FOUND]


def build(base):
    for number, layers in {15: DENSE, 16: GAPS, 18: DENSE, 20: BIG, 21: BIG}.items():
        builder = RegionBuilder(number, f"D{number}")
        for layer, content in layers.items():
            builder.add_layer(layer, content, keywords=[f"word{layer}"], depth=layer % 5)
        builder.build_to_file(region_file(base, f"D{number}"))
    write_packed(region_file(base, "D17"), 17, PLAIN)


class Answers:
    """Answers by question, with nothing in them that differs between processes."""

    def __init__(self, base):
        self.base = str(base)
        self.found = {}

    def ask(self, question, call, *arguments, **options):
        try:
            answer = self.show(call(*arguments, **options))
        except Exception as error:
            details = {name: self.show(value) for name, value in vars(error).items()}
            answer = {"error": type(error).__name__, "text": self.show(str(error)), **details}
        assert question not in self.found, question
        self.found[question] = answer

    def show(self, value):
        """Return something that JSON can say."""
        if isinstance(value, memoryview | bytes):
            return bytes(value).hex() if len(value) < 100 else [len(value), hash_of(value)]
        if isinstance(value, np.ndarray):
            is_bytes = value.dtype == np.uint8
            return [str(value.dtype), self.show(value.data) if is_bytes else value.tolist()]
        if isinstance(value, str | os.PathLike):
            return str(value).replace(self.base, "BASE")
        if isinstance(value, dict):
            return {str(key): self.show(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.show(each) for each in value]
        if value is None or isinstance(value, int | float):
            return repr(value)
        if hasattr(value, "sequence"):  # contexts
            return [value.format_with_metadata(), [self.show(each.content) for each in value]]
        if hasattr(value, "content"):
            return [self.show(value.content), str(value.layer_id), value.keywords]
        return repr(value)


def hash_of(view):
    return int(np.frombuffer(view, np.uint8).astype(np.uint64).cumsum().sum())


def ask_all(base):
    """Return the answers to all that a reader can ask of a folder that `build` has filled."""
    answers = Answers(base)
    ask_of_files(answers, base)
    ask_of_evicted(answers, base)
    ask_of_damaged(answers, base)
    return answers.found


def ask_of_files(answers, base):
    manager = MmapManager(MemoryConfig(64, base, simulation="never"))
    for number in (15, 16, 17, 18):
        manager.load_dimension(number)
    manager.unload_dimension(18)
    ask_manager(answers, "open", manager)
    manager.close()
    ask_manager(answers, "closed", manager)


def ask_manager(answers, state, manager):
    wrong = [LayerId(15, 8), LayerId(16, 1), LayerId(18, 0), LayerId(30, 0), 0, -1, "L15", 1.5]
    for each in [*map(LayerId.from_packed, FOUND), *wrong]:
        answers.ask(f"{state} access {each}", manager.access_layer, each)
        answers.ask(f"{state} context {each}", manager.load_layer_context, each)
        answers.ask(f"{state} info {each}", manager.get_layer_info, each)
    paths = [LayerId.from_packed(each) for each in FOUND[::2] * 2]
    answers.ask(f"{state} contexts", manager.load_contexts, paths)
    answers.ask(f"{state} contexts, missing", manager.load_contexts, [*paths, "L15-77", "L30-00"])
    answers.ask(
        f"{state} contexts, skipped", manager.load_contexts, [*paths, "L15-77"], missing="skip"
    )
    answers.ask(f"{state} select", manager.select, keywords=["word3", "word700"])
    ask_batches(answers, state, manager, {"found": FOUND, "mixed": MIXED, "none": []})
    for needle in (b"e", b"\x03\x03\x03\x03\x03", b"nowhere to be found"):
        answers.ask(f"{state} count {needle!r}", manager.count, needle, [15, 17])
        answers.ask(f"{state} find {needle!r}", lambda n=needle: manager.find(n, [15, 17]).array)


def ask_batches(answers, state, manager, batches):
    for name, ids in batches.items():
        for form in (list, lambda ids: np.array(ids, np.int64)):
            for missing in ("raise", "mark", "sometimes"):
                end = f"{name} {type(form(ids)).__name__} {missing}"
                for verb in (manager.locate_many, manager.access_many, manager.gather):
                    answers.ask(f"{state} {verb.__name__} {end}", verb, form(ids), missing=missing)


def ask_of_evicted(answers, base):
    """Where two dimensions do not fit together, the one that is not there is mapped again."""
    with MmapManager(MemoryConfig(1, base, simulation="never")) as manager:
        manager.load_dimension(20)
        manager.load_dimension(21)
        both = [int(LayerId(number, layer)) for number in (20, 21) for layer in (0, 1)]
        for each in [*both, *both[::-1], LayerId(20, 2), LayerId(21, 2)]:
            answers.ask(f"evicted access {each} {len(answers.found)}", manager.access_layer, each)
        answers.ask("evicted contexts", manager.load_contexts, ["L20-01", "L20-00"])
        batches = {"first": both[:2], "second": both[2:], "both": both, "lacking": [both[0], 5]}
        ask_batches(answers, "evicted", manager, batches)
        stats = manager.get_stats()
        manager.access_layer("L20-00")  # so D21 has to go
        path = region_file(base, "D21")
        elsewhere = path.rename(path.with_suffix(".elsewhere"))
        answers.ask("evicted and gone", manager.access_layer, "L21-00")
        ask_batches(answers, "evicted and gone", manager, {"second": both[2:]})
        elsewhere.rename(path)
        answers.ask("evictions", lambda: [stats.evictions, stats.reloads])


def ask_of_damaged(answers, base):
    """Where somebody changes a file under its mapping, what lies outside is refused."""
    path = region_file(base, "D18")
    raw = path.read_bytes()
    table = MmapRegion.from_file(18, path).layout.table_offset
    end_field = s.LAYER.fields["content_end"][1]
    ids = [int(LayerId(18, layer)) for layer in range(4)]
    with MmapManager(MemoryConfig(64, base, simulation="never")) as manager:
        manager.load_dimension(18)
        with path.open("r+b") as file:
            file.seek(table + 2 * s.LAYER_BYTES + end_field)
            file.write(b"\xff" * 8)
        for each in map(LayerId.from_packed, ids):
            answers.ask(f"damaged access {each}", manager.access_layer, each)
            answers.ask(f"damaged context {each}", manager.load_layer_context, each)
        answers.ask("damaged count", manager.count, b"x")
        answers.ask("damaged contexts", manager.load_contexts, ["L18-00", "L18-02"])
        ask_batches(answers, "damaged", manager, {"all": ids, "whole": ids[:2]})
        with path.open("r+b") as file:
            file.write(raw)


# -- tiers -----------------------------------------------------------------------------------------


def answer_across_the_switch(base):
    """Ask in many threads while kernels are compiled; return what all rounds have answered."""
    seen = [[] for _ in range(N_THREADS)]
    failures = []
    has_begun = threading.Barrier(N_THREADS + 1)
    is_switched = threading.Event()

    def read(mine):
        try:
            folder = base / f"thread{mine}"
            build(folder)
            seen[mine].append(ask_all(folder))
            has_begun.wait()
            while not is_switched.is_set():
                seen[mine].append(ask_all(folder))
            seen[mine].append(ask_all(folder))
        except BaseException as error:
            failures.append(repr(error))
            has_begun.abort()
            raise

    threads = [threading.Thread(target=read, args=(mine,)) for mine in range(N_THREADS)]
    for thread in threads:
        thread.start()
    has_begun.wait()
    assert not _jit.is_promoted() and "numba" not in sys.modules
    warmup()
    is_switched.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    first = seen[0][0]
    for answers in (each for mine in seen for each in mine):
        check_same(answers, first)
    assert all(len(mine) >= 3 for mine in seen)
    return first


def check_same(answers, expected):
    for question, answer in expected.items():
        assert answers.get(question) == answer, (question, answers.get(question), answer)
    assert answers.keys() == expected.keys()


def answer_until_compiled(base):
    """Ask until batches have added up to what is worth compiling for, and once more."""
    first = ask_all(base)
    assert "numba" not in sys.modules
    with MmapManager(MemoryConfig(64, base, simulation="never")) as manager:
        manager.load_dimension(15)
        ids = np.repeat(FOUND[:8], _jit.WORTH_COMPILING)
        found = manager.locate_many(ids)
        assert _jit.is_promoted()
        assert (found == np.repeat(manager.locate_many(FOUND[:8]), _jit.WORTH_COMPILING)).all()
    check_same(ask_all(base), first)
    return first


class Records(logging.Handler):
    """Counts records by event."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def emit(self, record):
        self.counts[record.event] = self.counts.get(record.event, 0) + 1


def main():
    base, tier = Path(sys.argv[1]), sys.argv[2]
    records = Records()
    logging.getLogger("jessymem").addHandler(records)
    if tier == "compiled":
        warmup()
        assert all(map(_jit.is_promoted, _jit.MODULES))
    if tier == "uncached":
        assert _jit.promote(_jit.READING) and _jit.promote(_jit.PARSING)
    if tier == "switched":
        answers = answer_across_the_switch(base)
    elif tier == "grown":
        answers = answer_until_compiled(base)
    else:
        answers = ask_all(base)
    if tier in ("plain", "disabled"):
        assert "numba" not in sys.modules
    sys.stdout.write(json.dumps([answers, records.counts.get("kernel_cache_failed", 0)]))


if __name__ == "__main__":
    main()
