"""Runs both models whole, case by case, and hands what comes out to those who judge it.

Large models are opened one after the other, so that their weights are never in memory together.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bnfold.errors import RuntimeMissingError
from bnfold.verify.evaluation import perturbed_feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bnfold.runtime import Session
    from bnfold.verify.cases import Case
    from bnfold.verify.evaluation import Evaluation
    from bnfold.verify.inplace import Group
    from bnfold.verify.options import Clock, VerifyOptions

__all__ = ["BrokenError", "Runs", "Whole"]

Runs = dict[str, dict[str, Any]]
"""Outputs of one case.

``a`` are those of the original, ``b`` of the folded model, ``p`` and ``o`` of the original perturbed and optimised.
"""

_KEEP_OPEN = 64 << 20  # bytes of weights below which sessions stay open
_OUTPUT_BYTES = 256 << 20  # outputs that are held at a time
_TOGETHER = 512 << 20  # tensors that one session exposes; onnxruntime holds all of them while it runs
_AGAIN = 64 << 20  # tensors below which that session also serves the other cases
_SLOW = 0.1  # seconds per run above which only the first case is perturbed; its noise stands for the others


class BrokenError(Exception):
    """The second model cannot be run where the original can."""


class Whole:
    """See the module's docstring.

    Attributes:
        skipped: names of the cases for which there was no time.
        late: numbers of the groups for which there was no time.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        options: VerifyOptions,
        clock: Clock,
        outputs: Sequence[str],
        opened: Session | None = None,
    ) -> None:
        self.evaluation, self.options, self.clock, self.outputs = evaluation, options, clock, list(outputs)
        self.skipped: list[str] = []
        self.late: list[int] = []
        self._small = sum(map(evaluation.original.nbytes, evaluation.original.proto.graph.initializer)) <= _KEEP_OPEN
        self._opened = {"a": opened} if self._small and opened is not None else {}  # these expose nothing
        self._kept: dict[str, Session] = {}
        self._exposing: list[str] = []  # what the sessions that are kept expose
        self._slow = False
        self._optimised: Future[Session | None] | None = None

    def begin(self) -> None:
        """Let onnxruntime optimise the original in the background: for 30,000 operators it takes ten seconds."""
        if self._small:
            worker = ThreadPoolExecutor(1)
            self._optimised = worker.submit(self.evaluation.optimised)
            worker.shutdown(wait=False)

    def run(self, cases: Sequence[Case], groups: Sequence[Group], use: Callable[[Case, Runs, int], None]) -> None:
        """Run all cases, and the first one with each group of tensors exposed.

        Args:
            cases: at least one.
            groups: at least one, which may be empty.
            use: gets the case, its runs, and the number of the group that is exposed in them: 0 for the first one and
                for further cases.

        Raises:
            BrokenError: the second model cannot be opened or run although the original can.
            RuntimeMissingError: the original cannot be run.
        """
        names = [[name for name in group.names if name not in self.outputs] for group in groups]
        total = sum(group.nbytes for group in groups)
        everything = [name for each in names for name in each] if self._small and total <= _TOGETHER else []
        try:
            first = self._chunk(cases[:1], names[0], everything or names[0])
        except (BrokenError, RuntimeMissingError):
            if not names[0]:
                raise
            everything = []  # once more without: some runtimes do not expose everything
            first = self._chunk(cases[:1], [], [])
        self._optimise(cases[0], first[0])
        use(cases[0], first[0], 0)
        for number in range(1, len(groups)):
            self._group(cases[0], number, names[number], everything or names[number], use)
        grown = max(map(_nbytes, (case.feeds for case in cases))) / max(_nbytes(cases[0].feeds), 1)
        keeps = self._small and total * grown <= _AGAIN
        self._rest(cases[1:], self._exposing if keeps else [], _nbytes(first[0]["a"]) * grown, use)
        self._kept.clear()

    def _group(
        self, case: Case, number: int, names: list[str], expose: list[str], use: Callable[[Case, Runs, int], None]
    ) -> None:
        if self.clock.over():
            self.late.append(number)
            return
        with contextlib.suppress(BrokenError, RuntimeMissingError):  # these sites have their local check
            use(case, self._chunk([case], names, expose)[0], number)

    def _rest(
        self, cases: Sequence[Case], expose: list[str], nbytes: float, use: Callable[[Case, Runs, int], None]
    ) -> None:
        step = max(1, int(_OUTPUT_BYTES / max(3 * nbytes, 1)))
        for start in range(0, len(cases), step):
            chunk = []
            for case in cases[start : start + step]:
                if self.clock.over():
                    self.skipped.append(case.name)
                else:
                    chunk.append(case)
            for case, runs in zip(chunk, self._chunk(chunk, [], expose, first=False), strict=True):
                use(case, runs, 0)

    def _chunk(
        self,
        cases: Sequence[Case],
        names: Sequence[str],
        expose: list[str],
        *,
        first: bool = True,
    ) -> list[Runs]:
        """Run some cases for the outputs and some tensors, in sessions that expose at least these."""
        runs: list[Runs] = [{} for _ in cases]
        if not cases:
            return runs
        self._keep(expose)
        wanted = [*self.outputs, *names]
        session = self._open("a", lambda: self.evaluation.open(self.evaluation.original, expose=expose))
        for case, run in zip(cases, runs, strict=True):
            self.clock.tell("running the original", 0.0)
            begun = time.monotonic()
            run["a"] = session.run(case.feeds, wanted)
            self._slow = self._slow or time.monotonic() - begun > _SLOW
        del session
        self._perturb(cases, runs, wanted, expose, first=first)
        self._folded(cases, runs, wanted, expose)
        return runs

    def _keep(self, expose: list[str]) -> None:
        """Close the sessions that are open unless they expose just these tensors."""
        if expose != self._exposing or not self._small:
            self._kept.clear()
        self._exposing = expose
        if not expose:
            self._kept = self._opened | self._kept

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
        session = self._optimised.result() if self._optimised is not None else None
        self._optimised = None
        if session is not None:
            with contextlib.suppress(RuntimeMissingError):  # the optimiser's own business
                run["o"] = session.run(case.feeds, self.outputs)

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


def _nbytes(values: Mapping[str, Any]) -> int:
    return sum(getattr(value, "nbytes", 0) for value in values.values())
