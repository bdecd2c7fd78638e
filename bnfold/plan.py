"""The plan: for every affine of a scope, a route to linear operators or a refusal. Pure; nothing is edited.

Affine operators in a row form a *chain* with one composed affine. Chains are routed in this order:

1. chains that do nothing disappear;
2. towards producers, in the order of the graph, so that a chain behind a routed one finds the way clear;
3. towards consumers, in reverse order; where neither way takes it whole, the scale one way and the shift the other;
4. what is left merges: a chain becomes the fewest operators, and chains with only carrying operators in between
become one.

A routed chain counts as the identity from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bnfold import dtypes, read
from bnfold.absorb import matmul
from bnfold.affine import Affine
from bnfold.graph import Node, Scope, Use
from bnfold.read import AffineNode
from bnfold.refusals import Refusal
from bnfold.route import Route, Walker

__all__ = ["Chain", "Limits", "ScopePlan", "plan_scope"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must leave alone.

    Attributes:
        only_norms: consider batch norms only, not plain Mul, Add, Sub, Div, Neg.
        skip: labels of affine nodes to leave, with the reason.
        hosts: linear operators that must not take anything, by (scope path, node index).
    """

    only_norms: bool = False
    skip: dict[str, Refusal] = field(default_factory=dict)
    hosts: dict[tuple[str, int], Refusal] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Chain:
    """Affine operators in a row, each the only reader of the one before.

    Attributes:
        affine: all of them composed, on the data tensor's axes.
        routes: how it left, towards producers and consumers; empty when it stays.
        refusal: why it stays.
        dropped: it does nothing.
        rewritten: it stays with another affine than its members have: others merged into it, or half of it left.
        into_chain: the chain that took it over.
    """

    members: list[AffineNode]
    affine: Affine
    routes: list[Route] = field(default_factory=list)
    refusal: Refusal | None = None
    dropped: bool = False
    rewritten: bool = False
    into_chain: Chain | None = None
    half: Route | None = None

    @property
    def data(self) -> str:
        return self.members[0].data

    @property
    def output(self) -> str:
        return self.members[-1].output

    @property
    def norm(self) -> AffineNode | None:
        return next((m for m in self.members if m.norm), None)

    @property
    def staying(self) -> bool:
        return not self.dropped and self.into_chain is None and not self.routes

    def operators_needed(self) -> int:
        """Operators that express this chain's affine when nothing takes it."""
        if self.norm is not None:
            return 1
        return int(self.affine.scales) + int(self.affine.shifts)


class ScopePlan:
    """Everything decided about one scope.

    Attributes:
        chains: all chains, in graph order.
        refused: batch norms that are no affine, and affines that options exclude, by node index.
        affines: members of chains that stay, by node index; gone: members that disappear.
        out, into: the affine each linear node takes behind and in front of it, by node index.
        edits: constants that change: (node index, slot) -> (affines one after another, default value).
        adds: MatMuls behind which an Add has to be written.
        changed: tensors whose value changes -> the chain that changed them last.
        dead: nodes whose results nobody uses; unread: the affines among them that are the cause.
        exposed: tensors that become outputs of the graph because identities behind them disappear.
    """

    def __init__(self, scope: Scope, limits: Limits) -> None:
        self.scope = scope
        self.limits = limits
        self.chains: list[Chain] = []
        self.refused: dict[int, Refusal] = {}
        self.affines: dict[int, AffineNode] = {}
        self.chain_of: dict[int, Chain] = {}
        self.gone: dict[int, AffineNode] = {}
        self.out: dict[int, Affine] = {}
        self.into: dict[int, Affine] = {}
        self.edits: dict[tuple[int, int | str], tuple[tuple[Affine, ...], float | None]] = {}
        self.adds: set[int] = set()
        self.changed: dict[str, Chain] = {}
        self.exposed: set[str] = set()
        self.dead: set[int] = set()
        self.unread: list[AffineNode] = []
        self.excluded_hosts = {index: r for (path, index), r in limits.hosts.items() if path == scope.path}

    def value_readers(self, tensor: str) -> list[Use]:
        """The reads that look at the tensor's values and whose results are used."""
        found = self.scope.value_readers(tensor)
        return [use for use in found if use.node.index not in self.dead] if self.dead else found

    # -- decisions -----------------------------------------------------------------------------------------------

    def take(self, chain: Chain, route: Route, *, backward: bool) -> None:
        """Commit a route of one chain."""
        for end in route.ends:
            table = self.into if end.into else self.out
            old = table.get(end.node.index)
            table[end.node.index] = (
                end.affine if old is None else (old.then(end.affine) if backward else end.affine.then(old))
            )
            if end.adds:
                self.adds.add(end.node.index)
        for edit in route.edits:
            key = (edit.node.index, edit.slot)
            earlier = self.edits[key][0] if key in self.edits else ()
            self.edits[key] = ((*earlier, edit.affine), edit.default)  # not composed: they may run along different axes
        for tensor in route.tensors:
            self.changed[tensor] = chain

    def remove(self, chain: Chain, *, keeps_input: bool) -> None:
        """The members vanish; what they read (``keeps_input``) or what they make keeps its value."""
        for member in chain.members:
            self.affines.pop(member.node.index, None)
            self.gone[member.node.index] = member
        for member in chain.members[:-1]:
            self.changed[member.output] = chain
        if keeps_input:
            self.changed[chain.output] = chain

    def may_change(self, chain: Chain) -> bool:
        """Whether a staying chain may be written anew: not when its parameters proved not to fit their type before."""
        if chain.norm is None and self.scope.opset < 7:
            return False  # Mul and Add broadcast differently there
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
        if (
            not chain.staying
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
        needed = int(both.scales) + int(both.shifts)
        if both.scale.size != chain.affine.scale.size:
            return False
        return needed <= min(len(chain.members), max(chain.operators_needed(), 1))


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


def plan_scope(scope: Scope, limits: Limits) -> ScopePlan:
    """Plan one scope (not the scopes below it)."""
    with np.errstate(all="ignore"):  # what overflows is refused
        return _plan_scope(scope, limits)


def _plan_scope(scope: Scope, limits: Limits) -> ScopePlan:
    plan = ScopePlan(scope, limits)
    _find_dead(plan)
    _collect(plan)
    for chain in plan.chains:
        _drop_identity(plan, chain)
    walker = Walker(plan)
    for chain in plan.chains:
        if chain.staying:
            _towards_producers(plan, walker, chain)
    walker = Walker(plan)
    for chain in reversed(plan.chains):
        if chain.staying:
            _towards_consumers(plan, walker, chain)
    merged = True
    while merged:  # what merges can clear the way for others
        walker = Walker(plan, merge=True)
        merged = False
        for chain in plan.chains:
            if chain.staying and _merge(plan, walker, chain):
                merged = True
    return plan


# -- collecting --------------------------------------------------------------------------------------------------------


def _find_dead(plan: ScopePlan) -> None:
    """Affines that nobody reads, and all that is computed for them alone."""
    scope = plan.scope
    waiting: list[Node] = []
    for node in scope.nodes:
        if read.is_affine_operator(node) and _unused(plan, node):
            found = _read(plan, node)
            if isinstance(found, AffineNode):
                plan.unread.append(found)
                waiting.append(node)
    while waiting:
        node = waiting.pop()
        if node.index in plan.dead or not _unused(plan, node):
            continue
        plan.dead.add(node.index)
        captured = [name for owner, child in scope.children if owner is node for name in child.captures]
        producers = (scope.producer(name) for name in (*node.inputs, *captured))
        waiting.extend(producer for producer in producers if producer is not None)


def _unused(plan: ScopePlan, node: Node) -> bool:
    scope = plan.scope
    return not any(
        name in scope.output_set or any(use.node.index not in plan.dead for use in scope.readers(name))
        for name in node.outputs
    )


def _collect(plan: ScopePlan) -> None:
    """Read every affine of the scope and tie those in a row together."""
    for node in plan.scope.nodes:
        if not read.is_affine_operator(node) or node.index in plan.dead:
            continue
        found = _read(plan, node)
        if isinstance(found, Refusal):
            plan.refused[node.index] = found
        elif found is not None:
            plan.affines[node.index] = found
            _link(plan, found)


def _read(plan: ScopePlan, node: Node) -> AffineNode | Refusal | None:
    norm = node.op == "BatchNormalization"
    if plan.limits.only_norms and not norm:
        return None
    found = read.read(node)
    if isinstance(found, Refusal) and not norm and found.code in ("shape-unknown", "broadcast"):
        return found
    if found is None or isinstance(found, Refusal):
        return found if norm else None
    excluded = plan.limits.skip.get(node.label)
    if excluded is not None:
        return excluded
    unit = matmul.unit_of(node) if node.op == "Add" else None
    if unit is not None and not matmul.becomes_gemm(unit):
        return None  # the bias of a MatMul is part of that linear operator
    return found


def _link(plan: ScopePlan, member: AffineNode) -> None:
    """Append to the chain that makes the data, when this is its only reader, else begin a new chain."""
    scope = plan.scope
    producer = scope.producer(member.data)
    before = plan.chain_of.get(producer.index) if producer is not None else None
    if before is not None and before.output == member.data and member.data not in scope.output_set:
        readers = plan.value_readers(member.data)
        both = compose(scope, member.data, before.affine, member.affine) if len(readers) == 1 else None
        norm = before.norm or (member if member.norm else None)
        fits = norm is None or both is None or both.scale.size == norm.affine.scale.size
        if both is not None and both.finite and fits:
            before.members.append(member)
            before.affine = both
            plan.chain_of[member.node.index] = before
            return
    chain = Chain([member], member.affine)
    plan.chains.append(chain)
    plan.chain_of[member.node.index] = chain


def _drop_identity(plan: ScopePlan, chain: Chain) -> None:
    """A chain that does nothing disappears, unless it is all that connects an input to an output."""
    if not chain.affine.identity:
        return
    if _connects(plan, chain):
        chain.refusal = Refusal(
            "graph-output", "the operator does nothing, but connects an input to an output of the graph", None
        )
        return
    chain.dropped = True
    plan.remove(chain, keeps_input=False)


def _connects(plan: ScopePlan, chain: Chain) -> bool:
    """Whether a chain that does nothing joins an output of the graph to an input or to another output.

    Its tensors become one when it disappears, and one tensor cannot have two names.
    """
    scope, root = plan.scope, chain.data
    if chain.output not in scope.output_set:
        return False
    while root not in scope.output_set:
        producer = scope.producer(root)
        if producer is None or root in plan.exposed:
            return True
        if producer.index not in plan.gone:
            plan.exposed.add(root)
            return False
        root = plan.gone[producer.index].data
    return True


# -- routing -----------------------------------------------------------------------------------------------------------


def _worthwhile(chain: Chain, route: Route, others: int = 0) -> Refusal | None:
    """A route may write new Adds, but the model must not get more operators, and a norm must go for it."""
    cost, removed = route.cost, len(chain.members) + others
    if cost < removed or (cost == removed and chain.norm is not None):
        return None
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
            or not other.staying
            or not other.affine.same_as(chain.affine)
        ):
            return []
        if other is not chain:
            found.append(other)
    outputs = [c.output for c in (chain, *found) if c.output in plan.scope.output_set or c.output in plan.exposed]
    return found if len(outputs) <= 1 else []


def _towards_producers(plan: ScopePlan, walker: Walker, chain: Chain) -> None:
    twins = _twins(plan, chain)
    readers = frozenset(c.members[0].node.index for c in (chain, *twins))
    route = walker.backward(chain.data, chain.affine, readers)
    refusal = route if isinstance(route, Refusal) else _worthwhile(chain, route, sum(len(t.members) for t in twins))
    if refusal is not None or isinstance(route, Refusal):
        chain.refusal = refusal
        return
    plan.take(chain, route, backward=True)
    for each in (chain, *twins):
        each.routes.append(route)
        plan.remove(each, keeps_input=False)


def _towards_consumers(plan: ScopePlan, walker: Walker, chain: Chain) -> None:
    route = walker.forward(chain.output, chain.affine)
    refusal = route if isinstance(route, Refusal) else _worthwhile(chain, route)
    if refusal is None and isinstance(route, Route):
        plan.take(chain, route, backward=False)
        chain.routes.append(route)
        plan.remove(chain, keeps_input=True)
        return
    if chain.affine.scales and chain.affine.shifts and _split(plan, walker, chain):
        return
    chain.refusal = _tell(chain.refusal, refusal)


def _tell(back: Refusal | None, forth: Refusal | None) -> Refusal | None:
    """The refusal to report: towards the producer it usually says what is wrong with the model; else the other
    way's."""
    if back is None or forth is None:
        return back or forth
    if back.code == "no-producer" and forth.code not in ("graph-output", "blocked"):
        first, second, also = forth, back, "and towards the front"
    else:
        first, second, also = back, forth, "and towards the consumers"
    return Refusal(first.code, f"{first.reason}; {also}: {second.reason}", first.node or second.node)


def _split(plan: ScopePlan, walker: Walker, chain: Chain) -> bool:
    """Scale one way and shift the other: ``s * (x + t / s)`` or ``(s * x) + t``; only when nothing stays behind."""
    affine = chain.affine
    readers = frozenset((chain.members[0].node.index,))
    ways = [(affine.only_scale(), affine.only_shift())]
    if affine.scale.all():
        moved = Affine(affine.scale, affine.shift / affine.scale, affine.axis)
        if moved.finite:
            ways.append((moved.only_shift(), affine.only_scale()))
    for back, forth in ways:
        towards_producers = walker.backward(chain.data, back, readers)
        if isinstance(towards_producers, Refusal) or towards_producers.cost:
            continue
        towards_consumers = walker.forward(chain.output, forth)
        if isinstance(towards_consumers, Refusal) or towards_consumers.cost:
            continue
        plan.take(chain, towards_producers, backward=True)
        plan.take(chain, towards_consumers, backward=False)
        chain.routes += [towards_producers, towards_consumers]
        plan.remove(chain, keeps_input=True)
        return True
    return False


# -- merging what is left ----------------------------------------------------------------------------------------------


def _merge(plan: ScopePlan, walker: Walker, chain: Chain) -> bool:
    """Move a chain into another one that stays, or keep half of it, where that saves operators; returns whether it
    did."""
    readers = frozenset((chain.members[0].node.index,))
    route = walker.backward(chain.data, chain.affine, readers)
    if isinstance(route, Route) and route.cost == 0:
        _take_merging(plan, chain, route, backward=True)
        return True
    route = walker.forward(chain.output, chain.affine)
    if isinstance(route, Route) and route.cost == 0 and route.ends:
        _take_merging(plan, chain, route, backward=False)
        return True
    if (len(chain.members) > 1 or chain.rewritten) and chain.operators_needed() > 1 and plan.may_change(chain):
        return _halve(plan, chain, readers)
    return False


def _take_merging(plan: ScopePlan, chain: Chain, route: Route, *, backward: bool) -> None:
    linear = Route([], route.edits, route.tensors, route.crossed)
    for end in route.ends:
        host = plan.chain_of.get(end.node.index)
        if host is None:
            linear.ends.append(end)
            continue
        both = compose(plan.scope, host.data, *((host.affine, end.affine) if backward else (end.affine, host.affine)))
        assert both is not None, "checked by can_merge"
        host.affine, host.rewritten = both, True
        chain.into_chain = host
    plan.take(chain, linear, backward=backward)
    chain.routes.append(route)
    plan.remove(chain, keeps_input=not backward)
    for host in {id(h): h for h in (plan.chain_of.get(end.node.index) for end in route.ends) if h is not None}.values():
        if host.affine.identity and not _connects(plan, host):
            host.dropped = True
            plan.remove(host, keeps_input=False)


def _halve(plan: ScopePlan, chain: Chain, readers: frozenset[int]) -> bool:
    """Where scale and shift both stay as two operators, let one of them go and keep the other."""
    affine = chain.affine
    walker = Walker(plan)
    halves = [(affine.only_scale(), affine.only_shift())]
    if affine.scale.all():
        inner = Affine(np.ones_like(affine.scale), affine.shift / affine.scale, affine.axis)
        if inner.finite:
            halves.append((inner, affine.only_scale()))
    for first, second in halves:
        for going, kept, backward in ((first, second, True), (second, first, False)):
            route = walker.backward(chain.data, going, readers) if backward else walker.forward(chain.output, going)
            if isinstance(route, Refusal) or route.cost or not route.ends:
                continue
            plan.take(chain, route, backward=backward)
            chain.affine, chain.rewritten, chain.half = kept, True, route
            return True
    return False
