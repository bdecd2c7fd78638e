"""One rounding: folded values lie within half a unit in the last place of what exact arithmetic gives."""

from __future__ import annotations

import ml_dtypes
import mpmath
import numpy as np
import pytest
from helpers import Array, fold, keeps, ops, tensor
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold

TYPES = {
    "float32": (TensorProto.FLOAT, 0.5001),
    "float16": (TensorProto.FLOAT16, 0.5001),
    "bfloat16": (TensorProto.BFLOAT16, 0.5001),
    "float64": (TensorProto.DOUBLE, 3.0),
}
FILTERS, CHANNELS = 16, 24


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


def test_overflow_of_a_bias_add_or_of_a_merged_norm_ends_in_a_refusal() -> None:
    """What does not fit must not be tried for ever."""
    big = np.full(FILTERS, 60000.0)
    nodes = [norm("", "x", "t", 0.0), helper.make_node("Mul", ["t", "k"], ["y"])]
    one, zero = np.ones(FILTERS), np.zeros(FILTERS)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, FILTERS, 2, 2])], [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, FILTERS, 2, 2])],
        [tensor(v, TensorProto.FLOAT16, n) for n, v in {"g": big, "b": zero, "m": zero, "v": one, "k": np.full((FILTERS, 1, 1), 4.0)}.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert bnfold.fold(model, verify=False).model.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("op", ["Concat", "Add", "MatMul"])
def test_overflow_of_another_constant_on_the_way_ends_in_a_refusal(op: str) -> None:
    half, one, zero = TensorProto.FLOAT16, np.ones(FILTERS), np.zeros(FILTERS)
    stored = {
        "W": np.full((FILTERS, CHANNELS), 0.25),
        "k": np.full((1, 1, FILTERS), 60000.0),
        "g": one * 4,
        "b": zero,
        "m": zero,
        "v": one,
    }
    middle = {
        "Add": [
            helper.make_node("MatMul", ["x", "W2"], ["p"]),
            helper.make_node("Relu", ["p"], ["q"]),
            helper.make_node("Add", ["q", "k"], ["t"]),
        ],
        "MatMul": [helper.make_node("MatMul", ["x", "W2"], ["p"]), helper.make_node("Add", ["p", "k"], ["t"])],
        "Concat": [
            helper.make_node("MatMul", ["x", "W2"], ["p"]),
            helper.make_node("Concat", ["p", "k"], ["t"], axis=1),
        ],
    }[op]
    stored["W2"] = stored.pop("W").T
    nodes = [*middle, helper.make_node("Mul", ["t", "s"], ["y"])]
    stored["s"] = np.full((1, 1, FILTERS), 4.0)
    for unused in "gbmv":
        stored.pop(unused)
    rows = 6 if op == "Concat" else 5
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", half, [1, 5, CHANNELS])], [helper.make_tensor_value_info("y", half, [1, rows, FILTERS])],
                              [tensor(v, half, n) for n, v in stored.items()])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = bnfold.fold(model, verify=False)
    assert all(np.isfinite(v.astype(np.float64)).all() for v in values_of(result.model).values())
    assert result.model.SerializeToString() == model.SerializeToString()


def test_a_channel_below_the_smallest_normal_number_is_refused() -> None:
    """It would keep a few bits of each weight; the norm's own parameters keep them all."""
    data_type, _ = TYPES["float16"]
    stored = parameters(8, data_type)
    stored["g"] = stored["g"] * 1e-6
    model = conv_model(data_type, stored, [helper.make_node("Conv", ["x", "W", "c"], ["t"]), norm("", "t", "y")])
    keeps(model, "underflow")
