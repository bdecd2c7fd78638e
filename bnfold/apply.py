"""Applying plans: one sweep over each scope, bodies before the graphs they stand in.

Each linear operator gets all its affines at once; weights are written once. The model's skeleton is edited in place, so
callers hand in one that is theirs.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from bnfold.absorb import conv, conv_transpose, gemm, matmul, quantized
from bnfold.absorb.dequantized import Dequantized, dequantized
from bnfold.absorb.port import Rewrite, Scaled, Stored
from bnfold.affine import Affine
from bnfold.blobs import Blob
from bnfold.chain import Chain
from bnfold.graph import Node, Scope
from bnfold.names import FreeNames, final_names, rename_captures
from bnfold.orphans import Orphans
from bnfold.plan import ScopePlan
from bnfold.reduction import applied_to, element_type, reduced
from bnfold.refusals import Refusal
from bnfold.writer import ConstantWriter, HostsUnfit, set_attribute

__all__ = ["Applied", "apply_plans"]


@dataclass(slots=True)
class Applied:
    """Book-keeping of one application: which operator a streamed weight belongs to, and Adds that were written."""

    hosts: dict[Blob, tuple[Scope, Node]] = field(default_factory=dict)
    unfit: dict[tuple[str, int], Refusal] = field(default_factory=dict)
    adds: int = 0
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)


def apply_plans(roots: list[Scope], plans: dict[int, ScopePlan]) -> Applied:
    """Carry out the plans (by ``id`` of their scope) on the skeleton that the scopes index.

    Raises:
        HostsUnfit: some constants cannot be represented; the skeleton is then void.
    """
    with np.errstate(all="ignore"):  # what overflows is refused
        return _apply_plans(roots, plans)


def _apply_plans(roots: list[Scope], plans: dict[int, ScopePlan]) -> Applied:
    free, applied = FreeNames(roots), Applied()
    for root in roots:
        orphans = {id(scope): Orphans(scope) for scope in root.scopes()}
        for scope in reversed(list(root.scopes())):
            plan = plans.get(id(scope))
            sweep = _Sweep(scope, plan, free, orphans[id(scope)], applied)
            given_back = sweep.run()
            if scope.parent is not None:
                orphans[id(scope.parent)].lose(given_back)
    if applied.unfit:
        raise HostsUnfit(applied.unfit)
    return applied


class _Sweep:
    """The application of one scope's plan."""

    def __init__(
        self, scope: Scope, plan: ScopePlan | None, free: FreeNames, orphans: Orphans, applied: Applied
    ) -> None:
        self._scope = scope
        self._plan = plan if plan is not None and plan.changes_anything else None
        self._free = free
        self._orphans = orphans
        self._applied = applied
        self._writer = ConstantWriter(scope, free)
        self._gone: set[int] = set()
        self._before: dict[int, list[NodeProto]] = {}
        self._behind: dict[int, list[NodeProto]] = {}
        self._outputs: dict[int, str] = {}

    def run(self) -> list[str]:
        """Edit the graph; returns captured tensors that this scope stopped reading."""
        if self._plan is not None:
            self._linear(self._plan)
            self._constants(self._plan)
            for chain in self._plan.chains:
                if self._plan.shrinks(chain):
                    self._reduce(chain)
            self._forget(self._plan)
            self._writer.finish()
        given_back = self._orphans.sweep()
        if self._plan is not None or self._orphans.nodes or self._orphans.tensors:
            self._rebuild(final_names(self._plan, self._free) if self._plan is not None else {})
        self._applied.hosts.update(self._writer.hosts)
        self._applied.unfit.update(self._writer.unfit)
        return given_back

    # -- linear operators ----------------------------------------------------------------------------------------

    def _linear(self, plan: ScopePlan) -> None:
        for index in sorted(plan.out.keys() | plan.into.keys()):
            node = self._scope.nodes[index]
            for rewrite in _rewrites(plan, node, plan.out.get(index), plan.into.get(index)):
                self._rewrite(rewrite)

    def _rewrite(self, rewrite: Rewrite) -> None:
        node = rewrite.node
        if rewrite.apart is not None:
            self._copy(rewrite, *rewrite.apart)
            return
        for change in rewrite.changes:
            if isinstance(change, Scaled):
                self._writer.scale(node, change)
            else:
                self._writer.store(node, change.position, change.values, change.data_type, change.role)
        for name, value in rewrite.attributes.items():
            set_attribute(node.proto, name, value)
        if rewrite.gemm:
            node.proto.op_type = "Gemm"
        if rewrite.add is not None:
            self._add_behind(node, rewrite.add.values, rewrite.add.data_type)

    def _copy(self, rewrite: Rewrite, reader: Node, position: int) -> None:
        """The node as it is for others, and a changed one in front of this reader."""
        node, copy = rewrite.node, NodeProto()
        copy.CopyFrom(node.proto)
        for change in rewrite.changes:
            assert isinstance(change, Stored), "large weights are not read through other operators"
            wish = f"{node.input(change.position) or node.outputs[0]}_folded"
            copy.input.extend([""] * (change.position + 1 - len(copy.input)))
            copy.input[change.position] = self._writer.new(reader, change.values, change.data_type, wish)
        for name, value in rewrite.attributes.items():
            set_attribute(copy, name, value)
        copy.output[0] = self._free.take(f"{node.outputs[0]}_folded")
        if copy.name:
            copy.name = self._free.take(f"{copy.name}_folded")
        self._orphans.gain(set(copy.input) & set(node.inputs))
        self._writer.inputs.setdefault(reader.index, {})[position] = copy.output[0]
        self._before.setdefault(reader.index, []).append(copy)

    def _add_behind(self, node: Node, values: NDArray[np.float64], data_type: int) -> None:
        """An Add takes over the node's output name; the node's own output gets a new one."""
        output = node.outputs[0]
        constant = self._writer.new(node, values, data_type, f"{output}_bias")
        inner = self._free.take(f"{output}_product")
        name = self._free.take(f"{node.proto.name or output}_bias_add")
        broadcast = {} if self._scope.opset >= 7 else {"broadcast": 1}
        self._behind[node.index] = [helper.make_node("Add", [inner, constant], [output], name, **broadcast)]
        self._outputs[node.index] = inner
        self._applied.adds += 1

    # -- constants of carrying operators -------------------------------------------------------------------------

    def _constants(self, plan: ScopePlan) -> None:
        for (index, slot), (affines, default) in plan.edits.items():
            node = self._scope.nodes[index]
            if isinstance(slot, str):
                value = node.real(slot, default or 0.0)
                for affine in affines:
                    value = float((affine.scale * value + affine.shift)[0])
                set_attribute(node.proto, slot, value)
                continue
            constant = self._scope.constants.get(node.input(slot))
            values: NDArray[np.float64] = np.full((), default or 0.0) if constant is None else constant.float64()
            for affine in affines:
                values = applied_to(values, affine)
            self._writer.store(
                node, slot, values, element_type(node) if constant is None else constant.data_type, "value"
            )

    # -- chains that stay, with fewer operators ------------------------------------------------------------------

    def _reduce(self, chain: Chain) -> None:
        """Write a staying chain as the fewest operators, at the place of its last member."""
        last = chain.members[-1].node
        for member in chain.members:
            self._gone.add(member.node.index)
            self._orphans.lose_node(member.node, (name for name in member.node.inputs if name != member.data))
        self._behind[last.index] = reduced(self._scope, chain, self._writer, self._free)

    # -- the graph -----------------------------------------------------------------------------------------------

    def _forget(self, plan: ScopePlan) -> None:
        """Reads that are gone: those of vanished nodes, and of constants that were replaced."""
        for index, member in plan.gone.items():
            self._gone.add(index)
            self._orphans.lose_node(member.node, (name for name in member.node.inputs if name != member.data))
        for index, inputs in self._writer.inputs.items():
            self._orphans.lose(self._scope.nodes[index].input(position) for position in inputs)
        for index in sorted(plan.dead):
            self._orphans.remove(self._scope.nodes[index])

    def _rebuild(self, renamed: dict[str, str]) -> None:
        graph, scope = self._scope.graph, self._scope
        removed = self._gone | self._orphans.nodes
        rename_captures(scope, renamed)  # before the nodes, and the bodies in them, are copied
        kept: list[NodeProto] = list(self._writer.new_nodes)
        for node in scope.nodes:
            for new in self._before.get(node.index, ()):
                _rename(new.input, renamed)
                kept.append(new)
            if node.index not in removed:
                self._rename_node(node, renamed)
                kept.append(node.proto)
            for new in self._behind.get(node.index, ()):
                _rename(new.input, renamed)
                _rename(new.output, renamed)
                kept.append(new)
        if removed or self._before or self._behind or self._writer.new_nodes:
            del graph.node[:]
            graph.node.extend(kept)
        if not scope.is_function:
            self._clean_tables(renamed)
        else:
            _pass_on(graph.value_info, renamed, {*scope.output_set, *scope.inputs})
            _drop(graph.value_info, "name", renamed)
        self._applied.renamed[scope.path] = renamed

    def _rename_node(self, node: Node, renamed: dict[str, str]) -> None:
        if not renamed.keys().isdisjoint(node.inputs):
            _rename(node.proto.input, renamed)
        for position, name in self._writer.inputs.get(node.index, {}).items():
            while len(node.proto.input) <= position:
                node.proto.input.append("")
            node.proto.input[position] = name
        if not renamed.keys().isdisjoint(node.outputs):
            _rename(node.proto.output, renamed)
        if node.index in self._outputs:
            node.proto.output[0] = self._outputs[node.index]

    def _clean_tables(self, renamed: dict[str, str]) -> None:
        """Initializers, inputs, declared shapes and annotations of tensors that are gone or have new names."""
        graph, scope = self._scope.graph, self._scope
        lost = self._orphans.tensors
        if lost:
            _drop(graph.initializer, "name", lost)
            _drop(graph.input, "name", lost)
        vanished = {n for i in self._gone | self._orphans.nodes for n in scope.nodes[i].outputs} - {
            name for nodes in self._behind.values() for node in nodes for name in node.output
        }
        stale = (lost | vanished | renamed.keys()) - set(renamed.values())
        _pass_on(graph.value_info, renamed, {*scope.output_set, *scope.inputs})
        _drop(graph.value_info, "name", stale)
        _drop(graph.quantization_annotation, "tensor_name", stale)


def _rewrites(plan: ScopePlan, node: Node, out: Affine | None, into: Affine | None) -> list[Rewrite]:
    add = matmul.bias_add(node) if node.op in matmul.MATMULS else None
    chain = None if add is None else plan.chain_of.get(add.index)
    if chain is not None and (not chain.staying or plan.shrinks(chain)):
        add = None  # it vanishes, or is written anew with the affines in its row: the product takes its own shift
    if isinstance(dequantized(node, quantized.side(node)), Dequantized):
        assert into is None, "quantized weights take an affine behind the operator only"
        assert out is not None, "only operators that take an affine are rewritten"
        return quantized.rewrite(node, out, add=add)
    if node.op in matmul.MATMULS:
        return matmul.rewrite(node, out, into, add=add)
    if node.op.endswith("Gemm"):
        return [gemm.rewrite(node, out, into)]
    if node.op == "ConvTranspose":
        return [conv_transpose.rewrite(node, out, into)]
    return [conv.rewrite(node, out, into)]


def _rename(names: object, renamed: dict[str, str]) -> None:
    for position, name in enumerate(names):  # type: ignore[arg-type,var-annotated]
        if name in renamed:
            names[position] = renamed[name]  # type: ignore[index]


def _pass_on(values: Any, renamed: dict[str, str], elsewhere: Container[str]) -> None:
    """Give tensors with a new name the shape that was declared under the old one, where the new name has none.

    Inputs and outputs of the graph are declared ``elsewhere``.
    Runtimes that infer shapes rely on declared ones where an exporter wrote wrong ones elsewhere.
    """
    named = {value.name: value for value in values} if renamed else {}
    for old, new in renamed.items():
        declared = named.get(old)
        if declared is None or not declared.type.tensor_type.HasField("shape") or new in elsewhere:
            continue
        if new not in named:
            named[new] = values.add(name=new)
        if not named[new].type.tensor_type.HasField("shape"):
            named[new].type.CopyFrom(declared.type)


def _drop(entries: Any, field: str, unwanted: Container[str]) -> None:
    """Remove entries of a repeated field by the name in one of their fields, in one pass."""
    name = attrgetter(field)
    kept = [entry for entry in entries if name(entry) not in unwanted]
    if len(kept) != len(entries):
        del entries[:]
        entries.extend(kept)
