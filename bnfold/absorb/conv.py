"""Conv: ``Y[n, o] = b[o] + sum over p, k of W[o, p, k] * X[n, g(o) * I/g + p, ...]`` with ``W[O, I/g, k...]``.

After:   ``s * Y + t``      is  ``W[o, ...] *= s[o]``,  ``b' = s * b + t``.
Before:  ``Conv(s * X + t)`` is  ``W[o, p, ...] *= s[g(o) * I/g + p]``, ``b' = b + sum over p, k of W * t``; that only
where no padding is ever added, since padded positions hold zeros and not ``t``.
"""

from __future__ import annotations

import math

from bnfold import windows
from bnfold.absorb.port import Port, Rewrite, Scaled, Stored, bias_of, bias_problem, contract, filters_of, weight_of
from bnfold.affine import Affine
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["after", "before", "fused", "rewrite"]


def after(node: Node) -> Port | Refusal:
    """The output's channels."""
    weight = filters_of(node)
    if isinstance(weight, Refusal):
        return weight
    blocked = fused(node)
    if blocked is not None:
        return blocked
    problem = bias_problem(node, 2, weight.dims[0])
    if problem is not None:
        return Refusal(problem.code, problem.reason, problem.node, lasting=True)
    return Port(node, 1, weight.dims[0])


def before(node: Node, position: int) -> Port | Refusal:
    """The input's channels; a shift enters only where no zeros are padded."""
    if position != 0:
        return Refusal("weight-not-constant", "the tensor is the operator's weight or bias", node.label, lasting=True)
    weight = filters_of(node)
    if isinstance(weight, Refusal):
        return weight
    shift: Refusal | None = None
    if windows.pads(node, weight.dims[2:]):
        shift = Refusal("padding", "the convolution pads with zeros, which the shift must not reach", node.label)
    else:
        shift = bias_problem(node, 2, weight.dims[0])
    return Port(node, 1, weight.dims[1] * node.integer("group", 1), shift)


def rewrite(node: Node, out: Affine | None, into: Affine | None) -> Rewrite:
    """New weight and bias for both sides at once, each rounded once."""
    weight = weight_of(node, 1)
    assert not isinstance(weight, Refusal)
    filters, slab = weight.dims[0], weight.dims[1]
    group = node.integer("group", 1)
    view = (group, filters // group, slab, math.prod(weight.dims[2:]))
    factors = []
    if out is not None and out.scales:
        factors.append(out.over(filters).scale.reshape(group, filters // group, 1, 1))
    if into is not None and into.scales:
        factors.append(into.over(slab * group).scale.reshape(group, 1, slab, 1))
    changes: list[Scaled | Stored] = [Scaled(1, view, tuple(factors))] if factors else []
    bias = bias_of(node, 2, filters)
    if not isinstance(bias, Refusal):
        old = bias
        if into is not None and into.shifts:
            shift = into.over(slab * group).shift.reshape(group, 1, slab, 1)
            bias = bias + contract(weight.array().reshape(view), shift, (2, 3)).reshape(filters)
        if out is not None:
            bias = out.over(filters).scale * bias + out.over(filters).shift
        if bias is not old and (node.input(2) or bias.any()):
            changes.append(Stored(2, bias, weight.data_type))
    return Rewrite(node, tuple(changes))


def fused(node: Node) -> Refusal | None:
    """``com.microsoft::FusedConv`` carries an activation, and may add a tensor Z before it."""
    if node.op == "Conv":
        return None
    if node.string("activation", ""):
        return Refusal(
            "blocked", f"{node.label} applies {node.string('activation', '')} itself", node.label, lasting=True
        )
    if node.input(3):
        return Refusal("blocked", f"{node.label} adds another tensor itself", node.label, lasting=True)
    return None
