"""Growth as an SVG: time on the left, peak memory on the right, all axes logarithmic.

A straight line of slope 1 is linear growth; a thin grey line shows that slope.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from growth import lines

if TYPE_CHECKING:
    from collections.abc import Sequence

COLOURS = ("#2166ac", "#b35806", "#1b7837", "#762a83", "#c51b7d", "#777777", "#111111", "#00a0a0")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 480, 340, 64, 40, 92, 44
FIGURES = (("seconds", "Seconds per process", 1.0), ("peak", "Peak memory in MB", 1e-6))


def svg(points: Sequence[dict[str, Any]]) -> str:
    """Both panels of one axis."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" font-size="12" fill="#222" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for number, (figure, title, factor) in enumerate(FIGURES):
        found = {tool: [(size, value * factor) for size, value in line] for tool, line in lines(points, figure).items()}
        parts += [f'<g transform="translate({number * WIDTH} 0)">', *panel(found, title, points[0]["axis"]), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


class Scale:
    """Where a point of the data lies in the panel."""

    def __init__(self, values: Sequence[tuple[float, float]]) -> None:
        xs, ys = zip(*values, strict=True)
        self.low, self.high = math.log10(min(xs)), math.log10(max(xs))
        self.floor, self.top = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels across and down."""
        across = (math.log10(x) - self.low) / max(self.high - self.low, 1e-9)
        up = (math.log10(y) - self.floor) / max(self.top - self.floor, 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def panel(found: dict[str, list[tuple[float, float]]], title: str, axis: str) -> list[str]:
    """Grid, labels and one line per tool."""
    scale = Scale([point for line in found.values() for point in line])
    unit = "nodes" if axis == "nodes" else "MB of weights"
    parts = [f'<text x="{LEFT}" y="22" font-size="14" font-weight="600">{title} against {unit}</text>']
    for power in range(scale.floor, scale.top + 1):
        _, y = scale.place(10.0**scale.low, 10.0**power)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>')
    for power in range(math.ceil(scale.low), math.floor(scale.high) + 1):
        x, y = scale.place(10.0**power, 10.0**scale.floor)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{10**power:,}</text>')
    parts.append(slope_one(scale, max(found.values(), key=lambda line: line[-1][0])))
    ends = []
    for colour, (tool, line) in zip(COLOURS, found.items(), strict=False):
        spots = [scale.place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        width = 2.5 if tool == "bnfold" else 1.2
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in spots]
        ends.append((spots[-1][1], tool, colour))
    return [*parts, *labels(ends)]


def slope_one(scale: Scale, line: Sequence[tuple[float, float]]) -> str:
    """A dashed line of slope 1 through the last point, as far down as the panel goes."""
    size, value = line[-1]
    first = max(10.0**scale.low, size * 10.0**scale.floor / value)
    (x1, y1), (x2, y2) = scale.place(first, value * first / size), scale.place(size, value)
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#999" stroke-dasharray="3 4"/>'


def labels(ends: list[tuple[float, str, str]]) -> list[str]:
    """Tool names at the right, pushed apart so that none covers another."""
    parts, last = [], 0.0
    for y, tool, colour in sorted(ends):
        last = max(y, last + 14)
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{last + 4:.1f}" fill="{colour}">{escape(tool)}</text>')
    return parts
