"""The measuring loop, on a fake clock."""

from __future__ import annotations

import gc
import itertools

import pytest
from bench_fakes import FakeMachine

from bnfold.bench.measure import Pace, collector_off, compare, loops_for, orders, warm_up
from bnfold.bench.statistics import ratio_interval

PACE = Pace(budget=2.0, precision=0.01, min_sample=0.002, warm_up=0.1)


def test_ratio_of_two_steady_models_is_found_and_stops_early() -> None:
    machine = FakeMachine()
    found, stopped = compare(machine.model("a", 0.003), machine.model("b", 0.002), PACE, seed=0, clock=machine.clock)
    assert stopped == "precision"
    assert len(found.original) == 10
    assert ratio_interval(found.original, found.folded) == pytest.approx((1.5, 1.5, 1.5))


def test_noise_uses_the_budget() -> None:
    machine = FakeMachine()
    a, b = machine.model("a", 0.003, noise=0.9), machine.model("b", 0.003, noise=0.9)
    found, stopped = compare(a, b, PACE, seed=0, clock=machine.clock)
    low, _, high = ratio_interval(found.original, found.folded)
    assert stopped == "budget"
    assert low <= 1 <= high
    assert sum(found.original) + sum(found.folded) == pytest.approx(PACE.budget, rel=0.05)


def test_at_least_two_rounds_whatever_the_budget() -> None:
    machine = FakeMachine()
    pace = Pace(budget=0.001, precision=0.01, min_sample=0.002, warm_up=0.0)
    found, stopped = compare(machine.model("a", 5.0), machine.model("b", 5.0), pace, seed=0, clock=machine.clock)
    assert (len(found.original), stopped) == (2, "budget")
    assert found.original == (5.0, 5.0)


def test_rounds_are_limited() -> None:
    machine = FakeMachine()
    pace = Pace(budget=1e9, precision=1e-9, min_sample=0.002, warm_up=0.0, max_rounds=30)
    a, b = machine.model("a", 0.003, noise=0.5), machine.model("b", 0.003, noise=0.5)
    assert len(compare(a, b, pace, seed=0, clock=machine.clock)[0].original) == 30


def test_order_is_random_seeded_and_balanced() -> None:
    first = list(itertools.islice(orders(1), 400))
    assert first == list(itertools.islice(orders(1), 400))
    assert first != list(itertools.islice(orders(2), 400))
    assert all(first[i] != first[i + 1] for i in range(0, 400, 2))
    assert 60 < sum(first[::2]) < 140


def test_samples_say_which_went_first() -> None:
    machine = FakeMachine()
    pace = Pace(budget=0.1, precision=1e-9, min_sample=0.002, warm_up=0.0, max_rounds=8)
    a, b = machine.model("a", 0.003, noise=0.1), machine.model("b", 0.003, noise=0.1)
    found, _ = compare(a, b, pace, seed=4, clock=machine.clock)
    measured = machine.log[-2 * len(found.original) :]
    assert [name == "a" for name in measured[::2]] == list(found.original_first)


@pytest.mark.parametrize(("seconds", "loops"), [(0.005, 1), (0.002, 1), (0.00025, 10)])
def test_short_runs_are_repeated_until_a_sample_is_long_enough(seconds: float, loops: int) -> None:
    machine = FakeMachine()
    got = loops_for(machine.model("a", seconds), machine.model("b", seconds * 2), 0.002, machine.clock)
    assert got >= loops
    assert got * seconds >= 0.002


def test_calibration_survives_a_clock_that_stands_still() -> None:
    machine = FakeMachine()
    steps = itertools.count()
    got = loops_for(lambda: None, lambda: None, 1e-9, lambda: next(steps) // 2 + machine.now)
    assert got >= 1


def test_warm_up_goes_on_until_models_settle() -> None:
    machine = FakeMachine()
    fast, slow = machine.model("a", 0.003), machine.model("b", 0.003, slow_start=40)
    steady = warm_up(fast, fast, 1, PACE, machine.clock)
    settling = warm_up(fast, slow, 1, PACE, machine.clock)
    assert steady * 2 * 0.003 >= PACE.warm_up
    assert settling >= 40


def test_warm_up_gives_up_on_models_that_never_settle() -> None:
    machine = FakeMachine()
    ever_slower = itertools.count(1)

    def run() -> None:
        machine.now += next(ever_slower) ** 2 * 100_000

    start = machine.now
    warm_up(run, run, 1, PACE, machine.clock)
    assert (machine.now - start) / 1e9 < 2 * (PACE.warm_up + PACE.budget / 4)


@pytest.mark.parametrize("enabled", [True, False])
def test_collector_is_put_back(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with collector_off():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
