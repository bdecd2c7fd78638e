"""An affine in front of an operator with a quantized weight: the scale goes into its scales where all of them take it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import build, count, fold, folds, initializers, integers, keeps

X = "float[2,4,5,5] x"
WEIGHT = "w = DequantizeLinear<axis={}>(q, s)\n"
POWER = np.float32(0.25)
EACH = np.float32([0.25, 0.5, 1])
TWO = np.float32(2)


def int8(*shape: int) -> np.ndarray[Any, Any]:
    return integers(shape, "q", np.int8, -5, 6)


KEPT: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "channels that are scaled differently": ("quantized", X, WEIGHT.format(0) + "n = BNscale4(x)\ny = Conv(n, w)", {"q": int8(3, 4, 2, 2), "s": POWER}),
    "channels of a group that are scaled differently": (
        "quantized", X, WEIGHT.format(0) + "n = BNscale4(x)\ny = Conv<group=2>(n, w)", {"q": int8(4, 2, 2, 2), "s": POWER}),
    "terms that are scaled differently": ("quantized", "float[2,4] x", WEIGHT.format(1) + "n = BNscale4(x)\ny = MatMul(n, w)", {"q": int8(4, 3), "s": POWER}),
    "a shift into padding": ("padding", X, WEIGHT.format(0) + "n = Add(x, k)\ny = Conv<pads=[1,1,1,1]>(n, w)",
                             {"q": int8(3, 4, 2, 2), "s": POWER, "k": TWO}),
    "a shift into a stride": ("shift", X, WEIGHT.format(1) + "n = Add(x, k)\ny = ConvTranspose<strides=[2,2]>(n, w)",
                              {"q": int8(4, 3, 2, 2), "s": POWER, "k": TWO}),
    "a bias that is computed": ("bias-not-constant", X + ", float[3] b", WEIGHT.format(0) + "n = Mul(x, k)\ny = Conv(n, w, b)",
                                {"q": int8(3, 4, 2, 2), "s": POWER, "k": TWO}),
    "an addend of rows that differ": ("bias-not-constant", "float[5,4] x, float[5,3] b", WEIGHT.format(1) + "n = Mul(x, k)\ny = Gemm(n, w, b)",
                                      {"q": int8(4, 3), "s": POWER, "k": TWO}),
    "an addend of rows": ("quantized", "float[3,4] x", WEIGHT.format(1) + "n = Mul(x, k)\ny = Gemm(n, w, b)",
                          {"q": int8(4, 3), "s": POWER, "k": TWO, "b": (3, 1)}),
    "an addend of rows and columns": ("quantized", "float[5,4] x", WEIGHT.format(1) + "n = Mul(x, k)\ny = Gemm(n, w, b)",
                                      {"q": int8(4, 3), "s": POWER, "k": TWO, "b": (5, 3)}),
    "a shift that would need an Add": ("no-gain", "float[5,2,4] x", WEIGHT.format(1) + "n = Add(x, k)\ny = MatMul(n, w)",
                                       {"q": int8(4, 3), "s": POWER, "k": TWO}),
}  # fmt: skip


@pytest.mark.parametrize(("code", "inputs", "nodes", "options"), KEPT.values(), ids=KEPT)
def test_must_not_change(code: str, inputs: str, nodes: str, options: dict[str, Any]) -> None:
    keeps(build(inputs, nodes, **options), code)


BOTH = "m = Mul(x, k)\nn = Add(m, k)\n"
ROWS = np.float32([2]).reshape(1, 1)
PAIRS = np.float32([2, 2, -4, -4]).reshape(4, 1, 1)
FOLDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Conv": (X, WEIGHT.format(0) + BOTH + "y = Conv(n, w)", {"q": int8(3, 4, 2, 2), "s": POWER}),
    "Conv, a scale for each channel": (X, WEIGHT.format(0) + BOTH + "y = Conv(n, w, b)", {"q": int8(3, 4, 2, 2), "s": EACH, "b": (3,)}),
    "Conv, padded": (X, WEIGHT.format(0) + "n = Mul(x, k)\ny = Conv<pads=[1,1,1,1]>(n, w, b)", {"q": int8(3, 4, 2, 2), "s": EACH, "b": (3,)}),
    "Conv, norms on both sides": (X, WEIGHT.format(0) + "m = Mul(x, k)\nn = Sub(k, m)\nc = Conv(n, w, b)\ny = BN3(c)",
                                  {"q": int8(3, 4, 2, 2), "s": EACH, "b": (3,)}),
    "Conv, two in front": (X, WEIGHT.format(0) + "m = Mul(x, k)\nr = Identity(m)\nn = Add(r, k)\nc = Conv(n, w, b)\ny = BN3(c)",
                           {"q": int8(3, 4, 2, 2), "s": EACH, "b": (3,)}),
    "Conv, depthwise": (X, WEIGHT.format(0) + "n = BN4(x)\ny = Conv<group=4>(n, w)", {"q": int8(4, 1, 2, 2), "s": POWER}),
    "Conv, depthwise with two filters each": (X, WEIGHT.format(0) + "n = BN4(x)\ny = Conv<group=4>(n, w)", {"q": int8(8, 1, 2, 2), "s": POWER}),
    "Conv, groups that are scaled alike": (X, WEIGHT.format(0) + "m = Mul(x, p)\nn = Add(m, p)\ny = Conv<group=2>(n, w)",
                                           {"q": int8(6, 2, 2, 2), "s": POWER, "p": PAIRS}),
    "Conv, a shift for each channel": (X, WEIGHT.format(0) + "n = BNshift4(x)\ny = Conv(n, w, b)", {"q": int8(3, 4, 2, 2), "s": EACH, "b": (3,)}),
    "ConvTranspose, scaled": (X, WEIGHT.format(1) + "n = Mul(x, k)\ny = ConvTranspose<strides=[2,2]>(n, w, b)",
                              {"q": int8(4, 3, 2, 2), "s": EACH, "b": (3,)}),
    "ConvTranspose, pointwise": (X, WEIGHT.format(1) + BOTH + "y = ConvTranspose(n, w, b)", {"q": int8(4, 3, 1, 1), "s": EACH, "b": (3,)}),
    "ConvTranspose, depthwise": (X, WEIGHT.format(0) + "n = BN4(x)\ny = ConvTranspose<group=4>(n, w)", {"q": int8(4, 1, 1, 1), "s": POWER}),
    "Gemm": ("float[5,4] x", WEIGHT.format(1) + BOTH + "y = Gemm<alpha=0.5, beta=2.0>(n, w, b)", {"q": int8(4, 3), "s": EACH, "b": (3,)}),
    "Gemm, shifted, an addend of rows": ("float[3,4] x", WEIGHT.format(1) + "n = Sub(x, j)\ny = Gemm(n, w, b)",
                                         {"q": int8(4, 3), "s": EACH, "b": (3, 1), "j": TWO}),
    "Gemm, transposed": ("float[4,5] x", WEIGHT.format(0) + BOTH + "y = Gemm<transA=1, transB=1>(n, w)", {"q": int8(3, 4), "s": EACH}),
    "Gemm, a bias of integers": ("float[5,4] x", WEIGHT.format(1) + "b = DequantizeLinear(i, e)\n" + BOTH + "y = Gemm(n, w, b)",
                                 {"q": int8(4, 3), "s": POWER, "i": np.int32([800, -40, 4]), "e": np.float32(2**-6)}),
    "MatMul, scaled": ("float[5,2,4] x", WEIGHT.format(1) + "n = Mul(x, k)\ny = MatMul(n, w)", {"q": int8(4, 3), "s": EACH}),
    "MatMul with a bias": ("float[5,2,4] x", WEIGHT.format(1) + BOTH + "c = MatMul(n, w)\ny = Add(c, b)", {"q": int8(4, 3), "s": EACH, "b": (3,), "affines": 1}),
    "MatMul with a bias and a norm": ("float[5,2,4] x", WEIGHT.format(1) + BOTH + "c = MatMul(n, w)\na = Add(c, b)\nd = Mul(a, f)\ny = Sub(f, d)",
                                      {"q": int8(4, 3), "s": EACH, "b": (3,), "f": np.float32([2, -1, 4]), "affines": 1}),
    "MatMul, a pair becomes an Add": ("float[5,2,4] x", WEIGHT.format(1) + BOTH + "y = MatMul(n, w)", {"q": int8(4, 3), "s": EACH, "affines": 1}),
    "MatMul, the weight on the left": ("float[4,5] x", WEIGHT.format(0) + "m = Mul(x, k)\ny = MatMul(w, m)", {"q": int8(3, 4), "s": EACH}),
    "MatMul, transposed": ("float[5,4] x", "v = DequantizeLinear<axis=0>(q, s)\nw = Transpose(v)\n" + BOTH + "c = MatMul(n, w)\ny = Add(c, b)",
                           {"q": int8(3, 4), "s": EACH, "b": (3,), "affines": 1}),
    "through a pool": (X, WEIGHT.format(0) + "n = BN4(x)\np = MaxPool<kernel_shape=[2,2]>(n)\ny = Conv<group=4>(p, w)".replace("BN4", "BNpos4"),
                       {"q": int8(4, 1, 2, 2), "s": POWER}),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "nodes", "options"), FOLDS.values(), ids=FOLDS)
def test_folds_exactly(inputs: str, nodes: str, options: dict[str, Any]) -> None:
    constants = {"k": TWO if "Sub" not in nodes else np.float32(-2)} if "k)" in nodes else {}
    options = constants | options
    affines = options.pop("affines", 0)
    folded = folds(build(inputs, nodes, **options), affines=affines)
    assert count(folded, "DequantizeLinear") == nodes.count("DequantizeLinear")
    assert {v.dtype for v in initializers(folded).values()} <= {np.dtype("f4"), np.dtype("i1"), np.dtype("i4")}


def test_a_norm_in_front_of_two_layers() -> None:
    """All or none: one has a weight of floats."""
    text = WEIGHT.format(0) + "n = BN4(x)\na = Conv<group=4>(n, w)\nb = Conv(n, W)\ny = Add(a, b)"
    folds(build(X, text, q=int8(4, 1, 2, 2), s=POWER, W=(4, 4, 2, 2)))


def test_it_says_in_front_of_what() -> None:
    report = fold(build(X, WEIGHT.format(0) + "n = BN4(x)\ny = Conv<group=4>(n, w)", q=int8(4, 1, 2, 2), s=POWER)).report
    assert [entry.route for entry in report.folded] == ["before Conv"]
