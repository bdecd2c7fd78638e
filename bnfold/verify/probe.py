"""A model made of the pieces around some sites: both versions of each, side by side, with one common set of inputs.

Several copies of a piece stand in a probe:

    a   the original
    p   the original with every constant and input moved by one unit in the last place: what rounding alone can do
    b   the folded one
    q   the folded one with its 16-bit weights moved by half a unit, the largest error of rounding them once, and its
        dequantized int32 biases moved by a whole one (only where there are such weights)

A probe of *shifts*, which gets zeros, has six copies ``p0`` to ``p5`` that share the large constants with ``a``: a
shift is a sum of three or four terms per channel, and in one draw of signs their errors may well cancel.

16-bit and 64-bit floats are widened or narrowed to float32 (exact for 16 bits), so a probe measures the weights and
not the arithmetic of the storage type, and onnxruntime's CPU kernels can run it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

from bnfold.verify import noise
from bnfold.verify.view import STEERING, bodies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.verify.constants import ConstantValues
    from bnfold.verify.sites import Key, Region, Site
    from bnfold.verify.types import TensorType
    from bnfold.verify.view import View

__all__ = ["Probe", "build"]

_WIDENED = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_SHIFT_DRAWS = 6
_LARGE = 1 << 16  # bytes above which a constant is handed to the session instead of being copied into the model


@dataclass(slots=True)
class Probe:
    """The model, and how its names belong to the sites.

    Attributes:
        proto: the model; large constants are external.
        external: their values.
        inputs: input name for each frontier tensor.
        moved: the input that gets the same values one ulp away, for the copies ``p``.
        outputs: for each site, the output names of the copies by letter.
    """

    proto: ModelProto
    external: dict[str, NDArray[Any]] = field(default_factory=dict)
    inputs: dict[Key, str] = field(default_factory=dict)
    moved: dict[Key, str] = field(default_factory=dict)
    outputs: list[dict[str, str]] = field(default_factory=list)

    def inline(self) -> ModelProto:
        """The model with all constants inside, for the reference evaluator."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in proto.graph.initializer:
            if tensor.name in self.external:
                tensor.CopyFrom(numpy_helper.from_array(self.external[tensor.name], tensor.name))
        return proto


def build(
    sites: Sequence[Site],
    values: tuple[ConstantValues, ConstantValues],
    types: Mapping[Key, TensorType],
    *,
    seed: int,
    shifts: bool = False,
) -> Probe:
    """Build the probe of some sites.

    Args:
        sites: sites of two models that use the same versions of the operator domains they share.
        values: constants of the original and of the folded model.
        types: what is known about the frontier.
        seed: of the perturbation.
        shifts: see the module's docstring.
    """
    source = values[0].source
    proto = ModelProto(ir_version=max(source.ir_version, values[1].source.ir_version, 4))
    for domain, version in (values[1].source.opsets() | source.opsets()).items():
        proto.opset_import.add(domain=domain, version=version)
    proto.graph.name = "probe"
    probe = Probe(proto)
    for number, site in enumerate(sites):
        for key in site.frontier():
            if key not in probe.inputs:
                _add_input(probe, key, types, shifts=shifts)
        outputs = {}
        for letter, home, change in _copies(site, values, shifts=shifts):
            region, constants = (site.folded, values[1]) if letter[0] in "bq" else (site.original, values[0])
            draw = seed + 1000 * number + (int(letter[1:]) if letter[1:] else 0)
            outputs[letter] = _Emitter(
                probe,
                region,
                constants,
                prefix=f"{letter}{number}/",
                shared=f"{home}{number}/" if shifts and home != letter else "",
                inputs=probe.inputs | probe.moved if letter[0] == "p" else probe.inputs,
                change=change,
                seed=draw,
            ).emit()
            proto.graph.output.add(name=outputs[letter])
        probe.outputs.append(outputs)
    return probe


def _copies(site: Site, values: tuple[ConstantValues, ConstantValues], *, shifts: bool) -> list[tuple[str, str, Any]]:
    """The copies to make: name, the copy to share large constants with, and what is done to the constants."""
    copies: list[tuple[str, str, Any]] = [("a", "a", _as_stored), ("b", "b", _as_stored)]
    copies += [(f"p{draw}", "a", _one_ulp) for draw in range(_SHIFT_DRAWS)] if shifts else [("p", "a", _one_ulp)]
    if _needs_q(site.folded, values[1]):
        copies.append(("q", "b", _half_ulp))
    return copies


def _add_input(probe: Probe, key: Key, types: Mapping[Key, TensorType], *, shifts: bool) -> None:
    data_type = types.get(key, (TensorProto.FLOAT, None))[0]
    data_type = TensorProto.FLOAT if data_type in _WIDENED else data_type
    probe.inputs[key] = f"x{len(probe.inputs)}"
    names = [probe.inputs[key]]
    if data_type == TensorProto.FLOAT and not shifts:
        probe.moved[key] = f"{probe.inputs[key]} moved"
        names.append(probe.moved[key])
    for name in names:
        value = probe.proto.graph.input.add(name=name)
        value.type.tensor_type.elem_type = data_type


def _as_stored(array: NDArray[Any], _seed: int) -> NDArray[Any]:
    return noise.widened(array)


def _one_ulp(array: NDArray[Any], seed: int) -> NDArray[Any]:
    return noise.one_ulp_away(noise.widened(array), seed)


def _half_ulp(array: NDArray[Any], seed: int) -> NDArray[Any]:
    return noise.half_ulp_away(array, seed) if array.dtype.itemsize == 2 else noise.widened(array)


def _needs_q(region: Region, values: ConstantValues) -> bool:
    for view, name in region.constants:
        if values.data_type(view, name) in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            return True
        if values.step(view, name) is not None:
            return True
    return False


class _Emitter:
    """Writes one copy of one region into the probe."""

    def __init__(
        self,
        probe: Probe,
        region: Region,
        values: ConstantValues,
        *,
        prefix: str,
        shared: str,
        inputs: Mapping[Key, str],
        change: Any,
        seed: int,
    ) -> None:
        self.probe, self.region, self.values, self.inputs = probe, region, values, inputs
        self.prefix, self.shared, self.change, self.seed = prefix, shared, change, seed
        self.elsewhere: set[Key] = set()  # constants that another copy has brought along
        self.frontier = set(region.frontier)
        self.steering = {
            self._key(node.view, node.inputs[position])
            for node in region.nodes
            for position in STEERING.get(node.op, ())
            if position < len(node.inputs) and node.inputs[position]
        }

    def emit(self) -> str:
        for view, name in self.region.constants:
            self._constant(view, name)
        for node in self.region.nodes:
            proto = self.probe.proto.graph.node.add()
            proto.CopyFrom(node.proto)
            proto.name = f"{self.prefix}{node.label}"
            proto.doc_string = ""
            for position, name in enumerate(proto.input):
                if name:
                    proto.input[position] = self._name(node.view, name)
            for position, name in enumerate(proto.output):
                if name:
                    proto.output[position] = self._own((node.view.path, name))
            widen_attributes(proto)
            for body, (_, graph) in zip(node.bodies, bodies(proto), strict=True):
                self._body(body, graph, frozenset())
        return self._own(self.region.target)

    def _body(self, view: View, graph: Any, inner: frozenset[str]) -> None:
        """Give the captured tensors of a body their names in the probe, and its constants their values."""
        inner = inner | {view.path}
        for tensor in graph.initializer:
            array = self.values.source.array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array(self.change(array, self.seed + zlib.crc32(tensor.name.encode())), tensor.name)
            )
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in _WIDENED:
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
        return name if home is None or home.path in inner else self._name(view, name)

    def _key(self, view: View, name: str) -> Key:
        home = view.home(name)
        return (home.path if home is not None else "", name)

    def _name(self, view: View, name: str) -> str:
        key = self._key(view, name)
        return self.inputs[key] if key in self.frontier else self._own(key)

    def _own(self, key: Key) -> str:
        prefix = self.shared if key in self.elsewhere else self.prefix
        return f"{prefix}{key[0]}{'|' if key[0] else ''}{key[1]}"

    def _constant(self, view: View, name: str) -> None:
        key = (view.path, name)
        if self.shared and self.values.nbytes(view, name) >= _LARGE:
            self.elsewhere.add(key)
            return
        array = self.values.array(view, name)
        seed = self.seed + zlib.crc32(name.encode())
        step = self.values.step(view, name) if self.change is _half_ulp else None
        if key in self.steering:
            changed = noise.widened(array)
        elif step is not None:
            changed = noise.widened(array) + step * noise.signs(array.size, seed).reshape(array.shape)
        else:
            changed = self.change(array, seed)
        own = self._own(key)
        tensor = self.probe.proto.graph.initializer.add()
        if changed.nbytes < _LARGE or changed.dtype == object:
            tensor.CopyFrom(numpy_helper.from_array(changed, own))
            return
        tensor.name, tensor.data_type = own, self._kind(changed)
        tensor.dims.extend(changed.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="in memory")
        self.probe.external[own] = np.ascontiguousarray(changed)

    def _kind(self, array: NDArray[Any]) -> int:
        from onnx import helper

        return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def widen_attributes(proto: Any) -> None:
    """Let a node make float32 wherever it would make another float type."""
    for attribute in proto.attribute:
        if attribute.name in ("to", "dtype") and attribute.type == AttributeProto.INT and attribute.i in _WIDENED:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t") and attribute.t.data_type in _WIDENED:
            attribute.t.CopyFrom(numpy_helper.from_array(noise.widened(numpy_helper.to_array(attribute.t))))
