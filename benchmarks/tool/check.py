"""Is a folded model still the same network? ``python check.py ORIGINAL RECIPE.json CANDIDATE...``

Runs in a process of its own, since a broken model can take onnxruntime down with it. Both models run on the recipe's
input with ``ORT_DISABLE_ALL``. One JSON line for the original, then one per candidate:
``{"right": bool, "error": float | null, "why": str}``;
``error`` is the largest difference over the largest value of that output.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

TYPES: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "DOUBLE": np.float64,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
TOLERANCE = {"float16": 2e-2, "float32": 5e-4, "float64": 1e-9}


def make_inputs(recipe: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays for a recipe ``{"seed": 0, "inputs": {NAME: {"dtype", "shape", "dist"}}}``; a random stream per name."""
    arrays = {}
    for name, spec in recipe["inputs"].items():
        stream = np.random.default_rng([recipe.get("seed", 0), zlib.crc32(name.encode())])
        kind, _, rest = spec["dist"].partition(":")
        shape = spec["shape"]
        makers = {
            "normal": lambda shape=shape, stream=stream: stream.standard_normal(shape),
            "uniform": lambda shape=shape, stream=stream: stream.random(shape),
            "ones": lambda shape=shape: np.ones(shape),
            "value": lambda shape=shape, rest=rest: np.full(shape, float(rest)),
            "randint": lambda shape=shape, rest=rest, stream=stream: stream.integers(*map(int, rest.split(":")), shape),
        }
        arrays[name] = np.asarray(makers[kind]()).astype(TYPES[spec["dtype"]])
    return arrays


def by_name(recipe: dict[str, Any], path: str) -> dict[str, Any]:
    """A recipe that only has the shapes of the inputs in their order, with their names; all of them float32."""
    if "inputs" in recipe:
        return recipe
    given = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name for tensor in given.initializer}
    names = [value.name for value in given.input if value.name not in stored]
    normal = {"dtype": "FLOAT", "dist": "normal"}
    return {"inputs": {n: {**normal, "shape": shape} for n, shape in zip(names, recipe["shapes"], strict=True)}}


def run(path: str, inputs: dict[str, np.ndarray]) -> list[Any]:
    """All outputs of a model, with every optimisation off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return list(session.run(None, {name: array for name, array in inputs.items() if name in wanted}))


def difference(expected: Any, got: Any) -> tuple[float, str]:
    """Relative error of one output and why it counts as wrong, if it does."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return np.inf, f"{got.dtype}{list(got.shape)} for {expected.dtype}{list(expected.shape)}"
    if not np.issubdtype(expected.dtype, np.floating):
        return (0.0, "") if np.array_equal(expected, got) else (1.0, "integers differ")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return np.inf, "not finite in other places"
    if not finite.any():
        return 0.0, ""
    wide, other = expected[finite].astype(np.float64), got[finite].astype(np.float64)
    error = float(np.abs(wide - other).max() / max(np.abs(wide).max(), 1e-30))
    return error, "" if error <= TOLERANCE[str(expected.dtype)] else f"error {error:.1e}"


def judge(expected: list[Any], candidate: str, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compare one candidate with the original's outputs."""
    try:
        got = run(candidate, inputs)
    except Exception as error:
        return {"right": False, "error": None, "why": f"does not run: {str(error).splitlines()[0][:160]}"}
    if len(got) != len(expected):
        return {"right": False, "error": None, "why": "another number of outputs"}
    found = [difference(a, b) for a, b in zip(expected, got, strict=True)]
    error, why = max(found, key=lambda item: (bool(item[1]), item[0]), default=(0.0, ""))
    return {"right": not why, "error": error if np.isfinite(error) else None, "why": why}


def main() -> int:
    """Entry point of the process."""
    original, recipe, *candidates = sys.argv[1:]
    inputs = make_inputs(by_name(json.loads(Path(recipe).read_text()), original))
    expected = run(original, inputs)
    print(json.dumps({"original": "runs"}), flush=True)
    for candidate in candidates:
        print(json.dumps(judge(expected, candidate, inputs)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
