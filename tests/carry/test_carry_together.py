"""Joins whose operands come from one tensor: towards consumers an affine passes when it is on all operands, towards
producers when all of them bring the same to the tensor."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, case, kept

X = "float[2,4,4,4] x"
W = (3, 4, 1, 1)
POOLS = "p = MaxPool <kernel_shape=[2,2]> ({0})\nq = AveragePool <kernel_shape=[2,2]> ({0})\n"
HALF = np.float16(0.5)

JOINED = "c = Conv(x, W)\n" + POOLS.format("c") + "s = {}\n"

KEPT = [
    kept("one operand", "no-producer", f"{X}, float[2,4,3,3] z", "n = BNpos4(x)\np = MaxPool <kernel_shape=[2,2]> (n)\n"
         "s = Add(p, z)\ny = Conv(s, W)", W=W),
    kept("one by way of an Abs", "shift", X, "n = BNpos4(x)\na = Abs(n)\nr = ReduceMax <keepdims=1> (n, hw)\n"
         "s = Max(a, r)\ny = Conv(s, W)", W=W, hw=[2, 3]),
    kept("a constant among them", "no-producer", "float[2,4,3,3] x", "n = BNposscale4(x)\nr = Relu(n)\ns = Sum(n, r, k)\n"
         "y = Conv(s, W)", W=W, k=np.ones((2, 4, 3, 3), np.float32)),
    kept("a negative scale in front of a maximum", "sign", X,
         "n = BN4(x)\n" + "a, b = Split <axis=2, num_outputs=2> (n)\n" + "s = Max(a, b)\ny = Conv(s, W)", W=W),
    kept("turned on its way to one of them", "no-producer", X, "n = BNpos4(x)\nt = Transpose <perm=[0,2,1,3]> (n)\n"
         "s = Add(n, t)\ny = Conv(s, W)", W=W),
    kept("float16, where the scale keeps the sum from overflowing", "no-producer", "float16[2,4,4,4] x",
         "n = Mul(x, half)\n" + POOLS.format("n") + "s = Add(p, q)\ny = Conv(s, W)", W=W, half=HALF),
    kept("towards producers: a difference, whose shift would be in one operand", "shared-output", X,
         JOINED.format("Sub(p, q)") + "y = BNpos3(s)", W=W),
    kept("towards producers: another reader beside", "shared-output", X, JOINED.format("Max(p, q)") + "n = BNpos3(s)\n"
         "e = Exp(c)\nf = ReduceMax(e)\ny = Add(n, f)", W=W),
    kept("towards producers: a reader in a body", "captured", f"{X}, bool i",
         JOINED.format("Max(p, q)") + "n = BNpos3(s)\nf = If <then_branch = t () => (float[a,b,d,e] u) { u = Erf(c) }, "
         "else_branch = g () => (float[a,b,d,e] v) { v = Exp(c) }> (i)\nm = ReduceMax(f)\ny = Add(n, m)", W=W),
    kept("towards producers: turned on one way", "shared-output", "float[2,3,4,4] x",
         "c = Conv(x, W)\nt = Transpose <perm=[0,2,1,3]> (c)\ns = Max(c, t)\ny = BNpos4(s)", W=(4, 3, 1, 1)),
    kept("towards producers: a product with itself", "shared-output", X, "c = Conv(x, W)\ns = Mul(c, c)\ny = BNscale3(s)", W=W),
    kept("towards producers: halves that are scaled differently", "shared-output", X,
         "c = Conv(x, W)\ns = Concat <axis=1> (c, c)\ny = BNpos6(s)", W=W),
    kept("towards producers: other axes on one way", "shared-output", "float[2,3] x", "g = Gemm(x, W)\nc = Reshape(g, s1)\n"
         "t = Transpose <perm=[0,1,3,2]> (c)\na = Reshape(t, s2)\nb = Reshape(c, s2)\ns = Max(a, b)\ny = Mul(s, k)",
         W=(3, 8), s1=[2, 2, 2, 2], s2=[2, 4, 2], k=np.float32([1, 2, 4, 8]).reshape(4, 1)),
    kept("towards producers: a Relu on one way", "shift", X,
         "c = Conv(x, W)\nr = Relu(c)\ns = Max(c, r)\ny = BNpos3(s)", W=W),
]  # fmt: skip

CASES = [
    *[
        case(f"{op} of two pools", X, "n = BNpos4(x)\n" + POOLS.format("n") + f"s = {op}(p, q)\ny = Conv(s, W)", W=W)
        for op in ("Add", "Sub", "Sum", "Max", "Min", "Mean")
    ],
    case("a sum of three", X, "n = BN4(x)\nt = Identity(n)\np, q = Split <axis=2, num_outputs=2> (t)\n"
         "a, b = Split <axis=3, num_outputs=2> (p)\nc, d = Split <axis=3, num_outputs=2> (q)\ns = Sum(a, b, c)\n"
         "e = Sub(s, d)\ny = Conv(e, W)", affines=0, norms=1, W=W),
    case("a tensor twice, joined along an axis of unknown size", "float[N,4,H,5] x", "a = Mul(x, two)\ni = Identity(a)\n"
         "s = Concat <axis=2> (a, i)\ny = Conv(s, W)", two=np.float32(2), W=W),
    case("a sum of which one part is shared", "float[2,3] x", "m = MatMul(x, V)\na = Add(m, k)\nn = Neg(a)\ns = Add(n, m)\nb = BN5(s)\n"
         "p = Pad(b, rim)\ny = Gemm(p, G)", V=(3, 5), k=(5,), rim=[1, 0, 0, 0], G=(5, 2), affines=1, norms=0),
    case("a tensor and itself", X, "n = BN4(x)\ns = Add(n, n)\ny = Conv(s, W)", W=W),
    case("a pool without what it pools", X, "a = Mul(x, k)\nb = Add(a, k)\np = AveragePool <kernel_shape=[2,2], pads=[0,0,1,1]> (b)\n"
         "s = Sub(p, b)\nl = Mul(s, m)\ny = Relu(l)", affines=1, k=(4, 1, 1), m=(4, 1, 1)),
    *[
        case(f"towards producers: {op} of two pools", X, JOINED.format(f"{op}(p, q)") + "y = BNpos3(s)", W=W)
        for op in ("Add", "Sum", "Max", "Min", "Mean")
    ],
    case("towards producers: a difference, scaled", X, JOINED.format("Sub(p, q)") + "y = BNposscale3(s)", W=W),
    case("towards producers: a tensor and itself", X, "c = Conv(x, W)\ns = Add(c, c)\ny = BN3(s)", W=W),
    case("towards producers: a tensor four times", X, "c = Conv(x, W)\ns = Sum(c, c, c, c)\ny = BN3(s)", W=W),
    case("towards producers: one half twice", X, "c = Conv(x, W)\ns = Concat <axis=1> (c, c)\nm = Mul(s, k)\ny = Relu(m)",
         W=W, k=np.float32([1, 2, 4, 1, 2, 4]).reshape(6, 1, 1)),
    case("towards producers: joins in a join", X, JOINED.format("Max(p, q)") + "u = MaxPool <kernel_shape=[2,2]> (c)\n"
         "a = Add(s, u)\ny = BNpos3(a)", W=W),
    case("towards producers: a scale past a Relu on one way", X,
         "c = Conv(x, W)\nr = Relu(c)\ns = Max(c, r)\ny = BNposscale3(s)", W=W),
    case("towards producers: two tensors that meet twice", "float[2,4,4,4] x", "c = Conv(x, W)\nd = Conv(x, V)\na = Max(c, d)\n"
         "b = Min(c, d)\ns = Add(a, b)\ny = BNpos3(s)", W=W, V=W),
    case("towards producers: pools of pools", X, "c = Conv(x, W)\np = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (c)\n"
         "q = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (p)\nr = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (q)\n"
         "s = Max(c, p, q, r)\ny = BNpos3(s)", W=W),
    case("towards producers: past an affine that vanishes", "float[2,3] x", "c = MatMul(x, V)\nd = Mul(c, one)\ns = Add(c, d)\ny = Add(s, k)",
         V=(3, 3), one=np.float32(1), k=np.float32([4, 8, -4])),
    case("towards producers: past an affine that moves on", X, "c = Conv(x, W)\na = Add(c, k)\ns = Sum(c, a)\nn = BNpos3(s)\ny = Abs(n)",
         W=(3, 4, 1, 1), k=(3, 1, 1)),
    case("towards producers: past an affine along rows, not into it", "float[1,2,4,2] x",
         "c = Conv(x, W)\na = Mul(c, k)\nb = Add(a, j)\nr = Relu(c)\ns = Add(b, r)\nu = Mul(s, m)\ny = Add(u, t)",
         W=(2, 2, 1, 1), k=np.float32([-2, -0.5, -2, -0.5]).reshape(4, 1), j=np.float32([4, -12, 0, 8]).reshape(4, 1),
         m=np.float32([0.5, 2]).reshape(2, 1, 1), t=np.float32([12, -12]).reshape(2, 1, 1), affines=2),
    case("a shift into the side of a sum that has room for it", "float[2,2,3,3] x, float[2,2,3,3] z",
         "p = Conv(x, U)\nq = Mul(p, two)\nu = MatMul(z, V)\ns = Add(u, q)\nt = Add(s, k)\ny = Relu(t)",
         U=(2, 2, 1, 1), two=np.float32(2), V=(3, 3), k=(2, 1, 1)),
    case("a mean of which one operand is shifted", X, "a = Add(x, k)\nr = Relu(x)\nm = Mean(a, r)\ny = Conv(m, W)", W=W, k=(4, 1, 1)),
    case("a shift that cancels on two ways", X, "a = Add(x, k)\nr = AveragePool <kernel_shape=[1,1]> (a)\n"
         "s = Sub(a, r)\nm = Exp(s)\ny = Add(m, x)", k=(4, 1, 1)),
    case("a sign that is turned twice", X, "a = Mul(x, k)\ns = Mul(a, a)\ny = Relu(s)", k=np.float32([-1, 1, -1, 1]).reshape(4, 1, 1),
         affines=0),
    case("operands of another rank", "float[4,5] x", "a = Mul(x, k)\nf = ReduceMax <keepdims=0> (a, i0)\ns = Add(a, f)\ny = Gemm(s, V)",
         k=np.float32([1, 2, 0.5, 4, 1]), i0=[0], V=(5, 3)),
]  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", CASES)
def test_passes(case: Case) -> None:
    case.folds()
