"""Part ``growth``: time and memory against the number of nodes and of bytes, with the fits.

A point is one model and the costs of every tool on it. Two figures say how a tool grows: the exponent, which is the
least-squares slope of log(cost) over log(size) at the large end (1 is a straight line, 2 is quadratic), and
``fixed + rate * size`` over all sizes, fitted so that relative errors count the same everywhere.
"""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any

from timing import Settings, bytes_of, discard, generated, jobs
from tools import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools import Tools

    Points = Sequence[tuple[float, float]]

TOOLS = ("bnfold", "cp")
NODES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
INLINE = (1, 10, 100, 472, 1_000, 2_100)  # MB; a protobuf message ends at 2,147
EXTERNAL = (2_000, 4_000, 8_000)
LARGE_END = 10  # the exponent is of sizes within this factor of the largest
COPIES = 2.2  # disk space a size needs, in its own bytes: the model, one result, and room


def measure(tools: Tools, settings: Settings) -> Iterator[dict[str, Any]]:
    """Costs per size, smallest first; a tool that failed or ran out of time is not tried on anything larger."""
    series = [("nodes", "nodes", NODES), ("bytes", "bytes", INLINE), ("bytes", "bytes-external", EXTERNAL)]
    for axis, kind, sizes in series[: 2 if settings.quick else None]:
        dropped: set[str] = set()
        for size in sizes[: 3 if settings.quick else None]:
            title = f"{size:,} {'nodes' if axis == 'nodes' else 'MB'}"
            if settings.late(title):
                return
            if axis == "bytes" and (missing := size * 1e6 * COPIES - shutil.disk_usage(CACHE).free) > 0:
                settings.say(f"{title}: left out, {missing / 1e9:.0f} GB of disk space are missing")
                continue
            source = generated(kind, size // 3 if axis == "nodes" else size)
            costs = settings.costs(
                [job for job in jobs(tools, source, settings.work, settings.tools) if job.tool not in dropped]
            )
            dropped |= {cost["tool"] for cost in costs if cost["seconds"] is None}
            yield {"axis": axis, "kind": kind, "size": size, "bytes": bytes_of(source), "costs": costs}
            settings.say(f"{title}: " + ", ".join(f"{c['tool']} {c['seconds'] or c['why']}" for c in costs))
            discard(source, settings)


def lines(points: Sequence[dict[str, Any]], figure: str) -> dict[str, list[tuple[float, float]]]:
    """(size, figure) by tool, in order of size; ``figure`` is "seconds" or "peak"."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point in sorted(points, key=lambda point: point["size"]):
        for cost in point["costs"]:
            if cost["seconds"] is not None:
                found.setdefault(cost["tool"], []).append((point["size"], cost[figure]))
    return found


def exponent(points: Points) -> float | None:
    """Least-squares slope of log(cost) over log(size) at the large end; None with fewer than two sizes there."""
    largest = max(size for size, _ in points)
    logs = [(math.log(size), math.log(cost)) for size, cost in points if size * LARGE_END >= largest]
    centre, height = (sum(pair[i] for pair in logs) / len(logs) for i in (0, 1))
    spread = sum((x - centre) ** 2 for x, _ in logs)
    return sum((x - centre) * (y - height) for x, y in logs) / spread if spread else None


def straight(points: Points) -> tuple[float, float, float] | None:
    """``fixed``, ``rate`` and the largest relative deviation of the line ``fixed + rate * size``.

    Least squares with weights 1/cost^2: minimises the sum of ((fixed + rate * size) / cost - 1)^2.
    """
    if len({size for size, _ in points}) < 3:
        return None
    rows = [(1 / cost, size / cost) for size, cost in points]
    aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(row[i] for row in rows) for i in (0, 1))
    bottom = aa * bb - ab * ab
    fixed, rate = (a * bb - b * ab) / bottom, (b * aa - a * ab) / bottom
    return fixed, rate, max(abs((fixed + rate * size) / cost - 1) for size, cost in points)


def text(rows: Sequence[dict[str, Any]], pictures: dict[str, str]) -> str:
    """Markdown: a table of time and one of memory per axis, the fits in words, and the picture where there is one."""
    parts = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        points = [row for row in rows if row["axis"] == axis]
        parts += [f"**{'Nodes' if axis == 'nodes' else 'Bytes'}**", ""]
        if axis in pictures:
            parts += [f"![Time and memory against the number of {axis}]({pictures[axis]})", ""]
        parts += [*table(points, "seconds"), "", *table(points, "peak"), ""]
        parts += [*fits(points), ""]
    return "\n".join(parts).rstrip()


def table(points: Sequence[dict[str, Any]], figure: str) -> list[str]:
    """One line per size, one column per tool; the exponents are in the last line."""
    found = lines(points, figure)
    axis, rounds = points[0]["axis"], max(len(cost["runs"]) for point in points for cost in point["costs"])
    title = f"time, median of up to {rounds}" if figure == "seconds" else "peak memory"
    text = [f"| {axis}: {title} | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    for point in points:
        costs = {cost["tool"]: cost for cost in point["costs"]}
        text.append(f"| {size_text(point)} | " + " | ".join(cell(costs.get(tool), figure) for tool in found) + " |")
    slopes = [exponent(values) for values in found.values()]
    text.append("| exponent | " + " | ".join("" if s is None else f"{s:.2f}" for s in slopes) + " |")
    return text


def cell(cost: dict[str, Any] | None, figure: str) -> str:
    """Seconds or megabytes; why not, where the tool failed; empty where it was not tried."""
    if cost is None:
        return ""
    if cost["seconds"] is None:
        return str(cost["why"]) if figure == "seconds" else ""
    if figure == "peak":
        return f"{cost['peak'] / 1e6:.0f} MB"
    return f"{cost['seconds']:.2f} s" if cost["seconds"] >= 0.1 else f"{cost['seconds'] * 1e3:.0f} ms"


def size_text(point: dict[str, Any]) -> str:
    """The size with its unit, and where the weights are."""
    if point["axis"] == "nodes":
        return f"{point['size']:,}"
    return f"{point['size']:,} MB {'external' if point['kind'].endswith('external') else 'inline'}"


def fits(points: Sequence[dict[str, Any]]) -> list[str]:
    """The straight line of every tool and figure, one sentence each."""
    text = []
    for figure, unit, small in (("seconds", "s", ("µs per node", 1e6)), ("peak", "MB", ("KB per node", 1e-3))):
        for tool, values in lines(points, figure).items():
            line = straight(values)
            if line is None:
                continue
            fixed, rate, off = line
            fixed_text = f"{fixed:.2f} s" if figure == "seconds" else f"{fixed / 1e6:.0f} {unit}"
            if points[0]["axis"] == "nodes":
                rate_text = f"{rate * small[1]:.1f} {small[0]}"
            else:
                rate_text = f"{rate * 1e3:.2f} s per GB" if figure == "seconds" else f"{rate / 1e3:.1f} MB per GB"
            what = "time" if figure == "seconds" else "memory"
            text.append(f"- {tool}, {what}: {fixed_text} + {rate_text}; no size is further off than {off:.0%}")
    return text
