"""Compares graph outputs over all input sets, each against the noise floor of the original."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.verify import metrics
from bnfold.verify.noise import epsilon, is_float
from bnfold.verify.report import DIFFERENT, EQUAL, INCONCLUSIVE, Metrics, Noise, OutputResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from bnfold.verify.options import VerifyOptions

__all__ = ["OutputJudge"]

# Every layer may contribute a rounding error of the size that the perturbation puts on every weight once; sums of many
# products round more often (channels.py). One weight in a thousand wrong by one per cent is a thousand times as much.
_FACTOR = 32.0
_OUTPUT_ULPS = 8.0
_BLIND = 0.05  # a tolerance above this fraction of the output's range proves nothing by itself


@dataclass(frozen=True, slots=True)
class _Run:
    """One array of one output in one case; ``level`` is the noise, ``size`` the largest magnitude."""

    case: str
    metrics: Metrics
    is_float: bool
    note: str = ""
    level: float = 0.0
    size: float = 0.0
    spread: float = 0.0
    epsilon: float = 0.0
    sources: tuple[str, ...] = ()
    fixed: tuple[float, float] | None = None  # ratio and tolerance, where the user gave the tolerance
    unsteady: bool = False  # rounding alone makes NaN or infinities come and go


@dataclass(slots=True)
class _State:
    runs: list[_Run] = field(default_factory=list)
    broken: OutputResult | None = None
    seen: list[tuple[tuple[int, ...], bytes]] = field(default_factory=list)


class OutputJudge:
    """Collects all runs, then gives the verdict of each output."""

    def __init__(self, names: tuple[str, ...], options: VerifyOptions) -> None:
        self.names, self.options = names, options
        self._states = {name: _State() for name in names}

    def add(
        self,
        case: str,
        original: Mapping[str, Any],
        folded: Mapping[str, Any],
        others: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Compare one run.

        Args:
            case: the name of the inputs.
            original, folded: outputs by name.
            others: outputs of the original under perturbation, by what was perturbed.
        """
        for name in self.names:
            state = self._states[name]
            ours, theirs = _flat(original[name]), _flat(folded[name])
            if [(x.shape, x.dtype) for x in ours] != [(y.shape, y.dtype) for y in theirs]:
                note = f"{_describe(ours)} became {_describe(theirs)}"
                state.broken = OutputResult(name, DIFFERENT, inputs=case, note=note)
                continue
            moved = {what: _flat(outputs[name]) for what, outputs in others.items() if name in outputs}
            for number, (x, y) in enumerate(zip(ours, theirs, strict=True)):
                near = {w: m[number] for w, m in moved.items() if len(m) == len(ours) and m[number].shape == x.shape}
                state.runs.append(self._run(case, x, y, near))
                state.seen.append((x.shape, x.tobytes() if x.dtype != object else repr(x).encode()))

    def _run(self, case: str, x: NDArray[Any], y: NDArray[Any], moved: Mapping[str, NDArray[Any]]) -> _Run:
        found = metrics.measure(x, y)
        if not is_float(x):
            flips = max((int(np.count_nonzero(x != m)) for m in moved.values()), default=0)
            note = f"rounding alone flips {flips} of {x.size} elements of the original" if flips else ""
            return _Run(case, found, False, note)
        return _Run(
            case,
            found,
            True,
            level=max((_largest(x, m) for m in moved.values()), default=0.0),
            size=metrics.size(x),
            spread=float(np.ptp(_finite(x))) if x.size else 0.0,
            epsilon=epsilon(x.dtype),
            sources=tuple(moved),
            unsteady=_unsteady(x, moved),
            fixed=self._fixed(x, y, found) if (self.options.rtol, self.options.atol) != (None, None) else None,
        )

    def _fixed(self, x: NDArray[Any], y: NDArray[Any], found: Metrics) -> tuple[float, float]:
        """The largest error over the user's own tolerance, and the largest tolerance."""
        allowed = (self.options.atol or 0.0) + (self.options.rtol or 0.0) * np.abs(x.astype(np.float64))
        error = metrics.distance(x, y)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(error == 0, 0.0, error / allowed)
        ratio = float(np.nan_to_num(ratios, nan=np.inf, posinf=np.inf).max(initial=0.0))
        return np.inf if found.mismatches else ratio, float(np.nan_to_num(allowed).max(initial=0.0))

    def results(self) -> list[OutputResult]:
        """The verdict of each output; one that no input set could settle is inconclusive."""
        return [self._result(name, self._states[name]) for name in self.names]

    def _result(self, name: str, state: _State) -> OutputResult:
        if state.broken is not None:
            return state.broken
        if not state.runs:
            return OutputResult(name, INCONCLUSIVE, note="it was not compared")
        # inputs of zeros cannot be perturbed: the noise of the other cases, in proportion, stands in
        relative = max((run.level / run.size for run in state.runs if run.size > 0), default=0.0)
        judged = [(_ratio(run, relative), run) for run in state.runs]
        ratio, run = max(judged, key=lambda pair: pair[0])
        tolerance = run.fixed[1] if run.fixed is not None else _tolerance(run, relative)
        verdict, note = DIFFERENT if ratio > 1 else EQUAL, run.note
        if verdict == EQUAL:
            doubt = _doubt(state, relative)
            verdict, note = (INCONCLUSIVE, doubt) if doubt else (EQUAL, note)
        sources = run.sources or next((other.sources for other in state.runs if other.sources), ())
        noise = Noise(max(run.level, relative * run.size), sources)
        return OutputResult(name, verdict, run.metrics, run.case, tolerance, noise, note)


def _tolerance(run: _Run, relative: float) -> float:
    return _FACTOR * max(run.level, relative * run.size) + _OUTPUT_ULPS * run.epsilon * run.size


def _ratio(run: _Run, relative: float) -> float:
    """How many times the tolerance the error of a run is."""
    if run.fixed is not None:
        return run.fixed[0]
    if run.unsteady:
        return 0.0
    if run.metrics.mismatches:
        return np.inf
    if not run.is_float or not run.metrics.max_abs:
        return 0.0
    tolerance = _tolerance(run, relative)
    return run.metrics.max_abs / tolerance if tolerance > 0 else np.inf


def _doubt(state: _State, relative: float) -> str:
    """Why equality means nothing, or an empty string."""
    if not any(run.metrics.elements for run in state.runs):
        return "it has no elements"
    shapes = {shape for shape, _ in state.seen}
    if len(state.seen) > len(shapes) and len(set(state.seen)) == len(shapes):
        return "it does not depend on the inputs"
    if all(run.unsteady for run in state.runs):
        return "it overflows"
    if all(run.is_float and _tolerance(run, relative) > _BLIND * run.spread for run in state.runs):
        return "rounding alone moves the original as much as a wrong fold would"
    return ""


def _flat(value: Any) -> list[NDArray[Any]]:
    """An output as a list of arrays: sequences have several, an empty optional has none."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in _flat(item)]
    if isinstance(value, dict):
        return [np.asarray(list(value.keys())), np.asarray(list(value.values()))]
    return [np.asarray(value)]


def _finite(array: NDArray[Any]) -> NDArray[np.float64]:
    values = array.astype(np.float64)
    return np.where(np.isfinite(values), values, 0.0)


def _largest(x: NDArray[Any], other: NDArray[Any]) -> float:
    error = metrics.distance(x, other)
    return float(error[np.isfinite(error)].max(initial=0.0))


def _unsteady(x: NDArray[Any], moved: Mapping[str, NDArray[Any]]) -> bool:
    """Whether NaN and infinities of the original say nothing, because rounding moves them about (or may do so)."""
    if any(bool(np.isinf(metrics.distance(x, other)).any()) for other in moved.values()):
        return True
    return not moved and not np.isfinite(x.astype(np.float64)).all()


def _describe(arrays: list[NDArray[Any]]) -> str:
    return ", ".join(f"{array.dtype.name}{list(array.shape)}" for array in arrays) or "nothing"
