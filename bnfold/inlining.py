"""Model-local functions whose norms fold only where they are called.

One body serves all its calls, so a norm in it folds in the body only when its parameters and weights are constants
there. Where they come from the calls, or the operator that takes the norm stands on the other side of a call, those
calls, and no others, are inlined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from bnfold.calls import Call, calls_of, came_through, forget_origins, inlined
from bnfold.chain import Chain
from bnfold.errors import printable
from bnfold.graph import Scope
from bnfold.model import Model
from bnfold.plan import ScopePlan

__all__ = ["inline_where_needed"]

Plans = dict[int, ScopePlan]
Planned = tuple[list[Scope], Plans]
Planner = Callable[[Model], Planned]


def inline_where_needed(model: Model, roots: list[Scope], plans: Plans, planner: Planner) -> Planned:
    """Return the index and plan to go on with: the given ones, or those of the model with some calls inlined.

    The model's skeleton is changed in the latter case, and a note says which functions it concerns.
    """
    calls = calls_of(model.proto)
    everything = _trial(model, range(len(calls)), planner)
    if everything is None or _gain(*everything[1]) <= _gain(roots, plans):
        return roots, plans
    needed = _needed(calls, everything[1], roots, plans)
    found = _trial(model, needed, planner)
    while found is None or _gain(*found[1]) < _gain(*everything[1]):
        callers = {calls[number].caller for number in needed}
        outer = {number for number, call in enumerate(calls) if call.function in callers} - needed
        needed = needed | outer if outer else set(range(len(calls)))
        found = _trial(model, needed, planner) if outer else everything
    trial, (new_roots, new_plans) = found
    model.proto = trial.proto
    for root in new_roots:
        for scope in root.scopes():
            scope.model = model
    forget_origins(model.proto)
    model.notes.append(_note(calls, needed))
    return new_roots, new_plans


def _trial(model: Model, chosen: range | set[int], planner: Planner) -> tuple[Model, Planned] | None:
    proto = inlined(model.proto, chosen) if chosen else None
    if proto is None:
        return None
    trial = Model(proto, model.blobs, model.path, model.notes)
    return trial, planner(trial)


def _gain(roots: list[Scope], plans: Plans) -> int:
    """Operators that a run saves: those in a function count once for each call."""
    bodies = {(root.graph.domain, root.graph.name): root for root in roots if root.is_function}
    counts: dict[int, int] = {}

    def gone(root: Scope) -> int:
        if id(root) not in counts:
            counts[id(root)] = 0  # functions cannot call themselves; a malformed model must not hang us
            total = 0
            for scope in root.scopes():
                total += plans[id(scope)].saved()
                for node in scope.nodes:
                    body = bodies.get((node.proto.domain, node.proto.op_type))
                    total += 0 if body is None else gone(body)
            counts[id(root)] = total
        return counts[id(root)]

    return gone(roots[0])


def _needed(calls: list[Call], everything: Planned, roots: list[Scope], plans: Plans) -> set[int]:
    """The calls without which something stays: more goes inside them than inside the body, or it crosses their edge."""
    inside: Counter[int] = Counter()
    crossed: set[int] = set()
    for root in everything[0]:
        for scope in root.scopes():
            for chain in everything[1][id(scope)].chains:
                through = set(_origins(chain))
                if len(through) == 1:
                    inside.update({number: len(chain.members) for number in through if number is not None})
                elif chain.routes or chain.into_chain is not None:
                    crossed.update(number for number in through if number is not None)
    in_bodies = {
        (root.graph.domain, root.graph.name): sum(_gone_members(plans[id(scope)]) for scope in root.scopes())
        for root in roots
        if root.is_function
    }
    more = {number for number, count in inside.items() if count > in_bodies[calls[number].function[:2]]}
    return crossed | more


def _gone_members(plan: ScopePlan) -> int:
    return sum(len(chain.members) for chain in plan.chains if not chain.staying)


def _origins(chain: Chain) -> Iterator[int | None]:
    """The calls that the operators of a chain and of its way came through; None for the model itself."""
    if chain.staying:
        return
    for member in chain.members:
        yield came_through(member.node.proto)
    for route in chain.routes:
        for node in (*(end.node for end in route.ends), *route.crossed):
            yield came_through(node.proto)


def _note(calls: list[Call], needed: set[int]) -> str:
    counts = Counter(call.function for call in calls)
    taken = Counter(calls[number].function for number in needed)
    names = [
        printable(function[1]) + ("" if count == counts[function] else f" ({count} of {counts[function]} calls)")
        for function, count in sorted(taken.items())
    ]
    return f"inlined the calls of function {', '.join(names)}: what is in there folds only where it is called"
