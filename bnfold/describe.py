"""From plans to reports: one row per operator, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bnfold.absorb import matmul
from bnfold.apply import Applied
from bnfold.chain import Chain
from bnfold.dtypes import FLOATS
from bnfold.graph import Node, Scope, attribute_graphs
from bnfold.model import Model
from bnfold.plan import ScopePlan
from bnfold.refusals import Refusal
from bnfold.report import Counts, Folded, Kept
from bnfold.route import End, Route

_SITE_SEARCH = 256
"""Folds that are followed to find where one of them can be seen: bounds the work on endless chains."""

__all__ = ["counts_after", "describe", "model_counts", "with_affine"]


def describe(roots: list[Scope], plans: dict[int, ScopePlan]) -> tuple[tuple[Folded, ...], tuple[Kept, ...]]:
    """One entry for each batch norm and affine operator, in graph order."""
    folded: list[Folded] = []
    kept: list[Kept] = []
    for root in roots:
        for scope in root.scopes():
            plan = plans[id(scope)]
            rows: list[tuple[int, Folded | Kept]] = []
            for index, refusal in plan.refused.items():
                rows.append((index, _kept(scope.nodes[index], refusal)))
            for member in plan.unread:
                node = member.node
                removed = Folded(node.label, node.proto.op_type, (), "removed: nobody reads it", (), scope.path)
                rows.append((node.index, removed))
            for chain in plan.chains:
                rows += _chain_rows(plan, chain)
            for _, row in sorted(rows, key=lambda pair: pair[0]):
                (folded if isinstance(row, Folded) else kept).append(row)  # type: ignore[arg-type]
    return tuple(folded), tuple(kept)


def _kept(node: Node, refusal: Refusal) -> Kept:
    return Kept(node.label, node.proto.op_type, refusal.code, refusal.reason, refusal.node, node.scope.path)


def _chain_rows(plan: ScopePlan, chain: Chain) -> Iterator[tuple[int, Folded | Kept]]:
    sites = _sites(plan, chain)
    if not chain.staying:
        for member in chain.members:
            yield member.node.index, _folded(plan, chain, member.node, sites)
        return
    refusal = chain.refusal or Refusal("no-gain", "moving it would not save an operator", None)
    survivors = _survivors(plan, chain)
    for member in chain.members:
        if member.node.index in survivors:
            yield member.node.index, _kept(member.node, refusal)
        else:
            yield member.node.index, _folded(plan, chain, member.node, sites)


def _survivors(plan: ScopePlan, chain: Chain) -> set[int]:
    """The members that a staying chain is written as."""
    if not plan.shrinks(chain):
        return {m.node.index for m in chain.members}
    if chain.norm is not None:
        return {chain.norm.node.index}
    return {m.node.index for m in chain.members[-chain.operators_needed() :]} if chain.operators_needed() else set()


def _folded(plan: ScopePlan, chain: Chain, node: Node, sites: tuple[str, ...]) -> Folded:
    routes = chain.routes or ([chain.moved] if chain.moved is not None else [])
    into: list[str] = []
    for route in routes:
        into += [end.node.label for end in route.ends if end.node.label not in into]
    if not routes and chain.staying:
        survivor = chain.norm.node if chain.norm is not None else chain.members[-1].node
        into = [survivor.label]
    words = _words(chain, routes)
    return Folded(node.label, node.proto.op_type, tuple(into), words, sites, plan.scope.path)


def _words(chain: Chain, routes: list[Route]) -> str:
    if chain.dropped:
        return "removed: it changes nothing"
    if not routes:
        return "merged with its neighbours"
    parts = [_route_words(route) for route in routes]
    if len(parts) == 2:
        return f"split: {parts[0]}; {parts[1]}"
    if chain.moved is not None and not chain.affine.identity:
        return f"half of it {parts[0]}"
    return parts[0]


def _route_words(route: Route) -> str:
    if not route.ends:
        return "into constants" if route.edits else "removed: nobody reads it"
    groups: dict[str, list[End]] = {}
    for end in route.ends:
        groups.setdefault(f"{'before' if end.into else 'after'} {end.node.op.split('::')[-1]}", []).append(end)
    words = ", ".join(name if len(ends) == 1 else f"{name} x{len(ends)}" for name, ends in groups.items())
    crossed = list(dict.fromkeys(node.op for node in route.crossed))
    return f"{words}, through {', '.join(crossed)}" if crossed else words


def _sites(plan: ScopePlan, chain: Chain) -> tuple[str, ...]:
    """Tensors of the result that must equal the original's for this fold to be right.

    Where another fold changed such a tensor later, that fold's own sites stand in for it.
    """
    found: dict[str, None] = {}
    seen = {id(chain)}
    waiting = [chain]
    while waiting:
        current = waiting.pop()
        for name in _ends(current):
            later = _whole(plan.changed.get(name))
            if later is None or later is current:
                found[name] = None
            elif id(later) not in seen and len(seen) < _SITE_SEARCH:
                seen.add(id(later))
                waiting.append(later)
    return tuple(found)


def _whole(chain: Chain | None) -> Chain | None:
    """The chain that continues with the members of this one, where another does."""
    while chain is not None and not chain.members:
        chain = chain.into_chain
    return chain


def _ends(chain: Chain) -> list[str]:
    """Where the fold of a chain ends: the consumers' outputs, or else its own."""
    names: list[str] = []
    forward = [end for route in chain.routes for end in route.ends if end.into]
    if forward:
        for end in forward:
            add = matmul.bias_add(end.node) if end.node.op in matmul.MATMULS else None
            names.append((add if add is not None else end.node).outputs[0])
    else:
        names.append(chain.output)
    return list(dict.fromkeys(names))


# -- counts ------------------------------------------------------------------------------------------------------------


def _size(model: Model) -> tuple[int, int, int]:
    """Nodes, norms and parameters of a model, subgraphs and functions included."""
    nodes, norms, parameters = 0, 0, 0
    stack = [model.proto.graph, *model.proto.functions]
    while stack:
        graph = stack.pop()
        nodes += len(graph.node)
        for node in graph.node:
            op = node.op_type
            if op == "BatchNormalization":
                norms += node.domain in ("", "ai.onnx")
            elif op == "Constant":
                parameters += sum(
                    math.prod(a.t.dims) for a in node.attribute if a.name == "value" and a.t.data_type in FLOATS
                )
            stack.extend(body for _, body in attribute_graphs(node))
        if hasattr(graph, "initializer"):
            parameters += sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in FLOATS)
    return nodes, norms, parameters


def model_counts(model: Model) -> Counts:
    """Sizes of a model, its affine operators not counted yet."""
    nodes, norms, parameters = _size(model)
    size = None
    if model.path is not None:
        size = Path(model.path).stat().st_size + sum(
            blob.nbytes for blob in model.blobs if getattr(blob, "external", False)
        )
    return Counts(nodes, norms, 0, parameters, size)


def with_affine(counts: Counts, plans: dict[int, ScopePlan]) -> Counts:
    """The same with the affine operators that planning found."""
    affine = sum(not m.norm for plan in plans.values() for chain in plan.chains for m in chain.members)
    return replace(counts, affine_operators=affine)


def counts_after(model: Model, plans: dict[int, ScopePlan], applied: Applied) -> Counts:
    """Sizes of the model as it was folded."""
    nodes, norms, parameters = _size(model)
    affine = applied.adds
    for plan in plans.values():
        for chain in plan.chains:
            if chain.staying:
                survivors = _survivors(plan, chain)
                affine += sum(not m.norm and m.node.index in survivors for m in chain.members)
    return Counts(nodes, norms, affine, parameters)
