"""Tensor element types: their NumPy counterparts, and conversion to and from float64 with one rounding.

Everything bnfold computes is float64; a result is rounded to the dtype of its tensor exactly once, to nearest with
ties to even. Going from float64 to a 16-bit type through float32 would round twice, so that step rounds *to odd*
(Boldo and Melquiond, "Emulation of FMA and Correctly Rounded Sums", IEEE Trans. Computers 57, 2008): truncate towards
zero and set the last bit when anything was cut off. float32 has at least two more bits than float16 and bfloat16
everywhere in their range, and the sticky bit then keeps the second rounding from seeing a tie that was none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt
    from onnx import TensorProto

__all__ = [
    "BFLOAT16",
    "DOUBLE",
    "FLOAT",
    "FLOAT16",
    "FLOATS",
    "all_finite",
    "exact_bytes",
    "from_float64",
    "itemsize",
    "limits",
    "load_float64",
    "nbytes",
    "numpy_dtype",
    "store_float64",
    "tensor_array",
    "to_float64",
]

Array = np.ndarray[Any, np.dtype[Any]]
Buffer = bytes | bytearray | memoryview

FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64 = 1, 2, 3, 4, 5, 6, 7
UINT4, INT4 = 21, 22
STRING, BOOL, FLOAT16, DOUBLE, UINT32, UINT64, COMPLEX64, COMPLEX128, BFLOAT16 = 8, 9, 10, 11, 12, 13, 14, 15, 16

#: Element types that weights and batch norm parameters can have (values of ``TensorProto.DataType``).
FLOATS: frozenset[int] = frozenset({FLOAT, FLOAT16, DOUBLE, BFLOAT16})

_DTYPES: dict[int, np.dtype[Any]] = {
    FLOAT: np.dtype("<f4"),
    UINT8: np.dtype("u1"),
    INT8: np.dtype("i1"),
    UINT16: np.dtype("<u2"),
    INT16: np.dtype("<i2"),
    INT32: np.dtype("<i4"),
    INT64: np.dtype("<i8"),
    BOOL: np.dtype("?"),
    FLOAT16: np.dtype("<f2"),
    DOUBLE: np.dtype("<f8"),
    UINT32: np.dtype("<u4"),
    UINT64: np.dtype("<u8"),
    COMPLEX64: np.dtype("<c8"),
    COMPLEX128: np.dtype("<c16"),
    BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(ml_dtypes.float8_e4m3fn),
    18: np.dtype(ml_dtypes.float8_e4m3fnuz),
    19: np.dtype(ml_dtypes.float8_e5m2),
    20: np.dtype(ml_dtypes.float8_e5m2fnuz),
    24: np.dtype(ml_dtypes.float8_e8m0fnu),
}

# UINT4, INT4, FLOAT4E2M1, UINT2, INT2: several elements share a byte.
_BITS_OF_PACKED = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype of a ``TensorProto.DataType``; ``KeyError`` for strings and packed types."""
    return _DTYPES[data_type]


def itemsize(data_type: int) -> int:
    """Return the bytes per element; ``KeyError`` for strings and for types that pack several elements in a byte."""
    return _DTYPES[data_type].itemsize


def limits(data_type: int) -> tuple[float, float]:
    """The smallest normal and the largest number of a type in ``FLOATS``."""
    kind = np.finfo(np.float32) if data_type == BFLOAT16 else np.finfo(_DTYPES[data_type])
    return float(kind.smallest_normal), float(kind.max)


def nbytes(data_type: int, dims: Iterable[int]) -> int | None:
    """Return the bytes that a tensor of ``dims`` takes as raw data, or None for a type that has no such form."""
    elements = math.prod(dims)
    if data_type in _BITS_OF_PACKED:
        return (elements * _BITS_OF_PACKED[data_type] + 7) // 8
    dtype = _DTYPES.get(data_type)
    return None if dtype is None else elements * dtype.itemsize


def to_float64(buffer: Buffer | Array, data_type: int) -> npt.NDArray[np.float64]:
    """Return the elements of little-endian raw bytes as a new 1-D float64 array; exact for every type in ``FLOATS``."""
    stored = np.frombuffer(buffer, _DTYPES[data_type])
    result = np.empty(stored.shape)
    load_float64(stored, result, data_type)
    return result


def from_float64(array: npt.ArrayLike, data_type: int) -> bytes:
    """Return ``array`` as little-endian raw bytes of a type in ``FLOATS``, rounded once, to nearest even.

    What is too large becomes an infinity; NaN stays NaN.
    """
    values = np.asarray(array, np.float64)
    result = np.empty(values.shape, _DTYPES[data_type])
    store_float64(values, result, data_type)
    return result.tobytes()


def load_float64(stored: Array, result: npt.NDArray[np.float64], data_type: int) -> None:
    """Widen ``stored``, an array of ``numpy_dtype(data_type)``, into ``result`` of the same shape; exact."""
    if data_type == BFLOAT16:
        stored = (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        np.copyto(result, stored)


def all_finite(stored: Array, data_type: int) -> bool:
    """Return whether an array of ``numpy_dtype(data_type)`` holds neither infinities nor NaN."""
    exponent = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80}.get(data_type)
    if exponent is None:
        return bool(np.isfinite(stored).all())
    return not ((stored.view(np.uint16) & exponent) == exponent).any()


def exact_bytes(values: npt.NDArray[np.float64], data_type: int) -> bytes:
    """Return integers, or numbers of another type that float64 holds exactly, as raw bytes of ``data_type``.

    Two 4-bit integers share a byte, the first one in its lower half.
    """
    if data_type not in (UINT4, INT4):
        whole: bytes = values.astype(_DTYPES[data_type]).tobytes()
        return whole
    halves = np.zeros(values.size + values.size % 2, np.uint8)
    halves[: values.size] = values.astype(np.int64).ravel() & 15
    packed: bytes = (halves[::2] | halves[1::2] << 4).tobytes()
    return packed


def store_float64(values: npt.NDArray[np.float64], result: Array, data_type: int) -> None:
    """Round float64 ``values`` once into ``result``, an array of the same shape and of ``numpy_dtype(data_type)``."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if data_type == FLOAT16:
            np.copyto(result, _round_to_odd(values), casting="unsafe")
        elif data_type == BFLOAT16:
            np.copyto(result.view(np.uint16), _nearest_bfloat16(_round_to_odd(values)), casting="unsafe")
        else:
            np.copyto(result, values, casting="unsafe")


def _round_to_odd(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return ``values`` as float32, cut towards zero, with the last bit set where anything was cut off."""
    nearest = np.asarray(values.astype(np.float32))
    bits = nearest.view(np.uint32)
    back = nearest.astype(np.float64)
    inexact = back != values
    inexact &= values == values  # noqa: PLR0124 - NaN stays as it is
    np.abs(back, out=back)
    # One step in the integer order of the bits is one step towards zero; infinity steps to the largest finite value.
    bits -= back > np.abs(values)
    bits |= inexact
    return nearest


def _nearest_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Return the bits of float32 ``values`` rounded to bfloat16, nearest even."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    not_a_number = np.isnan(values)
    if not_a_number.any():
        rounded[not_a_number] = 0x7FC0
    return np.asarray(rounded)


def tensor_array(tensor: TensorProto, raw: Buffer | None = None) -> Array:
    """Return a tensor's elements with its shape, whichever way they are stored.

    ``raw`` holds the raw bytes when they are known already; else they are the tensor's own ``raw_data``, if it has any.
    bfloat16 comes back as ``ml_dtypes.bfloat16``. The array may be read-only.

    Raises ``ValueError`` when the number of elements does not match the shape or the type is not known.
    """
    if raw is None and tensor.HasField("raw_data"):
        raw = tensor.raw_data
    data_type = tensor.data_type
    if any(dim < 0 for dim in tensor.dims):  # NumPy would work out the size itself
        raise ValueError(f"shape {list(tensor.dims)} has a negative dimension")
    if raw is not None and data_type in _DTYPES:
        return np.frombuffer(raw, _DTYPES[data_type]).reshape(tuple(tensor.dims))
    if raw is None and data_type == FLOAT:
        return np.array(tensor.float_data, np.float32).reshape(tuple(tensor.dims))
    return _other_array(tensor, raw)


def _other_array(tensor: TensorProto, raw: Buffer | None) -> Array:
    from onnx import numpy_helper

    if raw is not None:
        tensor = type(tensor)(dims=tensor.dims, data_type=tensor.data_type, raw_data=bytes(raw))
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"tensor of type {tensor.data_type} cannot be read: {error}") from error
