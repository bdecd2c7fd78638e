"""Reading models: from a file without its large tensors, from a ``ModelProto``, and back into a ``ModelProto``.

``load`` walks the wire format of the file, parses everything but the large ``raw_data`` fields, and leaves those where
they are; see ``bnfold.model`` for what takes their place. Writing is in ``bnfold.staging``.
"""

# Paths stay the strings they are: what is checked is what is opened.
# ruff: noqa: PTH100, PTH120
from __future__ import annotations

import os

from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped,unused-ignore]
from onnx import ModelProto, TensorProto

from bnfold import wire
from bnfold.blobs import Blob, FileBlob, ProtoBlob
from bnfold.datafile import DataFile
from bnfold.errors import ModelReadError, printable
from bnfold.external import ExternalData
from bnfold.layout import root
from bnfold.model import EXPLICIT, INLINE_LIMIT, MARKER, Model, total_bytes
from bnfold.staging import Staged, stage
from bnfold.tensors import is_large, tensors, without_large_data
from bnfold.text import all_utf8

__all__ = ["INLINE_LIMIT", "Model", "Staged", "from_proto", "load", "stage", "to_proto", "total_bytes"]

_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_EXTERNAL = TensorProto.EXTERNAL

# Messages inside the innermost graph: a ValueInfoProto, its type, its tensor, shape and dimension, and one to spare.
_INNERMOST = 6


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file; tensors of more than ``INLINE_LIMIT`` raw bytes and external data become references.

    Raises ``ModelReadError`` when the file is missing, unreadable, no ONNX model, damaged, or has external data that
    is missing or lies outside its folder.
    """
    name = os.fspath(path)
    file = _open(name)
    model = Model(ModelProto(), path=name)
    kept = _parse(file, name, model)
    # Saves a walk over all tensors of most models: every way to write an external tensor has one of these in it.
    if b"location" in kept or b"\x70\x01" in kept:
        _resolve_external(model, name, os.path.dirname(os.path.abspath(name)))
    return model


def _open(name: str) -> DataFile:
    shown = printable(name)
    try:
        return DataFile(name)
    except FileNotFoundError:
        raise ModelReadError(f"{shown}: no such file; check the path") from None
    except PermissionError:
        raise ModelReadError(f"{shown}: no permission to read it; check the file's mode") from None
    except (OSError, ValueError) as error:
        raise ModelReadError(f"{shown}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def _parse(file: DataFile, name: str, model: Model) -> bytes:
    """Fill in the skeleton of a model file and the blobs it refers to; return the skeleton as it was parsed."""
    shown = printable(name)
    if file.size == 0:
        raise ModelReadError(f"{shown}: is empty; export or copy the model again")

    def read(offset: int, size: int) -> bytes:
        buffer = bytearray(size)
        file.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    window = wire.Window(read, file.size)
    proto, blobs = model.proto, model.blobs
    try:
        pieces = wire.rewrite(window, _Lifter(window, file, blobs), longer_than=INLINE_LIMIT)
        kept = b"".join(read(p[0], p[1] - p[0]) if isinstance(p, tuple) else _literal(p) for p in pieces)
        if kept.count(MARKER.encode()) != len(blobs):
            raise ModelReadError(f"{shown}: contains the text '{MARKER}', which bnfold reserves for itself")
        proto.ParseFromString(kept)
    except wire.MalformedError as error:
        raise _not_a_model(file, shown, str(error)) from None
    except (DecodeError, MemoryError):
        raise _not_a_model(file, shown, _reason(window)) from None
    if not proto.HasField("graph"):
        raise _not_a_model(file, shown, "it has no graph")
    if not all_utf8(kept):
        raise ModelReadError(f"{shown}: has names that are not UTF-8 text; export the model again")
    return kept


def _literal(piece: wire.Piece) -> bytes:
    assert isinstance(piece, bytes), "a skeleton has no blobs in it"
    return piece


class _Lifter:
    """Takes the raw data out of a tensor on the wire and puts a reference in its place."""

    def __init__(self, window: wire.Window, file: DataFile, blobs: list[Blob]) -> None:
        self._window, self._file, self._blobs = window, file, blobs

    def __call__(self, start: int, end: int) -> wire.Pieces | None:
        raw: wire.Field | None = None
        location: int | None = None
        for item in wire.fields(self._window, start, end):
            if item.number == _RAW_DATA and item.wire_type == wire.DELIMITED:
                if raw is not None:
                    return None  # the last one counts; too odd to take apart
                raw = item
            elif item.number == _DATA_LOCATION and item.wire_type == wire.VARINT:
                buffer, base = self._window.at(item.payload)
                location = wire.varint(buffer, item.payload - base)[0]
        if raw is None or raw.end - raw.payload <= INLINE_LIMIT or location not in (None, TensorProto.DEFAULT):
            return None
        mark = f"{MARKER}{len(self._blobs)}{'' if location is None else EXPLICIT}".encode()
        self._blobs.append(FileBlob(self._file, raw.payload, raw.end - raw.payload, external=False))
        return [(start, raw.start), (raw.end, end), reference(mark)]


def reference(mark: bytes) -> bytes:
    """Return the fields of a tensor on the wire that make it a reference."""
    entry = b"\x0a\x08location\x12" + wire.encode(len(mark)) + mark
    return b"\x6a" + wire.encode(len(entry)) + entry + b"\x70\x01"


def _reason(window: wire.Window) -> str:
    """Return why protobuf refused the data: found by walking over all of it."""
    try:
        wire.rewrite(window, lambda _start, _end: None, deepest=wire.MAX_DEPTH - _INNERMOST)
    except wire.MalformedError as error:
        return str(error)
    return "protobuf cannot parse it"


_KNOWN_STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the model; fetch it with 'git lfs pull'",
    b"PK\x03\x04": "is a zip archive (a PyTorch file is one); export the model to ONNX, or unpack it",
    b"\x1f\x8b": "is compressed; unpack it with gunzip",
    b"\x89HDF": "is an HDF5 (Keras) file; convert it to ONNX",
    b"\x80\x02": "is a Python pickle; export the model to ONNX",
    b"ORTM": "is in ONNX Runtime's own format; use the .onnx file it was made from",
}


def _not_a_model(file: DataFile, shown: str, reason: str) -> ModelReadError:
    head = bytearray(min(64, file.size))
    file.read_into(0, memoryview(head))
    for start, what in _KNOWN_STARTS.items():
        if head.startswith(start) or head[4:].startswith(start):
            return ModelReadError(f"{shown}: {what}")
    if all(byte in b"\t\n\r" or 0x20 <= byte < 0x7F for byte in head):
        return ModelReadError(f"{shown}: is a text file, not an ONNX model; give the path of an .onnx file")
    return ModelReadError(
        f"{shown}: is not an ONNX model, or is damaged or cut short ({reason}); export or copy it again"
    )


def _resolve_external(model: Model, name: str | None, base_dir: str | None) -> None:
    """Make references of the external data in a model."""
    files: ExternalData | None = None
    for tensor in tensors(model.proto):
        if tensor.data_location != _EXTERNAL or model.blob(tensor) is not None:
            continue
        if base_dir is None:
            raise ModelReadError(
                f"tensor '{printable(tensor.name)}' has external data, and a model in memory has no folder to look in; "
                "give base_dir, or load the data first (onnx.load_external_data_for_model)"
            )
        files = files or ExternalData(name, base_dir)
        blob = files.blob(tensor)
        for index in reversed(range(len(tensor.external_data))):
            if tensor.external_data[index].key != "checksum":
                del tensor.external_data[index]
        model.refer(tensor, blob)


def from_proto(proto: ModelProto, base_dir: str | os.PathLike[str] | None = None) -> Model:
    """Return the ``Model`` of a ``ModelProto`` that is in memory, which is neither changed nor copied as a whole.

    Raw data of more than ``INLINE_LIMIT`` bytes stays in ``proto``, which has to outlive the result unchanged. External
    data is looked for beneath ``base_dir``.

    Raises ``ModelReadError`` when there is no graph, names are no text, or external data cannot be found.
    """
    if not proto.HasField("graph"):
        raise ModelReadError("the model has no graph; give a complete onnx.ModelProto")
    try:
        model = Model(without_large_data(proto, INLINE_LIMIT))
        skeleton = model.proto.SerializeToString()
    except UnicodeDecodeError:
        raise _not_text() from None
    except (EncodeError, ValueError) as error:
        raise ModelReadError(f"the model without its raw data is too big for protobuf ({error})") from None
    if MARKER.encode() in skeleton:
        raise ModelReadError(f"the model contains the text '{MARKER}', which bnfold reserves for itself")
    if not all_utf8(skeleton):
        raise _not_text() if _parses(skeleton) else _too_deep()
    for ours, theirs in zip(tensors(model.proto), tensors(proto), strict=True):
        if is_large(theirs, INLINE_LIMIT):
            model.refer(ours, ProtoBlob(theirs))
    _resolve_external(model, None, None if base_dir is None else os.fspath(base_dir))
    return model


def _parses(serialised: bytes) -> bool:
    try:
        ModelProto.FromString(serialised)
    except DecodeError:
        return False
    return True


def _too_deep() -> ModelReadError:
    return ModelReadError(
        f"the model's subgraphs are nested too deep: protobuf reads {wire.MAX_DEPTH} messages inside one another"
    )


def _not_text() -> ModelReadError:
    return ModelReadError("the model has names that are not UTF-8 text; export it again")


def to_proto(model: Model) -> ModelProto:
    """Return the whole model as one new ``ModelProto`` with all data inside."""
    result = ModelProto()
    result.CopyFrom(model.proto)
    if not model.blobs:
        return result
    for tensor in tensors(result):
        blob = model.blob(tensor)
        if blob is None:
            continue
        explicit = tensor.external_data[-1].value.endswith(EXPLICIT)
        start = root(blob)
        if isinstance(start, FileBlob) and start.external:
            tensor.ClearField("external_data")
        else:
            del tensor.external_data[-1]
        tensor.ClearField("data_location")
        if explicit:
            tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = bytes(blob.read(0, blob.nbytes))
    return result
