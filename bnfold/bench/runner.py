"""Sessions as callables: inputs and outputs are bound to device buffers once, so that a run copies nothing."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import OptionError, RuntimeMissingError, printable
from bnfold.inputs import InputSpec, make_inputs
from bnfold.runtime import Level, Session, onnxruntime, open_session

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from bnfold.bench.options import BenchOptions

__all__ = ["Runner", "check_batch", "feeds_for", "open_runner"]

LEVELS = (Level.DISABLE_ALL, Level.ALL)


@dataclass(frozen=True, slots=True)
class Runner:
    """A session that runs on the same bound buffers every time it is called."""

    session: Session
    run: Callable[[], object]

    @property
    def foreign_nodes(self) -> int | None:
        """Nodes that do not stand on the provider asked for; None when onnxruntime does not tell."""
        return self.session.foreign_nodes


def feeds_for(specs: tuple[InputSpec, ...], options: BenchOptions, batch: int | None) -> dict[str, Any]:
    """Make inputs for one batch size.

    Raises:
        OptionError: the batch size cannot be set because every input's first dimension is a fixed number.
    """
    check_batch(specs, batch)
    return make_inputs(specs, seed=options.seed, dims=options.dims, batch=batch or 1)


def check_batch(specs: tuple[InputSpec, ...], batch: int | None) -> None:
    """Refuse a batch size that the model does not take; a fixed first dimension of that very size is fine.

    Raises:
        OptionError: see above.
    """
    if batch is None:
        return
    firsts = [(spec.name, spec.shape[0]) for spec in specs if spec.shape]
    fixed = [(name, first) for name, first in firsts if isinstance(first, int) and first != batch]
    if fixed and len(fixed) == len(firsts):
        name, size = fixed[0]
        raise OptionError(
            f"--batch {batch}: the first dimension of input {printable(name)!r} is fixed at {size}; "
            "export the model with a dynamic batch dimension, or leave --batch out"
        )


def open_runner(
    path: str | os.PathLike[str], level: Level, threads: int, feeds: Mapping[str, Any], options: BenchOptions
) -> Runner:
    """Open a session and bind ``feeds`` and the outputs to buffers on the provider's device.

    Raises:
        ProviderError: the provider is not there, or was dropped.
        RuntimeMissingError: onnxruntime is missing or cannot run the model.
    """
    session = open_session(
        path,
        provider=options.provider,
        optimize=level,
        threads=threads,
        tf32=options.tf32,
        cuda_graph=options.cuda_graph,
    )
    return Runner(session, bind(session, feeds, device_of(options)))


def device_of(options: BenchOptions) -> tuple[str, int]:
    """Name and number of the device whose memory the buffers are in."""
    name = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}.get(options.provider.name, "cpu")
    return name, int(dict(options.provider.options).get("device_id", "0"))


def bind(session: Session, feeds: Mapping[str, Any], device: tuple[str, int]) -> Callable[[], object]:
    """A callable that runs the session once and returns when the device is done.

    Values that are no numeric tensors (strings, sequences) cannot be bound; such models run the plain way, with copies.
    """
    ort = onnxruntime()
    given = {name: feeds[name] for name in session.inputs if name in feeds}
    names = list(session.outputs)
    arrays = [value for value in given.values() if isinstance(value, np.ndarray)]
    outputs = session.run(given)  # shapes of the outputs, and an error that names the model if it does not run
    numeric = all(isinstance(v, np.ndarray) and v.dtype.kind != "O" for v in (*given.values(), *outputs.values()))
    if not numeric or len(arrays) != len(given):
        return lambda: session.raw.run(names, given)
    binding = session.raw.io_binding()
    kept = ExitStack()  # the OrtValues must outlive the binding; the closure below holds them
    values = []
    for name, array in given.items():
        values.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *device))
        binding.bind_ortvalue_input(name, values[-1])
    for name in names:
        array = outputs[name]
        values.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *device))
        binding.bind_ortvalue_output(name, values[-1])
    kept.push(lambda *_: values.clear())
    binding.synchronize_inputs()
    return bound_run(session, binding, kept, wait=device[0] != "cpu")


def bound_run(session: Session, binding: Any, kept: object, *, wait: bool) -> Callable[[], object]:
    """Close over a binding; on a device the outputs are synchronised, so that the work is done when it returns."""
    run = session.raw.run_with_iobinding

    def once() -> object:
        run(binding)
        if wait:
            binding.synchronize_outputs()
        return kept

    try:
        once()
    except Exception as error:  # onnxruntime's exceptions have no common base
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise RuntimeMissingError(f"{session.evaluator} cannot run the model: {printable(message)}") from error
    return once
