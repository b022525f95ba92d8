"""`LatencyHistogram`: how long something took, many times, in log-linear buckets.

A bucket is a 64th as wide as the power of two in which it begins, so that its middle is within
0.8 % of each sample in it, as in G. Tene's HdrHistogram. Nanoseconds below 64 have a bucket each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

_SUB_BITS: Final = 6
_N_SUB: Final = 2**_SUB_BITS
#: The longest that is told apart: 2**40 ns, eighteen minutes; what is longer counts as that.
_MAX_BITS: Final = 40
N_BUCKETS: Final = (_MAX_BITS - _SUB_BITS + 1) * _N_SUB

NS: Final = 1_000_000_000


@lru_cache(1)
def bucket_edges() -> np.typing.NDArray[np.int64]:
    """Return where each bucket begins, and where the last one ends, in nanoseconds.

    Returns
    -------
    ndarray of int64, shape (N_BUCKETS + 1,)
        Rising, read-only.
    """
    linear = np.arange(_N_SUB, dtype=np.int64)
    shifts = np.arange(_MAX_BITS - _SUB_BITS, dtype=np.int64)
    octaves = (linear + _N_SUB) << shifts[:, None]
    edges = np.concatenate([linear, octaves.ravel(), [2**_MAX_BITS]])
    edges.flags.writeable = False
    return edges


@lru_cache(1)
def _middles() -> np.typing.NDArray[np.float64]:
    edges = bucket_edges()
    return (edges[:-1] + edges[1:] - 1) / 2


class LatencyHistogram:
    """How long something took, many times; immutable.

    Parameters
    ----------
    counts : ndarray of int64, shape (N_BUCKETS,)
    total_ns : int
        The sum of the samples.
    max_ns : int
        The longest.

    Attributes
    ----------
    counts : ndarray of int64, shape (N_BUCKETS,)
        How many samples each bucket has; see `bucket_edges`.
    total_seconds, max_seconds : float

    Examples
    --------
    >>> loads = manager.get_stats().latencies["load"]
    >>> loads.n_samples
    2
    >>> 0 < loads.percentile(50) <= loads.max_seconds
    True
    """

    __slots__ = ("counts", "max_ns", "total_ns")

    def __init__(
        self, counts: np.typing.NDArray[np.int64], total_ns: int = 0, max_ns: int = 0
    ) -> None:
        counts.flags.writeable = False
        self.counts = counts
        self.total_ns = total_ns
        self.max_ns = max_ns

    @classmethod
    def of(cls, samples: Sequence[int]) -> LatencyHistogram:
        """Count samples, in nanoseconds; below 0 they count as 0.

        Examples
        --------
        >>> LatencyHistogram.of([40, 50, 3_000_000])
        <LatencyHistogram of 3: median 50 ns, 99 % within 3 ms, at most 3 ms>
        """
        values = np.clip(np.array(samples, np.int64), 0, 2**_MAX_BITS - 1)
        # `frexp` has the mantissa below 1, so its exponent is by one more than that of the octave.
        shifts = np.maximum(np.frexp(values.astype(np.float64))[1] - 1 - _SUB_BITS, -1)
        at = np.where(shifts < 0, values, (shifts << _SUB_BITS) + (values >> np.maximum(shifts, 0)))
        taken = [max(each, 0) for each in samples]
        return cls(np.bincount(at, minlength=N_BUCKETS), sum(taken), max(taken, default=0))

    @property
    def n_samples(self) -> int:
        """How many samples there are.

        Examples
        --------
        >>> LatencyHistogram.of([40, 50, 3_000_000]).n_samples
        3
        """
        return int(self.counts.sum())

    @property
    def total_seconds(self) -> float:
        """Sum of the samples.

        Examples
        --------
        >>> LatencyHistogram.of([40, 60]).total_seconds
        1e-07
        """
        return self.total_ns / NS

    @property
    def max_seconds(self) -> float:
        """The longest sample; 0.0 without one.

        Examples
        --------
        >>> LatencyHistogram.of([40, 50]).max_seconds
        5e-08
        """
        return self.max_ns / NS

    @property
    def mean_seconds(self) -> float:
        """Mean of the samples; 0.0 without one.

        Examples
        --------
        >>> LatencyHistogram.of([40, 50, 60]).mean_seconds
        5e-08
        """
        n_samples = self.n_samples
        return self.total_ns / n_samples / NS if n_samples else 0.0

    def percentile(self, q: float) -> float:
        """Return how long at most `q` percent of the samples took, in seconds.

        Parameters
        ----------
        q : float
            0 to 100.

        Returns
        -------
        float
            Of the sample at that place in order (the nearest rank), within 1 %; 0.0 without one.

        Raises
        ------
        ValueError
            If `q` is not from 0 to 100.

        Examples
        --------
        >>> LatencyHistogram.of(range(1_000, 2_000)).percentile(50)
        1.4955e-06
        """
        return self.percentiles([q])[0]

    def percentiles(self, qs: Sequence[float]) -> list[float]:
        """Return several percentiles in one pass. As `percentile`, also in what is raised.

        Examples
        --------
        >>> [round(each, 9) for each in LatencyHistogram.of(range(64)).percentiles([0, 50, 100])]
        [0.0, 3.1e-08, 6.3e-08]
        """
        wanted = np.asarray(qs, np.float64)
        if not ((wanted >= 0) & (wanted <= 100)).all():
            raise ValueError(f"a percentile is 0 to 100, not {list(qs)}")
        n_samples = self.n_samples
        if not n_samples:
            return [0.0] * len(qs)
        ranks = np.maximum(np.ceil(wanted / 100 * n_samples), 1)
        at = np.searchsorted(np.cumsum(self.counts), ranks)
        longest = np.where(
            at == N_BUCKETS - 1, self.max_ns, np.minimum(_middles()[at], self.max_ns)
        )
        return (longest / NS).tolist()  # type: ignore[no-any-return]

    def below(self, seconds: float) -> int:
        """Return how many samples took no longer than so many seconds.

        None that did not is left out; some that took up to 1.6 % longer may be counted too.

        Examples
        --------
        >>> LatencyHistogram.of([40, 50, 3_000_000]).below(1e-3)
        2
        """
        at = int(np.searchsorted(bucket_edges()[:-1], seconds * NS * (1 + 1e-12), side="right"))
        return int(self.counts[:at].sum())

    def __add__(self, other: object) -> LatencyHistogram:
        """Return both together."""
        if not isinstance(other, LatencyHistogram):
            return NotImplemented
        longest = max(self.max_ns, other.max_ns)
        return LatencyHistogram(self.counts + other.counts, self.total_ns + other.total_ns, longest)

    def __eq__(self, other: object) -> bool:
        """Tell whether another has the same samples, as far as they are told apart."""
        if not isinstance(other, LatencyHistogram):
            return NotImplemented
        mine, theirs = (self.total_ns, self.max_ns), (other.total_ns, other.max_ns)
        return mine == theirs and bool(np.array_equal(self.counts, other.counts))

    __hash__ = None  # type: ignore[assignment]  # it holds an array

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what it is made of."""
        return LatencyHistogram, (self.counts, self.total_ns, self.max_ns)

    def __repr__(self) -> str:
        """Say in one line how many there are, and how long they took."""
        if not self.n_samples:
            return "<LatencyHistogram of no samples>"
        median, tail = (show_seconds(each) for each in self.percentiles([50, 99]))
        return (
            f"<LatencyHistogram of {self.n_samples:,}: median {median}, 99 % within {tail},"
            f" at most {show_seconds(self.max_seconds)}>"
        )


@lru_cache(1)
def no_samples() -> LatencyHistogram:
    """Return a histogram of nothing."""
    return LatencyHistogram.of(())


def show_seconds(seconds: float) -> str:
    """Write a time with three digits, in the unit that suits it."""
    for unit, factor in (("ns", 1e9), ("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"
