"""``bnfold bench`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import typer
from bnfold_cli.bench import bench, bench_after_fold, beside, headline, numbers, share, warnings
from onnx import parser
from test_bench_models import FOLDED, ORIGINAL
from test_bench_pictures import report as fixed_report
from typer.testing import CliRunner

from bnfold.bench import BenchOptions, BenchReport, Caution, StartRow, session
from bnfold.bench.report import Start
from bnfold.errors import ModelWriteError, OptionError

pytest.importorskip("onnxruntime")

APP = typer.Typer()
APP.command()(bench)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for milliseconds, and start no processes."""
    real = session.bench

    def fast(a: Path, b: Path, options: BenchOptions | None = None, **rest: object) -> BenchReport:
        asked = options or BenchOptions()
        fields = {name: getattr(asked, name) for name in BenchOptions.__slots__}
        return real(a, b, BenchOptions(**{**fields, "budget": 0.02, "warm_up": 0.0, "processes": 0}), **rest)

    monkeypatch.setattr(session, "bench", fast)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "original.onnx", tmp_path / "folded.onnx"]
    for path, text in zip(paths, (ORIGINAL, FOLDED), strict=True):
        onnx.save(parser.parse_model(text), path)
    return [str(path) for path in paths]


def test_table_on_stdout(pair: list[str]) -> None:
    result = CliRunner().invoke(APP, pair, catch_exceptions=False)
    assert result.exit_code == 0
    for word in ("DISABLE_ALL", "ENABLE_ALL", "speed-up", "batch norms", "file size", "Samples at"):
        assert word in result.stdout


def test_json_on_stdout_is_nothing_but_json(pair: list[str]) -> None:
    result = CliRunner().invoke(APP, [*pair, "--json", "-", "--batch", "1,3"], catch_exceptions=False)
    data = json.loads(result.stdout)
    assert [row["batch"] for row in data["rows"]] == [1, 1, 3, 3]


def test_quiet_prints_nothing_and_files_are_written(pair: list[str], tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.svg"), "-q", "--dim", "N=3"]
    result = CliRunner().invoke(APP, [*pair, *files], catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")
    assert json.loads((tmp_path / "b.json").read_text())["schema"] == "bnfold/bench@1"
    assert (tmp_path / "b.svg").read_text().startswith("<svg")


def test_gate_fails_with_one_only_when_slower(pair: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "bench", lambda *_, **__: fixed_report())
    assert CliRunner().invoke(APP, [*pair, "--fail-if-slower", "5%"]).exit_code == 0
    slow = fixed_report()
    object.__setattr__(slow.rows[0], "speedup", type(slow.rows[0].speedup)(0.5, 0.4, 0.6))
    monkeypatch.setattr(session, "bench", lambda *_, **__: slow)
    result = CliRunner().invoke(APP, [*pair, "--fail-if-slower", "5%"])
    assert result.exit_code == 1
    assert "slower by at least 66.7% at ORT_DISABLE_ALL" in result.stderr
    assert CliRunner().invoke(APP, [*pair]).exit_code == 0


def test_after_fold(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_after_fold(Path(pair[0]), Path(pair[1]))
    assert len(found.rows) == 2
    assert "Latency" in capsys.readouterr().out
    bench_after_fold(Path(pair[0]), Path(pair[1]), quiet=True)
    assert capsys.readouterr().out == ""


def test_arguments_are_read() -> None:
    assert numbers("1, 8,8,64", "--batch") == (1, 8, 64)
    assert numbers("", "--batch") == ()
    assert (share("5%"), share("0.05"), share("0")) == (0.05, 0.05, 0.0)


@pytest.mark.parametrize("wrong", ["x", "1,two", "1.5"])
def test_wrong_numbers(wrong: str) -> None:
    with pytest.raises(OptionError, match="whole numbers"):
        numbers(wrong, "--batch")


@pytest.mark.parametrize("wrong", ["", "x%", "-5%", "nan", "inf"])
def test_wrong_shares(wrong: str) -> None:
    with pytest.raises(OptionError, match="expected a share"):
        share(wrong)


def test_file_that_cannot_be_written(pair: list[str], tmp_path: Path) -> None:
    for option in ("--json", "--plot"):
        result = CliRunner().invoke(APP, [*pair, "-q", option, str(tmp_path / "none" / "b.x")])
        assert isinstance(result.exception, ModelWriteError)


def test_no_report_replaces_a_model(pair: list[str]) -> None:
    for option in ("--json", "--plot"):
        assert isinstance(CliRunner().invoke(APP, [*pair, option, pair[0]]).exception, OptionError)


def test_headline_never_quotes_disabled_optimisations() -> None:
    found = fixed_report()
    assert "faster: 2.00x the original's speed" in headline(found)
    object.__setattr__(found.rows[1], "verdict", "no measurable difference")
    assert headline(found).startswith("With onnxruntime's optimisations on: no measurable difference")


def test_warnings_carry_advice_and_place() -> None:
    found = fixed_report()
    object.__setattr__(found, "cautions", (Caution("load", "busy", "stop other programs"),))
    object.__setattr__(found.rows[1], "cautions", (Caution("wide", "wide interval", "raise --budget"),))
    object.__setattr__(found.rows[1], "foreign_nodes", (3, 2))
    assert list(warnings(found)) == [
        "warning: busy; stop other programs",
        "warning: wide interval (ORT_ENABLE_ALL, 1 thread); raise --budget",
        "note: 3 and 2 nodes run on the CPU instead of CPUExecutionProvider (ORT_ENABLE_ALL, 1 thread)",
    ]


def test_side_table_has_start_up_rows() -> None:
    found = fixed_report()
    start = Start(0.2, 0.1, 10**8, 10**7)
    object.__setattr__(found, "starts", (StartRow("ORT_ENABLE_ALL", start, start, 3, 1.0),))
    lines = beside(found)
    assert len(lines) == 8
    assert "200 ms" in lines[1]
    assert "unknown" in lines[-1]
