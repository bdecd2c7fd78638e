"""MatMul takes an affine behind it and in front of it, with the constant on either side, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, case, fold, folds, keeps, kept, ops

KEPT = [
    kept("both computed", "shift", "float[3,4] x, float[4,5] w", "c = MatMul(x, w)\ny = BN5(c)"),
    kept(
        "norm along the summed axis of another operand",
        "axis",
        "float[2,5,4] x",
        "n = BN5(x)\ny = MatMul(n, W)",
        W=(4, 3),
    ),
    kept("channels are not the columns", "axis", "float[2,5,4] x", "c = MatMul(x, W)\ny = BN5(c)", W=(4, 3)),
    kept("square, channels are not the columns", "axis", "float[3,3,3] x", "c = MatMul(x, W)\ny = BN3(c)", W=(3, 3)),
    kept("constant left, square", "axis", "float[3,3] x", "c = MatMul(W, x)\ny = BN3(c)", W=(3, 3)),
    kept(
        "a single number as weights",
        "parameter-shape",
        "float[3,5] x",
        "c = com.microsoft.FusedMatMul(x, W)\ny = BN3(c)",
        imports={"com.microsoft": 1},
        outputs="float[3] y",
        W=(5,),
    ),
    kept("a vector of weights", "broadcast", "float[3,4,5] x", "c = MatMul(x, W)\ny = BN4(c)", W=(5,)),
    kept(
        "shift in front of a stack of matrices",
        "shift",
        "float[2,3,4] x",
        "n = BN3(x)\nt = Transpose <perm=[0,2,1]> (n)\ny = MatMul(t, W)",
        W=(2, 3, 5),
    ),
    kept(
        "transposed batches",
        "blocked",
        "float[2,5,4] x",
        "c = com.microsoft.FusedMatMul <transBatchA=1> (x, W)\ny = BN2(c)",
        outputs="float[5,2,3] y",
        imports={"com.microsoft": 1},
        W=(4, 3),
    ),
    kept(
        "before, transposed batches",
        "no-producer",
        "float[2,5,4] x",
        "n = BN5(x)\ny = com.microsoft.FusedMatMul <transBatchA=1> (n, W)",
        outputs="float[5,2,3] y",
        imports={"com.microsoft": 1},
        W=(4, 3),
    ),
    *[
        kept(
            f"constant left, rank not known: {nodes[0]}",
            "shape-unknown",
            "float[4,6] v, int64[R] s",
            f"x = Reshape(v, s)\n{nodes}",
            outputs="float[a,b] y",
            W=(5, 4),
        )
        for nodes in ("c = MatMul(W, x)\ny = BNscale5(c)", "n = BNscale6(x)\ny = MatMul(W, n)")
    ],
    kept(
        "constant left of a vector", "shape-unknown", "float[4] x", "c = MatMul(W, x)\ny = Mul(c, k)", W=(5, 4), k=(5,)
    ),
    kept("before, the weight is a vector", "axis", "float[2,3,4] x", "n = BN3(x)\ny = MatMul(n, W)", W=(4,)),
]

AFTER = [
    case(
        "a vector of weights",
        "float[2,3,4] x",
        "c = MatMul(x, W)\nm = Mul(c, k)\ny = Add(m, l)",
        affines=1,
        W=(4,),
        k=np.float32(2),
        l=np.float32(3),
    ),
    case(
        "a bias per row",
        "float[3,4] x",
        "c = MatMul(x, W)\na = Add(c, b)\ny = BN5(a)",
        affines=1,
        W=(4, 5),
        b=(3, 1),
    ),
    case(
        "rank 2 becomes Gemm", "float[3,4] x", "c = MatMul(x, W)\ny = BN5(c)", W=(4, 5), holds={"Gemm": 1, "MatMul": 0}
    ),
    case("rank 2, no shift", "float[3,4] x", "c = MatMul(x, W)\ny = BNscale5(c)", W=(4, 5), holds={"MatMul": 1}),
    case(
        "rank 2 with Add",
        "float[3,4] x",
        "c = MatMul(x, W)\na = Add(c, b)\ny = BN5(a)",
        W=(4, 5),
        b=(5,),
        holds={"Gemm": 1},
    ),
    case(
        "rank 2 with Add on the left",
        "float[3,4] x",
        "c = MatMul(x, W)\na = Add(b, c)\ny = BN5(a)",
        W=(4, 5),
        b=(1, 5),
        holds={"Gemm": 1},
    ),
    case(
        "rank 3 with Add",
        "float[2,5,4] x",
        "c = MatMul(x, W)\na = Add(c, b)\nt = Transpose <perm=[0,2,1]> (a)\ny = BN3(t)",
        W=(4, 3),
        b=(3,),
        affines=1,
    ),
    case(
        "rank 3 without Add",
        "float[2,5,4] x",
        "c = MatMul(x, W)\nt = Transpose <perm=[0,2,1]> (c)\ny = BN3(t)",
        W=(4, 3),
        affines=1,
    ),
    case(
        "rank 3, no shift",
        "float[2,5,4] x",
        "c = MatMul(x, W)\nt = Transpose <perm=[0,2,1]> (c)\ny = BNscale3(t)",
        W=(4, 3),
    ),
    case(
        "rank 4",
        "float[2,2,5,4] x",
        "c = MatMul(x, W)\nt = Transpose <perm=[0,3,1,2]> (c)\ny = BN3(t)",
        W=(4, 3),
        affines=1,
    ),
    case(
        "a stack of matrices",
        "float[2,5,4] x",
        "c = MatMul(x, W)\na = Add(c, b)\nt = Transpose <perm=[0,2,1]> (a)\ny = BN3(t)",
        W=(2, 4, 3),
        b=(1, 1, 3),
        affines=1,
    ),
    case(
        "a vector", "float[4] x", "c = MatMul(x, W)\nm = Mul(c, k)\ny = Add(m, l)", W=(4, 5), k=(5,), l=(5,), affines=1
    ),
    case("constant left", "float[2,4,6] x", "c = MatMul(W, x)\ny = BN5(c)", W=(5, 4), affines=1),
    case(
        "constant left with Add",
        "float[2,4,6] x",
        "c = MatMul(W, x)\na = Add(c, b)\ny = BN5(a)",
        W=(5, 4),
        b=(5, 1),
        affines=1,
    ),
    case(
        "constant left, rank 4",
        "float[2,3,4,6] x",
        "c = MatMul(W, x)\nt = Transpose <perm=[0,2,1,3]> (c)\ny = BN5(t)",
        W=(5, 4),
        affines=1,
    ),
    case(
        "constant left, rank 2, Transpose",
        "float[4,6] x",
        "c = MatMul(W, x)\nt = Transpose(c)\ny = BN5(t)",
        W=(5, 4),
        holds={"Gemm": 1},
    ),
    case(
        "dynamic",
        "float[N,T,4] x",
        "c = MatMul(x, F)\na = Add(c, b)\nt = Transpose <perm=[0,2,1]> (a)\ny = BN3(t)",
        F=(4, 3),
        b=(3,),
        affines=1,
    ),
    case(
        "LeViT: Reshape keeps the columns",
        "float[2,5,4] x",
        "c = MatMul(x, W)\nr = Reshape(c, s)\nn = BN3(r)\ny = Reshape(n, u)",
        W=(4, 3),
        s=[10, 3],
        u=[2, 5, 3],
        affines=1,
    ),
]

BEFORE = [
    case(
        "an Add behind that goes into the norm behind it",
        "float[3,4] x",
        "m = Add(x, k)\nc = MatMul(W, m)\na = Add(c, l)\ny = BN4(a)",
        norms=1,
        W=(1, 3),
        k=np.float32(-8),
        l=np.float32([[-1]]),
    ),
    case("a vector of weights on the right", "float[2,4] x", "n = BN4(x)\ny = MatMul(n, W)", affines=1, W=(4,)),
    case("a vector of weights on the left", "float[2,4,3] x", "n = BN4(x)\ny = MatMul(W, n)", affines=1, W=(4,)),
    case("rank 2", "float[3,4] x", "n = BN4(x)\ny = MatMul(n, W)", W=(4, 5), holds={"Gemm": 1}),
    case("rank 2, no shift", "float[3,4] x", "n = BNscale4(x)\ny = MatMul(n, W)", W=(4, 5), holds={"MatMul": 1}),
    case("rank 2 with Add", "float[3,4] x", "n = BN4(x)\nc = MatMul(n, W)\ny = Add(c, b)", W=(4, 5), b=(5,)),
    case(
        "rank 3",
        "float[2,4,5] x",
        "n = BN4(x)\nt = Transpose <perm=[0,2,1]> (n)\ny = MatMul(t, W)",
        W=(4, 3),
        affines=1,
    ),
    case(
        "rank 3 with Add",
        "float[2,4,5] x",
        "n = BN4(x)\nt = Transpose <perm=[0,2,1]> (n)\nc = MatMul(t, W)\ny = Add(c, b)",
        W=(4, 3),
        b=(3,),
        affines=1,
    ),
    case("constant left", "float[2,4,6] x", "n = BN4(x)\ny = MatMul(W, n)", W=(5, 4), affines=1),
    case(
        "constant left with Add",
        "float[2,4,6] x",
        "n = BN4(x)\nc = MatMul(W, n)\ny = Add(b, c)",
        W=(5, 4),
        b=(1, 5, 1),
        affines=1,
    ),
    case(
        "a stack of matrices, no shift",
        "float[2,3,4] x",
        "n = BNscale3(x)\nt = Transpose <perm=[0,2,1]> (n)\ny = MatMul(t, W)",
        W=(2, 3, 5),
    ),
    case(
        "both sides",
        "float[3,4] x",
        "n = BN4(x)\nc = MatMul(n, W)\na = Add(c, b)\ny = BN5(a)",
        W=(4, 5),
        b=(5,),
        holds={"Gemm": 1},
    ),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", AFTER)
def test_after(case: Case) -> None:
    case.folds()


@pytest.mark.parametrize("case", BEFORE)
def test_before(case: Case) -> None:
    case.folds()


def test_before_opset_7_an_add_can_follow_along_columns_only() -> None:
    text = "c = MatMul({})\nt = Transpose <perm={}> (c)\ny = BN5 <is_test=1> (t)"
    result = fold(build("float[2,3,4] x", text.format("x, W", "[0,2,1]"), opset=6, ir=3, W=(4, 5)))
    assert ops(result.model) == ["MatMul", "Add", "Transpose"]  # what it computes: test_old_broadcasts
    keeps(build("float[4,3] x", text.format("W, x", "[1,0]"), opset=6, ir=3, W=(5, 4)), "shift")
    folds(build("float[3,4] x", "c = MatMul(x, W)\ny = BN5 <is_test=1> (c)", opset=6, ir=3, W=(4, 5)))


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 23])
@pytest.mark.parametrize(
    "nodes", ["c = MatMul(x, W)\na = Add(c, b)\ny = BN5(a)", "n = BN4(x)\nc = MatMul(n, W)\ny = Add(c, b)"]
)
def test_every_opset(opset: int, nodes: str) -> None:
    folds(build("float[3,4] x", nodes, opset=opset, ir=8, W=(4, 5), b=(5,)))
