"""What a comparison says: verdicts, reasons, tolerances, options."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from verify_models import Pair, model

import bnfold
from bnfold.errors import ModelReadError, OptionError, ProviderError, RuntimeMissingError
from bnfold.report import dumps
from bnfold.verify import VerifyOptions, isolated, verify

QUICK = VerifyOptions(distributions=("normal", "uniform"))


def changed(original: onnx.ModelProto, change) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(original)
    change(result.graph)
    return result


# -- structure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda g: g.input.add().CopyFrom(onnx.helper.make_tensor_value_info("z", 1, [1])), "inputs are 'x', 'z'"),
        (lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 11), "input 'x' has another type"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[1], "dim_value", 7), "input 'x' has shape"),
        (lambda g: g.output.add().CopyFrom(onnx.helper.make_tensor_value_info("n", 1, None)), "outputs are 'y', 'n'"),
        (lambda g: g.node.add(op_type="Relu", input=["missing"], output=["o"]), "the onnx checker refuses it"),
    ],
)
def test_another_interface_is_another_network(change, reason):
    original = Pair().original()
    report = verify(original, changed(original, change))
    assert report.verdict == "different"
    assert reason in report.reason
    assert report.structure.problems
    assert report.outputs == ()


def test_another_opset_is_noted_and_judged_by_outputs():
    original = Pair(head="relu").original()
    later = changed(original, lambda _: None)
    later.opset_import[0].version = 18
    report = verify(original, later, QUICK)
    assert report.verdict == "equal"
    assert "opset of ai.onnx is 18, in the original 17" in report.notes


def test_default_values_of_inputs_are_compared():
    text = "y = Add(x, w)"
    models = [model("float[2] x, float[2] w", "float[] y", text, {"w": np.full(2, v, np.float32)}) for v in (1, 2)]
    report = verify(*models)
    assert (report.verdict, report.reason) == ("different", "input 'w' has another default value")


def test_a_model_that_no_longer_runs_is_different():
    text = "r = Reshape(x, s)\n y = Relu(r)"
    models = [model("float[6] x", "float[] y", text, {"s": np.array(shape, np.int64)}) for shape in ([2, 3], [2, 4])]
    report = verify(*models)
    assert report.verdict == "different"


# -- outputs -------------------------------------------------------------------------------------------------------


def test_both_numbers_are_in_the_report():
    pair = Pair(head="plain")
    report = verify(pair.original(), pair.folded())
    output = report.outputs[0]
    assert 0 < output.metrics.max_abs < output.tolerance
    assert output.noise.max_abs > 0
    assert "weights and inputs" in output.noise.sources
    assert output.metrics.snr_db > 100
    assert output.metrics.cosine > 0.999999
    assert output.metrics.worst is not None
    assert report.dims == ({"N": 1}, {"N": 3})
    assert [name.split(" ")[0] for name in report.inputs].count("normal") == 2


@pytest.mark.parametrize(("rtol", "atol", "verdict"), [(1e-3, 1e-3, "equal"), (1e-12, None, "different")])
def test_tolerances_of_the_user_win(rtol, atol, verdict):
    pair = Pair(head="plain")
    report = verify(pair.original(), pair.folded(), VerifyOptions(rtol=rtol, atol=atol))
    assert report.verdict == verdict


def test_a_difference_that_no_site_shows_is_found_at_the_outputs():
    """Nothing has the same name but inputs and outputs."""
    values = {n: np.random.default_rng(i).standard_normal((6, 6)).astype(np.float32) for i, n in enumerate("abc")}
    names = [f"t{i}" for i in range(300)]
    deep = "\n".join(f"{b} = Relu({a})" for a, b in zip(["m", *names[:-1]], names, strict=True))
    first = model("float[N,6] x", "float[] y", f"m = MatMul(x, a)\n{deep}\n y = MatMul(t299, b)", values)
    text = deep.replace("t", "u").replace("(m)", "(k)")
    second = model("float[N,6] x", "float[] y", f"k = MatMul(x, a)\n{text}\n y = MatMul(u299, b)", values)
    assert verify(first, second).verdict == "equal"
    values["b"] = values["b"] * np.float32(1.001)
    third = model("float[N,6] x", "float[] y", f"k = MatMul(x, a)\n{text}\n y = MatMul(u299, b)", values)
    report = verify(first, third)
    assert report.verdict == "different"
    assert report.reason.startswith("output y: differs by")
    assert not report.structure.complete


def test_integers_must_be_equal():
    text = "s = Mul(x, w)\n y = Cast<to=7>(s)"
    models = [model("float[N,4] x", "int64[] y", text, {"w": np.full(4, v, np.float32)}) for v in (100, 101)]
    report = verify(*models)
    assert report.verdict == "different"
    assert report.outputs[0].metrics.mismatches > 0


def test_a_decision_on_equal_grounds_is_a_tie():
    """Two columns are equal but for rounding, so ArgMax may take either."""
    w = np.random.default_rng(0).standard_normal((8, 1)).astype(np.float32)
    both = np.concatenate([w, w], axis=1)
    text = "m = MatMul(x, w)\n n = Mul(m, s)\n y = ArgMax<axis=1>(n)"
    s = np.float32(0.7)
    original = model(
        "float[200,8] x", "int64[] y", text, {"w": both, "s": np.array([s, np.nextafter(s, 1)], np.float32)}
    )
    folded = model(
        "float[200,8] x",
        "int64[] y",
        "n = MatMul(x, w)\n y = ArgMax<axis=1>(n)",
        {"w": (both * 0.7).astype(np.float32)},
    )
    report = verify(original, folded)
    assert report.verdict == "equal", report.reason
    assert report.outputs[0].metrics.mismatches > 0
    assert "ties" in report.outputs[0].note


# -- vacuity -------------------------------------------------------------------------------------------------------


def test_an_output_that_says_nothing_is_settled_by_its_sites():
    pair = Pair(head="relu")
    pair.values["beta"][:] = -1e6
    report = verify(pair.original(), pair.folded())
    assert report.verdict == "equal"
    assert "does not depend on the inputs" in report.outputs[0].note
    assert "settle" in report.outputs[0].note


def test_an_output_that_says_nothing_is_inconclusive_where_no_site_can_settle_it():
    deep = "\n".join(f"t{i + 1} = Relu(t{i})" for i in range(300))
    values = {"b": np.full((1,), -1e6, np.float32)}
    texts = [
        f"t0 = Add(x, b)\n{deep}\n y = Identity(t300)",
        f"q0 = Add(x, b)\n{deep.replace('t', 'q')}\n y = Relu(q300)",
    ]
    report = verify(*(model("float[N,6] x", "float[] y", text, values) for text in texts))
    assert report.verdict == "inconclusive"
    assert "does not depend on the inputs" in report.reason
    assert not report


def test_random_operators_cannot_be_compared_but_settled():
    pair = Pair(head="relu")
    noisy = [
        changed(m, lambda g: g.node.add(op_type="RandomNormalLike", input=["y"], output=["z"]))
        for m in (pair.original(), pair.folded())
    ]
    for made in noisy:
        made.graph.output[0].name = "z"
    report = verify(*noisy)
    assert report.verdict == "equal"
    assert "random" in report.outputs[0].note


# -- options -------------------------------------------------------------------------------------------------------


def test_a_budget_that_is_used_up_names_what_is_missing():
    pair = Pair()
    report = verify(pair.original(), pair.folded(), VerifyOptions(budget=1e-9))
    assert report.verdict == "inconclusive"
    assert report.unchecked
    assert "budget" in report.reason


def test_progress_is_told():
    told = []
    verify(Pair().original(), Pair().folded(), VerifyOptions(progress=lambda *step: told.append(step)))
    assert {what for what, _ in told} >= {"comparing the graphs", "checking sites", "running the original"}
    assert all(0 <= fraction <= 1 for _, fraction in told)


def test_user_data_is_used_and_expected_outputs_are_mentioned(tmp_path):
    pair = Pair(head="relu")
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 9)).astype(np.float32)
    for name, value in (("input_0", x), ("output_0", np.zeros((2, 8, 9, 9), np.float32))):
        (tmp_path / f"{name}.pb").write_bytes(numpy_helper.from_array(value).SerializeToString())
    options = VerifyOptions(inputs=(str(tmp_path), {"x": x}))
    report = verify(pair.original(), pair.folded(), options)
    assert report
    assert report.inputs[:2] == (tmp_path.name, "user data 0")
    assert "away from the expected y" in report.notes[0]
    with pytest.raises(OptionError, match="no data for input 'x'"):
        verify(pair.original(), pair.folded(), VerifyOptions(inputs=({"z": x},)))


def test_dimensions_of_the_user():
    pair = Pair()
    report = verify(pair.original(), pair.folded(), VerifyOptions(dims={"N": 5}))
    assert report.dims == ({"N": 5},)
    with pytest.raises(OptionError, match="'M'"):
        verify(pair.original(), pair.folded(), VerifyOptions(dims={"M": 5}))


def test_a_sequence_input_is_said_not_to_be_makeable():
    original = model("seq(float[2]) x", "float[] y", "y = ConcatFromSequence<axis=0>(x)", {})
    other = model("seq(float[2]) x", "float[] y", "z = ConcatFromSequence<axis=0>(x)\n y = Relu(z)", {})
    report = verify(original, other)
    assert report.verdict == "inconclusive"
    assert any("cannot be made up" in note for note in report.notes)
    x = [np.array([1, -1], np.float32)] * 2
    assert verify(original, other, VerifyOptions(inputs=({"x": x},))).verdict == "different"


@pytest.mark.parametrize("dtype", ["bfloat16", "double"])
def test_what_onnxruntime_cannot_run_goes_to_the_reference_evaluator(dtype):
    import ml_dtypes

    kind = {"bfloat16": ml_dtypes.bfloat16, "double": np.float64}[dtype]
    pair = Pair(dtype=kind)
    models = [pair.original(), pair.folded()]
    for made in models:
        made.graph.input[0].type.tensor_type.elem_type = made.graph.initializer[0].data_type
        made.graph.output[0].type.tensor_type.elem_type = made.graph.initializer[0].data_type
    report = verify(*models)
    assert report.verdict == "equal", report.reason
    assert any(name.startswith("onnx.reference") for name in report.evaluators)
    assert any("reference evaluator was used" in note for note in report.notes)
    pair.values["b"] = (pair.values["b"] * kind(1.5)).astype(kind)
    report = verify(models[0], pair.folded())
    assert report.verdict == "different"


def test_an_operator_that_nothing_can_run_is_proven_around():
    pair = Pair(head="relu")
    models = [pair.original(), pair.folded()]
    for made in models:
        made.opset_import.add(domain="else", version=1)
        made.graph.node.add(op_type="Unknown", domain="else", input=["y"], output=["z"])
        made.graph.output[0].name = "z"
    report = verify(*models)
    assert report.verdict == "equal", report.reason
    assert any("could not be run as a whole" in note for note in report.notes)


def test_a_provider_that_is_missing_is_an_error():
    with pytest.raises(ProviderError):
        verify(Pair().original(), Pair().folded(), VerifyOptions(provider="coreml"))


def test_onnxruntime_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(RuntimeMissingError, match="pip install"):
        verify(Pair().original(), Pair().folded())


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(ModelReadError):
        verify(tmp_path / "none.onnx", tmp_path / "none.onnx")


# -- isolation -----------------------------------------------------------------------------------------------------


def test_isolated_gives_the_same_report(tmp_path):
    pair = Pair()
    onnx.save(pair.original(), tmp_path / "a.onnx")
    here = verify(pair.original(), pair.folded(), QUICK, folds=[pair.fold()])
    options = VerifyOptions(distributions=QUICK.distributions, isolated=True)
    there = verify(tmp_path / "a.onnx", pair.folded(), options, folds=[pair.fold()])
    assert (there.verdict, there.sites) == (here.verdict, here.sites)


def test_errors_come_through_isolation():
    with pytest.raises(ProviderError, match="coremlExecutionProvider"):
        verify(Pair().original(), Pair().folded(), VerifyOptions(provider="coreml", isolated=True))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("import sys; sys.exit('no memory')", "ended with code 1: no memory"),
        ("import time; time.sleep(60)", "did not answer"),
    ],
)
def test_a_process_that_dies_is_a_result(monkeypatch, code, reason):
    run = isolated.subprocess.run
    monkeypatch.setattr(isolated, "_GRACE", 1.0)
    monkeypatch.setattr(isolated.subprocess, "run", lambda command, **k: run([command[0], "-c", code], **k))
    report = verify(Pair().original(), Pair().folded(), VerifyOptions(isolated=True, budget=0.5))
    assert report.verdict == "inconclusive"
    assert reason in report.reason


# -- the report as data --------------------------------------------------------------------------------------------


def test_the_report_is_json():
    pair = Pair()
    data = json.loads(dumps(verify(pair.original(), pair.folded(), folds=[pair.fold()])))
    assert data["schema"] == "bnfold/verify@1"
    assert data["equal"] is True
    assert data["outputs"][0]["noise"]["max_abs"] >= 0
    assert data["sites"][0]["nodes"] == ["BatchNormalization:n"]
    assert set(data) >= {"verdict", "reason", "sites", "structure", "providers", "inputs", "evaluators", "versions"}


def test_the_package_can_be_called():
    pair = Pair()
    assert bnfold.verify(pair.original(), pair.folded(), QUICK)
    import bnfold.verify as package

    assert package(pair.original(), pair.folded(), QUICK)


def test_names_from_a_model_are_escaped():
    text = "a = Relu(x)\n y = Mul(a, k)"
    models = [model("float[N,2] x", "float[] y", text, {"k": np.full(2, v, np.float32)}) for v in (1, 2)]
    for made in models:
        made.graph.node[1].name = "evil\x1b[31m\nname"
        made.graph.output[0].name = made.graph.node[1].output[0] = "y\x07"
    report = verify(*models)
    assert report.blamed == ("evil\\x1b[31m\\nname",)
    assert report.reason.isprintable()
