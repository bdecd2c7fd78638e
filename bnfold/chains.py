"""Collecting the chains of a scope: which affines are read at all, which stand in a row, and which do nothing."""

from __future__ import annotations

from bnfold import gelu, read
from bnfold.absorb import matmul
from bnfold.affine import Affine
from bnfold.calls import original_label
from bnfold.chain import Chain, compose
from bnfold.graph import Node
from bnfold.plan import ScopePlan
from bnfold.read import AffineNode
from bnfold.refusals import Refusal

__all__ = ["collect", "drop_identity", "find_dead", "join_neighbours", "joins_outputs"]


def find_dead(plan: ScopePlan) -> None:
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


def collect(plan: ScopePlan) -> None:
    """Read every affine of the scope and tie those in a row together."""
    activations = gelu.members(plan.scope) if plan.limits.gelus else {}
    for node in plan.scope.nodes:
        if not read.is_affine_operator(node) or node.index in plan.dead:
            continue
        found = _read(plan, node)
        if isinstance(found, AffineNode) and node.index in activations:
            erf = activations[node.index].label
            found = Refusal("activation", f"it is part of the Gelu around '{erf}', which runtimes fuse", erf)
        if isinstance(found, Refusal):
            plan.refused[node.index] = found
        elif found is not None:
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
    skip = plan.limits.skip
    excluded = (skip.get(node.label) or skip.get(original_label(node.proto))) if skip else None
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
        alone = len(plan.value_readers(member.data)) == 1
        both = _composed(plan, before, member.affine, member if member.norm else None) if alone else None
        if both is not None:
            before.append(member, both)
            plan.chain_of[member.node.index] = before
            return
    chain = Chain([member], member.affine)
    plan.chains.append(chain)
    plan.chain_of[member.node.index] = chain


def _composed(plan: ScopePlan, chain: Chain, affine: Affine, norm: AffineNode | None) -> Affine | None:
    """What a chain with more behind it does; None when that is no one affine, or none that its norm can hold."""
    both = compose(plan.scope, chain.output, chain.affine, affine)
    holder = chain.norm or norm
    if both is None or not both.finite or (holder is not None and both.scale.size != holder.affine.scale.size):
        return None
    return both


def join_neighbours(plan: ScopePlan) -> None:
    """Tie together what stands in a row, or along one axis, only now that other things are gone."""
    last = {chain.output: chain for chain in plan.chains if chain.waiting}
    for chain in plan.chains:
        source = _source(plan, chain.data) if chain.waiting else None
        before = None if source is None else last.get(source)
        if before is None or source in plan.scope.output_set:
            continue
        readers = [use for use in plan.value_readers(before.output) if plan.looked_at(use.node)]
        both = _composed(plan, before, chain.affine, chain.norm) if len(readers) == 1 else None
        if both is not None:
            plan.chain_of.update((member.node.index, before) for member in chain.members)
            before.take_over(chain, both)
            last[before.output] = before
    plan.chains = [chain for chain in plan.chains if chain.members]


def _source(plan: ScopePlan, tensor: str) -> str | None:
    """The tensor that it is now, once affines in front of it have vanished; None when others read it on the way."""
    producer = plan.scope.producer(tensor)
    while producer is not None and producer.index in plan.gone:
        if tensor in plan.scope.output_set or len(plan.scope.readers(tensor)) != 1:
            return None
        tensor = plan.gone[producer.index].data
        producer = plan.scope.producer(tensor)
    return tensor


def drop_identity(plan: ScopePlan, chain: Chain) -> None:
    """A chain that does nothing disappears, unless it is all that connects an input to an output."""
    if not chain.affine.identity:
        return
    if joins_outputs(plan, chain):
        chain.refusal = Refusal(
            "graph-output", "the operator does nothing, but connects an input to an output of the graph", None
        )
        return
    chain.dropped = True
    plan.remove(chain, keeps_input=False)


def joins_outputs(plan: ScopePlan, chain: Chain) -> bool:
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
