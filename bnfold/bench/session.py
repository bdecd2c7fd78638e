"""The whole bench: which rows there are, and how one is made."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnfold.bench import advice
from bnfold.bench.facts import describe
from bnfold.bench.machine import look_at_machine
from bnfold.bench.measure import Pace, compare, narrow, together
from bnfold.bench.options import BenchOptions
from bnfold.bench.report import BenchReport, Row, Samples, Side, Speedup
from bnfold.bench.runner import LEVELS, feeds_for, open_runner
from bnfold.bench.startup import compare_starts
from bnfold.bench.statistics import FEWEST_SESSIONS, STUDENT, mad, percentile, ratio_interval
from bnfold.errors import OptionError, printable
from bnfold.inputs import input_specs
from bnfold.report import versions

if TYPE_CHECKING:
    import onnx

    from bnfold.inputs import InputSpec
    from bnfold.runtime import Level

    Source: TypeAlias = str | os.PathLike[str] | onnx.ModelProto

__all__ = ["Progress", "bench", "noise_floor", "verdict"]

Progress = Callable[[str, int, int], None]
"""What is being done now, which step that is, and how many there are."""

PRELUDE = 0.25  # share of a row's budget that goes to the A/A prelude
P90_FROM = 64  # samples
SESSIONS = 5  # pairs of sessions that share a row's budget
MOST_SESSIONS = len(STUDENT) + 2  # while the interval is too wide and there is budget left


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the two models: its name for people, its file, and its graph without the large weights."""

    name: str
    path: Path
    proto: onnx.ModelProto
    specs: tuple[InputSpec, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One row to be measured."""

    level: Level
    batch: int | None
    threads: int

    def __str__(self) -> str:
        batch = "" if self.batch is None else f", batch {self.batch}"
        return f"{self.level.value}{batch}, {self.threads} thread{'s' * (self.threads != 1)}"


def bench(
    original: Source, folded: Source, options: BenchOptions | None = None, *, progress: Progress | None = None
) -> BenchReport:
    """Measure what the folded model gains over the original.

    Args:
        original, folded: paths, or models in memory (which go through a temporary file).
        options: see :class:`BenchOptions`; by default 10 s per row, one thread, on the CPU.
        progress: called before each step.

    Raises:
        ModelReadError: a file cannot be read.
        OptionError: the models take different inputs, or an option does not fit them.
        ProviderError: the execution provider is not there, or onnxruntime dropped it.
        RuntimeMissingError: onnxruntime is missing, or cannot run one of the models.
    """
    options = options or BenchOptions()
    with ExitStack() as stack:
        subjects = (subject(original, "original", stack), subject(folded, "folded", stack))
        check_same_inputs(*subjects)
        return measure(subjects, options, progress or (lambda *_: None))


def measure(subjects: tuple[Subject, Subject], options: BenchOptions, progress: Progress) -> BenchReport:
    """All rows of two models."""
    batches = options.batches or (None,)
    feeds = {batch: feeds_for(subjects[0].specs, options, batch) for batch in batches}
    first = feeds[batches[0]]
    found = look_at_machine(options.provider.name)
    cases = list(all_cases(options))
    rows = []
    for number, case in enumerate(cases):
        progress(str(case), number, len(cases) + 1)
        rows.append(measure_row(subjects, case, feeds[case.batch], options))
    progress("start-up and memory", len(cases), len(cases) + 1)
    starts = compare_starts((subjects[0].path, subjects[1].path), LEVELS, first, options)
    facts = [describe(s.name, s.path, s.proto, first) for s in subjects]
    return BenchReport(
        original=facts[0],
        folded=facts[1],
        rows=tuple(rows),
        starts=starts,
        machine=found,
        options=options,
        cautions=advice.look(found, options),
        versions=versions(),
    )


def all_cases(options: BenchOptions) -> Iterator[Case]:
    """Rows in the order in which they are shown; both levels next to each other."""
    for threads in options.threads:
        for batch in options.batches or (None,):
            for level in LEVELS:
                yield Case(level, batch, threads)


def measure_row(subjects: tuple[Subject, Subject], case: Case, feeds: dict[str, Any], options: BenchOptions) -> Row:
    """One row: pairs of sessions, opened anew until their ratios agree or the budget ends.

    Every pair begins with an A/A prelude for the noise floor, then it is original against folded.
    """
    found: list[Pair] = []
    spent = 0.0
    while True:
        start = time.perf_counter()
        loops = found[0].samples.loops if found else None
        found.append(measure_pair(subjects, case, feeds, options, number=len(found), loops=loops))
        spent += time.perf_counter() - start
        samples = together([pair.samples for pair in found])
        agreed = narrow(ratio_interval(samples.original, samples.folded, samples.sessions), options.precision)
        over = spent >= options.budget and (len(found) >= FEWEST_SESSIONS or len(found) == 1)
        if over or len(found) == MOST_SESSIONS or (agreed and len(found) >= SESSIONS):
            stopped = "precision" if agreed else "budget"
            control = together([pair.control for pair in found])
            return row_of(case, samples, control, stopped=stopped, options=options, foreign=found[-1].foreign_nodes)


@dataclass(frozen=True, slots=True)
class Pair:
    """What one pair of sessions showed; ``foreign_nodes`` of the original and the folded model."""

    samples: Samples
    control: Samples
    foreign_nodes: tuple[int | None, int | None]


def measure_pair(
    subjects: tuple[Subject, Subject],
    case: Case,
    feeds: dict[str, Any],
    options: BenchOptions,
    *,
    number: int,
    loops: int | None,
) -> Pair:
    """Open the original twice for the prelude, then the folded model in place of the second.

    No more than two sessions are open at any time, so that caches see what they see in the comparison.
    """
    budget, warm_up = options.budget / SESSIONS, options.warm_up / SESSIONS
    pace = Pace(budget * (1 - PRELUDE), options.precision, options.min_sample, warm_up)
    prelude = Pace(budget * PRELUDE, options.precision / 2, options.min_sample, warm_up)
    seed = options.seed + 2 * number
    original, twin = (open_runner(subjects[0].path, case.level, case.threads, feeds, options) for _ in range(2))
    control, _ = compare(original.run, twin.run, prelude, seed=seed, loops=loops)
    del twin
    gc.collect()
    folded = open_runner(subjects[1].path, case.level, case.threads, feeds, options)
    samples, _ = compare(original.run, folded.run, pace, seed=seed + 1, loops=loops)
    return Pair(samples, control, (original.foreign_nodes, folded.foreign_nodes))


def row_of(
    case: Case,
    samples: Samples,
    control: Samples,
    *,
    stopped: str,
    options: BenchOptions,
    foreign: tuple[int | None, int | None],
) -> Row:
    """Put a row together from its samples."""
    low, median, high = ratio_interval(samples.original, samples.folded, samples.sessions)
    speedup = Speedup(median, low, high)
    noise = noise_floor(control)
    return Row(
        level=case.level.value,
        provider=options.provider.name,
        batch=case.batch,
        threads=case.threads,
        original=side(samples.original),
        folded=side(samples.folded),
        speedup=speedup,
        noise=noise,
        verdict=verdict(speedup, noise),
        stopped=stopped,
        samples=samples,
        control=control,
        foreign_nodes=foreign,
        cautions=advice.about_row(samples, control, speedup, noise, options),
    )


def side(values: tuple[float, ...]) -> Side:
    """Summary of one model's samples."""
    return Side(
        median=float(np.median(values)),
        mad=mad(values),
        min=min(values),
        p90=percentile(values, 0.9, P90_FROM),
        count=len(values),
    )


def noise_floor(control: Samples) -> float:
    """How far from 1 the A/A interval reaches, as a share."""
    low, _, high = ratio_interval(control.original, control.folded, control.sessions)
    return max(high, 1 / low, 1.0) - 1


def verdict(speedup: Speedup, noise: float) -> str:
    """``faster`` or ``slower`` only when the interval leaves 1 out and the median lies beyond the noise floor."""
    beyond = max(speedup.median, 1 / speedup.median) - 1 > noise
    if speedup.low <= 1 <= speedup.high or not beyond:
        return "no measurable difference"
    return "faster" if speedup.median > 1 else "slower"


def subject(source: Source, role: str, stack: ExitStack) -> Subject:
    """Read one model; a model in memory is written to a folder that lives as long as ``stack``."""
    from bnfold.files import load

    if isinstance(source, str | os.PathLike):
        path, name = Path(source), os.fspath(source)
    else:
        path, name = spill(source, stack), role
    proto = load(path).proto
    return Subject(name, path, proto, input_specs(proto))


def spill(model: onnx.ModelProto, stack: ExitStack) -> Path:
    """Write a model in memory to a temporary file, weights beside it, so that its size is no limit."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    missing = next((t.name for t in model.graph.initializer if uses_external_data(t)), None)
    if missing is not None:
        raise OptionError(f"the data of {printable(missing)!r} is in another file; give the path of the model instead")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bnfold-bench-")))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    path = folder / "model.onnx"
    large = copy.ByteSize() > 1_500_000_000  # a protobuf message ends at 2 GiB
    onnx.save(copy, str(path), save_as_external_data=large, location="model.data" if large else None)
    return path


def check_same_inputs(original: Subject, folded: Subject) -> None:
    """Refuse two models that do not take the same inputs.

    Raises:
        OptionError: names or element types differ.
    """
    kinds = [{spec.name: (spec.kind, spec.data_type) for spec in s.specs} for s in (original, folded)]
    if kinds[0] == kinds[1]:
        return
    names = sorted(name for name in kinds[0].keys() | kinds[1].keys() if kinds[0].get(name) != kinds[1].get(name))
    shown = ", ".join(map(printable, names))
    raise OptionError(f"the two models take different inputs ({shown}); bench compares two forms of one model")
