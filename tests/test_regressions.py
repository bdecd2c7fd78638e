"""Models that once came out wrong, or not at all. Each test is the smallest model that shows one bug."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import (
    Case,
    assert_same,
    build,
    count,
    describe,
    feeds_for,
    fold,
    folds,
    initializers,
    integers,
    keeps,
    kept,
    norm_parameters,
    ops,
    run,
)
from onnx import ModelProto, helper

import bnfold
from bnfold import folding, symbolic
from bnfold.errors import ModelReadError

X = "float[1,4,2,2] x"
W = (4, 4, 1, 1)


def norm(output: str, data: str) -> str:
    """A batch norm whose parameters, see ``shared``, all norms of a model have in common."""
    return f"{output} = BatchNormalization <epsilon = 0.0> ({data}, g, b, m, v)\n"


def shared(channels: int = 4, kind: str = "") -> dict[str, Any]:
    return dict(zip("gbmv", norm_parameters(kind, channels, "shared").values(), strict=True))


# -- what must not change ----------------------------------------------------------------------------------------------


def half(**values: Any) -> dict[str, Any]:
    return {name: np.array(value, np.float16) for name, value in values.items()}


RESHAPES = "t0 = Reshape(x, sh)\n" + "".join(f"t{i} = Reshape(t{i - 1}, sh)\n" for i in range(1, 400))
NOT_RELU = {
    "Clip from one": ("Clip(c, one)", {"one": np.float32(1)}, "blocked"),
    "Clip to six": ("Clip(c, zero, six)", {"zero": np.float32(0), "six": np.float32(6)}, "blocked"),
    "Clip without bounds": ("Clip(c)", {}, "blocked"),
    "Clip with two bounds from the outside": ("Clip <min=0.0, max=6.0> (c)", {"opset": 10}, "blocked"),
    "Clip, shift": ("Clip(c, zero)", {"zero": np.float32(0), "k": np.float32(3)}, "shift"),
    "LpPool, shift": ("LpPool <kernel_shape=[2,2]> (c)", {"k": np.float32(3)}, "shift"),
    "ReduceL2, shift": ("ReduceL2 <keepdims=1> (c)", {"k": np.float32(3)}, "shift"),
    "ReduceL2, sign": ("ReduceL2 <keepdims=1> (c)", {}, "sign"),
}

KEPT = [
    kept(
        "a float16 weight would vanish",
        "underflow",
        "float16[1,256,1,1] x",
        "c = Conv(x, W)\n" + norm("y", "c"),
        **half(W=np.full((1, 256, 1, 1), 1e-4), g=[0.02], b=[0.0], m=[0.0], v=[6e4]),
    ),
    kept(
        "the scale of a quantized weight would vanish",
        "overflow",
        "float16[1,4,2,2] x",
        "W = DequantizeLinear(Wq, s)\nc = Conv(x, W)\n" + norm("y", "c"),
        Wq=integers((3, 4, 1, 1), "Wq", np.int8),
        **half(s=1e-4, g=[2.0**-12] * 3, b=[1.0] * 3, m=[0.0] * 3, v=[1.0] * 3),
    ),
    kept(
        "the second output of a layer norm has another shape than its input",
        "broadcast",
        "float[5,4] x",
        "ln, mean = LayerNormalization(x, s, b)\nq = Mul(mean, k)\ny = MatMul(q, W)",
        s=(4,),
        b=(4,),
        k=(4,),
        W=(4, 3),
    ),
    kept("no elements", "reshape", "float[0,4,2,2] x", "n = BN4(x)\nf = Flatten(n)\ny = Gemm(f, G)", G=(16, 3)),
    kept("hundreds of Reshapes in a row", "too-far", "float[5,4] x", RESHAPES + "y = BN4(t399)", sh=[-1, 4]),
    kept(
        "products of a sum do not become more operators",
        "no-producer shared-output shared-output",
        "float[4,4] x",
        "i = Identity(x)\na = Add(i, k)\ny1 = Mul(k2, a)\ny2 = Mul(k3, a)",
        outputs="float[4,4] y1, float[4,4] y2",
        k=np.float32(1),
        k2=np.float32(2),
        k3=np.float32(5),
    ),
    *[  # what only looks like a Relu
        kept(
            name,
            code,
            "float[2,4,5,5] x",
            f"c = Conv(x, W)\nr = {middle}\ny = {'Add' if 'k' in options else 'Mul'}(r, k)",
            W=(3, 4, 1, 1),
            **({"k": np.float32(-2)} | options),
        )
        for name, (middle, options, code) in NOT_RELU.items()
    ],
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


# -- weights -----------------------------------------------------------------------------------------------------------


def quantized() -> ModelProto:
    """A Conv whose int8 weight is too large to stay in the file's skeleton, and a norm that flips its signs."""
    weight = integers((32, 32, 3, 3), "Wq", np.int8, -100, 101)
    nodes = "W = DequantizeLinear(Wq, s)\nc = Conv(x, W)\ny = BN32(c)"
    return build("float[1,32,5,5] x", nodes, Wq=weight, s=np.float32(0.5))


def test_large_integer_weights_take_the_signs_of_a_norm() -> None:
    model = quantized()
    folded = folds(model)
    signs = np.sign(initializers(model)["y_gamma"]).astype(np.int8)
    assert set(signs) == {-1, 1}
    (weight,) = (value for value in initializers(folded).values() if value.dtype == np.int8)
    np.testing.assert_array_equal(weight, initializers(model)["Wq"] * signs[:, None, None, None])


def test_large_integer_weights_take_the_signs_of_a_norm_in_a_file(tmp_path: Path) -> None:
    model = quantized()
    onnx.save(model, tmp_path / "model.onnx")
    bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx", verify=False)
    folded = onnx.load(tmp_path / "folded.onnx")
    assert count(folded, "BatchNormalization") == 0
    assert_same(model, folded, feeds_for(model))


def test_factors_whose_product_is_too_small_stay_apart() -> None:
    tiny = np.float32(2.0**-100)
    model = build("float[2,3] x", "a = Mul(x, k)\ny = Mul(a, l)", k=tiny, l=tiny)
    folded = fold(model).model
    feeds = {"x": np.full((2, 3), 2.0**120, np.float32)}
    assert run(model, feeds)["y"][0, 0] == np.float32(2.0**-80)
    assert_same(model, folded, feeds)


# -- subgraphs ---------------------------------------------------------------------------------------------------------


def test_loops_that_read_a_tensor_directly_and_in_their_bodies() -> None:
    def loop(name: str) -> str:
        body = f"n{name} = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)\no{name} = Add(n{name}, s{name})\nr{name} = Identity(q{name})"
        inputs = f"int64 i{name}, bool q{name}, float[1,4,2,2] s{name}"
        outputs = f"bool r{name}, float[1,4,2,2] o{name}"
        return f"y{name} = Loop(n, t, c) <body = body{name} ({inputs}) => ({outputs}) {{\n{body}\n}}>\n"

    nodes = "c = Conv(x, W)\n" + loop("1") + loop("2")
    outputs = "float[1,4,2,2] y1, float[1,4,2,2] y2"
    model = build(X, nodes, outputs, W=W, n=np.int64(2), t=np.array(True), **shared())
    folds(model, norms=2)


# -- branches that nobody reads ----------------------------------------------------------------------------------------


def test_parameters_that_a_norm_shares_with_a_dead_branch_stay() -> None:
    nodes = norm("a", "x") + norm("b1", "x") + "d = Reshape(a, sh)\ndead = Mul(d, k)\ny = Sigmoid(b1)"
    folded = folds(build("float[4,4] x", nodes, **shared(), sh=[2, -1], k=np.float32(3)), norms=1)
    assert ops(folded) == ["BatchNormalization", "Sigmoid"]
    assert set(initializers(folded)) == set("gbmv")


def test_no_norm_goes_into_a_dead_matmul() -> None:
    nodes = "n = BN4(x)\nq = MatMul(W, n)\ndead = Mul(q, k)\ny = Relu(x)"
    folded = folds(build("float[2,4,3] x", nodes, W=(5, 4), k=np.float32(3)))
    assert ops(folded) == ["Relu"]
    assert not folded.graph.initializer


def test_no_norm_is_merged_in_a_dead_branch() -> None:
    nodes = "n = BN4(x)\nr = Reshape(n, sh)\nb = BN4(r)\nd = ReduceMax<axes = [1]>(b)\ndead = Add(d, k)\ny = Relu(x)"
    folded = folds(build("float[4,4,1,1] x", nodes, opset=17, sh=[4, 4], k=np.float32(3)))
    assert ops(folded) == ["Relu"]
    assert not folded.graph.initializer


DEAD_READERS = {
    "of what a Conv makes": ("c = Conv(x, W)\ndead = Mul(c, k)\ny = BN4(c)", ["Conv"]),
    "of what twins read": (
        "c = Conv(x, W)\ndead = Mul(c, k)\n"
        + norm("n", "c")
        + norm("o", "c")
        + "r = Relu(n)\na = Abs(o)\ny = Sub(r, a)",
        ["Conv", "Relu", "Abs", "Sub"],
    ),
    "of what a Conv reads": ("n = BN4(x)\nd = Relu(n)\ndead = Mul(d, k)\ny = Conv(n, W)", ["Conv"]),
}


@pytest.mark.parametrize(("nodes", "expected"), DEAD_READERS.values(), ids=DEAD_READERS)
def test_a_dead_reader_is_not_in_the_way(nodes: str, expected: list[str]) -> None:
    folded = folds(build(X, nodes, W=W, k=np.float32(2), **(shared() if "g, b, m, v" in nodes else {})))
    assert ops(folded) == expected


def test_a_dead_reader_in_a_body_is_not_in_the_way() -> None:
    def branch(name: str, op: str) -> str:
        nodes = norm(f"n{name}", "c") + f"dead{name} = Mul(c, k)\n{name} = {op}(n{name})"
        return f"{name}_branch = {name} () => (float[1,4,2,2] {name}) {{\n{nodes}\n}}"

    nodes = f"c = Conv(x, W)\ny = If(p) <{branch('then', 'Relu')}, {branch('else', 'Abs')}>"
    model = build(f"{X}, bool p", nodes, "float[1,4,2,2] y", W=W, k=np.float32(2), **shared())
    folded = folds(model)
    assert count(folded, "Mul") == 0
    for p in (False, True):
        assert_same(model, folded, {**feeds_for(model), "p": np.array(p)})


# -- outputs, and what callers may set ---------------------------------------------------------------------------------


def test_twins_that_become_outputs() -> None:
    nodes = norm("a", "c") + norm("b1", "c") + "o1 = Mul(a, one)\nr1 = Relu(a)\no2 = Mul(b1, one)\nr2 = Relu(b1)"
    outputs = ", ".join(f"float[1,4,2,2] {name}" for name in ("o1", "o2", "r1", "r2"))
    folded = folds(build(X, "c = Conv(x, W)\n" + nodes, outputs, W=W, one=np.float32(1), **shared()), norms=2)
    assert sorted(ops(folded)) == ["BatchNormalization", "BatchNormalization", "Conv", "Relu", "Relu"]


def test_callers_may_set_the_shape_of_a_reshape() -> None:
    nodes = "n = BN4(x)\nr = Reshape(n, sh)\ny = Conv(r, W)"
    weights: dict[str, Any] = {"W": (3, 4, 1), "sh": [2, 4, 36]}
    folds(build("float[2,4,6,6] x", nodes, **weights))
    model = build("float[2,4,6,6] x, int64[3] sh", nodes, "float[A,3,B] y", **weights)
    keeps(model, "reshape")
    feeds = {**feeds_for(model), "sh": np.array([8, 4, 9], np.int64)}
    assert_same(model, fold(model).model, feeds)


def test_inputs_that_callers_may_set_stay() -> None:
    nodes = "c = Conv(x, W)\ndead = Mul(c, k)\ny = Relu(x)"
    model = build(f"{X}, float[4,4,1,1] W", nodes, W=W, k=np.float32(2))
    folded = folds(model)
    assert ops(folded) == ["Relu"]
    assert list(folded.graph.input) == list(model.graph.input)
    assert list(initializers(folded)) == ["W"]
    assert_same(model, folded, {**feeds_for(model), "W": integers(W, "other")})


# -- initializers that are named elsewhere in the file -----------------------------------------------------------------

NAMED = "c = Conv(x, W, B)\ny = BN4(c)"


def holds_named(model: ModelProto, *names: str) -> ModelProto:
    """The norm folds, and these initializers keep their values."""
    folded = folds(model)
    before, after = initializers(model), initializers(folded)
    for name in names:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    return folded


def test_initializers_that_training_names_stay_as_they_are() -> None:
    model = build(X, NAMED, W=W, B=(4,))
    training = model.training_info.add()
    values = [helper.make_tensor_value_info("W1", onnx.TensorProto.FLOAT, list(W))]
    training.algorithm.CopyFrom(helper.make_graph([helper.make_node("Neg", ["W"], ["W1"])], "step", [], values))
    training.update_binding.add(key="W", value="W1")
    training.initialization_binding.add(key="y_gamma", value="B")
    folded = holds_named(model, "W", "y_gamma", "B")
    assert folded.training_info == model.training_info
    assert "y_mean" not in initializers(folded)


def test_initializers_that_annotations_name_stay_as_they_are() -> None:
    model = build(X, NAMED, W=W, B=(4,))
    note = model.graph.quantization_annotation.add(tensor_name="x")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="B")
    note.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="y_var")
    folded = holds_named(model, "B", "y_var")
    assert folded.graph.quantization_annotation == model.graph.quantization_annotation
    assert "y_mean" not in initializers(folded)


# -- shapes and types --------------------------------------------------------------------------------------------------


def test_a_name_that_stands_for_two_dimensions_names_no_size() -> None:
    def model(last: str) -> ModelProto:
        shape = "s = Shape(n)\nl = Gather(s, two)\nsh = Concat<axis = 0>(l, four, rest)\n"
        nodes = "n = BN4(x)\n" + shape + "r = Reshape(n, sh)\ny = Conv(r, W)"
        stored: dict[str, Any] = {"two": [2], "four": [4], "rest": [-1], "W": (3, 4, 1)}
        return build(f"float[N,4,{last}] x", nodes, "float[A,3,B] y", **stored)

    keeps(model("N"), "reshape")
    feeds = {"x": integers((2, 4, 3), "x")}
    assert_same(model("N"), fold(model("N")).model, feeds)
    keeps(model("M"), "reshape")


def test_no_columns() -> None:
    folded = folds(build("float[5,4] x", "n = BN4(x)\ny = Gemm(n, W)", W=np.zeros((4, 0), np.float32)))
    assert ops(folded) == ["Gemm"]


def test_a_constant_times_a_dequantized_activation() -> None:
    nodes = "d = DequantizeLinear(x, s)\nm = MatMul(W, d)\ny = Mul(m, k)"
    stored = {"W": integers((3, 4)), "k": integers((3, 1), "k"), "s": np.float32(0.5)}
    folded = folds(build("int8[4,5] x", nodes, "float[3,5] y", **stored))
    assert ops(folded) == ["DequantizeLinear", "MatMul"]


# -- files -------------------------------------------------------------------------------------------------------------


def test_folding_in_place_leaves_a_data_file_that_another_model_shares(tmp_path: Path) -> None:
    model = build("float[1,8,5,5] x", "c = Conv(x, W)\ny = BN8(c)", W=(8, 8, 5, 5))
    path, other = tmp_path / "m.onnx", tmp_path / "other.onnx"
    stored = ModelProto.FromString(model.SerializeToString())
    onnx.save(stored, path, save_as_external_data=True, location="m.onnx.data", size_threshold=100)
    shutil.copy(path, other)
    report = bnfold.fold_file(path, path, verify=False)
    assert any("'m.onnx.data'" in note for note in report.notes)
    assert count(onnx.load(path), "BatchNormalization") == 0
    for loaded in (onnx.load(path), onnx.load(other)):
        assert_same(model, loaded, feeds_for(model))


def test_nothing_to_fold_in_place_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = build("float[1,8,5,5] x", "y = Conv(x, W)", W=(8, 8, 5, 5))
    onnx.save(model, path, save_as_external_data=True, location="m.onnx.data", size_threshold=100)
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in tmp_path.iterdir()}
    report = bnfold.fold_file(path, path, verify=False)
    assert report.files == ()
    assert {file.name: (file.stat().st_ino, file.read_bytes()) for file in tmp_path.iterdir()} == before


def test_data_that_does_not_fit_its_shape() -> None:
    for name in ("y_gamma", "W"):
        model = build(X, "c = Conv(x, W)\ny = BN4(c)", W=W)
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.raw_data = tensor.raw_data[:-4]
        with pytest.raises(ModelReadError, match=f"the data of tensor '{name}' does not fit its shape"):
            bnfold.fold(model, verify=False)


def test_half_precision_data_that_does_not_fit_its_shape() -> None:
    model = build("float16[1,4,2,2] x", "c = Conv(x, W)\ny = BN4(c)", W=W, norms_as=np.float16)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "y_beta")
    tensor.raw_data = tensor.raw_data[:-2]
    with pytest.raises(ModelReadError, match="the data of tensor 'y_beta' does not fit its shape"):
        bnfold.fold(model, verify=False)


def test_nodes_that_are_not_sorted_are_refused() -> None:
    model = build(X, "c = Conv(x, W)\nn = BN4(c)\ny = Relu(n)", W=W)
    first = ModelProto.FromString(model.SerializeToString()).graph.node[0]
    del model.graph.node[0]
    model.graph.node.append(first)
    with pytest.raises(ModelReadError, match="node 'BatchNormalization:n' reads 'c' before it is made; sort the nodes"):
        bnfold.fold(model, verify=False)


# -- size --------------------------------------------------------------------------------------------------------------


def test_hundreds_of_matmuls_in_a_row() -> None:
    nodes = "t0 = MatMul(x, W)\n" + "".join(f"t{i} = MatMul(t{i - 1}, W)\n" for i in range(1, 400)) + "y = BN4(t399)"
    folded = folds(build("float[5,4] x", nodes, W=np.eye(4, dtype=np.float32)))
    assert ops(folded) == ["MatMul"] * 399 + ["Gemm"]


def test_factors_that_overflow_together_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """4^256 is no float32: merged as far as it goes, without a new plan for each product that does not fit."""
    calls: list[object] = []

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        return plan_model(*arguments)

    plan_model = folding.plan_model
    monkeypatch.setattr(folding, "plan_model", counting)
    nodes = "n0 = Mul(x, k)\nr0 = Relu(n0)\n"
    nodes += "".join(f"n{i} = Mul(r{i - 1}, k)\nr{i} = Relu(n{i})\n" for i in range(1, 256))
    model = build("float[1,4,2,2] x", nodes, "float[1,4,2,2] r255", k=np.float32(4))
    result = bnfold.fold(model, verify=False)
    assert len(calls) == 1
    assert 4 < count(result.model, "Mul") < 12, describe(result)
    feeds = {"x": np.full((1, 4, 2, 2), 2.0**-149, np.float32)}
    assert_same(model, result.model, feeds)


def test_sizes_that_are_squared_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product reads the one before twice; its factors are neither looked up nor written down twice."""
    lengths: list[int] = []

    def counting(*arguments: Any) -> Any:
        found = values(*arguments)
        lengths.append(max((len(monomial.names) for monomial in found or ()), default=0))
        return found

    values = symbolic.values
    monkeypatch.setattr(symbolic, "values", counting)
    nodes = "n = BN4(x)\ns = Shape(n)\nd0 = Gather(s, z)\n"
    nodes += "".join(f"d{i + 1} = Mul(d{i}, d{i})\n" for i in range(12))
    nodes += "sh = Concat<axis = 0>(d12, rest)\nr = Reshape(n, sh)\ny = Relu(r)"
    model = build("float[B,4,6,6] x", nodes, "float[P,Q] y", z=[0], rest=[-1])
    result = bnfold.fold(model, verify=False)
    assert [kept.node for kept in result.report.kept] == ["BatchNormalization:n"]
    assert 0 < len(lengths) < 200
    assert max(lengths) <= 16
    assert_same(model, result.model, feeds_for(model, B=1))


def test_channels_of_which_none_is_left() -> None:
    model = build("float[2,4,3,3] x", "n = BN4(x)\ns = Gather<axis=1>(n, none)\nz = Conv(n, W)\ny = Mul(s, k)",
                  "float[2,0,3,3] y, float[2,2,3,3] z", none=np.zeros(0, np.int64), k=np.float32(2), W=(2, 4, 1, 1))  # fmt: skip
    assert_same(model, fold(model).model, feeds_for(model))


def test_a_declared_shape_does_not_move_to_an_input() -> None:
    """The second fold would know more than the first."""
    text = "d = Mul(x, k)\nc = BN4(x)\ns = Shape(d)\nr = Reshape(c, s)\ny = BN4(r)"
    model = build("float[?,4,?,3] x", text, "int64[4] s, float[p,q,r,t] y", k=(4, 1, 1))
    fold(onnx.shape_inference.infer_shapes(model))


def test_old_gemms_say_that_their_new_addend_broadcasts() -> None:
    model = build("float[2,4] x", "h = Gemm(x, W, C)\ny = BN3(h)", opset=6, W=(4, 3), C=(2, 3))
    model.graph.node[1].attribute.append(helper.make_attribute("is_test", 1))
    folds(model)
    text = "h = Add <broadcast=1> (x, k)\ny = Gemm(h, W, C)"
    result = fold(build("float[2,4] x", text, opset=6, W=(4, 3), C=(2, 3), k=(4,)))
    assert ops(result.model) == ["Gemm"]


# -- patterns that once stayed -----------------------------------------------------------------------------------------

RESIZE = """
c = Conv(x, W)
s = Shape(z)
hw = Slice(s, i2, i4)
nc = Slice(t, i0, i2)
to = Concat <axis=0> (nc, hw)
u = Resize (c, roi, none, to)
y = BN3(u)
"""
ONCE_KEPT = {
    "Resize to the size of another tensor": (
        "float[2,4,3,3] x, float[2,4,6,6] z",
        RESIZE.replace("nc =", "t = Shape(c)\nnc ="),
        {"W": (3, 4, 1, 1), "i0": [0], "i2": [2], "i4": [4], "opset": 12, "roi": np.zeros(0, np.float32), "none": np.zeros(0, np.float32)},
    ),
    "rows to tokens": ("float[M,5] x", "g = Gemm(x, W)\nr = Reshape(g, to)\ny = Mul(r, k)",
                       {"W": (5, 4), "to": [-1, 3, 4], "k": (4,)}),
    "tokens to rows": ("float[B,T,4] x", "n = Mul(x, k)\nr = Reshape(n, to)\ny = Gemm(r, W)", {"to": [-1, 4], "k": (4,), "W": (4, 3)}),
    "merged behind rows": ("float[M,2,3] x", "n = Mul(x, k)\nr = Reshape(n, to)\ny = Gemm(r, W)",
                           {"to": [-1, 6], "k": (2, 1), "W": (6, 3)}),
    "cut to the height of another tensor": (
        "float[2,4,6,6] x, float[2,4,3,3] z",
        "c = Conv(x, W)\ns = Shape <start=2, end=3> (z)\nu = Slice(c, i0, s, i2)\ny = BN3(u)",
        {"W": (3, 4, 1, 1), "i0": [0], "i2": [2]},
    ),
    "repeated as often as another tensor has rows": (
        "float[2,4,3,3] x, float[2,4] z",
        "c = Conv(x, W)\ns = Shape <end=1> (z)\nn = Concat <axis=0> (s, ones)\nu = Tile(c, n)\ny = BN3(u)",
        {"W": (3, 4, 1, 1), "ones": [1, 1, 1]},
    ),
    "a Pad that pads nothing": ("float[2,4,5,5] x", "n = BN4(x)\np = Pad(n, z)\ny = Conv(p, W)", {"z": [0] * 8, "W": (3, 4, 3, 3)}),
    "a Pad that crops": ("float[2,4,5,5] x", "c = Conv(x, W)\np = Pad(c, z)\ny = BN3(p)",
                         {"z": [0, 0, -1, 0, 0, 0, 0, -1], "W": (3, 4, 1, 1)}),
    "split beside a dead channel": (
        "float[2,4,5,5] x",
        "c = Conv(x, W)\np = MaxPool <kernel_shape=[2,2]> (c)\nn = BatchNormalization <epsilon=0.0> (p, g, b, m, v)\ny = Conv <pads=[1,1,1,1]> (n, V)",
        {"W": (3, 4, 1, 1), "V": (2, 3, 3, 3), "g": np.float32([-2, 0, 1]), "b": np.float32([1, 0, 2]), "m": np.float32([0, 0, 1]),
         "v": np.float32([1, 4, 1])},
    ),
    "Clip from zero": ("float[2,4,5,5] x", "c = Conv(x, W)\nr = Clip(c, z)\ny = Mul(r, k)",
                       {"W": (3, 4, 1, 1), "z": np.float32(0), "k": np.float32([[[2]], [[4]], [[1]]])}),
    "Clip up to zero": ("float[2,4,5,5] x", "c = Conv(x, W)\nr = Clip(c, , z)\ny = Mul(r, k)",
                        {"W": (3, 4, 1, 1), "z": np.float32(0), "k": np.float32([[[2]], [[4]], [[1]]])}),
    "Clip from zero, as attributes": ("float[2,4,5,5] x", "c = Conv(x, W)\nr = Clip <min=0.0> (c)\ny = Mul(r, k)",
                                      {"W": (3, 4, 1, 1), "k": np.float32([[[2]], [[4]], [[1]]]), "opset": 10}),
    "LpPool": ("float[2,4,5,5] x", "c = Conv(x, W)\nr = LpPool <kernel_shape=[2,2], p=1> (c)\ny = Mul(r, k)",
               {"W": (3, 4, 1, 1), "k": np.float32([[[2]], [[4]], [[1]]])}),
    "ReduceL1": ("float[2,4,5,5] x", "c = Conv(x, W)\nr = ReduceL1(c, hw)\ny = Mul(r, k)",
                 {"W": (3, 4, 1, 1), "hw": [2, 3], "k": np.float32([[[2]], [[4]], [[1]]])}),
    "a variance that is clamped": (
        "float[2,4,5,5] x", "c = Conv(x, W)\nv = Max(u, one)\ny = BatchNormalization <epsilon=0.0> (c, g, g, g, v)",
        {"W": (3, 4, 1, 1), "u": np.float32([-1, 4, 16]), "one": np.float32(1), "g": np.float32([1, 2, -4])}),
    "a product of weights": ("float[2,5] x", "W = MatMul(P, Q)\nc = Gemm(x, W)\ny = BN3(c)", {"P": (5, 2), "Q": (2, 3)}),
    "the norm of a weight": ("float[2,4] x", "n = ReduceMax(W, zero)\nc = Gemm(x, W)\ny = Mul(c, n)",
                             {"W": (4, 3), "zero": [0], "opset": 18}),
    "the scale of an attention of any length": (
        "float[N,S,8] x",
        "a = MatMul(x, W)\nb = Reshape(a, to)\nq = Transpose <perm=[0,2,1,3]> (b)\ns = Shape(q)\n"
        "d = Slice(s, last, end)\nf = Cast <to=1> (d)\nr = Sqrt(f)\ny = Div(q, r)",
        {"W": (8, 8), "to": [0, 0, 2, 4], "last": [-1], "end": [1 << 62]},
    ),
    "a size that is gathered": (
        "float[N,5,8] x", "q = MatMul(x, W)\ns = Shape(q)\nd = Gather(s, last)\nf = Cast <to=1> (d)\ny = Div(q, f)",
        {"W": (8, 4), "last": np.array(2)}),
    "constants that an old Unsqueeze makes": (
        "float[2,4,5,5] x", "c = Conv(x, W)\nu = Unsqueeze <axes=[0,2,3]> (k)\nm = Mul(c, u)\nv = Unsqueeze <axes=[1,2]> (l)\ny = Add(m, v)",
        {"W": (3, 4, 1, 1), "k": (3,), "l": (3,), "opset": 11}),
    "a constant that an old Clip makes": (
        "float[2,4,5,5] x", "c = Conv(x, W)\nu = Clip <min=1.0, max=2.0> (k)\ny = Mul(c, u)",
        {"W": (3, 4, 1, 1), "k": (3, 1, 1), "opset": 9}),
    "a gate that is learned": (
        "float[2,4,5,5] x", "c = Conv(x, W)\nu = Where(flag, k, l)\ny = Mul(c, u)",
        {"W": (3, 4, 1, 1), "k": (3, 1, 1), "l": (3, 1, 1), "flag": np.array([True, False, True]).reshape(3, 1, 1)}),
    "behind a Resize to a size, in a Concat": (
        "float[2,4,3,3] x, float[2,4,6,6] z",
        "c = Conv(x, W)\nt = Shape(c)\nnc = Slice(t, i0, i2)\nw = Shape(z)\nhw = Slice(w, i2, i4)\nto = Concat <axis=0> (nc, hw)\n"
        'u = Resize <mode="nearest", coordinate_transformation_mode="asymmetric"> (c, roi, none, to)\nd = Conv(z, V)\n'
        "e = Concat <axis=1> (u, d)\nm = Mul(e, k)\ny = Add(m, l)",
        {"W": (3, 4, 1, 1), "V": (2, 4, 1, 1), "k": (5, 1, 1), "l": (5, 1, 1), "i0": [0], "i2": [2], "i4": [4],
         "opset": 12, "roi": np.zeros(0, np.float32), "none": np.zeros(0, np.float32)}),
    "a MaxPool whose indices nobody reads": ("float[2,4,5,5] x", "n = BNpos4(x)\np, i = MaxPool <kernel_shape=[2,2]> (n)\ny = Conv(p, W)",
                                             {"W": (3, 4, 1, 1)}),
    "the mean of some channels of any image": (
        "float[N,4,H,V] x", "c = Conv(x, W)\ns = Slice(c, i0, i2, i1)\nr = ReduceMax(s, hw)\ny = BNpos2(r)",
        {"W": (3, 4, 1, 1), "i0": [0], "i1": [1], "i2": [2], "hw": [2, 3]}),
    "the mean of what a Conv makes of a part": (
        "float[N,4,H,V] x", "s = Slice(x, i0, i2, i2)\nc = Conv(s, W)\nr = ReduceMax(c, hw)\ny = BNpos3(r)",
        {"W": (3, 4, 1, 1), "i0": [0], "i2": [2], "hw": [2, 3]}),
    "the queries of an attention": (
        "float[N,5,8] x",
        "a = MatMul(x, W)\nr = Reshape(a, to)\nt = Transpose <perm=[2,0,3,1,4]> (r)\n"
        "q = Gather <axis=0> (t, i0)\nk = Gather <axis=0> (t, i1)\nv = Gather <axis=0> (t, i2)\ns = Mul(q, half)\n"
        "u = Transpose <perm=[0,1,3,2]> (k)\nw = MatMul(s, u)\ny = MatMul(w, v)",
        {"W": (8, 24), "to": [0, 5, 3, 2, 4], "i0": np.array(0), "i1": np.array(1), "i2": np.array(-1), "half": np.float32(0.5)},
    ),
    "two halves of the channels": (
        "float[2,3,5,6] x",
        "c = Conv(x, W)\nu = Slice(c, i0, i2, i1)\nv = Slice(c, i2, i4, i1)\nm = Mul(u, k)\nn = Mul(v, two)\ny = Concat <axis=1> (n, m)",
        {"W": (4, 3, 1, 1), "i0": [0], "i1": [1], "i2": [2], "i4": [4], "k": (2, 1, 1), "two": np.float32(2)},
    ),
    "a product of matrices in an old model": ("float[2,4] x", "c = MatMul(x, W)\ny = BatchNormalization <epsilon=0.0, is_test=1> (c, g, g, g, g2)",
                                              {"W": (4, 3), "g": np.float32([1, -2, 4]), "g2": np.float32([1, 4, 1]), "opset": 6}),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "nodes", "options"), ONCE_KEPT.values(), ids=ONCE_KEPT)
def test_patterns_that_once_stayed(inputs: str, nodes: str, options: dict[str, Any]) -> None:
    folds(build(inputs, nodes, **options), M=3)


def test_norms_tell_how_many_channels_there_are() -> None:
    folds(build("float[N,C,H,V] x", "n = BN4(x)\nm = Mul(n, k)\ny = Add(m, k)", k=(4, 1, 1)), norms=1, C=4)


@pytest.mark.parametrize("op", ["local.Own", "com.microsoft.QuickGelu"])
def test_a_conv_is_known_behind_an_operator_that_is_not(op: str) -> None:
    """The value of the Pad has the type of its data."""
    text = f"u = {op}(x)\nc = Conv(u, W)\np = Pad(c, P)\ny = Add(p, k)"
    pads, outputs, imports = [0, 0, 1, 1, 0, 0, 1, 1], "float16[1,4,4,4] y", {"local": 1, "com.microsoft": 1}
    model = build("float16[1,4,2,2] x", text, outputs, opset=17, ir=8, imports=imports, P=pads, k=np.float16(0.5), W=W)
    folded = bnfold.fold(model, verify=False).model
    assert ops(folded) == [op.rsplit(".", maxsplit=1)[-1], "Conv", "Pad"]
    assert initializers(folded)["P_value"].dtype == np.float16


def test_the_type_of_a_region_is_not_that_of_what_is_resized() -> None:
    text = "m = com.microsoft.FusedMatMul(x, W)\nr = Resize(m, roi, scales)\na = Add(r, k)\np = Pad(a, P, zero)\ny = Conv(p, V)"
    constants = {"W": (4, 4), "roi": np.zeros(0, np.float32), "scales": np.ones(4, np.float32), "k": np.float16(2),
                 "P": [0, 0, 1, 1, 0, 0, 1, 1], "zero": np.float16(0), "V": (3, 2, 1, 1)}  # fmt: skip
    model = build("float16[1,2,4,4] x", text, "float16[p,q,r,s] y", opset=17, ir=8, imports={"com.microsoft": 1}, **constants)
    folded = initializers(bnfold.fold(model, verify=False).model)
    assert [name for name, values in folded.items() if values.dtype == np.float32] == ["roi", "scales"]


def test_a_chain_that_continues_one_whose_half_has_gone() -> None:
    """The report once looked for the output of the one that had become part of the other."""
    rows, channels = np.float32([3, -1, 2, 3]).reshape(1, 1, 1, 4), np.float32([-1, 0]).reshape(1, 2, 1, 1)
    text = "p = Sub(x, a)\nq = Add(p, b)\nr = Sub(q, a)\ns = Add(r, b)\ny = Div(s, two)"
    folds(build("float[N,2,4,4] x", text, a=rows, b=channels, two=np.float32(2)), affines=2)


@pytest.mark.parametrize("fused", ["FusedConv", "FusedGemm"])
def test_what_follows_a_fused_operator_is_known(fused: str) -> None:
    conv = fused == "FusedConv"
    first = f"f = com.microsoft.{fused} <activation=\"Relu\"> (x, W, b)\n"
    rest = "p = AveragePool <kernel_shape=[2,2]> (f)\n" if conv else "p = Identity(f)\n"
    last = "y = Conv(a, V)" if conv else "y = Gemm(a, V)"
    shape, weight, second, k = ("2,4,5,5", (3, 4, 1, 1), (2, 3, 1, 1), (3, 1, 1)) if conv else ("2,4", (4, 3), (3, 2), (3,))
    text = f"{first}{rest}m = Mul(p, k)\na = Add(m, k)\n{last}"
    model = build(f"float[{shape}] x", text, opset=17, ir=8, imports={"com.microsoft": 1}, W=weight, b=(3,), V=second, k=k)
    assert len(bnfold.fold(model, verify=False).report.folded) == 2


def adds_sparse(indices: list[Any], dims: list[int]) -> ModelProto:
    """A Conv, and a sum with a sparse constant of two values."""
    tensor = onnx.SparseTensorProto(dims=dims)
    tensor.values.CopyFrom(onnx.numpy_helper.from_array(np.float32([2, 4]), "values"))
    tensor.indices.CopyFrom(onnx.numpy_helper.from_array(np.array(indices), "indices"))
    model = build("float[2,4,5,5] x", "c = Conv(x, W)\ny = Add(c, k)", W=(3, 4, 1, 1), k=(3, 1, 1))
    del model.graph.initializer[1]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], sparse_value=tensor))
    return model


@pytest.mark.parametrize("indices", [[0, 2], [[0, 0, 0], [2, 0, 0]]])
def test_sparse_constants(indices: list[Any]) -> None:
    result = fold(adds_sparse(indices, [3, 1, 1]))
    assert ops(result.model) == ["Conv"]
    np.testing.assert_array_equal(initializers(result.model)["W_bias"], [2, 0, 4])


@pytest.mark.parametrize(("indices", "dims"), [([0, 9], [3, 1, 1]), ([0, 1], [1 << 15, 1 << 15])])
def test_sparse_constants_that_cannot_be_written_out(indices: list[int], dims: list[int]) -> None:
    assert not bnfold.fold(adds_sparse(indices, dims), verify=False).report.folded
