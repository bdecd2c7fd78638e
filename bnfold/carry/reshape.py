"""Reshape and Flatten: where channels go is proven from the row-major order of elements, never guessed from sizes.

A dimension is a monomial: a number times names. Two positions are the same when the products of the dimensions in front
of them are equal as monomials, which holds for any value of the names: ``[N, C, H*W]`` from ``[N, C, H, W]`` for any N, H, W.
With ``q`` rows of other axes merged in front of the channels and ``k`` elements behind, a flattened axis reads ``q`` times all
channels, each ``k`` times.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from bnfold.affine import Affine
from bnfold.carry.step import Backward, Forward, Step, misplaced
from bnfold.graph import Node
from bnfold.refusals import Refusal
from bnfold.shapes import Dims

__all__ = ["BACKWARD", "FORWARD", "Monomial", "move"]


@dataclass(frozen=True, slots=True)
class Monomial:
    """``number * name * name * ...``; names sorted, repeated for powers."""

    number: int = 1
    names: tuple[str, ...] = ()

    def __mul__(self, other: Monomial) -> Monomial:
        return Monomial(self.number * other.number, tuple(sorted(self.names + other.names)))

    def over(self, other: Monomial) -> Monomial | None:
        """The exact quotient, or None when it is no monomial."""
        left = Counter(self.names)
        left.subtract(other.names)
        if other.number == 0 or self.number % other.number or min(left.values(), default=0) < 0:
            return None
        return Monomial(self.number // other.number, tuple(sorted(left.elements())))


ONE = Monomial()
Shape = list[Monomial]


def _product(dims: Shape) -> Monomial:
    total = ONE
    for d in dims:
        total = total * d
    return total


def _monomials(dims: Dims, tag: str) -> Shape:
    """Numbers and names as they are; an unknown dimension gets a name nothing else has."""
    return [Monomial(d) if isinstance(d, int) else Monomial(1, (d or f"?{tag}{i}",)) for i, d in enumerate(dims)]


def shapes_of(node: Node) -> tuple[Shape, Shape] | None:
    """Input and output dimensions as monomials over shared names, or None when a rank is unknown."""
    dims = node.scope.shapes.dims(node.inputs[0])
    if dims is None:
        return None
    source = _monomials(dims, node.inputs[0])
    if node.op == "Flatten":
        axis = node.integer("axis", 1)
        axis = axis + len(source) if axis < 0 else axis
        return source, [_product(source[:axis]), _product(source[axis:])]
    target = _target(node, source)
    return None if target is None else (source, target)


def _target(node: Node, source: Shape) -> Shape | None:
    """The output dimensions of a Reshape: 0 copies, -1 takes what is left, names come from shape inference."""
    wanted: list[int] | None = node.integers("shape")
    constant = node.scope.constants.get(node.input(1))
    if constant is not None:
        wanted = [int(v) for v in constant.array().ravel()]
    if wanted is None:
        dims = node.scope.shapes.dims(node.outputs[0])
        if dims is None:
            return None
        target = _monomials(dims, node.outputs[0])
        unknown = [i for i, d in enumerate(dims) if d is None]
    else:
        copies = not node.integer("allowzero", 0)
        if copies and any(w == 0 and i >= len(source) for i, w in enumerate(wanted)):
            return None
        target = [source[i] if w == 0 and copies else Monomial(w) for i, w in enumerate(wanted)]
        unknown = [i for i, w in enumerate(wanted) if w == -1]
    if len(unknown) == 1:
        rest = _product([d for i, d in enumerate(target) if i != unknown[0]])
        left = _product(source).over(rest)
        target[unknown[0]] = left if left is not None else Monomial(1, (f"?{node.outputs[0]}:rest",))
    return target


def move(source: Shape, target: Shape, affine: Affine) -> Affine | None:
    """The affine on ``source[affine.axis]``, as it reads on one axis of ``target``; None when it does on no single axis."""
    if affine.uniform:
        return affine
    channels, front = affine.scale.size, _product(source[: affine.axis])
    if source[affine.axis] != Monomial(channels):
        return None
    for axis, size in enumerate(target):
        if size == ONE:
            continue
        moved = _onto(affine, front, _product(target[:axis]), size, axis)
        if moved is not None:
            return moved
    return None


def _onto(affine: Affine, front: Monomial, target_front: Monomial, size: Monomial, axis: int) -> Affine | None:
    channels = affine.scale.size
    outer = front.over(target_front)  # merged: other axes in front of the channels now share their axis
    if outer is not None and not outer.names and not size.names and size.number % (outer.number * channels) == 0:
        inner = size.number // (outer.number * channels)
        return affine.repeat(inner, axis).tile(outer.number, axis)
    parts = target_front.over(front)  # split: part of the channels moved to axes in front of this one
    if parts is None or parts.names or size.names or channels % (parts.number * size.number):
        return None
    blocks = (parts.number, size.number, channels // (parts.number * size.number))
    scale, shift = affine.scale.reshape(blocks), affine.shift.reshape(blocks)
    if np.any(scale != scale[:1, :, :1]) or np.any(shift != shift[:1, :, :1]):
        return None
    return Affine(scale[0, :, 0].copy(), shift[0, :, 0].copy(), axis)


def _pass(node: Node, affine: Affine, onto: str, *, backwards: bool) -> Step | Refusal:
    if affine.uniform:
        return Step(((onto, affine),))
    shapes = shapes_of(node)
    if shapes is None:
        return Refusal("shape-unknown", f"the shapes around {node.op} '{node.label}' are not known", node.label)
    source, target = shapes[::-1] if backwards else shapes
    axis = affine.axis + len(source) if affine.axis < 0 else affine.axis
    if not 0 <= axis < len(source):
        return misplaced(node, "has no such axis")
    moved = move(source, target, affine.at(axis))
    if moved is None:
        return Refusal("reshape", f"{node.op} '{node.label}' does not provably keep the channels on one axis", node.label)
    return Step(((onto, moved),))


def backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    step = _pass(node, affine, node.inputs[0], backwards=True)
    return step if isinstance(step, Refusal) else [step]


def forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:
        return misplaced(node, "reads it as a shape")
    return _pass(node, affine, node.outputs[0], backwards=False)


BACKWARD: dict[str, Backward] = {"Reshape": backward, "Flatten": backward}
FORWARD: dict[str, Forward] = {"Reshape": forward, "Flatten": forward}
