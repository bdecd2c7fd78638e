"""Models as a small graph and a lot of bytes.

A ``Model`` is a ``ModelProto``, the skeleton, in which every large tensor is a *reference* to a blob: its data location
is ``EXTERNAL`` and its last external data entry says which one. Whether weights were inside the model file or external
data makes no difference from here on: both are parts of files that nobody has read yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx import ModelProto, TensorProto

if TYPE_CHECKING:
    from bnfold.blobs import Blob
    from bnfold.dtypes import Buffer

__all__ = ["EXPLICIT", "INLINE_LIMIT", "MARKER", "Model", "total_bytes"]

#: Tensors with more raw data than this become references. Batch norm parameters of all usual widths stay in the
#: skeleton, where reading them costs no system call.
INLINE_LIMIT = 1 << 12

#: Start of the location that marks a reference; a file that brings it along is refused.
MARKER = "*/bnfold reference/"
#: Follows the number of the blob when the tensor stated the default data location explicitly, which most leave out.
EXPLICIT = "="

_EXTERNAL = TensorProto.EXTERNAL


@dataclass
class Model:
    """The skeleton of a model and the blobs that its references stand for.

    ``path`` is the file it came from, if any; ``notes`` are sentences for the user about how it was read or written.
    """

    proto: ModelProto
    blobs: list[Blob] = field(default_factory=list)
    path: str | None = None
    notes: list[str] = field(default_factory=list)
    _numbers: dict[Blob, int] = field(default_factory=dict, repr=False)

    def blob(self, tensor: TensorProto) -> Blob | None:
        """Return the blob that ``tensor`` refers to, or None when its data is in the tensor itself."""
        if tensor.data_location != _EXTERNAL or not tensor.external_data:
            return None
        reference = str(tensor.external_data[-1].value)
        if not reference.startswith(MARKER):
            return None
        return self.blobs[int(reference[len(MARKER) :].rstrip(EXPLICIT))]

    def raw(self, tensor: TensorProto) -> Buffer | None:
        """Return all raw bytes of ``tensor``, or None when its data is in typed fields (``float_data`` and so on)."""
        blob = self.blob(tensor)
        if blob is not None:
            return blob.read(0, blob.nbytes)
        return tensor.raw_data if tensor.HasField("raw_data") else None

    def attach(self, tensor: TensorProto, blob: Blob) -> None:
        """Make ``tensor`` a reference to ``blob``; whatever data it had is dropped, its type and shape stay."""
        for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"):
            tensor.ClearField(name)
        tensor.ClearField("external_data")
        self.refer(tensor, blob)

    def refer(self, tensor: TensorProto, blob: Blob) -> None:
        """Add the reference to ``blob`` behind the external data entries that ``tensor`` has."""
        number = self._numbers.get(blob)
        if number is None:
            number = len(self.blobs)
            if not self._numbers and self.blobs:
                self._numbers.update({known: index for index, known in enumerate(self.blobs)})
                number = self._numbers.get(blob, number)
            if number == len(self.blobs):
                self.blobs.append(blob)
            self._numbers[blob] = number
        tensor.external_data.add(key="location", value=f"{MARKER}{number}")
        tensor.data_location = _EXTERNAL


def total_bytes(model: Model) -> int:
    """Return the bytes that the model takes, skeleton and blobs together."""
    return int(model.proto.ByteSize()) + sum(blob.nbytes for blob in model.blobs)
