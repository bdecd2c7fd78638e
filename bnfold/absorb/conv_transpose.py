"""ConvTranspose: ``W[I, O/g, k...]``; each input position paints a kernel onto the output.

After:   ``s * Y + t``  is  ``W[i, q, ...] *= s[g(i) * O/g + q]``,  ``b' = s * b + t``.
Before:  ``W[i, ...] *= s[i]``. A shift enters only through a 1x1 kernel with stride 1 and no padding; otherwise border
and stride positions see different taps, so the shift is no constant per channel.
"""

from __future__ import annotations

import math

from bnfold.absorb.port import Port, Rewrite, Scaled, Stored, bias_of, bias_problem, contract, filters_of, weight_of
from bnfold.affine import Affine
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["after", "before", "pointwise", "rewrite"]


def after(node: Node) -> Port | Refusal:
    """The output's channels."""
    weight = filters_of(node)
    if isinstance(weight, Refusal):
        return weight
    channels = weight.dims[1] * node.integer("group", 1)
    problem = bias_problem(node, 2, channels)
    if problem is not None:
        return Refusal(problem.code, problem.reason, problem.node, lasting=True)
    return Port(node, 1, channels)


def before(node: Node, position: int) -> Port | Refusal:
    """The input's channels."""
    if position != 0:
        return Refusal("weight-not-constant", "the tensor is the operator's weight or bias", node.label, lasting=True)
    weight = filters_of(node)
    if isinstance(weight, Refusal):
        return weight
    shift: Refusal | None = None
    if not pointwise(node, weight.dims[2:]):
        shift = Refusal(
            "shift", "output positions see different kernel taps, so the shift is not the same everywhere", node.label
        )
    else:
        shift = bias_problem(node, 2, weight.dims[1] * node.integer("group", 1))
    return Port(node, 1, weight.dims[0], shift)


def rewrite(node: Node, out: Affine | None, into: Affine | None) -> Rewrite:
    """New weight and bias for both sides at once, each rounded once."""
    weight = weight_of(node, 1)
    assert not isinstance(weight, Refusal)
    inputs, slab = weight.dims[0], weight.dims[1]
    group = node.integer("group", 1)
    view = (group, inputs // group, slab, math.prod(weight.dims[2:]))
    factors = []
    if out is not None and out.scales:
        factors.append(out.over(slab * group).scale.reshape(group, 1, slab, 1))
    if into is not None and into.scales:
        factors.append(into.over(inputs).scale.reshape(group, inputs // group, 1, 1))
    changes: list[Scaled | Stored] = [Scaled(1, view, tuple(factors))] if factors else []
    bias = bias_of(node, 2, slab * group)
    if not isinstance(bias, Refusal):
        old = bias
        if into is not None and into.shifts:
            shift = into.over(inputs).shift.reshape(group, inputs // group, 1, 1)
            bias = bias + contract(weight.array().reshape(view), shift, (1, 3)).reshape(slab * group)
        if out is not None:
            bias = out.over(slab * group).scale * bias + out.over(slab * group).shift
        if bias is not old and (node.input(2) or bias.any()):
            changes.append(Stored(2, bias, weight.data_type))
    return Rewrite(node, tuple(changes))


def pointwise(node: Node, kernel: tuple[int, ...]) -> bool:
    """One tap, stride 1, nothing padded or cropped: the operator is a matrix product per position."""
    return (
        all(k == 1 for k in kernel)
        and all(s == 1 for s in node.integers("strides") or ())
        and not any(node.integers("pads") or ())
        and not any(node.integers("output_padding") or ())
        and node.integers("output_shape") is None
        and node.string("auto_pad", "NOTSET") in ("NOTSET", "VALID", "")
    )
