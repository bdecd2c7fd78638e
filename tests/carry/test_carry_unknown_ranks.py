"""Where a rank is not known, no axis can be counted from the other end: every operator refuses, and nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, keeps, kept
from onnx import TensorProto, helper

import bnfold

RESHAPED = "r = Reshape(v, s)\n"
INPUTS = "float[2,4,4,4] x, float[2,4,4,4] v, float[2,4,4,4] z, int64[R] s, int64[Q] t"
OUTPUT = "float[a,b,c,d] y"
CONSTANTS = {
    "q": [-1],
    "i": [0, 1],
    "o": [0],
    "e": [2],
    "f": np.array([1, 1, 2, 2], np.float32),
    "g": [0, 0, 1, 1, 0, 0, 1, 1],
    "h": [1, 2, 1, 1],
    "j": np.array([2], np.float32),
}

OPERATORS = {
    "Concat": "Concat <axis=1> ({0}, {0})",
    "Concat from the last axis": "Concat <axis=-3> ({0}, {0})",
    "Slice": "Slice({0}, o, e, q)",
    "Gather": "Gather <axis=-1> ({0}, i)",
    "SpaceToDepth": "SpaceToDepth <blocksize=2> ({0})",
    "Transpose": "Transpose({0})",
    "Squeeze": "Squeeze({0}, q)",
    "Unsqueeze": "Unsqueeze({0}, q)",
    "Flatten": "Flatten({0})",
    "Reshape": "Reshape({0}, t)",
    "GlobalMaxPool": "GlobalMaxPool({0})",
    "ReduceMean": "ReduceMean({0}, q)",
    "ReduceMax over an axis from the front": "ReduceMax({0}, e)",
    "Resize": "Resize({0}, , f)",
    "Resize of an axis": "Resize <axes=[2]> ({0}, , j)",
    "Pad": "Pad({0}, g)",
    "Tile": "Tile({0}, t)",
    "Expand": "Expand({0}, t)",
}

BEHIND = [
    "c = Concat <axis=-3> (r, r)\ny = BN4(c)",
    "a, b = Split <axis=-3, num_outputs=2> (r)\nn = BN4(a)\ny = Add(n, b)",
    "c = Slice(r, o, e, q)\ny = BN4(c)",
    "c = Gather <axis=-1> (r, i)\ny = BN4(c)",
    "c = Unsqueeze(r, q)\ny = BN4(c)",
    "c = Squeeze(r, q)\ny = BN4(c)",
    "c = Transpose(r)\ny = BN4(c)",
    "c = Flatten(r)\ny = BN4(c)",
    "c = ReduceMean(r, q)\ny = BN4(c)",
    "c = Tile(r, t)\ny = BN4(c)",
    "c = Expand(r, t)\ny = BN4(c)",
    "c = Add(r, r)\ny = BN4(c)",
    "c = Max(r, z)\ny = BNpos4(c)",
    "c = Mul(r, z)\ny = BNscale4(c)",
    "c = MatMul(r, z)\ny = BNscale4(c)",
    "n = BN4(r)\nm = Tile(n, t)\ny = Conv(m, W)",
    "n = BN4(r)\nm = Resize <axes=[2]> (n, , j)\ny = Conv(m, W)",
    "n = BNshift4(r)\nm = Add(n, z)\ny = Conv(m, W)",
    "n = BNscale4(r)\nm = Mul(n, z)\ny = Conv(m, W)",
    "n = BNscale4(r)\nm = MatMul(n, z)\ny = Conv(m, W)",
    "n = BN4(r)\na, b = Split <axis=-3, num_outputs=2> (n)\nm = Conv(a, W)\nl = Conv(b, W)\ny = Add(m, l)",
    "n = BN4(r)\nm = Concat <axis=-3> (z, n)\ny = Conv(m, W)",
    "n = BN4(r)\nm = Slice(n, o, e, q)\ny = Conv(m, W)",
    "n = BN4(r)\nm = Gather <axis=-1> (n, i)\ny = Conv(m, W)",
    "n = BN4(r)\nm = ReduceMean(n, q)\ny = Conv(m, W)",
]


def refusal(operator: str) -> str:
    """Operators that move no axis say that it is not the one they can deal with."""
    return "axis" if operator.startswith(("SpaceToDepth", "Expand")) else "shape-unknown"


def used(nodes: str) -> dict[str, object]:
    """The constants that the nodes read."""
    return {name: value for name, value in CONSTANTS.items() if f", {name}" in nodes}


KEPT = [
    *[
        kept(
            nodes.replace("\n", "; "),
            "shape-unknown",
            INPUTS,
            RESHAPED + nodes,
            outputs=OUTPUT,
            W=(3, 4, 1, 1),
            **used(nodes),
        )
        for nodes in BEHIND
    ],
    *[  # a product with a tensor of unknown rank has no rank either
        kept(
            f"{name}, towards the consumers",
            refusal(operator),
            INPUTS,
            f"{RESHAPED}n = BNposscale4(x)\nd = Mul(n, r)\np = {operator.format('d')}\ny = Conv(p, W)",
            outputs=OUTPUT,
            W=(3, 4, 1, 1),
            **used(operator),
        )
        for name, operator in OPERATORS.items()
    ],
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_towards_the_front(operator: str) -> None:
    """The Add has a declared rank, so the norm reaches its operands, counted from the last axis."""
    nodes = f"{RESHAPED}p = {operator.format('r')}\nc = Conv(z, W)\nd = Add(c, p)\ny = BNpos4(d)"
    made = build(INPUTS, nodes, OUTPUT, W=(4, 4, 1, 1), **used(operator))
    made.graph.value_info.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, ["a", "b", "c", "d"]))
    keeps(made, refusal(operator))


def test_a_reduction_whose_rank_onnx_does_not_infer() -> None:
    """A node of a domain that the model does not import stops shape inference."""
    nodes = "p = ReduceMean <keepdims=1> (c, e)\nd = Add(p, z)\ny = BN4(d)\nu = Relu(x)"
    made = build(INPUTS, "c = Conv(x, W)\n" + nodes, f"{OUTPUT}, float[e,f,g,h] u", W=(4, 4, 1, 1), e=[2])
    made.graph.node[-1].domain = "nobody"
    made.graph.value_info.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, ["a", "b", "c", "d"]))
    made.opset_import.add(domain="somebody", version=1)
    result = bnfold.fold(made, verify=False)
    assert [kept.code for kept in result.report.kept] == ["shape-unknown"]
