"""Planning: for every affine of a scope, a route to linear operators or a refusal. Pure; nothing is edited.

Affine operators in a row form a *chain* with one composed affine. Chains are routed in this order:

1. chains that do nothing disappear;
2. towards producers, in the order of the graph, so that a chain behind a routed one finds the way clear;
3. towards consumers, in reverse order; where neither way takes it whole, the scale one way and the shift the other;
4. what is left merges: a chain becomes the fewest operators, and chains with only carrying operators in between
become one;
5. what still stays moves past affines along another axis, which are none per channel from then on.

A routed chain counts as the identity from then on. All but the first are repeated until nothing moves.
"""

from __future__ import annotations

import numpy as np

from bnfold.across import fold_across
from bnfold.chain import Chain
from bnfold.chains import collect, drop_identity, find_dead, join_neighbours
from bnfold.graph import Node, Scope
from bnfold.merge import Stage, merge, split
from bnfold.plan import Limits, ScopePlan
from bnfold.refusals import Refusal
from bnfold.route import Route
from bnfold.walker import Walker

__all__ = ["plan_model"]


def plan_model(roots: list[Scope], limits: Limits) -> dict[int, ScopePlan]:
    """The plan of every scope, by the scope's ``id``."""
    plans: dict[int, ScopePlan] = {}
    with np.errstate(all="ignore"):  # what overflows is refused
        for root in roots:
            _plan_root(root, limits, plans)
    return plans


def _plan_root(root: Scope, limits: Limits, plans: dict[int, ScopePlan]) -> None:
    scopes = list(root.scopes())
    for scope in reversed(scopes):  # bodies first: what nobody needs in there reads nothing
        plans[id(scope)] = _begin(scope, limits, [(owner, plans[id(child)]) for owner, child in scope.children])
    moved = True
    while moved:
        for scope in reversed(scopes):
            _route_all(plans[id(scope)])
        if len(scopes) > 1 and fold_across(scopes, plans):
            continue
        moved = any(_merge_scopes([plans[id(scope)] for scope in scopes], stage) for stage in Stage)


def _begin(scope: Scope, limits: Limits, bodies: list[tuple[Node, ScopePlan]]) -> ScopePlan:
    plan = ScopePlan(scope, limits, bodies)
    find_dead(plan)
    collect(plan)
    for chain in plan.chains:
        drop_identity(plan, chain)
    return plan


def _route_all(plan: ScopePlan) -> None:
    """Go through all chains that stay, each way, until nothing moves; first without writing new operators."""
    while _route_each(plan, adds=False) or (plan.postponed and _route_each(plan, adds=True)):
        pass


def _route_each(plan: ScopePlan, *, adds: bool) -> bool:
    plan.postponed = False
    moved = False
    walker = Walker(plan)
    for chain in plan.chains:
        if chain.waiting:
            moved |= _towards_producers(plan, walker, chain, adds=adds) and adds
    walker = Walker(plan)
    for chain in reversed(plan.chains):
        if chain.waiting:
            moved |= _towards_consumers(plan, walker, chain, adds=adds)
    return moved and any(chain.waiting for chain in plan.chains)


def _merge_scopes(plans: list[ScopePlan], stage: Stage) -> bool:
    merged = [_merge_all(plan, stage) for plan in plans]  # all, not up to the first
    return any(merged)


def _merge_all(plan: ScopePlan, stage: Stage) -> bool:
    """Merge what stays, until nothing does; whether the way may now be clear for others."""
    join_neighbours(plan)
    moved, merged = False, any(chain.waiting for chain in plan.chains)
    while merged:
        walker = Walker(plan, merge=True, widen=stage is not Stage.PLAIN)
        merged = False
        # From the end, so that the next one to merge with is near. Norms last: one that takes another chain stays a
        # single operator, and one that is taken may leave two.
        late = plan.chains[::-1]
        for chain in (*(c for c in late if c.norm is None), *(c for c in late if c.norm is not None)):
            if chain.staying and merge(plan, walker, chain, stage):
                merged = moved = True
    return moved


# -- routing -----------------------------------------------------------------------------------------------------------


def _worthwhile(plan: ScopePlan, chain: Chain, route: Route, others: int = 0, *, adds: bool) -> Refusal | None:
    """A route may write new Adds, but the model must not get more operators, and a norm must go for it."""
    cost, removed = route.cost, len(chain.members) + others
    if cost < removed or (cost == removed and chain.norm is not None):
        if adds or not cost:
            return None
        plan.postponed = True
    return Refusal(
        "no-gain", "the shift would only move to another Add", route.ends[0].node.label if route.ends else None
    )


def _twins(plan: ScopePlan, chain: Chain) -> list[Chain]:
    """Other chains that do the very same to the same tensor; they can go into its producer together."""
    readers = plan.value_readers(chain.data)
    if len(readers) == 1:
        return []
    found = []
    for use in readers:
        other = plan.chain_of.get(use.node.index)
        if (
            other is None
            or other.members[0].node is not use.node
            or not other.waiting
            or not other.affine.same_as(chain.affine)
        ):
            return []
        if other is not chain:
            found.append(other)
    outputs = [c.output for c in (chain, *found) if c.output in plan.scope.output_set or c.output in plan.exposed]
    return found if len(outputs) <= 1 else []


def _towards_producers(plan: ScopePlan, walker: Walker, chain: Chain, *, adds: bool) -> bool:
    twins = _twins(plan, chain)
    readers = frozenset(c.members[0].node.index for c in (chain, *twins))
    route = walker.backward(chain.data, chain.affine, readers)
    others = sum(len(twin.members) for twin in twins)
    refusal = route if isinstance(route, Refusal) else _worthwhile(plan, chain, route, others, adds=adds)
    if refusal is not None or isinstance(route, Refusal):
        chain.refusal = refusal
        return False
    plan.take(chain, route, backward=True)
    for each in (chain, *twins):
        each.routes.append(route)
        plan.remove(each, keeps_input=False)
    return True


def _towards_consumers(plan: ScopePlan, walker: Walker, chain: Chain, *, adds: bool) -> bool:
    route = walker.forward(chain.output, chain.affine)
    refusal = route if isinstance(route, Refusal) else _worthwhile(plan, chain, route, adds=adds)
    if refusal is None and isinstance(route, Route):
        plan.take(chain, route, backward=False)
        chain.routes.append(route)
        plan.remove(chain, keeps_input=True)
        return True
    if split(plan, walker, chain):
        return True
    assert chain.refusal is not None, "it was tried towards producers"
    assert refusal is not None
    chain.refusal = _tell(chain.refusal, refusal)
    return False


def _tell(back: Refusal, forth: Refusal) -> Refusal:
    """The refusal to report: towards the producer it usually says what is wrong with the model; else the other
    way's."""
    if back.code == "no-producer" and forth.code not in ("graph-output", "blocked"):
        first, second, also = forth, back, "and towards the front"
    else:
        first, second, also = back, forth, "and towards the consumers"
    return Refusal(first.code, f"{first.reason}; {also}: {second.reason}", first.node or second.node)
