"""Numbers for people, the SVG and the terminal strip."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from bnfold.bench import BenchOptions, BenchReport, Facts, Machine, Row, Samples, Side, Speedup
from bnfold.bench.plot import strip, svg, window
from bnfold.bench.units import amount, duration, ratio


def report(name: str = "model.onnx", rows: int = 2) -> BenchReport:
    """A report with fixed samples."""
    original = tuple(0.002 + 0.00001 * (i % 7) for i in range(900))
    folded = tuple(0.001 + 0.00001 * (i % 5) for i in range(900))
    one = Samples(original, folded, (True,) * 900, 1, (900,))
    side = Side(0.002, 1e-5, 0.002, 0.00206, 900)
    levels = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
    found = tuple(
        Row(levels[i % 2], "CPUExecutionProvider", None if i < 2 else 8, 1, side, side, Speedup(2.0, 1.9, 2.1), 0.01,
            "faster", "precision", one, one)
        for i in range(rows)
    )  # fmt: skip
    facts = Facts(name, 1000, 10, 3, 500, None)
    return BenchReport(facts, facts, found, (), Machine("p", 2, "Linux", 0.0), BenchOptions())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.5, "2.50 s"),
        (0.99999, "1.00 s"),
        (0.0125, "12.5 ms"),
        (123e-6, "123 µs"),
        (5e-9, "5.00 ns"),
        (0.0, "0.00 ns"),
    ],
)
def test_duration(value: float, text: str) -> None:
    assert duration(value) == text


def test_amounts_and_ratios() -> None:
    assert (amount(1234), amount(12_300_000)) == ("1,234", "12.3 M")
    assert (ratio(1.049), ratio(12.34)) == ("1.05x", "12.3x")


def test_strip_shows_where_samples_lie() -> None:
    line = strip([1.0] * 10 + [2.0] * 2, (1.0, 2.0), width=10, ascii_only=True)
    assert len(line) == 10
    assert line[0] == "|"
    assert line[-1] == ":"
    assert set(line[1:-1]) == {" "}
    assert "┃" in strip([1.0, 2.0], (1.0, 2.0))


def test_strip_keeps_samples_beyond_the_window_at_its_end() -> None:
    assert strip([1.0, 1.0, 50.0], (1.0, 2.0), width=5)[-1] != " "


def test_window_leaves_the_slowest_out() -> None:
    found = report()
    slow = Samples((*found.rows[0].samples.original[:-1], 9.0), found.rows[0].samples.folded, (), 1, ())
    row = Row(**{**{n: getattr(found.rows[0], n) for n in Row.__slots__}, "samples": slow})
    low, high = window(row)
    assert low == 0.001
    assert high < 0.003


def test_svg_is_well_formed_and_escapes_names() -> None:
    text = svg(report('<script>"&', rows=4))
    root = ET.fromstring(text)
    names = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.find("{http://www.w3.org/2000/svg}title").text == '<script>"& against <script>"&'
    assert "<script>" not in text
    assert sum("2.00x [1.900, 2.100], faster" in (name or "") for name in names) == 4
    assert any("batch 8" in (name or "") for name in names)


def test_svg_stays_small() -> None:
    assert len(svg(report())) < 200_000
