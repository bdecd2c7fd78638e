"""Random graphs with symbolic dimensions: a fold is exact at every set of sizes, valid, idempotent and deterministic.

``pytest --hypothesis-profile=thorough`` looks at many more.
"""

from __future__ import annotations

from random import Random

import pytest
from helpers import close, exposing, fold, made_tensors, session, valid
from hypothesis import given
from hypothesis import strategies as st
from random_shapes import RandomShapes


def holds(graph: RandomShapes) -> None:
    model = graph.model()
    if not valid(model):
        return
    result = fold(model)
    if not result.report.folded:
        return
    names = [value.name for value in model.graph.output]
    names += sorted((made_tensors(model) & made_tensors(result.model)) - set(names))
    try:
        original = session(exposing(model, names))
        wanted = [original.run(names, feeds) for feeds in graph.feeds()]
    except Exception:  # the runtime ran every operator, and now infers a wrong shape for some
        return
    folded = session(exposing(result.model, names))
    for feeds, wants in zip(graph.feeds(), wanted, strict=True):
        for name, want, got in zip(names, wants, folded.run(names, feeds), strict=True):
            close(want, got, graph.largest, name, exact=graph.exact)


@given(st.randoms(use_true_random=False))
def test_any_shapes(random: Random) -> None:
    holds(RandomShapes(random))


@pytest.mark.parametrize("seed", range(600))
def test_fixed_shapes(seed: int) -> None:
    holds(RandomShapes(Random(seed)))
