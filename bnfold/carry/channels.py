"""Operators that join, cut and reorder along an axis: Concat, Split, Slice, Gather, DepthToSpace, SpaceToDepth.

On the channel axis the vectors are cut, joined or reordered with the channels; channels that the affine does not reach
take the identity. Along any other axis the operator must treat all of the tensor alike.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import Affine
from bnfold.carry.step import Backward, Edit, Forward, Step, constant_ints, misplaced
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD"]


def _unknown(node: Node, what: str) -> Refusal:
    return Refusal("shape-unknown", f"{what} of {node.op} '{node.label}' is not a known number", node.label)


def _normal(node: Node, tensor: str, axis: int) -> int | None:
    return node.scope.shapes.axis(tensor, axis)


def _sizes(node: Node, tensors: list[str], axis: int) -> list[int] | None:
    """Sizes of tensors along an axis, or None where one is not a number."""
    sizes = [node.scope.shapes.dim(name, axis) for name in tensors]
    numbers = [s for s in sizes if isinstance(s, int)]
    return numbers if len(numbers) == len(sizes) else None


# -- Concat ------------------------------------------------------------------------------------------------------------


def _concat_axis(node: Node, affine: Affine, tensor: str) -> tuple[int, int] | Refusal:
    axis, channel = _normal(node, tensor, node.integer("axis", 1)), _normal(node, tensor, affine.axis)
    if axis is None or channel is None:
        return _unknown(node, "the rank")
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
                return _unknown(node, "the channel count of each part")
            ends = np.cumsum(sizes)
            parts = [affine.at(axis).take(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    constants = node.scope.constants
    onward, edits = [], []
    for position, (name, part) in enumerate(zip(node.inputs, parts, strict=True)):
        if constants.get(name) is not None:
            edits.append(Edit(node, position, part))
        elif not part.identity:
            onward.append((name, part))
    return [Step(tuple(onward), tuple(edits))]


def concat_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    axis = _normal(node, node.inputs[position], node.integer("axis", 1))
    channel = axis if affine.uniform else _normal(node, node.inputs[position], affine.axis)
    if axis is None or channel is None:
        return _unknown(node, "the rank")
    if axis != channel:
        return misplaced(node, "joins tensors along another axis, and only one of them is scaled")
    sizes = _sizes(node, node.inputs, axis)
    if sizes is None or (not affine.uniform and sizes[position] != affine.scale.size):
        return _unknown(node, "the channel count of each part")
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
    axis = _normal(node, node.inputs[0], node.integer("axis", 0))
    channel = axis if affine.uniform else _normal(node, output, affine.axis)
    if axis is None or channel is None:
        return _unknown(node, "the rank")
    if axis != channel:
        others = [name for name in node.outputs if name and name != output]
        if others:
            return misplaced(node, "cuts along another axis, and its other parts are not scaled")
        return [Step(((node.inputs[0], affine.at(channel)),))]
    sizes = _split_sizes(node, axis)
    if sizes is None:
        return _unknown(node, "the size of each part")
    place = node.outputs.index(output)
    if not affine.uniform and sizes[place] != affine.scale.size:
        return _unknown(node, "the size of each part")
    start = sum(sizes[:place])
    return [Step(((node.inputs[0], affine.at(axis).scatter(sum(sizes), slice(start, start + sizes[place]))),))]


def split_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as sizes")
    outputs = [name for name in node.outputs if name]
    if affine.uniform:
        return Step(tuple((name, affine) for name in outputs))
    axis, channel = (_normal(node, node.inputs[0], a) for a in (node.integer("axis", 0), affine.axis))
    if axis is None or channel is None:
        return _unknown(node, "the rank")
    if axis != channel:
        return Step(tuple((name, affine.at(channel)) for name in outputs))
    sizes = _split_sizes(node, axis)
    if sizes is None or sum(sizes) != affine.scale.size:
        return _unknown(node, "the size of each part")
    ends = np.cumsum(sizes)
    parts = [affine.at(axis).take(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    return Step(tuple((name, part) for name, part in zip(node.outputs, parts, strict=True) if name))


# -- Slice -------------------------------------------------------------------------------------------------------------


def _slices(node: Node) -> dict[int, slice] | None:
    """What is cut from each axis (as the model counts axes), or None when that is computed at run time."""
    starts, ends = constant_ints(node, "starts", 1), constant_ints(node, "ends", 2)
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = constant_ints(node, "axes", 3)
    steps = constant_ints(node, "steps", 4)
    if (axes is None and node.input(3)) or (steps is None and node.input(4)):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = None if step < 0 and end < -(1 << 31) else end
        found[axis] = slice(start, stop, step)
    return found


def _channel_cut(node: Node, channel: int, rank: int | None) -> slice | Refusal | None:
    """The cut along the channel axis, None when it is left whole."""
    cuts = _slices(node)
    if cuts is None:
        return _unknown(node, "a bound")
    for axis, cut in cuts.items():
        if axis < 0 and rank is None:
            return _unknown(node, "the rank")
        if (axis + (rank or 0) if axis < 0 else axis) == channel:
            return cut
    return None


def slice_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if affine.uniform:
        return [Step(((node.inputs[0], affine),))]
    channel = _normal(node, output, affine.axis)
    if channel is None:
        return _unknown(node, "the rank")
    cut = _channel_cut(node, channel, node.scope.shapes.rank(node.inputs[0]))
    if isinstance(cut, Refusal):
        return cut
    if cut is None:
        return [Step(((node.inputs[0], affine.at(channel)),))]
    total = node.scope.shapes.dim(node.inputs[0], channel)
    if not isinstance(total, int):
        return _unknown(node, "the channel count")
    indices = np.arange(total)[cut]
    if indices.size != affine.scale.size:
        return _unknown(node, "the channel count")
    return [Step(((node.inputs[0], affine.at(channel).scatter(total, indices)),))]


def slice_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as bounds")
    if affine.uniform:
        return Step(((node.outputs[0], affine),))
    channel = _normal(node, node.inputs[0], affine.axis)
    if channel is None:
        return _unknown(node, "the rank")
    cut = _channel_cut(node, channel, node.scope.shapes.rank(node.inputs[0]))
    if isinstance(cut, Refusal):
        return cut
    placed = affine.at(channel)
    return Step(((node.outputs[0], placed if cut is None else placed.take(cut)),))


# -- Gather ------------------------------------------------------------------------------------------------------------


def _gather(node: Node) -> tuple[int, int, list[int] | None] | Refusal:
    """The axis that is gathered from, how many axes the indices have, and the indices when constant."""
    axis = _normal(node, node.inputs[0], node.integer("axis", 0))
    rank = node.scope.shapes.rank(node.inputs[1])
    if axis is None or rank is None:
        return _unknown(node, "the rank")
    constant = node.scope.constants.get(node.inputs[1])
    return axis, rank, None if constant is None else [int(v) for v in constant.array().ravel()]


def gather_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if affine.uniform:
        return [Step(((node.inputs[0], affine),))]
    found = _gather(node)
    channel = _normal(node, output, affine.axis)
    if isinstance(found, Refusal) or channel is None:
        return found if isinstance(found, Refusal) else _unknown(node, "the rank")
    axis, rank, indices = found
    if channel < axis:
        return [Step(((node.inputs[0], affine.at(channel)),))]
    if channel >= axis + rank:
        return [Step(((node.inputs[0], affine.at(channel - rank + 1)),))]
    total = node.scope.shapes.dim(node.inputs[0], axis)
    if indices is None or rank != 1 or not isinstance(total, int):
        return misplaced(node, "picks channels that are not known")
    wrapped = [i + total if i < 0 else i for i in indices]
    if affine.scale.size != len(wrapped) or not all(0 <= i < total for i in wrapped):
        return _unknown(node, "the channel count")
    if len(set(wrapped)) != len(wrapped):
        return misplaced(node, "shows one channel twice")
    return [Step(((node.inputs[0], affine.at(axis).scatter(total, wrapped)),))]


def gather_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as indices")
    if affine.uniform:
        return Step(((node.outputs[0], affine),))
    found = _gather(node)
    channel = _normal(node, node.inputs[0], affine.axis)
    if isinstance(found, Refusal) or channel is None:
        return found if isinstance(found, Refusal) else _unknown(node, "the rank")
    axis, rank, indices = found
    if channel != axis:
        return Step(((node.outputs[0], affine.at(channel if channel < axis else channel + rank - 1)),))
    if indices is None or rank > 1:
        return misplaced(node, "picks channels that are not known")
    if not all(-affine.scale.size <= i < affine.scale.size for i in indices):
        return _unknown(node, "the channel count")
    return Step(((node.outputs[0], affine.at(axis).take(indices)),))


# -- DepthToSpace, SpaceToDepth ----------------------------------------------------------------------------------------


def _spread(node: Node, affine: Affine, many: str, few: str, *, widen: bool) -> Step | Refusal:
    """Between ``C`` channels and ``C * block * block``: DCR and SpaceToDepth repeat all channels, CRD each channel."""
    if affine.uniform:
        return Step(((few if not widen else many, affine),))
    if _normal(node, few if widen else many, affine.axis) != 1:
        return misplaced(node, "rearranges the axis that the channels are on")
    copies = node.integer("blocksize", 1) ** 2
    each = node.op == "DepthToSpace" and node.string("mode", "DCR") == "CRD"
    if widen:
        return Step(((many, affine.repeat(copies, 1) if each else affine.tile(copies, 1)),))
    count = affine.scale.size // copies
    first = affine.at(1).take(slice(0, None, copies) if each else slice(0, count))
    again = first.repeat(copies, 1) if each else first.tile(copies, 1)
    if not again.same_as(affine.at(1)):
        return misplaced(node, "weaves channels together that are scaled differently")
    return Step(((few, first),))


def depth_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    step = _spread(node, affine, *_many_few(node), widen=node.op == "DepthToSpace")
    return step if isinstance(step, Refusal) else [step]


def depth_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    return _spread(node, affine, *_many_few(node), widen=node.op == "SpaceToDepth")


def _many_few(node: Node) -> tuple[str, str]:
    source, result = node.inputs[0], node.outputs[0]
    return (source, result) if node.op == "DepthToSpace" else (result, source)


BACKWARD: dict[str, Backward] = {
    "Concat": concat_backward,
    "Split": split_backward,
    "Slice": slice_backward,
    "Gather": gather_backward,
    "DepthToSpace": depth_backward,
    "SpaceToDepth": depth_backward,
}
FORWARD: dict[str, Forward] = {
    "Concat": concat_forward,
    "Split": split_forward,
    "Slice": slice_forward,
    "Gather": gather_forward,
    "DepthToSpace": depth_forward,
    "SpaceToDepth": depth_forward,
}
