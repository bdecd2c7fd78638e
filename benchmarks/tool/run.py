"""bnfold itself against the other tools: ``python benchmarks/tool/run.py [--only PART,...]``.

Builds an environment with the other tools in ``.cache/peers``, makes the models in ``.cache/models``, runs every tool
as a whole process in interleaved rounds, and writes ``.cache/results/tool.json`` and ``tool.md``. Needs Linux, and up
to 30 GB of disk for the growth series. Parts: startup, nodes, inline, external, corpus,
profile, growth, accuracy, coverage.

This process stays small on purpose (no NumPy, no onnx): a child's peak memory starts at its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import growth
import leftovers
import timing
from measure import spawn
from tools import CACHE, HERE, PEERS, Tools, corpus, find

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("startup", "nodes", "inline", "external", "corpus", "profile", "growth", "accuracy", "coverage")


def main() -> int:
    """Measure what was asked for; results of other parts in the result file are kept."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(exist_ok=True)
    tools = find(args.peers)
    file = args.out / "tool.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory(prefix="work-", dir=CACHE) as folder:
        settings = timing.Settings(
            args.rounds, args.timeout, Path(folder), say, args.tools, cold=not args.no_cold, keep=args.keep
        )
        for part in args.only:
            say(f"== {part}")
            results[part] = {"machine": machine(), "rounds": args.rounds, "rows": measure(part, tools, settings)}
            file.write_text(json.dumps(results, indent=1))
            (args.out / "tool.md").write_text(markdown(results, args.out))
    print((args.out / "tool.md").read_text())
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    split = lambda text: tuple(text.split(","))  # noqa: E731
    parser.add_argument("--only", type=split, default=PARTS, metavar="PART,...", help="parts to run; all by default")
    parser.add_argument("--tools", type=split, default=timing.COMPARED, metavar="TOOL,...", help="tools to time")
    parser.add_argument("--rounds", type=int, default=5, help="runs of every tool on every model")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a process is killed")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has the other tools (or BNFOLD_PEERS)")
    parser.add_argument("--out", type=Path, default=CACHE / "results", help="folder for results")
    parser.add_argument("--no-cold", action="store_true", help="leave the runs with a cold file cache out")
    parser.add_argument("--keep", action="store_true", help="keep generated models above 1 GB")
    args = parser.parse_args()
    unknown = set(args.only) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    return args


def measure(part: str, tools: Tools, settings: timing.Settings) -> Any:
    """Results of one part."""
    if part in timing.PARTS:
        return timing.large_models(part, tools, settings)
    if part == "startup":
        return timing.startup(tools, settings)
    if part == "profile":
        return timing.profile(tools, settings)
    if part == "growth":
        return [growth.measure(axis, tools, settings) for axis in ("nodes", "bytes")]
    if part == "accuracy":
        return accuracy(tools, settings)
    folder = corpus()
    if folder is None:
        say("no corpus: set BNFOLD_CORPUS to a folder with manifest.json and its models")
        return []
    if part == "corpus":
        return timing.corpus_models(folder, tools, settings)
    return leftovers.measure(tools, folder, settings.work, say)


def accuracy(tools: Tools, settings: timing.Settings) -> list[dict[str, Any]]:
    """Errors of every tool in every case; see ``accuracy.py``, which runs in the environment of the peers."""
    script, folder = str(HERE / "accuracy.py"), settings.work
    made = run_json([tools.peers, script, "make", str(folder)])[0]
    pairs = [(tool, case) for case in made for tool in ("bnfold", *PEERS) if tool != "onnxruntime-all"]
    for tool, case in pairs:
        spawn(tools.command(tool, folder / f"{case}.onnx", folder / f"{tool}-{case}.onnx"), settings.timeout)
    return run_json([tools.peers, script, "judge", str(folder), *(f"{tool}={case}" for tool, case in pairs)])


def run_json(command: list[str]) -> list[Any]:
    """Run a script and read its JSON lines."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def markdown(results: dict[str, Any], out: Path) -> str:
    """All tables of the result file; pictures are written beside it."""
    tables: dict[str, Callable[[Any], str]] = {
        **dict.fromkeys((*timing.PARTS, "startup"), timing.table),
        "corpus": timing.corpus_table,
        "profile": timing.profile_table,
        "growth": lambda rows: growth_text(rows, out),
        "accuracy": accuracy_table,
        "coverage": leftovers.table,
    }
    text = []
    for part in PARTS:
        if results.get(part, {}).get("rows"):
            where = results[part]["machine"]
            text += [f"## {part}", "", f"{where['processor']}, {where['cores']} cores, {where['date']}", ""]
            text += [tables[part](results[part]["rows"]), ""]
    return "\n".join(text)


def growth_text(rows: Any, out: Path) -> str:
    """Tables of both growth series."""
    for series in rows:
        (out / f"growth-{series['axis']}.svg").write_text(growth.svg(series))
    return "\n\n".join(growth.table(series) for series in rows)


def accuracy_table(rows: Any) -> str:
    """Markdown: largest error of weights / of biases / of outputs in ulp, by case and tool; a dash is "not folded"."""
    names = list(dict.fromkeys(row["tool"] for row in rows))
    found = {(row["case"], row["tool"]): row for row in rows}
    text = ["Largest error in ulp: weights / biases / outputs.", ""]
    text += ["| case | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for case in dict.fromkeys(row["case"] for row in rows):
        text.append(f"| {case} | " + " | ".join(accuracy_cell(found[case, name]) for name in names) + " |")
    return "\n".join(text)


def accuracy_cell(row: dict[str, Any]) -> str:
    """One cell of the accuracy table."""
    if not row["folded"]:
        return "-"
    output = "" if row["output"] is None else f" / {row['output']:.3f}"
    return f"{row['weight_max']:.3f} / {row['bias_max']:.2f}{output}"


def machine() -> dict[str, Any]:
    """Where and when, and with which versions."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
