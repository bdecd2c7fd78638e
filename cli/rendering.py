"""Plans and reports as lines of text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import printable

from .output import columns, many, paint, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bnfold import Folded, Kept, Plan, Report, VerifyReport
    from bnfold.report import Counts

__all__ = ["folded", "kept_lines", "planned", "rows"]

Measured = tuple[str, str, float, float, float]
"""Name, verdict, error, what rounding alone does, tolerance."""

NORM = "BatchNormalization"
SHOWN = 10  # nodes listed per reason without -v


def folded(report: Report, *, verbose: bool = False) -> Iterator[str]:
    """What ``bnfold fold`` prints."""
    yield paint(f"Folded {_tally(report.folded, report.before)}", "bold")
    yield from routes(report.folded, verbose=verbose)
    yield from kept_lines(report.kept, verbose=verbose)
    yield ""
    yield from proof_lines(report.verification, verbose=verbose)
    yield ""
    yield from _change(report.before, report.after)
    yield ""
    yield from (f"Wrote {_near(name)}" for name in report.files)


def planned(plan: Plan, *, verbose: bool = False) -> Iterator[str]:
    """What ``bnfold fold --dry-run`` and ``--check`` print."""
    heading = f"Would fold {_tally(plan.folded, plan.before)}" if plan.folded else "There is nothing to fold."
    yield paint(heading, "bold")
    yield from routes(plan.folded, verbose=verbose)
    yield from kept_lines(plan.kept, verbose=verbose)
    yield "Nothing was written."


def routes(entries: Sequence[Folded], *, verbose: bool) -> Iterator[str]:
    """The folds, one line per way they went; each by itself when verbose."""
    if verbose:
        yield from rows(entries)
        return
    ways = Counter((entry.operator, entry.route) for entry in entries)
    lines = [(f"{count:,}", operator, printable(route)) for (operator, route), count in ways.most_common()]
    yield from columns(lines, right=(0,))


def rows(entries: Sequence[Folded]) -> list[str]:
    """One line per fold: operator, node, the way it went, and what took it over."""
    table = [(entry.operator, _place(entry), printable(entry.route), _into(entry)) for entry in entries]
    return columns(table)


def kept_lines(entries: Sequence[Kept], *, verbose: bool = False, heading: str = "Kept") -> Iterator[str]:
    """What stays: by code, with what the code means, and a sentence for each node."""
    if not entries:
        return
    from bnfold.refusals import CODES

    yield ""
    yield paint(f"{heading} {many(len(entries), 'operator')}", "bold")
    groups: dict[str, list[Kept]] = {}
    for entry in entries:
        groups.setdefault(entry.code, []).append(entry)
    for code, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        meaning = CODES[code].meaning if code in CODES else ""
        yield f"  {paint(code, 'yellow')}: {meaning}"
        shown = group if verbose else group[:SHOWN]
        yield from (f"    {entry.operator} {_place(entry)}: {printable(entry.reason)}" for entry in shown)
        if len(group) > len(shown):
            yield f"    and {len(group) - len(shown):,} more; -v lists all"
    yield f"  More about a reason: bnfold explain {next(iter(groups))}"


def proof_lines(proof: VerifyReport | None, *, verbose: bool) -> Iterator[str]:
    """The verdict in one line; every output and site when verbose."""
    if proof is None:
        yield f"Proof: {paint('left out', 'yellow')} (--no-verify)"
        return
    colour = {"equal": "green", "different": "red"}.get(proof.verdict, "yellow")
    yield f"Proof: {paint(proof.verdict, colour)}; {printable(proof.reason)}"
    for missing in proof.unchecked:
        yield f"  not checked: {printable(missing)}"
    if not verbose:
        return
    facts = [*proof.evaluators, many(len(proof.inputs), "input set"), f"seed {proof.seed}", f"{proof.seconds:.1f} s"]
    yield f"  {', '.join(facts)}"
    figures: list[Measured] = [
        (f"output {printable(o.name)}", o.verdict, o.metrics.max_abs, o.noise.max_abs, o.tolerance)
        for o in proof.outputs
    ]
    yield from _measurements("absolute error", figures)
    figures = []
    for site in proof.sites:
        unit = site.spread or 1.0  # a channel without spread is measured as it is
        measured = (site.error_abs / unit, site.noise / unit, site.tolerance / unit)
        figures.append((f"site {printable(site.tensor)}", site.verdict, *measured))
    yield from _measurements("error / spread", figures)


def _measurements(error: str, rows: Sequence[Measured]) -> list[str]:
    """Errors of outputs or sites beside what rounding alone does, and what would have passed."""
    if not rows:
        return []
    table: list[tuple[str, ...]] = [("", "verdict", error, "rounding alone", "tolerance")]
    table += [(name, verdict, *(f"{figure:.1e}" for figure in figures)) for name, verdict, *figures in rows]
    return columns(table, right=(2, 3, 4))


def _tally(entries: Sequence[Folded], before: Counts) -> str:
    """``5 of 7 batch norms and 1 of 1 affine operators``."""
    norms = sum(entry.operator == NORM for entry in entries)
    others = len(entries) - norms
    text = f"{norms:,} of {many(before.batch_norms, 'batch norm')}"
    if before.affine_operators or others:
        text += f" and {others:,} of {many(max(before.affine_operators, others), 'affine operator')} (Mul, Add, ...)"
    return text


def _change(before: Counts, after: Counts) -> list[str]:
    table = [("", "before", "after")]
    for name, field in (
        ("operators", "nodes"),
        ("batch norms", "batch_norms"),
        ("affine operators", "affine_operators"),
        ("parameters", "parameters"),
    ):
        if getattr(before, field) or getattr(after, field):
            table.append((name, f"{getattr(before, field):,}", f"{getattr(after, field):,}"))
    if before.file_bytes is not None and after.file_bytes is not None:
        table.append(("size", size(before.file_bytes), size(after.file_bytes)))
    return columns(table, right=(1, 2))


def _near(path: str) -> str:
    """The path from the current folder when it lies beneath, else as it is."""
    try:
        return printable(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return printable(path)


def _place(entry: Folded | Kept) -> str:
    """The node, and where it stands when that is not the main graph."""
    name = printable(entry.node)
    return f"{name} (in {printable(entry.scope)})" if entry.scope else name


def _into(entry: Folded) -> str:
    return f"-> {', '.join(map(printable, entry.into))}" if entry.into else ""
