"""Part ``accuracy``: how far each tool's folded numbers are from exact ones, in units in the last place.

    python accuracy.py make FOLDER                 writes the cases, one model each
    python accuracy.py judge FOLDER TOOL=FILE ...  prints one JSON line per case and tool

Every case is one linear operator with norms around it, so the folded weight and bias can be written down: they are
computed with mpmath at 60 digits. An error is ``|got - exact| / ulp(exact)``, where ``ulp`` is the spacing of the
weight's own type at the exact value, so correct rounding means at most 0.5. Constant expressions that a tool leaves in
place of a folded weight are evaluated first.

``output`` is the same for what the layer computes: the folded layer evaluated in float64 on random inputs against the
exact one, in ulp of the largest output. No summation noise of a runtime is in it, only what folding did to the weights;
it is left out for float64, where that evaluation would be the noise.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
import onnx
from counting import Rules, constant_of, evaluate, is_constant_node
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

EPSILON = float(np.float32(1e-5))
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Case:
    """One operator, what stands after it, and the type of its numbers."""

    name: str
    operator: str
    after: tuple[str, ...]
    dtype: str = "float32"
    before: bool = False


CASES = (
    Case("conv-bn", "Conv", ("bn",)),
    Case("conv-bn-float16", "Conv", ("bn",), "float16"),
    Case("conv-bn-float64", "Conv", ("bn",), "float64"),
    Case("convtranspose-bn", "ConvTranspose", ("bn",)),
    Case("gemm-bn", "Gemm", ("bn",)),
    Case("matmul-bn", "MatMul", ("bn",)),
    Case("conv-mul-add", "Conv", ("mul", "add")),
    Case("conv-bn-bn", "Conv", ("bn", "bn")),
    Case("conv-bn-mul-add", "Conv", ("bn", "mul", "add")),
    Case("conv-bn-mul-add-float16", "Conv", ("bn", "mul", "add"), "float16"),
    Case("bn-conv", "Conv", ("bn",), before=True),
    Case("bn-gemm", "Gemm", ("bn",), before=True),
)
INPUTS, OUTPUTS, KERNEL = 24, 32, 3


def numbers(case: Case) -> dict[str, np.ndarray]:
    """All parameters of a case, in its own type; the same on every call."""
    random = np.random.default_rng([ord(c) for c in case.name])
    spatial = (KERNEL, KERNEL) if case.operator in ("Conv", "ConvTranspose") else ()
    first = (OUTPUTS, INPUTS) if case.operator == "Conv" else (INPUTS, OUTPUTS)
    channels = INPUTS if case.before else OUTPUTS
    found = {"w": random.normal(0, 0.2, (*first, *spatial))}
    if case.operator != "MatMul":
        found["b"] = random.normal(0, 0.5, OUTPUTS)
    for number, kind in enumerate(case.after):
        if kind == "bn":
            found[f"gamma{number}"] = random.normal(1, 0.4, channels)
            found[f"beta{number}"] = random.normal(0, 0.5, channels)
            found[f"mean{number}"] = random.normal(0, 0.5, channels)
            found[f"var{number}"] = random.uniform(0.05, 4, channels)
        else:
            found[f"{kind}{number}"] = random.normal(1, 0.4, channels)
    return {name: value.astype(case.dtype) for name, value in found.items()}


def build(case: Case) -> onnx.ModelProto:
    """The model of a case."""
    values = numbers(case)
    image = case.operator in ("Conv", "ConvTranspose")
    weights = dict(values)
    linear_inputs = ["w"] + ["b"] * ("b" in values)
    nodes, source = [], "x"
    steps = [*case.after, "linear"] if case.before else ["linear", *case.after]
    numbering = iter(range(len(case.after)))
    for place, kind in enumerate(steps):
        target = "y" if place == len(steps) - 1 else f"t{place}"
        number = -1 if kind == "linear" else next(numbering)
        if kind == "linear":
            nodes.append(helper.make_node(case.operator, [source, *linear_inputs], [target], name="linear"))
        elif kind == "bn":
            names = [f"{part}{number}" for part in ("gamma", "beta", "mean", "var")]
            node = helper.make_node("BatchNormalization", [source, *names], [target], name=f"bn{number}")
            node.attribute.append(helper.make_attribute("epsilon", EPSILON))
            nodes.append(node)
        else:
            name = f"{kind}{number}"
            weights[name] = values[name].reshape((1, -1, 1, 1) if image else (1, -1))
            nodes.append(helper.make_node(kind.capitalize(), [source, name], [target], name=f"{kind}-{number}"))
        source = target
    element = TYPES[case.dtype]
    shapes = (["N", INPUTS, 8, 8], ["N", OUTPUTS, "H", "W"]) if image else (["N", INPUTS], ["N", OUTPUTS])
    graph = helper.make_graph(
        nodes,
        case.name,
        [helper.make_tensor_value_info("x", element, shapes[0])],
        [helper.make_tensor_value_info("y", element, shapes[1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def affine(case: Case, number: Callable[[Any], Any], root: Callable[[Any], Any]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of all that stands around the operator, in the arithmetic of ``number`` and ``root``."""
    values = {
        name: np.vectorize(number, otypes=[object])(value) for name, value in numbers(case).items() if name != "w"
    }
    size = INPUTS if case.before else OUTPUTS
    scale, shift = np.array([number(1)] * size, object), np.array([number(0)] * size, object)
    for place, kind in enumerate(case.after):
        if kind == "bn":
            spread = np.vectorize(root, otypes=[object])(values[f"var{place}"] + number(EPSILON))
            step = values[f"gamma{place}"] / spread
            scale, shift = scale * step, (shift - values[f"mean{place}"]) * step + values[f"beta{place}"]
        elif kind == "mul":
            scale, shift = scale * values[f"mul{place}"], shift * values[f"mul{place}"]
        else:
            shift = shift + values[f"add{place}"]
    return scale, shift


def exact(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The folded weight and bias at 60 digits (object arrays of ``mpmath.mpf``)."""
    mpmath.mp.dps = 60
    scale, shift = affine(case, lambda v: mpmath.mpf(float(v)), mpmath.sqrt)
    values = numbers(case)
    weight = np.vectorize(lambda v: mpmath.mpf(float(v)), otypes=[object])(values["w"])
    bias = np.array([mpmath.mpf(float(v)) for v in values.get("b", np.zeros(OUTPUTS))], object)
    output_axis = 0 if case.operator == "Conv" else 1
    axis = 1 - output_axis if case.before else output_axis
    spread = [1] * weight.ndim
    spread[axis] = -1
    if case.before:
        moved = (weight * shift.reshape(spread)).sum(axis=tuple(i for i in range(weight.ndim) if i != output_axis))
        return weight * scale.reshape(spread), bias + moved
    return weight * scale.reshape(spread), bias * scale + shift


def folded(path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Weight and bias of the one linear operator that a tool left, never transposed; None if it did not fold."""
    model = onnx.load(path)
    known = {tensor.name: constant_of(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if is_constant_node(node, known):
            known.update(evaluate(node, known, Rules(tuple(model.opset_import), overridable=True)))
        elif node.op_type != "Cast":
            nodes.append(node)
    constants = {name: value.value for name, value in known.items() if value.value is not None}
    linear = [node for node in nodes if node.op_type in LINEAR]
    rest = [node for node in nodes if node not in linear]
    if len(linear) != 1 or any(node.op_type != "Add" for node in rest) or len(rest) > (linear[0].op_type == "MatMul"):
        return None
    node = linear[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = constants.get(node.input[1])
    biases = [constants[name] for n in (node, *rest) for name in n.input if name in constants and name != node.input[1]]
    if weight is None:
        return None
    bias = biases[0].reshape(-1) if biases else np.zeros(OUTPUTS, weight.dtype)
    if attributes.get("transB"):
        weight = weight.T
    return weight * np.asarray(attributes.get("alpha", 1), weight.dtype), bias


def stored(value: np.ndarray, dtype: str) -> np.ndarray:
    """The value in ``dtype`` when that loses nothing: onnxruntime widens float16 in the graph, behind the weights."""
    narrow = value.astype(dtype)
    return narrow if np.array_equal(narrow.astype(value.dtype), value) else value


def ulps(got: np.ndarray, want: np.ndarray, dtype: str) -> np.ndarray:
    """``|got - exact| / ulp(exact)``; the spacing is that of ``dtype`` at the exact value."""
    near = want.astype(np.float64)
    spacing = np.spacing(np.abs(near).astype(dtype)).astype(np.float64)
    wide = np.vectorize(lambda v: mpmath.mpf(float(v)), otypes=[object])(got)
    return (np.abs(wide - want) / np.vectorize(mpmath.mpf, otypes=[object])(spacing)).astype(np.float64)


def output_error(case: Case, weight: np.ndarray, bias: np.ndarray, want: tuple[np.ndarray, np.ndarray]) -> float:
    """Largest error of the layer's outputs over 256 random inputs, in ulp of the largest output."""
    axis = 0 if case.operator == "Conv" else 1
    columns = [np.moveaxis(w.astype(np.float64), axis, -1).reshape(-1, OUTPUTS) for w in (weight, want[0])]
    inputs = np.random.default_rng(0).normal(size=(256, columns[0].shape[0]))
    got, right = (inputs @ c + b.astype(np.float64) for c, b in zip(columns, (bias, want[1]), strict=True))
    unit = float(np.spacing(np.abs(right).max().astype(case.dtype)))
    return float(np.abs(got - right).max() / unit)


def judge(case: Case, path: str) -> dict[str, Any]:
    """Errors of one tool in one case."""
    found = folded(path)
    if found is None:
        return {"folded": False}
    weight, bias = found
    want = exact(case)
    weight, bias = (stored(value, case.dtype) for value in (weight, bias))
    if str(weight.dtype) != case.dtype or weight.shape != want[0].shape:
        return {"folded": False, "why": f"weight is {weight.dtype}{list(weight.shape)}"}
    errors, bias_errors = ulps(weight, want[0], case.dtype), ulps(bias, want[1], case.dtype)
    return {
        "folded": True,
        "weight_max": float(errors.max()),
        "weight_mean": float(errors.mean()),
        "bias_max": float(bias_errors.max()),
        "output": output_error(case, weight, bias, want) if case.dtype != "float64" else None,
    }


def main() -> int:
    """Entry point of the process."""
    verb, folder, *made = sys.argv[1:]
    cases = {case.name: case for case in CASES}
    if verb == "make":
        for case in CASES:
            onnx.save(build(case), str(Path(folder) / f"{case.name}.onnx"))
        print(json.dumps(list(cases)))
        return 0
    for item in made:
        tool, _, name = item.partition("=")
        path = Path(folder) / f"{tool}-{name}.onnx"
        found = judge(cases[name], str(path)) if path.exists() else {"folded": False}
        print(json.dumps({"case": name, "tool": tool, **found}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
