"""bnfold itself against the other tools: ``python benchmarks/tool/run.py [--only PART,...] [--budget SECONDS]``.

Builds an environment with the other tools in ``.cache/peers``, makes the models in ``.cache/models``, runs every tool
as a whole process in interleaved rounds, and writes ``.cache/results/tool.json`` (every row as soon as it is measured)
and ``tool.md``; with ``--page`` the tables go into that page as well. Needs Linux, and up to 20 GB of disk for the
growth series. Parts: startup, nodes, inline, external, corpus, profile, growth, accuracy, coverage.

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
import page
import picture
import tables
import timing
from measure import spawn
from tools import CACHE, HERE, PEERS, Tools, corpus, find

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = ("startup", "nodes", "inline", "external", "corpus", "profile", "growth", "accuracy", "coverage")


def main() -> int:
    """Measure what was asked for; results of other parts in the result file are kept."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(exist_ok=True)
    file = args.out / "tool.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if not args.tables:
        tools = find(args.peers)
        with tempfile.TemporaryDirectory(prefix="work-", dir=CACHE) as folder:
            for part in args.only:
                say(f"== {part}")
                rows: list[Any] = []
                results[part] = {"machine": machine(), "rounds": args.rounds, "rows": rows}
                for row in measure(part, tools, settings_of(part, args, Path(folder))):
                    rows.append(row)
                    file.write_text(json.dumps(results, indent=1))
    write(results, args)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    split = lambda text: tuple(text.split(","))  # noqa: E731
    parser.add_argument("--only", type=split, default=PARTS, metavar="PART,...", help="parts to run; all by default")
    parser.add_argument("--tools", type=split, metavar="TOOL,...", help="tools to time; growth has bnfold and cp only")
    parser.add_argument("--rounds", type=int, default=5, help="runs of every tool on every model")
    parser.add_argument("--budget", type=float, default=900, help="seconds per part, after which no other row begins")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a process is killed")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has the other tools (or BNFOLD_PEERS)")
    parser.add_argument("--out", type=Path, default=CACHE / "results", help="folder for results")
    parser.add_argument("--page", type=Path, help="page that gets the tables, and its folder the pictures")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write tables of what was measured")
    parser.add_argument("--no-cold", action="store_true", help="leave the runs with a cold file cache out")
    parser.add_argument("--keep", action="store_true", help="keep generated models above 1 GB")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest models, to see that it works")
    args = parser.parse_args()
    unknown = set(args.only) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    return args


def settings_of(part: str, args: argparse.Namespace, folder: Path) -> timing.Settings:
    """What the arguments say about one part; its time begins now."""
    return timing.Settings(
        rounds=1 if args.quick else args.rounds,
        timeout=args.timeout,
        work=folder,
        say=say,
        tools=args.tools or (growth.TOOLS if part == "growth" else timing.COMPARED),
        cold=not args.no_cold,
        keep=args.keep,
        quick=args.quick,
        deadline=time.monotonic() + args.budget,
    )


def measure(part: str, tools: Tools, settings: timing.Settings) -> Iterator[Any]:
    """Rows of one part, one by one."""
    if part in timing.PARTS:
        return timing.large_models(part, tools, settings)
    if part == "corpus":
        folder = corpus()
        if folder is None:
            say("no corpus: set BNFOLD_CORPUS to a folder with manifest.json and its models")
            return iter(())
        return timing.corpus_models(folder, tools, settings)
    parts = {
        "startup": timing.startup,
        "profile": timing.profile,
        "growth": growth.measure,
        "accuracy": accuracy,
        "coverage": leftovers.measure,
    }
    return parts[part](tools, settings)


def accuracy(tools: Tools, settings: timing.Settings) -> Iterator[Any]:
    """Errors of every tool in every case; see ``accuracy.py``, which runs in the environment of the peers."""
    script, folder = str(HERE / "accuracy.py"), settings.work
    made = run_json([tools.peers, script, "make", str(folder)])[0]
    pairs = [(tool, case) for case in made for tool in ("bnfold", *PEERS) if tool != "onnxruntime-all"]
    for tool, case in pairs:
        spawn(tools.command(tool, folder / f"{case}.onnx", folder / f"{tool}-{case}.onnx"), settings.timeout)
    yield from run_json([tools.peers, script, "judge", str(folder), *(f"{tool}={case}" for tool, case in pairs)])


def run_json(command: list[str]) -> list[Any]:
    """Run a script and read its JSON lines."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def write(results: dict[str, Any], args: argparse.Namespace) -> None:
    """All tables, into ``tool.md`` and the page, and on stdout; pictures beside them."""
    text = []
    for part in PARTS:
        rows = results.get(part, {}).get("rows")
        if not rows:
            continue
        folder = args.page.parent if args.page and part in args.only else args.out
        where = results[part]["machine"]
        section = f"{where['processor']}, {where['cores']} cores, {where['date']}\n\n{markdown(part, rows, folder)}"
        text += [f"## {part}", "", section, ""]
        if args.page and part in args.only and not page.put(args.page, part, section):
            say(f"{args.page} has no place for {part}: <!-- begin {part} --> and <!-- end {part} -->")
    (args.out / "tool.md").write_text("\n".join(text))
    print("\n".join(text))


def markdown(part: str, rows: Any, folder: Path) -> str:
    """The table of one part; pictures are written to ``folder``."""
    if part == "growth":
        pictures = {axis: f"growth-{axis}.svg" for axis in dict.fromkeys(row["axis"] for row in rows)}
        for axis, name in pictures.items():
            (folder / name).write_text(picture.svg([row for row in rows if row["axis"] == axis]))
        return growth.text(rows, pictures)
    makers = {
        "corpus": tables.corpus,
        "profile": tables.profile,
        "accuracy": tables.accuracy,
        "coverage": leftovers.table,
    }
    return makers.get(part, tables.processes)(rows)


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
