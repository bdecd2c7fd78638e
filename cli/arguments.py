"""Command-line arguments that several commands read the same way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import typer

from bnfold.errors import OptionError, printable

__all__ = [
    "JsonOption",
    "Only",
    "OnlyOption",
    "SkipCodeOption",
    "SkipOption",
    "dimensions",
    "seconds",
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
