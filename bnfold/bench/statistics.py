"""Numbers out of samples. Pure functions of arrays; nothing here knows time or onnxruntime.

The figure that bnfold reports is the median of paired ratios (original over folded, one pair per round), a ratio with
an interval as Kalibera and Jones recommend ("Rigorous benchmarking in reasonable time", ISMM 2013). Ratios are handled
as logarithms, so that 2x faster and 2x slower weigh the same.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = [
    "Interval", "bootstrap_median", "drift", "mad", "outlier_share", "percentile", "ratio_interval", "spearman",
]  # fmt: skip

NORMAL_MAD = 1.4826  # MAD of a normal distribution times this is its standard deviation
OUTLIER = 5.0  # in those standard deviations

# 97.5% quantiles of Student's t distribution, by degrees of freedom from 2 on.
STUDENT = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
FEWEST_SESSIONS = 3

Interval = tuple[float, float, float]
"""Low, median, high."""


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation from the median, in the unit of ``values``."""
    array = np.asarray(values, float)
    return float(np.median(np.abs(array - np.median(array))))


def percentile(values: Sequence[float], share: float, at_least: int) -> float | None:
    """The ``share`` quantile, or None below ``at_least`` samples.

    MLPerf's early stopping rule asks for 64 queries before a 90th percentile means anything.
    """
    if len(values) < at_least:
        return None
    return float(np.quantile(np.asarray(values, float), share))


def bootstrap_median(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the median, with no resampling: the limit of infinitely many resamples.

    The median of a resample is an order statistic, and how often it lies at or below the k-th smallest of the n values
    follows a binomial distribution with success rate k/n (Efron, "The jackknife, the bootstrap and other resampling
    plans", 1982, section 10.3; Maritz and Jarrett, JASA 73, 1978). So the interval is exact, the same on every call,
    and cheap enough to be looked at after every round. For even n the distribution of the lower middle value gives the
    lower end and, mirrored, the upper one, which keeps the interval symmetric under a change of sign.

    Raises:
        ValueError: no values.
    """
    ordered = np.sort(np.asarray(values, float))
    if not ordered.size:
        raise ValueError("no samples")
    rank = _lower_rank(ordered.size, confidence)
    return float(ordered[rank]), float(np.median(ordered)), float(ordered[ordered.size - 1 - rank])


@lru_cache(maxsize=4096)
def _lower_rank(size: int, confidence: float) -> int:
    """Index of the order statistic at the lower end of the interval."""
    tail = (1.0 - confidence) / 2
    middle = (size + 1) // 2  # that many values at or below x put the (lower) median at or below x
    low, high = 0, size - 1
    while low < high:  # smallest k with P(median of a resample <= k-th value) > tail
        k = (low + high) // 2
        if _binomial_tail(size, (k + 1) / size, middle) > tail:
            high = k
        else:
            low = k + 1
    return min(low, (size - 1) // 2)


def _binomial_tail(trials: int, rate: float, at_least: int) -> float:
    """P(X >= at_least) for a binomial X; 0 < rate < 1."""
    counts = np.arange(at_least, trials + 1)
    logs = _log_factorials(trials)
    terms = logs[trials] - logs[counts] - logs[trials - counts]
    terms = terms + counts * math.log(rate) + (trials - counts) * math.log1p(-rate)
    return float(np.exp(terms).sum())


@lru_cache(maxsize=16)
def _log_factorials(size: int) -> Floats:
    """log(0!) to log(size!)."""
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, size + 1)))))


def ratio_interval(original: Sequence[float], folded: Sequence[float], sessions: Sequence[int] = ()) -> Interval:
    """Median of the paired ratios original / folded with its 95% interval; above 1 the folded model is faster.

    The same model is a little faster or slower in every session (where its memory lies, which core a thread gets), and
    rounds of one pair of sessions cannot tell that from a gain. So, where ``sessions`` says how many rounds each of at
    least three pairs of sessions took, the interval also covers Student's interval of the pairs' own medians.
    """
    logs = np.log(np.asarray(original, float)) - np.log(np.asarray(folded, float))
    low, median, high = bootstrap_median(logs.tolist())
    if len(sessions) >= FEWEST_SESSIONS:
        medians = [float(np.median(part)) for part in np.split(logs, np.cumsum(sessions)[:-1])]
        freedom = min(len(medians) - 3, len(STUDENT) - 1)
        reach = STUDENT[freedom] * float(np.std(medians, ddof=1)) / math.sqrt(len(medians))
        centre = float(np.mean(medians))
        low, high = min(low, centre - reach), max(high, centre + reach)
    return math.exp(low), math.exp(median), math.exp(high)


def spearman(values: Sequence[float]) -> float:
    """Rank correlation of the values with their position, -1 to 1; 0 when they are all the same."""
    array = np.asarray(values, float)
    if array.size < 3 or np.ptp(array) == 0:
        return 0.0
    ranks = np.argsort(np.argsort(array, kind="stable"), kind="stable").astype(float)
    return float(np.corrcoef(ranks, np.arange(array.size))[0, 1])


def drift(values: Sequence[float]) -> float:
    """Median of the last third over the median of the first third, minus 1; 0 unless there is a trend.

    A trend is a Spearman correlation of at least 0.3 that is also three standard errors from nothing.
    """
    size = len(values)
    correlation = spearman(values)
    if size < 9 or abs(correlation) < max(0.3, 3 / math.sqrt(size - 1)):
        return 0.0
    third = size // 3
    return float(np.median(values[-third:]) / np.median(values[:third]) - 1)


def outlier_share(values: Sequence[float]) -> float:
    """Share of values that lie more than five standard deviations (by MAD) above the median."""
    array = np.asarray(values, float)
    spread = NORMAL_MAD * mad(values)
    if not array.size or spread == 0:
        return 0.0
    return float(np.mean(array > np.median(array) + OUTLIER * spread))
