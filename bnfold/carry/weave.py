"""Operators that move channels into space and back: DepthToSpace, SpaceToDepth."""

from __future__ import annotations

from bnfold.affine import Affine
from bnfold.carry.step import Backward, Forward, Step, misplaced
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD"]


def _woven(node: Node, affine: Affine, many: str, few: str, *, widen: bool) -> Step | Refusal:
    """Between ``C`` channels and ``C * block * block``: DCR and SpaceToDepth repeat all channels, CRD each channel."""
    if affine.uniform:
        return Step(((few if not widen else many, affine),))
    copies = node.integer("blocksize", 1) ** 2
    if copies < 1 or node.scope.shapes.axis(few if widen else many, affine.axis) != 1:
        return misplaced(node, "rearranges the axis that the channels are on")
    each = node.op == "DepthToSpace" and node.string("mode", "DCR") == "CRD"
    if widen:
        return Step(((many, affine.repeat(copies, 1) if each else affine.tile(copies, 1)),))
    count = affine.scale.size // copies
    first = affine.at(1).take(slice(0, None, copies) if each else slice(0, count))
    again = first.repeat(copies, 1) if each else first.tile(copies, 1)
    if not again.same_as(affine.at(1)):
        return misplaced(node, "weaves channels together that are scaled differently")
    return Step(((few, first),))


def backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    step = _woven(node, affine, *_many_few(node), widen=node.op == "DepthToSpace")
    return step if isinstance(step, Refusal) else [step]


def forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    return _woven(node, affine, *_many_few(node), widen=node.op == "SpaceToDepth")


def _many_few(node: Node) -> tuple[str, str]:
    source, result = node.inputs[0], node.outputs[0]
    return (source, result) if node.op == "DepthToSpace" else (result, source)


BACKWARD: dict[str, Backward] = dict.fromkeys(("DepthToSpace", "SpaceToDepth"), backward)
FORWARD: dict[str, Forward] = dict.fromkeys(("DepthToSpace", "SpaceToDepth"), forward)
