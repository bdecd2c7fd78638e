"""Constants at the far end: a table that a Gather picks from, a token that an Expand copies take the affine themselves."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, case, feeds_for, fold, initializers, integers, kept, ops, session

IDS = "int64[2,3] x"
TABLE = integers((5, 4), "T", np.float32)
LOOKUP = "g = Gather(T, x)\n"
FACTORS = np.float32([1, -2, 4, 0.5])
LARGE = np.zeros((1 << 15, 4), np.float32)

KEPT = [
    kept("integers", "quantized", IDS, "t = DequantizeLinear(q, s)\ng = Gather(t, x)\ny = Mul(g, k)", outputs="float[2,3,4] y",
         q=integers((5, 4), "q", np.int8), s=np.float32(0.25), k=FACTORS),
    kept("a large table that the last layer reads, too", "shared-output", IDS, LOOKUP + "m = Mul(g, k)\nt = Transpose(T)\ne = Exp(m)\n"
         "y = MatMul(e, t)", outputs=f"float[2,3,{1 << 15}] y", T=LARGE, k=FACTORS),
    kept("a table too large to rewrite", "blocked", IDS, "t = Gather(T, x)\ny = Mul(t, two)", outputs="float[2,3,1] y",
         T=np.zeros(((1 << 24) + 1, 1), np.float32), two=np.float32(2)),
    kept("channels along the rows that are picked", "axis", "int64[4] x", "g = Gather(T, x)\nm = Mul(g, k)\ny = Relu(m)", outputs="float[4,4] y",
         T=TABLE, k=FACTORS.reshape(4, 1)),
    kept("an Expand that makes the channels", "axis", "float[N,4] x", "s = Shape(x)\ne = Expand(T, s)\nm = Mul(e, k)\nn = Max(m, x)\n"
         "y = Exp(n)", T=np.float32([[1]]), k=FACTORS),
    kept("a table that callers may replace", "no-producer", "int64[2,3] x, float[5,4] T", LOOKUP + "y = Mul(g, k)", outputs="float[2,3,4] y",
         k=FACTORS),
]  # fmt: skip

CASES = [
    case("an embedding, scaled", IDS, LOOKUP + "m = Mul(g, two)\ny = Exp(m)", outputs="float[] y", T=TABLE, two=np.float32(2)),
    case("an embedding, scaled and shifted for each channel", IDS, LOOKUP + "m = Mul(g, k)\na = Add(m, k)\ny = Exp(a)", outputs="float[] y", T=TABLE, k=FACTORS),
    case("a table that others read", IDS, LOOKUP + "m = Mul(g, k)\nt = Transpose(T)\ne = Relu(m)\ny = MatMul(e, t)", outputs="float[] y", T=TABLE, k=FACTORS),
    case("a table of columns", "int64[3] x", "g = Gather <axis=1> (T, x)\nm = Mul(g, k)\ny = Exp(m)", outputs="float[] y", T=TABLE, k=np.float32([[1], [2], [4], [-1], [0.5]])),
    case("a class token in front of the patches", "float[N,6,3] x", "s = Shape <end=1> (x)\nd = Concat <axis=0> (s, one)\n"
         "t = Expand(T, d)\nm = MatMul(x, W)\nb = Add(m, B)\nc = Concat <axis=1> (t, b)\nf = Mul(c, k)\na = Add(f, k)\ny = Exp(a)",
         T=integers((1, 1, 4), "T", np.float32), one=[1, 4], W=(3, 4), B=(4,), k=FACTORS, affines=1),
    case("a Tile of a constant", "float[N,3] x", "r = Shape(x)\nt = Tile(T, r)\nq = Mul(t, two)\ny = Exp(q)",
         T=integers((2, 2), "T", np.float32), two=np.float32(2)),
    case("a constant that is shaped at run time", "float[M,N] x", "s = Shape <end=1> (x)\nr = Reshape(T, s)\nm = Mul(r, two)\ny = Exp(m)",
         T=integers((1, 2), "T", np.float32), two=np.float32(2)),
    case("a table of an outer graph", "int64[2] x, bool i", "e = Exp(T)\ny = If <then_branch = t () => (float[2,4] u) { g = Gather(T, x)\nm = Mul(g, k)\n"
         "u = Exp(m) }, else_branch = f () => (float[2,4] v) { h = Gather(e, x)\nv = Exp(h) }> (i)", outputs="float[2,4] y", T=TABLE, k=FACTORS),
]  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", CASES)
def test_passes(case: Case) -> None:
    case.folds()


def test_the_table_changes_in_place() -> None:
    model = build(IDS, LOOKUP + "m = Mul(g, two)\ny = Exp(m)", "float[] y", T=TABLE, two=np.float32(2))
    folded = fold(model).model
    assert ops(folded) == ["Gather", "Exp"]
    (stored,) = initializers(folded).values()
    np.testing.assert_array_equal(stored, 2 * TABLE)


def test_a_constant_that_is_a_parameter_inside_of_bodies() -> None:
    """It is read at the entry of a body, but not as what is scaled there."""
    branches = "{0} = s () => (float[1,3] {1}) {{ n{1} = BatchNormalization(x, g, b, e, v)\n{1} = Identity(n{1}) }}"
    text = f"e = Identity(m)\ny = If <{branches.format('then_branch', 't')}, {branches.format('else_branch', 'f')}> (i)"
    parameters = {name: np.float32([1, 2, 3]) for name in "gbmv"}
    model = build("float[1,3] x, bool i", text, "float[1,3] y", **parameters)
    result = fold(model)
    assert {entry.code for entry in result.report.kept} == {"captured"}
    feeds = feeds_for(model)
    np.testing.assert_array_equal(*(session(m).run(None, feeds)[0] for m in (model, result.model)))
