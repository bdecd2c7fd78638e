"""Operators that join and cut along an axis: Concat, Split.

On the channel axis the vectors are cut or joined with the channels; channels that the affine does not reach take the
identity. Along any other axis a Concat needs it on all parts, a Split has it on all parts.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import Affine, Spread
from bnfold.carry.step import Backward, Forward, Step, constant_ints, misplaced, onto_inputs, unknown
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD", "split_alone"]


def _sizes(node: Node, tensors: list[str], axis: int) -> list[int] | None:
    """Sizes of tensors along an axis, or None where one is not a number."""
    sizes = [node.scope.shapes.dim(name, axis) for name in tensors]
    numbers = [s for s in sizes if isinstance(s, int)]
    return numbers if len(numbers) == len(sizes) else None


# -- Concat ------------------------------------------------------------------------------------------------------------


def _concat_axis(node: Node, affine: Affine, tensor: str) -> tuple[int, int] | Refusal:
    axis, channel = node.scope.shapes.axis(tensor, node.integer("axis", 1)), node.scope.shapes.axis(tensor, affine.axis)
    if axis is None or channel is None:
        return unknown(node, "the rank")
    return axis, channel


def concat_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    parts: list[Affine] = [affine] * len(node.inputs)
    if not affine.uniform:
        axes = _concat_axis(node, affine, output)
        if isinstance(axes, Refusal):
            return axes
        axis, channel = axes
        parts = [affine.at(channel)] * len(node.inputs)
        if axis == channel:
            sizes = _sizes(node, node.inputs, axis)
            if sizes is None or sum(sizes) != affine.scale.size:
                return unknown(node, "the channel count of each part")
            ends = np.cumsum(sizes)
            parts = [affine.at(axis).take(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    step = onto_inputs(node, parts)
    return step if isinstance(step, Refusal) else [step]


def concat_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    axis = node.scope.shapes.axis(node.inputs[position], node.integer("axis", 1))
    channel = axis if affine.uniform else node.scope.shapes.axis(node.inputs[position], affine.axis)
    if axis is None or channel is None:
        return unknown(node, "the rank")
    if axis != channel:
        return misplaced(node, "joins tensors along another axis, and only one of them is scaled")
    sizes = _sizes(node, node.inputs, axis)
    if sizes is None or (not affine.uniform and sizes[position] != affine.scale.size):
        return unknown(node, "the channel count of each part")
    if not sizes[position]:
        return misplaced(node, "joins a part that has no channels")
    start = sum(sizes[:position])
    whole = affine.at(axis).scatter(sum(sizes), slice(start, start + sizes[position]))
    return Step(((node.outputs[0], whole),))


# -- Split -------------------------------------------------------------------------------------------------------------


def _split_sizes(node: Node, axis: int) -> list[int] | None:
    sizes = constant_ints(node, "split", 1)
    if sizes is not None:
        return sizes if len(sizes) == len(node.outputs) else None
    total = node.scope.shapes.dim(node.inputs[0], axis)
    if node.input(1) or not isinstance(total, int):
        return None
    each = -(-total // len(node.outputs))  # opset 18: the last part is the smaller one
    sizes = [min(each, total - each * i) for i in range(len(node.outputs))]
    return sizes if all(size > 0 for size in sizes) else None


def split_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    axis = node.scope.shapes.axis(node.inputs[0], node.integer("axis", 0))
    channel = axis if affine.uniform else node.scope.shapes.axis(output, affine.axis)
    if axis is None or channel is None:
        return unknown(node, "the rank")
    if axis != channel:
        others = [name for name in node.outputs if name and name != output]
        if others:
            return misplaced(node, "cuts along another axis, and its other parts are not scaled")
        return [Step(((node.inputs[0], affine.at(channel)),))]
    sizes = _split_sizes(node, axis)
    if sizes is None:
        return unknown(node, "the size of each part")
    place = node.outputs.index(output)
    if not affine.uniform and sizes[place] != affine.scale.size:
        return unknown(node, "the size of each part")
    start = sum(sizes[:place])
    return [Step(((node.inputs[0], affine.at(axis).scatter(sum(sizes), slice(start, start + sizes[place]))),))]


def split_alone(node: Node, output: str, affine: Affine) -> Step | Refusal:
    """Past a Split along another axis, on what this output takes of it alone."""
    axis, channel = (node.scope.shapes.axis(output, a) for a in (node.integer("axis", 0), affine.axis))
    sizes = None if axis is None else _split_sizes(node, axis)
    if axis is None or channel is None or sizes is None:
        return unknown(node, "the size of each part")
    place = node.outputs.index(output)
    start = sum(sizes[:place])
    places = list(range(start, start + sizes[place]))
    return Step(((node.inputs[0], Spread.at_places(affine.at(channel), places, axis, sum(sizes))),))


def split_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as sizes")
    outputs = [name for name in node.outputs if name]
    if affine.uniform:
        return Step(tuple((name, affine) for name in outputs))
    axis, channel = (node.scope.shapes.axis(node.inputs[0], a) for a in (node.integer("axis", 0), affine.axis))
    if axis is None or channel is None:
        return unknown(node, "the rank")
    if axis != channel:
        return Step(tuple((name, affine.at(channel)) for name in outputs))
    sizes = _split_sizes(node, axis)
    if sizes is None or sum(sizes) != affine.scale.size:
        return unknown(node, "the size of each part")
    ends = np.cumsum(sizes)
    parts = [affine.at(axis).take(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    return Step(tuple((name, part) for name, part in zip(node.outputs, parts, strict=True) if name))


BACKWARD: dict[str, Backward] = {"Concat": concat_backward, "Split": split_backward}
FORWARD: dict[str, Forward] = {"Concat": concat_forward, "Split": split_forward}
