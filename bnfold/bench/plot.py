"""Samples as pictures: an SVG with a strip of points and a box per model, and one line of text for a terminal.

Written by hand: a few rectangles do not need a plotting library.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from bnfold.bench.units import duration, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bnfold.bench.report import BenchReport, Row

__all__ = ["strip", "svg", "window"]

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*#@"
WIDTH, LEFT, RIGHT, HEAD, PANEL = 760, 90, 24, 56, 112
POINTS = 400  # per strip; more would only blacken it
COLOURS = {"original": "#b35806", "folded": "#2166ac"}


def window(row: Row) -> tuple[float, float]:
    """Lowest and highest time worth drawing, the same for both models: the top 2% would squeeze everything else."""
    both = np.concatenate((row.samples.original, row.samples.folded))
    low, high = float(both.min()), float(np.quantile(both, 0.98))
    return low, max(high, low * 1.001)


def strip(values: Sequence[float], bounds: tuple[float, float], width: int = 40, *, ascii_only: bool = False) -> str:
    """One line: how many samples fall into each of ``width`` slices of ``bounds``, with ``|`` at the median."""
    low, high = bounds
    inside = np.clip(np.asarray(values, float), low, high)
    counts, _ = np.histogram(inside, bins=width, range=bounds)
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    steps = np.ceil(counts / counts.max() * (len(blocks) - 1)).astype(int)
    cells = [blocks[step] for step in steps]
    place = int((np.median(inside) - low) / (high - low) * width)
    cells[min(place, width - 1)] = "|" if ascii_only else "┃"
    return "".join(cells)


def svg(report: BenchReport) -> str:
    """A self-contained picture of all rows; each has its own scale, in time per run."""
    height = HEAD + PANEL * len(report.rows) + 12
    title = f"{report.original.name} against {report.folded.name}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        text(16, 24, title, 'font-size="15" font-weight="600"'),
        text(16, 43, "Time per run, one point per sample; box: quartiles, line: median. Further left is faster."),
    ]
    for number, row in enumerate(report.rows):
        parts += panel(row, HEAD + PANEL * number)
    return "\n".join([*parts, "</svg>", ""])


def panel(row: Row, top: float) -> Iterator[str]:
    """One row of the report: heading, two strips, a scale."""
    low, high = window(row)
    where = f"batch {row.batch}, " if row.batch is not None else ""
    speed = f"{ratio(row.speedup.median)} [{row.speedup.low:.3f}, {row.speedup.high:.3f}], {row.verdict}"
    yield text(16, top + 18, f"{row.level}, {where}threads {row.threads}: {speed}", 'font-weight="600"')
    yield from strip_svg("original", row.samples.original, (low, high), top + 30)
    yield from strip_svg("folded", row.samples.folded, (low, high), top + 58)
    base = top + 90
    yield f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" stroke="#999"/>'
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        yield f'<line x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{base + 4}" stroke="#999"/>'
        yield text(x, base + 16, duration(low + share * (high - low)), 'text-anchor="middle" fill="#555"')


def strip_svg(name: str, values: Sequence[float], bounds: tuple[float, float], top: float) -> Iterator[str]:
    """Points, box and median of one model, 24 units high."""
    low, high = bounds
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    colour = COLOURS[name]
    yield text(LEFT - 8, top + 16, name, 'text-anchor="end"')
    step = max(1, len(values) // POINTS)
    for number, value in enumerate(values[::step]):
        x = LEFT + (min(max(value, low), high) - low) * scale
        y = top + 3 + (number * 0.618034 % 1) * 18  # the golden ratio spreads points evenly, the same every time
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{colour}" fill-opacity="0.45"/>'
    first, median, third = (LEFT + (min(float(q), high) - low) * scale for q in np.quantile(values, (0.25, 0.5, 0.75)))
    yield (
        f'<rect x="{first:.1f}" y="{top + 2}" width="{max(third - first, 1):.1f}" height="20" '
        f'fill="none" stroke="{colour}"/>'
    )
    yield f'<line x1="{median:.1f}" y1="{top}" x2="{median:.1f}" y2="{top + 24}" stroke="{colour}" stroke-width="2.5"/>'


def text(x: float, y: float, content: str, attributes: str = "") -> str:
    """A text element; ``content`` is escaped."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(content)}</text>'.replace(" >", ">")
