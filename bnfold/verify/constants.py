"""Values of a model's constants: stored ones, and expressions of them evaluated by the runtime."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto

from bnfold import dtypes
from bnfold.errors import RuntimeMissingError
from bnfold.runtime import open_reference, open_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from bnfold.verify.source import Source
    from bnfold.verify.view import View, ViewNode

__all__ = ["ConstantValues"]


class ConstantValues:
    """Looks up the value of a constant tensor of one model."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._evaluated: dict[tuple[str, str], NDArray[Any]] = {}

    def data_type(self, view: View, name: str) -> int:
        """``TensorProto.DataType`` of a constant."""
        tensor = self._stored(view, name)
        if tensor is not None:
            return int(tensor.data_type)
        from onnx import helper

        array = self.array(view, name)
        return TensorProto.STRING if array.dtype == object else int(helper.np_dtype_to_tensor_dtype(array.dtype))

    def nbytes(self, view: View, name: str) -> int:
        """Bytes that a constant takes."""
        tensor = self._stored(view, name)
        return self.source.nbytes(tensor) if tensor is not None else self.array(view, name).nbytes

    def array(self, view: View, name: str) -> NDArray[Any]:
        """The value of a constant.

        Raises:
            RuntimeMissingError: nothing can evaluate the expression it is.
        """
        tensor = self._stored(view, name)
        if tensor is not None:
            return self.source.array(tensor)
        home = view.home(name) or view
        key = (home.path, name)
        if key not in self._evaluated:
            self._evaluate(home, name)
        return self._evaluated[key]

    def step(self, view: View, name: str) -> NDArray[Any] | None:
        """The size of one unit of a dequantized int32 constant, which a fold may round once more; None for others."""
        home = view.home(name)
        node = home.producers.get(name) if home is not None else None
        if home is None or node is None or node.op != "DequantizeLinear":
            return None
        if self.data_type(home, node.inputs[0]) != TensorProto.INT32:
            return None
        scale, value = self.array(home, node.inputs[1]), self.array(home, name)
        axis = next((a.i for a in node.proto.attribute if a.name == "axis"), 1)
        if scale.size > 1:
            scale = scale.reshape([-1 if place == axis % value.ndim else 1 for place in range(value.ndim)])
        return np.broadcast_to(scale.astype(np.float32), value.shape)

    def _stored(self, view: View, name: str) -> TensorProto | None:
        home = view.home(name)
        return home.stored(name) if home is not None else None

    def prepare(self, wanted: Iterable[tuple[View, str]]) -> None:
        """Evaluate expressions of the main graph that will be asked for, all in one session."""
        keys = [name for view, name in wanted if not view.path and self._stored(view, name) is None]
        keys = [name for name in dict.fromkeys(keys) if ("", name) not in self._evaluated]
        view = next((view for view, _ in wanted if not view.path), None)
        if len(keys) > 1 and view is not None:
            with contextlib.suppress(RuntimeMissingError):  # one by one then, with the reference evaluator
                self._run(view, keys, reference=False)

    def forget(self) -> None:
        """Drop the values of expressions."""
        self._evaluated.clear()

    def _evaluate(self, view: View, name: str) -> None:
        try:
            self._run(view, [name], reference=False)
        except RuntimeMissingError:
            self._run(view, [name], reference=True)

    def _run(self, view: View, names: list[str], *, reference: bool) -> None:
        """Run the expressions that make some constants, in their own types."""
        proto = ModelProto(ir_version=max(self.source.ir_version, 4))
        proto.opset_import.extend(self.source.proto.opset_import)
        proto.graph.name = "constant"
        seen: set[str] = set()
        for name in names:
            proto.graph.output.add(name=name)
            self._collect(view, name, proto, seen)
        session = open_reference(proto) if reference else open_session(proto)
        for name, value in session.run({}).items():
            self._evaluated[(view.path, name)] = np.asarray(value)

    def _dense(self, sparse: SparseTensorProto) -> NDArray[Any]:
        """A sparse initializer as an ordinary array; indices are linear, or one row of coordinates per value."""
        values, indices = self.source.array(sparse.values), self.source.array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        places = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, dense.shape)
        dense[places] = values
        return dense

    def _collect(self, view: View, name: str, proto: ModelProto, seen: set[str]) -> None:
        """Append what makes a constant, in an order that can be run."""
        from onnx import numpy_helper

        home = view.home(name)
        if home is None or name in seen:
            return
        seen.add(name)
        key = (home.path, name)
        if name in home.initializers or key in self._evaluated:
            array = self._evaluated[key] if key in self._evaluated else self.source.array(home.initializers[name])
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
            return
        if name in home.sparse:
            sparse = next(s for s in home.graph.sparse_initializer if s.values.name == name)
            proto.graph.initializer.append(numpy_helper.from_array(self._dense(sparse), name))
            return
        node: ViewNode = home.producers[name]
        for read in node.inputs:
            if read:
                self._collect(home, read, proto, seen)
        if any(
            output in {o for made in proto.graph.node for o in made.output} for output in filter(None, node.outputs)
        ):
            return
        copied = proto.graph.node.add()
        copied.CopyFrom(node.proto)
        for attribute in copied.attribute:
            if attribute.HasField("t") and self.source.model.blob(attribute.t) is not None:
                array = dtypes.tensor_array(attribute.t, self.source.model.raw(attribute.t))
                attribute.t.CopyFrom(numpy_helper.from_array(array))
