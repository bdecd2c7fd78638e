"""Reading affines from nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import build, fold, initializers, integers
from onnx import ModelProto

import bnfold
from bnfold import files
from bnfold.graph import Node, index_model
from bnfold.read import AffineNode, is_affine_operator, read
from bnfold.refusals import CODES, Refusal

K = np.float32([2, -0.5, 4]).reshape(3, 1, 1)
ZERO = np.float32([2, 0, 4]).reshape(3, 1, 1)
INF = np.float32([2, np.inf, 4]).reshape(3, 1, 1)
BIG = np.float32([1] * 5)
CONSTANTS = {
    "k": K,
    "zero": ZERO,
    "inf": INF,
    "plane": np.arange(12, dtype=np.float32).reshape(3, 4),
    "high": K.reshape(1, 1, 3, 1, 1),
    "wrong": BIG.reshape(1, 5, 1, 1),
}
NORM = "y = BatchNormalization(x, g, b, m, v)"
ONES = {name: np.ones(3, np.float32) for name in "gbmv"}

NO_AFFINE = {
    "a square": ("y = Mul(x, x)", CONSTANTS, None),
    "a plane": ("y = Mul(x, plane)", CONSTANTS, None),
    "a plane that may stretch the tensor": ("y = Mul(x, plane)", CONSTANTS | {"plane": np.ones((2, 4), np.float32)}, "shape-unknown"),
    "a plane of channels that differ along an axis": ("y = Mul(x, plane)", CONSTANTS | {"plane": K + BIG[:4] * np.float32([1, 1, 1, 2])}, None),
    "divides a constant": ("y = Div(k, x)", CONSTANTS, None),
    "divides by zero": ("y = Div(x, zero)", CONSTANTS, "not-finite"),
    "an infinite factor": ("y = Mul(x, inf)", CONSTANTS, "not-finite"),
    "a constant of higher rank": ("y = Mul(x, high)", CONSTANTS, "broadcast"),
    "a constant of another length": ("y = Mul(x, wrong)", CONSTANTS, "broadcast"),
    "a product of constants": ("y = Mul(k, k)", CONSTANTS, None),
    "an activation": ("y = Relu(x)", CONSTANTS, None),
    "a norm whose gamma has another length": (NORM, ONES | {"g": np.float32([1])}, "parameter-shape"),
    "a norm whose beta has another rank": (NORM, ONES | {"b": np.ones((3, 1), np.float32)}, "parameter-shape"),
    "a norm whose mean is made of integers": (NORM, ONES | {"m": np.int64([1, 2, 3])}, "parameter-shape"),
    "a norm with no variance": (NORM, ONES | {"v": np.float32([1, -1, 1])}, "variance"),
    "a norm without its inputs": ("y = BatchNormalization(x)", {}, "parameter-shape"),
}


@pytest.mark.parametrize(("line", "constants", "code"), NO_AFFINE.values(), ids=NO_AFFINE)
def test_must_not_change(line: str, constants: dict[str, Any], code: str | None) -> None:
    model = build("float[N,3,H,4] x", line, "float[a,b,c,d] y", **constants)
    found = read(node(model))
    assert (found.code if isinstance(found, Refusal) else found) == code
    assert code is None or code in CODES
    assert bnfold.fold(model, verify=False).model.SerializeToString() == model.SerializeToString()


def node(model: ModelProto) -> Node:
    return index_model(files.from_proto(model))[0].nodes[-1]


@pytest.mark.parametrize(
    ("line", "scale", "shift"),
    [
        ("y = Mul(x, k)", [2, -0.5, 4], [0, 0, 0]),
        ("y = Mul(k, x)", [2, -0.5, 4], [0, 0, 0]),
        ("y = Add(k, x)", [1, 1, 1], [2, -0.5, 4]),
        ("y = Sub(x, k)", [1, 1, 1], [-2, 0.5, -4]),
        ("y = Sub(k, x)", [-1, -1, -1], [2, -0.5, 4]),
        ("y = Div(x, k)", [0.5, -2, 0.25], [0, 0, 0]),
        ("y = Neg(x)", [-1], [0]),
    ],
)
def test_elementwise(line: str, scale: list[float], shift: list[float]) -> None:
    found = read(node(build("float[N,3,H,4] x", line, "float[a,b,c,d] y", k=K)))
    assert isinstance(found, AffineNode)
    assert not found.norm
    np.testing.assert_array_equal(found.affine.scale, scale)
    np.testing.assert_array_equal(found.affine.shift, shift)
    assert found.affine.uniform or found.affine.axis == -3
    assert (found.data, found.output) == ("x", "y")


def test_a_constant_that_repeats_itself_along_the_other_axes() -> None:
    """As exporters leave it where they expand it beforehand."""
    found = read(node(build("float[N,3,2,4] x", "y = Mul(x, k)", "float[a,b,c,d] y", k=np.tile(K, (1, 1, 2, 4)))))
    assert isinstance(found, AffineNode)
    assert (found.affine.scale.tolist(), found.affine.axis) == (K.ravel().tolist(), -3)


def test_norm() -> None:
    values = {
        "g": np.float32([2, -1, 3]),
        "b": np.float32([1, 2, 3]),
        "m": np.float32([4, 0, -2]),
        "v": np.float32([4, 0.25, 1]),
    }
    found = read(
        node(
            build(
                "float[N,3,H,4] x",
                "y = BatchNormalization <epsilon = 0.0> (x, g, b, m, v)",
                "float[a,b,c,d] y",
                **values,
            )
        )
    )
    assert isinstance(found, AffineNode)
    assert found.norm
    np.testing.assert_array_equal(found.affine.scale, [1, -2, 3])
    np.testing.assert_array_equal(found.affine.shift, [-3, 2, 9])
    assert found.affine.axis == 1


def test_is_affine_operator_looks_at_the_type_only() -> None:
    assert is_affine_operator(node(build("float[N] x", "y = Mul(x, x)", "float[N] y")))
    assert not is_affine_operator(node(build("float[N] x", "y = Relu(x)", "float[N] y")))


@pytest.mark.parametrize(
    ("axis", "shape", "place"),
    [(0, (3,), -4), (1, (3,), -3), (2, (3,), -2), (-1, (3,), -1), (1, (3, 1), -3), (1, (1, 3), -2)],
)
def test_before_opset_7_a_constant_is_aligned_by_its_axis_attribute(
    axis: int, shape: tuple[int, ...], place: int
) -> None:
    """``[C]`` with ``axis=1`` is a channel; read by the newer rule it would be the last axis."""
    constant = np.float32([2, -1, 4]).reshape(shape)
    model = build(
        "float[3,3,3,3] x", f"y = Mul <axis={axis}, broadcast=1> (x, k)", "float[3,3,3,3] y", opset=6, ir=3, k=constant
    )
    found = read(node(model))
    assert isinstance(found, AffineNode)
    assert found.affine.axis == place


def test_before_opset_7_a_channel_constant_folds_and_a_row_does_not() -> None:
    for axis, code in ((1, None), (3, "axis")):
        text = f"c = Conv(x, W)\ny = Mul <axis={axis}, broadcast=1> (c, k)"
        result = fold(
            build("float[3,3,3,3] x", text, "float[3,3,3,3] y", opset=6, ir=3, W=(3, 3, 1, 1), k=np.float32([2, -1, 4]))
        )
        assert [kept.code for kept in result.report.kept] == ([code] if code else [])
        if code is None:
            want = integers((3, 3, 1, 1), "W") * np.float32([2, -1, 4]).reshape(3, 1, 1, 1)
            np.testing.assert_array_equal(initializers(result.model)["W"], want)
