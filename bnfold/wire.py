"""The protobuf wire format, as far as bnfold needs it: walking over messages without parsing what they hold.

A message is a run of fields, each a key ``number << 3 | type`` and a payload; type 2 carries its length in front.
``rewrite`` walks a serialised ``ModelProto`` and lets the caller replace tensors. What it returns is a list of *pieces*
that, put one after the other, are the new message, with the lengths of all enclosing messages corrected:
``bytes`` as they are, a ``(start, end)`` range of the old message, or any object with ``nbytes`` (a blob).

Encoding: https://protobuf.dev/programming-guides/encoding/ and the field numbers of ``onnx.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bnfold.blobs import Blob

    Piece = bytes | tuple[int, int] | Blob
    Pieces = list[Piece]
    Edit = Callable[[int, int], Pieces | None]
    Kind = Literal["model", "graph", "node", "attribute", "tensor", "sparse", "function", "training"]

__all__ = [
    "MAX_DEPTH",
    "Field",
    "MalformedError",
    "TooDeepError",
    "Window",
    "encode",
    "fields",
    "length_of",
    "rewrite",
    "varint",
]

#: Messages inside messages that protobuf's own parser accepts.
MAX_DEPTH = 100

VARINT, FIXED64, DELIMITED, START_GROUP, END_GROUP, FIXED32 = range(6)

# Fields that lead to tensors, by the message they stand in.
_CHILDREN: dict[Kind, dict[int, Kind]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
}


class MalformedError(Exception):
    """The bytes are no protobuf message, or end in the middle of one."""


class TooDeepError(MalformedError):
    """Messages are nested deeper than protobuf reads them."""


class Field(NamedTuple):
    """One field: its number and wire type, where its key starts, and where its payload starts and ends."""

    number: int
    wire_type: int
    start: int
    payload: int
    end: int


class Window:
    """A view on ``size`` bytes, of which a stretch of ``width`` is in memory at a time."""

    def __init__(self, read: Callable[[int, int], bytes | memoryview], size: int, width: int = 1 << 16) -> None:
        self.read = read
        self.size = size
        self._width = width
        self._buffer: bytes | memoryview = b""
        self._base = 0

    def at(self, position: int) -> tuple[bytes | memoryview, int]:
        """Return a buffer that holds a whole field header at ``position``, and the position of its first byte."""
        inside = position - self._base
        if inside < 0 or (inside + 20 > len(self._buffer) and self._base + len(self._buffer) < self.size):
            self._base = position
            self._buffer = self.read(position, min(self._width, self.size - position))
        return self._buffer, self._base


def varint(buffer: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return the variable-length integer at ``position`` and the position after it."""
    value = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
        if shift >= 70:
            raise MalformedError("a number is longer than ten bytes")


def encode(value: int) -> bytes:
    """Return ``value`` as a variable-length integer."""
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def length_of(piece: Piece) -> int:
    """Return the bytes of one piece."""
    if isinstance(piece, tuple):
        return piece[1] - piece[0]
    return len(piece) if isinstance(piece, bytes) else piece.nbytes


def fields(window: Window, start: int, end: int, longer_than: int = -1) -> Iterator[Field]:
    """Yield the fields from ``start`` to ``end``; with ``longer_than``, only length-delimited ones above that length.

    Groups, a deprecated kind of field that has no length, are passed over with everything in them.
    """
    position, groups = start, 0
    buffer, base = window.at(start)
    limit = len(buffer) - 20
    try:
        while position < end:
            index = position - base
            if index > limit:
                buffer, base = window.at(position)
                limit = len(buffer) - 20
                index = position - base
            key = buffer[index]
            index += 1
            if key >= 0x80:
                key, index = varint(buffer, index - 1)
            wire_type = key & 7
            if wire_type == DELIMITED:
                length = buffer[index]
                index += 1
                if length >= 0x80:
                    length, index = varint(buffer, index - 1)
                stop = base + index + length
            else:
                length, stop = 0, base + _after_number(buffer, index, wire_type)
                groups += {START_GROUP: 1, END_GROUP: -1}.get(wire_type, 0)
            if stop > end:
                raise MalformedError("a field reaches past the end of its message")
            if key < 8 or groups < 0:
                raise MalformedError("a field has no number, or a group ends that never began")
            if (length > longer_than or longer_than < 0) and not groups and wire_type != END_GROUP:
                yield Field(key >> 3, wire_type, position, base + index, stop)
            position = stop
    except IndexError:
        raise MalformedError("the data ends in the middle of a field") from None
    if groups:
        raise MalformedError("the data ends in the middle of a group")


def _after_number(buffer: bytes | memoryview, index: int, wire_type: int) -> int:
    if wire_type == VARINT:
        return varint(buffer, index)[1]
    if wire_type == FIXED64:
        return index + 8
    if wire_type == FIXED32:
        return index + 4
    if wire_type in (START_GROUP, END_GROUP):
        return index
    raise MalformedError(f"wire type {wire_type} does not exist")


def rewrite(
    window: Window,
    edit: Edit,
    *,
    worth: Callable[[int, int], bool] | None = None,
    longer_than: int = -1,
    deepest: int = MAX_DEPTH,
) -> Pieces:
    """Return the pieces of a serialised ``ModelProto`` with some of its tensors replaced.

    ``edit(start, end)`` gets the range of a tensor's payload and returns new pieces for it, or None to leave it alone.
    Only messages longer than ``longer_than`` bytes are looked into, and only those for whose range ``worth`` holds.

    Raises ``MalformedError`` when the bytes do not parse, and ``TooDeepError`` below ``deepest`` messages.
    """
    pieces = _Rewriter(window, edit, worth, longer_than, deepest).message("model", 0, window.size, 1)
    return pieces or [(0, window.size)]


@dataclass(frozen=True)
class _Rewriter:
    window: Window
    edit: Edit
    worth: Callable[[int, int], bool] | None
    longer_than: int
    deepest: int

    def message(self, kind: Kind, start: int, end: int, depth: int) -> Pieces | None:
        """Return the pieces of one message, or None when nothing in it changes."""
        if depth > self.deepest:
            raise TooDeepError(f"messages are nested more than {MAX_DEPTH} deep")
        children = _CHILDREN[kind]
        pieces: Pieces = []
        copied = start
        for number, wire_type, at, payload, stop in fields(self.window, start, end, self.longer_than):
            child = children.get(number)
            if child is None or wire_type != DELIMITED or (self.worth is not None and not self.worth(payload, stop)):
                continue
            new = self.edit(payload, stop) if child == "tensor" else self.message(child, payload, stop, depth + 1)
            if new is None:
                continue
            pieces += [(copied, at), encode(number << 3 | DELIMITED) + encode(sum(map(length_of, new))), *new]
            copied = stop
        if not pieces:
            return None
        pieces.append((copied, end))
        return pieces
