"""``bnfold fold`` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_fixtures import Run, mixed
from helpers import build

from bnfold import pipeline, repair
from bnfold.verify.report import VerifyReport

# What must not happen: a usage error that changes a file, and a failed proof that does.

REFUSED = {
    "no destination": (["{model}"], "-o OUT.onnx, or --in-place"),
    "two destinations": (["{model}", "-o", "{out}", "--in-place"], "exclude each other"),
    "the input itself": (["{model}", "-o", "{model}"], "is the input itself"),
    "the input by another name": (["{model}", "-o", "{folder}/./model.onnx"], "is the input itself"),
    "report over the input": (["{model}", "-o", "{out}", "--json", "{model}"], "give the report another name"),
    "report over the output": (["{model}", "-o", "{out}", "--json", "{out}"], "give the report another name"),
    "plan over the input": (["{model}", "--dry-run", "--json", "{model}"], "give the report another name"),
    "bench of nothing": (["{model}", "--dry-run", "--bench"], "needs -o OUT.onnx"),
    "bench in place": (["{model}", "--in-place", "--bench"], "needs -o OUT.onnx"),
    "bench and JSON on stdout": (["{model}", "-o", "{out}", "--bench", "--json", "-"], "give --json a file"),
    "unknown option": (["{model}", "--fast"], "No such option"),
    "no input": ([], "Missing argument"),
    "two inputs": (["{model}", "{model}", "-o", "{out}"], "unexpected extra argument"),
    "unknown --only": (["{model}", "-o", "{out}", "--only", "batchnrom"], "did you mean 'batchnorm'?"),
    "unknown code": (["{model}", "-o", "{out}", "--no-verify", "--skip-code", "paddin"], "does not exist"),
    "a dimension without size": (["{model}", "-o", "{out}", "--dim", "N"], "NAME=NUMBER"),
    "a dimension of zero": (["{model}", "-o", "{out}", "--dim", "N=0"], "NAME=NUMBER"),
    "a strange time": (["{model}", "-o", "{out}", "--budget", "soon"], "such as 60s"),
    "a negative tolerance": (["{model}", "-o", "{out}", "--rtol", "-1"], "not negative"),
    "a tolerance that is no number": (["{model}", "-o", "{out}", "--atol", "nan"], "not negative"),
    "output in no folder": (["{model}", "-o", "{folder}/nowhere/o.onnx", "--no-verify"], "there is no folder"),
    "output is a folder": (["{model}", "-o", "{folder}", "--no-verify"], "is a directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_line_and_nothing_changed(run: Run, model: Path, case: str) -> None:
    arguments, words = REFUSED[case]
    before = model.read_bytes()
    known = {"model": model, "out": model.parent / "out.onnx", "folder": model.parent}
    outcome = run("fold", *(argument.format(**known) for argument in arguments))
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert words in outcome.stderr
    assert outcome.stderr.startswith("bnfold: ")
    assert outcome.stderr.count("\n") == 1
    assert model.read_bytes() == before
    assert sorted(model.parent.iterdir()) == [model]


def answer(monkeypatch: pytest.MonkeyPatch, verdict: str, **fields: Any) -> None:
    """Let every proof come out like this."""
    report = VerifyReport(verdict, f"the proof says {verdict}", equal=verdict == "equal", **fields)
    monkeypatch.setattr(repair, "_prove", lambda *_: report)


@pytest.mark.parametrize("verdict", ["different", "inconclusive"])
@pytest.mark.parametrize("where", ["-o", "--in-place"])
def test_failed_proof_leaves_every_file_as_it_was(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, where: str
) -> None:
    answer(monkeypatch, verdict)
    old = model.parent / "old.onnx"
    shutil.copy(model, old)
    before = model.read_bytes()
    outcome = run("fold", model, "--strict", *([where, old] if where == "-o" else [where]))
    assert outcome.code == 1
    assert outcome.stdout == ""
    assert f"the proof says {verdict}" in outcome.stderr
    assert (model.read_bytes(), old.read_bytes()) == (before, before)
    assert sorted(model.parent.iterdir()) == [model, old]


def test_interrupted_run_leaves_nothing_behind(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repair, "_prove", interrupt)
    outcome = run("fold", model, "-o", model.parent / "out.onnx")
    assert outcome.code == 130
    assert sorted(model.parent.iterdir()) == [model]


def test_missing_runtime_is_said_with_the_way_out(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = model.parent / "out.onnx"
    outcome = run("fold", model, "-o", out)
    assert outcome.code == 2
    assert 'pip install "bnfold[cpu]"' in outcome.stderr
    assert "--no-verify" in outcome.stderr
    assert not out.exists()
    assert run("fold", model, "-o", out, "--no-verify").code == 0


# What does happen.


def test_folds_proves_writes_and_says_so(run: Run, model: Path) -> None:
    out = model.parent / "out.onnx"
    outcome = run("fold", model, "-o", out)
    assert (outcome.code, outcome.stderr) == (0, "")
    for words in (
        "Folded 1 of 2 batch norms",
        "1  BatchNormalization  after Conv",
        "Kept 1 operator",
        "shift: ",
        "BatchNormalization_3",
        "Proof: equal",
        "before",
        "after",
        f"Wrote {out}",
    ):
        assert words in outcome.stdout
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv", "Relu", "BatchNormalization"]


def test_verbose_names_every_fold_and_measurement(run: Run, model: Path) -> None:
    outcome = run("fold", model, "-o", model.parent / "out.onnx", "-v")
    assert "BatchNormalization_1  after Conv  -> Conv_0" in outcome.stdout
    assert "output y" in outcome.stdout
    assert "rounding alone" in outcome.stdout


def test_quiet_prints_nothing(run: Run, model: Path) -> None:
    out = model.parent / "out.onnx"
    outcome = run("fold", model, "-o", out, "--no-verify", "-q")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "")
    assert out.exists()


def test_in_place_replaces_the_input(run: Run, model: Path) -> None:
    assert run("fold", model, "--in-place", "--no-verify").code == 0
    assert len(onnx.load(model).graph.node) == 3
    assert sorted(model.parent.iterdir()) == [model]
    assert run("fold", model, "--check").code == 0


def test_no_proof_is_said(run: Run, model: Path) -> None:
    assert "Proof: left out (--no-verify)" in run("fold", model, "-o", model.parent / "o.onnx", "--no-verify").stdout


@pytest.mark.parametrize("extra", [["-o", "{out}"], []])
def test_dry_run_writes_nothing(run: Run, model: Path, extra: list[str]) -> None:
    before = model.read_bytes()
    out = model.parent / "out.onnx"
    outcome = run("fold", model, "--dry-run", *(word.format(out=out) for word in extra))
    assert outcome.code == 0
    assert "Would fold 1 of 2 batch norms" in outcome.stdout
    assert "Nothing was written." in outcome.stdout
    assert sorted(model.parent.iterdir()) == [model]
    assert model.read_bytes() == before


def test_check_fails_while_something_would_fold(run: Run, model: Path) -> None:
    assert run("fold", model, "--check").code == 1
    outcome = run("fold", model, "--check", "--skip", "BatchNormalization_1")
    assert outcome.code == 0
    assert "There is nothing to fold." in outcome.stdout
    assert sorted(model.parent.iterdir()) == [model]


REPORT = {
    "schema": str,
    "folded": list,
    "kept": list,
    "before": dict,
    "after": dict,
    "withdrawn": list,
    "verification": dict | None,
    "notes": list,
    "source": str,
    "files": list,
    "versions": dict,
}


def test_json_report(run: Run, model: Path) -> None:
    out, target = model.parent / "out.onnx", model.parent / "report.json"
    outcome = run("fold", model, "-o", out, "--json", target, "--no-verify")
    assert outcome.code == 0
    assert "Folded 1 of 2" in outcome.stdout
    report = json.loads(target.read_text(encoding="utf-8"))
    assert next(iter(report)) == "schema"
    assert report["schema"] == "bnfold/report@1"
    assert {key: isinstance(report[key], kind) for key, kind in REPORT.items()} == dict.fromkeys(REPORT, True)
    assert set(report["folded"][0]) == {"node", "operator", "into", "route", "tensor", "scope"}
    assert set(report["kept"][0]) == {"node", "operator", "code", "reason", "blocking_node", "scope"}
    assert set(report["before"]) == {"nodes", "batch_norms", "affine_operators", "parameters", "file_bytes"}
    assert report["after"]["file_bytes"] == out.stat().st_size
    assert report["files"] == [str(out)]
    assert "onnx" in report["versions"]


def test_json_on_stdout_is_nothing_but_json(run: Run, model: Path) -> None:
    outcome = run("fold", model, "-o", model.parent / "out.onnx", "--json", "-")
    report = json.loads(outcome.stdout)
    assert report["verification"]["equal"] is True
    assert outcome.stderr == ""


def test_json_of_a_plan(run: Run, model: Path) -> None:
    plan = json.loads(run("fold", model, "--dry-run", "--json", "-").stdout)
    assert [entry["node"] for entry in plan["folded"]] == ["BatchNormalization_1"]
    assert "after" not in plan


def test_report_that_cannot_be_written(run: Run, model: Path) -> None:
    outcome = run("fold", model, "--dry-run", "--json", model.parent / "nowhere" / "report.json")
    assert outcome.code == 2
    assert "the report cannot be written" in outcome.stderr


def test_skip_leaves_a_node_alone(run: Run, model: Path) -> None:
    out = model.parent / "out.onnx"
    outcome = run("fold", model, "-o", out, "--no-verify", "--skip", "BatchNormalization_1")
    assert "Folded 0 of 2" in outcome.stdout
    assert "excluded: " in outcome.stdout
    assert len(onnx.load(out).graph.node) == 4


def test_gelus_fold_only_when_asked_to(run: Run, tmp_path: Path) -> None:
    nodes = (
        "c = Conv(x, W)\nd = Div(c, r)\ne = Erf(d)\na = Add(e, one)\nm = Mul(c, a)\ng = Mul(m, half)\ny = Conv(g, V)"
    )
    numbers = {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    path = tmp_path / "gelu.onnx"
    onnx.save(build("float[2,4,5,5] x", nodes, W=(4, 4, 1, 1), V=(3, 4, 1, 1), **numbers), path)
    assert "Kept 3 operators" in run("fold", path, "-o", tmp_path / "out.onnx", "--no-verify").stdout
    assert "Kept 2 operators" in run("fold", path, "-o", tmp_path / "out.onnx", "--no-verify", "--fold-gelu").stdout


def test_skip_of_an_unknown_node_warns(run: Run, model: Path) -> None:
    outcome = run("fold", model, "--dry-run", "--skip", "BatchNormalisation_1")
    assert "did you mean 'BatchNormalization_1'?" in outcome.stderr


def test_skipped_codes_are_not_listed(run: Run, model: Path) -> None:
    assert "Kept 1 operator" in run("fold", model, "--dry-run").stdout
    assert "Kept" not in run("fold", model, "--dry-run", "--skip-code", "shift").stdout


def test_options_of_the_proof_arrive(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def prove(_original: object, _result: object, _folding: object, options: pipeline.FoldOptions) -> VerifyReport:
        seen.append(options.verification)
        return VerifyReport("equal", "", equal=True)

    monkeypatch.setattr(repair, "_prove", prove)
    words = "--seed 7 --dim N=4 --dim H=8 --input x=a.npy --rtol 1e-3 --atol 0 --budget 2m --provider cpu"
    assert run("fold", model, "-o", model.parent / "out.onnx", *words.split()).code == 0
    options = seen[0]
    assert options is not None
    assert (options.seed, options.dims, options.inputs) == (7, {"N": 4, "H": 8}, ("x=a.npy",))
    assert (options.rtol, options.atol, options.budget) == (1e-3, 0.0, 120.0)
    assert options.provider.name == "CPUExecutionProvider"


def test_bench_follows(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path, Path]] = []
    monkeypatch.setattr("bnfold_cli.bench.bench_after_fold", lambda a, b, **_: calls.append((a, b)))
    out = model.parent / "out.onnx"
    assert run("fold", model, "-o", out, "--no-verify", "--bench").code == 0
    assert calls == [(model, out)]


def test_long_lists_are_cut_and_say_so(run: Run, tmp_path: Path) -> None:
    model = mixed()
    last = model.graph.node[-1]
    last.output[0] = "t0"
    for number in range(12):
        source = f"t{number}"
        relu = model.graph.node.add(op_type="Relu", input=[source], output=[f"q{number}"])
        norm = model.graph.node.add()
        norm.CopyFrom(last)
        norm.name = f"late_{number}"
        norm.input[0] = relu.output[0]
        norm.output[0] = "y" if number == 11 else f"t{number + 1}"
    path = tmp_path / "long.onnx"
    onnx.save(model, path)
    assert "and 3 more; -v lists all" in run("fold", path, "--dry-run").stdout
    assert "late_11" in run("fold", path, "--dry-run", "-v").stdout
