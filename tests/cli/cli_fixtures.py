"""A model where some norms fold and some stay, and a way to run the command line inside the test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from bnfold_cli import main
from onnx import numpy_helper, parser

MIXED = """<ir_version: 10, opset_import: ["": 21]>
mixed (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y)
<float[4, 4, 3, 3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    n = BatchNormalization <epsilon = 0.0> (c, gamma, beta, mean, var)
    r = Relu(n)
    y = BatchNormalization <epsilon = 0.0> (r, gamma, beta, mean, var)
}"""


@dataclass(frozen=True)
class Outcome:
    """What one command line did."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def mixed() -> onnx.ModelProto:
    """Conv, a norm that folds into it, Relu, and a norm that cannot fold."""
    model = parser.parse_model(MIXED)
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 4, 3, 3)), "beta": rng.standard_normal(4), "mean": rng.standard_normal(4)}
    weights |= {"gamma": np.array([1.0, -2.0, 0.5, 3.0]), "var": np.array([1.0, 4.0, 0.25, 2.0])}
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(mixed(), path)
    return path
