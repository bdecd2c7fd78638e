"""Norms in bodies, behind an operator outside of them.

An operator of the outer graph whose only readers are norms inside bodies, one in each branch of an If, takes in what
they have in common at their beginning: whichever body runs, that is then done already.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import Affine
from bnfold.chain import Chain
from bnfold.graph import CAPTURE, Node, Scope
from bnfold.plan import ScopePlan
from bnfold.refusals import Refusal
from bnfold.route import Route
from bnfold.walker import Walker

__all__ = ["fold_across"]

Plans = dict[int, ScopePlan]
Entry = tuple[ScopePlan, Chain]


def fold_across(scopes: list[Scope], plans: Plans) -> bool:
    """Route what stands at the entry of bodies into the graph around them; adds to the plans. Whether any moved."""
    moved = False
    for scope in scopes:
        for tensor in dict.fromkeys(name for _, child in scope.children for name in sorted(child.captures)):
            if tensor in scope.producers and scope.constants.get(tensor) is None:
                moved |= _fold_tensor(scope, plans, tensor)
    return moved


def _fold_tensor(scope: Scope, plans: Plans, tensor: str) -> bool:
    owners = {node.index: node for node, child in scope.children if tensor in child.captures}
    outer = plans[id(scope)]
    walker = Walker(outer)
    uses = [use for use in outer.value_readers(tensor) if outer.looked_at(use.node)]
    if any(use.position != CAPTURE or use.node.index not in owners for use in uses):
        return False
    entries = _readers_inside(scope, plans, tensor)
    common = _in_common(entries) if entries else None
    if entries is None or common is None:
        return False
    affine, lengths = common
    for (plan, chain), length in zip(entries, lengths, strict=True):
        output = chain.members[length - 1].output
        if output in plan.scope.output_set and not _gains_as_identity(plan, chain, length):
            return False
    route = walker.backward(tensor, affine, frozenset(owners))
    if isinstance(route, Refusal) or route.cost:
        return False
    outer.take(entries[0][1], route, backward=True)
    for (plan, chain), length in zip(entries, lengths, strict=True):
        plan.cut(chain, length)
        if chain.output in plan.scope.output_set:
            _leave_identity(chain, route)
        else:
            chain.routes.append(route)
            plan.remove(chain, keeps_input=False)
    return True


def _in_common(entries: list[Entry]) -> tuple[Affine, list[int]] | None:
    """The most that all chains begin with, and with how many members each does it."""
    prefixes = [chain.prefixes(plan.scope) for plan, chain in entries]
    for affine in reversed(min(prefixes, key=len)):
        lengths = [next((i + 1 for i, own in enumerate(each) if own.same_as(affine)), 0) for each in prefixes]
        if all(lengths) and not affine.identity:
            return affine, lengths
    return None


def _leave_identity(chain: Chain, route: Route) -> None:
    """A body cannot return a tensor of the scope around it, so an Identity takes the chain's place."""
    chain.affine = Affine(np.ones_like(chain.affine.scale), np.zeros_like(chain.affine.shift), chain.affine.axis)
    chain.norm, chain.rewritten, chain.moved = None, True, route


def _gains_as_identity(plan: ScopePlan, chain: Chain, length: int) -> bool:
    """Whether an Identity in the place of so many members is a gain, and can be written."""
    shorter = length > 1 or chain.members[0].norm
    return shorter and plan.may_change(chain)


def _readers_inside(scope: Scope, plans: Plans, tensor: str) -> list[Entry] | None:
    """The chains that read the tensor in bodies, at any depth; None when anything else does."""
    found: list[Entry] = []
    waiting = [child for _, child in scope.children if tensor in child.captures]
    seen: set[int] = set()
    while waiting:
        body = waiting.pop(0)
        if id(body) in seen:
            continue
        seen.add(id(body))
        plan = plans[id(body)]
        names = [tensor]  # with those that vanished affines made of it
        while names:
            name = names.pop(0)
            if name in body.output_set:
                return None
            for use in plan.value_readers(name):
                gone = plan.gone.get(use.node.index)
                if use.position == CAPTURE:
                    waiting += [c for owner, c in body.children if owner is use.node and name in c.captures]
                    if name != tensor:
                        return None
                elif gone is not None and plan.looked_at(use.node):
                    names.append(gone.output)
                elif gone is None:
                    chain = plan.chain_of.get(use.node.index)
                    if chain is None or chain.data != name or not _begins_with(chain, use.node):
                        return None
                    found.append((plan, chain))
    return found


def _begins_with(chain: Chain, node: Node) -> bool:
    """Whether the node is the first of a chain that stays as it was."""
    return chain.members[0].node is node and chain.waiting and not chain.rewritten
