"""The Markdown of the parts that time processes, and of the accuracy of folded weights."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def processes(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: seconds, ratio to bnfold, peak memory for each tool on each model."""
    text = []
    for row in rows:
        text += [f"**{row['model']}, {row['cache']} file cache**", "", "| tool | time | against bnfold | peak memory |"]
        text.append("|---|---:|---:|---:|")
        own = next((cost for cost in row["costs"] if cost["tool"] in ("bnfold", "bnfold: 300 nodes")), None)
        for cost in row["costs"]:
            text.append("| " + " | ".join(cells(cost, own)) + " |")
        if row["cache"] == "cold" and (share := cached(row)) > 0.01:
            text += ["", f"Up to {share:.0%} of the input could not be dropped from the cache."]
        text.append("")
    return "\n".join(text)


def cached(row: dict[str, Any]) -> float:
    """Largest share of the input that was in the page cache when a process began."""
    return max(run["cached"] for cost in row["costs"] for run in cost["runs"])


def cells(cost: dict[str, Any], own: dict[str, Any] | None) -> tuple[str, str, str, str]:
    """Tool, time, ratio and memory as text."""
    if cost["seconds"] is None:
        return cost["tool"], cost["why"], "", ""
    known = own is not None and own["seconds"] is not None
    ratio = f"{cost['seconds'] / own['seconds']:.2f}x" if known and own is not None else ""
    return cost["tool"], f"{cost['seconds']:.3f} s", ratio, f"{cost['peak'] / 1e6:.0f} MB"


def profile(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what is spent, step by step, and the floor."""
    text = []
    for row in rows:
        text += [f"**{row['model']}**", "", "| | seconds |", "|---|---:|"]
        text += [f"| process: {name} | {seconds:.3f} |" for name, seconds in row["processes"].items()]
        text += [f"| floor inside: {name} | {seconds:.3f} |" for name, seconds in row["floor"].items()]
        text += [f"| spent inside: {name} | {seconds:.3f} |" for name, seconds in row["spent"].items()]
        text.append("")
    return "\n".join(text)


def corpus(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: total over the corpus and bnfold's worst model against each tool."""
    names = [cost["tool"] for cost in rows[0]["costs"]]
    times = {
        n: {row["model"]: cost["seconds"] for row in rows for cost in row["costs"] if cost["tool"] == n} for n in names
    }
    text = [
        "| tool | total | median | models it handled | bnfold is faster by, median | worst model for bnfold |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name in names:
        good = {model: s for model, s in times[name].items() if s is not None}
        shared = {m: s / times["bnfold"][m] for m, s in good.items() if times.get("bnfold", {}).get(m)}
        worst = min(shared, key=lambda m: shared[m], default="")
        faster = f"{statistics.median(shared.values()):.2f}x" if shared else ""
        text.append(
            f"| {name} | {sum(good.values()):.2f} s | {statistics.median(good.values() or [0]):.3f} s "
            f"| {len(good)} of {len(rows)} | {faster} | {f'{worst} {shared[worst]:.2f}x' if worst else ''} |"
        )
    return "\n".join(text)


def accuracy(rows: Any) -> str:
    """Markdown: largest error of weights / of biases / of outputs in ulp, by case and tool; a dash is "not folded"."""
    names = list(dict.fromkeys(row["tool"] for row in rows))
    found = {(row["case"], row["tool"]): row for row in rows}
    text = ["Largest error in ulp: weights / biases / outputs.", ""]
    text += ["| case | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for case in dict.fromkeys(row["case"] for row in rows):
        text.append(f"| {case} | " + " | ".join(accuracy_cell(found[case, name]) for name in names) + " |")
    return "\n".join(text)


def accuracy_cell(row: dict[str, Any]) -> str:
    """One cell of the accuracy table."""
    if not row["folded"]:
        return "-"
    output = "" if row["output"] is None else f" / {row['output']:.3f}"
    return f"{row['weight_max']:.3f} / {row['bias_max']:.2f}{output}"
