"""From samples to rows: noise floor, verdict, warnings, the gate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from bench_fakes import FakeMachine, samples

from bnfold.bench import BenchOptions, Machine, Speedup, advice
from bnfold.bench.measure import Pace, compare
from bnfold.bench.session import Case, noise_floor, row_of, verdict
from bnfold.errors import OptionError
from bnfold.runtime import CUDA, Level

QUIET = Machine("processor", 4, "Linux", 0.1)


def make_row(original: list[float], folded: list[float], control: list[float] | None = None) -> Any:
    same = samples(control or [1.0] * 30, [1.0] * 30)
    case = Case(Level.ALL, 8, 1)
    found = samples(original, folded, (len(original) // 3,) * 3)
    return row_of(case, found, same, stopped="precision", options=BenchOptions(), foreign=(0, 0))


@pytest.mark.parametrize(
    ("speedup", "noise", "expected"),
    [
        (Speedup(1.20, 1.18, 1.22), 0.01, "faster"),
        (Speedup(0.80, 0.79, 0.81), 0.01, "slower"),
        (Speedup(1.02, 0.99, 1.05), 0.01, "no measurable difference"),
        (Speedup(1.02, 1.01, 1.03), 0.03, "no measurable difference"),
        (Speedup(0.98, 0.97, 0.99), 0.03, "no measurable difference"),
        (Speedup(1.00, 1.00, 1.00), 0.00, "no measurable difference"),
    ],
)
def test_verdict_needs_an_interval_without_one_and_a_median_beyond_the_noise(
    speedup: Speedup, noise: float, expected: str
) -> None:
    assert verdict(speedup, noise) == expected


def test_noise_floor_is_the_reach_of_the_control_interval() -> None:
    assert noise_floor(samples([1.0] * 20, [1.0] * 20)) == 0
    assert noise_floor(samples([1.1] * 20, [1.0] * 20)) == pytest.approx(0.1)
    assert noise_floor(samples([1.0] * 20, [1.1] * 20)) == pytest.approx(0.1)


def test_two_sessions_of_one_model_make_no_measurable_difference() -> None:
    wrong = 0
    for seed in range(40):
        machine = FakeMachine()
        pace = Pace(0.4, 0.01, 0.002, 0.02)
        pairs = [
            compare(
                machine.model("a", 0.002, noise=0.2, seed=seed + shift),
                machine.model("b", 0.002, noise=0.2, seed=seed + shift),
                pace,
                seed=seed,
                clock=machine.clock,
            )[0]
            for shift in (0, 1000)
        ]
        row = make_row(list(pairs[0].original), list(pairs[0].folded))
        wrong += verdict(row.speedup, noise_floor(pairs[1])) != "no measurable difference"
    assert wrong <= 2


def test_row_summarises_both_sides() -> None:
    row = make_row([2.0, 2.1, 1.9, 2.0] * 20, [1.0] * 80)
    assert (row.original.median, row.original.min, row.original.count) == (2.0, 1.9, 80)
    assert row.original.p90 == pytest.approx(2.1)
    assert row.folded.mad == 0
    assert row.speedup.median == pytest.approx(2.0)
    assert row.verdict == "faster"
    assert make_row([2.0] * 20, [1.0] * 20).original.p90 is None


@pytest.mark.parametrize(
    ("high", "limit", "fails"), [(0.94, 0.05, True), (0.96, 0.05, False), (1.2, 0.0, False), (0.999, 0.0, True)]
)
def test_gate_looks_at_the_end_of_the_interval_that_is_kindest(high: float, limit: float, fails: bool) -> None:
    assert Speedup(high - 0.1, high - 0.2, high).slower_than(limit) is fails


def codes(*cautions: Any) -> set[str]:
    return {caution.code for caution in cautions}


def test_quiet_machine_gets_no_warning() -> None:
    assert advice.about_machine(QUIET, BenchOptions(), governor="performance") == ()


def test_machine_warnings() -> None:
    busy = dataclasses.replace(QUIET, load=3.0)
    found = advice.about_machine(busy, BenchOptions(threads=(1, 8)), governor="powersave", battery=True)
    assert codes(*found) == {"load", "threads", "governor", "battery"}
    assert all(caution.advice for caution in found)


def row_codes(original: Any, folded: Any, *, noise: float = 0.0) -> set[str]:
    pairs = samples(list(original), list(folded))
    low, median, high = 0.99, 1.0, 1.005
    return codes(*advice.about_row(pairs, samples([1.0], [1.0]), Speedup(median, low, high), noise, BenchOptions()))


def test_row_without_trouble_gets_no_warning() -> None:
    flat = 1 + 0.001 * np.random.default_rng(0).normal(size=100)
    pairs = samples(list(flat), list(flat), (30, 30, 40))
    assert advice.about_row(pairs, pairs, Speedup(1.0, 0.999, 1.001), 0.001, BenchOptions()) == ()


def test_row_warnings_each_have_their_cause() -> None:
    flat = 1 + 0.001 * np.random.default_rng(0).normal(size=100)
    wide = Speedup(1.0, 0.9, 1.1)
    control = samples([1.0], [1.0])
    few = advice.about_row(samples([1.0] * 5, [1.0] * 5, (1, 2, 2)), control, wide, 0, BenchOptions())
    many = advice.about_row(samples([1.0] * 50, [1.0] * 50, (20, 20, 10)), control, wide, 0, BenchOptions())
    assert codes(*few) == {"few-samples"}
    assert codes(*many) == {"wide"}
    assert "sessions" in row_codes(flat, flat)
    assert "noise" in row_codes(flat, flat, noise=0.05)
    assert "drift" in row_codes(flat, flat * np.linspace(1, 1.5, 100))
    assert "drift" in row_codes(flat * np.linspace(1.5, 1, 100), flat)
    assert "outliers" in row_codes(np.where(np.arange(100) % 10 == 0, 9.0, flat), flat)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batches": ()},
        {"batches": (0,)},
        {"threads": ()},
        {"threads": (-1,)},
        {"budget": 0},
        {"precision": 0},
        {"min_sample": 0},
        {"warm_up": -1},
        {"processes": -1},
        {"tf32": True},
        {"cuda_graph": True},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        BenchOptions(**wrong)


def test_cuda_options_go_with_cuda() -> None:
    assert BenchOptions(provider=CUDA, tf32=True, cuda_graph=True).tf32
