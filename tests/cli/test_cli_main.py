"""``bnfold`` itself: exit codes, streams, start-up, help."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bnfold_cli.app import COMMANDS
from bnfold_cli.arguments import dimensions, seconds
from bnfold_cli.output import ProgressBar, columns, paint, size
from cli_fixtures import Run

import bnfold
from bnfold import pipeline
from bnfold.errors import BnfoldError, OptionError, VerificationError, did_you_mean

EAGER = ("onnx", "numpy", "onnxruntime", "typer", "rich", "pydantic", "bnfold.pipeline")


def modules_after(*arguments: str) -> set[str]:
    """Which of the slow modules a command line loads, in a process of its own."""
    code = f"import sys; from bnfold_cli import main; main({list(arguments)!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split()) & set(EAGER)


def test_version_loads_nothing() -> None:
    assert modules_after("--version") == set()


def test_explain_loads_no_library() -> None:
    assert modules_after("explain", "padding") <= {"typer", "pydantic"}


def test_inspect_loads_neither_runtime_nor_rich(model: Path) -> None:
    assert {"onnxruntime", "rich"} & modules_after("inspect", str(model)) == set()


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"bnfold {bnfold.__version__}\n"
    assert run("--version", "fold").stdout == f"bnfold {bnfold.__version__}\n"


def test_help_lists_every_command(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", outcome.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_examples(run: Run, command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert re.search(rf"Examples:\n\n +bnfold {command}", outcome.stdout)
    assert max(map(len, outcome.stdout.splitlines())) <= 100


def test_no_arguments_is_wrong_usage(run: Run) -> None:
    outcome = run()
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "bnfold fold model.onnx -o folded.onnx" in outcome.stderr


def test_unknown_command(run: Run) -> None:
    outcome = run("fodl", "model.onnx")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "fodl" in outcome.stderr
    assert "fold" in outcome.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (VerificationError("not the same"), (1, "bnfold: not the same\n")),
        (BnfoldError("cannot"), (2, "bnfold: cannot\n")),
        (BnfoldError("two\nlines\x1b[2J"), (2, "bnfold: two\\nlines\\x1b[2J\n")),
        (MemoryError(), (2, "not enough memory")),
        (KeyboardInterrupt(), (130, "")),
        (BrokenPipeError(32, "broken pipe"), (141, "")),
        (ZeroDivisionError("oops"), (2, "this is a bug in bnfold")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: tuple[int, str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "inspect", fail)
    monkeypatch.setattr("bnfold_cli.app._discard_stdout", lambda: None)
    outcome = run("inspect", model)
    assert outcome.code == expected[0]
    assert expected[1] in outcome.stderr
    assert outcome.stdout == ""


def test_closed_pipe_is_quiet(model: Path) -> None:
    command = [sys.executable, "-c", "import sys; from bnfold_cli import main; sys.exit(main())", "inspect", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert paint("x", "red", Terminal()) == "\x1b[31mx\x1b[0m"
    assert paint("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert paint("x", "red", Terminal()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red", Terminal()) == "x"


def test_progress_waits_a_second_and_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    cases = ((Terminal(), 0.0, True), (Terminal(), 60.0, False), (io.StringIO(), 0.0, False))
    for stream, after, shown in cases:
        monkeypatch.setattr(sys, "stderr", stream)
        with ProgressBar(after=after) as bar:
            bar.step("[red]writing\x1b[2J", 1, 2)
            bar.fraction("proving", 0.5)
        assert ("proving" in stream.getvalue()) is shown
        assert "\x1b[2J" not in stream.getvalue()


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (76444, "74.7 KiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 52, "4096.0 TiB"),
    ],
)
def test_size(count: int, words: str) -> None:
    assert size(count) == words


def test_columns_align() -> None:
    assert columns([("a", "1"), ("bcd", "10")], right=(1,)) == ["  a     1", "  bcd  10"]
    assert columns([]) == []


@pytest.mark.parametrize(("text", "value"), [("", None), ("90", 90), ("60s", 60), ("5m", 300), ("1.5h", 5400)])
def test_seconds(text: str, value: float | None) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["0", "-1s", "soon", "inf", "nan", "s"])
def test_seconds_refused(text: str) -> None:
    with pytest.raises(OptionError, match="such as 60s"):
        seconds(text)


def test_dimensions() -> None:
    assert dimensions(["N=4", "a=b=2"]) == {"N": 4, "a=b": 2}


def test_did_you_mean() -> None:
    assert did_you_mean("Pading", ["padding", "sign"]) == "; did you mean 'padding'?"
    assert did_you_mean("xyz", ["padding", "sign"]) == ""
