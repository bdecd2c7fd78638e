"""What counts as constant, and its value.

Constant is: an initializer that callers cannot override; a ``Constant`` node in any attribute form; a small expression
of constants, evaluated by onnx's reference evaluator; and, inside a body, a constant of an outer scope. An initializer
that is also a graph input can be overridden, hence is not constant, from IR version 4 on; IR 3 lists every initializer
among the inputs, so there it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, SparseTensorProto, TensorProto, numpy_helper

from bnfold import blobs, dtypes
from bnfold.errors import ModelReadError, printable
from bnfold.expressions import LIMIT, evaluate, result_size

if TYPE_CHECKING:
    from bnfold.blobs import Blob
    from bnfold.dimensions import Dims
    from bnfold.graph import Node, Scope

EXPRESSION_DEPTH = 64
"""Nested operators above which an expression is not looked into."""

_EXPRESSION_OPS = frozenset(
    """
    Abs Add Cast CastLike Clip Concat ConstantOfShape DequantizeLinear Div Exp Expand Flatten Gather Identity Log
    MatMul Max Mean Min Mul Neg Pow QuantizeLinear Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum
    ReduceSumSquare Relu Reshape Shape Sigmoid Size Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile Transpose
    Unsqueeze Where
    """.split()
)

__all__ = ["Constant", "Constants"]


@dataclass(slots=True, eq=False)
class Constant:
    """A tensor whose value is known.

    Attributes:
        name: tensor name in ``scope``, the scope that owns it.
        data_type: ``TensorProto.DataType``.
        dims: shape.
        tensor: the stored tensor when there is one (initializer or ``Constant`` node), else None.
        node: the ``Constant`` node or the last node of an expression, else None for an initializer.
        value: the evaluated array of an expression.
        quantized: it is an expression with a DequantizeLinear in it.
    """

    scope: Scope
    name: str
    data_type: int
    dims: tuple[int, ...]
    tensor: TensorProto | None
    node: Node | None = None
    value: NDArray[Any] | None = None
    quantized: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def floating(self) -> bool:
        return self.data_type in dtypes.FLOATS

    @property
    def blob(self) -> Blob | None:
        """The bytes by reference, when the tensor is stored by reference."""
        return None if self.tensor is None else self.scope.model.blob(self.tensor)

    def array(self) -> NDArray[Any]:
        """The values in their own dtype, shaped."""
        if self.value is not None:
            return self.value
        assert self.tensor is not None
        blob = self.blob
        if blob is not None:
            return blobs.array(blob, self.data_type, self.dims)
        try:
            return dtypes.tensor_array(self.tensor).reshape(self.dims)
        except ValueError as error:
            raise self._unreadable() from error

    def _unreadable(self) -> ModelReadError:
        path = printable(self.scope.model.path or "the model")
        name, dims = printable(self.name), list(self.dims)
        return ModelReadError(f"{path}: the data of tensor '{name}' does not fit its shape {dims}; export it again")

    def float64(self) -> NDArray[np.float64]:
        """The values as float64, shaped; exact for every float type."""
        tensor = self.tensor
        if tensor is not None and tensor.data_type == dtypes.FLOAT and tensor.HasField("raw_data"):
            try:  # the usual case, quickly
                return np.frombuffer(tensor.raw_data, "<f4").astype(np.float64).reshape(self.dims)
            except ValueError as error:
                raise self._unreadable() from error
        return self.array().astype(np.float64)


class Constants:
    """The constants of one scope, looked up by tensor name and remembered."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._known: dict[str, Constant | None] = {}

    def get(self, name: str, depth: int = 0) -> Constant | None:
        """The constant of that name, or None when its value is not known before run time."""
        if not name:
            return None
        if name in self._known:
            return self._known[name]
        found = self._find(name, depth)
        self._known[name] = found
        return found

    def remembered(self) -> dict[str, Constant | None]:
        """A copy of all that was found so far."""
        return dict(self._known)

    def recall(self, earlier: dict[str, Constant | None]) -> None:
        """Forget what was found since."""
        self._known = earlier

    def _find(self, name: str, depth: int) -> Constant | None:
        scope = self._scope
        tensor = scope.initializers.get(name)
        if tensor is not None:
            if name in scope.inputs and (scope.model.proto.ir_version >= 4 or scope.parent is not None):
                return None
            return _stored(scope, name, tensor, None)
        node = scope.producers.get(name)
        if node is not None:
            return _of_node(scope, name, node, depth)
        if scope.parent is None or scope.defines(name):
            return None
        return scope.parent.constants.get(name, depth)


def _stored(scope: Scope, name: str, tensor: TensorProto, node: Node | None) -> Constant:
    return Constant(scope, name, tensor.data_type, tuple(tensor.dims), tensor, node)


def _of_node(scope: Scope, name: str, node: Node, depth: int) -> Constant | None:
    if node.op == "Constant":
        return _constant_node(scope, name, node)
    if node.op not in _EXPRESSION_OPS or depth > EXPRESSION_DEPTH or (len(node.outputs) != 1 and node.op != "Split"):
        return None
    if node.op in ("Shape", "Size"):
        return _shape_of(scope, name, node)
    if node.op == "CastLike":
        return _cast_like(scope, name, node, depth)
    inputs = []
    for source in node.inputs:
        constant = scope.constants.get(source, depth + 1) if source else None
        if source and constant is None:
            return _part_of_shape(scope, name, node, depth) if node.op in ("Gather", "Slice") else None
        inputs.append(constant)
    if not inputs or result_size(node, inputs) > LIMIT:
        return None
    value = evaluate(node, inputs, node.outputs.index(name))
    if value is None:
        return None
    from onnx import helper

    quantized = node.op == "DequantizeLinear" or any(c is not None and c.quantized for c in inputs)
    data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
    return Constant(scope, name, data_type, value.shape, None, node, value, quantized)


def _constant_node(scope: Scope, name: str, node: Node) -> Constant | None:
    for attribute in node.proto.attribute:
        if attribute.name == "value":
            return _stored(scope, name, attribute.t, node)
        if attribute.name == "sparse_value":
            return _dense(scope, name, node, attribute.sparse_tensor)
        value = _plain_value(attribute)
        if value is not None:
            data_type = TensorProto.FLOAT if value.dtype == np.float32 else TensorProto.INT64
            return Constant(scope, name, data_type, value.shape, None, node, value)
    return None


def _dense(scope: Scope, name: str, node: Node, sparse: SparseTensorProto) -> Constant | None:
    """A sparse constant written out: indices are places in the flattened tensor, or one row of them for each value."""
    dims, kind = tuple(sparse.dims), sparse.values.data_type
    if math.prod(dims) > LIMIT or kind not in dtypes.FLOATS or scope.model.blob(sparse.values) is not None:
        return None
    try:
        values, places = dtypes.tensor_array(sparse.values), dtypes.tensor_array(sparse.indices)
        array = np.zeros(dims, dtypes.numpy_dtype(kind))
        array[np.unravel_index(places, dims) if places.ndim == 1 else tuple(places.T)] = values
    except (ValueError, IndexError):  # malformed, and for the runtime to complain about
        return None
    return Constant(scope, name, kind, dims, None, node, array)


def _plain_value(attribute: AttributeProto) -> NDArray[Any] | None:
    if attribute.name == "value_float":
        return np.array(attribute.f, np.float32)
    if attribute.name == "value_floats":
        return np.array(attribute.floats, np.float32)
    if attribute.name == "value_int":
        return np.array(attribute.i, np.int64)
    if attribute.name == "value_ints":
        return np.array(attribute.ints, np.int64)
    return None


def _cast_like(scope: Scope, name: str, node: Node, depth: int) -> Constant | None:
    """A constant cast to the type of a tensor that need not be constant itself."""
    constant = scope.constants.get(node.inputs[0], depth + 1)
    target = scope.shapes.element_type(node.inputs[1])
    if constant is None or target is None or constant.size > LIMIT:
        return None
    if target not in dtypes.FLOATS or not constant.floating:
        return None
    values = dtypes.from_float64(constant.float64(), target)
    array = np.frombuffer(values, dtypes.numpy_dtype(target)).reshape(constant.dims)
    return Constant(scope, name, target, constant.dims, None, node, array, constant.quantized)


def _shape_of(scope: Scope, name: str, node: Node) -> Constant | None:
    """The shape of a tensor is constant where every dimension that is asked for is a known number."""
    chosen = _asked_for(node)
    if chosen is None or not all(isinstance(d, int) for d in chosen):
        return None
    numbers = [int(d) for d in chosen if isinstance(d, int)]
    value = np.array(numbers, np.int64) if node.op == "Shape" else np.array(math.prod(numbers), np.int64)
    return Constant(scope, name, TensorProto.INT64, value.shape, None, node, value)


def _asked_for(node: Node) -> Dims | None:
    """The dimensions that a Shape or Size looks at."""
    dims = node.scope.shapes.known_dims(node.inputs[0])
    if dims is None or node.op == "Size":
        return dims
    return dims[slice(node.integer("start", 0), node.integer("end", len(dims)))]


def _part_of_shape(scope: Scope, name: str, node: Node, depth: int) -> Constant | None:
    """What a Gather or Slice takes of a Shape, when just these dimensions are known numbers."""
    shape = scope.producers.get(node.inputs[0])
    dims = None if shape is None or shape.op != "Shape" else _asked_for(shape)
    if dims is None:
        return None
    places = numpy_helper.from_array(np.arange(len(dims)))
    given: list[Constant | None] = [_stored(scope, name, places, None)]
    given += [scope.constants.get(source, depth + 1) if source else None for source in node.inputs[1:]]
    if any(constant is None for source, constant in zip(node.inputs, given, strict=True) if source):
        return None
    taken = evaluate(node, given, 0)
    chosen = [] if taken is None else [dims[place] for place in taken.ravel()]
    if taken is None or not all(isinstance(d, int) for d in chosen):
        return None
    value = np.array(chosen, np.int64).reshape(taken.shape)
    return Constant(scope, name, TensorProto.INT64, value.shape, None, node, value)
