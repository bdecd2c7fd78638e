"""Carrying out a plan: names, constants that are left behind, and what is not touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Case, assert_same, build, feeds_for, fold, folds, initializers, kept, ops
from onnx import helper

import bnfold

X = "float[2,4,5,5] x"
W = (3, 4, 2, 2)
C = "c = Conv(x, W)\n"
HALF = "float16[2,4,5,5] x"
LARGE, FULL = np.float32(3e38), np.full(3, 6e4, np.float16)

KEPT = [
    kept("a weight that would overflow", "overflow", X, C + "y = BN3(c)", W=np.full(W, LARGE, np.float32)),
    kept("an infinite weight", "not-finite", X, C + "y = BN3(c)", W=np.full(W, np.inf, np.float32)),
    kept(
        "a bias that would overflow", "overflow", HALF, "c = Conv(x, W, B)\ny = Mul(c, k)", W=W, B=FULL, k=np.float16(4)
    ),
    kept(
        "biases whose sum would overflow",
        "overflow",
        HALF,
        "c = Conv(x, W, B)\ny = Add(c, k)",
        W=W,
        B=FULL,
        k=FULL.reshape(3, 1, 1),
    ),
    kept("factors whose product would overflow", "no-producer no-producer", X, "a = Mul(x, k)\ny = Mul(a, k)", k=LARGE),
    kept(
        "the same behind an operator that takes neither",
        "overflow overflow",
        X,
        C + "a = Mul(c, k)\ny = Mul(a, k)",
        W=W,
        k=LARGE,
    ),
    kept("an identity that connects input and output", "no-producer", X, "y = Mul(x, k)", k=np.float32(1)),
    kept(
        "identities that connect an input to two outputs",
        "shared-output shared-output",
        X,
        "y = Mul(x, k)\nz = Add(x, l)",
        outputs="float[2,4,5,5] y, float[2,4,5,5] z",
        k=np.float32(1),
        l=np.float32(0),
    ),
    kept("a bias from a caller", "bias-not-constant", X + ", float[3] q", "c = Conv(x, W, q)\ny = BN3(c)", W=W),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


def test_what_was_unused_before_stays() -> None:
    folded = folds(build(X, C + "y = BN3(c)", W=W, unused=(3,)))
    assert "unused" in initializers(folded)


def test_what_the_fold_orphans_goes_with_the_expression_that_made_it() -> None:
    folded = folds(
        build(X, "s = Sqrt(v)\nt = Reshape(s, d)\n" + C + "y = Div(c, t)", W=W, v=np.float32([4, 16, 1]), d=[3, 1, 1])
    )
    assert ops(folded) == ["Conv"]
    assert set(initializers(folded)) == {"W"}


def test_a_parameter_that_is_read_elsewhere_stays() -> None:
    folded = folds(
        build(
            X,
            C + "n = BN3(c)\nr = Mul(z, n)\ny = Relu(r)".replace("z", "n_gamma3"),
            W=W,
            n_gamma3=np.ones((3, 1, 1), np.float32),
        )
    )
    assert ops(folded)[-1] == "Relu"


def test_only_fields_that_have_to_change_do() -> None:
    model = build(X, C + "n = BN3(c)\ny = Relu(n)", W=W)
    model.producer_name, model.doc_string, model.domain, model.model_version = "maker", "words", "here", 7
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "graph words"
    model.graph.node[0].doc_string, model.graph.node[0].name = "conv words", "conv"
    model.graph.node[2].name = "relu"
    folded = folds(model)
    for field in (
        "producer_name",
        "doc_string",
        "domain",
        "model_version",
        "metadata_props",
        "opset_import",
        "ir_version",
    ):
        assert getattr(folded, field) == getattr(model, field)
    assert folded.graph.doc_string == "graph words"
    assert folded.graph.node[0].doc_string == "conv words"
    assert [node.name for node in folded.graph.node] == ["conv", "relu"]


def test_declared_shapes_of_tensors_that_are_gone_are_removed() -> None:
    model = build(X, C + "n = BN3(c)\ny = Relu(n)", W=W)
    model.graph.value_info.extend(helper.make_tensor_value_info(name, 1, [2, 3, 4, 4]) for name in ("c", "n"))
    assert [value.name for value in folds(model).graph.value_info] == ["n"]


@pytest.mark.parametrize("own", [{}, {"n": None}, {"n": ["M", 2, 4, 4]}], ids=["nothing", "no shape", "a shape"])
def test_a_declared_shape_goes_to_the_name_that_has_none(own: dict[str, Any]) -> None:
    """Flax's exporter declares some shapes wrong; those of the convolutions keep runtimes from believing them."""
    model = build("float[N,3,4,4] x", "c = Conv(x, W)\nn = BN2(c)\ny = Relu(n)", W=(2, 3, 1, 1))
    shapes = {"c": ["N", 2, 4, 4], **own}
    model.graph.value_info.extend(helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    (left,) = folds(model).graph.value_info
    assert left == helper.make_tensor_value_info("n", 1, shapes.get("n") or shapes["c"])


def test_a_tensor_with_another_value_gets_another_name() -> None:
    folded = folds(build(X, C + "r = Relu(c)\ny = BNposscale3(r)", W=W))
    names = [name for node in folded.graph.node for name in node.output]
    assert "c" not in names
    assert names[-1] == "y"


def test_the_same_new_weight_is_stored_once() -> None:
    nodes = "n = BNscale4(x)\na = Conv(n, W)\nb = Conv <strides=[1,1]> (n, W)\ny = Sub(a, b)"
    folded = folds(build(X, nodes, W=W))
    assert len(folded.graph.initializer) == 1


def test_shape_readers_inside_a_merged_chain() -> None:
    nodes = "n = BN4(x)\nm = Mul(n, k)\ns = Shape(n)\ny = Reshape(m, s)"
    assert ops(folds(build(X, nodes, k=(4, 1, 1)), norms=1)) == ["BatchNormalization", "Shape", "Reshape"]


def test_a_merge_that_leaves_nothing() -> None:
    model = build(X, "s = Floor(x)\na = Mul(s, k)\nt = Transpose(a)\ny = Neg(t)", "float[5,5,4,2] y", k=np.float32(-1))
    assert ops(folds(model)) == ["Floor", "Transpose"]


def test_a_pair_of_another_layout_merges_into_a_pair() -> None:
    nodes = "q = Relu(x)\nm = Mul(q, k)\na = Add(m, k)\nt = Transpose <perm=[0,2,3,1]> (a)\nn = Mul(t, l)\nb = Add(n, l)\ny = Sigmoid(b)"
    folded = folds(build(X, nodes, k=(4, 1, 1), l=(4,)), affines=2, exact=False)
    assert ops(folded) == ["Relu", "Mul", "Add", "Transpose", "Sigmoid"]


def test_a_merge_that_leaves_two_outputs_the_same() -> None:
    """One tensor cannot have two names."""
    nodes = "s = Floor(x)\na = Neg(s)\nt = Transpose(a)\ny = Neg(t)\nz = Neg(t)"
    model = build("float[2,3] x", nodes, "float[3,2] y, float[3,2] z")
    assert ops(folds(model)) == ["Floor", "Transpose", "Identity"]


@pytest.mark.parametrize(
    "nodes",
    [
        "n = BN4(x)\ni = Identity(n)\nm = Mul(i, k)\ny = Add(m, l)",
        "m = Mul(x, k)\na = Add(m, l)\ni = Identity(a)\ny = BN4(i)",
    ],
    ids=["pair behind", "pair in front"],
)
def test_a_pair_merges_into_a_norm_beyond_a_copy(nodes: str) -> None:
    """Not the norm into the pair, which would stay two operators."""
    folded = folds(build(X, nodes, k=(4, 1, 1), l=(4, 1, 1)), norms=1)
    assert sorted(ops(folded)) == ["BatchNormalization", "Identity"]


def test_a_negation_that_takes_a_factor_becomes_a_product_in_the_type_of_its_tensor() -> None:
    nodes = "s = Floor(x)\nn = Neg(s)\nc = Concat <axis=1> (n, k)\ny = Mul(c, f)"
    folded = folds(build("float16[2,3] x", nodes, k=(2, 1), f=np.float16(4)), affines=1)
    assert ops(folded) == ["Floor", "Mul", "Concat"]
    assert {value.dtype for value in initializers(folded).values()} == {np.dtype(np.float16)}


def test_an_if_that_nobody_reads_goes_with_what_its_branches_read() -> None:
    branches = "".join(
        f"{name}_branch = {name} () => (float[2,3,4,4] {name}) {{ {name} = {op}(c) }}, "
        for name, op in (("then", "Relu"), ("else", "Abs"))
    )
    nodes = f"c = Conv(x, W)\nf = If (flag) <{branches[:-2]}>\ndead = Mul(f, k)\ny = Relu(x)"
    folded = folds(build(f"{X}, bool flag", nodes, "float[2,4,5,5] y", W=W, k=np.float32(2)))
    assert ops(folded) == ["Relu"]
    assert not folded.graph.initializer


def test_constants_that_two_affines_pass_along_different_axes() -> None:
    nodes = "c = MatMul(x, W)\ns = Relu(c)\na = Add(s, k)\nb = Mul(a, m)\ny = Abs(b)"
    model = build("float[2,3,4] x", nodes, "float[2,3,5] y", W=(4, 5), k=(3, 5), m=np.abs(np.float32([1, 2, 4, 2, 1])))
    result = fold(model)
    assert_same(model, result.model, feeds_for(model))


def test_scalars_of_ir_3_models_are_declared_with_a_shape() -> None:
    model = build("float[1,4,2,2] x", "s = Floor(x)\nn = Neg(s)\ny = Mul(n, k)", opset=7, ir=3, k=np.float32(2))
    folds(model, affines=1)


def test_training_info_and_the_argument_are_left_as_they_are() -> None:
    model = build(X, C + "y = BN3(c)", W=W)
    model.training_info.add().initialization.name = "nothing"
    assert bnfold.fold(model, verify=False).model.training_info == model.training_info
