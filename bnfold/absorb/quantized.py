"""Operators whose weight comes through DequantizeLinear: ``w = (q - zero_point) * scale``.

After:   ``scale *= |s|`` per channel, and ``q' = 2 * zero_point - q`` in channels where ``s < 0``: integers stay
integers, so nothing is rounded but the new scales. The bias takes scale and shift, see :mod:`quantized_bias`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold import dtypes
from bnfold.absorb import conv, fakequantized, gemm, matmul, quantized_bias, signs
from bnfold.absorb.dequantized import Dequantized, dequantized, dequantizer, quantized_data
from bnfold.absorb.port import Port, Rewrite, Stored
from bnfold.affine import Affine, Vector
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["after", "rewrite", "side", "stands_at"]


def side(node: Node) -> int:
    """The input that a quantized weight is at: 0 only for a MatMul whose weight stands on the left."""
    return 0 if matmul.quantized_side(node) == 0 else 1


def stands_at(node: Node) -> bool:
    """Whether the operator's weight comes from a DequantizeLinear, straight or transposed."""
    return dequantizer(node, side(node))[0] is not None


def after(behind: Node) -> Port | Refusal:
    """The output's channels, with a check of what the quantization can express; ``behind`` the operator, or behind the
    Add that is a MatMul's bias."""
    node = matmul.unit_of(behind) or behind
    position = side(node)
    weight = dequantized(node, position)
    if isinstance(weight, Refusal):
        return weight
    place = _channels(node, position, weight)
    if isinstance(place, Refusal):
        return place
    axis, channels = place
    problem = quantized_bias.problem(node, channels)
    if problem is not None:
        return problem

    def check(affine: Affine) -> Refusal | None:
        return _check(node, weight, axis, affine) or quantized_bias.check(node, weight, affine)

    product = node.op == "MatMul"
    bias = None if product else quantized_bias.quantized(node)
    changes = tuple(each.node.outputs[0] for each in (weight, bias) if each is not None and not each.shared)
    changes += tuple(each.outputs[0] for each in (weight.source, weight.transpose) if each is not None)
    output_axis = (-2 if position == 0 else -1) if product else 1
    return Port(node, output_axis, channels, adds=product and behind is node, check=check, changes=changes)


def _channels(node: Node, position: int, weight: Dequantized) -> tuple[int, int] | Refusal:
    """The axis of the output's channels, among those that the integers have, and the number of channels."""
    found = _seen_channels(node, position, weight.dims)
    return found if isinstance(found, Refusal) else (weight.stored_axis(found[0]), found[1])


def _seen_channels(node: Node, position: int, dims: tuple[int, ...]) -> tuple[int, int] | Refusal:
    """The same as the operator sees the weight."""
    group = node.integer("group", 1)
    if node.op in ("Conv", "com.microsoft::FusedConv") and len(dims) >= 3:
        return conv.fused(node) or (0, dims[0])
    if node.op == "ConvTranspose" and len(dims) >= 3 and group == 1:
        return 1, dims[1]
    if node.op == "ConvTranspose" and len(dims) >= 3 and dims[0] == group and dims[1] == 1:
        return 0, group
    if node.op == "ConvTranspose" and len(dims) >= 3:
        return 1, dims[1] * group
    if node.op == "Gemm":
        axis = 0 if node.integer("transB", 0) else 1
        return gemm.unusable(node, dims) or (axis, dims[axis])
    if node.op == "MatMul" and len(dims) == 2 and (position == 1 or (node.scope.shapes.rank(node.inputs[1]) or 0) >= 2):
        return position, dims[position]
    return Refusal(
        "quantized",
        f"the quantized weight of '{node.label}' has no axis of its own for the channels",
        node.label,
        lasting=True,
    )


def _check(node: Node, weight: Dequantized, axis: int, affine: Affine) -> Refusal | None:
    factor = _factor(weight, axis, affine)
    if factor.size != affine.scale.size and np.any(affine.scale != factor[0]):
        reason = f"'{node.label}' has groups that share the scales of its quantized weight"
        return Refusal("quantized", reason, node.label)
    scale = _new_scale(weight, axis, factor)
    if isinstance(scale, Refusal):
        return scale
    unusable = _unusable(node, weight, scale)
    if unusable is not None:
        return unusable
    smallest, largest = dtypes.limits(weight.scale.data_type)
    if weight.source is not None and not affine.scale.all():
        return Refusal("quantized", f"'{weight.source.label}' cannot quantize by a scale of zero", node.label)
    size = np.abs(scale)
    if ((size > 0) & (size < smallest)).any() or not size.max() <= largest:
        return Refusal("overflow", f"a scale of '{weight.node.label}' does not fit its data type", node.label)
    return signs.problem(node, side(node), weight, axis, factor, scale) if (factor < 0).any() else None


def _unusable(node: Node, weight: Dequantized, scale: NDArray[np.float64]) -> Refusal | None:
    """What onnxruntime makes of a product of two quantized tensors, and then does not run."""
    data = quantized_data(node, 1 - side(node)) if node.op == "MatMul" else None
    if data is None:
        return None
    if side(node) == 0 and scale.size > max(weight.scale.size, 1):
        reason = f"the rows of '{node.label}', a product of integers, would have scales of their own"
        return Refusal("quantized", reason, node.label)
    shapes = node.scope.shapes
    eight = shapes.element_type(data.input(0)) in (dtypes.INT8, None) and node.scope.opset >= 21
    if eight and matmul.bias_add(node) is None and shapes.rank(node.outputs[0]) != 2:
        reason = f"from opset 21 on onnxruntime may not load the product '{node.label}' of int8 with an Add behind it"
        return Refusal("quantized", reason, node.label)
    return None


def _factor(weight: Dequantized, axis: int, affine: Affine) -> Vector:
    """The scale for each index of the weight's axis; where groups share it, all channels have the same."""
    return affine.scale[: weight.values.dims[axis]]


def _new_scale(weight: Dequantized, axis: int, factor: Vector) -> NDArray[np.float64] | Refusal:
    """The scale times ``|factor|``: one number stays one when it can, else it becomes one per channel."""
    size = np.abs(factor)
    scale, label = weight.scale.float64(), weight.node.label
    if weight.block:
        each = size[:: weight.block] if weight.axis == axis else size
        if weight.axis == axis and np.any(np.repeat(each, weight.block)[: size.size] != size):
            return Refusal("quantized", f"'{label}' shares scales among channels", label)
        spread: NDArray[np.float64] = scale * each.reshape([-1 if i == axis else 1 for i in range(scale.ndim)])
        return spread
    if scale.size == 1 and np.all(size == size[0]) and signs.one_for_all(weight, axis, factor):
        return np.asarray(scale * size[0])
    if scale.size == 1:
        if weight.node.scope.opset < 13:
            return Refusal("quantized", f"before opset 13 '{label}' has a single scale", label)
        return np.asarray(scale.reshape(1) * size)
    if weight.axis != axis:
        return Refusal("quantized", f"the scales of '{label}' run along another axis than the channels", label)
    return np.asarray(scale * size)


# -- rewriting ---------------------------------------------------------------------------------------------------------


def rewrite(node: Node, out: Affine, *, add: Node | None = None) -> list[Rewrite]:
    """New scales, signs and bias, that of a MatMul in the constant of ``add``; each new value rounded once."""
    position = side(node)
    weight = dequantized(node, position)
    assert isinstance(weight, Dequantized)
    place = _channels(node, position, weight)
    assert not isinstance(place, Refusal)
    axis, channels = place
    affine = out.over(channels)
    changed = _rewrite_weight(weight, axis, _factor(weight, axis, affine))
    changed[0].apart = (weight.reader, weight.position) if weight.shared else None
    if node.op != "MatMul":
        return [*changed, *quantized_bias.rewrite(node, weight, affine)]
    bias = affine.scale * matmul.bias_values(node, add, channels) + affine.shift
    if add is not None:
        return [*changed, matmul.new_bias(node, add, bias)]
    shaped = bias if position == 1 else bias.reshape(-1, 1)
    return [*changed, Rewrite(node, add=Stored(1, shaped, weight.data_type))] if bias.any() else changed


def _rewrite_weight(weight: Dequantized, axis: int, factor: Vector) -> list[Rewrite]:
    scale = _new_scale(weight, axis, factor)
    assert not isinstance(scale, Refusal)
    changes = [Stored(1, scale, weight.scale.data_type, "scale")]
    attributes: dict[str, float | int] = {}
    kind = weight.values.data_type
    turned = signs.turned(weight, axis, factor, scale)
    zeros = turned.zeros
    if scale.size > weight.scale.size:
        attributes["axis"] = axis
        if weight.zero is not None and zeros is None:
            zeros = np.broadcast_to(weight.zero.float64().ravel(), scale.shape)
    if zeros is not None:
        changes.append(Stored(2, zeros, kind, "zero_point"))
    if weight.source is not None:
        floats = fakequantized.floats(weight, weight.source, axis, factor, scale, turned)
        return [
            Rewrite(node, (*own, *changes), attributes) for node, own in ((weight.node, ()), (weight.source, floats))
        ]
    if (factor < 0).any():
        changes.append(Stored(0, turned.values, kind, "quantized"))
    return [Rewrite(weight.node, tuple(changes), attributes)]
