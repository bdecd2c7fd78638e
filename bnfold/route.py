"""A route: where one affine goes, and what changes on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold.affine import Affine
from bnfold.carry.step import Edit
from bnfold.graph import Node

__all__ = ["End", "Route"]


@dataclass(slots=True, eq=False)
class End:
    """Where one branch of a route ends: the affine enters ``node`` behind it (``into`` False) or in front of it."""

    node: Node
    affine: Affine
    into: bool
    adds: bool = False


@dataclass(slots=True)
class Route:
    """All ends of one affine, what changes on the way, and which tensors get another value.

    Attributes:
        passed: linear operators that a scale goes through, with a shift behind them already: it is divided by it.
    """

    ends: list[End] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    crossed: list[Node] = field(default_factory=list)
    passed: list[tuple[Node, float]] = field(default_factory=list)

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
