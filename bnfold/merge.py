"""What is left over merges: into another chain that stays, or down to half of itself, where that saves operators."""

from __future__ import annotations

from enum import Enum, auto

import numpy as np

from bnfold import carry, crossing
from bnfold.affine import Affine
from bnfold.chain import SCALE, Chain, compose
from bnfold.chains import joins_outputs
from bnfold.plan import ScopePlan
from bnfold.refusals import Refusal
from bnfold.route import Route
from bnfold.walker import Walker

__all__ = ["Stage", "merge", "split"]


class Stage(Enum):
    """How far merging goes; each stage comes when the one before finds nothing any more.

    ``WIDE``: past affines along another axis, too, whose constants have both axes then. ``SPLIT``: the scale one way
    and the shift the other, too.
    """

    PLAIN = auto()
    WIDE = auto()
    SPLIT = auto()


def merge(plan: ScopePlan, walker: Walker, chain: Chain, stage: Stage) -> bool:
    """Move a chain into another one that stays, or keep half of it, where that saves operators; returns whether it
    did."""
    if chain.widened:
        return _lighten(plan, walker, chain)
    readers = frozenset((chain.members[0].node.index,))
    route = walker.backward(chain.data, chain.affine, readers)
    if isinstance(route, Route) and route.cost == 0:
        if _come_here(plan, walker, route):
            return False
        _take_whole(plan, chain, route, backward=True)
        return True
    route = walker.forward(chain.output, chain.affine)
    if isinstance(route, Route) and route.cost == 0 and (route.ends or route.crossed):
        _take_whole(plan, chain, route, backward=False)
        return True
    if stage is Stage.SPLIT and split(plan, walker, chain):
        return True
    if _aside(plan, walker, chain):
        return True
    if (len(chain.members) > 1 or chain.rewritten) and chain.operators_needed() > 1 and plan.may_change(chain):
        return _halve(plan, walker, chain, readers)
    return False


def _come_here(plan: ScopePlan, walker: Walker, route: Route) -> bool:
    """Whether one of several chains that this one would go into can itself go the other way: then fewer stay."""
    hosts = {id(h): h for h in (plan.chain_of.get(end.node.index) for end in route.ends) if h is not None}
    if len(hosts) < 2:
        return False
    ways = (walker.forward(host.output, host.affine) for host in hosts.values())
    return any(isinstance(way, Route) and way.cost == 0 and way.ends for way in ways)


def split(plan: ScopePlan, walker: Walker, chain: Chain) -> bool:
    """Scale one way and shift the other: ``s * (x + t / s)`` or ``(s * x) + t``; only when nothing stays behind."""
    affine = chain.affine
    if not (affine.scales and affine.shifts):
        return False
    readers = frozenset((chain.members[0].node.index,))
    ways = [(affine.only_scale(), affine.only_shift())]
    dead = (affine.scale == 0) & (affine.shift == 0)
    if (dead | (affine.scale != 0)).all():
        moved = Affine(affine.scale, np.where(dead, 0.0, affine.shift / affine.scale), affine.axis)
        if moved.finite:
            ways.append((moved.only_shift(), affine.only_scale()))
    for back, forth in ways:
        towards_producers = walker.backward(chain.data, back, readers)
        if isinstance(towards_producers, Refusal) or towards_producers.cost:
            continue
        towards_consumers = walker.forward(chain.output, forth)
        if isinstance(towards_consumers, Refusal) or towards_consumers.cost:
            continue
        _take(plan, chain, towards_producers, backward=True)
        _take(plan, chain, towards_consumers, backward=False)
        chain.routes += [towards_producers, towards_consumers]
        plan.remove(chain, keeps_input=True)
        for route in chain.routes:
            _drop_identities(plan, route)
        return True
    return False


def _take_whole(plan: ScopePlan, chain: Chain, route: Route, *, backward: bool) -> None:
    chain.into_chain = next((plan.chain_of[e.node.index] for e in route.ends if e.node.index in plan.chain_of), None)
    chain.routes.append(route)
    _take(plan, chain, route, backward=backward)
    plan.remove(chain, keeps_input=not backward)
    _drop_identities(plan, route)


def _take(plan: ScopePlan, chain: Chain, route: Route, *, backward: bool) -> None:
    """Commit a route some of whose ends are chains that stay."""
    linear = Route([], route.edits, route.tensors, route.crossed, route.passed)
    for end in route.ends:
        host = plan.chain_of.get(end.node.index)
        if host is None:
            linear.ends.append(end)
            continue
        both = compose(plan.scope, host.data, *((host.affine, end.affine) if backward else (end.affine, host.affine)))
        assert both is not None, "checked by can_merge"
        host.affine, host.rewritten = both if host.norm is not None else both.simplest(), True
    plan.take(chain, linear, backward=backward)


def _drop_identities(plan: ScopePlan, route: Route) -> None:
    for host in {id(h): h for h in (plan.chain_of.get(end.node.index) for end in route.ends) if h is not None}.values():
        if host.affine.identity and not joins_outputs(plan, host):
            host.dropped = True
            plan.remove(host, keeps_input=False)


def _aside(plan: ScopePlan, walker: Walker, chain: Chain) -> bool:
    """Move the shift of one operand of a sum into what makes another: ``(x + t) + y = x + (y + t)``."""
    affine = chain.affine
    spare = not affine.scales or (chain.operators_needed() > 1 and plan.may_change(chain))
    uses = [use for use in plan.value_readers(chain.output) if plan.looked_at(use.node)]
    if not affine.shifts or not spare or len(uses) != 1 or chain.output in plan.scope.output_set:
        return False
    for other, shift in carry.aside(*uses[0], affine.only_shift()):
        route = walker.backward(other, shift, frozenset((uses[0].node.index,)))
        if isinstance(route, Refusal) or route.cost or not (route.ends or route.edits):
            continue
        _take(plan, chain, route, backward=True)
        if affine.scales:
            chain.affine, chain.rewritten, chain.moved = affine.only_scale().simplest(), True, route
            plan.changed[chain.output] = chain
        else:
            chain.routes.append(route)
            plan.remove(chain, keeps_input=True)
        _drop_identities(plan, route)
        return True
    return False


def _halve(plan: ScopePlan, walker: Walker, chain: Chain, readers: frozenset[int]) -> bool:
    """Where scale and shift both stay as two operators, let one of them go and keep the other."""
    affine = chain.affine
    halves = [(affine.only_scale(), affine.only_shift())]
    if affine.scale.all():
        inner = Affine(np.ones_like(affine.scale), affine.shift / affine.scale, affine.axis)
        if inner.finite:
            halves.append((inner, affine.only_scale()))
    for first, second in halves:
        for going, kept, backward in ((first, second, True), (second, first, False)):
            route = walker.backward(chain.data, going, readers) if backward else walker.forward(chain.output, going)
            if isinstance(route, Refusal) or route.cost or not (route.ends or route.edits or route.crossed):
                continue
            _take(plan, chain, route, backward=backward)
            chain.affine, chain.rewritten, chain.moved = kept.simplest(), True, route
            _drop_identities(plan, route)
            return True
    return False


def _lighten(plan: ScopePlan, walker: Walker, chain: Chain) -> bool:
    """Let the scale of a chain go whose shift alone has a second axis; returns whether it did."""
    own = chain.affine
    if not (own.scales and own.shifts) or any(edit.slot == SCALE for edit in chain.widened):
        return False
    going, undone = own.only_scale(), crossing.undone(plan, chain, own.only_scale())
    for backward in (True, False) if undone is not None else (True,):
        if backward:
            route = walker.backward(chain.data, going, frozenset((chain.members[0].node.index,)))
        else:
            route = walker.forward(chain.output, going)
        if isinstance(route, Refusal) or route.cost or not (route.ends or route.edits or route.crossed):
            continue
        _take(plan, chain, route, backward=backward)
        chain.affine, chain.moved = own.only_shift(), route
        chain.widened += () if backward or undone is None else undone
        _drop_identities(plan, route)
        return True
    return False
