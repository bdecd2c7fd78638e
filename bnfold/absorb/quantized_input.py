"""An affine in front of an operator whose weight comes through DequantizeLinear.

The scales of the weight run along the channels of the output, so that the affine has to be one behind the operator:
``W (s * x + t) + b = s * (W x + b) + ((1 - s) * b + W t)``, where all channels that are summed have the same ``s``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bnfold import windows
from bnfold.absorb import conv_transpose, matmul, quantized, quantized_bias
from bnfold.absorb.dequantized import Dequantized, dequantized
from bnfold.absorb.port import Port, contract
from bnfold.affine import Affine
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["before"]


def before(node: Node, position: int) -> Port | Refusal:
    """The channels that the operator sums over."""
    side = quantized.side(node)
    add = matmul.bias_add(node) if node.op in matmul.MATMULS else None
    behind = quantized.after(add or node)
    if position != 1 - side:
        return Refusal("quantized", f"the tensor is not the data of '{node.label}'", node.label, lasting=True)
    if isinstance(behind, Refusal):
        return behind
    weight = dequantized(node, side)
    assert isinstance(weight, Dequantized), "the port behind the operator has seen to it"
    axis, channels = _data_channels(node, side, weight)
    shift: Refusal | None = None
    if node.op == "Conv" and windows.pads(node, weight.dims[2:]):
        shift = Refusal("padding", "the convolution pads with zeros, which the shift must not reach", node.label)
    if node.op == "ConvTranspose" and not conv_transpose.pointwise(node, weight.dims[2:]):
        shift = Refusal("shift", "output positions see different kernel taps", node.label)

    def turned(affine: Affine) -> Affine | Refusal:
        return _behind(node, weight, affine, behind.channels)

    port = Port(node, axis, channels, shift, behind.adds, behind.check, behind.changes)
    port.turned = turned
    return port


def _data_channels(node: Node, side: int, weight: Dequantized) -> tuple[int, int]:
    """The axis of the data that is summed over, and its size."""
    dims = weight.dims
    if node.op == "MatMul":
        return (-1, dims[0]) if side == 1 else (-2, dims[1])
    if node.op == "Gemm":
        return 0 if node.integer("transA", 0) else 1, dims[1 if node.integer("transB", 0) else 0]
    return 1, dims[0] if node.op == "ConvTranspose" else dims[1] * node.integer("group", 1)


def _behind(node: Node, weight: Dequantized, affine: Affine, channels: int) -> Affine | Refusal:
    """The affine that does behind the operator what this one does in front of it."""
    group = node.integer("group", 1)
    each = affine.scale.reshape(group, -1)
    if np.any(each != each[:, :1]):
        reason = f"the scales of the quantized weight of '{node.label}' run along its output"
        return Refusal("quantized", reason, node.label)
    scale = np.repeat(each[:, 0], channels // group)
    bias = _bias(node, channels) if affine.scales else np.zeros(channels)
    if bias is None:
        reason = f"the addend of '{node.label}' has values for rows, which the scale in front does not reach"
        return Refusal("quantized", reason, node.label)
    added = (1.0 - scale) * bias
    if affine.shifts:
        matrix = _matrix(node, weight, group, channels)
        terms = matrix.shape[1] // (affine.shift.size // group)
        shift = np.repeat(affine.shift.reshape(group, -1), terms, axis=1)
        parts = np.split(matrix, group)
        sums = [contract(part, vector.reshape(1, -1), (1,)) for part, vector in zip(parts, shift, strict=True)]
        added = added + node.real("alpha", 1.0) * np.concatenate(sums)
    return Affine(scale, added, affine.axis)


def _matrix(node: Node, weight: Dequantized, group: int, channels: int) -> NDArray[np.float64]:
    """The weight as a matrix: a row for each channel of the output, with all that is summed for it."""
    values = weight.float64()
    if node.op == "ConvTranspose":
        taps = math.prod(values.shape[2:])
        parts = values.reshape(group, values.shape[0] // group, channels // group, taps)
        return parts.transpose(0, 2, 1, 3).reshape(channels, -1)
    columns = node.op == "MatMul" and quantized.side(node) == 1
    columns = columns or (node.op == "Gemm" and not node.integer("transB", 0))
    return values.T if columns else values.reshape(channels, -1)


def _bias(node: Node, channels: int) -> NDArray[np.float64] | None:
    """What is added per channel; None where that differs from row to row."""
    if node.op == "MatMul":
        return matmul.bias_values(node, matmul.bias_add(node), channels)
    return quantized_bias.values(node, channels)
