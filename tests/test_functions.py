"""Model-local functions: folded in the body where that can be, else at the calls that need it, and at no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_same, build, count, feeds_for, fold, keeps, norm_parameters
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold import inlining

NORM = dict(zip("gbmv", norm_parameters("", 3, "n").values(), strict=True))
W = (3, 3, 1, 1)
X = "float[2,3,4,4] x"
Y = "float[2,3,4,4] y"
HEAD = '<opset_import: ["": 21], domain: "local">\n'
BLOCK = "Block (x, w, g, b, m, v) => (y) { c = Conv(x, w)  n = BatchNormalization<epsilon=0.0>(c, g, b, m, v)  y = Relu(n) }\n"
PLAIN = "Plain (x) => (y) { y = Relu(x) }\n"
OWN = """Own (x) => (y) {
    g = Constant <value_floats = [2.0, 4.0, 1.0]> ()
    b = Constant <value_floats = [1.0, 0.0, 3.0]> ()
    v = Constant <value_floats = [1.0, 1.0, 4.0]> ()
    s = Sigmoid(x)
    n = BatchNormalization<epsilon=0.0>(s, g, b, b, v)
    y = Sigmoid(n)
}
"""
CALL = "y = local.Block(x, W, g, b, m, v)"


PADDED = """Padded (x, w, g, b, m, v) => (y) {
    n = BatchNormalization<epsilon=0.0>(x, g, b, m, v)
    y = Conv<pads=[1,1,1,1]>(n, w)
}
"""
LATER = "c = local.{}(x, W)\ny = BatchNormalization<epsilon=0.0>(c, g, b, m, v)"

# the nodes, the functions, the refusal, and what is given besides
KEPT: dict[str, tuple[str, tuple[str, ...], str, dict[str, Any]]] = {
    "nothing to fold": ("y = local.Plain(x)", (PLAIN,), "", {}),
    "nothing to gain": ("p = local.Plain(x)\ny = local.Own(p)", (PLAIN, OWN), "blocked", {}),
    "a function for another opset": (CALL, (HEAD.replace("21", "17") + BLOCK,), "parameters-not-constant", {}),
    "a computed weight": (
        CALL.replace("W", "w"),
        (BLOCK,),
        "parameters-not-constant",
        {"inputs": X + ", float[3,3,1,1] w"},
    ),
    "a computed gamma": (CALL.replace("g", "h"), (BLOCK,), "parameters-not-constant", {"inputs": X + ", float[3] h"}),
    "a weight that callers may set": (CALL, (BLOCK,), "parameters-not-constant", {"inputs": X + ", float[3,3,1,1] W"}),
    "a negative variance": (CALL, (BLOCK,), "parameters-not-constant", {"v": np.float32([1, -1, 1])}),
    "an activation in between": (
        CALL,
        (BLOCK.replace("(c, g", "(k, g").replace("n =", "k = Sigmoid(c)  n ="),),
        "parameters-not-constant",
        {},
    ),
    "another reader in the body": (
        CALL,
        (BLOCK.replace("y = Relu(n)", "q = Abs(c)  y = Add(n, q)"),),
        "parameters-not-constant",
        {},
    ),
    "a shift in front of padding": (
        "y = local.Padded(x, W, g, b, m, v)",
        (PADDED,),
        "parameters-not-constant",
        {"W": (3, 3, 3, 3)},
    ),
    "training": (
        CALL,
        (BLOCK.replace("n = Batch", "n, p, q = Batch").replace("epsilon=0.0", "epsilon=0.0, training_mode=1"),),
        "training-mode",
        {},
    ),
    "behind a call of an activation": (
        LATER.format("Sigmoids"),
        ("Sigmoids (x, w) => (y) { c = Conv(x, w)  y = Sigmoid(c) }",),
        "function",
        {},
    ),
    "in front of a call of an activation": (
        "n = BatchNormalization<epsilon=0.0>(x, g, b, m, v)\ny = local.Sigmoids(n, W)",
        ("Sigmoids (x, w) => (y) { s = Sigmoid(x)  y = Conv(s, w) }",),
        "function",
        {},
    ),
}


def model(nodes: str, *functions: str, inputs: str = X, **constants: Any) -> onnx.ModelProto:
    text = "\n".join(function if function.startswith("<") else HEAD + function for function in functions)
    used = {name: value for name, value in ({"W": W} | NORM).items() if name not in constants}
    return build(inputs, nodes, Y, functions=text, imports={"local": 1}, **used, **constants)


@pytest.mark.parametrize(("nodes", "functions", "codes", "given"), KEPT.values(), ids=KEPT)
def test_must_not_change(nodes: str, functions: tuple[str, ...], codes: str, given: dict[str, Any]) -> None:
    keeps(model(nodes, *functions, **given), *codes.split())


def test_a_function_with_the_name_of_an_operator_is_not_what_runs() -> None:
    """Runtimes take the operator; so nothing passes it, and nothing is inlined."""
    model = build(X, "c = Conv(x, W)\nr = Relu(c)\ny = Mul(r, k)", Y, W=W, k=np.float32(2))
    negates = onnx.helper.make_node("Neg", ["a"], ["b"])
    model.functions.append(onnx.helper.make_function("", "Relu", ["a"], ["b"], [negates], model.opset_import))
    result = bnfold.fold(model, verify=False)
    assert result.model.SerializeToString() == model.SerializeToString()
    assert [entry.code for entry in result.report.kept] == ["function"]



def assert_equal(original: onnx.ModelProto, result: bnfold.FoldResult) -> None:
    onnx.checker.check_model(result.model, full_check=True)
    feeds = feeds_for(original)
    want, got = (ReferenceEvaluator(m).run(None, feeds)[0] for m in (original, result.model))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert not any(node.metadata_props for node in result.model.graph.node)


def test_calls_that_gain_nothing_stay() -> None:
    made = model("p = local.Plain(x)\no = local.Own(p)\ny = local.Block(o, W, g, b, m, v)", PLAIN, OWN, BLOCK)
    result = fold(made)
    assert [node.op_type for node in result.model.graph.node] == ["Plain", "Own", "Conv", "Relu"]
    assert [function.name for function in result.model.functions] == ["Plain", "Own"]
    assert result.report.notes == (
        "inlined the calls of function Block: what is in there folds only where it is called",
    )
    assert_equal(made, result)


def test_a_call_with_a_computed_weight_stays() -> None:
    nodes = f"h = Identity(x)\no = local.Block(h, w, g, b, m, v)\n{CALL.replace('(x', '(o')}"
    made = model(nodes, BLOCK, inputs="float[2,3,4,4] x, float[3,3,1,1] w")
    result = fold(made)
    assert [node.op_type for node in result.model.graph.node] == ["Identity", "Block", "Conv", "Relu"]
    assert "Block (1 of 2 calls)" in result.report.notes[0]
    assert_equal(made, result)


def test_a_function_that_nobody_calls_stays() -> None:
    result = fold(model(CALL, BLOCK, OWN))
    assert [function.name for function in result.model.functions] == ["Own"]
    assert "Own" not in result.report.notes[0]


def test_weights_that_come_through_two_calls() -> None:
    outer = "Outer (x, w, g, b, m, v) => (y) { h = local.Block(x, w, g, b, m, v)  y = Abs(h) }\n"
    made = model(CALL.replace("Block", "Outer"), BLOCK, outer)
    made.functions[1].opset_import.add(domain="local", version=1)
    result = fold(made)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu", "Abs"]
    assert "Block, Outer" in result.report.notes[0]
    assert_equal(made, result)


def test_only_the_inner_call_goes_where_its_caller_has_the_weights() -> None:
    outer = """Outer (x) => (y) {
        w = Constant <value = float[3,3,1,1] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0}> ()
        g = Constant <value_floats = [2.0, 4.0, 1.0]> ()
        v = Constant <value_floats = [1.0, 1.0, 4.0]> ()
        y = local.Block(x, w, g, g, g, v)
    }
"""
    made = model("y = local.Outer(x)", BLOCK, outer)
    made.functions[1].opset_import.add(domain="local", version=1)
    result = fold(made)
    assert [node.op_type for node in result.model.graph.node] == ["Outer"]
    assert [function.name for function in result.model.functions] == ["Outer"]
    assert [node.op_type for node in result.model.functions[0].node if node.op_type != "Constant"] == ["Conv", "Relu"]
    assert_equal(made, result)


def test_a_norm_on_the_other_side_of_a_call() -> None:
    made = model("c = local.Linear(x, W)\ny = BatchNormalization<epsilon=0.0>(c, g, b, m, v)",
                 "Linear (x, w) => (y) { y = Conv(x, w) }\n")  # fmt: skip
    result = fold(made)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert_equal(made, result)


def test_a_decomposed_norm_whose_constants_come_from_the_call() -> None:
    made = model("y = local.Affine(x, W, k, k)",
                 "Affine (x, w, s, t) => (y) { c = Conv(x, w)  m = Mul(c, s)  y = Add(m, t) }\n", k=(3, 1, 1))  # fmt: skip
    result = fold(made)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert_equal(made, result)


def test_attributes_that_the_call_leaves_to_their_default() -> None:
    text = BLOCK.replace("Block (", "Block <e : float = 1.0> (").replace("epsilon=0.0", "epsilon : float = @e")
    made = build(X, CALL, Y, functions=HEAD + text, imports={"local": 1}, W=W, **NORM)
    assert len(made.functions[0].attribute_proto) == 1
    result = fold(made)
    assert count(result.model, "BatchNormalization") == 0
    assert_same(made, result.model, feeds_for(made), exact=False)


def test_domains_that_only_the_function_imports() -> None:
    made = model(CALL, BLOCK.replace("y = Relu(n)", "y = com.microsoft.Gelu(n)"))
    made.functions[0].opset_import.add(domain="com.microsoft", version=1)
    result = fold(made)
    assert count(result.model, "BatchNormalization") == 0
    assert {entry.domain for entry in result.model.opset_import} == {"", "local", "com.microsoft"}
    assert_same(made, result.model, feeds_for(made), exact=False)


def test_all_calls_go_where_those_that_gain_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlining, "_needed", lambda *_: set())
    result = fold(model(f"p = local.Plain(x)\n{CALL.replace('(x', '(p')}", PLAIN, BLOCK))
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "Conv", "Relu"]


@pytest.mark.parametrize("named", ["norm", "BatchNormalization:n"])
def test_skip_knows_a_norm_by_its_name_in_the_function(named: str) -> None:
    block = BLOCK.replace("n = Batch", "[norm] n = Batch") if named == "norm" else BLOCK
    made = model(f"h = local.Linear(x, W)\nk = BatchNormalization<epsilon=0.0>(h, g, b, m, v)\n{CALL.replace('(x', '(k')}",
                 block, "Linear (x, w) => (y) { y = Conv(x, w) }\n")  # fmt: skip
    result = bnfold.fold(made, bnfold.FoldOptions(skip=(named,), verify=False))
    assert [entry.node for entry in result.report.folded] == ["BatchNormalization:k"]
    assert [entry.code for entry in result.report.kept] == ["parameters-not-constant"]
