"""Float weights behind QuantizeLinear and DequantizeLinear: the integers in between stay what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_same, build, feeds_for, fold, initializers, integers, keeps, ops
from onnx.reference import ReferenceEvaluator

X = "float[2,4,5,5] x"
PAIR = "q = QuantizeLinear{0}(W, s, z)\nw = DequantizeLinear{0}(q, s, z)\n"
CONV = "c = Conv(x, w)\ny = BN3(c)"
ZERO = np.zeros((), np.int8)
QUARTER = np.float32(0.25)
EACH = np.float32([0.25, 0.5, 1])


def weight(*shape: int) -> np.ndarray[Any, Any]:
    """Numbers between the steps of the quantization, and one that is clipped."""
    values = integers(shape, "W", np.float32, -150, 151) * np.float32(0.2)
    values.ravel()[0] = 100
    return values


FILTERS = {"W": weight(3, 4, 2, 2), "s": QUARTER, "z": ZERO}
KEPT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dequantized by another scale": (X, PAIR.format("").replace("(q, s", "(q, t") + CONV, FILTERS | {"t": np.float32(0.5)}),
    "dequantized with another zero point": (X, PAIR.format("").replace("(q, s, z", "(q, s, o") + CONV, FILTERS | {"o": np.int8(1)}),
    "dequantized without a zero point": (X, PAIR.format("").replace("(q, s, z", "(q, s") + CONV, FILTERS),
    "integers that somebody else reads": (X, PAIR.format("") + CONV, FILTERS | {"outputs": "float[2,3,4,4] y, int8[3,4,2,2] q"}),
    "a weight that somebody else reads": (X, PAIR.format("") + CONV, FILTERS | {"outputs": "float[2,3,4,4] y, float[3,4,2,2] w"}),
    "an integer that cannot change its sign": (
        "int8[2,4,5,5] i", "x = DequantizeLinear(i, s, z)\n" + PAIR.format("") + CONV,
        FILTERS | {"W": np.full((3, 4, 2, 2), -100, np.float32), "outputs": "float[2,3,4,4] y"}),
    "integers that are turned before they are dequantized": (
        X, "p = QuantizeLinear(W, s, z)\nq = Identity(p)\nw = DequantizeLinear(q, s, z)\n" + CONV, FILTERS),
    "float16, in which runtimes divide as they please": (X.replace("float", "float16"), PAIR.format("") + CONV,
                                                         FILTERS | {"W": weight(3, 4, 2, 2).astype(np.float16), "s": np.float16(0.25),
                                                                    "opset": 21, "ir": 10, "norms_as": np.float16}),
    "a channel that vanishes": (X, PAIR.format("") + "c = Conv(x, w)\ny = Mul(c, k)", FILTERS | {"k": np.float32([1, 0, 2]).reshape(3, 1, 1)}),
    "scales along another axis than the channels": (X, PAIR.format("<axis=1>") + CONV, FILTERS | {"s": np.float32([1, 2, 1, 4]), "z": np.zeros(4, np.int8)}),
    "one scale before opset 13": (X, PAIR.format("") + CONV, FILTERS | {"opset": 11, "ir": 6}),
    "a bias that is quantized in the graph": (
        X, PAIR.format("") + "i = QuantizeLinear(B, s, z)\nb = DequantizeLinear(i, s, z)\nc = Conv(x, w, b)\ny = BN3(c)",
        FILTERS | {"B": np.float32([1, 2, 3])}),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "nodes", "constants"), KEPT.values(), ids=KEPT)
def test_must_not_change(inputs: str, nodes: str, constants: dict[str, Any]) -> None:
    keeps(build(inputs, nodes, **({"opset": 17, "ir": 8} | constants)), "quantized")


def test_a_computed_weight_stays() -> None:
    """It is quantized and dequantized like any other tensor on the way."""
    keeps(build(X + ", float[3,4,2,2] W", PAIR.format("") + CONV, s=QUARTER, z=ZERO), "weight-not-constant")


FOLDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Conv": (X, PAIR.format("") + CONV, FILTERS),
    "Conv, a scale for each channel": (X, PAIR.format("<axis=0>") + CONV, FILTERS | {"s": EACH, "z": np.zeros(3, np.int8)}),
    "Conv, axis from the end": (X, PAIR.format("<axis=-4>") + CONV, FILTERS | {"s": EACH, "z": np.zeros(3, np.int8)}),
    "Conv, unsigned": (X, PAIR.format("") + CONV, FILTERS | {"z": np.uint8(128), "W": weight(3, 4, 2, 2) / 4}),
    "Conv, the lowest integer": (X, PAIR.format("") + CONV, FILTERS | {"W": np.full((3, 4, 2, 2), -100, np.float32)}),
    "Conv, transposed": (X, PAIR.format("").replace("w =", "v =") + "w = Transpose<perm=[1, 0, 2, 3]>(v)\n" + CONV,
                         FILTERS | {"W": weight(4, 3, 2, 2)}),
    "Conv without a zero point": (X, PAIR.format("").replace(", z", "") + CONV, {"W": np.abs(weight(3, 4, 2, 2)) / 2, "s": QUARTER,
                                                                           "norm": "BNpos3"}),
    "ConvTranspose": (X, PAIR.format("") + "c = ConvTranspose(x, w)\ny = BN3(c)", FILTERS | {"W": weight(4, 3, 2, 2)}),
    "Gemm": ("float[2,4] x", PAIR.format("<axis=0>") + "c = Gemm <transB=1> (x, w)\ny = BN3(c)",
             {"W": weight(3, 4), "s": EACH, "z": np.zeros(3, np.int8)}),
    "MatMul": ("float[2,4] x", PAIR.format("<axis=1>") + "c = MatMul(x, w)\na = Add(c, b)\ny = BN3(a)",
               {"W": weight(4, 3), "s": EACH, "z": np.zeros(3, np.int8), "b": np.float32([1, 2, 3])}),
}  # fmt: skip


def zeros(model: onnx.ModelProto) -> np.ndarray[Any, Any]:
    """The zero points of the first node, for the first axis of its integers where there are more than one."""
    stored = {name: array.astype(int) for name, array in initializers(model).items()}
    zero = stored.get(model.graph.node[0].input[2] if len(model.graph.node[0].input) > 2 else "", np.zeros(1, int)).ravel()
    return zero[:1] if (zero == zero[0]).all() else zero.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("inputs", "nodes", "constants"), FOLDS.values(), ids=FOLDS)
def test_integers_stay(inputs: str, nodes: str, constants: dict[str, Any]) -> None:
    constants = dict(constants)
    model = build(inputs, nodes.replace("BN3", constants.pop("norm", "BN3")), opset=17, ir=8, **constants)
    folded = fold(model).model
    assert "BatchNormalization" not in ops(folded)
    assert ops(folded)[:2] == ["QuantizeLinear", "DequantizeLinear"]
    first, second = folded.graph.node[:2]
    stored = initializers(folded)
    np.testing.assert_array_equal(stored[first.input[1]], stored[second.input[1]])
    was, now = (ReferenceEvaluator(m.graph.node[0]).run(None, {n: initializers(m)[n] for n in m.graph.node[0].input})[0]
                for m in (model, folded))  # fmt: skip
    before, after = was.astype(int) - zeros(model), now.astype(int) - zeros(folded)
    np.testing.assert_array_equal(np.abs(after), np.abs(before))
    assert_same(model, folded, feeds_for(model))


def test_a_weight_close_to_the_border_becomes_what_its_integer_stands_for() -> None:
    """By 0.3, rounded to float32, the weight 0.5 would be on the other side of the middle between 0 and 1."""
    values = np.full((3, 4, 1, 1), 0.5, np.float32)
    values[:, 1:] = np.float32(0.25)
    factor = np.float32([0.3, 0.7, 1.9]).reshape(3, 1, 1)
    model = build(X, PAIR.format("") + "c = Conv(x, w)\ny = Mul(c, k)", opset=17, ir=8, W=values, s=np.float32(1), z=ZERO, k=factor)
    folded = fold(model).model
    stored = initializers(folded)
    new = stored[folded.graph.node[0].input[0]]
    np.testing.assert_array_equal(new[:, 0], 0)  # 0.5 is rounded to the even one
    np.testing.assert_array_equal(new[:, 1:], (values[:, 1:].astype(float) * factor[..., None].reshape(3, 1, 1, 1)).astype(np.float32))
