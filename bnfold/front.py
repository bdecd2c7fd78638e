"""Where an affine has come to on its way towards consumers."""

from __future__ import annotations

import heapq

from bnfold.affine import Affine, Spread
from bnfold.chain import compose
from bnfold.graph import Scope

__all__ = ["Front"]


class Front:
    """Tensors that an affine has come to on its way towards consumers, to be taken on in the order of the graph.

    What comes to a tensor on several ways is there together by then: a shift may cancel behind a difference.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._order: list[tuple[int, str]] = []
        self._affines: dict[str, list[tuple[Affine, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._order)

    def add(self, tensor: str, affine: Affine, depth: int) -> None:
        """One more affine on a tensor, so many operators away from where the route began."""
        there = self._affines.setdefault(tensor, [])
        alone = not there or isinstance(affine, Spread) or isinstance(there[-1][0], Spread)
        both = None if alone else compose(self._scope, tensor, there[-1][0], affine)
        if both is not None:
            there[-1] = (both, depth)
            return
        there.append((affine, depth))
        producer = self._scope.producer(tensor)
        heapq.heappush(self._order, (-1 if producer is None else producer.index, tensor))

    def pop(self) -> tuple[str, Affine, int]:
        """The first tensor in the graph, one of the affines on it, and how far away it is."""
        _, tensor = heapq.heappop(self._order)
        affine, depth = self._affines[tensor].pop()
        return tensor, affine.simplest(), depth
