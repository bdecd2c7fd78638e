"""Towards consumers: taking an affine in front of a tensor into everything that reads the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold import absorb, carry, crossing
from bnfold.absorb import matmul
from bnfold.absorb.port import Port
from bnfold.affine import Affine
from bnfold.front import Front
from bnfold.graph import CAPTURE, Node
from bnfold.junction import Junction
from bnfold.refusals import Refusal
from bnfold.route import Route

if TYPE_CHECKING:
    from bnfold.plan import ScopePlan

__all__ = ["TowardsConsumers"]


class TowardsConsumers:
    """Finds routes forwards."""

    def __init__(self, plan: ScopePlan, at: Junction, *, widen: bool) -> None:
        self._plan = plan
        self._scope = plan.scope
        self._at = at
        self._widen = widen
        self._rules = carry.forward_rules(plan.edits)

    def route(self, tensor: str, affine: Affine) -> Route | Refusal:
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
                return Junction.captured(tensor, node)
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
        port = absorb.in_front(node, position)
        if isinstance(port, Port) or (port is not None and node.op not in self._rules):
            end = port if isinstance(port, Refusal) else self._at.enter(port, affine, tensor, into=True)
            passes = isinstance(port, Port) and port.turned is not None and node.op in self._rules
            if not passes or not isinstance(end, Refusal) or end.code != "axis":
                if affine.shifts and node.op in matmul.MATMULS and matmul.bias_add(node) is not None:
                    route.tensors.append(node.outputs[0])  # the bias Add behind it takes the shift
                route.tensors += port.changes if isinstance(port, Port) else ()
                return self._at.end(route, end)
        rule = self._rules.get(node.op)
        step = self._at.blocked(node) if rule is None else rule(node, position, affine)
        join = carry.together(node, tensor, affine) if isinstance(step, Refusal) else None
        if join is not None and isinstance(step, Refusal):
            complete = route.bring(node.index, position, range(len(node.inputs)), join.brought, step)
            if complete is False:
                return None
            step = carry.Step(((node.outputs[0], join.onward),)) if complete is True else step
        if not isinstance(step, Refusal) and step.edits and isinstance(absorb.behind(node), Port):
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
