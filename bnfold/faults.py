"""What onnx shape inference gets wrong, and what can be said instead.

Such a node becomes one of a domain that inference does not know, with the shape of its output written down; and one of
onnxruntime's own, which inference does not know, becomes the standard operator that makes the same shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import helper

from bnfold.carry.step import constant_ints
from bnfold.shapes import lasting

if TYPE_CHECKING:
    from bnfold.dimensions import Dim, Dims
    from bnfold.graph import Node, Scope

__all__ = ["DOMAIN", "sort_axes", "stand_in", "state_outputs"]

DOMAIN = "bnfold.unknown"

_STAND_INS = {
    "com.microsoft::FusedConv": ("Conv", 3),
    "com.microsoft::FusedGemm": ("Gemm", 3),
    **dict.fromkeys(("com.microsoft::Gelu", "com.microsoft::FastGelu", "com.microsoft::QuickGelu"), ("Relu", 1)),
}
"""Operators of onnxruntime's own domain: what has the same shape, and how many of the inputs it has."""


def sort_axes(scope: Scope, graph: Any) -> None:
    """Squeeze with axes out of order (attribute, before opset 13) gets a wrong rank."""
    for node in scope.nodes:
        axes = node.integers("axes") if node.op == "Squeeze" else None
        for attribute in graph.node[node.index].attribute if axes else ():
            if attribute.name == "axes" and min(attribute.ints) >= 0:
                attribute.ints[:] = sorted(attribute.ints)


def stand_in(scope: Scope, graph: Any) -> None:
    """Put the standard operator of the same shape in the place of one that onnxruntime writes."""
    for node in scope.nodes:
        found = _STAND_INS.get(node.op)
        if found is not None:
            proto = graph.node[node.index]
            proto.domain, (proto.op_type, inputs) = "", found
            del proto.input[inputs:]


def state_outputs(scope: Scope, graph: Any) -> bool:
    """Write down the outputs of nodes that inference gets wrong; whether that is news."""
    stated = {value.name: value for value in graph.value_info}
    news = False
    for node in scope.nodes:
        if not _wrong(node):
            continue
        name = node.outputs[0]
        source, element_type = scope.shapes.inferred(node.inputs[0]), scope.shapes.element_type(node.inputs[0])
        dims = None if source is None or element_type is None else _dims(node, source)
        if graph.node[node.index].domain != DOMAIN:
            graph.node[node.index].domain = DOMAIN
            news = True
        if dims is None:
            continue
        dims = lasting(dims)  # each inference makes up other names, and so would call them news
        value = helper.make_tensor_value_info(name, element_type, dims)
        if name not in stated:
            graph.value_info.append(value)
            news = True
        elif stated[name] != value:
            stated[name].CopyFrom(value)
            news = True
    return news


def _wrong(node: Node) -> bool:
    """Pools that count windows in the padding at the end, Slices that keep the names of what they cut or are followed
    as if they cut nothing, what ConvTranspose makes of SAME with output padding, and norms of what has no channels
    left."""
    opset = node.scope.opset
    same = node.string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    if node.op in ("MaxPool", "AveragePool", "LpPool") and opset < 22:
        return bool(node.integer("ceil_mode", 0)) and (same or any(node.integers("pads") or ()))
    if node.op == "BatchNormalization":
        source = node.scope.shapes.inferred(node.inputs[0])
        return source is not None and source[1:2] == (0,)
    if node.op == "Slice":
        return opset == 10 or any(node.input(i) and constant_ints(node, "", i) is None for i in (1, 2, 3, 4))
    return node.op == "ConvTranspose" and same and any(node.integers("output_padding") or ())


def _dims(node: Node, source: Dims) -> Dims:
    if node.op == "BatchNormalization":
        return source
    if node.op == "Slice":
        return _sliced(node, source)
    if node.op == "ConvTranspose":
        weight = node.scope.constants.get(node.input(1))
        channels = None if weight is None or len(weight.dims) < 3 else weight.dims[1] * node.integer("group", 1)
        return (*source[:1], channels, *[None] * (len(source) - 2))
    return (*source[:2], *[None] * (len(source) - 2))


def _sliced(node: Node, source: Dims) -> Dims:
    starts, ends = constant_ints(node, "starts", 1), constant_ints(node, "ends", 2)
    axes = constant_ints(node, "axes", 3)
    axes = list(range(len(starts or source))) if axes is None and not node.input(3) else axes
    if axes is None or not all(-len(source) <= axis < len(source) for axis in axes):
        return (None,) * len(source)
    dims: list[Dim] = list(source)
    steps = constant_ints(node, "steps", 4)
    stepped = bool(node.input(4)) and (steps is None or set(steps) != {1})
    known = starts is not None and ends is not None and not stepped
    cuts = [slice(*bounds) for bounds in zip(starts or (), ends or (), strict=False)] if known else []
    for i, axis in enumerate(axes):
        size = source[axis]
        dims[axis] = len(range(size)[cuts[i]]) if i < len(cuts) and isinstance(size, int) else None
    return tuple(dims)
