"""Part ``growth``: time and memory against the number of nodes and of bytes, with a picture."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from measure import interleaved
from timing import Settings, cost_json, discard, files_of, generated, jobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools import Tools

NODES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
MEGABYTES = (1, 8, 64, 512, 1_900, 4_000, 8_000)
COLOURS = ("#2166ac", "#b35806", "#1b7837", "#762a83", "#c51b7d", "#777777", "#111111", "#00a0a0")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 64, 40, 150, 48


def measure(axis: str, tools: Tools, settings: Settings) -> dict[str, Any]:
    """Costs per size; a tool that failed or ran out of time is not tried on anything larger."""
    sizes = NODES if axis == "nodes" else MEGABYTES
    points, dropped = [], set()
    for size in sizes:
        source = generated("nodes", size // 3) if axis == "nodes" else generated("bytes", size)
        work = [job for job in jobs(tools, source, settings.work, settings.tools) if job.tool not in dropped]
        costs = interleaved(work, rounds=settings.rounds, timeout=settings.timeout, say=settings.say)
        dropped |= {cost.tool for cost in costs if cost.seconds is None}
        total = sum(path.stat().st_size for path in files_of(source))
        points.append({"size": size, "bytes": total, "costs": list(map(cost_json, costs))})
        settings.say(f"{axis} {size}: " + ", ".join(f"{c.tool} {c.seconds or c.why}" for c in costs))
        discard(source, settings)
    return {"axis": axis, "points": points}


def lines(series: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Points (size, seconds) by tool."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point in series["points"]:
        for cost in point["costs"]:
            if cost["seconds"] is not None:
                found.setdefault(cost["tool"], []).append((point["size"], cost["seconds"]))
    return found


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Exponent of growth over the largest tenfold range: 1 is a straight line, 2 is quadratic."""
    last = points[-1]
    first = next((p for p in points if p[0] * 10 >= last[0]), last)
    return None if first[0] == last[0] else math.log(last[1] / first[1]) / math.log(last[0] / first[0])


def table(series: dict[str, Any]) -> str:
    """Markdown: seconds per size, and the exponent."""
    found = lines(series)
    sizes = [point["size"] for point in series["points"]]
    unit = "nodes" if series["axis"] == "nodes" else "MB"
    text = [
        f"| {unit} | " + " | ".join(f"{size:,}" for size in sizes) + " | exponent |",
        "|---|" + "---:|" * (len(sizes) + 1),
    ]
    for tool, points in found.items():
        seconds = dict(points)
        cells = [f"{seconds[size]:.2f} s" if size in seconds else "" for size in sizes]
        grown = slope(points)
        text.append(f"| {tool} | " + " | ".join(cells) + f" | {'' if grown is None else f'{grown:.2f}'} |")
    return "\n".join(text)


def svg(series: dict[str, Any]) -> str:
    """Both axes logarithmic: a straight line of slope 1 is linear growth."""
    found = lines(series)
    xs, ys = [[point[i] for points in found.values() for point in points] for i in (0, 1)]
    low, high = math.log10(min(xs)), math.log10(max(xs))
    floor, top = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT) + LEFT
        return across, HEIGHT - BOTTOM - (math.log10(y) - floor) / (top - floor) * (HEIGHT - TOP - BOTTOM)

    unit = "nodes" if series["axis"] == "nodes" else "MB of weights"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        'font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600">Seconds per process against {unit}</text>',
    ]
    for power in range(floor, top + 1):
        _, y = place(min(xs), 10.0**power)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for point in series["points"]:
        x, _ = place(point["size"], 10.0**floor)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{point["size"]:,}</text>')
    ends = []
    for colour, (tool, points) in zip(COLOURS * 2, found.items(), strict=False):
        spots = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        width = 3 if tool == "bnfold" else 1.5
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in spots]
        ends.append((spots[-1][1], tool, colour))
    return "\n".join([*parts, *labels(ends), "</svg>", ""])


def labels(ends: list[tuple[float, str, str]]) -> list[str]:
    """Tool names at the right, pushed apart so that none covers another."""
    parts, last = [], 0.0
    for y, tool, colour in sorted(ends):
        last = max(y, last + 14)
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{last + 4:.1f}" fill="{colour}">{escape(tool)}</text>')
    return parts
