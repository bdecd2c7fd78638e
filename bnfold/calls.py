"""Calls of model-local functions, inlined one by one.

onnx's inliner takes functions, all calls of each. Here every call that is to go gets a copy of the function under a
name of its own first, and those are inlined. Nodes say in their metadata which call they came through and what label
they had there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from onnx import FunctionProto, ModelProto, NodeProto

from bnfold.graph import attribute_graphs, label_of

__all__ = ["Call", "calls_of", "came_through", "forget_origins", "inlined", "original_label"]

_CALL = "bnfold.call"
_LABEL = "bnfold.label"

Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


class Call(NamedTuple):
    """A call of a function: the node, and the function whose body it stands in (None for the main graph)."""

    node: NodeProto
    function: Key
    caller: Key | None


def calls_of(proto: ModelProto) -> list[Call]:
    """All calls, always in the same order; a call's place in the list is its number.

    A function of the standard domain is left alone: where it has an operator's name, runtimes take the operator.
    """
    functions = {_key(function) for function in proto.functions if function.domain not in ("", "ai.onnx")}
    bodies: list[tuple[Any, Key | None]] = [(proto.graph, None), *((f, _key(f)) for f in proto.functions)]
    return [
        Call(node, called, caller)
        for body, caller in bodies
        for node in _nodes(body)
        if (called := (node.domain, node.op_type, node.overload)) in functions
    ]


def inlined(proto: ModelProto, chosen: Collection[int]) -> ModelProto | None:
    """The model with the calls of these numbers replaced by the bodies of their functions.

    Functions that nobody calls any more are gone; all that is not graph or function stays. None where onnx does not
    inline: calls nested more than 100 deep, or functions for another opset, for example.
    """
    from onnx import checker, inliner  # only models with functions need them

    result = ModelProto()
    result.CopyFrom(proto)
    functions = {_key(function): function for function in result.functions}
    called = [(number, call) for number, call in enumerate(calls_of(result)) if number in chosen]
    for number, call in called:
        _give_defaults(call.node, functions[call.function])
        call.node.op_type, call.node.overload = _copy_name(call, number), ""
    for number, call in called:  # once all calls have their new names, as bodies hold calls too
        copy = result.functions.add()
        copy.CopyFrom(functions[call.function])
        copy.name, copy.overload = _copy_name(call, number), ""
        _mark(copy, number)
    wanted = [(call.function[0], _copy_name(call, number)) for number, call in called]
    imports = [entry for _, call in called for entry in functions[call.function].opset_import]
    try:
        done = inliner.inline_selected_functions(result, wanted)
    except (checker.ValidationError, RuntimeError):
        return None
    before = {call.function for call in calls_of(proto)}
    for entry in imports:
        if entry.domain not in {"", "ai.onnx", *(known.domain for known in result.opset_import)}:
            result.opset_import.add().CopyFrom(entry)
    result.graph.CopyFrom(done.graph)
    del result.functions[:]
    result.functions.extend(done.functions)
    _drop_uncalled(result, before)
    return result


def came_through(node: NodeProto) -> int | None:
    """The number of the call that an inlined node came through."""
    found = next((entry.value for entry in node.metadata_props if entry.key == _CALL), None)
    return None if found is None else int(found)


def original_label(node: NodeProto) -> str:
    """The label that a node has in its function, or its own."""
    for entry in node.metadata_props:
        if entry.key == _LABEL:
            return str(entry.value)
    return label_of(node, node.output)


def forget_origins(proto: ModelProto) -> None:
    """Take what was noted in the nodes' metadata away."""
    for body in (proto.graph, *proto.functions):
        for node in _nodes(body):
            kept = [entry for entry in node.metadata_props if entry.key not in (_CALL, _LABEL)]
            if len(kept) != len(node.metadata_props):
                del node.metadata_props[:]
                node.metadata_props.extend(kept)


def _key(function: FunctionProto) -> Key:
    return function.domain, function.name, function.overload


def _nodes(body: Any) -> Iterator[NodeProto]:
    """Every node of a graph or function, those of the bodies they carry behind them."""
    waiting = [iter(body.node)]
    while waiting:
        node = next(waiting[-1], None)
        if node is None:
            waiting.pop()
            continue
        yield node
        waiting.extend(iter(inner.node) for _, inner in attribute_graphs(node))


def _copy_name(call: Call, number: int) -> str:
    return f"{call.function[1]}@{number}"


def _give_defaults(node: NodeProto, function: FunctionProto) -> None:
    """onnx's inliner does not know the defaults of a function's attributes."""
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(attribute for attribute in function.attribute_proto if attribute.name not in given)


def _mark(function: FunctionProto, number: int) -> None:
    for node in _nodes(function):
        node.metadata_props.add(key=_CALL, value=str(number))
        node.metadata_props.add(key=_LABEL, value=label_of(node, node.output))


def _drop_uncalled(proto: ModelProto, before: set[Key]) -> None:
    """Remove functions that were called before and are not now."""
    while True:
        called = {call.function for call in calls_of(proto)}
        kept = [f for f in proto.functions if _key(f) in called or _key(f) not in before]
        if len(kept) == len(proto.functions):
            return
        del proto.functions[:]
        proto.functions.extend(kept)
