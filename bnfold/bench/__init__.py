"""Measure two models against each other: latency in pairs, start-up, memory, size.

    report = bnfold.bench("model.onnx", "folded.onnx")
    report.headline.speedup              # Speedup(median=1.31, low=1.30, high=1.32): original time over folded time
    report.slower_than(0.05)             # rows that are worse by more than 5% in the whole interval

Every row is measured with all of onnxruntime's optimisations off and with all of them on, since the first alone says
nothing about what a user gets: onnxruntime folds some norms by itself.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from bnfold.bench.options import BenchOptions
from bnfold.bench.report import (
    SCHEMA,
    BenchReport,
    Caution,
    Facts,
    Machine,
    Row,
    Samples,
    Side,
    Speedup,
    Start,
    StartRow,
)
from bnfold.bench.session import bench

__all__ = [
    "SCHEMA",
    "BenchOptions",
    "BenchReport",
    "Caution",
    "Facts",
    "Machine",
    "Row",
    "Samples",
    "Side",
    "Speedup",
    "Start",
    "StartRow",
    "bench",
]


class _Callable(types.ModuleType):
    """Once any module of this package was imported, ``bnfold.bench`` is the package; it must still be callable."""

    def __call__(self, *args: Any, **options: Any) -> BenchReport:
        return bench(*args, **options)


sys.modules[__name__].__class__ = _Callable
