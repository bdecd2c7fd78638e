"""Folding is exact: every way to write a norm, in every opset, in front of and behind every linear operator.

Weights are integers, gammas and variances powers of two, epsilon is 0; outputs must be equal bit for bit. The operators have
their own tables in ``tests/absorb`` and ``tests/carry``; here are the norms, the elementwise forms, chains and scopes.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import (
    Case,
    all_nodes,
    assert_same,
    build,
    case,
    count,
    feeds_for,
    fold,
    folds,
    integers,
    kept,
    norm_parameters,
    ops,
    tensor,
)
from onnx import TensorProto, helper

X = "float[2,4,5,5] x"
W = (3, 4, 2, 2)
C = "c = Conv(x, W)\n"
GBMV = "g, b, m, v"
PARAMETERS = dict(zip("gbmv", norm_parameters("", 3, "parameters").values(), strict=True))
FLAT = "float[2,4] x"


def norm(attributes: str = "epsilon = 0.0", data: str = "c", output: str = "y", inputs: str = GBMV) -> str:
    return f"{output} = BatchNormalization <{attributes}> ({data}, {inputs})"


# -- what must not change ----------------------------------------------------------------------------------------------

TRAINING = "float[2,3,4,4] y, float[3] p, float[3] q"
KEPT = [
    kept(
        "training_mode",
        "training-mode",
        X,
        C + "y, p, q = BatchNormalization <epsilon = 0.0, training_mode = 1> (c, g, b, m, v)",
        outputs=TRAINING,
        W=W,
        **PARAMETERS,
    ),
    kept(
        "training_mode in opset 14",
        "training-mode",
        X,
        C + "y, p, q = BatchNormalization <epsilon = 0.0, training_mode = 1> (c, g, b, m, v)",
        outputs=TRAINING,
        opset=14,
        W=W,
        **PARAMETERS,
    ),
    *[
        kept(
            f"five outputs in opset {opset}",
            "training-mode",
            X,
            C + "y, p, q, r, s = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)",
            opset=opset,
            ir=7,
            W=W,
            **PARAMETERS,
        )
        for opset in (7, 9, 13)
    ],
    *[
        kept(
            f"no is_test in opset {opset}",
            "training-mode",
            X,
            C + norm("epsilon = 0.0" + ", consumed_inputs = [0,0,0,1,1]" * (opset < 6)),
            outputs="float[2,3,4,4] y",
            opset=opset,
            ir=3,
            W=W,
            **PARAMETERS,
        )
        for opset in (1, 6)
    ],
    kept(
        "statistics per element",
        "per-activation",
        "float[2,4] x",
        "y = BatchNormalization <epsilon = 0.0, spatial = 0> (x, g, b, m, v)",
        opset=8,
        ir=3,
        **{k: integers((4,), k) for k in "gbmv"},
    ),
    kept(
        "gamma is an input",
        "parameters-not-constant",
        "float[2,4,5,5] x, float[3] g",
        C + norm(),
        W=W,
        **{k: PARAMETERS[k] for k in "bmv"},
    ),
    kept("variance 0, epsilon 0", "variance", X, C + norm(), W=W, **{**PARAMETERS, "v": np.float32([1, 0, 1])}),
    kept(
        "negative variance",
        "variance",
        X,
        C + norm("epsilon = 0.001"),
        W=W,
        **{**PARAMETERS, "v": np.float32([1, -2, 1])},
    ),
    kept("variance is NaN", "not-finite", X, C + norm(), W=W, **{**PARAMETERS, "v": np.float32([1, np.nan, 1])}),
    kept("gamma is infinite", "not-finite", X, C + norm(), W=W, **{**PARAMETERS, "g": np.float32([1, np.inf, 1])}),
    kept("beta is NaN", "not-finite", X, C + norm(), W=W, **{**PARAMETERS, "b": np.float32([1, np.nan, 1])}),
    kept("alone", "no-producer", X, "y = BN4(x)"),
    kept("behind an activation", "blocked", X, C + "r = Sigmoid(c)\ny = BN3(r)", W=W),
    kept(
        "the middle is an output",
        "graph-output",
        X,
        C + "y = BN3(c)",
        outputs="float[2,3,4,4] c, float[2,3,4,4] y",
        W=W,
    ),
    kept(
        "a [C] constant lies along the last axis",
        "axis",
        "float[2,4,3,3] x",
        C + "y = Mul(c, k)",
        W=(3, 4, 1, 1),
        k=(3,),
    ),
    kept(
        "a [C,1] constant lies along the rows",
        "axis",
        "float[2,4,3,3] x",
        C + "y = Add(c, k)",
        W=(3, 4, 1, 1),
        k=(3, 1),
    ),
    kept("along the batch", "axis", "float[3,4,3,3] x", C + "y = Mul(c, k)", W=(3, 4, 1, 1), k=(3, 1, 1, 1)),
    kept("the constant raises the rank", "broadcast", X, C + "y = Mul(c, k)", W=W, k=(1, 1, 3, 1, 1)),
    kept("the constant stretches the tensor", "broadcast", X, C + "y = Mul(c, k)", W=(1, 4, 2, 2), k=(3, 1, 1)),
    kept("a whole plane", "", X, C + "y = Mul(c, k)", W=W, k=(4, 4)),
    kept("division by a tensor", "", X, C + "y = Div(k, c)", W=W, k=(3, 1, 1)),
    kept("division by zero", "", X, C + "y = Div(c, k)", W=W, k=np.float32([1, 0, 2]).reshape(3, 1, 1)),
    kept("integers", "", "int64[2,3] x", "y = Mul(x, k)", k=[2, 2, 2]),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


def test_another_domains_operators_are_left_alone() -> None:
    model = build(X, C + "y = BN3(c)", "float[2,3,4,4] y", W=W)
    model.graph.node[1].domain = "other"
    model.opset_import.append(helper.make_opsetid("other", 1))
    import bnfold

    assert bnfold.fold(model, verify=False).model.SerializeToString() == model.SerializeToString()


def test_an_initializer_that_callers_can_override_is_no_constant() -> None:
    for overridable, code in (("y_gamma", "parameters-not-constant"), ("W", "weight-not-constant")):
        model = build(X, C + "y = BN3(c)", W=W)
        stored = next(t for t in model.graph.initializer if t.name == overridable)
        model.graph.input.append(helper.make_tensor_value_info(overridable, TensorProto.FLOAT, stored.dims))
        result = fold(model)
        assert [entry.code for entry in result.report.kept] == [code]
        assert result.model.SerializeToString() == model.SerializeToString()


# -- norms in every opset ----------------------------------------------------------------------------------------------

HISTORY = {
    1: "is_test = 1, consumed_inputs = [0,0,0,1,1]",
    6: "is_test = 1",
    7: "",
    8: "spatial = 1",
    9: "",
    13: "",
    14: "training_mode = 0",
    15: "",
    21: "",
}


@pytest.mark.parametrize("opset", HISTORY)
@pytest.mark.parametrize("side", ["after Conv", "before Conv", "after Gemm", "before Gemm", "after ConvTranspose"])
def test_norms_of_every_opset(opset: int, side: str) -> None:
    extra = HISTORY[opset]
    gemm = "Gemm <broadcast=1>" if opset < 7 else "Gemm"
    inputs, nodes, constants = {
        "after Conv": (X, C + f"y = BN3 <{extra}> (c)", {"W": W}),
        "before Conv": (X, f"n = BN4 <{extra}> (x)\ny = Conv(n, W)", {"W": W}),
        "after Gemm": (FLAT, f"c = {gemm}(x, W, B)\ny = BN3 <{extra}> (c)", {"W": (4, 3), "B": (3,)}),
        "before Gemm": (FLAT, f"n = BN4 <{extra}> (x)\ny = {gemm}(n, W, B)", {"W": (4, 3), "B": (3,)}),
        "after ConvTranspose": (X, f"c = ConvTranspose(x, W)\ny = BN3 <{extra}> (c)", {"W": (4, 3, 2, 2)}),
    }[side]
    shape = {"before Conv": "[2,3,4,4]", "after Conv": "[2,3,4,4]", "after ConvTranspose": "[2,3,6,6]"}.get(
        side, "[2,3]"
    )
    model = build(
        inputs,
        nodes.replace("Gemm <broadcast=1>(", "Gemm <broadcast=1> ("),
        f"float{shape} y",
        opset=opset,
        ir=3 if opset < 9 else 8,
        **constants,
    )
    if opset >= 7:
        assert len(folds(model).graph.node) == 1
        return
    result = fold(model)
    assert ops(result.model) == [node.op_type for node in model.graph.node if node.op_type != "BatchNormalization"]
    if opset == 6:
        assert_same(model, result.model, feeds_for(model))


@pytest.mark.parametrize("ir", [3, 4, 7, 10])
def test_every_ir_version(ir: int) -> None:
    folds(build(X, "n = BN4(x)\n" + C.replace("x,", "n,") + "y = BN3(c)", opset=9 if ir < 7 else 13, ir=ir, W=W))


def test_epsilon_is_1e_5_when_left_out_and_read_as_float32() -> None:
    for attribute in ("momentum = 0.9", "epsilon = 0.001"):
        model = build(X, C + norm(attribute), W=W, **PARAMETERS)
        folds(model, exact=False)


@pytest.mark.parametrize(
    "data_type", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16]
)
def test_every_float_type(data_type: int) -> None:
    """Exact in every type; onnxruntime runs half precision through float32, and has no Gemm of bfloat16, so NumPy is the oracle."""
    values = {"W": integers((4, 3)), "B": integers((3,), "B"), **PARAMETERS}
    stored = [tensor(value, data_type, name) for name, value in values.items()]
    nodes = [
        helper.make_node("Gemm", ["x", "W", "B"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *"gbmv"], ["y"], epsilon=0.0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", data_type, [2, 4])],
        [helper.make_tensor_value_info("y", data_type, [2, 3])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = fold(model)
    assert ops(result.model) == ["Gemm"]
    left = {t.name: t for t in result.model.graph.initializer}
    assert {t.data_type for t in left.values()} == {data_type}
    from onnx import numpy_helper

    scale = values["g"] / np.sqrt(values["v"])
    weight = numpy_helper.to_array(left["W"]).astype(np.float64)
    np.testing.assert_array_equal(weight, values["W"] * scale)
    bias = numpy_helper.to_array(left[result.model.graph.node[0].input[2]]).astype(np.float64)
    np.testing.assert_array_equal(bias, values["B"] * scale + values["b"] - values["m"] * scale)


# -- Mul, Add, Sub, Div, Neg -------------------------------------------------------------------------------------------

K3 = np.float32([2, -0.5, 4])
SHAPES = {"scalar": (), "[1]": (1,), "[1,1,1]": (1, 1, 1), "[C,1,1]": (3, 1, 1), "[1,C,1,1]": (1, 3, 1, 1)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "node", ["Mul(c, k)", "Mul(k, c)", "Add(c, k)", "Add(k, c)", "Sub(c, k)", "Sub(k, c)", "Div(c, k)", "Neg(c)"]
)
@pytest.mark.parametrize("side", ["after", "before"])
def test_elementwise_forms(shape: str, node: str, side: str) -> None:
    dims = SHAPES[shape]
    values = (K3 if 3 in dims else np.float32(-2)).reshape(dims)
    if side == "after":
        model = build(X, f"c = Conv(x, W)\ny = {node}", W=W, **({} if node == "Neg(c)" else {"k": values}))
    else:
        model = build(
            "float[2,3,5,5] c",
            f"n = {node}\ny = Conv(n, W)",
            W=(2, 3, 2, 2),
            **({} if node == "Neg(c)" else {"k": values}),
        )
    assert ops(folds(model)) == ["Conv"]


CHAINS = [
    case(
        "raw formula",
        X,
        C + "a = Sub(c, m)\ns = Sqrt(v)\nd = Div(a, s)\ne = Mul(d, g)\ny = Add(e, b)",
        W=W,
        **{k: v.reshape(3, 1, 1) for k, v in PARAMETERS.items()},
    ),
    case(
        "Keras formula",
        X,
        C + "r = Sqrt(v)\ni = Reciprocal(r)\ns = Mul(g, i)\nt = Mul(m, s)\nu = Sub(b, t)\nd = Mul(c, s)\ny = Add(d, u)",
        W=W,
        **{k: v.reshape(1, 3, 1, 1) for k, v in PARAMETERS.items()},
    ),
    case(
        "Caffe: norm, then scale", X, C + "n = BN3(c)\ne = Mul(n, g)\ny = Add(e, b)", W=W, g=(3, 1, 1), b=(1, 3, 1, 1)
    ),
    case("norm of norm", X, C + "n = BN3(c)\ny = BN3(n)", W=W),
    case("norm, Neg, norm", X, C + "n = BN3(c)\nk = Neg(n)\ny = BN3(k)", W=W),
    case("in front", X, "n = BN4(x)\nm = Mul(n, k)\na = Sub(l, m)\ny = Conv(a, W)", W=W, k=(4, 1, 1), l=(1, 4, 1, 1)),
    case("norm, Relu, norm", X, C + "n = BN3(c)\nr = Relu(n)\nm = BN3(r)\ny = Conv(m, V)", W=W, V=(2, 3, 2, 2)),
    case(
        "shift back into one side of a sum, scale forward through a Relu",
        "float[2,4,6,6] x, float[2,3,6,6] z",
        "c = Conv(x, U)\ns = Add(z, c)\nn = BNpos3(s)\nr = Relu(n)\na = Conv <pads=[1,1,1,1]> (r, V)\n"
        "b = Conv <strides=[1,1]> (r, V1)\ny = Sub(a, b)",
        U=(3, 4, 1, 1),
        V=(2, 3, 3, 3),
        V1=(2, 3, 1, 1),
    ),
    case(
        "shift back, scale forward",
        "float[2,4,6,6] x",
        C + "p = MaxPool <kernel_shape=[2,2]> (c)\nn = BN3(p)\ny = Conv <pads=[1,1,1,1]> (n, V)",
        W=W,
        V=(2, 3, 3, 3),
    ),
]
MERGES = [
    case("norm of norm", X, "n = BN4(x)\ny = BN4(n)", norms=1),
    case("norm, Mul, Add", X, "n = BN4(x)\nm = Mul(n, k)\ny = Add(m, l)", k=(4, 1, 1), l=(4, 1, 1), norms=1),
    case("Mul, norm", X, "m = Mul(x, k)\ny = BN4(m)", k=(4, 1, 1), norms=1),
    case("Mul Mul", X, "m = Mul(x, k)\ny = Mul(m, l)", k=(5,), l=(5,), affines=1),
    case(
        "Mul Add Mul Add", X, "a = Mul(x, k)\nb = Add(a, k)\nd = Mul(b, l)\ny = Add(d, l)", k=(5,), l=(1, 5), affines=2
    ),
    case("norms in front of a Concat, and behind it", X, "a = Ceil(x)\nb = Floor(x)\nn = BN4(a)\nm = BN4(b)\nc = Concat <axis=1> (n, m)\n"
         "o = BN8(c)\ny = Abs(o)", norms=1),
    case("sums on both sides of a sum", X, "e = Ceil(x)\nf = Floor(x)\na = Add(e, k)\nb = Sub(f, l)\nc = Sub(a, b)\ny = Abs(c)",
         k=(4, 1, 1), l=(4, 1, 1), affines=1),
    case("a sum beside a layer", X, "e = Ceil(x)\nm = Mul(e, k)\na = Add(m, k)\nc = Conv(x, W)\ns = Add(c, a)\ny = Abs(s)",
         W=(4, 4, 1, 1), k=(4, 1, 1), affines=1),
    case("a sum beside a sum with a constant", X, "f = Floor(x)\nc = Add(f, k)\ng = Ceil(x)\ns = Sum(g, p)\ny = Sub(s, c)",
         k=(4, 1, 1), p=(4, 5, 5)),
    case("a sum beside a layer that others read", X, "e = Ceil(x)\na = Add(e, k)\nc = Conv(x, W)\nr = Relu(c)\ns = Sum(c, r, a)\ny = Abs(s)",
         W=(4, 4, 1, 1), k=(4, 1, 1), affines=1),
    case("a norm without a scale beside another norm", X, "e = Ceil(x)\nf = Floor(x)\na = BNshift4(e)\nb = BN4(f)\ns = Add(a, b)\n"
         "y = Abs(s)", norms=1),
    case("a sum beside what has fewer channels", "float[2,4,5,5] x, float[2,1,5,5] z", "e = Ceil(x)\na = Add(e, k)\nc = Conv(z, W)\n"
         "s = Add(a, c)\ny = Abs(s)", W=(1, 1, 1, 1), k=(4, 1, 1), affines=1),
    case("Neg, Add is one Sub", X, "a = Neg(x)\ny = Add(a, k)", k=(4, 1, 1), affines=1),
    case("Sub, and an Add of nothing", X, "a = Sub(k, x)\ny = Add(a, z)", k=(4, 1, 1), z=np.float32([0]), affines=1),
    case("a sum becomes part of two Subs", X, "i = Floor(x)\na = Add(i, k)\ny = Sub(l, a)\nz = Sub(k, a)",
         outputs="float[2,4,5,5] y, float[2,4,5,5] z", k=np.float32(1), l=np.float32(3), affines=2),
    case("along rows once a norm in between is gone", "float[N,1,2,4] x",
         "a = BN1(x)\nn = Mul(a, r)\nb = BNshift1(n)\ny = Add(b, l)", r=(4,), l=(1, 1, 4), affines=2),
    case("along three axes in a row", "float[2,6,4] x", "c = MatMul(x, W)\na = Add(c, h)\nb = Add(a, r)\nd = Sub(k, b)\ny = MatMul(d, V)",
         W=(4, 5), h=(6, 1), r=np.float32([1, 2, 3, 4, -1]), k=(2, 1, 1), V=(5, 2), affines=1),
    case("signs that cancel out along two axes", "float[2,3,4,4] x",
         "c = Conv(x, W)\na = Sub(c, r)\nn = BN3(a)\nb = Sub(s, n)\nd = Sub(k, b)\ny = Sub(r, d)",
         W=(3, 3, 1, 1), r=(4,), s=np.float32(2), k=(3, 1, 1), affines=1),
    case("Sub Sub is nothing", X, "a = Sub(k, x)\nb = Sub(k, a)\ny = Relu(b)", k=(4, 1, 1)),
    case(
        "norm of norm through Relu and Transpose",
        X,
        "n = BNposscale4(x)\nt = Transpose <perm=[0,2,3,1]> (n)\nu = Transpose <perm=[0,3,1,2]> (t)\ny = BN4(u)",
        norms=1,
    ),
    case(
        "an identity norm",
        X,
        "s = Sigmoid(x)\nn = BatchNormalization <epsilon = 0.0> (s, g, b, b, g)\ny = Relu(n)",
        g=np.ones(4, np.float32),
        b=np.zeros(4, np.float32),
    ),
    case("an identity that is the output", X, "s = Floor(x)\ny = Mul(s, k)", k=np.float32(1)),
    case("nobody reads it", X, "s = Floor(x)\nn = BN4(s)\ny = Relu(x)"),
]


@pytest.mark.parametrize("case", CHAINS)
def test_chains_compose(case: Case) -> None:
    assert {node.op_type for node in case.folds().graph.node} <= {"Conv", "Relu", "MaxPool", "Neg", "Add", "Sub"}


@pytest.mark.parametrize("case", MERGES)
def test_what_is_left_over_merges(case: Case) -> None:
    case.folds()


def test_two_identities_of_one_tensor_that_are_outputs() -> None:
    """One tensor cannot have two names: the second one stays."""
    model = build(
        X,
        "s = Floor(x)\ny = Mul(s, k)\nz = Add(s, l)",
        "float[2,4,5,5] y, float[2,4,5,5] z",
        k=np.float32(1),
        l=np.float32(0),
    )
    folds(model, affines=1)


def test_an_identity_between_input_and_output_stays() -> None:
    folds(build(X, "y = Mul(x, k)", k=np.float32(1)), affines=1)


# -- scopes ------------------------------------------------------------------------------------------------------------

IF = """
y = If (flag) <
  then_branch = t () => (float[2,3,4,4] p) { a = Conv(x, W)  p = BatchNormalization <epsilon = 0.0> (a, g, b, m, v) },
  else_branch = e () => (float[2,3,4,4] q) { d = Conv(x, W)  q = Neg(d) }
>"""


def test_norms_in_both_branches_with_weights_of_the_outer_scope() -> None:
    model = build("float[2,4,5,5] x, bool flag", IF, "float[2,3,4,4] y", W=W, **PARAMETERS)
    result = fold(model)
    assert not count(result.model, "BatchNormalization", "Neg")
    for flag in (True, False):
        assert_same(model, result.model, {**feeds_for(model), "flag": np.array(flag)})


def test_a_renamed_tensor_is_renamed_in_the_bodies_that_read_it() -> None:
    body = IF.replace("a = Conv(x, W)", "a = Conv(i, W)").replace("d = Conv(x, W)", "d = Conv(i, W)")
    model = build(
        "float[2,4,5,5] x, bool flag",
        "s = Floor(x)\ni = Mul(s, k)\n" + body,
        "float[2,3,4,4] y",
        W=W,
        k=np.float32(1),
        **PARAMETERS,
    )
    result = fold(model)
    assert count(result.model, "Mul") == 0
    assert_same(model, result.model, {**feeds_for(model), "flag": np.array(True)})


def test_what_a_body_reads_does_not_change() -> None:
    body = IF.replace("d = Conv(x, W)  q = Neg(d)", "q = Abs(c)")
    model = build(
        "float[2,4,5,5] x, bool flag",
        C + "n = BN3(c)\n" + body,
        "float[2,3,4,4] n, float[2,3,4,4] y",
        W=W,
        **PARAMETERS,
    )
    result = fold(model)
    assert [entry.code for entry in result.report.kept] == ["captured"]
    for flag in (True, False):
        assert_same(model, result.model, {**feeds_for(model), "flag": np.array(flag)})


def test_loop_bodies() -> None:
    text = """
    y = Loop (n, on) <body = b (int64 i, bool go) => (bool more, float[2,3,4,4] s) { more = Identity(go)
      a = Conv(x, W)  s = BatchNormalization <epsilon = 0.0> (a, g, b, m, v) }>"""
    model = build("float[2,4,5,5] x", text, "float[t,2,3,4,4] y", W=W, n=np.array(3), on=np.array(True), **PARAMETERS)
    result = fold(model)
    assert not count(result.model, "BatchNormalization")
    assert_same(model, result.model, feeds_for(model))


def test_functions_fold_in_the_body() -> None:
    function = """
    <domain: "local", opset_import: ["" : 21]>
    Block (u) => (w) {
      W = Constant <value = float[2,2,1,1] {1, 2, 3, 4}> ()
      g = Constant <value = float[2] {2, -0.5}> ()
      b = Constant <value = float[2] {1, 3}> ()
      v = Constant <value = float[2] {4, 0.25}> ()
      c = Conv(u, W)
      w = BatchNormalization <epsilon = 0.0> (c, g, b, b, v)
    }"""
    model = build(
        "float[2,2,3,3] x",
        "t = local.Block(x)\ny = local.Block(t)",
        "float[2,2,3,3] y",
        functions=function,
        imports={"local": 1},
    )
    result = fold(model)
    assert not count(result.model, "BatchNormalization")
    assert len(result.model.functions) == 1
    assert_same(model, result.model, feeds_for(model))


def test_an_attribute_that_comes_from_the_call_is_not_known() -> None:
    """The padding of the Conv is the caller's business, so the shift must stay out."""
    function = """
    <domain: "local", opset_import: ["" : 21]>
    Block <around> (u) => (w) {
      W = Constant <value = float[2,2,1,1] {1, 2, 3, 4}> ()
      g = Constant <value = float[2] {2, -0.5}> ()
      b = Constant <value = float[2] {1, 3}> ()
      v = Constant <value = float[2] {4, 0.25}> ()
      n = BatchNormalization <epsilon = 0.0> (u, g, b, b, v)
      w = Conv <pads : ints = @around> (n, W)
    }"""
    model = build(
        "float[2,2,3,3] x",
        "y = local.Block <around = [1,1,1,1]> (x)",
        "float[2,2,5,5] y",
        functions=function,
        imports={"local": 1},
    )
    result = fold(model)
    assert_same(model, result.model, feeds_for(model))


# -- sharing and forms of constants ------------------------------------------------------------------------------------


def test_a_weight_of_two_convs_is_copied() -> None:
    model = build(X, C + "n = BN3(c)\nd = Conv(x, W)\ne = Relu(d)\ny = Add(n, e)", W=W)
    folds(model)


def test_norms_share_their_parameters() -> None:
    model = build(
        X,
        C + norm(output="n") + "\nd = Conv(x, V)\n" + norm(data="d", output="o") + "\ny = Add(n, o)",
        W=W,
        V=W,
        **PARAMETERS,
    )
    folded = folds(model)
    assert {t.name for t in folded.graph.initializer}.isdisjoint("gbmv")


def test_the_convs_bias_is_the_norms_beta() -> None:
    folds(build(X, "c = Conv(x, W, b)\n" + norm(), W=W, **PARAMETERS))


def test_a_weight_that_is_an_output_keeps_its_value() -> None:
    folds(build(X, C + "y = BN3(c)", "float[2,3,4,4] y, float[3,4,2,2] W", W=W))


def test_names_that_are_taken() -> None:
    folds(build(X, C + "n = BN3(c)\ny = Conv(n, W_bias)", W=W, W_bias=(2, 3, 2, 2)))


FORMS = {
    "Constant value": "k = Constant <value = float[3,1,1] {2, -0.5, 4}> ()",
    "Constant value_floats": "f = Constant <value_floats = [2.0, -0.5, 4.0]> ()\ns = Constant <value_ints = [3,1,1]> ()\nk = Reshape(f, s)",
    "Constant value_float": "k = Constant <value_float = -2.0> ()",
    "Identity of Unsqueeze": "f = Constant <value_floats = [2.0, -0.5, 4.0]> ()\ns = Constant <value_ints = [1,2]> ()\nu = Unsqueeze(f, s)\nk = Identity(u)",
    "Cast": "f = Constant <value_ints = [2, -4, 8]> ()\ns = Constant <value_ints = [3,1,1]> ()\nr = Reshape(f, s)\nk = Cast <to = 1> (r)",
    "ConstantOfShape": "s = Constant <value_ints = [3,1,1]> ()\nk = ConstantOfShape <value = float[1] {-2}> (s)",
}


@pytest.mark.parametrize("form", FORMS)
def test_constants_in_every_form(form: str) -> None:
    model = build(X, FORMS[form] + "\n" + C + "m = Mul(c, k)\ny = Add(k, m)", W=W)
    assert [n.op_type for n in all_nodes(folds(model)) if n.op_type != "Constant"] == ["Conv"]


@pytest.mark.parametrize("form", ["Constant", "Identity", "Transpose", "Cast"])
def test_weights_in_other_forms(form: str) -> None:
    make = {
        "Constant": "",
        "Identity": "W = Identity(V)",
        "Transpose": "W = Transpose <perm=[1,0,2,3]> (V)",
        "Cast": "W = Cast <to=1> (V)",
    }[form]
    value = {
        "Identity": integers(W),
        "Transpose": integers((4, 3, 2, 2)),
        "Cast": integers(W).astype(np.int32),
        "Constant": integers(W),
    }[form]
    model = build(X, make + "\n" + C + "y = BN3(c)", **({"V": value} if form != "Constant" else {"W": value}))
    if form == "Constant":
        stored = next(t for t in model.graph.initializer if t.name == "W")
        model.graph.node.insert(0, helper.make_node("Constant", [], ["W"], value=stored))
        model.graph.initializer.remove(stored)
    folds(model)
