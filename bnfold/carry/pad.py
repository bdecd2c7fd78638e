"""Pad: what it adds are copies, or one value that has to follow the affine."""

from __future__ import annotations

import numpy as np

from bnfold import dtypes, symbolic
from bnfold.affine import Affine
from bnfold.carry.step import Edit, Edits, Step, constant_ints, misplaced, placed_from_first
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["backward", "forward"]


def _amounts(node: Node) -> list[float | None] | None:
    """How much is added at each end of each axis, None where that is computed."""
    listed = node.integers("pads" if node.scope.opset >= 2 else "paddings")
    return symbolic.elements(node.scope, node.input(1)) if listed is None else list(listed)


def _pad_value(node: Node, edits: Edits) -> tuple[int | str, float] | Refusal:
    """Where the value that Pad writes is kept, and what it is after the edits that are decided already."""
    slot: int | str = "value" if node.scope.opset < 11 else 2
    value = node.real("value", 0.0) if slot == "value" else 0.0
    if slot == 2 and node.input(2):
        constant = node.scope.constants.get(node.input(2))
        if constant is None or constant.size != 1:
            return Refusal("shift", f"the value that Pad '{node.label}' writes is not constant", node.label)
        value = float(constant.float64().ravel()[0])
    for affine in edits[node.index, slot].affines if (node.index, slot) in edits else ():
        value = float(affine.scale[0] * value + affine.shift[0])
    return slot, value


def _pads_axis(node: Node, axis: int) -> bool:
    """Whether elements are added or cut along the axis; not known counts as yes."""
    pads = _amounts(node)
    if pads is None:
        return True
    rank = len(pads) // 2
    axes = constant_ints(node, "", 3)
    if node.input(3):
        full = node.scope.shapes.rank(node.inputs[0])
        if axes is None or full is None:
            return True
        counted = [a + full if a < 0 else a for a in axes]
        if axis not in counted:
            return False
        axis = counted.index(axis)
    return not axis < rank or pads[axis] != 0 or pads[axis + rank] != 0


def _pad(node: Node, affine: Affine, onto: str, edits: Edits, *, backwards: bool) -> Step | Refusal:
    if not affine.uniform and _pads_axis(node, affine.axis):
        return misplaced(node, "pads the axis that the channels are on, or may do so")
    pads = _amounts(node)
    cuts = pads is not None and all(amount is not None and amount <= 0 for amount in pads)
    if cuts or node.string("mode", "constant") != "constant":
        return Step(((onto, affine),))  # what is written, if anything, are copies
    kept = _pad_value(node, edits)
    if isinstance(kept, Refusal):
        return kept
    slot, value = kept
    if not backwards and not affine.scale.all():
        return Refusal("shift", f"a channel in front of Pad '{node.label}' is scaled by zero", node.label)
    follow = affine if backwards else Affine.of(1.0 / affine.scale, -affine.shift / affine.scale)
    values = follow.scale * value + follow.shift
    if not np.any(values != value):
        return Step(((onto, affine),))
    if np.any(values != values[0]):
        return Refusal(
            "padding", f"Pad '{node.label}' writes one value, and it would have to differ per channel", node.label
        )
    if slot == 2 and not node.input(2) and node.scope.shapes.element_type(node.inputs[0]) is None:
        return Refusal("shape-unknown", f"the element type in front of Pad '{node.label}' is not known", node.label)
    written = float(values[0])
    if slot == "value" and written != float(np.float32(written)) and _is_double(node):
        return Refusal("padding", f"the value of Pad '{node.label}' would be rounded to float32", node.label)
    one = Affine(follow.scale[:1], follow.shift[:1])
    if np.any(follow.scale != one.scale[0]):
        one = Affine.of(1.0, float(values[0]) - value)
    return Step(((onto, affine),), (Edit(node, slot, one, 0.0),))


def _is_double(node: Node) -> bool:
    return node.scope.shapes.element_type(node.inputs[0]) == dtypes.DOUBLE


def backward(node: Node, output: str, affine: Affine, edits: Edits) -> list[Step] | Refusal:
    placed = placed_from_first(node, output, affine)
    step = placed if isinstance(placed, Refusal) else _pad(node, placed, node.inputs[0], edits, backwards=True)
    return step if isinstance(step, Refusal) else [step]


def forward(node: Node, position: int, affine: Affine, edits: Edits) -> Step | Refusal:
    if position != 0:
        return misplaced(node, "reads it as a parameter")
    placed = placed_from_first(node, node.inputs[0], affine)
    return placed if isinstance(placed, Refusal) else _pad(node, placed, node.outputs[0], edits, backwards=False)
