"""The Markdown of ``quantization.py``."""

from __future__ import annotations

import statistics
from typing import Any

FORMS = ("original", "prepared", "bnfold", "bnfold + prepared")


def markdown(rows: list[dict[str, Any]]) -> str:
    """Norms left, quality and time per form; a summary; what fails, and why."""
    text = [
        "Norms left as float islands / QuantizeLinear nodes / quality / time (speed against the quantised original).",
        "Quality: accuracy in %, mean squared error, or signal to noise in dB against the float model.",
        "",
        "| model | float | " + " | ".join(FORMS) + " |",
        "|---|---:|" + "---:|" * len(FORMS),
    ]
    run = [row for row in rows if any("seconds" in form for form in row.get("forms", {}).values())]
    for row in run:
        cells = [form_cell(row["forms"][form]) for form in FORMS]
        text.append(f"| {row['model']} | {number(row['float'])} | " + " | ".join(cells) + " |")
    complete = [row for row in run if all("seconds" in row["forms"][form] for form in FORMS)]
    if complete:
        cells = [summary_cell([row["forms"][form] for row in complete]) for form in FORMS]
        text.append(f"| **{len(complete)} models, all forms** |  | " + " | ".join(cells) + " |")
    return "\n".join([*text, "", *failures(rows), ""])


def summary_cell(forms: list[dict[str, Any]]) -> str:
    """Sums of norms and QuantizeLinear nodes, median speed."""
    speed = statistics.median(form["speedup"][0] for form in forms)
    return f"{sum(f['norms'] for f in forms)} / {sum(f['quantize_pairs'] for f in forms)} / median {speed:.2f}x"


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """One line per model that the quantizer or onnxruntime cannot handle in some form, with the first reason."""
    text = []
    for row in rows:
        why = {form: found["why"] for form, found in row.get("forms", {}).items() if "why" in found}
        if "why" in row or why:
            which = "" if len(why) in (0, len(FORMS)) else f" ({', '.join(why)})"
            text.append(f"- {row['model']}{which}: {row.get('why') or next(iter(why.values()))}")
    return ["What the quantizer, or onnxruntime with its result, cannot handle:", "", *text] if text else []


def form_cell(form: dict[str, Any]) -> str:
    """One form of one model."""
    if "seconds" not in form:
        return "fails"
    speed = f"{form['seconds'] * 1e3:.3f} ms ({form['speedup'][0]:.2f}x)"
    return f"{form['norms']} / {form['quantize_pairs']} / {number(form['quality'])} / {speed}"


def number(value: float) -> str:
    """Two digits after the point, four when it is small; nothing for infinity."""
    if value == float("inf"):
        return ""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"
