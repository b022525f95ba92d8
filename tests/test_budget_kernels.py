"""The budget in words: limits are hit exactly, the peak is exact, and threads pass neither."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import SLOWNESS, TIERS, compile_loop, running
from support.pools import set_limits
from support.threads import run_together

from jessymem.kernels import atomics, budget
from jessymem.kernels import schema as s

N_THREADS = 8


@pytest.fixture(params=TIERS)
def tier(request):
    with running(request.param) as tier:
        yield tier


class Words:
    """The words of a budget, without a pool; limits that are not named are far away."""

    def __init__(self, tier, **named):
        self.state = np.zeros(s.SEGMENTS_AT, np.int64)
        set_limits(self.state, 2**40)
        for name, value in named.items():
            self.state[getattr(s, name)] = value
        self.argument = tier.argument(self.state)

    def __getitem__(self, name):
        return int(self.state[getattr(s, name)])

    @property
    def counters(self):
        return tuple(self[name] for name in ("USED", "PEAK", "RESIDENT", "OF_REGIONS"))


# -- one thread ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "n_bytes", "limit", "code"),
    [
        (0, 0, 0, s.OK),
        (0, 1, 0, s.OVER_LIMIT),
        (0, 100, 100, s.OK),
        (0, 101, 100, s.OVER_LIMIT),
        (99, 1, 100, s.OK),
        (99, 2, 100, s.OVER_LIMIT),
        (100, 0, 100, s.OK),
        (100, 1, 100, s.OVER_LIMIT),
        (150, 1, 100, s.OVER_LIMIT),  # regions may fill more than blocks
        (0, 1, -1, s.OVER_LIMIT),  # a closed allocator
        (2**40, 2**62, 2**40, s.OVER_LIMIT),
    ],
)
@pytest.mark.parametrize("limit_at", ["LIMIT", "CRITICAL_LIMIT", "QUIET_LIMIT"])
def test_reserve_goes_up_to_its_limit_and_no_byte_further(
    tier, used, n_bytes, limit, code, limit_at
):
    words = Words(tier, USED=used, PEAK=used, RESIDENT=used, **{limit_at: limit})
    before = words.state.copy()
    assert budget.reserve(words.argument, n_bytes, getattr(s, limit_at)) == code
    if code == s.OK:
        before[s.USED] = before[s.PEAK] = used + n_bytes
    assert words.state.tolist() == before.tolist()


@pytest.mark.parametrize(
    ("peak", "used", "after"), [(0, 0, 0), (0, 7, 7), (7, 7, 7), (7, 6, 7), (7, 8, 8)]
)
def test_the_peak_only_rises(tier, peak, used, after):
    words = Words(tier, PEAK=peak)
    budget.raise_peak(words.argument, used)
    assert words["PEAK"] == after


def test_release_keeps_the_peak(tier):
    words = Words(tier)
    budget.reserve(words.argument, 100, s.LIMIT)
    assert budget.release(words.argument, 30) == s.OK
    assert words.counters == (70, 100, 0, 0)
    budget.reserve(words.argument, 29, s.LIMIT)
    assert words.counters == (99, 100, 0, 0)
    budget.reserve(words.argument, 2, s.LIMIT)
    assert words.counters == (101, 101, 0, 0)


@pytest.mark.parametrize(
    ("used", "n_bytes", "below", "code"),
    [
        (100, 10, -1, s.OK),
        (100, 100, -1, s.OK),
        (100, 10, 90, s.OK),  # exactly there is not below
        (100, 11, 90, s.IS_REARMED),
        (100, 100, 1, s.IS_REARMED),
        (100, 100, 0, s.OK),
        (50, 1, 90, s.IS_REARMED),  # and again, until somebody takes note
    ],
)
def test_a_fall_below_the_mark_is_told(tier, used, n_bytes, below, code):
    words = Words(tier, USED=used, PEAK=used, OF_REGIONS=used, RESIDENT=used, REARM_BELOW=below)
    assert budget.release(words.argument, n_bytes) == code
    assert words.counters == (used - n_bytes, used, used, used)


@pytest.mark.parametrize("n_bytes", [9, 10, 11])
def test_discharge_tells_of_a_fall_as_release_does(tier, n_bytes):
    words = Words(tier, USED=100, PEAK=100, OF_REGIONS=60, RESIDENT=120, REARM_BELOW=90)
    code = s.IS_REARMED if n_bytes > 10 else s.OK
    assert budget.discharge(words.argument, n_bytes) == code
    assert words.counters == (100 - n_bytes, 100, 120 - n_bytes, 60 - n_bytes)


@pytest.mark.parametrize(
    ("resident", "n_bytes", "limit", "code"),
    [
        (0, 0, 0, s.OK),
        (0, 100, 100, s.OK),
        (0, 101, 100, s.RETAINED),
        (99, 1, 100, s.OK),
        (100, 1, 100, s.RETAINED),
        (100, 0, 100, s.OK),
    ],
)
def test_admit_goes_up_to_the_limit_of_what_is_resident(tier, resident, n_bytes, limit, code):
    words = Words(tier, RESIDENT=resident, RESIDENT_LIMIT=limit)
    before = words.state.copy()
    assert budget.admit(words.argument, n_bytes) == code
    if code == s.OK:
        before[s.RESIDENT] += n_bytes
    assert words.state.tolist() == before.tolist()


def test_dismiss_is_the_opposite_of_admit(tier):
    words = Words(tier)
    before = words.state.copy()
    assert budget.admit(words.argument, 4096) == s.OK
    budget.dismiss(words.argument, 4096)
    assert words.state.tolist() == before.tolist()


@pytest.mark.parametrize(
    ("used", "resident", "code"),
    [
        (0, 0, s.OK),
        (90, 90, s.OK),
        (91, 91, s.OVER_LIMIT),
        (0, 91, s.RETAINED),  # pages of freed blocks are in the way
        (90, 91, s.RETAINED),
        (91, 95, s.OVER_LIMIT),  # they are too, but giving them back would not help
    ],
)
def test_charge_counts_everywhere_or_nowhere(tier, used, resident, code):
    words = Words(tier, USED=used, PEAK=used, RESIDENT=resident, LIMIT=100, RESIDENT_LIMIT=100)
    assert budget.charge(words.argument, 10, s.LIMIT) == code
    if code == s.OK:
        assert words.counters == (used + 10, used + 10, resident + 10, 10)
        assert budget.discharge(words.argument, 10) == s.OK
        assert words.counters == (used, used + 10, resident, 0)
    else:
        assert words.counters == (used, used, resident, 0)


def test_charge_gives_back_what_became_resident_where_the_limit_is_passed(tier):
    # What may be resident is more than what may be used: only `reserve` refuses.
    words = Words(tier, USED=95, PEAK=95, RESIDENT=95, LIMIT=100, RESIDENT_LIMIT=2**40)
    assert budget.charge(words.argument, 10, s.LIMIT) == s.OVER_LIMIT
    assert words.counters == (95, 95, 95, 0)


@pytest.mark.parametrize("name", TIERS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    limit=st.integers(0, 300),
    resident_limit=st.integers(0, 300),
    steps=st.lists(st.tuples(st.sampled_from(["charge", "discharge"]), st.integers(0, 120))),
)
def test_charges_are_a_sum_of_what_was_admitted(name, limit, resident_limit, steps):
    with running(name) as tier:
        words = Words(tier, LIMIT=limit, RESIDENT_LIMIT=resident_limit)
        charged, peak = [], 0
        for step, n_bytes in steps:
            total = sum(charged)
            if step == "charge":
                code = budget.charge(words.argument, n_bytes, s.LIMIT)
                if total + n_bytes > limit:
                    assert code == s.OVER_LIMIT
                elif total + n_bytes > resident_limit:
                    assert code == s.RETAINED
                else:
                    assert code == s.OK
                    charged.append(n_bytes)
            elif charged:
                budget.discharge(words.argument, charged.pop(n_bytes % len(charged)))
            peak = max(peak, sum(charged))
            assert words.counters == (sum(charged), peak, sum(charged), sum(charged))


# -- another thread between two steps --------------------------------------------------------------


def between_look_and_swap(monkeypatch, step):
    """Let `step` happen once, before the next compare-and-swap."""
    real = atomics.compare_and_swap

    def interrupted(*arguments):
        monkeypatch.setattr(atomics, "compare_and_swap", real)
        step()
        return real(*arguments)

    monkeypatch.setattr(atomics, "compare_and_swap", interrupted)


@pytest.fixture
def plain():
    with running("plain") as tier:
        yield tier


@pytest.mark.parametrize(("others", "code", "used"), [(40, s.OK, 100), (41, s.OVER_LIMIT, 41)])
def test_a_reservation_that_was_overtaken_is_checked_again(plain, monkeypatch, others, code, used):
    words = Words(plain, LIMIT=100)
    between_look_and_swap(monkeypatch, lambda: budget.reserve(words.argument, others, s.LIMIT))
    assert budget.reserve(words.argument, 60, s.LIMIT) == code
    assert words.counters == (used, used, 0, 0)


@pytest.mark.parametrize(("others", "code", "resident"), [(40, s.OK, 100), (41, s.RETAINED, 41)])
def test_an_admission_that_was_overtaken_is_checked_again(
    plain, monkeypatch, others, code, resident
):
    words = Words(plain, RESIDENT_LIMIT=100)
    between_look_and_swap(monkeypatch, lambda: budget.admit(words.argument, others))
    assert budget.admit(words.argument, 60) == code
    assert words.counters == (0, 0, resident, 0)


@pytest.mark.parametrize(("others", "peak"), [(50, 70), (90, 90)])
def test_of_two_peaks_at_once_the_higher_stays(plain, monkeypatch, others, peak):
    words = Words(plain)
    between_look_and_swap(monkeypatch, lambda: budget.raise_peak(words.argument, others))
    budget.raise_peak(words.argument, 70)
    assert words["PEAK"] == peak


# -- threads ---------------------------------------------------------------------------------------


def reserve_until_over(state, n_bytes):
    """Reserve until the limit is hit; return how often it was not."""
    n_reserved = 0
    while budget.reserve(state, n_bytes, s.LIMIT) == s.OK:
        n_reserved += 1
    return n_reserved


def raise_peaks(state, first, step, n_rounds):
    """Raise the peak to a rising series of values."""
    for i in range(n_rounds):
        budget.raise_peak(state, first + i * step)


def churn(state, n_bytes, n_rounds, limit):
    """Charge and discharge; return how many charges went through, or -1 if a limit was passed."""
    n_charged = 0
    for _ in range(n_rounds):
        if budget.charge(state, n_bytes, s.LIMIT) == s.OK:
            n_charged += 1
            if atomics.load(state, s.USED) > limit or atomics.load(state, s.RESIDENT) > limit:
                return -1
            budget.discharge(state, n_bytes)
    return n_charged


@pytest.fixture
def fastest():
    with running(TIERS[-1]) as tier:
        yield tier


@pytest.mark.parametrize(("n_bytes", "remainder"), [(1, 0), (7, 3), (64, 40)])
def test_threads_together_fill_the_limit_exactly(fastest, n_bytes, remainder):
    n_fitting = 400_000 // SLOWNESS
    limit = n_fitting * n_bytes + min(remainder, n_bytes - 1)
    words = Words(fastest, LIMIT=limit)
    loop, argument = compile_loop(reserve_until_over), words.argument
    counts = run_together([lambda: loop(argument, n_bytes)] * N_THREADS)
    assert sum(counts) == n_fitting
    assert words.counters == (n_fitting * n_bytes, n_fitting * n_bytes, 0, 0)


def test_the_highest_value_of_all_threads_is_the_peak(fastest):
    n_rounds = 200_000 // SLOWNESS
    words = Words(fastest)
    loop, argument = compile_loop(raise_peaks), words.argument
    run_together([lambda i=i: loop(argument, i, N_THREADS, n_rounds) for i in range(N_THREADS)])
    assert words["PEAK"] == N_THREADS * n_rounds - 1


@pytest.mark.parametrize("n_fitting", [1, 3, N_THREADS - 1])
def test_threads_that_compete_never_pass_the_limit_and_leave_nothing(fastest, n_fitting):
    # Fewer charges fit than there are threads; what is charged is a multiple of the same, so the
    # peak is exact where it is a multiple too.
    n_bytes, n_rounds = 4096, 100_000 // SLOWNESS
    limit = n_fitting * n_bytes + n_bytes - 1
    words = Words(fastest, LIMIT=limit, RESIDENT_LIMIT=limit)
    loop, argument = compile_loop(churn), words.argument
    counts = run_together([lambda: loop(argument, n_bytes, n_rounds, limit)] * N_THREADS)
    assert min(counts) >= 0
    assert sum(counts) > 0
    used, peak, resident, of_regions = words.counters
    assert (used, resident, of_regions) == (0, 0, 0)
    assert peak % n_bytes == 0
    assert n_bytes <= peak <= n_fitting * n_bytes
