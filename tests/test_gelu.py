"""A Gelu that is written out stays whole, so that runtimes still fuse it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import Case, assert_same, build, case, count, feeds_for, fold, folds, kept

import bnfold

X, W, V = "float[2,4,5,5] x", (4, 4, 1, 1), (3, 4, 1, 1)
ROOT, ONE, HALF = np.float32(2**0.5), np.float32(1), np.float32(0.5)
NUMBERS = {"W": W, "V": V, "r": ROOT, "i": np.float32(0.5**0.5), "one": ONE, "half": HALF}
C = "c = Conv(x, W)\n"
ERF = "d = Div(c, r)\ne = Erf(d)\na = Add(e, one)\n"
FORMS = {
    "the half last": ERF + "m = Mul(c, a)\ng = Mul(m, half)\n",
    "the half first": ERF + "h = Mul(c, half)\ng = Mul(h, a)\n",
    "the half on the sum": ERF + "s = Mul(a, half)\ng = Mul(c, s)\n",
    "a product in front": "d = Mul(c, i)\ne = Erf(d)\na = Add(one, e)\nm = Mul(a, c)\ng = Mul(half, m)\n",
}
THREE = "activation activation activation"
# A scale from behind could go into the half, which would then be a vector.

KEPT = [
    *[kept(name, THREE, X, C + form + "y = Conv(g, V)", **NUMBERS) for name, form in FORMS.items()],
    *[
        kept(
            f"{name}, a scale behind it",
            f"{THREE} blocked",
            X,
            C + form + "n = BNscale4(g)\ny = Relu(n)",
            **NUMBERS,
        )
        for name, form in FORMS.items()
    ],
    *[
        kept(f"{name}, a norm behind it", f"{THREE} shift", X, C + form + "n = BN4(g)\ny = Relu(n)", **NUMBERS)
        for name, form in FORMS.items()
    ],
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_norms_around_it_fold(form: str) -> None:
    numbers = {name: value for name, value in NUMBERS.items() if name != "V"}
    model = build(
        X,
        form.replace("c", "n").join(("c = Conv(x, W)\nn = BN4(c)\n", "p = BNscale4(g)\ny = Conv(p, V)")),
        V=V,
        **numbers,
    )
    folded = folds(model, affines=3, exact=False)
    assert count(folded, "Erf") == 1


def test_onnxruntime_fuses_it(tmp_path: Path) -> None:
    model = build(X, C + "n = BN4(c)\n" + FORMS["the half last"].replace("c", "n") + "y = Conv(g, V)", **NUMBERS)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(fold(model).model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert count(onnx.load(tmp_path / "optimised.onnx"), "Gelu") == 1


WHOLE = ERF + "m = Mul(c, a)\ng = Mul(m, half)\ny = Conv(g, V)"
ALMOST = [
    case("no sum", X, C + "d = Div(c, r)\ne = Erf(d)\nm = Mul(c, e)\ng = Mul(m, half)\ny = Conv(g, V)", **NUMBERS),
    case(
        "another tensor",
        "float[2,4,5,5] x, float[2,4,5,5] z",
        C + ERF + "m = Mul(z, a)\ng = Mul(m, half)\ny = Conv(g, V)",
        **NUMBERS,
    ),
    case("another root", X, C + WHOLE, **{**NUMBERS, "r": np.float32(2)}),
    case("another sum", X, C + WHOLE, **{**NUMBERS, "one": np.float32(2)}),
    case("another half", X, C + WHOLE, **{**NUMBERS, "half": ONE}),
    case("a computed root", X, C + WHOLE.replace("Div(c, r)", "Div(c, c)"), **NUMBERS),
    case("the root above", X, C + WHOLE.replace("Div(c, r)", "Div(r, c)"), **NUMBERS),
    case("no half", X, C + ERF + "m = Mul(c, a)\ny = Conv(m, V)", **NUMBERS),
]


@pytest.mark.parametrize("case", ALMOST)
def test_what_is_no_gelu_is_as_free_as_ever(case: Case) -> None:
    model = case.model()
    assert all(entry.code != "activation" for entry in fold(model).report.kept)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_it_folds_when_asked_to(form: str) -> None:
    """The half goes into the next layer: exact, as a half only changes the exponent."""
    model = build(X, C + form + "y = Conv(g, V)", **NUMBERS)
    folded = bnfold.fold(model, bnfold.FoldOptions(fold_gelu=True)).model
    assert len(folded.graph.node) == len(model.graph.node) - 1
    feeds = feeds_for(model)
    assert_same(model, folded, feeds)
