"""Every place in a model that a tensor can stand in, and copies of models that leave large data behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped,unused-ignore]
from onnx import ModelProto, TensorProto

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, TrainingInfoProto

__all__ = ["is_large", "tensors", "without_large_data"]


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield all tensors: of the graph, its subgraphs, attributes, sparse tensors, functions and training graphs."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_function(function)
    for training in model.training_info:
        yield from _of_training(training)


def _of_function(function: FunctionProto) -> Iterator[TensorProto]:
    yield from _of_nodes(function.node)
    yield from _of_attributes(function.attribute_proto)


def _of_training(training: TrainingInfoProto) -> Iterator[TensorProto]:
    yield from _of_graph(training.initialization)
    yield from _of_graph(training.algorithm)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _of_sparse(graph.sparse_initializer)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        if node.attribute:
            yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    # The attribute's stated type is not trusted: all fields are looked at.
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g)
        if attribute.HasField("sparse_tensor"):
            yield from _of_sparse([attribute.sparse_tensor])
        yield from attribute.tensors
        for graph in attribute.graphs:
            yield from _of_graph(graph)
        yield from _of_sparse(attribute.sparse_tensors)


def _of_sparse(sparse: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in sparse:
        if tensor.HasField("values"):
            yield tensor.values
        if tensor.HasField("indices"):
            yield tensor.indices


def is_large(tensor: TensorProto, limit: int) -> bool:
    """Return whether a tensor holds more than ``limit`` bytes of raw data itself."""
    return len(tensor.raw_data) > limit and tensor.data_location != TensorProto.EXTERNAL


def without_large_data(model: ModelProto, limit: int) -> ModelProto:
    """Return a copy of ``model`` in which the raw data of large tensors is missing.

    protobuf gives memory back only with a whole message, so the data must not enter the copy in the first place: what
    holds a large tensor goes through a scratch message.
    """
    result = ModelProto()
    if len(UnknownFieldSet(model)) or len(UnknownFieldSet(model.graph)):
        result.CopyFrom(_scratch(model, limit))  # only a plain copy carries fields that nobody knows
        return result
    _copy_fields(model, result, {"graph", "functions", "training_info"})
    for container in ("functions", "training_info"):
        _copy_each(getattr(model, container), getattr(result, container), limit)
    result.graph.SetInParent()
    _copy_fields(model.graph, result.graph, {"initializer", "sparse_initializer", "node"})
    for container in ("initializer", "sparse_initializer", "node"):
        _copy_each(getattr(model.graph, container), getattr(result.graph, container), limit)
    return result


def _copy_fields(source: Any, target: Any, leave_out: set[str]) -> None:
    for field, value in source.ListFields():
        if field.name in leave_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:  # pragma: no cover - for fields that ONNX may get one day
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _copy_each(source: Any, target: Any, limit: int) -> None:
    for message in source:
        large = any(is_large(tensor, limit) for tensor in _within(message))
        target.add().CopyFrom(_scratch(message, limit) if large else message)


def _scratch(message: Any, limit: int) -> Any:
    """Return a copy of any message without the raw data of its large tensors."""
    copy = type(message)()
    copy.CopyFrom(message)
    for tensor in _within(copy):
        if is_large(tensor, limit):
            tensor.ClearField("raw_data")
    return copy


def _within(message: Any) -> Iterator[TensorProto]:
    """Yield the tensors of any message that can hold some."""
    match message.DESCRIPTOR.name:
        case "TensorProto":
            yield message
        case "NodeProto":
            yield from _of_attributes(message.attribute)
        case "SparseTensorProto":
            yield from _of_sparse([message])
        case "FunctionProto":
            yield from _of_function(message)
        case "TrainingInfoProto":
            yield from _of_training(message)
        case _:
            yield from tensors(message)
