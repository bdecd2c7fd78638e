"""Operators that move or stretch axes and leave values alone: Transpose, Squeeze, Unsqueeze, Expand, Tile."""

from __future__ import annotations

import numpy as np

from bnfold import symbolic
from bnfold.affine import Affine, Spread
from bnfold.carry.step import Backward, Forward, Step, constant_ints, misplaced, placed_from_last
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD", "SPREAD"]

AxisMap = list[int] | Refusal
"""For each output axis the input axis it shows, or -1 for an axis of size 1 that the operator adds."""


def _transpose_map(node: Node) -> AxisMap:
    order = node.integers("perm")
    if order is None:
        rank = node.scope.shapes.rank(node.inputs[0])
        if rank is None:
            return Refusal("shape-unknown", f"the rank of '{node.inputs[0]}' is not known", node.label)
        return list(reversed(range(rank)))
    return order


def _squeeze_map(node: Node) -> AxisMap:
    dims = node.scope.shapes.dims(node.inputs[0])
    if dims is None:
        return Refusal("shape-unknown", f"the rank of '{node.inputs[0]}' is not known", node.label)
    axes = constant_ints(node, "axes", 1)
    if axes is None:
        if node.input(1) or not all(isinstance(d, int) for d in dims):
            return Refusal("shape-unknown", f"which axes '{node.label}' removes is not known", node.label)
        axes = [i for i, d in enumerate(dims) if d == 1]
    gone = {a + len(dims) if a < 0 else a for a in axes}
    return [axis for axis in range(len(dims)) if axis not in gone]


def _unsqueeze_map(node: Node) -> AxisMap:
    rank = node.scope.shapes.rank(node.inputs[0])
    axes = constant_ints(node, "axes", 1)
    if rank is None or axes is None:
        return Refusal("shape-unknown", f"which axes '{node.label}' adds is not known", node.label)
    new = {a + rank + len(axes) if a < 0 else a for a in axes}
    old = iter(range(rank))
    return [-1 if axis in new else next(old, -1) for axis in range(rank + len(axes))]


_MAPS = {"Transpose": _transpose_map, "Squeeze": _squeeze_map, "Unsqueeze": _unsqueeze_map}
"""What only moves axes. Those that channels are spread over have more than one index, so none of them goes or comes."""


def backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if affine.uniform:
        return [Step(((node.inputs[0], affine),))]
    axes = _MAPS[node.op](node)
    if isinstance(axes, Refusal):
        return axes
    if isinstance(affine, Spread):
        return [Step(((node.inputs[0], affine.on(axes[axis] for axis in affine.axes)),))]
    axis = affine.axis + len(axes) if affine.axis < 0 else affine.axis
    if not 0 <= axis < len(axes) or axes[axis] < 0:
        return misplaced(node, "makes the axis that the channels are on")
    return [Step(((node.inputs[0], affine.at(axes[axis])),))]


def forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as a list of axes")
    if affine.uniform:
        return Step(((node.outputs[0], affine),))
    axes = _MAPS[node.op](node)
    if isinstance(axes, Refusal):
        return axes
    if isinstance(affine, Spread):
        return Step(((node.outputs[0], affine.on(axes.index(axis) for axis in affine.axes)),))
    axis = node.scope.shapes.axis(node.inputs[0], affine.axis)
    if axis is None or axis not in axes:
        return misplaced(node, "removes the axis that the channels are on")
    return Step(((node.outputs[0], affine.at(axes.index(axis))),))


# -- Expand and Tile: copies along an axis -----------------------------------------------------------------------------


def _copies(node: Node, affine: Affine) -> int | Refusal:
    """How often the channel axis is repeated; ``affine.axis`` counts from the last axis, which both sides share."""
    if node.op == "Tile":
        repeats = (symbolic.values(node.scope, node.input(1)) if node.scope.opset >= 6 else None) or []
        times = repeats[affine.axis].value if -len(repeats) <= affine.axis < 0 else None
        if times is None:
            return Refusal("shape-unknown", f"how often '{node.label}' repeats is not known", node.label)
        return times
    before, after = (node.scope.shapes.dim(name, affine.axis) for name in (node.inputs[0], node.outputs[0]))
    if not isinstance(before, int) or before != after:
        return misplaced(node, "stretches the axis that the channels are on, or may do so")
    return 1


def copies_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if affine.uniform:
        return [Step(((node.inputs[0], affine),))]
    placed = placed_from_last(node, output, affine)
    times = placed if isinstance(placed, Refusal) else _copies(node, placed)
    if isinstance(placed, Refusal) or isinstance(times, Refusal):
        return placed if isinstance(placed, Refusal) else _refusal(times)
    period = placed.scale.size // max(times, 1)
    first = placed.take(np.arange(period))
    if times < 1 or period * times != placed.scale.size or not first.tile(times, placed.axis).same_as(placed):
        return misplaced(node, "repeats channels that are scaled differently")
    return [Step(((node.inputs[0], first),))]


def copies_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as a shape")
    if affine.uniform:
        return Step(((node.outputs[0], affine),))
    placed = placed_from_last(node, node.inputs[0], affine)
    times = placed if isinstance(placed, Refusal) else _copies(node, placed)
    if isinstance(placed, Refusal) or isinstance(times, Refusal):
        return placed if isinstance(placed, Refusal) else _refusal(times)
    return Step(((node.outputs[0], placed.tile(times, placed.axis)),))


def _refusal(value: int | Refusal) -> Refusal:
    assert isinstance(value, Refusal)
    return value


BACKWARD: dict[str, Backward] = {
    **dict.fromkeys(_MAPS, backward),
    "Expand": copies_backward,
    "Tile": copies_backward,
}
FORWARD: dict[str, Forward] = {
    **dict.fromkeys(_MAPS, forward),
    "Expand": copies_forward,
    "Tile": copies_forward,
}
SPREAD = tuple(_MAPS)
"""Those that take an affine on several axes along."""
