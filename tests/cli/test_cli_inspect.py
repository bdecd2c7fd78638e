"""``bnfold inspect`` and ``bnfold explain`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from cli_fixtures import Run
from onnx import parser

from bnfold.refusals import CODES


def test_inspect_changes_nothing(run: Run, model: Path) -> None:
    before = model.read_bytes(), model.stat().st_mtime_ns
    assert run("inspect", model).code == 0
    assert (model.read_bytes(), model.stat().st_mtime_ns) == before
    assert sorted(model.parent.iterdir()) == [model]


def test_inspect_never_replaces_the_model_by_the_report(run: Run, model: Path) -> None:
    outcome = run("inspect", model, "--json", model)
    assert outcome.code == 2
    assert onnx.load(model).graph.node


def test_inspect_says_where_every_norm_goes(run: Run, model: Path) -> None:
    outcome = run("inspect", model)
    assert outcome.stderr == ""
    assert f"{model}: 4 operators, 2 batch norms, 0 affine operators" in outcome.stdout
    assert "BatchNormalization  BatchNormalization_1  after Conv  -> Conv_0" in outcome.stdout
    assert "Would keep 1 operator" in outcome.stdout
    assert "BatchNormalization BatchNormalization_3: " in outcome.stdout
    assert "bnfold explain " in outcome.stdout


def test_inspect_verbose_names_the_tensors(run: Run, model: Path) -> None:
    assert "same value in both models: n" in run("inspect", model, "-v").stdout


def test_inspect_json(run: Run, model: Path) -> None:
    plan = json.loads(run("inspect", model, "--json", "-").stdout)
    assert plan["schema"] == "bnfold/report@1"
    assert set(plan) == {"schema", "folded", "kept", "before", "notes", "source"}
    assert [entry["into"] for entry in plan["folded"]] == [["Conv_0"]]
    assert plan["kept"][0]["code"] in CODES


def test_inspect_only_batch_norms(run: Run, tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}, float s = {2}> { c = Conv(x, w)  y = Mul(c, s) }"""
    )
    path = tmp_path / "mul.onnx"
    onnx.save(model, path)
    assert "Would fold 1 operator" in run("inspect", path).stdout
    assert "Would fold 1 operator" not in run("inspect", path, "--only", "batchnorm").stdout
    assert run("inspect", path, "--only", "nothing").code == 2


def test_inspect_of_a_model_without_norms(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    onnx.save(parser.parse_model(text), path)
    assert "There is nothing to fold." in run("inspect", path).stdout


def test_explain_lists_every_code(run: Run) -> None:
    outcome = run("explain")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.stdout.splitlines()] == list(CODES)


@pytest.mark.parametrize("code", CODES)
def test_explain_one_code(run: Run, code: str) -> None:
    outcome = run("explain", code)
    assert outcome.code == 0
    text = " ".join(outcome.stdout.split())
    for part in (CODES[code].meaning, CODES[code].why, CODES[code].advice):
        assert " ".join(part.split()) in text


def test_explain_of_an_unknown_code(run: Run) -> None:
    outcome = run("explain", "pading")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "did you mean 'padding'?" in outcome.stderr
    assert "bnfold explain lists all" in run("explain", "qqqq").stderr


def test_inspect_leaves_alone_what_fold_would(run: Run, model: Path) -> None:
    outcome = run("inspect", model, "--skip", "BatchNormalization_1", "--skip", "BatchNormalisation_1")
    assert "excluded by an option" in outcome.stdout
    assert "did you mean 'BatchNormalization_1'?" in outcome.stderr
    assert "excluded" not in run("inspect", model, "--skip", "BatchNormalization_1", "--skip-code", "excluded").stdout
