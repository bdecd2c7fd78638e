"""A chain that stays, written as the fewest operators that express its affine: one batch norm, or a Mul and an Add."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from bnfold.affine import Affine
from bnfold.chain import SCALE, SHIFT, Chain
from bnfold.graph import Node, Scope
from bnfold.names import FreeNames
from bnfold.read import AffineNode
from bnfold.writer import ConstantWriter, set_attribute

__all__ = ["applied_to", "element_type", "reduced"]


def reduced(scope: Scope, chain: Chain, writer: ConstantWriter, free: FreeNames) -> list[NodeProto]:
    """The operators, from the tensor that the chain reads to the one that it makes."""
    return _plain(scope, chain, writer, free) if chain.norm is None else _norm(scope, chain, chain.norm, writer)


def element_type(node: Node) -> int:
    """The type of what a node reads, for constants that it never had."""
    return node.scope.shapes.element_type(node.inputs[0]) or 1


def applied_to(values: NDArray[np.float64], affine: Affine) -> NDArray[np.float64]:
    """A constant's values passed through the affine; they grow where the channels need it."""
    if affine.uniform:
        return np.asarray(values * affine.scale[0] + affine.shift[0])
    axis = affine.axis if affine.axis < 0 else affine.axis - values.ndim
    shape = [-1] + [1] * (-axis - 1)
    result: NDArray[np.float64] = values * affine.scale.reshape(shape) + affine.shift.reshape(shape)
    return result


def _norm(scope: Scope, chain: Chain, norm: AffineNode, writer: ConstantWriter) -> list[NodeProto]:
    """One batch norm with mean 0, variance 1 and epsilon 0: ``s * (x - 0) / sqrt(1 + 0) + t``, nothing to round."""
    node, size = norm.node, norm.affine.scale.size
    affine = chain.affine.over(size)
    inputs = [chain.data]
    for position, values in enumerate((affine.scale, affine.shift, np.zeros(size), np.ones(size)), start=1):
        old = scope.constants.get(node.inputs[position])
        assert old is not None
        inputs.append(writer.new(node, values, old.data_type, f"{old.name}_folded"))
    merged = NodeProto()
    merged.CopyFrom(node.proto)
    del merged.input[:], merged.output[:]
    merged.input.extend(inputs)
    merged.output.append(chain.output)
    set_attribute(merged, "epsilon", 0.0)
    return [merged]


def _plain(scope: Scope, chain: Chain, writer: ConstantWriter, free: FreeNames) -> list[NodeProto]:
    """A Mul, an Add, or both, or a Sub; an Identity where nothing is to be done but two names have to stay."""
    last = chain.members[-1].node
    turned = chain.subtracts(chain.affine)
    steps = [("Mul", SCALE, chain.affine.scale)] if chain.affine.scales and not turned else []
    steps += [("Sub" if turned else "Add", SHIFT, chain.affine.shift)] if chain.affine.shifts else []
    if not steps:
        return [helper.make_node("Identity", [chain.data], [chain.output], last.proto.name)]
    shape, data_type = _constant_shape(scope, chain), _data_type(scope, chain)
    aligned = _alignment(scope, chain)
    made: list[NodeProto] = []
    source = chain.data
    for op, role, values in steps:
        wide = values.reshape(shape)
        for edit in chain.widened:
            wide = applied_to(wide, edit.affine) if edit.slot == role else wide
        constant = writer.new(last, wide, data_type, f"{chain.output}_{role}")
        final = len(made) == len(steps) - 1
        output = chain.output if final else free.take(f"{chain.output}_scaled")
        name = last.proto.name if final else free.take(f"{chain.output}_mul")
        operands = [constant, source] if turned else [source, constant]
        made.append(helper.make_node(op, operands, [output], name, **aligned))
        source = output
    return made


def _data_type(scope: Scope, chain: Chain) -> int:
    """That of the constants it has, else of the tensor."""
    for member in chain.members:
        for name in member.node.inputs:
            constant = scope.constants.get(name) if name != member.data else None
            if constant is not None:
                return constant.data_type
    return element_type(chain.members[0].node)


def _constant_shape(scope: Scope, chain: Chain) -> tuple[int, ...]:
    """The shape that lets the chain's vectors broadcast along their axis."""
    if chain.affine.uniform:
        return ()
    axis = chain.affine.axis
    if scope.opset < 7:
        return (chain.affine.scale.size,)
    if axis >= 0:
        rank = scope.shapes.rank(chain.data)
        assert rank is not None, "composing needed it"
        axis -= rank
    return (chain.affine.scale.size, *[1] * (-axis - 1))


def _alignment(scope: Scope, chain: Chain) -> dict[str, int]:
    """Attributes that lay a constant along the chain's axis; from opset 7 on its shape alone does that."""
    if scope.opset >= 7:
        return {}
    if chain.affine.uniform:
        return {"broadcast": 1}
    axis = scope.shapes.axis(chain.data, chain.affine.axis)
    assert axis is not None, "composing needed it"
    return {"broadcast": 1, "axis": axis}
