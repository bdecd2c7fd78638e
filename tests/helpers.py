"""Small models from a few lines of ONNX text, and an oracle that shares no code with bnfold.

``build("float[2,3,6,6] x", "c = Conv(x, W)\n y = BN4(c)", W=(4, 3, 3, 3))`` makes a model with integer weights. A shape
stands for random integers; an array stands for itself. ``BN4`` is a batch norm over 4 channels with epsilon 0, gammas and
variances that are powers of two (gammas of both signs) and integer means and biases, so that folding it is exact. Its
variants: ``BNpos4`` (positive gammas), ``BNscale4`` (no shift), ``BNposscale4`` (both), ``BNshift4`` (no scale).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper, parser

import bnfold

Array = np.ndarray[Any, Any]

FLOAT_NAMES = {"float": np.float32, "float16": np.float16, "double": np.float64}

_NORM = re.compile(r"([\w.]+)\s*=\s*BN([a-z]*)(\d+)\s*(?:<([^>]*)>)?\s*\(\s*([\w.]+)\s*\)")


def rng(name: str) -> np.random.Generator:
    """Random numbers that depend on nothing but the name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def integers(shape: tuple[int, ...], name: str = "w", dtype: Any = np.float32, low: int = -3, high: int = 4) -> Array:
    """Small integers, none of them zero, so that every element matters."""
    values = rng(name).integers(low, high, shape)
    return np.where(values == 0, high, values).astype(dtype)


def norm_parameters(
    kind: str, channels: int, name: str, dtype: Any = np.float32, stats: Any = None
) -> dict[str, Array]:
    """Parameters of an exact batch norm, by suffix."""
    random = rng(name)
    gamma = np.exp2(random.integers(-1, 3, channels)) * random.choice([-1.0, 1.0], channels)
    variance = np.exp2(2.0 * random.integers(-1, 2, channels))
    beta, mean = random.integers(-4, 5, channels) * 2.0 + 1, random.integers(-4, 5, channels) * 2.0
    if channels > 1:
        gamma[0], gamma[-1] = -2.0 * abs(gamma[-1]), abs(gamma[-1])
    if "pos" in kind:
        gamma = np.abs(gamma)
    if "scale" in kind:
        beta, mean = np.zeros(channels), np.zeros(channels)
    if "shift" in kind:
        gamma = np.sqrt(variance)
    if "pow2var" in kind:
        variance = np.ones(channels)
    values = {"gamma": gamma, "beta": beta, "mean": mean, "var": variance}
    types = {"gamma": dtype, "beta": dtype, "mean": stats or dtype, "var": stats or dtype}
    return {suffix: value.astype(types[suffix]) for suffix, value in values.items()}


def build(
    inputs: str,
    nodes: str,
    outputs: str = "",
    *,
    opset: int = 21,
    ir: int = 10,
    norms_as: Any = np.float32,
    functions: str = "",
    imports: dict[str, int] | None = None,
    **constants: Any,
) -> ModelProto:
    """Make a model; see the module's docstring. Without ``outputs`` the graph returns ``y``, its shape undeclared."""
    values: dict[str, Array] = {}

    def norm(match: re.Match[str]) -> str:
        output, kind, channels, attributes, source = match.groups()
        for suffix, value in norm_parameters(kind, int(channels), output, norms_as).items():
            values.setdefault(f"{output}_{suffix}", value)
        names = ", ".join(f"{output}_{suffix}" for suffix in ("gamma", "beta", "mean", "var"))
        extra = f", {attributes}" if attributes else ""
        return f"{output} = BatchNormalization <epsilon = 0.0{extra}> ({source}, {names})"

    text = _NORM.sub(norm, nodes)
    kind = inputs.strip().split("[")[0].split(" ")[0]
    outputs = outputs or f"{kind}[] y"
    domains = {"": opset, **(imports or {})}
    header = ", ".join(f'"{domain}" : {version}' for domain, version in domains.items())
    body = "\n".join(line for line in text.splitlines() if line.strip())
    made = parser.parse_model(
        f"<ir_version: {ir}, opset_import: [{header}]>\nagraph ({inputs}) => ({outputs}) {{\n{body}\n}}\n{functions}"
    )
    for name, value in constants.items():
        values[name] = (
            integers(value, name, FLOAT_NAMES.get(kind, np.float32)) if isinstance(value, tuple) else _as_array(value)
        )
    for name, value in values.items():
        made.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
    if ir < 4:
        for name, value in values.items():
            element = helper.np_dtype_to_tensor_dtype(value.dtype)
            made.graph.input.append(helper.make_tensor_value_info(name, element, value.shape))
    _declare_outputs(made)
    return made


def _as_array(value: Any) -> Array:
    """A list stands for a shape or a list of axes."""
    return np.array(value, np.int64) if isinstance(value, list) else np.asarray(value)


def _declare_outputs(model: ModelProto) -> None:
    """The checker wants shapes of outputs; take the inferred ones."""
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    for value, known in zip(model.graph.output, inferred, strict=True):
        if not value.type.tensor_type.HasField("shape"):
            value.CopyFrom(known)


# -- the oracle --------------------------------------------------------------------------------------------------------


def feeds_for(model: ModelProto, seed: int = 0, **sizes: int) -> dict[str, Array]:
    """Small integers for every graph input that has no initializer; named dimensions from ``sizes``, else 2."""
    known = {tensor.name for tensor in model.graph.initializer}
    random = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param, 2) for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype == np.bool_:
            feeds[value.name] = random.integers(0, 2, shape).astype(np.bool_)
        else:
            feeds[value.name] = random.integers(-3, 4, shape).astype(dtype)
    return feeds


def session(model: ModelProto | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(model: ModelProto, feeds: dict[str, Array], wanted: Iterable[str] = ()) -> dict[str, Array]:
    """Evaluate with onnxruntime, every optimisation off; below opset 7, which it does not do, with onnx's evaluator."""
    names = list(wanted) or [value.name for value in model.graph.output]
    exposed = exposing(model, names)
    if opset_of(model) < 7:
        return dict(zip(names, _reference(exposed, feeds, names), strict=True))
    return dict(zip(names, session(exposed).run(names, feeds), strict=True))


def exposing(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """The model with these tensors as outputs too."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return exposed


def _reference(model: ModelProto, feeds: dict[str, Array], names: list[str]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(names, feeds)


def close(want: Array, got: Array, magnitude: float, name: str, *, exact: bool) -> None:
    """Exactly equal, or to the last bits of the largest magnitude in the graph; never close but for floats."""
    assert (want.dtype, want.shape) == (got.dtype, got.shape), name
    if exact or want.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, err_msg=name)
    else:
        np.testing.assert_allclose(got, want, rtol=0, atol=100 * np.finfo(want.dtype).eps * magnitude, err_msg=name)


def valid(model: ModelProto) -> bool:
    try:
        checker.check_model(model, full_check=True)
    except Exception:
        return False
    return True


def opset_of(model: ModelProto) -> int:
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


# -- what a fold must hold ---------------------------------------------------------------------------------------------


def all_nodes(model: ModelProto) -> list[NodeProto]:
    """Every node, bodies and functions included."""
    found: list[NodeProto] = []
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        for node in stack.pop().node:
            found.append(node)
            for attribute in node.attribute:
                stack += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
    return found


def count(model: ModelProto, *operators: str) -> int:
    return sum(node.op_type in operators for node in all_nodes(model))


def plain_affines(model: ModelProto) -> int:
    """Number of Mul, Add, Sub, Div by a stored constant, and of Neg."""
    nodes = all_nodes(model)
    stored = {tensor.name for tensor in model.graph.initializer} | {
        n.output[0] for n in nodes if n.op_type == "Constant"
    }
    return sum(
        n.op_type == "Neg" or (n.op_type in ("Mul", "Add", "Sub", "Div") and not stored.isdisjoint(n.input))
        for n in nodes
    )


def operators(model: ModelProto) -> int:
    """Number of nodes; Constant nodes are data, and so is what dequantizes them."""
    return sum(node.op_type not in ("Constant", "DequantizeLinear") for node in all_nodes(model))


def ops(model: ModelProto) -> list[str]:
    """Operator types of the main graph, in order."""
    return [node.op_type for node in model.graph.node]


def made_tensors(model: ModelProto) -> set[str]:
    """Tensors that nodes of the main graph compute; constants, like initializers, may change in place."""
    return {name for node in model.graph.node if node.op_type != "Constant" for name in node.output if name}


def fold(model: ModelProto) -> bnfold.FoldResult:
    """Fold and hold everything that is true of any fold, except equality of outputs."""
    before = model.SerializeToString(deterministic=True)
    result = bnfold.fold(model, verify=False)
    assert model.SerializeToString(deterministic=True) == before, "the argument was changed"
    folded = result.model
    checker.check_model(folded, full_check=True)
    assert interface(folded) == interface(model)
    assert bnfold.fold(model, verify=False).model.SerializeToString() == folded.SerializeToString(), "not deterministic"
    if not result.report.folded:
        assert folded.SerializeToString() == model.SerializeToString(), "nothing folded, and yet the bytes differ"
    inlined = any(note.startswith("inlined") for note in result.report.notes)  # a body then stands where it is called
    assert inlined or operators(folded) <= operators(model)
    again = bnfold.fold(folded, verify=False)
    assert again.model.SerializeToString() == folded.SerializeToString(), "folding again changes something"
    assert not again.report.folded
    return result


def interface(model: ModelProto) -> tuple[list[bytes], list[bytes]]:
    """Inputs (without the initializers that IR 3 lists) and outputs, as they are declared."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.SerializeToString() for value in model.graph.input if value.name not in stored]
    return inputs, [value.SerializeToString() for value in model.graph.output]


def assert_same(original: ModelProto, folded: ModelProto, feeds: dict[str, Array], *, exact: bool = True) -> None:
    """Outputs, and every tensor that both models make under one name, are equal."""
    names = [value.name for value in original.graph.output]
    names += sorted((made_tensors(original) & made_tensors(folded)) - set(names))
    want, got = run(original, feeds, names), run(folded, feeds, names)
    for name in names:
        assert got[name].dtype == want[name].dtype, name
        assert got[name].shape == want[name].shape, name
        if exact:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
        else:
            scale = np.abs(want[name][np.isfinite(want[name])], dtype=np.float64).max(initial=1e-3)
            unit = np.finfo(want[name].dtype).eps
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=500 * unit * scale, err_msg=name)


def folds(model: ModelProto, *, norms: int = 0, affines: int = 0, exact: bool = True, **sizes: int) -> ModelProto:
    """Assert that this many norms and other affine operators stay, that the result is the same network, and return it."""
    result = fold(model)
    assert count(result.model, "BatchNormalization") == norms, describe(result)
    assert plain_affines(result.model) == affines, describe(result)
    for seed in range(2):
        assert_same(model, result.model, feeds_for(model, seed, **sizes), exact=exact)
    return result.model


def keeps(model: ModelProto, *codes: str) -> None:
    """Assert that folding changes nothing at all, for exactly these reasons (in graph order)."""
    result = fold(model)
    assert result.model.SerializeToString() == model.SerializeToString(), describe(result)
    assert [kept.code for kept in result.report.kept] == list(codes), describe(result)


def refuses(model: ModelProto, *codes: str) -> None:
    """The same for models that are invalid, which the checker would not let through."""
    result = bnfold.fold(model, verify=False)
    assert result.model.SerializeToString() == model.SerializeToString(), describe(result)
    assert [kept.code for kept in result.report.kept] == list(codes), describe(result)


def describe(result: bnfold.FoldResult) -> str:
    return "\n".join(
        [f"folded {entry.node}: {entry.route}" for entry in result.report.folded]
        + [f"kept {entry.node}: {entry.code}: {entry.reason}" for entry in result.report.kept]
        + [onnx.printer.to_text(result.model.graph)]
    )


def initializers(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def tensor(values: Array, data_type: int, name: str) -> TensorProto:
    """A tensor of any element type, rounded by NumPy and ml_dtypes."""
    return numpy_helper.from_array(np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(data_type)), name)


# -- tables of cases ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row of a table: a model, and what has to come out of it."""

    inputs: str
    nodes: str
    options: dict[str, Any]

    def model(self) -> ModelProto:
        expectations = ("norms", "affines", "sizes", "codes", "holds")
        return build(self.inputs, self.nodes, **{k: v for k, v in self.options.items() if k not in expectations})

    def folds(self) -> ModelProto:
        options = self.options
        folded = folds(
            self.model(), norms=options.get("norms", 0), affines=options.get("affines", 0), **options.get("sizes", {})
        )
        for op, number in options.get("holds", {}).items():
            assert count(folded, op) == number, onnx.printer.to_text(folded.graph)
        return folded

    def keeps(self) -> None:
        keeps(self.model(), *self.options["codes"])


def case(name: str, inputs: str, nodes: str, **options: Any) -> Any:
    """A row for ``pytest.mark.parametrize("case", ...)``: ``norms`` and ``affines`` are the numbers that stay (default 0)."""
    return pytest.param(Case(inputs, nodes, options), id=name)


def kept(name: str, codes: str, inputs: str, nodes: str, **options: Any) -> Any:
    """A row that must not change, with the refusal codes in graph order."""
    return pytest.param(Case(inputs, nodes, {**options, "codes": codes.split()}), id=name)
