"""One row of the comparison: the original, a second session of it, and what every tool made of it, raced against it."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from race import Result, race, race_anew

from bnfold.bench.runner import open_runner
from bnfold.errors import BnfoldError
from bnfold.runtime import Level

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tool"))

from measure import spawn
from tools import CACHE, REQUIREMENTS, Tools

if TYPE_CHECKING:
    from collections.abc import Callable

    from subjects import Subject

    from bnfold.bench import BenchOptions

ORIGINAL, CONTROL, OWN = "original", "control", "bnfold"
KEPT = CACHE / "inference"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: which model, in which type, how it runs."""

    subject: Subject
    dtype: str
    batch: int
    threads: int
    level: Level


@dataclass(frozen=True, slots=True)
class Contest:
    """What is the same for all rows.

    Attributes:
        tools: where they are.
        names: which of them.
        options: of the sessions.
        folder: to work in.
        precision: a row ends when all its intervals are that narrow.
        longest: seconds; where one run takes longer, a batch above 1 is left out.
    """

    tools: Tools
    names: tuple[str, ...]
    options: BenchOptions
    folder: Path
    precision: float
    longest: float

    def made(self, source: Path) -> dict[str, Path]:
        """What each tool makes of a model, in the order in which they are listed; peers' results are kept."""
        found = {ORIGINAL: source, CONTROL: source}
        for tool in self.names:
            path = self.made_by(tool, source)
            if path is not None:
                found[tool] = path
        return found

    def made_by(self, tool: str, source: Path) -> Path | None:
        """The result of one tool; None where it fails. A file with the reason stands for a failure that is kept."""
        version = next((text for text in REQUIREMENTS if text.startswith(f"{tool}==")), "")
        folder = KEPT if version else self.folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{source.stem}-{version or tool}-{digest(source)}.onnx"
        failed = path.with_suffix(".why")
        if version and (path.exists() or failed.exists()):
            return path if path.exists() else None
        with_data = self.folder / path.name  # external data keeps the name it was written with
        run = spawn(self.tools.command(tool, source, with_data), 300)
        if not (run.ok and with_data.exists()):
            failed.write_text(run.why or "wrote nothing")
            return None
        for file in self.folder.glob(with_data.name + "*") if folder != self.folder else ():
            shutil.move(file, folder / file.name)
        return path

    def row(self, setting: Setting, made: dict[str, Path], budget: float) -> dict[str, Any]:
        """Race one setting; where bnfold is below 1, once more in new sessions, without the peers."""
        subject, options = setting.subject, setting
        row: dict[str, Any] = {"model": subject.name, "group": subject.group, "dtype": setting.dtype}
        row |= {"batch": options.batch, "threads": options.threads, "level": options.level.value, "tools": {}}
        feeds = subject.feeds(setting.batch) or {}
        if setting.dtype == "float16":
            feeds = {k: v.astype("float16") if v.dtype == "float32" else v for k, v in feeds.items()}
        runs = self.runs(setting, made, feeds)
        if ORIGINAL not in runs:
            return row | {"why": "the original does not run"}
        if setting.batch > 1 and (once := seconds(runs[ORIGINAL])) > self.longest:
            return row | {"why": f"one run takes {once:.2g} s"}
        row["tools"] = written(race(runs, budget=budget, precision=self.precision))
        if below(row["tools"]):  # one in forty intervals lies below 1 by chance
            runs.clear()
            three = {name: made[name] for name in (ORIGINAL, CONTROL, OWN)}
            anew = race_anew(lambda: self.runs(setting, three, feeds), budget=3 * budget, precision=self.precision)
            row["again"] = written(anew)
        return row

    def runs(self, setting: Setting, made: dict[str, Path], feeds: dict[str, Any]) -> dict[str, Callable[[], object]]:
        """A session of each; a tool whose model does not run is left out."""
        found = {}
        for tool, path in made.items():
            try:
                found[tool] = open_runner(path, setting.level, setting.threads, feeds, self.options).run
            except BnfoldError:
                if tool == ORIGINAL:
                    return {}
        return found


def digest(source: Path) -> str:
    """What tells models apart that have the same name: a hash over the model and the data beside it."""
    total = hashlib.sha256()
    for path in (source, *sorted(source.parent.glob(source.name + ".*"))):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]


def seconds(run: Callable[[], object]) -> float:
    """Of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def written(found: dict[str, Result]) -> dict[str, Any]:
    """Results as they go into the file."""
    return {name: asdict(result) for name, result in found.items()}


def below(tools: dict[str, Any]) -> bool:
    """Whether bnfold's interval lies wholly below 1: by this look, its model is slower."""
    return OWN in tools and tools[OWN]["speedup"][2] < 1


def slower(row: dict[str, Any]) -> bool:
    """Whether a second, longer look says so, too, and by more than the control differs from its own original."""
    if not below(row.get("again", {})):
        return False
    tools = row["again"]
    median, (_, low, high) = tools[OWN]["speedup"][0], tools[CONTROL]["speedup"]
    return bool(median < min(low, 1 / high))


@dataclass(slots=True)
class Allowance:
    """A total of seconds, dealt out to rows: what opening sessions costs on average is taken off first."""

    total: float
    rows: int
    most: float
    least: float = 0.25
    spent: float = 0.0
    others: float = 0.0
    done: int = 0

    def next(self) -> float:
        """Seconds of timing for the next row."""
        left = (self.total - self.spent) / max(1, self.rows - self.done)
        return min(self.most, max(self.least, left - self.others / max(1, self.done)))

    def took(self, wall: float, budget: float) -> None:
        """Book a row: all of its seconds, and how many of them were given for timing."""
        self.spent += wall
        self.others += max(0.0, wall - budget)
        self.done += 1

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.spent >= self.total
