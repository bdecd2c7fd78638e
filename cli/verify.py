"""``bnfold verify A.onnx B.onnx``: is B the same network as A?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import printable

from .arguments import JsonOption, dimensions, seconds
from .output import ProgressBar, columns, many, paint, refuse_overwriting, say, warn, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bnfold import VerifyReport
    from bnfold.verify import OutputResult, SiteResult

__all__ = ["verify"]

EXIT_CODES = {"equal": 0, "different": 1, "inconclusive": 2}
COLOURS = {"equal": "green", "different": "red", "inconclusive": "yellow"}
SHOWN = 10  # sites listed without -v


def verify(
    original: Annotated[Path, typer.Argument(metavar="A.onnx", help="The model that is right.", show_default=False)],
    folded: Annotated[Path, typer.Argument(metavar="B.onnx", help="The model to compare.", show_default=False)],
    *,
    json: JsonOption = "",
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Where to run: cpu, cuda, NAME[:option=value,...].")
    ] = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of everything random.")] = 0,
    dim: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Fix a dynamic dimension, e.g. N=4; may be repeated.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="DATA", help="name=file.npy, file.npz or an ONNX test-data folder; may be repeated."
        ),
    ] = None,
    rtol: Annotated[float | None, typer.Option(metavar="X", help="Relative tolerance for outputs.")] = None,
    atol: Annotated[float | None, typer.Option(metavar="X", help="Absolute tolerance for outputs.")] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time after which no check is begun, e.g. 60s.")] = "",
    isolated: Annotated[
        bool, typer.Option("--isolated", help="Run in a process of its own, so that a crash is a result.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every site and all metrics.")] = False,
) -> None:
    """Compare two models: outputs, and every place where their operators or weights differ.

    Exits with 0 when they are the same network, 1 when they are not, and 2 when that cannot be told.

    Without --rtol and --atol, errors are judged against what rounding alone does to A.

    Examples:

        bnfold verify model.onnx folded.onnx

        bnfold verify model.onnx folded.onnx --input samples.npz --json -

        bnfold verify model.onnx simplified.onnx --dim N=8 --budget 60s
    """
    refuse_overwriting(json, (original, folded))
    dims, limit = dimensions(dim or ()), seconds(budget)
    with ProgressBar(quiet=quiet) as bar:
        from bnfold.runtime import Provider
        from bnfold.verify import VerifyOptions
        from bnfold.verify import verify as compare

        options = VerifyOptions(
            provider=Provider.parse(provider),
            seed=seed,
            dims=dims,
            rtol=rtol,
            atol=atol,
            inputs=tuple(inputs or ()),
            budget=limit,
            isolated=isolated,
            progress=bar.fraction,
        )
        report = compare(original, folded, options)
    if json:
        write_json(report, json)
    if not quiet:
        for note in report.notes:
            warn(f"note: {note}")
        if json != "-":
            say(lines(report, verbose=verbose))
    if report.verdict != "equal":
        if quiet or json == "-":
            warn(report.reason)
        raise typer.Exit(EXIT_CODES[report.verdict])


def lines(report: VerifyReport, *, verbose: bool = False) -> Iterator[str]:
    """What ``bnfold verify`` prints."""
    yield f"{paint(report.verdict, COLOURS[report.verdict])}: {printable(report.reason)}"
    yield ""
    yield from _facts(report)
    yield from _outputs(report.outputs, verbose=verbose)
    yield from _sites(report.sites, verbose=verbose)
    for missing in report.unchecked:
        yield f"not checked: {printable(missing)}"


def _facts(report: VerifyReport) -> Iterator[str]:
    structure = report.structure
    yield (
        f"{many(structure.nodes[0], 'operator')} against {structure.nodes[1]:,}: "
        f"{many(structure.identical, 'tensor')} made identically, {many(structure.sites, 'site')} that "
        f"{'differs' if structure.sites == 1 else 'differ'}"
    )
    for problem in structure.problems:
        yield f"  {paint('problem', 'red')}: {printable(problem)}"
    run = [many(len(report.inputs), "input set"), f"seed {report.seed}", f"{report.seconds:.1f} s"]
    run += [*map(printable, report.evaluators), *map(printable, report.providers[:1])]
    yield ", ".join(run)
    if report.foreign_nodes:
        yield f"{many(report.foreign_nodes, 'operator')} of the second model ran on the CPU instead"


def _outputs(results: Sequence[OutputResult], *, verbose: bool) -> Iterator[str]:
    if not results:
        return
    yield ""
    table: list[tuple[str, ...]] = [("output", "verdict", "largest error", "rounding alone", "tolerance", "inputs")]
    for result in results:
        found = result.metrics
        error = f"{found.max_abs:.1e}" if not found.mismatches else f"{found.mismatches:,} of {found.elements:,}"
        numbers = (error, f"{result.noise.max_abs:.1e}", f"{result.tolerance:.1e}")
        table.append((printable(result.name), result.verdict, *numbers, printable(result.inputs)))
    yield from columns(table, right=(2, 3, 4), indent="")
    for result in results:
        if result.note:
            yield f"  {printable(result.name)}: {printable(result.note)}"
        if verbose:
            yield from _metrics(result)


def _metrics(result: OutputResult) -> Iterator[str]:
    found = result.metrics
    text = f"  {printable(result.name)}: relative to range {found.max_relative:.1e}, RMSE {found.rmse:.1e}, "
    text += f"SNR {found.snr_db:.1f} dB, cosine {found.cosine:.9f}, "
    text += "ULP {:.1f} / {:.1f} / {:.1f} (median, 99%, most)".format(*found.ulp)
    if found.argmax_agreement is not None:
        text += f", argmax agrees on {found.argmax_agreement:.1%}"
    yield text
    if found.worst is not None:
        place = list(found.worst.index)
        yield f"    worst at {place}: {found.worst.original} became {found.worst.folded}"


def _sites(results: Sequence[SiteResult], *, verbose: bool) -> Iterator[str]:
    if not results:
        return
    ordered = sorted(results, key=lambda site: (site.verdict == "equal", site.verdict == "inconclusive"))
    telling = [site for site in ordered if verbose or site.verdict != "equal"]
    shown = telling if verbose else telling[:SHOWN]
    yield ""
    if shown:
        table: list[tuple[str, ...]] = [("site", "verdict", "tensor", "channel", "error", "rounding", "tolerance")]
        for site in shown:
            unit = site.spread or 1.0  # a channel without spread is measured as it is
            sizes = (f"{size / unit:.1e}" for size in (site.error_abs, site.noise, site.tolerance))
            place = "" if site.channel is None else str(site.channel)
            table.append((printable(site.node), site.verdict, printable(site.tensor), place, *sizes))
        yield from columns(table, right=(3, 4, 5, 6), indent="")
        yield from (f"  {printable(site.tensor)}: {printable(site.note)}" for site in shown if site.note)
        if len(telling) > len(shown):
            yield f"and {len(telling) - len(shown):,} more; -v lists all"
    agree = sum(site.verdict == "equal" for site in results)
    yield f"{agree:,} of {many(len(results), 'site')} agree (errors relative to the channel's spread)"
