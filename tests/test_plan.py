"""Planning: what goes where, options, and that it stays quick."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from helpers import Case, build, fold, folds, integers, kept, norm_parameters, refuses
from onnx import FunctionProto, ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.errors import OptionError
from bnfold.folding import until_fit
from bnfold.plan import Limits
from bnfold.refusals import Refusal
from bnfold.writer import HostsUnfit

X = "float[2,4,5,5] x"
W = (3, 4, 2, 2)


SCALE = np.float32([2, 0, -4, 1]).reshape(4, 1, 1)
HUGE = np.array([1e-200, 1, 1, 1]).reshape(4, 1, 1)
C = "c = Conv(x, W)\n"

KEPT = [
    kept(
        "a scale of zero cannot be taken out",
        "no-producer no-producer",
        X,
        "a = Mul(x, k)\ny = Add(a, l)",
        k=SCALE,
        l=(4, 1, 1),
    ),
    kept(
        "nor one that is next to zero",
        "no-producer no-producer",
        "double[2,4,5,5] x",
        "a = Mul(x, k)\ny = Add(a, l)",
        k=HUGE,
        l=1 / HUGE,
    ),
    kept(
        "it connects two outputs",
        "graph-output",
        X,
        C + "y = Mul(c, k)",
        outputs="float[2,3,4,4] c, float[2,3,4,4] y",
        W=W,
        k=np.float32(1),
    ),
    kept("another reader", "shared-output", X, C + "n = BN3(c)\nr = Relu(c)\ny = Add(n, r)", W=W),
    kept(
        "two norms of one tensor that differ",
        "shared-output shared-output",
        X,
        C + "n = BN3(c)\nm = BN3(c)\ny = Add(n, m)",
        W=W,
    ),
    kept(
        "one branch of a sum reads the other", "blocked", X, C + "s = Sigmoid(c)\na = Add(c, s)\ny = BN3(a)", W=W
    ),
    kept(
        "one branch of a sum takes nothing",
        "blocked",
        X,
        C + "s = Sigmoid(c)\nd = Conv(x, V)\na = Add(d, s)\ny = BN3(a)",
        W=W,
        V=W,
    ),
    kept(
        "one part of a Concat takes nothing",
        "no-producer",
        X + ", float[2,3,4,4] z",
        C + "k = Concat <axis=1> (c, z)\ny = BN6(k)",
        W=W,
    ),
    kept(
        "one of two consumers pads",
        "padding",
        X,
        "n = BN4(x)\na = Conv(n, W)\nb = Conv <pads=[1,1,1,1]> (n, V)\nd = Relu(b)\ne = Relu(a)",
        outputs="float[2,3,5,5] d, float[2,3,4,4] e",
        W=W,
        V=(3, 4, 3, 3),
    ),
    kept(
        "a norm of a stored tensor",
        "no-producer",
        X,
        "y = BN3(k)\nz = Relu(x)",
        outputs="float[a,b,c,d] y, float[e,f,g,h] z",
        k=(2, 3, 4, 4),
    ),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


def test_norms_of_different_widths_in_a_row() -> None:
    refuses(build(X, "n = BN4(x)\ny = BN3(n)", "float[a,b,c,d] y"), "no-producer", "blocked")


def test_a_report_says_where_each_operator_went_and_why_others_stay() -> None:
    nodes = "c = Conv(x, W)\nn = BN3(c)\nr = Relu(n)\ns = Sigmoid(r)\nm = BN3(s)\ny = Relu(m)"
    result = fold(build(X, nodes, W=W))
    (gone,), (kept,) = result.report.folded, result.report.kept
    assert (gone.node, gone.operator, gone.into, gone.route, gone.tensor) == (
        "BatchNormalization:n",
        "BatchNormalization",
        ("Conv:c",),
        "after Conv",
        ("n",),
    )
    assert (kept.node, kept.code, kept.blocking_node) == ("BatchNormalization:m", "blocked", "Sigmoid:s")
    assert (result.report.before.batch_norms, result.report.after.batch_norms) == (2, 1)
    assert (result.report.before.nodes, result.report.after.nodes) == (6, 5)


def test_what_connects_an_input_to_an_output_stays_whatever_else_goes() -> None:
    folded = folds(
        build(X, "i = Mul(x, k)\ny = Mul(i, k)\nz = Relu(i)", f"{X[:-1]}y, {X[:-1]}z", k=np.float32(1)), affines=1
    )
    assert [node.op_type for node in folded.graph.node] == ["Mul", "Relu"]


@pytest.mark.parametrize(
    ("nodes", "route"),
    [
        ("n = BN4(x)\nd = Identity(n)\ny = Relu(x)", "removed: nobody reads it"),
        ("r = Relu(x)\na = Add(k, r)\ny = Add(a, s)", "into constants"),
    ],
)
def test_routes_without_an_operator_at_the_end(nodes: str, route: str) -> None:
    constants = {"k": (4, 5, 5), "s": np.float32(2)} if "Add" in nodes else {}
    result = fold(build(X, nodes, **constants))
    assert [entry.route for entry in result.report.folded] == [route]


def test_sites_of_a_fold_that_another_one_follows() -> None:
    nodes = "n = BN4(x)\na = Conv(n, W)\nb = Conv(n, V)\ns = Add(a, b)\ny = BN3(s)"
    model = build(X, nodes, W=W, V=W)
    folds(model)
    assert [entry.tensor for entry in bnfold.inspect(model).folded] == [("y",), ("y",)]


def test_nothing_to_freeze() -> None:
    model = build(X, "c = Conv(x, W)\ny = BN3(c)", W=W)
    frozen = bnfold.fold(model, bnfold.FoldOptions(freeze=True, verify=False))
    assert frozen == bnfold.fold(model, verify=False)
    assert not frozen.report.notes


def test_an_operator_that_is_excluded_and_written_all_the_same_is_a_bug_and_no_endless_loop() -> None:
    def attempt(limits: Limits) -> None:
        raise HostsUnfit({("", 0): Refusal("overflow", "does not fit")})

    with pytest.raises(HostsUnfit):
        until_fit(attempt, Limits())


def test_inspect_plans_the_same_and_changes_nothing() -> None:
    model = build(X, "c = Conv(x, W)\nn = BN3(c)\ny = Relu(n)", W=W)
    before = model.SerializeToString()
    plan = bnfold.inspect(model)
    assert plan.folded == bnfold.fold(model, verify=False).report.folded
    assert model.SerializeToString() == before


def test_only_batch_norms() -> None:
    model = build(
        X, "c = Conv(x, W)\nn = BN3(c)\nr = Relu(n)\nd = Conv(r, V)\ny = Mul(d, k)", W=W, V=(2, 3, 1, 1), k=(2, 1, 1)
    )
    result = bnfold.fold(model, bnfold.FoldOptions(only="batchnorm", verify=False))
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu", "Conv", "Mul"]


def test_skip() -> None:
    model = build(X, "c = Conv(x, W)\nn = BN3(c)\ny = Relu(n)", W=W)
    result = bnfold.fold(model, bnfold.FoldOptions(skip=("BatchNormalization:n",), verify=False))
    assert [kept.code for kept in result.report.kept] == ["excluded"]
    assert result.model.SerializeToString() == model.SerializeToString()


def test_what_reads_a_tensor_through_an_affine_that_vanished_still_reads_it() -> None:
    nodes = "c = Conv(x, W)\ni = Mul(c, one)\nr = Relu(i)\nn = BN3(c)\ny = Add(r, n)"
    model = build(X, nodes, W=W, one=np.float32(1))
    assert [node.op_type for node in folds(model, norms=1).graph.node] == ["Conv", "Relu", "BatchNormalization", "Add"]


def test_a_size_that_is_read_behind_an_affine_that_vanished_is_in_nobody_s_way() -> None:
    nodes = "c = Conv(x, W)\ni = Mul(c, one)\ns = Shape(i)\nn = BN3(c)\ny = Reshape(n, s)"
    model = build(X, nodes, W=W, one=np.float32(1))
    assert [node.op_type for node in folds(model).graph.node] == ["Conv", "Shape", "Reshape"]


def test_twins_go_together() -> None:
    values = dict(zip("gbmv", norm_parameters("", 3, "twins").values(), strict=True))
    norm = "{} = BatchNormalization <epsilon = 0.0> (c, g, b, m, v)\n"
    nodes = "c = Conv(x, W)\n" + norm.format("n") + norm.format("o") + "r = Relu(n)\ns = Abs(o)\ny = Add(r, s)"
    result = fold(build(X, nodes, W=W, **values))
    assert not result.report.kept


def chain(length: int) -> ModelProto:
    """Conv - norm - Relu over and over."""
    nodes, stored = [], [numpy_helper.from_array(integers((4, 4, 1, 1)), "W")]
    for name, value in zip("gbmv", norm_parameters("pos", 4, "chain").values(), strict=True):
        stored.append(numpy_helper.from_array(value, name))
    data = "x"
    for i in range(length):
        nodes += [helper.make_node("Conv", [data, "W"], [f"c{i}"]), helper.make_node("BatchNormalization", [f"c{i}", *"gbmv"], [f"n{i}"]),
                  helper.make_node("Relu", [f"n{i}"], [f"r{i}"])]  # fmt: skip
        data = f"r{i}"
    return finish(nodes, stored, data)


def finish(nodes: list[object], stored: list[TensorProto], output: str, channels: int = 4) -> ModelProto:
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8]) for n, c in (("x", 4), (output, channels))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual(length: int) -> ModelProto:
    """Norms that nothing can take, between Adds of tensors that are read again."""
    nodes, stored = (
        [],
        [numpy_helper.from_array(v, n) for n, v in zip("gbmv", norm_parameters("", 4, "r").values(), strict=True)],
    )
    data = "x"
    for i in range(length):
        nodes += [
            helper.make_node("BatchNormalization", [data, *"gbmv"], [f"n{i}"]),
            helper.make_node("Add", [data, f"n{i}"], [f"a{i}"]),
        ]
        data = f"a{i}"
    return finish(nodes, stored, data)


def wide(parts: int) -> ModelProto:
    """One norm behind a Concat of many Convs."""
    stored = [numpy_helper.from_array(integers((4, 4, 1, 1)), "W")]
    stored += [
        numpy_helper.from_array(v, n) for n, v in zip("gbmv", norm_parameters("", 4 * parts, "w").values(), strict=True)
    ]
    nodes = [helper.make_node("Conv", ["x", "W"], [f"c{i}"]) for i in range(parts)]
    nodes += [
        helper.make_node("Concat", [f"c{i}" for i in range(parts)], ["k"], axis=1),
        helper.make_node("BatchNormalization", ["k", *"gbmv"], ["y"]),
    ]
    return finish(nodes, stored, "y", 4 * parts)


def sums(depth: int) -> ModelProto:
    """A norm behind a chain of Adds whose last branch cannot take it."""
    stored = [numpy_helper.from_array(integers((4, 4, 1, 1)), "W")]
    stored += [numpy_helper.from_array(v, n) for n, v in zip("gbmv", norm_parameters("", 4, "s").values(), strict=True)]
    nodes, data = [helper.make_node("Sigmoid", ["x"], ["s"])], "s"
    for i in range(depth):
        nodes += [helper.make_node("Conv", ["x", "W"], [f"c{i}"]), helper.make_node("Add", [data, f"c{i}"], [f"a{i}"])]
        data = f"a{i}"
    nodes.append(helper.make_node("BatchNormalization", [data, *"gbmv"], ["y"]))
    return finish(nodes, stored, "y")


@pytest.mark.parametrize(
    "model", [chain(2000), residual(2000), wide(1000), sums(200)], ids=["chain", "residual", "wide", "sums"]
)
def test_planning_is_quick(model: ModelProto) -> None:
    start = time.perf_counter()
    bnfold.inspect(model)
    assert time.perf_counter() - start < 8.0


def test_concats_inside_one_another() -> None:
    levels = 200
    stored = [numpy_helper.from_array(integers((4, 4, 1, 1)), "W")]
    parameters = norm_parameters("", 4 * (levels + 1), "deep").values()
    stored += [numpy_helper.from_array(v, n) for n, v in zip("gbmv", parameters, strict=True)]
    nodes, data = [helper.make_node("Conv", ["x", "W"], ["t0"])], "t0"
    for i in range(1, levels + 1):
        nodes.append(helper.make_node("Conv", ["x", "W"], [f"c{i}"]))
        nodes.append(helper.make_node("Concat", [data, f"c{i}"], [f"t{i}"], axis=1))
        data = f"t{i}"
    nodes.append(helper.make_node("BatchNormalization", [data, *"gbmv"], ["y"]))
    folds(finish(nodes, stored, "y", 4 * (levels + 1)), exact=False)


def test_functions_inside_one_another() -> None:
    """A norm whose parameters come through 200 calls: more than onnx inlines."""
    domain = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    bodies: list[FunctionProto] = []
    for i in range(200):
        nodes = [helper.make_node("BatchNormalization", ["x", *"gbmv"], ["n"])]
        inner = [helper.make_node(f"F{i - 1}", ["n", *"gbmv"], ["y"], domain="local")]
        nodes += inner if i else [helper.make_node("Relu", ["n"], ["y"])]
        bodies.append(helper.make_function("local", f"F{i}", ["x", *"gbmv"], ["y"], nodes, domain))
    stored = [numpy_helper.from_array(v, n) for n, v in zip("gbmv", norm_parameters("", 4, "f").values(), strict=True)]
    model = finish([helper.make_node("F199", ["x", *"gbmv"], ["y"], domain="local")], stored, "y")
    model.functions.extend(bodies)
    model.opset_import.append(domain[1])
    result = bnfold.fold(model, verify=False)
    assert {kept.code for kept in result.report.kept} == {"parameters-not-constant"}
    assert result.model.SerializeToString() == model.SerializeToString()


def test_many_norms_in_a_row() -> None:
    stored = [numpy_helper.from_array(v, n) for n, v in {"k": np.float32([[[1]], [[-1]], [[1]], [[-1]]])}.items()]
    nodes = [helper.make_node("Mul", [f"t{i - 1}" if i else "x", "k"], [f"t{i}"]) for i in range(3000)]
    result = bnfold.fold(finish([*nodes, helper.make_node("Relu", ["t2999"], ["y"])], stored, "y"), verify=False)
    assert [node.op_type for node in result.model.graph.node] == ["Relu"]


def test_deep_nests() -> None:
    """If bodies inside one another, with a norm in the innermost."""

    def body(level: int) -> object:
        name = f"out{level}"
        if level == 0:
            nodes = [
                helper.make_node("Conv", ["x", "W"], ["c"]),
                helper.make_node("BatchNormalization", ["c", *"gbmv"], [name]),
            ]
        else:
            nodes = [helper.make_node("If", ["flag"], [name], then_branch=body(level - 1), else_branch=leaf(level))]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    def leaf(level: int) -> object:
        return helper.make_graph(
            [helper.make_node("Relu", ["x"], [f"e{level}"])],
            f"e{level}",
            [],
            [helper.make_tensor_value_info(f"e{level}", TensorProto.FLOAT, None)],
        )

    stored = [numpy_helper.from_array(integers((4, 4, 1, 1)), "W")]
    stored += [
        numpy_helper.from_array(v, n) for n, v in zip("gbmv", norm_parameters("", 4, "deep").values(), strict=True)
    ]
    depth = 20
    top = helper.make_node("If", ["flag"], ["y"], then_branch=body(depth), else_branch=leaf(depth + 1))
    model = finish([top], stored, "y")
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    assert len(bnfold.fold(model, verify=False).report.folded) == 1


def test_the_bias_of_a_product_that_is_to_stay() -> None:
    """Its constant is not rewritten either; a scale in front of the product does not touch it."""
    model = build(
        "float[2,3,4] x", "c = MatMul(x, W)\n[bias] a = Add(c, b)\ny = Mul(a, k)", W=(4, 5), b=(5,), k=np.float32(2)
    )
    options = bnfold.FoldOptions(skip=("bias",), verify=False)
    result = bnfold.fold(model, options)
    assert [(entry.node, entry.code) for entry in result.report.kept] == [("bias", "excluded"), ("Mul:y", "blocked")]
    before = build(
        "float[2,3,4] x", "n = Mul(x, k)\nc = MatMul(n, W)\n[bias] y = Add(c, b)", W=(4, 5), b=(5,), k=np.float32(2)
    )
    assert [entry.node for entry in bnfold.fold(before, options).report.folded] == ["Mul:n"]


@pytest.mark.parametrize("options", [{"skip": "bn1"}, {"skip": None}, {"skip_codes": None}, {"skip": (1,)}])
def test_names_to_skip_come_as_a_tuple(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="is not a tuple of names"):
        bnfold.inspect(build(X, "y = Relu(x)"), bnfold.FoldOptions(**options))
