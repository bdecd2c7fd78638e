"""The course of a proof, from two files to a verdict."""

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
from bnfold.verify import inplace, metrics, shaping
from bnfold.verify.evaluation import Evaluation, perturbed_feeds
from bnfold.verify.labels import DECISIONS, labels
from bnfold.verify.local import Entering, LocalChecker, LocalResult
from bnfold.verify.noise import epsilon, is_float
from bnfold.verify.options import Clock, VerifyOptions
from bnfold.verify.outputs import OutputJudge
from bnfold.verify.report import DIFFERENT, EQUAL, INCONCLUSIVE, OutputResult, SiteResult, Structure, VerifyReport
from bnfold.verify.sites import Key, Pairing, Site, pair
from bnfold.verify.source import SHAPE_OF, Source
from bnfold.verify.structure import check_structure
from bnfold.verify.types import TensorType, tensor_types
from bnfold.verify.view import RANDOM_OPERATORS, View
from bnfold.verify.whole import BrokenError, Runs, Whole, others

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.report import Folded
    from bnfold.runtime import Session
    from bnfold.verify.cases import Case

__all__ = ["Judge"]

_ROUNDS = 5  # how often a region grows over a name that was used again for another value
_LARGEST_REGION = 256  # nodes above which a site is the whole network, which comparing outputs is for
_REFERENCE_CASES = 2  # the reference evaluator is slow
_TIE_FACTOR = 32.0
_CANCELLED = 1e-4  # error over range that cancellation behind a proven site may cause


class Judge:
    """Compares two models; see :func:`bnfold.verify.verify`."""

    def __init__(self, original: Source, folded: Source, options: VerifyOptions, folds: Sequence[Folded]) -> None:
        self.original, self.folded, self.options, self.folds = original, folded, options, tuple(folds)
        self.clock = Clock(options)
        self.evaluation = Evaluation(original, folded, options)
        self.local = LocalChecker(original, folded, options, self.clock)
        self.views = (View(original, original.proto.graph), View(folded, folded.proto.graph))
        self.notes: list[str] = []
        self.unchecked: list[str] = []
        self.cases: list[Case] = []
        self.checked: dict[Key, LocalResult] = {}
        self.in_place: dict[Key, inplace.InPlace] = {}
        self.entering = Entering({}, {})
        self.failed = ""

    def run(self) -> VerifyReport:
        """Run the whole comparison."""
        onnxruntime()  # without it there is no proof, only structure
        self.clock.tell("comparing the graphs", 0.0)
        problems, notes = check_structure(self.original, self.folded)
        self.notes += notes
        if problems:
            return self._report(Structure(tuple(problems), tuple(notes), self._node_counts()), (), [])
        pairing = pair(*self.views)
        self._learn(pairing, runnable=self._find_inputs())
        pairing, grown = self._check_sites(pairing)
        outputs = self._compare_outputs(pairing)
        sites = self._site_results(pairing, grown)
        structure = Structure(
            notes=tuple(notes),
            nodes=self._node_counts(),
            identical=pairing.identical,
            sites=len(pairing.sites),
            complete=pairing.complete,
        )
        return self._report(structure, sites, self._settle(outputs, sites, structure))

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
        self.cases = given + self._made(specs, session, bool(given))
        if self.evaluation.reference:
            self.cases = self.cases[:_REFERENCE_CASES]
        return True

    def _made(self, specs: Sequence[Any], session: Session, have_some: bool) -> list[Case]:
        """Made inputs, of the first size that the original accepts."""
        for size in making.sizes(specs, self.options):
            try:
                cases = making.made(specs, self.options, size)
            except OptionError as error:
                if self.options.dims:
                    raise
                if not have_some:
                    self.failed = str(error)
                return []
            if not cases:
                return []
            try:
                session.run(cases[0].feeds)
            except RuntimeMissingError as error:
                self.failed = str(error)
            else:
                self.failed = ""
                return cases
        return [] if have_some else self._made_for_reference(specs)

    def _made_for_reference(self, specs: Sequence[Any]) -> list[Case]:
        """Where onnxruntime opens the model but cannot run it, the reference evaluator may."""
        if self.evaluation.reference:
            return []
        try:
            session = self.original.reference()
            for size in making.sizes(specs, self.options):
                cases = making.made(specs, self.options, size)
                session.run(cases[0].feeds)
                self.evaluation.use_reference(self.failed)
                self.failed = ""
                return cases
        except (RuntimeMissingError, OptionError):
            pass
        return []

    def _learn(self, pairing: Pairing, *, runnable: bool) -> None:
        """Find types and shapes of what enters sites, and the values of what steers them."""
        if not pairing.sites:
            return
        feeds = self.cases[0].feeds if self.cases else {}
        types = tensor_types(self.original, feeds)
        frontier = {key for site in pairing.sites for key in (*site.frontier(), site.key)}
        steering = {key for site in pairing.sites for key in shaping.steered(site)}
        blank = [k for k in frontier if not k[0] and k in self._producible() and _unknown(types.get(k))]
        exact = [k for k in frontier if not k[0] and (k in steering or _not_float(types.get(k)))]
        known: dict[Key, NDArray[Any]] = {k: feeds[k[1]] for k in exact if k[1] in feeds}
        exact = [k for k in exact if k not in known and k in self._producible()]
        if runnable and self.cases and (blank or exact):
            self._ask(types, known, blank, exact)
        self.entering = Entering(types, known)

    def _producible(self) -> set[Key]:
        return {("", name) for name in self.views[0].producers}

    def _ask(
        self, types: dict[Key, TensorType], known: dict[Key, NDArray[Any]], blank: list[Key], exact: list[Key]
    ) -> None:
        """Run the original for what inference could not tell."""
        try:
            session = self.evaluation.open(
                self.original, expose=[name for _, name in exact], shapes=[name for _, name in blank]
            )
            wanted = [name for _, name in exact] + [SHAPE_OF + name for _, name in blank]
            values = session.run(self.cases[0].feeds, wanted)
        except RuntimeMissingError:
            return
        for key in exact:
            known[key] = np.asarray(values[key[1]])
        for key in blank:
            shape = tuple(int(d) for d in values[SHAPE_OF + key[1]])
            types[key] = (types.get(key, (1, None))[0], shape)

    # -- sites ---------------------------------------------------------------------------------------------------

    def _check_sites(self, pairing: Pairing) -> tuple[Pairing, dict[Key, LocalResult]]:
        """Check all sites; let regions grow over names that mean another value in the second model.

        Returns the last pairing, and what was first found about the tensors that were grown over.
        """
        declared = {name for fold in self.folds for name in fold.tensor}
        fixed = set(self.views[0].outputs) | declared
        grown: dict[Key, LocalResult] = {}
        self._check_new(pairing, {})
        at_first = dict(self.checked)
        for _ in range(_ROUNDS):
            wrong = [s.key for s in pairing.sites if self._is_wrong(s) and s.in_main_graph and s.tensor not in fixed]
            if not wrong:
                break
            before = {site.key: _signature(site) for site in pairing.sites}
            for key in wrong:
                grown.setdefault(key, at_first.get(key, self.checked[key]))
            pairing = pair(*self.views, dropped=grown)
            self._learn(pairing, runnable=not self.failed)
            self._check_new(pairing, before)
        return pairing, grown

    def _check_new(self, pairing: Pairing, before: Mapping[Key, Any]) -> None:
        todo = [s for s in pairing.sites if before.get(s.key) != _signature(s)]
        for site in todo:
            self.checked.pop(site.key, None)
        large = [s for s in todo if max(len(s.original.nodes), len(s.folded.nodes)) > _LARGEST_REGION]
        if large:  # most of the network: that is what the outputs are compared for
            pairing.complete = False
            pairing.open += [site.tensor for site in large]
            pairing.sites = [site for site in pairing.sites if site not in large]
        self.checked.update(self.local.check([site for site in todo if site not in large], self.entering))

    def _is_wrong(self, site: Site) -> bool:
        found = self.checked.get(site.key)
        return found is not None and found.verdict == DIFFERENT

    # -- whole models --------------------------------------------------------------------------------------------

    def _compare_outputs(self, pairing: Pairing) -> list[OutputResult]:
        names = tuple(self.views[0].outputs)
        judge = OutputJudge(names, self.options)
        if not self.cases:
            return judge.results()
        groups = list(inplace.batches(pairing.sites, self.entering.types)) or [[]]
        whole = Whole(self.evaluation, self.options, self.clock, names)

        def collect(case: Case, runs: Runs) -> None:
            self._in_place(groups[0], runs)
            judge.add(case.name, runs["a"], runs["b"], others(runs))
            self._expected(case, runs["a"])

        try:
            whole.run(self.cases, [site.tensor for site in groups[0]], collect)
        except BrokenError as broken:
            return [OutputResult(name, DIFFERENT, note=str(broken)) for name in names]
        except RuntimeMissingError as error:
            self.failed = str(error)
            return judge.results()
        self.unchecked += [f"inputs: {name}" for name in whole.skipped]
        for group in groups[1:]:
            if self.clock.over():
                self.unchecked += [f"{site.tensor} in place" for site in group]
                continue
            tensors = [site.tensor for site in group]
            with contextlib.suppress(BrokenError, RuntimeMissingError):  # these sites have their local check
                whole.run(self.cases[:1], tensors, lambda _, runs, group=group: self._in_place(group, runs))  # type: ignore[misc]
        return self._ties(judge.results(), pairing)

    def _expected(self, case: Case, found: Mapping[str, Any]) -> None:
        """Say how far the original itself is from outputs that came with the data."""
        for name, wanted in case.expected.items():
            mine = found.get(name)
            if isinstance(mine, np.ndarray) and isinstance(wanted, np.ndarray) and mine.shape == wanted.shape:
                error = metrics.measure(wanted.astype(mine.dtype), mine)
                text = f"{error.max_abs:.2g}" if is_float(mine) else f"{error.mismatches} elements"
                self.notes.append(f"{case.name}: the original is {text} away from the expected {printable(name)}")

    def _in_place(self, group: Sequence[Site], runs: Runs) -> None:
        for site in group:
            arrays = [runs.get(letter, {}).get(site.tensor) for letter in "abp"]
            if all(isinstance(array, np.ndarray) for array in arrays):
                found = inplace.compare_site(site, *arrays)  # type: ignore[arg-type]
                if found is not None:
                    self.in_place.setdefault(site.key, found)

    # -- ties ----------------------------------------------------------------------------------------------------

    def _ties(self, results: list[OutputResult], pairing: Pairing) -> list[OutputResult]:
        """Let outputs pass that differ only because a decision fell the other way on equal grounds."""
        wrong = [r for r in results if r.verdict == DIFFERENT and not r.note.startswith(("float", "int"))]
        proven = pairing.complete and all(
            (found := self.checked.get(site.key)) is not None and found.verdict == EQUAL for site in pairing.sites
        )
        if not wrong or not proven or self.clock.over():
            return results
        grounds = self._grounds()
        if not grounds:
            return results
        case = next((c for c in self.cases if c.name == wrong[0].inputs), self.cases[0])
        if not self._agree(grounds, case):
            return results
        note = "it flips at ties: what is decided on agrees within rounding"
        return [replace(r, verdict=EQUAL, note=note) if r in wrong else r for r in results]

    def _grounds(self) -> list[str]:
        """Tensors that the first decisions of the network are made on."""
        view = self.views[0]
        after: set[str] = set()
        found: dict[str, None] = {}
        for node in view.nodes:
            reads = list(node.reads())
            if any(name in after for name in reads):
                after.update(node.outputs)
            elif node.op in DECISIONS:
                after.update(node.outputs)
                found.update(dict.fromkeys(n for n in reads if n in view.producers and not view.is_constant(n)))
        return [name for name in found if name in self.views[1].producers]

    def _agree(self, names: list[str], case: Case) -> bool:
        try:
            original = self.evaluation.open(self.original, expose=names).run(case.feeds, names)
            folded = self.evaluation.open(self.folded, expose=names).run(case.feeds, names)
            session = self.evaluation.perturbed(expose=names) or self.evaluation.open(self.original, expose=names)
            moved = session.run(perturbed_feeds(case.feeds, self.options.seed), names)
        except RuntimeMissingError:
            return False
        for name in names:
            a, b, p = (np.asarray(run[name]) for run in (original, folded, moved))
            if a.shape != b.shape or not is_float(a):
                if a.shape != b.shape or np.any(a != b):
                    return False
                continue
            allowed = _TIE_FACTOR * metrics.distance(a, p).max(initial=0) + 8 * epsilon(a.dtype) * metrics.size(a)
            if metrics.distance(a, b).max(initial=0) > allowed:
                return False
        return True

    # -- verdict -------------------------------------------------------------------------------------------------

    def _site_results(self, pairing: Pairing, grown: Mapping[Key, LocalResult]) -> tuple[SiteResult, ...]:
        results: list[SiteResult] = []
        covered: set[Key] = set()
        wrong = {site.key for site in pairing.sites if self._is_wrong(site)}
        first = pair(*self.views).sites if grown else pairing.sites
        for site in pairing.sites:
            inside = {(n.view.path, o) for n in site.original.nodes for o in n.outputs} & set(grown)
            if site.key in wrong and inside:
                covered |= inside
                continue  # the tensors it grew over are to blame
            results.append(self._site_result(site))
            if inside and site.key not in wrong:
                names = ", ".join(printable(name) for _, name in sorted(inside))
                note = f"{names} has another value under the same name; what it leads to agrees"
                results[-1] = replace(results[-1], note=results[-1].note or note)
        for site in first:
            if site.key in covered:
                self.checked[site.key] = grown[site.key]
                results.append(self._site_result(site))
        return tuple(results)

    def _site_result(self, site: Site) -> SiteResult:
        local, here = self.checked.get(site.key), self.in_place.get(site.key)
        producer = next((n.op for n in reversed(site.folded.nodes) if site.tensor in n.outputs), "")
        base = SiteResult(
            tensor=printable(site.tensor),
            nodes=labels(site, self.folds),
            operator=producer,
            verdict=INCONCLUSIVE,
            how=", ".join(how for how, found in (("local", local), ("in place", here)) if found is not None),
            in_place=None if here is None else here.error,
            scope=site.original.nodes[-1].view.label if site.key[0] and site.original.nodes else "",
        )
        branching = any(node.op == "If" for node in (*site.original.nodes, *site.folded.nodes))
        if branching and not (local is not None and local.verdict == DIFFERENT):
            return _filled(base, local or here, INCONCLUSIVE, "only one of its branches was taken")
        if local is not None and local.verdict != INCONCLUSIVE:
            still = (
                f"{here.still} of {here.channels} channels are constant on real inputs" if here and here.still else ""
            )
            return _filled(base, local, local.verdict, local.note or still)
        if here is not None:
            if here.ratio > 1:
                return _filled(base, here, DIFFERENT, "it could not be checked by itself")
            if here.sees:
                return _filled(base, here, EQUAL, "")
        reason = (
            local.note if local is not None else self.local.failures.get(site.key, "it is too large to check by itself")
        )
        return _filled(base, local or here, INCONCLUSIVE, printable(reason))

    def _settle(
        self, outputs: Sequence[OutputResult], sites: Sequence[SiteResult], structure: Structure
    ) -> list[OutputResult]:
        """Settle outputs that running could not, by the sites: identical operators and equal sites leave no doubt."""
        proven = structure.complete and all(site.verdict == EQUAL for site in sites)
        random = any(node.op in RANDOM_OPERATORS for view in self.views[0].walk() for node in view.nodes)
        settled = []
        for output in outputs:
            result = output
            own = self.options.rtol is not None or self.options.atol is not None
            if proven and not own and output.verdict == DIFFERENT and _small(output):
                note = "more than the perturbation explains, but every site agrees within rounding"
                result = replace(output, verdict=EQUAL, note=note)
            if random and result.verdict == DIFFERENT and proven:
                result = replace(result, verdict=INCONCLUSIVE, note="the model draws random numbers")
            if result.verdict == INCONCLUSIVE and proven:
                reason = result.note or "it was not compared"
                result = replace(result, verdict=EQUAL, note=f"{reason}; identical operators and equal sites settle it")
            settled.append(result)
        return settled

    def _report(self, structure: Structure, sites: tuple[SiteResult, ...], outputs: list[OutputResult]) -> VerifyReport:
        wrong = [site for site in sites if site.verdict == DIFFERENT]
        open_sites = [site for site in sites if site.verdict == INCONCLUSIVE]
        if self.failed and outputs:
            self.notes.append(f"the models could not be run as a whole: {self.failed}")
        self.notes += self.evaluation.reasons
        self.unchecked += [f"site {site.tensor}" for site in open_sites if "budget" in site.note]
        verdict, reason = _verdict(structure, wrong, open_sites, outputs, self.unchecked)
        known = {fold.node for fold in self.folds}
        blamed = [node for site in wrong for node in site.nodes if not known or node in known]
        return VerifyReport(
            verdict=verdict,
            reason=reason,
            outputs=tuple(outputs),
            sites=sites,
            structure=structure,
            inputs=tuple(case.name for case in self.cases),
            dims=tuple({tuple(sorted(c.dims.items())): dict(c.dims) for c in self.cases if c.dims}.values()),
            providers=self.evaluation.providers,
            foreign_nodes=self.evaluation.foreign_nodes,
            evaluators=tuple(dict.fromkeys([*self.evaluation.evaluators, *sorted(self.local.evaluators)])),
            unchecked=tuple(self.unchecked),
            blamed=tuple(dict.fromkeys(blamed)),
            notes=tuple(dict.fromkeys(self.notes)),
            seconds=round(self.clock.seconds, 3),
            seed=self.options.seed,
            versions=versions(),
            equal=verdict == EQUAL,
        )

    def _node_counts(self) -> tuple[int, int]:
        ours, theirs = (sum(len(view.nodes) for view in main.walk()) for main in self.views)
        return ours, theirs


def _verdict(
    structure: Structure,
    wrong: Sequence[SiteResult],
    open_sites: Sequence[SiteResult],
    outputs: Sequence[OutputResult],
    unchecked: Sequence[str],
) -> tuple[str, str]:
    if structure.problems:
        return DIFFERENT, structure.problems[0]
    if wrong:
        site = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        amount = f"{site.error:.2g} of its spread" if site.error is not None else f"{site.error_abs:.2g}"
        return DIFFERENT, f"channel {site.channel} of {site.tensor} differs by {amount}: {site.node}{more}"
    bad = [output for output in outputs if output.verdict == DIFFERENT]
    if bad:
        output = bad[0]
        detail = output.note or (
            f"differs by {output.metrics.max_abs:.2g}; rounding alone moves the original by {output.noise.max_abs:.2g}"
        )
        return DIFFERENT, f"output {printable(output.name)}: {detail}"
    if unchecked:
        return INCONCLUSIVE, f"the budget was used up: {len(unchecked)} checks were left out, first {unchecked[0]}"
    if open_sites:
        site = open_sites[0]
        return INCONCLUSIVE, f"{site.tensor} ({site.node}) cannot be judged: {site.note}"
    doubtful = [output for output in outputs if output.verdict == INCONCLUSIVE]
    if doubtful or not outputs:
        what = f"output {printable(doubtful[0].name)}: {doubtful[0].note}" if doubtful else "there are no outputs"
        return INCONCLUSIVE, what
    return EQUAL, _why_equal(structure, outputs)


def _why_equal(structure: Structure, outputs: Sequence[OutputResult]) -> str:
    worst = max(outputs, key=lambda o: o.metrics.max_abs)
    if structure.complete and not structure.sites:
        return "the graphs are identical, node for node and weight for weight"
    text = (
        f"folded differs by {worst.metrics.max_abs:.2g}; rounding alone moves the original by {worst.noise.max_abs:.2g}"
    )
    if structure.complete:
        return f"{structure.sites} sites agree and all other operators are identical; {text}"
    return text


def _filled(base: SiteResult, found: Any, verdict: str, note: str) -> SiteResult:
    if found is None:
        return replace(base, verdict=verdict, note=note)
    return replace(
        base,
        verdict=verdict,
        note=note,
        channel=found.channel,
        channels=found.channels,
        error=found.error,
        error_abs=found.error_abs,
        tolerance=found.tolerance,
        noise=found.noise,
        spread=found.spread,
    )


def _small(output: OutputResult) -> bool:
    """Whether an error may be rounding that is amplified after a site: sums that cancel, say."""
    found = output.metrics
    return bool(found.elements) and not found.mismatches and found.max_relative <= _CANCELLED and found.max_abs > 0


def _signature(site: Site) -> Any:
    ours, theirs = site.original, site.folded
    return (ours.frontier, theirs.frontier, [id(n) for n in ours.nodes], [id(n) for n in theirs.nodes])


def _unknown(found: TensorType | None) -> bool:
    return found is None or found[1] is None or any(d is None for d in found[1])


def _not_float(found: TensorType | None) -> bool:
    return found is not None and found[0] not in shaping.FLOATS
