"""Histograms of latencies: how exact they are, and that no sample is lost under threads."""

from __future__ import annotations

import pickle
import threading
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import PATIENCE_SECONDS

from jessymem.histograms import N_BUCKETS, LatencyHistogram, bucket_edges
from jessymem.latencies import KINDS, Latencies
from jessymem.metric_families import BOUNDS

NS = 1e9
LONGEST = 2**40 - 1
samples_of = st.lists(st.integers(0, LONGEST) | st.integers(0, 5_000), min_size=1, max_size=200)


def nearest_rank(samples, q):
    return sorted(samples)[max(ceil(q / 100 * len(samples)), 1) - 1]


@given(samples_of, st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_percentiles_are_those_of_the_sorted_samples_within_a_percent(samples, qs):
    found = LatencyHistogram.of(samples).percentiles(qs)
    for q, seconds in zip(qs, found, strict=True):
        assert seconds * NS == pytest.approx(nearest_rank(samples, q), rel=0.01)


@given(samples_of, samples_of)
def test_histograms_add_up_as_their_samples_do(first, second):
    both = LatencyHistogram.of(first) + LatencyHistogram.of(second)
    assert both == LatencyHistogram.of(first + second)
    assert both.n_samples == len(first) + len(second)
    assert both.max_ns == max(first + second)
    assert both.mean_seconds * NS == pytest.approx(np.mean(first + second))


@given(samples_of, st.floats(1e-9, 1000))
def test_how_many_were_quicker(samples, seconds):
    found = LatencyHistogram.of(samples).below(seconds)
    limit = seconds * NS
    assert sum(each <= limit for each in samples) <= found
    assert found <= sum(each <= limit * 1.016 + 1 for each in samples)


def test_every_edge_begins_a_bucket():
    edges = bucket_edges()
    assert len(edges) == N_BUCKETS + 1
    assert all(low < high for low, high in pairwise(edges.tolist()))
    widths = np.diff(edges)
    assert (widths / np.maximum(edges[:-1], 64) <= 1 / 64).all()
    for at in (0, 1, 63, 64, 65, 127, 128, 1000, N_BUCKETS - 1):
        for value in (edges[at], edges[at + 1] - 1):
            assert np.flatnonzero(LatencyHistogram.of([int(value)]).counts).tolist() == [at]


@pytest.mark.parametrize("value", [2**40, 2**62])
def test_what_is_longer_counts_as_the_longest(value):
    found = LatencyHistogram.of([value])
    assert found.counts[-1] == 1
    assert found.max_ns == value
    assert found.percentile(50) == value / 1e9


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_sample_on_a_bound_is_within_it(bound):
    assert LatencyHistogram.of([round(bound * NS)]).below(bound) == 1


def test_an_interrupt_in_the_middle_of_a_count_loses_no_sample(monkeypatch):
    latencies = Latencies()
    for value in range(10):
        latencies.add("load", value)

    def interrupted(samples):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LatencyHistogram, "of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            latencies.histograms()
    latencies.add("load", 10)
    assert latencies.histograms()["load"].total_ns == sum(range(11))
    assert latencies.histograms()["load"].n_samples == 11


def test_without_samples_all_is_nothing():
    empty = LatencyHistogram.of(())
    assert (empty.n_samples, empty.mean_seconds, empty.max_seconds) == (0, 0.0, 0.0)
    assert empty.percentile(99) == 0.0
    assert repr(empty) == "<LatencyHistogram of no samples>"


@pytest.mark.parametrize("q", [-1, 100.1, float("nan")])
def test_a_percentile_is_from_0_to_100(q):
    with pytest.raises(ValueError, match="0 to 100"):
        LatencyHistogram.of([1]).percentile(q)


def test_a_histogram_travels_and_compares():
    one = LatencyHistogram.of([1, 2, 3_000_000])
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != LatencyHistogram.of([1, 2])
    assert one != 3
    with pytest.raises(TypeError):
        one + 1
    with pytest.raises(ValueError, match="read-only"):
        (one + one).counts[0] = 1
    assert repr(one) == ("<LatencyHistogram of 3: median 2 ns, 99 % within 3 ms, at most 3 ms>")
    with pytest.raises(ValueError, match="read-only"):
        one.counts[0] = 1


def test_no_sample_of_many_threads_is_lost():
    latencies, n_each = Latencies(), 5_000

    def add(kind):
        for value in range(n_each):
            latencies.add(kind, value)

    threads = [threading.Thread(target=add, args=(kind,)) for kind in ("read", "load") * 4]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        seen.append(latencies.histograms()["read"].n_samples)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    found = latencies.histograms()
    assert tuple(found) == KINDS
    assert (found["read"].n_samples, found["load"].n_samples) == (4 * n_each, 4 * n_each)
    assert found["read"].total_ns == 4 * sum(range(n_each))
    assert seen == sorted(seen)  # it never goes back
    assert found["batch"].n_samples == 0


def test_what_fails_is_no_sample():
    latencies = Latencies()
    with pytest.raises(KeyError), latencies.measuring("load"):
        raise KeyError
    assert latencies.histograms()["load"].n_samples == 0
    with latencies.measuring("load"):
        pass
    assert latencies.histograms()["load"].n_samples == 1
