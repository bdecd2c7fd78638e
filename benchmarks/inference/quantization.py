"""Static int8 quantisation after bnfold against before: ``python benchmarks/inference/quantization.py [--total 600]``.

onnxruntime's quantizer (QDQ, MinMax, weights per channel) on four forms of every model: as it was, after onnxruntime's
own preparation (``quant_pre_process``), after bnfold, and after both. Calibration uses one part of the held-out data,
accuracy the other; models of the corpus have no labels, so how far their outputs are from the float model's is given.
A norm that is left stays a float island between a DequantizeLinear and a QuantizeLinear. Writes ``quantization.json``,
every model as soon as it is measured, and ``.md`` to ``.cache/results``; with ``--page`` the table goes into that page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tool"))

import page
from quantization_table import FORMS, markdown
from race import race
from subjects import ROOT, Subject, all_subjects

import bnfold
from bnfold.bench import BenchOptions
from bnfold.bench.runner import open_runner
from bnfold.runtime import Level, open_session

if TYPE_CHECKING:
    from collections.abc import Iterator

CALIBRATION = 128  # samples
PATHS = re.compile(r"(/[\w.-]+)+/")  # folders in messages of onnxruntime
INTEGER = frozenset({"QuantizeLinear", "DequantizeLinear"})


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """Feeds one after the other, as the quantizer wants them."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.rest: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """The next one, or None at the end."""
        return next(self.rest, None)


def main() -> int:
    """Quantise, measure, print."""
    args = arguments()
    logging.getLogger().setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "quantization.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if args.tables else []
    end = time.monotonic() + args.total
    with tempfile.TemporaryDirectory(prefix="work-", dir=args.out) as folder:
        for subject in () if args.tables else all_subjects(Path(folder), args.groups):
            if args.models and subject.name not in args.models:
                continue
            if time.monotonic() > end:
                print(f"{subject.name}: left out, the time is over", file=sys.stderr)
                continue
            start = time.monotonic()
            rows.append({**measured(subject, Path(folder), args.budget), "group": subject.group})
            file.write_text(json.dumps(rows, indent=1))
            print(f"{subject.name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    text = markdown(rows)
    (args.out / "quantization.md").write_text(text)
    print(text)
    if args.page and not page.put(args.page, "quantization", text):
        print(f"{args.page} has no place for quantization", file=sys.stderr)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: tuple(text.split(","))  # noqa: E731
    parser.add_argument("--groups", type=words, default=("trained", "packages", "corpus"), metavar="GROUP,...")
    parser.add_argument("--models", type=words, metavar="NAME,...", help="only these models")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of timing per model, all forms together")
    parser.add_argument("--total", type=float, default=900, help="seconds after which no other model begins")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "results", help="folder for results")
    parser.add_argument("--page", type=Path, help="page that gets the table")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write tables of what was measured")
    return parser.parse_args()


def measured(subject: Subject, folder: Path, budget: float) -> dict[str, Any]:
    """One row, with weights quantised per channel, or per tensor where that leaves more forms that run."""
    rows = []
    for per_channel in (True, False):
        try:
            rows.append(measure(subject, folder, budget, per_channel=per_channel))
        except Exception as error:  # the float model itself does not run
            return {"model": subject.name, "why": brief(error)}
        if all("seconds" in form for form in rows[-1]["forms"].values()):
            return rows[-1]
    return max(rows, key=lambda row: sum("seconds" in form for form in row["forms"].values()))


def measure(subject: Subject, folder: Path, budget: float, *, per_channel: bool) -> dict[str, Any]:
    """One row: for each form norms left, operators outside the integer part, quality and speed."""
    calibration, tests, labels = data(subject)
    floats = [outputs(subject.path, feeds, Level.DISABLE_ALL) for feeds in tests]
    name = subject.name if per_channel else f"{subject.name} (per tensor)"
    row: dict[str, Any] = {"model": name, "float": quality(floats, floats, labels), "forms": {}}
    feeds = tests[0] if not labels else {name: value[:1] for name, value in tests[0].items()}
    runs = {}
    for form in FORMS:
        target = folder / f"{subject.name}-{FORMS.index(form)}-int8.onnx"
        try:
            quantise(prepared(subject, form, folder), target, calibration, per_channel=per_channel)
            got = [outputs(target, feeds, Level.ALL) for feeds in tests]
            runs[form] = open_runner(target, Level.ALL, 1, feeds, BenchOptions()).run
        except Exception as error:  # the quantizer raises what it likes: that it gives up is a result
            row["forms"][form] = {"why": brief(error)}
            continue
        row["forms"][form] = {**islands(target), "quality": quality(floats, got, labels)}
    if runs:
        for form, result in race(runs, budget=budget, precision=0.01).items():
            row["forms"][form].update(seconds=result.seconds, speedup=result.speedup)
    return row


def brief(error: Exception) -> str:
    """The first line of an error, shortened."""
    return PATHS.sub("", f"{type(error).__name__}: {error}".splitlines()[0])[:120]


def quantise(source: Path, target: Path, calibration: list[dict[str, Any]], *, per_channel: bool) -> None:
    """Static quantisation as onnxruntime's documentation recommends it for CPUs, with signed activations."""
    quantize_static(
        str(source),
        str(target),
        Batches(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


def prepared(subject: Subject, form: str, folder: Path) -> Path:
    """The float model of one form, made on first use."""
    path = folder / f"{subject.name}-{FORMS.index(form)}.onnx"
    if path.exists():
        return path
    source = subject.path
    if form.startswith("bnfold"):
        source = folder / f"{subject.name}-folded.onnx"
        onnx.save(bnfold.fold(str(subject.path), verify=False).model, str(source))
    if not form.endswith("prepared"):
        return source
    quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
    return path


def data(subject: Subject) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    """Feeds to calibrate with, feeds to test with, and labels when there are any."""
    held_out = ROOT / "models" / f"{subject.name}_test.npz"
    if subject.group != "trained" or not held_out.exists():
        made = [feeds for seed in range(5) if (feeds := subject.feeds(1, seed)) is not None]
        return made[:4], made[4:], None
    name = onnx.load(str(subject.path)).graph.input[0].name
    with np.load(held_out) as archive:
        x, y = archive["x"], archive["y"]
    calibration = [{name: x[i : i + 1]} for i in range(min(CALIBRATION, len(x) // 2))]
    return calibration, [{name: x[len(calibration) :]}], [y[len(calibration) :]]


def outputs(path: Path, feeds: dict[str, Any], level: Level) -> list[Any]:
    """All outputs of one run."""
    return list(open_session(path, optimize=level).run(feeds).values())


def quality(expected: list[list[Any]], got: list[list[Any]], labels: Any) -> float:
    """Accuracy in percent for class labels, mean squared error for images, else signal to noise in decibels."""
    if labels is not None and labels[0].ndim == 1:
        return float(np.mean([(o[0].argmax(1) == y).mean() for o, y in zip(got, labels, strict=True)]) * 100)
    if labels is not None:
        return float(np.mean([((o[0] - y) ** 2).mean() for o, y in zip(got, labels, strict=True)]))
    pairs = [(a, b) for e, g in zip(expected, got, strict=True) for a, b in zip(e, g, strict=True)]
    wide = [(np.asarray(a, float).ravel(), np.asarray(b, float).ravel()) for a, b in pairs]
    signal = sum(float((a**2).sum()) for a, _ in wide)
    noise = sum(float(((a - b) ** 2).sum()) for a, b in wide)
    return 10 * float(np.log10(signal / noise)) if noise and signal else float("inf")


def islands(path: Path) -> dict[str, int]:
    """Norms left in float, and runs of the model's operators between a DequantizeLinear and a QuantizeLinear."""
    graph = onnx.load(str(path)).graph
    nodes = list(itertools.chain(graph.node))
    names = [node.op_type for node in nodes]
    return {
        "norms": names.count("BatchNormalization"),
        "operators": sum(name not in INTEGER and name != "Constant" for name in names),
        "quantize_pairs": names.count("QuantizeLinear"),
    }


if __name__ == "__main__":
    raise SystemExit(main())
