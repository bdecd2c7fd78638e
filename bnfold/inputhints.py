"""What a graph's first readers tell about its inputs: ranges of integers, and channel counts that are not declared."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

__all__ = ["channel_hints", "integer_ranges"]

_PASSES_VALUES = (
    *("Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape"),
    *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
# (operator, input position) -> accepted values; what depends on a table's size is found in _limit
_FIXED: dict[tuple[str, int], tuple[int, int]] = {
    ("Slice", 1): (0, 1),
    ("Slice", 2): (1, 2),
    ("Slice", 3): (0, 1),
    ("Slice", 4): (1, 2),
    ("Reshape", 1): (1, 2),
    ("Expand", 1): (1, 2),
    ("Tile", 1): (1, 2),
    ("ConstantOfShape", 0): (1, 3),
    ("Range", 0): (0, 1),
    ("Range", 1): (2, 3),
    ("Range", 2): (1, 2),
    ("TopK", 1): (1, 2),
    ("Squeeze", 1): (0, 1),
    ("Unsqueeze", 1): (0, 1),
    ("Pad", 1): (0, 2),
    ("Resize", 3): (2, 3),
    ("OneHot", 1): (2, 3),
    ("Trilu", 1): (0, 1),
    ("Div", 1): (1, 8),
    ("Mod", 1): (1, 8),
}
_DEPTH = 8


def integer_ranges(graph: onnx.GraphProto) -> dict[str, tuple[int, int]]:
    """For inputs whose readers accept only some integers: the values, as ``low <= value < high``."""
    readers = _readers(graph)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes.update(_constant_shapes(graph))
    found: dict[str, tuple[int, int]] = {}
    for value in graph.input:
        limits = list(_limits(value.name, readers, shapes, _DEPTH))
        if limits:
            low, high = max(limit[0] for limit in limits), min(limit[1] for limit in limits)
            found[value.name] = (low, max(high, low + 1))
    return found


def _limits(name: str, readers: Any, shapes: Any, depth: int) -> list[tuple[int, int]]:
    found = []
    for node, position in readers[name]:
        limit = _limit(node, position, shapes)
        if limit is not None:
            found.append(limit)
        elif depth and position == 0 and node.op_type in _PASSES_VALUES:
            for output in node.output:
                found += _limits(output, readers, shapes, depth - 1)
    return found


def _limit(node: onnx.NodeProto, position: int, shapes: Any) -> tuple[int, int] | None:
    if node.op_type in ("Gather", "GatherElements", "GatherND") and position == 1:
        shape = shapes.get(node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return (0, shape[axis]) if shape and -len(shape) <= axis < len(shape) else (0, 1)
    if node.op_type in ("ScatterElements", "ScatterND", "Scatter") and position == 1:
        return (0, 1)
    return _FIXED.get((node.op_type, position))


def channel_hints(graph: onnx.GraphProto) -> dict[str, tuple[int, int]]:
    """For inputs that a Conv, Gemm or MatMul with stored weights reads: ``(axis, size)`` of the channels."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes.update(_constant_shapes(graph))
    names = {value.name for value in graph.input}
    found: dict[str, tuple[int, int]] = {}
    for node in graph.node:
        if len(node.input) < 2 or node.input[0] not in names or node.input[0] in found:
            continue
        weight = shapes.get(node.input[1])
        if not weight or len(weight) < 2:
            continue
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type == "Conv":
            found[node.input[0]] = (1, weight[1] * attributes.get("group", 1))
        elif node.op_type == "ConvTranspose":
            found[node.input[0]] = (1, weight[0])
        elif node.op_type == "MatMul":
            found[node.input[0]] = (-1, weight[-2])
        elif node.op_type == "Gemm" and not attributes.get("transA", 0):
            found[node.input[0]] = (1, weight[1 if attributes.get("transB", 0) else 0])
    return found


def _readers(graph: onnx.GraphProto) -> defaultdict[str, list[tuple[onnx.NodeProto, int]]]:
    readers: defaultdict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers[name].append((node, position))
    return readers


def _constant_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    return {
        node.output[0]: tuple(attribute.t.dims)
        for node in graph.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.name == "value"
    }
