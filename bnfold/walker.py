"""Walking: following one affine through the graph, towards producers or towards consumers, until linear operators take
it.

A route is taken whole or not at all. Nothing here changes anything: the walker reads the index and the planner's state,
and returns either a :class:`Route` or the :class:`Refusal` that stopped it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold import absorb, carry, crossing
from bnfold.absorb import matmul, quantized
from bnfold.absorb.port import Port
from bnfold.affine import Affine
from bnfold.front import Front
from bnfold.graph import CAPTURE, Node, Use
from bnfold.junction import Junction
from bnfold.refusals import Refusal
from bnfold.route import Route

if TYPE_CHECKING:
    from bnfold.plan import ScopePlan

__all__ = ["Walker"]


class Walker:
    """Finds routes given what the planner has decided so far.

    Refusals that hold for any affine (``lasting``) are remembered per tensor, so a long chain that leads nowhere is
    walked once.
    """

    def __init__(self, plan: ScopePlan, *, merge: bool = False, widen: bool = False) -> None:
        self._plan = plan
        self._scope = plan.scope
        self._at = Junction(plan, merge=merge)
        self._widen = widen
        self._backward_rules = carry.backward_rules(plan.edits)
        self._forward_rules = carry.forward_rules(plan.edits)
        self._patient = False  # take the first way even if it has to wait, and not one that ends by itself
        self._dead_ends: dict[tuple[str, bool], Refusal] = {}  # with a scale, which sums take to all sides, or without

    # -- towards producers ---------------------------------------------------------------------------------------

    def backward(self, tensor: str, affine: Affine, readers: frozenset[int]) -> Route | Refusal:
        """Route an affine that now stands behind ``tensor`` into what makes the tensor.

        ``readers`` are the indices of the nodes that may read it: the affine nodes themselves.
        """
        self._at.begin()
        first: Refusal | None = None
        for self._patient in (False, True):
            route = Route()
            refusal = self._back(route, [(tensor, affine.simplest(), readers, 0)], 0)
            if refusal is None and not route.waiting:
                return route
            first = first or refusal or route.incomplete
            if refusal is not None:
                break
        assert first is not None, "a route that is not incomplete was returned"
        return first

    def _back(self, route: Route, stack: list[tuple[str, Affine, frozenset[int], int]], nesting: int) -> Refusal | None:
        """Take all of these to their ends; returns a refusal or extends the route, which may be left waiting."""
        spine: list[tuple[str, bool]] = []
        several = nesting > 0
        while stack:
            several = several or len(stack) > 1
            tensor, affine, readers, depth = stack.pop()
            refusal = self._at.limits(tensor, affine, depth)
            if refusal is None:
                refusal = self._closed(tensor, affine, readers)
                if refusal is not None and several and refusal.code == "shared-output":
                    complete = self._from_all_readers(route, tensor, affine, readers, refusal)
                    if complete is False:
                        continue
                    refusal = complete if isinstance(complete, Refusal) else None
            refusal = refusal or self._dead_ends.get((tensor, affine.scales))
            if not stack and len(spine) == len(route.tensors):
                spine.append((tensor, affine.scales))
            if refusal is None:
                refusal = self._back_one(route, stack, tensor, affine, depth, nesting)
            if refusal is not None:
                self._dead_ends.update(dict.fromkeys(spine, refusal) if refusal.lasting else {})
                return refusal
        return None

    def _back_one(
        self,
        route: Route,
        stack: list[tuple[str, Affine, frozenset[int], int]],
        tensor: str,
        affine: Affine,
        depth: int,
        nesting: int,
    ) -> Refusal | None:
        """Move one affine from ``tensor`` to what makes it; returns a refusal or extends the route."""
        route.tensors += [tensor, *self._joined(tensor)]
        node = self._scope.producer(tensor)
        if node is None:
            return self._at.no_producer(tensor)
        here = frozenset((node.index,))
        gone = self._plan.gone.get(node.index)
        if gone is not None:
            stack.append((gone.data, affine, here, depth + 1))
            return None
        spread = self._at.spread(node, affine)
        if spread is not None:
            return spread
        chain = self._plan.chain_of.get(node.index)
        if chain is not None:
            refusal = self._at.meet(route, node, affine, into=False)
            passes = refusal is not None and self._at.may_pass()
            ways = crossing.backward(self._plan, node, affine, widen=self._widen) if passes else []
            route.tensors += [member.output for member in chain.members[:-1]] if ways else []
            return self._choose(route, ways, chain.members[0].node, depth, nesting) if ways else refusal
        port = self._port_after(node)
        if isinstance(port, Port):
            if port.node is not node and affine.scales:
                route.tensors.append(port.node.outputs[0])  # the product in front of its bias Add
            route.tensors += port.changes
            return self._at.end(route, self._at.enter(port, affine, tensor, into=False))
        rule = self._backward_rules.get(node.op)
        if rule is None:
            return port or self._at.blocked(node)
        steps = rule(node, tensor, affine)
        if isinstance(steps, Refusal) and node.op == "Split" and steps.code == "axis":
            steps = self._from_all_parts(route, node, tensor, affine, steps)
        if isinstance(steps, Refusal):
            return port if port is not None and port.code == "quantized" else steps
        if not steps:
            return None
        if len(steps) == 1:
            return self._follow(route, stack, steps[0], node, depth)
        return self._choose(route, steps, node, depth, nesting)

    def _from_all_parts(
        self, route: Route, node: Node, tensor: str, affine: Affine, refusal: Refusal
    ) -> list[carry.Step] | Refusal:
        """The way past a Split along another axis, once the affine is on all its outputs; none while it is not."""
        placed = self._at.placed(tensor, affine)
        read = [name in self._scope.output_set or bool(self._plan.value_readers(name)) for name in node.outputs]
        outputs = [i for i, name in enumerate(node.outputs) if name and read[i]]
        complete = route.bring(node.index, node.outputs.index(tensor), outputs, placed, refusal)
        if isinstance(complete, Refusal):
            return complete
        if not complete:
            return []
        route.tensors += [name for i, name in enumerate(node.outputs) if name and not read[i]]
        return [carry.Step(((node.inputs[0], placed),))]

    def _follow(
        self,
        route: Route,
        stack: list[tuple[str, Affine, frozenset[int], int]],
        step: carry.Step,
        node: Node,
        depth: int,
    ) -> Refusal | None:
        whole = carry.onto_constants(node, step)
        if isinstance(whole, Refusal):
            return whole
        step = whole
        refusal = self._at.excluded(node, step)
        if refusal is not None:
            return refusal
        route.crossed.append(node)
        route.edits += step.edits
        here = frozenset((node.index,))
        stack.extend((name, part.simplest(), here, depth + 1) for name, part in reversed(step.onward))
        return None

    def _choose(self, route: Route, steps: list[carry.Step], node: Node, depth: int, nesting: int) -> Refusal | None:
        """Take the first of several ways past a node that works to its end."""
        first: Refusal | None = None  # and what to say if nothing comes of waiting
        waiting: Route | None = None
        for step in steps if nesting < 32 else steps[:1]:
            part = route.branch()
            inner: list[tuple[str, Affine, frozenset[int], int]] = []
            refusal = self._follow(part, inner, step, node, depth) or self._back(part, inner, nesting + 1)
            if refusal is None and (self._patient or part.waiting.keys() <= route.waiting.keys()):
                route.join(part)
                return None
            if refusal is None:
                waiting = waiting or part
                continue
            first = first or refusal
            if refusal.lasting and len(step.onward) == len(node.inputs) and node.index not in self._plan.chain_of:
                break
        if waiting is not None:
            for key, each in waiting.waiting.items():
                each.refusal = each.refusal if first is None or key in route.waiting else first
            route.join(waiting)
            return None
        return Refusal(first.code, first.reason, first.node) if first is not None else None

    def _port_after(self, node: Node) -> Port | Refusal | None:
        if node.op == "Add":
            unit = matmul.unit_of(node)
            if unit is None:
                return None
            return matmul.after(node) if matmul.quantized_side(unit) is None else quantized.after(node)
        rule = absorb.AFTER.get(node.op)
        port = None if rule is None else rule(node)
        if isinstance(port, Refusal) and port.code == "quantized" and quantized.stands_at(node):
            return quantized.after(node)
        return port

    def _closed(self, tensor: str, affine: Affine, readers: frozenset[int]) -> Refusal | None:
        """A tensor may change only where nobody but the route reads it."""
        if tensor in self._scope.output_set:
            return Refusal("graph-output", f"'{tensor}' is an output of the graph", None, lasting=True)
        own = []
        for use in self._plan.value_readers(tensor):
            node, position = use
            if node.index in readers:
                own.append(use)
            elif not self._looks(use, affine):
                continue
            elif position == CAPTURE:
                return _captured(tensor, node)
            else:
                reason = f"'{tensor}' is also read by '{node.label}'"
                return Refusal("shared-output", reason, node.label, lasting=node.op not in carry.PICKS)
        if len(readers) == 1 and len(own) > 1 and own[0].position != CAPTURE:
            reader = own[0].node.label
            return Refusal("shared-output", f"'{tensor}' is read twice by '{reader}'", reader, lasting=True)
        return None

    def _from_all_readers(
        self, route: Route, tensor: str, affine: Affine, readers: frozenset[int], refusal: Refusal
    ) -> bool | Refusal:
        """Whether all reads of a shared tensor have come along now; then the affine is common to all of them."""
        uses = [
            use for use in self._plan.value_readers(tensor) if use.node.index in readers or self._looks(use, affine)
        ]
        captured = next((use.node for use in uses if use.position == CAPTURE), None)
        if captured is not None:
            return _captured(tensor, captured)
        (reader,) = readers
        otherwise = Refusal(refusal.code, refusal.reason, refusal.node)  # another way may bring the same everywhere
        placed = self._at.placed(tensor, affine)
        return route.bring(tensor, reader, [use.node.index for use in uses], placed, otherwise)

    def _looks(self, use: Use, affine: Affine) -> bool:
        """Whether a read of a tensor would see that it has changed."""
        return self._plan.looked_at(use.node) and not carry.reads_elsewhere(*use, affine)

    def _joined(self, tensor: str) -> list[str]:
        """What vanished affines made of a tensor, where only shapes are read of it: it is that very tensor now."""
        found = []
        waiting = [tensor]
        while waiting:
            for use in self._plan.value_readers(waiting.pop()):
                gone = self._plan.gone.get(use.node.index)
                if gone is not None and not self._plan.looked_at(use.node):
                    found.append(gone.output)
                    waiting.append(gone.output)
        return found

    # -- towards consumers ---------------------------------------------------------------------------------------

    def forward(self, tensor: str, affine: Affine) -> Route | Refusal:
        """Route an affine that makes ``tensor`` into everything that reads the tensor."""
        self._at.begin()
        route, front = Route(), Front(self._scope)
        front.add(tensor, affine, 0)
        while front:
            tensor, affine, depth = front.pop()
            if affine.identity and depth:
                continue  # what came on several ways cancels
            refusal = self._at.limits(tensor, affine, depth) or self._forward_one(route, front, tensor, affine, depth)
            if refusal is not None:
                return refusal
        return route.incomplete or route

    def _forward_one(self, route: Route, front: Front, tensor: str, affine: Affine, depth: int) -> Refusal | None:
        if tensor in self._scope.output_set:
            return Refusal("graph-output", f"'{tensor}' is an output of the graph", None)
        route.tensors.append(tensor)
        for node, position in self._plan.value_readers(tensor):
            if position == CAPTURE:
                return _captured(tensor, node)
            refusal = self._into(route, front, node, position, tensor, affine, depth)
            if refusal is not None:
                return refusal
        return None

    def _into(
        self,
        route: Route,
        front: Front,
        node: Node,
        position: int,
        tensor: str,
        affine: Affine,
        depth: int,
    ) -> Refusal | None:
        gone = self._plan.gone.get(node.index)
        if gone is not None:
            front.add(gone.output, affine, depth + 1)
            return None
        spread = self._at.spread(node, affine)
        if spread is not None:
            return spread
        chain = self._plan.chain_of.get(node.index)
        if chain is not None:
            refusal = self._at.meet(route, node, affine, into=True)
            passes = refusal is not None and self._at.may_pass()
            way = crossing.forward(self._plan, node, affine, widen=self._widen) if passes else None
            if way is None:
                return refusal
            route.tensors += [member.output for member in chain.members[:-1]]
            route.crossed.append(node)
            route.edits += way.edits
            for name, part in way.onward:
                front.add(name, part, depth + 1)
            return None
        entry = absorb.BEFORE.get(node.op)
        if entry is not None:
            port = entry(node, position)
            if isinstance(port, Port) or node.op not in self._forward_rules:
                if affine.shifts and node.op in matmul.MATMULS and matmul.bias_add(node) is not None:
                    route.tensors.append(node.outputs[0])  # the bias Add behind it takes the shift
                return self._at.end(
                    route, port if isinstance(port, Refusal) else self._at.enter(port, affine, tensor, into=True)
                )
        rule = self._forward_rules.get(node.op)
        step = self._at.blocked(node) if rule is None else rule(node, position, affine)
        join = carry.together(node, tensor, affine) if isinstance(step, Refusal) else None
        if join is not None and isinstance(step, Refusal):
            complete = route.bring(node.index, position, range(len(node.inputs)), join.brought, step)
            if complete is False:
                return None
            step = carry.Step(((node.outputs[0], join.onward),)) if complete is True else step
        if not isinstance(step, Refusal) and step.edits and isinstance(self._port_after(node), Port):
            step = self._at.blocked(node)  # its constant is the bias of a product
        refusal = step if isinstance(step, Refusal) else self._at.excluded(node, step) or self._at.behind(node, affine)
        if refusal is not None or isinstance(step, Refusal):
            return refusal
        route.crossed.append(node)
        route.edits += step.edits
        if node.index in self._plan.out and self._plan.out[node.index].shifts:
            route.passed.append((node, float(affine.scale[0])))
        for name, part in step.onward:
            front.add(name, part, depth + 1)
        return None


def _captured(tensor: str, owner: Node) -> Refusal:
    """Bodies read a tensor, which therefore must keep its value."""
    return Refusal("captured", f"'{tensor}' is read inside a subgraph of '{owner.label}'", owner.label, lasting=True)
