"""What is decided about one scope: chains of affines, where each goes, and what changes on the way.

Affine operators in a row form a :class:`Chain` with one composed affine. ``planner`` fills a :class:`ScopePlan`;
nothing in the graph is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bnfold import crossing, dtypes
from bnfold.affine import Affine
from bnfold.carry import Edited, Edits
from bnfold.chain import Chain, compose
from bnfold.graph import CAPTURE, Node, Scope, Use
from bnfold.read import AffineNode
from bnfold.refusals import Refusal
from bnfold.route import Route

__all__ = ["Limits", "ScopePlan"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must leave alone.

    Attributes:
        only_norms: consider batch norms only, not plain Mul, Add, Sub, Div, Neg.
        gelus: leave the affine operators that are part of a written-out Gelu.
        skip: labels of affine nodes to leave, with the reason.
        hosts: linear operators that must not take anything, by (scope path, node index).
    """

    only_norms: bool = False
    gelus: bool = True
    skip: dict[str, Refusal] = field(default_factory=dict)
    hosts: dict[tuple[str, int], Refusal] = field(default_factory=dict)


class ScopePlan:
    """Everything decided about one scope.

    Attributes:
        chains: all chains, in graph order.
        refused: batch norms that are no affine, and affines that options exclude, by node index.
        chain_of: the chain of each member, by node index; gone: members that disappear.
        out, into: the affine each linear node takes behind and in front of it, by node index.
        edits: constants of carrying operators that change.
        adds: MatMuls behind which an Add has to be written.
        changed: tensors whose value changes -> the chain that changed them last.
        dead: nodes whose results nobody uses; unread: the affines among them that are the cause.
        postponed: a route was turned down for now because it writes an Add; another way may do without.
        exposed: tensors that become outputs of the graph because identities behind them disappear.
    """

    def __init__(self, scope: Scope, limits: Limits, bodies: Sequence[tuple[Node, ScopePlan]] = ()) -> None:
        self.scope = scope
        self._bodies = bodies
        self._value_readers: dict[str, list[Use]] = {}
        self.limits = limits
        self.chains: list[Chain] = []
        self.refused: dict[int, Refusal] = {}
        self.chain_of: dict[int, Chain] = {}
        self.gone: dict[int, AffineNode] = {}
        self.out: dict[int, Affine] = {}
        self.into: dict[int, Affine] = {}
        self.edits: Edits = {}
        self.adds: set[int] = set()
        self.changed: dict[str, Chain] = {}
        self.postponed = False
        self.exposed: set[str] = set()
        self.dead: set[int] = set()
        self.unread: list[AffineNode] = []
        self.excluded_hosts = {index: r for (path, index), r in limits.hosts.items() if path == scope.path}

    def value_readers(self, tensor: str) -> list[Use]:
        """The reads that look at the tensor's values and whose results are used."""
        if not self.dead and not self._bodies:
            return self.scope.value_readers(tensor)
        if tensor in self._value_readers:
            return self._value_readers[tensor]
        found = [use for use in self.scope.value_readers(tensor) if use.node.index not in self.dead]
        if all(use.position != CAPTURE for use in found):
            self._value_readers[tensor] = found
            return found
        return [use for use in found if use.position != CAPTURE or self._needed_inside(use.node, tensor)]

    def _needed_inside(self, owner: Node, tensor: str) -> bool:
        """Whether the bodies of a node want more of a captured tensor than its shape."""
        return any(
            tensor in plan.scope.output_set or any(plan.looked_at(use.node) for use in plan.value_readers(tensor))
            for node, plan in self._bodies
            if node is owner and tensor in plan.scope.captures
        )

    def looked_at(self, node: Node) -> bool:
        """Whether anybody wants the values of what a node makes; of those that vanished, only shapes may be read."""
        waiting = [node]
        while waiting:
            gone = self.gone.get(waiting.pop().index)
            if gone is None or gone.output in self.scope.output_set:
                return True
            waiting.extend(use.node for use in self.value_readers(gone.output))
        return False

    def cut(self, chain: Chain, length: int) -> None:
        """Make a chain end after so many members; the others become a chain of their own."""
        if length == len(chain.members):
            return
        prefix = chain.prefixes(self.scope)[length - 1]
        rest = chain.members[length:]
        tail = Chain(rest[:1], rest[0].affine, refusal=chain.refusal)
        for member in rest[1:]:
            both = compose(self.scope, member.data, tail.affine, member.affine)
            assert both is not None, "they compose, or they were no chain"
            tail.append(member, both)
        chain.members, chain.affine = chain.members[:length], prefix
        chain.norm = next((member for member in chain.members if member.norm), None)
        self.chains.insert(self.chains.index(chain) + 1, tail)
        self.chain_of.update((member.node.index, tail) for member in rest)

    # -- decisions -----------------------------------------------------------------------------------------------

    def take(self, chain: Chain, route: Route, *, backward: bool) -> None:
        """Commit a route of one chain."""
        for end in route.ends:
            table = self.into if end.into and not end.turned else self.out
            old = table.get(end.node.index)
            table[end.node.index] = (
                end.affine if old is None else (old.then(end.affine) if backward else end.affine.then(old))
            )
            if end.adds:
                self.adds.add(end.node.index)
        for node, scale in route.passed:
            behind = self.out[node.index]
            self.out[node.index] = Affine(behind.scale, behind.shift / scale, behind.axis)
        for edit in route.edits:
            if edit.node.index in self.chain_of:
                crossing.widen(self.chain_of[edit.node.index], edit)
                continue
            key = (edit.node.index, edit.slot)
            earlier = self.edits[key].affines if key in self.edits else ()
            self.edits[key] = Edited((*earlier, edit.affine), edit.default)
        for tensor in route.tensors:
            self.changed[tensor] = chain

    def remove(self, chain: Chain, *, keeps_input: bool) -> None:
        """The members vanish; what they read (``keeps_input``) or what they make keeps its value."""
        for member in chain.members:
            self.gone[member.node.index] = member
        for member in chain.members[:-1]:
            self.changed[member.output] = chain
        if keeps_input:
            self.changed[chain.output] = chain

    def may_change(self, chain: Chain) -> bool:
        """Whether a staying chain may be written anew: not when its parameters proved not to fit their type before."""
        return not any(m.node.index in self.excluded_hosts for m in chain.members)

    def shrinks(self, chain: Chain) -> bool:
        """Whether a staying chain is to be written anew, with fewer operators or another affine."""
        if not chain.staying or not self.may_change(chain):
            return False
        if not chain.rewritten and not self.expressible(chain, chain.affine):
            return False
        return chain.rewritten or len(chain.members) > chain.operators_needed() > 0

    @property
    def changes_anything(self) -> bool:
        return bool(self.gone or self.changed or self.dead) or any(self.shrinks(chain) for chain in self.chains)

    def saved(self) -> int:
        """How many affine operators there are less: those that go, and those that others are written with, less new
        Adds."""
        shorter = sum(len(c.members) - max(c.operators_needed(), 1) for c in self.chains if self.shrinks(c))
        return len(self.gone) + shorter - len(self.adds)

    def expressible(self, chain: Chain, affine: Affine) -> bool:
        """Whether constants of the chain's type hold the affine: nothing too large, no scale that is lost near zero."""
        names = (name for member in chain.members for name in member.node.inputs if name != member.data)
        constants = [c for c in map(self.scope.constants.get, names) if c is not None and c.floating]
        smallest, largest = dtypes.limits(constants[0].data_type if constants else dtypes.FLOAT)
        size = np.abs(affine.scale)
        lost = ((size > 0) & (size < smallest)).any()
        return not lost and max(size.max(), np.abs(affine.shift).max()) <= largest

    def can_merge(self, node: Node, affine: Affine, *, into: bool) -> bool:
        """Whether the chain that ``node`` belongs to can take another affine without growing."""
        chain = self.chain_of[node.index]
        past = into and not affine.shifts and chain.affine.scales  # the shift behind has two axes, the scale has not
        if (
            not (chain.waiting or (chain.staying and past))
            or not self.may_change(chain)
            or node is not (chain.members[0] if into else chain.members[-1]).node
        ):
            return False
        both = (
            compose(self.scope, chain.data, affine, chain.affine)
            if into
            else compose(self.scope, chain.data, chain.affine, affine)
        )
        if (
            both is None
            or not self.expressible(chain, both)
            or both.scale.size != max(chain.affine.scale.size, affine.scale.size)
        ):
            return False
        if chain.norm is not None:
            return both.uniform or (
                self.scope.shapes.axis(chain.data, both.axis) == 1 and both.scale.size == chain.norm.affine.scale.size
            )
        if both.scale.size != chain.affine.scale.size:
            return False
        return chain.operators_for(both) <= min(len(chain.members), max(chain.operators_needed(), 1))
