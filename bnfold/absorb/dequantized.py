"""A constant behind a DequantizeLinear: ``(q - zero_point) * scale``, per tensor, along an axis, or in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold import dtypes
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["RANGES", "Dequantized", "dequantized", "dequantizer", "quantized_data"]

RANGES = {
    2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 6: (-(2**31), 2**31 - 1), 21: (0, 15), 22: (-8, 7),
}  # fmt: skip
"""Integers whose signs can be flipped (``TensorProto.DataType``: uint8, int8, uint16, int16, int32, uint4, int4)."""


_COPIES = frozenset("Flatten Identity MaxPool Relu Reshape Slice Split Squeeze Transpose Unsqueeze".split())
"""Operators that runtimes move a DequantizeLinear past."""


@dataclass(frozen=True, slots=True, eq=False)
class Dequantized:
    """A constant behind a DequantizeLinear.

    Attributes:
        reader: the node that reads what is dequantized, at input ``position``: the operator or its ``transpose``.
        values: the integers, stored or made by ``source``.
        source: the QuantizeLinear that makes them of a float weight, by the same scale, as quantization-aware training
            leaves it; None where they are stored.
        transpose: the Transpose between DequantizeLinear and operator, if there is one.
    """

    node: Node
    reader: Node
    position: int
    values: Constant
    scale: Constant
    zero: Constant | None
    source: Node | None = None
    transpose: Node | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape that the operator sees."""
        return tuple(self.values.dims[self.stored_axis(axis)] for axis in range(len(self.values.dims)))

    def stored_axis(self, axis: int) -> int:
        """Where an axis that the operator sees is among those of the integers."""
        if self.transpose is None:
            return axis
        order = self.transpose.integers("perm")
        return len(self.values.dims) - 1 - axis if order is None else order[axis]

    @property
    def shared(self) -> bool:
        """Whether somebody else reads it too, so that it must not change."""
        return _shared(self.node)

    @property
    def axis(self) -> int:
        axis = self.node.integer("axis", 1)
        return axis + len(self.values.dims) if axis < 0 else axis

    @property
    def block(self) -> int:
        """How many elements along the axis share a scale; 0 when not block-wise."""
        return self.node.integer("block_size", 0)

    @property
    def data_type(self) -> int:
        """The type that it is dequantized to."""
        return self.node.integer("output_dtype", 0) or self.scale.data_type

    def float64(self) -> NDArray[np.float64]:
        """The numbers that the integers stand for, as the operator sees them."""
        scale = self._spread(self.scale)
        values = (self.values.array().astype(np.float64) - self.zeros()) * scale
        order = None if self.transpose is None else [self.stored_axis(axis) for axis in range(values.ndim)]
        return values if order is None else values.transpose(order)

    def zeros(self) -> NDArray[np.float64]:
        """The zero point of each element, as it broadcasts over the values."""
        if self.zero is None:
            return np.zeros([1] * len(self.values.dims))
        return self._spread(self.zero)

    def _spread(self, each: Constant) -> NDArray[np.float64]:
        """Scales or zero points as they broadcast over the values."""
        if each.size == 1:
            return np.full([1] * len(self.values.dims), each.float64().item())
        if self.block:
            spread = np.repeat(each.float64(), self.block, self.axis)
            return np.asarray(spread.take(range(self.values.dims[self.axis]), self.axis))
        return each.float64().reshape([-1 if i == self.axis else 1 for i in range(len(self.values.dims))])


def dequantizer(node: Node, position: int) -> tuple[Node | None, Node | None]:
    """The DequantizeLinear that an input comes from, if any, and the Transpose between the two, if any."""
    producer = node.scope.producer(node.input(position))
    transpose = producer if producer is not None and producer.op == "Transpose" else None
    if transpose is not None:
        producer = node.scope.producer(transpose.input(0))
    return (producer, transpose) if producer is not None and producer.op == "DequantizeLinear" else (None, None)


def quantized_data(node: Node, position: int) -> Node | None:
    """The DequantizeLinear that computed data comes from, if any: runtimes then put an operator on integers in the
    place of all of it."""
    producer = node.scope.producer(node.input(position))
    while producer is not None and producer.op in _COPIES:
        producer = producer.scope.producer(producer.input(0))
    return producer if producer is not None and producer.op == "DequantizeLinear" else None


def dequantized(node: Node, position: int) -> Dequantized | Refusal:
    """The quantized constant at an input, or why it cannot change."""
    scope, name = node.scope, node.input(position)
    producer, transpose = dequantizer(node, position)
    if producer is None:
        return Refusal("quantized", f"'{name}' does not come from a DequantizeLinear", node.label, lasting=True)
    reader, position = (node, position) if transpose is None else (transpose, 0)
    if transpose is not None and _shared(transpose):
        return Refusal("quantized", f"others read the quantized '{name}', too", transpose.label, lasting=True)
    values, scale = scope.constants.get(producer.input(0)), scope.constants.get(producer.input(1))
    zero = scope.constants.get(producer.input(2))
    if values is None or scale is None or (producer.input(2) and zero is None) or not scale.floating:
        return Refusal("quantized", f"the quantization of '{name}' is not constant", producer.label, lasting=True)
    weight = Dequantized(producer, reader, position, values, scale, zero, _source(values), transpose)
    if weight.source is not None and not _is_pair(weight, weight.source):
        return Refusal("quantized", f"'{name}' is quantized and dequantized differently", producer.label, lasting=True)
    if not _fits(weight):
        return Refusal("quantized", f"its scales do not fit '{name}'", producer.label, lasting=True)
    return weight


def _shared(node: Node) -> bool:
    name = node.outputs[0]
    return len(node.scope.readers(name)) != 1 or name in node.scope.output_set


def _source(values: Constant) -> Node | None:
    """The QuantizeLinear that the integers come from, at the end of the expression or further up."""
    made = values.node
    while made is not None and made.op not in ("QuantizeLinear", "Constant"):
        made = made.scope.producer(made.input(0))
    return made if made is not None and made.op == "QuantizeLinear" else None


def _is_pair(weight: Dequantized, source: Node) -> bool:
    """Whether QuantizeLinear and DequantizeLinear have the same scale and zero point, and nobody reads in between."""
    scope = source.scope
    if source.outputs[0] != weight.node.inputs[0]:
        return False
    for position, own in ((1, weight.scale), (2, weight.zero)):
        theirs = scope.constants.get(source.input(position))
        if (theirs is None) != (own is None):
            return False
        if theirs is not None and own is not None and not np.array_equal(theirs.float64(), own.float64()):
            return False
    exact = weight.scale.data_type in (dtypes.FLOAT, dtypes.DOUBLE)  # runtimes divide in float16 as they please
    if (
        not exact
        or weight.values.data_type not in RANGES
        or weight.shared
        or weight.block
        or source.integer("block_size", 0)
    ):
        return False
    same_axis = weight.scale.size == 1 or source.integer("axis", 1) % len(weight.values.dims) == weight.axis
    return same_axis and len(scope.readers(source.outputs[0])) == 1 and source.outputs[0] not in scope.output_set


def _fits(weight: Dequantized) -> bool:
    """Whether there is one scale, one for each index along the axis, or one for each block, and a zero point alike."""
    dims, scale, zero = weight.values.dims, weight.scale, weight.zero
    order = None if weight.transpose is None else weight.transpose.integers("perm")
    if order is not None and sorted(order) != list(range(len(dims))):
        return False
    if zero is not None and zero.size != scale.size:
        return False
    if weight.block:
        blocks = [-(-d // weight.block) if i == weight.axis else d for i, d in enumerate(dims)]
        return scale.dims == tuple(blocks) and (zero is None or zero.dims == scale.dims)
    return scale.size == 1 or (0 <= weight.axis < len(dims) and scale.dims == (dims[weight.axis],))
