"""Reading affines: which nodes are a scale and shift per channel, and with what numbers.

Past this module nothing knows the word BatchNormalization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold import dtypes
from bnfold.affine import Affine, Vector
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["AffineNode", "is_affine_operator", "read"]

_ELEMENTWISE = frozenset(("Mul", "Add", "Sub", "Div"))


@dataclass(slots=True, eq=False)
class AffineNode:
    """A node that is ``y = scale * x + shift`` per channel.

    Attributes:
        data: the tensor that is scaled and shifted; output: the result.
        norm: True for a batch norm, False for Mul, Add, Sub, Div, Neg by constants.
    """

    node: Node
    data: str
    affine: Affine
    norm: bool

    @property
    def output(self) -> str:
        return self.node.outputs[0]


def is_affine_operator(node: Node) -> bool:
    """Whether :func:`read` has anything to say about the node (cheap; looks at no constants)."""
    return node.op in _ELEMENTWISE or node.op in ("BatchNormalization", "Neg")


def read(node: Node) -> AffineNode | Refusal | None:
    """The node's affine; a refusal when it is a batch norm that is not one; None when it is no such operator at all."""
    if node.op == "BatchNormalization":
        return _read_norm(node)
    if node.op == "Neg":
        return _read_neg(node)
    if node.op in _ELEMENTWISE and len(node.inputs) == 2:
        return _read_elementwise(node)
    return None


# -- BatchNormalization ------------------------------------------------------------------------------------------------


def _read_norm(node: Node) -> AffineNode | Refusal:
    """``s = gamma / sqrt(var + epsilon)``, ``t = beta - mean * s`` (ONNX operator specification, all versions)."""
    refusal = _training(node)
    if refusal is not None:
        return refusal
    if len(node.inputs) < 5 or not node.outputs:
        return Refusal(
            "parameter-shape", "the norm has fewer than the five inputs that the operator requires", node.label
        )
    vectors = []
    extended = False
    get = node.scope.constants.get
    for name in node.inputs[1:5]:
        constant = get(name)
        if constant is None:
            return Refusal("parameters-not-constant", f"parameter '{name}' is not constant", node.label)
        if not constant.floating or len(constant.dims) != 1:
            return Refusal("parameter-shape", f"parameter '{name}' is not a vector of floats", node.label)
        extended = extended or constant.data_type == dtypes.DOUBLE
        vectors.append(constant.float64())
    if len({v.size for v in vectors}) != 1 or not vectors[0].size:
        return Refusal("parameter-shape", "scale, bias, mean and variance differ in length", node.label)
    if extended:
        # Computed in float64, the scale and shift of a float64 norm carry four roundings into float64 weights. Where
        # the machine has a longer type, they stay in it until the weights are written.
        vectors = [v.astype(np.longdouble) for v in vectors]
    return _norm_affine(node, *vectors)


def _norm_affine(node: Node, gamma: Vector, beta: Vector, mean: Vector, variance: Vector) -> AffineNode | Refusal:
    spread = variance + node.real("epsilon", float(np.float32(1e-5)))
    if spread.min() <= 0.0:
        channel = int(spread.argmin())
        return Refusal("variance", f"variance + epsilon is {spread[channel]:g} in channel {channel}", node.label)
    scale = gamma / np.sqrt(spread)
    shift = beta - mean * scale
    # An infinity or NaN in any parameter reaches the sum, except an infinite variance, which reaches its own.
    if not math.isfinite(float(scale.sum()) + float(shift.sum()) + float(spread.sum())):
        return Refusal("not-finite", "a parameter holds an infinity or NaN, or the scale is too large", node.label)
    return AffineNode(node, node.inputs[0], Affine(scale, shift, 1), norm=True)


def _training(node: Node) -> Refusal | None:
    """Each opset's own way of saying "training", and statistics per element."""
    opset = node.scope.opset
    if node.scope.in_function and any(a.ref_attr_name for a in node.proto.attribute):
        return Refusal("function", "an attribute of the norm comes from the function's call", node.label)
    if opset >= 14 and node.integer("training_mode", 0):
        return Refusal("training-mode", "training_mode is 1", node.label)
    if opset < 7 and not node.integer("is_test", 0):
        return Refusal("training-mode", "is_test is 0, which before opset 7 means training", node.label)
    if any(node.outputs[1:]):
        return Refusal(
            "training-mode", "the norm has outputs for batch statistics, so it is in training mode", node.label
        )
    if opset < 9 and not node.integer("spatial", 1):
        return Refusal("per-activation", "spatial is 0: the statistics are per element", node.label)
    return None


# -- Mul, Add, Sub, Div, Neg by constants ------------------------------------------------------------------------------


def _read_neg(node: Node) -> AffineNode | None:
    scope = node.scope
    if scope.constants.get(node.input(0)) is not None or not _is_float(node, node.input(0)):
        return None
    return AffineNode(node, node.inputs[0], Affine.of(-1.0), norm=False)


def _read_elementwise(node: Node) -> AffineNode | Refusal | None:
    constants = node.scope.constants
    right = constants.get(node.inputs[1])
    left = constants.get(node.inputs[0]) if right is None else None
    constant = right if right is not None else left
    if constant is None or not constant.floating or constant.size == 0 or constant.size > 1 << 20:
        return None
    if right is not None and constants.get(node.inputs[0]) is not None:
        return None
    if left is not None and (node.op == "Div" or node.scope.opset < 7):
        return None  # a quotient is no affine; before opset 7 only the second operand is broadcast
    data = node.inputs[0] if right is not None else node.inputs[1]
    values = _unstretched(node, data, constant)
    place = _channel_axis(node, data, values.shape)
    if not isinstance(place, int):
        return place
    affine = _elementwise_affine(node, values.ravel(), constant_is_left=left is not None, axis=place)
    if isinstance(affine, Refusal):
        return affine
    return AffineNode(node, data, affine.simplest(), norm=False)


def _elementwise_affine(node: Node, vector: Vector, *, constant_is_left: bool, axis: int) -> Affine | Refusal:
    if not np.isfinite(vector).all():
        return Refusal("not-finite", "the constant holds an infinity or NaN", node.label)
    if node.op == "Mul":
        return Affine.of(vector, 0.0, axis)
    if node.op == "Add":
        return Affine.of(1.0, vector, axis)
    if node.op == "Sub":
        return Affine.of(-1.0, vector, axis) if constant_is_left else Affine.of(1.0, -vector, axis)
    if not vector.all():
        return Refusal("not-finite", "the constant divides by zero", node.label)
    return Affine.of(1.0 / vector, 0.0, axis)


def _unstretched(node: Node, data: str, constant: Constant) -> NDArray[np.float64]:
    """The constant without the axes along which it repeats itself, where the tensor has that size anyway."""
    values = constant.float64()
    if sum(d != 1 for d in values.shape) < 2 or node.scope.opset < 7:
        return values
    for axis, size in enumerate(values.shape):
        first = values.take([0], axis)
        if size > 1 and (values == first).all() and node.scope.shapes.dim(data, axis - values.ndim) == size:
            values = first
    return values


def _channel_axis(node: Node, data: str, dims: tuple[int, ...]) -> int | Refusal | None:
    """The one axis, counted from the last, that a constant of these dimensions runs along (0 when it is a number).

    A constant must not raise the tensor's rank or stretch an axis, and that has to be proven from shapes. None when the
    constant runs along several axes: then this is no affine per channel.
    """
    rank, data_rank, count = len(dims), 0, math.prod(dims)
    if sum(d != 1 for d in dims) > 1:
        return None
    shapes = node.scope.shapes
    if rank > 0:
        found = shapes.rank(data)
        if found is None:
            return Refusal("shape-unknown", f"the rank of '{data}' is not known", node.label)
        data_rank = found
        if data_rank < rank:
            return Refusal("broadcast", f"the constant has rank {rank}, the tensor rank {data_rank}", node.label)
    if count == 1:
        return 0
    axis = next(i for i, d in enumerate(dims) if d != 1) - rank
    if node.scope.opset < 7 and "axis" in node.attributes:  # where the constant's first axis lies, not its last
        start = shapes.axis(data, node.integer("axis", 0))
        assert start is not None, "the rank is known"
        axis += start + rank - data_rank
    size = shapes.dim(data, axis)
    if size is None or isinstance(size, str):
        return Refusal("shape-unknown", f"axis {axis} of '{data}' is not a known number", node.label)
    if size != count:
        return Refusal("broadcast", f"the constant has {count} values where '{data}' has {size}", node.label)
    return axis


def _is_float(node: Node, name: str) -> bool:
    return node.scope.shapes.element_type(name) in dtypes.FLOATS
