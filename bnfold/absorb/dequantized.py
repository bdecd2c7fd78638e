"""A constant behind a DequantizeLinear: ``(q - zero_point) * scale``, per tensor, along an axis, or in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["Dequantized", "dequantized"]


@dataclass(frozen=True, slots=True, eq=False)
class Dequantized:
    """A constant behind a DequantizeLinear."""

    node: Node
    values: Constant
    scale: Constant
    zero: Constant | None

    @property
    def shared(self) -> bool:
        """Whether somebody else reads it too, so that it must not change."""
        scope, name = self.node.scope, self.node.outputs[0]
        return len(scope.readers(name)) != 1 or name in scope.output_set

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

    def zeros(self) -> NDArray[np.float64]:
        """The zero point of each element, as it broadcasts over the values."""
        rank = len(self.values.dims)
        if self.zero is None or self.zero.size == 1:
            return np.full([1] * rank, 0.0 if self.zero is None else self.zero.float64().item())
        if self.block:
            spread = np.repeat(self.zero.float64(), self.block, self.axis)
            return np.asarray(spread.take(range(self.values.dims[self.axis]), self.axis))
        return self.zero.float64().reshape([-1 if i == self.axis else 1 for i in range(rank)])


def dequantized(node: Node, position: int) -> Dequantized | Refusal:
    """The quantized constant at an input, or why it cannot change."""
    scope, name = node.scope, node.input(position)
    producer = scope.producer(name)
    if producer is None or producer.op != "DequantizeLinear":
        return Refusal("quantized", f"'{name}' does not come from a DequantizeLinear", node.label, lasting=True)
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
    if weight.block:
        blocks = [-(-d // weight.block) if i == weight.axis else d for i, d in enumerate(dims)]
        return scale.dims == tuple(blocks) and (zero is None or zero.dims == scale.dims)
    return scale.size == 1 or (0 <= weight.axis < len(dims) and scale.dims == (dims[weight.axis],))
