"""``bnfold inspect IN.onnx``: where every norm and affine operator would go, or why it stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import printable

from .arguments import JsonOption, OnlyOption, SkipCodeOption, SkipOption
from .output import many, paint, refuse_overwriting, say, size, warn, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bnfold import Plan

__all__ = ["inspect"]


def inspect(
    source: Annotated[Path, typer.Argument(metavar="IN.onnx", help="The model to look at.", show_default=False)],
    *,
    json: JsonOption = "",
    only: OnlyOption = "all",
    skip: SkipOption = None,
    skip_code: SkipCodeOption = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Name the tensors where each fold can be checked.")
    ] = False,
) -> None:
    """Show where every batch norm and affine operator would go, or why it stays. Changes nothing.

    Examples:

        bnfold inspect model.onnx

        bnfold inspect model.onnx --only batchnorm --json -
    """
    refuse_overwriting(json, (source,))
    from bnfold import pipeline

    options = pipeline.FoldOptions(only=only, skip=tuple(skip or ()), skip_codes=tuple(skip_code or ()))
    plan = pipeline.inspect(source, options)
    for note in plan.notes:
        warn(f"note: {note}")
    if json:
        write_json(plan, json)
    if json != "-":
        say(_lines(plan, verbose=verbose))


def _lines(plan: Plan, *, verbose: bool) -> Iterator[str]:
    from .rendering import kept_lines, rows

    before = plan.before
    facts = [many(before.nodes, "operator"), many(before.batch_norms, "batch norm")]
    facts += [many(before.affine_operators, "affine operator"), many(before.parameters, "parameter")]
    facts += [] if before.file_bytes is None else [size(before.file_bytes)]
    yield f"{printable(plan.source)}: {', '.join(facts)}"
    if not plan.folded and not plan.kept:
        yield "There is nothing to fold."
        return
    yield ""
    yield paint(f"Would fold {many(len(plan.folded), 'operator')}", "bold")
    for entry, line in zip(plan.folded, rows(plan.folded), strict=True):
        yield line
        if verbose:
            yield f"    same value in both models: {', '.join(map(printable, entry.tensor)) or 'none'}"
    yield from kept_lines(plan.kept, verbose=True, heading="Would keep")
