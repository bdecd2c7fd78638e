"""What a carrying operator tells the planner: where the affine goes on, and what of its own constants changes with
it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bnfold import dtypes
from bnfold.affine import Affine, Spread
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.refusals import Refusal

_SMALL = 1 << 16
"""Values of a constant that may be copied where others read it, too."""

_LARGEST = 1 << 24
"""Values of a constant that may be rewritten, which happens in memory."""

__all__ = [
    "Backward",
    "Edit",
    "Edited",
    "Edits",
    "Forward",
    "Step",
    "constant_ints",
    "may_overflow",
    "misplaced",
    "needs_no_shift",
    "needs_no_sign",
    "of_integers",
    "onto_constants",
    "onto_inputs",
    "placed_from_first",
    "placed_from_last",
    "unknown",
]


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A constant of ``node`` is to be passed through ``affine``: an input position, or the name of a float attribute.

    ``default`` is the constant's value where the node leaves it out.
    """

    node: Node
    slot: int | str
    affine: Affine
    default: float | None = None


class Edited(NamedTuple):
    """All that happens to one constant: affines one after another, not composed, as they may run along different
    axes."""

    affines: tuple[Affine, ...]
    default: float | None


Edits = dict[tuple[int, int | str], Edited]
"""What is decided about constants of carrying operators, by node index and slot."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One way past an operator: tensors that must take an affine each, and edits that go with it."""

    onward: tuple[tuple[str, Affine], ...]
    edits: tuple[Edit, ...] = ()


Backward = Callable[[Node, str, Affine], list[Step] | Refusal]
"""(node, output name, affine on that output) -> ways to move it onto inputs, best first."""

Forward = Callable[[Node, int, Affine], Step | Refusal]
"""(node, input position, affine on that input) -> the way to move it onto the outputs."""


def onto_inputs(node: Node, parts: list[Affine]) -> Step | Refusal:
    """Each operand takes its part; constants are edited, computed tensors carry it on."""
    onward, edits = [], []
    for position, (name, part) in enumerate(zip(node.inputs, parts, strict=True)):
        if part.identity:
            continue
        constant = node.scope.constants.get(name)
        if constant is None:
            onward.append((name, part))
        elif not part.scale.any() and sum(d != 1 for d in constant.dims) > 1:
            return Refusal("blocked", f"a constant of {node.op} '{node.label}' would be multiplied by zero", node.label)
        elif _fits(node, constant, part):
            edits.append(Edit(node, position, part))
        else:
            return Refusal(
                "broadcast", f"a larger constant might stretch what {node.op} '{node.label}' makes", node.label
            )
    return Step(tuple(onward), tuple(edits))


def onto_constants(node: Node, step: Step) -> Step | Refusal:
    """The step with edits where it comes to a constant, such as the table that a Gather picks from."""
    constants = {name: node.scope.constants.get(name) for name, _ in step.onward if name in node.inputs}
    if not any(constants.values()):
        return step
    onward, edits = [], list(step.edits)
    for name, part in step.onward:
        constant = constants.get(name)
        if constant is None:
            onward.append((name, part))
            continue
        refusal = _not_to_edit(node, constant, part)
        if refusal is not None:
            return refusal
        edits.append(Edit(node, node.inputs.index(name), part))
    return Step(tuple(onward), tuple(edits))


def _not_to_edit(node: Node, constant: Constant, affine: Affine) -> Refusal | None:
    """Why a constant at the far end of a route is to stay."""
    name = constant.name
    if constant.quantized or not constant.floating:
        return Refusal("quantized", f"the constant '{name}' holds quantized numbers", node.label, lasting=True)
    if constant.size > _LARGEST:
        return Refusal("blocked", f"the constant '{name}' has too many values to rewrite", node.label, lasting=True)
    if constant.size > _SMALL and len(constant.scope.readers(name)) > 1:
        return Refusal("shared-output", f"the constant '{name}' is read elsewhere, too", node.label, lasting=True)
    rank = len(constant.dims)
    inside = not isinstance(affine, Spread) and -rank <= affine.axis < rank
    if affine.uniform or (inside and constant.dims[affine.axis] == affine.scale.size):
        return None
    return Refusal("broadcast", f"the constant '{name}' does not have the channels", node.label)


def _fits(node: Node, constant: Constant, affine: Affine) -> bool:
    """Whether the result keeps its shape: another operator may be what stretches it to the channels, further on."""
    if affine.uniform:
        return True
    inside = -len(constant.dims) <= affine.axis < len(constant.dims)
    size = affine.scale.size
    return (inside and constant.dims[affine.axis] == size) or node.scope.shapes.dim(
        node.outputs[0], affine.axis
    ) == size


def needs_no_shift(node: Node, affine: Affine) -> Refusal | None:
    """For operators that are linear through the origin."""
    if not affine.shifts:
        return None
    return Refusal("shift", f"{node.op} '{node.label}' lets a scale pass but not a shift", node.label)


def needs_no_sign(node: Node, affine: Affine) -> Refusal | None:
    """For operators that commute with positive scales only."""
    if not (affine.scale < 0).any():
        return None
    channel = int(affine.scale.argmin())
    return Refusal("sign", f"{node.op} '{node.label}' passes no negative scale, as in channel {channel}", node.label)


def may_overflow(node: Node, affine: Affine, *, behind: bool = False) -> Refusal | None:
    """In float16 a scale below one in front of a product or sum is often what keeps it from overflowing.

    Args:
        behind: it stands behind the operator; above one, what it makes of an operand may overflow where a gate or a
            difference made the product or sum small.
    """
    size = np.abs(affine.scale)
    if (
        node.scope.shapes.element_type(node.outputs[0]) != dtypes.FLOAT16
        or not (size > 1 if behind else size < 1).any()
    ):
        return None
    what = (
        f"with the scale in front of '{node.label}', its operands"
        if behind
        else f"without the scale in front of it, '{node.label}'"
    )
    return Refusal("overflow", f"{what} may overflow in float16", node.label)


def of_integers(node: Node) -> Refusal | None:
    """For a Cast that makes floats of a product of integers, which dynamic quantization makes at run time."""
    product = node.scope.producer(node.inputs[0]) if node.op == "Cast" else None
    if product is None or product.op not in ("ConvInteger", "MatMulInteger"):
        return None
    reason = f"{product.op} '{product.label}' computes with integers that are made at run time"
    return Refusal("quantized", reason, product.label, lasting=True)


def misplaced(node: Node, why: str) -> Refusal:
    """For an affine whose axis the operator reduces, mixes or cannot be located on."""
    return Refusal("axis", f"{node.op} '{node.label}' {why}", node.label)


def unknown(node: Node, what: str) -> Refusal:
    """For a rank or size that a rule depends on."""
    return Refusal("shape-unknown", f"{what} of {node.op} '{node.label}' is not a known number", node.label)


def constant_ints(node: Node, attribute: str, position: int) -> list[int] | None:
    """Integers that older opsets give as an attribute and newer ones as a constant input; None when absent or
    computed."""
    found = node.integers(attribute)
    if found is not None:
        return found
    constant = node.scope.constants.get(node.input(position))
    return None if constant is None or constant.floating else [int(v) for v in constant.array().ravel()]


def placed_from_first(node: Node, tensor: str, affine: Affine) -> Affine | Refusal:
    """The affine with its axis counted from the first one."""
    if affine.uniform:
        return affine
    axis = node.scope.shapes.axis(tensor, affine.axis)
    if axis is None:
        return Refusal("shape-unknown", f"the rank of '{tensor}' is not known", node.label)
    return affine.at(axis)


def placed_from_last(node: Node, tensor: str, affine: Affine) -> Affine | Refusal:
    """The affine with its axis counted from the last one, as operands broadcast."""
    if affine.uniform or affine.axis < 0:
        return affine
    rank = node.scope.shapes.rank(tensor)
    if rank is None:
        return Refusal("shape-unknown", f"the rank of '{tensor}' is not known", node.label)
    return affine.at(affine.axis - rank)
