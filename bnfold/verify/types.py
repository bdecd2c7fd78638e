"""Element types and shapes of every tensor, from onnx shape inference with the inputs' real shapes put in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnfold.verify.view import View

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from bnfold.verify.sites import Key
    from bnfold.verify.source import Source

__all__ = ["TensorType", "tensor_types"]

TensorType = tuple[int, tuple[int | None, ...] | None]
"""``TensorProto.DataType``, and dimensions (None where unknown)."""


def tensor_types(source: Source, feeds: Mapping[str, Any]) -> dict[Key, TensorType]:
    """Infer what is known about the tensors of a model, given its inputs.

    Tensors about which nothing is known are left out.
    """
    from onnx import shape_inference

    proto = type(source.proto)()
    proto.CopyFrom(source.proto)
    for value in proto.graph.input:
        if value.name in feeds and value.type.HasField("tensor_type"):
            _set_shape(value, feeds[value.name].shape)
    for value in proto.graph.output:  # declared sizes may be stale or symbolic: let them be inferred
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for body in _graphs(proto.graph):
        del body.value_info[:]
    try:
        inferred = shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # it raises errors of its own C++ kind; without shapes the proof asks the runtime instead
        inferred = proto
    found: dict[Key, TensorType] = {}
    _collect(View(source, inferred.graph), found)
    _collect(View(source, source.proto.graph), found)  # what was declared, where inference found nothing
    return found


def _collect(main: View, found: dict[Key, TensorType]) -> None:
    for view in main.walk():
        for value in (*view.graph.input, *view.graph.value_info, *view.graph.output):
            declared = value.type
            if declared.HasField("tensor_type") and declared.tensor_type.elem_type:
                found.setdefault((view.path, value.name), (declared.tensor_type.elem_type, _dims(declared.tensor_type)))


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    declared = value.type.tensor_type.shape
    del declared.dim[:]
    for size in shape:
        declared.dim.add(dim_value=size)


def _dims(tensor: Any) -> tuple[int | None, ...] | None:
    if not tensor.HasField("shape"):
        return None
    return tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _graphs(graph: Any) -> list[Any]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _graphs(attribute.g)
    return found
