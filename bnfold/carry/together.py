"""Joins that an affine passes only when it is on all operands: Concat along another axis, sums, means, maxima.

``(s * a + t) + (s * b + t) = s * (a + b) + 2 * t``, and ``max(s * a + t, s * b + t) = s * max(a, b) + t`` where
``s`` is not negative.
"""

from __future__ import annotations

from typing import NamedTuple

from bnfold.affine import Affine
from bnfold.carry.step import may_overflow, needs_no_sign, placed_from_last
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["Together", "together"]


class Together(NamedTuple):
    """What has to be on every operand, and what goes on behind the operator then."""

    brought: Affine
    onward: Affine


def together(node: Node, tensor: str, affine: Affine) -> Together | None:
    """How the affine of one operand passes with those of the others; None where it does not."""
    shapes = node.scope.shapes
    if node.op == "Concat":
        axis = shapes.axis(tensor, affine.axis)
        whole = affine if axis is None else affine.at(axis)
        joined = axis == shapes.axis(tensor, node.integer("axis", 1)) and not affine.uniform
        return None if joined else Together(whole, whole)
    if node.op not in _JOINS or any(node.scope.constants.get(name) is not None for name in node.inputs):
        return None
    placed = placed_from_last(node, tensor, affine)
    if node.scope.opset < 7 or isinstance(placed, Refusal):
        return None
    if node.op in ("Max", "Min"):
        return None if needs_no_sign(node, placed) else Together(placed, placed)
    if may_overflow(node, placed):
        return None
    times = {"Sub": 0, "Mean": 1}.get(node.op, len(node.inputs))
    return Together(placed, Affine(placed.scale, placed.shift * times, placed.axis))


_JOINS = ("Add", "Sub", "Sum", "Mean", "Max", "Min")
