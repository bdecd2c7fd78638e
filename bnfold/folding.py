"""One attempt at folding a model: load, index, plan, apply, and put the result into memory or into files beside the
destination."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import onnx

from bnfold import files
from bnfold.apply import Applied, apply_plans
from bnfold.blobs import Unrepresentable
from bnfold.describe import counts_after, describe, model_counts, with_affine
from bnfold.graph import Scope, index_model
from bnfold.model import Model
from bnfold.plan import Limits, ScopePlan
from bnfold.planner import plan_model
from bnfold.refusals import Refusal
from bnfold.report import Counts, Folded, Kept
from bnfold.staging import Staged, stage
from bnfold.writer import HostsUnfit, unfit

if TYPE_CHECKING:
    from bnfold.verify import VerifyOptions

__all__ = [
    "FoldOptions",
    "Folding",
    "Source",
    "limits_of",
    "load",
    "materialised",
    "planned",
    "self_contained",
    "staged",
    "until_fit",
]

Result = TypeVar("Result")
Source: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto"
Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)``."""


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """What to fold and how to prove it.

    Attributes:
        only: ``"all"``, or ``"batchnorm"`` to leave plain Mul, Add, Sub, Div and Neg alone.
        skip: names of nodes to leave (``operator:output`` for nodes without a name).
        skip_codes: refusal codes whose kept operators are not reported.
        fold_gelu: fold what is part of a written-out Gelu too, for runtimes that do not fuse it.
        freeze: treat initializers that callers may override as constants; they leave the graph's inputs.
        verify: prove that the result is the same network before it is written or returned.
        strict: a fold that fails the proof is an error; otherwise it is taken back and the rest is kept.
        verification: options of the proof.
        progress: called with what is being done, and how far.
    """

    only: str = "all"
    skip: tuple[str, ...] = ()
    skip_codes: tuple[str, ...] = ()
    fold_gelu: bool = False
    freeze: bool = False
    verify: bool = True
    strict: bool = False
    verification: VerifyOptions | None = None
    progress: Progress | None = field(default=None, repr=False, compare=False)


@dataclass(slots=True)
class Folding:
    """One planned and applied model."""

    model: Model
    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    before: Counts
    after: Counts
    applied: Applied


def load(model: Source, base_dir: str | os.PathLike[str] | None, options: FoldOptions) -> Model:
    loaded = files.from_proto(model, base_dir) if isinstance(model, onnx.ModelProto) else files.load(model)
    if options.freeze:
        _freeze(loaded)
    return loaded


def _freeze(model: Model) -> None:
    """Take initializers off the list of inputs, so that nobody can override them."""
    graph = model.proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in stored]
    if model.proto.ir_version < 4 or len(kept) == len(graph.input):
        return
    model.notes.append(f"froze {len(graph.input) - len(kept)} initializers that callers could override")
    del graph.input[:]
    graph.input.extend(kept)


def self_contained(model: onnx.ModelProto, base_dir: str | os.PathLike[str] | None) -> onnx.ModelProto:
    """The model with external data brought in, for the runtime; the very same object when there is none."""
    loaded = files.from_proto(model, base_dir)
    external = any(getattr(blob, "external", False) for blob in loaded.blobs)
    return files.to_proto(loaded) if external else model


def limits_of(options: FoldOptions) -> Limits:
    excluded = Refusal("excluded", "excluded by an option", None)
    skip = dict.fromkeys(options.skip, excluded)
    return Limits(only_norms=options.only == "batchnorm", gelus=not options.fold_gelu, skip=skip)


def planned(model: Model, limits: Limits) -> tuple[list[Scope], dict[int, ScopePlan]]:
    """Index and plan a model; calls of functions that need it are inlined first."""

    def planner(model: Model) -> tuple[list[Scope], dict[int, ScopePlan]]:
        roots = index_model(model)
        return roots, plan_model(roots, limits)

    roots, plans = planner(model)
    if not model.proto.functions:
        return roots, plans
    from bnfold.inlining import inline_where_needed

    return inline_where_needed(model, roots, plans, planner)


def _folded_skeleton(model: Model, limits: Limits) -> Folding:
    before = model_counts(model)
    roots, plans = planned(model, limits)
    before = with_affine(before, plans)
    folded, kept = describe(roots, plans)
    applied = apply_plans(roots, plans)
    return Folding(model, folded, kept, before, counts_after(model, plans, applied), applied)


def materialised(model: Model, limits: Limits) -> tuple[Folding, onnx.ModelProto]:
    folding = _folded_skeleton(model, limits)
    try:
        return folding, files.to_proto(folding.model)
    except Unrepresentable as error:
        raise _unfit(folding, error) from None


def staged(name: str, target: str, limits: Limits, options: FoldOptions) -> tuple[Folding, Staged]:
    folding = _folded_skeleton(load(name, None, options), limits)
    report = options.progress
    try:
        return folding, stage(
            folding.model,
            target,
            progress=None if report is None else lambda done, total: report("writing", done, total),
        )
    except Unrepresentable as error:
        raise _unfit(folding, error) from None


def _unfit(folding: Folding, error: Unrepresentable) -> HostsUnfit:
    scope, node = folding.applied.hosts[error.blob]
    return HostsUnfit({(scope.path, node.index): unfit(node, source_is_finite=True)})


def until_fit(attempt: Callable[[Limits], Result], limits: Limits) -> Result:
    """Plan again without an operator whose weight cannot be represented, until all can."""
    while True:
        try:
            return attempt(limits)
        except HostsUnfit as error:
            if error.hosts.keys() <= limits.hosts.keys():
                raise  # an excluded operator is not written again
            limits.hosts.update(error.hosts)
