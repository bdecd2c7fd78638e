"""Weights behind DequantizeLinear: integers stay integers, scales take the factor, signs flip exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_same, build, feeds_for, fold, folds, initializers, integers, keeps

X = "float[2,4,5,5] x"
CONV = "w = DequantizeLinear<axis={axis}>(q, s, z)\nc = Conv(x, w)\ny = BN3(c)"
ZERO = np.zeros((), np.int8)
POWER = np.float32(0.25)


def int8(shape: tuple[int, ...], low: int = -5, high: int = 6) -> np.ndarray[Any, Any]:
    return integers(shape, "q", np.int8, low, high)


def conv(axis: int = 0, **constants: Any) -> onnx.ModelProto:
    defaults: dict[str, Any] = {"q": int8((3, 4, 2, 2)), "s": POWER, "z": ZERO}
    return build(X, CONV.format(axis=axis), **(defaults | constants))


def test_an_integer_that_leaves_its_range_when_its_sign_flips() -> None:
    """The first gamma is negative, and there is no 128 in int8."""
    keeps(conv(q=np.full((3, 4, 2, 2), -128, np.int8)), "quantized")


def test_a_weight_with_another_reader() -> None:
    text = CONV.format(axis=0) + "\nr = Identity(w)"
    model = build(X, text, "float[2,3,4,4] y, float[3,4,2,2] r", q=int8((3, 4, 2, 2)), s=POWER, z=ZERO)
    keeps(model, "quantized")


def test_scales_along_another_axis() -> None:
    keeps(conv(axis=1, s=np.full(4, 0.25, np.float32), z=np.zeros(4, np.int8)), "quantized")


def test_dynamic_quantization() -> None:
    text = "i = ConvInteger(x, q)\nf = Cast<to=1>(i)\ny = BN3(f)"
    keeps(build("uint8[2,4,5,5] x", text, "float[2,3,4,4] y", q=int8((3, 4, 2, 2))), "blocked")


def test_a_single_scale_before_opset_13() -> None:
    text = "w = DequantizeLinear(q, s, z)\nc = Conv(x, w)\ny = BN3(c)"
    keeps(build(X, text, opset=11, q=int8((3, 4, 2, 2)), s=POWER, z=ZERO), "quantized")


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("operator", "shape", "axis", "x", "channels"),
    [
        ("Conv(x, w)", (3, 4, 2, 2), 0, X, 3),
        ("ConvTranspose(x, w)", (4, 3, 2, 2), 1, X, 3),
        ("ConvTranspose<group=4>(x, w)", (4, 1, 2, 2), 0, X, 4),
        ("Gemm(x, w)", (4, 3), 1, "float[2,4] x", 3),
        ("Gemm<transB=1>(x, w)", (3, 4), 0, "float[2,4] x", 3),
        ("MatMul(x, w)", (4, 3), 1, "float[2,4] x", 3),
    ],
)
def test_folds_exactly(
    operator: str, shape: tuple[int, ...], axis: int, x: str, channels: int, per_channel: bool
) -> None:
    text = f"w = DequantizeLinear<axis={axis}>(q, s, z)\nc = {operator}\ny = BN{channels}(c)"
    scale = np.exp2(np.arange(channels) - 2).astype(np.float32) if per_channel else POWER
    zero = np.zeros(scale.shape, np.int8)
    folded = folds(build(x, text, q=int8(shape), s=scale, z=zero), affines=int("MatMul" in operator))
    assert folded.graph.node[0].op_type == "DequantizeLinear"
    assert {t.data_type for t in folded.graph.initializer if tuple(t.dims) == shape} == {onnx.TensorProto.INT8}


def test_unsigned_integers_flip_about_their_zero_point() -> None:
    model = conv(q=integers((3, 4, 2, 2), "q", np.uint8, 120, 137), z=np.array(128, np.uint8))
    folds(model)


def test_a_float_bias_takes_scale_and_shift() -> None:
    text = CONV.format(axis=0).replace("Conv(x, w)", "Conv(x, w, b)")
    folds(build(X, text, q=int8((3, 4, 2, 2)), s=POWER, z=ZERO, b=(3,)))


@pytest.mark.parametrize("zero", ["", ", j"], ids=["no zero point", "zero point"])
def test_a_quantized_bias_is_quantized_again(zero: str) -> None:
    """Within half a step of the new scale, which is the old one times the size of the factor."""
    text = f"w = DequantizeLinear<axis=0>(q, s, z)\nb = DequantizeLinear(i, t{zero})\nc = Conv(x, w, b)\ny = BN3(c)"
    constants: dict[str, Any] = {"i": np.array([900, -70, 5], np.int32), "t": np.float32(1e-3), "j": np.int32(0)}
    model = build(X, text, q=int8((3, 4, 2, 2)), s=POWER, z=ZERO, **constants)
    folded = fold(model).model
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    values = initializers(folded)
    (bias,) = (n for n in folded.graph.node if n.op_type == "DequantizeLinear" and values[n.input[0]].dtype == np.int32)
    assert values[bias.input[1]].shape == (3,)
    original, result = (onnx.reference.ReferenceEvaluator(m) for m in (model, folded))
    feeds = feeds_for(model)
    (want,), (got,) = original.run(None, feeds), result.run(None, feeds)
    step = values[bias.input[1]].reshape(1, 3, 1, 1)
    assert np.all(np.abs(want - got) <= 0.5001 * step + 1e-4)


def test_blocks_of_scales() -> None:
    """Block-wise along the input channels leaves the output channels a scale of their own."""
    text = "w = DequantizeLinear<axis=0, block_size=2>(q, s, z)\nc = Gemm(x, w)\ny = BNpos3(c)"
    scale = np.exp2(integers((2, 3), "s", low=-2, high=2)).astype(np.float32)
    model = build("float[2,4] x", text, q=int8((4, 3)), s=scale, z=np.zeros((2, 3), np.int8))
    folded = fold(model).model
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    assert_same(model, folded, feeds_for(model))


CONV_BIAS = "w = DequantizeLinear(q, s)\nb = DequantizeLinear(i, {})\nc = Conv(x, w, b)\ny = BN3(c)"
FILTERS = {"q": int8((3, 4, 2, 2)), "s": POWER}
COUNTS = np.array([1, 2, 3])

REFUSED = {
    "a computed scale": (
        "quantized",
        X + ", float s",
        "w = DequantizeLinear(q, s)\nc = Conv(x, w)\ny = BN3(c)",
        {"q": FILTERS["q"]},
    ),
    "groups that share channels": (
        "quantized",
        X,
        "w = DequantizeLinear(q, s)\nc = ConvTranspose <group=2> (x, w)\ny = BN4(c)",
        {"q": int8((4, 2, 2, 2)), "s": POWER},
    ),
    "alpha": (
        "quantized",
        "float[2,4] x",
        "w = DequantizeLinear(q, s)\nc = Gemm <alpha=0.5> (x, w)\ny = BN3(c)",
        {"q": int8((4, 3)), "s": POWER},
    ),
    "a computed bias": (
        "bias-not-constant",
        X + ", float[3] b",
        "w = DequantizeLinear(q, s)\nc = Conv(x, w, b)\ny = BN3(c)",
        FILTERS,
    ),
    "a computed quantized bias": ("quantized", X + ", int32[3] i", CONV_BIAS.format("s"), FILTERS),
    "a bias of eight bits": ("quantized", X, CONV_BIAS.format("s"), FILTERS | {"i": COUNTS.astype(np.int8)}),
    "a bias with a zero point": (
        "quantized",
        X,
        CONV_BIAS.format("s, j"),
        FILTERS | {"i": COUNTS.astype(np.int32), "j": np.int32(1)},
    ),
    "a bias that leaves its range": (
        "quantized",
        X,
        CONV_BIAS.format("t"),
        FILTERS | {"i": COUNTS.astype(np.int32), "t": np.float32(1e-12)},
    ),
    "a bias whose scale vanishes": (
        "quantized",
        X,
        CONV_BIAS.format("t"),
        FILTERS | {"i": COUNTS.astype(np.int32), "t": np.float32(1e-45)},
    ),
    "a bias that is too short": ("quantized", X, CONV_BIAS.format("s"), FILTERS | {"i": COUNTS[:2].astype(np.int32)}),
    "scales that fit no axis": (
        "quantized",
        X,
        "w = DequantizeLinear <axis=0> (q, s)\nc = Conv(x, w)\ny = BN3(c)",
        FILTERS | {"s": np.full(2, 0.25, np.float32)},
    ),
    "zero points that fit no scales": (
        "quantized",
        X,
        "w = DequantizeLinear <axis=0> (q, s, z)\nc = Conv(x, w)\ny = BN3(c)",
        FILTERS | {"z": np.zeros(2, np.int8)},
    ),
    "a scale that overflows": (
        "overflow",
        X,
        "w = DequantizeLinear(q, s)\nc = Conv(x, w)\ny = BN3(c)",
        FILTERS | {"s": np.float32(3e38)},
    ),
    "blocks across channels": (
        "quantized",
        "float[2,4] x",
        "w = DequantizeLinear <axis=1, block_size=2> (q, s)\nc = Gemm(x, w)\ny = BNpos4(c)",
        {"q": int8((4, 4)), "s": np.full((4, 2), 0.25, np.float32)},
    ),
    "blocks of negative channels": (
        "quantized",
        "float[2,4] x",
        "w = DequantizeLinear <axis=0, block_size=2> (q, s)\nc = Gemm(x, w)\ny = BN4(c)",
        {"q": int8((4, 4)), "s": np.full((2, 4), 0.25, np.float32)},
    ),
}


@pytest.mark.parametrize(("code", "inputs", "nodes", "constants"), REFUSED.values(), ids=REFUSED)
def test_what_the_quantization_cannot_express(code: str, inputs: str, nodes: str, constants: dict[str, Any]) -> None:
    keeps(build(inputs, nodes, **constants), code)
