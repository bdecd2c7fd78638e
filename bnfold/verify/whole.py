"""Runs both models whole, case by case, and hands what comes out to those who judge it.

Large models are opened one after the other, so that their weights are never in memory together.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bnfold.errors import RuntimeMissingError
from bnfold.verify.evaluation import perturbed_feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bnfold.runtime import Session
    from bnfold.verify.cases import Case
    from bnfold.verify.evaluation import Evaluation
    from bnfold.verify.options import Clock, VerifyOptions

__all__ = ["BrokenError", "Runs", "Whole"]

Runs = dict[str, dict[str, Any]]
"""Outputs of one case.

``a`` are those of the original, ``b`` of the folded model, ``p`` and ``o`` of the original perturbed and optimised.
"""

_KEEP_OPEN = 64 << 20  # bytes of weights below which sessions stay open
_OUTPUT_BYTES = 256 << 20  # outputs that are held at a time
_SLOW = 0.1  # seconds per run above which only the first case is perturbed; its noise stands for the others


class BrokenError(Exception):
    """The second model cannot be run where the original can."""


class Whole:
    """See the module's docstring.

    Attributes:
        skipped: names of the cases for which there was no time.
    """

    def __init__(self, evaluation: Evaluation, options: VerifyOptions, clock: Clock, outputs: Sequence[str]) -> None:
        self.evaluation, self.options, self.clock, self.outputs = evaluation, options, clock, list(outputs)
        self.skipped: list[str] = []
        self._small = sum(map(evaluation.original.nbytes, evaluation.original.proto.graph.initializer)) <= _KEEP_OPEN
        self._kept: dict[str, Session] = {}
        self._slow = False

    def run(self, cases: Sequence[Case], expose: Sequence[str], use: Callable[[Case, Runs], None]) -> None:
        """Run all cases; ``use`` gets the runs of each, those of the first with the exposed tensors.

        Raises:
            BrokenError: the second model cannot be opened or run although the original can.
            RuntimeMissingError: the original cannot be run.
        """
        self._kept.clear()
        exposed = [name for name in expose if name not in self.outputs]
        try:
            first = self._chunk(cases[:1], exposed, 0)
        except (BrokenError, RuntimeMissingError):
            if not exposed:
                raise
            self._kept.clear()  # once more without: some runtimes do not expose everything
            exposed = []
            first = self._chunk(cases[:1], exposed, 0)
        use(cases[0], first[0])
        size = sum(getattr(value, "nbytes", 0) for value in first[0]["a"].values()) or 1
        step = max(1, _OUTPUT_BYTES // (3 * size))
        for start in range(1, len(cases), step):
            chunk = []
            for case in cases[start : start + step]:
                if self.clock.over():
                    self.skipped.append(case.name)
                else:
                    chunk.append(case)
            for case, runs in zip(chunk, self._chunk(chunk, exposed if self._small else [], start), strict=True):
                use(case, runs)
        self._kept.clear()

    def _chunk(self, cases: Sequence[Case], expose: Sequence[str], start: int) -> list[Runs]:
        runs: list[Runs] = [{} for _ in cases]
        if not cases:
            return runs
        wanted = [*self.outputs, *expose] if start == 0 else self.outputs
        session = self._open("a", lambda: self.evaluation.open(self.evaluation.original, expose=expose))
        for case, run in zip(cases, runs, strict=True):
            self.clock.tell("running the original", 0.0)
            begun = time.monotonic()
            run["a"] = session.run(case.feeds, wanted)
            self._slow = self._slow or time.monotonic() - begun > _SLOW
        del session
        self._perturb(cases, runs, wanted, expose, first=start == 0)
        if start == 0:
            self._optimise(cases[0], runs[0])
        self._folded(cases, runs, wanted, expose)
        return runs

    def _open(self, letter: str, opener: Callable[[], Session | None]) -> Any:
        session = self._kept.get(letter) or opener()
        if self._small and session is not None:
            self._kept[letter] = session
        return session

    def _perturb(
        self, cases: Sequence[Case], runs: list[Runs], wanted: list[str], expose: Sequence[str], *, first: bool
    ) -> None:
        """Run the original perturbed; inputs alone where the weights cannot be."""
        chosen = list(zip(cases, runs, strict=True)) if first or not self._slow else []
        if not chosen:
            return
        session = self._open("p", lambda: self.evaluation.perturbed(expose=expose))
        for case, run in chosen:
            moved = perturbed_feeds(case.feeds, self.options.seed)
            if session is not None:
                try:
                    run["p"] = session.run(moved, wanted)
                    continue
                except RuntimeMissingError:  # a constant that steers something
                    self._kept.pop("p", None)
                    session = None
            plain = self._open("a", lambda: self.evaluation.open(self.evaluation.original, expose=expose))
            run["p"] = plain.run(moved, wanted)

    def _optimise(self, case: Case, run: Runs) -> None:
        session = self._open("o", self.evaluation.optimised) if self._small else None
        self._kept.pop("o", None)
        if session is not None:
            try:
                run["o"] = session.run(case.feeds, self.outputs)
            except RuntimeMissingError:  # the optimiser's own business
                return

    def _folded(self, cases: Sequence[Case], runs: list[Runs], wanted: list[str], expose: Sequence[str]) -> None:
        try:
            session = self._open("b", lambda: self.evaluation.open(self.evaluation.folded, expose=expose))
        except RuntimeMissingError as error:
            raise BrokenError(f"the original can be opened, this one cannot: {error}") from error
        for number, (case, run) in enumerate(zip(cases, runs, strict=True)):
            self.clock.tell("running the folded model", number / len(cases))
            try:
                run["b"] = session.run(case.feeds, wanted)
            except RuntimeMissingError as error:
                raise BrokenError(f"the original runs on these inputs, this one does not: {error}") from error


def others(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The perturbed runs of the original, by what was perturbed."""
    named = {"weights and inputs": runs.get("p"), "optimisation level": runs.get("o")}
    return {name: run for name, run in named.items() if run is not None}
