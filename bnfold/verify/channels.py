"""Errors per channel, and when an error is more than rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["ChannelErrors", "compare_channels", "rows"]

# A sum of K products evaluated in another order, or with weights that were scaled before instead of after, moves by a
# random walk over its K partial sums; one ulp on each weight moves it by sqrt(K) times less. Over 706 correct folds
# (benchmarks/proof/margins.py) the largest error was below two thirds of what this allows.
_EVALUATION = 32.0
# A shift is a sum of a few terms, and the patterns of signs leave no error of theirs out.
_SHIFT = 8.0
_PER_SQRT_TERM = 2.0
# One rounding to 16 bits is at most half a unit per weight, which is what copy q moves every weight by. A scale that
# was itself rounded to 16 bits before the product was adds up to two such units, and the sampling a little.
_ROUNDED_TWICE = 3.05
_OUTPUT_ULPS = 8.0  # both sides round their own output, and whatever is added last
_JUMPING = 0.01  # fraction of elements; a weight wrong by one per cent moves a third of all roundings to 8 bits
_PEAK = 1.5  # single elements scatter more than the root of the mean square


@dataclass(frozen=True, slots=True)
class ChannelErrors:
    """Errors of one tensor, per channel; every array has one element per channel.

    Attributes:
        error: largest absolute error.
        tolerance: largest absolute error that would have passed.
        ratio: how many times the tolerance the error is; above one is different. NaN patterns that do not match are
            infinite.
        noise: what rounding alone does to the original.
        spread: standard deviation of the original.
        size: largest magnitude of the original.
    """

    error: NDArray[np.float64]
    tolerance: NDArray[np.float64]
    ratio: NDArray[np.float64]
    noise: NDArray[np.float64]
    spread: NDArray[np.float64]
    size: NDArray[np.float64]


def rows(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """The array as ``[channels, samples]``."""
    if array.ndim == 0:
        return array.reshape(1, 1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def compare_channels(
    copies: Mapping[str, NDArray[Any]],
    axis: int,
    *,
    terms: float,
    epsilon: float = 2.0**-23,
    shift_noise: NDArray[np.float64] | None = None,
    jumps: bool = False,
) -> ChannelErrors:
    """Compare the copies ``a`` and ``b`` of a tensor channel by channel, in the light of the others.

    Args:
        copies: arrays of one shape by name; see :mod:`bnfold.verify.probe`. There may be several ``p``.
        axis: the channel axis.
        terms: products that are summed up in one element.
        epsilon: spacing of the type that the arithmetic was done in.
        shift_noise: what rounding does to the shift of each channel, where it was found before.
        jumps: the tensor depends on decisions (rounding to integers, say), so a few elements may be far off.
    """
    taken = {letter: rows(array, axis) for letter, array in copies.items()}
    a, b = taken["a"], taken["b"]
    finite = np.isfinite(a)
    matches = finite == np.isfinite(b)
    if not finite.all():
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        matches &= finite | same
        finite &= np.isfinite(b)
        a = np.where(finite, a, 0)
    error = _distance(a, b, finite)
    moved = [_distance(a, other, finite) for letter, other in taken.items() if letter.startswith("p")]
    noise = [np.max([each[kind] for each in moved], axis=0) for kind in (0, 1)]
    if shift_noise is not None:
        noise = [n + (shift_noise if len(n) == len(shift_noise) else shift_noise.max(initial=0)) for n in noise]
    size = np.abs(a).max(1, initial=0).astype(np.float64)
    spread = a.std(1, dtype=np.float64) if a.shape[1] else np.zeros(len(a))
    factor = (_EVALUATION if len(moved) == 1 else _SHIFT) + _PER_SQRT_TERM * max(terms, 1.0) ** 0.5
    tolerances = [factor * noise[kind] + _OUTPUT_ULPS * epsilon * size for kind in (0, 1)]
    if "q" in taken:
        rounded = _distance(np.where(finite, b, 0), taken["q"], finite)
        tolerances = [t + _ROUNDED_TWICE * r for t, r in zip(tolerances, rounded, strict=True)]
    peak = _PEAK * tolerances[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(_over(error[0], tolerances[0]), _over(error[1], peak))
    ratio = np.where(matches.all(1), ratio, np.inf)
    if jumps:
        with np.errstate(invalid="ignore"):
            off = (np.abs(np.subtract(a, b)) > peak[:, None]).mean(1)
        ratio = np.where((off <= _JUMPING) & np.isfinite(ratio), np.minimum(ratio, 1.0), ratio)
    return ChannelErrors(error[1], peak, ratio, noise[1], spread, size)


def _over(error: NDArray[np.float64], tolerance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(error == 0, 0.0, np.where(tolerance > 0, error / tolerance, np.inf))


def _distance(
    x: NDArray[Any], y: NDArray[Any], finite: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Root mean square and maximum of the difference, per channel, over elements that are finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(np.subtract(x, y))
    if not finite.all() or not np.isfinite(difference).all():
        difference = np.where(finite & np.isfinite(difference), difference, 0)
    largest = difference.max(1, initial=0).astype(np.float64)
    scale = np.where(largest > 0, largest, 1.0)  # keeps squares of small numbers from vanishing
    mean = np.mean((difference / scale[:, None]) ** 2, axis=1) if difference.shape[1] else np.zeros(len(largest))
    return np.sqrt(mean) * scale, largest
