"""Files that are no models, names that attack the terminal: one line, exit 2, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from cli_fixtures import Run, mixed

NOT_MODELS = {
    "missing": None,
    "empty": b"",
    "text": b"this is not a model\n" * 100,
    "truncated": mixed().SerializeToString()[:300],
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "zeros": bytes(1000),
}


@pytest.fixture(params=[*NOT_MODELS, "a folder"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "hostile.onnx"
    if request.param == "a folder":
        path.mkdir()
    elif (content := NOT_MODELS[request.param]) is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["fold", "-o", "{folder}/out.onnx"],
        ["fold", "-o", "{folder}/out.onnx", "--no-verify", "--json", "-"],
        ["fold", "--in-place"],
        ["fold", "--dry-run"],
        ["fold", "--check"],
        ["inspect", "--json", "{folder}/report.json"],
    ],
    ids=" ".join,
)
def test_no_model(run: Run, hostile: Path, command: list[str]) -> None:
    files = sorted(hostile.parent.iterdir())
    content = hostile.read_bytes() if hostile.is_file() else None
    outcome = run(command[0], hostile, *(word.format(folder=hostile.parent) for word in command[1:]))
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("bnfold: ")
    assert outcome.stderr.count("\n") == 1
    assert "hostile.onnx" in outcome.stderr
    assert sorted(hostile.parent.iterdir()) == files
    assert content is None or hostile.read_bytes() == content


def test_name_that_is_a_path_with_escapes(run: Run) -> None:
    outcome = run("inspect", "no\x1b[2Jsuch\nfile.onnx")
    assert outcome.code == 2
    assert "\x1b" not in outcome.stderr
    assert outcome.stderr.count("\n") == 1


ATTACK = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\n::error::x\u202e[red]x[/red]"


@pytest.fixture
def attack(tmp_path: Path) -> Path:
    """Every name that can be printed moves the cursor, breaks the line, turns the text or is rich markup."""
    model = mixed()
    renamed = {"c": f"c{ATTACK}", "n": f"n{ATTACK}", "r": f"r{ATTACK}"}
    for node in model.graph.node:
        node.name = f"{node.name}{ATTACK}"
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    path = tmp_path / "attack.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["fold", "--dry-run", "-v"],
        ["fold", "-o", "{folder}/out.onnx", "--no-verify", "-v"],
        ["fold", "--dry-run", "--skip", ATTACK],
        ["inspect", "-v"],
    ],
    ids=["plan", "fold", "skip", "inspect"],
)
def test_names_cannot_reach_the_terminal(run: Run, attack: Path, command: list[str]) -> None:
    outcome = run(command[0], attack, *(word.format(folder=attack.parent) for word in command[1:]))
    assert outcome.code == 0
    text = outcome.stdout + outcome.stderr
    assert [character for character in text if not character.isprintable() and character != "\n"] == []
    assert "[red]x[/red]" in text
    assert not any(line.startswith("::") for line in text.splitlines())


def test_json_keeps_the_report_parsable(run: Run, attack: Path) -> None:
    outcome = run("fold", attack, "--dry-run", "--json", "-")
    assert "\x1b" not in outcome.stdout
    assert len(json.loads(outcome.stdout)["folded"]) == 1
