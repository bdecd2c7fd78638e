"""Correct folds pass, however hard their numbers are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verify_models import HEADS, Pair, model

from bnfold.verify import VerifyOptions, verify


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("geometry", [{}, {"group": 4}, {"group": 8}, {"kind": "ConvTranspose", "group": 2}])
def test_a_correct_fold_is_equal(head, geometry):
    pair = Pair(head=head, **geometry)
    report = verify(pair.original(), pair.folded(), folds=[pair.fold()])
    assert report.verdict == "equal", report.reason
    assert report.blamed == ()
    assert report.structure.complete
    assert [site.verdict for site in report.sites] == ["equal"]
    assert "rounding alone moves the original by" in report.reason


HARD = {
    "tiny variance": ("var", 1e-12),
    "no variance": ("var", 0.0),
    "gamma zero": ("gamma", 0.0),
    "gamma tiny": ("gamma", 1e-20),
    "negative gamma": ("gamma", -3.0),
    "large mean": ("mean", 5e3),
    "huge beta": ("beta", 1e6),
    "weights of a dead channel": ("w", 0.0),
    "denormal weights": ("w", 1e-40),
}


@pytest.mark.parametrize("trait", HARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_hard_channels_raise_no_alarm(trait, dtype):
    pair = Pair(dtype=dtype)
    name, value = HARD[trait]
    if dtype == np.float16 and abs(value) > 1e4:
        pytest.skip("not in the range of float16")
    pair.values[name][2] = value
    report = verify(pair.original(), pair.folded(), folds=[pair.fold()])
    assert report.verdict == "equal", report.reason


@pytest.mark.parametrize("seed", range(6))
def test_a_scale_that_was_rounded_to_float16_first_passes(seed):
    pair = Pair(dtype=np.float16, seed=seed)
    scale = pair.scale().astype(np.float16).astype(np.float64)
    report = verify(pair.original(), pair.folded(scale=scale, bias=pair.values["b"] * pair.scale()))
    assert report.verdict == "equal", report.reason


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    group=st.sampled_from([1, 2, 4, 8]),
    kind=st.sampled_from(["Conv", "ConvTranspose"]),
    trait=st.sampled_from([None, *HARD]),
)
def test_no_correct_fold_raises_an_alarm(seed, group, kind, trait):
    pair = Pair(kind=kind, group=group, seed=seed)
    if trait is not None:
        name, value = HARD[trait]
        pair.values[name][seed % 4 if name != "w" else 0] = value
    report = verify(pair.original(), pair.folded(), VerifyOptions(distributions=("normal",)), folds=[pair.fold()])
    assert report.verdict == "equal", report.reason


def test_a_model_is_equal_to_itself_and_to_its_file(tmp_path):
    pair = Pair()
    onnx.save(pair.original(), tmp_path / "a.onnx")
    report = verify(tmp_path / "a.onnx", pair.original())
    assert report
    assert report.reason == "the graphs are identical, node for node and weight for weight"
    assert report.sites == ()
    assert report.outputs[0].metrics.max_abs == 0


def test_the_arguments_are_left_alone():
    pair = Pair()
    a, b = pair.original(), pair.folded()
    before = a.SerializeToString(), b.SerializeToString()
    verify(a, b)
    assert (a.SerializeToString(), b.SerializeToString()) == before


def test_the_same_question_has_the_same_answer():
    pair = Pair()
    first, second = (verify(pair.original(), pair.folded(), VerifyOptions(seed=7)) for _ in range(2))
    assert first.sites == second.sites
    assert first.outputs == second.outputs


def test_constants_made_by_operators_count_as_weights():
    text = """
        k = Constant<value = int64[4] {8, 4, 3, 3}>()
        w = ConstantOfShape<value = float[1] {0.5}>(k)
        c = Conv<pads=[1,1,1,1]>(x, w, b)
        n = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var)
        y = Relu(n)"""
    pair = Pair()
    pair.values["w"][:] = 0.5
    values = {name: value for name, value in pair.values.items() if name != "w"}
    pair.head = "relu"
    report = verify(model("float[N,4,9,9] x", "float[] y", text, values), pair.folded())
    assert report.verdict == "equal", report.reason


def test_a_tool_that_names_the_convolution_after_itself():
    """onnxoptimizer keeps the name of the convolution's output for what is the norm's output in the original."""
    pair = Pair(head="relu")
    folded = pair.folded()
    folded.graph.node[0].output[0] = folded.graph.node[1].input[0] = "c"
    report = verify(pair.original(), folded)
    assert report.verdict == "equal", report.reason
    assert [site.tensor for site in report.sites] == ["y"]
    assert report.sites[0].nodes == ("BatchNormalization:n",)


def test_a_scale_that_moved_on_to_the_next_layer():
    random = np.random.default_rng(0)
    values = {n: random.standard_normal((4, 4, 3, 3)).astype(np.float32) for n in ("w", "v")}
    text = "a = Conv(x, w)\n r = Relu(a)\n y = Conv(r, v)"
    moved = {"w": values["w"] * 2, "v": values["v"] / 2}
    models = [model("float[N,4,9,9] x", "float[] y", text, v) for v in (values, moved)]
    report = verify(*models)
    assert report.verdict == "equal", report.reason
    assert "another value under the same name" in report.sites[-1].note


@pytest.mark.parametrize("seed", range(3))
def test_shifts_that_cancel(seed):
    """Where beta is almost mean * scale, one rounding of either is much of what is left, and two may hide each other."""
    channels = 4096
    random = np.random.default_rng(seed)
    gamma, mean, var = (random.uniform(low, high, channels) for low, high in ((1, 2), (0.01, 1), (0.003, 0.02)))
    beta = gamma * mean / np.sqrt(var + 0.01) * random.uniform(0.97, 1.03, channels)
    values = {"gamma": gamma, "beta": beta, "mean": mean, "var": var, "b": np.zeros(channels)}
    pair = Pair(channels=channels, values={name: value.astype(np.float32) for name, value in values.items()})
    report = verify(pair.original(), pair.folded(), folds=[pair.fold()])
    assert report.verdict == "equal", report.reason
