"""onnx shape inference, on the skeleton of the whole model, so weights do not matter.

It is helped where it has to give up: sizes that constant expressions compute are written down as constants, and so are
the shapes that a Reshape or Resize provably makes, and what the weight says of a linear operator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onnx import ModelProto, helper, numpy_helper, shape_inference

from bnfold import faults
from bnfold.dimensions import derived, sources
from bnfold.graph import attribute_graphs
from bnfold.shapes import MADE_UP, lasting

if TYPE_CHECKING:
    from bnfold.graph import Node, Scope

__all__ = ["infer_scopes"]

_READS_SIZES = frozenset(
    """
    ConstantOfShape Expand Pad ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Reshape Resize Slice Split Squeeze Tile TopK Unsqueeze
    """.split()
)

_WEIGHTED = frozenset(["Conv", "ConvTranspose", "Gemm"])
_PROVEN = _WEIGHTED | {"Reshape", "Resize", "Upsample"}
"""Operators whose shapes are known here where inference does not find them."""

_PASSES = 32
"""How often inference runs at most."""


def infer_scopes(root: Scope) -> None:
    """Let onnx infer the types of all scopes; again when what is proven here is where it had to give up."""
    bare = ModelProto()
    bare.CopyFrom(root.model.proto)
    for scope in root.scopes():
        scope.shapes.learn(None)  # what asks for a type from here on gets no second inference
    numbers = {id(scope): number for number, scope in enumerate(root.scopes())}
    with _provisional(root):
        for scope, graph in _pairs(root, bare.graph):
            _state_constants(scope, graph)
            faults.sort_axes(scope, graph)
            faults.stand_in(scope, graph)
    _forget_declarations(bare.graph, overridable=bare.ir_version >= 4)
    bare.opset_import.add(domain=faults.DOMAIN, version=1)
    wrong = False
    for _ in range(_PASSES):
        try:
            inferred: ModelProto = shape_inference.infer_shapes(bare, data_prop=True)
        except Exception:  # onnx raises several unrelated types on models it cannot infer; shapes then stay unknown
            break
        for scope, graph in _pairs(root, inferred.graph):
            scope.shapes.learn(graph)
        with _provisional(root):
            pairs = list(_pairs(root, bare.graph))
            corrected = [faults.state_outputs(scope, graph) for scope, graph in pairs]  # all, not up to the first
            wrong = any(corrected)
            proven = [] if wrong else [_state_proven(scope, graph, numbers[id(scope)]) for scope, graph in pairs]
            if not wrong and not any(proven):
                return
    for scope in root.scopes() if wrong else ():
        scope.shapes.learn(None)


@contextmanager
def _provisional(root: Scope) -> Iterator[None]:
    """What is found in here is forgotten: with more inference there may be more to find."""
    before = [(scope, scope.shapes.remembered(), scope.constants.remembered()) for scope in root.scopes()]
    yield
    for scope, shapes, constants in before:
        scope.shapes.recall(shapes)
        scope.constants.recall(constants)


def _pairs(root: Scope, graph: Any) -> Iterator[tuple[Scope, Any]]:
    """Each scope with its counterpart in a copy of the model."""
    pairs = [(root, graph)]
    while pairs:
        scope, graph = pairs.pop()
        yield scope, graph
        for node, child in scope.children:
            pairs.extend((child, body) for body in _bodies(graph.node[node.index]) if _same_body(child, body))


def _state_constants(scope: Scope, graph: Any) -> None:
    """Put constants in place of expressions that sizes and axes come from, and of those from outside of a body;
    inference does not look through all of them."""
    stated: set[str] = set()
    for node in scope.nodes:
        for name in node.inputs if node.op in _READS_SIZES else ():
            maker = scope.producers.get(name)
            given = (scope.defines(name) if maker is None else maker.op == "Constant") or name in stated
            constant = None if given else scope.constants.get(name)
            if constant is None or constant.floating or (maker is not None and len(maker.outputs) != 1):
                continue
            stated.add(name)
            value = numpy_helper.from_array(constant.array(), name)
            if maker is None:
                graph.initializer.append(value)
            else:
                graph.node[maker.index].CopyFrom(helper.make_node("Constant", [], [name], value=value))


def _state_proven(scope: Scope, graph: Any, number: int) -> bool:
    """Write down shapes that are proven here and that inference has not found; whether there were any.

    Those of Reshapes and Resizes by arithmetic with names, and by its weight that of an operator behind something that
    inference does not know. What stays open gets a name, one that no tensor of another body (``number``) has.
    """
    stated = {value.name for value in graph.value_info}
    for node in scope.nodes:
        if node.op not in _PROVEN or node.outputs[0] in stated:
            continue
        name = node.outputs[0]
        found = scope.shapes.inferred(name)
        inferred = None if found is None else lasting(found)
        if inferred is not None and None not in inferred:
            continue
        proven = derived(node, [scope.shapes.dims(source) for source in sources(node, name)])
        element_type = _element_type(node)
        if proven is None or element_type is None:
            continue
        known = lasting(proven)
        if inferred is None or any(a is None and b is not None for a, b in zip(inferred, known, strict=False)):
            named = [f"{MADE_UP}:{number}:{name}:{axis}" if d is None else d for axis, d in enumerate(known)]
            graph.value_info.append(helper.make_tensor_value_info(name, element_type, named))
    return len(graph.value_info) > len(stated)


def _element_type(node: Node) -> int | None:
    """The type of what a node makes, which is that of its weight where it has one."""
    found = node.scope.shapes.element_type(node.outputs[0]) or node.scope.shapes.element_type(node.inputs[0])
    weight = node.scope.constants.get(node.input(1)) if found is None and node.op in _WEIGHTED else None
    return weight.data_type if weight is not None and weight.floating else found


def _forget_declarations(graph: Any, *, overridable: bool) -> None:
    """Leave only the inputs' shapes, so that what inference finds is proven and not repeated.

    Where callers can override initializers, their values prove nothing either.
    """
    waiting = [graph]
    while waiting:
        body = waiting.pop()
        given = {value.name for value in body.input} if overridable else set()
        kept = [tensor for tensor in body.initializer if tensor.name not in given]
        if len(kept) != len(body.initializer):
            del body.initializer[:]
            body.initializer.extend(kept)
        del body.value_info[:]
        for value in body.output:
            value.type.tensor_type.ClearField("shape")
        waiting.extend(inner for node in body.node for inner in _bodies(node))


def _bodies(node: Any) -> list[Any]:
    return [body for _, body in attribute_graphs(node)]


def _same_body(child: Scope, body: Any) -> bool:
    return child.outputs == [value.name for value in body.output] and len(child.nodes) == len(body.node)
