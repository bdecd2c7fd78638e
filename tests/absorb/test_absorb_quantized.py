"""Weights behind DequantizeLinear: integers stay integers, scales take the factor, signs flip exactly."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import assert_same, build, count, feeds_for, fold, folds, initializers, integers, keeps
from onnx import helper

import bnfold

X = "float[2,4,5,5] x"
CONV = "w = DequantizeLinear<axis={axis}>(q, s, z)\nc = Conv(x, w)\ny = BN3(c)"
ZERO = np.zeros((), np.int8)
POWER = np.float32(0.25)
FOUR_BITS, FOUR_UNSIGNED, EIGHT_FLOAT = ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn


def int8(shape: tuple[int, ...], low: int = -5, high: int = 6) -> np.ndarray[Any, Any]:
    return integers(shape, "q", np.int8, low, high)


CONV_BIAS = "w = DequantizeLinear(q, s)\nb = DequantizeLinear(i, {})\nc = Conv(x, w, b)\ny = BN3(c)"
FILTERS = {"q": int8((3, 4, 2, 2)), "s": POWER}
COUNTS = np.array([1, 2, 3])
COARSE = "x = DequantizeLinear(d, e)\n" + CONV_BIAS.format("t")
ACCUMULATED = {"i": COUNTS.astype(np.int32), "e": np.float32(64)}

TRANSPOSED = "d = DequantizeLinear<axis=0>(q, s)\nw = {}\nc = {}\ny = BN3(c)"

KEPT = {
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
    "a bias in blocks": (
        "quantized",
        X,
        CONV_BIAS.format("t").replace("b = DequantizeLinear", "b = DequantizeLinear <axis=0, block_size=2>"),
        FILTERS | {"i": COUNTS.astype(np.int32), "t": np.float32([1, 2])},
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
    "a scale that is no number": (
        "overflow",
        X,
        "w = DequantizeLinear(q, s)\nc = Conv(x, w)\ny = BN3(c)",
        FILTERS | {"s": np.float32(np.nan)},
    ),
    "negative scales that overflow": (
        "overflow",
        X,
        "w = DequantizeLinear(q, s)\nc = Conv(x, w)\ny = BN3(c)",
        FILTERS | {"s": np.float32(-3e38)},
    ),
    "a bias whose scale overflows": (
        "quantized",
        X,
        CONV_BIAS.format("t"),
        FILTERS | {"i": COUNTS.astype(np.int32), "t": np.float32(3e38)},
    ),
    "a bias too coarse for the shift": (
        "quantized",
        X,
        CONV_BIAS.format("t"),
        FILTERS | {"i": COUNTS.astype(np.int32), "t": np.float32(1000)},
    ),
    "an addend of integers, one for each row": (
        "quantized",
        "float[3,4] x",
        "w = DequantizeLinear(q, s)\nb = DequantizeLinear(i, s)\nc = Gemm(x, w, b)\ny = BN3(c)",
        {"q": int8((4, 3)), "s": POWER, "i": COUNTS.astype(np.int32).reshape(3, 1)},
    ),
    "an addend of integers that does not count": (
        "quantized",
        "float[3,4] x",
        "w = DequantizeLinear(q, s)\nb = DequantizeLinear(i, s)\nc = Gemm <beta=0.0> (x, w, b)\ny = BN3(c)",
        {"q": int8((4, 3)), "s": POWER, "i": COUNTS.astype(np.int32)},
    ),
    "a transposed weight that others read": (
        "quantized",
        "float[2,4] x",
        TRANSPOSED.format("Transpose(d)", "MatMul(x, w)"),
        {"q": int8((3, 4)), "s": POWER, "outputs": "float[2,3] y, float[4,3] w"},
    ),
    "scales along another axis, transposed": (
        "quantized",
        "float[2,3] x",
        TRANSPOSED.format("Transpose(d)", "MatMul(x, w)").replace("axis=0", "axis=1"),
        {"q": int8((3, 3)), "s": np.float32([1, 2, 4])},
    ),
    "a bias of integers beside a weight of floats": (
        "quantized",
        X,
        "b = DequantizeLinear(i, s)\nc = Conv(x, W, b)\ny = BN3(c)",
        {"W": (3, 4, 2, 2), "s": POWER, "i": COUNTS.astype(np.int32)},
    ),
    "an addend of integers beside a weight of floats": (
        "quantized",
        "float[2,4] x",
        "b = DequantizeLinear(i, s)\nc = Gemm(x, W, b)\ny = BN3(c)",
        {"W": (4, 3), "s": POWER, "i": COUNTS.astype(np.int32)},
    ),
    "constants on both sides, of which one is quantized": (
        "quantized",
        "float[3,3] x",
        "w = DequantizeLinear(q, s)\nc = MatMul(A, w)\nt = Transpose(c)\nn = BN3(t)\ny = Max(n, x)",
        {"A": (3, 3), "q": int8((3, 3)), "s": POWER},
    ),
    "an integer that leaves its range when its sign flips": (  # the first gamma is negative: there is no 128 in int8
        "quantized",
        "int8[2,4,5,5] d",
        "x = DequantizeLinear(d, s)\n" + CONV.format(axis=0),
        FILTERS | {"q": np.full((3, 4, 2, 2), -128, np.int8), "z": ZERO, "outputs": "float[2,3,4,4] y"},
    ),
    "an integer that leaves its range, beside moved integers": (
        "quantized",
        "uint8[2,4,10,10] d",
        "e = DequantizeLinear(d, s)\nx = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(e)\n" + CONV.format(axis=0),
        {"q": integers((3, 4, 2, 2), "q", np.uint8, 0, 256), "z": np.uint8(100), "s": POWER, "outputs": "float[2,3,4,4] y"},
    ),
    "a block of channels of both signs that leaves its range": (
        "quantized",
        "float[2,3] x",
        "w = DequantizeLinear<axis=1, block_size=2>(q, s)\nm = MatMul(x, w)\ny = Mul(m, k)",
        {"q": np.array([[-8, 3], [2, -8], [1, 1]]).astype(FOUR_BITS), "s": np.float32([[1], [2], [1]]), "k": np.float32([2, -2])},
    ),
    "rows of a product of integers": (
        "quantized",
        "uint8[3,4] d",
        "w = DequantizeLinear(q, s, z)\nx = DequantizeLinear(d, s, z)\nc = MatMul(w, x)\ny = Mul(c, k)",
        {"q": integers((2, 3), "q", np.uint8, 0, 256), "s": POWER, "z": np.uint8(128), "k": np.float32([[2], [4]]),
         "outputs": "float[2,4] y"},
    ),
    "a shift behind a product of int8 of rank 3": (
        "quantized",
        "int8[2,5,4] d",
        "w = DequantizeLinear(q, s)\nx = DequantizeLinear(d, s)\nc = MatMul(x, w)\nm = Mul(c, k)\ny = Add(m, k)",
        {"q": int8((4, 3)), "s": POWER, "k": np.float32([2, 4, -1]), "outputs": "float[2,5,3] y", "codes": ["quantized", "quantized"]},
    ),
    "a sum of integers that leaves its range": (
        "quantized",
        X,
        "w = DequantizeLinear(q, s)\nc = Conv(x, w)\ny = BN3(c)",
        FILTERS | {"q": np.full((3, 4, 2, 2), -(2**31), np.int32)},
    ),
    "scales along another axis": (
        "quantized",
        X,
        CONV.format(axis=1),
        {"q": FILTERS["q"], "s": np.full(4, 0.25, np.float32), "z": np.zeros(4, np.int8)},
    ),
    "dynamic quantization": (
        "quantized",
        "uint8[2,4,5,5] x",
        "i = ConvInteger(x, q)\nf = Cast <to=1> (i)\ny = BN3(f)",
        {"q": FILTERS["q"], "outputs": "float[2,3,4,4] y"},
    ),
    "dynamic quantization, scaled": (
        "quantized",
        X,
        "a, b, d = DynamicQuantizeLinear(x)\ni = ConvInteger(a, q, d)\nf = Cast <to=1> (i)\nc = Mul(f, b)\ny = BN3(c)",
        {"q": FILTERS["q"]},
    ),
    "an operator on integers": (
        "quantized",
        "uint8[2,4,5,5] x",
        "i = QLinearConv(x, s, z, q, s, o, s, z)\nf = DequantizeLinear(i, s, z)\ny = BN3(f)",
        FILTERS | {"z": np.uint8(3), "o": np.int8(0), "outputs": "float[2,3,4,4] y"},
    ),
    "an operator of onnxruntime on integers": (
        "quantized",
        X,
        "c = com.microsoft.DynamicQuantizeMatMul(x, q, s)\ny = BN4(c)",
        {"q": int8((5, 5)), "s": POWER, "imports": {"com.microsoft": 1}, "outputs": "float[2,4,5,5] y"},
    ),
    "groups that share the scales": (
        "quantized",
        X,
        "w = DequantizeLinear<axis=1>(q, s)\nc = ConvTranspose<group=2>(x, w)\ny = BN6(c)",
        {"q": int8((4, 3, 2, 2)), "s": np.float32([0.25, 0.5, 1])},
    ),
    "an activation that the operator applies": (
        "blocked",
        X,
        'w = DequantizeLinear<axis=0>(q, s)\nc = com.microsoft.FusedConv<activation="Relu">(x, w)\ny = BN3(c)',
        FILTERS | {"imports": {"com.microsoft": 1}, "outputs": "float[2,3,4,4] y"},
    ),
    "a single scale before opset 13": (
        "quantized",
        X,
        "w = DequantizeLinear(q, s, z)\nc = Conv(x, w)\ny = BN3(c)",
        FILTERS | {"z": ZERO, "opset": 11},
    ),
    "a type whose sign is not flipped": (
        "quantized",
        X,
        "w = DequantizeLinear(q, s)\nc = Conv(x, w)\ny = BN3(c)",
        {"q": np.ones((3, 4, 1, 1)).astype(ml_dtypes.float4_e2m1fn), "s": POWER, "opset": 23},
    ),
    "a weight on the left of what may be a vector": (
        "quantized",
        "float[4,2] x, int64[r] s",
        "w = DequantizeLinear(q, e)\nv = Reshape(x, s)\nc = MatMul(w, v)\ny = Mul(c, k)",
        {"q": int8((3, 4)), "e": POWER, "k": np.float32(2), "outputs": "float[a,b] y"},
    ),
    "a coarse bias whose accumulator is finer": (
        "quantized",
        "uint8[2,4,5,5] d",
        COARSE,
        FILTERS | ACCUMULATED | {"t": np.float32(32), "outputs": "float[2,3,4,4] y"},
    ),
}


@pytest.mark.parametrize(("code", "inputs", "nodes", "options"), KEPT.values(), ids=KEPT)
def test_must_not_change(code: str, inputs: str, nodes: str, options: dict[str, Any]) -> None:
    """What the quantization cannot express stays."""
    codes = options.get("codes", [code])
    keeps(build(inputs, nodes, **{name: value for name, value in options.items() if name != "codes"}), *codes)


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


@pytest.mark.parametrize("per_channel", [False, True])
def test_groups_that_share_the_scales_take_one_factor(per_channel: bool) -> None:
    text = "w = DequantizeLinear<axis=1>(q, s)\nc = ConvTranspose<group=2>(x, w)\na = Add(c, k)\ny = Mul(a, f)"
    scale = np.float32([0.25, 0.5, 1]) if per_channel else POWER
    folds(build(X, text, q=int8((4, 3, 2, 2)), s=scale, k=(6, 1, 1), f=np.float32(-2)))


def test_a_fused_operator_without_an_activation() -> None:
    text = "w = DequantizeLinear<axis=0>(q, s)\nc = com.microsoft.FusedConv(x, w)\ny = BN3(c)"
    model = build(X, text, "float[2,3,4,4] y", imports={"com.microsoft": 1}, **FILTERS)
    result = fold(model)
    assert not result.report.kept
    assert_same(model, result.model, feeds_for(model))


def test_unsigned_integers_flip_about_their_zero_point() -> None:
    weight = integers((3, 4, 2, 2), "q", np.uint8, 120, 137)
    folds(build(X, CONV.format(axis=0), q=weight, s=POWER, z=np.array(128, np.uint8)))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("kind", "low", "high", "zero"),
    [(np.int8, -128, 128, 0), (np.int8, -128, 128, None), (np.uint8, 0, 256, 90), (np.uint8, 0, 256, None),
     (np.uint16, 0, 1 << 16, 7), (FOUR_BITS, -8, 8, 0), (FOUR_UNSIGNED, 0, 16, 3)],
)  # fmt: skip
def test_integers_at_the_end_of_their_range_turn_with_their_zero_point(
    kind: Any, low: int, high: int, zero: int | None, per_channel: bool
) -> None:
    """The numbers that they stand for only change their sign, where nothing else computes with the integers."""
    weight = small(kind, (3, 4, 2, 2), low, high)
    weight.ravel()[[0, 1]] = np.array([low, high - 1]).astype(kind)
    shape = (3,) if per_channel else ()
    constants = {"s": np.full(shape, 0.25, np.float32)}
    constants |= {} if zero is None else {"z": np.full(shape, zero).astype(kind)}
    text = CONV.format(axis=0) if zero is not None else CONV.format(axis=0).replace(", z", "")
    model = build(X, text, q=weight, opset=21, **constants)
    reference(model, folds(model, exact=False))


@pytest.mark.parametrize("point", [[[0, 1, 2], [2, 1, 0]], None], ids=["zero points", "no zero points"])
@pytest.mark.parametrize(("along", "sizes"), [(0, (6, 3)), (1, (2, 6))])
def test_blocks_at_the_end_of_their_range(along: int, sizes: tuple[int, int], point: list[list[int]] | None) -> None:
    text = f"w = DequantizeLinear<axis={along}, block_size=3>(q, s{', z' if point else ''})\nc = Gemm(x, w)\ny = Mul(c, k)"
    scale = np.exp2(integers((2, 3) if along == 0 else (2, 2), "s", low=-2, high=2)).astype(np.float32)
    zero = {"z": np.array(point, np.int8)[:, : scale.shape[1]]} if point else {}
    factors = np.float32([-2, 4, -1] if along == 0 else [-2, -2, -2, 4, 4, 4])
    weight = np.where(np.arange(sizes[0] * sizes[1]) % 2, np.int8(-128), np.int8(127)).astype(np.int8).reshape(sizes)
    model = build(f"float[2,{sizes[0]}] x", text, q=weight, s=scale, k=factors, opset=21, **zero)
    reference(model, folds(model, exact=False))


@pytest.mark.parametrize("zero", [None, 90])
def test_channels_of_one_scale_and_different_signs(zero: int | None) -> None:
    """One scale would do for all, one zero point not."""
    text = CONV.format(axis=0).replace("BN3(c)", "Mul(c, k)").replace("(q, s, z)", "(q, s)" if zero is None else "(q, s, z)")
    constants: dict[str, Any] = {} if zero is None else {"z": np.uint8(zero)}
    factors = np.float32([-2, 2, -2]).reshape(3, 1, 1)
    folds(build(X, text, q=integers((3, 4, 2, 2), "q", np.uint8, 0, 256), s=POWER, k=factors, **constants))


def test_a_copy_with_a_zero_point_that_the_original_has_not() -> None:
    text = "[name] w = DequantizeLinear(q, s)\nr = Identity(w)\nc = Conv(x, w)\ny = BN3(c)"
    folds(build(X, text, "float[2,3,4,4] y, float[3,4,2,2] r", q=integers((3, 4, 2, 2), "q", np.uint8, 0, 256), s=POWER))


def test_one_zero_point_for_all_stays_one_beside_integers() -> None:
    """All channels turn, so that kernels on integers still find a single zero point."""
    text = "x = DequantizeLinear(d, s)\n" + CONV.format(axis=0).replace("BN3(c)", "Mul(c, k)")
    weight = integers((3, 4, 2, 2), "q", np.uint8, 0, 256)
    factors = np.float32([-2, -4, -1]).reshape(3, 1, 1)
    model = build("uint8[2,4,5,5] d", text, "float[2,3,4,4] y", q=weight, s=POWER, z=np.uint8(100), k=factors)
    folded = folds(model)
    assert {v.tobytes() for n, v in initializers(folded).items() if v.dtype == np.uint8 and v.size == 3} == {bytes([155] * 3)}


TRANSPOSES = [
    ("Transpose(d)", "MatMul(x, w)", (3, 4), 0, "float[2,4] x"),
    ("Transpose<perm=[1, 0]>(d)", "Gemm(x, w)", (3, 4), 0, "float[2,4] x"),
    ("Transpose(d)", "Gemm<transB=1>(x, w)", (4, 3), 1, "float[2,4] x"),
    ("Transpose<perm=[0, 1]>(d)", "MatMul(x, w)", (4, 3), 1, "float[2,4] x"),
    ("Transpose<perm=[3, 2, 0, 1]>(d)", "Conv(x, w)", (2, 2, 4, 3), 3, X),
]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("transpose", "operator", "shape", "axis", "x"), TRANSPOSES)
def test_a_weight_that_is_transposed_behind_its_integers(
    transpose: str, operator: str, shape: tuple[int, ...], axis: int, x: str, per_channel: bool
) -> None:
    text = TRANSPOSED.format(transpose, operator).replace("axis=0", f"axis={axis}")
    scale = np.exp2(np.arange(3) - 2).astype(np.float32) if per_channel else POWER
    folded = folds(build(x, text, q=int8(shape), s=scale), affines=int("MatMul" in operator))
    assert count(folded, "Transpose") == 1
    assert {t.data_type for t in folded.graph.initializer if tuple(t.dims) == shape} == {onnx.TensorProto.INT8}


def test_a_tied_weight_that_is_transposed_for_the_last_layer() -> None:
    """As embeddings read it, too, the layer gets a copy."""
    text = "d = DequantizeLinear<axis=0>(q, s)\ng = Gather(d, x)\nw = Transpose(d)\nc = MatMul(g, w)\ny = Mul(c, k)"
    factors = np.float32([1, -2, 4, 8])
    model = build("int64[5] x", text, "float[5,4] y", q=int8((4, 6)), s=POWER, k=factors)
    folded = folds(model)
    assert count(folded, "DequantizeLinear") == 2


@pytest.mark.parametrize(("kind", "opset"), [("uint8", 21), ("int8", 20)])
def test_a_shift_behind_a_product_of_rank_3_that_onnxruntime_loads(kind: str, opset: int) -> None:
    text = "w = DequantizeLinear(q, s)\nx = DequantizeLinear(d, s)\nc = MatMul(x, w)\nm = Mul(c, k)\na = Add(m, k)\ny = QuantizeLinear(a, s)"
    constants = {"q": int8((4, 3)), "s": POWER, "k": np.float32([2, 4, -1])}
    folded = fold(build(f"{kind}[2,5,4] d", text, "uint8[2,5,3] y", opset=opset, **constants)).model
    assert count(folded, "Mul") == 0
    onnxruntime.InferenceSession(folded.SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_transpose_that_is_none() -> None:
    """Such a model runs nowhere, but is read and left alone."""
    text = TRANSPOSED.format("Transpose<perm=[0, 2, 1]>(d)", "MatMul(x, w)")
    report = bnfold.fold(build("float[2,3] x", text, q=int8((3, 3)), s=POWER), verify=False).report
    assert [entry.code for entry in report.kept] == ["quantized"]


def test_a_large_weight_that_is_transposed() -> None:
    """Larger than what is computed beforehand."""
    text = TRANSPOSED.format("Transpose(d)", "MatMul(x, w)").replace("BN3(c)", "Mul(c, k)")
    model = build("float[1,2048] x", text, q=int8((1024, 2048)), s=POWER, k=np.float32(-2))
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


def test_a_weight_and_a_bias_that_others_read_too() -> None:
    """The operator gets copies of its own, as float weights do."""
    text = CONV_BIAS.format("s").replace("w =", "[name] w =") + "\nr = Identity(w)\nd = Conv(x, w, b)\nv = BN3(d)"
    outputs = "float[2,3,4,4] y, float[3,4,2,2] r, float[2,3,4,4] v"
    folded = folds(build(X, text, outputs, i=COUNTS.astype(np.int32), **FILTERS | {"s": np.float32(2.0**-12)}))
    assert count(folded, "DequantizeLinear") == 5


PASSING = "m = Mul(x, f)\nw = DequantizeLinear(q, s)\nc = MatMul(m, w)\nn = BN4(c)\nt = Abs(n)\ny = {}"


def test_a_scale_that_passes_a_product_with_a_shift_behind_it() -> None:
    """What the product took in already must be divided by the scale."""
    model = build("float[3,4] x", PASSING.format("Gemm(t, V)"), f=np.float32(2), q=int8((4, 4)), s=POWER, V=(4, 2))
    folds(model, affines=1)


def test_a_scale_of_rows_does_not_pass_a_shift_of_columns() -> None:
    rows = np.float32([1, 2, 4]).reshape(3, 1)
    model = build("float[3,4] x", PASSING.format("MatMul(V, t)"), f=rows, q=int8((4, 4)), s=POWER, V=(2, 3))
    result = fold(model)
    assert [(entry.node, entry.code) for entry in result.report.kept] == [("Mul:m", "shift")]
    assert_same(model, result.model, feeds_for(model))


def test_what_nobody_else_reads_any_more() -> None:
    """The bias is gamma and beta, too: its other readers vanish, and its integers stay with the copy."""
    text = "w = DequantizeLinear(q, s)\nb = DequantizeLinear(i, s)\ng = Gemm(x, w, b)\nn = Neg(g)\n"
    norm = "y = BatchNormalization<epsilon=0.0>(n, b, b, e, v)"
    values = {"i": np.array([4, 8], np.int32), "e": np.float32([2, 1]), "v": np.float32([1, 4])}
    folded = folds(build("float[3,4] x", text + norm, q=int8((4, 2)), s=np.float32(0.25), **values))
    assert count(folded, "DequantizeLinear") == 2


def test_the_shift_behind_a_quantized_product_goes_on_where_something_takes_it() -> None:
    """Not into an Add of its own, which only a second fold would then move on."""
    text = "w = DequantizeLinear(q, s)\nc = MatMul(x, w)\nn = BN2(c)\ny = Gemm(n, V)"
    folded = folds(build("float[5,4] x", text, q=int8((4, 2)), s=np.float32(0.25), V=(2, 3)))
    assert count(folded, "Add") == 0


def test_blocks_of_scales() -> None:
    """Block-wise along the input channels leaves the output channels a scale of their own."""
    text = "w = DequantizeLinear<axis=0, block_size=2>(q, s, z)\nc = Gemm(x, w)\ny = BNpos3(c)"
    scale = np.exp2(integers((2, 3), "s", low=-2, high=2)).astype(np.float32)
    model = build("float[2,4] x", text, q=int8((4, 3)), s=scale, z=np.zeros((2, 3), np.int8))
    folded = fold(model).model
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    assert_same(model, folded, feeds_for(model))


def small(kind: Any, shape: tuple[int, ...], low: int, high: int) -> np.ndarray[Any, Any]:
    return integers(shape, "q", np.float32, low, high).astype(kind)


@pytest.mark.parametrize("norm", ["BN3", "BNpos3"])
@pytest.mark.parametrize(
    ("kind", "low", "high", "zero"),
    [(FOUR_BITS, -7, 8, 0), (FOUR_BITS, -3, 4, 1), (FOUR_UNSIGNED, 2, 15, 8), (EIGHT_FLOAT, -7, 8, 0)],
)
def test_small_types_flip_too(kind: Any, low: int, high: int, zero: int, norm: str) -> None:
    """With a count that is odd, as two numbers of four bits share a byte."""
    text = f"w = DequantizeLinear(q, s, z)\nc = Conv(x, w)\ny = {norm}(c)"
    model = build(
        "float[2,5,5,5] x", text, q=small(kind, (3, 5, 1, 1), low, high), s=POWER, z=np.array(zero).astype(kind)
    )
    folded = folds(model)
    (weight,) = (t for t in folded.graph.initializer if tuple(t.dims) == (3, 5, 1, 1))
    assert weight.data_type == helper.np_dtype_to_tensor_dtype(np.dtype(kind))


BLOCKS = np.exp2(integers((2, 3), "s", low=-2, high=2)).astype(np.float32)


@pytest.mark.parametrize("zero", [None, np.array([[1, -2, 3], [0, 2, -1]], np.int8)])
def test_blocks_of_negative_channels_flip_about_their_own_zero_points(zero: np.ndarray[Any, Any] | None) -> None:
    """Two blocks of three, the second of which is cut short."""
    point = "" if zero is None else ", z"
    text = f"w = DequantizeLinear<axis=0, block_size=3>(q, s{point})\nc = Gemm(x, w)\ny = BN3(c)"
    model = build("float[2,5] x", text, q=int8((5, 3)), s=BLOCKS, **({} if zero is None else {"z": zero}))
    folded = fold(model).model
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    reference(model, folded)


def test_blocks_of_channels_that_are_scaled_alike() -> None:
    text = "w = DequantizeLinear<axis=1, block_size=2>(q, s)\nc = Gemm(x, w)\ny = Mul(c, k)"
    factors = np.array([2, 2, -4, -4, 8], np.float32)
    model = build("float[2,4] x", text, q=int8((4, 5)), s=np.full((4, 3), 0.25, np.float32), k=factors)
    reference(model, folds(model, exact=False))


def reference(model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    feeds = feeds_for(model)
    (want,), (got,) = (onnx.reference.ReferenceEvaluator(m).run(None, feeds) for m in (model, folded))
    np.testing.assert_array_equal(want, got)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("factors", ["", "<alpha=0.5>", "<beta=2.0>", "<alpha=2.0, beta=0.0>"])
def test_every_shape_of_an_addend(shape: tuple[int, ...], factors: str) -> None:
    text = f"w = DequantizeLinear(q, s)\nc = Gemm {factors} (x, w, b)\ny = BN3(c)"
    folds(build("float[3,4] x", text, q=int8((4, 3)), s=POWER, b=integers(shape, "b")))


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
@pytest.mark.parametrize("factors", ["", "<alpha=0.5, beta=0.5>"])
def test_an_addend_of_integers(shape: tuple[int, ...], factors: str) -> None:
    text = f"w = DequantizeLinear(q, s)\nb = DequantizeLinear(i, t)\nc = Gemm {factors} (x, w, b)\ny = BNpos3(c)"
    constants = {"i": integers(shape, "i", np.int32, -900, 900), "t": np.float32(2**-6)}
    folds(build("float[3,4] x", text, q=int8((4, 3)), s=POWER, **constants))


def test_a_coarse_bias_is_fine_where_the_accumulator_is_as_coarse() -> None:
    """The data is quantized too: half a step of the bias is half a step of an integer kernel's sum."""
    constants = FILTERS | ACCUMULATED | {"t": np.float32(16)}
    folded = fold(build("uint8[2,4,5,5] d", COARSE, "float[2,3,4,4] y", **constants)).model
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)


def test_a_weight_on_the_left() -> None:
    text = "w = DequantizeLinear(q, s)\nc = MatMul(w, x)\nt = Transpose(c)\ny = BN3(t)"
    folded = folds(build("float[4,2] x", text, q=int8((3, 4)), s=POWER), affines=1)
    assert folded.graph.node[0].op_type == "DequantizeLinear"
    folds(build("float[4,2] x", text.replace("BN3", "BNscale3"), q=int8((3, 4)), s=POWER))


def test_weights_that_are_dequantized_to_another_type() -> None:
    text = "w = DequantizeLinear <output_dtype=10> (q, s)\nc = Conv(x, w)\ny = BN3(c)"
    model = build("float16[2,4,5,5] x", text, opset=23, norms_as=np.float16, **FILTERS)
    folded = fold(model).model
    onnx.checker.check_model(folded, full_check=True)
    assert {t.data_type for t in folded.graph.initializer} == {1, 3, 10}
    reference(model, folded)
