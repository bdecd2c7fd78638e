"""MatMul of two computed tensors: ``(s * A) B = s * (A B)`` for a scale of rows, and likewise for one of columns."""

from __future__ import annotations

from bnfold.affine import Affine
from bnfold.carry.step import Backward, Forward, Step, may_overflow, misplaced, needs_no_shift, placed_from_last
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD"]


def backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    """A scale of rows goes to the left factor, one of columns to the right factor, a single number to either.

    One for each matrix of a stack goes to a factor that is such a stack itself.
    """
    placed = placed_from_last(node, output, affine)
    if isinstance(placed, Refusal):
        return placed
    blocked = needs_no_shift(node, placed) or may_overflow(node, placed, behind=True) or _no_matrices(node)
    if blocked is not None:
        return blocked
    left, right = (Step(((name, placed),)) for name in node.inputs)
    if placed.uniform:
        return [left, right]
    if placed.axis in (-1, -2):
        return [right if placed.axis == -1 else left]
    shapes = node.scope.shapes
    stacks = [step for name, step in zip(node.inputs, (left, right), strict=True)
              if shapes.dim(name, placed.axis) == placed.scale.size]  # fmt: skip
    return stacks or misplaced(node, "multiplies stacks of matrices whose number is not known")


def forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    placed = placed_from_last(node, node.inputs[position], affine)
    if isinstance(placed, Refusal):
        return placed
    blocked = needs_no_shift(node, placed) or _no_matrices(node) or may_overflow(node, placed)
    if blocked is not None:
        return blocked
    if placed.uniform or placed.axis == (-2, -1)[position] or placed.axis < -2:
        return Step(((node.outputs[0], placed),))
    return misplaced(node, "sums over the axis that the channels are on")


def _no_matrices(node: Node) -> Refusal | None:
    """A vector as factor drops an axis, so both need to be matrices."""
    ranks = [node.scope.shapes.rank(name) for name in node.inputs[:2]]
    if all(rank is not None and rank >= 2 for rank in ranks):
        return None
    return Refusal("shape-unknown", f"the factors of '{node.label}' are not both known to be matrices", node.label)


BACKWARD: dict[str, Backward] = {"MatMul": backward}
FORWARD: dict[str, Forward] = {"MatMul": forward}
