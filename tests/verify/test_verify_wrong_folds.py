"""Folds that must not pass: one thing wrong, mostly hidden behind what comes after."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from verify_models import HEADS, Pair, model

from bnfold.verify import verify

GEOMETRIES = {
    "conv": {},
    "grouped": {"group": 4},
    "depthwise": {"group": 8},
    "transposed": {"kind": "ConvTranspose"},
    "transposed, grouped": {"kind": "ConvTranspose", "group": 2},
}


def one_channel(pair: Pair) -> onnx.ModelProto:
    scale = pair.scale()
    scale[5] *= 1.01
    return pair.folded(scale=scale, bias=pair.values["b"] * pair.scale())


def one_channel_tenth(pair: Pair) -> onnx.ModelProto:
    scale = pair.scale()
    scale[2] *= 1.002
    return pair.folded(scale=scale, bias=pair.values["b"] * pair.scale())


def swapped(pair: Pair) -> onnx.ModelProto:
    order = [1, 0, *range(2, pair.channels)]
    return pair.folded(scale=pair.scale()[order], shift=pair.shift()[order])


def shift_sign(pair: Pair) -> onnx.ModelProto:
    return pair.folded(shift=-pair.shift())


def shift_of_one_channel(pair: Pair) -> onnx.ModelProto:
    shift = pair.shift()
    shift[7] += 0.01
    return pair.folded(shift=shift)


def no_epsilon(pair: Pair) -> onnx.ModelProto:
    pair.epsilon = 0.0
    return pair.folded()


def unscaled_bias(pair: Pair) -> onnx.ModelProto:
    return pair.folded(bias=pair.values["b"].astype(np.float64))


def rolled(pair: Pair) -> onnx.ModelProto:
    return pair.folded(scale=np.roll(pair.scale(), pair.channels // max(pair.group, 2)))


def absolute_gamma(pair: Pair) -> onnx.ModelProto:
    return pair.folded(scale=np.abs(pair.scale()))


WRONG = [
    one_channel,
    one_channel_tenth,
    swapped,
    shift_sign,
    shift_of_one_channel,
    no_epsilon,
    unscaled_bias,
    rolled,
    absolute_gamma,
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_a_wrong_fold_is_found_and_blamed(wrong, geometry):
    pair = Pair(**GEOMETRIES[geometry])
    report = verify(pair.original(), wrong(pair), folds=[pair.fold()])
    assert report.verdict == "different"
    assert report.blamed == ("BatchNormalization:n",)
    assert not report


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("known", [True, False], ids=["folds known", "folds not known"])
def test_nothing_that_comes_after_hides_it(head, known):
    pair = Pair(head=head, seed=3)
    report = verify(pair.original(), one_channel(pair), folds=[pair.fold()] if known else [])
    assert report.verdict == "different"
    assert report.blamed == ("BatchNormalization:n",)
    site = report.sites[0]
    assert (site.tensor, site.channel, site.operator) == ("n", 5, "Conv")
    assert 0.005 < site.error < 0.1


def test_a_channel_that_is_dead_behind_its_relu_is_seen():
    pair = Pair(head="softmax")
    pair.values["beta"][5] = -1e4
    report = verify(pair.original(), one_channel(pair), folds=[pair.fold()])
    assert report.verdict == "different"
    assert report.sites[0].channel == 5
    assert all(output.verdict == "equal" for output in report.outputs)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("wrong", [one_channel, swapped, shift_sign, unscaled_bias], ids=lambda f: f.__name__)
def test_other_float_types(wrong, dtype):
    pair = Pair(dtype=dtype)
    report = verify(pair.original(), wrong(pair), folds=[pair.fold()])
    assert (report.verdict, report.blamed) == ("different", ("BatchNormalization:n",))


def test_only_the_wrong_one_of_many_is_blamed():
    first, second = Pair(seed=1), Pair(seed=2)
    text = """
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        n1 = BatchNormalization<epsilon=0.01>(c1, g1, h1, m1, v1)
        r1 = Relu(n1)
        s = Conv<pads=[1,1,1,1]>(r1, ws)
        c2 = Conv<pads=[1,1,1,1]>(s, w2, b2)
        n2 = BatchNormalization<epsilon=0.01>(c2, g2, h2, m2, v2)
        y = Relu(n2)"""
    names = {"w": "w", "b": "b", "gamma": "g", "beta": "h", "mean": "m", "var": "v"}
    values = {f"{names[k]}{i}": v for i, pair in ((1, first), (2, second)) for k, v in pair.values.items()}
    values["ws"] = np.random.default_rng(0).standard_normal((4, 8, 3, 3)).astype(np.float32)
    original = model("float[N,4,9,9] x", "float[] y", text, values)
    weights = {}
    for i, pair in ((1, first), (2, second)):
        right = pair.folded()
        weights[f"w{i}"], weights[f"b{i}"] = (onnx.numpy_helper.to_array(t) for t in right.graph.initializer)
    weights["w1"] = weights["w1"] * 1.01
    text = """
        n1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r1 = Relu(n1)
        s = Conv<pads=[1,1,1,1]>(r1, ws)
        n2 = Conv<pads=[1,1,1,1]>(s, w2, b2)
        y = Relu(n2)"""
    report = verify(original, model("float[N,4,9,9] x", "float[] y", text, weights | {"ws": values["ws"]}))
    assert report.blamed == ("BatchNormalization:n1",)
    assert [site.verdict for site in report.sites] == ["different", "equal"]


def test_a_shift_that_ignores_padding_is_seen_at_the_border():
    random = np.random.default_rng(4)
    norm = {n: random.uniform(0.5, 1.5, 3).astype(np.float32) for n in ("gamma", "beta", "mean", "var")}
    w = random.standard_normal((5, 3, 3, 3)).astype(np.float32)
    text = "n = BatchNormalization<epsilon=0.01>(x, gamma, beta, mean, var)\n y = Conv<pads=[1,1,1,1]>(n, w)"
    original = model("float[N,3,40,40] x", "float[] y", text, norm | {"w": w})
    wide = {n: v.astype(np.float64) for n, v in norm.items()}
    s = wide["gamma"] / np.sqrt(wide["var"] + np.float32(0.01))
    t = wide["beta"] - wide["mean"] * s
    values = {
        "w": (w * s.reshape(1, 3, 1, 1)).astype(np.float32),
        "b": (w * t.reshape(1, 3, 1, 1)).sum((1, 2, 3)).astype(np.float32),
    }
    folded = model("float[N,3,40,40] x", "float[] y", "y = Conv<pads=[1,1,1,1]>(x, w, b)", values)
    report = verify(original, folded)
    assert (report.verdict, report.blamed) == ("different", ("BatchNormalization:n",))


def test_a_changed_weight_that_is_no_fold_is_a_site_of_its_own():
    pair = Pair(head="plain")
    changed = pair.original()
    weight = onnx.numpy_helper.to_array(changed.graph.initializer[0]).copy()
    weight[3] *= 1.001
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    report = verify(pair.original(), changed)
    assert report.verdict == "different"
    assert [site.tensor for site in report.sites if site.verdict == "different"] == ["c"]


def test_wrong_weights_inside_a_branch_are_found():
    text = """
        y = If(k) <then_branch = t () => (float[] n) {{ {0} }}, else_branch = e () => (float[] z) {{ z = Relu(x) }}>
    """
    pair = Pair()
    before = "c = Conv<pads=[1,1,1,1]>(x, w, b)\n n = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var)"
    inputs = "float[2,4,9,9] x, bool k"
    original = model(inputs, "float[] y", text.format(before), pair.values)
    for wrong, verdict in ((pair.folded, "equal"), (lambda: one_channel(pair), "different")):
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in wrong().graph.initializer}
        folded = model(inputs, "float[] y", text.format("n = Conv<pads=[1,1,1,1]>(x, w, b)"), stored)
        report = verify(original, folded)
        assert report.verdict == verdict
        assert [(site.tensor, site.verdict) for site in report.sites] == [("n", verdict)]
        assert report.sites[0].scope == "If:y.then_branch"
