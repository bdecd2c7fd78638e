"""Bytes of large tensors that are not in memory: where they are, or how they come about.

    Blob                    so many bytes, readable piece by piece
    ├── MemoryBlob          bytes that are in memory already
    ├── ProtoBlob           the ``raw_data`` of a tensor that somebody else holds
    ├── FileBlob            a part of a file
    └── ScaledBlob          another blob times factors: a folded weight, evaluated while it is written

Blobs are compared and hashed by identity. Files are read with ``pread`` into small buffers and never mapped: pages of
a mapped file count as resident memory.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.datafile import DataFile
from bnfold.dtypes import all_finite, itemsize, load_float64, nbytes, numpy_dtype, store_float64
from bnfold.errors import ModelReadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from onnx import TensorProto

    from bnfold.dtypes import Array, Buffer

__all__ = ["Blob", "Block", "FileBlob", "MemoryBlob", "ProtoBlob", "ScaledBlob", "Unrepresentable", "array"]

# Elements per block: 1 MiB of float64, which stays in a core's own cache between the passes over it.
_BLOCK = 1 << 17
# Rows shorter than this are multiplied as one flat run, with the factor repeated along them.
_SHORT_ROW = 256


class Blob(ABC):
    """So many bytes that can be read piece by piece."""

    nbytes: int

    @abstractmethod
    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on."""

    def read(self, offset: int, size: int) -> Buffer:
        """Return ``size`` bytes from ``offset`` on."""
        result = bytearray(size)
        self.read_into(offset, memoryview(result))
        return result

    def opened(self) -> Blob:
        """Return the blob in the form that is cheapest to read many times; drop it when done."""
        return self


class MemoryBlob(Blob):
    """Bytes in memory."""

    def __init__(self, data: Buffer) -> None:
        view = memoryview(data)
        self.data = view.cast("B") if view.nbytes else memoryview(b"")
        self.nbytes = self.data.nbytes

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.data[offset : offset + len(view)]

    def read(self, offset: int, size: int) -> Buffer:
        return self.data[offset : offset + size]


class ProtoBlob(Blob):
    """The ``raw_data`` of a tensor in a model that the caller owns; protobuf copies it on every access."""

    def __init__(self, tensor: TensorProto) -> None:
        self.tensor = tensor
        self.nbytes = len(tensor.raw_data)

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = memoryview(self.tensor.raw_data)[offset : offset + len(view)]

    def read(self, offset: int, size: int) -> Buffer:
        return memoryview(self.tensor.raw_data)[offset : offset + size]

    def opened(self) -> Blob:
        return MemoryBlob(self.tensor.raw_data)


class FileBlob(Blob):
    """A part of a file; ``external`` when it is ONNX external data and not in the model file itself."""

    def __init__(self, path: str | DataFile, offset: int, nbytes: int, external: bool = False) -> None:
        self.file = path if isinstance(path, DataFile) else DataFile(path)
        self.offset = offset
        self.nbytes = nbytes
        self.external = external

    @property
    def path(self) -> str:
        return self.file.path

    def read_into(self, offset: int, view: memoryview) -> None:
        self.file.read_into(self.offset + offset, view)


def array(blob: Blob, data_type: int, shape: tuple[int, ...]) -> Array:
    """Return a whole blob as an array of its own dtype: for reductions over one tensor.

    Raises ``ModelReadError`` when the blob is not as long as the type and shape say.
    """
    if nbytes(data_type, shape) != blob.nbytes or min(shape, default=0) < 0:
        raise ModelReadError(
            f"a tensor of type {data_type} and shape {list(shape)} has {blob.nbytes} bytes of data, "
            f"expected {nbytes(data_type, shape)}; the model is damaged, export it again"
        )
    values: np.ndarray[Any, Any] = np.frombuffer(blob.read(0, blob.nbytes), numpy_dtype(data_type))
    return values.reshape(shape)


class Unrepresentable(Exception):  # noqa: N818 - an outcome that the planner expects
    """A scaled weight has a value that its dtype cannot hold (not a ``BnfoldError``: the plan is made again)."""

    def __init__(self, blob: ScaledBlob) -> None:
        super().__init__("a folded weight is not finite in its dtype")
        self.blob = blob


@dataclass(frozen=True)
class Block:
    """A contiguous run: rows ``first`` to ``last`` of axis ``len(index)``, at ``index`` of the axes before it."""

    index: tuple[int, ...]
    first: int
    last: int
    offset: int  # bytes from the start of the tensor
    nbytes: int


class ScaledBlob(Blob):
    """``round_once(source.reshape(shape) * factors[0] * factors[1] * ...)``, in the dtype and order of its source.

    Each factor is a float64 array of the rank of ``shape`` whose dimensions are 1 or those of ``shape``. The
    products are taken in float64 and rounded once. Reading raises ``Unrepresentable`` where the result is not finite.
    """

    def __init__(
        self,
        source: Blob,
        data_type: int,
        shape: tuple[int, ...],
        factors: tuple[npt.NDArray[np.float64], ...],
    ) -> None:
        shape = tuple(shape)
        if math.prod(shape) * itemsize(data_type) != source.nbytes:
            raise ValueError(f"{source.nbytes} bytes are no tensor of type {data_type} and shape {shape}")
        for factor in factors:
            if factor.ndim != len(shape) or any(f not in (1, n) for f, n in zip(factor.shape, shape, strict=True)):
                raise ValueError(f"a factor of shape {factor.shape} does not broadcast against {shape}")
        self.source = source
        self.data_type = data_type
        self.shape = shape or (1,)
        self.factors = tuple(np.asarray(f, np.float64).reshape(f.shape or (1,)) for f in factors)
        self.nbytes = source.nbytes

    def read_into(self, offset: int, view: memoryview) -> None:
        end = offset + len(view)
        wanted = [b for b in self.blocks() if b.offset < end and b.offset + b.nbytes > offset]
        for block, data in self.evaluate(wanted):
            first, last = max(offset, block.offset), min(end, block.offset + block.nbytes)
            view[first - offset : last - offset] = data[first - block.offset : last - block.offset]

    def blocks(self) -> list[Block]:
        """Return the blocks that tile the tensor, in order."""
        if self.nbytes == 0:
            return []
        axis, row = 0, math.prod(self.shape[1:])
        while row > _BLOCK:
            axis += 1
            row //= self.shape[axis]
        rows = self.shape[axis]
        step = math.ceil(rows / math.ceil(rows * row / _BLOCK)) if rows * row > _BLOCK else rows
        size = itemsize(self.data_type) * row
        result = []
        for number, index in enumerate(itertools.product(*map(range, self.shape[:axis]))):
            for first in range(0, rows, step):
                last = min(rows, first + step)
                result.append(Block(index, first, last, (number * rows + first) * size, (last - first) * size))
        return result

    def evaluate(self, blocks: list[Block]) -> Iterator[tuple[Block, memoryview]]:
        """Yield each block with its bytes, in a buffer that the next step reuses.

        Raises ``Unrepresentable`` at the first block with a value that is not finite.
        """
        if not blocks:
            return
        dtype = numpy_dtype(self.data_type)
        source = self.source.opened()
        raw = bytearray(max(block.nbytes for block in blocks))
        wide = np.empty(len(raw) // dtype.itemsize, np.float64)
        for block in blocks:
            view = memoryview(raw)[: block.nbytes]
            source.read_into(block.offset, view)
            stored = np.frombuffer(view, dtype)
            values = wide[: stored.size]
            with np.errstate(all="ignore"):
                load_float64(stored, values, self.data_type)
                for factor in self.factors:
                    self._multiply(values, factor, block)
                store_float64(values, stored, self.data_type)
                if not all_finite(stored, self.data_type):
                    raise Unrepresentable(self)
            yield block, view

    def _multiply(self, values: npt.NDArray[np.float64], factor: Array, block: Block) -> None:
        """Multiply the flat ``values`` of a block in place by the part of ``factor`` that lies over it."""
        for position in block.index:
            factor = factor[position if factor.shape[0] > 1 else 0]
        if factor.shape[0] > 1:
            factor = factor[block.first : block.last]
        if factor.size == 1:
            values *= factor.item()
            return
        rows = block.last - block.first
        tail = self.shape[len(block.index) + 1 :]
        row = values.size // rows
        grid = values.reshape(rows, row)
        if row < _SHORT_ROW:
            grid *= np.broadcast_to(factor, (rows, *tail)).reshape(rows, row)
        elif factor.shape[0] == 1:
            grid *= np.broadcast_to(factor[0], tail).reshape(1, row)
        elif factor.size == rows:
            grid *= factor.reshape(rows, 1)
        else:
            grid *= np.broadcast_to(factor, (rows, *tail)).reshape(rows, row)
