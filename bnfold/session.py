"""A model that can be run: by onnxruntime (:mod:`bnfold.runtime` opens it there) or by the onnx reference evaluator."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnfold.errors import RuntimeMissingError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    Feeds = Mapping[str, Any]

__all__ = ["Session", "first_line", "open_reference"]


@dataclass(slots=True)
class Session:
    """A model that can be run.

    Attributes:
        inputs: names of the inputs that must be fed, in the model's order.
        outputs: names of the outputs, in the model's order.
        providers: execution providers in use, in order of preference; ``("ReferenceEvaluator",)`` for the reference.
        evaluator: what evaluates it, with its version, e.g. ``onnxruntime 1.27.0``.
        raw: the ``onnxruntime.InferenceSession``, or the ``onnx.reference.ReferenceEvaluator``.
        foreign_nodes: nodes that stand on the CPU although another provider was asked for; None when not known.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    providers: tuple[str, ...]
    evaluator: str
    raw: Any
    foreign_nodes: int | None = None
    _run_options: Any = None
    _keep: list[Any] = field(default_factory=list)  # what the session borrows: OrtValues, a temporary folder

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Evaluate the model once.

        Args:
            feeds: an array per input; entries for tensors that are no input are left out.
            outputs: names to return; all of them by default.

        Raises:
            RuntimeMissingError: the evaluator failed on this model with these inputs.
        """
        names = list(self.outputs if outputs is None else outputs)
        given = {name: feeds[name] for name in self.inputs if name in feeds}
        try:
            if self._run_options is None:
                values = self.raw.run(names, given)
            else:
                values = self.raw.run(names, given, self._run_options)
        except Exception as error:  # onnxruntime's exceptions have no common base; the reference raises anything
            raise RuntimeMissingError(f"{self.evaluator} cannot run the model: {first_line(error)}") from error
        return dict(zip(names, values, strict=True))


def open_reference(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Session:
    """Open ``onnx.reference.ReferenceEvaluator``: slow, but knows bfloat16, float64 and rare operators.

    Raises:
        RuntimeMissingError: the reference evaluator does not know the model's operators either.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    try:
        raw = ReferenceEvaluator(os.fspath(model) if isinstance(model, os.PathLike) else model)
    except Exception as error:  # NotImplementedError, RuntimeError, TypeError, ...: whatever its operators raise
        raise RuntimeMissingError(f"the onnx reference evaluator cannot open the model: {first_line(error)}") from error
    given = set(getattr(raw, "rt_inits_", ()))
    return Session(
        inputs=tuple(name for name in raw.input_names if name not in given),
        outputs=tuple(raw.output_names),
        providers=("ReferenceEvaluator",),
        evaluator=f"onnx.reference {onnx.__version__}",
        raw=raw,
    )


def first_line(error: BaseException) -> str:
    """What an error of foreign code says, fit for one line."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return printable(line if len(line) <= 400 else line[:400] + " ...")
