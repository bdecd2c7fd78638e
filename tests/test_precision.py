"""One rounding: folded values lie within half a unit in the last place of what exact arithmetic gives."""

from __future__ import annotations

import ml_dtypes
import mpmath
import numpy as np
import pytest
from helpers import Array, Case, fold, keeps, kept, ops, tensor
from onnx import ModelProto, TensorProto, helper, numpy_helper

TYPES = {
    "float32": (TensorProto.FLOAT, 0.5001),
    "float16": (TensorProto.FLOAT16, 0.5001),
    "bfloat16": (TensorProto.BFLOAT16, 0.5001),
    "float64": (TensorProto.DOUBLE, 3.0),
}
FILTERS, CHANNELS = 16, 24

FULL, FOUR = np.full((1, 1, FILTERS), 60000, np.float16), np.full((1, 1, FILTERS), 4, np.float16)
QUARTER = np.full((CHANNELS, FILTERS), 0.25, np.float16)
SMALL = {name: np.array(value, np.float16) for name, value in {"g": [1e-6], "b": [1], "m": [0], "v": [1]}.items()}
ROWS = f"float16[1,5,{CHANNELS}] x"
NORM = "y = BatchNormalization <epsilon=0.0> (c, g, b, m, v)"

KEPT = [
    # It would keep a few bits of each weight; the norm's own parameters keep them all.
    kept(
        "a channel below the smallest normal number",
        "underflow",
        "float16[2,4,3,3] x",
        "c = Conv(x, W)\n" + NORM,
        W=np.float16([[[[0.3]], [[0.7]], [[-0.1]], [[0.9]]]]),
        **SMALL,
    ),
    # What does not fit must not be tried for ever.
    kept(
        "the overflow of a merged norm",
        "no-producer no-producer",
        f"float16[1,{FILTERS},2,2] c",
        NORM.replace("y =", "t =") + "\ny = Mul(t, k)",
        k=FOUR.reshape(FILTERS, 1, 1),
        g=FULL.ravel(),
        **{name: np.full(FILTERS, name == "v", np.float16) for name in "bmv"},
    ),
    *[
        kept(
            f"the overflow of a constant on the way: {name}",
            codes,
            ROWS,
            nodes + "\ny = Mul(t, s)",
            W=QUARTER,
            k=FULL,
            s=FOUR,
        )
        for name, codes, nodes in (
            ("Add", "shift shift", "p = MatMul(x, W)\nq = Relu(p)\nt = Add(q, k)"),
            ("MatMul", "overflow", "p = MatMul(x, W)\nt = Add(p, k)"),
            ("Concat", "overflow", "p = MatMul(x, W)\nt = Concat <axis=1> (p, k)"),
        )
    ],
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


def test_random_channels_below_the_smallest_normal_number_stay() -> None:
    data_type, _ = TYPES["float16"]
    stored = parameters(8, data_type)
    stored["g"] = stored["g"] * 1e-6
    model = conv_model(data_type, stored, [helper.make_node("Conv", ["x", "W", "c"], ["t"]), norm("", "t", "y")])
    keeps(model, "underflow")


def conv_model(data_type: int, stored: dict[str, Array], nodes: list[object], stats: int | None = None) -> ModelProto:
    kinds = {name: stats if stats is not None and name[0] in "mv" else data_type for name in stored}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", data_type, [1, CHANNELS, 4, 4])],
        [helper.make_tensor_value_info("y", data_type, [1, FILTERS, 4, 4])],
        [tensor(values, kinds[name], name) for name, values in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def values_of(model: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def ulp(exact: object, data_type: int) -> object:
    """The distance of neighbours around an exact value."""
    info = ml_dtypes.finfo(helper.tensor_dtype_to_np_dtype(data_type))
    exponent = mpmath.floor(mpmath.log(abs(exact), 2)) if exact else info.minexp
    return mpmath.mpf(2) ** (max(int(exponent), info.minexp) - info.nmant)


def parameters(seed: int, data_type: int, tag: str = "") -> dict[str, Array]:
    random = np.random.default_rng(seed)
    drawn = (
        {"W": random.standard_normal((FILTERS, CHANNELS, 1, 1)), "c": random.standard_normal(FILTERS)}
        if not tag
        else {}
    )
    drawn |= {
        "g": random.standard_normal(FILTERS),
        "b": random.standard_normal(FILTERS),
        "m": random.standard_normal(FILTERS),
        "v": random.random(FILTERS) * 3 + 0.01,
    }
    return {name + tag: values for name, values in drawn.items()}


def norm(tag: str, data: str, output: str, epsilon: float = 1e-5) -> object:
    return helper.make_node("BatchNormalization", [data, *(k + tag for k in "gbmv")], [output], epsilon=epsilon)


def exact_affine(stored: dict[str, Array], tag: str, channel: int, epsilon: float = 1e-5) -> tuple[object, object]:
    g, b, m, v = (mpmath.mpf(float(stored[k + tag][channel])) for k in "gbmv")
    scale = g / mpmath.sqrt(v + mpmath.mpf(float(np.float32(epsilon))))
    return scale, b - m * scale


@pytest.fixture(autouse=True)
def _digits() -> None:
    mpmath.mp.prec = 200


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_weights_and_biases(name: str, seed: int) -> None:
    data_type, limit = TYPES[name]
    model = conv_model(
        data_type, parameters(seed, data_type), [helper.make_node("Conv", ["x", "W", "c"], ["t"]), norm("", "t", "y")]
    )
    before, after = values_of(model), values_of(fold(model).model)
    for channel in range(FILTERS):
        scale, shift = exact_affine(before, "", channel)
        for index in range(CHANNELS):
            exact = mpmath.mpf(float(before["W"][channel, index, 0, 0])) * scale
            got = mpmath.mpf(float(after["W"][channel, index, 0, 0]))
            assert abs(got - exact) <= limit * ulp(exact, data_type)
        terms = [mpmath.mpf(float(before["c"][channel])) * scale, shift]
        exact = sum(terms)
        slack = sum(abs(t) for t in terms) * mpmath.mpf(2) ** -50
        assert abs(mpmath.mpf(float(after["c"][channel])) - exact) <= limit * ulp(exact, data_type) + slack


def chain_nodes() -> list[object]:
    middle = [
        norm("1", "t", "u"),
        helper.make_node("Mul", ["u", "k"], ["w"]),
        norm("2", "w", "z"),
        helper.make_node("Add", ["z", "l"], ["y"]),
    ]
    return [helper.make_node("Conv", ["x", "W", "c"], ["t"]), *middle]


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_chain_rounds_once(name: str) -> None:
    data_type, limit = TYPES[name]
    random = np.random.default_rng(5)
    extra = {"k": random.standard_normal((FILTERS, 1, 1)), "l": random.standard_normal((1, FILTERS, 1, 1))}
    stored = parameters(1, data_type) | parameters(2, data_type, "1") | parameters(3, data_type, "2") | extra
    for unused in "gbmv":
        stored.pop(unused)
    model = conv_model(data_type, stored, chain_nodes())
    before, result = values_of(model), fold(model)
    after = values_of(result.model)
    assert ops(result.model) == ["Conv"]
    for channel in range(FILTERS):
        (s1, _), (s2, _) = (exact_affine(before, tag, channel) for tag in "12")
        for index in range(CHANNELS):
            exact = (
                mpmath.mpf(float(before["W"][channel, index, 0, 0]))
                * s1
                * mpmath.mpf(float(before["k"][channel, 0, 0]))
                * s2
            )
            assert abs(mpmath.mpf(float(after["W"][channel, index, 0, 0])) - exact) <= limit * ulp(exact, data_type)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_a_bias_that_collects_a_shift_over_all_inputs(name: str) -> None:
    data_type, limit = TYPES[name]
    random = np.random.default_rng(9)
    shift = {
        "k": random.standard_normal((CHANNELS, 1, 1)),
        "W": random.standard_normal((FILTERS, CHANNELS, 1, 1)),
        "c": random.standard_normal(FILTERS),
    }
    nodes = [helper.make_node("Add", ["x", "k"], ["t"]), helper.make_node("Conv", ["t", "W", "c"], ["y"])]
    model = conv_model(data_type, shift, nodes)
    before, after = values_of(model), values_of(fold(model).model)
    for channel in range(FILTERS):
        terms = [
            mpmath.mpf(float(w)) * mpmath.mpf(float(k))
            for w, k in zip(before["W"][channel].ravel(), before["k"].ravel(), strict=True)
        ]
        exact = mpmath.mpf(float(before["c"][channel])) + sum(terms)
        slack = sum(abs(t) for t in terms) * mpmath.mpf(2) ** -48
        assert abs(mpmath.mpf(float(after["c"][channel])) - exact) <= limit * ulp(exact, data_type) + slack


def test_half_precision_data_with_single_precision_statistics() -> None:
    data_type, limit = TYPES["float16"]
    model = conv_model(
        data_type,
        parameters(4, data_type),
        [helper.make_node("Conv", ["x", "W", "c"], ["t"]), norm("", "t", "y")],
        stats=TensorProto.FLOAT,
    )
    before, after = values_of(model), values_of(fold(model).model)
    assert before["v"].dtype == np.float32
    assert after["W"].dtype == after["c"].dtype == np.float16
    for channel in range(FILTERS):
        scale, _ = exact_affine(before, "", channel)
        exact = mpmath.mpf(float(before["W"][channel, 3, 0, 0])) * scale
        assert abs(mpmath.mpf(float(after["W"][channel, 3, 0, 0])) - exact) <= limit * ulp(exact, data_type)


def two_convs(gamma: float, *, bias: float = 0.0) -> ModelProto:
    """Two Conv-norm pairs in float16; the first one's norm has this gamma and shift."""
    one, zero = np.ones(FILTERS), np.zeros(FILTERS)
    square = np.full((FILTERS, FILTERS, 1, 1), 0.5)
    stored = {
        "W": np.full((FILTERS, CHANNELS, 1, 1), 8.0),
        "V": square,
        "g1": one * gamma,
        "b1": one * bias,
        "m1": zero,
        "v1": one,
        "g2": one * 2,
        "b2": one,
        "m2": zero,
        "v2": one,
    }
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["t"]),
        norm("1", "t", "u", 0.0),
        helper.make_node("Sigmoid", ["u"], ["w"]),
        helper.make_node("Conv", ["w", "V"], ["z"]),
        norm("2", "z", "y", 0.0),
    ]
    return conv_model(TensorProto.FLOAT16, stored, nodes)


def test_overflow_is_refused_and_the_rest_folds() -> None:
    result = fold(two_convs(32768.0))
    assert [entry.code for entry in result.report.kept] == ["overflow"]
    assert ops(result.model) == ["Conv", "BatchNormalization", "Sigmoid", "Conv"]
    assert ops(fold(two_convs(2.0)).model) == ["Conv", "Sigmoid", "Conv"]
