"""Gemm: ``Y = alpha * A' B' + beta * C``, where ``A'``, ``B'`` are ``A``, ``B`` or their transposes.

With ``B`` constant,
after:   columns of ``B'`` times ``s``;  ``C' = s * beta * C + t`` with ``beta`` set to 1.
before:  rows of ``B'`` times ``s``;     ``C' = beta * C + alpha * t B'`` with ``beta`` set to 1.
With ``A`` constant it is the same of rows and columns, and ``t`` a column: one value for each row of ``Y``.
``C`` may be absent, a scalar, ``[N]``, ``[1, N]``, ``[M, 1]`` or ``[M, N]``; the result keeps as few axes as it can.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold.absorb.port import Port, Rewrite, Scaled, Stored, contract, weight_of
from bnfold.affine import Affine
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["addend", "after", "attributes", "before", "rewrite", "unusable"]


def _weight(node: Node) -> tuple[int, Constant] | Refusal:
    """Which of the two matrices is constant, 1 (``B``) or 0 (``A``), and the matrix."""
    right = weight_of(node, 1)
    if not isinstance(right, Refusal):
        return 1, right
    left = weight_of(node, 0)
    computed = node.scope.constants.get(node.input(1)) is None and right.code != "quantized"
    return right if isinstance(left, Refusal) or not computed else (0, left)


def _axes(node: Node, side: int) -> tuple[int, int]:
    """The weight's axis of channels, which are columns or rows of ``Y``, and the one that is summed over."""
    turned = bool(node.integer("transB" if side == 1 else "transA", 0))
    return (0, 1) if turned == (side == 1) else (1, 0)


def after(node: Node) -> Port | Refusal:
    """The output's columns, or rows where ``A`` is constant."""
    found = _weight(node)
    if isinstance(found, Refusal):
        return found
    side, weight = found
    blocked = unusable(node, weight.dims)
    if blocked is not None:
        return blocked
    channels = weight.dims[_axes(node, side)[0]]
    old = addend(node, channels, side)
    if isinstance(old, Refusal):
        return Refusal(old.code, old.reason, old.node, lasting=True)
    return Port(node, side, channels)


def before(node: Node, position: int) -> Port | Refusal:
    """The columns of ``A'``, or the rows of ``B'``."""
    if position == 2:
        return Refusal("weight-not-constant", "the tensor is the operator's addend", node.label, lasting=True)
    weight = weight_of(node, 1 - position)
    if isinstance(weight, Refusal):
        return weight
    if len(weight.dims) != 2:
        return Refusal("parameter-shape", "the weight is not a matrix", node.label, lasting=True)
    kept, summed = _axes(node, 1 - position)
    old = addend(node, weight.dims[kept], 1 - position)
    turned = bool(node.integer("transA" if position == 0 else "transB", 0))
    axis = 0 if turned == (position == 0) else 1
    return Port(node, axis, weight.dims[summed], old if isinstance(old, Refusal) else None)


def rewrite(node: Node, out: Affine | None, into: Affine | None) -> Rewrite:
    """New weight, ``C`` and ``beta`` for both sides at once, each value rounded once."""
    found = _weight(node)
    assert not isinstance(found, Refusal)
    side, weight = found
    kept, summed = _axes(node, side)
    channels, terms = weight.dims[kept], weight.dims[summed]
    factors = []
    if out is not None and out.scales:
        factors.append(_along(out.over(channels).scale, kept))
    if into is not None and into.scales:
        factors.append(_along(into.over(terms).scale, summed))
    changes: list[Scaled | Stored] = [Scaled(side, (weight.dims[0], weight.dims[1]), tuple(factors))] if factors else []
    old = addend(node, channels, side)
    if isinstance(old, Refusal):
        return Rewrite(node, tuple(changes))
    new = old
    if into is not None and into.shifts:
        matrix = weight.array() if kept == 0 else weight.array().T
        added = contract(matrix, into.over(terms).shift.reshape(1, -1), (1,))
        new = new + node.real("alpha", 1.0) * _across(added, side)
    if out is not None and (out.shifts or new.any()):
        new = _across(out.over(channels).scale, side) * new + _across(out.over(channels).shift, side)
    if new is old:
        return Rewrite(node, tuple(changes))
    changes.append(Stored(2, new, weight.data_type))
    return Rewrite(node, tuple(changes), attributes(node))


def _across(vector: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """One value for each column of ``Y``, or for each row where ``A`` is constant."""
    return vector if side == 1 else vector.reshape(-1, 1)


def _along(vector: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return vector.reshape(-1, 1) if axis == 0 else vector.reshape(1, -1)


def addend(node: Node, channels: int, side: int = 1) -> NDArray[np.float64] | Refusal:
    """``beta * C`` in float64, as it broadcasts; a zero when there is no C or beta is 0."""
    name, beta = node.input(2), node.real("beta", 1.0)
    if not name or beta == 0.0:
        return np.zeros(1)
    constant = node.scope.constants.get(name)
    if constant is None or not constant.floating:
        return Refusal("bias-not-constant", f"the addend '{name}' is not constant", node.label)
    if constant.quantized:
        return Refusal("quantized", f"the addend '{name}' is quantized, and the weight is not", node.label)
    along = constant.dims[-1:] if side == 1 else constant.dims[:-1]
    if len(constant.dims) > 2 or along not in ((), (1,), (channels,)):
        return Refusal("parameter-shape", f"the addend '{name}' does not fit {channels} channels", node.label)
    return beta * constant.float64()


def unusable(node: Node, dims: tuple[int, ...]) -> Refusal | None:
    """Why this Gemm with a weight of these dimensions takes nothing in."""
    if len(dims) != 2:
        return Refusal("parameter-shape", "the weight is not a matrix", node.label, lasting=True)
    if node.string("activation", ""):
        return Refusal(
            "blocked", f"{node.label} applies {node.string('activation', '')} itself", node.label, lasting=True
        )
    return None


def attributes(node: Node) -> dict[str, float | int]:
    """What goes with a new C: it is added as it is, and broadcasts, which before opset 7 has to be said."""
    changes: dict[str, float | int] = {"beta": 1.0} if node.real("beta", 1.0) != 1.0 else {}
    return changes if node.scope.opset >= 7 or node.integer("broadcast", 0) else {**changes, "broadcast": 1}
