"""What can be said without running anything: the checker, the interface, opsets and domains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnfold.errors import printable
from bnfold.inputs import InputSpec, input_specs
from bnfold.tensors import tensors

if TYPE_CHECKING:
    import onnx

    from bnfold.verify.source import Source

__all__ = ["check_structure"]


def check_structure(original: Source, folded: Source) -> tuple[list[str], list[str]]:
    """Return the problems (the second model cannot be the same network) and the notes."""
    problems, notes = _interface(original, folded)
    _checker(original, folded, problems, notes)
    _opsets(original, folded, notes)
    _defaults(original, folded, problems)
    return problems, notes


def _interface(original: Source, folded: Source) -> tuple[list[str], list[str]]:
    problems: list[str] = []
    notes: list[str] = []
    for what in ("input", "output"):
        ours, theirs = _declared(original.given.proto, what), _declared(folded.given.proto, what)
        if [spec.name for spec in ours] != [spec.name for spec in theirs]:
            problems.append(f"{what}s are {_names(theirs)}, in the original {_names(ours)}")
            continue
        for mine, its in zip(ours, theirs, strict=True):
            _compare_specs(what, mine, its, problems, notes)
    return problems, notes


def _declared(proto: onnx.ModelProto, what: str) -> tuple[InputSpec, ...]:
    if what == "input":
        return input_specs(proto)
    stand_in = type(proto)()
    stand_in.graph.input.extend(proto.graph.output)
    return input_specs(stand_in)


def _compare_specs(what: str, mine: InputSpec, its: InputSpec, problems: list[str], notes: list[str]) -> None:
    name = f"{what} {printable(mine.name)!r}"
    if (mine.kind, mine.data_type) != (its.kind, its.data_type) and mine.data_type and its.data_type:
        problems.append(f"{name} has another type")
        return
    if mine.shape == its.shape:
        return
    if mine.shape is None or its.shape is None:
        notes.append(f"{name} declares its shape in one model only")
        return
    clash = len(mine.shape) != len(its.shape) or any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(mine.shape, its.shape, strict=True)
    )
    (problems if clash else notes).append(f"{name} has shape {_shape(its)}, in the original {_shape(mine)}")


def _shape(spec: InputSpec) -> str:
    return "[" + ", ".join("?" if d is None else printable(d) for d in spec.shape or ()) + "]"


def _names(specs: tuple[InputSpec, ...]) -> str:
    return ", ".join(repr(printable(spec.name)) for spec in specs) or "none"


def _checker(original: Source, folded: Source, problems: list[str], notes: list[str]) -> None:
    fault = _fault(folded)
    if fault is None:
        return
    if _fault(original) is None:
        problems.append(f"the onnx checker refuses it: {fault}")
    else:
        notes.append(f"the onnx checker refuses both models: {fault}")


def _fault(source: Source) -> str | None:
    """What onnx's checker says, or None. Large weights are left out: it looks at no values."""
    from onnx import checker

    proto: Any = type(source.given.proto)()
    proto.CopyFrom(source.given.proto)
    if source.given.blobs:
        for tensor in tensors(proto):
            if source.given.blob(tensor) is not None:
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                del tensor.dims[:]
                tensor.dims.append(0)
    try:
        checker.check_model(proto)
    except Exception as error:  # checker.ValidationError, and whatever its C++ side lets out
        return printable(str(error).strip().splitlines()[0][:300]) if str(error).strip() else type(error).__name__
    return None


def _opsets(original: Source, folded: Source, notes: list[str]) -> None:
    ours, theirs = original.opsets(), folded.opsets()
    for domain, version in theirs.items():
        shown = printable(domain) or "ai.onnx"
        if domain not in ours:
            notes.append(f"new operator domain {shown}")
        elif ours[domain] != version:
            notes.append(f"opset of {shown} is {version}, in the original {ours[domain]}")


def _defaults(original: Source, folded: Source, problems: list[str]) -> None:
    """Compare the values of inputs that have one and need not be fed."""
    ours, theirs = _overridable(original), _overridable(folded)
    for name in ours.keys() | theirs.keys():
        if name in ours and name in theirs:
            if not original.same(ours[name], folded, theirs[name]):
                problems.append(f"input {printable(name)!r} has another default value")
        elif name in ours:
            problems.append(f"input {printable(name)!r} can be overridden in the original only")


def _overridable(source: Source) -> dict[str, onnx.TensorProto]:
    if source.ir_version < 4:
        return {}
    inputs = {value.name for value in source.proto.graph.input}
    return {tensor.name: tensor for tensor in source.proto.graph.initializer if tensor.name in inputs}
