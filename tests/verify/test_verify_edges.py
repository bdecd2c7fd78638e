"""Where the pieces of the proof give up, look away or go another way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from verify_models import Pair, model

from bnfold.errors import OptionError, RuntimeMissingError
from bnfold.runtime import Session
from bnfold.verify import VerifyOptions, isolated, local, shaping, sitecheck, sites, verdict, verify, whole
from bnfold.verify.constants import ConstantValues
from bnfold.verify.evaluation import Evaluation
from bnfold.verify.options import Clock
from bnfold.verify.report import Metrics, OutputResult, Structure
from bnfold.verify.sites import pair
from bnfold.verify.source import Source
from bnfold.verify.structure import check_structure
from bnfold.verify.ties import grounds
from bnfold.verify.view import View, bodies, decides

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
K = np.random.default_rng(1).uniform(0.5, 2, 4).astype(np.float32)
IN, OUT = "float[N,4] x", "float[] y"


def view(proto):
    return View(Source(proto), proto.graph)


def pairing(original, folded):
    return pair(view(original), view(folded))


def raw_model(nodes, inputs=("x",), outputs=("y",), values=None, opset=17):
    """A model whose nodes need not make sense."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (values or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


# -- the graphs ----------------------------------------------------------------------------------------------------


def test_inputs_that_are_left_out_at_the_end_do_not_matter():
    value = {"low": np.zeros((), np.float32)}
    models = [
        raw_model([helper.make_node("Clip", names, ["y"])], values=value) for names in (["x", "low"], ["x", "low", ""])
    ]
    found = pairing(*models)
    assert (found.sites, found.identical) == ([], 1)


def test_comments_of_attributes_do_not_matter():
    models = [raw_model([helper.make_node("Softmax", ["x"], ["y"], axis=1)]) for _ in range(2)]
    models[1].graph.node[0].attribute[0].doc_string = "over the classes"
    assert pairing(*models).sites == []


def test_lists_of_graphs_are_bodies():
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "b", [], [])
    node = helper.make_node("Choose", ["x"], ["y"], domain="custom", branches=[body, body])
    assert [name for name, _ in bodies(node)] == ["branches[0]", "branches[1]"]
    assert view(raw_model([node])).nodes[0].captures == ["x"]


@pytest.mark.parametrize(("to", "jumps"), [(TensorProto.FLOAT16, False), (TensorProto.INT32, True)])
def test_only_casts_to_integers_decide(to, jumps):
    made = view(raw_model([helper.make_node("Cast", ["x"], ["y"], to=to)]))
    assert decides(made.nodes[0]) is jumps


def test_only_the_first_decisions_have_grounds():
    text = "m = MatMul(x, w)\n f = Floor(m)\n n = Neg(f)\n y = Round(n)"
    made = view(model(IN, OUT, text, {"w": W}))
    assert grounds(made, made) == ["m"]


def test_names_that_nothing_makes_are_no_common_tensors():
    broken = raw_model([helper.make_node("Add", ["x", "nowhere"], ["y"])])
    found = pairing(broken, broken)
    assert (found.sites, found.complete, found.open) == ([], False, ["y"])


def test_bodies_with_other_inputs_make_the_node_a_site():
    def loop(name):
        body = helper.make_graph(
            [helper.make_node("Relu", [name], ["r"]), helper.make_node("Identity", ["go"], ["on"])],
            "body",
            [helper.make_tensor_value_info("i", TensorProto.INT64, []),
             helper.make_tensor_value_info("go", TensorProto.BOOL, []),
             helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4])],
            [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
             helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, 4])],
        )  # fmt: skip
        values = {"times": np.array(2, np.int64), "yes": np.array(True)}
        return raw_model([helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body)], values=values)

    assert pairing(loop("state"), loop("state")).sites == []
    assert [site.tensor for site in pairing(loop("state"), loop("other")).sites] == ["y"]
    assert verify(loop("state"), loop("other")).verdict == "equal"


def test_a_constant_that_is_stored_in_one_model_and_computed_in_the_other():
    computed = model(IN, OUT, "v = Mul(w, k)\n y = MatMul(x, v)", {"w": W, "k": K})
    for factor, wanted in ((1.0, "equal"), (1.01, "different")):
        stored = model(IN, OUT, "y = MatMul(x, v)", {"v": W * K * np.float32(factor)})
        report = verify(computed, stored)
        assert (report.verdict, [site.tensor for site in report.sites]) == (wanted, ["y"])


ALIGNED = (
    "a = Relu(x)\n b = Neg(a)\n c = Neg(b)\n y = Mul(c, k)\n z = Add(b, c)",
    "a = Relu(x)\n b = Neg(a)\n c = Neg(b)\n y = Mul(a, k)\n z = Add(b, c)",
)


def test_regions_start_at_the_same_tensors(monkeypatch):
    models = [model(IN, "float[] y, float[] z", text, {"k": K}) for text in ALIGNED]
    (site,) = pairing(*models).sites
    assert site.original.frontier == site.folded.frontier == (("", "a"),)
    assert verify(*models).verdict == "equal"
    monkeypatch.setattr(sites, "_ALIGNING_STEPS", 1)
    (site,) = pairing(*models).sites
    assert (site.original.frontier, site.folded.frontier) == ((("", "c"),), (("", "a"),))


def test_regions_stay_as_they_are_where_the_way_back_leaves_the_common_part():
    models = [
        raw_model(
            [helper.make_node("Abs", ["x"], ["u"]), helper.make_node("Relu", [own], ["t"]),
             helper.make_node("Add", ["t", "t"], ["y"]) if own == "p" else helper.make_node("Neg", ["u"], ["y"]),
             helper.make_node("Add", ["u", "t"], ["z"])],
            inputs=("x", own),
            outputs=("y", "z"),
        )
        for own in ("p", "q")
    ]  # fmt: skip
    found = pairing(*models)
    assert (found.complete, found.open) == (False, ["t"])
    (site,) = found.sites
    assert (site.original.frontier, site.folded.frontier) == ((("", "t"),), (("", "u"),))


def test_defaults_that_are_the_same_are_no_problem():
    made = model(IN, OUT, "y = Mul(x, k)", {"k": K})
    made.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [4]))
    assert check_structure(Source(made), Source(made))[0] == []
    other = onnx.ModelProto()
    other.CopyFrom(made)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(K + 1, "k"))
    assert check_structure(Source(made), Source(other))[0] == ["input 'k' has another default value"]


def test_damaged_tensors_are_not_the_same():
    large = model("float[N,64] x", OUT, "y = MatMul(x, w)", {"w": np.ones((64, 64), np.float32)})
    damaged = onnx.ModelProto()
    damaged.CopyFrom(large)
    damaged.graph.initializer[0].raw_data += b"0000"
    ours, theirs = Source(large), Source(damaged)
    tensors = [source.proto.graph.initializer[0] for source in (ours, theirs)]
    assert ours.same(tensors[0], ours, tensors[0])
    assert not ours.same(tensors[0], theirs, tensors[1])


def test_weights_whose_shape_steers_are_computed_with():
    text = "s = Shape(w)\n h = Pad(x, s)\n y = MatMul(h, w)"
    source = Source(model("float[4,4] x", OUT, text, {"w": W}))
    assert [tensor.name for tensor in source.weights()] == ["w"]


# -- constants -----------------------------------------------------------------------------------------------------


def test_a_constant_that_onnxruntime_cannot_make_goes_to_the_reference_evaluator(monkeypatch):
    from bnfold.verify import constants

    source = Source(model(IN, OUT, "v = Mul(w, k)\n y = MatMul(x, v)", {"w": W, "k": K}))
    monkeypatch.setattr(constants, "open_session", lambda _: (_ for _ in ()).throw(RuntimeMissingError("no")))
    made = View(source, source.proto.graph)
    assert np.array_equal(ConstantValues(source).array(made, "v"), W * K)


def test_constants_of_operators_with_gaps_and_several_outputs(tmp_path):
    text = "a, b = Split<axis=0>(big)\n c = Clip(a, , top)\n d = Add(b, c)\n y = Add(x, d)"
    big = np.arange(4096, dtype=np.float32).reshape(2, 2048)
    made = model("float[1,2048] x", OUT, text, {"top": np.array(100, np.float32)}, opset=13)
    made.graph.node.insert(0, helper.make_node("Constant", [], ["big"], value=numpy_helper.from_array(big)))
    onnx.save(made, tmp_path / "m.onnx")
    source = Source(tmp_path / "m.onnx")
    assert source.model.blobs
    found = ConstantValues(source).array(View(source, source.proto.graph), "d")
    assert np.array_equal(found, big[1:] + np.minimum(big[:1], 100))


@pytest.mark.parametrize("scale", [np.array([0.5, 0.25], np.float32), np.array(0.5, np.float32)], ids=["axis", "one"])
def test_the_unit_of_dequantized_biases(scale):
    values = {"q": np.array([3, -7], np.int32), "s": scale}
    source = Source(model("float[2] x", OUT, "b = DequantizeLinear<axis=0>(q, s)\n y = Add(x, b)", values))
    step = ConstantValues(source).step(View(source, source.proto.graph), "b")
    assert step is not None
    assert step.tolist() == np.broadcast_to(scale, 2).tolist()


# -- sites ---------------------------------------------------------------------------------------------------------


def checked(original, folded, types=None, known=None):
    """The result of one site that is checked alone, or why it was not."""
    sources = Source(original), Source(folded)
    found = pair(*(View(source, source.proto.graph) for source in sources))
    (site,) = found.sites
    checker = local.LocalChecker(*sources, VerifyOptions(), Clock(VerifyOptions()))
    results = checker.check([site], local.Entering(types or {}, known or {}))
    return results.get(site.key) or checker.failures[site.key]


def test_a_tensor_of_another_shape_is_different():
    narrow = model(IN, OUT, "y = MatMul(x, w)", {"w": W[:, :2]})
    wide = model(IN, OUT, "y = MatMul(x, w)", {"w": W})
    result = checked(narrow, wide, {("", "x"): (1, (2, 4))})
    assert (result.verdict, result.note) == ("different", "shape (32, 2) became (32, 4)")


def test_integers_that_are_not_known_cannot_be_drawn():
    original = model("int64[N] i", OUT, "g = Gather(w, i)\n y = Mul(g, k)", {"w": W, "k": K})
    folded = model("int64[N] i", OUT, "y = Gather(w, i)", {"w": W * K})
    types = {("", "i"): (TensorProto.INT64, (3,))}
    assert checked(original, folded, types) == "the values of i are not known"
    assert checked(original, folded, types, {("", "i"): np.array([0, 3, 1])}).verdict == "equal"


def test_what_was_empty_when_the_original_ran_is_not():
    """A detector that found no boxes says nothing about what comes behind them."""
    original = model("float[N,3,4] x", OUT, "m = MatMul(x, w)\n y = Mul(m, k)", {"w": W, "k": K})
    for factor, wanted in ((1.0, "equal"), (1.1, "different")):
        folded = model("float[N,3,4] x", OUT, "y = MatMul(x, w)", {"w": W * K * np.float32(factor)})
        assert checked(original, folded, {("", "x"): (1, (0, 3, 4))}).verdict == wanted


def test_what_has_to_be_empty_proves_nothing():
    values = {"w": W, "k": K, "none": np.zeros((0, 4), np.float32)}
    text = "e = Add(x, none)\n m = MatMul(e, w)\n y = Mul(m, k)"
    original = model("float[N,4] x", OUT, text, values)
    folded = model("float[N,4] x", OUT, "f = Add(x, none)\n y = MatMul(f, w)", values | {"w": W * K})
    result = checked(original, folded, {("", "x"): (1, (0, 4))})
    assert (result.verdict, result.note) == ("inconclusive", "it has no elements")


def test_a_shift_that_drowns_everything_proves_nothing():
    """The spacing of floats at 2e8 is 16: a weight that is wrong by a tenth cannot be seen, nor one that is right."""
    values = {"beta": 2e8, "gamma": 2, "var": 1, "mean": 0}
    p = Pair(head="plain", channels=1, values={name: np.full(1, v, np.float32) for name, v in values.items()})
    report = verify(p.original(), p.folded(), folds=[p.fold()])
    assert report.verdict == "inconclusive"
    assert report.sites[0].note == "rounding alone moves the original as much as a wrong fold would"


def test_operators_with_gaps_and_casts_to_half_are_checked():
    text = "h = Clip(x, , top)\n f = Cast<to=10>(h)\n g = Cast<to=1>(f)\n "
    values = {"top": np.array(3, np.float32), "w": W}
    original = model(IN, OUT, text + "m = MatMul(g, w)\n y = Mul(m, k)", values | {"k": K})
    folded = model(IN, OUT, "l = Min(x, top)\n y = MatMul(l, w)", values | {"w": W * K})
    result = checked(original, folded, {("", "x"): (1, (2, 4))})
    assert result.verdict == "equal"
    wrong = model(IN, OUT, "l = Min(x, top)\n y = MatMul(l, w)", values | {"w": W * K * np.float32(1.1)})
    assert checked(original, wrong, {("", "x"): (1, (2, 4))}).verdict == "different"


RESIZED = (
    'h = Resize<mode="nearest">(x, , s)\n y = Mul(h, k)',
    'm = Mul(x, k)\n y = Resize<mode="nearest">(m, , s)',
)


def test_inputs_that_are_left_out_within_a_region():
    """An upsampling that the affine went through, with no region of interest."""
    values = {"s": np.array([1, 1, 2, 2], np.float32), "k": K.reshape(4, 1, 1)}
    original = model("float[N,4,3,3] x", OUT, RESIZED[0], values)
    folded = model("float[N,4,3,3] x", OUT, RESIZED[1], values)
    assert verify(original, folded).verdict == "equal"
    values["k"] = values["k"] * np.float32(1.01)
    wrong = model("float[N,4,3,3] x", OUT, RESIZED[1], values)
    assert verify(original, wrong).verdict == "different"


def test_outputs_that_are_left_out_within_a_region():
    pool = helper.make_node("MaxPool", ["x"], ["p", ""], kernel_shape=[2, 2])
    texts = ("y = Mul(p, k)", "q = Mul(p, j)\n y = Mul(q, i)")
    values = {"k": K.reshape(4, 1, 1), "j": K.reshape(4, 1, 1) * 2, "i": np.array(0.5, np.float32)}
    models = [model("float[N,4,5,5] x, float[N,4,4,4] p", OUT, text, values) for text in texts]
    for each, name in zip(models, "pr", strict=True):
        del each.graph.input[1]
        pool.output[0] = name
        each.graph.node.insert(0, pool)
        for node in each.graph.node:
            node.input[:] = [name if read == "p" else read for read in node.input]
    report = verify(*models)
    assert (report.verdict, [site.tensor for site in report.sites]) == ("equal", ["y"])


def test_inputs_that_are_left_out_within_a_body():
    def chosen(name, factor=1.0):
        branches = {
            f"{branch}_branch": helper.make_graph(
                [helper.make_node("Clip", ["x", "", "top"], [f"{branch}c"])],
                branch,
                [],
                [helper.make_tensor_value_info(f"{branch}c", TensorProto.FLOAT, None)],
            )
            for branch in ("then", "else")
        }
        nodes = [helper.make_node("If", ["c"], [name], **branches), helper.make_node("Mul", [name, "k"], ["y"])]
        values = {"k": K * np.float32(factor), "top": np.array(0.5, np.float32), "c": np.array(True)}
        return raw_model(nodes, values=values)

    types = {("", "x"): (1, (2, 4))}
    assert checked(chosen("t"), chosen("u"), types).verdict == "equal"
    assert checked(chosen("t"), chosen("u", 1.1), types).verdict == "different"


def test_a_probe_that_cannot_be_opened_is_opened_in_pieces(monkeypatch):
    text = "a = MatMul(x, w)\n b = Mul(a, k)\n c = MatMul(b, w)\n y = Mul(c, k)"
    original = model(IN, OUT, text, {"w": W, "k": K})
    folded = model(IN, OUT, "b = MatMul(x, w)\n y = MatMul(b, w)", {"w": W * K})
    opened, sizes = local.open_session, []

    def only_one(proto, **options):
        sizes.append(len({value.name.partition("/")[0][1:] for value in proto.graph.output if value.name[0] == "a"}))
        if sizes[-1] > 1:
            raise RuntimeMissingError("too large")
        return opened(proto, **options)

    monkeypatch.setattr(local, "open_session", only_one)
    report = verify(original, folded)
    assert report.verdict == "equal"
    assert [site.how for site in report.sites] == ["local, in place"] * 2
    assert sizes == [2, 2, 1, 1, 1, 1]


def test_probes_are_bounded_by_what_enters_and_leaves(monkeypatch):
    text = "a = MatMul(x, w)\n b = Mul(a, k)\n c = MatMul(b, w)\n y = Mul(c, k)"
    original = model(IN, OUT, text, {"w": W, "k": K})
    folded = model(IN, OUT, "b = MatMul(x, w)\n y = MatMul(b, w)", {"w": W * K})
    for limit, probes in ((1 << 20, [0.0]), (1, [0.0, 0.5])):
        monkeypatch.setattr(local, "_ACTIVATION_BYTES", limit)
        told = []
        report = verify(original, folded, VerifyOptions(progress=lambda what, done, to=told: to.append((what, done))))
        assert report.verdict == "equal"
        assert [done for what, done in told if what == "checking sites"] == probes


def test_sites_behind_a_global_pooling_are_drawn_oftener_than_others(monkeypatch):
    values = {"w": W.reshape(4, 4, 1, 1), "k": K.reshape(4, 1, 1)}
    text = "a = Conv(x, w)\n b = Mul(a, k)\n p = GlobalAveragePool(b)\n c = Conv(p, w)\n y = Mul(c, k)"
    original = model("float[N,4,32,32] x", OUT, text, values)
    text = "b = Conv(x, w)\n p = GlobalAveragePool(b)\n y = Conv(p, w)"
    folded = model("float[N,4,32,32] x", OUT, text, {"w": values["w"] * K.reshape(4, 1, 1, 1)})
    draw, draws = local.LocalChecker._draw, {}

    def counted(self, session, probe, *arguments, **options):
        runs = draw(self, session, probe, *arguments, **options)
        draws.setdefault(tuple(key[1] for key in probe.inputs), []).append(len(runs))
        return runs

    monkeypatch.setattr(local.LocalChecker, "_draw", counted)
    assert verify(original, folded).verdict == "equal"
    assert draws == {("x",): [1, 1, 1], ("p",): [1, 8, 8]}


@pytest.mark.parametrize("stored", [True, False])
def test_a_scalar_lets_pictures_be_small_however_it_is_stored(stored):
    made = "" if stored else "six = Constant<value = float[1] {6.0}>()\n"
    text = made + "d = Div(x, six)\n c = Conv(d, w)\n y = Mul(c, k)"
    values = {"w": W.reshape(4, 4, 1, 1), "k": K.reshape(4, 1, 1)}
    values |= {"six": np.array([6], np.float32)} if stored else {}
    original = model("float[N,4,500,500] x", OUT, text, values)
    factor = (K / np.float32(6)).reshape(4, 1, 1, 1)
    folded = model("float[N,4,500,500] x", OUT, "y = Conv(x, w)", {"w": values["w"] * factor})
    (site,) = pairing(original, folded).sites
    shapes = shaping.frontier_shapes([site], {("", "x"): (1, (1, 4, 500, 500))}, small=True)
    assert shapes == {("", "x"): (2, 4, 6, 6)}


@pytest.mark.parametrize(
    ("text", "shapes"),
    [("c = Gemm<transB=1>(x, w)", {("", "x"): (32, 4)}), ("v = Neg(x)\n c = Gemm(x, v)", None)],
)
def test_shapes_that_nothing_tells_are_guessed_from_weights(text, shapes):
    original = model("float[4,4] x", OUT, f"{text}\n y = Mul(c, k)", {"w": W, "k": K})
    folded = model("float[4,4] x", OUT, f"{text}\n y = Mul(c, k)".replace("c", "d"), {"w": W, "k": K})
    (site,) = pairing(original, folded).sites
    assert shaping.frontier_shapes([site], {("", "v"): (1, (4, 4))}, small=False) == shapes


def test_growing_ends(monkeypatch):
    """A scale that moves over two layers: each name in between means another value."""
    values = {"w": W, "k": K, "j": np.array(2, np.float32)}
    original = model(IN, OUT, "a = Mul(x, j)\n b = MatMul(a, w)\n c = Neg(b)\n y = Mul(c, k)", values)
    folded = model(IN, OUT, "a = Identity(x)\n b = MatMul(a, w)\n c = Neg(b)\n y = Mul(c, k)", values | {"k": K * 2})
    assert verify(original, folded).verdict == "equal"
    monkeypatch.setattr(sitecheck, "_ROUNDS", 0)
    assert verify(original, folded).verdict == "different"


def test_what_the_original_cannot_tell_stays_unknown(monkeypatch):
    """Shapes that inference does not find are asked of the original, which may refuse."""
    p = Pair(head="relu")
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda proto, **_: proto)
    opened, asked = Evaluation.open, []

    def refuse(self, source, *, expose=(), shapes=()):
        if shapes:
            asked.append(tuple(shapes))
            raise RuntimeMissingError("no")
        return opened(self, source, expose=expose, shapes=shapes)

    monkeypatch.setattr(Evaluation, "open", refuse)
    report = verify(p.original(), p.folded())
    assert asked
    assert report.verdict == "equal"


# -- whole models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["m = MatMul(x, w)\n n = Mul(m, k)\n y = Relu(n)", "m = MatMul(x, w)\n y = Mul(m, k)"])
def test_a_second_model_that_cannot_be_opened_is_different(text):
    """With a tensor that is exposed, and with outputs alone."""
    original = model(IN, OUT, text, {"w": W, "k": K})
    text = text.replace("m = MatMul(x, w)\n ", "").replace("Mul(m, k)", "MatMul(x, w)")
    unknown = model(IN, OUT, text, {"w": W * K})
    unknown.graph.node[0].domain = "nobody.knows"
    unknown.opset_import.add(domain="nobody.knows", version=1)
    report = verify(original, unknown)
    assert report.verdict == "different"
    assert "the original can be opened, this one cannot" in report.reason


def test_models_that_nothing_runs_are_said_to_have_not_run(monkeypatch):
    run = Session.run

    def refuse(self, feeds, outputs=None):
        if "x" in self.inputs:
            raise RuntimeMissingError("no")
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", refuse)
    p = Pair(head="relu")
    report = verify(p.original(), p.folded())
    assert any("could not be run as a whole: no" in note for note in report.notes)
    assert [site.how for site in report.sites] == ["local"]


def test_sessions_of_the_noise_that_cannot_be_opened_are_none(monkeypatch):
    source = Source(Pair().original())
    evaluation = Evaluation(source, source, VerifyOptions())

    def refuse(*_, **__):
        raise RuntimeMissingError("no")

    monkeypatch.setattr(Source, "session", refuse)
    assert (evaluation.perturbed(), evaluation.optimised()) == (None, None)


def test_large_models_are_perturbed_in_part(monkeypatch):
    from bnfold.verify import evaluation

    moved = evaluation.Evaluation._moved
    names = []

    def noted(self, name, array):
        names.append(name)
        return moved(self, name, array)

    monkeypatch.setattr(evaluation.Evaluation, "_moved", noted)
    monkeypatch.setattr(evaluation, "_PERTURB_BYTES", 1)
    p = Pair(head="plain")
    report = verify(p.original(), p.folded())
    assert report.verdict == "equal"
    assert names == ["w"]
    assert report.outputs[0].noise.max_abs > 0


def test_sessions_are_opened_once_however_many_groups_there_are(monkeypatch):
    from bnfold.verify import inplace

    monkeypatch.setattr(inplace, "_EXPOSED_BYTES", 1)
    text = "a = MatMul(x, w)\n b = Mul(a, k)\n c = MatMul(b, w)\n d = Mul(c, k)\n y = Relu(d)"
    original = model(IN, OUT, text, {"w": W, "k": K})
    folded = model(IN, OUT, "b = MatMul(x, w)\n d = MatMul(b, w)\n y = Relu(d)", {"w": W * K})
    session, opened = Source.session, []

    def noted(self, *, expose=(), shapes=(), **options):
        opened.append(tuple(expose))
        return session(self, expose=expose, shapes=shapes, **options)

    monkeypatch.setattr(Source, "session", noted)
    report = verify(original, folded)
    assert [site.how for site in report.sites] == ["local, in place"] * 2
    assert sorted(opened) == [(), (), *[("b", "d")] * 3]  # the original, optimised; original, perturbed, folded
    opened.clear()
    monkeypatch.setattr(whole, "_TOGETHER", 0)
    assert verify(original, folded).verdict == "equal"
    assert {("b",), ("d",)} < set(opened)


def test_data_that_came_with_outputs_of_another_shape(tmp_path):
    p = Pair(head="plain")
    x = np.random.default_rng(0).standard_normal((1, 4, 9, 9)).astype(np.float32)
    for name, value in (("input_0", x), ("output_0", np.zeros(3, np.float32))):
        (tmp_path / f"{name}.pb").write_bytes(numpy_helper.from_array(value).SerializeToString())
    report = verify(p.original(), p.folded(), VerifyOptions(inputs=(str(tmp_path),)))
    assert report.verdict == "equal"
    assert not any("expected" in note for note in report.notes)


def test_dimensions_do_not_help_where_an_input_cannot_be_made():
    original = model("float[N,4] x, seq(float[2]) s", OUT, "t = ConcatFromSequence<axis=0>(s)\n y = Relu(x)", {})
    with pytest.raises(OptionError, match="'s'"):
        verify(original, original, VerifyOptions(dims={"N": 3}))


def test_sequences_as_outputs_of_models():
    texts = ("m = MatMul(x, w)\n n = Mul(m, k)\n y = Relu(n)", "n = MatMul(x, w)\n y = Relu(n)")
    models = [model(IN, OUT, text, {"w": weight, "k": K}) for text, weight in zip(texts, (W, W * K), strict=True)]
    for each in models:
        each.graph.node.append(helper.make_node("SequenceConstruct", ["n", "x"], ["s"]))
        each.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    report = verify(*models)
    assert (report.verdict, [output.name for output in report.outputs]) == ("equal", ["y", "s"])


def test_nothing_to_compare_is_no_proof():
    assert verdict.verdict(Structure(complete=True), [], [], []) == ("inconclusive", "there are no outputs")


def test_elements_that_differ_are_counted():
    wrong = OutputResult("y", "different", Metrics(mismatches=1, elements=1234))
    outcome, reason = verdict.verdict(Structure(), [], [wrong], [])
    assert (outcome, reason) == ("different", "output y: 1 of 1,234 elements differ (NaN and infinity included)")


def test_the_worker_of_isolation_hands_errors_back(tmp_path):
    import pickle

    task, answer = tmp_path / "task", tmp_path / "answer"
    task.write_bytes(pickle.dumps((str(tmp_path / "none.onnx"), "b.onnx", VerifyOptions(), ())))
    isolated._main(str(task), str(answer))
    name, message = pickle.loads(answer.read_bytes())
    assert name == "ModelReadError"
    assert "none.onnx" in message
