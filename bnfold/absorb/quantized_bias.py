"""The bias beside a quantized weight: ``b' = s * b + t``.

A float bias takes that as it is. An int32 bias behind a DequantizeLinear is quantized again, with its scale times
``|s|``, which keeps the ratio to the weight's scale that integer kernels rely on; only where that rounds no more than
such a kernel does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold import dtypes
from bnfold.absorb import gemm
from bnfold.absorb.dequantized import Dequantized, dequantized
from bnfold.absorb.port import Rewrite, Stored, bias_of
from bnfold.affine import Affine
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["check", "problem", "quantized", "rewrite", "values"]

_INT32 = 6
_LOST = 1e-3
"""The largest error, against the largest bias, where the step of the accumulator is not known."""


def problem(node: Node, channels: int) -> Refusal | None:
    """Why the bias cannot take anything; None when it can, or is absent."""
    if node.op == "MatMul" or not node.input(2) or quantized(node) is not None:
        return None
    producer = node.scope.producer(node.input(2))
    if producer is not None and producer.op == "DequantizeLinear":
        reason = f"the quantization of the bias of '{node.label}' is not constant"
        return Refusal("quantized", reason, node.label, lasting=True)
    found = _plain(node, channels)
    return Refusal(found.code, found.reason, found.node, lasting=True) if isinstance(found, Refusal) else None


def check(node: Node, weight: Dequantized, affine: Affine) -> Refusal | None:
    """Why an int32 bias cannot take this affine."""
    bias = None if node.op == "MatMul" else quantized(node)
    if bias is None:
        return None
    renewed = _requantized(node, bias, affine)
    if renewed is None:
        return Refusal("quantized", f"the bias of '{node.label}' cannot be quantized again", node.label)
    integers, scale, lost = renewed
    step = _accumulator_step(node, weight)
    fine = step is not None and np.all(bias.scale.float64() <= step * (1 + _LOST))
    if fine or lost.max() <= _LOST * np.abs(integers * scale).max(initial=0.0):
        return None
    return Refusal("quantized", f"the integers of the bias of '{node.label}' are too coarse for the sum", node.label)


def rewrite(node: Node, weight: Dequantized, affine: Affine) -> list[Rewrite]:
    """The new bias: in the same input where there is one, else in a new one where it is not zero."""
    integers = quantized(node)
    if integers is not None:
        return [_rewrite_quantized(node, integers, affine)]
    old = _plain(node, affine.scale.size)
    assert not isinstance(old, Refusal)
    new = affine.scale * old + affine.shift
    if not node.input(2) and not new.any():
        return []
    attributes = gemm.attributes(node) if node.op == "Gemm" else {}
    return [Rewrite(node, (Stored(2, new, weight.data_type),), attributes)]


def values(node: Node, channels: int) -> NDArray[np.float64] | None:
    """What the bias adds per channel, which :func:`problem` found to be known; None where rows have their own."""
    integers = quantized(node)
    old = _plain(node, channels) if integers is None else node.real("beta", 1.0) * integers.float64()
    assert not isinstance(old, Refusal)
    if old.size > 1 and (old.size != channels or old.shape[-1] != channels):
        return None
    return np.broadcast_to(old.ravel(), (channels,))


def _plain(node: Node, channels: int) -> NDArray[np.float64] | Refusal:
    """A bias of floats, zeros when absent."""
    return gemm.addend(node, channels) if node.op == "Gemm" else bias_of(node, 2, channels)


def quantized(node: Node) -> Dequantized | None:
    """The bias behind a DequantizeLinear, if it has one."""
    producer = node.scope.producer(node.input(2))
    found = dequantized(node, 2) if producer is not None and producer.op == "DequantizeLinear" else None
    return found if isinstance(found, Dequantized) and found.source is None else None


def _accumulator_step(node: Node, weight: Dequantized) -> NDArray[np.float64] | None:
    """What one unit of an integer kernel's sum stands for, when the data is quantized too."""
    producer = node.scope.producer(node.input(0))
    if producer is None or producer.op != "DequantizeLinear" or weight.block:
        return None
    scale = node.scope.constants.get(producer.input(1))
    return None if scale is None or scale.size != 1 else weight.scale.float64().ravel() * scale.float64().item()


def _requantized(
    node: Node, bias: Dequantized, affine: Affine
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """New integers, scale and rounding error of an int32 bias; None when a scale or an integer leaves its range."""
    beta = node.real("beta", 1.0)
    if bias.values.data_type != _INT32 or bias.node.scope.opset < 13 or not affine.scale.all() or beta == 0.0:
        return None
    channels = affine.scale.size
    if bias.zeros().any() or bias.values.dims not in ((channels,), (1, channels)):
        return None
    if bias.scale.size not in (1, channels):
        return None
    old = bias.values.float64().ravel() * bias.scale.float64().ravel()
    scale = (bias.scale.float64().ravel() * np.abs(affine.scale)).astype(dtypes.numpy_dtype(bias.scale.data_type))
    scale = scale.astype(np.float64)
    if not scale.all() or not np.isfinite(scale).all():
        return None
    new = affine.scale * old + affine.shift / beta
    integers = np.rint(new / scale)
    return (integers, scale, np.abs(integers * scale - new)) if np.abs(integers).max(initial=0.0) < 2**31 else None


def _rewrite_quantized(node: Node, bias: Dequantized, affine: Affine) -> Rewrite:
    renewed = _requantized(node, bias, affine)
    assert renewed is not None, "checked by the port"
    integers, scale, _ = renewed
    changes: tuple[Stored, ...] = (
        Stored(0, integers.reshape(bias.values.dims), bias.values.data_type, "quantized"),
        Stored(1, scale, bias.scale.data_type, "scale"),
    )
    if bias.zero is not None and bias.zero.size != scale.size:
        changes = (*changes, Stored(2, np.zeros(scale.size), bias.zero.data_type, "zero_point"))
    apart = (node, 2) if bias.shared else None
    return Rewrite(bias.node, changes, {"axis": len(bias.values.dims) - 1}, apart=apart)
