"""Affine operators in a row that do what one affine does."""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold.affine import Affine
from bnfold.carry import Edit
from bnfold.graph import Scope
from bnfold.read import AffineNode
from bnfold.refusals import Refusal
from bnfold.route import Route

SCALE, SHIFT = "scale", "shift"
"""The constants of a chain, as slots of an edit of its last operator."""

__all__ = ["SCALE", "SHIFT", "Chain", "compose"]


@dataclass(slots=True, eq=False)
class Chain:
    """Affine operators in a row, each the only reader of the one before.

    Attributes:
        affine: all of them composed, on the data tensor's axes.
        routes: how it left, towards producers and consumers; empty when it stays.
        refusal: why it stays.
        dropped: it does nothing.
        norm: the first batch norm among the members.
        rewritten: it stays with another affine than its members have: others merged into it, or half of it left.
        widened: it stays, and its constants pass through these affines along other axes: it is no affine per channel
            any more.
        into_chain: the chain that took it over.
        moved: where a half of it went, or all of it but for an Identity in its place, while it stays.
    """

    members: list[AffineNode]
    affine: Affine
    routes: list[Route] = field(default_factory=list)
    refusal: Refusal | None = None
    dropped: bool = False
    rewritten: bool = False
    widened: tuple[Edit, ...] = ()
    into_chain: Chain | None = None
    moved: Route | None = None
    norm: AffineNode | None = None

    def __post_init__(self) -> None:
        self.norm = next((member for member in self.members if member.norm), None)

    @property
    def data(self) -> str:
        return self.members[0].data

    @property
    def output(self) -> str:
        return self.members[-1].output

    def prefixes(self, scope: Scope) -> list[Affine]:
        """What the first one, two, three, ... members do together."""
        found = [self.members[0].affine]
        for member in self.members[1:]:
            both = compose(scope, member.data, found[-1], member.affine)
            assert both is not None, "they compose, or they were no chain"
            found.append(both)
        return found

    def append(self, member: AffineNode, affine: Affine) -> None:
        """Add one more member; ``affine`` is the whole chain's from now on."""
        self.members.append(member)
        self.affine = affine
        if self.norm is None and member.norm:
            self.norm = member

    def take_over(self, later: Chain, affine: Affine) -> None:
        """Continue with all members of the chain behind; ``affine`` is that of both from now on."""
        for member in later.members:
            self.append(member, affine)
        self.rewritten |= later.rewritten
        self.moved = self.moved or later.moved
        later.members, later.into_chain = [], self

    @property
    def staying(self) -> bool:
        return not self.dropped and self.into_chain is None and not self.routes

    @property
    def waiting(self) -> bool:
        """It stays so far, and may yet go."""
        return self.staying and not self.widened

    def operators_needed(self) -> int:
        """Operators that express this chain's affine when nothing takes it."""
        if self.norm is not None:
            return 1
        return self.operators_for(self.affine)

    def operators_for(self, affine: Affine) -> int:
        """Plain operators that express an affine in this chain's place."""
        return 1 if self.subtracts(affine) else int(affine.scales) + int(affine.shifts)

    def subtracts(self, affine: Affine) -> bool:
        """Whether the affine in this chain's place is one Sub, ``shift - x``."""
        if self.members[0].node.scope.opset < 7:  # only the second operand broadcasts there
            return False
        turned = affine.shifts and bool((affine.scale == -1.0).all())
        return turned and not any(edit.slot == SCALE for edit in self.widened)


def compose(scope: Scope, tensor: str, first: Affine, second: Affine) -> Affine | None:
    """``second`` after ``first`` on one tensor; None when they run along different axes, or that cannot be told."""
    if first.uniform or second.uniform or first.axis == second.axis:
        if not first.uniform and not second.uniform and first.scale.size != second.scale.size:
            return None
        return first.then(second)
    axes = [scope.shapes.axis(tensor, a.axis) for a in (first, second)]
    if axes[0] is None or axes[0] != axes[1] or first.scale.size != second.scale.size:
        return None
    return first.at(axes[0]).then(second.at(axes[0]))
