"""The parts of the benchmarks whose mistakes would look like results: counting, comparing, fitting, dealing out time."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

ROOT = Path(__file__).parent.parent / "benchmarks"
HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[1,4,3,3] x) => (float[1,4,3,3] y) '


def module(name: str, folder: str = "tool") -> ModuleType:
    """A module of a benchmark, whose folders are no packages."""
    paths = [str(ROOT / place) for place in dict.fromkeys((folder, "tool"))]
    sys.path[:0] = paths
    try:
        return importlib.import_module(name)
    finally:
        del sys.path[: len(paths)]


def model_of(body: str) -> ModelProto:
    """A model whose declared inner values are initializers, all of them ones."""
    model = parser.parse_model(HEADER + body)
    for value in model.graph.value_info:
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), value.name))
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("{ y = Relu(x) }", (0, 0, 0)),
        ("<float[4] s> { y = BatchNormalization(x, s, s, s, s) }", (1, 0, 0)),
        ("<float[1,4,1,1] s> { y = Mul(x, s) }", (0, 1, 0)),
        ("<float s> { y = Add(s, x) }", (0, 1, 0)),
        ("<float[1,4,3,1] s> { y = Mul(x, s) }", (0, 0, 0)),
        ("<float[4,1,1,1] s> { y = Conv<group = 4>(x, s) }", (0, 1, 0)),
        ("<float[4,1,3,3] s> { y = Conv<group = 4, pads = [1,1,1,1]>(x, s) }", (0, 0, 0)),
        ("{ y = com.microsoft.Gelu(x) }", (0, 0, 3)),
        ("{ y = com.microsoft.QuickGelu<alpha = 1.0>(x) }", (0, 0, 0)),
        ("{ y = com.microsoft.QuickGelu(x) }", (0, 0, 1)),
    ],
)
def test_what_is_counted_as_left(body: str, left: tuple[int, int, int]) -> None:
    counting = module("counting")
    found = counting.count(model_of(body))
    assert (found.norms, found.affine, found.fused) == left


def test_initializers_of_ir_3_are_no_inputs() -> None:
    counting = module("counting")
    model = model_of("<float s> { y = Add(s, x) }")
    model.graph.input.append(helper.make_tensor_value_info("s", 1, []))
    assert counting.inputs_of(model) == ["x", "s"]
    model.ir_version = 3
    assert counting.inputs_of(model) == ["x"]


def counts(norms: int, *, right: bool = True, narrowed: bool = False, hidden: int = 0) -> dict[str, Any]:
    return {"norms": norms, "affine": 0, "hidden": hidden, "right": right, "narrowed": narrowed}


@pytest.mark.parametrize(
    ("bnfold", "frozen", "peer", "expected"),
    [
        (counts(2), None, counts(3), 1),
        (counts(2), None, counts(2), 0),
        (counts(2), None, counts(1), -1),
        (counts(2), None, counts(1, right=False), 1),
        (counts(2), None, counts(1, hidden=1), 0),
        (counts(5), counts(0), counts(1, narrowed=True), 1),
        (counts(5), counts(2), counts(1, narrowed=True), -1),
        (counts(5), counts(0), counts(4), -1),
    ],
)
def test_like_is_compared_with_like(bnfold: Any, frozen: Any, peer: Any, expected: int) -> None:
    leftovers = module("leftovers")
    after = {leftovers.GELU: bnfold, "peer": peer} | ({leftovers.FROZEN: {**frozen, "narrowed": True}} if frozen else {})
    assert leftovers.fewer({"before": {"norms": 5, "affine": 0}, "after": after}, "peer") == expected


def test_fits_find_the_line_and_the_power() -> None:
    growth = module("growth")
    line = [(size, 0.25 + 0.5 * size) for size in (1, 10, 100, 1000)]
    fixed, rate, off = growth.straight(line)
    assert (fixed, rate) == pytest.approx((0.25, 0.5))
    assert off < 1e-9
    for power in (1, 2):
        assert growth.exponent([(size, 3.0 * size**power) for size in (10, 100, 1000)]) == pytest.approx(power)
    assert growth.exponent([(1, 1.0), (1000, 5.0)]) is None


def test_a_table_replaces_the_old_one(tmp_path: Path) -> None:
    page = module("page")
    file = tmp_path / "page.md"
    file.write_text("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n")
    assert page.put(file, "x", "new")
    assert page.put(file, "x", "newer")
    assert file.read_text() == "a\n<!-- begin x -->\n\nnewer\n\n<!-- end x -->\nb\n"
    assert not page.put(file, "y", "new")


def test_rows_share_the_time_and_overhead_is_taken_off() -> None:
    contest = module("contest", "inference")
    allowance = contest.Allowance(100.0, rows=10, most=20.0)
    assert allowance.next() == 10.0
    allowance.took(wall=11.0, budget=10.0)
    assert allowance.next() == pytest.approx(89 / 9 - 1)
    while not allowance.over:
        allowance.took(wall=allowance.next() + 1.0, budget=allowance.next())
    assert allowance.spent == pytest.approx(100)


def test_models_are_measured_to_the_end(tmp_path: Path) -> None:
    """The whole script on one model; how fast it was is nobody's business here."""
    pytest.importorskip("onnxruntime")
    page = tmp_path / "page.md"
    page.write_text("<!-- begin inference-cpu -->\n<!-- end inference-cpu -->\n")
    script = [sys.executable, str(ROOT / "inference" / "run.py"), "--groups", "trained", "--models", "digits_cnn"]
    options = ["--tools", "bnfold", "--threads", "1", "--batch", "1", "--total", "2", "--budget", "0.1"]
    done = subprocess.run(
        [*script, *options, "--out", str(tmp_path), "--page", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "digits_cnn" in page.read_text()
    assert len(json.loads((tmp_path / "inference-cpu.json").read_text())["rows"]) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the page cache of Linux")
def test_the_page_cache_is_looked_at(tmp_path: Path) -> None:
    measure = module("measure")
    file = tmp_path / "data"
    file.write_bytes(bytes(100_000))
    measure.warm([file])
    kept, pages = measure.resident(file)
    assert kept == pages > 0
    assert 0 <= measure.evict([file]) <= 1
