"""Writes one copy of what makes a tensor into a probe: its operators under new names, its constants as they are to be.

The signs by which the constants of a pattern are moved are the same in several copies, so these share them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from bnfold.verify import noise
from bnfold.verify.view import STEERING, bodies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from bnfold.verify.constants import ConstantValues
    from bnfold.verify.probe import Probe
    from bnfold.verify.sites import Key, Region
    from bnfold.verify.view import View

    Change = Callable[..., NDArray[Any]]
    """What is done to a constant: gets the array, a seed, and whether signs are to be the opposite."""

__all__ = ["PATTERNS", "WIDENED", "Emitter", "as_stored", "half_ulp", "one_ulp"]

PATTERNS = 8  # rows of the Hadamard matrix; regions with more constants use its columns again
WIDENED = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_MOVED = (TensorProto.FLOAT, *WIDENED)
_LARGE = 1 << 16  # bytes above which a constant is handed to the session instead of being copied into the model


def as_stored(array: NDArray[Any], _seed: int, *, opposite: bool) -> NDArray[Any]:
    del opposite
    return noise.widened(array)


def one_ulp(array: NDArray[Any], seed: int, *, opposite: bool) -> NDArray[Any]:
    return noise.one_ulp_away(noise.widened(array), seed, opposite=opposite)


def half_ulp(array: NDArray[Any], seed: int, *, opposite: bool) -> NDArray[Any]:
    del opposite
    return noise.half_ulp_away(array, seed) if array.dtype.itemsize == 2 else noise.widened(array)


@dataclass(frozen=True, slots=True)
class _Constant:
    """A constant that a region reads; ``column`` is its column of the Hadamard matrix, None where it is not moved."""

    view: View
    name: str
    large: bool
    column: int | None

    @property
    def key(self) -> Key:
        return self.view.path, self.name


class Emitter:
    """Writes copies of one region into a probe.

    Args:
        probe: gets the nodes and constants.
        region: what to write.
        values: the constants of the model that the region is of.
        number: the site's place in the probe.
        seed: of what is done to the constants.
    """

    def __init__(self, probe: Probe, region: Region, values: ConstantValues, *, number: int, seed: int) -> None:
        self.probe, self.region, self.values, self.number, self.seed = probe, region, values, number, seed
        self.steering = {
            self._key(node.view, node.inputs[position])
            for node in region.nodes
            for position in STEERING.get(node.op, ())
            if position < len(node.inputs) and node.inputs[position]
        }
        self.constants = list(self._listed())
        self.reads = [[self._key(n.view, name) if name else None for name in n.proto.input] for n in region.nodes]
        self.prefix, self.pattern, self.change = "", 0, as_stored
        self.names: dict[Key, str] = {}  # of what this copy does not make by itself

    def emit(self, letter: str, *, change: Change, shared: str = "") -> str:
        """Write a copy and return the name of its output.

        Args:
            letter: the copy; a number behind it is the row of the Hadamard matrix.
            change: what is done to the constants.
            shared: the copy that brings the large constants along; empty when this one does.
        """
        self.prefix, self.pattern, self.change = f"{letter}{self.number}/", int(letter[1:] or 0), change
        moved = self.probe.moved if letter[0] == "p" else {}
        self.names = {key: moved.get(key, self.probe.inputs[key]) for key in self.region.frontier}
        for constant in self.constants:
            self._constant(constant, shared, patterned=bool(letter[1:]))
        for node, reads in zip(self.region.nodes, self.reads, strict=True):
            proto = self.probe.proto.graph.node.add()
            proto.CopyFrom(node.proto)
            proto.name = f"{self.prefix}{node.label}"
            proto.doc_string = ""
            proto.input[:] = [self._name(key) if key is not None else "" for key in reads]
            proto.output[:] = [self._name((node.view.path, name)) if name else "" for name in proto.output]
            widen_attributes(proto)
            for body, (_, graph) in zip(node.bodies, bodies(proto), strict=True):
                self._body(body, graph, frozenset())
        return self._name(self.region.target)

    def _listed(self) -> Iterator[_Constant]:
        column = 0
        for view, name in self.region.constants:
            large = self.values.nbytes(view, name) >= _LARGE
            moves = (view.path, name) not in self.steering and self.values.data_type(view, name) in _MOVED
            yield _Constant(view, name, large, column if moves else None)
            column += moves and not large  # large ones are shared instead

    def _body(self, view: View, graph: Any, inner: frozenset[str]) -> None:
        """Give the captured tensors of a body their names in the probe, and its constants their values."""
        inner = inner | {view.path}
        for tensor in graph.initializer:
            array, noted = self.values.source.array(tensor), zlib.crc32(tensor.name.encode())
            changed = self.change(array, self.seed + noted, opposite=self._opposite(noted))
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in WIDENED:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        del graph.value_info[:]
        for node, proto in zip(view.nodes, graph.node, strict=True):
            for position, name in enumerate(proto.input):
                if name:
                    proto.input[position] = self._inner_name(view, name, inner)
            for attribute in proto.attribute:
                if attribute.HasField("t"):
                    array = self.values.source.array(attribute.t)
                    attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
            widen_attributes(proto)
            for body, (_, below) in zip(node.bodies, bodies(proto), strict=True):
                self._body(body, below, inner)
        for value in graph.output:
            value.name = self._inner_name(view, value.name, inner)

    def _inner_name(self, view: View, name: str, inner: frozenset[str]) -> str:
        home = view.home(name)
        return name if home is None or home.path in inner else self._name((home.path, name))

    def _key(self, view: View, name: str) -> Key:
        home = view.home(name)
        return (home.path if home is not None else "", name)

    def _name(self, key: Key) -> str:
        return self.names.get(key) or f"{self.prefix}{key[0]}{'|' if key[0] else ''}{key[1]}"

    def _constant(self, constant: _Constant, shared: str, *, patterned: bool) -> None:
        key, home, opposite = constant.key, self.prefix, False
        if shared and constant.large:
            self.names[key] = f"{shared}{self.number}/{key[0]}{'|' if key[0] else ''}{key[1]}"
            return
        if patterned and constant.column is not None:
            opposite = self._opposite(constant.column)
            home = f"p{'-' if opposite else '+'}{self.number}/"
        own = self.names[key] = f"{home}{key[0]}{'|' if key[0] else ''}{key[1]}"
        if own in self.probe.stored:
            return
        self.probe.stored.add(own)
        self._store(own, self._changed(constant, opposite=opposite))

    def _changed(self, constant: _Constant, *, opposite: bool) -> NDArray[Any]:
        view, name = constant.view, constant.name
        array = self.values.array(view, name)
        if constant.key in self.steering:
            return noise.widened(array)
        seed = self.seed + zlib.crc32(name.encode())
        step = self.values.step(view, name) if self.change is half_ulp else None
        if step is not None:
            return noise.widened(array) + step * noise.signs(array.size, seed).reshape(array.shape)
        return self.change(array, seed, opposite=opposite)

    def _store(self, own: str, array: NDArray[Any]) -> None:
        tensor = self.probe.proto.graph.initializer.add()
        if array.nbytes < _LARGE or array.dtype == object:
            tensor.CopyFrom(numpy_helper.from_array(array, own))
            return
        tensor.name, tensor.data_type = own, int(helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.dims.extend(array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="in memory")
        self.probe.external[own] = np.ascontiguousarray(array)

    def _opposite(self, column: int) -> bool:
        """Whether Sylvester's Hadamard matrix has -1 in the row of this copy."""
        return (self.pattern & column % PATTERNS).bit_count() % 2 == 1


def widen_attributes(proto: Any) -> None:
    """Let a node make float32 wherever it would make another float type."""
    for attribute in proto.attribute:
        if attribute.name in ("to", "dtype") and attribute.type == AttributeProto.INT and attribute.i in WIDENED:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t") and attribute.t.data_type in WIDENED:
            attribute.t.CopyFrom(numpy_helper.from_array(noise.widened(numpy_helper.to_array(attribute.t))))
