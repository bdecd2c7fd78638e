"""What the commands share for printing: streams, colours, sizes, JSON reports and progress bars.

Results go to stdout; messages and progress go to stderr. Everything that comes from a model passes :func:`printable`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from bnfold.errors import ModelWriteError, OptionError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ProgressBar", "columns", "many", "paint", "refuse_overwriting", "say", "size", "warn", "write_json"]

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def say(lines: Iterable[str]) -> None:
    """Print results on stdout."""
    for line in lines:
        print(line)


def warn(message: str) -> None:
    """Print a message on stderr."""
    print(f"bnfold: {printable(message)}", file=sys.stderr)


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Colour ``text`` when the stream is a terminal and the user did not switch colours off (``NO_COLOR``)."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def size(count: int) -> str:
    """``count`` bytes in words, e.g. ``74.7 KiB``."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def many(count: int, noun: str) -> str:
    """``1 batch norm``, ``2 batch norms``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: str = "  ") -> list[str]:
    """Align rows of cells; ``right`` lists the columns of numbers. The last column is not padded."""
    if not rows:
        return []
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def write_json(report: Any, target: str) -> None:
    """Write a report to a file, or to stdout for ``-``.

    Raises:
        ModelWriteError: the system refuses.
    """
    from bnfold.report import dumps

    if target == "-":
        sys.stdout.write(dumps(report))
        return
    try:
        Path(target).write_text(dumps(report), encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelWriteError(f"{printable(target)}: the report cannot be written: {reason}") from error


def refuse_overwriting(target: str, models: Iterable[Path | None]) -> None:
    """Keep a report from replacing a model.

    Raises:
        OptionError: ``target`` is one of the model files.
    """
    for model in models:
        if target not in ("", "-") and model is not None and same_file(Path(target), model):
            raise OptionError(f"--json {printable(target)}: is a model of this command; give the report another name")


def same_file(one: Path, other: Path) -> bool:
    """Whether both names mean one file, which need not exist."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)


class ProgressBar:
    """A bar on stderr for work that takes longer than a second, when stderr is a terminal."""

    def __init__(self, *, quiet: bool = False, after: float = 1.0) -> None:
        self._wanted = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._from = time.monotonic() + after
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, what: str, done: int, total: int) -> None:
        """Show ``done`` of ``total``, as :class:`bnfold.FoldOptions` reports it."""
        self.fraction(what, done / total if total else 0.0)

    def fraction(self, what: str, fraction: float) -> None:
        """Show a share from 0 to 1, as :class:`bnfold.VerifyOptions` reports it."""
        if not self._wanted or time.monotonic() < self._from:
            return
        from rich.markup import escape

        if self._bar is None:
            self._start()
        self._bar.update(self._task, description=escape(printable(what)), completed=fraction)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        shown = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Progress(*shown, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=1.0)
        self._bar.start()
