"""Scales of heads in an attention: past products of stacks of matrices, into the part of a common tensor that is picked."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, case, kept

X = "float[N,5,8] x"
HEADS = np.float32([2, -4]).reshape(2, 1, 1)
DEPTH = np.float32([1, 2, -0.5, 4])
QKV = "m = MatMul(x, W)\na = Add(m, b)\nr = Reshape(a, s)\nt = Transpose <perm=[2,0,3,1,4]> (r)\n"
BY_GATHER = QKV + "q = Gather <axis=0> (t, i0)\nk = Gather <axis=0> (t, i1)\nv = Gather <axis=0> (t, i2)\n"
BY_SPLIT = QKV + "p0, p1, p2 = Split <axis=0> (t, ones)\nq = Squeeze(p0, axes)\nk = Squeeze(p1, axes)\nv = Squeeze(p2, axes)\n"
BY_SLICE = QKV + "".join(f"p{i} = Slice(t, f{i}, f{i + 1}, axes)\n{n} = Squeeze(p{i}, axes)\n" for i, n in enumerate("qkv"))
REST = "c = Transpose <perm=[0,1,3,2]> ({1})\no = MatMul({0}, c)\nu = {2}\ny = MatMul(u, v)"
NUMBERS = {
    "W": (8, 24), "b": (24,), "s": [0, 5, 3, 2, 4], "h": HEADS, "d": DEPTH, "ones": [1, 1, 1], "axes": [0],
    **{f"i{i}": np.int64(i) for i in range(3)}, **{f"f{i}": [i] for i in range(4)},
}  # fmt: skip

KEPT = [
    kept("heads that are cut out by computed bounds", "shared-output", f"{X}, int64[1] e",
         QKV + "p = Slice(t, f0, e, axes)\nn = Mul(p, h)\nz = Slice(t, f1, f3, axes)\nw = ReduceMax(z)\ny = Max(n, w)", **NUMBERS),
    kept("a part that somebody else picks again", "shared-output", X,
         BY_GATHER + "n = Mul(q, d)\nz = Gather <axis=0> (t, i0)\nw = Max(n, z)\ng = Max(k, v)\ny = Max(w, g)", **NUMBERS),
    kept("a shift of the scores", "shift", X, BY_GATHER + REST.format("q", "k", "Add(o, h)"), **NUMBERS),
    kept("a stack of unknown number", "shape-unknown", "float[N,5,8] x, float[H,4,6] z",
         "m = MatMul(x, W)\nr = Reshape(m, s)\no = MatMul(r, z)\nn = Mul(o, h)\ny = Softmax(n)", W=(8, 4), s=[0, 1, 5, 4], h=HEADS),
]  # fmt: skip

CASES = [
    *[
        case(f"{what}, {how}", X, parts + REST.format(*operands), **NUMBERS, affines=1, holds={"MatMul": 3})
        for how, parts in (("by Gather", BY_GATHER), ("by Split", BY_SPLIT), ("by Slice", BY_SLICE))
        for what, operands in (
            ("heads of q", ("n", "k", "Relu(o)")),
            ("depths of q", ("g", "k", "Relu(o)")),
        )
        for parts in (parts + ("n = Mul(q, h)\n" if operands[0] == "n" else "g = Mul(q, d)\n"),)
    ],
    *[
        case(f"heads of the scores, {how}", X, parts + REST.format("q", "k", "Mul(o, h)"), **NUMBERS, affines=1)
        for how, parts in (("by Gather", BY_GATHER), ("by Split", BY_SPLIT), ("by Slice", BY_SLICE))
    ],
    case("heads of the result", X, BY_GATHER + REST.format("q", "k", "Relu(o)").replace("y =", "e =") + "\ny = Mul(e, h)",
         **NUMBERS, affines=1),
    case("q and v, each in its own way", X, BY_GATHER + "n = Mul(q, h)\ng = Add(v, d)\n" + REST.format("n", "k", "Relu(o)").replace("(u, v)", "(u, g)"),
         **NUMBERS, affines=1),
    case("a stack in front of a product", "float[2,5,4] x, float[2,4,3] z", "n = Mul(x, h)\no = MatMul(n, z)\nr = Reshape(o, s)\ny = Gemm(r, W)",
         h=HEADS, s=[2, 15], W=(15, 2), affines=1),
]  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", CASES)
def test_passes(case: Case) -> None:
    case.folds()
