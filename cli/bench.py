"""``bnfold bench ORIGINAL FOLDED``: what folding gained, in time, memory and size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import ModelWriteError, OptionError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from bnfold.bench import BenchOptions, BenchReport, Row

__all__ = ["bench", "bench_after_fold", "print_report"]

PIPED = 110  # columns of a table that goes to a file or a pipe
COLOURS = {"faster": "green", "slower": "red"}


def bench(
    original: Annotated[Path, typer.Argument(help="The model as it was.", show_default=False)],
    folded: Annotated[Path, typer.Argument(help="The folded model.", show_default=False)],
    *,
    provider: Annotated[
        str, typer.Option(help="Execution provider: cpu, cuda, or NAME[:option=value,...].", metavar="NAME")
    ] = "cpu",
    batch: Annotated[str, typer.Option(help="Batch sizes to measure, e.g. 1,8,64.", metavar="N,...")] = "",
    threads: Annotated[str, typer.Option(help="Threads per operator, e.g. 1,2; 0 is auto.", metavar="N,...")] = "1",
    dim: Annotated[
        list[str] | None, typer.Option(help="Size of a dynamic dimension; may be repeated.", metavar="NAME=N")
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds of timing per row of the table.", metavar="SECONDS")] = 10.0,
    seed: Annotated[int, typer.Option(help="For the inputs and the order of rounds.")] = 0,
    json: Annotated[str, typer.Option(help="Write a JSON report with all samples; - is stdout.", metavar="FILE")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw the samples into an SVG file.", metavar="FILE.svg")] = None,
    fail_if_slower: Annotated[
        str, typer.Option(help="Exit with 1 if any row is slower by more than this for certain.", metavar="5%")
    ] = "",
    tf32: Annotated[bool, typer.Option("--tf32", help="CUDA: allow TF32 in matrix products.")] = False,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="CUDA: capture and replay graphs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No tables and no warnings.")] = False,
) -> None:
    """Measure two forms of one model against each other, in pairs and in random order.

    Every row is measured with onnxruntime's optimisations off and on: onnxruntime folds some norms by itself, so only
    the second tells what you gain when you use it.

    Examples:

        bnfold bench model.onnx folded.onnx

        bnfold bench model.onnx folded.onnx --batch 1,8,64 --threads 1,2 --plot bench.svg

        bnfold bench model.onnx folded.onnx --fail-if-slower 5% --json bench.json
    """
    from bnfold.bench import BenchOptions
    from bnfold.runtime import Provider

    limit = share(fail_if_slower) if fail_if_slower else None
    options = BenchOptions(
        provider=Provider.parse(provider),
        batches=numbers(batch, "--batch") or None,
        threads=numbers(threads, "--threads") or (1,),
        dims=dict(map(dimension, dim or ())),
        budget=budget,
        seed=seed,
        tf32=tf32,
        cuda_graph=cuda_graph,
    )
    report = run(original, folded, options, quiet=quiet)
    if json:
        write_json(report, json)
    if plot is not None:
        from bnfold.bench.plot import svg

        write(plot, svg(report))
    if not quiet:
        print_report(report, tables=json != "-")
    if limit is not None and report_slower(report, limit):
        raise typer.Exit(1)


def bench_after_fold(
    original: Path, folded: Path, options: BenchOptions | None = None, *, quiet: bool = False
) -> BenchReport:
    """What ``bnfold fold --bench`` calls: measure and print the same tables."""
    report = run(original, folded, options, quiet=quiet)
    if not quiet:
        print_report(report)
    return report


def run(original: Path, folded: Path, options: BenchOptions | None, *, quiet: bool) -> BenchReport:
    """Measure, with a progress bar on stderr when that is a terminal."""
    from bnfold.bench.session import bench as measure

    if quiet or not sys.stderr.isatty():
        return measure(original, folded, options)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("bench", total=None)

        def show(what: str, step: int, steps: int) -> None:
            bar.update(task, description=what, completed=step, total=steps)

        return measure(original, folded, options, progress=show)


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


def dimension(text: str) -> tuple[str, int]:
    """Read ``N=4``; the name may hold an equals sign itself.

    Raises:
        OptionError: there is no number behind the last equals sign.
    """
    name, _, value = text.rpartition("=")
    if not name or not value.strip().isdigit():
        raise OptionError(f"--dim {printable(text)!r}: expected NAME=NUMBER")
    return name, int(value)


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


# -- output ------------------------------------------------------------------------------------------------------------


def write_json(report: BenchReport, target: str) -> None:
    """Write the report to a file, or to stdout for ``-``."""
    from bnfold.report import dumps

    if target == "-":
        sys.stdout.write(dumps(report))
    else:
        write(Path(target), dumps(report))


def write(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        ModelWriteError: the system refuses.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ModelWriteError(f"{printable(path)}: cannot be written ({error.strerror})") from error


def report_slower(report: BenchReport, limit: float) -> bool:
    """Say on stderr which rows are slower than allowed."""
    slower = report.slower_than(limit)
    for row in slower:
        factor = 1 / row.speedup.high - 1
        message = f"bnfold: slower by at least {factor:.1%} at {row.level}{where(row)}; the limit is {limit:.1%}"
        print(message, file=sys.stderr)
    return bool(slower)


def where(row: Row) -> str:
    """Batch and threads of a row, for a sentence."""
    batch = "" if row.batch is None else f", batch {row.batch}"
    return f"{batch}, {thread_count(row.threads)}"


def print_report(report: BenchReport, *, tables: bool = True) -> None:
    """Tables to stdout, warnings with advice to stderr."""
    from rich.console import Console

    if tables:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = PIPED
        console.print(latency_table(report))
        for line in strips(report, console):
            console.print(line, markup=False)
        console.print()
        console.print(side_table(report))
        console.print(headline(report), markup=False)
    errors = Console(stderr=True, highlight=False)
    for line in warnings(report):
        errors.print(line, markup=False, soft_wrap=True)


def latency_table(report: BenchReport) -> Table:
    """One line per row of the report; columns that say the same everywhere go into the title."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from bnfold.bench.units import duration, ratio

    batches = any(row.batch is not None for row in report.rows)
    threads = len({row.threads for row in report.rows}) > 1
    common = "" if threads else f", {thread_count(report.rows[0].threads)}"
    title = f"Latency on {report.rows[0].provider}{common}: median time per run ± median absolute deviation"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("optimisation", no_wrap=True)
    for name in ("batch",) * batches + ("threads",) * threads + ("original", "folded", "speed-up", "noise"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in report.rows:
        colour = COLOURS.get(row.verdict, "")
        sides = (f"{duration(side.median)} ±{side.mad / side.median:.0%}" for side in (row.original, row.folded))
        table.add_row(
            row.level.removeprefix("ORT_"),
            *((str(row.batch),) if batches else ()),
            *((str(row.threads or "auto"),) if threads else ()),
            *sides,
            f"{ratio(row.speedup.median)} [{row.speedup.low:.3f}, {row.speedup.high:.3f}]".replace("[", r"\["),
            f"±{row.noise:.1%}",
            f"[{colour}]{row.verdict}[/]" if colour else row.verdict,
        )
    return table


def thread_count(threads: int) -> str:
    """``1 thread``, ``2 threads``, ``automatic threads``."""
    return "automatic threads" if threads == 0 else f"{threads} thread{'s' * (threads != 1)}"


def strips(report: BenchReport, console: Console) -> list[str]:
    """The samples of the row that the headline quotes, as two lines of blocks."""
    from bnfold.bench.plot import strip, window
    from bnfold.bench.units import duration

    row = report.headline
    bounds = window(row)
    plain = not (console.encoding or "").lower().startswith("utf")
    scale = f"{duration(bounds[0])} to {duration(bounds[1])}"
    sides = (("original", row.samples.original), ("folded", row.samples.folded))
    lines = [f"  {name:8} {strip(values, bounds, ascii_only=plain)}" for name, values in sides]
    return [f"Samples at {row.level}{where(row)}, {scale}:", *lines]


def side_table(report: BenchReport) -> Table:
    """What folding changed beside latency."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from bnfold.bench.units import amount, duration, size

    table = Table(title="Beside latency", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("original", "folded", "change"):
        table.add_column(name, justify="right", no_wrap=True)

    def line(label: str, before: float | None, after: float | None, show: Callable[[float], str]) -> None:
        known = before is not None and after is not None
        change = f"{after / before - 1:+.1%}" if known and before else ""  # type: ignore[operator]
        table.add_row(label, *("unknown" if v is None else show(v) for v in (before, after)), change)

    for row in report.starts:
        line(f"session creation, {row.level}", row.original.create, row.folded.create, duration)
        line(f"peak memory of a process, {row.level}", row.original.peak_bytes, row.folded.peak_bytes, size)
    before, after = report.original, report.folded
    line("file size", before.file_bytes, after.file_bytes, size)
    line("operators", before.operators, after.operators, amount)
    line("batch norms", before.norms, after.norms, amount)
    line("parameters", before.parameters, after.parameters, amount)
    line("multiply-adds per run", before.multiply_adds, after.multiply_adds, amount)
    return table


def headline(report: BenchReport) -> str:
    """The one sentence to quote: always about everything that onnxruntime can do switched on."""
    row = report.headline
    if row.verdict == "no measurable difference":
        return f"With onnxruntime's optimisations on: no measurable difference{where(row)}."
    low, high = sorted((row.speedup.low, row.speedup.high))
    return (
        f"With onnxruntime's optimisations on the folded model is {row.verdict}: "
        f"{row.speedup.median:.2f}x the original's speed (95% interval {low:.3f} to {high:.3f}){where(row)}."
    )


def warnings(report: BenchReport) -> list[str]:
    """One line per warning; the same warning about several rows stands once."""
    found = [(caution, "") for caution in report.cautions]
    found += [(caution, f" ({row.level}{where(row)})") for row in report.rows for caution in row.cautions]
    lines = [f"bnfold: warning: {c.message}{place}; {c.advice}" for c, place in found]
    for row in report.rows:
        if any(row.foreign_nodes):
            counts = " and ".join(str(n) for n in row.foreign_nodes)
            lines.append(f"bnfold: note: {counts} nodes run on the CPU instead of {row.provider}{where(row)}")
    return lines
