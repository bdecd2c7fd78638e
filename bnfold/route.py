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
    """Where one branch of a route ends: the affine enters ``node`` behind it (``into`` False) or in front of it.

    With ``turned``, it comes from the front, and ``affine`` is what does the same behind the node.
    """

    node: Node
    affine: Affine
    into: bool
    adds: bool = False
    turned: bool = False


@dataclass(slots=True, eq=False)
class Waiting:
    """An affine at some of the places that it has to come from, or go to, all at once."""

    affine: Affine
    missing: list[int]
    refusal: Refusal


@dataclass(slots=True)
class Route:
    """All ends of one affine, what changes on the way, and which tensors get another value.

    Attributes:
        passed: linear operators that a scale goes through, with a shift behind them already: it is divided by it.
        waiting: nodes (by index) and shared tensors (by name) that the affine has not reached from all sides.
    """

    ends: list[End] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    crossed: list[Node] = field(default_factory=list)
    passed: list[tuple[Node, float]] = field(default_factory=list)
    waiting: dict[int | str, Waiting] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        """Operators that taking this route adds to the graph."""
        return sum(end.adds for end in self.ends)

    def branch(self) -> Route:
        """A route of its own that waits for the same, to be joined if it is the one to take."""
        return Route(waiting={key: Waiting(w.affine, list(w.missing), w.refusal) for key, w in self.waiting.items()})

    def join(self, branch: Route) -> None:
        """Continue with all of a branch."""
        self.ends += branch.ends
        self.edits += branch.edits
        self.tensors += branch.tensors
        self.crossed += branch.crossed
        self.passed += branch.passed
        self.waiting = branch.waiting

    def bring(
        self, key: int | str, part: int, parts: Iterable[int], affine: Affine, refusal: Refusal
    ) -> bool | Refusal:
        """The affine is at this part of what ``key`` stands for; True once it is at all of its parts.

        ``refusal`` says what is the matter if that never comes about.
        """
        here = self.waiting.setdefault(key, Waiting(affine, list(parts), refusal))
        if not affine.same_as(here.affine) or part not in here.missing:
            return refusal
        here.missing.remove(part)
        if not here.missing:
            del self.waiting[key]
        return key not in self.waiting

    @property
    def incomplete(self) -> Refusal | None:
        """Why the route is none, though all of its branches have ended."""
        return next((each.refusal for each in self.waiting.values()), None)
