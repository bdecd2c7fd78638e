"""Time any number of models in one go: every round runs each of them once, in a new random order."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from bnfold.bench.measure import collector_off, narrow, sample
from bnfold.bench.statistics import ratio_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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


def race(runs: Mapping[str, Run], *, budget: float, precision: float) -> dict[str, Result]:
    """Run until every ratio to the first model is known to ``precision``, or ``budget`` seconds are over."""
    return results([timed(runs, budget=budget, precision=precision)])


def race_anew(
    open_all: Callable[[], Mapping[str, Run]], *, budget: float, precision: float, sessions: int = 5
) -> dict[str, Result]:
    """The same in several sessions of each model, since every session is a little faster or slower than another."""
    share = budget / sessions
    return results([timed(open_all(), budget=share, precision=precision, seed=n + 1) for n in range(sessions)])


def results(sessions: Sequence[Mapping[str, list[float]]]) -> dict[str, Result]:
    """Medians and ratios to the first model over all sessions."""
    joined = {name: list(chain.from_iterable(found[name] for found in sessions)) for name in sessions[0]}
    first = next(iter(joined))
    rounds = [len(found[first]) for found in sessions]
    speedups = {name: ratio_interval(joined[first], values, rounds) for name, values in joined.items()}
    return {
        name: Result(float(np.median(joined[name])) / 1e9, (median, low, high), sum(rounds))
        for name, (low, median, high) in speedups.items()
    }


def timed(runs: Mapping[str, Run], *, budget: float, precision: float, seed: int = 0) -> dict[str, list[float]]:
    """Nanoseconds per run, in rounds."""
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
            if count >= FIRST_LOOK and count % 4 == 0 and all_narrow(found, precision):
                break
    return found


def loops_of(run: Run, clock: Callable[[], int]) -> int:
    """Runs per sample, so that a sample takes at least two milliseconds."""
    once = sample(run, 1, clock)
    if once < MIN_SAMPLE * 1e9:
        once = min(sample(run, 1, clock) for _ in range(3))
    return max(1, round(MIN_SAMPLE * 1e9 / once))


def all_narrow(found: Mapping[str, list[float]], precision: float) -> bool:
    """Whether the intervals of all ratios are narrow enough."""
    first, *others = found.values()
    return all(narrow(ratio_interval(first, other), precision) for other in others)
