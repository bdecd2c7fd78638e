"""Evaluating one operator on constants, by onnx's reference evaluator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bnfold.constants import Constant
    from bnfold.graph import Node

__all__ = ["LIMIT", "evaluate", "result_size"]

LIMIT = 1 << 27
"""Elements above which an expression of constants is not evaluated: 512 MiB of float32."""


def result_size(node: Node, inputs: list[Constant | None]) -> int:
    """An upper bound on the elements of the result, without making it."""
    given = [c for c in inputs if c is not None]
    if node.op in ("ConstantOfShape", "Expand", "Tile"):
        target = given[-1]
        if target.size > 64 or target.floating:
            return LIMIT + 1
        factors = [abs(int(v)) for v in target.array().ravel()]
        if node.op != "ConstantOfShape":
            factors.append(max(given[0].size, 1))
        return math.prod(factors)
    if node.op == "Range":
        whole = len(given) == 3 and all(c.size == 1 for c in given)
        return _range_size(given) if whole else LIMIT + 1
    if node.op == "Concat":
        return sum(c.size for c in given)
    if node.op == "MatMul":  # rows times columns, more than enough for stacks
        summed = max(given[0].dims[-1] if given[0].dims else 1, 1)
        return (given[0].size // summed) * (given[1].size // summed)
    if node.op == "Gather":
        return given[0].size * max(given[1].size, 1)
    try:
        return math.prod(np.broadcast_shapes(*(c.dims for c in given)))
    except ValueError:
        return max(c.size for c in given)


def _range_size(given: list[Constant]) -> int:
    start, limit, delta = (float(c.float64().reshape(())) for c in given)
    steps = (limit - start) / delta if delta else math.nan
    return max(0, math.ceil(steps)) if math.isfinite(steps) else LIMIT + 1


def evaluate(node: Node, inputs: Sequence[Constant | None], output: int) -> NDArray[Any] | None:
    """Run one node through onnx's reference evaluator; None when it cannot (the tensor is then not a constant)."""
    from onnx.reference import ReferenceEvaluator

    if node.op == "Slice" and _ends_beyond(inputs):
        return None
    first = inputs[0]
    if first is not None and node.op in ("Clip", "Unsqueeze") and node.attributes:
        return _evaluate_old(node, first.array())
    feeds = {name: c.array() for name, c in zip(node.inputs, inputs, strict=True) if c is not None}
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(node.proto, opsets={"": node.scope.opset}).run(None, feeds)
    except Exception:  # an operator the evaluator lacks, or a malformed node: not constant, whatever the cause
        return None
    value = results[output]
    return value if isinstance(value, np.ndarray) else np.asarray(value)


def _evaluate_old(node: Node, values: NDArray[Any]) -> NDArray[Any] | None:
    """Clip and Unsqueeze as they were with attributes, which the evaluator does not run."""
    if node.op == "Clip":
        highest = float(np.finfo(np.float32).max)
        bounds = node.real("min", -highest), node.real("max", highest)
        return np.clip(values, *bounds).astype(values.dtype) if values.dtype.kind == "f" else None
    try:
        return np.expand_dims(values, tuple(node.integers("axes") or ()))
    except ValueError:  # axes that do not fit: for the runtime to complain about
        return None


def _ends_beyond(inputs: Sequence[Constant | None]) -> bool:
    """Whether a Slice goes backwards to beyond the last element, or from before the first, where the evaluator and
    onnxruntime differ."""
    data, starts, ends, _, steps = [*inputs, None, None, None, None][:5]
    if data is None or starts is None or ends is None or steps is None or not (steps.array() < 0).any():
        return False
    return bool((ends.array() >= (1 << 31) - 1).any() or (starts.array() < -min(data.dims, default=0)).any())
