"""Models that other tools have folded wrongly, broken or crashed on; each test names the trap and who was caught in it.

Here each either folds exactly or is refused.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import (
    Case,
    assert_same,
    build,
    count,
    feeds_for,
    fold,
    folds,
    initializers,
    integers,
    kept,
    norm_parameters,
    ops,
    tensor,
)
from onnx import TensorProto, helper

import bnfold

X = "float[2,4,5,5] x"
W = (3, 4, 2, 2)
C = "c = Conv(x, W)\n"
PARAMETERS = dict(zip("gbmv", norm_parameters("", 3, "peers").values(), strict=True))
SQUARE = "float[3,3,3,3] x"


# -- what must not change ----------------------------------------------------------------------------------------------

NORM = "y = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)"
TRAINING = "BatchNormalization <epsilon = 0.0, training_mode = 1> (c, g, b, m, v)"
OVERRIDABLE = {"W": "3,4,2,2", "y_gamma": "3", "y_beta": "3", "y_mean": "3", "y_var": "3"}

KEPT = [
    # onnxslim 0.1.98 convmul squeezes the constant and compares its length only.
    *[
        kept(
            f"{op}: a constant of shape {shape} is no channel",
            "axis",
            SQUARE,
            C + f"y = {op}(c, k)",
            W=(3, 3, 1, 1),
            k=(2.0 ** integers(shape, low=-1, high=2)).astype(np.float32),
        )
        for shape in ((3,), (1, 1, 1, 3), (3, 1), (1, 3))
        for op in ("Mul", "Add", "Sub", "Div")
    ],
    # onnxsim 0.8.1 folds it and loses an axis of the output; onnxslim raises IndexError.
    *[
        kept(f"{op}: a constant of higher rank", "broadcast", X, C + f"y = {op}(c, k)", W=W, k=(1, 1, 3, 1, 1))
        for op in ("Mul", "Add")
    ],
    kept("a constant that stretches one channel", "broadcast", X, C + "y = Mul(c, k)", W=(1, 4, 2, 2), k=(3, 1, 1)),
    # onnxscript 0.7.2 folds training_mode=1; onnx2tf does not look at it.
    kept(
        "training mode",
        "training-mode",
        X,
        C + f"y, p, q = {TRAINING}",
        outputs="float[2,3,4,4] y, float[3] p, float[3] q",
        W=W,
        **PARAMETERS,
    ),
    # pytorch/pytorch#75252, #45333 and microsoft/onnxscript#1791, #818: exported in training mode, and folded by some.
    *[
        kept(
            f"no running statistics in opset {opset}",
            "training-mode",
            X,
            C + f"{made} = BatchNormalization <{mode}> (c, g, b, m, v)",
            outputs="float[2,3,4,4] y",
            opset=opset,
            ir=7,
            W=W,
            **PARAMETERS,
        )
        for opset, made, mode in (
            (9, "y, s, t, u, w", "momentum=0.9"),
            (14, "y, s, t", "training_mode=1"),
            (15, "y, s, t", "training_mode=1"),
        )
    ],
    # All five tools fold variance 0 with epsilon 0 into infinite weights without a word.
    *[
        kept(f"variance {value}", code, X, C + NORM, W=W, **{**PARAMETERS, "v": np.float32([1, value, 1])})
        for value, code in ((0.0, "variance"), (-1.0, "variance"), (np.nan, "not-finite"), (np.inf, "not-finite"))
    ],
    # microsoft/onnxruntime#11173: the infinity reached the weights and became NaN.
    kept("an infinite constant", "", X, C + "y = Mul(c, k)", W=W, k=np.float32([[[1]], [[np.inf]], [[1]]])),
    kept("negative gammas behind Relu", "sign", X, C + "r = Relu(c)\ny = BNscale3(r)", W=W),
    kept("and behind MaxPool", "sign", X, C + "r = MaxPool <kernel_shape=[2,2]> (c)\ny = BNscale3(r)", W=W),
    kept(
        "the bounds of a Clip do not scale",
        "blocked",
        X,
        C + "r = Clip(c, l, h)\ny = BNposscale3(r)",
        W=W,
        l=np.float32(0),
        h=np.float32(6),
    ),
    # opencv/opencv#28689 folded it across the Relu.
    kept("a norm behind Relu", "shift", X, C + "r = Relu(c)\ny = BN3(r)", W=W),
    # MCT folds any 1x1 Conv without looking at pads; AIMET does not look at auto_pad.
    *[
        kept(
            f"a shift in front of {attributes}, kernel {size}",
            "padding",
            X,
            f"n = BN4(x)\ny = Conv <{attributes}> (n, W)",
            W=(3, 4, size, size),
        )
        for attributes, size in (
            ("pads=[1,1,1,1]", 3),
            ("pads=[1,1,1,1]", 1),
            ('auto_pad="SAME_UPPER"', 3),
            ('auto_pad="SAME_LOWER"', 3),
        )
    ],
    kept(
        "a shift through an average that counts padding",
        "shift",
        X,
        C + "p = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (c)\ny = BN3(p)",
        W=W,
    ),
    # pytorch/executorch#17736 folded it on the wrong axis of [N, C, L].
    kept("a norm on an axis that is not the last", "axis", "float[2,3,4] x", "c = MatMul(x, B)\ny = BN3(c)", B=(4, 3)),
    # onnx2tf takes a bias that is not constant for an absent one.
    kept("a computed bias", "bias-not-constant", X + ", float[3] b", "c = Conv(x, W, b)\ny = BN3(c)", W=W),
    # apache/tvm PR #11815: the checks that were missing in FoldScaleAxis.
    kept("a computed weight", "weight-not-constant", X + ", float[3,4,2,2] w", "n = BNscale4(x)\ny = Conv(n, w)"),
    # onnxsim and onnxslim freeze it.
    *[
        kept(
            f"callers can override {name}",
            "weight-not-constant" if name == "W" else "parameters-not-constant",
            f"{X}, float[{shape}] {name}",
            C + "y = BN3(c)",
            W=W,
        )
        for name, shape in OVERRIDABLE.items()
    ],
    kept("a Conv with another reader", "shared-output", X, C + "n = BN3(c)\nr = Relu(c)\ny = Add(n, r)", W=W),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    """The comments say who was caught."""
    case.keeps()


# -- training and variants ---------------------------------------------------------------------------------------------


def test_epsilon_left_out() -> None:
    """Older onnxruntime dereferenced the missing attribute."""
    model = build(X, C + "y = BatchNormalization (c, g, b, m, v)", W=W, **PARAMETERS)
    folded = folds(model, exact=False)
    scale = PARAMETERS["g"].astype(np.float64) / np.sqrt(PARAMETERS["v"].astype(np.float64) + float(np.float32(1e-5)))
    want = (integers(W, "W").astype(np.float64) * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
    np.testing.assert_array_equal(initializers(folded)["W"], want)


def test_opset_15_norms_are_norms() -> None:
    """microsoft/onnxruntime#11960: forgotten when the opset was raised."""
    folds(build(X, C + "y = BN3(c)", opset=15, ir=8, W=W))


# -- types -------------------------------------------------------------------------------------------------------------


def test_half_precision_data_and_single_precision_statistics() -> None:
    """onnxslim and onnxscript write a model that does not load."""
    parameters = norm_parameters("", 3, "mixed", np.float16, np.float32)
    model = build(
        "float16[2,4,5,5] x",
        C + "y = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)",
        opset=17,
        ir=8,
        W=W,
        **dict(zip("gbmv", parameters.values(), strict=True)),
    )
    folded = folds(model)
    assert {v.dtype for v in initializers(folded).values()} == {np.dtype(np.float16)}


def test_bfloat16_leaves_no_expression_behind() -> None:
    """onnxsim 0.8.1 leaves ten nodes that recompute the weight."""
    stored = [tensor(v, TensorProto.BFLOAT16, n) for n, v in {"W": integers(W), **PARAMETERS}.items()]
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *"gbmv"], ["y"], epsilon=0.0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [2, 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [2, 3, 4, 4])],
        stored,
    )
    folded = fold(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)).model
    assert ops(folded) == ["Conv"]
    assert {t.data_type for t in folded.graph.initializer} == {TensorProto.BFLOAT16}


def test_a_variance_above_what_half_precision_holds() -> None:
    """apple/coreai-torch#54 casts it down and divides by infinity."""
    parameters = {
        "g": np.full(3, 512, np.float16),
        "b": np.zeros(3, np.float16),
        "m": np.zeros(3, np.float32),
        "v": np.full(3, 2.0**18, np.float32),
    }
    model = build(
        "float16[2,4,5,5] x",
        C + "y = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)",
        opset=17,
        ir=8,
        W=W,
        **parameters,
    )
    folded = folds(model)
    np.testing.assert_array_equal(initializers(folded)["W"], integers(W, "W"))


# -- gammas of zero and below ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [[-1, 0, 2], [0, 0, 0]])
def test_zero_and_negative_gamma(gamma: list[float]) -> None:
    """LeelaChessZero/lc0#779; Samsung ONE replaces a negative gamma by 1e-10."""
    folds(
        build(
            X,
            C + "y = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)",
            W=W,
            **{**PARAMETERS, "g": np.float32(gamma)},
        )
    )


def test_zero_gamma_with_a_shift_is_not_divided_by() -> None:
    """Moving beta / gamma backwards would be a division by zero."""
    g = np.float32([0, 1, -2])
    model = build(
        X,
        C
        + "p = MaxPool <kernel_shape=[2,2]> (c)\nn = BatchNormalization <epsilon = 0.0> (p, g, b, m, v)\ny = Conv <pads=[1,1,1,1]> (n, V)",
        W=W,
        V=(2, 3, 3, 3),
        **{**PARAMETERS, "g": g},
    )
    result = fold(model)
    assert_same(model, result.model, feeds_for(model))


# -- padding -----------------------------------------------------------------------------------------------------------


def test_pad_value_that_changes_twice() -> None:
    """The second affine has to see the value that the first one left."""
    model = build(
        X,
        C + "p = Pad(c, k)\na = Add(p, t)\ni = Identity(a)\ny = Mul(i, s)",
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
        t=np.float32(3),
        s=np.float32(2),
    )
    result = fold(model)
    assert result.report.folded
    assert_same(model, result.model, feeds_for(model))


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (4, 1, 3, 3), (4, 4, 2, 2)])
def test_grouped_conv_transpose(shape: tuple[int, ...]) -> None:
    """pytorch/pytorch#180995, MCT, executorch#22517, ultralytics#25364 (wrong axis), onnxsim (skips it)."""
    channels = shape[1] * 2
    folds(build(X, f"c = ConvTranspose <group=2> (x, W)\ny = BN{channels}(c)", W=shape))


def test_grouped_conv_in_front() -> None:
    folds(build(X, "n = BN4(x)\ny = Conv <group=2> (n, W)", W=(6, 2, 2, 2)))


def test_bias_added_behind_a_grouped_conv() -> None:
    """microsoft/onnxruntime#12498: ConvAdd was wrong with groups."""
    folds(build(X, "c = Conv <group=2> (x, W)\ny = Add(c, k)", W=(6, 2, 2, 2), k=(6, 1, 1)))


# -- Gemm and MatMul ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("addend", [(), (1,), (5,), (1, 5), (3, 1), (3, 5)])
def test_gemm_beta_and_every_shape_of_the_addend(addend: tuple[int, ...]) -> None:
    """onnxscript#3027 ignored beta; OnnxSlim#210 and #323 wrote an addend that does not broadcast."""
    folds(build("float[3,4] x", "c = Gemm <alpha=0.5, beta=2.0, transB=1> (x, B, C)\ny = BN5(c)", B=(5, 4), C=addend))


@pytest.mark.parametrize("op", ["Gemm(x, B, )", "Conv(x, K, )"])
def test_empty_string_bias(op: str) -> None:
    """onnxscript 0.7.2 raises PassError for the whole model."""
    inputs = "float[3,4] x" if "Gemm" in op else "float[3,4,2,2] x"
    folded = folds(build(inputs, f"c = {op}\ny = BN5(c)", **({"B": (4, 5)} if "Gemm" in op else {"K": (5, 4, 1, 1)})))
    assert len(folded.graph.node) == 1


def test_matmul_of_rank_3_does_not_become_gemm() -> None:
    """microsoft/onnxruntime#22512: the model no longer loaded."""
    folded = folds(
        build("float[2,3,4] x", "c = MatMul(x, B)\nt = Transpose <perm=[0,2,1]> (c)\ny = BN5(t)", B=(4, 5)), affines=1
    )
    assert count(folded, "Gemm") == 0


def test_matmul_with_the_weight_on_the_left() -> None:
    """microsoft/onnxruntime#32228 and others assume the right."""
    folds(build("float[4,3] x", "c = MatMul(B, x)\nt = Transpose(c)\ny = BN5(t)", B=(5, 4)))


# -- sharing -----------------------------------------------------------------------------------------------------------


def test_a_weight_shared_by_two_convs() -> None:
    """Tencent/TNN#808; pytorch/pytorch#197539 changed it for all callers."""
    folds(build(X, C + "d = Conv(x, W)\nn = BN3(c)\ne = Abs(d)\ny = Add(n, e)", W=W))


def test_two_norms_share_their_parameters_and_their_weight() -> None:
    """AIMET applies the shared parameters twice."""
    nodes = (
        C
        + "n = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)\nr = Relu(n)\nd = Conv(r, V)\ny = BatchNormalization <epsilon = 0.0> (d, g, b, m, v)"
    )
    folds(build(X, nodes, W=W, V=(3, 3, 1, 1), **PARAMETERS))


def test_the_bias_is_the_beta() -> None:
    folds(build(X, "c = Conv(x, W, b)\ny = BatchNormalization <epsilon = 0.0> (c, g, b, b, v)", W=W, **PARAMETERS))


def test_a_name_that_is_already_taken() -> None:
    """onnxslim writes <output>_weight over a tensor of that name."""
    for taken in ("y_weight", "W_bias", "W_folded", "c_weight", "y_bias", "c_folded"):
        model = build(X, C + f"n = BN3(c)\nr = Relu(n)\ny = Conv(r, {taken})", W=W, **{taken: (2, 3, 1, 1)})
        folds(model)


def test_a_weight_that_is_an_output_of_the_graph() -> None:
    """onnxscript 0.7.2 writes an invalid model."""
    folds(build(X, C + "y = BN3(c)", "float[2,3,4,4] y, float[3,4,2,2] W", W=W))


def test_ir_3_lists_initializers_as_inputs() -> None:
    """onnxslim's output fails the checker."""
    folds(build(X, C + "y = BN3(c)", opset=9, ir=3, W=W))


def test_fusing_leaves_no_duplicate_initializers() -> None:
    """onnx/optimizer#174: initializer name is not unique."""
    folded = folds(build(X, C + "n = BN3(c)\nd = Conv(x, W)\nm = BN3(d)\ny = Add(n, m)", W=W))
    names = [t.name for t in folded.graph.initializer]
    assert len(names) == len(set(names))


def test_no_constant_expression_is_left_behind() -> None:
    """onnxoptimizer turns two nodes into eleven; onnx/optimizer#133, #178."""
    assert ops(folds(build(X, C + "y = BN3(c)", W=W))) == ["Conv"]


# -- readers -----------------------------------------------------------------------------------------------------------


def test_the_norm_is_a_graph_output() -> None:
    """tf2onnx refuses; the names have to stay."""
    folded = folds(build(X, C + "y = BN3(c)\nz = Relu(y)", "float[2,3,4,4] y, float[2,3,4,4] z", W=W))
    assert ops(folded) == ["Conv", "Relu"]


def test_a_shape_that_is_read_blocks_nothing() -> None:
    """onnxruntime's first MatMul pattern fed a Shape."""
    folds(build(X, C + "s = Shape(c)\nn = BN3(c)\ny = Reshape(n, s)", W=W))


def test_an_add_whose_result_nobody_reads() -> None:
    """microsoft/onnxruntime#8274 crashed."""
    model = build(X, C + "u = Add(c, k)\ny = BN3(c)", W=W, k=(3, 1, 1))
    result = fold(model)
    assert_same(model, result.model, feeds_for(model))


def test_every_conv_of_a_chain() -> None:
    """onnx/tensorflow-onnx#2186: Conv-BN-Conv-BN lost the second."""
    folds(build(X, C + "n = BN3(c)\nd = Conv(n, V)\ny = BN2(d)", W=W, V=(2, 3, 2, 2)))


def test_squeeze_and_excitation() -> None:
    """apache/tvm#17151: the gate reads the tensor that is scaled."""
    nodes = C + "n = BN3(c)\ng = GlobalAveragePool(n)\nd = Conv(g, V)\ns = Sigmoid(d)\ny = Mul(n, s)"
    folded = folds(build(X, nodes, W=W, V=(3, 3, 1, 1)))
    assert count(folded, "BatchNormalization") == 0


# -- scopes ------------------------------------------------------------------------------------------------------------


def test_weights_that_a_body_reads_too() -> None:
    text = (
        C
        + "n = BN3(c)\ny = If (flag) <then_branch = t () => (float[2,3,4,4] p) { p = Add(n, y_k) }, else_branch = e () => (float[2,3,4,4] q) { q = Conv(x, W) }>"
    )
    model = build("float[2,4,5,5] x, bool flag", text, "float[2,3,4,4] y", W=W, y_k=(3, 1, 1))
    result = fold(model)
    assert count(result.model, "BatchNormalization") == 0
    for flag in (True, False):
        assert_same(model, result.model, {**feeds_for(model), "flag": np.array(flag)})


def test_two_bodies_share_a_weight_of_the_outer_graph() -> None:
    body = "a{0} = Conv(x, W)  {0} = BatchNormalization <epsilon = 0.0> (a{0}, g, b, m, v)"
    text = f"y = If (flag) <then_branch = t () => (float[2,3,4,4] p) {{ {body.format('p')} }}, else_branch = e () => (float[2,3,4,4] q) {{ aq = Conv(x, W)  q = Relu(aq) }}>"
    model = build("float[2,4,5,5] x, bool flag", text, "float[2,3,4,4] y", W=W, **PARAMETERS)
    result = fold(model)
    assert count(result.model, "BatchNormalization") == 0
    for flag in (True, False):
        assert_same(model, result.model, {**feeds_for(model), "flag": np.array(flag)})


# -- policy ------------------------------------------------------------------------------------------------------------


def test_one_bad_norm_does_not_stop_the_others() -> None:
    """onnxscript aborts all passes, onnxoptimizer throws, TensorFlow returns an error."""
    nodes = C + "n = BatchNormalization <epsilon = 0.0> (c, g, b, m, z)\nr = Sigmoid(n)\nd = Conv(r, V)\ny = BN2(d)"
    model = build(X, nodes, W=W, V=(2, 3, 1, 1), z=np.float32([1, 0, 1]), **{k: PARAMETERS[k] for k in "gbm"})
    result = bnfold.fold(model, verify=False)
    assert [entry.code for entry in result.report.kept] == ["variance"]
    assert len(result.report.folded) == 1


# -- named here, whatever the cause was there --------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_an_ordinary_norm_behind_an_ordinary_operator(operator: str) -> None:
    """onnx/onnx#2677, onnxsim#50, onnxsim#53 and onnx-tensorrt#594: plainly wrong outputs, with real-valued parameters."""
    rng = np.random.default_rng(7)
    shapes = {"Conv": (3, 4, 2, 2), "ConvTranspose": (4, 3, 2, 2), "Gemm": (4, 3), "MatMul": (4, 3)}
    weight = rng.normal(size=shapes[operator]).astype(np.float32)
    parameters = {name: rng.normal(size=3).astype(np.float32) for name in "gbm"} | {
        "v": rng.uniform(0.1, 3, 3).astype(np.float32)
    }
    text = f"c = {operator}(x, W)\ny = BatchNormalization(c, g, b, m, v)"
    folds(build(X if "Conv" in operator else "float[2,4] x", text, W=weight, **parameters), exact=False)


def test_a_product_behind_a_conv_in_another_layout() -> None:
    """microsoft/onnxruntime#28540: an invalid graph after the fold and a change of layout."""
    text = C + "m = Mul(c, k)\nt = Transpose <perm=[0,2,3,1]> (m)\ny = Relu(t)"
    assert ops(folds(build(X, text, W=W, k=(3, 1, 1)))) == ["Conv", "Transpose", "Relu"]


def test_statistics_in_float32_beside_a_float16_weight() -> None:
    """onnx/tensorflow-onnx PR #1106: the fused weight took the statistics' type."""
    text = C + "y = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)"
    model = build(X.replace("float", "float16"), text, opset=15, W=integers(W, "W", np.float16), **PARAMETERS)
    assert {values.dtype.name for values in initializers(folds(model)).values()} == {"float16"}


def test_a_transpose_that_is_not_a_swap_in_front_of_a_gemm() -> None:
    """microsoft/onnxruntime#32228: a perm of [0, 1] taken for a transposition."""
    text = "t = Transpose <perm=[0,1]> (x)\nn = BN4(t)\ny = Gemm(n, B)"
    folds(build("float[4,4] x", text, B=(4, 3)))


def test_a_folded_bias_that_is_subnormal() -> None:
    """FasterAI-Labs/fasterai PR #82: it is kept as the number it is."""
    text = C + "y = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)"
    tiny = PARAMETERS | {"b": np.float32([1e-40, 0, 0]), "m": np.zeros(3, np.float32)}
    folded = folds(build(X, text, W=W, **tiny))
    (bias,) = (values for values in initializers(folded).values() if values.shape == (3,))
    assert bias[0] == np.float32(1e-40)
