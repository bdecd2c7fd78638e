"""Gemm takes an affine behind it and in front of it, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, case, folds, integers, kept, refuses

X = "float[3,4] x"
A, S = "n = BN4(x)\n", "y = BN5(c)"
SQUARE = "float[4,4] x"

KEPT = [
    kept("weight computed", "weight-not-constant", "float[3,4] x, float[4,5] B", f"c = Gemm(x, B)\n{S}"),
    kept("addend computed", "bias-not-constant", "float[3,4] x, float[5] C", f"c = Gemm(x, B, C)\n{S}", B=(4, 5)),
    kept(
        "addend computed, shift in front",
        "bias-not-constant",
        "float[3,4] x, float[5] C",
        f"{A}y = Gemm(n, B, C)",
        B=(4, 5),
    ),
    kept("transposed square: rows, not columns", "axis", SQUARE, "n = BN4(x)\ny = Gemm <transA=1> (n, B)", B=(4, 5)),
    kept("constant is the left factor, and the channels are columns", "axis", "float[4,3] x", "c = Gemm(W, x)\ny = BN3(c)", W=(5, 4)),
    kept(
        "norm of the addend",
        "weight-not-constant",
        "float[3,4] x, float[3,5] d",
        "C = BN5(d)\ny = Gemm(x, B, C)",
        B=(4, 5),
    ),
    kept(
        "norm of the weight",
        "weight-not-constant",
        "float[3,4] x, float[5,4] d",
        "B = BN4(d)\ny = Gemm <transB=1> (x, B)",
    ),
    kept("before, as the weight", "weight-not-constant", "float[4,3] x, float[2,4] w", "n = BN3(x)\ny = Gemm(w, n)"),
    kept("before, weight computed", "weight-not-constant", "float[2,4] x, float[4,3] w", "n = BN4(x)\ny = Gemm(n, w)"),
    kept(
        "applies an activation itself",
        "blocked",
        "float[2,4] x",
        'c = com.microsoft.FusedGemm <activation="Relu"> (x, B)\ny = BN3(c)',
        outputs="float[2,3] y",
        imports={"com.microsoft": 1},
        B=(4, 3),
    ),
]

ADDENDS: dict[str, object] = {
    "scalar": np.float32(3.0),
    "one": (1,),
    "one by one": (1, 1),
    "row": (5,),
    "row of rank 2": (1, 5),
    "column": (3, 1),
    "full": (3, 5),
}
ATTRIBUTES = [
    "",
    "<transA=1>",
    "<transB=1>",
    "<alpha=0.5>",
    "<beta=2.0>",
    "<transA=1, transB=1, alpha=-2.0, beta=0.25>",
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("addend", [*ADDENDS, "absent", "empty"])
def test_after(attributes: str, addend: str) -> None:
    operands = {"absent": "x, B", "empty": "x, B, "}.get(addend, "x, B, C")
    constants = {"C": ADDENDS[addend]} if addend in ADDENDS else {}
    weight = (5, 4) if "transB" in attributes else (4, 5)
    inputs = "float[4,3] x" if "transA" in attributes else X
    folded = folds(build(inputs, f"c = Gemm {attributes} ({operands})\n{S}", B=weight, **constants))
    assert len(folded.graph.node) == 1


@pytest.mark.parametrize("attributes", [a for a in ATTRIBUTES if "transA" not in a])
@pytest.mark.parametrize("addend", [*ADDENDS, "absent", "empty"])
def test_before(attributes: str, addend: str) -> None:
    operands = {"absent": "n, B", "empty": "n, B, "}.get(addend, "n, B, C")
    constants = {"C": ADDENDS[addend]} if addend in ADDENDS else {}
    weight = (5, 4) if "transB" in attributes else (4, 5)
    folded = folds(build(X, f"{A}y = Gemm {attributes} ({operands})", B=weight, **constants))
    assert len(folded.graph.node) == 1


ROWS = np.float32([2, -0.5, 4, 1, -8]).reshape(5, 1)
TERMS = np.float32([1, -2, 4, 0.5])


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("addend", [*ADDENDS, "absent", "empty"])
def test_after_a_constant_on_the_left(attributes: str, addend: str) -> None:
    operands = {"absent": "A, x", "empty": "A, x, "}.get(addend, "A, x, C")
    shapes = {"row": (3,), "row of rank 2": (1, 3), "column": (5, 1), "full": (5, 3)}
    constants = {"C": shapes.get(addend, ADDENDS[addend])} if addend in ADDENDS else {}
    inputs = "float[3,4] x" if "transB" in attributes else "float[4,3] x"
    text = f"c = Gemm {attributes} ({operands})\nm = Mul(c, k)\ny = Add(m, l)"
    weight = (4, 5) if "transA" in attributes else (5, 4)
    folded = folds(build(inputs, text, A=weight, k=ROWS, l=ROWS * 2, **constants))
    assert len(folded.graph.node) == 1


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("addend", [*ADDENDS, "absent", "empty"])
def test_before_a_constant_on_the_left(attributes: str, addend: str) -> None:
    operands = {"absent": "A, s", "empty": "A, s, "}.get(addend, "A, s, C")
    shapes = {"row": (3,), "row of rank 2": (1, 3), "column": (5, 1), "full": (5, 3)}
    constants = {"C": shapes.get(addend, ADDENDS[addend])} if addend in ADDENDS else {}
    turned = "transB" in attributes
    factors = TERMS if turned else TERMS.reshape(4, 1)
    text = f"m = Mul(x, k)\ns = Sub(m, k)\ny = Gemm {attributes} ({operands})"
    weight = (4, 5) if "transA" in attributes else (5, 4)
    folded = folds(build("float[3,4] x" if turned else "float[4,3] x", text, A=weight, k=factors, **constants))
    assert len(folded.graph.node) == 1


CASES = [
    case("both sides of a constant on the left", "float[4,N] x", "m = Mul(x, k)\na = Add(m, k)\nc = Gemm <beta=2.0> (A, a, C)\n"
         "d = Mul(c, l)\ny = Add(d, l)", A=(5, 4), C=(5, 1), k=TERMS.reshape(4, 1), l=ROWS),
    case("a constant on the left, and a single number", "float[4,3] x", "c = Gemm(A, x)\ny = Mul(c, two)", A=(5, 4), two=np.float32(-2)),
    case(
        "transA in front, along the summed axis",
        "float[4,3] x",
        "m = Mul(x, k)\na = Add(m, l)\ny = Gemm <transA=1> (a, B)",
        B=(4, 5),
        k=(4, 1),
        l=(4, 1),
    ),
    case("both sides", X, f"{A}c = Gemm <alpha=0.5, beta=2.0> (n, B, C)\n{S}", B=(4, 5), C=(3, 1)),
    case("beta 0 with an addend", X, f"c = Gemm <beta=0.0> (x, B, C)\n{S}", B=(4, 5), C=(5,)),
    case("beta 0 with a computed addend", "float[3,4] x, float[5] C", f"c = Gemm <beta=0.0> (x, B, C)\n{S}", B=(4, 5)),
    case("alpha 0", X, f"c = Gemm <alpha=0.0> (x, B, C)\n{S}", B=(4, 5), C=(5,)),
    case("scale in front, addend computed", "float[3,4] x, float[5] C", "n = BNscale4(x)\ny = Gemm(n, B, C)", B=(4, 5)),
    case("two readers", X, f"{A}p = Gemm(n, B)\nq = Gemm <transB=1> (n, D)\ny = Add(p, q)", B=(4, 5), D=(5, 4)),
    case("chain of three", X, "a = BN4(x)\nb = BN4(a)\nc = Gemm(b, B)\ny = BN5(c)", B=(4, 5)),
    case("scale behind, no addend", X, "c = Gemm(x, B)\ny = BNscale5(c)", B=(4, 5), holds={"Gemm": 1}),
    case("square", SQUARE, "c = Gemm(x, B)\ny = BN4(c)", B=(4, 4)),
    case("dynamic batch", "float[N,4] x", f"c = Gemm(x, B, C)\n{S}", B=(4, 5), C=(5,)),
    case("Flatten in between", "float[2,3,2,2] x", "n = BN3(x)\nf = Flatten(n)\ny = Gemm(f, B, C)", B=(12, 5), C=(5,)),
    case(
        "pool, Flatten",
        "float[2,3,4,4] x",
        "n = BN3(x)\ng = GlobalAveragePool(n)\nf = Flatten(g)\ny = Gemm(f, B)",
        B=(3, 5),
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_folds_exactly(case: Case) -> None:
    case.folds()


DAMAGED = {
    "a weight of three axes": (f"c = Gemm(x, B)\n{S}", {"B": (4, 5, 1)}),
    "a weight of three axes, in front": (f"{A}y = Gemm(n, B)", {"B": (4, 5, 1)}),
    "an addend of three axes": (f"c = Gemm(x, B, C)\n{S}", {"B": (4, 5), "C": (1, 1, 5)}),
    "an addend of another width": (f"c = Gemm(x, B, C)\n{S}", {"B": (4, 5), "C": (3,)}),
    "an addend of another width, in front": (f"{A}y = Gemm(n, B, C)", {"B": (4, 5), "C": (3,)}),
}


@pytest.mark.parametrize(("nodes", "constants"), DAMAGED.values(), ids=DAMAGED)
def test_weights_that_do_not_fit_are_left_alone(nodes: str, constants: dict[str, tuple[int, ...]]) -> None:
    refuses(build(X, nodes, "float[a,b] y", **constants), "parameter-shape")


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 14, 15, 21, 23])
@pytest.mark.parametrize("nodes", [f"c = Gemm <transB=1> (x, B, C)\n{S}", f"{A}y = Gemm <transB=1> (n, B, C)"])
def test_every_opset(opset: int, nodes: str) -> None:
    folds(build(X, nodes, opset=opset, ir=8, B=(5, 4), C=(5,)))


@pytest.mark.parametrize("addend", [(3, 5), (5,)])
def test_before_opset_7_the_addend_is_broadcast_on_request(addend: tuple[int, ...]) -> None:
    attribute = "<broadcast=1>" if len(addend) == 1 else ""
    values = integers(addend, "C")
    after = build(X, f"c = Gemm {attribute} (x, B, C)\ny = BN5 <is_test=1> (c)", opset=6, ir=3, B=(4, 5), C=values)
    before = build(X, f"n = BN4 <is_test=1> (x)\ny = Gemm {attribute} (n, B, C)", opset=6, ir=3, B=(4, 5), C=values)
    for model in (after, before):
        folds(model)
