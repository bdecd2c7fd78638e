"""The trained models in ``models/``: folding them changes no prediction on any held-out sample."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import bnfold

MODELS = Path(__file__).parent.parent / "models"

# Folding rounds every weight anew and moves the rounding of every product and sum. The deepest of these networks has
# eight linear layers in a row, the widest sum 288 products (32 channels, 3x3). Each is off by up to half a unit in the
# last place of float32, independently, so the errors add up like a random walk: four times its size, relative to the
# largest output, is 1.1e-5. A right fold was seen to differ by 6e-7; one that forgets epsilon by 1.5e-5 and more.
TOLERANCE = 4 * (8 * 288) ** 0.5 * 2.0**-24


@dataclass(frozen=True)
class Expected:
    """How many batch norms fold, and the names of those that stay."""

    folded: int
    kept: tuple[str, ...] = ()


EXPECTED = {
    "digits_cnn": Expected(folded=5),
    "digits_autoencoder": Expected(folded=6),
    "tabular_mlp": Expected(folded=5),
    "digits_preact": Expected(
        folded=6,
        kept=("/block1/norm1/BatchNormalization",),
    ),
}
CLASSIFIERS = ("digits_cnn", "digits_preact", "tabular_mlp")

every_model = pytest.mark.parametrize("name", EXPECTED)
every_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


@functools.cache
def original(name: str) -> onnx.ModelProto:
    return onnx.load(MODELS / f"{name}.onnx")


@functools.cache
def folded(name: str) -> bnfold.FoldResult:
    return bnfold.fold(MODELS / f"{name}.onnx")


def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(MODELS / f"{name}_test.npz") as data:
        return data["x"], data["y"]


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The model's only output, with onnxruntime's own folding switched off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    return output


def batch_norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


# --- What must not change ------------------------------------------------------------------------------------------


KEPT = [(name, node) for name, expected in EXPECTED.items() for node in expected.kept]


@pytest.mark.parametrize(("name", "norm"), KEPT)
def test_must_not_change(name: str, norm: str) -> None:
    """A norm whose data the shortcut reads too keeps its parameters, bit for bit."""
    before, after = (model.graph for model in (original(name), folded(name).model))
    (kept,) = (node for node in before.node if node.name == norm)
    assert [entry.code for entry in folded(name).report.kept if entry.node == norm] == ["shared-output"]
    assert [list(node.input[1:]) for node in after.node if node.name == norm] == [list(kept.input[1:])]
    stored = [{tensor.name: tensor.SerializeToString() for tensor in graph.initializer} for graph in (before, after)]
    assert [stored[1][name] for name in kept.input[1:]] == [stored[0][name] for name in kept.input[1:]]


# --- The files say what the cards say ----------------------------------------------------------------------------


@every_classifier
def test_the_card_states_the_accuracy(name: str) -> None:
    x, y = held_out(name)
    correct = int(np.sum(run(original(name), x).argmax(axis=1) == y))
    card = (MODELS / f"{name}.md").read_text(encoding="utf-8")
    assert f"Accuracy on the held-out data: {correct / len(y):.2%} ({correct} of {len(y)})" in card


def test_the_card_states_the_error_of_the_autoencoder() -> None:
    noisy, clean = held_out("digits_autoencoder")
    error = np.mean((run(original("digits_autoencoder"), noisy).astype(np.float64) - clean) ** 2)
    card = (MODELS / "digits_autoencoder.md").read_text(encoding="utf-8")
    assert f"Mean squared error on the held-out data: {error:.4f}" in card


@every_model
def test_the_norms_are_trained_and_in_inference_form(name: str) -> None:
    model = original(name)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    norms = batch_norms(model)
    assert len(norms) == EXPECTED[name].folded + len(EXPECTED[name].kept)
    for node in norms:
        gamma, beta, mean, variance = (constants[tensor] for tensor in node.input[1:])
        assert not np.any(mean == 0), node.name
        assert not np.any(variance == 1), node.name
        assert not np.any(gamma == 1), node.name
        assert not np.any(beta == 0), node.name
        assert len(node.output) == 1, node.name


@every_model
def test_the_file_tells_nothing_about_the_machine_it_was_made_on(name: str) -> None:
    model = original(name)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not model.doc_string
    assert not model.metadata_props
    assert b".py" not in model.SerializeToString()


# --- Folding -----------------------------------------------------------------------------------------------------


@every_model
def test_what_folds_and_what_stays(name: str) -> None:
    report = folded(name).report
    kept = [entry.node for entry in report.kept if entry.operator == "BatchNormalization"]
    gone = [entry.node for entry in report.folded if entry.operator == "BatchNormalization"]
    assert sorted(kept) == sorted(EXPECTED[name].kept)
    assert len(gone) == EXPECTED[name].folded
    assert sorted(gone + kept) == sorted(node.name for node in batch_norms(original(name)))
    assert sorted(node.name for node in batch_norms(folded(name).model)) == sorted(kept)


@every_model
def test_no_more_nodes_than_the_folded_norms_leave(name: str) -> None:
    before, after = original(name).graph.node, folded(name).model.graph.node
    assert len(after) <= len(before) - EXPECTED[name].folded


@every_classifier
def test_same_prediction_on_every_sample(name: str) -> None:
    x, _ = held_out(name)
    before, after = run(original(name), x), run(folded(name).model, x)
    np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))


@every_model
def test_same_output_on_every_sample(name: str) -> None:
    x, _ = held_out(name)
    before, after = run(original(name), x), run(folded(name).model, x)
    np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE * np.abs(before).max())


@every_model
def test_same_interface(name: str) -> None:
    before, after = original(name).graph, folded(name).model.graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    onnx.checker.check_model(folded(name).model, full_check=True)


@every_model
def test_any_batch_size(name: str) -> None:
    x, _ = held_out(name)
    whole = run(folded(name).model, x)
    alone = np.concatenate([run(folded(name).model, x[:1]), run(folded(name).model, x[1:8])])
    np.testing.assert_allclose(alone, whole[:8], rtol=0, atol=TOLERANCE * np.abs(whole).max())
