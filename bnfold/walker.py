"""Walking: following one affine through the graph, towards producers or towards consumers, until linear operators take
it.

A route is taken whole or not at all. Nothing here changes anything: the walker reads the index and the planner's state,
and returns either a :class:`Route` or the :class:`Refusal` that stopped it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.affine import Affine
from bnfold.junction import Junction
from bnfold.refusals import Refusal
from bnfold.route import Route
from bnfold.towards_consumers import TowardsConsumers
from bnfold.towards_producers import TowardsProducers

if TYPE_CHECKING:
    from bnfold.plan import ScopePlan

__all__ = ["Walker"]


class Walker:
    """Finds routes given what the planner has decided so far."""

    def __init__(self, plan: ScopePlan, *, merge: bool = False, widen: bool = False) -> None:
        at = Junction(plan, merge=merge)
        self._producers = TowardsProducers(plan, at, widen=widen)
        self._consumers = TowardsConsumers(plan, at, widen=widen)

    def backward(self, tensor: str, affine: Affine, readers: frozenset[int]) -> Route | Refusal:
        """Route an affine that now stands behind ``tensor`` into what makes the tensor.

        ``readers`` are the indices of the nodes that may read it: the affine nodes themselves.
        """
        return self._producers.route(tensor, affine, readers)

    def forward(self, tensor: str, affine: Affine) -> Route | Refusal:
        """Route an affine that makes ``tensor`` into everything that reads the tensor."""
        return self._consumers.route(tensor, affine)
