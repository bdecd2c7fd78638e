"""Parts ``nodes``, ``inline``, ``external``, ``corpus`` and ``startup``: time and peak memory of whole processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from measure import Cost, Job, interleaved, remove, warm
from tools import CACHE, FLOORS, HERE, PEERS, Tools, copy_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Say = Callable[[str], None]

COMPARED = ("bnfold", *(tool for tool in PEERS if tool != "onnxruntime-all"), *FLOORS)
PARTS = {
    "nodes": (("30,000 nodes, 6 MB", "nodes", 10_000),),
    "inline": (("472 MB inline", "inline", 50), ("1.9 GB inline", "inline", 200)),
    "external": (("1.9 GB external", "external", 200), ("6 GB external", "external", 636)),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure: rounds, seconds until a process is killed, where to work."""

    rounds: int
    timeout: float
    work: Path
    say: Say
    tools: Sequence[str] = COMPARED
    cold: bool = True
    keep: bool = False


def generated(kind: str, count: int) -> Path:
    """The benchmark model, made on first use in ``.cache/models``."""
    folder = CACHE / "models"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{count}.onnx"
    if not path.exists():
        partial = folder / f"{kind}-{count}.onnx.part"
        final = [sys.executable, str(HERE / "models.py"), kind, str(count), str(path)]
        try:
            subprocess.run(final, check=True)
        except BaseException:
            remove([path, partial])
            raise
    return path


def files_of(path: Path) -> tuple[Path, ...]:
    """The model file and the data files beside it."""
    return (path, *sorted(path.parent.glob(path.name + ".*")))


def discard(source: Path, settings: Settings) -> None:
    """Delete a generated model above 1 GB, unless it is to be kept."""
    if not settings.keep and sum(path.stat().st_size for path in files_of(source)) > 1e9:
        remove([source])


def jobs(tools: Tools, source: Path, work: Path, which: Sequence[str]) -> list[Job]:
    """One job per tool on one model."""
    found = []
    for tool in which:
        destination = work / f"{tool}-{source.name}"
        found.append(Job(tool, tools.command(tool, source, destination), files_of(source), (destination,)))
    return found


def large_models(part: str, tools: Tools, settings: Settings) -> list[dict[str, Any]]:
    """Warm and cold costs of every tool on the models of one part."""
    rows = []
    for title, kind, count in PARTS[part]:
        settings.say(f"{title}: making the model")
        source = generated(kind, count)
        work = jobs(tools, source, settings.work, settings.tools)
        for cache in ("warm", "cold") if settings.cold else ("warm",):
            settings.say(f"{title}, {cache} file cache")
            costs = interleaved(
                work, rounds=settings.rounds, timeout=settings.timeout, cold=cache == "cold", say=settings.say
            )
            size = sum(path.stat().st_size for path in files_of(source))
            rows.append({"model": title, "cache": cache, "bytes": size, "costs": list(map(cost_json, costs))})
        discard(source, settings)
    return rows


def corpus_models(folder: Path, tools: Tools, settings: Settings) -> list[dict[str, Any]]:
    """Costs of every tool on every model of the corpus, warm."""
    rows = []
    for entry in json.loads((folder / "manifest.json").read_text())["models"]:
        settings.say(entry["name"])
        work = jobs(tools, folder / entry["file"], settings.work, settings.tools)
        costs = interleaved(work, rounds=settings.rounds, timeout=settings.timeout, say=lambda _: None)
        rows.append({"model": entry["name"], "cache": "warm", "costs": list(map(cost_json, costs))})
    return rows


def startup(tools: Tools, settings: Settings) -> list[dict[str, Any]]:
    """What a process costs before any model: interpreter, imports, ``--version``, and a 300-node model."""
    python, small = sys.executable, generated("nodes", 100)
    commands = {
        "python -c pass": (python, "-c", "pass"),
        "python -c 'import numpy'": (python, "-c", "import numpy"),
        "python -c 'import onnx'": (python, "-c", "import onnx"),
        "bnfold --version": (*tools.bnfold, "--version"),
        "bnfold --help": (*tools.bnfold, "--help"),
        "python -c 'import onnxruntime'": (tools.peers, "-c", "import onnxruntime"),
        "python -c 'import onnxsim'": (tools.peers, "-c", "import onnxsim"),
        "python -c 'import onnxslim'": (tools.peers, "-c", "import onnxslim"),
        "python -c 'import onnxscript.rewriter'": (tools.peers, "-c", "import onnxscript.rewriter"),
    }
    work = [Job(name, command) for name, command in commands.items()]
    folds = jobs(tools, small, settings.work, settings.tools)
    work += [Job(f"{job.tool}: 300 nodes", job.command, job.reads, job.writes) for job in folds]
    costs = interleaved(work, rounds=max(settings.rounds, 9), timeout=settings.timeout, say=settings.say)
    return [{"model": "start-up", "cache": "warm", "costs": list(map(cost_json, costs))}]


def profile(tools: Tools, settings: Settings) -> list[dict[str, Any]]:
    """Medians of the steps of a fold beside the floor, for many nodes and for large weights; see ``spent.py``."""
    rows = []
    for title, kind, count in (PARTS["nodes"][0], PARTS["inline"][0], PARTS["external"][0]):
        source = generated(kind, count)
        destination = settings.work / "profiled.onnx"
        work = [
            Job("python -c pass", (sys.executable, "-c", "pass")),
            Job("import numpy, onnx, typer", (sys.executable, "-c", "import numpy, onnx, typer")),
            Job("cp", copy_command(source, destination), files_of(source), (destination,)),
            Job("bnfold fold", tools.command("bnfold", source, destination), files_of(source), (destination,)),
        ]
        floors = {
            cost.tool: cost.seconds for cost in interleaved(work, rounds=settings.rounds, timeout=settings.timeout)
        }
        command = [sys.executable, str(HERE / "spent.py"), str(source), str(destination)]
        found = []
        for _ in range(settings.rounds):
            warm(files_of(source))
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            remove([destination])
        discard(source, settings)
        row: dict[str, Any] = {"model": title, "processes": floors}
        for part in ("spent", "floor"):
            row[part] = {step: statistics.median(run[part].get(step, 0.0) for run in found) for step in found[0][part]}
        rows.append(row)
    return rows


def cost_json(cost: Cost) -> dict[str, Any]:
    """A cost with its raw runs."""
    runs = [asdict(run) for run in cost.runs]
    return {"tool": cost.tool, "seconds": cost.seconds, "peak": cost.peak, "why": cost.why, "runs": runs}


# -- tables ------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: seconds, ratio to bnfold, peak memory for each tool on each model."""
    text = []
    for row in rows:
        text += [f"**{row['model']}, {row['cache']} file cache**", "", "| tool | time | against bnfold | peak memory |"]
        text.append("|---|---:|---:|---:|")
        own = next((cost for cost in row["costs"] if cost["tool"] in ("bnfold", "bnfold: 300 nodes")), None)
        for cost in row["costs"]:
            text.append("| " + " | ".join(cells(cost, own)) + " |")
        text.append("")
    return "\n".join(text)


def cells(cost: dict[str, Any], own: dict[str, Any] | None) -> tuple[str, str, str, str]:
    """Tool, time, ratio and memory as text."""
    if cost["seconds"] is None:
        return cost["tool"], cost["why"], "", ""
    known = own is not None and own["seconds"] is not None
    ratio = f"{cost['seconds'] / own['seconds']:.2f}x" if known and own is not None else ""
    return cost["tool"], f"{cost['seconds']:.3f} s", ratio, f"{cost['peak'] / 1e6:.0f} MB"


def profile_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what is spent, step by step, and the floor."""
    text = []
    for row in rows:
        text += [f"**{row['model']}**", "", "| | seconds |", "|---|---:|"]
        text += [f"| process: {name} | {seconds:.3f} |" for name, seconds in row["processes"].items()]
        text += [f"| floor inside: {name} | {seconds:.3f} |" for name, seconds in row["floor"].items()]
        text += [f"| spent inside: {name} | {seconds:.3f} |" for name, seconds in row["spent"].items()]
        text.append("")
    return "\n".join(text)


def corpus_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: total over the corpus and bnfold's worst model against each tool."""
    names = [cost["tool"] for cost in rows[0]["costs"]]
    times = {
        n: {row["model"]: cost["seconds"] for row in rows for cost in row["costs"] if cost["tool"] == n} for n in names
    }
    text = [
        "| tool | total | median | models it handled | bnfold is faster by, median | worst model for bnfold |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name in names:
        good = {model: s for model, s in times[name].items() if s is not None}
        shared = {m: s / times["bnfold"][m] for m, s in good.items() if times.get("bnfold", {}).get(m)}
        worst = min(shared, key=lambda m: shared[m], default="")
        faster = f"{statistics.median(shared.values()):.2f}x" if shared else ""
        text.append(
            f"| {name} | {sum(good.values()):.2f} s | {statistics.median(good.values() or [0]):.3f} s "
            f"| {len(good)} of {len(rows)} | {faster} | {f'{worst} {shared[worst]:.2f}x' if worst else ''} |"
        )
    return "\n".join(text)
