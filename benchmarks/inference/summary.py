"""The Markdown of the comparison of models."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from contest import CONTROL, ORIGINAL, OWN, below, slower

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Rows = Sequence[dict[str, Any]]

KEYS = ("dtype", "level", "threads", "batch")


def markdown(rows: Rows, *, full: bool) -> str:
    """Summary, what is slower, and a table per setting; without ``full`` only those of the first batch and threads."""
    measured = [row for row in rows if row["tools"]]
    groups = list(settings(measured))
    shown = [(key, members) for key, members in groups if full or key[2:] == groups[0][0][2:]]
    text = [*summary(measured), "", *verdict(rows)]
    for key, members in shown:
        text += ["", f"**{key[0]}, {key[1]}, threads {key[2]}, batch {key[3]}**", "", *table(members)]
    return "\n".join([*text, ""])


def settings(rows: Rows) -> Iterator[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Rows by type, level, threads and batch."""
    for key in dict.fromkeys(tuple(row[name] for name in KEYS) for row in rows):
        yield key, [row for row in rows if tuple(row[name] for name in KEYS) == key]


def summary(rows: Rows) -> list[str]:
    """One line per setting and group: bnfold's speed in detail, the others' medians."""
    peers = [name for name in tools_of(rows) if name != OWN]
    text = [
        "| data | level | threads | batch | group | models | bnfold: median | lowest | highest | faster | below 1 "
        "| slower | " + " | ".join(peers) + " |",
        "|---|---|---:|---:|---|---:|---:|---|---|---:|---:|---:|" + "---:|" * len(peers),
    ]
    for key, members in settings(rows):
        for group in dict.fromkeys(row["group"] for row in members):
            chosen = [row for row in members if row["group"] == group and OWN in row["tools"]]
            if chosen:
                text.append(summary_line(key, group, chosen, peers))
    return text


def summary_line(key: tuple[Any, ...], group: str, rows: Rows, peers: Sequence[str]) -> str:
    """One line of the summary."""
    found = {row["model"]: row["tools"][OWN]["speedup"] for row in rows}
    low, high = (pick(found, key=lambda name: found[name][0]) for pick in (min, max))
    cells = [
        *key,
        group,
        len(found),
        f"{statistics.median(value[0] for value in found.values()):.3f}",
        f"{low} {found[low][0]:.3f}",
        f"{high} {found[high][0]:.3f}",
        sum(value[1] > 1 for value in found.values()),
        sum(below(row["tools"]) for row in rows),
        sum(map(slower, rows)),
        *(median_of(rows, name) for name in peers),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def median_of(rows: Rows, name: str) -> str:
    """Median speed of one tool; empty when none of its models ran."""
    found = [row["tools"][name]["speedup"][0] for row in rows if name in row["tools"]]
    return f"{statistics.median(found):.3f}" if found else ""


def verdict(rows: Rows) -> list[str]:
    """How many rows are slower, which ones looked like it, and what was left out."""
    measured = [row for row in rows if OWN in row["tools"]]
    doubtful = [row for row in measured if below(row["tools"])]
    confirmed = [row for row in doubtful if slower(row)]
    text = [
        f"Rows measured: {len(measured)}. Rows whose interval lies wholly below 1: {len(doubtful)}. "
        f"Slower in five new sessions of each as well, by more than the control: **{len(confirmed)}**."
    ]
    for row in doubtful:
        again = cell(row["again"], OWN)
        name = f"{row['model']}, {', '.join(f'{key} {row[key]}' for key in KEYS)}"
        outcome = "**slower**" if slower(row) else "not confirmed"
        text += [""] * (row is doubtful[0])
        control = cell(row["again"], CONTROL)
        text.append(f"- {name}: {cell(row['tools'], OWN)}, then {again} with control {control}: {outcome}")
    why: dict[str, str] = {}
    for row in rows:
        if row.get("why"):
            why.setdefault(f"{row['model']} batch {row['batch']}", row["why"])
    left_out = "; ".join(f"{name} ({reason})" for name, reason in why.items())
    return [*text, "", f"Left out at some or all settings: {left_out}."] if why else text


def table(rows: Rows) -> list[str]:
    """The original's time, each tool's speed against it, and whether bnfold's model is slower."""
    names = [CONTROL, *tools_of(rows)]
    text = ["| model | original | " + " | ".join(names) + " | slower? |"]
    text.append("|---|---:|" + "---:|" * len(names) + "---|")
    for row in rows:
        original = f"{row['tools'][ORIGINAL]['seconds'] * 1e3:.3f} ms"
        mark = "**yes**" if slower(row) else "no"
        cells = [row["model"], original, *(cell(row["tools"], name) for name in names), mark]
        text.append("| " + " | ".join(cells) + " |")
    return text


def tools_of(rows: Rows) -> list[str]:
    """All tools that occur."""
    names = dict.fromkeys(name for row in rows for name in row["tools"])
    return [name for name in names if name not in (ORIGINAL, CONTROL)]


def cell(tools: dict[str, Any], name: str) -> str:
    """Speed with its interval; empty when the tool's model did not run."""
    if name not in tools:
        return ""
    median, low, high = tools[name]["speedup"]
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    where = f"{row['model']} {row['dtype']} batch {row['batch']} threads {row['threads']} {row['level']}"
    found = ", ".join(f"{tool} {result['speedup'][0]:.3f}" for tool, result in row["tools"].items())
    return f"{where}: {found or row.get('why', '')}"
