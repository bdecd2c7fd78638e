"""The main job from end to end: fold, prove, write. The public functions live here."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from bnfold.describe import describe, model_counts, with_affine
from bnfold.errors import OptionError, did_you_mean, printable
from bnfold.folding import (
    Folding,
    FoldOptions,
    Source,
    limits_of,
    load,
    materialised,
    planned,
    self_contained,
    staged,
    until_fit,
)
from bnfold.plan import Limits
from bnfold.refusals import CODES, Refusal
from bnfold.repair import prove_and_repair
from bnfold.report import Folded, FoldResult, Kept, Plan, Report, versions
from bnfold.staging import Staged

if TYPE_CHECKING:
    from bnfold.verify import VerifyReport

__all__ = ["FoldOptions", "fold", "fold_file", "inspect"]


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

    def attempt(limits: Limits) -> tuple[Folding, onnx.ModelProto]:
        return until_fit(lambda chosen: materialised(load(model, base_dir, options), chosen), limits)

    original = None
    if options.verify:
        original = os.fspath(model) if not isinstance(model, onnx.ModelProto) else self_contained(model, base_dir)
    folding, result, proof, withdrawn = prove_and_repair(attempt, original, options)
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
    holds; it may be the source itself.

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

    def attempt(limits: Limits) -> tuple[Folding, str]:
        while stages:
            stages.pop().discard()
        folding, put = until_fit(lambda chosen: staged(name, target, chosen, options), limits)
        stages.append(put)
        return folding, put.model_path

    try:
        folding, _, proof, withdrawn = prove_and_repair(attempt, name if options.verify else None, options)
        last = stages[-1]
        if not folding.folded and Path(target).exists() and Path(target).samefile(name):
            return _report(folding, options, proof, withdrawn, source=name)  # the file is what it should be already
        last.commit()
    finally:
        for left in stages:
            left.discard()
    return _report(folding, options, proof, withdrawn, source=name, written=tuple(last.files))


def inspect(
    model: Source, options: FoldOptions | None = None, *, base_dir: str | os.PathLike[str] | None = None
) -> Plan:
    """Say where every batch norm and affine operator would go, or why it stays; changes nothing.

    Raises:
        ModelReadError: the model cannot be read.
    """
    options = _checked(options, verify=False)
    loaded = load(model, base_dir, options)
    before = model_counts(loaded)
    roots, plans = planned(loaded, limits_of(options))
    folded, kept = describe(roots, plans)
    name = None if isinstance(model, onnx.ModelProto) else os.fspath(model)
    notes = (*loaded.notes, *_names_nothing(folded, kept, options))
    return Plan(folded, _reported(kept, options), with_affine(before, plans), notes, name)


# -- steps -------------------------------------------------------------------------------------------------------------


def _checked(options: FoldOptions | None, verify: bool | None) -> FoldOptions:
    chosen = options or FoldOptions()
    if chosen.only not in ("all", "batchnorm"):
        raise OptionError(f"only={printable(chosen.only)!r} is not known; use 'all' or 'batchnorm'")
    for field in ("skip", "skip_codes"):
        names = getattr(chosen, field)
        if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(n, str) for n in names):
            raise OptionError(f"{field}={printable(repr(names))} is not a tuple of names")
    unknown = [code for code in chosen.skip_codes if code not in CODES]
    if unknown:
        raise OptionError(f"refusal code {printable(unknown[0])!r} does not exist; `bnfold explain` lists all codes")
    return chosen if verify is None else replace(chosen, verify=verify)


def _reported(kept: tuple[Kept, ...], options: FoldOptions) -> tuple[Kept, ...]:
    return tuple(entry for entry in kept if entry.code not in options.skip_codes)


def _names_nothing(folded: tuple[Folded, ...], kept: tuple[Kept, ...], options: FoldOptions) -> Iterator[str]:
    """A note on every ``skip`` that names nothing: a typing mistake would fold what was to be left."""
    known = {entry.node for entry in folded} | {entry.node for entry in kept}
    inlined = [entry.node for entry in kept if entry.code == "excluded"]  # onnx's inliner adds a number
    for name in options.skip:
        if name not in known and not any(label.startswith(f"{name}__") for label in inlined):
            hint = did_you_mean(name, known)
            yield f"skip {printable(name)}: no batch norm or affine operator has this name{hint}"


def _report(
    folding: Folding,
    options: FoldOptions,
    proof: VerifyReport | None,
    withdrawn: dict[str, Refusal],
    *,
    source: str | None,
    written: tuple[str, ...] = (),
) -> Report:
    after = folding.after
    if written:
        after = replace(after, file_bytes=sum(Path(name).stat().st_size for name in written))
    return Report(
        folded=folding.folded,
        kept=_reported(folding.kept, options),
        before=folding.before,
        after=after,
        withdrawn=tuple(entry for entry in folding.kept if entry.node in withdrawn),
        verification=proof,
        notes=(*folding.model.notes, *_names_nothing(folding.folded, folding.kept, options)),
        source=source,
        files=written,
        versions=versions(),
    )
