"""Time and peak memory of whole processes: parts startup, nodes, inline, external, corpus and profile.

Every part yields its rows as they are measured.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from measure import Cost, Job, interleaved, remove, warm
from tools import CACHE, FLOORS, HERE, PEERS, Tools, copy_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Say = Callable[[str], None]

COMPARED = ("bnfold", *(tool for tool in PEERS if tool != "onnxruntime-all"), *FLOORS)
PARTS = {
    "nodes": (("30,000 nodes, 6 MB", "nodes", 10_000),),
    "inline": (("472 MB inline", "inline", 50), ("1.9 GB inline", "inline", 200)),
    "external": (
        ("472 MB external", "external", 50),
        ("1.9 GB external", "external", 200),
        ("6 GB external", "external", 636),
    ),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure and where to work.

    Attributes:
        rounds: runs of every tool on every model.
        timeout: seconds until a process is killed.
        work: folder for what the tools write.
        say: progress.
        tools: which ones.
        cold: also with a cold file cache.
        keep: keep generated models above 1 GB.
        quick: smallest sizes only, to see that everything works.
        deadline: of ``time.monotonic``; behind it no other round and no other row begins.
    """

    rounds: int
    timeout: float
    work: Path
    say: Say
    tools: Sequence[str] = COMPARED
    cold: bool = True
    keep: bool = False
    quick: bool = False
    deadline: float = math.inf

    def late(self, row: str) -> bool:
        """Whether the part's time is over; says which row was left out."""
        over = time.monotonic() > self.deadline
        if over:
            self.say(f"{row}: left out, the budget is spent")
        return over

    def costs(self, work: Sequence[Job], *, cold: bool = False, rounds: int = 0) -> list[dict[str, Any]]:
        """Run the jobs in interleaved rounds; costs with their raw runs."""
        found = interleaved(
            work,
            rounds=rounds or self.rounds,
            timeout=self.timeout,
            cold=cold,
            deadline=self.deadline,
            say=self.say,
        )
        return list(map(cost_json, found))


def generated(kind: str, count: int) -> Path:
    """The benchmark model, made on first use in ``.cache/models``; what a broken run leaves is never taken for it."""
    path = CACHE / "models" / f"{kind}-{count}.onnx"
    unfinished = path.parent / "unfinished" / path.name
    if not path.exists():
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(HERE / "models.py"), kind, str(count), str(unfinished)], check=True)
        for file in reversed(files_of(unfinished)):  # the data first
            file.rename(path.parent / file.name)
    return path


def files_of(path: Path) -> tuple[Path, ...]:
    """The model file and the data files beside it."""
    return (path, *sorted(path.parent.glob(path.name + ".*")))


def bytes_of(path: Path) -> int:
    """Bytes of all of these."""
    return sum(file.stat().st_size for file in files_of(path))


def discard(source: Path, settings: Settings) -> None:
    """Delete a generated model above 1 GB, unless it is to be kept."""
    if not settings.keep and bytes_of(source) > 1e9:
        remove([source])


def jobs(tools: Tools, source: Path, work: Path, which: Sequence[str]) -> list[Job]:
    """One job per tool on one model."""
    found = []
    for tool in which:
        destination = work / f"{tool}-{source.name}"
        found.append(Job(tool, tools.command(tool, source, destination), files_of(source), (destination,)))
    return found


def large_models(part: str, tools: Tools, settings: Settings) -> Iterator[dict[str, Any]]:
    """Warm and cold costs of every tool on the models of one part."""
    for title, kind, count in PARTS[part][: 1 if settings.quick else None]:
        if settings.late(title):
            return
        settings.say(f"{title}: making the model")
        source = generated(kind, count)
        work = jobs(tools, source, settings.work, settings.tools)
        for cache in ("warm", "cold") if settings.cold else ("warm",):
            settings.say(f"{title}, {cache} file cache")
            costs = settings.costs(work, cold=cache == "cold")
            yield {"model": title, "cache": cache, "bytes": bytes_of(source), "costs": costs}
        discard(source, settings)


def corpus_models(folder: Path, tools: Tools, settings: Settings) -> Iterator[dict[str, Any]]:
    """Costs of every tool on every model of the corpus, warm."""
    entries = json.loads((folder / "manifest.json").read_text())["models"]
    for entry in entries[: 3 if settings.quick else None]:
        if settings.late(entry["name"]):
            return
        work = jobs(tools, folder / entry["file"], settings.work, settings.tools)
        yield {"model": entry["name"], "cache": "warm", "costs": settings.costs(work)}


def startup(tools: Tools, settings: Settings) -> Iterator[dict[str, Any]]:
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
    costs = settings.costs(work, rounds=settings.rounds if settings.quick else max(settings.rounds, 9))
    yield {"model": "start-up", "cache": "warm", "costs": costs}


def profile(tools: Tools, settings: Settings) -> Iterator[dict[str, Any]]:
    """Medians of the steps of a fold beside the floor, for many nodes and for large weights; see ``spent.py``."""
    models = (PARTS["nodes"][0], PARTS["inline"][0], PARTS["external"][0])
    for title, kind, count in models[: 1 if settings.quick else None]:
        if settings.late(title):
            return
        source = generated(kind, count)
        destination = settings.work / "profiled.onnx"
        work = [
            Job("python -c pass", (sys.executable, "-c", "pass")),
            Job("import numpy, onnx, typer", (sys.executable, "-c", "import numpy, onnx, typer")),
            Job("cp", copy_command(source, destination), files_of(source), (destination,)),
            Job("bnfold fold", tools.command("bnfold", source, destination), files_of(source), (destination,)),
        ]
        floors = {cost["tool"]: cost["seconds"] for cost in settings.costs(work)}
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
        yield row


def cost_json(cost: Cost) -> dict[str, Any]:
    """A cost with its raw runs."""
    runs = [asdict(run) for run in cost.runs]
    return {"tool": cost.tool, "seconds": cost.seconds, "peak": cost.peak, "why": cost.why, "runs": runs}
