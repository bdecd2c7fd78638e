"""Roads less travelled: what fails is said, what is missing is asked for, and nothing passes by accident."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from verify_models import Pair, model

from bnfold.errors import OptionError, RuntimeMissingError
from bnfold.runtime import Session
from bnfold.verify import VerifyOptions, isolated, local, verify
from bnfold.verify.cases import Case
from bnfold.verify.evaluation import Evaluation
from bnfold.verify.options import Clock
from bnfold.verify.outputs import OutputJudge
from bnfold.verify.sites import pair
from bnfold.verify.source import Source
from bnfold.verify.ties import decided_alike
from bnfold.verify.types import tensor_types
from bnfold.verify.view import View

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
K = np.random.default_rng(1).uniform(0.5, 2, 4).astype(np.float32)
X = {"x": np.ones((2, 4), np.float32)}


# -- inputs --------------------------------------------------------------------------------------------------------


def test_the_first_size_that_fits_is_used():
    """A kernel of 50 pixels needs a picture of more than 48."""
    values = {
        "w": np.random.default_rng(0).standard_normal((2, 1, 50, 50)).astype(np.float32),
        "k": K[:2].reshape(2, 1, 1),
    }
    original = model("float[N,1,H,W] x", "float[] y", "c = Conv(x, w)\n y = Mul(c, k)", values)
    folded = model("float[N,1,H,W] x", "float[] y", "y = Conv(x, w)", {"w": values["w"] * K[:2].reshape(2, 1, 1, 1)})
    report = verify(original, folded)
    assert report.verdict == "equal"
    assert report.dims == ({"N": 1, "H": 64, "W": 64}, {"N": 3, "H": 96, "W": 96})


def test_a_model_that_accepts_nothing_is_proven_by_its_sites():
    values = {"s": np.array([7], np.int64), "w": W, "k": K}
    text = "r = Reshape(x, s)\n e = Expand(r, t)\n m = MatMul(e, w)\n y = Mul(m, k)"
    values["t"] = np.array([1, 4], np.int64)
    original = model("float[N,5,4] x", "float[] y", text, values)
    folded = model(
        "float[N,5,4] x", "float[] y", "r = Reshape(x, s)\n e = Expand(r, t)\n y = MatMul(e, w)", values | {"w": W * K}
    )
    report = verify(original, folded)
    assert any("could not be run as a whole" in note for note in report.notes)
    assert report.verdict in ("equal", "inconclusive")


def test_what_onnxruntime_opens_but_cannot_run_goes_to_the_reference_evaluator(monkeypatch):
    run = Session.run

    def fails(self, feeds, outputs=None):
        if self.evaluator.startswith("onnxruntime") and "x" in self.inputs:
            raise RuntimeMissingError("no")
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", fails)
    p = Pair(head="relu")
    report = verify(p.original(), p.folded())
    assert report.verdict == "equal"
    assert report.evaluators[0].startswith("onnx.reference")
    assert len(report.inputs) == 2


def test_a_sequence_with_a_wrong_option_is_the_options_fault():
    original = model("seq(float[2]) x", "float[] y", "y = ConcatFromSequence<axis=0>(x)", {})
    with pytest.raises(OptionError, match="'N'"):
        verify(original, original, VerifyOptions(dims={"N": 3}))


# -- running -------------------------------------------------------------------------------------------------------


def test_a_model_that_fails_on_inputs_that_the_original_takes_is_different():
    text = "r = Reshape(x, s)\n y = Relu(r)"
    models = [model("float[N,3] x", "float[] y", text, {"s": np.array(s, np.int64)}) for s in ([-1, 3], [2, -1, 3])]
    for made in models:
        made.graph.output[0].type.tensor_type.ClearField("shape")
    report = verify(*models)
    assert report.verdict == "different"
    assert "the original runs on these inputs, this one does not" in report.reason


@pytest.mark.parametrize("method", ["perturbed", "optimised"])
def test_noise_that_cannot_be_had_is_left_out(monkeypatch, method):
    p = Pair(head="plain")
    monkeypatch.setattr(Evaluation, method, lambda self, **_: None)
    report = verify(p.original(), p.folded())
    assert report.verdict == "equal"
    assert report.outputs[0].noise.max_abs > 0


def test_noise_that_fails_while_it_runs_is_left_out(monkeypatch):
    run = Session.run

    class Failing:
        def run(self, *_):
            raise RuntimeMissingError("no")

    monkeypatch.setattr(Evaluation, "perturbed", lambda self, **_: Failing())
    monkeypatch.setattr(Evaluation, "optimised", lambda self: Failing())
    monkeypatch.setattr(Session, "run", run)
    p = Pair(head="plain")
    assert verify(p.original(), p.folded()).verdict == "equal"


def test_tensors_that_cannot_be_exposed_are_checked_alone(monkeypatch):
    opened = Evaluation.open

    def refuse(self, source, *, expose=(), shapes=()):
        if expose:
            raise RuntimeMissingError("no")
        return opened(self, source, expose=expose, shapes=shapes)

    monkeypatch.setattr(Evaluation, "open", refuse)
    p = Pair(head="relu")
    report = verify(p.original(), p.folded())
    assert (report.verdict, report.sites[0].how, report.sites[0].in_place) == ("equal", "local", None)


def test_sites_that_cannot_be_checked_alone_are_judged_in_place(monkeypatch):
    monkeypatch.setattr(local.LocalChecker, "_run", lambda *_, **__: (_ for _ in ()).throw(RuntimeMissingError("no")))
    p = Pair(head="plain")
    report = verify(p.original(), p.folded())
    assert (report.verdict, report.sites[0].how) == ("equal", "in place")
    scale = p.scale()
    scale[2] *= 1.01
    report = verify(p.original(), p.folded(scale=scale), folds=[p.fold()])
    assert (report.verdict, report.sites[0].channel) == ("different", 2)
    p.values["beta"][:] = -1e6
    report = verify(Pair(head="relu", values=p.values).original(), Pair(head="relu", values=p.values).folded())
    assert report.verdict == "inconclusive"


def test_a_batch_that_cannot_be_run_is_halved(monkeypatch):
    text = "a = MatMul(x, w)\n b = Mul(a, k)\n c = MatMul(b, w)\n y = Mul(c, k)"
    original = model("float[N,4] x", "float[] y", text, {"w": W, "k": K})
    folded = model("float[N,4] x", "float[] y", "b = MatMul(x, w)\n y = MatMul(b, w)", {"w": W * K})
    run, sizes = local.LocalChecker._run, []

    def only_one(self, batch, entering, *, small):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise RuntimeMissingError("too many")
        return run(self, batch, entering, small=small)

    monkeypatch.setattr(local.LocalChecker, "_run", only_one)
    assert verify(original, folded).verdict == "equal"
    assert sizes == [2, 2, 1, 1]


def test_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(local, "_CONSTANT_BYTES", 1)
    text = "a = MatMul(x, w)\n b = Mul(a, k)\n c = MatMul(b, w)\n y = Mul(c, k)"
    original = model("float[N,4] x", "float[] y", text, {"w": W, "k": K})
    folded = model("float[N,4] x", "float[] y", "b = MatMul(x, w)\n y = MatMul(b, w)", {"w": W * K})
    told = []
    verify(original, folded, VerifyOptions(progress=lambda what, done: told.append((what, done))))
    assert [done for what, done in told if what == "checking sites"] == [0.0, 0.5]


def test_large_constants_go_to_the_reference_evaluator_too(monkeypatch):
    """bfloat16 keeps onnxruntime from running the model, not the probe."""
    weights = np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)
    k = np.random.default_rng(1).uniform(0.5, 2, 200).astype(np.float32)
    original = model("float[N,200] x", "float[] y", "m = MatMul(x, w)\n y = Mul(m, k)", {"w": weights, "k": k})
    folded = model("float[N,200] x", "float[] y", "y = MatMul(x, w)", {"w": weights * k})
    monkeypatch.setattr(local, "open_session", lambda *_, **__: (_ for _ in ()).throw(RuntimeMissingError("no")))
    report = verify(original, folded)
    assert report.verdict == "equal"
    assert any(name.startswith("onnx.reference") for name in report.evaluators)


# -- outputs -------------------------------------------------------------------------------------------------------


def judged(*runs: tuple[object, object, object], **options) -> str:
    judge = OutputJudge(("y",), VerifyOptions(**options))
    for number, (a, b, p) in enumerate(runs):
        judge.add(f"case {number}", {"y": a}, {"y": b}, {"weights": {"y": p}} if p is not None else {})
    (result,) = judge.results()
    return f"{result.verdict}: {result.note}" if result.note else result.verdict


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_outputs():
    first, second = f32(1, 2, 3), f32(3, 1, 2)
    near = first * np.float32(1 + 1e-7)
    assert judged((first, first, near), (second, second, second)) == "equal"
    assert judged((first, f32(1, 2, 3.1), near), (second, second, second)) == "different"
    assert judged((first, first, near), (first, first, near)) == "inconclusive: it does not depend on the inputs"
    assert judged((first[:0], first[:0], first[:0])) == "inconclusive: it has no elements"
    assert judged() == "inconclusive: it was not compared"
    assert judged((first, f32(1, 2), None)) == "different: float32[3] became float32[2]"
    assert judged((first, None, None)) == "different: float32[3] became nothing"
    assert judged((first, first, second), (second, second, first)).endswith("as much as a wrong fold would")


def test_nan_and_infinities_of_outputs():
    odd, second = f32(1, np.nan, np.inf), f32(3, 1, 2)
    assert judged((odd, odd, odd), (second, second, second)) == "equal"
    assert judged((second, odd, second)) == "different"
    assert judged((odd, second, odd)) == "different"
    assert judged((odd, second, second)) == "inconclusive: it overflows"
    assert judged((odd, second, None)) == "inconclusive: it overflows"


def test_sequences_and_maps_as_outputs():
    a, b = [f32(1, 2), f32(3)], [f32(1, 2), f32(4)]
    assert judged((a, a, a), (b, b, b)) == "equal"
    assert judged((a, b, a)) == "different"
    assert judged(({1: 0.5}, {1: 0.5}, None), ({2: 0.5}, {2: 0.5}, None)) == "equal"


def test_integers_that_rounding_flips_are_mentioned():
    a, b = np.array([1, 2]), np.array([2, 2])
    assert judged((a, a, b), (b, b, a)) == "equal: rounding alone flips 1 of 2 elements of the original"


def test_the_users_tolerance():
    a, b = f32(0, 1000), f32(0.5, 1001)
    assert judged((a, b, a), (b, b, b), rtol=2e-3, atol=1.0) == "equal"
    assert judged((a, b, a), (b, b, b), rtol=2e-3) == "different"
    assert judged((a, f32(np.nan, 1000), a), atol=1.0) == "different"


# -- ties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("a = Relu(x)", "a = Relu(x)", True),
        ("a = Relu(x)", "a = Neg(x)", False),
        ("a = Relu(x)", "a = Concat<axis=0>(x, x)", False),
        ("a = Shape(x)", "a = Shape(x)", True),
        ("a = Shape(x)", "b = Shape(x)\n a = Add(b, b)", False),
        ("a = Relu(x)", "c = Relu(x)", False),
    ],
)
def test_grounds_of_decisions(first, second, alike):
    models = [Source(model("float[N,4] x", "float[] y", f"{text}\n y = Tanh(x)", {})) for text in (first, second)]
    evaluation = Evaluation(*models, VerifyOptions())
    assert decided_alike(evaluation, ["a"], Case("c", X)) is alike


# -- graphs --------------------------------------------------------------------------------------------------------


def test_bodies_with_constants_of_their_own():
    """The If of the second model hands another name out, so it is copied into the probe with all it contains."""

    def made(name: str, dtype: type, factor: float) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        values = numpy_helper.from_array(np.full(4, factor, dtype), "q")
        constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(4, dtype)))
        nodes = [constant, helper.make_node("Mul", ["r", "q"], ["p"]), helper.make_node("Add", ["p", "c"], [name])]
        inner = helper.make_node(
            "If",
            ["k"],
            [f"{name}2"],
            then_branch=helper.make_graph(
                [helper.make_node("Neg", [name], ["i"])], "i", [], [helper.make_tensor_value_info("i", kind, [2, 4])]
            ),
            else_branch=helper.make_graph(
                [helper.make_node("Abs", [name], ["j"])], "j", [], [helper.make_tensor_value_info("j", kind, [2, 4])]
            ),
        )
        output = [helper.make_tensor_value_info(f"{name}2", kind, [2, 4])]
        then = helper.make_graph([*nodes, inner], "t", [], output, [values])
        other = helper.make_graph(
            [helper.make_node("Identity", ["r"], ["z"])], "e", [], [helper.make_tensor_value_info("z", kind, [2, 4])]
        )
        whole = helper.make_graph(
            [
                helper.make_node("Relu", ["x"], ["r"]),
                helper.make_node("If", ["k"], ["y"], then_branch=then, else_branch=other),
            ],
            "g",
            [
                helper.make_tensor_value_info("x", kind, [2, 4]),
                helper.make_tensor_value_info("k", TensorProto.BOOL, []),
            ],
            [helper.make_tensor_value_info("y", kind, [2, 4])],
        )
        return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    always = VerifyOptions(inputs=({"x": X["x"], "k": np.array(True)},))
    for dtype in (np.float32, np.float16):
        given = VerifyOptions(inputs=({"x": X["x"].astype(dtype), "k": np.array(True)},))
        report = verify(made("a", dtype, 2), made("b", dtype, 2), given)
        assert report.verdict == "inconclusive"
        assert verify(made("a", dtype, 2), made("b", dtype, 3), given).verdict == "different"
        assert verify(made("a", dtype, 2), made("a", dtype, 3), given).verdict == "different"
    assert always.inputs


def test_a_body_that_hands_a_captured_tensor_through():
    text = "m = MatMul(x, w)\n y = If(k) <then_branch = t () => (float[2,4] {0}) {{ {1} }}, else_branch = e () => (float[2,4] z) {{ z = Neg(m) }}>"
    inputs = "float[2,4] x, bool k"
    models = [
        model(inputs, "float[] y", text.format(*parts), {"w": W})
        for parts in (("m", ""), ("m", ""), ("a", "a = Identity(m)"))
    ]
    assert verify(models[0], models[1]).verdict == "equal"
    assert verify(models[0], models[2]).verdict == "inconclusive"


def test_an_input_that_only_one_model_knows_by_name():
    """Outputs that run into different inputs cannot be paired."""
    views = []
    for name in ("x", "z"):
        source = Source(model(f"float[2] {name}", "float[] y", f"y = Relu({name})", {}))
        views.append(View(source, source.proto.graph))
    found = pair(*views)
    assert (found.complete, found.open) == (False, ["y"])


def test_comments_in_attributes_do_not_matter():
    text = "c = Constant<value = float[1] {2}>()\n e = ConstantOfShape<value = float[1] {2}>(s)\n p = Mul(x, c)\n y = Mul(p, e)"
    plain = model("float[2] x, int64[1] s", "float[] y", text, {})
    commented = onnx.ModelProto()
    commented.CopyFrom(plain)
    for node in commented.graph.node:
        node.doc_string = "new"
        for attribute in node.attribute:
            attribute.doc_string, attribute.t.name, attribute.t.doc_string = "new", "new", "new"
    report = verify(plain, commented)
    assert report.reason == "the graphs are identical, node for node and weight for weight"


def test_shapes_of_models_that_inference_cannot_handle(monkeypatch):
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda *_, **__: (_ for _ in ()).throw(ValueError("no")))
    p = Pair.__new__(Pair)
    monkeypatch.undo()
    p.__init__(head="relu")
    models = p.original(), p.folded()
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda *_, **__: (_ for _ in ()).throw(ValueError("no")))
    assert tensor_types(Source(models[0]), {})[("", "x")] == (1, (None, 4, 9, 9))
    assert verify(*models).verdict == "equal"


def test_the_clock():
    clock = Clock(VerifyOptions(budget=1e9))
    assert not clock.over()
    assert clock.seconds >= 0
    clock.tell("nobody listens", 2.0)


def test_weights_in_constant_nodes_are_perturbed_but_not_what_steers():
    text = """
        w = Constant<value = float[2,2] {1.5, -2.5, 0.5, 3.5}>()
        h = Constant<value = float[2] {1.0, 2.0}>()
        one = Constant<value_float = 1.0>()
        m = MatMul(x, w)
        r = Resize(m, , h)
        y = Mul(r, one)"""
    made = model("float[N,2] x", "float[] y", text, {"unused": W})
    source = Source(made)
    assert [tensor.name for tensor in source.weights()] == ["unused", "w"]
    session = source.session(overrides={"w": np.zeros((2, 2), np.float32), "unused": W})
    assert not session.run({"x": np.ones((1, 2), np.float32)})["y"].any()
    report = verify(made, model("float[N,2] x", "float[] y", text.replace("y = Mul(r, one)", "y = Mul(one, r)"), {}))
    assert report.verdict == "equal"
    assert report.outputs[0].noise.max_abs > 0


def test_without_distributions_there_is_nothing_to_run():
    p = Pair(head="relu")
    report = verify(p.original(), p.folded(), VerifyOptions(distributions=()))
    assert report.verdict == "equal"
    assert report.inputs == ()
    assert "it was not compared" in report.outputs[0].note


def test_models_that_fail_on_other_inputs_than_the_first(monkeypatch):
    run = Session.run
    count = {"runs": 0}

    def fails_later(self, feeds, outputs=None):
        if "x" in self.inputs:
            count["runs"] += 1
            if count["runs"] > 3:
                raise RuntimeMissingError("no more")
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", fails_later)
    p = Pair(head="relu")
    report = verify(p.original(), p.folded())
    assert report.verdict in ("equal", "different", "inconclusive")


def test_groups_that_there_is_no_time_for_are_named(monkeypatch):
    from bnfold.verify import inplace, judge, whole

    monkeypatch.setattr(inplace, "_EXPOSED_BYTES", 1)
    text = "a = MatMul(x, w)\n b = Mul(a, k)\n c = MatMul(b, w)\n y = Mul(c, k)"
    original = model("float[N,4] x", "float[] y", text, {"w": W, "k": K})
    folded = model("float[N,4] x", "float[] y", "b = MatMul(x, w)\n y = MatMul(b, w)", {"w": W * K})
    late = {"is": False}
    monkeypatch.setattr(judge.Clock, "over", lambda _: late["is"])
    one = whole.Whole._group

    def out_of_time(self, *arguments):
        late["is"] = True
        one(self, *arguments)

    monkeypatch.setattr(whole.Whole, "_group", out_of_time)
    report = verify(original, folded)
    assert report.verdict == "inconclusive"
    assert report.unchecked[-1] == "y in place"
    assert all(name.startswith("inputs: ") for name in report.unchecked[:-1])


def test_large_models_in_memory_cannot_be_isolated(tmp_path):
    class Huge:
        def SerializeToString(self):
            raise ValueError("too large")

    with pytest.raises(OptionError, match="2 GiB"):
        isolated._as_file(Huge(), tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("cpu", ()),
        ("cuda", (("cudnn_conv_algo_search", "DEFAULT"),)),
        ("cuda:device_id=1", (("device_id", "1"), ("cudnn_conv_algo_search", "DEFAULT"))),
        ("cuda:cudnn_conv_algo_search=EXHAUSTIVE", (("cudnn_conv_algo_search", "EXHAUSTIVE"),)),
    ],
)
def test_a_proof_on_cuda_multiplies_plainly(given, options):
    assert VerifyOptions(provider=given).where().options == options
