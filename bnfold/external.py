"""ONNX external data: which file a tensor's entries mean, and whether bnfold may read it.

A model file is not trusted. Each rule below answers an attack on a tool that loads ONNX (CVE-2022-25882, -2024-27318,
-2026-27489, -2026-34445 and their kin); they apply to every place a tensor can stand in.

1. The keys are ``location``, ``offset``, ``length``, ``checksum`` and ``basepath``, each at most once.
2. ``location`` is relative and has no ``..`` in it.
3. The *resolved* path lies beneath the resolved folder of the model: links inside the folder are fine, links that lead
   out are not. For a model that is itself a link, the folder of the file it points to counts as well.
4. The file is a regular one, opened without following a link that appeared after the check.
5. ``offset + length`` lies within the file, and ``length`` is what the tensor's type and shape say.
"""

# Paths stay the strings they are: what is checked is what is opened.
# ruff: noqa: PTH100, PTH118, PTH120
from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bnfold.blobs import FileBlob
from bnfold.datafile import DataFile
from bnfold.dtypes import STRING, nbytes
from bnfold.errors import ModelReadError, printable

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["ExternalData"]

_KEYS = ("location", "offset", "length", "checksum", "basepath")


class ExternalData:
    """Opens the external data of one model, each file once."""

    def __init__(self, model_path: str | None, base_dir: str) -> None:
        self._name = printable(model_path if model_path is not None else "the model")
        self._base = os.path.abspath(base_dir)
        roots = {os.path.realpath(self._base)}
        if model_path is not None:
            roots.add(os.path.dirname(os.path.realpath(model_path)))
        self._roots = sorted(roots)
        self._files: dict[str, DataFile] = {}

    def blob(self, tensor: TensorProto) -> FileBlob:
        """Return the part of a file that holds an external tensor's data; ``ModelReadError`` if a rule is broken."""
        entries = self._entries(tensor)
        location = entries.get("location", "")
        offset = self._number(tensor, entries, "offset", 0)
        expected = self._expected(tensor)
        length = self._number(tensor, entries, "length", expected)
        if length is None or offset is None:
            raise self._error(tensor, f"element type {tensor.data_type} is not known")
        if expected is not None and length != expected:
            raise self._error(tensor, f"has {length} bytes of external data where its shape needs {expected}")
        if location not in self._files:
            self._files[location] = self._open(tensor, location)
        file = self._files[location]
        if offset + length > file.size:
            raise self._error(
                tensor,
                f"wants bytes {offset} to {offset + length} of '{printable(location)}', which has {file.size}; "
                "copy the data file again",
            )
        return FileBlob(file, offset, length, external=True)

    def _entries(self, tensor: TensorProto) -> dict[str, str]:
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            if entry.key not in _KEYS or entry.key in entries:
                why = "twice" if entry.key in entries else "which ONNX does not define"
                raise self._error(tensor, f"has the external data key '{printable(entry.key)}' {why}")
            entries[entry.key] = entry.value
        return entries

    def _number(self, tensor: TensorProto, entries: dict[str, str], key: str, default: int | None) -> int | None:
        text = entries.get(key)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._error(tensor, f"has external data with {key} '{printable(text[:40])}', which is not a size")
        return int(text)

    def _expected(self, tensor: TensorProto) -> int | None:
        if tensor.data_type == STRING:
            raise self._error(tensor, "holds strings, which cannot be external data")
        if any(dim < 0 for dim in tensor.dims):
            raise self._error(tensor, "has a negative dimension")
        return nbytes(tensor.data_type, tensor.dims)

    def _open(self, tensor: TensorProto, location: str) -> DataFile:
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or location[0] in "/\\" or location[1:2] == ":" or ".." in parts:
            raise self._error(tensor, f"points outside the model's folder: '{printable(location)}'")
        try:
            path = os.path.realpath(os.path.join(self._base, location))
            if not any(os.path.commonpath([root, path]) == root for root in self._roots):
                raise self._error(
                    tensor,
                    f"has its data in '{printable(location)}', a link that leads out of the model's folder; "
                    "copy the folder with its links resolved (cp -rL) and use the copy",
                )
            file = DataFile(path, follow_links=False)
            if os.path.realpath(path) != path:
                raise self._error(tensor, f"has its data in '{printable(location)}', which changed while it was opened")
        except FileNotFoundError:
            raise self._error(
                tensor, f"has its data in '{printable(location)}', which is not there; put it beside the model"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise self._error(
                tensor, f"has its data in '{printable(location)}', which cannot be read: {reason}"
            ) from None
        return file

    def _error(self, tensor: TensorProto, what: str) -> ModelReadError:
        return ModelReadError(f"{self._name}: tensor '{printable(tensor.name)}' {what}")
