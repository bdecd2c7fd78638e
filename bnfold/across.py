"""Norms in bodies, behind an operator outside of them.

An operator of the outer graph whose only readers are norms inside bodies, one in each branch of an If, takes them in
when all of them do the very same: whichever body runs, the norm is then done already.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import Affine
from bnfold.graph import CAPTURE, Node, Scope
from bnfold.plan import Chain, ScopePlan
from bnfold.refusals import Refusal
from bnfold.route import Route
from bnfold.walker import Walker

__all__ = ["fold_across"]

Plans = dict[int, ScopePlan]


def fold_across(roots: list[Scope], plans: Plans) -> None:
    """Route what stands at the entry of bodies into the graph around them; adds to the plans."""
    for root in roots:
        for scope in root.scopes():
            for tensor in dict.fromkeys(name for _, child in scope.children for name in sorted(child.captures)):
                if tensor in scope.producers:
                    _fold_tensor(scope, plans, tensor)


def _fold_tensor(scope: Scope, plans: Plans, tensor: str) -> None:
    owners = {node.index: node for node, child in scope.children if tensor in child.captures}
    uses = plans[id(scope)].value_readers(tensor)
    if any(use.position != CAPTURE or use.node.index not in owners for use in uses):
        return
    chains = _readers_inside(scope, plans, tensor, owners)
    if not chains or any(not chain.affine.same_as(chains[0][1].affine) for _, chain in chains):
        return
    outer = plans[id(scope)]
    route = Walker(outer).backward(tensor, chains[0][1].affine, frozenset(owners))
    if isinstance(route, Refusal) or route.cost:
        return
    outer.take(chains[0][1], route, backward=True)
    for plan, chain in chains:
        if chain.output in plan.scope.output_set:
            _leave_identity(chain, route)
        else:
            chain.routes.append(route)
            plan.remove(chain, keeps_input=False)


def _leave_identity(chain: Chain, route: Route) -> None:
    """A body cannot return a tensor of the scope around it, so an Identity takes the chain's place."""
    chain.affine = Affine(np.ones_like(chain.affine.scale), np.zeros_like(chain.affine.shift), chain.affine.axis)
    chain.norm, chain.rewritten, chain.moved = None, True, route


def _gains_as_identity(plan: ScopePlan, chain: Chain) -> bool:
    """Whether an Identity in its place is a gain, and can be written."""
    shorter = chain.norm is not None or len(chain.members) > 1
    return shorter and plan.may_change(chain) and plan.scope.opset >= 7


def _readers_inside(
    scope: Scope, plans: Plans, tensor: str, owners: dict[int, Node]
) -> list[tuple[ScopePlan, Chain]] | None:
    """The chains that read the tensor in bodies; None when anything else does."""
    found = []
    for owner, child in scope.children:
        if owner.index not in owners or tensor not in child.captures:
            continue
        plan = plans[id(child)]
        if tensor in child.output_set:
            return None
        for use in plan.value_readers(tensor):
            chain = plan.chain_of.get(use.node.index)
            if chain is None or chain.members[0].node is not use.node or not chain.staying or chain.rewritten:
                return None
            if chain.output in child.output_set and not _gains_as_identity(plan, chain):
                return None
            found.append((plan, chain))
    return found
