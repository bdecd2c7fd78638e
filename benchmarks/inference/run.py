"""What users gain: ``python benchmarks/inference/run.py [--groups trained,light,corpus] [--provider cuda]``.

Every model as it was, as bnfold left it, and as every other tool left it, timed in one run with onnxruntime: all
optimisations off and on, one and two threads, batch 1 and 16. Speed is the original's time over the tool's, with a
95% interval; "control" is a second session of the original, which shows the noise. Writes ``inference-PROVIDER.json``
and ``.md`` to ``.cache/results``. With ``--provider cuda`` the table is made for float32 and float16, with device
buffers bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from race import Result, race
from subjects import Subject, all_subjects

from bnfold.bench import BenchOptions
from bnfold.bench.machine import look_at_machine
from bnfold.bench.runner import open_runner
from bnfold.errors import BnfoldError
from bnfold.runtime import Level, Provider

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tool"))

from measure import spawn
from tools import CACHE, Tools, find

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEVELS = (Level.ALL, Level.DISABLE_ALL)
CONTROL = "control"
TOOLS = ("bnfold", "onnxruntime", "onnxsim", "onnxslim", "onnxoptimizer", "onnxscript")


def main() -> int:
    """Fold everything, race everything, write the tables."""
    args = arguments()
    options = BenchOptions(provider=Provider.parse(args.provider))
    tools = find(args.peers, build=set(args.tools) != {"bnfold"})
    name = f"inference-{options.provider.short}"
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        contest = Contest(args, tools, options, Path(folder))
        for subject in all_subjects(Path(folder), args.groups):
            for dtype in ("float32", "float16") if options.provider.short == "cuda" else ("float32",):
                rows += race_model(subject, dtype, contest)
            found = {"machine": asdict(look_at_machine(options.provider.name)), "rows": rows}
            (args.out / f"{name}.json").write_text(json.dumps(found, indent=1))
    text = markdown(rows)
    (args.out / f"{name}.md").write_text(text)
    print(text)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words, counts = (lambda text: tuple(text.split(","))), (lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--groups", type=words, default=("trained", "light", "corpus"))
    parser.add_argument("--tools", type=words, default=TOOLS)
    parser.add_argument("--threads", type=counts, default=(1, 2))
    parser.add_argument("--batch", type=counts, default=(1, 16))
    parser.add_argument("--budget", type=float, default=4.0, help="seconds per row, all tools together")
    parser.add_argument("--precision", type=float, default=0.01)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has the other tools (or BNFOLD_PEERS)")
    parser.add_argument("--out", type=Path, default=CACHE / "results")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Contest:
    """What is the same for all rows: arguments, where the tools are, session options, a folder to work in."""

    args: argparse.Namespace
    tools: Tools
    options: BenchOptions
    folder: Path


def race_model(subject: Subject, dtype: str, contest: Contest) -> list[dict[str, Any]]:
    """All rows of one model."""
    source = subject.path if dtype == "float32" else to_float16(subject, contest.folder)
    if source is None:
        return []
    made = {"original": source, CONTROL: source}
    for tool in contest.args.tools:
        path = contest.folder / f"{tool}-{dtype}-{subject.name}.onnx"
        if spawn(contest.tools.command(tool, source, path), 300).ok and path.exists():
            made[tool] = path
    rows = []
    for batch, threads, level in itertools.product(contest.args.batch, contest.args.threads, LEVELS):
        feeds = subject.feeds(batch)
        if feeds is None:
            continue
        if dtype == "float16":
            feeds = {k: v.astype("float16") if v.dtype == "float32" else v for k, v in feeds.items()}
        found = race_row(made, feeds, level, threads, contest)
        row = {"model": subject.name, "group": subject.group, "dtype": dtype, "batch": batch, "threads": threads}
        row |= {"level": level.value, "tools": {k: asdict(v) for k, v in found.items()}}
        if slower(row):  # one in forty intervals lies below 1 by chance: look again, longer, at these two alone
            pair = {name: made[name] for name in ("original", CONTROL, "bnfold")}
            again = race_row(pair, feeds, level, threads, contest, budget=3 * contest.args.budget, seed=1)
            row["again"] = {k: asdict(v) for k, v in again.items()}
        rows.append(row)
        print(line(row), file=sys.stderr, flush=True)
    return rows


def race_row(
    made: dict[str, Path],
    feeds: Any,
    level: Level,
    threads: int,
    contest: Contest,
    *,
    budget: float = 0.0,
    seed: int = 0,
) -> dict[str, Result]:
    """One row; a tool whose model does not run is left out."""
    runs = {}
    for tool, path in made.items():
        try:
            runs[tool] = open_runner(path, level, threads, feeds, contest.options).run
        except BnfoldError:
            if tool == "original":
                return {}
    return race(runs, budget=budget or contest.args.budget, precision=contest.args.precision, seed=seed)


def slower(row: dict[str, Any]) -> bool:
    """Whether bnfold's model is slower than the original beyond its interval and beyond what the control shows."""
    tools = row.get("again") or row["tools"]
    if "bnfold" not in tools:
        return False
    median, _, high = tools["bnfold"]["speedup"]
    _, low, reach = tools[CONTROL]["speedup"]
    return bool(high < 1 and median < min(low, 1 / reach))


def to_float16(subject: Subject, folder: Path) -> Path | None:
    """The model in float16, inputs and outputs too; None when onnxruntime's converter cannot."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = folder / f"{subject.name}-float16.onnx"
    try:
        onnx.save(convert_float_to_float16(onnx.load(str(subject.path)), keep_io_types=False), str(path))
    except Exception as error:  # the converter raises what it likes
        print(f"{subject.name}: no float16 ({error})", file=sys.stderr)
        return None
    return path


# -- tables ------------------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    where = f"{row['model']} {row['dtype']} batch {row['batch']} threads {row['threads']} {row['level']}"
    return f"{where}: " + ", ".join(f"{tool} {r['speedup'][0]:.3f}" for tool, r in row["tools"].items())


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Summary per setting, bnfold's slower rows, and one table per setting."""
    text = ["## Summary", "", "Median and extremes over all models of the original's time over bnfold's.", ""]
    text += ["| data | level | threads | batch | models | median | lowest | highest | slower | faster |"]
    text += ["|---|---|---:|---:|---:|---:|---|---|---:|---:|"]
    groups = list(settings(rows))
    text += [summary(key, members) for key, members in groups]
    text += ["", "## Slower than the original", "", "Beyond the interval and the control, twice.", ""]
    text += [f"- {line(row)}" for row in rows if slower(row)] or ["None."]
    for key, members in groups:
        text += ["", f"## {key[0]}, {key[1]}, threads {key[2]}, batch {key[3]}", "", *table(members)]
    return "\n".join([*text, ""])


def settings(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Rows by type, level, threads and batch."""
    names = ("dtype", "level", "threads", "batch")
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        yield key, [row for row in rows if tuple(row[name] for name in names) == key and row["tools"]]


def summary(key: tuple[Any, ...], rows: Sequence[dict[str, Any]]) -> str:
    """One line of the summary."""
    found = {row["model"]: row["tools"]["bnfold"]["speedup"] for row in rows if "bnfold" in row["tools"]}
    if not found:
        return f"| {key[0]} | {key[1]} | {key[2]} | {key[3]} | 0 | | | | | |"
    low, high = (pick(found, key=lambda name: found[name][0]) for pick in (min, max))
    return (
        f"| {key[0]} | {key[1]} | {key[2]} | {key[3]} | {len(found)} "
        f"| {statistics.median(value[0] for value in found.values()):.3f} "
        f"| {low} {found[low][0]:.3f} | {high} {found[high][0]:.3f} "
        f"| {sum(map(slower, rows))} | {sum(value[1] > 1 for value in found.values())} |"
    )


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: the original's time, and each tool's speed against it."""
    names = [n for n in dict.fromkeys(name for row in rows for name in row["tools"]) if n != "original"]
    text = ["| model | original | " + " | ".join(names) + " |", "|---|---:|" + "---:|" * len(names)]
    for row in rows:
        original = row["tools"]["original"]["seconds"] * 1e3
        text.append(f"| {row['model']} | {original:.3f} ms | " + " | ".join(cell(row, name) for name in names) + " |")
    return text


def cell(row: dict[str, Any], name: str) -> str:
    """Speed with its interval; empty when the tool's model did not run."""
    if name not in row["tools"]:
        return ""
    median, low, high = row["tools"][name]["speedup"]
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    raise SystemExit(main())
