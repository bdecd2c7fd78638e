"""Rounding-level perturbation: what the original could have been, had one more rounding gone the other way."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["epsilon", "half_ulp_away", "is_float", "one_ulp_away", "signs", "smallest_normal", "widened"]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# dtype -> spacing just above one, smallest normal number, integer type of the same size, its bits without the sign,
# and the bits of the largest finite number
_FORMATS: dict[np.dtype[Any], tuple[float, float, Any, int, int]] = {
    np.dtype(np.float64): (2.0**-52, 2.0**-1022, np.int64, 0x7FFFFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF),
    np.dtype(np.float32): (2.0**-23, 2.0**-126, np.int32, 0x7FFFFFFF, 0x7F7FFFFF),
    np.dtype(np.float16): (2.0**-10, 2.0**-14, np.int16, 0x7FFF, 0x7BFF),
    _BFLOAT16: (2.0**-7, 2.0**-126, np.int16, 0x7FFF, 0x7F7F),
}
_POOL = 1_048_573  # signs are drawn once and used in a ring; a prime, so that no shape has it as a period


def is_float(array: NDArray[Any]) -> bool:
    """Whether the array holds one of the float types that weights have."""
    return array.dtype in _FORMATS


def epsilon(dtype: np.dtype[Any]) -> float:
    """Spacing of the numbers just above one."""
    return _FORMATS[dtype][0]


def smallest_normal(dtype: np.dtype[Any]) -> float:
    """Smallest positive number with full precision."""
    return _FORMATS[dtype][1]


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """The array as float32 when it holds any of the float types, else the array; exact for the 16-bit types."""
    if array.dtype == np.float32 or not is_float(array):
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def one_ulp_away(array: NDArray[Any], seed: int, *, opposite: bool = False) -> NDArray[Any]:
    """Every element moved to a neighbour in its own float type, up or down by chance; ``opposite`` the other way.

    Zeros, NaN, infinities and the largest finite numbers stay.
    """
    if not is_float(array) or not array.size:
        return array
    _, _, kind, everything, largest = _FORMATS[array.dtype]
    bits = np.ascontiguousarray(array).view(kind)
    magnitude = bits & kind(everything)
    moves = (magnitude != 0) & (magnitude < kind(largest))
    directions = signs(array.size, seed).reshape(bits.shape) * moves
    moved = bits - directions if opposite else bits + directions
    return np.asarray(moved.astype(kind, copy=False)).view(array.dtype).reshape(array.shape)


def half_ulp_away(array: NDArray[Any], seed: int) -> NDArray[np.float32]:
    """A 16-bit float array as float32, every element moved by half the spacing of its own type, up or down by chance.

    This is the largest error of one rounding to that type.
    """
    wide = array.astype(np.float32)
    if array.dtype not in (np.dtype(np.float16), _BFLOAT16):
        return wide
    mantissa, lowest = (10, -14) if array.dtype == np.float16 else (7, -126)
    with np.errstate(all="ignore"):
        exponent = np.frexp(wide)[1] - 1
    half = np.ldexp(np.float32(0.5), np.maximum(exponent, lowest) - mantissa).astype(np.float32)
    half = np.where(np.isfinite(wide) & (wide != 0), half, np.float32(0))
    return np.asarray(wide + half * signs(array.size, seed).reshape(array.shape), np.float32)


@functools.cache
def _pool() -> NDArray[np.int8]:
    random = np.random.Generator(np.random.PCG64(20240229))
    drawn = random.integers(0, 2, _POOL, np.int8) * np.int8(2) - np.int8(1)
    return np.concatenate([drawn, drawn])


def signs(size: int, seed: int) -> NDArray[np.int8]:
    """Plus and minus ones by chance: a stretch of one ring, begun where the seed says."""
    start = (seed * 2_654_435_761 + 12_345) % _POOL
    if size <= _POOL:
        return _pool()[start : start + size]
    return np.resize(_pool()[start : start + _POOL], size)
