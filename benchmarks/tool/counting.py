"""Count what a folding tool left in a model. Written apart from bnfold: it shares no code with what it judges.

Counted in the main graph, in every subgraph and in inlined local functions:

* ``norms``: BatchNormalization nodes of the ``ai.onnx`` domain.
* ``affine``: Mul, Add, Sub, Div of a computed tensor and a floating-point constant that is a scalar or varies along one
  axis only (``affine_channel`` counts those that vary along an axis, ``affine_scalar`` the rest). An Add after a
  MatMul with a constant operand is that layer's bias and is not counted.
* ``depthwise``: 1x1 depthwise convolutions, which are an affine map under another name (onnxruntime makes them
  out of norms that it cannot fold).
* ``fused``: affine operators inside a fused one (a Gelu is a Div, an Add and a Mul around an Erf): hidden, not folded.
  A factor that became the ``alpha`` of a matrix product is folded, and not counted.
* ``constant_nodes``: nodes whose inputs are all constant (Constant nodes themselves left out): work moved, not done.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper
from onnx.inliner import inline_local_functions
from onnx.numpy_helper import to_array
from onnx.reference import ReferenceEvaluator

if TYPE_CHECKING:
    from collections.abc import Iterator

AFFINE = frozenset({"Mul", "Add", "Sub", "Div"})
# What an operator stands for; the bias of BiasGelu belongs to the MatMul in front of it.
CONTAINED = {
    "Gelu": 3,  # x / sqrt(2), erf(.) + 1, 0.5 * .
    "BiasGelu": 3,
    "FastGelu": 4,  # 0.044715 * x^3, sqrt(2 / pi) * ., tanh(.) + 1, 0.5 * .
    "LayerNormalization": 3,  # variance + epsilon, gamma * ., . + beta
    "SkipLayerNormalization": 3,
    "EmbedLayerNormalization": 3,
    "SimplifiedLayerNormalization": 2,  # mean square + epsilon, gamma * .
    "SkipSimplifiedLayerNormalization": 2,
}
FLOATING = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
SMALL = 1 << 18  # elements; larger constants are never evaluated
RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"})


@dataclass(frozen=True, slots=True)
class Left:
    """What is left in one model; all fields are numbers of nodes."""

    nodes: int = 0
    norms: int = 0
    affine_channel: int = 0
    affine_scalar: int = 0
    depthwise: int = 0
    fused: int = 0
    constant_nodes: int = 0

    @property
    def affine(self) -> int:
        """All affine operators that stand in the graph, 1x1 depthwise convolutions among them."""
        return self.affine_channel + self.affine_scalar + self.depthwise

    def __add__(self, other: Left) -> Left:
        mine, theirs = asdict(self), asdict(other)
        return Left(**{key: mine[key] + theirs[key] for key in mine})


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant tensor: type and shape (0 and None when unknown), and its value when it is small."""

    data_type: int
    shape: tuple[int, ...] | None
    value: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What counting needs to know of the model around a graph."""

    opsets: tuple[onnx.OperatorSetIdProto, ...]
    overridable: bool  # IR 4 and newer: an initializer that is also an input is a default value, not a constant


def count(model: onnx.ModelProto) -> Left:
    """Count what is left in the model."""
    if model.functions:
        model = inline_local_functions(model)
    return count_graph(model.graph, {}, Rules(tuple(model.opset_import), model.ir_version >= 4))


def inputs_of(model: onnx.ModelProto) -> list[str]:
    """What callers can give; in IR 3 all initializers are listed as inputs, but none can be overridden."""
    stored = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    return [value.name for value in model.graph.input if value.name not in stored]


def count_graph(graph: GraphProto, outer: dict[str, Constant], rules: Rules) -> Left:
    """Count one scope and everything in it."""
    inputs = {value.name for value in graph.input}
    constants = {name: value for name, value in outer.items() if name not in inputs}
    for tensor in graph.initializer:
        if not (rules.overridable and tensor.name in inputs):
            constants[tensor.name] = constant_of(tensor)
    producers = {name: node for node in graph.node for name in node.output}
    left = Left()
    for node in graph.node:
        left += count_node(node, constants, producers)
        if is_constant_node(node, constants):
            constants.update(evaluate(node, constants, rules))
        for inner in subgraphs(node):
            left += count_graph(inner, constants, rules)
    return left


def count_node(node: NodeProto, constants: dict[str, Constant], producers: dict[str, NodeProto]) -> Left:
    """Count one node by itself."""
    if node.op_type == "Constant":
        return Left()
    if is_constant_node(node, constants):
        return Left(nodes=1, constant_nodes=1)
    standard = node.domain in ("", "ai.onnx")
    if standard and node.op_type == "BatchNormalization":
        return Left(nodes=1, norms=1)
    if is_pointwise_depthwise(node, constants):
        return Left(nodes=1, depthwise=1)
    if standard and node.op_type in AFFINE:
        axes = affine_axes(node, constants, producers)
        return Left(nodes=1, affine_channel=int(axes == 1), affine_scalar=int(axes == 0))
    return Left(nodes=1, fused=contained(node))


def contained(node: NodeProto) -> int:
    """Affine operators inside a fused operator."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "QuickGelu":  # x * sigmoid(alpha * x)
        return int(attributes.get("alpha", 1.702) != 1)
    if node.op_type == "Gelu" and attributes.get("approximate") == b"tanh":
        return CONTAINED["FastGelu"]
    return CONTAINED.get(node.op_type, 0)


def affine_axes(node: NodeProto, constants: dict[str, Constant], producers: dict[str, NodeProto]) -> int | None:
    """Number of axes along which the constant operand varies (0 or 1); None when the node is no such operator."""
    known = [constants.get(name) for name in node.input]
    if len(known) != 2 or (known[0] is None) == (known[1] is None):
        return None
    constant = known[0] or known[1]
    if constant is None or constant.data_type not in FLOATING or constant.shape is None:
        return None
    axes = sum(size != 1 for size in constant.shape)
    if axes > 1:
        return None
    other = producers.get(node.input[1 if known[0] is not None else 0])
    if node.op_type == "Add" and other is not None and other.op_type == "MatMul" and axes == 1:
        layer = any(name in constants for name in other.input)
        return None if layer else axes
    return axes


def is_pointwise_depthwise(node: NodeProto, constants: dict[str, Constant]) -> bool:
    """Whether the node is a convolution of each channel by itself with a kernel of one element."""
    if node.op_type not in ("Conv", "FusedConv") or len(node.input) < 2:
        return False
    weight = constants.get(node.input[1])
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if weight is None or weight.shape is None or len(weight.shape) < 3 or group <= 1:
        return False
    return weight.shape[0] == group and all(size == 1 for size in weight.shape[1:])


def is_constant_node(node: NodeProto, constants: dict[str, Constant]) -> bool:
    """Whether every input is constant; random generators and nodes with subgraphs do not count."""
    if node.op_type in RANDOM or any(True for _ in subgraphs(node)):
        return False
    return all(name in constants for name in node.input if name)


def constant_of(tensor: TensorProto) -> Constant:
    """An initializer as a constant; a large one without its value."""
    shape = tuple(tensor.dims)
    small = math.prod(shape) <= SMALL
    return Constant(tensor.data_type, shape, to_array(tensor) if small else None)


def evaluate(node: NodeProto, constants: dict[str, Constant], rules: Rules) -> dict[str, Constant]:
    """Outputs of a constant node, by onnx's reference evaluator; unknown where an input is large or it cannot."""
    unknown = {name: Constant(0, None) for name in node.output if name}
    inputs = {name: constants[name] for name in node.input if name}
    if any(value.value is None for value in inputs.values()):
        return unknown
    infos = [helper.make_tensor_value_info(name, value.data_type, value.shape) for name, value in inputs.items()]
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in unknown]
    model = helper.make_model(helper.make_graph([node], "constant", infos, outputs), opset_imports=rules.opsets)
    try:
        results = ReferenceEvaluator(model).run(None, {name: value.value for name, value in inputs.items()})
    except Exception:  # an operator it does not know: the constant stays unknown and is not counted as an affine
        return unknown
    arrays = [np.asarray(result) for result in results]
    types = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    return {
        name: Constant(data_type, array.shape, array if array.size <= SMALL else None)
        for name, array, data_type in zip(unknown, arrays, types, strict=True)
    }


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs a node carries in its attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def main() -> int:
    """Print the counts of the files named as arguments, one JSON object per line."""
    for path in sys.argv[1:]:
        model = onnx.load(path)
        left = count(model)
        print(json.dumps({**asdict(left), "affine": left.affine, "inputs": inputs_of(model)}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
