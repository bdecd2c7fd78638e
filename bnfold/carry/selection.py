"""Operators that pick and reorder channels: Slice, Gather.

On the channel axis the vectors are picked and reordered with the channels; channels that are left out take the
identity. Along any other axis the operator treats all of the tensor alike.
"""

from __future__ import annotations

from typing import NamedTuple

from bnfold.affine import Affine, Spread
from bnfold.carry.step import Backward, Forward, Step, constant_ints, misplaced, unknown
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD", "PICKS", "reads_elsewhere"]

PICKS = frozenset(["Gather", "Slice"])
"""Operators that read a part of a tensor."""

_NO_END = (1 << 31) - 1
"""From here on an end means the last element."""


# -- Slice -------------------------------------------------------------------------------------------------------------


class _Cut(NamedTuple):
    """What a Slice takes of one axis."""

    start: int
    end: int
    step: int

    def of(self, total: int) -> list[int]:
        """The indices that are taken of so many. Going backwards, a start before the first one takes the first."""
        start, end = (place + total if place < 0 else place for place in (self.start, self.end))
        if self.step > 0:
            return list(range(min(max(start, 0), total), min(max(end, 0), total), self.step))
        return list(range(min(max(start, 0), total - 1), min(max(end, -1), total - 1), self.step))


def _slices(node: Node) -> dict[int, _Cut] | None:
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
        if step == 0 or (step < 0 and end >= _NO_END):
            return None  # nothing, says onnx; all up to the first one, says onnxruntime
        found[axis] = _Cut(start, end, step)
    return found


def _channel_cut(node: Node, channel: int, rank: int | None) -> _Cut | Refusal | None:
    """The cut along the channel axis, None when it is left whole."""
    cuts, axes = _slices(node), constant_ints(node, "axes", 3)
    if cuts is None and axes is None:
        return unknown(node, "a bound")
    for axis in axes or () if cuts is None else cuts:
        if axis < 0 and rank is None:
            return unknown(node, "the rank")
        if (axis + (rank or 0) if axis < 0 else axis) == channel:
            return unknown(node, "a bound") if cuts is None else cuts[axis]
    return None


def slice_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if affine.uniform:
        return [Step(((node.inputs[0], affine),)), *_on_slice(node, affine)]
    channel = node.scope.shapes.axis(output, affine.axis)
    if channel is None:
        return unknown(node, "the rank")
    cut = _channel_cut(node, channel, node.scope.shapes.rank(node.inputs[0]))
    if isinstance(cut, Refusal):
        return cut
    if cut is None:
        return [Step(((node.inputs[0], affine.at(channel)),)), *_on_slice(node, affine.at(channel))]
    total = node.scope.shapes.dim(node.inputs[0], channel)
    if not isinstance(total, int):
        return unknown(node, "the channel count")
    indices = cut.of(total)
    if len(indices) != affine.scale.size:
        return unknown(node, "the channel count")
    return [Step(((node.inputs[0], affine.at(channel).scatter(total, indices)),))]


def _on_slice(node: Node, affine: Affine) -> list[Step]:
    """What is on all of the result, on the part of another axis that is cut out: others read the rest of it."""
    shapes, cuts = node.scope.shapes, _slices(node) if _shared(node) else None
    ways = []
    for axis, cut in (cuts or {}).items():
        place = shapes.axis(node.inputs[0], axis)
        total = None if place is None else shapes.dim(node.inputs[0], place)
        if place is not None and isinstance(total, int) and 0 < len(cut.of(total)) < total:
            ways.append(_at_places(node, affine, cut.of(total), place, total))
    return ways


def _at_places(node: Node, affine: Affine, places: list[int], axis: int, size: int) -> Step:
    if affine.uniform:
        return Step(((node.inputs[0], affine.at(axis).scatter(size, places)),))
    return Step(((node.inputs[0], Spread.at_places(affine, places, axis, size)),))


def _shared(node: Node) -> bool:
    return len(node.scope.value_readers(node.inputs[0])) > 1


def slice_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as bounds")
    if affine.uniform:
        return Step(((node.outputs[0], affine),))
    channel = node.scope.shapes.axis(node.inputs[0], affine.axis)
    if channel is None:
        return unknown(node, "the rank")
    cut = _channel_cut(node, channel, node.scope.shapes.rank(node.inputs[0]))
    if isinstance(cut, Refusal):
        return cut
    placed = affine.at(channel)
    return Step(((node.outputs[0], placed if cut is None else placed.take(cut.of(placed.scale.size))),))


# -- Gather ------------------------------------------------------------------------------------------------------------


def _gather(node: Node) -> tuple[int, int, list[int] | None] | Refusal:
    """The axis that is gathered from, how many axes the indices have, and the indices when constant."""
    axis = node.scope.shapes.axis(node.inputs[0], node.integer("axis", 0))
    rank = node.scope.shapes.rank(node.inputs[1])
    if axis is None or rank is None:
        return unknown(node, "the rank")
    constant = node.scope.constants.get(node.inputs[1])
    return axis, rank, None if constant is None else [int(v) for v in constant.array().ravel()]


def gather_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if affine.uniform:
        return [Step(((node.inputs[0], affine),)), *_on_gather(node, affine)]
    found = _gather(node)
    channel = node.scope.shapes.axis(output, affine.axis)
    if isinstance(found, Refusal) or channel is None:
        return found if isinstance(found, Refusal) else unknown(node, "the rank")
    axis, rank, indices = found
    if channel < axis or channel >= axis + rank:
        placed = affine.at(channel if channel < axis else channel - rank + 1)
        return [Step(((node.inputs[0], placed),)), *_on_gather(node, placed)]
    total = node.scope.shapes.dim(node.inputs[0], axis)
    if indices is None or rank != 1 or not isinstance(total, int):
        return misplaced(node, "picks channels that are not known")
    wrapped = [i + total if i < 0 else i for i in indices]
    if affine.scale.size != len(wrapped) or not all(0 <= i < total for i in wrapped):
        return unknown(node, "the channel count")
    whole = affine.at(axis).scatter(total, wrapped)
    if not whole.take(wrapped).same_as(affine.at(axis)):
        return misplaced(node, "shows one channel twice, scaled differently")
    return [Step(((node.inputs[0], whole),))]


def _on_gather(node: Node, affine: Affine) -> list[Step]:
    """What is on all of the result, on the places that are picked: others pick the rest."""
    found = _gather(node) if _shared(node) else None
    if found is None or isinstance(found, Refusal):
        return []
    axis, _, indices = found
    total = node.scope.shapes.dim(node.inputs[0], axis)
    if (
        indices is None
        or not isinstance(total, int)
        or not all(-total <= i < total for i in indices)
        or len(set(indices)) == total
    ):
        return []
    return [_at_places(node, affine, indices, axis, total)]


def gather_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as indices")
    if affine.uniform:
        return Step(((node.outputs[0], affine),))
    found = _gather(node)
    channel = node.scope.shapes.axis(node.inputs[0], affine.axis)
    if isinstance(found, Refusal) or channel is None:
        return found if isinstance(found, Refusal) else unknown(node, "the rank")
    axis, rank, indices = found
    if channel != axis:
        return Step(((node.outputs[0], affine.at(channel if channel < axis else channel + rank - 1)),))
    if indices is None or rank > 1:
        return misplaced(node, "picks channels that are not known")
    if not all(-affine.scale.size <= i < affine.scale.size for i in indices):
        return unknown(node, "the channel count")
    return Step(((node.outputs[0], affine.at(axis).take(indices)),))


BACKWARD: dict[str, Backward] = {"Slice": slice_backward, "Gather": gather_backward}
FORWARD: dict[str, Forward] = {"Slice": slice_forward, "Gather": gather_forward}


def reads_elsewhere(node: Node, position: int, affine: Affine) -> bool:
    """Whether a node reads a tensor only where an affine, which is the identity on some channels, does nothing."""
    if node.op not in PICKS or position != 0 or affine.uniform:
        return False
    if isinstance(affine, Spread):
        return _picks_nothing(node, affine)
    step = FORWARD[node.op](node, position, affine)
    return isinstance(step, Step) and all(part.identity for _, part in step.onward)


def _picks_nothing(node: Node, affine: Spread) -> bool:
    """The same for an affine on several axes."""
    picked: dict[int, list[int]] = {}
    if node.op == "Gather":
        found = _gather(node)
        if not isinstance(found, Refusal) and found[2] is not None:
            picked[found[0]] = found[2]
    else:
        for axis, cut in (_slices(node) or {}).items():
            place = node.scope.shapes.axis(node.inputs[0], axis)
            if place in affine.axes:
                picked[place] = cut.of(affine.scale.shape[affine.axes.index(place)])
    scale, shift = affine.scale, affine.shift
    for place, axis in enumerate(affine.axes):
        size = affine.scale.shape[place]
        if axis in picked and all(-size <= index < size for index in picked[axis]):
            scale, shift = scale.take(picked[axis], place), shift.take(picked[axis], place)
    return bool((scale == 1.0).all() and (shift == 0.0).all())
