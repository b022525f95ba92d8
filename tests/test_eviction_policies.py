"""The eviction policies: examples worked by hand, and any operations against slow oracles."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.internals import n_kept, replace_marks

from jessymem.config import EVICTION_POLICIES
from jessymem.engine.policies import make_policy

# -- oracles ---------------------------------------------------------------------------------------


class NaiveLru:
    """A list, the latest access last."""

    def __init__(self):
        self.order = []

    def admit(self, dimension):
        if dimension in self.order:
            self.order.remove(dimension)
        self.order.append(dimension)

    def touch(self, dimension, n_reads):
        if dimension in self.order:
            self.admit(dimension)

    def forget(self, dimension):
        if dimension in self.order:
            self.order.remove(dimension)

    def choose(self, candidates):
        return next(each for each in self.order if each in candidates)


class NaiveLfu:
    """Every count there ever was, and what is admitted, in order."""

    def __init__(self):
        self.admitted = []
        self.counts = {}
        self.n_loads = 0

    def admit(self, dimension):
        if dimension not in self.admitted:
            self.n_loads += 1
            if self.n_loads > len(self.admitted):
                self.n_loads = 0
                self.counts = {each: n // 2 for each, n in self.counts.items()}
            self.admitted.append(dimension)
        self.touch(dimension, 1)

    def touch(self, dimension, n_reads):
        if dimension in self.admitted:
            self.counts[dimension] = self.counts.get(dimension, 0) + n_reads

    def forget(self, dimension):
        if dimension in self.admitted:
            self.admitted.remove(dimension)

    def choose(self, candidates):
        left = [each for each in self.admitted if each in candidates]
        fewest = min(self.counts[each] for each in left)
        return next(each for each in left if self.counts[each] == fewest)


class NaiveSieve:
    """The paper's algorithm on a list, the oldest first; no hand: it starts at the oldest."""

    def __init__(self):
        self.queue = []
        self.visited = set()
        self.hand = None

    def admit(self, dimension):
        if dimension in self.queue:
            self.visited.add(dimension)
        else:
            self.queue.append(dimension)

    def touch(self, dimension, n_reads):
        if dimension in self.queue:
            self.visited.add(dimension)

    def forget(self, dimension):
        if dimension in self.queue:
            if self.hand == dimension:
                self.hand = self.newer(dimension)
            self.queue.remove(dimension)
            self.visited.discard(dimension)

    def choose(self, candidates):
        self.hand = self.queue[0] if self.hand is None else self.hand
        while self.hand not in candidates or self.hand in self.visited:
            if self.hand in candidates:
                self.visited.remove(self.hand)
            newer = self.newer(self.hand)
            self.hand = self.queue[0] if newer is None else newer
        return self.hand

    def newer(self, dimension):
        return next(iter(self.queue[self.queue.index(dimension) + 1 :]), None)


ORACLES = {"lru": NaiveLru, "lfu": NaiveLfu, "sieve": NaiveSieve}
DIMENSIONS = range(1, 8)


def test_there_is_a_policy_for_every_name():
    assert ORACLES.keys() == set(EVICTION_POLICIES)
    for name in EVICTION_POLICIES:
        assert make_policy(name).name == name
    with pytest.raises(KeyError):
        make_policy("LRU")


def test_importing_policies_loads_no_numpy():
    code = (
        "import jessymem.engine.policies, sys\nassert not {'numpy', 'numba'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- by hand ---------------------------------------------------------------------------------------


def with_admitted(name, dimensions):
    policy = make_policy(name)
    for dimension in dimensions:
        policy.admit(dimension)
    return policy, policy.gate(1_000)


def read(policy, gate, *dimensions):
    for dimension in dimensions:
        policy.mark_of(dimension)[0] = next(gate)


def choose(policy, candidates):
    """Choose from a collection."""
    return policy.choose(candidates.__contains__)


def evict(policy, candidates, n):
    """Evict `n` of the candidates; return them in the order of their going."""
    left = list(candidates)
    gone = []
    for _ in range(n):
        gone.append(choose(policy, left))
        policy.forget(gone[-1])
        left.remove(gone[-1])
    return gone


def test_lru_chooses_what_was_read_longest_ago():
    policy, gate = with_admitted("lru", [1, 2, 3, 4])
    read(policy, gate, 2, 1)
    policy.touch(3)
    assert evict(policy, [1, 2, 3, 4], 4) == [4, 2, 1, 3]


def test_lru_ticks_rise_over_all_gates():
    policy, first = with_admitted("lru", [1, 2, 3])
    second = policy.gate(10)
    read(policy, first, 1)
    read(policy, second, 2)
    read(policy, first, 3, 1)
    assert evict(policy, [1, 2, 3], 3) == [2, 3, 1]


def test_lfu_chooses_what_was_read_least():
    policy, gate = with_admitted("lfu", [1, 2, 3, 4])
    read(policy, gate, 1, 1, 1, 2, 4, 4)
    policy.touch(3, n_reads=7)
    assert evict(policy, [1, 2, 3, 4], 4) == [2, 4, 1, 3]


def test_lfu_chooses_the_older_of_equals():
    policy, gate = with_admitted("lfu", [3, 1, 2])
    read(policy, gate, 2, 3, 1)
    assert evict(policy, [1, 2, 3], 3) == [3, 1, 2]


def test_lfu_counts_survive_an_eviction():
    policy, gate = with_admitted("lfu", [1, 2])
    read(policy, gate, *[1] * 9, *[2] * 4)
    policy.forget(1)
    policy.admit(1)
    assert choose(policy, [1, 2]) == 2


def test_lfu_halves_all_counts_once_as_many_were_loaded_as_are_there():
    policy, gate = with_admitted("lfu", [1, 2, 3])
    read(policy, gate, *[1] * 19, *[2] * 9)  # with the loads: 20, 10, 1
    policy.forget(1)
    assert [policy.mark_of(each)[0] for each in (2, 3)] == [10, 1]
    policy.admit(4)
    assert [policy.mark_of(each)[0] for each in (2, 3, 4)] == [5, 0, 1]
    policy.admit(1)
    assert policy.mark_of(1)[0] == 11


def test_sieve_by_hand():
    policy, gate = with_admitted("sieve", [1, 2, 3, 4, 5, 6, 7])
    read(policy, gate, 1, 2, 7)
    everything = set(range(1, 8))
    assert choose(policy, everything) == 3  # 1 and 2 lose their marks
    policy.forget(3)
    policy.admit(8)
    read(policy, gate, 4)
    everything = everything - {3} | {8}
    assert choose(policy, everything) == 5  # not 1, though unvisited: the hand is past it
    policy.forget(5)
    everything.remove(5)
    assert evict(policy, everything, 6) == [6, 8, 1, 2, 4, 7]


def test_sieve_starts_at_the_oldest_after_the_newest_went():
    policy, gate = with_admitted("sieve", [1, 2, 3])
    read(policy, gate, 1, 2)
    assert evict(policy, [1, 2, 3], 1) == [3]
    policy.admit(4)
    assert evict(policy, [1, 2, 4], 3) == [1, 2, 4]


def test_sieve_passes_over_what_is_no_candidate_and_leaves_its_mark():
    policy, gate = with_admitted("sieve", [1, 2, 3])
    read(policy, gate, 1, 2)
    assert choose(policy, [2]) == 2  # around once, to clear its mark
    assert policy.mark_of(1)[0] is True
    assert policy.mark_of(3)[0] is False


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (2, 1, 3)])
def test_the_hand_survives_every_removal(order):
    policy, gate = with_admitted("sieve", [1, 2, 3])
    read(policy, gate, 1)
    assert choose(policy, [1, 2, 3]) == 2
    for dimension in order:
        policy.forget(dimension)
    assert choose(policy, [1, 2, 3]) is None
    policy.admit(4)
    assert choose(policy, [4]) == 4


class Stubborn:
    """A mark that a reader sets again as soon as it is cleared."""

    def __setitem__(self, at, value):
        pass

    def __getitem__(self, at):
        return True


def test_sieve_does_not_wait_for_readers_that_never_rest():
    policy, _ = with_admitted("sieve", [1, 2, 3])
    replace_marks(policy, {dimension: Stubborn() for dimension in (1, 2, 3)})
    assert choose(policy, [2, 3]) == 2


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_what_turned_out_to_be_held_is_chosen_around(name):
    policy, gate = with_admitted(name, DIMENSIONS)
    read(policy, gate, 2, 2, 5)
    left = set(DIMENSIONS)
    while left:
        left.remove(choose(policy, left))
    assert set(evict(policy, DIMENSIONS, len(DIMENSIONS))) == set(DIMENSIONS)


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_candidates_may_be_of_any_kind_but_not_none(name):
    policy, _ = with_admitted(name, [1, 2])
    for candidates in ([2], (2,), {2}, frozenset([2]), {2: "x"}, {2: "x"}.keys()):
        assert choose(policy, candidates) == 2
    for candidates in ([], {3}):
        assert choose(policy, candidates) is None


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_unknown_dimensions_are_ignored(name):
    policy, _ = with_admitted(name, [1])
    policy.touch(2)
    policy.forget(2)
    with pytest.raises(KeyError):
        policy.mark_of(2)
    assert choose(policy, [1, 2]) == 1


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_a_mark_is_one_dimensions_from_load_to_eviction(name):
    policy, gate = with_admitted(name, [1, 2])
    mark = policy.mark_of(1)
    assert policy.admit(1) is mark
    policy.forget(1)
    assert policy.admit(1) is not mark
    before = policy.mark_of(1)[0]
    mark[0] = next(gate)  # by a reader of the state before the eviction
    assert policy.mark_of(1)[0] == before


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_a_gate_yields_just_as_often_as_asked(name):
    policy = make_policy(name)
    assert [len(list(policy.gate(n))) for n in (0, 1, 1023)] == [0, 1, 1023]


# -- against the oracles ---------------------------------------------------------------------------

SOME_DIMENSION = st.sampled_from(DIMENSIONS)
OPERATION = st.one_of(
    st.tuples(st.just("admit"), SOME_DIMENSION),
    st.tuples(st.just("read"), SOME_DIMENSION, st.integers(0, 1)),
    st.tuples(st.just("touch"), SOME_DIMENSION, st.integers(1, 3)),
    st.tuples(st.just("forget"), SOME_DIMENSION),
    st.tuples(st.just("choose"), st.sets(SOME_DIMENSION, min_size=1)),
    st.tuples(st.just("evict"), st.sets(SOME_DIMENSION, min_size=1)),
)


class Pair:
    """A policy and its oracle, which must choose alike."""

    def __init__(self, name):
        self.policy, self.oracle = make_policy(name), ORACLES[name]()
        self.gates = [self.policy.gate(10**6) for _ in range(2)]
        self.admitted = set()

    def perform(self, verb, what, how=None):
        if verb == "read":
            if what in self.admitted:
                self.policy.mark_of(what)[0] = next(self.gates[how])
                self.oracle.touch(what, 1)
        elif verb == "touch":
            self.policy.touch(what, how)
            self.oracle.touch(what, how)
        elif verb in ("choose", "evict"):
            if candidates := what & self.admitted:
                chosen = choose(self.policy, candidates)
                assert chosen == self.oracle.choose(candidates)
                if verb == "evict":
                    self.perform("forget", chosen)
        else:
            getattr(self.policy, verb)(what)
            getattr(self.oracle, verb)(what)
            (self.admitted.add if verb == "admit" else self.admitted.discard)(what)


@pytest.mark.parametrize("name", EVICTION_POLICIES)
@settings(max_examples=200, deadline=None)
@given(operations=st.lists(OPERATION, max_size=60))
def test_any_operations_choose_as_the_oracle_does(name, operations):
    pair = Pair(name)
    for operation in operations:
        pair.perform(*operation)
    pair.perform("choose", set(DIMENSIONS))


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_a_long_run_chooses_as_the_oracle_does(name):
    chooser = random.Random(5)
    pair = Pair(name)
    for _ in range(20_000):
        dimension = int(chooser.paretovariate(0.5)) % 40
        verb = chooser.choice(["read", "read", "read", "touch", "admit", "evict"])
        if verb == "evict":
            dimensions = sorted(pair.admitted)
            pair.perform(verb, set(chooser.sample(dimensions, len(dimensions) // 2)))
        else:
            pair.perform(verb, dimension, 1)


# -- how much is looked at -------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_of_many_only_those_are_asked_for_that_are_colder(name):
    policy, gate = with_admitted(name, range(1_000))
    asked = []

    def may_go(dimension):
        asked.append(dimension)
        return dimension not in (0, 1)

    for number in range(2, 102):
        chosen = policy.choose(may_go)
        assert chosen == number
        policy.forget(chosen)
    assert len(asked) <= 3 * 100
    asked.clear()
    read(policy, gate, *range(102, 202))
    assert policy.choose(may_go) == 202
    assert len(asked) <= 103


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_loads_and_unloads_leave_nothing_behind(name):
    policy, _ = with_admitted(name, [1, 2])
    for _ in range(1_000):
        policy.admit(3)
        policy.forget(3)
    assert n_kept(policy) < 100
    assert evict(policy, [1, 2, 3], 2) == [1, 2]


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_marks_may_be_written_by_any_thread_at_any_time(name):
    """Readers keep marks of states long gone; values may be lost, and nothing else."""
    policy, _ = with_admitted(name, DIMENSIONS)
    marks = {dimension: policy.mark_of(dimension) for dimension in DIMENSIONS}
    stop = threading.Event()
    errors = []

    def read_on(seed):
        chooser = random.Random(seed)
        try:
            while not stop.is_set():
                for value in policy.gate(500):
                    marks[chooser.choice(DIMENSIONS)][0] = value
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read_on, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        chooser = random.Random(6)
        for _ in range(2_000):
            candidates = set(chooser.sample(DIMENSIONS, 3))
            chosen = choose(policy, candidates)
            assert chosen in candidates
            policy.forget(chosen)
            marks[chosen] = policy.admit(chosen)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert set(evict(policy, DIMENSIONS, len(DIMENSIONS))) == set(DIMENSIONS)


def test_no_two_threads_get_the_same_tick():
    policy = make_policy("lru")
    ticks = []
    threads = [
        threading.Thread(target=lambda: ticks.extend(islice(policy.gate(100), 100)))
        for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ticks)) == len(ticks) == 10_000
