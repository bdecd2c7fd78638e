"""What the absorbing operators tell the planner, and what they ask of the writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.absorb.dequantized import dequantizer
from bnfold.affine import Affine, Vector
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["Port", "Rewrite", "Scaled", "Stored", "bias_of", "bias_problem", "contract", "filters_of", "weight_of"]


@dataclass(slots=True, eq=False)
class Port:
    """Where an affine enters a linear operator.

    Attributes:
        node: the operator whose weight takes the affine.
        axis: channel axis of the tensor at the port; negative counts from the last axis.
        channels: number of channels.
        shift: why a shift cannot enter, or None when it can.
        adds: entering with a shift costs one new Add behind the operator.
        check: looks at the affine, composed with what entered before, and says why it cannot enter.
        changes: computed tensors that get another value with the weight, such as a dequantized one.
        turned: makes the affine that enters behind the operator of the one in front of it.
    """

    node: Node
    axis: int
    channels: int
    shift: Refusal | None = None
    adds: bool = False
    check: Callable[[Affine], Refusal | None] | None = None
    changes: tuple[str, ...] = ()
    turned: Callable[[Affine], Affine | Refusal] | None = None


@dataclass(slots=True, eq=False)
class Scaled:
    """Input ``position`` is to be multiplied: seen as ``shape``, by each of the broadcastable float64 ``factors``."""

    position: int
    shape: tuple[int, ...]
    factors: tuple[NDArray[np.float64], ...]


@dataclass(slots=True, eq=False)
class Stored:
    """Input ``position`` is to become these float64 values, rounded once to ``data_type``."""

    position: int
    values: NDArray[np.float64]
    data_type: int
    role: str = "bias"


@dataclass(slots=True, eq=False)
class Rewrite:
    """All that changes about one node.

    Attributes:
        node: the node.
        changes: new contents for its inputs.
        attributes: float and integer attributes to set.
        gemm: the MatMul becomes a Gemm.
        add: an Add of this constant follows the node and takes over its output's name.
        apart: others read the node's output too: it stays, and this reader, at this input, gets a changed copy.
    """

    node: Node
    changes: tuple[Scaled | Stored, ...] = ()
    attributes: dict[str, float | int] = field(default_factory=dict)
    gemm: bool = False
    add: Stored | None = None
    apart: tuple[Node, int] | None = None


def weight_of(node: Node, position: int) -> Constant | Refusal:
    """The constant weight at an input, or why there is none."""
    name = node.input(position)
    constant = node.scope.constants.get(name)
    source, _ = dequantizer(node, position)
    stored = source is not None and node.scope.constants.get(source.input(0)) is not None
    if stored or (constant is not None and constant.quantized):
        return Refusal("quantized", f"the weight '{name}' is quantized", node.label, lasting=True)
    if constant is None:
        return Refusal("weight-not-constant", f"the weight '{name}' is not constant", node.label, lasting=True)
    if not constant.floating:
        return Refusal("weight-not-constant", f"the weight '{name}' does not hold floats", node.label, lasting=True)
    return constant


def filters_of(node: Node) -> Constant | Refusal:
    """The constant weight of a convolution, whose first axis is cut into groups, or why there is none."""
    weight, group = weight_of(node, 1), node.integer("group", 1)
    if isinstance(weight, Refusal):
        return weight
    if len(weight.dims) < 3 or group < 1 or weight.dims[0] % group:
        return Refusal("parameter-shape", "the weight does not fit the groups", node.label, lasting=True)
    return weight


def bias_problem(node: Node, position: int, channels: int) -> Refusal | None:
    """Why the optional bias at an input is not known, without reading it; None when it is, or is absent."""
    name = node.input(position)
    if not name:
        return None
    constant = node.scope.constants.get(name)
    if constant is None or not constant.floating:
        return Refusal("bias-not-constant", f"the bias '{name}' is not constant", node.label)
    if constant.quantized:
        return Refusal("quantized", f"the bias '{name}' is quantized, and the weight is not", node.label)
    if constant.size not in (1, channels):
        return Refusal(
            "parameter-shape", f"the bias '{name}' has {constant.size} values for {channels} channels", node.label
        )
    return None


def bias_of(node: Node, position: int, channels: int) -> Vector | Refusal:
    """The bias vector at an optional input, zeros when absent (an empty name is an absent input), or why it is not
    known."""
    name = node.input(position)
    if not name:
        return np.zeros(channels)
    problem = bias_problem(node, position, channels)
    constant = node.scope.constants.get(name)
    if problem is not None or constant is None:
        return problem or Refusal("bias-not-constant", f"the bias '{name}' is not constant", node.label)
    return np.broadcast_to(constant.float64().ravel(), (channels,))


_CONTRACT_BLOCK = 1 << 20


def contract(values: NDArray[Any], vector: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Sum of ``values * vector`` over ``axes`` in float64, a block of the first axis at a time.

    The first axis must not be summed over. Memory above the weight itself stays bounded, however large it is.
    """
    if values.shape[0] == 0:
        return np.zeros(0)
    rows = max(1, _CONTRACT_BLOCK // max(1, values[:1].size))
    parts = []
    for start in range(0, values.shape[0], rows):
        factor = vector if vector.shape[0] == 1 else vector[start : start + rows]
        parts.append((values[start : start + rows].astype(np.float64) * factor).sum(axis=axes))
    return np.concatenate(parts)
