"""Gemm: ``Y = alpha * A' B' + beta * C``, where ``A'``, ``B'`` are ``A``, ``B`` or their transposes.

After:   columns of ``B'`` times ``s``;  ``C' = s * beta * C + t`` with ``beta`` set to 1.
Before:  rows of ``B'`` times ``s``;     ``C' = beta * C + alpha * t B'`` with ``beta`` set to 1.
``C`` may be absent, a scalar, ``[N]``, ``[1, N]``, ``[M, 1]`` or ``[M, N]``; the result keeps as few axes as it can.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold.absorb.port import Port, Rewrite, Scaled, Stored, contract, weight_of
from bnfold.affine import Affine
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["addend", "after", "attributes", "before", "rewrite", "unusable"]


def after(node: Node) -> Port | Refusal:
    """The output's columns."""
    weight = weight_of(node, 1)
    if isinstance(weight, Refusal):
        return weight
    blocked = unusable(node, weight.dims)
    if blocked is not None:
        return blocked
    columns = weight.dims[0] if node.integer("transB", 0) else weight.dims[1]
    old = addend(node, columns)
    if isinstance(old, Refusal):
        return Refusal(old.code, old.reason, old.node, lasting=True)
    return Port(node, 1, columns)


def before(node: Node, position: int) -> Port | Refusal:
    """The columns of ``A'``."""
    if position != 0:
        return Refusal("weight-not-constant", "the tensor is the operator's weight or addend", node.label, lasting=True)
    weight = weight_of(node, 1)
    if isinstance(weight, Refusal):
        return weight
    if len(weight.dims) != 2:
        return Refusal("parameter-shape", "the weight is not a matrix", node.label, lasting=True)
    channels, columns = weight.dims[::-1] if node.integer("transB", 0) else weight.dims
    old = addend(node, columns)
    axis = 0 if node.integer("transA", 0) else 1
    return Port(node, axis, channels, old if isinstance(old, Refusal) else None)


def rewrite(node: Node, out: Affine | None, into: Affine | None) -> Rewrite:
    """New ``B``, ``C`` and ``beta`` for both sides at once, each value rounded once."""
    weight = weight_of(node, 1)
    assert not isinstance(weight, Refusal)
    transposed = bool(node.integer("transB", 0))
    columns_axis, rows_axis = (0, 1) if transposed else (1, 0)
    columns, rows = weight.dims[columns_axis], weight.dims[rows_axis]
    factors = []
    if out is not None and out.scales:
        factors.append(_along(out.over(columns).scale, columns_axis))
    if into is not None and into.scales:
        factors.append(_along(into.over(rows).scale, rows_axis))
    changes: list[Scaled | Stored] = [Scaled(1, (weight.dims[0], weight.dims[1]), tuple(factors))] if factors else []
    old = addend(node, columns)
    if isinstance(old, Refusal):
        return Rewrite(node, tuple(changes))
    new = old
    if into is not None and into.shifts:
        new = new + node.real("alpha", 1.0) * _times_weight(weight.array(), into.over(rows).shift, transposed)
    if out is not None and (out.shifts or new.any()):
        new = out.over(columns).scale * new + out.over(columns).shift
    if new is old:
        return Rewrite(node, tuple(changes))
    changes.append(Stored(2, new, weight.data_type))
    return Rewrite(node, tuple(changes), attributes(node))


def _times_weight(weight: NDArray[np.generic], vector: NDArray[np.float64], transposed: bool) -> NDArray[np.float64]:
    """``t B'`` as a vector of columns; ``contract`` wants the kept axis first."""
    matrix = weight if transposed else weight.T
    return contract(matrix, vector.reshape(1, -1), (1,))


def _along(vector: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return vector.reshape(-1, 1) if axis == 0 else vector.reshape(1, -1)


def addend(node: Node, columns: int) -> NDArray[np.float64] | Refusal:
    """``beta * C`` in float64, as it broadcasts; a zero when there is no C or beta is 0."""
    name, beta = node.input(2), node.real("beta", 1.0)
    if not name or beta == 0.0:
        return np.zeros(1)
    constant = node.scope.constants.get(name)
    if constant is None or not constant.floating:
        return Refusal("bias-not-constant", f"the addend '{name}' is not constant", node.label)
    if constant.quantized:
        return Refusal("quantized", f"the addend '{name}' is quantized, and the weight is not", node.label)
    if len(constant.dims) > 2 or constant.dims[-1:] not in ((), (1,), (columns,)):
        return Refusal("parameter-shape", f"the addend '{name}' does not fit {columns} columns", node.label)
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
