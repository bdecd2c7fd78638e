"""Part ``profile``: where bnfold's time goes, beside the floor. ``python spent.py MODEL OUTPUT`` prints one JSON line.

Spent: the steps of ``bnfold fold --no-verify``, each timed inside one process by wrapping the functions of
``bnfold.folding``. The floor is what no Python tool can avoid: start the interpreter, import what is used of other
packages, parse and serialise the graph without its large weights, move the bytes, multiply them once.
"""

from __future__ import annotations

import json
import os
import sys
import time

BEGIN = time.perf_counter()

from concurrent.futures import ThreadPoolExecutor  # noqa: E402 - the clock starts before the imports
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = {
    "index": ("index_model",),
    "plan": ("plan_model",),
    "count and describe": ("describe", "model_counts", "with_affine", "counts_after"),
    "apply": ("apply_plans",),
    "write weights and graph": ("stage",),
}
BLOCK = 1 << 20  # elements multiplied at a time


def main() -> int:
    """Entry point of the process."""
    source, destination = sys.argv[1:]
    from bnfold import folding, pipeline
    from bnfold.staging import Staged

    spent = {"import bnfold": time.perf_counter() - BEGIN}
    folding.files.load = timed(folding.files.load, spent, "load")
    for step, names in STEPS.items():
        for name in names:
            setattr(folding, name, timed(getattr(folding, name), spent, step))
    Staged.commit = timed(Staged.commit, spent, "flush and replace")  # type: ignore[method-assign]
    start = time.perf_counter()
    pipeline.fold_file(source, destination, verify=False)
    spent["all of fold_file"] = time.perf_counter() - start
    print(json.dumps({"spent": spent, "floor": floor(source)}))
    return 0


def timed(function: Callable[..., Any], spent: dict[str, float], step: str) -> Callable[..., Any]:
    """The function, adding its time to ``spent[step]``."""

    def run(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent[step] = spent.get(step, 0.0) + time.perf_counter() - start

    return run


def floor(source: str) -> dict[str, float]:
    """Parse and serialise the graph, and multiply as many numbers as the weights have."""
    import onnx

    from bnfold import files

    model = files.load(source)
    data = model.proto.SerializeToString()
    start = time.perf_counter()
    onnx.ModelProto.FromString(data).SerializeToString()
    graph = time.perf_counter() - start
    weights = sum(blob.nbytes for blob in model.blobs) // 4
    return {"parse and serialise the graph": graph, "multiply the weights": multiply(weights)}


def multiply(elements: int) -> float:
    """Seconds to widen, multiply and round that many float32 numbers, on all cores."""
    import numpy as np

    threads = len(os.sched_getaffinity(0))
    block = np.ones(BLOCK, np.float32)

    def work(count: int) -> None:
        wide, narrow = np.empty(BLOCK), np.empty(BLOCK, np.float32)
        for _ in range(count):
            np.multiply(block, 1.5, out=wide, dtype=np.float64)
            np.copyto(narrow, wide, casting="same_kind")

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [elements // BLOCK // threads] * threads))
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
