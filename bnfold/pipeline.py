"""The main job from end to end: load, index, plan, apply, prove, write. The public functions live here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import onnx

from bnfold import files
from bnfold.across import fold_across
from bnfold.apply import Applied, apply_plans
from bnfold.blobs import Unrepresentable
from bnfold.describe import counts_after, describe, model_counts, with_affine
from bnfold.errors import OptionError, VerificationError, printable
from bnfold.graph import Scope, index_model
from bnfold.model import Model
from bnfold.plan import Limits, ScopePlan
from bnfold.planner import plan_scope
from bnfold.refusals import CODES, Refusal
from bnfold.report import Counts, Folded, FoldResult, Kept, Plan, Report, versions
from bnfold.staging import Staged, stage
from bnfold.writer import HostsUnfit, unfit

if TYPE_CHECKING:
    from bnfold.verify import VerifyOptions, VerifyReport

__all__ = ["FoldOptions", "fold", "fold_file", "inspect"]

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
        freeze: treat initializers that callers may override as constants; they leave the graph's inputs.
        verify: prove that the result is the same network before it is written or returned.
        strict: a fold that fails the proof is an error; otherwise it is taken back and the rest is kept.
        verification: options of the proof.
        progress: called with what is being done, and how far.
    """

    only: str = "all"
    skip: tuple[str, ...] = ()
    skip_codes: tuple[str, ...] = ()
    freeze: bool = False
    verify: bool = True
    strict: bool = False
    verification: VerifyOptions | None = None
    progress: Progress | None = field(default=None, repr=False, compare=False)


@dataclass(slots=True)
class _Folding:
    """One planned and applied model."""

    model: Model
    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    before: Counts
    after: Counts
    applied: Applied


def fold(
    model: Source,
    options: FoldOptions | None = None,
    *,
    verify: bool | None = None,
    base_dir: str | os.PathLike[str] | None = None,
) -> FoldResult:
    """Fold a model in memory.

    Args:
        model: a path, or a ``ModelProto``, which is not changed.
        options: see :class:`FoldOptions`.
        verify: overrides ``options.verify``.
        base_dir: where the external data of a ``ModelProto`` lies.

    Returns:
        The folded model, weights included, and the report.

    Raises:
        ModelReadError: the model cannot be read.
        VerificationError: with ``strict``, when a fold fails the proof.
        RuntimeMissingError: verification is on and onnxruntime is not installed.
    """
    options = _checked(options, verify)

    def attempt(limits: Limits) -> tuple[_Folding, onnx.ModelProto]:
        return _until_fit(lambda chosen: _materialised(_load(model, base_dir, options), chosen), limits)

    original = None
    if options.verify:
        original = os.fspath(model) if not isinstance(model, onnx.ModelProto) else _self_contained(model, base_dir)
    folding, result, proof, withdrawn = _proven(attempt, original, options)
    name = None if isinstance(model, onnx.ModelProto) else os.fspath(model)
    return FoldResult(result, _report(folding, options, proof, withdrawn, source=name))


def fold_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    options: FoldOptions | None = None,
    *,
    verify: bool | None = None,
) -> Report:
    """Fold a file into a file; weights are streamed, so memory stays small whatever the size of the model.

    The destination (and ``<destination>.data`` for external data) is replaced in one step, and only when the proof
    holds; it
    may be the source itself.

    Args:
        source: an ONNX model file.
        destination: where to write.
        options: see :class:`FoldOptions`.
        verify: overrides ``options.verify``.

    Raises:
        ModelReadError, ModelWriteError, VerificationError, RuntimeMissingError: see :mod:`bnfold.errors`.
    """
    options = _checked(options, verify)
    name, target = os.fspath(source), os.fspath(destination)
    stages: list[Staged] = []

    def attempt(limits: Limits) -> tuple[_Folding, str]:
        while stages:
            stages.pop().discard()
        folding, staged = _until_fit(lambda chosen: _staged(name, target, chosen, options), limits)
        stages.append(staged)
        return folding, staged.model_path

    try:
        folding, _, proof, withdrawn = _proven(attempt, name if options.verify else None, options)
        staged = stages[-1]
        if not folding.folded and Path(target).exists() and Path(target).samefile(name):
            return _report(folding, options, proof, withdrawn, source=name)  # the file is what it should be already
        staged.commit()
    finally:
        for left in stages:
            left.discard()
    return _report(folding, options, proof, withdrawn, source=name, written=tuple(staged.files))


def inspect(
    model: Source, options: FoldOptions | None = None, *, base_dir: str | os.PathLike[str] | None = None
) -> Plan:
    """Say where every batch norm and affine operator would go, or why it stays; changes nothing.

    Raises:
        ModelReadError: the model cannot be read.
    """
    options = _checked(options, verify=False)
    loaded = _load(model, base_dir, options)
    before = model_counts(loaded)
    roots, plans = _planned(loaded, _limits(options))
    folded, kept = describe(roots, plans)
    name = None if isinstance(model, onnx.ModelProto) else os.fspath(model)
    return Plan(folded, _reported(kept, options), with_affine(before, plans), tuple(loaded.notes), name)


# -- steps -------------------------------------------------------------------------------------------------------------


def _checked(options: FoldOptions | None, verify: bool | None) -> FoldOptions:
    from dataclasses import replace

    chosen = options or FoldOptions()
    if chosen.only not in ("all", "batchnorm"):
        raise OptionError(f"only={printable(chosen.only)!r} is not known; use 'all' or 'batchnorm'")
    unknown = [code for code in chosen.skip_codes if code not in CODES]
    if unknown:
        raise OptionError(f"refusal code {printable(unknown[0])!r} does not exist; `bnfold explain` lists all codes")
    return chosen if verify is None else replace(chosen, verify=verify)


def _load(model: Source, base_dir: str | os.PathLike[str] | None, options: FoldOptions) -> Model:
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


def _self_contained(model: onnx.ModelProto, base_dir: str | os.PathLike[str] | None) -> onnx.ModelProto:
    """The model with external data brought in, for the runtime; the very same object when there is none."""
    loaded = files.from_proto(model, base_dir)
    external = any(getattr(blob, "external", False) for blob in loaded.blobs)
    return files.to_proto(loaded) if external else model


def _limits(options: FoldOptions) -> Limits:
    excluded = Refusal("excluded", "excluded by an option", None)
    return Limits(only_norms=options.only == "batchnorm", skip=dict.fromkeys(options.skip, excluded))


def _planned(model: Model, limits: Limits) -> tuple[list[Scope], dict[int, ScopePlan]]:
    """Index and plan a model; calls of functions that need it are inlined first."""

    def planner(model: Model) -> tuple[list[Scope], dict[int, ScopePlan]]:
        roots = index_model(model)
        plans = {id(scope): plan_scope(scope, limits) for root in roots for scope in root.scopes()}
        fold_across(roots, plans)
        return roots, plans

    roots, plans = planner(model)
    if not model.proto.functions:
        return roots, plans
    from bnfold.inlining import inline_where_needed

    return inline_where_needed(model, roots, plans, planner)


def _folded_skeleton(model: Model, limits: Limits) -> _Folding:
    before = model_counts(model)
    roots, plans = _planned(model, limits)
    before = with_affine(before, plans)
    folded, kept = describe(roots, plans)
    applied = apply_plans(roots, plans)
    return _Folding(model, folded, kept, before, counts_after(model, plans, applied), applied)


def _materialised(model: Model, limits: Limits) -> tuple[_Folding, onnx.ModelProto]:
    folding = _folded_skeleton(model, limits)
    try:
        return folding, files.to_proto(folding.model)
    except Unrepresentable as error:
        raise _unfit(folding, error) from None


def _staged(name: str, target: str, limits: Limits, options: FoldOptions) -> tuple[_Folding, Staged]:
    folding = _folded_skeleton(_load(name, None, options), limits)
    report = options.progress
    try:
        return folding, stage(
            folding.model,
            target,
            progress=None if report is None else lambda done, total: report("writing", done, total),
        )
    except Unrepresentable as error:
        raise _unfit(folding, error) from None


def _unfit(folding: _Folding, error: Unrepresentable) -> HostsUnfit:
    scope, node = folding.applied.hosts[error.blob]
    return HostsUnfit({(scope.path, node.index): unfit(node, source_is_finite=True)})


def _until_fit(attempt: Callable[[Limits], Result], limits: Limits) -> Result:
    """Plan again without an operator whose weight cannot be represented, until all can."""
    while True:
        try:
            return attempt(limits)
        except HostsUnfit as error:
            if error.hosts.keys() <= limits.hosts.keys():
                raise  # an excluded operator is not written again
            limits.hosts.update(error.hosts)


def _proven(
    attempt: Callable[[Limits], tuple[_Folding, Result]], original: str | onnx.ModelProto | None, options: FoldOptions
) -> tuple[_Folding, Result, VerifyReport | None, dict[str, Refusal]]:
    """Fold, prove, take back the folds that fail, and fold again, until the proof holds."""
    limits = _limits(options)
    withdrawn: dict[str, Refusal] = {}
    while True:
        folding, result = attempt(limits)
        if original is None:
            return folding, result, None, withdrawn
        proof = _prove(original, result, folding, options)
        if proof.equal:
            return folding, result, proof, withdrawn
        if proof.verdict == "inconclusive" and not proof.blamed:
            raise VerificationError(
                f"cannot tell whether the folded model is the same: {proof.reason}; --no-verify writes it unproven"
            )
        blamed = [label for label in proof.blamed if label not in withdrawn and label not in limits.skip] or _suspects(
            folding, limits
        )
        if options.strict or not blamed:
            raise VerificationError(f"the folded model differs from the original: {proof.reason}")
        reason = Refusal("withdrawn", f"the fold failed verification: {proof.reason}", None)
        withdrawn.update(dict.fromkeys(blamed, reason))
        limits.skip.update(withdrawn)


def _suspects(folding: _Folding, limits: Limits) -> list[str]:
    """When no site can be blamed: withdraw half of the folds, until the proof holds or nothing is left."""
    labels = [entry.node for entry in folding.folded if entry.node not in limits.skip]
    return labels[: (len(labels) + 1) // 2]


def _prove(original: str | onnx.ModelProto, result: object, folding: _Folding, options: FoldOptions) -> VerifyReport:
    from bnfold.verify import verify as prove

    assert isinstance(result, (str, onnx.ModelProto))
    return prove(original, result, options.verification, folds=folding.folded)


def _reported(kept: tuple[Kept, ...], options: FoldOptions) -> tuple[Kept, ...]:
    return tuple(entry for entry in kept if entry.code not in options.skip_codes)


def _report(
    folding: _Folding,
    options: FoldOptions,
    proof: VerifyReport | None,
    withdrawn: dict[str, Refusal],
    *,
    source: str | None,
    written: tuple[str, ...] = (),
) -> Report:
    after = folding.after
    if written:
        from dataclasses import replace

        after = replace(after, file_bytes=sum(Path(name).stat().st_size for name in written))
    return Report(
        folded=folding.folded,
        kept=_reported(folding.kept, options),
        before=folding.before,
        after=after,
        withdrawn=tuple(entry for entry in folding.kept if entry.node in withdrawn),
        verification=proof,
        notes=tuple(folding.model.notes),
        source=source,
        files=written,
        versions=versions(),
    )
