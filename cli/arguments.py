"""Command-line arguments that several commands read the same way."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import OptionError, printable

from .output import warn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bnfold import FoldOptions, Plan, Report

__all__ = [
    "JsonOption",
    "Only",
    "OnlyOption",
    "SkipCodeOption",
    "SkipOption",
    "did_you_mean",
    "dimensions",
    "seconds",
    "warn_unknown",
]

Only = ("all", "batchnorm")

JsonOption = Annotated[str, typer.Option("--json", help="Write a JSON report; - is stdout.", metavar="FILE|-")]
OnlyOption = Annotated[
    str, typer.Option("--only", help="'batchnorm' leaves plain Mul, Add, Sub and Div alone.", metavar="all|batchnorm")
]

SkipOption = Annotated[
    list[str] | None, typer.Option("--skip", metavar="NAME", help="Leave this node alone; may be repeated.")
]
SkipCodeOption = Annotated[
    list[str] | None,
    typer.Option("--skip-code", metavar="CODE", help="Do not list what stays for this reason; may be repeated."),
]


def dimensions(texts: Iterable[str]) -> dict[str, int]:
    """Read ``N=4`` and its like; the name may hold an equals sign itself.

    Raises:
        OptionError: there is no whole number above 0 behind the last equals sign.
    """
    found: dict[str, int] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name or not value.isdecimal() or int(value) < 1:
            raise OptionError(f"--dim {printable(text)!r}: expected NAME=NUMBER, for example N=4")
        found[name] = int(value)
    return found


def seconds(text: str) -> float | None:
    """Read ``90``, ``60s``, ``5m`` or ``1h``; nothing means no limit.

    Raises:
        OptionError: anything else, and zero.
    """
    if not text:
        return None
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1])
    try:
        value = float(text if unit is None else text[:-1]) * (unit or 1)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise OptionError(f"--budget {printable(text)!r}: expected a time such as 60s or 5m")
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'padding'?``, or nothing when no known word is close."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {printable(close[0])!r}?" if close else ""


def warn_unknown(result: Plan | Report, options: FoldOptions) -> None:
    """Name every ``--skip`` that names nothing: a typing mistake would fold what was to be left."""
    if "excluded" in options.skip_codes:
        return
    known = {entry.node for entry in result.folded} | {entry.node for entry in result.kept}
    inlined = [entry.node for entry in result.kept if entry.code == "excluded"]  # onnx's inliner adds a number
    for name in options.skip:
        if name not in known and not any(label.startswith(f"{name}__") for label in inlined):
            warn(f"warning: --skip {name}: no batch norm or affine operator has this name{did_you_mean(name, known)}")
