"""Proof that two models are the same network.

    report = verify("model.onnx", "folded.onnx")
    if not report:
        print(report.reason, report.blamed)

Three things are done, from the smallest to the largest, and each can fail the comparison:

1. ``structure``: the checker, the interface, opsets and domains.
2. ``sites`` and ``local``: the graphs are laid over each other; wherever the same tensor is made by other operators or
   weights, both versions of that piece are run alone on random activations and compared channel by channel.
3. ``evaluation`` and ``outputs``: both models run whole, on several inputs, compared with what rounding alone does to
   the original.

``docs/proof.md`` says why that suffices, and what its limits are.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bnfold.verify.options import VerifyOptions
from bnfold.verify.report import Metrics, Noise, OutputResult, SiteResult, Structure, VerifyReport, Worst

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import TypeAlias

    import onnx

    from bnfold.model import Model
    from bnfold.report import Folded

    ModelLike: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | Model

__all__ = [
    "Metrics",
    "Noise",
    "OutputResult",
    "SiteResult",
    "Structure",
    "VerifyOptions",
    "VerifyReport",
    "Worst",
    "verify",
]


def verify(
    original: ModelLike,
    folded: ModelLike,
    options: VerifyOptions | None = None,
    *,
    folds: Sequence[Folded] = (),
) -> VerifyReport:
    """Compare two models.

    Args:
        original: the model that is right by definition: a path, or a model in memory.
        folded: the model that should be the same network.
        options: see :class:`VerifyOptions`.
        folds: what was folded, if known; failures are then blamed on these.

    Returns:
        A report that is true when the models are equal. ``report.verdict`` tells a difference from a comparison that
        could not be made.

    Raises:
        ModelReadError: a model cannot be read.
        OptionError: options that do not fit the model.
        RuntimeMissingError: onnxruntime is not installed.
        ProviderError: the execution provider asked for is not there.
    """
    chosen = options or VerifyOptions()
    if chosen.isolated:
        from bnfold.verify.isolated import verify_isolated

        return verify_isolated(original, folded, chosen, folds)
    from bnfold.verify.judge import Judge
    from bnfold.verify.source import Source

    return Judge(Source(original), Source(folded), chosen, folds).run()


class _CallableModule(ModuleType):
    """``bnfold.verify`` is this package and, in the public API, also the function: calling the one calls the other."""

    def __call__(self, *args: Any, **kwargs: Any) -> VerifyReport:
        report: VerifyReport = verify(*args, **kwargs)
        return report


sys.modules[__name__].__class__ = _CallableModule
