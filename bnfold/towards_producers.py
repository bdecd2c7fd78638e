"""Towards producers: taking an affine behind a tensor into what makes the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold import absorb, carry, crossing
from bnfold.absorb.port import Port
from bnfold.affine import Affine
from bnfold.graph import CAPTURE, Node, Use
from bnfold.junction import Junction
from bnfold.refusals import Refusal
from bnfold.route import Route

if TYPE_CHECKING:
    from bnfold.plan import ScopePlan

__all__ = ["TowardsProducers"]


class TowardsProducers:
    """Finds routes backwards.

    Refusals that hold for any affine (``lasting``) are remembered per tensor, so a long chain that leads nowhere is
    walked once.
    """

    def __init__(self, plan: ScopePlan, at: Junction, *, widen: bool) -> None:
        self._plan = plan
        self._scope = plan.scope
        self._at = at
        self._widen = widen
        self._rules = carry.backward_rules(plan.edits)
        self._patient = False  # take the first way even if it has to wait, and not one that ends by itself
        self._dead_ends: dict[tuple[str, bool], Refusal] = {}  # with a scale, which sums take to all sides, or without

    def route(self, tensor: str, affine: Affine, readers: frozenset[int]) -> Route | Refusal:
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
        port = absorb.behind(node)
        if isinstance(port, Port):
            if port.node is not node and affine.scales:
                route.tensors.append(port.node.outputs[0])  # the product in front of its bias Add
            route.tensors += port.changes
            return self._at.end(route, self._at.enter(port, affine, tensor, into=False))
        rule = self._rules.get(node.op)
        if rule is None:
            return port or self._at.blocked(node)
        steps = rule(node, tensor, affine)
        if isinstance(steps, Refusal) and node.op == "Split" and steps.code == "axis":
            alone = carry.split_alone(node, tensor, affine) if self._patient else steps
            steps = self._from_all_parts(route, node, tensor, affine, steps) if isinstance(alone, Refusal) else [alone]
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
        """Take the first of several ways past a node that works to its end, rather one that writes no Add."""
        first: Refusal | None = None  # and what to say if nothing comes of waiting
        costly: Route | None = None
        waiting: Route | None = None
        for step in steps if nesting < 32 else steps[:1]:
            part = route.branch()
            inner: list[tuple[str, Affine, frozenset[int], int]] = []
            refusal = self._follow(part, inner, step, node, depth) or self._back(part, inner, nesting + 1)
            if refusal is None and (self._patient or part.waiting.keys() <= route.waiting.keys()):
                if not part.cost:
                    route.join(part)
                    return None
                costly = costly or part
                continue
            if refusal is None:
                waiting = waiting or part
                continue
            first = first or refusal
            if refusal.lasting and len(step.onward) == len(node.inputs) and node.index not in self._plan.chain_of:
                break
        if costly is not None:
            route.join(costly)
            return None
        if waiting is not None:
            for key, each in waiting.waiting.items():
                each.refusal = each.refusal if first is None or key in route.waiting else first
            route.join(waiting)
            return None
        return Refusal(first.code, first.reason, first.node) if first is not None else None

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
                return Junction.captured(tensor, node)
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
            return Junction.captured(tensor, captured)
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
