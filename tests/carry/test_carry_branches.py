"""Add, Sub, Sum, Max, Min, Mul and Div of computed tensors, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, case, kept

X = "float[2,4,4,4] x"
W = (3, 4, 1, 1)
TWO = "a = Conv(x, W)\nb = Conv(x, V)\n"
WV = {"W": W, "V": W}

ROW = np.float32([1, -2, 0.5, 4])

KEPT = [
    kept(
        "residual from an input",
        "no-producer",
        "float[2,4,4,4] x, float[2,3,4,4] z",
        "a = Conv(x, W)\ns = Add(a, z)\ny = BN3(s)",
        W=W,
    ),
    kept(
        "residual from a tensor that is read again",
        "shared-output",
        X,
        TWO + "s = Add(a, b)\nn = BN3(s)\ny = Mul(n, a)",
        **WV,
    ),
    kept("product: shift", "shift", X, TWO + "s = Mul(a, b)\ny = BN3(s)", **WV),
    kept(
        "divisor only",
        "no-producer",
        "float[2,4,4,4] x, float[2,3,4,4] z",
        "b = Conv(x, V)\ns = Div(z, b)\ny = BNscale3(s)",
        V=W,
    ),
    *[
        kept(f"float16: a scale above one behind {op}", "overflow", "float16[2,4,4,4] x", TWO + f"s = {op}(a, b)\ny = Mul(s, two)",
             two=np.float16(2), **WV)
        for op in ("Mul", "Add", "Sub")
    ],
    kept("float16: a scale above one behind a product of matrices", "overflow", "float16[2,4,4] x, float16[2,4,4] z",
         "a = MatMul(x, W)\nb = MatMul(z, W)\ns = MatMul(a, b)\ny = Mul(s, two)", two=np.float16(2), W=(4, 4)),
    kept("a bound that the shift would swallow", "overflow", "float[2,4] x", "a = Add(x, k)\nm = Max(a, eps)\ny = Gemm(m, V)",
         k=np.float32(-3), eps=np.float32([1e-8]), V=(4, 3)),
    kept("Max: negative scale", "sign", X, TWO + "s = Max(a, b)\ny = BN3(s)", **WV),
    kept(
        "an affine along another axis that would become two operators",
        "axis blocked",
        X,
        "a = Conv(x, W)\np = Sub(k, a)\ny = BN3(p)",
        W=W,
        k=ROW,
    ),
    kept(
        "an affine along another axis: shift past a product",
        "axis blocked",
        X,
        "a = Conv(x, W)\np = Mul(a, k)\ny = BN3(p)",
        W=W,
        k=(4,),
    ),
    kept(
        "sum in front: scale",
        "no-producer",
        "float[2,4,4,4] x, float[2,4,4,4] z",
        "n = BN4(x)\ns = Add(n, z)\ny = Conv(s, W)",
        W=W,
    ),
    kept("in front of Max: negative scale", "sign", X, "m = BN4(x)\np = Max(m, k)\ny = Conv(p, W)", W=W, k=(4, 4)),
    kept(
        "in front of Max: a computed tensor",
        "no-producer",
        "float[2,4,4,4] x, float[2,4,4,4] z",
        "m = BNpos4(x)\np = Max(m, z)\ny = Conv(p, W)",
        W=W,
    ),
    *[
        kept(
            f"in front of a sum with a stored tensor in float16: {what}",
            codes,
            "float16[2,4,4,4] x",
            f"m = Mul(x, o)\nq = Relu(m)\np = Add(q, k)\ny = Conv {pads} (p, W)",
            W=np.ones((3, 4, 1, 1), np.float16),
            o=np.float16([1, 0.5, 2, 4]).reshape(4, 1, 1),
            k=np.float16(k),
        )
        for what, codes, pads, k in (
            ("along two axes", "overflow", "<pads=[0,0,0,0]>", np.eye(4)),
            ("along another axis", "no-producer shift", "<pads=[0,0,0,0]>", [1, 2, 3, 4]),
        )
    ],
    kept(
        "in front of Max: the rank is not known",
        "shape-unknown",
        "float[4,4] v, int64[R] s",
        "x = Reshape(v, s)\nm = BNpos4(x)\np = Max(m, k)\ny = Sigmoid(p)",
        outputs="float[a,b,c,d] y",
        k=(4, 1, 1),
    ),
    kept(
        "in front of a sum with a stored tensor: a scale of zero",
        "no-producer",
        X,
        "m = Mul(x, o)\np = Add(m, k)\ny = Conv(p, W)",
        W=W,
        o=np.float32([1, 0, 2, 4]).reshape(4, 1, 1),
        k=(4, 4),
    ),
    kept(
        "in front of a sum with a stored tensor: a scale next to zero",
        "overflow",
        "double[2,4,4,4] x",
        "m = Mul(x, o)\np = Add(m, k)\ny = Conv(p, W)",
        W=W,
        o=np.array([1, 1e-320, 2, 4]).reshape(4, 1, 1),
        k=(4, 4),
    ),
    kept(
        "before opset 7, what is stretched in its own way",
        "blocked",
        X,
        "a = Conv(x, W)\nr = ReduceMax <axes=[1], keepdims=0> (a)\ns = Add <broadcast=1, axis=2> (a, r)\ny = BN3 <is_test=1> (s)",
        opset=6,
        ir=3,
        W=W,
    ),
    kept(
        "a branch of one channel that is stretched",
        "broadcast",
        X,
        "a = Conv(x, W)\nb = Conv(x, V)\ns = Add(a, b)\ny = BN3(s)",
        W=W,
        V=(1, 4, 1, 1),
    ),
    *[
        kept(
            f"{op}: a constant that would stretch what only the next operator stretches",
            code,
            "float[2,1,4,4] x, float[2,3,4,4] z",
            f"a = {op}(x, k)\nb = {then}(a, z)\ny = {norm}3(b)\ns = Shape(a)",
            k=(4, 4),
        )
        for op, then, norm, code in (
            ("Add", "Add", "BNshift", "no-producer"),
            ("Mul", "Mul", "BNscale", "no-producer"),
            ("Max", "Max", "BNpos", "broadcast"),
        )
    ],
    kept(
        "computed matrices: stacks that are scaled differently, of no layers",
        "no-producer",
        "float[2,3,4] x, float[2,4,5] z",
        "s = MatMul(x, z)\ny = Mul(s, k)",
        k=(2, 1, 1),
    ),
    kept(
        "computed matrices in front: summed over",
        "axis",
        "float[3,4] x, float[4,5] z",
        "n = BNscale4(x)\ny = MatMul(n, z)",
    ),
    kept("the divisor", "axis", "float[3,4] x, float[3,4] z", "n = BNscale4(x)\ny = Div(z, n)"),
]

FOLDS = [
    case(
        "a scale in front of a shift that took in another axis, into a padding Conv",
        X,
        "a = Floor(x)\nm = Mul(a, k)\nn = Add(m, l)\np = Add(n, r)\ny = Conv <pads=[1,1,1,1]> (p, W)",
        affines=1,
        W=(3, 4, 3, 3),
        k=np.exp2(np.arange(4, dtype=np.float32)).reshape(4, 1, 1),
        l=(4, 1, 1),
        r=ROW,
    ),
    case(
        "the same into the Conv in front",
        X,
        "c = Conv(x, W)\nq = Add(c, o)\nm = Mul(q, k)\nn = Add(m, l)\np = Add(n, r)\ny = Floor(p)",
        affines=1,
        W=(3, 4, 1, 1),
        o=ROW,
        k=np.float32([2, -1, 4]).reshape(3, 1, 1),
        l=(3, 1, 1),
        r=(4, 1),
    ),
    case(
        "a scale of zero stays in front of its shift",
        X,
        "a = Floor(x)\nm = Mul(a, k)\nn = Add(m, l)\np = Add(n, r)\ny = Conv <pads=[1,1,1,1]> (p, W)",
        affines=2,
        W=(3, 4, 3, 3),
        k=np.float32([2, 0, 4, 1]).reshape(4, 1, 1),
        l=(4, 1, 1),
        r=ROW,
    ),
    case(
        "a scale that cannot be undone in the shift behind it",
        "double[2,4] x",
        "a = Floor(x)\nm = Mul(a, k)\nr = Relu(m)\np = Add(r, l)\ny = MatMul(p, W)",
        affines=2,
        W=(4, 3),
        k=np.array([1e-320, 1, 4, 1]),
        l=(2, 1),
    ),
    case(
        "a shift behind two scales that became one along two axes",
        X,
        "a = Sigmoid(x)\nm = Mul(a, k)\nn = Mul(m, l)\nb = Add(n, j)\ny = Relu(b)",
        affines=2,
        k=(4, 1, 1),
        l=ROW,
        j=(4, 1, 1),
    ),
    *[
        case(f"in front of {op} with a stored tensor", X, f"m = BNpos4(x)\np = {op}\ny = Conv(p, W)", W=W, k=k)
        for op in ("Max(m, k)", "Min(k, m)", "Max(k, m, k)")
        for k in ((4, 4), (4, 1, 1), np.float32(2))
    ],
    *[
        case(
            f"in front of {op} with a stored tensor",
            X,
            f"m = BN4(x)\np = {op}\ny = Conv(p, W)",
            W=W,
            k=(4, 4),
            affines=int("Sum" not in op),
        )
        for op in ("Add(m, k)", "Add(k, m)", "Sub(m, k)", "Sub(k, m)", "Sum(k, m)")
    ],
    *[
        case(
            f"before opset 7, through {op}",
            X,
            TWO + f"r = ReduceMax <axes=[0, 1], keepdims=0> (b)\ns = {op} <broadcast=1> (a, r)\n"
            f"y = BN{kind}3 <is_test=1> (s)",
            opset=6,
            ir=3,
            **WV,
        )
        for op, kind in (("Mul", "scale"), ("Div", "scale"), ("Add", "shift"), ("Sub", "shift"))
    ],
    *[
        case(
            f"before opset 7, in front of {op}",
            X,
            f"r = ReduceMax <axes=[0, 1], keepdims=0> (x)\nm = BN{kind}4 <is_test=1> (x)\n"
            f"s = {op} <broadcast=1> (m, r)\ny = Conv(s, W)",
            opset=6,
            ir=3,
            W=W,
        )
        for op, kind in (("Mul", "scale"), ("Div", "scale"), ("Add", "shift"), ("Sub", "shift"))
    ],
    case("Mean", X, TWO + "s = Mean(a, b)\ny = BN3(s)", **WV),
    case(
        "past a product along another axis", X, "a = Conv(x, W)\np = Mul(a, k)\ny = BNscale3(p)", affines=1, W=W, k=ROW
    ),
    case("past a sum along another axis", X, "a = Conv(x, W)\np = Add(a, k)\ny = BN3(p)", affines=1, W=W, k=ROW),
    case(
        "past several",
        X,
        "a = Conv(x, W)\np = Add(a, k)\nq = Add(l, p)\nr = Transpose(q)\nt = Transpose(r)\ny = BN3(t)",
        affines=1,
        W=W,
        k=ROW,
        l=(4, 1),
    ),
    *[case(f"{op}, towards producers", X, TWO + f"s = {op}(a, b)\ny = BN3(s)", **WV) for op in ("Add", "Sub", "Sum")],
    *[case(f"{op}, towards producers", X, TWO + f"s = {op}(a, b)\ny = BNpos3(s)", **WV) for op in ("Max", "Min")],
    case("Sum of three", X, TWO + "c = Conv(x, U)\ns = Sum(a, b, c)\ny = BN3(s)", **WV, U=W),
    case("RepVGG", X, "a = Conv(x, W)\nm = BN3(a)\nb = Conv(x, V)\nn = BN3(b)\ns = Add(m, n)\ny = Relu(s)", **WV),
    case(
        "norm behind a sum of norms",
        X,
        "a = Conv(x, W)\nm = BN3(a)\nb = Conv(x, V)\nn = BN3(b)\ns = Add(m, n)\ny = BN3(s)",
        **WV,
    ),
    case(
        "shift on the branch that can take it",
        X,
        "a = Conv(x, W)\nr = Relu(a)\nb = Conv(x, V)\ns = Add(r, b)\ny = BNpos3(s)",
        **WV,
    ),
    case(
        "shift on the other branch",
        X,
        "a = Conv(x, W)\nr = Relu(a)\nb = Conv(x, V)\ns = Sub(b, r)\ny = BNpos3(s)",
        **WV,
    ),
    case("a constant branch", X, "a = Conv(x, W)\ns = Add(a, k)\ny = BN3(s)", W=W, k=(1, 3, 4, 4), affines=1),
    case(
        "a constant branch that has to grow", X, "a = Conv(x, W)\ns = Add(k, a)\ny = BN3(s)", W=W, k=(4, 4), affines=1
    ),
    case("Max with a constant", X, "a = Conv(x, W)\ns = Max(a, k)\ny = BNpos3(s)", W=W, k=np.float32(1)),
    case(
        "gate, scale on one side",
        X,
        "a = Conv(x, W)\nb = Conv(x, V)\ng = Floor(b)\ns = Mul(a, g)\ny = BNscale3(s)",
        **WV,
    ),
    case(
        "gate, scale on the other side",
        X,
        "a = Conv(x, W)\nb = Conv(x, V)\ng = Floor(b)\ns = Mul(g, a)\ny = BNscale3(s)",
        **WV,
    ),
    case(
        "Div, scale on the dividend",
        "float[2,4,4,4] x, float[2,3,4,4] z",
        "a = Conv(x, W)\nb = Exp(z)\ns = Div(a, b)\ny = BNscale3(s)",
        W=W,
    ),
    case(
        "shift through a sum towards consumers",
        "float[2,4,4,4] x, float[2,4,4,4] z",
        "n = BNshift4(x)\ns = Add(n, z)\ny = Conv(s, W)",
        W=W,
    ),
    case(
        "shift through a difference",
        "float[2,4,4,4] x, float[2,4,4,4] z",
        "n = BNshift4(x)\ns = Sub(z, n)\ny = Conv(s, W)",
        W=W,
    ),
    case("shift of both sides of a sum", X, "n = BNshift4(x)\ns = Add(n, n)\ny = Conv(s, W)", W=W),
    case(
        "scale through a product towards consumers",
        "float[2,4,4,4] x, float[2,4,4,4] z",
        "n = BNscale4(x)\ns = Mul(z, n)\ny = Conv(s, W)",
        W=W,
    ),
    case("scale of both sides of a product", X, "n = BNscale4(x)\ns = Mul(n, n)\ny = Conv(s, W)", W=W),
    case(
        "computed matrices: columns",
        "float[2,3,4] x, float[2,4,4] z",
        "a = MatMul(z, U)\ns = MatMul(x, a)\nt = Transpose <perm=[0,2,1]> (s)\ny = BNscale5(t)",
        U=(4, 5),
    ),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", FOLDS)
def test_folds_exactly(case: Case) -> None:
    case.folds()
