"""What the proof found, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SCHEMA", "Metrics", "Noise", "OutputResult", "SiteResult", "Structure", "VerifyReport", "Worst"]

SCHEMA = "bnfold/verify@1"

EQUAL, DIFFERENT, INCONCLUSIVE = "equal", "different", "inconclusive"


@dataclass(frozen=True, slots=True)
class Worst:
    """The element with the largest error: its index and both values."""

    index: tuple[int, ...]
    original: float | str
    folded: float | str


@dataclass(frozen=True, slots=True)
class Metrics:
    """How far two arrays are apart; everything is computed in float64.

    Attributes:
        max_abs: largest absolute error.
        max_relative: largest absolute error over the range (max - min) of the original, or over its largest magnitude
            where it is constant.
        rmse: root of the mean squared error.
        snr_db: signal-to-noise ratio, 10·log10(Σ original² / Σ error²); infinite when there is no error.
        cosine: cosine of the angle between the two, 1.0 when both are zero.
        ulp: median, 99th percentile and maximum of the distance in units in the last place of the output's own type.
        argmax_agreement: fraction of rows whose largest element is the same, where the last axis looks like classes.
        mismatches: elements that differ, for integers, booleans and strings; elements where NaN or infinity do not
            match, for floats.
        elements: elements compared.
        worst: see :class:`Worst`; None when nothing differs.
    """

    max_abs: float = 0.0
    max_relative: float = 0.0
    rmse: float = 0.0
    snr_db: float = float("inf")
    cosine: float = 1.0
    ulp: tuple[float, float, float] = (0.0, 0.0, 0.0)
    argmax_agreement: float | None = None
    mismatches: int = 0
    elements: int = 0
    worst: Worst | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """How far rounding alone moves the original.

    Attributes:
        max_abs: largest absolute difference between the original and the original perturbed at rounding level.
        sources: what was perturbed: ``weights``, ``inputs``, ``optimisation level``.
    """

    max_abs: float = 0.0
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputResult:
    """One graph output, over all input sets.

    Attributes:
        name: tensor name.
        verdict: ``equal``, ``different`` or ``inconclusive``.
        metrics: those of the input set that came out worst, measured against its tolerance.
        inputs: the name of that input set.
        tolerance: largest absolute error that would have passed there.
        noise: what rounding alone does to the original there.
        note: what else there is to say, e.g. that the output does not depend on the inputs.
    """

    name: str
    verdict: str
    metrics: Metrics = field(default_factory=Metrics)
    inputs: str = ""
    tolerance: float = 0.0
    noise: Noise = field(default_factory=Noise)
    note: str = ""


@dataclass(frozen=True, slots=True)
class SiteResult:
    """One place where the two models differ in their nodes and must agree in value.

    Attributes:
        tensor: the tensor that has the same name, hence the same value, in both.
        nodes: the folds that end here (the original's norm or affine operators), else what makes ``tensor``.
        operator: operator type in the second model that makes ``tensor``.
        verdict: ``equal``, ``different`` or ``inconclusive``.
        how: ``local`` when the piece alone was run in both versions on random activations, ``in place`` when the tensor
            was compared while the whole models ran, ``local, in place`` when both were.
        channel: the channel with the largest error, measured against its tolerance.
        channels: number of channels compared.
        error: largest error in that channel over the channel's spread (its standard deviation); None where the channel
            has no spread.
        error_abs: largest absolute error in that channel.
        tolerance: largest absolute error that would have passed in that channel.
        noise: what rounding alone does to the original in that channel, absolute.
        spread: standard deviation of the original in that channel.
        in_place: error over spread on the original's own activations, worst channel; None when not measured.
        note: what else there is to say.
        scope: where the site stands; empty for the main graph.
    """

    tensor: str
    nodes: tuple[str, ...]
    operator: str
    verdict: str
    how: str = ""
    channel: int | None = None
    channels: int = 0
    error: float | None = None
    error_abs: float = 0.0
    tolerance: float = 0.0
    noise: float = 0.0
    spread: float = 0.0
    in_place: float | None = None
    note: str = ""
    scope: str = ""

    @property
    def node(self) -> str:
        """The nodes in one string."""
        return ", ".join(self.nodes)


@dataclass(frozen=True, slots=True)
class Structure:
    """What comparing the two graphs without running them found.

    Attributes:
        problems: reasons why the second model cannot be the same network: interface, checker, new domains.
        notes: differences that do not matter by themselves, e.g. another opset version.
        nodes: nodes of the original and of the second model, bodies included.
        identical: tensors that the same operator makes from the same inputs in both.
        sites: tensors of the same name that different operators or weights make.
        complete: every graph output follows from identical operators and sites, so proving the sites proves the model.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    nodes: tuple[int, int] = (0, 0)
    identical: int = 0
    sites: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of a comparison; true when the two models are the same network.

    Attributes:
        verdict: ``equal``, ``different`` or ``inconclusive``.
        reason: one sentence.
        outputs, sites, structure: what was compared.
        inputs: names of the input sets that were run.
        dims: the bindings of dynamic dimensions that were run.
        providers: execution providers in use, in order.
        foreign_nodes: nodes that stood on the CPU although another provider was asked for; None when not known.
        evaluators: what evaluated the models, by name and version.
        unchecked: what was left out, because the budget was used up or nothing could run it.
        blamed: the folds found different, by node label.
        seconds: wall time.
    """

    verdict: str
    reason: str
    outputs: tuple[OutputResult, ...] = ()
    sites: tuple[SiteResult, ...] = ()
    structure: Structure = field(default_factory=Structure)
    inputs: tuple[str, ...] = ()
    dims: tuple[Mapping[str, int], ...] = ()
    providers: tuple[str, ...] = ()
    foreign_nodes: int | None = None
    evaluators: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    blamed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    equal: bool = False
    schema: str = SCHEMA

    def __bool__(self) -> bool:
        return self.equal
