"""How things are timed: contestants in turns, so that whatever else the machine does meets both."""

from __future__ import annotations

import gc
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

#: How long one turn takes at least: less, and the clock's own noise shows.
_TURN_SECONDS: Final = 0.002

Work = Callable[[], Any]


@dataclass(frozen=True)
class Race:
    """What a race came to.

    Attributes
    ----------
    rounds : tuple of tuple of float
        Seconds of each contestant, in each round.
    """

    rounds: tuple[tuple[float, ...], ...]

    def seconds(self, contestant: int = 0) -> float:
        """Return a contestant's median."""
        return statistics.median(each[contestant] for each in self.rounds)

    def ratio(self, contestant: int, to: int) -> float:
        """Return the median of the rounds' ratios: the machine's load cancels within one."""
        return statistics.median(each[contestant] / each[to] for each in self.rounds)


def race(*contestants: Work, n_rounds: int = 15) -> Race:
    """Time contestants in turns.

    Each is warmed up first, and called so often in a turn that the turn is no blink; who begins
    changes from round to round. The collector of garbage waits meanwhile.
    """
    repeats = [_repeats_of(work) for work in contestants]
    order = list(range(len(contestants)))
    rounds = []
    with _no_collection():
        for _ in range(n_rounds):
            taken = [0.0] * len(contestants)
            for i in order:
                taken[i] = _turn(contestants[i], repeats[i])
            rounds.append(tuple(taken))
            order.reverse()
    return Race(tuple(rounds))


def race_once(*contestants: Callable[[], tuple[Work, Work]], n_rounds: int) -> Race:
    """Time what cannot be repeated as it is: each contestant prepares one call and cleans up.

    Parameters
    ----------
    *contestants : callable
        Returns the work that is timed, and what is to be called after it.
    n_rounds : int
    """
    order = list(range(len(contestants)))
    rounds = []
    for i_round in range(-1, n_rounds):  # one more, to warm up
        taken = [0.0] * len(contestants)
        for i in order:
            work, clean = contestants[i]()
            with _no_collection():
                taken[i] = _turn(work, 1)
            clean()
        if i_round >= 0:
            rounds.append(tuple(taken))
        order.reverse()
    return Race(tuple(rounds))


def _repeats_of(work: Work) -> int:
    work()
    once = _turn(work, 1)
    return max(1, int(_TURN_SECONDS / max(once, 1e-9)))


def _turn(work: Work, n_times: int) -> float:
    begin = perf_counter()
    for _ in range(n_times):
        work()
    return (perf_counter() - begin) / n_times


@contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# -- threads ---------------------------------------------------------------------------------------


def run_in_threads(works: Sequence[Work]) -> None:
    """Do each work in a thread of its own, all at once; raise what any of them raised."""
    errors: list[BaseException] = []

    def run(work: Work) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
