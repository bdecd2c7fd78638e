"""Before opset 7 an attribute says along which axis a constant lies, and that it broadcasts at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import build, fold, integers, ops
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

K = np.float32([2, -1, 4])
CONSTANTS = {"k": K, "c": np.float32(2), "V": (3, 3), "W": (3, 3, 1, 1), "full": np.full((3, 3, 3, 3), 2, np.float32)}
ROWS = "a = Transpose <perm=[0, 2, 3, 1]> (x)\nb = MatMul(a, V)\nh = Transpose <perm=[0, 3, 1, 2]> (b)\n"


def model(nodes: str) -> ModelProto:
    return build("float[3,3,3,3] x, float[3] z", nodes, "float[3,3,3,3] y", opset=6, ir=3, **CONSTANTS)


def old(op: str, function: Callable[[Any, Any], Any]) -> type[OpRun]:
    """An operator as the specification had it then; onnx's evaluator only knows it as it is now."""

    def run(self: OpRun, a: Any, b: Any, axis: int | None = None, broadcast: int | None = None) -> tuple[Any]:
        if not broadcast:
            assert a.shape == b.shape
            return (function(a, b),)
        if b.size == 1:
            return (function(a, b.reshape(())),)
        start = a.ndim - b.ndim if axis is None else axis % a.ndim
        end = start + b.ndim
        assert a.shape[start:end] == b.shape
        return (function(a, b.reshape(b.shape + (1,) * (a.ndim - end))),)

    return type(op, (OpRun,), {"op_domain": "", "_run": run})


OLD = [old("Mul", np.multiply), old("Add", np.add)]


@pytest.mark.parametrize(
    "nodes",
    [
        "c0 = Conv(x, W)\na = Add <axis=1, broadcast=1> (c0, z)\ny = BN3 <is_test=1> (a)",
        "a = Mul <axis=1, broadcast=1> (x, k)\ny = Add <axis=1, broadcast=1> (a, k)",
        "a = Mul <axis=1, broadcast=1> (x, k)\ny = Mul <axis=2, broadcast=1> (a, k)",
        "a = MatMul(x, V)\ny = Add(a, full)",
        "a = MatMul(V, x)\ny = Add <axis=2, broadcast=1> (a, k)",
    ],
    ids=["computed operand", "nothing to merge into", "along another axis", "full constant", "shift of rows"],
)
def test_must_not_change(nodes: str) -> None:
    made = model(nodes)
    assert fold(made).model.SerializeToString() == made.SerializeToString()


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("a = Mul <axis=1, broadcast=1> (x, k)\ni = Identity(a)\ny = Mul <axis=1, broadcast=1> (i, k)", "Mul Identity"),
        ("a = Mul <axis=1, broadcast=1> (x, k)\nb = Add <axis=-3, broadcast=1> (a, k)\ny = Neg(b)", "Mul Add"),
        ("a = Mul <broadcast=1> (x, c)\ni = Identity(a)\ny = Mul <broadcast=1> (i, c)", "Mul Identity"),
        ("a = Add <axis=2, broadcast=1> (x, k)\ni = Transpose <perm=[0, 2, 1, 3]> (a)\ny = Add <axis=1, broadcast=1> (i, k)", "Add Transpose"),
        ("a = Mul <axis=1, broadcast=1> (x, k)\ni = Identity(a)\ny = BN3 <is_test=1> (i)", "Identity BatchNormalization"),
        ("a = MatMul(x, V)\nb = Mul <axis=3, broadcast=1> (a, k)\ny = Add <axis=3, broadcast=1> (b, k)", "MatMul Add"),
        ("a = MatMul(x, V)\nb = Add <broadcast=1> (a, k)\ny = Mul <axis=3, broadcast=1> (b, k)", "MatMul Add"),
        (ROWS + "y = BN3 <is_test=1> (h)", "Transpose MatMul Add Transpose"),
    ],
)  # fmt: skip
def test_what_is_written_broadcasts_in_the_same_way(nodes: str, left: str) -> None:
    made = model(nodes)
    folded = fold(made).model
    assert ops(folded) == left.split()
    feeds = {"x": integers((3, 3, 3, 3), "x"), "z": integers((3,), "z")}
    want, got = (ReferenceEvaluator(each, new_ops=OLD).run(None, feeds) for each in (made, folded))
    np.testing.assert_array_equal(got, want)
    assert fold(folded).model.SerializeToString() == folded.SerializeToString()


def test_the_first_operand_keeps_its_shape() -> None:
    """By the newer rule, ``[3]`` would stretch the last axis, and its sum would have three terms."""
    nodes = "a = Mul <axis=1, broadcast=1> (x, k)\nb = Add <axis=1, broadcast=1> (a, k)\ns = ReduceSum <axes=[3]> (b)\n"
    nodes += "y = Add <broadcast=1> (s, six)"
    made = build("float[2,3,4,1] x", nodes, "float[2,3,4,1] y", opset=6, ir=3, k=K, six=np.float32(6))
    folded = fold(made).model
    assert ops(folded) == ["Mul", "Add", "ReduceSum"]
    feeds = {"x": integers((2, 3, 4, 1), "x")}
    want, got = (ReferenceEvaluator(each, new_ops=OLD).run(None, feeds) for each in (made, folded))
    np.testing.assert_array_equal(got, want)
