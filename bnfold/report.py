"""What bnfold did and what it left, as data.

The same frozen dataclasses serve the Python API, the command line and the JSON reports. ``as_json`` turns any of them
into plain dicts and lists; fields appear in the order they are declared, so reports are stable under diff.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from bnfold.verify.report import VerifyReport

SCHEMA = "bnfold/report@1"

__all__ = ["SCHEMA", "Counts", "FoldResult", "Folded", "Kept", "Plan", "Report", "as_json", "dumps", "versions"]


@dataclass(frozen=True, slots=True)
class Folded:
    """One batch norm or affine operator that is gone from the graph.

    Attributes:
        node: the node's name, or ``operator:output`` when it has none.
        operator: its operator type, e.g. ``BatchNormalization``.
        into: the operators that took it over (names as for ``node``); empty when it was the identity.
        route: how it got there, in words, e.g. ``after Conv`` or ``before Gemm, through Flatten``.
        tensor: the tensors that have the same value in both models exactly where the fold ends. For a fold into a
            producer that is the norm's own output; for a fold into consumers, each consumer's output.
        scope: where the node stands: empty for the main graph, else e.g. ``if_3/then_branch`` or ``function:Block``.
    """

    node: str
    operator: str
    into: tuple[str, ...]
    route: str
    tensor: tuple[str, ...]
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """One batch norm or affine operator that stays, and why.

    Attributes:
        node, operator, scope: as in :class:`Folded`.
        code: refusal code; ``bnfold explain CODE`` tells more.
        reason: one sentence about this very node.
        blocking_node: the node that is in the way, or None.
    """

    node: str
    operator: str
    code: str
    reason: str
    blocking_node: str | None = None
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """Size of a model: nodes (subgraphs and functions included), norms, affine operators, float elements, bytes on
    disk."""

    nodes: int
    batch_norms: int
    affine_operators: int
    parameters: int
    file_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What folding would do; made without changing anything."""

    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    before: Counts
    notes: tuple[str, ...] = ()
    source: str | None = None
    schema: str = SCHEMA


@dataclass(frozen=True, slots=True)
class Report:
    """What folding did.

    Attributes:
        withdrawn: folds that were made, failed verification and were taken back (as :class:`Kept`, code
            ``withdrawn``); they are listed in ``kept`` too.
        verification: the proof, or None when it was switched off.
        files: files written.
    """

    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    before: Counts
    after: Counts
    withdrawn: tuple[Kept, ...] = ()
    verification: VerifyReport | None = None
    notes: tuple[str, ...] = ()
    source: str | None = None
    files: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    schema: str = SCHEMA


@dataclass(frozen=True, slots=True)
class FoldResult:
    """A folded model and the report about it."""

    model: onnx.ModelProto
    report: Report


def versions() -> dict[str, str]:
    """Versions of bnfold and of the libraries in use; a library that was never imported is not imported for this."""
    from bnfold._version import __version__

    found = {"bnfold": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("onnx", "numpy", "onnxruntime"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(module.__version__)
    return found


def as_json(value: Any) -> Any:
    """Turn dataclasses into dicts (``schema`` first), tuples into lists, and NaN or infinity into strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        names.sort(key=lambda name: name != "schema")
        return {name: as_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def dumps(value: Any) -> str:
    """JSON text of a report, ending in a newline."""
    return json.dumps(as_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
