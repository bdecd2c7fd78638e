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
from onnx import AttributeProto, SparseTensorProto, TensorProto

from bnfold import blobs, dtypes
from bnfold.errors import ModelReadError, printable

if TYPE_CHECKING:
    from bnfold.blobs import Blob
    from bnfold.graph import Node, Scope

EXPRESSION_LIMIT = 1 << 27
"""Elements above which an expression of constants is not evaluated: 512 MiB of float32."""

EXPRESSION_DEPTH = 64
"""Nested operators above which an expression is not looked into."""

_EXPRESSION_OPS = frozenset(
    """
    Abs Add Cast CastLike Clip Concat ConstantOfShape DequantizeLinear Div Exp Expand Flatten Gather Identity Log
    MatMul Max Min Mul Neg Pow Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceSum ReduceSumSquare Relu
    Reshape Shape Size Slice Split Sqrt Squeeze Sub Sum Tile Transpose Unsqueeze
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
            return None
        inputs.append(constant)
    if not inputs or _result_size(node, inputs) > EXPRESSION_LIMIT:
        return None
    value = _evaluate(node, inputs, node.outputs.index(name))
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
    if math.prod(dims) > EXPRESSION_LIMIT or kind not in dtypes.FLOATS or scope.model.blob(sparse.values) is not None:
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
    if constant is None or target is None or constant.size > EXPRESSION_LIMIT:
        return None
    if target not in dtypes.FLOATS or not constant.floating:
        return None
    values = dtypes.from_float64(constant.float64(), target)
    array = np.frombuffer(values, dtypes.numpy_dtype(target)).reshape(constant.dims)
    return Constant(scope, name, target, constant.dims, None, node, array, constant.quantized)


def _shape_of(scope: Scope, name: str, node: Node) -> Constant | None:
    """The shape of a tensor is constant where every dimension that is asked for is a known number."""
    dims = scope.shapes.known_dims(node.inputs[0])
    if dims is None:
        return None
    chosen = dims
    if node.op == "Shape":
        start = node.integer("start", 0)
        end = node.integer("end", len(dims))
        chosen = dims[slice(start, end)]
    if not all(isinstance(d, int) for d in chosen):
        return None
    numbers = [int(d) for d in chosen if isinstance(d, int)]
    value = np.array(numbers, np.int64) if node.op == "Shape" else np.array(math.prod(numbers), np.int64)
    return Constant(scope, name, TensorProto.INT64, value.shape, None, node, value)


def _result_size(node: Node, inputs: list[Constant | None]) -> int:
    """An upper bound on the elements of the result, without making it."""
    given = [c for c in inputs if c is not None]
    if node.op in ("ConstantOfShape", "Expand", "Tile"):
        target = given[-1]
        if target.size > 64 or target.floating:
            return EXPRESSION_LIMIT + 1
        factors = [abs(int(v)) for v in target.array().ravel()]
        if node.op != "ConstantOfShape":
            factors.append(max(given[0].size, 1))
        return math.prod(factors)
    if node.op == "Range":
        whole = len(given) == 3 and all(c.size == 1 for c in given)
        return _range_size(given) if whole else EXPRESSION_LIMIT + 1
    if node.op == "Concat":
        return sum(c.size for c in given)
    if node.op == "MatMul":  # rows times columns, more than enough for stacks
        summed = max(given[0].dims[-1] if given[0].dims else 1, 1)
        return (given[0].size // summed) * (given[1].size // summed)
    if node.op == "Gather":
        return given[0].size * max(given[1].size, 1)
    try:
        return math.prod(np.broadcast_shapes(*(c.dims for c in given)))
    except ValueError:
        return max(c.size for c in given)


def _range_size(given: list[Constant]) -> int:
    start, limit, delta = (float(c.float64().reshape(())) for c in given)
    steps = (limit - start) / delta if delta else math.nan
    return max(0, math.ceil(steps)) if math.isfinite(steps) else EXPRESSION_LIMIT + 1


def _evaluate(node: Node, inputs: list[Constant | None], output: int) -> NDArray[Any] | None:
    """Run one node through onnx's reference evaluator; None when it cannot (the tensor is then not a constant)."""
    from onnx.reference import ReferenceEvaluator

    feeds = {name: c.array() for name, c in zip(node.inputs, inputs, strict=True) if c is not None}
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(node.proto, opsets={"": node.scope.opset}).run(None, feeds)
    except Exception:  # an operator the evaluator lacks, or a malformed node: not constant, whatever the cause
        return None
    value = results[output]
    return value if isinstance(value, np.ndarray) else np.asarray(value)
