"""Planning: what goes where, options, and that it stays quick."""

from __future__ import annotations

import time

import numpy as np
import pytest
from helpers import build, fold, integers, norm_parameters
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold

X = "float[2,4,5,5] x"
W = (3, 4, 2, 2)


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
