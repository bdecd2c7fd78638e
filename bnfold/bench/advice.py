"""Warnings: what weakens a figure, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.bench import machine
from bnfold.bench.report import Caution, Machine, Samples, Speedup
from bnfold.bench.statistics import FEWEST_SESSIONS, drift, outlier_share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bnfold.bench.options import BenchOptions

__all__ = ["about_machine", "about_row"]

BUSY = 0.3  # load per core before measuring
FEW = 20  # rounds
DRIFT = 0.05
OUTLIERS = 0.05
NOISY = 0.02  # half-width of the A/A interval


def about_machine(
    found: Machine, options: BenchOptions, *, governor: str | None = None, battery: bool = False
) -> tuple[Caution, ...]:
    """Warnings that hold for all rows."""
    return tuple(_machine(found, options, governor, battery))


def look(found: Machine, options: BenchOptions) -> tuple[Caution, ...]:
    """:func:`about_machine` with what this machine says of itself."""
    return about_machine(found, options, governor=machine.governor(), battery=machine.on_battery())


def _machine(found: Machine, options: BenchOptions, governor: str | None, battery: bool) -> Iterator[Caution]:
    if found.load is not None and found.load > BUSY * found.cores:
        message = f"the machine was busy before measuring (load {found.load:.1f} on {found.cores} cores)"
        yield Caution("load", message, "stop other programs and measure again")
    if max(options.threads) > found.cores:
        message = f"{max(options.threads)} threads on {found.cores} cores"
        yield Caution("threads", message, f"use --threads {found.cores} or fewer")
    if governor is not None and governor != "performance":
        message = f"the processor's frequency governor is '{governor}'"
        yield Caution("governor", message, "set it to 'performance' (cpupower frequency-set -g performance)")
    if battery:
        yield Caution("battery", "the machine runs on battery", "connect it to power")


def about_row(
    samples: Samples, control: Samples, speedup: Speedup, noise: float, options: BenchOptions
) -> tuple[Caution, ...]:
    """Warnings about one row's samples."""
    return tuple(_row(samples, control, speedup, noise, options))


def _row(
    samples: Samples, control: Samples, speedup: Speedup, noise: float, options: BenchOptions
) -> Iterator[Caution]:
    rounds = len(samples.original)
    width = max(speedup.high / speedup.median, speedup.median / speedup.low) - 1
    if rounds < FEW and width > options.precision:
        yield Caution("few-samples", f"only {rounds} rounds fitted into the budget", "raise --budget")
    elif width > options.precision:
        message = f"the interval is ±{width:.1%} wide, more than the {options.precision:.0%} asked for"
        yield Caution("wide", message, "raise --budget, or measure on a quieter machine")
    if len(samples.sessions) < FEWEST_SESSIONS:
        message = "opening and running one pair of sessions took the whole budget, and sessions of one model can differ"
        yield Caution("sessions", message, "raise --budget")
    if noise > NOISY:
        message = f"two sessions of the same model differ by up to {noise:.1%} here"
        yield Caution("noise", message, "measure on a quieter machine, or raise --budget")
    for name, values in (("original", samples.original), ("folded", samples.folded)):
        change = drift(values)
        if abs(change) > DRIFT:
            word = "slower" if change > 0 else "faster"
            message = f"the {name} model got {abs(change):.0%} {word} while it was measured"
            yield Caution("drift", message, "let the machine cool or settle, then measure again")
            break
    share = max(outlier_share(values) for values in (samples.original, samples.folded, control.original))
    if share > OUTLIERS:
        message = f"{share:.0%} of the samples are outliers"
        yield Caution("outliers", message, "stop other programs, or use fewer threads")
