"""Options of the proof."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnfold.runtime import CPU, CUDA, Provider

__all__ = ["Clock", "VerifyOptions"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How to compare two models.

    Attributes:
        provider: execution provider, or its name as for ``--provider``. TF32 is off unless its options switch it on.
        seed: of everything random.
        dims: dynamic dimensions by name, e.g. ``{"N": 4}``; the others are chosen, twice.
        rtol, atol: when one is given, an output passes when ``|error| <= atol + rtol * |original|`` everywhere,
            instead of being judged against the noise floor.
        inputs: the user's data: ``name=file.npy``, ``file.npz``, folders in ONNX test-data layout, or dicts of arrays.
        distributions: what the made inputs look like; see :data:`bnfold.inputs.DISTRIBUTIONS`.
        budget: seconds after which no new step is begun; what was left out is named, and the verdict is at best
            inconclusive.
        threads: threads inside an operator.
        isolated: run everything in a process of its own, so that a crashing runtime is a result.
        strict: judge sites as bnfold's own folds, rounded once, also where the folds are not known.
        progress: called with a description and a fraction from 0 to 1.
    """

    provider: Provider | str = CPU
    seed: int = 0
    dims: Mapping[str, int] = field(default_factory=dict)
    rtol: float | None = None
    atol: float | None = None
    inputs: tuple[str | Mapping[str, Any], ...] = ()
    distributions: tuple[str, ...] = ("normal", "uniform", "large", "small", "zeros", "borders")
    budget: float | None = None
    threads: int = 0
    isolated: bool = False
    strict: bool = False
    progress: Progress | None = None

    def where(self) -> Provider:
        """The provider with the options that a proof needs.

        cuDNN may multiply by way of Winograd or Fourier transforms, whose errors are no rounding of the sums that the
        model asks for; its default algorithm is plain matrix multiplication.
        """
        chosen = Provider.parse(self.provider)
        if chosen.name == CUDA.name and "cudnn_conv_algo_search" not in dict(chosen.options):
            return Provider(chosen.name, (*chosen.options, ("cudnn_conv_algo_search", "DEFAULT")))
        return chosen


class Clock:
    """Time spent, and whether there is any left."""

    def __init__(self, options: VerifyOptions) -> None:
        self._start = time.monotonic()
        self._budget = options.budget
        self._progress = options.progress

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def over(self) -> bool:
        return self._budget is not None and self.seconds >= self._budget

    def tell(self, what: str, fraction: float) -> None:
        if self._progress is not None:
            self._progress(what, min(max(fraction, 0.0), 1.0))
