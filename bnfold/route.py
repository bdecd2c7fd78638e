"""A route: where one affine goes, and what changes on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bnfold.affine import Affine
from bnfold.carry.step import Edit
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["End", "Route"]


@dataclass(slots=True, eq=False)
class End:
    """Where one branch of a route ends: the affine enters ``node`` behind it (``into`` False) or in front of it."""

    node: Node
    affine: Affine
    into: bool
    adds: bool = False


@dataclass(slots=True, eq=False)
class Waiting:
    """An affine at some inputs or outputs of a node that it passes only from all of them."""

    affine: Affine
    missing: set[int]
    refusal: Refusal


@dataclass(slots=True)
class Route:
    """All ends of one affine, what changes on the way, and which tensors get another value.

    Attributes:
        passed: linear operators that a scale goes through, with a shift behind them already: it is divided by it.
        waiting: nodes that the affine has not reached at all their parts, by index.
    """

    ends: list[End] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    crossed: list[Node] = field(default_factory=list)
    passed: list[tuple[Node, float]] = field(default_factory=list)
    waiting: dict[int, Waiting] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        """Operators that taking this route adds to the graph."""
        return sum(end.adds for end in self.ends)

    def join(self, other: Route) -> None:
        self.ends += other.ends
        self.edits += other.edits
        self.tensors += other.tensors
        self.crossed += other.crossed
        self.passed += other.passed

    def bring(self, node: Node, part: int, parts: Iterable[int], affine: Affine, refusal: Refusal) -> bool | Refusal:
        """The affine is at this input or output of a node; True once it is at all of these parts.

        ``refusal`` says what is the matter if that never comes about.
        """
        here = self.waiting.setdefault(node.index, Waiting(affine, set(parts), refusal))
        if not affine.same_as(here.affine):
            return refusal
        here.missing.discard(part)
        if not here.missing:
            del self.waiting[node.index]
        return node.index not in self.waiting

    @property
    def incomplete(self) -> Refusal | None:
        """Why the route is none, though all of its branches have ended."""
        return next((each.refusal for each in self.waiting.values()), None)
