"""Identity, Dropout, Cast, Relu and their like let an affine pass in both directions, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, case, fold, folds, keeps, kept
from onnx import ModelProto

X = "float[2,4,5,5] x"
W = (3, 4, 2, 2)

KEPT = [
    *[
        kept(f"{op}: negative scale", "sign", X, f"c = Conv(x, W)\nr = {op}(c)\ny = BNscale3(r)", W=W)
        for op in ("Relu", "LeakyRelu", "Abs")
    ],
    *[
        kept(f"{op}: shift", "shift", X, f"c = Conv(x, W)\nr = {op}(c)\ny = BNpos3(r)", W=W)
        for op in ("Relu", "LeakyRelu", "Abs")
    ],
    *[
        kept(f"{op}: shift in front", "shift", X, f"n = BNpos4(x)\nr = {op}(n)\ny = Conv(r, W)", W=W)
        for op in ("Relu", "LeakyRelu")
    ],
    *[
        kept(op, "blocked", X, f"c = Conv(x, W)\nr = {op}(c)\ny = BNposscale3(r)", W=W)
        for op in ("Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "HardSigmoid", "Exp", "Erf", "Floor", "Softmax")
    ],
    kept(
        "Clip",
        "blocked",
        X,
        "c = Conv(x, W)\nr = Clip(c, lo, hi)\ny = BNposscale3(r)",
        W=W,
        lo=np.float32(0),
        hi=np.float32(6),
    ),
    kept(
        "PRelu with a negative scale", "sign", X, "c = Conv(x, W)\nr = PRelu(c, a)\ny = BNscale3(r)", W=W, a=(3, 1, 1)
    ),
    kept("norm of the slope", "no-producer", "float[2,4,5,5] x, float[4,5,5] s", "a = BNposscale5(s)\ny = PRelu(x, a)"),
    kept(
        "Dropout in training",
        "training-mode",
        X,
        "c = Conv(x, W)\nd = Dropout(c, r, t)\ny = BN3(d)",
        W=W,
        r=np.float32(0),
        t=np.array(True),
    ),
    kept(
        "Dropout, training computed",
        "training-mode",
        "float[2,4,5,5] x, bool t",
        "c = Conv(x, W)\nd = Dropout(c, r, t)\ny = BN3(d)",
        W=W,
        r=np.float32(0),
    ),
    kept(
        "Cast to another type",
        "blocked",
        X,
        "c = Conv(x, W)\nd = Cast <to=11> (c)\ne = Cast <to=1> (d)\ny = BN3(e)",
        W=W,
    ),
    kept(
        "two readers, one of them no linear operator",
        "no-producer",
        X,
        "n = BN4(x)\nc = Conv(n, W)\ns = Sigmoid(n)\nr = ReduceSum(s)\ny = Add(c, r)",
        W=W,
    ),
    kept(
        "a graph output in between",
        "graph-output",
        X,
        "c = Conv(x, W)\nr = Identity(c)\ny = BN3(r)",
        outputs="float[2,3,4,4] r, float[2,3,4,4] y",
        W=W,
    ),
]

FOLDS = [
    *[
        case(f"after, {op}", X, f"c = Conv(x, W)\nr = {op}(c)\ny = BN3(r)", W=W)
        for op in ("Identity", "Dropout", "Cast <to=1>")
    ],
    *[
        case(f"before, {op}", X, f"n = BN4(x)\nr = {op}(n)\ny = Conv(r, W)", W=W)
        for op in ("Identity", "Dropout", "Cast <to=1>")
    ],
    *[
        case(f"after, {op}", X, f"c = Conv(x, W)\nr = {op}(c)\ny = BNposscale3(r)", W=W)
        for op in ("Relu", "LeakyRelu <alpha=0.5>", "Abs")
    ],
    *[
        case(f"before, {op}", X, f"n = BNposscale4(x)\nr = {op}(n)\ny = Conv <pads=[1,1,1,1]> (r, W)", W=W)
        for op in ("Relu", "LeakyRelu <alpha=0.5>", "Abs")
    ],
    case("after, PRelu", X, "c = Conv(x, W)\nr = PRelu(c, a)\ny = BNposscale3(r)", W=W, a=(3, 1, 1)),
    case("before, PRelu", X, "n = BNposscale4(x)\nr = PRelu(n, a)\ny = Conv(r, W)", W=W, a=(1, 5, 5)),
    case("after, in a row", X, "c = Conv(x, W)\nr = Relu(c)\ni = Identity(r)\np = Abs(i)\ny = BNposscale3(p)", W=W),
    case(
        "Dropout, not in training",
        X,
        "c = Conv(x, W)\nd = Dropout(c, r, t)\ny = BN3(d)",
        W=W,
        r=np.float32(0.5),
        t=np.array(False),
    ),
    case(
        "Relu in front of two",
        X,
        "n = BNposscale4(x)\nr = Relu(n)\na = Conv(r, W)\nb = Conv(r, V)\ny = Add(a, b)",
        W=W,
        V=W,
    ),
    case(
        "Shape does not read values", X, "c = Conv(x, W)\ns = Shape(c)\nn = BN3(c)\nr = Relu(n)\ny = Reshape(r, s)", W=W
    ),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", FOLDS)
def test_folds_exactly(case: Case) -> None:
    case.folds()


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 22])
def test_dropout_in_every_opset(opset: int) -> None:
    folds(build(X, "c = Conv(x, W)\nd = Dropout(c)\ny = BN3(d)", opset=opset, ir=8, W=W))


def test_the_mask_of_a_dropout_is_no_copy() -> None:
    """Before opset 10 it has the type of the data."""
    nodes = "c = Conv(x, W)\nd, m = Dropout(c)\ny = BN3(m)"
    keeps(build(X, nodes, "float[2,3,4,4] y", opset=9, ir=8, W=W), "blocked")


def test_dropout_before_opset_7_says_is_test() -> None:
    def model(flag: str) -> ModelProto:
        return build(X, f"c = Conv(x, W)\nd = Dropout {flag} (c)\ny = BN3 <is_test=1> (d)", opset=6, ir=3, W=W)

    assert fold(model("<is_test=1>")).report.folded
    assert [kept.code for kept in fold(model("")).report.kept] == ["training-mode"]
