"""Concat, Split, Slice, Gather, DepthToSpace and SpaceToDepth cut, join and reorder channels, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, case, folds, kept, refuses

X = "float[2,4,4,4] x"
W = (3, 4, 1, 1)
V = (5, 4, 1, 1)
TWO = "a = Conv(x, W)\nb = Conv(x, V)\n"
TWICE = np.float32(2)
UNIFORM: dict[str, dict[str, list[int]]] = {
    "Slice(c, o, e, q)": {"o": [0], "e": [2], "q": [3]},
    "Gather <axis=2> (c, i)": {"i": [0, 1]},
    "SpaceToDepth <blocksize=2> (c)": {},
}

KEPT = [
    kept(
        "two parts that overlap",
        "shared-output",
        X,
        "c = Conv(x, W)\nu = Slice(c, i0, i2, i1)\nv = Slice(c, i1, i4, i1)\nm = BN2(u)\ny = Concat <axis=1> (m, v)",
        W=(4, 4, 1, 1),
        i0=[0],
        i1=[1],
        i2=[2],
        i4=[4],
    ),
    kept(
        "two parts, and somebody who reads them all",
        "shared-output",
        X,
        "c = Conv(x, W)\nu = Slice(c, i0, i2, i1)\nv = Slice(c, i2, i4, i1)\nr = Sin(c)\nm = BN2(u)\n"
        "y = Concat <axis=1> (m, v, r)",
        W=(4, 4, 1, 1),
        i0=[0],
        i1=[1],
        i2=[2],
        i4=[4],
    ),
    kept(
        "two parts of the channels of a Gather that another one picks again",
        "shared-output",
        X,
        "c = Conv(x, W)\nu = Gather <axis=1> (c, i02)\nv = Gather <axis=1> (c, i23)\nm = Mul(u, two)\n"
        "y = Concat <axis=1> (m, v)",
        W=(4, 4, 1, 1),
        i02=[0, 2],
        i23=[-2, 3],
        two=np.float32(2),
    ),
    kept(
        "a Slice backwards from before the start, which takes the first channel",
        "shared-output",
        X,
        "c = Conv(x, W)\nn = BN4(c)\nu = Slice(c, far, far, i1, back)\nr = ReduceSum(u)\ny = Add(n, r)",
        W=(4, 4, 1, 1),
        i1=[1],
        far=[-9],
        back=[-1],
    ),
    kept(
        "a Slice backwards from beyond the end, which is nothing or all",
        "shared-output",
        X,
        "c = Conv(x, W)\nn = BN4(c)\nu = Slice(c, i0, far, i1, back)\nr = ReduceSum(u)\ny = Add(n, r)",
        W=(4, 4, 1, 1),
        i0=[0],
        i1=[1],
        far=[(1 << 31) - 1],
        back=[-1],
    ),
    kept(
        "only one part of the rows is scaled, in front",
        "axis",
        X + ", float[2,4,4,4] z",
        "n = BN4(x)\nc = Concat <axis=2> (n, z)\ny = Conv(c, W)",
        W=(3, 4, 1, 1),
    ),
    kept(
        "the parts of the rows are scaled differently, in front",
        "axis axis",
        X + ", float[2,4,4,4] z",
        "n = BN4(x)\nm = BN4(z)\nc = Concat <axis=2> (n, m)\ny = Conv(c, W)",
        W=(3, 4, 1, 1),
    ),
    kept(
        "rows that meet once more, another part of them turned",
        "axis",
        X,
        "n = BNscale4(x)\na, b = Split <axis=2, num_outputs=2> (n)\nu = Transpose <perm=[0,3,2,1]> (b)\n"
        "c = Concat <axis=2> (a, u)\ny = Conv(c, W)",
        outputs="float[p,q,r,s] y",
        W=(3, 4, 1, 1),
    ),
    kept(
        "rows that are cut, and a part is an output",
        "axis",
        X,
        "c = Conv(x, W)\na, b = Split <axis=2, num_outputs=2> (c)\ny = BN3(b)",
        outputs="float[2,3,2,4] y, float[2,3,2,4] a",
        W=(3, 4, 1, 1),
    ),
    kept(
        "rows that are cut, and the parts are scaled differently",
        "axis axis",
        X,
        "c = Conv(x, W)\na, b = Split <axis=2, num_outputs=2> (c)\nn = BN3(a)\nm = BN3(b)\ny = Add(n, m)",
        W=(3, 4, 1, 1),
    ),
    kept(
        "rows that are cut and come back in two pieces that are scaled differently",
        "axis",
        X,
        "c = Conv(x, W)\na, b = Split <axis=2, num_outputs=2> (c)\nf = Concat <axis=1> (a, b)\ny = BN6(f)",
        W=(3, 4, 1, 1),
    ),
    kept(
        "Concat with a computed part",
        "no-producer",
        "float[2,4,4,4] x, float[2,4,4,4] z",
        "a = Conv(x, W)\nc = Concat <axis=1> (a, z)\ny = BN7(c)",
        W=W,
    ),
    kept(
        "Concat of one tensor twice", "shared-output", X, "a = Conv(x, W)\nc = Concat <axis=1> (a, a)\ny = BN6(c)", W=W
    ),
    kept(
        "Concat, sizes not known",
        "shape-unknown",
        "float[2,P,4,4] x, float[2,Q,4,4] z",
        "c = Concat <axis=1> (x, z)\ny = BN6(c)",
        outputs="float[2,6,4,4] y",
    ),
    kept(
        "Concat in front along another axis",
        "axis",
        "float[2,4,4,4] x, float[2,4,4,4] z",
        "n = BN4(x)\nc = Concat <axis=2> (n, z)\ny = Conv(c, W)",
        W=W,
    ),
    kept(
        "Split along another axis, other part read",
        "axis",
        X,
        "c = Conv(x, W)\na, b = Split <axis=2, num_outputs=2> (c)\nn = BN3(a)\ny = Add(n, b)",
        W=W,
    ),
    kept(
        "Slice with computed bounds",
        "shape-unknown",
        "float[2,4,4,4] x, int64[1] e",
        "c = Conv(x, W)\ns = Slice(c, z, e, o)\ny = BN2(s)",
        outputs="float[2,2,4,4] y",
        W=W,
        z=[0],
        o=[1],
    ),
    kept(
        "Gather shows a channel twice",
        "axis",
        X,
        "c = Conv(x, W)\ng = Gather <axis=1> (c, i)\ny = BN3(g)",
        W=W,
        i=[0, 1, 1],
    ),
    kept(
        "Gather by computed indices",
        "axis",
        "float[2,4,4,4] x, int64[3] i",
        "c = Conv(x, W)\ng = Gather <axis=1> (c, i)\ny = BN3(g)",
        W=W,
    ),
    kept(
        "SpaceToDepth weaves channels that differ",
        "axis",
        X,
        "c = Conv(x, W)\ns = SpaceToDepth <blocksize=2> (c)\ny = BN12(s)",
        W=W,
    ),
    kept(
        "DepthToSpace in front, channels that differ",
        "axis",
        X,
        "n = BN4(x)\ns = DepthToSpace <blocksize=2> (n)\ny = Conv(s, W)",
        W=(3, 1, 1, 1),
    ),
    kept(
        "Split into computed parts",
        "shape-unknown",
        X + ", int64[2] s",
        "c = Conv(x, U)\na, b = Split <axis=1> (c, s)\nn = BN2(a)\ny = Concat <axis=1> (n, b)",
        outputs="float[2,4,4,4] y",
        U=(4, 4, 1, 1),
    ),
    kept(
        "Split in front into computed parts",
        "shape-unknown",
        X + ", int64[2] s",
        "n = BN4(x)\na, b = Split <axis=1> (n, s)\nc = Conv(a, U)\nd = Conv(b, U)\ny = Add(c, d)",
        outputs="float[2,4,4,4] y",
        U=(4, 2, 1, 1),
    ),
    kept(
        "Slice in front with computed bounds",
        "shape-unknown",
        X + ", int64[1] e",
        "n = BN4(x)\ns = Slice(n, z, e, o)\ny = Conv(s, U)",
        outputs="float[2,4,4,4] y",
        U=(4, 2, 1, 1),
        z=[0],
        o=[1],
    ),
    kept(
        "Slice along computed axes",
        "shape-unknown",
        X + ", int64[1] a",
        "c = Conv(x, W)\ns = Slice(c, z, o, a)\ny = BN3(s)",
        outputs="float[2,3,4,4] y",
        W=W,
        z=[0],
        o=[1],
    ),
    kept(
        "Slice of an unknown number of channels",
        "shape-unknown",
        "float[2,P,4,4] x",
        "s = Slice(x, z, e, o)\ny = BN3(s)",
        outputs="float[2,3,4,4] y",
        z=[0],
        e=[3],
        o=[1],
    ),
    kept(
        "Gather in front by computed indices",
        "axis",
        X + ", int64[3] i",
        "n = BN4(x)\ng = Gather <axis=1> (n, i)\ny = Conv(g, U)",
        U=(3, 3, 1, 1),
    ),
    kept(
        "DepthToSpace, scaled along a row",
        "axis",
        X,
        "c = Conv(x, U)\nd = DepthToSpace <blocksize=2> (c)\ny = Mul(d, k)",
        U=(4, 4, 1, 1),
        k=(8, 1),
    ),
]

ROWS = "a, b = Split <axis=2> ({}, e)\n"

FOLDS = [
    case(
        "in front of rows that are cut and joined",
        "float[2,4,4,4] x",
        "n = BN4(x)\n" + ROWS.format("n") + "d = Identity(a)\nc = Concat <axis=-2> (b, d, b)\ny = Conv(c, W)",
        W=(3, 4, 1, 1),
        e=[1, 3],
    ),
    case(
        "behind rows that are cut and joined",
        "float[2,4,4,4] x",
        "c = Conv(x, W)\n" + ROWS.format("c") + "d = Identity(a)\nf = Concat <axis=2> (b, d)\ny = BN3(f)",
        W=(3, 4, 1, 1),
        e=[1, 3],
    ),
    case(
        "behind rows one part of which only a Shape reads",
        "float[2,4,4,4] x",
        "c = Conv(x, W)\n"
        + ROWS.format("c")
        + "s = Shape(a)\nn = BN3(b)\nf = Cast <to=1> (s)\nm = ReduceMax <keepdims=0> (f)\n"
        "y = Div(n, m)",
        W=(3, 4, 1, 1),
        e=[2, 2],
    ),
    case("Concat on the channels", X, TWO + "c = Concat <axis=1> (a, b)\ny = BN8(c)", W=W, V=V),
    case("Concat on the channels, negative axis", X, TWO + "c = Concat <axis=-3> (a, b)\ny = BN8(c)", W=W, V=V),
    case("Concat elsewhere", X, "a = Conv(x, W)\nb = Conv(x, U)\nc = Concat <axis=2> (a, b)\ny = BN3(c)", W=W, U=W),
    case("Concat with a constant", X, "a = Conv(x, W)\nc = Concat <axis=1> (k, a)\ny = BN5(c)", W=W, k=(2, 2, 4, 4)),
    case(
        "Concat of Concat",
        X,
        TWO + "c = Concat <axis=1> (a, b)\nd = Conv(x, U)\ne = Concat <axis=1> (c, d)\ny = BN11(e)",
        W=W,
        V=V,
        U=W,
    ),
    case(
        "Concat, norms in front of and behind it",
        X,
        "a = Conv(x, W)\nn = BN3(a)\nb = Conv(x, V)\nc = Concat <axis=1> (n, b)\ny = BN8(c)",
        W=W,
        V=V,
    ),
    case(
        "Concat in front",
        "float[2,4,4,4] x, float[2,2,4,4] z",
        "n = BN4(x)\nc = Concat <axis=1> (z, n)\ny = Conv(c, U)",
        U=(3, 6, 1, 1),
    ),
    case(
        "Concat of norms in front",
        "float[2,4,4,4] x, float[2,2,4,4] z",
        "n = BN4(x)\nm = BN2(z)\nc = Concat <axis=1> (m, n)\ny = Conv(c, U)",
        U=(3, 6, 1, 1),
    ),
    case(
        "Concat through a pool",
        X,
        "a = Conv(x, W)\np = MaxPool <kernel_shape=[2,2]> (a)\nb = Conv(x, U)\nq = AveragePool <kernel_shape=[2,2]> (b)\n"
        "c = Concat <axis=1> (p, q)\ny = BNpos6(c)",
        W=W,
        U=W,
    ),
    case(
        "Split",
        X,
        "c = Conv(x, V)\na, b = Split <axis=1> (c, s)\nn = BN2(a)\nm = BN3(b)\nd = Relu(n)\ne = Relu(m)\ny = Concat <axis=1> (d, e)",
        V=V,
        s=[2, 3],
    ),
    case(
        "Split, one part",
        X,
        "c = Conv(x, V)\na, b = Split <axis=1> (c, s)\nn = BN2(a)\ny = Concat <axis=1> (n, b)",
        V=V,
        s=[2, 3],
    ),
    case(
        "Split into equal parts",
        X,
        "c = Conv(x, U)\na, b = Split <axis=1, num_outputs=2> (c)\nn = BN2(a)\ny = Mul(n, b)",
        U=(4, 4, 1, 1),
    ),
    case(
        "Split into unequal parts",
        X,
        "c = Conv(x, V)\na, b = Split <axis=1, num_outputs=2> (c)\nn = BN3(a)\nm = BN2(b)\ny = Concat <axis=1> (n, m)",
        V=V,
    ),
    case(
        "Split in front",
        X,
        "n = BN4(x)\na, b = Split <axis=1, num_outputs=2> (n)\nc = Conv(a, W)\nd = Conv(b, U)\ny = Add(c, d)",
        W=(3, 2, 1, 1),
        U=(3, 2, 1, 1),
    ),
    case(
        "Split elsewhere in front",
        X,
        "n = BN4(x)\na, b = Split <axis=2, num_outputs=2> (n)\nc = Conv(a, W)\nd = Conv(b, U)\ny = Add(c, d)",
        W=W,
        U=W,
    ),
    case(
        "Slice of channels", X, "c = Conv(x, V)\ns = Slice(c, b, e, a, k)\ny = BN2(s)", V=V, b=[1], e=[5], a=[1], k=[2]
    ),
    case(
        "Slice backwards",
        X,
        "c = Conv(x, V)\ns = Slice(c, b, e, a, k)\ny = BN5(s)",
        V=V,
        b=[-1],
        e=[-(2**31) - 1],
        a=[-3],
        k=[-1],
    ),
    case(
        "Slice backwards from before the start, which takes the first channel",
        X,
        "c = Conv(x, V)\ns = Slice(c, b, b, a, k)\nn = BN1(s)\ny = Relu(n)",
        V=V,
        b=[-9],
        a=[1],
        k=[-1],
    ),
    case("Slice elsewhere", X, "c = Conv(x, V)\ns = Slice(c, b, e, a)\ny = BN5(s)", V=V, b=[1, 0], e=[3, 2], a=[3, 2]),
    case(
        "Slice in front", X, "n = BN4(x)\ns = Slice(n, b, e, a)\ny = Conv(s, W)", W=(3, 2, 1, 1), b=[-3], e=[-1], a=[1]
    ),
    case(
        "Slice past the end",
        X,
        "n = BN4(x)\ns = Slice(n, b, e, a)\ny = Conv(s, W)",
        W=(3, 3, 1, 1),
        b=[1],
        e=[2**40],
        a=[1],
    ),
    case("Gather permutes", X, "c = Conv(x, W)\ng = Gather <axis=1> (c, i)\ny = BN3(g)", W=W, i=[2, 0, -2]),
    case("Gather elsewhere", X, "c = Conv(x, W)\ng = Gather <axis=2> (c, i)\ny = BN3(g)", W=W, i=[3, 3]),
    case("Gather of one row", X, "c = Conv(x, W)\ng = Gather <axis=2> (c, i)\ny = BN3(g)", W=W, i=np.array(1)),
    case(
        "Gather in front, a channel twice",
        X,
        "n = BN4(x)\ng = Gather <axis=1> (n, i)\ny = Conv(g, U)",
        U=(3, 3, 1, 1),
        i=[3, 3, 0],
    ),
    case(
        "Gather of one channel in front",
        "float[2,4,3] x",
        "n = BN4(x)\ng = Gather <axis=1> (n, i)\ny = Gemm(g, B)",
        B=(3, 2),
        i=np.array(2),
    ),
    case("DepthToSpace DCR", X, "c = Conv(x, U)\nd = DepthToSpace <blocksize=2> (c)\ny = BN3(d)", U=(12, 4, 1, 1)),
    case(
        "DepthToSpace CRD",
        X,
        'c = Conv(x, U)\nd = DepthToSpace <blocksize=2, mode="CRD"> (c)\ny = BN3(d)',
        U=(12, 4, 1, 1),
    ),
    case("SpaceToDepth in front", X, "n = BN4(x)\nd = SpaceToDepth <blocksize=2> (n)\ny = Conv(d, U)", U=(3, 16, 1, 1)),
    case(
        "Split into one part along another axis",
        X,
        "c = Conv(x, W)\na = Split <axis=2, num_outputs=1> (c)\ny = BN3(a)",
        W=W,
    ),
    case(
        "one number on a part of a Split",
        X,
        "c = Conv(x, U)\na, b = Split <axis=1, num_outputs=2> (c)\nn = Mul(a, k)\ny = Concat <axis=1> (n, b)",
        U=(4, 4, 1, 1),
        k=TWICE,
    ),
    case(
        "one number in front of a part of a Concat",
        X + ", float[2,4,4,4] z",
        "n = Mul(x, k)\nc = Concat <axis=1> (n, z)\ny = Conv(c, U)",
        U=(3, 8, 1, 1),
        k=TWICE,
    ),
    case(
        "Concat with a part that nothing happens to",
        "float[2,4,4,4] x, float[2,4,4,4] z",
        "a = Conv(x, W)\nc = Concat <axis=1> (a, z)\ny = Mul(c, k)",
        W=W,
        k=np.float32([2, 4, -8, 1, 1, 1, 1]).reshape(7, 1, 1),
    ),
    case(
        "Split in front, a part that nobody reads",
        X,
        "n = BN4(x)\na, b = Split <axis=1, num_outputs=2> (n)\ny = Conv(a, W)",
        W=(3, 2, 1, 1),
    ),
    case(
        "SpaceToDepth of channels that are scaled alike",
        X,
        "c = Conv(x, W)\ns = SpaceToDepth <blocksize=2> (c)\ny = Mul(s, k)",
        W=W,
        k=np.tile(np.float32([2, -4, 8]), 4).reshape(12, 1, 1),
    ),
    case(
        "DepthToSpace DCR in front of channels that are scaled alike",
        "float[2,8,4,4] x",
        "n = Mul(x, k)\ns = DepthToSpace <blocksize=2> (n)\ny = Conv(s, U)",
        U=(3, 2, 1, 1),
        k=np.tile(np.float32([2, -4]), 4).reshape(8, 1, 1),
    ),
    case(
        "DepthToSpace CRD in front of channels that are scaled alike",
        "float[2,8,4,4] x",
        'n = Mul(x, k)\ns = DepthToSpace <blocksize=2, mode="CRD"> (n)\ny = Conv(s, U)',
        U=(3, 2, 1, 1),
        k=np.repeat(np.float32([2, -4]), 4).reshape(8, 1, 1),
    ),
    *[
        case(
            f"one number behind {operator}",
            X,
            f"c = Conv(x, U)\nd = {operator}\ny = Mul(d, k)",
            U=(4, 4, 1, 1),
            k=TWICE,
            **constants,
        )
        for operator, constants in UNIFORM.items()
    ],
    *[
        case(
            f"one number in front of {operator}",
            X,
            f"c = Mul(x, k)\nd = {operator}\ny = Conv(d, U)",
            U=(2, channels, 1, 1),
            k=TWICE,
            **constants,
        )
        for (operator, constants), channels in zip(UNIFORM.items(), (4, 4, 16), strict=True)
    ],
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", FOLDS)
def test_folds_exactly(case: Case) -> None:
    case.folds()


DAMAGED = {
    "Split into other sizes": ("shape-unknown", "c = Conv(x, U)\na, b = Split <axis=1> (c, s)\nn = BN3(a)\ny = Abs(n)"),
    "Slice to other sizes": ("shape-unknown", "c = Conv(x, U)\na = Slice(c, s, t, o)\ny = BN3(a)"),
    "Gather out of range": ("shape-unknown", "c = Conv(x, U)\na = Gather <axis=1> (c, i)\ny = BN3(a)"),
    "Gather out of range, in front": ("shape-unknown", "n = BN4(x)\na = Gather <axis=1> (n, i)\ny = Conv(a, V)"),
    "blocks of no size": ("axis", "c = Conv(x, U)\na = SpaceToDepth <blocksize=0> (c)\ny = BN4(a)"),
    "blocks of no size, in front": ("axis", "n = BN4(x)\na = DepthToSpace <blocksize=0> (n)\ny = Conv(a, V)"),
}


@pytest.mark.parametrize(("code", "nodes"), DAMAGED.values(), ids=DAMAGED)
def test_channels_that_do_not_fit_are_left_alone(code: str, nodes: str) -> None:
    constants = {"s": [2, 2], "t": [4, 4], "o": [1, 2], "i": [0, 1, 4], "U": (4, 4, 1, 1), "V": (3, 3, 1, 1)}
    refuses(build(X, nodes, "float[a,b,c,d] y", **constants), code)


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_split_sizes_as_an_attribute_before_opset_13(opset: int) -> None:
    folds(
        build(
            X,
            "c = Conv(x, V)\na, b = Split <axis=1, split=[2,3]> (c)\nn = BN2(a)\ny = Concat <axis=1> (n, b)",
            opset=opset,
            ir=7,
            V=V,
        )
    )


@pytest.mark.parametrize("opset", [7, 9])
def test_slice_bounds_as_attributes_before_opset_10(opset: int) -> None:
    folds(
        build(
            X,
            "c = Conv(x, V)\ns = Slice <axes=[1,2], starts=[1,0], ends=[3,2]> (c)\ny = BN2(s)",
            opset=opset,
            ir=7,
            V=V,
        )
    )
