"""From what was found to a verdict with a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bnfold.errors import printable
from bnfold.verify.report import DIFFERENT, EQUAL, INCONCLUSIVE, OutputResult, SiteResult, Structure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnfold.verify.inplace import InPlace
    from bnfold.verify.labels import Labels
    from bnfold.verify.local import LocalResult
    from bnfold.verify.sites import Site

__all__ = ["settle", "site_result", "verdict"]

# Error over range that sums which cancel behind proven sites may cause: at least the first, at most the second, and
# between them so many times what the sites themselves were allowed, relative to their spread.
_CANCELLED = (1e-4, 0.05)
_AMPLIFIED = 10.0


def site_result(
    site: Site, labels: Labels, local: LocalResult | None, here: InPlace | None, failure: str
) -> SiteResult:
    """The verdict of one site.

    Args:
        site: the site.
        labels: names its folds.
        local: what checking it alone found.
        here: what comparing it in place found.
        failure: why it could not be checked alone.
    """
    producer = next((n.op for n in reversed(site.folded.nodes) if site.tensor in n.outputs), "")
    base = SiteResult(
        tensor=printable(site.tensor),
        nodes=labels.of(site),
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
        still = f"{here.still} of {here.channels} channels are constant on real inputs" if here and here.still else ""
        return _filled(base, local, local.verdict, local.note or still)
    if here is not None:
        if here.ratio > 1:
            return _filled(base, here, DIFFERENT, "it could not be checked by itself")
        if here.sees:
            return _filled(base, here, EQUAL, "")
    reason = local.note if local is not None else failure
    return _filled(base, local or here, INCONCLUSIVE, printable(reason))


def _filled(base: SiteResult, found: Any, outcome: str, note: str) -> SiteResult:
    if found is None:
        return replace(base, verdict=outcome, note=note)
    return replace(
        base,
        verdict=outcome,
        note=note,
        channel=found.channel,
        channels=found.channels,
        error=found.error,
        error_abs=found.error_abs,
        tolerance=found.tolerance,
        noise=found.noise,
        spread=found.spread,
    )


def settle(
    outputs: Sequence[OutputResult],
    sites: Sequence[SiteResult],
    *,
    proven: bool,
    random: bool,
    own_tolerance: bool,
) -> list[OutputResult]:
    """Settle outputs that running could not, by the sites: identical operators and equal sites leave no doubt.

    Args:
        outputs: verdicts from running.
        sites: results of all sites.
        proven: every output follows from identical operators and equal sites.
        random: the model draws random numbers.
        own_tolerance: the user gave the tolerance, so an error above it stays an error.
    """
    if not proven:
        return list(outputs)
    loosest = max((site.tolerance / site.spread for site in sites if site.spread > 0), default=0.0)
    allowed = min(max(_CANCELLED[0], _AMPLIFIED * loosest), _CANCELLED[1])
    settled = []
    for output in outputs:
        result = output
        if result.verdict == DIFFERENT and not own_tolerance and _small(result, allowed):
            note = "more than the perturbation explains, but every site agrees within rounding"
            result = replace(result, verdict=EQUAL, note=note)
        if result.verdict == DIFFERENT and random:
            result = replace(result, verdict=INCONCLUSIVE, note="the model draws random numbers")
        if result.verdict == INCONCLUSIVE:
            reason = result.note or "it was not compared"
            result = replace(result, verdict=EQUAL, note=f"{reason}; identical operators and equal sites settle it")
        settled.append(result)
    return settled


def _small(output: OutputResult, allowed: float) -> bool:
    """Whether an error may be rounding that is amplified after a site: sums that cancel, say."""
    found = output.metrics
    return bool(found.elements) and not found.mismatches and bool(found.max_abs) and found.max_relative <= allowed


def verdict(
    structure: Structure, sites: Sequence[SiteResult], outputs: Sequence[OutputResult], unchecked: Sequence[str]
) -> tuple[str, str]:
    """The verdict over everything, and the reason in one sentence."""
    if structure.problems:
        return DIFFERENT, structure.problems[0]
    wrong = [site for site in sites if site.verdict == DIFFERENT]
    if wrong:
        site = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        amount = f"{site.error:.2g} of its spread" if site.error is not None else f"{site.error_abs:.2g}"
        return DIFFERENT, f"channel {site.channel} of {site.tensor} differs by {amount}: {site.node}{more}"
    bad = next((output for output in outputs if output.verdict == DIFFERENT), None)
    if bad is not None:
        return DIFFERENT, f"output {printable(bad.name)}: {bad.note or _difference(bad)}"
    if unchecked:
        return INCONCLUSIVE, f"the budget was used up: {len(unchecked)} checks were left out, first {unchecked[0]}"
    doubtful = next((site for site in sites if site.verdict == INCONCLUSIVE), None)
    if doubtful is not None:
        return INCONCLUSIVE, f"{doubtful.tensor} ({doubtful.node}) cannot be judged: {doubtful.note}"
    unsure = next((output for output in outputs if output.verdict == INCONCLUSIVE), None)
    if unsure is not None:
        return INCONCLUSIVE, f"output {printable(unsure.name)}: {unsure.note}"
    if not outputs:
        return INCONCLUSIVE, "there are no outputs"
    return EQUAL, _why_equal(structure, outputs)


def _difference(output: OutputResult) -> str:
    found = output.metrics
    if found.mismatches:
        return f"{found.mismatches:,} of {found.elements:,} elements differ (NaN and infinity included)"
    return f"differs by {found.max_abs:.2g}; rounding alone moves the original by {output.noise.max_abs:.2g}"


def _why_equal(structure: Structure, outputs: Sequence[OutputResult]) -> str:
    if structure.complete and not structure.sites:
        return "the graphs are identical, node for node and weight for weight"
    worst = max(outputs, key=lambda output: output.metrics.max_abs)
    text = (
        f"folded {_difference(worst)}"
        if not worst.metrics.mismatches
        else f"output {printable(worst.name)} {worst.note}"
    )
    if structure.complete:
        count = f"{structure.sites} sites agree" if structure.sites != 1 else "1 site agrees"
        return f"{count} and all other operators are identical; {text}"
    return text
