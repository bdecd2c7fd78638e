"""Rounding-level perturbation: what the original could have been, had one more rounding gone the other way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EPSILON", "half_ulp_away", "is_float", "one_ulp_away", "widened"]

#: Spacing of the numbers just above one, by dtype name.
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# integer type of the same size, all bits but the sign, and the bits of the largest finite number
_BITS: dict[str, tuple[Any, int, int]] = {
    "float64": (np.int64, 0x7FFFFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF),
    "float32": (np.int32, 0x7FFFFFFF, 0x7F7FFFFF),
    "float16": (np.int16, 0x7FFF, 0x7BFF),
    "bfloat16": (np.int16, 0x7FFF, 0x7F7F),
}
_NARROW = ("float16", "bfloat16")
_PATTERN = 1 << 20  # signs are drawn once and repeated: their period is far longer than any dot product


def is_float(array: NDArray[Any]) -> bool:
    """Whether the array holds one of the float types that weights have."""
    return array.dtype.name in EPSILON


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """The array as float32 when it holds any of the float types, else the array; exact for the 16-bit types."""
    if not is_float(array) or array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def one_ulp_away(array: NDArray[Any], seed: int) -> NDArray[Any]:
    """Every element moved to a neighbour in its own float type, up or down by chance.

    Zeros, NaN, infinities and the largest finite numbers stay.
    """
    if not is_float(array) or not array.size:
        return array
    kind, everything, largest = _BITS[array.dtype.name]
    bits = np.ascontiguousarray(array).view(kind)
    magnitude = bits & kind(everything)
    moves = (magnitude != 0) & (magnitude < kind(largest))
    moved = bits + _signs(array.size, seed).astype(kind).reshape(bits.shape) * moves
    return np.asarray(moved.astype(kind)).view(array.dtype)


def half_ulp_away(array: NDArray[Any], seed: int) -> NDArray[np.float32]:
    """A 16-bit float array as float32, every element moved by half the spacing of its own type, up or down by chance.

    This is the largest error of one rounding to that type.
    """
    wide = array.astype(np.float32)
    if array.dtype.name not in _NARROW:
        return wide
    mantissa, lowest = (10, -14) if array.dtype.name == "float16" else (7, -126)
    with np.errstate(all="ignore"):
        exponent = np.frexp(wide)[1] - 1
    half = np.ldexp(np.float32(0.5), np.maximum(exponent, lowest) - mantissa).astype(np.float32)
    half = np.where(np.isfinite(wide) & (wide != 0), half, np.float32(0))
    return np.asarray(wide + half * _signs(array.size, seed).reshape(array.shape), np.float32)


def _signs(size: int, seed: int) -> NDArray[np.int8]:
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = random.integers(0, 2, min(size, _PATTERN), np.int8) * np.int8(2) - np.int8(1)
    return drawn if size <= _PATTERN else np.resize(drawn, size)
