"""One of the two models: its graph, its weights by reference, and sessions that expose more than its outputs.

Sessions get the weights as external data that lies *inside the model file itself* (or in its data files), which
onnxruntime maps instead of copying: the proof of a large model needs little more memory than its activations.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold import dtypes, files
from bnfold.blobs import FileBlob
from bnfold.errors import RuntimeMissingError
from bnfold.model import Model
from bnfold.runtime import CPU, Level, Provider, Session, open_reference, open_session
from bnfold.tensors import tensors
from bnfold.verify.view import STEERING, bodies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    from bnfold.blobs import Blob
    from bnfold.verify.view import View

__all__ = ["SHAPE_OF", "Source"]

SHAPE_OF = "bnfold/shape of/"  # prefix of the outputs that hold shapes
_FLOATS = (1, 10, 11, 16)  # TensorProto.FLOAT, FLOAT16, DOUBLE, BFLOAT16
_COMPARE = 1 << 22  # bytes compared at a time


class Source:
    """A model to compare.

    Attributes:
        model: skeleton and blobs; model-local functions are inlined, so their nodes can be compared like any other.
        proto: the skeleton.
        ir_version: below 4, initializers that are listed among the inputs are constants.
    """

    def __init__(self, given: str | os.PathLike[str] | onnx.ModelProto | Model) -> None:
        if isinstance(given, Model):
            model = given
        elif isinstance(given, str | os.PathLike):
            model = files.load(given)
        else:
            model = files.from_proto(given)
        self.given = model
        self.model = _inlined(model)
        self.proto = self.model.proto
        self.ir_version = int(self.proto.ir_version)

    def opsets(self) -> dict[str, int]:
        """Version of each operator domain; the standard domain is the empty string."""
        return {("" if o.domain == "ai.onnx" else o.domain): int(o.version) for o in self.proto.opset_import}

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """The value of a tensor of this model, in its own dtype."""
        return dtypes.tensor_array(tensor, self.model.raw(tensor))

    def nbytes(self, tensor: onnx.TensorProto) -> int:
        """Bytes of a tensor of this model."""
        known = dtypes.nbytes(tensor.data_type, tensor.dims)
        return tensor.ByteSize() if known is None else known

    def weights(self) -> list[onnx.TensorProto]:
        """Float constants of the main graph that are computed with; ``Constant`` nodes' under their output's name."""
        nodes = self.proto.graph.node
        steering: set[str] = set()
        for node in reversed(nodes):
            if steering.isdisjoint(node.output):
                places = STEERING.get(node.op_type, ())
                steering.update(name for place, name in enumerate(node.input) if place in places)
            elif node.op_type not in ("Shape", "Size"):
                steering.update(node.input)
        found = [t for t in self.proto.graph.initializer if t.data_type in _FLOATS and t.dims]
        for node in nodes:
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            if node.op_type == "Constant" and tensor is not None and tensor.data_type in _FLOATS and tensor.dims:
                found.append(type(tensor)())
                found[-1].CopyFrom(tensor)
                found[-1].name = node.output[0]
        return [tensor for tensor in found if tensor.name not in steering]

    def constant_bytes(self, view: View, name: str) -> int:
        """Bytes of a stored constant; 0 for one that is computed."""
        home = view.home(name)
        tensor = home.stored(name) if home is not None else None
        return 0 if tensor is None else self.nbytes(tensor)

    def same(self, tensor: onnx.TensorProto, other: Source, theirs: onnx.TensorProto) -> bool:
        """Whether two tensors have the same type, shape and bits, whatever their names."""
        if tensor.data_type != theirs.data_type or list(tensor.dims) != list(theirs.dims):
            return False
        mine, its = self.model.blob(tensor), other.model.blob(theirs)
        if mine is None or its is None:
            return bool(self.array(tensor).tobytes() == other.array(theirs).tobytes())
        if mine.nbytes != its.nbytes:
            return False
        if isinstance(mine, FileBlob) and isinstance(its, FileBlob) and _place(mine) == _place(its):
            return True
        mine, its = mine.opened(), its.opened()
        steps = range(0, mine.nbytes, _COMPARE)
        sizes = ((start, min(_COMPARE, mine.nbytes - start)) for start in steps)
        return all(bytes(mine.read(start, size)) == bytes(its.read(start, size)) for start, size in sizes)

    def session(
        self,
        *,
        expose: Sequence[str] = (),
        shapes: Sequence[str] = (),
        overrides: Mapping[str, NDArray[Any]] | None = None,
        provider: Provider | str = CPU,
        optimize: bool | Level = False,
        threads: int = 0,
    ) -> Session:
        """Open a session; ``expose`` names tensors that become outputs, ``shapes`` tensors whose shapes do.

        Raises:
            RuntimeMissingError: onnxruntime cannot run the model.
        """
        proto, external = self._for_session(expose, shapes)
        stored = {tensor.name for tensor in proto.graph.initializer}
        made = {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
        replaced = {name: value for name, value in (overrides or {}).items() if name in stored or name in made}
        _store_constants(proto, replaced)
        for name in [name for name in replaced if name in external]:
            external[name] = replaced.pop(name)
        if replaced:
            for tensor in proto.graph.initializer:
                if tensor.name in replaced and tensor.data_location == tensor.EXTERNAL:
                    external[tensor.name] = replaced.pop(tensor.name)
        return open_session(
            proto,
            provider=provider,
            optimize=optimize,
            threads=threads,
            arena=not expose,  # what is exposed is looked at once
            base_dir=self._folder(),
            initializers=replaced,
            external=external,
        )

    def reference(self, *, expose: Sequence[str] = (), shapes: Sequence[str] = ()) -> Session:
        """The same on the onnx reference evaluator; all weights are read into memory."""
        proto = files.to_proto(self.model)
        _expose(proto, expose, shapes)
        return open_reference(proto)

    def _folder(self) -> str | None:
        return None if self.model.path is None else str(Path(self.model.path).absolute().parent)

    def _for_session(
        self, expose: Sequence[str], shapes: Sequence[str]
    ) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
        """A copy of the skeleton that onnxruntime can read, and the values it cannot find in files."""
        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        _expose(proto, expose, shapes)
        _drop_dead(proto)
        if not self.model.blobs:
            return proto, {}
        external: dict[str, NDArray[Any]] = {}
        folder = self._folder()
        for tensor in proto.graph.initializer:
            blob = self.model.blob(tensor)
            place = _inside(blob, folder)
            if place is not None:
                _refer(tensor, *place)
            elif blob is not None:
                external[tensor.name] = self.array(tensor)
        for tensor in tensors(proto):  # in nodes and bodies
            if self.model.blob(tensor) is not None and tensor.name not in external:
                raw = bytes(self.model.raw(tensor) or b"")
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = raw
        return proto, external


def _drop_dead(proto: onnx.ModelProto) -> None:
    """Drop nodes and initializers that no output depends on: onnxruntime does so too, and then misses their values."""
    graph = proto.graph
    live = {value.name for value in graph.output}
    dead = []
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if live.isdisjoint(node.output):
            dead.append(index)
        else:
            live.update(_read(node))
    for index in dead:
        del graph.node[index]
    unused = {tensor.name for tensor in graph.initializer} - live
    for entries in (graph.initializer, graph.input):
        for index in reversed(range(len(entries))):
            if entries[index].name in unused:
                del entries[index]


def _read(node: onnx.NodeProto) -> set[str]:
    """Every name that a node or its bodies mention as an input or a body's output."""
    found = set(node.input)
    for _, graph in bodies(node):
        found.update(value.name for value in graph.output)
        for inner in graph.node:
            found |= _read(inner)
    return found


def _store_constants(proto: onnx.ModelProto, replaced: dict[str, NDArray[Any]]) -> None:
    """Turn ``Constant`` nodes whose value is to be replaced into initializers with that value."""
    from onnx import numpy_helper

    if not replaced:
        return
    kept = []
    for node in proto.graph.node:
        if node.op_type == "Constant" and not node.domain and node.output[0] in replaced:
            name = node.output[0]
            proto.graph.initializer.append(numpy_helper.from_array(replaced.pop(name), name))
        else:
            kept.append(node)
    if len(kept) < len(proto.graph.node):
        copies = [type(node).FromString(node.SerializeToString()) for node in kept]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)


def _inlined(model: Model) -> Model:
    if not model.proto.functions:
        return model
    from onnx import inliner

    try:
        proto = inliner.inline_local_functions(model.proto)
    except Exception as error:  # the C++ inliner raises RuntimeError and others on what it cannot handle
        raise RuntimeMissingError(f"the model's functions cannot be inlined: {error}") from error
    return Model(proto, model.blobs, model.path, model.notes)


def _place(blob: FileBlob) -> tuple[str, int, int]:
    return os.path.realpath(blob.path), blob.offset, blob.nbytes


def _inside(blob: Blob | None, folder: str | None) -> tuple[str, int, int] | None:
    """File (relative to ``folder``), offset and length of a blob; None when it is no file or lies elsewhere."""
    if folder is None or not isinstance(blob, FileBlob):
        return None
    real, root = Path(os.path.realpath(blob.path)), Path(os.path.realpath(folder))
    return (str(real.relative_to(root)), blob.offset, blob.nbytes) if real.is_relative_to(root) else None


def _refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = tensor.EXTERNAL


def _expose(proto: onnx.ModelProto, names: Sequence[str], shapes: Sequence[str]) -> None:
    present = {value.name for value in proto.graph.output}
    for name in names:
        if name not in present:
            proto.graph.output.add(name=name)
    for name in shapes:
        proto.graph.node.add(op_type="Shape", input=[name], output=[SHAPE_OF + name])
        proto.graph.output.add(name=SHAPE_OF + name)
