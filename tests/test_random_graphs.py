"""Random graphs: whatever the graph, a fold is exact or refused, valid, idempotent and deterministic.

``pytest --hypothesis-profile=thorough`` looks at many more.
"""

from __future__ import annotations

import contextlib
from random import Random

import numpy as np
import pytest
from helpers import Array, close, feeds_for, fold, made_tensors, run, valid
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import ModelProto
from random_graphs import RandomGraph

import bnfold


def holds(model: ModelProto) -> None:
    result = fold(model)
    if not result.report.folded:
        return
    names = [value.name for value in model.graph.output]
    names += sorted((made_tensors(model) & made_tensors(result.model)) - set(names))
    for seed in range(2):
        feeds = feeds_for(model, seed, **{f"N{n}": n for n in range(9)})
        if "flag" in feeds:
            feeds["flag"] = np.array(bool(seed))
        everything = run(model, feeds, sorted(made_tensors(model)))
        want, got = run(model, feeds, names), run(result.model, feeds, names)
        magnitude = largest(everything)
        for name in names:  # exactly equal while the values inside the graph fit float32 with room for fractions
            close(want[name], got[name], magnitude, name, exact=magnitude < 2**10)


def largest(values: dict[str, Array]) -> float:
    return max((float(np.abs(v).max(initial=0)) for v in values.values() if v.dtype == np.float32), default=0.0)


@given(st.randoms(use_true_random=False))
def test_any_graph(random: Random) -> None:
    model = RandomGraph(random).model()
    assume(valid(model))
    holds(model)


SECOND_FOLD_ONCE_DID_MORE = [
    5048898,
    5063758,
    6035566,
    6108236,
    30010305,
    30060036,
    40120937,
    40149678,
    40152160,
    40217199,
]


@pytest.mark.parametrize("seed", [*range(300), *SECOND_FOLD_ONCE_DID_MORE])
def test_fixed_graphs(seed: int) -> None:
    model = RandomGraph(Random(seed)).model()
    if valid(model):
        holds(model)


@pytest.mark.parametrize("seed", range(300))
def test_damaged_graphs(seed: int) -> None:
    """Nodes that lost inputs, outputs or attributes: a result or a refusal, no other exception."""
    random = Random(seed)
    model = RandomGraph(random).model()
    for node in random.choices(model.graph.node, k=2):
        match random.randrange(4):
            case 0:
                del node.input[random.randint(0, len(node.input)) :]
            case 1 if node.input:
                node.input[random.randrange(len(node.input))] = ""
            case 2:
                del node.output[random.randint(0, len(node.output)) :]
            case _:
                del node.attribute[:]
    with contextlib.suppress(bnfold.BnfoldError):
        bnfold.fold(model, verify=False)
