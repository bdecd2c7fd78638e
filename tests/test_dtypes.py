"""Conversion to and from float64: one rounding, to nearest even, checked against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bnfold import dtypes


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(dims=[3], data_type=TensorProto.FLOAT, raw_data=b"1234"),
        TensorProto(dims=[3], data_type=TensorProto.FLOAT, raw_data=b"123"),
        TensorProto(dims=[3], data_type=TensorProto.FLOAT, float_data=[1]),
        TensorProto(dims=[3], data_type=TensorProto.INT64, int64_data=[1]),
        TensorProto(dims=[3], data_type=TensorProto.UNDEFINED, raw_data=b"123"),
        TensorProto(dims=[3], data_type=99, raw_data=b"123"),
        TensorProto(dims=[-3], data_type=TensorProto.FLOAT, raw_data=b"1234"),
        TensorProto(dims=[-3, -1], data_type=TensorProto.INT4, raw_data=b"1234"),
    ],
)
def test_tensor_array_refuses_what_does_not_fit(tensor: TensorProto) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the wording is NumPy's or onnx's
        dtypes.tensor_array(tensor)


# Bits of the significand, exponent of the smallest subnormal, largest finite value.
FORMATS = {
    dtypes.FLOAT16: (11, -24, Fraction(65504)),
    dtypes.BFLOAT16: (8, -133, Fraction(2) ** 127 * Fraction(255, 128)),
    dtypes.FLOAT: (24, -149, Fraction(2) ** 128 - Fraction(2) ** 104),
    dtypes.DOUBLE: (53, -1074, Fraction(2) ** 1024 - Fraction(2) ** 971),
}


def rounded(value: float, data_type: int) -> float:
    """Round exactly, to nearest even, by the definition of the format."""
    precision, lowest, largest = FORMATS[data_type]
    exact = abs(Fraction(value))
    if exact == 0:
        return value
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** exponent > exact:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - precision + 1, lowest)
    result = round(exact / unit) * unit  # Python rounds fractions half to even
    magnitude = float("inf") if result > largest else float(result)
    return np.copysign(magnitude, value)


def convert(values: object, data_type: int) -> np.ndarray:
    return dtypes.to_float64(dtypes.from_float64(values, data_type), data_type)


def near(data_type: int) -> st.SearchStrategy[float]:
    """Values where rounding is decided: beside and between neighbours of the format, in all of its range."""
    precision, lowest, largest = FORMATS[data_type]
    top = int(np.log2(float(largest))) if data_type != dtypes.DOUBLE else 1023
    significand = st.integers(0, 1 << (precision + 2))
    exponent = st.integers(lowest - precision - 4, top - precision)
    nudge = st.sampled_from([0.0, 2.0**-52, -(2.0**-53), 2.0**-30, -(2.0**-30)])

    def make(s: int, e: int, n: float, negative: bool) -> float:
        with np.errstate(over="ignore"):
            value = float(np.ldexp(np.float64(s), e)) * (1 + n)
        value = min(value, np.finfo(np.float64).max)  # what goes in is a float64; float64 itself has nothing above it
        return -value if negative else value

    return st.builds(make, significand, exponent, nudge, st.booleans())


@pytest.mark.parametrize("data_type", sorted(FORMATS))
def test_rounds_once_to_nearest_even(data_type: int) -> None:
    @settings(max_examples=400, deadline=None)
    @given(st.lists(near(data_type) | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
    @example([0.0, -0.0, 5e-324, -5e-324, 1.7976931348623157e308, -1.7976931348623157e308])
    @example([65504.0, 65519.999, 65520.0, 65520.001, 2.0**-25, np.nextafter(2.0**-25, 1), 2.0**-24 * 1.5])
    @example([1 + 2**-8, 1 + 2**-8 + 2**-40, 1 + 3 * 2**-8, 1 + 3 * 2**-8 - 2**-40, 2.0**-134, 1.5 * 2.0**-133])
    @example([1 + 2**-11 + 2**-50, 1 + 2**-24 + 2**-52, 3.3895313892515355e38, 3.4028235677973366e38])
    def check(values: list[float]) -> None:
        expected = np.array([rounded(v, data_type) for v in values])
        actual = convert(values, data_type)
        np.testing.assert_array_equal(actual, expected)
        np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))

    check()


@pytest.mark.parametrize("data_type", sorted(FORMATS))
def test_infinities_and_nan_stay(data_type: int) -> None:
    actual = convert([np.inf, -np.inf, np.nan, -np.nan, 1.0], data_type)
    np.testing.assert_array_equal(actual, [np.inf, -np.inf, np.nan, np.nan, 1.0])
    raw = np.frombuffer(dtypes.from_float64([np.inf, np.nan], data_type), dtypes.numpy_dtype(data_type))
    assert not dtypes.all_finite(raw[:1], data_type)
    assert not dtypes.all_finite(raw[1:], data_type)


@pytest.mark.parametrize("data_type", [dtypes.FLOAT16, dtypes.BFLOAT16])
def test_every_value_of_a_16_bit_type_survives(data_type: int) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = dtypes.to_float64(bits.tobytes(), data_type)
    back = np.frombuffer(dtypes.from_float64(values, data_type), np.uint16)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(back[number], bits[number])
    wide = np.empty(bits.size)
    dtypes.load_float64(bits.view(dtypes.numpy_dtype(data_type)), wide, data_type)
    np.testing.assert_array_equal(wide, values)


def test_all_finite_accepts_the_largest_values() -> None:
    for data_type, (_, _, largest) in FORMATS.items():
        stored = np.frombuffer(dtypes.from_float64([float(largest), 0, -1], data_type), dtypes.numpy_dtype(data_type))
        assert dtypes.all_finite(stored, data_type)


@pytest.mark.parametrize(
    ("data_type", "dims", "expected"),
    [
        (TensorProto.FLOAT, (2, 3), 24),
        (TensorProto.BFLOAT16, (), 2),
        (TensorProto.INT4, (3,), 2),
        (TensorProto.INT2, (5,), 2),
        (TensorProto.DOUBLE, (0, 4), 0),
        (TensorProto.STRING, (2,), None),
        (TensorProto.UNDEFINED, (2,), None),
    ],
)
def test_nbytes(data_type: int, dims: tuple[int, ...], expected: int | None) -> None:
    assert dtypes.nbytes(data_type, dims) == expected


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int32", "int64", "uint8", "bool", "complex64", ml_dtypes.bfloat16]
)
def test_tensor_array_reads_every_form(dtype: object, raw: bool) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    tensor = numpy_helper.from_array(values)
    if not raw:
        listed = values.ravel()
        tensor = helper.make_tensor("t", tensor.data_type, values.shape, listed)
        assert not tensor.HasField("raw_data")
    actual = dtypes.tensor_array(tensor)
    assert actual.dtype == values.dtype
    np.testing.assert_array_equal(actual, values)


def test_tensor_array_takes_raw_bytes_from_elsewhere() -> None:
    tensor = TensorProto(dims=[2], data_type=TensorProto.FLOAT)
    np.testing.assert_array_equal(dtypes.tensor_array(tensor, np.float32([3, 4]).tobytes()), [3, 4])
