"""Numbers for people: three digits and a unit."""

from __future__ import annotations

__all__ = ["amount", "duration", "ratio"]

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_AMOUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def duration(seconds: float) -> str:
    """Seconds as ``1.23 ms``."""
    unit, name = next((entry for entry in _TIMES if abs(seconds) >= entry[0] * 0.9995), _TIMES[-1])
    return f"{_three(seconds / unit)} {name}"


def amount(number: float) -> str:
    """A count as ``1,234`` below a million and ``12.3 M`` above."""
    for factor, prefix in _AMOUNTS:
        if abs(number) >= factor * 0.9995:
            return f"{_three(number / factor)} {prefix}"
    return f"{number:,.0f}"


def ratio(value: float) -> str:
    """A speed-up as ``1.04x``."""
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _three(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
