"""How far two outputs are apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.verify.noise import epsilon, is_float, smallest_normal
from bnfold.verify.report import Metrics, Worst

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["distance", "measure", "size"]

_MOST_CLASSES = 100_000


def distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Absolute differences in float64.

    Zero where both are the same infinity or both are NaN; infinite where only one is.
    """
    if a.dtype.kind == "c":
        return np.asarray(np.abs(a.astype(np.complex128) - b.astype(np.complex128)))
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        result = np.abs(x - y)
    odd = ~(np.isfinite(x) & np.isfinite(y))
    if odd.any():
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        result = np.where(odd, np.where(same, 0.0, np.inf), result)
    return np.asarray(result)


def size(a: NDArray[Any]) -> float:
    """Largest finite magnitude."""
    values = np.abs(a[np.isfinite(a)].astype(np.float64)) if a.dtype.kind != "c" else np.abs(a)
    return float(values.max(initial=0.0))


def measure(a: NDArray[Any], b: NDArray[Any]) -> Metrics:
    """Compare two arrays of one shape and type."""
    if not (is_float(a) or a.dtype.kind == "c"):
        wrong = a != b
        count = int(np.count_nonzero(wrong))
        return Metrics(
            mismatches=count,
            elements=a.size,
            argmax_agreement=None,
            worst=_worst(a, b, np.asarray(wrong, np.float64)) if count else None,
        )
    error = distance(a, b)
    finite = np.isfinite(error)
    good = np.where(finite, error, 0.0)
    values = np.where(np.isfinite(a), a, 0).astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    largest = float(good.max(initial=0.0))
    with np.errstate(over="ignore", under="ignore"):
        return _figures(a, b, values, error, largest)


def _figures(a: NDArray[Any], b: NDArray[Any], values: NDArray[Any], error: NDArray[Any], largest: float) -> Metrics:
    finite = np.isfinite(error)
    good = np.where(finite, error, 0.0)
    return Metrics(
        max_abs=largest,
        max_relative=largest / _range(values) if largest else 0.0,
        rmse=float(np.sqrt(np.mean(good**2))) if a.size else 0.0,
        snr_db=_snr(values, good),
        cosine=_cosine(values, np.where(np.isfinite(b), b, 0).astype(values.dtype)),
        ulp=_ulp(values, good, a.dtype) if a.dtype.kind != "c" else (0.0, 0.0, 0.0),
        argmax_agreement=_argmax(a, b),
        mismatches=int(a.size - np.count_nonzero(finite)),
        elements=int(a.size),
        worst=_worst(a, b, error) if a.size and (largest or not finite.all()) else None,
    )


def _range(values: NDArray[Any]) -> float:
    magnitudes = values if values.dtype.kind != "c" else np.abs(values)
    spread = float(magnitudes.max(initial=-np.inf) - magnitudes.min(initial=np.inf))
    return spread if spread > 0 else float(np.abs(values).max(initial=0.0)) or 1.0


def _snr(values: NDArray[Any], error: NDArray[Any]) -> float:
    noise, signal = float(np.sum(error**2)), float(np.sum(np.abs(values) ** 2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _cosine(x: NDArray[Any], y: NDArray[Any]) -> float:
    lengths = float(np.linalg.norm(x.ravel()) * np.linalg.norm(y.ravel()))
    if lengths == 0:
        return 1.0 if not (np.any(x) or np.any(y)) else 0.0
    return float(np.real(np.vdot(x, y)) / lengths)


def _ulp(values: NDArray[Any], error: NDArray[Any], dtype: np.dtype[Any]) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum of the error in units in the last place of the original's value."""
    if not values.size:
        return (0.0, 0.0, 0.0)
    exponent = np.frexp(np.maximum(np.abs(values), smallest_normal(dtype)))[1] - 1
    units = error / np.ldexp(epsilon(dtype), exponent)
    low, high, most = np.percentile(units, [50, 99, 100])
    return (float(low), float(high), float(most))


def _argmax(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Agreement of the largest element, where the last axis looks like classes."""
    if a.ndim < 2 or not 2 <= a.shape[-1] <= _MOST_CLASSES or a.dtype.kind == "c" or (a.ndim > 2 and a.shape[1] > 1):
        return None
    same = np.argmax(a, axis=-1) == np.argmax(b, axis=-1)
    return float(np.mean(same)) if same.size else None


def _worst(a: NDArray[Any], b: NDArray[Any], error: NDArray[Any]) -> Worst:
    index = np.unravel_index(int(np.argmax(error)), error.shape) if error.ndim else ()
    return Worst(tuple(int(i) for i in index), _plain(a[index]), _plain(b[index]))


def _plain(value: Any) -> float | str:
    return float(value) if np.asarray(value).dtype.kind in "fiub" or is_float(np.asarray(value)) else str(value)
