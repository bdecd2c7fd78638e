"""Shapes that onnx shape inference gets wrong must not mislead a fold."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import Case, assert_same, build, feeds_for, fold, kept
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnfold import files, infer
from bnfold.graph import index_model
from bnfold.shapes import Shapes

POOL = "{op}<kernel_shape=[2,2], strides=[3,3], pads=[1,1,1,1], ceil_mode=1>"
SUM = "s = ReduceSum(p, hw)\ny = Add(s, two)"
HW, TWO = np.array([2, 3]), np.float32(2)

KEPT = [
    *[
        kept(
            f"{op}: a last window that lies in the padding is not counted, behind a sum, opset {opset}",
            "shape-unknown",
            "float[1,4,5,5] x",
            f"c = Conv(x, W)\np = {POOL.format(op=op)}(c)\n{SUM}",
            opset=opset,
            W=(4, 4, 1, 1),
            hw=HW,
            two=TWO,
        )
        for op in ("MaxPool", "AveragePool")
        for opset in (13, 19)
    ],
    kept(
        "MaxPool: a last window that lies in the padding is not counted, in front of a Conv",
        "sign",
        "float[1,4,5,5] x",
        f'p = {POOL.format(op="MaxPool")}(x)\nn = BN4(p)\ny = Conv<auto_pad="SAME_UPPER", strides=[3,3]>(n, W)',
        opset=17,
        W=(4, 4, 3, 3),
    ),
    kept(
        "ConvTranspose: SAME with output padding",
        "shape-unknown",
        "float[1,4,6] x",
        'p = ConvTranspose<auto_pad="SAME_UPPER", strides=[2], output_padding=[1]>(x, W)\ns = ReduceSum(p, two)\ny = Add(s, k)',
        opset=17,
        W=(4, 2, 3),
        two=[2],
        k=TWO,
    ),
    kept(
        "Slice: bounds that are computed, in a shape",
        "shape-unknown",
        "float[N,4,H,8] x",
        "n = BN4(x)\ns = Shape(x)\nz = Gather(s, i)\nk = Slice(s, z, e)\nto = Concat<axis=0>(k, rest)\n"
        "r = Reshape(n, to)\ny = Conv(r, W)",
        outputs="float[a,b,c] y",
        W=(3, 4, 1),
        i=[0],
        e=[9],
        rest=[4, -1],
    ),
    kept(
        "MaxPool: a dilated window that may hold padding alone",
        "blocked",
        "float[1,2,1,W] x",
        "c = Conv(x, w)\np = MaxPool<dilations=[1,2], kernel_shape=[1,2], pads=[0,1,0,1]>(c)\ny = BNpos2(p)",
        w=(2, 2, 1, 1),
    ),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


def shapes(model: onnx.ModelProto) -> Shapes:
    return index_model(files.from_proto(model))[0].shapes


def sizes(found: Shapes, name: str) -> tuple[int | str | None, ...]:
    """Without the names that inference makes up."""
    return tuple(None if str(d).startswith("unk__") else d for d in found.dims(name) or ())


def test_squeeze_with_axes_out_of_order() -> None:
    """A constant of rank 2 raises the rank of what is left, so it does something even when it adds zero."""
    text = "s = Squeeze<axes=[1,3,2]>(x)\na = Add(s, k)\ny = Relu(a)"
    model = build("float[B,1,1,1] x", text, "float[p,q] y", opset=8, k=np.zeros((1, 1), np.float32))
    assert shapes(model).rank("s") == 1
    result = fold(model)
    assert_same(model, result.model, feeds_for(model))
    assert [node.op_type for node in result.model.graph.node] == ["Squeeze", "Add", "Relu"]


def test_squeeze_of_the_last_axes() -> None:
    model = build("float[B,4,1,1] x", "s = Squeeze<axes=[-1,-2]>(x)\ny = Relu(s)", "float[p,q] y", opset=11)
    assert shapes(model).dims("s") == ("B", 4)


def test_a_slice_of_opset_10_does_not_keep_the_name_of_what_it_cuts() -> None:
    text = "s = Slice(x, st, en, ax)\ny = Relu(s)"
    constants = {"st": [0, 1], "en": [2, 3], "ax": [0, 1]}
    found = shapes(build("float[B,4,C] x", text, "float[p,q,r] y", opset=10, **constants))
    assert sizes(found, "s") == (None, 2, "C")
    assert sizes(found, "y") == (None, 2, "C")
    computed = shapes(build("float[B,4,C] x, int64[2] st", text, "float[p,q,r] y", opset=10, en=[2, 3], ax=[0, 1]))
    assert sizes(computed, "s") == (None, None, "C")
    unknown = shapes(build("float[B,4,C] x, int64[2] ax", text, "float[p,q,r] y", opset=10, st=[0, 1], en=[2, 3]))
    assert sizes(unknown, "s") == (None, None, None)
    stepped = build(
        "float[B,4,C] x", text.replace("ax)", "ax, by)"), "float[p,q,r] y", opset=10, by=[1, 2], **constants
    )
    assert sizes(shapes(stepped), "s") == (None, None, "C")


def test_what_follows_a_norm_of_no_channels_keeps_its_type() -> None:
    """onnx refuses to infer a norm with one parameter for none."""
    text = "s = Slice(x, e, e, one)\nb = BN1(s)\nn = Neg(b)\ny = Relu(n)"
    found = shapes(build("float[B,1,H] x", text, "float[p,q,r] y", e=[1], one=[1]))
    assert found.element_type("n") == 1
    assert found.inferred("n") == ("B", 0, "H")


def test_what_follows_a_slice_of_opset_10_is_inferred_from_what_it_makes() -> None:
    text = "s = Slice(x, st, en)\nt = Slice(s, st, en)\nq = Softmax(t)\nu = Squeeze<axes=[0]>(q)\ny = Relu(u)"
    found = shapes(build("float[3,4] x", text, "float[p] y", opset=10, st=[0], en=[1]))
    assert found.dims("t") == (1, 4)
    assert found.dims("u") == (4,)


def test_what_a_slice_makes_is_corrected_again_when_its_input_is() -> None:
    text = "s = Slice(x, st, en, a0)\nt = Slice(s, st, en, a1)\ny = Relu(t)"
    found = shapes(build("float[B,4,3] x", text, "float[p,q,r] y", opset=10, st=[0], en=[2], a0=[0], a1=[1]))
    assert sizes(found, "t") == (None, 2, 3)
    assert found.dims("t") != ("B", 2, 3)


def test_a_slice_of_what_has_no_known_rank() -> None:
    text = "r = Reshape(x, n)\ns = Slice(r, st, en)\ny = Relu(s)"
    found = shapes(build("float[3,4] x, int64[k] n", text, "float[p] y", opset=10, st=[0], en=[1]))
    assert found.dims("s") is None


def test_shapes_stay_unknown_where_the_corrections_do_not_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "_PASSES", 1)
    text = "s = Slice(x, st, en)\ny = Relu(s)"
    found = shapes(build("float[B,4] x", text, "float[p,q] y", opset=10, st=[0], en=[2]))
    assert found.dims("s") is None


def test_names_that_an_earlier_inference_made_up_mean_nothing() -> None:
    """The one inference calls the size of ``a`` what the next calls the size of ``p``."""
    text = "p = Compress<axis=0>(x, cond)\nb = BN4(p)\na = Reshape(z, shp)\nsa = Shape<start=0, end=1>(a)\n"
    text += "t = Concat<axis=0>(sa, four, rest)\nr = Reshape(b, t)\ny = Conv(r, w)"
    inputs = "float[6,4] x, bool[6] cond, float[n] z, int64[R] shp"
    model = build(inputs, text, "float[p,q,r] y", four=[4], rest=[-1], w=(2, 4, 1))
    model.graph.value_info.append(helper.make_tensor_value_info("a", 1, ["unk__0", 4]))
    result = fold(model)
    feeds = {"x": np.arange(24, dtype=np.float32).reshape(6, 4), "cond": np.array([1, 1, 1, 1, 0, 0], bool),
             "z": np.ones(8, np.float32), "shp": np.array([2, 4])}  # fmt: skip
    want, got = (ReferenceEvaluator(m).run(None, feeds)[0] for m in (model, result.model))
    np.testing.assert_array_equal(want, got)


@pytest.mark.parametrize("wanted", [[-1], [1, -1], [1, 1, -1], [0, -1]])
@pytest.mark.parametrize("inputs", ["float[2,4,3] x", "float[B,4,3] x"])
def test_the_rest_of_a_shape_that_is_not_known_is_not_one(wanted: list[int], inputs: str) -> None:
    text = (
        "f = Flatten(x)\nr = Reshape(f, to)\na = Add(r, k)\ns = ReduceSum(a, ax)\nt = Reshape(s, one)\ny = Gemm(t, w)"
    )
    axis = len(wanted) - 1
    model = build(inputs, text, "float[p,q] y", to=wanted, ax=[axis], one=[-1, 1], k=np.float32(2), w=(1, 3))
    folded = fold(model).model
    for batch in (1, 2) if "B" in inputs else (2,):
        assert_same(model, folded, {"x": np.ones((batch, 4, 3), np.float32)})


@pytest.mark.parametrize("constants", [{"st": [0], "en": [2], "ax": [7]}, {"st": [0], "en": [2], "ax": [0, 1]}])
def test_slices_that_do_not_fit_are_left_to_the_runtime(constants: dict[str, list[int]]) -> None:
    model = build("float[B,4,3] x", "s = Slice(x, st, en)\ny = Relu(s)", "float[p,q,r] y", opset=10, st=[0], en=[1])
    model.graph.node[0].input.append("ax")
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name + "2"))
    model.graph.node[0].input[1:] = ["st2", "en2", "ax2"]
    assert sizes(shapes(model), "s") in ((None, None, None), (None, None, 3), ())
