"""ConvTranspose takes an affine behind it, and a scale in front of it, exactly."""

from __future__ import annotations

import pytest
from helpers import Case, build, case, folds, kept, refuses

X = "float[2,4,5,5] x"

KEPT = [
    kept("shift in front", "shift", X, "n = BN4(x)\ny = ConvTranspose(n, W)", W=(4, 3, 3, 3)),
    kept(
        "shift in front, 1x1 with stride",
        "shift",
        X,
        "n = BN4(x)\ny = ConvTranspose <strides=[2,2]> (n, W)",
        W=(4, 3, 1, 1),
    ),
    kept(
        "shift in front, 1x1 with output padding",
        "shift",
        X,
        "n = BN4(x)\ny = ConvTranspose <strides=[2,2], output_padding=[1,1]> (n, W)",
        W=(4, 3, 1, 1),
    ),
    kept(
        "shift in front, 1x1 with output_shape",
        "shift",
        X,
        "n = BN4(x)\ny = ConvTranspose <output_shape=[7,7]> (n, W)",
        W=(4, 3, 1, 1),
    ),
    kept(
        "shift in front, 1x1 with auto_pad",
        "shift",
        X,
        'n = BN4(x)\ny = ConvTranspose <auto_pad="SAME_UPPER"> (n, W)',
        W=(4, 3, 1, 1),
    ),
    kept(
        "shift in front, 1x1 with pads",
        "shift",
        X,
        "n = BN4(x)\ny = ConvTranspose <pads=[1,1,1,1]> (n, W)",
        W=(4, 3, 1, 1),
    ),
    kept(
        "weight computed",
        "weight-not-constant",
        "float[2,4,5,5] x, float[4,3,2,2] W",
        "c = ConvTranspose(x, W)\ny = BN3(c)",
    ),
    kept(
        "bias computed",
        "bias-not-constant",
        "float[2,4,5,5] x, float[3] b",
        "c = ConvTranspose(x, W, b)\ny = BN3(c)",
        W=(4, 3, 2, 2),
    ),
    kept(
        "before, as the weight",
        "weight-not-constant",
        "float[4,4,1] x, float[2,4,6] w",
        "n = BN4(x)\ny = ConvTranspose(w, n)",
    ),
    kept(
        "before, weight computed",
        "weight-not-constant",
        "float[2,4,6] x, float[4,3,1] w",
        "n = BN4(x)\ny = ConvTranspose(n, w)",
    ),
]

AFTER = [
    case("1d", "float[2,4,6] x", "c = ConvTranspose <strides=[2]> (x, W, b)\ny = BN3(c)", W=(4, 3, 3), b=(3,)),
    case("2d", X, "c = ConvTranspose <strides=[2,2]> (x, W, b)\ny = BN3(c)", W=(4, 3, 3, 3), b=(3,)),
    case("3d", "float[1,4,3,3,3] x", "c = ConvTranspose(x, W)\ny = BN3(c)", W=(4, 3, 2, 2, 2)),
    case("no bias", X, "c = ConvTranspose(x, W)\ny = BN3(c)", W=(4, 3, 3, 3)),
    case("empty-string bias", X, "c = ConvTranspose(x, W, )\ny = BN3(c)", W=(4, 3, 3, 3)),
    case("groups", X, "c = ConvTranspose <group=2> (x, W, b)\ny = BN6(c)", W=(4, 3, 3, 3), b=(6,)),
    case("groups with as many inputs as outputs", X, "c = ConvTranspose <group=2> (x, W)\ny = BN4(c)", W=(4, 2, 2, 2)),
    case("depthwise", X, "c = ConvTranspose <group=4> (x, W)\ny = BN4(c)", W=(4, 1, 3, 3)),
    case("depthwise, two each", X, "c = ConvTranspose <group=4> (x, W)\ny = BN8(c)", W=(4, 2, 3, 3)),
    case(
        "output_padding",
        X,
        "c = ConvTranspose <strides=[3,2], output_padding=[2,1], pads=[1,0,1,0]> (x, W)\ny = BN3(c)",
        W=(4, 3, 3, 3),
    ),
    case(
        "output_shape", X, "c = ConvTranspose <strides=[2,2], output_shape=[10,9]> (x, W)\ny = BN3(c)", W=(4, 3, 3, 3)
    ),
    case(
        "SAME_UPPER", X, 'c = ConvTranspose <strides=[2,2], auto_pad="SAME_UPPER"> (x, W)\ny = BN3(c)', W=(4, 3, 3, 3)
    ),
    case("dilations", X, "c = ConvTranspose <dilations=[2,1]> (x, W)\ny = BN3(c)", W=(4, 3, 2, 2)),
]

BEFORE = [
    case(
        "scale",
        X,
        "n = BNscale4(x)\ny = ConvTranspose <strides=[2,2], pads=[1,1,1,1]> (n, W, b)",
        W=(4, 3, 3, 3),
        b=(3,),
    ),
    case("scale, groups", X, "n = BNscale4(x)\ny = ConvTranspose <group=2> (n, W)", W=(4, 3, 3, 3)),
    case("scale, depthwise", X, "n = BNscale4(x)\ny = ConvTranspose <group=4> (n, W)", W=(4, 2, 3, 3)),
    case(
        "scale, bias computed",
        "float[2,4,5,5] x, float[3] b",
        "n = BNscale4(x)\ny = ConvTranspose(n, W, b)",
        W=(4, 3, 3, 3),
    ),
    case("1x1", X, "n = BN4(x)\ny = ConvTranspose(n, W, b)", W=(4, 3, 1, 1), b=(3,)),
    case("1x1, groups", X, "n = BN4(x)\ny = ConvTranspose <group=2> (n, W)", W=(4, 3, 1, 1)),
    case("both sides", X, "n = BN4(x)\nc = ConvTranspose <group=2> (n, W)\ny = BN6(c)", W=(4, 3, 1, 1)),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", AFTER)
def test_after(case: Case) -> None:
    assert len(case.folds().graph.node) == 1


@pytest.mark.parametrize("case", BEFORE)
def test_before(case: Case) -> None:
    assert len(case.folds().graph.node) == 1


@pytest.mark.parametrize("opset", [7, 9, 11, 14, 15, 22])
@pytest.mark.parametrize(
    "nodes",
    ["c = ConvTranspose <group=2> (x, W, b)\ny = BN6(c)", "n = BNscale4(x)\ny = ConvTranspose <group=2> (n, W, b)"],
)
def test_every_opset(opset: int, nodes: str) -> None:
    folds(build(X, nodes, opset=opset, ir=8, W=(4, 3, 2, 2), b=(6,)))


@pytest.mark.parametrize(
    "nodes", ["c = ConvTranspose <group=3> (x, W)\ny = BN6(c)", "n = BN4(x)\ny = ConvTranspose <group=3> (n, W)"]
)
def test_weights_that_fit_no_groups_are_left_alone(nodes: str) -> None:
    refuses(build(X, nodes, "float[a,b,c,d] y", W=(4, 2, 1, 1)), "parameter-shape")
