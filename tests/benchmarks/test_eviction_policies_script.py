"""The comparison of eviction policies still runs, and measures what it says."""

from __future__ import annotations

import json

import eviction_policies as comparison
import pytest

from jessymem.engine.policies import make_policy

SIZES = {1: 3, 2: 3, 3: 3}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Parameters for a small run, on a library of a few modules."""
    library = tmp_path_factory.mktemp("library")
    for name in ("json/decoder", "json/encoder", "email/message", "queue", "typing"):
        path = library / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {name}\n" * 2_000)
    return {"library": library, "n_threads": 2, "n_rounds": 40, "n_seeds": 1, "shares": [0.5]}


def test_the_comparison_runs(quick, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{comparison.BEGIN}\nold\n{comparison.END}\nafter\n")
    comparison.main(["--write", str(page), "--json"], **quick)
    found = json.loads(capsys.readouterr().out)
    assert len(found["sizes"]) == 14 + 3
    traces = {outcome["trace"] for outcome in found["outcomes"]}
    assert {"demo", "demo, 2 threads", "search", "contexts", "zipf", "loop"} < traces
    assert len(found["outcomes"]) == len(traces) * len(comparison.POLICIES)
    for outcome in found["outcomes"] + found["outcomes_of_even"]:
        assert outcome["n_accesses"] > 0
        assert 0 <= outcome["reloads"] < 1
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("| trace ") == 4


def test_first_loads_are_not_counted():
    assert comparison.replay([1, 2, 1, 2], SIZES, 6, make_policy("lru")) == (0, 0)


def test_reloads_and_their_bytes_are_counted():
    assert comparison.replay([1, 2, 3, 1, 2, 3], SIZES, 6, make_policy("lru")) == (3, 9)


def test_evicts_until_the_new_one_fits():
    trace = [1, 2, 3, 1, 2]
    assert comparison.replay(trace, {1: 1, 2: 1, 3: 2}, 2, make_policy("lru")) == (2, 2)


def test_belady_looks_ahead():
    trace = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    assert comparison.replay(trace, SIZES, 6, comparison.Belady(trace)) == (3, 9)


def test_belady_is_the_best_where_all_are_of_one_size():
    sizes = dict.fromkeys(range(1, 21), 1)
    traces = {name: [trace] for name, trace in comparison.synthesize(sizes, 2_000, 1).items()}
    reloads = {
        (each.trace, each.policy): each.reloads for each in comparison.compare(traces, sizes, [0.3])
    }
    for (trace, _), found in reloads.items():
        assert reloads[trace, "belady"] <= found


def test_what_is_larger_than_the_memory_is_left_out():
    outcomes = comparison.compare({"t": [[1, 2, 1, 2]]}, {1: 1, 2: 9}, [0.5])
    assert {each.n_accesses for each in outcomes} == {2}
