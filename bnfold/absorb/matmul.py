"""MatMul with a constant on either side: ``Y = X W`` with ``W[K, N]``, or ``Y = W X`` with ``W[M, K]``.

Constant right, after: columns of ``W`` times ``s``; before: rows of ``W`` times ``s``, shift ``t W``, one value per
column.
Constant left, after: rows of ``W`` times ``s``; before: columns of ``W`` times ``s``, shift ``W t``, one value per row.

A shift needs somewhere to go: the constant Add behind the MatMul when there is one (both are then one linear unit),
else
the MatMul becomes a Gemm where everything has rank 2, else an Add follows.

A vector in place of the matrix leaves no channels behind it, so that only a single number enters there.

``com.microsoft::FusedMatMul`` is the same with ``alpha`` in front and ``transA``, ``transB``; it never becomes a Gemm.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bnfold.absorb.dequantized import Dequantized, dequantized
from bnfold.absorb.port import Port, Rewrite, Scaled, Stored, contract, weight_of
from bnfold.affine import Affine
from bnfold.constants import Constant
from bnfold.graph import CAPTURE, Node
from bnfold.refusals import Refusal

MATMULS = ("MatMul", "com.microsoft::FusedMatMul")

__all__ = [
    "MATMULS",
    "after",
    "becomes_gemm",
    "before",
    "bias_add",
    "bias_values",
    "new_bias",
    "quantized_side",
    "rewrite",
    "unit_of",
]


def _constant_side(node: Node) -> tuple[int, Constant] | Refusal:
    """Which input is the constant matrix, 1 (right) or 0 (left), and the matrix."""
    right = weight_of(node, 1)
    if isinstance(right, Refusal):
        left = weight_of(node, 0)
        if isinstance(left, Refusal):
            return left if left.code == "quantized" else right
        if node.scope.constants.get(node.input(1)) is not None:
            return right  # a product of constants, one of them quantized
        side, weight = 0, left
    else:
        side, weight = 1, right
    if not weight.dims or (len(weight.dims) == 1 and node.op != "MatMul"):
        return Refusal("parameter-shape", "the weight is not a matrix", node.label, lasting=True)
    return side, weight


def _as_matrix(side: int, weight: Constant) -> tuple[int, ...]:
    """The weight's dimensions; a vector counts as a single column on the right, and as a single row on the left."""
    if len(weight.dims) > 1:
        return weight.dims
    return (weight.dims[0], 1) if side == 1 else (1, weight.dims[0])


def quantized_side(node: Node) -> int | None:
    """The input that a quantized matrix is at, if one is."""
    for side in (1, 0) if node.op == "MatMul" else ():
        weight = dequantized(node, side)
        if isinstance(weight, Dequantized) and len(weight.dims) == 2:
            return side
    return None


def _matrix(node: Node) -> tuple[int, tuple[int, ...]] | None:
    """Which input is the constant matrix, quantized or not, and its dimensions."""
    found = _constant_side(node)
    if not isinstance(found, Refusal):
        return found[0], _as_matrix(*found)
    side = quantized_side(node)
    weight = None if side is None else dequantized(node, side)
    return (side, weight.dims) if side is not None and isinstance(weight, Dequantized) else None


def unit_of(add: Node) -> Node | None:
    """The MatMul whose bias this Add is: constant along the MatMul's channels, and the only reader of its output."""
    for position in (0, 1) if add.op == "Add" and len(add.inputs) == 2 else ():
        matmul = add.scope.producer(add.inputs[position])
        if matmul is not None and matmul.op in MATMULS and bias_add(matmul) is add:
            return matmul
    return None


def bias_add(node: Node) -> Node | None:
    """The Add of a constant per channel, or of a number behind a vector, that is the only reader of this MatMul."""
    scope = node.scope
    readers = scope.readers(node.outputs[0])
    if len(readers) != 1 or readers[0].position == CAPTURE or node.outputs[0] in scope.output_set:
        return None
    add = readers[0].node
    found = _matrix(node) if add.op == "Add" and scope.opset >= 7 else None
    if found is None:
        return None
    side, dims = found
    bias = scope.constants.get(add.inputs[1 - readers[0].position])
    if bias is None or not bias.floating:
        return None
    if not bias.dims or _operand_rank(node, side) == 1:  # a single number goes with a vector, and only with that
        return add if not bias.dims and _operand_rank(node, side) == 1 else None
    rank = len(bias.dims)
    channel_axis = rank - 1 if side == 1 else rank - 2
    channels = dims[_weight_axes(node, side)[1]]
    if channel_axis < 0 or bias.dims[channel_axis] != channels or bias.size != channels:
        return None
    return add if _rank_at_least(node, rank) else None


def _rank_at_least(node: Node, rank: int) -> bool:
    if rank <= 2 and all(_operand_rank(node, p) != 1 for p in (0, 1)):
        return rank == 1 or all((_operand_rank(node, p) or 0) >= 2 for p in (0, 1))
    known = node.scope.shapes.rank(node.outputs[0])
    return known is not None and known >= rank


def _operand_rank(node: Node, position: int) -> int | None:
    constant = node.scope.constants.get(node.inputs[position])
    return len(constant.dims) if constant is not None else node.scope.shapes.rank(node.inputs[position])


def becomes_gemm(node: Node) -> bool:
    """Whether the product is a plain one of two matrices, none quantized, so that Gemm can add a bias to it."""
    if node.op != "MatMul" or any(_operand_rank(node, p) != 2 for p in (0, 1)) or quantized_side(node) is not None:
        return False
    found = None if node.scope.opset >= 7 else _constant_side(node)
    return found is None or (not isinstance(found, Refusal) and found[0] == 1)  # no column broadcasts before opset 7


def after(node: Node) -> Port | Refusal:
    """The channels of the MatMul's output, or of its bias Add's."""
    matmul = unit_of(node) or node
    found = _constant_side(matmul)
    if isinstance(found, Refusal):
        return found
    side, weight = found
    if side == 0 and (_operand_rank(matmul, 1) or 0) < 2:
        return _no_matrix(matmul)
    if _batches_transposed(matmul):
        return Refusal("blocked", f"{matmul.label} transposes batches", matmul.label, lasting=True)
    adds = node is matmul and not becomes_gemm(matmul)
    _, kept = _weight_axes(matmul, side)
    channels = _as_matrix(side, weight)[kept]
    return Port(matmul, -1 if side == 1 else -2, channels, _no_add(matmul, side) if adds else None, adds)


def before(node: Node, position: int) -> Port | Refusal:
    """The axis of X that is summed over."""
    found = _constant_side(node)
    if isinstance(found, Refusal):
        return found
    side, weight = found  # at the other input, as what an affine makes is no constant
    if side == 0 and (_operand_rank(node, 1) or 0) < 2:
        return _no_matrix(node)
    shift: Refusal | None = None
    if any(d != 1 for d in weight.dims[:-2]):
        shift = Refusal("shift", "the weight is a stack of matrices, so the shift would differ per matrix", node.label)
    if side == 1 and _operand_rank(node, 0) in (None, 1):
        shift = Refusal("shape-unknown", f"the rank of '{node.inputs[0]}' is not known", node.label)
    if _batches_transposed(node):
        return Refusal("blocked", f"{node.label} transposes batches", node.label, lasting=True)
    adds = bias_add(node) is None and not becomes_gemm(node)
    shift = shift or (_no_add(node, side) if adds else None)
    summed, _ = _weight_axes(node, side)
    flipped = bool(node.integer("transA" if side == 1 else "transB", 0))
    terms = _as_matrix(side, weight)[summed]
    return Port(node, -1 if (side == 1) != flipped else -2, terms, shift, adds)


def _no_matrix(node: Node) -> Refusal:
    """What a constant on the left makes of a vector has no rows."""
    return Refusal("shape-unknown", f"'{node.inputs[1]}' is not known to be a matrix", node.label, lasting=True)


def _no_add(node: Node, side: int) -> Refusal | None:
    """Before opset 7 an Add along the rows would need to know how many axes there are."""
    if node.scope.opset >= 7 or side == 1:
        return None
    return Refusal("shift", f"before opset 7 no Add can follow {node.label}", node.label)


def _weight_axes(node: Node, side: int) -> tuple[int, int]:
    """The weight's axis that is summed over, and the one that becomes the output's channels."""
    natural = (-2, -1) if side == 1 else (-1, -2)
    return natural[::-1] if node.integer("transB" if side == 1 else "transA", 0) else natural


def _batches_transposed(node: Node) -> bool:
    return bool(node.integer("transBatchA", 0) or node.integer("transBatchB", 0))


def rewrite(node: Node, out: Affine | None, into: Affine | None, *, add: Node | None = None) -> list[Rewrite]:
    """New weight, and the shift in ``add``'s constant, in a Gemm's C, or in a new Add behind the MatMul."""
    found = _constant_side(node)
    assert not isinstance(found, Refusal)
    side, weight = found
    summed, kept = _weight_axes(node, side)
    dims = _as_matrix(side, weight)
    channels, terms = dims[kept], dims[summed]
    factors = []
    if out is not None and out.scales:
        factors.append(_along(out.over(channels).scale, kept))
    if into is not None and into.scales:
        factors.append(_along(into.over(terms).scale, summed))
    view = (math.prod(dims[:-2]), dims[-2], dims[-1])
    changes = (Scaled(side, view, tuple(f.reshape(1, *f.shape) for f in factors)),) if factors else ()
    old = bias_values(node, add, channels)
    bias = old
    if into is not None and into.shifts:
        matrix = weight.array().reshape(view)[0]
        matrix = matrix.T if kept == -1 else matrix
        bias = bias + node.real("alpha", 1.0) * contract(matrix, into.over(terms).shift.reshape(1, -1), (1,))
    if out is not None:
        bias = out.over(channels).scale * bias + out.over(channels).shift
    if bias is old or (add is None and not bias.any()):
        return [Rewrite(node, changes)]
    if add is not None:
        return [Rewrite(node, changes), new_bias(node, add, bias)]
    shaped = bias if side == 1 else bias.reshape(-1, 1)
    if len(weight.dims) == 1:
        shaped = bias.reshape(())
    if becomes_gemm(node):
        attributes: dict[str, float | int] = {} if node.scope.opset >= 7 else {"broadcast": 1}
        return [Rewrite(node, (*changes, Stored(2, shaped, weight.data_type)), attributes, gemm=True)]
    return [Rewrite(node, changes, add=Stored(1, shaped, weight.data_type))]


def _bias_constant(node: Node, add: Node) -> tuple[int, Constant]:
    position = 1 if add.inputs[0] == node.outputs[0] else 0
    constant = add.scope.constants.get(add.inputs[position])
    assert constant is not None
    return position, constant


def bias_values(node: Node, add: Node | None, channels: int) -> NDArray[np.float64]:
    """What the Add behind the product adds per channel; zeros where there is none."""
    return np.zeros(channels) if add is None else _bias_constant(node, add)[1].float64().ravel()


def new_bias(node: Node, add: Node, bias: NDArray[np.float64]) -> Rewrite:
    """Another constant for the Add behind the product."""
    position, constant = _bias_constant(node, add)
    return Rewrite(add, (Stored(position, bias.reshape(constant.dims), constant.data_type),))


def _along(vector: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return vector.reshape(1, -1) if axis == -1 else vector.reshape(-1, 1)
