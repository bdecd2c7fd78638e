"""Operators that work on each element alone: copies let everything pass, positively homogeneous ones a scale >= 0.

``f(s * x) = s * f(x)`` holds for ReLU, LeakyReLU, PReLU, Abs and a Clip at zero when ``s >= 0``, never with a shift.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import Affine
from bnfold.carry.step import Backward, Forward, Step, needs_no_shift, needs_no_sign, of_integers
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD"]


def _blocked(node: Node, affine: Affine) -> Refusal | None:
    if node.op == "Clip" and not _cuts_at_zero(node):
        return Refusal("blocked", f"the bounds of Clip '{node.label}' let no scale or shift pass", node.label)
    if node.op in ("Relu", "LeakyRelu", "PRelu", "Abs", "Clip"):
        return needs_no_shift(node, affine) or needs_no_sign(node, affine)
    if node.op == "Dropout":
        return _dropout(node)
    return _cast(node) if node.op in ("Cast", "CastLike") else None


def _cuts_at_zero(node: Node) -> bool:
    """A Clip from zero up, or up to zero: a ReLU by another name."""
    if node.scope.opset < 11:
        largest = float(np.finfo(np.float32).max)
        bounds = [node.real("min", -largest), node.real("max", largest)]
        return bounds in ([0.0, largest], [-largest, 0.0]) or bounds == [0.0, float("inf")]
    low, high = (node.scope.constants.get(node.input(i)) if node.input(i) else None for i in (1, 2))
    if (low is None) == (high is None) or (node.input(1) and node.input(2)):
        return False
    bound = low or high
    return bound is not None and bound.size == 1 and bound.float64().item() == 0.0


def _dropout(node: Node) -> Refusal | None:
    """Dropout copies at inference; a mask that is read, or training mode, does not."""
    scope = node.scope
    training = scope.opset < 7 and not node.integer("is_test", 0)
    if scope.opset >= 12 and node.input(2):
        flag = scope.constants.get(node.input(2))
        training = flag is None or bool(flag.array().any())
    if training:
        return Refusal("training-mode", f"Dropout '{node.label}' is in training mode", node.label, lasting=True)
    return None


def _cast(node: Node) -> Refusal | None:
    """A cast to the type the tensor already has."""
    shapes = node.scope.shapes
    target = node.integer("to", 0) if node.op == "Cast" else shapes.element_type(node.inputs[1])
    if target is not None and shapes.element_type(node.inputs[0]) == target:
        return None
    return of_integers(node) or Refusal(
        "blocked", f"{node.op} '{node.label}' changes the element type", node.label, lasting=True
    )


def backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if output != node.outputs[0]:
        return Refusal("blocked", f"'{output}' is not the main output of {node.op}", node.label, lasting=True)
    return _blocked(node, affine) or [Step(((node.inputs[0], affine),))]


def forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:
        return Refusal("blocked", f"the tensor is a parameter of {node.op} '{node.label}'", node.label, lasting=True)
    return _blocked(node, affine) or Step(((node.outputs[0], affine),))


_OPERATORS = ("Identity", "Dropout", "Cast", "CastLike", "Relu", "LeakyRelu", "PRelu", "Abs", "Clip")
BACKWARD: dict[str, Backward] = dict.fromkeys(_OPERATORS, backward)
FORWARD: dict[str, Forward] = dict.fromkeys(_OPERATORS, forward)
