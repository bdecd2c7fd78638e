"""The user's own data: ``name=file.npy``, ``file.npz``, or a folder in ONNX test-data layout."""

from __future__ import annotations

import importlib
import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import OptionError, printable
from bnfold.inputs import InputSet, InputSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["load_inputs"]

#: What NumPy raises when a file is damaged.
_DAMAGED = (OSError, ValueError, EOFError, SyntaxError, KeyError, zipfile.BadZipFile, zlib.error)


def load_inputs(
    arguments: Sequence[str],
    specs: Sequence[InputSpec],
    outputs: Sequence[str] = (),
) -> tuple[InputSet, ...]:
    """Read input data.

    Args:
        arguments: each is ``name=file.npy`` (or ``name=file.pb``; all of these together make one set), ``file.npz``
            (one set, arrays by input name), or a folder with ``input_0.pb``, ``output_0.pb``, ... or with
            ``test_data_set_*``.
        specs: the model's inputs, in order.
        outputs: the model's output names, in order; ``output_0.pb`` is the first.

    Raises:
        OptionError: a file that cannot be read, is no input of the model, or has the wrong type or shape.
    """
    sets: list[InputSet] = []
    named: dict[str, Any] = {}
    for argument in arguments:
        path = Path(argument)
        name, equals, file = argument.partition("=")
        spec = next((s for s in specs if s.name == name), None)
        if equals and spec is not None:
            named[name] = fit(_tensor_file(Path(file), spec), spec, file)
        elif path.is_dir():
            sets += _folder(path, specs, outputs)
        elif path.suffix == ".npz":
            sets.append(InputSet(printable(path.name), _npz(path, specs)))
        elif equals:
            raise OptionError(f"the model has no input {printable(name)!r} (inputs: {_names(specs)})")
        else:
            raise OptionError(f"input {printable(argument)!r}: expected name=file.npy, a .npz file or a folder")
    if named:
        missing = [spec for spec in specs if spec.name not in named]
        if missing:
            raise OptionError(f"no data for input {_names(missing)}; give a file for every input")
        sets.insert(0, InputSet("user data", named))
    return tuple(sets)


def fit(value: Any, spec: InputSpec, source: str) -> Any:
    """Check a value against its input; floats are converted to the input's float type, integers where they fit."""
    from onnx import helper

    if spec.kind != "tensor" or isinstance(value, list):
        return value
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(spec.data_type)) if spec.data_type else value.dtype
    shape = spec.shape
    if shape is not None and (
        len(shape) != value.ndim
        or any(isinstance(want, int) and want != got for want, got in zip(shape, value.shape, strict=True))
    ):
        asked = "x".join(printable("?" if d is None else d) for d in shape) or "scalar"
        raise OptionError(
            f"{printable(source)}: shape {'x'.join(map(str, value.shape)) or 'scalar'} does not fit input "
            f"{printable(spec.name)!r} ({asked})"
        )
    if value.dtype == wanted or spec.data_type == 8:
        return value
    floats = _is_float(value.dtype) and _is_float(wanted)
    with np.errstate(all="ignore"):
        converted = value.astype(wanted)
    if not floats and not np.array_equal(converted.astype(value.dtype), value):
        raise OptionError(
            f"{printable(source)}: {value.dtype} data does not fit input {printable(spec.name)!r}, which is {wanted}"
        )
    return converted


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or "float" in dtype.name


def _names(specs: Sequence[InputSpec]) -> str:
    return ", ".join(repr(printable(spec.name)) for spec in specs) or "none"


def _load(path: Path) -> Any:
    try:
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)  # NumPy leaves damaged files open
    except _DAMAGED as error:
        raise OptionError(f"{printable(path)}: cannot be read as NumPy data ({printable(error)})") from error


def _tensor_file(path: Path, spec: InputSpec) -> Any:
    if path.suffix == ".pb":
        return _proto(path, spec.kind)
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise OptionError(f"{printable(path)}: holds several arrays; give it without a name")
    return array


def _npz(path: Path, specs: Sequence[InputSpec]) -> dict[str, NDArray[Any]]:
    archive = _load(path)
    if isinstance(archive, np.ndarray):
        raise OptionError(f"{printable(path)}: holds one array; give it as name={printable(path)}")
    with archive:
        missing = [spec for spec in specs if spec.name not in archive.files]
        if missing:
            held = ", ".join(map(printable, archive.files)) or "nothing"
            raise OptionError(f"{printable(path)}: no array for input {_names(missing)} (it holds {held})")
        try:
            arrays = {spec.name: np.asanyarray(archive[spec.name]) for spec in specs}
        except _DAMAGED as error:
            raise OptionError(f"{printable(path)}: cannot be read as NumPy data ({printable(error)})") from error
    return {spec.name: fit(arrays[spec.name], spec, str(path)) for spec in specs}


def _folder(path: Path, specs: Sequence[InputSpec], outputs: Sequence[str]) -> list[InputSet]:
    folders = [path] if list(path.glob("input_*.pb")) else sorted(path.glob("test_data_set_*"), key=_number)
    sets = []
    for folder in folders:
        files = {_number(file): file for file in folder.glob("input_*.pb")}
        missing = [spec for position, spec in enumerate(specs) if position not in files]
        if missing:
            raise OptionError(f"{printable(folder)}: no input_N.pb for input {_names(missing)}")
        feeds = {
            spec.name: fit(_proto(files[position], spec.kind), spec, str(files[position]))
            for position, spec in enumerate(specs)
        }
        expected = {
            outputs[_number(file)]: _proto(file, "tensor")
            for file in folder.glob("output_*.pb")
            if _number(file) < len(outputs)
        }
        name = folder.name if folder == path else f"{path.name}/{folder.name}"
        sets.append(InputSet(printable(name), feeds, expected))
    if not sets:
        raise OptionError(f"{printable(path)}: neither input_0.pb nor test_data_set_0 is in this folder")
    return sets


def _number(path: Path) -> int:
    found = re.search(r"(\d+)(?:\.pb)?$", path.name)
    return int(found.group(1)) if found else 0


def _proto(path: Path, kind: str) -> Any:
    """Read one ``.pb`` file: a tensor, or whatever the input's kind says."""
    import onnx
    from onnx import numpy_helper

    decode_error = importlib.import_module("google.protobuf.message").DecodeError  # google.protobuf has no types

    try:
        data = path.read_bytes()
        if kind == "sequence":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        if kind == "optional":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
        return numpy_helper.to_array(onnx.TensorProto.FromString(data))
    except (OSError, decode_error, TypeError, ValueError) as error:
        raise OptionError(f"{printable(path)}: cannot be read as an ONNX {kind} ({printable(error)})") from error
