"""The one place that knows onnxruntime: finding it, and opening sessions on it.

``import bnfold`` must not import onnxruntime, so every import of it is inside a function here. Nothing falls back in
silence: an execution provider that onnxruntime drops is a :class:`~bnfold.errors.ProviderError`.
"""

from __future__ import annotations

import enum
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import ProviderError, RuntimeMissingError, printable
from bnfold.provider import CPU, CUDA, Provider
from bnfold.session import Session, first_line, open_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from numpy.typing import NDArray

__all__ = ["CPU", "CUDA", "Level", "Provider", "Session", "onnxruntime", "open_reference", "open_session"]

INSTALL = 'install it with: pip install "bnfold[cpu]"'
INSTALL_CUDA = 'install it with: pip install "bnfold[cuda]"'
PROTOBUF_LIMIT = 2**31 - 1  # protobuf messages end here; larger models go to a session by path


class Level(enum.Enum):
    """Graph optimisation levels of onnxruntime."""

    DISABLE_ALL = "ORT_DISABLE_ALL"
    BASIC = "ORT_ENABLE_BASIC"
    EXTENDED = "ORT_ENABLE_EXTENDED"
    ALL = "ORT_ENABLE_ALL"


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


def open_session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    provider: Provider | str = CPU,
    optimize: bool | Level = False,
    threads: int = 1,
    tf32: bool = False,
    cuda_graph: bool = False,
    spin: bool = False,
    arena: bool = True,
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
        arena: keep memory from one run to the next, on the CPU.
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
    options.enable_cpu_mem_arena = arena
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
        raise RuntimeMissingError(f"onnxruntime cannot open the model: {first_line(error)}") from error
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
