"""The pieces of the proof, each by itself."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from verify_models import Pair, model

from bnfold import files
from bnfold.errors import RuntimeMissingError
from bnfold.report import Folded
from bnfold.verify import metrics, noise
from bnfold.verify.channels import compare_channels
from bnfold.verify.constants import ConstantValues
from bnfold.verify.labels import Labels
from bnfold.verify.sites import pair
from bnfold.verify.source import Source
from bnfold.verify.structure import check_structure
from bnfold.verify.types import tensor_types
from bnfold.verify.view import View

FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


# -- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_ulp_away_is_a_neighbour(dtype):
    values = np.array([1, -1, 1.5, 3.1e-3, -250, 1e-7], dtype)
    moved = noise.one_ulp_away(values, seed=1)
    assert moved.dtype == values.dtype
    step = np.abs(moved.astype(np.float64) - values.astype(np.float64))
    spacing = noise.epsilon(values.dtype) * np.exp2(np.frexp(np.abs(values.astype(np.float64)))[1] - 1)
    assert (step > 0).all()
    normal = np.abs(values.astype(np.float64)) >= noise.smallest_normal(values.dtype)
    assert (step[normal] <= spacing[normal]).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values_stay(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    values = np.array([0, -0.0, np.inf, -np.inf, np.nan, largest, -largest], dtype)
    assert noise.one_ulp_away(values, seed=2).tobytes() == values.tobytes()


@pytest.mark.parametrize(("dtype", "digits"), [(np.float16, 10), (ml_dtypes.bfloat16, 7)])
def test_half_an_ulp_away_is_the_largest_rounding_error(dtype, digits):
    values = np.array([1.0, 1.5, -6.0, 0.0], dtype)
    moved = noise.half_ulp_away(values, seed=3)
    assert np.abs(moved - values.astype(np.float32)).tolist() == [
        2.0 ** -(digits + 1),
        2.0 ** -(digits + 1),
        2.0 ** -(digits - 1),
        0,
    ]


def test_other_arrays_are_not_moved():
    for values in (np.arange(3), np.array(["a"], object), np.zeros(0, np.float32)):
        assert noise.one_ulp_away(values, seed=0) is values
        assert noise.widened(values) is values
    assert noise.half_ulp_away(np.ones(2, np.float32), seed=0).tolist() == [1, 1]


def test_signs_depend_on_the_seed_and_go_round_for_large_arrays():
    values = np.ones(3_000_000, np.float32)
    first, second = noise.one_ulp_away(values, 1), noise.one_ulp_away(values, 2)
    assert not np.array_equal(first, second)
    assert 0.499 < np.mean(first > 1) < 0.501


# -- metrics -------------------------------------------------------------------------------------------------------


def test_metrics_of_a_known_error():
    a = np.array([[1.0, 2.0, 4.0], [8.0, 5.0, 3.0]], np.float32)
    b = a + np.array([[0, 0, 2.0**-20], [0, 0, 0]], np.float32)
    found = metrics.measure(a, b)
    assert found.max_abs == 2.0**-20
    assert found.max_relative == pytest.approx(2.0**-20 / 7)
    assert found.rmse == pytest.approx(2.0**-20 / math.sqrt(6))
    assert found.snr_db == pytest.approx(10 * math.log10(119 / 2.0**-40))
    assert found.cosine == pytest.approx(1)
    assert found.ulp[2] == 2.0  # 4.0 has a spacing of 2**-21
    assert found.argmax_agreement == 1.0
    assert found.worst.index == (0, 2)
    assert (found.mismatches, found.elements) == (0, 6)


@pytest.mark.parametrize(
    ("a", "b", "mismatches"),
    [
        ([1, np.nan], [1, np.nan], 0),
        ([1, np.nan], [1, 2], 1),
        ([1, np.inf], [1, np.inf], 0),
        ([1, np.inf], [1, -np.inf], 1),
        ([1, 2], [np.inf, np.nan], 2),
    ],
)
def test_patterns_of_nan_and_infinity_must_match(a, b, mismatches):
    found = metrics.measure(np.array(a, np.float32), np.array(b, np.float32))
    assert found.mismatches == mismatches
    assert (found.worst is None) == (mismatches == 0)


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, object])
def test_what_is_no_float_must_be_equal(dtype):
    a = np.array([1, 0, 1]).astype(dtype) if dtype is not object else np.array(["a", "b", "c"], object)
    b = a.copy()
    assert metrics.measure(a, b).mismatches == 0
    b[1] = b[0]
    found = metrics.measure(a, b)
    assert (found.mismatches, found.worst.index) == (1, (1,))


def test_odd_arrays_are_measured_too():
    assert metrics.measure(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).elements == 0
    assert metrics.measure(np.float32(2), np.float32(3)).worst.index == ()
    zero = np.zeros(3, np.float32)
    assert metrics.measure(zero, zero).cosine == 1.0
    assert metrics.measure(zero, zero + 1).cosine == 0.0
    assert metrics.measure(zero, zero + 1).snr_db == -math.inf
    z = np.array([1 + 1j, 2], np.complex64)
    assert metrics.measure(z, z + 3j).max_abs == 3.0
    assert metrics.size(z) == 2.0


@given(st.integers(0, 1000), st.sampled_from(FLOATS))
def test_metrics_never_warn_and_never_go_negative(seed, dtype):
    random = np.random.default_rng(seed)
    a = (random.standard_normal((3, 4)) * 10.0 ** random.integers(-30, 4)).astype(dtype)
    b = noise.one_ulp_away(a, seed)
    found = metrics.measure(a, b)
    assert found.max_abs >= found.rmse >= 0
    assert found.ulp[0] <= found.ulp[1] <= found.ulp[2] <= 2


# -- channels ------------------------------------------------------------------------------------------------------


def copies(error: float, channels: int = 4, samples: int = 500) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    a = random.standard_normal((samples, channels)).astype(np.float32)
    b = a.copy()
    b[:, 2] *= 1 + error
    return {"a": a, "b": b, "p": (a * (1 + 1e-7 * random.choice([-1, 1], a.shape))).astype(np.float32)}


@pytest.mark.parametrize(("error", "wrong"), [(0.0, False), (1e-7, False), (1e-3, True), (1e-2, True), (-1e-2, True)])
def test_channels(error, wrong):
    found = compare_channels(copies(error), 1, terms=9)
    assert (found.ratio > 1).tolist() == [False, False, wrong, False]
    assert found.error[2] == pytest.approx(abs(error) * np.abs(copies(0)["a"][:, 2]).max(), rel=1e-2, abs=1e-6)
    assert found.spread[2] == pytest.approx(1, abs=0.1)


def test_channels_with_nan_in_one_of_them():
    made = copies(0.0)
    made["a"][3, 1] = made["b"][3, 1] = made["p"][3, 1] = np.nan
    assert (compare_channels(made, 1, terms=1).ratio <= 1).all()
    made["b"][4, 1] = np.nan
    assert np.isinf(compare_channels(made, 1, terms=1).ratio[1])


def test_a_scalar_is_one_channel():
    made = {name: np.float32(1) for name in "abp"}
    assert compare_channels({k: np.asarray(v) for k, v in made.items()}, 0, terms=1).ratio.tolist() == [0.0]


# -- sources and views ---------------------------------------------------------------------------------------------


def views(*models: onnx.ModelProto) -> list[View]:
    return [View(source, source.proto.graph) for source in map(Source, models)]


def test_sites_are_found_from_the_nodes_alone():
    made = Pair(head="softmax")
    found = pair(*views(made.original(), made.folded()))
    assert (found.identical, found.complete, found.open) == (3, True, [])
    (site,) = found.sites
    assert site.tensor == "n"
    assert [node.op for node in site.original.nodes] == ["Conv", "BatchNormalization"]
    assert [node.op for node in site.folded.nodes] == ["Conv"]
    assert site.frontier() == (("", "x"),)
    assert sorted(name for _, name in site.original.constants) == ["b", "beta", "gamma", "mean", "var", "w"]


@pytest.mark.parametrize(
    ("before", "after", "sites"),
    [
        ("y = Relu(x)", "y = Relu(x)", []),
        ("y = Relu(x)", "y = Tanh(x)", ["y"]),
        ("y = LeakyRelu<alpha=0.1>(x)", "y = LeakyRelu<alpha=0.2>(x)", ["y"]),
        ("y = Add(x, k)", "y = Add(k, x)", ["y"]),
        ("y = Add(x, k)", "y = Add(x, l)", []),
        ("y = Add(x, k)", "y = Add(x, m)", ["y"]),
        ("y = Add(x, c)\n c = Neg(k)", "y = Add(x, d)\n d = Neg(l)", []),
        ("y = Add(x, c)\n c = Neg(k)", "y = Add(x, d)\n d = Neg(m)", ["y"]),
        ("a = Relu(x)\n y = Tanh(a)", "b = Relu(x)\n y = Tanh(b)", ["y"]),
        ("y = Identity(k)", "y = Identity(l)", []),
        ("y = Identity(k)", "y = Identity(m)", ["y"]),
        ("y, q = Dropout(x)", "y = Dropout(x)", ["y"]),
    ],
)
def test_what_counts_as_the_same_operator(before, after, sites):
    values = {"k": np.ones(3, np.float32), "l": np.ones(3, np.float32), "m": np.full(3, 2, np.float32)}
    order = [
        text if "c = " not in text and "d = " not in text else "\n".join(reversed(text.split("\n")))
        for text in (before, after)
    ]
    found = pair(*views(*(model("float[3] x", "float[] y", text, values) for text in order)))
    assert [site.tensor for site in found.sites] == sites
    assert found.complete


def test_labels_prefer_the_folds_then_norms_then_what_is_there():
    made = Pair(head="plain")
    (site,) = pair(*views(made.original(), made.folded())).sites
    assert Labels([made.fold()]).of(site) == ("BatchNormalization:n",)
    assert Labels([Folded("other", "Mul", (), "", ("n",))]).of(site) == ("other",)
    assert Labels([]).of(site) == ("BatchNormalization:n",)
    changed = made.original()
    changed.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(8, np.float32), "b"))
    sites = pair(*views(made.original(), changed)).sites
    assert Labels([]).of(sites[0]) == ("Conv:c",)


def test_constants_of_every_form_have_values():
    text = """
        a = Constant<value_float = 2.0>()
        b = Constant<value = float[2] {1.0, 3.0}>()
        c = Mul(a, b)
        d = Add(c, w)
        y = Add(x, d)"""
    source = Source(model("float[2] x", "float[] y", text, {"w": np.array([10, 20], np.float32)}))
    view = View(source, source.proto.graph)
    values = ConstantValues(source)
    values.prepare([(view, "c"), (view, "d"), (view, "b")])
    assert values.array(view, "d").tolist() == [12, 26]
    assert values.array(view, "a").tolist() == 2.0
    assert values.data_type(view, "w") == values.data_type(view, "c") == 1
    assert values.nbytes(view, "w") == values.nbytes(view, "d") == 8
    values.forget()
    assert values.array(view, "c").tolist() == [2, 6]


def test_weights_are_read_where_they_lie(tmp_path):
    big = {"w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}
    made = model("float[N,64] x", "float[] y", "y = MatMul(x, w)", big)
    unused = made.graph.initializer.add()
    unused.CopyFrom(numpy_helper.from_array(big["w"], "unused"))
    onnx.save(made, tmp_path / "inline.onnx")
    outside = onnx.ModelProto()
    outside.CopyFrom(made)
    onnx.save(outside, tmp_path / "outside.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    x = {"x": np.ones((1, 64), np.float32)}
    expected = big["w"].sum(0)
    for place in (made, tmp_path / "inline.onnx", tmp_path / "outside.onnx"):
        source = Source(place)
        weight = source.proto.graph.initializer[0]
        assert source.nbytes(weight) == 64 * 64 * 4
        assert np.array_equal(source.array(weight), big["w"])
        assert np.allclose(source.session().run(x)["y"], expected, atol=1e-4)
        assert np.allclose(source.reference().run(x)["y"], expected, atol=1e-4)
        replaced = source.session(overrides={"w": big["w"] * 2, "unused": big["w"], "nowhere": big["w"]})
        assert np.allclose(replaced.run(x)["y"], 2 * expected, atol=1e-3)
        assert source.same(weight, Source(made), Source(made).proto.graph.initializer[0])
        assert [t.name for t in source.weights()] == ["w", "unused"]


def test_exposing_tensors_and_shapes():
    made = Pair(head="softmax")
    session = Source(made.original()).session(expose=["n", "y"], shapes=["c"])
    assert session.outputs == ("y", "n", "bnfold/shape of/c")
    found = session.run({"x": np.zeros((2, 4, 9, 9), np.float32)})
    assert found["bnfold/shape of/c"].tolist() == [2, 8, 9, 9]


def test_types_come_from_inference_and_declarations():
    made = Pair(head="plain").original()
    types = tensor_types(Source(made), {"x": np.zeros((5, 4, 9, 9), np.float32)})
    assert types[("", "c")] == (1, (5, 8, 9, 9))
    assert types[("", "x")] == (1, (5, 4, 9, 9))


def test_functions_are_inlined():
    text = """
    <ir_version: 10, opset_import: ["": 17, "f": 1]>
    g (float[2,3] x) => (float[2,3] y) { a = f.twice(x)  y = f.twice(a) }
    <domain: "f", opset_import: ["": 17]> twice (v) => (w) { w = Add(v, v) }"""
    made = onnx.parser.parse_model(text)
    source = Source(made)
    assert [node.op_type for node in source.proto.graph.node] == ["Add", "Add"]
    assert pair(*views(made, made)).identical == 2


def test_weights_in_files_are_not_read_for_a_session(tmp_path, monkeypatch):
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    made = model("float[N,64] x", "float[] y", "y = MatMul(x, w)", {"w": big})
    onnx.save(made, tmp_path / "inline.onnx")
    monkeypatch.chdir(tmp_path)
    source = Source("inline.onnx")
    monkeypatch.setattr(Source, "array", lambda *_: pytest.fail("the weights were read"))
    found = source.session().run({"x": np.ones((1, 64), np.float32)})["y"]
    assert np.allclose(found, big.sum(0), atol=1e-4)


def test_weights_in_files_elsewhere_are_read(tmp_path):
    """A model that was loaded from one place and handed on as if it lay in another."""
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    onnx.save(model("float[N,64] x", "float[] y", "y = MatMul(x, w)", {"w": big}), tmp_path / "inline.onnx")
    loaded = files.load(tmp_path / "inline.onnx")
    (tmp_path / "other").mkdir()
    loaded.path = str(tmp_path / "other" / "model.onnx")
    source = Source(loaded)
    assert np.allclose(source.session().run({"x": np.ones((1, 64), np.float32)})["y"], big.sum(0), atol=1e-4)
    assert source.given is loaded


def test_large_constants_in_bodies_are_brought_along(tmp_path):
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    text = "y = If(k) <then_branch = t () => (float[2,64] a) { a = MatMul(x, w) }, else_branch = e () => (float[2,64] z) { z = Neg(x) }>"
    made = model("float[2,64] x, bool k", "float[] y", text, {"w": big})
    body = made.graph.node[0].attribute[0].g
    body.initializer.append(made.graph.initializer.pop())
    onnx.save(made, tmp_path / "inline.onnx")
    source = Source(tmp_path / "inline.onnx")
    feeds = {"x": np.ones((2, 64), np.float32), "k": np.array(True)}
    assert np.allclose(source.session().run(feeds)["y"][0], big.sum(0), atol=1e-4)


def test_tensors_are_compared_bit_by_bit(tmp_path):
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    sources = []
    for number, value in enumerate((big, big, big + 1, big[:32], big.astype(np.float64))):
        shape = ",".join(map(str, value.shape))
        kind = "double" if value.dtype == np.float64 else "float"
        path = tmp_path / f"{number}.onnx"
        onnx.save(model(f"{kind}[{shape}] x", f"{kind}[] y", "y = Add(x, w)", {"w": value}), path)
        sources.append(Source(path))
    first = sources[0]
    tensor = first.proto.graph.initializer[0]
    same = [first.same(tensor, other, other.proto.graph.initializer[0]) for other in sources]
    assert same == [True, True, False, False, False]


def test_functions_that_cannot_be_inlined_are_said(monkeypatch):
    text = """
    <ir_version: 10, opset_import: ["": 17, "f": 1]>
    g (float[2,3] x) => (float[2,3] y) { y = f.twice(x) }
    <domain: "f", opset_import: ["": 17]> twice (v) => (w) { w = Add(v, v) }"""
    made = onnx.parser.parse_model(text)
    monkeypatch.setattr(onnx.inliner, "inline_local_functions", lambda _: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeMissingError, match="inlined"):
        Source(made)


@pytest.mark.parametrize(
    ("given", "theirs", "problem", "note"),
    [
        (("N", 3), ("M", 3), "", "has shape [M, 3], in the original [N, 3]"),
        ((2, 3), (2, 4), "has shape [2, 4], in the original [2, 3]", ""),
        ((2, 3), (2, 3, 1), "has shape [2, 3, 1]", ""),
        (None, (2, 3), "", "declares its shape in one model only"),
    ],
)
def test_shapes_of_the_interface(given, theirs, problem, note):
    models = []
    for shape in (given, theirs):
        made = model("float[2,3] x", "float[] y", "y = Relu(x)", {})
        made.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", 1, shape))
        models.append(Source(made))
    problems, notes = check_structure(*models)
    assert any(problem in text for text in problems) if problem else not problems
    assert any(note in text for text in notes) if note else True


def test_an_input_that_can_be_overridden_in_one_model_only():
    made = model("float[2] x", "float[] y", "y = Add(x, w)", {"w": np.ones(2, np.float32)})
    listed = onnx.ModelProto()
    listed.CopyFrom(made)
    listed.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2]))
    assert "can be overridden in the original only" in check_structure(Source(listed), Source(made))[0][0]
    listed.opset_import.add(domain="else", version=1)
    problems, notes = check_structure(Source(made), Source(listed))
    assert problems == []
    assert "new operator domain else" in notes
