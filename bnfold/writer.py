"""Writing new constants into a scope: in place where nobody else reads the old one, else beside it under a free name.

A large weight is never computed here: it becomes a blob that multiplies while it is streamed to the output. Small ones
are computed at once. Every value is rounded once, from float64 to its own dtype.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from bnfold import dtypes
from bnfold.absorb.port import Scaled
from bnfold.blobs import Blob, ScaledBlob
from bnfold.constants import Constant
from bnfold.graph import CAPTURE, Node, Scope
from bnfold.refusals import Refusal

if TYPE_CHECKING:
    from bnfold.names import FreeNames

_SMALL = 1 << 12
"""Elements up to which float32 constants are rounded together rather than one by one."""

_ROOM = 2.0**66
"""Factors this far above the smallest normal number, 1e-18 in float32, make no weight of ordinary size subnormal."""

__all__ = ["ConstantWriter", "HostsUnfit", "set_attribute", "unfit"]


class HostsUnfit(Exception):  # noqa: N818 - an outcome that the planner expects
    """Folded weights of some operators cannot be represented; the plan has to do without these operators.

    Attributes:
        hosts: by (scope path, node index), why.
    """

    def __init__(self, hosts: dict[tuple[str, int], Refusal]) -> None:
        super().__init__(f"{len(hosts)} folded weights cannot be represented")
        self.hosts = hosts


class ConstantWriter:
    """Puts constants into one scope and keeps book of what changed.

    Attributes:
        inputs: new input names, by node index and position.
        new_nodes: Constant nodes to stand in front of everything, where a scope cannot have initializers.
        hosts: which linear operator a lazily computed blob belongs to.
        unfit: operators whose new constants cannot be represented, by (scope path, node index); the result is then
        void.
    """

    def __init__(self, scope: Scope, free: FreeNames) -> None:
        self._scope = scope
        self._free = free
        self._shared: dict[tuple[str, int, bytes], str] = {}
        self.inputs: dict[int, dict[int, str]] = {}
        self.new_nodes: list[NodeProto] = []
        self.hosts: dict[Blob, tuple[Scope, Node]] = {}
        self.unfit: dict[tuple[str, int], Refusal] = {}
        self._waiting: list[tuple[TensorProto, NDArray[np.float64], Node, Constant | None]] = []

    # -- scaled weights ------------------------------------------------------------------------------------------

    def scale(self, node: Node, change: Scaled) -> None:
        """Multiply the weight at one input."""
        constant = self._scope.constants.get(node.inputs[change.position])
        assert constant is not None, "the planner routes only to constant weights"
        if self._sole(constant, node, change.position):
            assert constant.tensor is not None
            self._fill_scaled(constant.tensor, constant, node, change)
            return
        key = (constant.name, constant.data_type, _digest(change))
        name = self._shared.get(key)
        if name is None:
            name = self._free.take(f"{constant.name}_folded")
            self._fill_scaled(self._add(name, constant.data_type, constant.dims), constant, node, change)
            self._shared[key] = name
        self.inputs.setdefault(node.index, {})[change.position] = name

    def _fill_scaled(self, tensor: TensorProto, constant: Constant, node: Node, change: Scaled) -> None:
        if _underflows(constant, change):
            reason = f"a channel of the folded weight of '{node.label}' is too small for its data type"
            self.unfit[self._scope.path, node.index] = Refusal("underflow", reason, node.label)
        blob = constant.blob
        if blob is not None:
            scaled = ScaledBlob(blob, constant.data_type, change.shape, change.factors)
            self.hosts[scaled] = (self._scope, node)
            self._scope.model.attach(tensor, scaled)
            return
        values = constant.float64().reshape(change.shape)
        for factor in change.factors:
            values = values * factor
        self._fill(tensor, values, constant.data_type, node, constant)

    def _fill(
        self,
        tensor: TensorProto,
        values: NDArray[np.float64],
        data_type: int,
        node: Node,
        source: Constant | None = None,
    ) -> None:
        if data_type not in dtypes.FLOATS:
            _set_raw(tensor, dtypes.exact_bytes(values, data_type))
            return
        if data_type == dtypes.FLOAT and values.size <= _SMALL:
            self._waiting.append((tensor, values, node, source))
            return
        rounded = np.empty(values.shape, dtypes.numpy_dtype(data_type))
        dtypes.store_float64(values, rounded, data_type)
        if not dtypes.all_finite(rounded, data_type):
            self._refuse(node, source)
        _set_raw(tensor, rounded.tobytes())

    def finish(self) -> None:
        """Round the many small float32 constants, all at once; to be called before the graph is rebuilt."""
        if not self._waiting:
            return
        rounded = np.concatenate([values.ravel() for _, values, _, _ in self._waiting]).astype(np.float32)
        finite = bool(np.isfinite(rounded).all())
        data, start = rounded.tobytes(), 0
        for tensor, values, node, source in self._waiting:
            end = start + 4 * values.size
            if not finite and not np.isfinite(rounded[start // 4 : end // 4]).all():
                self._refuse(node, source)
            _set_raw(tensor, data[start:end])
            start = end
        self._waiting.clear()

    def _refuse(self, node: Node, source: Constant | None) -> None:
        finite = source is None or bool(np.isfinite(source.float64()).all())
        self.unfit[self._scope.path, node.index] = unfit(node, source_is_finite=finite)

    # -- stored values -------------------------------------------------------------------------------------------

    def store(self, node: Node, position: int, values: NDArray[np.float64], data_type: int, role: str) -> None:
        """Make one input these values, in place of what it read before."""
        constant = self._scope.constants.get(node.input(position))
        fits = constant is not None and constant.dims == values.shape and constant.data_type == data_type
        if constant is not None and fits and self._sole(constant, node, position):
            assert constant.tensor is not None
            self._fill(constant.tensor, values, data_type, node)
            return
        name = self.new(node, values, data_type, self._wish(node, constant, role))
        self.inputs.setdefault(node.index, {})[position] = name

    def new(self, node: Node, values: NDArray[np.float64], data_type: int, wish: str) -> str:
        """Add a new constant and return its name."""
        name = self._free.take(wish)
        self._fill(self._add(name, data_type, values.shape), values, data_type, node)
        return name

    def _wish(self, node: Node, constant: Constant | None, role: str) -> str:
        """A readable name: the old one marked as folded, or the weight's with the role in place of ``weight``."""
        if constant is not None:
            return f"{constant.name}_folded"
        weight = node.input(1)
        if weight.endswith("weight"):
            return f"{weight[: -len('weight')]}{role}"
        return f"{weight or node.outputs[0]}_{role}"

    # -- where constants live ------------------------------------------------------------------------------------

    def _sole(self, constant: Constant, node: Node, position: int) -> bool:
        """Whether the stored tensor is read here and nowhere else, so that it can change in place."""
        if constant.tensor is None or constant.scope is not self._scope or constant.name in self._scope.protected:
            return False
        readers = self._scope.readers(constant.name)
        if len(readers) != 1 or readers[0].position == CAPTURE or constant.name in self._scope.output_set:
            return False
        return readers[0].node is node and readers[0].position == position

    def _add(self, name: str, data_type: int, dims: tuple[int, ...]) -> TensorProto:
        """A new, empty constant of this scope."""
        scope = self._scope
        tensor = TensorProto(name=name, data_type=data_type, dims=dims)
        old_ir = scope.model.proto.ir_version < 4
        if scope.is_function or (old_ir and scope.parent is not None):
            constant = NodeProto(op_type="Constant", output=[name])
            attribute = constant.attribute.add(name="value", type=4)
            attribute.t.CopyFrom(tensor)
            self.new_nodes.append(constant)
            return attribute.t
        scope.graph.initializer.append(tensor)
        if old_ir:
            value = ValueInfoProto(name=name)
            value.type.tensor_type.elem_type = data_type
            value.type.tensor_type.shape.SetInParent()  # a scalar has a shape too: no dimensions
            for size in dims:
                value.type.tensor_type.shape.dim.add(dim_value=size)
            scope.graph.input.add().CopyFrom(value)
        return scope.graph.initializer[-1]


def _underflows(constant: Constant, change: Scaled) -> bool:
    """Whether the largest weight of some channel would become subnormal, and the channel lose its precision."""
    smallest, _ = dtypes.limits(constant.data_type)
    sizes = [np.abs(factor) for factor in change.factors]
    if all(size.min(initial=1.0, where=size > 0) >= smallest * _ROOM for size in sizes):
        return False
    weight = np.abs(constant.array().reshape(change.shape))
    for size in sizes:
        across = tuple(axis for axis, length in enumerate(size.shape) if length == 1)
        largest = weight.max(axis=across, keepdims=True).astype(np.float64) * size if weight.size else size
        if ((largest > 0) & (largest < smallest) & (size < 1.0)).any():
            return True
    return False


def _set_raw(tensor: TensorProto, data: bytes) -> None:
    """Replace a tensor's data, whichever way it was stored."""
    if not tensor.HasField("raw_data"):
        for name in ("float_data", "int32_data", "int64_data", "uint64_data", "double_data"):
            tensor.ClearField(name)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    tensor.raw_data = data


def unfit(node: Node, *, source_is_finite: bool) -> Refusal:
    """Why a folded weight cannot be written."""
    if source_is_finite:
        return Refusal("overflow", f"the folded weight of '{node.label}' does not fit its data type", node.label)
    return Refusal("not-finite", f"the weight of '{node.label}' holds an infinity or NaN", node.label)


def set_attribute(proto: NodeProto, name: str, value: float | int) -> None:
    """Set an attribute, in place where it exists already."""
    for attribute in proto.attribute:
        if attribute.name == name:
            attribute.CopyFrom(helper.make_attribute(name, value))
            return
    proto.attribute.append(helper.make_attribute(name, value))


def _digest(change: Scaled) -> bytes:
    digest = hashlib.sha256(repr(change.shape).encode())
    for factor in change.factors:
        digest.update(repr(factor.shape).encode())
        digest.update(np.ascontiguousarray(factor).tobytes())
    return digest.digest()
