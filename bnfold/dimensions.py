"""Shapes by the operators' own rules: what an output's dimensions are, given those of the inputs that decide them.

A dimension is a number, a name (``batch``), or None when nothing is known about it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.graph import Node

__all__ = ["SAME_AS_FIRST", "Dim", "Dims", "derived", "merged", "sources"]

Dim = int | str | None
Dims = tuple[Dim, ...]

SAME_AS_FIRST = frozenset(
    """
    BatchNormalization Cast CastLike Clip DequantizeLinear Dropout Elu Erf Exp Gelu GroupNormalization
    HardSigmoid HardSwish Identity InstanceNormalization LRN LayerNormalization LeakyRelu LogSoftmax Mish Neg
    PRelu QuantizeLinear Relu Selu Sigmoid Softmax Softplus Softsign Sqrt Swish Tanh ThresholdedRelu
    """.split()
)
_PRODUCTS = ("MatMul", "com.microsoft::FusedMatMul")
_BROADCAST = frozenset(["Add", "Sub", "Mul", "Div", "Pow", "Sum", "Max", "Min", "Mean"])


def sources(node: Node | None, name: str) -> list[str]:
    """The inputs whose shapes decide this output's, for operators that are known here."""
    if node is None or not node.inputs or name != node.outputs[0]:
        return []
    if node.op in _BROADCAST:
        return node.inputs
    if node.op in _PRODUCTS:
        return [node.inputs[0], node.input(1)]
    return node.inputs[:1] if node.op in SAME_AS_FIRST or node.op in _DERIVED or node.op == "Reshape" else []


def derived(node: Node, operands: list[Dims | None]) -> Dims | None:
    """A node's shape from those of its :func:`sources`, in their order; without any, from its weight alone."""
    if not operands:
        return _linear(node)
    if node.op in _BROADCAST:
        old = node.scope.opset < 7 and node.integer("broadcast", 0)  # the second operand takes the shape of the first
        return operands[0] if old else _broadcast(operands)
    if node.op in _PRODUCTS:
        return _product_dims(node, *operands)
    if node.op == "Reshape":
        return _reshaped(node, operands[0])
    if operands[0] is None or (node.op in SAME_AS_FIRST and node.op not in _DERIVED):
        return operands[0]
    return _DERIVED[node.op](node, operands[0])


def merged(near: Dims | None, far: Dims | None) -> Dims | None:
    """Combine two descriptions of one shape: numbers beat names beat nothing; a conflict means not known."""
    if near is None or far is None:
        return near if far is None else far
    if len(near) != len(far):
        return None
    return tuple(_agree(a, b) for a, b in zip(near, far, strict=True))


def _agree(near: Dim, far: Dim) -> Dim:
    if isinstance(near, int) and isinstance(far, int):
        return near if near == far else None
    if near is None or (isinstance(near, str) and isinstance(far, int)):
        return far
    return near


def _broadcast(operands: list[Dims | None]) -> Dims | None:
    """A shape with a known rank and numbers where all operands agree; dims of 1 stretch."""
    shapes = [dims for dims in operands if dims is not None]
    if len(shapes) != len(operands):
        return None
    rank = max(map(len, shapes))
    return tuple(_stretch([dims[axis] for dims in shapes if axis >= -len(dims)]) for axis in range(-rank, 0))


def _stretch(dims: list[Dim]) -> Dim:
    """The broadcast of one axis: a number above 1 wins; one shared name stays; otherwise not known."""
    numbers = {d for d in dims if isinstance(d, int) and d != 1}
    if numbers:
        return numbers.pop() if len(numbers) == 1 else None
    others = {d for d in dims if d != 1}
    if not others:
        return 1
    return others.pop() if len(others) == 1 else None


def _linear(node: Node) -> Dims | None:
    """What the weight alone tells: a Conv's output has the weight's rank and its number of filters."""
    op = node.op.removeprefix("com.microsoft::Fused")
    weight = node.scope.constants.get(node.input(1)) if op in ("Conv", "ConvTranspose", "Gemm") else None
    if op == "Gemm":
        columns = None if weight is None or len(weight.dims) != 2 else weight.dims[1 - node.integer("transB", 0)]
        return (None, columns)
    if weight is None or len(weight.dims) < 3:
        return None
    channels = weight.dims[0] if op == "Conv" else weight.dims[1] * node.integer("group", 1)
    return (None, channels, *[None] * (len(weight.dims) - 2))


def _product_dims(node: Node, left: Dims | None, right: Dims | None) -> Dims | None:
    """A product of stacks of matrices; stacks broadcast, and FusedMatMul may transpose the matrices first."""
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    if node.integer("transBatchA", 0) or node.integer("transBatchB", 0):
        return None
    rows = left[-1 if node.integer("transA", 0) else -2]
    columns = right[-2 if node.integer("transB", 0) else -1]
    rank = max(len(left), len(right)) - 2
    stack = [_stretch([d[:-2][axis] for d in (left, right) if axis >= -(len(d) - 2)]) for axis in range(-rank, 0)]
    return (*stack, rows, columns)


def _reshaped(node: Node, dims: Dims | None) -> Dims | None:
    from bnfold import symbolic

    source = None if dims is None else symbolic.dimensions(node.scope, node.inputs[0], dims)
    return symbolic.plain(symbolic.reshaped(node, source))


def _transposed(node: Node, dims: Dims) -> Dims | None:
    order = node.integers("perm") or list(reversed(range(len(dims))))
    return tuple(dims[axis] for axis in order) if sorted(order) == list(range(len(dims))) else None


def _spatial_lost(node: Node, dims: Dims) -> Dims | None:
    """Pooling keeps batch and channels; the spatial sizes are left open."""
    fill: Dim = 1 if node.op.startswith("Global") else None
    return (*dims[:2], *[fill] * (len(dims) - 2)) if len(dims) >= 2 else None


def _flattened(node: Node, dims: Dims) -> Dims | None:
    axis = node.integer("axis", 1)
    return _product_of(dims[:axis]), _product_of(dims[axis:])


def _product_of(dims: Dims) -> Dim:
    """The product of dimensions: a number, or a name among ones."""
    others = [d for d in dims if d != 1]
    if all(isinstance(d, int) for d in others):
        return math.prod(d for d in others if isinstance(d, int))
    return others[0] if len(others) == 1 else None


def _normed(node: Node, dims: Dims) -> Dims | None:
    """The parameters of a norm tell how many channels there are."""
    scale = node.scope.constants.get(node.input(1))
    channels = scale.dims[0] if scale is not None and len(scale.dims) == 1 else None
    return (dims[0], channels, *dims[2:]) if channels and len(dims) > 1 and not isinstance(dims[1], int) else dims


def _resized(node: Node, dims: Dims) -> Dims | None:
    """Sizes that are asked for, and axes that are scaled by one."""
    from bnfold import symbolic

    axes = node.integers("axes")
    places = list(range(len(dims))) if axes is None else [a + len(dims) if a < 0 else a for a in axes]
    made: list[Dim] = list(dims)
    scales = symbolic.factors(node)
    sizes = symbolic.values(node.scope, node.input(3)) if node.op == "Resize" and node.input(3) else None
    stretched = node.string("keep_aspect_ratio_policy", "stretch") == "stretch"
    asked = symbolic.plain(sizes) if stretched else None
    for place, axis in enumerate(places):
        if not 0 <= axis < len(dims):
            return None
        kept = place < len(scales) and scales[place] == 1.0
        made[axis] = dims[axis] if kept else (asked[place] if asked is not None and place < len(asked) else None)
    return tuple(made)


_DERIVED = {
    "Transpose": _transposed,
    "BatchNormalization": _normed,
    "Flatten": _flattened,
    **dict.fromkeys(("Resize", "Upsample"), _resized),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"), _spatial_lost),
}
