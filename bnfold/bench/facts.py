"""What a model file holds: bytes, operators, parameters, multiply-adds."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from bnfold.bench.report import Facts
from bnfold.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx

__all__ = ["describe", "multiply_adds", "operator_counts"]

Shape = tuple[int, ...]

_FREE = frozenset({"Constant"})
_ELEMENTWISE = frozenset({"BatchNormalization", "Mul", "Add", "Sub", "Div"})


def describe(name: str, path: Path, proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> Facts:
    """Facts about a model whose skeleton is ``proto``; ``feeds`` fix the dynamic dimensions for the multiply-adds."""
    counts = operator_counts(proto)
    return Facts(
        name=printable(name),
        file_bytes=file_bytes(path, proto),
        operators=sum(counts.values()),
        norms=counts["BatchNormalization"],
        parameters=sum(math.prod(tensor.dims) for graph in graphs(proto.graph) for tensor in graph.initializer),
        multiply_adds=multiply_adds(proto, feeds),
    )


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from graphs(inner)


def operator_counts(proto: onnx.ModelProto) -> Counter[str]:
    """Nodes by operator, in all graphs and in function bodies; Constant nodes left out."""
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    return Counter(node.op_type for node in nodes if node.op_type not in _FREE)


def file_bytes(path: Path, proto: onnx.ModelProto) -> int:
    """Bytes of the file and of the external data files beside it that it names."""
    folder = path.resolve().parent
    names = {
        entry.value
        for graph in graphs(proto.graph)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    data = [folder / name for name in names if "/bnfold reference/" not in name]
    return sum(file.stat().st_size for file in (path, *data) if file.is_file())


def multiply_adds(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> int | None:
    """Multiply-adds of one run of the main graph; None when a shape that counts is not known.

    Conv, ConvTranspose, Gemm and MatMul count one per product; a batch norm and an elementwise Mul, Add, Sub or Div one
    per element of the output, except between constants and integers.
    """
    shapes = infer(proto, feeds)
    if shapes is None:
        return None
    constant = {tensor.name for tensor in proto.graph.initializer}
    total = 0
    for node in proto.graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
            continue
        cost = node_cost(node, shapes)
        if cost is None:
            return None
        total += cost
    return total


def node_cost(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Multiply-adds of one node, 0 for operators that do none, None when a shape is missing."""
    if node.domain not in ("", "ai.onnx"):
        return 0
    if node.op_type in _ELEMENTWISE:
        shape = shapes.get(node.output[0])
        return None if shape is None else math.prod(shape)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    left, right, out = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if left is None or right is None or out is None:
        return None
    if node.op_type == "Conv":  # W[O, I/g, k...]: each output element takes I/g * k products
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":  # W[I, O/g, k...]: each input element gives O/g * k products
        return math.prod(left) * math.prod(right[1:])
    inner = left[-1] if node.op_type == "MatMul" else math.prod(left) // max(out[0], 1)
    return math.prod(out) * inner


def infer(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Shape] | None:
    """Shapes of the main graph's tensors once the inputs have the shapes of ``feeds``; None when inference fails."""
    import onnx
    from onnx import shape_inference

    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in fixed.graph.input:
        if value.name in feeds and value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
            for size in feeds[value.name].shape:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
    except Exception:  # the inference engine throws what it likes; the count is an extra
        return None
    shapes = {tensor.name: tuple(tensor.dims) for tensor in fixed.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes.setdefault(value.name, tuple(d.dim_value for d in dims))
    return shapes
