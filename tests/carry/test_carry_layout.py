"""Transpose, Squeeze, Unsqueeze, Expand, Tile, Reshape and Flatten move the channel axis, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, case, folds, kept, refuses

X = "float[2,4,5,5] x"
W = (3, 4, 2, 2)
C = "c = Conv(x, W)\n"

KEPT = [
    kept(
        "channels on two axes in front of what knows only one",
        "reshape",
        "float[2,6,4,4] x",
        "c = Conv(x, W)\nr = Reshape(c, to)\nt = Transpose <perm=[0,2,1,3,4]> (r)\np = ReduceMax <keepdims=1> (t, k)\n"
        "u = Reshape(p, back)\ny = BNpos6(u)",
        to=[2, 2, 3, 4, 4],
        k=[3, 4],
        back=[2, 6, 1, 1],
        W=(6, 6, 1, 1),
    ),
    kept(
        "channels on two axes in front of a linear operator",
        "reshape",
        "float[2,6] x",
        "n = BN6(x)\nr = Reshape(n, to)\ny = MatMul(r, V)",
        to=[2, 2, 3],
        V=(3, 5),
    ),
    kept(
        "channels on two axes that do not come together",
        "reshape",
        "float[N,6,4] x",
        "c = Conv(x, W)\nr = Reshape(c, to)\nt = Transpose <perm=[1,0,2,3]> (r)\nu = Reshape(t, back)\ny = BN6(u)",
        outputs="float[a,b,c] y",
        to=[-1, 2, 3, 4],
        back=[-1, 6, 4],
        W=(6, 6, 1),
    ),
    kept(
        "Transpose takes the channels away",
        "axis",
        "float[2,4,4,4] x",
        "c = Conv(x, W)\nt = Transpose <perm=[0,2,1,3]> (c)\ny = BN4(t)",
        W=(4, 4, 1, 1),
    ),
    kept(
        "Transpose without perm",
        "axis",
        "float[3,4,5,3] x",
        "c = Conv(x, W)\nt = Transpose(c)\ny = BN4(t)",
        W=(3, 4, 2, 1),
    ),
    kept(
        "square Reshape: batch is not channels",
        "axis",
        "float[4,4] x",
        "c = Gemm(x, B)\nr = Reshape(c, s)\ny = BN4(r)",
        B=(4, 4),
        s=[1, 4, 4],
    ),
    kept(
        "Reshape that mixes",
        "reshape",
        "float[2,4,3,3] x",
        "c = Conv(x, W)\nr = Reshape(c, s)\ny = BN6(r)",
        W=(4, 4, 1, 1),
        s=[2, 6, 6],
    ),
    kept(
        "Reshape to a computed shape",
        "reshape",
        "float[2,4,3,3] x, int64[3] s",
        "c = Conv(x, W)\nr = Reshape(c, s)\ny = BN4(r)",
        outputs="float[a,b,d] y",
        W=(4, 4, 1, 1),
    ),
    kept(
        "Flatten at axis 2",
        "reshape",
        "float[2,4,3,3] x",
        "c = Conv(x, W)\nf = Flatten <axis=2> (c)\ny = BN9(f)",
        W=(4, 4, 1, 1),
    ),
    kept(
        "Flatten: positions differ",
        "reshape",
        "float[2,4,3,3] x",
        "c = Conv(x, W)\nf = Flatten(c)\ny = BN36(f)",
        W=(4, 4, 1, 1),
    ),
    kept(
        "Expand stretches the channels",
        "axis",
        "float[2,3,4,4] x",
        "c = Conv(x, W)\ne = Expand(c, s)\ny = BN4(e)",
        W=(1, 3, 1, 1),
        s=[2, 4, 4, 4],
    ),
    kept(
        "Tile repeats channels that differ",
        "axis",
        X,
        "c = Conv(x, W)\ne = Tile(c, s)\ny = BN6(e)",
        W=W,
        s=[1, 2, 1, 1],
    ),
    kept(
        "Squeeze without axes, size not known",
        "shape-unknown",
        "float[N,4,1,1] x",
        "c = Conv(x, F)\ns = Squeeze(c)\ny = BN3(s)",
        outputs="float[N,3] y",
        F=(3, 4, 1, 1),
    ),
    kept(
        "Unsqueeze makes the channel axis",
        "axis",
        "float[2,4,5] x",
        "c = Conv(x, W)\nu = Unsqueeze(c, a)\nb = Expand(u, s)\ny = BN3(b)",
        W=(3, 4, 2),
        a=[1],
        s=[2, 3, 3, 4],
    ),
    kept(
        "Tile in front, computed repeats",
        "shape-unknown",
        "float[2,4,4,4] x, int64[4] t",
        "n = BN4(x)\nd = Tile(n, t)\ny = Conv(d, U)",
        outputs="float[a,b,c,d] y",
        U=(3, 4, 1, 1),
    ),
    kept(
        "Squeeze of whatever has size one",
        "shape-unknown",
        "float[2,4,L] x",
        "a = Conv(x, U)\nd = Squeeze(a)\ny = BN3(d)",
        outputs="float[2,3] y",
        U=(3, 4, 1),
    ),
]

SHUFFLE = (
    "s = Shape(x)\nb = Gather(s, i0)\nh = Gather(s, i2)\nw = Gather(s, i3)\n"
    "to = Concat <axis=0> (b, three, two, h, w)\nback = Concat <axis=0> (b, six, h, w)\n"
)
SIZES = {"i0": [0], "i2": [2], "i3": [3], "two": [2], "three": [3], "six": [6], "W": (6, 6, 1, 1)}
SHUFFLED = "r = Reshape({}, to)\nt = Transpose <perm=[0,2,1,3,4]> (r)\n{}"

FOLDS = [
    case(
        "channel shuffle, backward",
        "float[N,6,H,W] x",
        SHUFFLE + "c = Conv(x, W)\n" + SHUFFLED.format("c", "u = Reshape(t, back)\ny = BN6(u)"),
        outputs="float[a,b,c,d] y",
        sizes={"N": 2, "H": 3, "W": 5},
        **SIZES,
    ),
    case(
        "channel shuffle, forward, with an activation and more axes on the way",
        "float[N,6,H,W] x",
        SHUFFLE
        + "n = BNposscale6(x)\n"
        + SHUFFLED.format(
            "n", "q = Unsqueeze(t, i0)\nv = Relu(q)\nz = Squeeze(v, i0)\nu = Reshape(z, back)\ny = Conv(u, W)"
        ),
        outputs="float[a,b,c,d] y",
        sizes={"N": 2, "H": 3, "W": 5},
        **SIZES,
    ),
    case(
        "channels next to each other that are mixed with the rows",
        "float[2,6,4,4] x",
        "c = Conv(x, W)\nr = Reshape(c, to)\nq = Identity(r)\nu = Reshape(q, back)\ny = BN6(u)",
        to=[2, 8, 12],
        back=[2, 6, 4, 4],
        W=(6, 6, 1, 1),
    ),
    case(
        "NHWC pairs",
        "float[2,5,5,4] x",
        "a = Transpose <perm=[0,3,1,2]> (x)\nc = Conv(a, W)\nb = Transpose <perm=[0,2,3,1]> (c)\n"
        "m = Mul(b, s)\ny = Add(m, t)",
        W=W,
        s=(3,),
        t=(3,),
    ),
    case(
        "NHWC in front",
        "float[2,5,5,4] x",
        "m = Mul(x, s)\nn = Add(m, t)\na = Transpose <perm=[0,3,1,2]> (n)\ny = Conv(a, W)",
        W=W,
        s=(4,),
        t=(1, 4),
    ),
    case(
        "Transpose twice",
        X,
        C + "a = Transpose <perm=[0,2,3,1]> (c)\nb = Transpose <perm=[0,3,1,2]> (a)\ny = BN3(b)",
        W=W,
    ),
    case("Transpose without perm", "float[4,6] x", "c = MatMul(W, x)\nt = Transpose(c)\ny = BN5(t)", W=(5, 4)),
    case("Squeeze", "float[2,4,5,1] x", "c = Conv(x, W)\ns = Squeeze(c, a)\ny = BN3(s)", W=(3, 4, 2, 1), a=[-1]),
    case("Squeeze without axes", "float[2,4,3,1] x", "c = Conv(x, W)\ns = Squeeze(c)\ny = BN3(s)", W=(3, 4, 2, 1)),
    case("Squeeze in front", "float[2,4,1,1] x", "n = BN4(x)\ns = Squeeze(n, a)\ny = Gemm(s, B)", B=(4, 3), a=[2, 3]),
    case(
        "Squeeze of the batch",
        "float[1,4,5] x",
        "c = Conv(x, W)\ns = Squeeze(c, a)\nu = Unsqueeze(s, a)\ny = BN3(u)",
        W=(3, 4, 2),
        a=[0],
    ),
    case("Unsqueeze", "float[2,4,5] x", "c = Conv(x, W)\nu = Unsqueeze(c, a)\ny = BN3(u)", W=(3, 4, 2), a=[2]),
    case(
        "Unsqueeze with negative axes",
        "float[3,4] x",
        "c = Gemm(x, B)\nu = Unsqueeze(c, a)\ny = BN5(u)",
        B=(4, 5),
        a=[-1, -2],
    ),
    case(
        "Unsqueeze in front",
        "float[2,4,5] x",
        "n = BN4(x)\nu = Unsqueeze(n, a)\ny = Conv(u, W)",
        W=(3, 4, 1, 2),
        a=[-2],
    ),
    case("Expand elsewhere", "float[2,4,1,5] x", C + "e = Expand(c, s)\ny = BN3(e)", W=(3, 4, 1, 2), s=[2, 1, 3, 4]),
    case(
        "Expand raises the rank",
        "float[4,5] x",
        "n = BN5(x)\ne = Expand(n, s)\ny = MatMul(e, B)",
        B=(5, 3),
        s=[2, 4, 5],
        affines=1,
    ),
    case("Tile elsewhere", X, C + "e = Tile(c, s)\ny = BN3(e)", W=W, s=[2, 1, 1, 3]),
    case(
        "Tile of the channels in front", X, "n = BN4(x)\ne = Tile(n, s)\ny = Conv(e, W)", W=(3, 8, 2, 2), s=[1, 2, 1, 1]
    ),
    case("Reshape merges positions", X, C + "r = Reshape(c, s)\ny = BN3(r)", W=W, s=[2, 3, 16]),
    case(
        "Reshape merges positions, any size",
        "float[N,4,H,V] x",
        "c = Conv(x, F)\nr = Reshape(c, s)\ny = BN3(r)",
        F=(3, 4, 1, 1),
        s=[0, 0, -1],
    ),
    case(
        "Reshape merges positions, named",
        "float[N,4,H,V] x",
        "c = Conv(x, F)\nr = Reshape(c, s)\ny = BN3(r)",
        F=(3, 4, 1, 1),
        s=[0, 3, -1],
    ),
    case("Reshape splits positions", X, C + "r = Reshape(c, s)\ny = BN3(r)", W=W, s=[2, 3, 2, 8]),
    case(
        "Reshape puts time into the batch",
        "float[2,5,4] x",
        "c = MatMul(x, B)\nr = Reshape(c, s)\ny = BN3(r)",
        B=(4, 3),
        s=[-1, 3],
        affines=1,
    ),
    case(
        "Reshape splits the batch",
        "float[6,4] x",
        "n = BN4(x)\nr = Reshape(n, s)\ny = MatMul(r, B)",
        B=(4, 3),
        s=[2, 3, 4],
        affines=1,
    ),
    case("Reshape, allowzero", X, C + "r = Reshape <allowzero=1> (c, s)\ny = BN3(r)", W=W, s=[2, 3, 16]),
    case("Flatten", "float[2,4,2,2] x", "n = BN4(x)\nf = Flatten(n)\ny = Gemm(f, B)", B=(16, 3)),
    case(
        "Flatten at axis 0 of one number",
        "float[1,4] x",
        "n = BN4(x)\nf = Flatten <axis=0> (n)\ny = Gemm(f, B)",
        B=(4, 3),
    ),
    case(
        "Flatten at a negative axis",
        "float[2,3,4] x",
        "n = BN3(x)\nt = Transpose <perm=[0,2,1]> (n)\nf = Flatten <axis=-1> (t)\ny = Gemm(f, B)",
        B=(3, 5),
    ),
    case("Flatten behind a 1x1 map", "float[2,4,1,1] x", C + "f = Flatten(c)\ny = BN3(f)", W=(3, 4, 1, 1)),
    case(
        "Reshape like Flatten, in front",
        "float[N,4,2,2] x",
        "n = BN4(x)\nf = Reshape(n, s)\ny = Gemm(f, B)",
        B=(16, 3),
        s=[-1, 16],
    ),
    case(
        "Flatten, positions of a channel scaled alike",
        "float[2,4,2,2] x",
        "c = Conv(x, U)\nf = Flatten(c)\ny = Mul(f, k)",
        U=(3, 4, 1, 1),
        k=np.repeat(np.float32([2, -4, 8]), 4),
    ),
    case(
        "Reshape to a shape that only inference follows",
        "float[N,4,2,2] x",
        "c = Conv(x, U)\nh = Shape <end=1> (x)\na = Add(h, z)\ns = Concat <axis=0> (a, t)\nr = Reshape(c, s)\ny = BN3(r)",
        U=(3, 4, 1, 1),
        z=[0],
        t=[3, 4],
        affines=1,  # the Add of the shape
    ),
    case("Squeeze without axes", "float[2,4,1] x", "a = Conv(x, U)\nd = Squeeze(a)\ny = BN3(d)", U=(3, 4, 1)),
    *[
        case(
            f"one number behind {operator}",
            "float[2,4,4,4] x",
            f"c = Conv(x, U)\nd = {operator}\ny = Mul(d, k)",
            U=(3, 4, 1, 1),
            k=np.float32(2),
            t=[1, 2, 1, 1],
        )
        for operator in ("Transpose(c)", "Tile(c, t)")
    ],
    *[
        case(
            f"one number in front of {operator}",
            "float[2,4,4,4] x",
            f"c = Mul(x, k)\nd = {operator}\ny = Conv(d, U)",
            U=(3, channels, 1, 1),
            k=np.float32(2),
            t=[1, 2, 1, 1],
        )
        for operator, channels in (("Transpose <perm=[0,2,1,3]> (c)", 4), ("Tile(c, t)", 8))
    ],
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", FOLDS)
def test_folds_exactly(case: Case) -> None:
    case.folds()


DAMAGED = {
    "a norm of an axis that Unsqueeze makes": ("axis", X, "c = Conv(x, W)\nu = Unsqueeze(c, a)\ny = BN3(u)"),
    "an axis that Unsqueeze makes twice": ("axis", X, "c = Conv(x, W)\nu = Unsqueeze(c, b)\ny = BN3(u)"),
    "a norm of an axis that Squeeze removes": (
        "axis",
        "float[2,C,5] x",
        "n = BN4(x)\ns = Squeeze(n, a)\ny = Gemm(s, B)",
    ),
    "a norm of a vector": ("axis", X, "c = Conv(x, W)\nr = Reshape(c, v)\ny = BN3(r)"),
    "a Reshape with two open sizes": ("shape-unknown", X, "c = Conv(x, W)\nr = Reshape(c, w)\ny = BN3(r)"),
}


@pytest.mark.parametrize(("code", "inputs", "nodes"), DAMAGED.values(), ids=DAMAGED)
def test_axes_that_do_not_fit_are_left_alone(code: str, inputs: str, nodes: str) -> None:
    constants = {"W": W, "B": (5, 2), "a": [1], "b": [1, 1], "v": [-1], "w": [-1, 3, -1]}
    refuses(build(inputs, nodes, "float[p,q] y", **constants), code)


@pytest.mark.parametrize("opset", [7, 11, 12])
@pytest.mark.parametrize(
    "nodes",
    [
        "s = Squeeze <axes=[3]> (c)\ny = BN3(s)",
        "u = Unsqueeze <axes=[2]> (c)\ny = BN3(u)",
        "s = Squeeze(c)\ny = BN3(s)",
    ],
)
def test_axes_as_an_attribute_before_opset_13(opset: int, nodes: str) -> None:
    folds(build("float[2,4,5,1] x", "c = Conv(x, W)\n" + nodes, opset=opset, ir=7, W=(3, 4, 2, 1)))
