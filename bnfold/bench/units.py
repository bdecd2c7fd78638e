"""Numbers for people: three digits and a unit."""

from __future__ import annotations

__all__ = ["amount", "duration", "ratio", "size"]

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_AMOUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """Seconds as ``1.23 ms``."""
    for unit, name in _TIMES:
        if abs(seconds) >= unit * 0.9995 or name == "ns":
            return f"{_three(seconds / unit)} {name}"
    raise AssertionError("unreachable: the last unit takes everything")


def size(number: float) -> str:
    """Bytes as ``12.3 MB``, decimal units."""
    return _scaled(number, "B")


def amount(number: float) -> str:
    """A count as ``1,234`` below a million and ``12.3 M`` above."""
    return f"{number:,.0f}" if abs(number) < 1e6 else _scaled(number, "")


def ratio(value: float) -> str:
    """A speed-up as ``1.04x``."""
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _scaled(number: float, unit: str) -> str:
    for factor, prefix in _AMOUNTS:
        if abs(number) >= factor * 0.9995:
            return f"{_three(number / factor)} {prefix}{unit}"
    return f"{number:,.0f} {unit}".rstrip()


def _three(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
