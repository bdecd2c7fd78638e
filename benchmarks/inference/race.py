"""Time any number of models in one go: every round runs each of them once, in a new random order."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bnfold.bench.measure import collector_off, sample
from bnfold.bench.statistics import ratio_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Run = Callable[[], object]

MIN_SAMPLE = 0.002  # seconds
FIRST_LOOK = 12  # rounds
LEAST = 5  # rounds, whatever the budget: with fewer, an interval lies beside 1 by chance too often
WARM_UP = 4  # rounds thrown away, as long as they take no more than a tenth of the budget


@dataclass(frozen=True, slots=True)
class Result:
    """One model's median in seconds, and its speed against the first model: median, low, high."""

    seconds: float
    speedup: tuple[float, float, float]
    rounds: int


def race(runs: Mapping[str, Run], *, budget: float, precision: float, seed: int = 0) -> dict[str, Result]:
    """Run until every ratio to the first model is known to ``precision``, or ``budget`` seconds are over."""
    clock = time.perf_counter_ns
    names, draw = list(runs), random.Random(seed)
    with collector_off():
        loops = {name: loops_of(runs[name], clock) for name in names}
        found: dict[str, list[float]] = {name: [] for name in names}
        start = clock()
        for name in names * WARM_UP:
            if clock() - start < budget * 1e8:
                sample(runs[name], loops[name], clock)
        end = clock() + int(budget * 1e9)
        while clock() < end or len(found[names[0]]) < LEAST:
            for name in draw.sample(names, len(names)):
                found[name].append(sample(runs[name], loops[name], clock))
            count = len(found[names[0]])
            if count >= FIRST_LOOK and count % 4 == 0 and narrow(found, precision):
                break
    first = found[names[0]]
    return {
        name: Result(float(np.median(values)) / 1e9, ordered(first, values), len(values))
        for name, values in found.items()
    }


def loops_of(run: Run, clock: Callable[[], int]) -> int:
    """Runs per sample, so that a sample takes at least two milliseconds."""
    once = sample(run, 1, clock)
    if once < MIN_SAMPLE * 1e9:
        once = min(sample(run, 1, clock) for _ in range(3))
    return max(1, round(MIN_SAMPLE * 1e9 / once))


def narrow(found: Mapping[str, list[float]], precision: float) -> bool:
    """Whether the intervals of all ratios are narrow enough."""
    first, *others = found.values()
    intervals = (ratio_interval(first, other) for other in others)
    return all(max(high / median, median / low) <= 1 + precision for low, median, high in intervals)


def ordered(first: list[float], other: list[float]) -> tuple[float, float, float]:
    """Speed of ``other`` against ``first`` as median, low, high."""
    low, median, high = ratio_interval(first, other)
    return median, low, high
