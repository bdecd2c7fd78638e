"""Session creation time and peak memory, each measured in a fresh process."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.bench.report import Start, StartRow
from bnfold.errors import RuntimeMissingError, printable

if TYPE_CHECKING:
    from bnfold.bench.options import BenchOptions
    from bnfold.runtime import Level

__all__ = ["compare_starts", "request", "summarise"]

CHILD = "from bnfold.bench.child import main; main()"

Spawn = Callable[[dict[str, Any]], Start]


def spawn(question: dict[str, Any]) -> Start:
    """Run :mod:`bnfold.bench.child` once.

    Raises:
        RuntimeMissingError: the process ended without an answer.
    """
    command = [sys.executable, "-c", CHILD, json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeMissingError(f"{printable(question['model'])}: a fresh process failed: {printable(last)}")
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def request(path: Path, level: Level, options: BenchOptions, feeds: Path, inputs: Sequence[str]) -> dict[str, Any]:
    """What the child needs to know."""
    return {
        "model": str(path),
        "level": level.value,
        "provider": str(options.provider),
        "threads": options.threads[0],
        "tf32": options.tf32,
        "feeds": str(feeds),
        "inputs": list(inputs),
    }


def compare_starts(
    paths: tuple[Path, Path],
    levels: Sequence[Level],
    feeds: Mapping[str, Any],
    options: BenchOptions,
    ask: Spawn = spawn,
) -> tuple[StartRow, ...]:
    """Start both models in ``options.processes`` fresh processes per level, in random order; medians of each.

    Inputs that cannot be written without pickling (strings) leave this part out.
    """
    if options.processes == 0 or any(np.asarray(value).dtype.kind == "O" for value in feeds.values()):
        return ()
    order = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bnfold-bench-") as folder:
        file = Path(folder) / "feeds.npz"
        np.savez(file, **{f"a{number}": value for number, value in enumerate(feeds.values())})
        for level in levels:
            found: tuple[list[Start], list[Start]] = ([], [])
            for _ in range(options.processes):
                for side in order.sample((0, 1), 2):
                    found[side].append(ask(request(paths[side], level, options, file, list(feeds))))
            rows.append(summarise(level, *found))
    return tuple(rows)


def summarise(level: Level, original: Sequence[Start], folded: Sequence[Start]) -> StartRow:
    """Medians of each figure on each side."""
    first, second = typical(original), typical(folded)
    return StartRow(level.value, first, second, len(original), first.create / second.create)


def typical(starts: Sequence[Start]) -> Start:
    """Field by field median."""
    return Start(
        create=statistics.median(start.create for start in starts),
        first_run=statistics.median(start.first_run for start in starts),
        peak_bytes=int(statistics.median(start.peak_bytes for start in starts)),
        baseline_bytes=int(statistics.median(start.baseline_bytes for start in starts)),
    )
