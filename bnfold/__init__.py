"""bnfold folds batch normalization out of ONNX models, proves that the result is the same network, and measures the
gain.

    result = bnfold.fold("model.onnx")            # or an onnx.ModelProto, which is never changed
    result.model                                  # the folded onnx.ModelProto
    result.report.folded, result.report.kept      # what went where, and why the rest stayed

    bnfold.fold_file("model.onnx", "folded.onnx") # the same for files, weights are streamed
    bnfold.inspect("model.onnx")                  # the plan only
    bnfold.verify("model.onnx", "folded.onnx")    # truthy when it is the same network
    bnfold.bench("model.onnx", "folded.onnx")     # paired timing of both

Nothing here prints, exits or keeps global state. Importing bnfold imports neither onnx nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnfold._version import __version__
from bnfold.errors import BnfoldError, VerificationError

if TYPE_CHECKING:
    from bnfold.bench import BenchOptions, BenchReport, bench
    from bnfold.pipeline import FoldOptions, fold, fold_file, inspect
    from bnfold.report import Folded, FoldResult, Kept, Plan, Report
    from bnfold.verify import VerifyOptions, VerifyReport, verify

__all__ = [
    "BenchOptions",
    "BenchReport",
    "BnfoldError",
    "FoldOptions",
    "FoldResult",
    "Folded",
    "Kept",
    "Plan",
    "Report",
    "VerificationError",
    "VerifyOptions",
    "VerifyReport",
    "__version__",
    "bench",
    "fold",
    "fold_file",
    "inspect",
    "verify",
]

_HOME = {
    **dict.fromkeys(("BenchOptions", "BenchReport", "bench"), "bnfold.bench"),
    **dict.fromkeys(("FoldOptions", "fold", "fold_file", "inspect"), "bnfold.pipeline"),
    **dict.fromkeys(("Folded", "FoldResult", "Kept", "Plan", "Report"), "bnfold.report"),
    **dict.fromkeys(("VerifyOptions", "VerifyReport", "verify"), "bnfold.verify"),
}


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that ``bnfold --version`` stays instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
