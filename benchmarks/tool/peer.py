"""Run one peer on one model, as its own process: ``python peer.py TOOL SOURCE DESTINATION``.

This file runs inside the environment that holds the peers, so it imports nothing of bnfold. Each tool is called through
its Python interface in the shortest way its documentation shows; that leaves out the tables their command lines print.
Exit codes: 0 done, 3 the tool refused or failed (the reason is the last line on stderr).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

INLINE_LIMIT = 1_800_000_000  # bytes; a protobuf message ends at 2 GiB, so larger results go to external data


def total_bytes(path: str) -> int:
    """Bytes of a model: the file itself and whatever lies beside it under the same stem."""
    source = Path(path)
    beside = source.parent.glob(source.name + ".*")
    return source.stat().st_size + sum(p.stat().st_size for p in beside if p.is_file())


def save(model: Any, source: str, destination: str) -> None:
    """Write with ``onnx.save``; as external data when the source is too large to be inline, or external itself."""
    import onnx

    external = total_bytes(source) > INLINE_LIMIT or total_bytes(source) > Path(source).stat().st_size
    if not external:
        onnx.save(model, destination)
        return
    location = Path(destination).name + ".data"
    onnx.save(model, destination, save_as_external_data=True, location=location, size_threshold=1024)


def run_onnxruntime(source: str, destination: str, level: str = "ORT_ENABLE_BASIC") -> None:
    """Offline optimisation; BASIC writes standard operators only, ALL writes ones for this very processor."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = destination
    options.log_severity_level = 3
    if total_bytes(source) > INLINE_LIMIT or total_bytes(source) > Path(source).stat().st_size:
        name = Path(destination).name + ".data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", name)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_onnxruntime_all(source: str, destination: str) -> None:
    """The same with every optimisation."""
    run_onnxruntime(source, destination, "ORT_ENABLE_ALL")


def run_onnxsim(source: str, destination: str) -> None:
    """Constant folding, onnxoptimizer's passes and its own; no check runs (``check_n=0`` is its default)."""
    import onnxsim

    onnxsim.simplify(source, output_path=destination)


def run_onnxslim(source: str, destination: str) -> None:
    """Fusions, constant folding, dead code, until nothing changes (ten rounds at most)."""
    import onnxslim

    external = total_bytes(source) > INLINE_LIMIT or total_bytes(source) > Path(source).stat().st_size
    onnxslim.slim(source, destination, save_as_external_data=external)


def run_onnxoptimizer(source: str, destination: str) -> None:
    """Its default list of fusions and eliminations."""
    import onnx
    import onnxoptimizer

    save(onnxoptimizer.optimize(onnx.load(source)), source, destination)


def run_onnxscript(source: str, destination: str) -> None:
    """The three rules that fuse a batch norm, without the other rewrites."""
    import onnx_ir
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules.common import (
        fuse_batchnorm_into_conv_rule,
        fuse_batchnorm_into_conv_transpose_rule,
        fuse_batchnorm_into_gemm_rule,
    )

    rules = [fuse_batchnorm_into_conv_rule, fuse_batchnorm_into_conv_transpose_rule, fuse_batchnorm_into_gemm_rule]
    model = rewrite(onnx_ir.load(source), rules)
    external = total_bytes(source) > INLINE_LIMIT or total_bytes(source) > Path(source).stat().st_size
    onnx_ir.save(model, destination, external_data=Path(destination).name + ".data" if external else None)


def run_load_save(source: str, destination: str) -> None:
    """``onnx.load`` and ``onnx.save``: what any tool on these two pays before it has done anything."""
    import onnx

    save(onnx.load(source), source, destination)


TOOLS = {
    "onnxruntime": run_onnxruntime,
    "onnxruntime-all": run_onnxruntime_all,
    "onnxsim": run_onnxsim,
    "onnxslim": run_onnxslim,
    "onnxoptimizer": run_onnxoptimizer,
    "onnxscript": run_onnxscript,
    "load-save": run_load_save,
}


def main() -> int:
    """Entry point of the process."""
    tool, source, destination = sys.argv[1:]
    try:
        TOOLS[tool](source, destination)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
