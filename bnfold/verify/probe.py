"""A model made of the pieces around some sites: both versions of each, side by side, with one common set of inputs.

Several copies of a piece stand in a probe:

    a   the original
    p   the original with every constant and input moved by one unit in the last place: what rounding alone can do
    b   the folded one
    q   the folded one with its 16-bit weights moved by half a unit, the largest error of rounding them once, and its
        dequantized int32 biases moved by a whole one (only where there are such weights)

A probe of *shifts*, which gets zeros, has eight copies ``p0`` to ``p7`` that share the large constants with ``a``: a
shift is a sum of a few terms per channel, and for one choice of signs their errors may well cancel, in float32 exactly.
So the signs of the constants follow the columns of a Hadamard matrix ``H``: whatever the errors ``e`` of up to eight
terms are, the largest element of ``H e`` is at least ``|e|`` (its columns are orthogonal, and have eight elements).

16-bit and 64-bit floats are widened or narrowed to float32 (exact for 16 bits), so a probe measures the weights and
not the arithmetic of the storage type, and onnxruntime's CPU kernels can run it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnx import ModelProto, TensorProto, numpy_helper

from bnfold.verify.emitter import PATTERNS, WIDENED, Emitter, as_stored, half_ulp, one_ulp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.verify.constants import ConstantValues
    from bnfold.verify.sites import Key, Region, Site
    from bnfold.verify.types import TensorType

__all__ = ["Probe", "build"]


@dataclass(slots=True)
class Probe:
    """The model, and how its names belong to the sites.

    Attributes:
        proto: the model; large constants are external.
        external: their values.
        inputs: input name for each frontier tensor.
        moved: the input that gets the same values one ulp away, for the copies ``p``.
        outputs: for each site, the output names of the copies by letter.
        stored: names of the constants that it has so far.
    """

    proto: ModelProto
    external: dict[str, NDArray[Any]] = field(default_factory=dict)
    inputs: dict[Key, str] = field(default_factory=dict)
    moved: dict[Key, str] = field(default_factory=dict)
    outputs: list[dict[str, str]] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)

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
        drawn = seed + 1000 * number
        original = Emitter(probe, site.original, values[0], number=number, seed=drawn)
        folded = Emitter(probe, site.folded, values[1], number=number, seed=drawn)
        outputs = {"a": original.emit("a", change=as_stored), "b": folded.emit("b", change=as_stored)}
        if shifts:
            for row in range(PATTERNS):
                outputs[f"p{row}"] = original.emit(f"p{row}", change=one_ulp, shared="a")
        else:
            outputs["p"] = original.emit("p", change=one_ulp)
        if _needs_q(site.folded, values[1]):
            outputs["q"] = folded.emit("q", change=half_ulp, shared="b" if shifts else "")
        for name in outputs.values():
            proto.graph.output.add(name=name)
        probe.outputs.append(outputs)
    return probe


def _add_input(probe: Probe, key: Key, types: Mapping[Key, TensorType], *, shifts: bool) -> None:
    data_type = types.get(key, (TensorProto.FLOAT, None))[0]
    data_type = TensorProto.FLOAT if data_type in WIDENED else data_type
    probe.inputs[key] = f"x{len(probe.inputs)}"
    names = [probe.inputs[key]]
    if data_type == TensorProto.FLOAT and not shifts:
        probe.moved[key] = f"{probe.inputs[key]} moved"
        names.append(probe.moved[key])
    for name in names:
        value = probe.proto.graph.input.add(name=name)
        value.type.tensor_type.elem_type = data_type


def _needs_q(region: Region, values: ConstantValues) -> bool:
    for view, name in region.constants:
        if values.data_type(view, name) in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            return True
        if values.step(view, name) is not None:
            return True
    return False
