"""The course of a proof, from two models to a report."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import OptionError, RuntimeMissingError, printable
from bnfold.inputs import input_specs
from bnfold.report import versions
from bnfold.runtime import onnxruntime
from bnfold.verify import cases as making
from bnfold.verify import inplace, metrics
from bnfold.verify.evaluation import Evaluation
from bnfold.verify.labels import Labels
from bnfold.verify.noise import is_float
from bnfold.verify.options import Clock, VerifyOptions
from bnfold.verify.outputs import OutputJudge
from bnfold.verify.report import DIFFERENT, EQUAL, OutputResult, SiteResult, Structure, VerifyReport
from bnfold.verify.sitecheck import SiteCheck
from bnfold.verify.sites import Pairing, pair
from bnfold.verify.structure import check_structure
from bnfold.verify.ties import decided_alike, grounds
from bnfold.verify.verdict import settle, site_result, verdict
from bnfold.verify.view import RANDOM_OPERATORS, View
from bnfold.verify.whole import BrokenError, Runs, Whole, others

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bnfold.report import Folded
    from bnfold.runtime import Session
    from bnfold.verify.cases import Case
    from bnfold.verify.sites import Key, Site
    from bnfold.verify.source import Source

__all__ = ["Judge"]

_REFERENCE_CASES = 2  # the reference evaluator is slow
_SLOW_RUN = 0.5  # seconds per run above which few inputs have to do
_FEW = ("normal", "large", "borders")


class Judge:
    """Compares two models; see :func:`bnfold.verify.verify`."""

    def __init__(self, original: Source, folded: Source, options: VerifyOptions, folds: Sequence[Folded]) -> None:
        self.original, self.folded, self.options, self.folds = original, folded, options, tuple(folds)
        self.clock = Clock(options)
        self.evaluation = Evaluation(original, folded, options)
        self.views = (View(original, original.proto.graph), View(folded, folded.proto.graph))
        self.check = SiteCheck(self.views, self.evaluation, self.clock, folds)
        self.notes: list[str] = []
        self.unchecked: list[str] = []
        self.cases: list[Case] = []
        self.in_place: dict[Key, inplace.InPlace] = {}
        self.opened: Session | None = None  # the original, once it has run
        self.failed = ""  # why the models cannot be run as a whole

    def run(self) -> VerifyReport:
        """Run the whole comparison."""
        onnxruntime()  # without it there is no proof, only structure
        self.clock.tell("comparing the graphs", 0.0)
        problems, notes = check_structure(self.original, self.folded)
        self.notes += notes
        counts = self._node_counts()
        if problems:
            return self._report(Structure(tuple(problems), tuple(notes), counts), (), [])
        pairing = pair(*self.views)
        runnable = self._find_inputs()
        whole = Whole(self.evaluation, self.options, self.clock, self.views[0].outputs, self.opened)
        self.opened = None  # a large model is closed again
        if self.cases:
            whole.begin()
        pairing = self.check.run(pairing, self.cases[0].feeds if self.cases else {}, runnable=runnable)
        outputs = self._compare_outputs(pairing, whole)
        sites = self._site_results(pairing)
        structure = Structure((), tuple(notes), counts, pairing.identical, len(pairing.sites), pairing.complete)
        random = any(node.op in RANDOM_OPERATORS for view in self.views[0].walk() for node in view.nodes)
        settled = settle(
            outputs,
            sites,
            proven=structure.complete and all(site.verdict == EQUAL for site in sites),
            random=random,
            own_tolerance=self.options.rtol is not None or self.options.atol is not None,
        )
        return self._report(structure, sites, settled)

    # -- inputs --------------------------------------------------------------------------------------------------

    def _find_inputs(self) -> bool:
        """Find inputs that the original accepts, and whether it can be run at all."""
        given = making.user_cases(self.original, self.options)
        specs = input_specs(self.original.given.proto)
        try:
            session = self.evaluation.open(self.original)
        except RuntimeMissingError as error:
            self.failed = str(error)
            self.cases = given
            return False
        self.cases = given + self._made(specs, session, have_some=bool(given))
        if self.evaluation.reference:
            self.cases = self.cases[:_REFERENCE_CASES]
        else:
            self.opened = session
        return True

    def _made(self, specs: Sequence[Any], session: Session, *, have_some: bool) -> list[Case]:
        """Made inputs, of the first size that the original accepts."""
        for size in making.sizes(specs, self.options):
            try:
                cases = making.made(specs, self.options, size)
            except OptionError as error:
                if self.options.dims:
                    raise
                self.failed = "" if have_some else str(error)
                return []
            if not cases:
                return []
            begun = self.clock.seconds
            try:
                session.run(cases[0].feeds)
            except RuntimeMissingError as error:
                self.failed = str(error)
            else:
                self.failed = ""
                return self._affordable(cases, self.clock.seconds - begun)
        return [] if have_some else self._made_for_reference(specs)

    def _affordable(self, cases: list[Case], seconds: float) -> list[Case]:
        """All cases, or a few of them when the model is slow."""
        if seconds < _SLOW_RUN or len(cases) <= len(_FEW):
            return cases
        first = cases[0].dims
        few = [case for case in cases if case.name.startswith(_FEW) and case.dims == first]
        few += [case for case in cases if case.dims != first][:1]
        self.notes.append(f"one run takes {seconds:.1f} s, so {len(few)} of {len(cases)} input sets are used")
        return few

    def _made_for_reference(self, specs: Sequence[Any]) -> list[Case]:
        """Where onnxruntime opens the model but cannot run it, the reference evaluator may."""
        if self.evaluation.reference:
            return []
        with contextlib.suppress(RuntimeMissingError, OptionError):
            session = self.original.reference()
            cases = making.made(specs, self.options, next(making.sizes(specs, self.options)))
            session.run(cases[0].feeds)
            self.evaluation.use_reference(self.failed)
            self.failed = ""
            return cases
        return []

    # -- whole models --------------------------------------------------------------------------------------------

    def _compare_outputs(self, pairing: Pairing, whole: Whole) -> list[OutputResult]:
        names = tuple(self.views[0].outputs)
        judge = OutputJudge(names, self.options)
        if not self.cases:
            return judge.results()
        groups = inplace.batches(pairing.sites, self.check.entering.types)

        def use(case: Case, runs: Runs, number: int) -> None:
            self._in_place(groups[number].sites, runs)
            if number == 0:
                judge.add(case.name, runs["a"], runs["b"], others(runs))
                self._expected(case, runs["a"])

        try:
            whole.run(self.cases, groups, use)
        except BrokenError as broken:
            return [OutputResult(name, DIFFERENT, note=str(broken)) for name in names]
        except RuntimeMissingError as error:
            self.failed = str(error)
            return judge.results()
        self.unchecked += [f"inputs: {name}" for name in whole.skipped]
        self.unchecked += [f"{name} in place" for number in whole.late for name in groups[number].names]
        return self._ties(judge.results(), pairing)

    def _in_place(self, group: Sequence[Site], runs: Runs) -> None:
        for site in group:
            arrays = [runs.get(letter, {}).get(site.tensor) for letter in "abp"]
            if site.key not in self.in_place and all(isinstance(array, np.ndarray) for array in arrays):
                found = inplace.compare_site(site, *arrays)  # type: ignore[arg-type]
                if found is not None:
                    self.in_place[site.key] = found

    def _expected(self, case: Case, found: Mapping[str, Any]) -> None:
        """Say how far the original itself is from outputs that came with the data."""
        for name, wanted in case.expected.items():
            mine = found.get(name)
            if isinstance(mine, np.ndarray) and isinstance(wanted, np.ndarray) and mine.shape == wanted.shape:
                error = metrics.measure(wanted.astype(mine.dtype), mine)
                text = f"{error.max_abs:.2g}" if is_float(mine) else f"{error.mismatches} elements"
                self.notes.append(f"{case.name}: the original is {text} away from the expected {printable(name)}")

    def _ties(self, results: list[OutputResult], pairing: Pairing) -> list[OutputResult]:
        wrong = [result for result in results if result.verdict == DIFFERENT and result.metrics.elements]
        if not wrong or self.clock.over() or not (pairing.complete and self.check.all_equal(pairing)):
            return results
        names = grounds(*self.views)
        case = next((c for c in self.cases if c.name == wrong[0].inputs), self.cases[0])
        if not names or not decided_alike(self.evaluation, names, case):
            return results
        note = "it flips at ties: what is decided on agrees within rounding"
        return [replace(result, verdict=EQUAL, note=note) if result in wrong else result for result in results]

    # -- report --------------------------------------------------------------------------------------------------

    def _site_results(self, pairing: Pairing) -> tuple[SiteResult, ...]:
        """Results of all sites; a tensor that regions grew over is blamed where that did not help, else mentioned."""
        check, names = self.check, Labels(self.folds)
        results: list[SiteResult] = []
        blamed: set[Key] = set()

        def result(site: Site) -> SiteResult:
            found = check.grown.get(site.key) or check.results.get(site.key)
            failure = check.local.failures.get(site.key, "it could not be checked by itself")
            return site_result(site, names, found, self.in_place.get(site.key), failure)

        for site in pairing.sites:
            inside = check.grown_inside(site)
            if inside and check.is_wrong(site):
                blamed |= inside
                continue
            results.append(result(site))
            if inside and not results[-1].note:
                shown = ", ".join(printable(name) for _, name in sorted(inside))
                note = f"{shown} has another value under the same name; what it leads to agrees"
                results[-1] = replace(results[-1], note=note)
        if blamed:
            results += [result(site) for site in pair(*self.views).sites if site.key in blamed]
        return tuple(results)

    def _report(self, structure: Structure, sites: tuple[SiteResult, ...], outputs: list[OutputResult]) -> VerifyReport:
        evaluation = self.evaluation
        if self.failed and outputs:
            self.notes.append(f"the models could not be run as a whole: {self.failed}")
        self.notes += evaluation.reasons
        self.unchecked += [
            f"site {s.tensor}" for s in sites if s.verdict not in (EQUAL, DIFFERENT) and "budget" in s.note
        ]
        outcome, reason = verdict(structure, sites, outputs, self.unchecked)
        known = {fold.node for fold in self.folds}
        blamed = [node for s in sites if s.verdict == DIFFERENT for node in s.nodes if not known or node in known]
        return VerifyReport(
            verdict=outcome,
            reason=reason,
            outputs=tuple(outputs),
            sites=sites,
            structure=structure,
            inputs=tuple(case.name for case in self.cases),
            dims=tuple({tuple(sorted(c.dims.items())): dict(c.dims) for c in self.cases if c.dims}.values()),
            providers=evaluation.providers,
            foreign_nodes=evaluation.foreign_nodes,
            evaluators=tuple(dict.fromkeys([*evaluation.evaluators, *sorted(self.check.local.evaluators)])),
            unchecked=tuple(self.unchecked),
            blamed=tuple(dict.fromkeys(blamed)),
            notes=tuple(dict.fromkeys(self.notes)),
            seconds=round(self.clock.seconds, 3),
            seed=self.options.seed,
            versions=versions(),
            equal=outcome == EQUAL,
        )

    def _node_counts(self) -> tuple[int, int]:
        ours, theirs = (sum(len(view.nodes) for view in main.walk()) for main in self.views)
        return ours, theirs
