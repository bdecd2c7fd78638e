"""Norms in bodies and functions whose operator stands elsewhere, and initializers that callers may override."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import all_nodes, assert_same, build, count, feeds_for, fold, keeps, norm_parameters, refuses, run
from onnx.reference import ReferenceEvaluator

import bnfold

X = "float[2,4,5,5] x, bool flag"
Y = "float[2,3,4,4] y"
W = (3, 4, 2, 2)
FIRST = {key[0]: value for key, value in norm_parameters("", 3, "first").items()}
OTHER = {f"{key[0]}2": value for key, value in norm_parameters("", 3, "other").items()}


def branches(second: str, then_tail: str = "p = Relu(n)", between: str = "") -> str:
    return f"""
c = Conv(x, W){between}
y = If (flag) <
  then_branch = t () => (float[2,3,4,4] p) {{ n = BatchNormalization<epsilon=0.0>(c, g, b, m, v)  {then_tail} }},
  else_branch = e () => (float[2,3,4,4] q) {{ {second} }}
>"""


SAME = "o = BatchNormalization<epsilon=0.0>(c, g, b, m, v)  q = Neg(o)  "

KEPT = [
    ("different norms", branches(SAME.replace("(c, g, b, m, v)", "(c, g2, b2, m2, v2)").replace("Neg", "Abs"))),
    ("one branch reads it bare", branches("q = Abs(c)")),
    ("another reader outside", branches(SAME.replace("Neg", "Abs"), between="\nz = Abs(c)")),
]


@pytest.mark.parametrize("text", [text for _, text in KEPT], ids=[name for name, _ in KEPT])
def test_norms_in_branches_that_stay(text: str) -> None:
    outputs = Y + (", float[2,3,4,4] z" if "z = " in text else "")
    model = build(X, text, outputs, W=W, **FIRST, **OTHER)
    result = fold(model)
    assert count(result.model, "BatchNormalization") == text.count("BatchNormalization")
    assert {entry.code for entry in result.report.kept} == {"captured"}


def test_the_same_norm_in_both_branches_goes_into_the_operator_outside() -> None:
    model = build(X, branches(SAME.replace("Neg", "Abs")), Y, W=W, **FIRST)
    result = fold(model)
    assert count(result.model, "BatchNormalization") == 0
    for flag in (True, False):
        assert_same(model, result.model, {**feeds_for(model), "flag": np.array(flag)})


N = "BatchNormalization<epsilon=0.0>(c, g, b, m, v)"
ABS = SAME.replace("Neg", "Abs")
INNER = f"""q = If (flag) <
    then_branch = tt () => (float[2,3,4,4] r) {{ o = {N}  r = Sin(o) }},
    else_branch = ee () => (float[2,3,4,4] s) {{ i = {N}  s = Abs(i) }}
  >"""
ACROSS = {
    "one branch goes on with a Mul": (branches(f"o = {N}  k2 = Mul(o, k)  q = Sin(k2)"), 1),
    "both go on differently": (
        branches(f"o = {N}  k2 = Mul(o, k)  q = Sin(k2)", then_tail="k3 = Neg(n)  k4 = Add(k3, k)  p = Sin(k4)"),
        2,
    ),
    "two equal products behind it in both": (
        branches(f"o = {N}  j = Mul(o, k)  l = Mul(o, k)  i = Sin(j)  q = Add(i, l)",
                 then_tail="j = Mul(n, k)  l = Mul(n, k)  i = Cos(j)  p = Add(i, l)"),
        2,
    ),
    "one branch holds an If of its own": (branches(INNER), 0),
    "one branch hands it on to an If of its own": (
        branches(f"o = {N}  {INNER.replace(N, 'Cos(o)')}".replace("o = Cos(o)  r = Sin(o)", "r = Sin(o)"),
                 then_tail="j = Mul(n, k)  p = Sin(j)"), 1
    ),
    "one branch only wants its shape": (branches(f"o = {N}  s = Shape(o)  q = ConstantOfShape(s)"), 0),
    "Neg": (branches("o = Neg(c)  q = Sin(o)").replace("n = " + N, "n = Neg(c)"), 0),
}  # fmt: skip


@pytest.mark.parametrize(("text", "affines"), ACROSS.values(), ids=ACROSS)
def test_what_branches_begin_with_in_common_goes_into_the_operator_outside(text: str, affines: int) -> None:
    used = FIRST if N in text else {}
    model = build(X, text, Y, W=W, **used, **({"k": (3, 1, 1)} if ", k)" in text else {}))
    result = fold(model)
    assert count(result.model, "BatchNormalization") == 0
    assert count(result.model, "Mul", "Add", "Sub", "Neg") == affines
    for flag in (True, False):
        assert_same(model, result.model, {**feeds_for(model), "flag": np.array(flag)}, exact="Sin" not in text)


def test_a_body_that_returns_what_a_vanished_norm_made_of_the_tensor() -> None:
    """The second Mul could go outside only if the body did not give back what the first one made."""
    tail = "then_branch = t () => (float[2,3,4,4] p) { p = Mul(c, k) }, "
    tail += "else_branch = e () => (float[2,3,4,4] q) { o = Mul(c, k)  q = Abs(o) }"
    keeps(build(X, f"c = Conv(x, W)\ny = If (flag) <{tail}>", Y, W=W, k=(3, 1, 1)), "captured", "captured")


def test_what_only_dead_nodes_of_a_body_read_is_not_read() -> None:
    text = branches("o = Mul(n0, k)  q = Abs(c)", then_tail="p = Sin(c)", between="\nn0 = BN3(c)\ns = Shape(n0)")
    model = build(X, text.replace("n = " + N, ""), Y + ", int64[4] s", W=W, k=(3, 1, 1))
    result = fold(model)
    assert count(result.model, "BatchNormalization", "Mul") == 0
    assert [entry.code for entry in result.report.kept] == []


def test_constants_of_nodes_that_vanish_for_two_reasons_are_counted_once() -> None:
    """The Add that nobody needs reads the same constant as the one that stays."""
    inner = "q = If (flag) < then_branch = tt () => (float[2,3,4,4] r) { j = BN3(u)  r = Sin(t) }, "
    inner += "else_branch = ee () => (float[2,3,4,4] s) { s = Abs(t) } >"
    text = branches(f"t = Add(c, k)  u = Add(t, k)  {inner}", then_tail="p = Sin(c)").replace("n = " + N, "")
    model = build(X, text, Y, W=W, k=(3, 1, 1))
    result = fold(model)
    assert count(result.model, "Add") == 1
    for flag in (True, False):
        assert_same(model, result.model, {**feeds_for(model), "flag": np.array(flag)})


RETURNED = [
    branches(SAME.replace("Neg", "Abs"), then_tail="").replace("n = Batch", "p = Batch"),
    branches("q = BatchNormalization<epsilon=0.0>(c, g, b, m, v)", then_tail="").replace("n = Batch", "p = Batch"),
]


@pytest.mark.parametrize("text", RETURNED, ids=["one", "both"])
def test_a_branch_that_returns_the_norm_itself_gets_an_identity(text: str) -> None:
    model = build(X, text, Y, W=W, **FIRST)
    result = fold(model)
    assert count(result.model, "BatchNormalization") == 0
    assert count(result.model, "Identity") == 3 - count(result.model, "Abs") - 1
    assert {entry.route for entry in result.report.folded} == {"after Conv"}
    for flag in (True, False):
        assert_same(model, result.model, {**feeds_for(model), "flag": np.array(flag)})


def test_a_branch_that_returns_a_product_keeps_it() -> None:
    """An Identity in its place would be no gain."""
    tail = "y = If (flag) < then_branch = t () => (float[2,3,4,4] p) { p = Mul(c, k) }, "
    tail += "else_branch = e () => (float[2,3,4,4] q) { q = Mul(c, k) } >"
    keeps(build(X, "c = Conv(x, W)\n" + tail, Y, W=W, k=(3, 1, 1)), "captured", "captured")


def test_a_branch_of_an_old_model_that_returns_the_norm_itself_gets_one_too() -> None:
    text = RETURNED[1].replace("epsilon=0.0", "epsilon=0.0, is_test=1")
    result = bnfold.fold(build(X, text, Y, opset=6, W=W, **FIRST), verify=False)
    assert [node.op_type for node in all_nodes(result.model)] == ["Conv", "If", "Identity", "Identity"]


FUNCTION = """<opset_import: ["": 21], domain: "local">
Block (x, w, g, b, m, v) => (y) {{ c = Conv(x, w)  {norm}  y = Relu(n) }}"""
CALL = "h = local.Block(x, W, g, b, m, v)\ny = local.Block(h, V, g, b, m, v)"


def test_a_training_norm_in_a_function_is_no_reason_to_inline() -> None:
    norm = "n, p, q = BatchNormalization<training_mode=1>(c, g, b, m, v)"
    model = build(
        "float[2,3,5,5] x",
        CALL,
        "float[2,3,3,3] y",
        functions=FUNCTION.format(norm=norm),
        imports={"local": 1},
        W=(3, 3, 2, 2),
        V=(3, 3, 2, 2),
        **FIRST,
    )
    keeps(model, "training-mode")


def test_a_function_is_inlined_where_its_norm_folds_only_at_the_calls() -> None:
    norm = "n = BatchNormalization<epsilon=0.0>(c, g, b, m, v)"
    model = build(
        "float[2,3,5,5] x",
        CALL,
        "float[2,3,3,3] y",
        functions=FUNCTION.format(norm=norm),
        imports={"local": 1},
        W=(3, 3, 2, 2),
        V=(3, 3, 2, 2),
        **FIRST,
    )
    result = fold(model)
    assert count(result.model, "BatchNormalization") == 0
    assert not result.model.functions
    assert "inlined the calls of function Block" in result.report.notes[0]
    assert_same(model, result.model, feeds_for(model))


def test_a_norm_whose_epsilon_comes_from_the_call() -> None:
    """It is inlined where that helps."""
    function = FUNCTION.replace("Block (", "Block <e> (").format(
        norm="n = BatchNormalization<epsilon : float = @e>(c, g, b, m, v)"
    )
    call = CALL.replace("local.Block(", "local.Block<e = 0.0>(")
    model = build(
        "float[2,3,5,5] x",
        call,
        "float[2,3,3,3] y",
        functions=function,
        imports={"local": 1},
        W=(3, 3, 2, 2),
        V=(3, 3, 2, 2),
        **FIRST,
    )
    assert [entry.code for entry in bnfold.inspect(model, bnfold.FoldOptions(only="batchnorm")).kept] == []
    result = fold(model)
    assert count(result.model, "BatchNormalization") == 0
    assert_same(model, result.model, feeds_for(model))


def test_bodies_in_a_list_are_bodies() -> None:
    """An operator of another domain may carry several graphs in one attribute; what they read is captured."""
    model = build("float[2,4,5,5] x", "c = Conv(x, W)\ny = BN3(c)", W=W)
    bodies = [
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", [read], [f"r{read}"])],
            f"g{read}",
            [],
            [onnx.ValueInfoProto(name=f"r{read}")],
        )
        for read in ("x", "c")
    ]
    node = onnx.helper.make_node("Switch", ["x"], ["z"], "switch", domain="other", cases=bodies)
    model.graph.node.insert(1, node)
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2, 4, 5, 5]))
    model.opset_import.add(domain="other", version=1)
    refuses(model, "captured")


@pytest.mark.parametrize("given_back", ["c", "i"])
def test_a_branch_that_gives_back_a_tensor_of_the_graph_around_it(given_back: str) -> None:
    """ONNX allows it, runtimes do not; the name that is given back has to exist afterwards."""
    text = branches("q = Abs(i)", between="\ni = Mul(c, one)")
    model = build(X, text, Y, W=W, **FIRST, one=np.float32(1))
    body = model.graph.node[2].attribute[1].g
    del body.node[:]
    body.output[0].name = given_back
    result = bnfold.fold(model, verify=False).model
    assert [node.op_type for node in result.graph.node] == ["Conv", "If"]
    (made,) = result.graph.node[0].output
    assert result.graph.node[1].attribute[1].g.output[0].name == made
    reference = ReferenceEvaluator
    feeds = {**feeds_for(model), "flag": np.array(False)}
    np.testing.assert_array_equal(reference(result).run(None, feeds)[0], reference(model).run(None, feeds)[0])


def overridable() -> onnx.ModelProto:
    model = build("float[2,4,5,5] x", "c = Conv(x, W)\ny = BN3(c)", W=W)
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def test_what_callers_may_override_stays() -> None:
    keeps(overridable(), "parameters-not-constant")


def test_frozen_it_folds_and_leaves_the_inputs() -> None:
    model = overridable()
    result = bnfold.fold(model, bnfold.FoldOptions(freeze=True, verify=False))
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert count(result.model, "BatchNormalization") == 0
    assert "froze 5 initializers" in result.report.notes[0]
    feeds = {"x": feeds_for(build("float[2,4,5,5] x", "y = Abs(x)"))["x"]}
    np.testing.assert_array_equal(run(model, feeds)["y"], run(result.model, feeds)["y"])
