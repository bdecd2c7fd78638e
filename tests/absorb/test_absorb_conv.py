"""Conv takes an affine behind it and in front of it, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, case, count, folds, initializers, integers, kept, refuses

X = "float[2,4,7,7] x"

KEPT = [
    kept("padded in front", "padding", X, "n = BN4(x)\ny = Conv <pads=[1,1,1,1]> (n, W)", W=(3, 4, 3, 3)),
    kept("1x1 kernel with pads", "padding", X, "n = BN4(x)\ny = Conv <pads=[0,1,0,0]> (n, W)", W=(3, 4, 1, 1)),
    kept("padded behind, and reached", "padding", X, "n = BN4(x)\ny = Conv <pads=[0,0,1,0], strides=[2,2]> (n, W)", W=(3, 4, 2, 2)),
    kept("padded behind, size not known", "padding", "float[2,4,H,6] x", "n = BN4(x)\ny = Conv <pads=[0,0,1,1], strides=[2,2]> (n, W)",
         W=(3, 4, 2, 2)),
    kept("padded in front of one axis", "padding", X, "n = BN4(x)\ny = Conv <pads=[1,0,0,0], strides=[2,2]> (n, W)", W=(3, 4, 3, 3)),
    kept("auto_pad SAME_UPPER", "padding", X, 'n = BN4(x)\ny = Conv <auto_pad="SAME_UPPER"> (n, W)', W=(3, 4, 3, 3)),
    kept("auto_pad SAME_LOWER", "padding", X, 'n = BN4(x)\ny = Conv <auto_pad="SAME_LOWER"> (n, W)', W=(3, 4, 2, 2)),
    kept(
        "SAME with stride that pads",
        "padding",
        X,
        'n = BN4(x)\ny = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (n, W)',
        W=(3, 4, 2, 2),
    ),
    kept(
        "SAME, size not known",
        "padding",
        "float[2,4,H,6] x",
        'n = BN4(x)\ny = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (n, W)',
        W=(3, 4, 2, 2),
    ),
    kept("weight computed", "weight-not-constant", "float[2,4,7,7] x, float[3,4,3,3] W", "c = Conv(x, W)\ny = BN3(c)"),
    kept(
        "weight computed, in front",
        "weight-not-constant",
        "float[2,4,7,7] x, float[3,4,3,3] W",
        "n = BN4(x)\ny = Conv(n, W)",
    ),
    kept(
        "bias computed",
        "bias-not-constant",
        "float[2,4,7,7] x, float[3] b",
        "c = Conv(x, W, b)\ny = BN3(c)",
        W=(3, 4, 3, 3),
    ),
    kept(
        "bias computed, in front",
        "bias-not-constant",
        "float[2,4,7,7] x, float[3] b",
        "n = BN4(x)\ny = Conv(n, W, b)",
        W=(3, 4, 3, 3),
    ),
    kept(
        "norm of the weight", "weight-not-constant", "float[2,4,7,7] x, float[3,4,3,3] w", "W = BN4(w)\ny = Conv(x, W)"
    ),
    kept(
        "read by another", "shared-output", X, "c = Conv(x, W)\nr = Relu(c)\nn = BN3(c)\ny = Add(r, n)", W=(3, 4, 3, 3)
    ),
    kept("read twice by one", "shared-output", X, "c = Conv(x, W)\nm = Mul(c, c)\ny = BNscale3(m)", W=(3, 4, 3, 3)),
    kept("behind an activation", "blocked", X, "c = Conv(x, W)\ns = Sigmoid(c)\ny = BN3(s)", W=(3, 4, 3, 3)),
    kept("behind Relu", "shift", X, "c = Conv(x, W)\ns = Relu(c)\ny = BNpos3(s)", W=(3, 4, 3, 3)),
    kept(
        "before, as the weight", "weight-not-constant", "float[3,4,1] x, float[2,4,6] w", "n = BN4(x)\ny = Conv(w, n)"
    ),
    kept(
        "FusedConv with an activation",
        "blocked",
        "float[2,4,5] x",
        'c = com.microsoft.FusedConv <activation="Relu"> (x, W)\ny = BN3(c)',
        outputs="float[2,3,5] y",
        imports={"com.microsoft": 1},
        W=(3, 4, 1),
    ),
    kept(
        "FusedConv that adds a tensor",
        "blocked",
        "float[2,4,5] x, float[2,3,5] z",
        "c = com.microsoft.FusedConv(x, W, b, z)\ny = BN3(c)",
        outputs="float[2,3,5] y",
        imports={"com.microsoft": 1},
        W=(3, 4, 1),
        b=(3,),
    ),
]

SHAPES_1D = "float[2,4,9] x"
SHAPES_3D = "float[1,4,5,5,5] x"

AFTER = [
    case("1d", SHAPES_1D, "c = Conv(x, W, b)\ny = BN3(c)", W=(3, 4, 3), b=(3,)),
    case("2d", X, "c = Conv(x, W, b)\ny = BN3(c)", W=(3, 4, 3, 3), b=(3,)),
    case("3d", SHAPES_3D, "c = Conv(x, W, b)\ny = BN3(c)", W=(3, 4, 3, 2, 1), b=(3,)),
    case("no bias", X, "c = Conv(x, W)\ny = BN3(c)", W=(3, 4, 3, 3)),
    case("empty-string bias", X, "c = Conv(x, W, )\ny = BN3(c)", W=(3, 4, 3, 3)),
    case("groups", X, "c = Conv <group=2> (x, W, b)\ny = BN6(c)", W=(6, 2, 3, 3), b=(6,)),
    case("depthwise", X, "c = Conv <group=4> (x, W)\ny = BN4(c)", W=(4, 1, 3, 3)),
    case("depthwise, two filters each", X, "c = Conv <group=4> (x, W, b)\ny = BN8(c)", W=(8, 1, 3, 3), b=(8,)),
    case("pads", X, "c = Conv <pads=[1,2,0,1]> (x, W)\ny = BN3(c)", W=(3, 4, 3, 3)),
    case("SAME_UPPER", X, 'c = Conv <auto_pad="SAME_UPPER"> (x, W)\ny = BN3(c)', W=(3, 4, 3, 3)),
    case("SAME_LOWER", X, 'c = Conv <auto_pad="SAME_LOWER", strides=[2,1]> (x, W)\ny = BN3(c)', W=(3, 4, 2, 3)),
    case("VALID", X, 'c = Conv <auto_pad="VALID"> (x, W)\ny = BN3(c)', W=(3, 4, 3, 3)),
    case("strides, dilations", X, "c = Conv <strides=[2,1], dilations=[1,3]> (x, W)\ny = BN3(c)", W=(3, 4, 2, 2)),
    case("one channel", "float[2,1,5,5] x", "c = Conv(x, W)\ny = BN1(c)", W=(1, 1, 3, 3)),
    case("dynamic", "float[N,4,H,W] x", "c = Conv(x, F)\ny = BN3(c)", F=(3, 4, 3, 3), sizes={"H": 5, "W": 6}),
    case("squares", "float[4,4,4,4] x", "c = Conv(x, W)\ny = BN4(c)", W=(4, 4, 1, 1)),
]

BEFORE = [
    case("1d", SHAPES_1D, "n = BN4(x)\ny = Conv(n, W, b)", W=(3, 4, 3), b=(3,)),
    case("2d", X, "n = BN4(x)\ny = Conv(n, W, b)", W=(3, 4, 3, 3), b=(3,)),
    case("3d", SHAPES_3D, "n = BN4(x)\ny = Conv(n, W)", W=(3, 4, 3, 2, 1)),
    case("no bias", X, "n = BN4(x)\ny = Conv(n, W)", W=(3, 4, 3, 3)),
    case("groups", X, "n = BN4(x)\ny = Conv <group=2> (n, W, b)", W=(6, 2, 3, 3), b=(6,)),
    case("depthwise", X, "n = BN4(x)\ny = Conv <group=4> (n, W)", W=(8, 1, 3, 3)),
    case("VALID", X, 'n = BN4(x)\ny = Conv <auto_pad="VALID"> (n, W)', W=(3, 4, 3, 3)),
    case("padded behind, where no window reaches", "float[2,4,8,6] x", "n = BN4(x)\ny = Conv <pads=[0,0,1,1], strides=[2,2]> (n, W)",
         W=(3, 4, 2, 2)),
    case("padded behind, where no dilated window reaches", "float[2,4,8,6] x",
         "n = BN4(x)\ny = Conv <pads=[0,0,1,0], strides=[3,1], dilations=[4,1]> (n, W)", W=(3, 4, 2, 1)),
    case("zero pads", X, "n = BN4(x)\ny = Conv <pads=[0,0,0,0]> (n, W)", W=(3, 4, 3, 3)),
    case(
        "SAME that pads nothing: kernel 1",
        X,
        'n = BN4(x)\ny = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (n, W)',
        W=(3, 4, 1, 1),
    ),
    case(
        "SAME that pads nothing: it fits",
        "float[2,4,6,6] x",
        'n = BN4(x)\ny = Conv <auto_pad="SAME_LOWER", strides=[2,2]> (n, W)',
        W=(3, 4, 2, 2),
    ),
    case("strides, dilations", X, "n = BN4(x)\ny = Conv <strides=[2,1], dilations=[1,3]> (n, W)", W=(3, 4, 2, 2)),
    case("padded, no shift", X, "n = BNscale4(x)\ny = Conv <pads=[1,1,1,1]> (n, W, b)", W=(3, 4, 3, 3), b=(3,)),
    case(
        "padded, no shift, bias computed",
        "float[2,4,7,7] x, float[3] b",
        "n = BNscale4(x)\ny = Conv <pads=[1,1,1,1]> (n, W, b)",
        W=(3, 4, 3, 3),
    ),
    case("both sides", X, "n = BN4(x)\nc = Conv <group=2> (n, W, b)\ny = BN6(c)", W=(6, 2, 3, 3), b=(6,)),
    case(
        "several consumers",
        X,
        "n = BN4(x)\na = Conv(n, W)\nb = Conv(n, V)\ny = Add(a, b)",
        W=(3, 4, 3, 3),
        V=(3, 4, 3, 3),
    ),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", AFTER)
def test_after(case: Case) -> None:
    folded = case.folds()
    assert count(folded, "Conv") == len(folded.graph.node)


@pytest.mark.parametrize("case", BEFORE)
def test_before(case: Case) -> None:
    case.folds()


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13, 14, 15, 21, 22, 23])
@pytest.mark.parametrize("nodes", ["c = Conv <pads=[1,1,1,1]> (x, W, b)\ny = BN3(c)", "n = BN4(x)\ny = Conv(n, W, b)"])
def test_every_opset(opset: int, nodes: str) -> None:
    folds(build(X, nodes, opset=opset, ir=8, W=(3, 4, 3, 3), b=(3,)))


def test_the_output_takes_the_name_of_the_norms_output_and_new_tensors_get_readable_ones() -> None:
    model = build(X, "c = Conv(x, W)\ny = BN3(c)", W=(3, 4, 3, 3))
    folded = folds(model)
    assert [list(node.output) for node in folded.graph.node] == [["y"]]
    assert set(initializers(folded)) == {"W", "W_bias"}


DAMAGED = {
    "a matrix as weight": ("c = Conv(x, W)\ny = BN3(c)", {"W": (3, 4)}),
    "a matrix as weight, in front": ("n = BN4(x)\ny = Conv(n, W)", {"W": (3, 4)}),
    "filters that fit no groups": ("c = Conv <group=2> (x, W)\ny = BN5(c)", {"W": (5, 2, 1, 1)}),
    "filters that fit no groups, in front": ("n = BN4(x)\ny = Conv <group=2> (n, W)", {"W": (5, 2, 1, 1)}),
    "no groups": ("n = BN4(x)\ny = Conv <group=0> (n, W)", {"W": (3, 4, 1, 1)}),
    "a bias that is too short": ("c = Conv(x, W, b)\ny = BN3(c)", {"W": (3, 4, 1, 1), "b": (2,)}),
}


@pytest.mark.parametrize(("nodes", "constants"), DAMAGED.values(), ids=DAMAGED)
def test_weights_that_do_not_fit_are_left_alone(nodes: str, constants: dict[str, tuple[int, ...]]) -> None:
    refuses(build(X, nodes, "float[a,b,c,d] y", **constants), "parameter-shape")


def test_weights_of_another_type_and_steps_of_zero_are_left_alone() -> None:
    weight = integers((3, 4, 1, 1), "W", np.int32)
    refuses(build(X, "c = Conv(x, W)\ny = BN3(c)", "float[a,b,c,d] y", W=weight), "weight-not-constant")
    nodes = 'n = BN4(x)\ny = Conv <auto_pad="SAME_UPPER", strides=[0,0]> (n, W)'
    refuses(build(X, nodes, "float[a,b,c,d] y", W=(3, 4, 2, 2)), "padding")


def test_fused_conv_that_fuses_nothing() -> None:
    domain = {"com.microsoft": 1}
    nodes = "c = com.microsoft.FusedConv(x, W)\ny = BN3(c)"
    folds(build("float[2,4,5] x", nodes, "float[2,3,5] y", imports=domain, W=(3, 4, 1)))
