"""A graph as the proof sees it: nodes, who makes a tensor, and which tensors are constant.

This is deliberately not the index that folding plans with (``bnfold.graph``): a mistake there must not be able to hide
itself here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from bnfold.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bnfold.verify.source import Source

__all__ = ["RANDOM_OPERATORS", "STEERING", "View", "ViewNode", "bodies", "decides"]

RANDOM_OPERATORS = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
_DECISIONS = frozenset(
    (
        *("ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Unique", "Hardmax"),
        *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"),
        *("Round", "Floor", "Ceil", "Sign", "Mod", "QuantizeLinear", "DynamicQuantizeLinear", "Cast", "IsInf", "IsNaN"),
    )
)
_STANDARD = ("", "ai.onnx")
# Inputs that steer an operator instead of being computed with: moving them by an ulp could change shapes or cases.
STEERING = {
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Pow": (1,),
    "Range": (0, 1, 2),
    "OneHot": (0, 1),
    "Clip": (1, 2),
    "Pad": (1, 2, 3),
    "NonMaxSuppression": (2, 3, 4),
    "QuantizeLinear": (1, 2),
    "Dropout": (1, 2),
}


class ViewNode:
    """One node; ``captures`` are the tensors of outer scopes that its bodies read."""

    __slots__ = ("bodies", "captures", "index", "inputs", "op", "outputs", "proto", "view")

    def __init__(self, view: View, index: int, proto: NodeProto) -> None:
        self.view = view
        self.index = index
        self.proto = proto
        self.op = proto.op_type if proto.domain in _STANDARD else f"{proto.domain}::{proto.op_type}"
        self.inputs = list(proto.input)
        while self.inputs and not self.inputs[-1]:
            self.inputs.pop()
        self.outputs = list(proto.output)
        self.bodies: list[View] = []
        self.captures: list[str] = []

    @property
    def label(self) -> str:
        """The node's name, or ``operator:output`` when it has none."""
        if self.proto.name:
            return printable(self.proto.name)
        return printable(f"{self.proto.op_type}:{next(filter(None, self.outputs), '')}")

    def reads(self) -> Iterator[str]:
        yield from filter(None, self.inputs)
        yield from self.captures


class View:
    """One scope: the main graph, or the body of an If, Loop or Scan.

    ``path`` tells scopes apart and is the same in both models: it is made from output names. ``label`` is for people.
    ``fixed`` are tensors whose value no input can change, but whose type only an input tells.
    """

    def __init__(
        self, source: Source, graph: GraphProto, parent: View | None = None, path: str = "", label: str = ""
    ) -> None:
        self.source = source
        self.graph = graph
        self.parent = parent
        self.path = path
        self.label = label
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse = {sparse.values.name for sparse in graph.sparse_initializer}
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        if parent is None and source.ir_version >= 4:
            self.overridable = {name for name in self.inputs if name in self.initializers}
        else:
            self.overridable = set()
        self.constants: set[str] = (set(self.initializers) | self.sparse) - self.overridable
        self.fed = [name for name in self.inputs if name not in self.constants]
        self.nodes = [ViewNode(self, index, proto) for index, proto in enumerate(graph.node)]
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self._defined = {*self.initializers, *self.sparse, *self.inputs, *self.producers}
        self.fixed: set[str] = set()
        for node in self.nodes:
            self._descend(node)
            if self._is_constant_node(node):
                self.constants.update(filter(None, node.outputs))
            elif self._is_fixed_node(node):
                self.fixed.update(filter(None, node.outputs))

    def _descend(self, node: ViewNode) -> None:
        for name, graph in bodies(node.proto):
            path = f"{self.path}/{next(filter(None, node.outputs), node.label)}.{name}"
            label = f"{self.label}{'/' if self.label else ''}{node.label}.{printable(name)}"
            body = View(self.source, graph, self, path, label)
            node.bodies.append(body)
            node.captures += [n for n in body.free_names() if n not in node.captures]

    def _is_constant_node(self, node: ViewNode) -> bool:
        if node.bodies or node.proto.op_type in RANDOM_OPERATORS:
            return False
        return all(self.is_constant(name) for name in node.inputs if name)

    def _is_fixed_node(self, node: ViewNode) -> bool:
        if node.bodies or node.proto.op_type in RANDOM_OPERATORS or not node.inputs:
            return False
        reads = node.inputs[:1] if node.op == "CastLike" else [name for name in node.inputs if name]
        return all(name in self.fixed or self.is_constant(name) for name in reads)

    def free_names(self) -> list[str]:
        """Tensors of outer scopes that this body reads, directly or in bodies of its own."""
        names = [name for node in self.nodes for name in node.reads()] + self.outputs
        return list(dict.fromkeys(name for name in names if name and name not in self._defined))

    def is_constant(self, name: str) -> bool:
        """Whether a tensor, of this scope or an outer one, has a value that no input can change."""
        home = self.home(name)
        return home is not None and name in home.constants

    def home(self, name: str) -> View | None:
        """The scope that defines a tensor, looking outwards."""
        view: View | None = self
        while view is not None and name not in view._defined:
            view = view.parent
        return view

    def stored(self, name: str) -> TensorProto | None:
        """The tensor that this scope stores a constant as: an initializer or a ``Constant``; None for all others."""
        tensor = self.initializers.get(name)
        node = self.producers.get(name)
        if tensor is not None or node is None or node.op != "Constant":
            return tensor
        return next((a.t for a in node.proto.attribute if a.name == "value"), None)

    def walk(self) -> Iterator[View]:
        """This scope and all below it."""
        yield self
        for node in self.nodes:
            for body in node.bodies:
                yield from body.walk()

    def live(self) -> set[str]:
        """Tensors of this scope that an output depends on."""
        seen: set[str] = set()
        stack = list(self.outputs)
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.producers.get(name)
            if node is not None:
                stack.extend(node.reads())
        return seen


def decides(node: ViewNode) -> bool:
    """Whether a node's output jumps while its input moves by a rounding error."""
    if node.op == "Cast":
        to = next((a.i for a in node.proto.attribute if a.name == "to"), 0)
        return to not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return node.op in _DECISIONS


def bodies(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs among a node's attributes, by attribute name, in the order of the names."""
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for position, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}[{position}]", graph
