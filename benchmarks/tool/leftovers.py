"""Part ``coverage``: norms and affine operators that each tool leaves in each model, and whether the model is right."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from collection import GROUPS, Entry, entries
from measure import remove, spawn
from tools import FROZEN, GELU, HERE, PEERS, Tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from timing import Settings

OWN = (GELU, "bnfold")
TOOLS = (*OWN, *PEERS)
FOOTNOTE = """\
`*`: the tool took inputs off the model, initializers that callers may override. `bnfold --freeze` does the same, so
those cells compare with bnfold's cell with the asterisk. `--fold-gelu` folds all that is exactly foldable; as it comes,
bnfold leaves the operators of a written-out Gelu, since runtimes fuse them and are slower without one. A fused operator
counts as the affine operators inside it (a Gelu as the Div, Add and Mul it is made of), since they are hidden, not
folded. A wrong or missing model counts as the model before."""


def measure(tools: Tools, settings: Settings) -> Iterator[dict[str, Any]]:
    """One row per model: ``{"model", "group", "before": counts, "after": {tool: {...counts, "right", "why"}}}``."""
    models = list(entries(GROUPS, settings.work))
    for entry in models[: 3 if settings.quick else None]:
        if settings.late(entry.name):
            return
        recipe = settings.work / "recipe.json"
        recipe.write_text(json.dumps(entry.recipe))
        before, after = results(entry, recipe, TOOLS, tools, settings)
        if any(result.get("narrowed") for result in after.values()):
            after |= results(entry, recipe, (FROZEN,), tools, settings)[1]
        row = {"model": entry.name, "group": entry.group, "before": before, "after": after}
        settings.say(f"{entry.name}: {left(before)} -> " + ", ".join(f"{t} {cell(row, t)}" for t in TOOLS))
        yield row


def results(
    entry: Entry, recipe: Path, which: Sequence[str], tools: Tools, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Counts of the model as it is, and by tool what was left."""
    made = {tool: settings.work / f"{number}-{entry.name}.onnx" for number, tool in enumerate(which)}
    why = {tool: spawn(tools.command(tool, entry.path, path), settings.timeout).why for tool, path in made.items()}
    written = {tool: path for tool, path in made.items() if not why[tool] and path.exists()}
    files = list(map(str, written.values()))
    before, *counts = lines(tools, "counting.py", [str(entry.path), *files])
    runs, *verdicts = lines(tools, "check.py", [str(entry.path), str(recipe), *files]) or [{}]
    if not runs:
        raise ValueError(f"{entry.path} does not run on the inputs of its recipe {entry.recipe}")
    after: dict[str, Any] = {tool: {"right": False, "why": text or "wrote nothing"} for tool, text in why.items()}
    crashed = {"right": False, "why": "took onnxruntime down"}
    for number, tool in enumerate(written):
        verdict = verdicts[number] if number < len(verdicts) else crashed
        found = counts[number]
        found["hidden"] = max(0, found["fused"] - before["fused"])
        found["narrowed"] = bool(set(before["inputs"]) - set(found["inputs"]))
        after[tool] = {**found, **verdict}
    remove(list(made.values()))
    return before, after


def lines(tools: Tools, script: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Run a script of this folder in the peers' environment and read its JSON lines."""
    done = subprocess.run([tools.peers, str(HERE / script), *arguments], capture_output=True, text=True, check=False)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def affine(counts: dict[str, Any]) -> int:
    """Affine operators that are left, those hidden in fused operators among them."""
    return int(counts["affine"]) + int(counts.get("hidden", 0))


def left(counts: dict[str, Any]) -> str:
    """``norms+affine``."""
    return f"{counts['norms']}+{affine(counts)}"


def total(counts: dict[str, Any]) -> int:
    """Norms and affine operators."""
    return int(counts["norms"]) + affine(counts)


def usable(row: dict[str, Any], tool: str, *, narrowed: bool) -> dict[str, Any]:
    """What a user has after the tool: its result when it is right, else the model as it was.

    ``narrowed`` says whether a result counts that lost inputs; it is bnfold's with ``--freeze`` then.
    """
    if narrowed and tool in OWN and FROZEN in row["after"]:
        tool = FROZEN
    after: dict[str, Any] = row["after"][tool]
    before: dict[str, Any] = row["before"]
    return after if after["right"] and (narrowed or not after.get("narrowed")) else before


def fewer(row: dict[str, Any], tool: str, bnfold: str = GELU) -> int:
    """1 when bnfold leaves fewer than the tool, -1 when it leaves more, 0 when as many; like with like."""
    narrowed = bool(row["after"][tool].get("narrowed"))
    mine, theirs = (total(usable(row, name, narrowed=narrowed)) for name in (bnfold, tool))
    return (mine < theirs) - (mine > theirs)


# -- tables ------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line per model, totals, and in how many models bnfold leaves more than the best tool."""
    text = ["| model | before | " + " | ".join(TOOLS) + " |", "|---|" + "---|" * (len(TOOLS) + 1)]
    for row in rows:
        cells = [cell(row, tool) for tool in TOOLS]
        text.append(f"| {row['model']} | {left(row['before'])} | " + " | ".join(cells) + " |")
    before = sums([row["before"] for row in rows])
    kept, all_of = (
        [sums([usable(row, tool, narrowed=narrowed) for row in rows]) for tool in TOOLS] for narrowed in (False, True)
    )
    text.append(f"| **all, inputs as they were** | {before} | " + " | ".join(kept) + " |")
    text.append(f"| **all, with `*`** | {before} | " + " | ".join(all_of) + " |")
    wrong = [str(sum(not row["after"][tool]["right"] for row in rows)) for tool in TOOLS]
    text.append("| wrong or missing |  | " + " | ".join(wrong) + " |")
    for title, sign in ((f"models where {GELU} leaves fewer", 1), (f"models where {GELU} leaves more", -1)):
        counts = [str(sum(fewer(row, tool) == sign for row in rows)) for tool in PEERS]
        text.append(f"| {title} |" + "  |" * (len(OWN) + 1) + "".join(f" {n} |" for n in counts))
    more = {own: [row["model"] for row in rows if any(fewer(row, tool, own) < 0 for tool in PEERS)] for own in OWN}
    found = [
        f"**{len(names)}**{' (' + ', '.join(names) + ')' if names else ''} for `{own}`" for own, names in more.items()
    ]
    verdict = f"Models where more is left than by the best right result of any other tool: {', '.join(found)}."
    return "\n".join([*text, "", verdict, "", FOOTNOTE])


def cell(row: dict[str, Any], tool: str) -> str:
    """``norms+affine``, what is wrong with it, and for bnfold that with ``--freeze`` where a tool took inputs off."""
    after = row["after"][tool]
    if "norms" not in after:
        return "-"
    text = left(after) + ("*" if after["narrowed"] else "") + ("" if after["right"] else " wrong")
    frozen = row["after"].get(FROZEN) if tool in OWN else None
    return f"{text}, {left(frozen)}*" if frozen and "norms" in frozen else text


def sums(counts: Sequence[dict[str, Any]]) -> str:
    """Sums of norms and affine operators as ``norms+affine``."""
    return f"{sum(c['norms'] for c in counts)}+{sum(map(affine, counts))}"
