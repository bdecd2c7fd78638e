"""Blobs: bytes that are read or computed piece by piece."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from bnfold import blobs, dtypes
from bnfold.blobs import FileBlob, MemoryBlob, ProtoBlob, ScaledBlob, Unrepresentable
from bnfold.datafile import DataFile
from bnfold.errors import ModelReadError

if TYPE_CHECKING:
    from pathlib import Path


def weights(data_type: int, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    values = np.random.default_rng(0).standard_normal(shape)
    raw = dtypes.from_float64(values, data_type)
    return raw, dtypes.to_float64(raw, data_type).reshape(shape)


@pytest.mark.parametrize(
    ("data_type", "value", "factor"),
    [
        (dtypes.FLOAT16, 60000.0, 2.0),
        (dtypes.BFLOAT16, 3e38, 2.0),
        (dtypes.FLOAT, 3e38, -2.0),
        (dtypes.DOUBLE, 1e308, 20.0),
        (dtypes.FLOAT, np.inf, 0.0),
        (dtypes.FLOAT, np.nan, 1.0),
        (dtypes.FLOAT, 1.0, np.inf),
    ],
)
def test_what_the_dtype_cannot_hold_is_reported(data_type: int, value: float, factor: float) -> None:
    source = MemoryBlob(dtypes.from_float64([1.0, value, 1.0], data_type))
    blob = ScaledBlob(source, data_type, (3,), (np.array([factor]),))
    with pytest.raises(Unrepresentable) as caught:
        blob.read(0, blob.nbytes)
    assert caught.value.blob is blob


@pytest.mark.parametrize("factor", [np.ones(3), np.ones((2, 3)), np.ones((1, 2))])
def test_a_factor_must_broadcast(factor: np.ndarray) -> None:
    with pytest.raises(ValueError, match="broadcast"):
        ScaledBlob(MemoryBlob(bytes(48)), dtypes.FLOAT, (4, 3), (factor,))


def test_a_source_must_have_the_size_of_its_shape() -> None:
    with pytest.raises(ValueError, match="47 bytes"):
        ScaledBlob(MemoryBlob(bytes(47)), dtypes.FLOAT, (4, 3), ())


@pytest.mark.parametrize("data_type", sorted(dtypes.FLOATS))
@pytest.mark.parametrize("block", [1, 7, 64, 1 << 17])
@pytest.mark.parametrize(
    ("shape", "factors"),
    [
        ((6, 5, 3, 3), [(6, 1, 1, 1)]),
        ((6, 5, 3, 3), [(6, 1, 1, 1), (1, 5, 1, 1)]),
        ((6, 5, 3, 3), [(6, 5, 1, 1)]),
        ((3, 2, 400), [(3, 2, 1), (1, 1, 400)]),
        ((3, 2, 400), [(1, 1, 1)]),
        ((2, 300), [(2, 300)]),
        ((700,), [(700,)]),
        ((), [()]),
        ((3, 0, 2), [(3, 1, 1)]),
        ((2, 3), []),
    ],
)
def test_scaled_values_are_the_rounded_products(
    monkeypatch: pytest.MonkeyPatch, data_type: int, block: int, shape: tuple[int, ...], factors: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(blobs, "_BLOCK", block)
    monkeypatch.setattr(blobs, "_SHORT_ROW", min(block, 256))
    raw, expected = weights(data_type, shape)
    random = np.random.default_rng(1)
    arrays = tuple(random.standard_normal(factor) for factor in factors)
    for factor in arrays:
        expected = expected * factor
    blob = ScaledBlob(MemoryBlob(raw), data_type, shape, arrays)
    assert blob.nbytes == len(raw)
    assert bytes(blob.read(0, blob.nbytes)) == dtypes.from_float64(expected, data_type)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_part_can_be_read(data: st.DataObject) -> None:
    raw, _ = weights(dtypes.FLOAT, (40, 70, 60))
    blob = ScaledBlob(MemoryBlob(raw), dtypes.FLOAT, (40, 70, 60), (np.linspace(1, 2, 40).reshape(40, 1, 1),))
    whole = bytes(blob.read(0, blob.nbytes))
    offset = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, len(whole) - offset))
    assert bytes(blob.read(offset, size)) == whole[offset : offset + size]


def test_a_scaled_blob_can_be_scaled_again() -> None:
    raw, values = weights(dtypes.DOUBLE, (4, 5))
    inner = ScaledBlob(MemoryBlob(raw), dtypes.DOUBLE, (4, 5), (np.full((4, 1), 2.0),))
    outer = ScaledBlob(inner, dtypes.DOUBLE, (4, 5), (np.full((1, 5), 0.25),))
    np.testing.assert_array_equal(blobs.array(outer, dtypes.DOUBLE, (4, 5)), values * 0.5)


def test_blobs_are_told_apart_by_identity() -> None:
    assert len({MemoryBlob(b"x"), MemoryBlob(b"x")}) == 2


def test_file_proto_and_memory_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"..abcdefgh..")
    for blob in (
        MemoryBlob(b"abcdefgh"),
        MemoryBlob(np.frombuffer(b"abcdefgh", np.int16).data),
        FileBlob(str(path), 2, 8, external=True),
        ProtoBlob(TensorProto(raw_data=b"abcdefgh")),
    ):
        assert blob.nbytes == 8
        assert bytes(blob.read(3, 4)) == b"defg"
        for readable in (blob, blob.opened()):
            target = bytearray(3)
            readable.read_into(5, memoryview(target))
            assert target == b"fgh"
    assert FileBlob(str(path), 2, 8, external=True).path == str(path)
    assert MemoryBlob(np.zeros((0, 3), np.float32).data).nbytes == 0


def test_array_checks_the_size() -> None:
    np.testing.assert_array_equal(blobs.array(MemoryBlob(np.int64([1, 2]).tobytes()), 7, (2, 1)), [[1], [2]])
    for shape in ((3,), (-1, -2)):
        with pytest.raises(ModelReadError, match="16 bytes"):
            blobs.array(MemoryBlob(bytes(16)), 7, shape)


def test_a_file_that_shrinks_or_changes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(100))
    blob = FileBlob(str(path), 0, 100, external=False)
    os.truncate(path, 50)
    with pytest.raises(ModelReadError, match="shorter"):
        blob.read(0, 100)
    monkeypatch.setattr("bnfold.datafile._MOST_OPEN_FILES", 0)
    closed = DataFile(str(path))
    target = bytearray(4)
    closed.read_into(0, memoryview(target))
    path.rename(tmp_path / "old")
    path.write_bytes(bytes(100))
    with pytest.raises(ModelReadError, match="replaced"):
        closed.read_into(0, memoryview(target))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelReadError, match="directory"):
        DataFile(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelReadError, match="regular"):
        DataFile(str(tmp_path / "pipe"))
