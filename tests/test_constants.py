"""What counts as constant, and what does not."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import build, folds
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold import files
from bnfold.graph import Scope, index_model

STORED = {
    "f": np.float32([1, 4]), "i": np.int32([2, 3]), "i0": [1], "i2": [2], "shape": [2, 1], "square": [2, 2],
    "m": np.float32([[1, 2], [3, 4]]), "m3": np.float32([1, 2, 3]), "q": np.int8([2, -3]), "s": np.float32(0.5),
    "huge": [1 << 20, 1 << 20], "zero": np.float32(0), "three": np.float32(3), "one": np.float32(1),
    "nan": np.float32(np.nan), "far": [(1 << 31) - 1], "before": [-9], "back": [-1], "zeroth": [0],
}  # fmt: skip

NOT_CONSTANT = {
    "an input": ("", "x"),
    "computed": ("k = Relu(x)", "k"),
    "partly computed": ("k = Concat <axis=0> (x, f)", "k"),
    "random": ("k = RandomNormal <shape=[2]> ()", "k"),
    "the shape of a dynamic tensor": ("k = Shape(x)", "k"),
    "too large": ("k = ConstantOfShape(huge)", "k"),
    "another domain": ("k = other.Identity(f)", "k"),
    "nothing": ("", ""),
    "reshaped to floats": ("k = Reshape(f, i)", "k"),
    "a range from no number": ("k = Range(nan, three, one)", "k"),
    "looked up out of range": ("k = Gather(f, i2)", "k"),
    "transposed by an axis that is not there": ("k = Transpose <perm=[5]> (f)", "k"),
    "repeated by floats": ("k = Tile(f, f)", "k"),
    "a sum that does not broadcast": ("k = Add(f, m3)", "k"),
    "the dynamic part of a shape": ("s = Shape(fixed)\nt = Shape(x)\nk = Gather(t, i0)", "k"),
    "backwards from beyond the end": ("k = Slice(f, i0, far, zeroth, back)", "k"),
    "backwards from before the start": ("k = Slice(f, before, before, zeroth, back)", "k"),
    "a computed part of a shape": ("s = Shape(fixed)\nj = Cast <to=7> (x)\nk = Slice(s, j, i2)", "k"),
}


@pytest.mark.parametrize("what", NOT_CONSTANT)
def test_must_not_change(what: str) -> None:
    """A weight takes no product with what is not constant."""
    line, name = NOT_CONSTANT[what]
    nodes = f"{line}\nc = MatMul(fixed, G)\ny = Mul(c, {name})"
    model = build("float[N] x, float[3,5] fixed", nodes, "float[p,q] y", imports={"other": 1}, G=(5, 2), **STORED)
    assert scope(model).constants.get(name) is None
    assert bnfold.fold(model, verify=False).model.SerializeToString() == model.SerializeToString()


def test_a_constant_would_go_into_the_weight() -> None:
    nodes = "k = Identity(f)\nc = MatMul(fixed, G)\ny = Mul(c, k)"
    folds(build("float[3,5] fixed", nodes, G=(5, 2), f=STORED["f"]))


def scope(model: ModelProto) -> Scope:
    return index_model(files.from_proto(model))[0]


EXPRESSIONS = {
    "Identity(f)": [1.0, 4.0],
    "Sqrt(f)": [1.0, 2.0],
    "Neg(f)": [-1.0, -4.0],
    "Reciprocal(f)": [1.0, 0.25],
    "Add(f, f)": [2.0, 8.0],
    "Mul(f, f)": [1.0, 16.0],
    "Div(f, f)": [1.0, 1.0],
    "Sub(f, f)": [0.0, 0.0],
    "Cast <to=1> (i)": [2.0, 3.0],
    "Concat <axis=0> (f, f)": [1.0, 4.0, 1.0, 4.0],
    "Gather(f, i0)": [4.0],
    "Reshape(f, shape)": [[1.0], [4.0]],
    "Unsqueeze(f, i0)": [[1.0], [4.0]],
    "Transpose <perm=[1,0]> (m)": [[1.0, 3.0], [2.0, 4.0]],
    "ConstantOfShape(shape)": [[0.0], [0.0]],
    "Expand(f, square)": [[1.0, 4.0], [1.0, 4.0]],
    "Tile(f, i2)": [1.0, 4.0, 1.0, 4.0],
    "DequantizeLinear(q, s)": [1.0, -1.5],
    "Range(zero, three, one)": [0.0, 1.0, 2.0],
    "Shape(fixed)": [3, 5],
    "Size(fixed)": 15,
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions(expression: str) -> None:
    model = build("float[N] x, float[3,5] fixed", f"k = {expression}\ny = Relu(x)", "float[N] y", **STORED)
    found = scope(model).constants.get("k")
    assert found is not None
    np.testing.assert_array_equal(found.array(), EXPRESSIONS[expression])
    assert found.dims == np.shape(EXPRESSIONS[expression])


def test_an_old_clip_of_integers_and_axes_that_are_not_there() -> None:
    lines = "k = Clip <max=1.0> (i)\nj = Unsqueeze <axes=[7]> (f)\nl = Clip <max=2.0> (f)\ny = Relu(x)"
    constants = scope(build("float[N] x", lines, "float[N] y", opset=9, **STORED)).constants
    assert constants.get("k") is None
    assert constants.get("j") is None
    np.testing.assert_array_equal(constants.get("l").array(), [1, 2])  # type: ignore[union-attr]


@pytest.mark.parametrize("pick", ["Slice(s, k{}, e)", "Gather(s, k{})"])
def test_deep_picks_of_a_shape_end_somewhere(pick: str) -> None:
    lines = "\n".join(f"k{i + 1} = {pick.format(i)}" for i in range(900))
    model = build("float[N,4] x", f"s = Shape(x)\n{lines}\ny = Relu(x)", "float[p,q] y", k0=[1], e=[2])
    constants = scope(model).constants
    constants.get("k900")
    assert constants.get("k1") is not None


def test_deep_expressions_end_somewhere() -> None:
    lines = "\n".join(f"k{i + 1} = Neg(k{i})" for i in range(500))
    model = build("float[N] x", f"{lines}\ny = Relu(x)", "float[N] y", k0=np.float32([1, 2]))
    constants = scope(model).constants
    assert constants.get("k10") is not None
    constants.get("k500")


@pytest.mark.parametrize("ir", [3, 4, 10])
def test_initializers_among_the_inputs(ir: int) -> None:
    """Callers can override them from IR version 4 on."""
    model = build("float[N] x", "y = Relu(x)", "float[N] y", opset=9, ir=ir, k=np.float32([1]))
    if ir >= 4:
        model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [1]))
    assert (scope(model).constants.get("k") is None) == (ir >= 4)


@pytest.mark.parametrize(
    "attribute",
    [
        {"value_float": 2.0},
        {"value_floats": [2.0, 3.0]},
        {"value_int": 2},
        {"value_ints": [2, 3]},
        {"value": numpy_helper.from_array(np.float16([2, 3]))},
    ],
    ids=lambda a: next(iter(a)),
)
def test_constant_nodes(attribute: dict[str, object]) -> None:
    model = build("float[N] x", "y = Relu(x)", "float[N] y")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], **attribute))
    found = scope(model).constants.get("k")
    assert found is not None
    assert found.array().ravel()[0] == 2


def test_a_constant_string_is_no_number() -> None:
    model = build("float[N] x", "j = Identity(k)\ny = Relu(x)", "float[N] y")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value_string=b"text"))
    assert scope(model).constants.get("k") is None
    assert scope(model).constants.get("j") is None


def test_string_tensors_do_not_crash() -> None:
    model = build("float[N] x", "j = Identity(k)\nl = Concat <axis=0> (k, k)\ny = Relu(x)", "float[N] y")
    model.graph.initializer.append(helper.make_tensor("k", TensorProto.STRING, [2], [b"a", b"b"]))
    constants = scope(model).constants
    for name in "jkl":
        found = constants.get(name)
        assert found is None or not found.floating
