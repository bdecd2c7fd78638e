"""``bnfold verify`` as a user runs it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner
from verify_models import Pair

from bnfold.report import dumps
from bnfold.verify import verify as compare

verify = pytest.importorskip("bnfold_cli.verify", reason="bnfold is not installed")
app = pytest.importorskip("bnfold_cli.app").build(("verify", "explain"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = Pair()
    onnx.save(pair.original(), "a.onnx")
    onnx.save(pair.folded(), "b.onnx")
    scale = pair.scale()
    scale[3] *= 1.01
    onnx.save(pair.folded(scale=scale), "wrong.onnx")
    np.save("x.npy", np.zeros((2, 4, 9, 9), np.float32))
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, ["verify", *arguments])


def test_equal(files):
    result = run("a.onnx", "b.onnx")
    assert result.exit_code == 0
    assert result.stdout.startswith("equal: 1 site agrees")
    assert "rounding alone" in result.stdout
    assert "1 of 1 site agree" in result.stdout


def test_different(files):
    result = run("a.onnx", "wrong.onnx")
    assert result.exit_code == 1
    assert "different: channel 3 of n differs by" in result.stdout
    assert "BatchNormalization:n" in result.stdout


def test_verbose_shows_all_metrics(files):
    result = run("a.onnx", "b.onnx", "-v", "--seed", "3", "--dim", "N=2", "--input", "x=x.npy", "--budget", "60s")
    assert result.exit_code == 0
    for word in ("SNR", "cosine", "ULP", "RMSE", "worst at", "seed 3"):
        assert word in result.stdout


@pytest.mark.parametrize(("model", "code"), [("b.onnx", 0), ("wrong.onnx", 1)])
def test_json_alone_is_on_stdout(files, model, code):
    result = run("a.onnx", model, "--json", "-")
    assert result.exit_code == code
    report = json.loads(result.stdout)
    assert report["equal"] is (code == 0)
    assert report["sites"][0]["nodes"] == ["BatchNormalization:n"]
    assert bool(result.stderr) is (code == 1)


def test_quiet(files):
    assert run("a.onnx", "b.onnx", "-q", "--json", "r.json").output == ""
    assert json.loads((files / "r.json").read_text())["verdict"] == "equal"
    result = run("a.onnx", "wrong.onnx", "-q")
    assert (result.stdout, result.exit_code) == ("", 1)
    assert result.stderr.startswith("bnfold: channel 3")


def test_out_of_time_cannot_tell(files):
    result = run("a.onnx", "b.onnx", "--budget", "0.000001s")
    assert result.exit_code == 2
    assert "not checked:" in result.stdout


def test_isolated(files):
    assert run("a.onnx", "b.onnx", "--isolated").exit_code == 0


@pytest.mark.parametrize("tolerance", [("--rtol", "1e-9"), ("--atol", "1e-12")])
def test_tolerances(files, tolerance):
    assert run("a.onnx", "b.onnx", *tolerance).exit_code == 1


def test_every_line_of_the_printed_report_is_printable(files):
    report = compare("a.onnx", "wrong.onnx")
    assert all(line.isprintable() for line in verify.lines(report, verbose=True))
    assert json.loads(dumps(report))["blamed"] == ["BatchNormalization:n"]
