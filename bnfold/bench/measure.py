"""Time two callables against each other, in pairs.

The clock is an argument, so that all of this is tested without any real time passing.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from bnfold.bench.report import Samples
from bnfold.bench.statistics import Interval, ratio_interval

__all__ = ["Clock", "Pace", "Rounds", "compare", "loops_for", "narrow", "together", "warm_up"]

Run = Callable[[], object]
Clock = Callable[[], int]
"""Nanoseconds, never going back: ``time.perf_counter_ns``."""

FIRST_LOOK = 10  # rounds before the interval is looked at
WINDOW = 5  # samples whose median must settle during warm-up
SETTLED = 0.03  # as a share


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure; seconds. ``precision`` is the half-width of the interval at which to stop, as a share."""

    budget: float
    precision: float
    min_sample: float
    warm_up: float
    max_rounds: int = 20_000


@dataclass(slots=True)
class Rounds:
    """Samples as they come in; nanoseconds per run."""

    original: list[float] = field(default_factory=list)
    folded: list[float] = field(default_factory=list)
    original_first: list[bool] = field(default_factory=list)

    def narrow(self, precision: float) -> bool:
        """Whether the interval of the ratio lies within ``precision`` of its median."""
        return narrow(ratio_interval(self.original, self.folded), precision)

    def samples(self, loops: int) -> Samples:
        """The same in seconds."""
        original, folded = (tuple(value / 1e9 for value in side) for side in (self.original, self.folded))
        return Samples(original, folded, tuple(self.original_first), loops, (len(original),))


def narrow(interval: Interval, precision: float) -> bool:
    """Whether an interval lies within ``precision`` of its median."""
    low, median, high = interval
    return max(high / median, median / low) <= 1 + precision


def together(parts: Sequence[Samples]) -> Samples:
    """Samples of several pairs of sessions, one after another."""
    return Samples(
        original=tuple(chain.from_iterable(part.original for part in parts)),
        folded=tuple(chain.from_iterable(part.folded for part in parts)),
        original_first=tuple(chain.from_iterable(part.original_first for part in parts)),
        loops=parts[0].loops,
        sessions=tuple(chain.from_iterable(part.sessions for part in parts)),
    )


def compare(
    original: Run, folded: Run, pace: Pace, *, seed: int, loops: int | None = None, clock: Clock = time.perf_counter_ns
) -> tuple[Samples, str]:
    """Time both in rounds of random order until the ratio is known or the budget ends.

    The order is drawn in blocks of two rounds, one each way round, so that it stays balanced however early it stops.
    Both sides run the same number of times per sample, ``loops`` if given, and the budget begins after the warm-up.

    Returns:
        The samples, and ``"precision"`` or ``"budget"`` for why it stopped.
    """
    with collector_off():
        loops = loops or loops_for(original, folded, pace.min_sample, clock)
        warm_up(original, folded, loops, pace, clock)
        rounds = Rounds()
        end = clock() + int(pace.budget * 1e9)
        order = orders(seed)
        while True:
            add_round(rounds, original, folded, loops=loops, original_first=next(order), clock=clock)
            count = len(rounds.original)
            if count >= FIRST_LOOK and look(count) and rounds.narrow(pace.precision):
                return rounds.samples(loops), "precision"
            if (clock() >= end and count >= 2) or count >= pace.max_rounds:
                return rounds.samples(loops), "budget"


def add_round(rounds: Rounds, original: Run, folded: Run, *, loops: int, original_first: bool, clock: Clock) -> None:
    """Take one sample of each."""
    if original_first:
        first = sample(original, loops, clock)
        second = sample(folded, loops, clock)
    else:
        second = sample(folded, loops, clock)
        first = sample(original, loops, clock)
    rounds.original.append(first)
    rounds.folded.append(second)
    rounds.original_first.append(original_first)


def look(count: int) -> bool:
    """Whether to compute the interval after this many rounds: often at first, then every tenth part."""
    return count % max(1, count // 10) == 0


def orders(seed: int) -> Iterator[bool]:
    """Endless stream of orders in balanced blocks of two."""
    draw = random.Random(seed)
    while True:
        first = draw.random() < 0.5
        yield first
        yield not first


def sample(run: Run, loops: int, clock: Clock) -> float:
    """Nanoseconds per run, over ``loops`` runs."""
    count = range(loops)
    start = clock()
    for _ in count:
        run()
    return max(clock() - start, 1) / loops


def loops_for(original: Run, folded: Run, min_sample: float, clock: Clock) -> int:
    """Runs per sample so that the faster side's sample takes at least ``min_sample`` seconds."""
    loops = 1
    while True:
        fastest = min(sample(run, loops, clock) for run in (original, folded, original, folded)) * loops
        if fastest >= min_sample * 1e9:
            return loops
        loops = max(loops + 1, min(loops * 10, math.ceil(1.2 * loops * min_sample * 1e9 / fastest)))


def warm_up(original: Run, folded: Run, loops: int, pace: Pace, clock: Clock) -> int:
    """Run both in turn until neither gets faster or slower; returns the number of samples thrown away.

    At least ``pace.warm_up`` seconds and two windows of samples, at most a quarter of the budget more.
    """
    start = clock()
    taken: tuple[list[float], list[float]] = ([], [])
    while True:
        for run, found in zip((original, folded), taken, strict=True):
            found.append(sample(run, loops, clock))
        seconds = (clock() - start) / 1e9
        enough = seconds >= pace.warm_up and len(taken[0]) >= 2 * WINDOW
        if (enough and all(map(settled, taken))) or seconds >= pace.warm_up + pace.budget / 4:
            return len(taken[0])


def settled(values: list[float]) -> bool:
    """Whether the medians of the last two windows agree."""
    before, now = np.median(values[-2 * WINDOW : -WINDOW]), np.median(values[-WINDOW:])
    return bool(abs(now / before - 1) <= SETTLED)


@contextmanager
def collector_off() -> Iterator[None]:
    """Switch the garbage collector off, and back to what it was."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
