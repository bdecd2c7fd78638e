"""``bnfold explain [CODE]``: what a reason for keeping an operator means, and what to do about it."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import OptionError, did_you_mean, printable
from bnfold.refusals import CODES

from .output import columns, paint, say

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["explain"]

WIDTH = 100


def explain(
    code: Annotated[str, typer.Argument(help="A refusal code; all of them without.", show_default=False)] = "",
) -> None:
    """Explain why an operator stays: what the code means, why it stops the fold, and what you can do.

    Examples:

        bnfold explain

        bnfold explain padding
    """
    say(_page(code) if code else _table())


def _table() -> Iterator[str]:
    yield from columns([(code, entry.meaning) for code, entry in CODES.items()], indent="")


def _page(code: str) -> Iterator[str]:
    entry = CODES.get(code.lower())
    if entry is None:
        hint = did_you_mean(code, CODES)
        raise OptionError(f"there is no refusal code {printable(code)!r}{hint or '; bnfold explain lists all'}")
    yield paint(code.lower(), "bold")
    width = min(WIDTH, shutil.get_terminal_size().columns)
    for title, text in (("What", entry.meaning), ("Why", entry.why), ("What to do", entry.advice)):
        yield from textwrap.wrap(text, width, initial_indent=f"{title:12}", subsequent_indent=" " * 12)
