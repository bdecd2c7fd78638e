"""What a walk meets at a tensor or a node, whichever way it goes: limits, what must not change, where it may end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold import carry
from bnfold.absorb import matmul
from bnfold.absorb.port import Port
from bnfold.affine import Affine, Spread
from bnfold.graph import Node
from bnfold.refusals import Refusal
from bnfold.route import End, Route

if TYPE_CHECKING:
    from bnfold.plan import ScopePlan

HOP_LIMIT = 4096
"""Operators that one route may cross, over all its branches: keeps planning linear in the size of the graph."""

DEPTH_LIMIT = 256
"""Operators that one branch of a route may cross."""

PAST_LIMIT = 8
"""Affines that stay and that one route may go past."""

_INTEGER_OPERATORS = ("uantize", "QLinear", "Integer", "MatMulNBits", "::QGemm", "::QAttention")
"""In the names of operators on quantized tensors, those of onnxruntime included."""

__all__ = ["Junction"]


class Junction:
    """Decides given what the planner has decided so far; ``merge`` lets affines that stay take others in."""

    def __init__(self, plan: ScopePlan, *, merge: bool) -> None:
        self._plan = plan
        self._scope = plan.scope
        self._merge = merge
        self._hops = 0
        self._past = 0

    def begin(self) -> None:
        """Another route begins."""
        self._hops = 0
        self._past = 0

    def may_pass(self) -> bool:
        """Whether a route may go past one more affine that stays; counts it."""
        self._past += 1
        return self._past <= PAST_LIMIT

    def limits(self, tensor: str, affine: Affine, depth: int) -> Refusal | None:
        """A walk that went too far, or has nothing left to carry; counts one more step."""
        self._hops += 1
        if not affine.scale.size:
            return Refusal("axis", f"'{tensor}' has no channels", None)
        if depth > DEPTH_LIMIT or self._hops > HOP_LIMIT:
            return Refusal("too-far", f"no linear operator within {DEPTH_LIMIT} operators of '{tensor}'", None)
        return None

    def placed(self, tensor: str, affine: Affine) -> Affine:
        """The affine with its axis counted from the first one, where that is known."""
        axis = self._scope.shapes.axis(tensor, affine.axis)
        return affine if axis is None else affine.at(axis)

    def excluded(self, node: Node, step: carry.Step) -> Refusal | None:
        """A node whose constants must not change."""
        if not step.edits:
            return None
        if self._to_stay(node):
            return Refusal("blocked", f"the constant of {node.op} '{node.label}' is to stay as it is", node.label)
        return self._plan.excluded_hosts.get(node.index)

    def _to_stay(self, node: Node) -> bool:
        stays = self._plan.refused.get(node.index)
        return stays is not None and stays.code in ("activation", "excluded")

    def meet(self, route: Route, node: Node, affine: Affine, *, into: bool) -> Refusal | None:
        """An affine operator that stays is in the way, or takes the other one in when merging."""
        if self._merge and self._plan.can_merge(node, affine, into=into):
            route.ends.append(End(node, affine, into))
            return None
        return Refusal("blocked", f"{node.op} '{node.label}', which stays itself, stands in between", node.label)

    @staticmethod
    def end(route: Route, end: End | Refusal) -> Refusal | None:
        """Record one end, or hand on why there is none."""
        if isinstance(end, Refusal):
            return end
        route.ends.append(end)
        return None

    def behind(self, node: Node, affine: Affine) -> Refusal | None:
        """A product of computed tensors that has taken a shift behind it: a scale in front has to be undone in that."""
        taken = self._plan.out.get(node.index)
        if taken is None or not taken.shifts or (affine.uniform and affine.scale.all()):
            return None
        return Refusal("shift", f"a scale would have to pass the shift behind '{node.label}'", node.label)

    @staticmethod
    def spread(node: Node, affine: Affine) -> Refusal | None:
        """An affine on several axes, of which most operators know nothing."""
        if not isinstance(affine, Spread) or node.op in carry.SPREAD:
            return None
        reason = f"a Reshape spreads the channels over several axes in front of {node.op} '{node.label}', or behind it"
        return Refusal("reshape", reason, node.label)

    def blocked(self, node: Node) -> Refusal:
        """Why an operator without a rule lets nothing pass."""
        if node.op.startswith("function "):
            return Refusal(
                "function", f"the call of function '{node.label}' stands in between", node.label, lasting=True
            )
        if node.incomplete:
            reason = f"'{node.label}' lacks inputs or outputs that {node.proto.op_type} requires"
            return Refusal("blocked", reason, node.label, lasting=True)
        if any(word in node.op for word in _INTEGER_OPERATORS):
            reason = f"{node.op} '{node.label}' computes with integers, or makes them or floats of them"
            return Refusal("quantized", reason, node.label, lasting=True)
        return Refusal("blocked", f"{node.op} '{node.label}' lets no scale or shift pass", node.label, lasting=True)

    def enter(self, port: Port, affine: Affine, tensor: str, *, into: bool) -> End | Refusal:
        """End at a linear operator, when its channels are the affine's."""
        node = port.node
        add = matmul.bias_add(node) if node.op in matmul.MATMULS else None
        for written in (node, add):
            if written is not None and written.index in self._plan.excluded_hosts:
                return self._plan.excluded_hosts[written.index]
        if add is not None and (affine.shifts or not into) and self._to_stay(add):
            return Refusal("blocked", f"the constant of {add.op} '{add.label}' is to stay as it is", add.label)
        refusal = None if affine.uniform else self._other_channels(port, affine, tensor)
        if refusal is not None:
            return refusal
        if port.shift is not None and affine.shifts:
            return port.shift
        placed = affine.at(port.axis).over(port.channels)
        if port.turned is not None:
            turned = port.turned(placed)
            if isinstance(turned, Refusal):
                return turned
            placed = turned
        if port.check is not None:
            earlier = self._plan.out.get(node.index)
            both = placed if earlier is None else placed.then(earlier) if into else earlier.then(placed)
            refusal = port.check(both)
            if refusal is not None:
                return refusal
        adds = port.adds and placed.shifts and node.index not in self._plan.adds
        return End(node, placed, into, adds, turned=port.turned is not None)

    def _other_channels(self, port: Port, affine: Affine, tensor: str) -> Refusal | None:
        """The affine runs along another axis than the port's channels, or has another number of them."""
        label = port.node.label
        if affine.axis != port.axis:
            own, theirs = (self._scope.shapes.axis(tensor, axis) for axis in (affine.axis, port.axis))
            if own is None or theirs is None:
                return Refusal("shape-unknown", f"the rank of '{tensor}' is not known", label)
            if own != theirs:
                reason = f"the scale runs along axis {own}, the channels of '{label}' along axis {theirs}"
                return Refusal("axis", reason, label)
        if affine.scale.size != port.channels:
            return Refusal("broadcast", f"{affine.scale.size} values for {port.channels} channels of '{label}'", label)
        return None

    @staticmethod
    def captured(tensor: str, owner: Node) -> Refusal:
        """Bodies read a tensor, which therefore must keep its value."""
        return Refusal(
            "captured", f"'{tensor}' is read inside a subgraph of '{owner.label}'", owner.label, lasting=True
        )

    def no_producer(self, tensor: str) -> Refusal:
        """Why a tensor that no node of this graph makes takes nothing in."""
        if tensor in self._scope.inputs:
            return Refusal("no-producer", f"'{tensor}' is an input of the graph", None, lasting=True)
        if not self._scope.defines(tensor):
            return Refusal("captured", f"'{tensor}' comes from outside of the subgraph", None, lasting=True)
        return Refusal("no-producer", f"'{tensor}' is not made by an operator", None, lasting=True)
