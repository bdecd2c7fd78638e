"""``bnfold bench ORIGINAL FOLDED``: what folding gained, in time, memory and size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import ModelWriteError, OptionError, printable

from .arguments import JsonOption, dimensions, seconds
from .output import ProgressBar, columns, paint, refuse_overwriting, say, size, warn, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bnfold.bench import BenchOptions, BenchReport, Row, StartRow

__all__ = ["bench", "bench_after_fold", "tables"]

COLOURS = {"faster": "green", "slower": "red"}


def bench(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL.onnx", help="The model as it was.", show_default=False)],
    folded: Annotated[Path, typer.Argument(metavar="FOLDED.onnx", help="The folded model.", show_default=False)],
    *,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Where to run: cpu, cuda, NAME[:option=value,...].")
    ] = "cpu",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes to measure, such as 1,8,64.")] = "",
    threads: Annotated[str, typer.Option(metavar="N,...", help="Threads per operator, such as 1,2; 0 is auto.")] = "1",
    dim: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Size of a dynamic dimension; may be repeated.")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time per row of the table, such as 30s.")] = "10s",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the inputs and of the order of rounds.")] = 0,
    json: JsonOption = "",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw all samples into an SVG file.", show_default=False)
    ] = None,
    fail_if_slower: Annotated[
        str, typer.Option(metavar="5%", help="Exit with 1 if a row is slower by more than this for certain.")
    ] = "",
    tf32: Annotated[bool, typer.Option("--tf32", help="CUDA: allow TF32 in matrix products.")] = False,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="CUDA: capture and replay graphs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and failed limits only.")] = False,
) -> None:
    """Measure two forms of one model against each other, in pairs and in random order.

    Every row is measured with onnxruntime's optimisations off and on: onnxruntime folds some norms by itself, so only
    the second tells what you gain when you use it.

    Examples:

        bnfold bench model.onnx folded.onnx

        bnfold bench model.onnx folded.onnx --batch 1,8,64 --threads 1,2 --plot bench.svg

        bnfold bench model.onnx folded.onnx --fail-if-slower 5% --json bench.json
    """
    refuse_overwriting(json, (original, folded))
    refuse_overwriting(str(plot or ""), (original, folded))
    limit = share(fail_if_slower) if fail_if_slower else None
    from bnfold.bench import BenchOptions
    from bnfold.runtime import Provider

    options = BenchOptions(
        provider=Provider.parse(provider),
        batches=numbers(batch, "--batch") or None,
        threads=numbers(threads, "--threads") or (1,),
        dims=dimensions(dim or ()),
        budget=seconds(budget) or 10.0,
        seed=seed,
        tf32=tf32,
        cuda_graph=cuda_graph,
    )
    report = measure(original, folded, options, quiet=quiet)
    if json:
        write_json(report, json)
    if plot is not None:
        draw(report, plot)
    if not quiet:
        show(report, on_stdout=json != "-")
    if limit is not None and complain_about_slower(report, limit):
        raise typer.Exit(1)


def bench_after_fold(
    original: Path, folded: Path, options: BenchOptions | None = None, *, quiet: bool = False
) -> BenchReport:
    """What ``bnfold fold --bench`` calls: measure and print the same tables."""
    report = measure(original, folded, options, quiet=quiet)
    if not quiet:
        show(report)
    return report


def measure(original: Path, folded: Path, options: BenchOptions | None, *, quiet: bool) -> BenchReport:
    """Measure, with a progress bar on stderr when that is a terminal."""
    from bnfold.bench import session

    with ProgressBar(quiet=quiet) as bar:
        return session.bench(original, folded, options, progress=bar.step)


def show(report: BenchReport, *, on_stdout: bool = True) -> None:
    """Tables on stdout, warnings with advice on stderr."""
    if on_stdout:
        say(tables(report))
    for message in warnings(report):
        warn(message)


# -- arguments ---------------------------------------------------------------------------------------------------------


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read ``1,8,64``.

    Raises:
        OptionError: something in it is not a whole number.
    """
    try:
        return tuple(dict.fromkeys(int(item) for item in text.split(",") if item.strip()))
    except ValueError:
        raise OptionError(f"{option} {printable(text)!r}: expected whole numbers separated by commas") from None


def share(text: str) -> float:
    """Read ``5%`` or ``0.05`` as 0.05.

    Raises:
        OptionError: no number, or a negative one.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise OptionError(f"--fail-if-slower {printable(text)!r}: expected a share such as 5% or 0.05")
    return value


# -- results -----------------------------------------------------------------------------------------------------------


def draw(report: BenchReport, path: Path) -> None:
    """Write the picture.

    Raises:
        ModelWriteError: the system refuses.
    """
    from bnfold.bench.plot import svg

    try:
        path.write_text(svg(report), encoding="utf-8")
    except OSError as error:
        raise ModelWriteError(f"{printable(path)}: the plot cannot be written: {error.strerror}") from error


def complain_about_slower(report: BenchReport, limit: float) -> bool:
    """Say on stderr which rows are slower than allowed; whether there are any."""
    rows = report.slower_than(limit)
    for row in rows:
        warn(f"slower by at least {1 / row.speedup.high - 1:.1%} at {row.level}{where(row)}; the limit is {limit:.1%}")
    return bool(rows)


def tables(report: BenchReport) -> Iterator[str]:
    """What ``bnfold bench`` prints."""
    yield paint(f"{report.original.name} against {report.folded.name} on {report.rows[0].provider}", "bold")
    yield "Latency: median time per run, and how far samples are from it (median absolute deviation)"
    yield from latency(report)
    yield ""
    yield from strips(report)
    yield ""
    yield "Beside latency"
    yield from beside(report)
    yield ""
    yield headline(report)


def latency(report: BenchReport) -> list[str]:
    """One line per row of the report; batch and threads only where they differ."""
    from bnfold.bench.units import duration, ratio

    batches = any(row.batch is not None for row in report.rows)
    threads = len({row.threads for row in report.rows}) > 1
    optional = ("batch",) * batches + ("threads",) * threads
    cells = [("optimisation", *optional, "original", "folded", "speed-up", "95% interval", "noise", "")]
    for row in report.rows:
        sides = [f"{duration(side.median)} ±{side.mad / side.median:.0%}" for side in (row.original, row.folded)]
        settings = ((str(row.batch),) if batches else ()) + ((str(row.threads or "auto"),) if threads else ())
        interval = f"{row.speedup.low:.3f} to {row.speedup.high:.3f}"
        verdict = paint(row.verdict, COLOURS[row.verdict]) if row.verdict in COLOURS else row.verdict
        cells.append((row.level, *settings, *sides, ratio(row.speedup.median), interval, f"±{row.noise:.1%}", verdict))
    return columns(cells, right=range(1, len(cells[0]) - 1))


def strips(report: BenchReport) -> list[str]:
    """The samples of the row that the headline quotes, as two lines of blocks."""
    from bnfold.bench.plot import strip, window
    from bnfold.bench.units import duration

    row = report.headline
    bounds = window(row)
    plain = not (getattr(sys.stdout, "encoding", "") or "").lower().startswith("utf")
    sides = (("original", row.samples.original), ("folded", row.samples.folded))
    lines = columns([(name, strip(values, bounds, ascii_only=plain)) for name, values in sides])
    scale = f"{duration(bounds[0])} to {duration(bounds[1])}"
    return [f"Samples at {row.level}{where(row)}, from {scale}", *lines]


def beside(report: BenchReport) -> list[str]:
    """What folding changed beside latency."""
    from bnfold.bench.units import amount

    before, after = report.original, report.folded
    sizes = before.file_bytes, after.file_bytes
    rows: list[tuple[str, ...]] = [("", "original", "folded", "change")]
    for start in report.starts:
        rows += start_lines(start)
    rows.append(("file size", *map(size, sizes), change(*sizes)))
    for label, name in (("operators", "operators"), ("batch norms", "norms"), ("parameters", "parameters"),
                        ("multiply-adds per run", "multiply_adds")):  # fmt: skip
        values = getattr(before, name), getattr(after, name)
        rows.append((label, *("unknown" if v is None else amount(v) for v in values), change(*values)))
    return columns(rows, right=(1, 2, 3))


def start_lines(start: StartRow) -> Iterator[tuple[str, ...]]:
    """Session creation and memory at one level."""
    from bnfold.bench.units import duration

    fields: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("session creation", "create", duration),
        ("peak memory of a process", "peak_bytes", lambda value: size(int(value))),
    )
    for label, name, text in fields:
        values = getattr(start.original, name), getattr(start.folded, name)
        yield f"{label}, {start.level}", text(values[0]), text(values[1]), change(*values)


def change(before: float | None, after: float | None) -> str:
    """``-12.3%``, or nothing when either is unknown."""
    return "" if not before or after is None else f"{after / before - 1:+.1%}"


def headline(report: BenchReport) -> str:
    """The one sentence to quote: always about everything that onnxruntime can do switched on."""
    row = report.headline
    if row.verdict not in COLOURS:
        return f"With onnxruntime's optimisations on: {row.verdict}{where(row)}."
    return (
        f"With onnxruntime's optimisations on the folded model is {row.verdict}: {row.speedup.median:.2f}x the "
        f"original's speed (95% interval {row.speedup.low:.3f} to {row.speedup.high:.3f}){where(row)}."
    )


def where(row: Row) -> str:
    """Batch and threads of a row, for a sentence."""
    batch = "" if row.batch is None else f", batch {row.batch}"
    threads = "automatic threads" if row.threads == 0 else f"{row.threads} thread{'s' * (row.threads != 1)}"
    return f"{batch}, {threads}"


def warnings(report: BenchReport) -> Iterator[str]:
    """One line per warning, with what to do about it."""
    for caution in report.cautions:
        yield f"warning: {caution.message}; {caution.advice}"
    for row in report.rows:
        for caution in row.cautions:
            yield f"warning: {caution.message} ({row.level}{where(row)}); {caution.advice}"
        if any(row.foreign_nodes):
            before, after = row.foreign_nodes
            yield f"note: {before} and {after} nodes run on the CPU instead of {row.provider} ({row.level}{where(row)})"
