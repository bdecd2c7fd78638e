"""Sessions: the one place that knows onnxruntime, and the reference evaluator behind it.

``import bnfold`` must not import onnxruntime, so every import of it is inside a function here. A session answers the
same way whatever evaluates it (:class:`Session`), says by name what that is, and never falls back in silence: an
execution provider that onnxruntime drops is a :class:`~bnfold.errors.ProviderError`.
"""

from __future__ import annotations

import enum
import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import OptionError, ProviderError, RuntimeMissingError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    Feeds = Mapping[str, Any]

__all__ = ["CPU", "CUDA", "Level", "Provider", "Session", "onnxruntime", "open_reference", "open_session", "providers"]

INSTALL = 'install it with: pip install "bnfold[cpu]"'
INSTALL_CUDA = 'install it with: pip install "bnfold[cuda]"'
PROTOBUF_LIMIT = 2**31 - 1  # protobuf messages end here; larger models go to a session by path
_SHORT = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "trt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "dml": "DmlExecutionProvider",
    "directml": "DmlExecutionProvider",
}


class Level(enum.Enum):
    """Graph optimisation levels of onnxruntime."""

    DISABLE_ALL = "ORT_DISABLE_ALL"
    BASIC = "ORT_ENABLE_BASIC"
    EXTENDED = "ORT_ENABLE_EXTENDED"
    ALL = "ORT_ENABLE_ALL"


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider and its options, e.g. ``Provider("CUDAExecutionProvider", (("device_id", "0"),))``."""

    name: str = "CPUExecutionProvider"
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str | Provider) -> Provider:
        """Read ``cpu``, ``cuda``, ``cuda:device_id=0,use_tf32=1`` or any provider name of onnxruntime.

        Names are case-insensitive and may leave out ``ExecutionProvider``.

        Raises:
            OptionError: an empty name, or an option that is not ``key=value``.
        """
        if isinstance(text, Provider):
            return text
        name, _, rest = text.strip().partition(":")
        if not name:
            raise OptionError(f"provider {printable(text)!r}: expected cpu, cuda or NAME[:option=value,...]")
        options = []
        for item in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                raise OptionError(f"provider {printable(text)!r}: option {printable(item)!r} is not key=value")
            options.append((key.strip(), value.strip()))
        return cls(_full_name(name.strip()), tuple(options))

    @property
    def short(self) -> str:
        """The name without ``ExecutionProvider``, in lower case."""
        return self.name.removesuffix("ExecutionProvider").lower()

    def __str__(self) -> str:
        return self.name + (":" + ",".join(f"{k}={v}" for k, v in self.options) if self.options else "")


CPU = Provider()
CUDA = Provider("CUDAExecutionProvider")


def _full_name(name: str) -> str:
    known = {full.lower(): full for full in _SHORT.values()}
    bare = name.lower().removesuffix("executionprovider")
    if bare in _SHORT:
        return _SHORT[bare]
    return known.get(
        f"{bare}executionprovider", name if name.endswith("ExecutionProvider") else f"{name}ExecutionProvider"
    )


def onnxruntime() -> Any:
    """Import and return the onnxruntime module.

    Raises:
        RuntimeMissingError: it is not installed or cannot be loaded; the message has the pip command.
    """
    try:
        module = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissingError(f"onnxruntime cannot be imported ({error}); {INSTALL}") from error
    if not hasattr(module, "InferenceSession"):  # an empty namespace is what two broken wheels side by side leave
        raise RuntimeMissingError(f"onnxruntime is installed but broken; {INSTALL}, in a fresh environment")
    return module


def providers() -> tuple[str, ...]:
    """Names of the execution providers that the installed onnxruntime was built with."""
    return tuple(onnxruntime().get_available_providers())


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
            raise RuntimeMissingError(f"{self.evaluator} cannot run the model: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))


def open_session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    provider: Provider | str = CPU,
    optimize: bool | Level = False,
    threads: int = 1,
    tf32: bool = False,
    cuda_graph: bool = False,
    spin: bool = False,
    base_dir: str | os.PathLike[str] | None = None,
    initializers: Mapping[str, NDArray[Any]] | None = None,
    external: Mapping[str, NDArray[Any]] | None = None,
    config: Mapping[str, str] | None = None,
    profile: str | os.PathLike[str] | None = None,
) -> Session:
    """Open an onnxruntime session.

    Args:
        model: a path, serialised bytes, or a model in memory. Models above 2 GiB must come as a path.
        provider: where to run; nodes that it does not know run on the CPU and are counted.
        optimize: False runs the graph as written (``ORT_DISABLE_ALL``), True is ``ORT_ENABLE_ALL``, or a level.
        threads: threads inside an operator; 0 lets onnxruntime choose.
        tf32: allow TF32 in CUDA matrix products; an explicit ``use_tf32`` among the provider's options wins.
        cuda_graph: capture and replay a CUDA graph (fixed shapes and device buffers only).
        spin: let idle threads spin; off, so that sessions in one process do not fight for cores.
        base_dir: folder of the external data, for a model that does not come as a path.
        initializers: values that replace initializers of the main graph by name; shape and type must stay.
        external: values of initializers that the model marks as external data, so that nothing is read for them.
        config: further session configuration entries.
        profile: file prefix for onnxruntime's profile; it is written by ``session.raw.end_profiling()``.

    Raises:
        RuntimeMissingError: onnxruntime is missing, or cannot run this model.
        ProviderError: the provider is not in this build of onnxruntime, or was dropped.
    """
    ort = onnxruntime()
    asked = Provider.parse(provider)
    _require(ort, asked)
    options = _session_options(ort, optimize, threads, spin, profile)
    if asked.name != CPU.name:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if base_dir is not None and not isinstance(model, str | os.PathLike):
        folder = str(Path(base_dir).resolve())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    keep: list[Any] = []
    for name, array in (initializers or {}).items():
        keep.append(ort.OrtValue.ortvalue_from_numpy(array))
        options.add_initializer(name, keep[-1])
    if external:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in external.values()]
        options.add_external_initializers(list(external), values)
        keep += values
    chosen, chosen_options = _provider_arguments(asked, tf32, cuda_graph)
    try:
        raw = ort.InferenceSession(_source(model), options, providers=chosen, provider_options=chosen_options)
    except Exception as error:  # onnxruntime's exceptions derive from Exception directly
        raise RuntimeMissingError(f"onnxruntime cannot open the model: {_first_line(error)}") from error
    in_use = tuple(raw.get_providers())
    if asked.name not in in_use:
        raise ProviderError(
            f"{asked.name} was dropped by onnxruntime when the session was made (in use: {', '.join(in_use)}); "
            "its libraries or device are not there"
        )
    raw.disable_fallback()
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4
    return Session(
        inputs=tuple(i.name for i in raw.get_inputs()),
        outputs=tuple(o.name for o in raw.get_outputs()),
        providers=in_use,
        evaluator=f"onnxruntime {ort.__version__}",
        raw=raw,
        foreign_nodes=_foreign_nodes(raw, asked),
        _run_options=quiet,
        _keep=keep,
    )


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
        raise RuntimeMissingError(
            f"the onnx reference evaluator cannot open the model: {_first_line(error)}"
        ) from error
    given = set(getattr(raw, "rt_inits_", ()))
    return Session(
        inputs=tuple(name for name in raw.input_names if name not in given),
        outputs=tuple(raw.output_names),
        providers=("ReferenceEvaluator",),
        evaluator=f"onnx.reference {onnx.__version__}",
        raw=raw,
    )


def _require(ort: Any, asked: Provider) -> None:
    built = ort.get_available_providers()
    if asked.name not in built:
        advice = INSTALL_CUDA if asked.name == CUDA.name else "see onnxruntime's documentation for builds that have it"
        raise ProviderError(f"this onnxruntime has no {printable(asked.name)} (it has {', '.join(built)}); {advice}")
    if asked.name == CUDA.name and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def _session_options(ort: Any, optimize: bool | Level, threads: int, spin: bool, profile: Any) -> Any:
    level = optimize if isinstance(optimize, Level) else (Level.ALL if optimize else Level.DISABLE_ALL)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level.value)
    options.log_severity_level = 4  # warnings about the model go to the report, not to stderr
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if spin else "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    return options


def _provider_arguments(asked: Provider, tf32: bool, cuda_graph: bool) -> tuple[list[str], list[dict[str, str]]]:
    """Provider lists for ``InferenceSession``; the CPU always stands last and takes what the others do not know."""
    options = dict(asked.options)
    if asked.name == CUDA.name:
        options.setdefault("use_tf32", "1" if tf32 else "0")
        if cuda_graph:
            options.setdefault("enable_cuda_graph", "1")
    if asked.name == CPU.name:
        return [CPU.name], [options]
    return [asked.name, CPU.name], [options, {}]


def _source(model: Any) -> str | bytes:
    if isinstance(model, str | os.PathLike):
        path = os.fspath(model)
        if not Path(path).is_file():
            raise RuntimeMissingError(f"{printable(path)}: no such model file")
        return path
    if isinstance(model, bytes):
        return model
    if model.ByteSize() > PROTOBUF_LIMIT:
        raise RuntimeMissingError("the model is above 2 GiB in memory; give it as a path")
    data: bytes = model.SerializeToString()
    return data


def _foreign_nodes(raw: Any, asked: Provider) -> int | None:
    """Count the nodes that do not stand on the provider asked for; None when this onnxruntime cannot tell."""
    if asked.name == CPU.name:
        return 0
    try:
        groups = raw.get_provider_graph_assignment_info()
        return sum(len(group.get_nodes()) for group in groups if group.ep_name != asked.name)
    except Exception:  # older builds lack the method, plugin providers may refuse it: not worth failing for
        return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return printable(line if len(line) <= 400 else line[:400] + " ...")
