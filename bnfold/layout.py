"""Where each byte of the output goes: the model file with blobs in place of references, and the data file beside it."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from bnfold import wire
from bnfold.blobs import Blob, FileBlob, ScaledBlob
from bnfold.model import EXPLICIT, MARKER
from bnfold.streaming import Output

if TYPE_CHECKING:
    from bnfold.datafile import DataFile
    from bnfold.dtypes import Buffer

__all__ = ["Skeleton", "data_output", "root"]

_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_MARK = MARKER.encode()

# Alignment of tensors in a data file: small ones to a cache line, large ones to a page, so that runtimes can map them.
_SMALL, _PAGE, _PAGED_FROM = 64, 4096, 1 << 20
# A data file of which less than this is still in use is packed anew rather than copied.
_WORTH_COPYING = 0.75


def root(blob: Blob) -> Blob:
    """Return the blob that a chain of scalings starts from."""
    while isinstance(blob, ScaledBlob):
        blob = blob.source
    return blob


class Skeleton:
    """A serialised skeleton and the blobs that the references in it stand for, in the order of the file."""

    def __init__(self, data: bytes, blobs: list[Blob]) -> None:
        self._data = data
        self._window = wire.Window(lambda offset, size: memoryview(data)[offset : offset + size], len(data), len(data))
        self._all = blobs
        self._marks: list[int] = []
        position = data.find(_MARK)
        while position >= 0:
            self._marks.append(position)
            position = data.find(_MARK, position + len(_MARK))
        self.references = [blobs[self._reference(mark)[0]] for mark in self._marks]

    def _reference(self, mark: int) -> tuple[int, bool]:
        """Return the number of the blob at a mark, and whether the tensor's default location was explicit."""
        start = end = mark + len(_MARK)
        while end < len(self._data) and 0x30 <= self._data[end] <= 0x39:
            end += 1
        return int(self._data[start:end]), self._data[end : end + 1] == EXPLICIT.encode()

    def nbytes(self) -> int:
        """Return the bytes of the skeleton itself."""
        return len(self._data)

    def output(self, path: str, location: str, offsets: dict[Blob, int]) -> Output:
        """Return the model file: blobs that have an offset are external data in ``location``, the others go inside."""
        seen = 0

        def edit(start: int, end: int) -> wire.Pieces:
            nonlocal seen
            seen += 1
            return self._tensor(start, end, location.encode(), offsets)

        pieces: wire.Pieces = [(0, len(self._data))]
        if self._marks:
            pieces = wire.rewrite(self._window, edit, worth=self._marked, longer_than=len(_MARK))
        if seen != len(self._marks):
            raise AssertionError(f"{len(self._marks)} references in the skeleton, {seen} found in its tensors")
        parts: list[tuple[int, Buffer | Blob]] = []
        position = 0
        for piece in pieces:
            length = wire.length_of(piece)
            if length:
                part = memoryview(self._data)[piece[0] : piece[1]] if isinstance(piece, tuple) else piece
                parts.append((position, part))
            position += length
        return Output(path, position, _joined(parts))

    def _marked(self, start: int, end: int) -> bool:
        index = bisect_left(self._marks, start)
        return index < len(self._marks) and self._marks[index] < end

    def _tensor(self, start: int, end: int, location: bytes, offsets: dict[Blob, int]) -> wire.Pieces:
        """Return a referring tensor with its data inside, or with real external data entries, fields in their order."""
        number, explicit = self._reference(self._marks[bisect_left(self._marks, start)])
        blob = self._all[number]
        inside = blob not in offsets
        pieces: wire.Pieces = []
        written = not inside
        for item in wire.fields(self._window, start, end):
            if not written and item.number > _RAW_DATA:
                pieces += [b"\x4a" + wire.encode(blob.nbytes), blob]
                written = True
            if item.number == _EXTERNAL_DATA and self._marked(item.payload, item.end):
                if not inside:
                    pieces.append(_entries(location, offsets[blob], blob.nbytes))
            elif item.number == _DATA_LOCATION and inside:
                pieces.append(b"\x70\x00" if explicit else b"")
            else:
                pieces.append((item.start, item.end))
        return pieces


def _joined(parts: list[tuple[int, Buffer | Blob]]) -> list[tuple[int, Buffer | Blob]]:
    """Return the parts with runs of bytes put together: one write each."""
    result: list[tuple[int, Buffer | Blob]] = []
    run: list[Buffer] = []
    begin = 0
    for offset, part in parts:
        if isinstance(part, Blob):
            result += [(begin, b"".join(run)), (offset, part)]  # in front of a blob stands its length at least
            run = []
            continue
        if not run:
            begin = offset
        run.append(part)
    if run:
        result.append((begin, b"".join(run)))
    return result


def _entries(location: bytes, offset: int, length: int) -> bytes:
    result = b""
    for key, value in ((b"location", location), (b"offset", b"%d" % offset), (b"length", b"%d" % length)):
        entry = b"\x0a" + wire.encode(len(key)) + key + b"\x12" + wire.encode(len(value)) + value
        result += b"\x6a" + wire.encode(len(entry)) + entry
    return result


def data_output(path: str, blobs: list[Blob]) -> tuple[Output, dict[Blob, int]]:
    """Return the data file for ``blobs`` and their offsets in it.

    Tensors that all come from one data file keep their places in a copy of it, and scaled ones are written over what
    they were scaled from, unless another tensor still needs those bytes. Everything else is packed in order.
    """
    blobs = list(dict.fromkeys(blobs))
    files = {start.file for start in map(root, blobs) if isinstance(start, FileBlob) and start.external}
    if len(files) == 1:
        file = files.pop()
        offsets = _in_place(file, blobs)
        if sum(blob.nbytes for blob in offsets) >= _WORTH_COPYING * file.size:
            return _patched(path, file, blobs, offsets)
    return _appended(Output(path, 0, []), blobs, {})


def _in_place(file: DataFile, blobs: list[Blob]) -> dict[Blob, int]:
    """Return the blobs that can stay where they are in ``file``."""
    offsets: dict[Blob, int] = {b: b.offset for b in blobs if isinstance(b, FileBlob) and b.file is file}
    taken = sorted((offset, offset + blob.nbytes) for blob, offset in offsets.items())
    merged: list[tuple[int, int]] = []
    for begin, end in taken:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    scaled: list[tuple[int, Blob]] = []
    for blob in blobs:
        start = root(blob)
        if isinstance(blob, ScaledBlob) and isinstance(start, FileBlob) and start.file is file:
            scaled.append((start.offset, blob))
    free_from = 0
    for offset, blob in sorted(scaled, key=lambda item: item[0]):
        end = offset + blob.nbytes
        index = bisect_left(merged, (offset + 1,)) - 1
        before = merged[index][1] if index >= 0 else 0
        after = merged[index + 1][0] if index + 1 < len(merged) else end
        if before <= offset and end <= after and free_from <= offset:
            offsets[blob] = offset
            free_from = end
    return offsets


def _patched(path: str, file: DataFile, blobs: list[Blob], offsets: dict[Blob, int]) -> tuple[Output, dict[Blob, int]]:
    """Return a copy of ``file`` with its scaled tensors replaced, and what has no place in it behind the end."""
    parts: list[tuple[int, Buffer | Blob]] = []
    position = 0
    for blob, offset in sorted(offsets.items(), key=lambda item: item[1]):
        if isinstance(blob, ScaledBlob) and blob.nbytes:
            if offset > position:
                parts.append((position, FileBlob(file, position, offset - position, external=True)))
            parts.append((offset, blob))
            position = offset + blob.nbytes
    if file.size > position:
        parts.append((position, FileBlob(file, position, file.size - position, external=True)))
    return _appended(Output(path, file.size, parts, file), [b for b in blobs if b not in offsets], dict(offsets))


def _appended(output: Output, blobs: list[Blob], offsets: dict[Blob, int]) -> tuple[Output, dict[Blob, int]]:
    """Put ``blobs`` behind what ``output`` has already, aligned."""
    position = output.size
    for blob in blobs:
        unit = _PAGE if blob.nbytes >= _PAGED_FROM else _SMALL
        position = -(-position // unit) * unit
        offsets[blob] = position
        output.parts.append((position, blob))
        position += blob.nbytes
    output.size = position
    return output, offsets
