"""Operators whose weight comes through DequantizeLinear: ``w = (q - zero_point) * scale``.

After:   ``scale *= |s|`` per channel, and ``q' = 2 * zero_point - q`` in channels where ``s < 0``: integers stay
integers, so nothing
is rounded but the new scales. A float bias takes scale and shift; an int32 bias behind its own DequantizeLinear is
quantized
again with its scale times ``|s|``, which keeps the ratio to the weight's scale that integer kernels rely on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold import dtypes
from bnfold.absorb.port import Port, Rewrite, Stored, bias_of
from bnfold.affine import Affine, Vector
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["Dequantized", "after", "dequantized", "rewrite"]

_RANGES = {2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 6: (-(2**31), 2**31 - 1)}
"""Quantized types whose signs can be flipped (``TensorProto.DataType``: uint8, int8, uint16, int16, int32)."""


@dataclass(frozen=True, slots=True, eq=False)
class Dequantized:
    """A constant behind a DequantizeLinear of its own."""

    node: Node
    values: Constant
    scale: Constant
    zero: Constant | None

    @property
    def axis(self) -> int:
        axis = self.node.integer("axis", 1)
        return axis + len(self.values.dims) if axis < 0 else axis


def dequantized(node: Node, position: int) -> Dequantized | Refusal:
    """The quantized constant at an input, or why it cannot change."""
    scope, name = node.scope, node.input(position)
    producer = scope.producer(name)
    if producer is None or producer.op != "DequantizeLinear":
        return Refusal("quantized", f"'{name}' does not come from a DequantizeLinear", node.label, lasting=True)
    if len(scope.readers(name)) != 1 or name in scope.output_set:
        return Refusal("quantized", f"the dequantized weight '{name}' has other readers", producer.label, lasting=True)
    values, scale = scope.constants.get(producer.input(0)), scope.constants.get(producer.input(1))
    zero = scope.constants.get(producer.input(2))
    if values is None or scale is None or (producer.input(2) and zero is None) or not scale.floating:
        return Refusal("quantized", f"the quantization of '{name}' is not constant", producer.label, lasting=True)
    weight = Dequantized(producer, values, scale, zero)
    if not _fits(weight):
        return Refusal("quantized", f"its scales do not fit '{name}'", producer.label, lasting=True)
    return weight


def _fits(weight: Dequantized) -> bool:
    """Whether there is one scale, one for each index along the axis, or one for each block, and a zero point alike."""
    dims, scale, zero = weight.values.dims, weight.scale, weight.zero
    if zero is not None and zero.size != scale.size:
        return False
    if weight.node.integer("block_size", 0):
        return len(scale.dims) == len(dims)
    return scale.size == 1 or (0 <= weight.axis < len(dims) and scale.dims == (dims[weight.axis],))


def after(node: Node) -> Port | Refusal:
    """The output's channels, with a check of what the quantization can express."""
    weight = dequantized(node, 1)
    if isinstance(weight, Refusal):
        return weight
    place = _channels(node, weight.values.dims)
    if isinstance(place, Refusal):
        return place
    axis, channels = place
    problem = _bias_problem(node, channels)
    if problem is not None:
        return problem

    def check(affine: Affine) -> Refusal | None:
        return _check(node, weight, axis, affine) or _check_bias(node, affine)

    product = node.op == "MatMul"
    bias = None if product else _quantized_bias(node)
    changes = (node.input(1),) if bias is None else (node.input(1), node.input(2))
    return Port(node, -1 if product else 1, channels, adds=product, check=check, changes=changes)


def _channels(node: Node, dims: tuple[int, ...]) -> tuple[int, int] | Refusal:
    """The weight's axis of output channels, and their number."""
    group = node.integer("group", 1)
    if node.op == "Conv" and len(dims) >= 3:
        return 0, dims[0]
    if node.op == "ConvTranspose" and len(dims) >= 3 and group == 1:
        return 1, dims[1]
    if node.op == "ConvTranspose" and len(dims) >= 3 and dims[0] == group and dims[1] == 1:
        return 0, group
    if node.op == "Gemm" and len(dims) == 2:
        axis = 0 if node.integer("transB", 0) else 1
        return axis, dims[axis]
    if node.op == "MatMul" and len(dims) == 2:
        return 1, dims[1]
    return Refusal(
        "quantized",
        f"the quantized weight of '{node.label}' has no axis of its own for the channels",
        node.label,
        lasting=True,
    )


def _check(node: Node, weight: Dequantized, axis: int, affine: Affine) -> Refusal | None:
    scale = _new_scale(weight, axis, affine.scale)
    if isinstance(scale, Refusal):
        return scale
    smallest, largest = dtypes.limits(weight.scale.data_type)
    if ((scale > 0) & (scale < smallest)).any() or scale.max() > largest:
        return Refusal("overflow", f"a scale of '{weight.node.label}' does not fit its data type", node.label)
    if (affine.scale < 0).any() and _flipped(weight, axis, affine.scale) is None:
        return Refusal(
            "quantized",
            f"flipping the sign of the weight of '{node.label}' leaves the range of its integers",
            node.label,
        )
    return None


def _new_scale(weight: Dequantized, axis: int, factor: Vector) -> NDArray[np.float64] | Refusal:
    """The scale times ``|factor|``: one number stays one when it can, else it becomes one per channel."""
    size = np.abs(factor)
    scale, label = weight.scale.float64(), weight.node.label
    if weight.node.integer("block_size", 0):
        if scale.shape[axis] != size.size:
            return Refusal("quantized", f"'{label}' shares scales among channels", label)
        spread: NDArray[np.float64] = scale * size.reshape([-1 if i == axis else 1 for i in range(scale.ndim)])
        return spread
    if scale.size == 1 and np.all(size == size[0]):
        return np.asarray(scale * size[0])
    if scale.size == 1:
        if weight.node.scope.opset < 13:
            return Refusal("quantized", f"before opset 13 '{label}' has a single scale", label)
        return np.asarray(scale.reshape(1) * size)
    if weight.axis != axis:
        return Refusal("quantized", f"the scales of '{label}' run along another axis than the channels", label)
    return np.asarray(scale * size)


def _flipped(weight: Dequantized, axis: int, factor: Vector) -> NDArray[np.float64] | None:
    """The integers with the signs of negative channels turned; None when one leaves its range (-128 becomes 128)."""
    limits = _RANGES.get(weight.values.data_type)
    if limits is None or weight.node.integer("block_size", 0):
        return None
    values = weight.values.array().astype(np.int64)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    zero = np.zeros(1, np.int64) if weight.zero is None else weight.zero.array().astype(np.int64).ravel()
    centre = zero.reshape(shape) if zero.size > 1 else zero.reshape([1] * values.ndim)
    turned = np.where((factor < 0).reshape(shape), 2 * centre - values, values)
    if turned.min() < limits[0] or turned.max() > limits[1]:
        return None
    return turned.astype(np.float64)


# -- bias --------------------------------------------------------------------------------------------------------------


def _quantized_bias(node: Node) -> Dequantized | None:
    """The bias behind its own DequantizeLinear, if it has one."""
    producer = node.scope.producer(node.input(2))
    found = dequantized(node, 2) if producer is not None and producer.op == "DequantizeLinear" else None
    return found if isinstance(found, Dequantized) else None


def _bias_problem(node: Node, channels: int) -> Refusal | None:
    if node.op == "Gemm" and (node.real("beta", 1.0) != 1.0 or node.real("alpha", 1.0) != 1.0):
        return Refusal(
            "quantized", f"'{node.label}' has factors alpha or beta beside a quantized weight", node.label, lasting=True
        )
    if node.op == "MatMul" or not node.input(2) or _quantized_bias(node) is not None:
        return None
    producer = node.scope.producer(node.input(2))
    if producer is not None and producer.op == "DequantizeLinear":
        return Refusal(
            "quantized", f"the quantization of the bias of '{node.label}' is not constant", node.label, lasting=True
        )
    bias = bias_of(node, 2, channels)
    return Refusal(bias.code, bias.reason, bias.node, lasting=True) if isinstance(bias, Refusal) else None


def _check_bias(node: Node, affine: Affine) -> Refusal | None:
    bias = _quantized_bias(node)
    if bias is None or node.op == "MatMul":
        return None
    if _requantized(bias, affine) is None:
        return Refusal("quantized", f"the bias of '{node.label}' cannot be quantized again", node.label)
    return None


def _requantized(bias: Dequantized, affine: Affine) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """New integers and scale of an int32 bias; None when a scale would be 0 or an integer leaves its range."""
    if bias.values.data_type != 6 or bias.node.scope.opset < 13 or not affine.scale.all():
        return None
    if bias.zero is not None and bias.zero.array().any():
        return None
    if bias.values.size != affine.scale.size or bias.scale.size not in (1, affine.scale.size):
        return None
    old = bias.values.float64().ravel() * bias.scale.float64().ravel()
    kind = np.float16 if bias.scale.data_type == 10 else np.float32
    scale = (bias.scale.float64().ravel() * np.abs(affine.scale)).astype(kind).astype(np.float64)
    if not scale.all():
        return None
    integers = np.rint((affine.scale * old + affine.shift) / scale)
    return (integers, scale) if np.abs(integers).max() < 2**31 else None


# -- rewriting ---------------------------------------------------------------------------------------------------------


def rewrite(node: Node, out: Affine) -> list[Rewrite]:
    """New scales, signs and bias; each new value rounded once."""
    weight = dequantized(node, 1)
    assert isinstance(weight, Dequantized)
    place = _channels(node, weight.values.dims)
    assert not isinstance(place, Refusal)
    axis, channels = place
    affine = out.over(channels)
    return [_rewrite_weight(weight, axis, affine.scale), *_rewrite_bias(node, affine)]


def _rewrite_weight(weight: Dequantized, axis: int, factor: Vector) -> Rewrite:
    scale = _new_scale(weight, axis, factor)
    assert not isinstance(scale, Refusal)
    changes = [Stored(1, scale, weight.scale.data_type, "scale")]
    if (factor < 0).any():
        flipped = _flipped(weight, axis, factor)
        assert flipped is not None
        changes.append(Stored(0, flipped, weight.values.data_type, "quantized"))
    attributes: dict[str, float | int] = {}
    if scale.size > weight.scale.size:
        attributes["axis"] = axis
        if weight.zero is not None:
            zero = np.broadcast_to(weight.zero.float64().ravel(), scale.shape)
            changes.append(Stored(2, zero, weight.zero.data_type, "zero_point"))
    return Rewrite(weight.node, tuple(changes), attributes)


def _rewrite_bias(node: Node, affine: Affine) -> list[Rewrite]:
    scale_type = _float_type(node)
    if node.op == "MatMul":
        return [Rewrite(node, add=Stored(1, affine.shift, scale_type))] if affine.shifts else []
    quantized = _quantized_bias(node)
    if quantized is not None:
        renewed = _requantized(quantized, affine)
        assert renewed is not None
        integers, scale = renewed
        changes: tuple[Stored, ...] = (
            Stored(0, integers.reshape(quantized.values.dims), quantized.values.data_type, "quantized"),
            Stored(1, scale.reshape(-1), quantized.scale.data_type, "scale"),
        )
        zero = quantized.zero
        if zero is not None and zero.size != scale.size:
            changes = (*changes, Stored(2, np.zeros(scale.size), zero.data_type, "zero_point"))
        return [Rewrite(quantized.node, changes, {"axis": 0})]
    bias = bias_of(node, 2, affine.scale.size)
    assert not isinstance(bias, Refusal)
    new = affine.scale * bias + affine.shift
    return [Rewrite(node, (Stored(2, new, scale_type),))] if node.input(2) or new.any() else []


def _float_type(node: Node) -> int:
    """The type that the weight is dequantized to."""
    weight = dequantized(node, 1)
    assert isinstance(weight, Dequantized)
    return weight.scale.data_type
