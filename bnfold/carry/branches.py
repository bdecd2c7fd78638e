"""Operators that bring computed tensors together, element by element: Add, Sub, Sum, Mean, Max, Min, Mul, Div.

Towards producers: ``s * (a + b) + t = (s * a + t) + (s * b)``; a mean takes the affine on all sides, a maximum when
``s >= 0``; a product takes the scale on one side. Towards consumers: a shift passes an addition, a scale passes a
product.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import Affine
from bnfold.carry.step import (
    Backward,
    Forward,
    Step,
    may_overflow,
    misplaced,
    needs_no_shift,
    needs_no_sign,
    of_integers,
    onto_inputs,
    placed_from_last,
)
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD", "aside"]

_SUMS, _EXTREMES, _PRODUCTS = ("Add", "Sub", "Sum"), ("Max", "Min"), ("Mul", "Div")

_NEAR = 16
"""How many tensors above an operand are looked at for where it comes from."""

_LINEAR = ("Conv", "ConvTranspose", "Gemm")

_LOST = 2.0**-9
"""By how much of itself a constant may change where rounding leaves less of it."""


def _from_last(node: Node, tensor: str, affine: Affine) -> Affine | Refusal:
    """Operands broadcast from the last axis, so that is where to count from; before opset 7 it depends."""
    if _stretches_second(node):
        return Refusal("blocked", f"{node.op} '{node.label}' broadcasts in the way of opset 6", node.label)
    return placed_from_last(node, tensor, affine)


def _stretches_second(node: Node) -> bool:
    """Before opset 7 only the second operand is broadcast, along axes of its own; the first has the result's shape."""
    return node.scope.opset < 7 and bool(node.integer("broadcast", 0))


def sum_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if _stretches_second(node) and not affine.scales:
        return [Step(((node.inputs[0], affine),))]
    placed = _from_last(node, output, affine)
    if isinstance(placed, Refusal):
        return placed
    overflow = may_overflow(node, placed, behind=True)
    if overflow is not None:
        return overflow
    plain = placed.only_scale()
    signs = [1.0, -1.0] if node.op == "Sub" else [1.0] * len(node.inputs)
    carriers = sorted(range(len(node.inputs)), key=lambda i: _far(node, node.inputs[i])) if placed.shifts else [0]
    ways = []
    for carrier in carriers:
        own = Affine(placed.scale, signs[carrier] * placed.shift, placed.axis)
        ways.append([own if i == carrier else plain for i in range(len(node.inputs))])
    count = len(node.inputs)
    even = node.op != "Sub" and count & (count - 1) == 0  # a third of a shift would be rounded
    if placed.shifts and even and _meet(node):
        ways.append([Affine(placed.scale, placed.shift / count, placed.axis)] * count)
    return _any_of(node, ways)


def _meet(node: Node) -> bool:
    """Whether two operands come from one tensor nearby, so that they can only change alike."""
    seen: set[str] = set()
    for name in node.inputs:
        above = [name]
        for tensor in above:
            producer = node.scope.producer(tensor)
            if producer is not None and producer.op not in _LINEAR:
                above += producer.inputs[: _NEAR - len(above)]
        if not seen.isdisjoint(above):
            return True
        seen.update(above)
    return False


def _far(node: Node, operand: str) -> bool:
    """Not made by a linear operator or stored: to be tried last, as the way may be long."""
    producer = node.scope.producer(operand)
    return producer is not None and producer.op not in (*_LINEAR, "Constant")


def extreme_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    placed = _from_last(node, output, affine)
    if isinstance(placed, Refusal):
        return placed
    return needs_no_sign(node, placed) or _any_of(node, [[placed] * len(node.inputs)])


def mean_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    placed = _from_last(node, output, affine)
    return placed if isinstance(placed, Refusal) else _any_of(node, [[placed] * len(node.inputs)])


def product_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    casts = (node.scope.producer(name) for name in node.inputs if affine.shifts)
    integers = (of_integers(cast) for cast in casts if cast is not None)
    blocked = (
        next(filter(None, integers), None) or needs_no_shift(node, affine) or may_overflow(node, affine, behind=True)
    )
    if blocked is not None:
        return blocked
    if _stretches_second(node):
        return [Step(((node.inputs[0], affine),))]
    placed = _from_last(node, output, affine)
    if isinstance(placed, Refusal):
        return placed
    factors = [0] if node.op == "Div" else range(len(node.inputs))
    one = Affine.of(1.0)
    return _any_of(node, [[placed if i == factor else one for i in range(len(node.inputs))] for factor in factors])


def _any_of(node: Node, ways: list[list[Affine]]) -> list[Step] | Refusal:
    """The ways that are open, each given as what every operand takes; the first refusal when none is."""
    found = [onto_inputs(node, parts) for parts in ways]
    steps = [step for step in found if isinstance(step, Step)]
    refusals = [step for step in found if isinstance(step, Refusal)]
    return steps or refusals[0]


def sum_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if _stretches_second(node) and position == 0 and not affine.scales:
        return Step(((node.outputs[0], affine),))
    placed = _from_last(node, node.inputs[position], affine)
    if isinstance(placed, Refusal):
        return placed
    if placed.scales:
        return _around_constants(node, position, placed, shifts=False)
    sign = -1.0 if node.op == "Sub" and position == 1 else 1.0
    return Step(((node.outputs[0], Affine(placed.scale, sign * placed.shift, placed.axis)),))


def aside(node: Node, position: int, shift: Affine) -> list[tuple[str, Affine]]:
    """The other operands of a sum that could take the shift of this one instead, and what each of them would take."""
    name = node.input(position)
    placed = _from_last(node, name, shift) if node.op in _SUMS and position >= 0 else None
    if placed is None or isinstance(placed, Refusal) or node.scope.opset < 7:
        return []
    sign = -1.0 if node.op == "Sub" else 1.0
    moved = Affine(placed.scale, sign * placed.shift, placed.axis)
    others = [other for other in node.inputs if other != name and node.scope.constants.get(other) is None]
    return [(other, moved) for other in others] if len(set(node.inputs)) == len(node.inputs) else []


def mean_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    """A shift of one operand moves the mean by its share; a scale would have to be on all of them."""
    placed = _from_last(node, node.inputs[position], affine)
    if isinstance(placed, Refusal):
        return placed
    if placed.scales:
        return Refusal("blocked", f"Mean '{node.label}' brings in a tensor that is not scaled", node.label)
    return Step(((node.outputs[0], Affine(placed.scale, placed.shift / len(node.inputs), placed.axis)),))


def extreme_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    placed = _from_last(node, node.inputs[position], affine)
    if isinstance(placed, Refusal):
        return placed
    return needs_no_sign(node, placed) or _around_constants(node, position, placed, shifts=True)


def _around_constants(node: Node, position: int, affine: Affine, *, shifts: bool) -> Step | Refusal:
    """The affine behind the operator, and undone in the constants beside: ``s * x + c = s * (x + c / s)``.

    Args:
        shifts: the shift is undone in the constants, too, as ``max(s * x + t, c)`` needs it.
    """
    if any(node.scope.constants.get(name) is None for i, name in enumerate(node.inputs) if i != position):
        return Refusal("blocked", f"{node.op} '{node.label}' brings in a tensor that is not scaled", node.label)
    if not affine.scale.all():
        return Refusal("blocked", f"a scale of zero in front of {node.op} '{node.label}' cannot be undone", node.label)
    sign = -1.0 if node.op == "Sub" and position == 1 else 1.0  # c - (s * x + t) = s * (c / s - x) - t
    onward = Affine(affine.scale, sign * affine.shift, affine.axis)
    undone = Affine(1.0 / affine.scale, -affine.shift / affine.scale if shifts else 0 * affine.shift, affine.axis)
    if not undone.finite:
        return Refusal("overflow", f"the scale in front of {node.op} '{node.label}' is too small to undo", node.label)
    overflow = may_overflow(node, affine)
    if overflow is not None:
        return overflow
    if shifts and any(_is_lost(node.scope.constants.get(name), affine) for name in node.inputs):
        return Refusal("overflow", f"a constant of {node.op} '{node.label}' is lost beside the shift", node.label)
    one = Affine.of(1.0)
    step = onto_inputs(node, [one if i == position else undone for i in range(len(node.inputs))])
    return step if isinstance(step, Refusal) else Step(((node.outputs[0], onward),), step.edits)


def _is_lost(constant: Constant | None, affine: Affine) -> bool:
    """Whether rounding leaves little of a constant once a shift is undone in it, as of a tiny one that averts zero."""
    if constant is None or not affine.shifts:
        return False
    values = constant.float64()
    axis = [-1] + [1] * (-affine.axis - 1 if not affine.uniform else 0)
    scale, shift = affine.scale.reshape(axis), affine.shift.reshape(axis)
    kept = scale * ((values - shift) / scale).astype(constant.array().dtype).astype(np.float64) + shift
    return bool((np.abs(kept - values) > _LOST * np.abs(values)).any())


def product_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if node.op == "Div" and position == 1:
        return misplaced(node, "divides by it")
    if _stretches_second(node) and position == 0:
        return needs_no_shift(node, affine) or may_overflow(node, affine) or Step(((node.outputs[0], affine),))
    placed = _from_last(node, node.inputs[position], affine)
    if isinstance(placed, Refusal):
        return placed
    return needs_no_shift(node, placed) or may_overflow(node, placed) or Step(((node.outputs[0], placed),))


BACKWARD: dict[str, Backward] = {
    **dict.fromkeys(_SUMS, sum_backward),
    **dict.fromkeys(_EXTREMES, extreme_backward),
    **dict.fromkeys(_PRODUCTS, product_backward),
    "Mean": mean_backward,
}
FORWARD: dict[str, Forward] = {
    **dict.fromkeys(_SUMS, sum_forward),
    **dict.fromkeys(_EXTREMES, extreme_forward),
    **dict.fromkeys(_PRODUCTS, product_forward),
    "Mean": mean_forward,
}
