"""What a bench found, as data. All times are seconds, all sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.bench.options import BenchOptions

__all__ = [
    "SCHEMA", "BenchReport", "Caution", "Facts", "Machine", "Row", "Samples", "Side", "Speedup", "Start", "StartRow",
]  # fmt: skip

SCHEMA = "bnfold/bench@1"


@dataclass(frozen=True, slots=True)
class Caution:
    """Something about the machine or the samples that weakens a figure, and what to do about it."""

    code: str
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Side:
    """One model's latency: median, median absolute deviation, minimum, and the 90th percentile from 64 samples on."""

    median: float
    mad: float
    min: float
    p90: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Speedup:
    """Original time over folded time: median of paired ratios and its 95% interval, pairs of sessions considered."""

    median: float
    low: float
    high: float

    def slower_than(self, share: float) -> bool:
        """Whether the folded model is slower by more than ``share`` (0.05 is 5%) in the whole interval."""
        return self.high < 1 / (1 + share)


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw samples: seconds per run, one of each model per round, and which of the two went first.

    ``loops`` runs make a sample, and ``sessions`` tells how many rounds each pair of sessions took, one after another.
    """

    original: tuple[float, ...]
    folded: tuple[float, ...]
    original_first: tuple[bool, ...]
    loops: int
    sessions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison of latency.

    Attributes:
        level: onnxruntime's optimisation level, ``ORT_DISABLE_ALL`` or ``ORT_ENABLE_ALL``.
        batch: size asked for, None for the model's own.
        noise: half-width of the A/A interval as a share: what two sessions of the same model differ by here.
        verdict: ``faster``, ``slower`` or ``no measurable difference``.
        stopped: ``precision`` when the interval was narrow enough, else ``budget``.
        foreign_nodes: (original, folded) nodes not on the provider asked for; None when onnxruntime does not tell.
    """

    level: str
    provider: str
    batch: int | None
    threads: int
    original: Side
    folded: Side
    speedup: Speedup
    noise: float
    verdict: str
    stopped: str
    samples: Samples
    control: Samples
    foreign_nodes: tuple[int | None, int | None] = (None, None)
    cautions: tuple[Caution, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """A fresh process: seconds to make the session and for the first run, peak memory, and memory before the model."""

    create: float
    first_run: float
    peak_bytes: int
    baseline_bytes: int


@dataclass(frozen=True, slots=True)
class StartRow:
    """Medians over fresh processes at one optimisation level."""

    level: str
    original: Start
    folded: Start
    processes: int
    create_speedup: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model file holds.

    Attributes:
        file_bytes: the file and its external data.
        operators: nodes, subgraphs included, constants not.
        norms: batch norms among them.
        parameters: elements in initializers.
        multiply_adds: of Conv, ConvTranspose, Gemm, MatMul, batch norms and elementwise Mul, Add, Sub, Div for the
            first batch size; None when shapes are not known.
    """

    name: str
    file_bytes: int
    operators: int
    norms: int
    parameters: int
    multiply_adds: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    system: str
    load: float | None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything :func:`bnfold.bench` found."""

    original: Facts
    folded: Facts
    rows: tuple[Row, ...]
    starts: tuple[StartRow, ...]
    machine: Machine
    options: BenchOptions
    cautions: tuple[Caution, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    schema: str = SCHEMA

    def slower_than(self, share: float) -> tuple[Row, ...]:
        """Rows in which the folded model is slower by more than ``share`` in the whole interval."""
        return tuple(row for row in self.rows if row.speedup.slower_than(share))

    @property
    def headline(self) -> Row:
        """The row to quote: everything onnxruntime can do is on, first batch size, first thread count."""
        return next(row for row in self.rows if row.level == "ORT_ENABLE_ALL")
