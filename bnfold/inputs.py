"""Inputs for a model: made from a seed, or read from the user's files.

Every input has its own random stream, ``PCG64(seed, crc32(name), distribution)``, so an input's values do not depend
on which other inputs there are or in what order. Dynamic dimensions are bound by name, once for all inputs. Integers
stay within what the graph accepts, as far as its first readers tell (the rows of an embedding table, say).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import OptionError, printable

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Dim = int | str | None

__all__ = ["DISTRIBUTIONS", "InputSet", "InputSpec", "bind_dims", "input_specs", "make_inputs"]

#: What floating-point inputs can be filled with; integers, booleans and strings only tell ``zeros`` from the rest.
DISTRIBUTIONS = ("normal", "uniform", "large", "small", "zeros", "constant", "negative", "borders")

_WORDS = ("", "a", "bn", "fold", "batch norm", "0", "-1.5", "ÄÖ")
_DEFAULT_RANGES: dict[str, tuple[int, int]] = {
    "uint8": (0, 256),
    "int8": (-128, 128),
    "uint4": (0, 16),
    "int4": (-8, 8),
}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What an input must look like.

    Attributes:
        name: tensor name.
        kind: ``tensor``, ``sequence``, ``optional``, ``map`` or ``sparse``; only tensors can be made.
        data_type: ``onnx.TensorProto.DataType`` of the elements; 0 when the model does not say.
        shape: dimensions, each a number, a name, or None when it has neither; None when even the rank is unknown.
        low, high: values of integers are in ``low <= value < high``.
    """

    name: str
    kind: str = "tensor"
    data_type: int = 1
    shape: tuple[Dim, ...] | None = None
    low: int | None = None
    high: int | None = None


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Specs of the inputs that must be fed: those of the main graph that have no initializer."""
    from bnfold.inputhints import channel_hints, integer_ranges

    graph = model.graph
    given = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    ranges = integer_ranges(graph)
    channels = channel_hints(graph)
    specs = []
    for value in graph.input:
        if value.name in given:
            continue
        kind, data_type, shape = _declared(value.type)
        if shape is not None and value.name in channels:
            axis, size = channels[value.name]
            if -len(shape) <= axis < len(shape) and not isinstance(shape[axis], int):
                shape = (*shape[: axis % len(shape)], size, *shape[axis % len(shape) + 1 :])
        low, high = ranges.get(value.name, (None, None))
        specs.append(InputSpec(value.name, kind, data_type, shape, low, high))
    return tuple(specs)


def _declared(declared: Any) -> tuple[str, int, tuple[Dim, ...] | None]:
    which = declared.WhichOneof("value")
    if which != "tensor_type":
        return (which or "tensor_type").removesuffix("_type").removesuffix("_tensor"), 0, None
    tensor = declared.tensor_type
    if not tensor.HasField("shape"):
        return "tensor", tensor.elem_type, None
    shape: list[Dim] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(int(dim.dim_value))
        else:
            shape.append(dim.dim_param or None)
    return "tensor", tensor.elem_type, tuple(shape)


def bind_dims(
    specs: Sequence[InputSpec],
    dims: Mapping[str, int] | None = None,
    *,
    batch: int = 1,
    size: int = 32,
) -> dict[str, int]:
    """Choose a number for every dynamic dimension.

    Args:
        specs: the inputs.
        dims: the user's choice, by the dimension's name, or by ``input:axis`` for one that has no name.
        batch: for dimensions that come first on an input, or are called a batch.
        size: for all the others.

    Returns:
        A number per name; a dimension without a name has the key ``input:axis``.

    Raises:
        OptionError: ``dims`` names a dimension that no input has, or a number below 1.
    """
    bound: dict[str, int] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, int):
                continue
            key = dim or f"{spec.name}:{axis}"
            is_batch = axis == 0 or "batch" in key.lower()
            bound[key] = min(bound.get(key, batch if is_batch else size), batch if is_batch else size)
    for name, number in (dims or {}).items():
        if name not in bound:
            known = ", ".join(map(printable, bound)) or "none"
            raise OptionError(f"no input has a dynamic dimension {printable(name)!r} (dynamic dimensions: {known})")
        if number < 1:
            raise OptionError(f"dimension {printable(name)!r} must be at least 1, not {number}")
        bound[name] = number
    return bound


def make_inputs(
    model: onnx.ModelProto | Sequence[InputSpec],
    *,
    seed: int = 0,
    distribution: str = "normal",
    dims: Mapping[str, int] | None = None,
    batch: int = 1,
    size: int = 32,
) -> dict[str, NDArray[Any]]:
    """Make an array for every input.

    Args:
        model: the model, or the specs of its inputs.
        seed: same seed, same values, whatever the platform.
        distribution: one of :data:`DISTRIBUTIONS`: N(0,1), U[0,1), N(0,1)·100, N(0,1)·0.001, zeros, ones, -abs(N(0,1)),
            and N(0,1) on the outermost elements with zeros inside.
        dims, batch, size: see :func:`bind_dims`.

    Raises:
        OptionError: an unknown distribution or dimension, or an input that cannot be made (sequences, optionals).
    """
    if distribution not in DISTRIBUTIONS:
        raise OptionError(f"unknown distribution {printable(distribution)!r}; known: {', '.join(DISTRIBUTIONS)}")
    specs = model if isinstance(model, Sequence) else input_specs(model)
    bound = bind_dims(specs, dims, batch=batch, size=size)
    return {spec.name: _make(spec, _shape(spec, bound), seed, distribution) for spec in specs}


def _shape(spec: InputSpec, bound: Mapping[str, int]) -> tuple[int, ...]:
    if spec.kind != "tensor" or spec.data_type == 0:
        raise OptionError(
            f"input {printable(spec.name)!r} is a {spec.kind}, which cannot be made up; "
            "give it as a folder in ONNX test-data layout (--input FOLDER)"
        )
    if spec.shape is None:
        raise OptionError(
            f"input {printable(spec.name)!r} has no declared shape, so it cannot be made up; "
            f"give it with --input {printable(spec.name)}=FILE.npy"
        )
    return tuple(d if isinstance(d, int) else bound[d or f"{spec.name}:{axis}"] for axis, d in enumerate(spec.shape))


def _make(spec: InputSpec, shape: tuple[int, ...], seed: int, distribution: str) -> NDArray[Any]:
    from onnx import TensorProto, helper

    stream = (seed, zlib.crc32(spec.name.encode()), DISTRIBUTIONS.index(distribution))
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream)))
    if spec.data_type == TensorProto.STRING:
        words = np.array(_WORDS, dtype=object)
        return words[np.zeros(shape, int) if distribution == "zeros" else random.integers(0, len(words), shape)]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(spec.data_type))
    if spec.data_type == TensorProto.BOOL:
        return np.zeros(shape, bool) if distribution == "zeros" else random.integers(0, 2, shape).astype(bool)
    if "int" in dtype.name:
        low, high = _range(spec, dtype)
        zero = min(max(0, low), high - 1)
        return (np.full(shape, zero) if distribution == "zeros" else random.integers(low, high, shape)).astype(dtype)
    values = _floats(random, shape, distribution)
    if dtype.kind == "c":
        return (values + 1j * _floats(random, shape, distribution)).astype(dtype)
    return values.astype(dtype)


def _range(spec: InputSpec, dtype: np.dtype[Any]) -> tuple[int, int]:
    low, high = _DEFAULT_RANGES.get(dtype.name, (0, 8))
    if spec.low is not None:
        low = spec.low
    if spec.high is not None:
        high = spec.high
    elif "mask" in spec.name.lower() or "type" in spec.name.lower():
        high = low + 2
    return low, max(high, low + 1)


def _floats(random: np.random.Generator, shape: tuple[int, ...], distribution: str) -> NDArray[Any]:
    if distribution == "zeros":
        return np.zeros(shape, np.float32)
    if distribution == "constant":
        return np.ones(shape, np.float32)
    if distribution == "uniform":
        return np.asarray(random.random(shape, np.float32))
    normal = np.asarray(random.standard_normal(shape, np.float32))
    factor = {"large": np.float32(100.0), "small": np.float32(1e-3)}.get(distribution)
    if factor is not None:
        return np.asarray(normal * factor)
    if distribution == "negative":
        return np.asarray(-np.abs(normal))
    return np.asarray(normal * _border(shape)) if distribution == "borders" else normal


def _border(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """One on elements that stand first or last on some axis after batch and channel, zero inside."""
    mask = np.zeros(shape, np.float32)
    for axis in range(min(2, max(len(shape) - 1, 0)), len(shape)):
        edge = [slice(None)] * len(shape)
        for position in (0, -1):
            if shape[axis]:
                edge[axis] = position  # type: ignore[call-overload]
                mask[tuple(edge)] = 1
    return mask if len(shape) > 1 else np.ones(shape, np.float32)


@dataclass(frozen=True, slots=True)
class InputSet:
    """One set of inputs: where it comes from, the values, and the outputs that are expected, if any are known."""

    name: str
    feeds: Mapping[str, Any]
    expected: Mapping[str, Any] = field(default_factory=dict)
