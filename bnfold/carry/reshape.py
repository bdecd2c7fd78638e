"""Reshape and Flatten: where channels go is proven from the row-major order of elements, never guessed from sizes.

A dimension is a monomial: a number times names. Two positions are the same when the products of the dimensions in front
of them are equal as monomials, which holds for any value of the names: ``[N, C, H*W]`` from ``[N, C, H, W]`` for any
N, H, W. So they are when the products behind them are, and they have the same size.
With ``q`` rows of other axes merged in front of the channels and ``k`` elements behind, a flattened axis reads ``q``
times all
channels, each ``k`` times.
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.affine import Affine, Spread
from bnfold.carry.step import Backward, Forward, Step, misplaced
from bnfold.graph import Node
from bnfold.refusals import Refusal
from bnfold.symbolic import ONE, Monomial, Shape, dimensions, product, reshaped

__all__ = ["BACKWARD", "FORWARD", "move", "spread"]

_LARGEST = 1 << 20
"""Values of an affine that is laid out over several axes."""


def shapes_of(node: Node) -> tuple[Shape, Shape] | None:
    """Input and output dimensions as monomials over shared names, or None when a rank is unknown."""
    source = dimensions(node.scope, node.inputs[0])
    if source is None:
        return None
    if node.op == "Flatten":
        axis = node.integer("axis", 1)
        axis = axis + len(source) if axis < 0 else axis
        return source, [product(source[:axis]), product(source[axis:])]
    target = reshaped(node, source) or _inferred(node, source)
    return None if target is None else (source, target)


def _inferred(node: Node, source: Shape) -> Shape | None:
    """The output dimensions as shape inference has them; a single one by a name of its own follows from the rest."""
    target = dimensions(node.scope, node.outputs[0])
    if target is None:
        return None
    shared = {name for d in source for name in d.names}
    own = [i for i, d in enumerate(target) if not shared.issuperset(d.names)]
    if len(own) == 1:
        left = product(source).over(product([d for i, d in enumerate(target) if i != own[0]]))
        target[own[0]] = left if left is not None else target[own[0]]
    return target


def move(source: Shape, target: Shape, affine: Affine) -> Affine | None:
    """The affine on ``source[affine.axis]``, as it reads on one axis of ``target``; None when it does on no single
    axis."""
    if affine.uniform:
        return affine
    if any(m.number == 0 for m in (*source, *target)):
        return None
    channels, front = affine.scale.size, product(source[: affine.axis])
    if source[affine.axis] != Monomial(channels):
        return None
    behind = product(source[affine.axis + 1 :])
    for axis, size in enumerate(target):
        if size == ONE:
            continue
        moved = _onto(affine, front, product(target[:axis]), size, axis)
        if moved is None:
            moved = _from_behind(affine, behind, product(target[axis + 1 :]), size, axis)
        if moved is not None:
            return moved
    return None


def _from_behind(affine: Affine, behind: Monomial, target_behind: Monomial, size: Monomial, axis: int) -> Affine | None:
    """As many elements behind the axis, so it holds the same channels whatever stands in front of it."""
    inner = behind.over(target_behind)  # merged: axes behind the channels now share their axis
    if inner is None or inner.names or size != Monomial(affine.scale.size * inner.number):
        return None
    return affine.repeat(inner.number, axis)


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


def spread(source: Shape, target: Shape, affine: Affine) -> Affine | None:
    """The affine where its channels end up on several axes, or come from several, whose sizes are all numbers.

    Axes in between two positions that source and target share hold the same elements in the same order, so that the
    values are laid out over the one and read off the other.
    """
    axes = affine.axes if isinstance(affine, Spread) else (affine.axis,)
    (first, last), (start, end) = _block(source, target, min(axes), max(axes))
    before, after = ([m.value or 0 for m in shape] for shape in (source[first:last], target[start:end]))
    if not 0 < math.prod(before) == math.prod(after) <= _LARGEST:
        return None
    order = np.argsort(axes)
    sizes = [before[axis - first] if axis in axes else 1 for axis in range(first, last)]
    if math.prod(sizes) != affine.scale.size:
        return None
    scale, shift = (
        np.broadcast_to(values.transpose(order).reshape(sizes), before).reshape(after)
        for values in (affine.scale, affine.shift)
    )
    return Spread.along(scale, shift, range(start, end))


def _block(source: Shape, target: Shape, lowest: int, highest: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The smallest run of axes around these that starts and ends at shared positions, in source and target."""
    shared = _shared(source, target)  # with both ends of the whole
    (first, start), (last, end) = max(s for s in shared if s[0] <= lowest), min(s for s in shared if s[0] > highest)
    return (first, last), (start, end)


def _shared(source: Shape, target: Shape) -> list[tuple[int, int]]:
    """Pairs of positions with as many elements in front of them, or behind them."""
    return [
        (i, j)
        for i in range(len(source) + 1)
        for j in range(len(target) + 1)
        if product(source[:i]) == product(target[:j]) or product(source[i:]) == product(target[j:])
    ]


def _pass(node: Node, affine: Affine, onto: str, *, backwards: bool) -> Step | Refusal:
    if affine.uniform:
        return Step(((onto, affine),))
    shapes = shapes_of(node)
    if shapes is None:
        return Refusal("shape-unknown", f"the shapes around {node.op} '{node.label}' are not known", node.label)
    source, target = shapes[::-1] if backwards else shapes
    if isinstance(affine, Spread):
        moved = spread(source, target, affine)
    else:
        axis = affine.axis + len(source) if affine.axis < 0 else affine.axis
        if not 0 <= axis < len(source):
            return misplaced(node, "has no such axis")
        moved = move(source, target, affine.at(axis)) or spread(source, target, affine.at(axis))
    if moved is None:
        return Refusal("reshape", f"{node.op} '{node.label}' does not provably keep the channels together", node.label)
    return Step(((onto, moved),))


def backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    step = _pass(node, affine, node.inputs[0], backwards=True)
    return step if isinstance(step, Refusal) else [step]


def forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as a shape")
    return _pass(node, affine, node.outputs[0], backwards=False)


BACKWARD: dict[str, Backward] = {"Reshape": backward, "Flatten": backward}
FORWARD: dict[str, Forward] = {"Reshape": forward, "Flatten": forward}
