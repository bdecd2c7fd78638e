"""Statistics on synthetic samples: against plain resampling, and against what is known of the distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.bench.statistics import (
    bootstrap_median,
    drift,
    mad,
    outlier_share,
    percentile,
    ratio_interval,
    spearman,
)

FINITE = st.floats(-1e6, 1e6)
TIMES = st.floats(1e-6, 1e3)


@pytest.mark.parametrize("size", [5, 11, 20, 41, 100])
def test_interval_is_the_limit_of_resampling(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size)
    resampled = np.random.default_rng(1).choice(values, (40_000, size))
    low, median, high = bootstrap_median(values)
    expected = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    ordered = np.sort(values)
    assert median == np.median(values)
    assert abs(np.searchsorted(ordered, low) - np.searchsorted(ordered, expected[0])) <= 1
    assert abs(np.searchsorted(ordered, high) - np.searchsorted(ordered, expected[1])) <= 1


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    draws = np.random.default_rng(7).lognormal(size=(2_000, 31))
    intervals = [bootstrap_median(row) for row in draws]
    covered = np.mean([low <= 1.0 <= high for low, _, high in intervals])
    assert 0.92 <= covered <= 0.985


@given(st.lists(FINITE, min_size=1, max_size=60))
def test_interval_holds_the_median_and_mirrors(values: list[float]) -> None:
    low, median, high = bootstrap_median(values)
    mirrored = bootstrap_median([-value for value in values])
    assert min(values) <= low <= median <= high <= max(values)
    assert mirrored == (-high, -median, -low)


def test_interval_narrows_with_more_samples() -> None:
    values = np.random.default_rng(0).normal(size=4_000)
    widths = [high - low for low, _, high in (bootstrap_median(values[:n]) for n in (40, 400, 4_000))]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_no_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        bootstrap_median([])


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=30))
def test_swapping_the_models_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    original, folded = zip(*pairs, strict=True)
    low, median, high = ratio_interval(original, folded)
    assert ratio_interval(folded, original) == pytest.approx((1 / high, 1 / median, 1 / low))


def test_what_differs_from_session_to_session_is_in_the_interval() -> None:
    """Five pairs of sessions with ratios 1.00 to 1.04: Student's interval with four degrees of freedom."""
    ratios = np.repeat([1.0, 1.01, 1.02, 1.03, 1.04], 20)
    alone = ratio_interval(list(ratios), [1.0] * 100)
    low, median, high = ratio_interval(list(ratios), [1.0] * 100, (20,) * 5)
    logs = np.log([1.0, 1.01, 1.02, 1.03, 1.04])
    reach = 2.776 * logs.std(ddof=1) / 5**0.5
    assert (low, median, high) == pytest.approx((np.exp(logs.mean() - reach), 1.02, np.exp(logs.mean() + reach)))
    assert low < alone[0]
    assert high > alone[2]


@pytest.mark.parametrize("sessions", [(), (50,), (25, 25)])
def test_two_pairs_of_sessions_say_nothing_about_sessions(sessions: tuple[int, ...]) -> None:
    ratios = list(np.linspace(1, 2, 50))
    assert ratio_interval(ratios, [1.0] * 50, sessions) == ratio_interval(ratios, [1.0] * 50)


def test_sessions_cover_the_truth_where_rounds_do_not() -> None:
    """Two equal models whose sessions differ by 2%, rounds by 0.5%: 1 is in the interval 95 times of 100."""
    draw = np.random.default_rng(0)
    alone = aware = 0
    for _ in range(400):
        ratios = np.exp(np.repeat(draw.normal(0, 0.02, 5), 30) + draw.normal(0, 0.005, 150))
        low, _, high = ratio_interval(list(ratios), [1.0] * 150)
        alone += low <= 1 <= high
        low, _, high = ratio_interval(list(ratios), [1.0] * 150, (30,) * 5)
        aware += low <= 1 <= high
    assert aware >= 0.94 * 400
    assert alone < 0.5 * 400


def test_ratio_ignores_noise_that_both_share() -> None:
    noise = np.random.default_rng(3).lognormal(sigma=1.0, size=50)
    assert ratio_interval(3 * noise, 2 * noise) == pytest.approx((1.5, 1.5, 1.5))


def test_mad_ignores_one_outlier() -> None:
    assert mad([1.0, 2.0, 3.0, 4.0, 1e9]) == 1.0


def test_percentile_needs_enough_samples() -> None:
    assert percentile(range(63), 0.9, 64) is None
    assert percentile(range(101), 0.9, 64) == pytest.approx(90)


def test_spearman_sees_order_not_distance() -> None:
    assert spearman([1, 10, 100, 1e9]) == pytest.approx(1)
    assert spearman([4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([5, 5, 5, 5]) == 0
    assert spearman([1, 2]) == 0


def test_drift_is_reported_only_for_a_trend() -> None:
    random = np.random.default_rng(5)
    flat = 1 + 0.01 * random.normal(size=90)
    assert drift(flat) == 0
    assert drift(flat * np.linspace(1, 1.3, 90)) == pytest.approx(0.2, abs=0.02)
    assert drift([3.0, 2.0, 1.0]) == 0


def test_outlier_share_counts_only_slow_samples() -> None:
    values = [1.0, 1.01, 0.99, 1.02, 0.98] * 10
    assert outlier_share(values) == 0
    assert outlier_share([*values[:45], *[9.0] * 5]) == pytest.approx(0.1)
    assert outlier_share([*values[:45], *[0.01] * 5]) == 0
    assert outlier_share([1.0] * 10) == 0
