"""Part ``coverage``: norms and affine operators that each tool leaves in each model, and whether the model is right."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from measure import remove, spawn
from tools import HERE, PEERS, Tools

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TOOLS = ("bnfold", *PEERS)


def measure(
    tools: Tools, corpus: Path, work: Path, say: Callable[[str], None], which: Sequence[str] = TOOLS
) -> list[dict[str, Any]]:
    """One row per model: ``{"model", "before": {...}, "after": {tool: {...counts, "right", "why"}}}``."""
    rows = []
    for entry in json.loads((corpus / "manifest.json").read_text())["models"]:
        source = corpus / entry["file"]
        made = {tool: work / f"{tool}-{entry['name']}.onnx" for tool in which}
        why = {tool: spawn(tools.command(tool, source, path), 300).why for tool, path in made.items()}
        written = {tool: path for tool, path in made.items() if not why[tool] and path.exists()}
        recipe = work / "recipe.json"
        recipe.write_text(json.dumps(entry["recipe"]))
        counts = lines(tools, "counting.py", [str(source), *map(str, written.values())])
        verdicts = lines(tools, "check.py", [str(source), str(recipe), *map(str, written.values())])
        after: dict[str, Any] = {tool: {"right": False, "why": text or "wrote nothing"} for tool, text in why.items()}
        crashed = {"right": False, "why": "took onnxruntime down"}
        for number, tool in enumerate(written):
            verdict = verdicts[number] if number < len(verdicts) else crashed
            after[tool] = {**counts[number + 1], **verdict}
        rows.append({"model": entry["name"], "before": counts[0], "after": after})
        say(f"{entry['name']}: {counts[0]['total']} -> " + ", ".join(f"{t} {short(after[t])}" for t in which))
        remove(list(made.values()))
    return rows


def lines(tools: Tools, script: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Run a script of this folder in the peers' environment and read its JSON lines."""
    done = subprocess.run([tools.peers, str(HERE / script), *arguments], capture_output=True, text=True, check=False)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def short(result: dict[str, Any]) -> str:
    """A cell: ``norms+affine``, with a cross when the model is wrong, or a dash when there is none."""
    if "total" not in result:
        return "-"
    return f"{result['norms']}+{result['affine']}" + ("" if result["right"] else " wrong")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line per model, ``norms+affine`` left; totals count a wrong or missing model as untouched."""
    which = list(rows[0]["after"])
    text = ["| model | before | " + " | ".join(which) + " |", "|---|" + "---|" * (len(which) + 1)]
    for row in rows:
        cells = [short(row["after"][tool]) for tool in which]
        before = f"{row['before']['norms']}+{row['before']['affine']}"
        text.append(f"| {row['model']} | {before} | " + " | ".join(cells) + " |")
    totals = [total([usable(row, tool) for row in rows]) for tool in which]
    text.append(f"| **all** | {total([row['before'] for row in rows])} | " + " | ".join(totals) + " |")
    wrong = [str(sum(not row["after"][tool]["right"] for row in rows)) for tool in which]
    text.append("| wrong or missing |  | " + " | ".join(wrong) + " |")
    return "\n".join(text)


def usable(row: dict[str, Any], tool: str) -> dict[str, Any]:
    """What a user has after the tool: its result when it is right, else the model as it was."""
    after: dict[str, Any] = row["after"][tool]
    before: dict[str, Any] = row["before"]
    return after if after["right"] else before


def total(counts: Sequence[dict[str, Any]]) -> str:
    """Sums of norms and affine operators as ``norms+affine``."""
    return f"{sum(c['norms'] for c in counts)}+{sum(c['affine'] for c in counts)}"
