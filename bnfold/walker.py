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
from bnfold.graph import CAPTURE, Node
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
        self._dead_ends: dict[tuple[str, bool], Refusal] = {}  # with a scale, which sums take to all sides, or without

    # -- towards producers ---------------------------------------------------------------------------------------

    def backward(self, tensor: str, affine: Affine, readers: frozenset[int]) -> Route | Refusal:
        """Route an affine that now stands behind ``tensor`` into what makes the tensor.

        ``readers`` are the indices of the nodes that may read it: the affine nodes themselves.
        """
        self._at.begin()
        return self._back([(tensor, affine.simplest(), readers, 0)], 0)

    def _back(self, stack: list[tuple[str, Affine, frozenset[int], int]], nesting: int) -> Route | Refusal:
        route = Route()
        spine: list[tuple[str, bool]] = []
        while stack:
            tensor, affine, readers, depth = stack.pop()
            refusal = (
                self._at.limits(tensor, affine, depth)
                or self._closed(tensor, affine, readers)
                or self._dead_ends.get((tensor, affine.scales))
            )
            if not stack and len(spine) == len(route.tensors):
                spine.append((tensor, affine.scales))
            if refusal is None:
                refusal = self._back_one(route, stack, tensor, affine, depth, nesting)
            if refusal is not None:
                self._dead_ends.update(dict.fromkeys(spine, refusal) if refusal.lasting else {})
                return refusal
        return route.incomplete or route

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
        complete = route.bring(node, node.outputs.index(tensor), outputs, placed, refusal)
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
        first: Refusal | None = None
        for step in steps if nesting < 32 else steps[:1]:
            part = Route()
            inner: list[tuple[str, Affine, frozenset[int], int]] = []
            refusal = self._follow(part, inner, step, node, depth)
            found = refusal or self._back(inner, nesting + 1)
            if isinstance(found, Route):
                route.join(part)
                route.join(found)
                return None
            first = first or found
            if found.lasting and len(step.onward) == len(node.inputs) and node.index not in self._plan.chain_of:
                break
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
            elif not self._plan.looked_at(node) or carry.reads_elsewhere(node, position, affine):
                continue
            elif position == CAPTURE:
                reason = f"'{tensor}' is read inside a subgraph of '{node.label}'"
                return Refusal("captured", reason, node.label, lasting=True)
            else:
                reason = f"'{tensor}' is also read by '{node.label}'"
                return Refusal("shared-output", reason, node.label, lasting=node.op not in carry.PICKS)
        if len(readers) == 1 and len(own) > 1 and own[0].position != CAPTURE:
            reader = own[0].node.label
            return Refusal("shared-output", f"'{tensor}' is read twice by '{reader}'", reader, lasting=True)
        return None

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
        route = Route()
        stack = [(tensor, affine.simplest(), 0)]
        while stack:
            tensor, affine, depth = stack.pop()
            refusal = self._at.limits(tensor, affine, depth) or self._forward_one(route, stack, tensor, affine, depth)
            if refusal is not None:
                return refusal
        return route.incomplete or route

    def _forward_one(
        self, route: Route, stack: list[tuple[str, Affine, int]], tensor: str, affine: Affine, depth: int
    ) -> Refusal | None:
        if tensor in self._scope.output_set:
            return Refusal("graph-output", f"'{tensor}' is an output of the graph", None)
        route.tensors.append(tensor)
        for node, position in self._plan.value_readers(tensor):
            if position == CAPTURE:
                return Refusal("captured", f"'{tensor}' is read inside a subgraph of '{node.label}'", node.label)
            refusal = self._into(route, stack, node, position, tensor, affine, depth)
            if refusal is not None:
                return refusal
        return None

    def _into(
        self,
        route: Route,
        stack: list[tuple[str, Affine, int]],
        node: Node,
        position: int,
        tensor: str,
        affine: Affine,
        depth: int,
    ) -> Refusal | None:
        gone = self._plan.gone.get(node.index)
        if gone is not None:
            stack.append((gone.output, affine, depth + 1))
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
            stack.extend((name, part.simplest(), depth + 1) for name, part in way.onward)
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
            complete = route.bring(node, position, range(len(node.inputs)), join.brought, step)
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
        stack.extend((name, part.simplest(), depth + 1) for name, part in reversed(step.onward))
        return None
