"""The proof on a CUDA device; skipped where there is none."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from verify_models import HEADS, Pair

from bnfold.verify import VerifyOptions, verify

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="no CUDAExecutionProvider"),
]
CUDA = VerifyOptions(provider="cuda")
GEOMETRIES = [{}, {"group": 4}, {"group": 8}, {"kind": "ConvTranspose"}]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("head", HEADS)
def test_a_correct_fold_is_equal(dtype, geometry, head):
    pair = Pair(dtype=dtype, head=head, **geometry)
    report = verify(pair.original(), pair.folded(), CUDA, folds=[pair.fold()])
    assert report.verdict == "equal", report.reason
    assert report.providers[0] == "CUDAExecutionProvider"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("head", HEADS)
def test_a_wrong_fold_is_found_and_blamed(dtype, geometry, head):
    pair = Pair(dtype=dtype, head=head, **geometry)
    scale = pair.scale()
    scale[5] *= 1.01
    report = verify(pair.original(), pair.folded(scale=scale), CUDA, folds=[pair.fold()])
    assert (report.verdict, report.blamed) == ("different", ("BatchNormalization:n",))


def test_tf32_is_off():
    pair = Pair(head="plain")
    report = verify(pair.original(), pair.folded(), CUDA)
    assert report.outputs[0].metrics.max_relative < 1e-5
